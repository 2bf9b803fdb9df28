"""The relay that a few dozen lines make: a bare ASGI handler under Hypercorn, h11 to the worker.

It knows no keys, limits, queue, cancel or metrics. What such a relay costs was measured when llmd's
targets were set, so running it beside llmd tells what they mean on the machine of the moment.
"""

from __future__ import annotations

import sys
from collections.abc import Awaitable, Callable
from typing import Any

import h11
import trio
from hypercorn.config import Config
from hypercorn.trio import serve

Receive = Callable[[], Awaitable[Any]]
Send = Callable[[Any], Awaitable[None]]


class Relay:
    """The ASGI application; keeps its connections to the worker alive as llmd does."""

    def __init__(self, target: str) -> None:
        self._target = target
        self._idle: list[tuple[h11.Connection, trio.SocketStream]] = []

    async def __call__(self, scope: Any, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            raise NotImplementedError  # which tells Hypercorn that there is nothing to start
        body = b""
        while True:
            message = await receive()
            body += message.get("body", b"")
            if not message.get("more_body"):
                break
        request = h11.Request(
            method=scope["method"],
            target=scope["raw_path"],
            headers=[
                (b"host", b"worker"),
                (b"content-type", b"application/json"),
                (b"content-length", b"%d" % len(body)),
            ],
        )
        connection, stream = await self._send(request, body)
        while (event := connection.next_event()) is h11.NEED_DATA:
            try:
                data = await stream.receive_some(65536)
            except trio.BrokenResourceError:
                data = b""
            if data:
                connection.receive_data(data)
            else:  # closed while it was idle
                await stream.aclose()
                connection, stream = await self._send(request, body)
        await self._answer(event, connection, stream, send)

    async def _send(
        self, request: h11.Request, body: bytes
    ) -> tuple[h11.Connection, trio.SocketStream]:
        while True:
            if self._idle:
                connection, stream = self._idle.pop()
            else:
                connection = h11.Connection(h11.CLIENT)
                sock = trio.socket.socket(trio.socket.AF_UNIX)
                await sock.connect(self._target)
                stream = trio.SocketStream(sock)
            parts = [request, h11.Data(data=body), h11.EndOfMessage()]
            try:
                await stream.send_all(b"".join(connection.send(part) or b"" for part in parts))
            except trio.BrokenResourceError:
                await stream.aclose()
                continue
            return connection, stream

    async def _answer(
        self, event: Any, connection: h11.Connection, stream: trio.SocketStream, send: Send
    ) -> None:
        try:
            while not isinstance(event, h11.EndOfMessage):
                if event is h11.NEED_DATA:
                    connection.receive_data(await stream.receive_some(65536))
                elif isinstance(event, h11.Response):
                    headers = [
                        (name, value)
                        for name, value in event.headers
                        if name not in (b"transfer-encoding", b"connection", b"keep-alive")
                    ]
                    status = event.status_code
                    await send(
                        {"type": "http.response.start", "status": status, "headers": headers}
                    )
                elif isinstance(event, h11.Data):
                    part = {"type": "http.response.body", "body": bytes(event.data)}
                    await send(part | {"more_body": True})
                event = connection.next_event()
            await send({"type": "http.response.body", "body": b""})
        except BaseException:
            await stream.aclose()
            raise
        if connection.our_state is connection.their_state is h11.DONE:
            connection.start_next_cycle()
            self._idle.append((connection, stream))
        else:
            await stream.aclose()


async def _main(target: str) -> None:
    listener = trio.socket.socket()
    await listener.bind(("127.0.0.1", 0))
    listener.listen(100)
    config = Config()
    config.bind = [f"fd://{listener.fileno()}"]
    config.accesslog = config.errorlog = None
    config.keep_alive_max_requests = 1 << 62
    print(listener.getsockname()[1], flush=True)
    await serve(Relay(target), config)  # type: ignore[arg-type]  # an ASGI application of any kind


if __name__ == "__main__":
    trio.run(_main, sys.argv[1])
