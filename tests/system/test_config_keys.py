"""Keys of the config, each with what it changes on a daemon that serves."""

from __future__ import annotations

import pytest
from daemon_rig import chat_body, read_answer, running

from llmd.core.lifecycle import WorkerState

pytestmark = pytest.mark.system
LIVE = b"GET /live HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"


def entries(path, *names, **settings):
    return [{"name": name, "path": str(path), **settings} for name in names]


def state(llmd, model):
    worker = llmd.worker(model)
    return WorkerState.OFF if worker is None else worker.state


async def until_off(llmd, model):
    await llmd.until(lambda: state(llmd, model) is WorkerState.OFF)


# --- server.max_connections ------------------------------------------------------------------


async def test_a_connection_too_many_is_turned_away(runtime_dir, fake_engine, demo_small):
    server = {"max_connections": 2}
    async with running(runtime_dir, fake_engine, [demo_small], server=server) as llmd:
        busy = [await llmd.open_chat("[[token 0.02]]", max_tokens=1000) for _ in range(2)]
        await llmd.until(lambda: len(llmd.handles()) == 2)
        third = await llmd.connect()
        answer = await read_answer(third)
        assert (answer.status, answer.code) == (503, "too_many_connections")
        assert "server.max_connections" in answer.json["error"]["message"]
        assert int(answer.headers["retry-after"]) >= 1
        for stream in busy:
            await stream.aclose()
        await llmd.until(lambda: not llmd.handles())
        await llmd.until(lambda: llmd.daemon.http.connections == 0)
        assert (await llmd.chat()).status == 200


async def test_an_idle_connection_gives_way(runtime_dir, fake_engine, demo_small):
    server = {"max_connections": 2}
    async with running(runtime_dir, fake_engine, [demo_small], server=server) as llmd:
        idle = [await llmd.connect() for _ in range(2)]
        for client in idle:
            await client.send_all(LIVE)
            assert (await client.receive_some()).startswith(b"HTTP/1.1 200 ")
        third = await llmd.connect()
        await third.send_all(LIVE)
        assert (await third.receive_some()).startswith(b"HTTP/1.1 200 ")
        assert await idle[0].receive_some() == b""  # the one that has been idle longest
        await idle[1].send_all(LIVE)
        assert (await idle[1].receive_some()).startswith(b"HTTP/1.1 200 ")
        for client in (*idle, third):
            await client.aclose()


async def test_without_a_limit_many_may_come(runtime_dir, fake_engine, demo_small):
    server = {"max_connections": 0}
    async with running(runtime_dir, fake_engine, [demo_small], server=server) as llmd:
        clients = [await llmd.connect() for _ in range(50)]
        await llmd.until(lambda: llmd.daemon.http.connections == 50)
        for client in clients:
            await client.aclose()


# --- scheduler ---------------------------------------------------------------------------------


@pytest.mark.parametrize("meant", ["default", "error"])
async def test_what_an_unknown_model_gets(runtime_dir, fake_engine, demo_small, meant):
    scheduler = {"unknown_model": meant, "default_model": "b", "min_residency_sec": 0}
    models = entries(demo_small, "a", "b")
    async with running(runtime_dir, fake_engine, models, scheduler=scheduler) as llmd:
        for path in ("/v1/chat/completions", "/tokenize"):
            answer = await llmd.call("POST", path, chat_body(model="gpt-4o", content="x"))
            if meant == "error":
                assert (answer.status, answer.code) == (404, "model_not_found")
            else:
                assert answer.status == 200
        if meant == "default":
            assert llmd.last().model == "b"
            assert (await llmd.chat(model="gpt-4o")).json["model"] == "b"
            assert llmd.worker("a") is None
            assert (await llmd.chat(model="a")).json["model"] == "a"  # a known one is itself


@pytest.mark.parametrize("retry", [True, False])
async def test_who_is_tried_again_when_its_worker_died(runtime_dir, fake_engine, demo_small, retry):
    scheduler = {"retry_on_worker_death": retry}
    worker = {"restart_limit": 100}
    async with running(
        runtime_dir, fake_engine, [demo_small], scheduler=scheduler, worker=worker
    ) as llmd:
        answer = await llmd.chat("[[crash]]")
        assert (answer.status, answer.code) == (502, "bad_worker_response")
        assert llmd.last().retries == (1 if retry else 0)


# --- worker.preload ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("preload", "loaded"), [(["b", "b-too"], "b"), (["*"], "abc"), (["c", "a"], "ac"), ([], "")]
)
async def test_preload(runtime_dir, fake_engine, demo_small, preload, loaded):
    models = entries(demo_small, "a", "c")
    models += entries(demo_small, "b", aliases=["b-too"])
    worker = {"preload": preload, "max_loaded": 0}
    async with running(runtime_dir, fake_engine, models, worker=worker) as llmd:
        await llmd.until(lambda: not llmd.services.preloading)
        assert (await llmd.call("GET", "/ready")).status == 200
        ready = [name for name in "abc" if state(llmd, name) is WorkerState.READY]
        assert ready == list(loaded)


async def test_nothing_is_ready_before_the_preload_is(runtime_dir, fake_engine, demo_small):
    models = entries(demo_small, "a", env={"FAKE_LOAD_S": "0.5"})
    async with running(runtime_dir, fake_engine, models, worker={"preload": ["a"]}) as llmd:
        answer = await llmd.call("GET", "/ready")
        assert (answer.status, answer.json["status"]) == (503, "loading")
        assert (await llmd.chat(max_tokens=1)).status == 200  # admitted, and it waited
        await llmd.until(lambda: not llmd.services.preloading)
        assert (await llmd.call("GET", "/ready")).status == 200


# --- idle timeouts -----------------------------------------------------------------------------


async def test_a_model_nobody_uses_is_unloaded(runtime_dir, fake_engine, demo_small):
    worker = {"idle_timeout_sec": 0.2, "max_loaded": 0}
    models = entries(demo_small, "goes") + entries(demo_small, "stays", idle_timeout_sec=0)
    async with running(runtime_dir, fake_engine, models, worker=worker) as llmd:
        for name in ("goes", "stays"):
            assert (await llmd.chat(model=name)).status == 200
        await until_off(llmd, "goes")
        assert state(llmd, "stays") is WorkerState.READY
        assert (await llmd.chat(model="goes")).status == 200  # who asks has it loaded again


async def test_a_models_own_idle_timeout(runtime_dir, fake_engine, demo_small):
    """By default none goes; one that has its own does."""
    models = entries(demo_small, "stays") + entries(demo_small, "goes", idle_timeout_sec=0.2)
    async with running(runtime_dir, fake_engine, models, worker={"max_loaded": 0}) as llmd:
        for name in ("stays", "goes"):
            assert (await llmd.chat(model=name)).status == 200
        await until_off(llmd, "goes")
        assert state(llmd, "stays") is WorkerState.READY


# --- limits ------------------------------------------------------------------------------------


@pytest.mark.parametrize("tokens", [7, 300])
async def test_default_max_tokens_is_counted_and_never_sent(
    runtime_dir, fake_engine, demo_small, tokens
):
    limits = {"default_max_tokens": tokens}
    async with running(runtime_dir, fake_engine, [demo_small], limits=limits) as llmd:
        answer = await llmd.chat()
        unsaid = llmd.last()
        assert answer.json["usage"]["completion_tokens"] == 16  # what the worker itself does
        assert unsaid.estimate_tokens == unsaid.prompt_estimate_tokens + tokens
        await llmd.chat(max_tokens=9)
        said = llmd.last()
        assert said.estimate_tokens == said.prompt_estimate_tokens + 9
