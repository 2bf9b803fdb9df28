"""Bodies that come slowly, or never, at the worst of times."""

from __future__ import annotations

import signal

import httpx
import pytest
from daemon_rig import read_answer, running

pytestmark = pytest.mark.system

CHAT = "/v1/chat/completions"


@pytest.mark.parametrize("path", [CHAT, "/tokenize"])
async def test_a_body_that_trickles_in_does_not_hold_up_the_end(
    runtime_dir, fake_engine, demo_small, path
):
    """Neither one that was on its way at the signal, nor one that comes after it."""
    forever = {"drain_timeout_sec": 0, "body_timeout_sec": 0}
    async with running(runtime_dir, fake_engine, [demo_small], server=forever) as llmd:
        stream = await llmd.open_chat("[[token 0.02]]", stream=True, max_tokens=200)
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
        stream = await llmd.open_chat("[[token 0.02]]", stream=True, max_tokens=200)
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


async def test_an_answer_before_the_body_is_the_connections_last_and_says_so(
    runtime_dir, fake_engine, demo_small
):
    keys = [{"name": "k", "key": "sk-k"}]
    async with running(runtime_dir, fake_engine, [demo_small], api_keys=keys) as llmd:
        head = "POST {} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 2\r\n\r\n"
        for path, status in ((CHAT, 401), ("/v1/nope", 404), ("/v1/models", 405)):
            client = await llmd.connect()
            await client.send_all(head.format(path).encode())
            answer = await read_answer(client)
            assert (answer.status, answer.headers["connection"]) == (status, "close")
        whole = await llmd.connect()
        await whole.send_all(head.format("/v1/nope").encode() + b"{}")
        answer = await read_answer(whole)
        assert answer.status == 404
        assert "connection" not in answer.headers


async def test_a_client_that_keeps_its_connection_is_never_hung_up_on(
    runtime_dir, fake_engine, demo_small
):
    """httpx, and so OpenAI's SDK, sends the head and the body of a request one by one."""
    async with (
        running(runtime_dir, fake_engine, [demo_small]) as llmd,
        httpx.AsyncClient(trust_env=False, base_url=llmd.bound.url) as client,
    ):
        for number in range(200):
            path = ("/v1/nope", "/v1/responses", "/requests", "/tokenize")[number % 4]
            answer = await client.post(path, content=b"{" + b" " * 1000)
            assert answer.status_code in (400, 404, 405, 501)
