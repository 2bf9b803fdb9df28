"""What llmd relies on, of every engine alike: the fake one, the embedded one, llama-server.

A behaviour that the fake gets wrong here is a fault in every test that uses the fake.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
from dataclasses import replace

import pytest
import trio
from worker_rig import JSON, alive, ask, busy, chat, pause, resume, until_busy

from llmd.errors import StartFailed, WorkerDied
from llmd.workers.command import ModelSource
from llmd.workers.control import Control
from llmd.workers.reclaim import Work

pytestmark = pytest.mark.system


@pytest.fixture
async def worker(rig, engine, demo_small):
    with trio.fail_after(30):
        return await rig.ready("m", engine.spec(demo_small, rig.socket()))


async def test_becomes_ready_and_says_what_it_is(rig, engine, demo_small):
    with trio.fail_after(30):
        spec = engine.spec(demo_small, rig.socket(), parallel=3, context_tokens=512)
        worker = await rig.ready("m", spec)
    assert rig.states("m")[0] == "starting"
    assert rig.states("m")[-1] == "ready"
    statistics = worker.statistics()
    assert (statistics.slots, statistics.context_tokens) == (3, 512)
    assert alive(statistics.pid)
    assert statistics.memory_bytes > 1 << 20
    assert statistics.load_s > 0
    assert rig.changes[-1].slots == 3
    assert rig.changes[-1].load_s == statistics.load_s
    with trio.fail_after(20):
        while not worker.log.sequence:  # read a moment later, since reads wait for more
            await trio.sleep(0.005)


async def test_says_how_far_its_load_is_and_not_in_its_log(rig, worker):
    child = worker._owner.life.child
    with trio.fail_after(20):
        while child.load_fraction is None:  # a load so short may be over before it is heard of
            await trio.sleep(0.005)
    assert 0 <= child.load_fraction <= 1
    assert all(0 <= fraction <= 1 for fraction in rig.progress)
    assert not [line for line in worker.log.since(0) if "cmd_child" in line.text]
    assert worker.statistics().load_fraction is None  # the load is over


async def test_ends_with_the_daemon_that_holds_its_stdin(rig, worker):
    before = len(rig.changes)
    worker._owner.life.child._stdin.close()  # as the kernel does for a daemon that was killed
    with trio.fail_after(20):
        await rig.until("m", "backoff", after=before)
        await rig.until("m", "ready", after=before)


async def test_a_stop_ends_it_with_status_zero(rig, worker):
    with trio.fail_after(20):
        child = worker._owner.life.child
        worker.stop(reason="test")
        await worker.stopped()
        assert await child.wait() == 0


async def test_answers_a_plain_chat(worker):
    with trio.fail_after(20):
        status, body = await ask(worker, chat("hello", max_tokens=5))
    answer = json.loads(body)
    assert status == 200
    assert answer["object"] == "chat.completion"
    assert answer["choices"][0]["finish_reason"] == "length"
    assert answer["usage"]["completion_tokens"] == 5
    assert answer["timings"]["predicted_n"] == 5


async def test_answers_a_streamed_chat(worker):
    with trio.fail_after(20):
        status, body = await ask(worker, chat("hello", max_tokens=5, stream=True))
    assert status == 200
    events = [line[6:] for line in body.decode().splitlines() if line.startswith("data: ")]
    assert events[-1] == "[DONE]"
    chunks = [json.loads(event) for event in events[:-1]]
    assert "".join(chunk["choices"][0]["delta"].get("content") or "" for chunk in chunks)
    assert chunks[-1]["timings"]["predicted_n"] == 5


async def test_answers_with_the_models_name(worker):
    with trio.fail_after(20):
        _, body = await ask(worker, chat("hello", max_tokens=1))
    assert json.loads(body)["model"] == "demo-small"


async def test_counts_tokens(worker):
    with trio.fail_after(20):
        status, body = await ask(worker, b'{"content": "a b c"}', b"/tokenize")
    assert status == 200
    assert len(json.loads(body)["tokens"]) >= 3


async def test_a_bad_request_is_an_answer(worker):
    with trio.fail_after(20):
        status, body = await ask(worker, b'{"prompt": 1}', b"/no/such/path")
    assert status == 404
    assert json.loads(body)["error"]["code"] == 404


async def test_slots_show_a_stream_and_its_end_after_a_disconnect(rig, worker):
    order = chat("tell [[token 0.05]]", max_tokens=900, stream=True)
    with trio.fail_after(20):
        response = await worker.upstream.request(b"POST", b"/v1/chat/completions", order, JSON)
        await response.head()
        await response.receive()
        response.close()
        worker.reclaim(lambda: 0, "test")
        while not rig.reclaimed:
            await trio.sleep(0.005)
        assert await busy(worker) == 0
    model, seconds = rig.reclaimed[0]
    assert model == "m"
    assert seconds > 0
    assert worker.statistics().reclaims.reclaimed == 1


async def test_another_stream_goes_on_when_one_is_cancelled(rig, worker):
    order = chat("tell [[token 0.003]]", max_tokens=300, stream=True, seed=1, temperature=0)
    with trio.fail_after(30):
        kept = await worker.upstream.request(b"POST", b"/v1/chat/completions", order, JSON)
        await kept.head()
        gone = await worker.upstream.request(b"POST", b"/v1/chat/completions", order, JSON)
        await gone.head()
        gone.close()
        worker.reclaim(lambda: 1, "test")
        body = await kept.read(1 << 20)
        while not rig.reclaimed:
            await trio.sleep(0.005)
    assert b"[DONE]" in body


async def test_a_plain_job_beside_a_stream_is_let_go_by_a_hold(rig, engine, demo_slow):
    """What a worker writes only at its end never notices while a neighbour gets tokens."""
    order = {"max_tokens": 1500, "seed": 1}
    streamed = chat("tell [[token 0.01]]", stream=True, **order)
    plain = chat("tell [[token 0.01]]", logprobs=True, **order)
    with trio.fail_after(60):
        worker = await rig.ready("m", engine.spec(demo_slow, rig.socket(), context_tokens=4096))
        kept = await worker.upstream.request(b"POST", b"/v1/chat/completions", streamed, JSON)
        await kept.head()
        gone = await worker.upstream.request(b"POST", b"/v1/chat/completions", plain, JSON)
        await until_busy(worker, 2)
        gone.close()
        worker.reclaim(lambda: 1, "test", Work.WHOLE)
        while not rig.reclaimed:
            await trio.sleep(0.005)
        # the other has as many tokens to make, and began earlier: nothing has just run out
        assert await busy(worker) == 1
        for _ in range(50):
            assert await kept.receive()
        kept.close()
    assert worker.statistics().reclaims.holds >= 1
    assert worker.statistics().crashes == 0


async def test_more_requests_than_slots_wait_inside_and_all_finish(worker):
    statuses = []

    async def one():
        statuses.append((await ask(worker, chat("hello [[token 0.01]]", max_tokens=8)))[0])

    with trio.fail_after(30):
        async with trio.open_nursery() as nursery:
            for _ in range(6):
                nursery.start_soon(one)
    assert statuses == [200] * 6


async def test_stops_when_told_and_leaves_nothing(rig, worker):
    pid = worker.statistics().pid
    with trio.fail_after(20):
        rig.supervisor.stop("m", reason="test")
        await worker.stopped()
    assert not alive(pid)
    assert worker.state.value == "off"
    assert worker.upstream is None
    assert rig.states("m")[-2:] == ["stopping", "off"]
    assert worker.statistics().exits == {"stopped": 1}
    assert list(rig.runtime_dir.iterdir()) == []


async def test_stops_while_it_generates(rig, worker):
    order = chat("tell [[token 0.05]]", max_tokens=900, stream=True)
    with trio.fail_after(20):
        response = await worker.upstream.request(b"POST", b"/v1/chat/completions", order, JSON)
        await response.head()
        worker.stop(reason="test")
        await worker.stopped()
        response.close()
    assert worker.statistics().exits == {"stopped": 1}


async def test_a_kill_is_seen_and_it_serves_again(rig, worker):
    pid = worker.statistics().pid
    seen = len(rig.changes)
    with trio.fail_after(30):
        os.kill(pid, signal.SIGKILL)
        backoff = await rig.until("m", "backoff", seen)
        await rig.until("m", "ready", seen)
        status, _ = await ask(worker, chat("hello", max_tokens=1))
    assert status == 200
    assert "SIGKILL" in backoff.reason
    assert worker.statistics().crashes == 1
    assert worker.statistics().exits == {"killed": 1}
    assert worker.statistics().starts == {"test": 1, "restart": 1}


async def test_a_worker_killed_while_it_generates_breaks_the_answer_at_once(rig, worker):
    order = chat("tell [[token 0.05]]", max_tokens=900, stream=True)
    with trio.fail_after(20):
        response = await worker.upstream.request(b"POST", b"/v1/chat/completions", order, JSON)
        await response.head()
        await response.receive()
        os.kill(worker.statistics().pid, signal.SIGKILL)
        with pytest.raises(WorkerDied):
            await response.read(1 << 20)
        await rig.until("m", "backoff")


async def failure(rig, spec):
    rig.specs["m"] = spec
    with trio.fail_after(20), pytest.raises(StartFailed) as failed:
        await rig.supervisor.ensure_ready("m")
    assert failed.value.permanent
    assert rig.states("m")[-1] == "failed"
    assert rig.supervisor.worker("m").statistics().exits == {"refused": 1}
    return failed.value.message


async def test_a_bad_gguf_fails_at_once_and_says_so(rig, engine, tmp_path):
    path = tmp_path / "bad.gguf"
    path.write_bytes(b"\x00\x01\x02\x03 this is no model" * 50)
    message = await failure(rig, engine.spec(path, rig.socket()))
    assert "GGUF" in message
    assert "magic" in message


async def test_a_missing_file_fails_at_once_and_says_so(rig, engine, tmp_path):
    message = await failure(rig, engine.spec(tmp_path / "gone.gguf", rig.socket()))
    assert "missing" in message
    assert "gone.gguf" in message


async def test_a_bad_flag_fails_at_once_and_says_so(rig, engine, demo_small):
    spec = engine.with_words(engine.spec(demo_small, rig.socket()), "--no-such-flag")
    message = await failure(rig, spec)
    assert "flag" in message
    assert "--no-such-flag" in message


async def test_a_failed_worker_starts_again_after_reset(rig, engine, demo_small, tmp_path):
    path = tmp_path / "later.gguf"
    spec = engine.spec(path, rig.socket())
    await failure(rig, spec)
    shutil.copy(demo_small, path)
    with trio.fail_after(20):
        rig.supervisor.reset("m")
        await rig.until("m", "off")
        await rig.supervisor.ensure_ready("m")


async def test_a_socket_left_behind_is_no_obstacle(rig, engine, demo_small):
    with trio.fail_after(20):
        with socket.socket(socket.AF_UNIX) as stale:
            stale.bind(str(rig.socket()))
        await rig.ready("m", engine.spec(demo_small, rig.socket()))


async def test_a_start_that_is_paused_is_waited_for(rig, engine, demo_small):
    """A slow load, on any engine: stopped by a signal for longer than a normal load takes."""
    spec = engine.spec(demo_small, rig.socket())
    rig.specs["m"] = spec
    with trio.fail_after(30):
        rig.supervisor.start("m", reason="test")
        await rig.until("m", "starting")
        worker = rig.supervisor.worker("m")
        while not worker.statistics().pid:
            await trio.sleep(0)
        pause(worker.statistics().pid)
        with trio.move_on_after(0.5):
            await rig.until("m", "ready")
        assert rig.states("m")[-1] in ("starting", "loading")
        resume(worker.statistics().pid)
        await rig.until("m", "ready")
    assert worker.statistics().crashes == 0


async def test_a_stranger_on_the_socket_is_never_used(rig, engine, demo_small):
    """Another worker of the same engine listens there, and serves the very same file."""
    stranger = await rig.ready("stranger", engine.spec(demo_small, rig.socket("s")))
    spec = engine.spec(demo_small, rig.socket("m"))
    with trio.fail_after(30):
        worker = await rig.ready("m", spec)
        rig.socket("m").unlink()
        os.link(rig.socket("s"), rig.socket("m"))
        control = Control(rig.socket("m"))
        assert await control.peer_pid() == stranger.statistics().pid
        control.close()
        worker.upstream._idle.clear()
        with pytest.raises(WorkerDied, match="another process"):
            await ask(worker, chat("hello"))


async def test_a_worker_that_serves_another_file_is_refused(rig, engine, demo_small, demo_models):
    spec = engine.spec(demo_small, rig.socket())
    other = ModelSource(path=str(demo_models / "demo-large.gguf"))
    rig.specs["m"] = replace(spec, source=other)
    with trio.fail_after(30), pytest.raises(StartFailed, match="demo-small") as failed:
        await rig.supervisor.ensure_ready("m")
    assert failed.value.permanent
    assert "ready" not in rig.states("m")
    assert rig.supervisor.worker("m").statistics().exits == {"identity": 1}


async def test_a_cancel_in_a_slow_prefill_frees_the_slot(rig, engine, demo_models):
    """Asked for its progress, llama-server looks after its client with every batch."""
    rig.configure(reclaim_timeout_s=30)
    spec = engine.spec(demo_models / "demo-large.gguf", rig.socket(), context_tokens=8192)
    with trio.fail_after(60):
        worker = await rig.ready("m", spec)
        # /slots is answered between batches, and must show this one however late it comes
        text = "[[prefill 5]]" + " river" * 1100
        order = chat(text, max_tokens=900, stream=True, return_progress=True)
        response = await worker.upstream.request(b"POST", b"/v1/chat/completions", order, JSON)
        await until_busy(worker, 1)
        response.close()
        worker.reclaim(lambda: 0, "test")
        while not rig.reclaimed:
            await trio.sleep(0.005)
        assert (await ask(worker, chat("hello", max_tokens=1)))[0] == 200
    assert worker.statistics().crashes == 0


async def test_a_slow_prefill_is_not_taken_for_a_hang(rig, engine, demo_models):
    rig.configure(health_interval_s=0.01, check_timeout_s=2)
    spec = engine.spec(demo_models / "demo-large.gguf", rig.socket(), context_tokens=8192)
    with trio.fail_after(60):
        worker = await rig.ready("m", spec)
        order = chat("[[prefill 1]]" + " river" * 1100, max_tokens=1)
        status, body = await ask(worker, order)
    assert status == 200, body
    assert worker.statistics().crashes == 0


async def test_health_checks_leave_a_busy_worker_alone(rig, engine, demo_small):
    rig.configure(health_interval_s=0.02)
    with trio.fail_after(30):
        worker = await rig.ready("m", engine.spec(demo_small, rig.socket()))
        order = chat("tell [[token 0.002]]", max_tokens=400)
        status, _ = await ask(worker, order)
        worker.suspect("test")
        assert (await ask(worker, chat("hello", max_tokens=1)))[0] == 200
    assert status == 200
    assert worker.statistics().crashes == 0


async def test_a_paused_worker_is_found_hung_killed_and_replaced(rig, engine, demo_small):
    rig.configure(check_timeout_s=0.3)
    with trio.fail_after(30):
        worker = await rig.ready("m", engine.spec(demo_small, rig.socket()))
        pid = worker.statistics().pid
        pause(pid)
        seen = len(rig.changes)
        worker.suspect("no byte for 60 s")
        backoff = await rig.until("m", "backoff", seen)
        await rig.until("m", "ready", seen)
    assert "hangs" in backoff.reason
    assert "no byte for 60 s" in backoff.reason
    assert not alive(pid)
    assert worker.statistics().exits == {"hung": 1}


async def test_two_workers_load_and_die_apart(rig, engine, demo_small):
    with trio.fail_after(30):
        async with trio.open_nursery() as nursery:
            for name in ("a", "b"):
                spec = engine.spec(demo_small, rig.socket(name))
                nursery.start_soon(rig.ready, name, spec)
        first, second = (rig.supervisor.worker(name) for name in ("a", "b"))
        os.kill(first.statistics().pid, signal.SIGKILL)
        status, _ = await ask(second, chat("hello", max_tokens=1))
        await until_busy(second, 0)
        await rig.until("a", "backoff")
    assert status == 200
    assert second.statistics().crashes == 0
