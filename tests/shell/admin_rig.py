"""The admin socket over the rooms of `api_rig`: a real Unix socket, workers without processes."""

from __future__ import annotations

import socket
import tempfile
from contextlib import asynccontextmanager
from pathlib import Path

import msgspec
import trio
from api_rig import api

from llmd.admin.peercred import Rights
from llmd.admin.rooms import Rooms
from llmd.admin.server import AdminServer
from llmd.core.recent import Recent
from llmd.netio import SocketStream

RIGHTS = Rights.of("", read_all=False)


class Peer:
    """An operator's raw connection."""

    def __init__(self, sock):
        self.stream = SocketStream(sock)
        self._data = b""

    async def say(self, **command):
        await self.send(msgspec.json.encode(command) + b"\n")

    async def send(self, data):
        await self.stream.send_all(data)

    async def hear(self):
        """Return the next message; None once the daemon has hung up."""
        while b"\n" not in self._data:
            data = await self.stream.receive_some()
            if not data:
                assert not self._data
                return None
            self._data += data
        line, _, self._data = self._data.partition(b"\n")
        return msgspec.json.decode(line)

    async def ask(self, **command):
        await self.say(**command)
        return await self.hear()

    async def until(self, wanted):
        """Return the first message for which `wanted` is true."""
        while not wanted(message := await self.hear()):
            assert message is not None
        return message


class AdminRig:
    """What tests hold of an admin server."""

    def __init__(self, rig, server, path):
        self.rig = rig
        self.server = server
        self.path = path
        self._peers = []

    def peer(self):
        sock = socket.socket(socket.AF_UNIX)
        sock.connect(str(self.path))
        self._peers.append(Peer(sock))
        return self._peers[-1]

    def close(self):
        for peer in self._peers:
            peer.stream.close()


@asynccontextmanager
async def admin(models_dir, *, rights=RIGHTS, server=None, **groups):
    """Run an admin server; `server` are its own arguments, `groups` those of the config."""
    async with api(models_dir, **groups) as rig:
        services = rig.services
        rooms = Rooms(
            operations=services.operations,
            fleet=services.fleet,
            recent=Recent(),
            health=lambda: "ok",
            url=lambda: "http://test",
            engine="fake",
            max_queued=100,
            max_queued_tokens=1_000_000,
            memory_total_bytes=1 << 34,
            started_at=services.started_at,
        )
        # the path of a Unix socket has at most 107 bytes, which pytest's own may exceed
        with tempfile.TemporaryDirectory(prefix="llmd-") as directory:
            path = Path(directory) / "admin.sock"
            made = AdminServer(rooms, path, rights, **(server or {}))
            rig.registry._on_close = made.ended
            made.open()
            async with trio.open_nursery() as nursery:
                await nursery.start(made.run)
                found = AdminRig(rig, made, path)
                try:
                    yield found
                finally:
                    found.close()
                    nursery.cancel_scope.cancel()
