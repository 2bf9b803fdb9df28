"""A client that takes nothing is dropped, and record and log say why."""

from __future__ import annotations

import logging
import socket

import pytest
import trio
from daemon_rig import running

pytestmark = pytest.mark.system
WHY = "the client took no byte for 0.5 s (server.send_timeout_sec)"


async def deaf(llmd):
    """Connect with room for next to nothing."""
    sock = trio.socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    await sock.connect(llmd.address)
    return trio.SocketStream(sock)


async def test_a_client_that_takes_nothing_is_dropped_with_a_reason(
    runtime_dir, fake_engine, demo_small, caplog
):
    server = {"send_timeout_sec": 0.5}
    entry = {"name": "m", "path": str(demo_small), "context_size": 300_000}
    with caplog.at_level(logging.INFO, "llmd"):
        async with running(runtime_dir, fake_engine, [entry], server=server) as llmd:
            client = await deaf(llmd)
            await client.send_all(llmd.chat_bytes(stream=True, max_tokens=200_000))
            await llmd.until_states("decode")
            await llmd.until(lambda: not llmd.handles())
            record = llmd.last()
            assert (record.state.value, record.cancel_cause.value) == ("abandoned", "client_gone")
            assert record.reason == WHY
            shown = await llmd.call("GET", f"/requests/{record.id}")
            assert shown.json["reason"] == WHY
            await client.aclose()
            await llmd.until_slots_free("m")
            llmd.assert_nothing_left()
    (line,) = (r for r in caplog.records if r.getMessage() == "client dropped")
    assert line.llmd_fields == {"request": record.id, "client": "127.0.0.1", "reason": WHY}


async def test_one_that_leaves_by_itself_is_not_reported_so(
    runtime_dir, fake_engine, demo_small, caplog
):
    server = {"send_timeout_sec": 0.5}
    async with running(runtime_dir, fake_engine, [demo_small], server=server) as llmd:
        client = await llmd.open_chat("[[token 0.05]]", stream=True, max_tokens=100)
        await llmd.until_states("decode")
        await client.aclose()
        await llmd.until(lambda: not llmd.handles())
        assert (llmd.last().state.value, llmd.last().reason) == ("abandoned", "")
    assert not [r for r in caplog.records if r.getMessage() == "client dropped"]
