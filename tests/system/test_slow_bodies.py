"""Bodies that come slowly, or never, at the worst of times."""

from __future__ import annotations

import signal

import pytest
from daemon_rig import read_answer, running

pytestmark = pytest.mark.system


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/tokenize"])
async def test_a_body_that_trickles_in_does_not_hold_up_the_end(
    runtime_dir, fake_engine, demo_small, path
):
    """Neither one that was on its way at the signal, nor one that comes after it."""
    forever = {"drain_timeout_sec": 0, "body_timeout_sec": 0}
    async with running(runtime_dir, fake_engine, [demo_small], server=forever) as llmd:
        stream = await llmd.open_chat("[[token 0.02]]", stream=True, max_tokens=50)
        await llmd.until_states("decode")
        before, after = await llmd.connect(), None
        await before.send_all(llmd.raw(path, {"content": "x" * 100})[:-50])
        await llmd.until_states("decode", "received")
        signal.raise_signal(signal.SIGTERM)
        await llmd.until(lambda: llmd.services.draining)
        after = await llmd.connect()
        await after.send_all(llmd.raw(path, {"content": "x" * 100})[:-50])
        for client in (before, after):
            answer = await read_answer(client)
            assert (answer.status, answer.code) == (503, "shutting_down")
            assert answer.headers["connection"] == "close"
        assert (await read_answer(stream)).events[-1] == "[DONE]"
        await llmd.until(lambda: llmd.daemon.http.connections == 0)
        llmd.assert_nothing_left()


async def test_nor_does_one_for_another_endpoint(runtime_dir, fake_engine, demo_small):
    """It is given as much time as a head, and then no answer."""
    times = {"drain_timeout_sec": 0, "body_timeout_sec": 0, "header_timeout_sec": 0.3}
    async with running(runtime_dir, fake_engine, [demo_small], server=times) as llmd:
        stream = await llmd.open_chat("[[token 0.02]]", stream=True, max_tokens=50)
        await llmd.until_states("decode")
        before = await llmd.connect()
        await before.send_all(llmd.raw("/switch-model", {"model": "x" * 100})[:-50])
        await llmd.until(lambda: llmd.daemon.http.connections == 2)
        signal.raise_signal(signal.SIGTERM)
        await llmd.until(lambda: llmd.services.draining)
        after = await llmd.connect()
        await after.send_all(llmd.raw("/switch-model", {"model": "x" * 100})[:-50])
        assert (await read_answer(stream)).events[-1] == "[DONE]"
        for client in (before, after):
            assert await client.receive_some() == b""
            await client.aclose()
        await llmd.until(lambda: llmd.daemon.http.connections == 0)
