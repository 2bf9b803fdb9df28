"""Cancelling frees what was held: in the queue at once, in the worker within a second.

`/slots`, asked past llmd, is the witness. Which engine runs matters here, so the tests that need
nothing slow run on each real one; the fake serves those that need a slow or stubborn worker.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import trio
from daemon_rig import KEYS, chat_body, read_answer, running

pytestmark = pytest.mark.system


@pytest.fixture
async def fake(runtime_dir, fake_engine, demo_small):
    async with running(runtime_dir, fake_engine, [demo_small]) as llmd:
        yield llmd


@pytest.fixture
async def real(runtime_dir, real_engine, demo_models):
    entry = {"name": "m", "path": str(demo_models / "demo-large.gguf"), "context_size": 8192}
    async with running(runtime_dir, real_engine, [entry]) as llmd:
        yield llmd


@pytest.mark.parametrize("stream", [True, False])
async def test_a_client_that_leaves_frees_its_slot(real, stream):
    await real.chat(max_tokens=1)
    client = await real.open_chat(max_tokens=8000, stream=stream)
    await real.until(lambda: real.states() == ["decode"])
    assert await real.slots_busy("m") == 1
    started = trio.current_time()
    await client.aclose()
    await real.until(lambda: not real.handles())
    await real.until_slots_free("m")
    assert trio.current_time() - started < 10  # the promise is one second; loaded boxes are slower
    record = real.last()
    assert (record.outcome, record.cancel_cause.value) == ("abandoned", "client_gone")
    real.assert_nothing_left()


@pytest.mark.parametrize("stream", [True, False])
async def test_a_cancelled_request_is_told_so_and_frees_its_slot(real, stream):
    await real.chat(max_tokens=1)
    client = await real.open_chat(max_tokens=8000, stream=stream)
    await real.until(lambda: real.states() == ["decode"])
    request_id = real.handles()[0].record.id
    answer = await real.call("POST", f"/requests/{request_id}/cancel")
    assert answer.status == 200
    got = await read_answer(client)
    if stream:
        assert got.events[-1]["error"]["code"] == "request_cancelled"
        assert "[DONE]" not in got.events
    else:
        assert (got.status, got.code) == (499, "request_cancelled")
        assert got.headers["x-should-retry"] == "false"
    await real.until_slots_free("m")
    assert real.last().outcome == "cancelled"
    real.assert_nothing_left()


async def test_a_neighbour_is_not_disturbed(real):
    quiet = {"max_tokens": 200, "seed": 7, "temperature": 0}
    alone = [(await real.chat("tell me", **quiet)).json["choices"] for _ in range(2)]
    client = await real.open_chat("go on", max_tokens=8000, stream=True)
    await real.until(lambda: real.states() == ["decode"])
    answers = []

    async def ask() -> None:
        answers.append((await real.chat("tell me", **quiet)).json["choices"])

    async with trio.open_nursery() as nursery:
        nursery.start_soon(ask)
        await real.until(lambda: len(real.handles()) == 2 or answers)
        await client.aclose()
    if alone[0] == alone[1]:  # what is batched together changes results: compare only then
        assert answers[0][0]["finish_reason"] == alone[0][0]["finish_reason"]
        assert len(answers[0][0]["message"]["content"]) > 0
    await real.until_slots_free("m")
    real.assert_nothing_left()


async def test_a_plain_request_that_no_stream_could_answer_is_let_go_beside_a_stream(
    runtime_dir, any_real_engine, demo_slow
):
    """Its worker would not notice for as long as the neighbour gets tokens: it is held still."""
    entry = {"name": "demo-slow", "path": str(demo_slow), "context_size": 4096}
    async with running(runtime_dir, any_real_engine, [entry]) as llmd:
        neighbour = await llmd.open_chat(max_tokens=1500, stream=True)
        await llmd.until_states("decode")
        client = await llmd.open_chat(max_tokens=1500, logprobs=True)
        await llmd.until(lambda: len(llmd.handles()) == 2)
        while await llmd.slots_busy("demo-slow") != 2:
            await trio.lowlevel.checkpoint()
        await client.aclose()
        await llmd.until(lambda: len(llmd.handles()) == 1)
        worker = llmd.worker("demo-slow")
        await llmd.until(lambda: worker.statistics().reclaims.reclaimed == 1)
        assert await llmd.slots_busy("demo-slow") == 1
        assert worker.statistics().reclaims.holds == 1
        for _ in range(50):
            assert await neighbour.receive_some()
        await neighbour.aclose()
        await llmd.until(lambda: not llmd.handles())
        llmd.assert_nothing_left()


async def test_a_queued_client_that_leaves_leaves_the_queue(fake):
    runners = [await fake.open_chat("[[token 0.05]]", max_tokens=400) for _ in range(2)]
    await fake.until(lambda: fake.states() == ["decode", "decode"])
    waiting = await fake.open_chat("late")
    await fake.until(lambda: "queued" in fake.states())
    await waiting.aclose()
    await fake.until(lambda: "queued" not in fake.states())
    assert fake.services.scheduler.statistics().queued == 0
    assert fake.last().outcome == "abandoned"
    for runner in runners:
        await runner.aclose()
    await fake.until(lambda: not fake.handles())
    fake.assert_nothing_left()


async def test_a_client_that_leaves_in_prefill_frees_its_slot(fake):
    await fake.chat()
    client = await fake.open_chat("[[prefill 30]]", stream=True)
    await fake.until(lambda: fake.states() == ["prefill"])
    await client.aclose()
    await fake.until(lambda: not fake.handles())
    await fake.until_slots_free("demo-small")
    fake.assert_nothing_left()


async def test_cancel_all_cancels_queued_and_running(fake):
    streams = [await fake.open_chat("[[token 0.05]]", max_tokens=400) for _ in range(5)]
    await fake.until_states("decode", "decode", "queued", "queued", "queued")
    assert (await fake.call("POST", "/requests/cancel-all")).status == 200
    for stream in streams:
        answer = await read_answer(stream)
        assert (answer.status, answer.code) == (499, "request_cancelled")
    await fake.until_slots_free("demo-small")
    fake.assert_nothing_left()


async def test_only_its_owner_or_an_admin_may_cancel(runtime_dir, fake_engine, demo_small):
    async with running(
        runtime_dir, fake_engine, [demo_small], key="sk-alice", api_keys=KEYS
    ) as llmd:
        client = await llmd.open_chat("[[token 0.05]]", max_tokens=400)
        await llmd.until_states("decode")
        request_id = llmd.handles()[0].record.id
        path = f"/requests/{request_id}/cancel"
        assert (await llmd.call("POST", path, key="sk-bob")).code == "request_not_found"
        assert (await llmd.call("POST", path, key="sk-root")).status == 200
        assert (await read_answer(client)).status == 499
        assert llmd.last().cancel_cause.value == "operator"


async def test_the_request_timeout_ends_it_wherever_it_is(runtime_dir, fake_engine, demo_small):
    async with running(
        runtime_dir, fake_engine, [demo_small], limits={"request_timeout_sec": 0.5}
    ) as llmd:
        answer = await llmd.chat("[[prefill 30]]")
        assert (answer.status, answer.code) == (504, "request_timeout")
        assert answer.headers["x-should-retry"] == "false"
        assert llmd.last().outcome == "timed_out"
        await llmd.until_slots_free("demo-small")
        llmd.assert_nothing_left()


async def test_a_slot_that_stays_busy_has_the_worker_restarted(
    runtime_dir, fake_engine, demo_small
):
    async with running(runtime_dir, fake_engine, [demo_small]) as llmd:
        await llmd.chat()
        pid = llmd.worker("demo-small").statistics().pid
        client = await llmd.open_chat("[[token 0.05]] [[sticky]]", max_tokens=400, stream=True)
        await llmd.until_states("decode")
        await client.aclose()
        await llmd.until(lambda: not llmd.handles())
        assert await llmd.slots_busy("demo-small") == 1
        await llmd.until(
            lambda: (
                llmd.worker("demo-small").state.value == "ready"
                and llmd.worker("demo-small").statistics().pid != pid
            )
        )
        assert (await llmd.chat()).status == 200
        llmd.assert_nothing_left()


async def test_a_slot_that_stays_busy_beside_others_is_left_alone(
    runtime_dir, fake_engine, demo_small
):
    async with running(runtime_dir, fake_engine, [demo_small]) as llmd:
        await llmd.chat()
        pid = llmd.worker("demo-small").statistics().pid
        neighbour = await llmd.open_chat("[[token 0.1]]", max_tokens=90, stream=True)
        sticky = await llmd.open_chat("[[token 0.05]] [[sticky]]", max_tokens=400, stream=True)
        await llmd.until_states("decode", "decode")
        await sticky.aclose()
        answer = await read_answer(neighbour)
        assert answer.events[-1] == "[DONE]"
        assert llmd.last().worker_pid == pid


async def test_a_thousand_clients_that_vanish_mid_stream_leave_nothing(real):
    await real.chat(max_tokens=1)

    def descriptors() -> int:
        return len(list(Path("/proc/self/fd").iterdir()))

    def tasks() -> int:
        return trio.lowlevel.current_statistics().tasks_living

    before = descriptors(), tasks()
    limit = trio.CapacityLimiter(8)

    async def vanish(index: int) -> None:
        async with limit:
            client = await real.open_chat(max_tokens=8000, stream=index % 4 != 0)
            if index % 4:
                with trio.move_on_after(5):
                    await client.receive_some(1 + index % 700)
            await client.aclose()

    async with trio.open_nursery() as nursery:
        for index in range(1000):
            nursery.start_soon(vanish, index)
    await real.until(lambda: not real.handles())
    await real.until_slots_free("m")
    real.assert_nothing_left()
    await real.until(lambda: tasks() <= before[1])
    # kept-alive connections to the worker may remain: at most one a slot
    await real.until(lambda: descriptors() <= before[0] + 2)
    assert (await real.chat(max_tokens=3)).status == 200


async def test_what_cannot_be_streamed_is_let_go_too(runtime_dir, real_engine, demo_models):
    """Embeddings run to the end of their batch in the worker; llmd holds nothing for them."""
    async with running(runtime_dir, real_engine, [demo_models / "demo-embed.gguf"]) as llmd:
        assert (await llmd.call("POST", "/v1/embeddings", {"input": "hello"})).status == 200
        client = await llmd.connect()
        await client.send_all(llmd.raw("/v1/embeddings", {"input": ["hello " * 100] * 50}))
        await llmd.until(llmd.handles)
        await client.aclose()
        await llmd.until(lambda: not llmd.handles())
        await llmd.until_slots_free("demo-embed")
        llmd.assert_nothing_left()


async def test_json_bodies_of_cancelled_plain_requests_are_whole(fake):
    """A 499 is complete JSON in the one shape."""
    client = await fake.open_chat("[[token 0.05]]", max_tokens=400)
    await fake.until_states("decode")
    await fake.call("POST", "/requests/cancel-all")
    error = json.loads((await read_answer(client)).body)["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert chat_body()["messages"]
