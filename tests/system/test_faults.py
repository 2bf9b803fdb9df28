"""Workers that die or hang, clients that misbehave: a clear answer, and nobody else hurt."""

from __future__ import annotations

import os
import signal
from dataclasses import replace

import pytest
from daemon_rig import KEYS, read_answer, running

from llmd.workers.diagnosis import ExitCause

pytestmark = pytest.mark.system

NAME = "demo-small"


@pytest.fixture
async def fake(runtime_dir, fake_engine, demo_small):
    async with running(
        runtime_dir, fake_engine, [demo_small], worker={"stall_timeout_sec": 0.3}
    ) as llmd:
        yield llmd


@pytest.fixture
async def real(runtime_dir, real_engine, demo_models):
    entry = {"name": "m", "path": str(demo_models / "demo-large.gguf"), "context_size": 8192}
    async with running(runtime_dir, real_engine, [entry]) as llmd:
        yield llmd


def pid_of(llmd, model):
    return llmd.worker(model).statistics().pid


# --- workers --------------------------------------------------------------------------------


async def test_a_worker_killed_mid_stream_ends_the_stream_with_an_error(real):
    await real.chat(max_tokens=1)
    client = await real.open_chat(max_tokens=8000, stream=True)
    await real.until_states("decode")
    os.kill(pid_of(real, "m"), signal.SIGKILL)
    events = (await read_answer(client)).events
    assert events[-1]["error"]["code"] == "bad_worker_response"
    assert "[DONE]" not in events
    assert (await real.chat(max_tokens=1)).status == 200  # restarted by itself
    real.assert_nothing_left()


async def test_a_worker_killed_before_the_first_byte_costs_a_retry_and_nothing_else(fake):
    await fake.chat()
    client = await fake.open_chat("[[prefill 1]]", max_tokens=2)
    await fake.until_states("prefill")
    os.kill(pid_of(fake, NAME), signal.SIGKILL)
    answer = await read_answer(client)
    assert answer.status == 200
    assert fake.last().retries == 1
    fake.assert_nothing_left()


async def test_a_request_that_kills_each_worker_it_meets_is_given_up(fake):
    answer = await fake.chat("[[crash]]")
    assert (answer.status, answer.code) == (502, "bad_worker_response")
    assert fake.last().retries == 1
    assert (await fake.chat()).status == 200
    fake.assert_nothing_left()


async def test_a_hung_worker_is_found_and_replaced(real):
    await real.chat(max_tokens=1)
    pid = pid_of(real, "m")
    client = await real.open_chat(max_tokens=8000, stream=True)
    await real.until_states("decode")
    real.worker("m").suspect("asked by the test")  # a worker that answers is left alone
    os.kill(pid, signal.SIGSTOP)
    real.worker("m").suspect("asked by the test")
    events = (await read_answer(client)).events
    assert events[-1]["error"]["code"] in ("bad_worker_response", "worker_stalled")
    assert (await real.chat(max_tokens=1)).status == 200
    assert pid_of(real, "m") != pid


async def test_silence_has_the_worker_checked_and_a_hung_one_answers_504(fake):
    await fake.chat()
    pid = pid_of(fake, NAME)
    answer = await fake.chat("[[hang]]")
    assert (answer.status, answer.code) == (504, "worker_stalled")
    assert answer.headers["x-should-retry"] == "false"
    assert (await fake.chat()).status == 200
    assert pid_of(fake, NAME) != pid


async def test_a_worker_that_was_only_slow_is_not_called_hung_when_it_breaks_later(fake):
    await fake.chat()
    answer = await fake.chat("[[prefill 1]] [[cut]]", max_tokens=5)
    assert (answer.status, answer.code) == (502, "bad_worker_response")
    fake.assert_nothing_left()
    fake.assert_nothing_left()


async def test_who_waits_behind_a_stuck_slot_is_served_by_the_next_worker(
    runtime_dir, fake_engine, demo_small
):
    """It was silent for longer than the stall deadline, and still nothing was its fault."""
    entry = {"name": "m", "path": str(demo_small), "parallel": 1}
    quick = {"stall_timeout_sec": 0.2}
    async with running(runtime_dir, fake_engine, [entry], worker=quick) as llmd:
        supervisor = llmd.daemon.supervisor
        supervisor._settings = replace(supervisor._settings, reclaim_timeout_s=0.8)
        await llmd.chat()
        pid = pid_of(llmd, "m")
        stuck = await llmd.open_chat("[[sticky]] [[token 1]]", stream=True, max_tokens=9)
        await llmd.until_states("decode")
        await stuck.aclose()
        await llmd.until(lambda: not llmd.handles())
        answer = await llmd.chat(max_tokens=2)
        assert answer.status == 200
        assert llmd.last().retries == 1
        assert llmd.worker("m").end_of(pid).cause is ExitCause.STUCK_SLOT


async def test_an_error_says_whether_the_worker_ended_or_only_a_connection(fake):
    await fake.chat()
    events = (await read_answer(await fake.open_chat("[[cut]]", stream=True, max_tokens=5))).events
    assert "the worker lives on" in events[-1]["error"]["message"]
    client = await fake.open_chat("[[token 0.3]]", stream=True, max_tokens=99)
    await fake.until_states("decode")
    os.kill(pid_of(fake, NAME), signal.SIGKILL)
    events = (await read_answer(client)).events
    assert "the worker was killed by SIGKILL" in events[-1]["error"]["message"]


async def test_a_model_that_keeps_crashing_may_be_asked_again_once_that_is_forgotten(
    runtime_dir, fake_engine, demo_small
):
    entry = {"name": "m", "path": str(demo_small), "env": {"FAKE_CRASH": "no luck"}}
    settings = {"restart_limit": 1, "restart_window_sec": 40}
    async with running(runtime_dir, fake_engine, [entry], worker=settings) as llmd:
        for _ in range(2):
            answer = await llmd.chat()
            assert (answer.status, answer.code) == (503, "model_failed")
            assert answer.headers["x-should-retry"] == "false"
            assert "has failed too often" in answer.json["error"]["message"]
            assert 30 <= int(answer.headers["retry-after"]) <= 40
            assert int(answer.headers["retry-after-ms"]) > 29_000


async def test_silence_of_a_healthy_worker_is_waited_out(fake):
    await fake.chat()
    pid = pid_of(fake, NAME)
    answer = await fake.chat("[[prefill 1]]", max_tokens=1)
    assert answer.status == 200
    assert pid_of(fake, NAME) == pid


async def test_a_model_that_cannot_load_says_why_and_delays_nobody(
    runtime_dir, fake_engine, demo_small, tmp_path
):
    bad = tmp_path / "bad.gguf"
    bad.write_bytes(b"no model at all")
    entries = [demo_small, {"name": "bad", "path": str(bad)}]
    async with running(runtime_dir, fake_engine, entries) as llmd:
        answer = await llmd.chat(model="bad")
        assert (answer.status, answer.code) == (503, "model_failed")
        assert answer.headers["x-should-retry"] == "false"
        assert "bad" in answer.json["error"]["message"]
        assert (await llmd.chat(model=NAME)).status == 200


async def test_a_crash_loop_ends_in_failed_and_reset_ends_that(
    runtime_dir, fake_engine, demo_small, tmp_path
):
    crashes = tmp_path / "crashes"
    crashes.write_text("1000")
    entry = {
        "name": NAME,
        "path": str(demo_small),
        "env": {"FAKE_CRASHES": str(crashes)},
    }
    async with running(
        runtime_dir, fake_engine, [entry], worker={"restart_limit": 2, "restart_window_sec": 300}
    ) as llmd:
        answer = await llmd.chat()
        assert (answer.status, answer.code) == (503, "model_failed")
        assert llmd.worker(NAME).state.value == "failed"
        crashes.write_text("0")
        assert (await llmd.call("POST", f"/v1/models/{NAME}/reset")).status == 200
        assert (await llmd.chat()).status == 200


async def test_a_worker_that_never_becomes_ready_is_given_up(runtime_dir, fake_engine, demo_small):
    entry = {"name": NAME, "path": str(demo_small), "env": {"FAKE_NEVER_READY": "1"}}
    async with running(
        runtime_dir,
        fake_engine,
        [entry],
        worker={"startup_timeout_sec": 0.3, "restart_limit": 1},
    ) as llmd:
        answer = await llmd.chat()
        assert (answer.status, answer.code) == (503, "model_failed")


@pytest.mark.parametrize("stream", [True, False])
async def test_garbage_from_a_worker_is_a_502(fake, stream):
    answer = await fake.chat("[[garbage]]", stream=stream)
    assert (answer.status, answer.code) == (502, "bad_worker_response")
    fake.assert_nothing_left()


@pytest.mark.parametrize("stream", [True, False])
async def test_an_answer_that_is_cut_short_is_no_answer(fake, stream):
    answer = await fake.chat("[[cut]]", stream=stream, max_tokens=10)
    if stream:
        assert answer.events[-1]["error"]["code"] == "bad_worker_response"
    else:
        assert (answer.status, answer.code) == (502, "bad_worker_response")
    fake.assert_nothing_left()


@pytest.mark.parametrize("stream", [True, False])
async def test_a_workers_own_error_reaches_the_client_unchanged(fake, stream):
    answer = await fake.chat("[[status 501]]", stream=stream)
    assert answer.status == 501
    assert answer.json["error"]["code"] == 501
    fake.assert_nothing_left()


@pytest.mark.parametrize("order", ["status", "fails"])  # at once, and as an event that is gathered
@pytest.mark.parametrize("status", [429, 501, 503])
async def test_a_workers_own_error_says_whether_and_when_to_try_again(fake, order, status):
    answer = await fake.chat(f"[[{order} {status}]]")
    assert answer.status == answer.json["error"]["code"] == status
    assert answer.headers.get("x-should-retry") == ("false" if status == 501 else None)
    assert ("retry-after" in answer.headers) is (status != 501)
    if status != 501:
        assert 1 <= int(answer.headers["retry-after"]) <= 60
        assert 0 < int(answer.headers["retry-after-ms"]) <= 60_000


# --- clients --------------------------------------------------------------------------------


async def bare(llmd, data: bytes) -> bytes:
    """Send bytes as they are and return all that comes until the end."""
    stream = await llmd.connect()
    got = b""
    async with stream:
        await stream.send_all(data)
        async for part in stream:
            got += part
    return got


HEAD = b"POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1\r\n"


@pytest.fixture
async def small(runtime_dir, fake_engine, demo_small):
    async with running(
        runtime_dir,
        fake_engine,
        [{"name": NAME, "path": str(demo_small), "context_size": 1_000_000}],
        server={
            "max_body_bytes": 10_000,
            "header_timeout_sec": 0.3,
            "body_timeout_sec": 0.3,
            "send_timeout_sec": 1,
        },
    ) as llmd:
        yield llmd


async def test_a_head_that_is_never_finished_is_a_408(small):
    got = await bare(small, HEAD)
    assert got.startswith(b"HTTP/1.1 408 ")
    assert b"connection: close" in got.lower()


async def test_a_body_that_is_never_finished_is_a_408(small):
    got = await bare(small, HEAD + b"Content-Length: 100\r\n\r\n{")
    assert got.startswith(b"HTTP/1.1 408 ")
    assert b'"code":"request_timeout"' in got
    small.assert_nothing_left()


async def test_a_body_over_the_limit_is_a_413_announced_or_not(small):
    got = await bare(small, HEAD + b"Content-Length: 20000\r\n\r\n" + bytes(20000))
    assert got.startswith(b"HTTP/1.1 413 ")
    chunks = (b"3e8\r\n" + b" " * 1000 + b"\r\n") * 20 + b"0\r\n\r\n"
    got = await bare(small, HEAD + b"Transfer-Encoding: chunked\r\n\r\n" + chunks)
    assert got.startswith(b"HTTP/1.1 413 ")
    assert b'"code":"request_too_large"' in got


async def test_a_head_that_is_too_large_is_a_431(small):
    got = await bare(small, HEAD + b"X-A: " + b"a" * 100_000 + b"\r\n\r\n")
    assert got.startswith(b"HTTP/1.1 431 ")


async def test_two_framings_at_once_are_a_400(small):
    got = await bare(
        small, HEAD + b"Content-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n"
    )
    assert got.startswith(b"HTTP/1.1 400 ")
    assert got.count(b"HTTP/1.1") == 1


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[]",
        b"nul",
        b'{"messages": ' + b"[" * 4000 + b"]" * 4000 + b"}",
        b'{"messages":[{"role":"user","content":"\xff\xfe"}]}',
        b'{"messages":[]}',
        b'{"messages":[{"role":"user","content":"hi"}],"temperature":9}',
        b'{"messages":[{"role":"user","content":"hi"}],"max_tokens":0}',
        b'{"messages":"hi"}',
    ],
)
async def test_bad_json_is_a_400_in_the_one_shape(small, body):
    answer = await small.call("POST", "/v1/chat/completions", content=body)
    assert answer.status == 400
    error = answer.json["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["type"] == "invalid_request_error"
    small.assert_nothing_left()


async def test_what_is_no_http_is_turned_away(small):
    hello, preface = b"\x16\x03\x01\x02\x00\x01\x00", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
    for rubbish in (hello, preface, b"\x00" * 99):
        got = await bare(small, rubbish + b"\r\n\r\n")
        assert got == b"" or got.startswith((b"HTTP/1.1 400 ", b"HTTP/1.1 505 "))
    assert (await small.chat()).status == 200


async def test_a_client_that_takes_nothing_is_dropped(small):
    import socket

    client = await small.connect()
    client.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    async with client:
        await client.send_all(small.chat_bytes(stream=True, max_tokens=200_000))
        await small.until(small.handles)
        await small.until(lambda: not small.handles())
    await small.until_slots_free(NAME)
    small.assert_nothing_left()


async def test_a_slow_reader_gets_all_and_holds_up_nobody(fake):
    await fake.chat()
    client = await fake.open_chat("[[token 0.01]]", stream=True, max_tokens=20)
    got = b""
    for _ in range(50):
        got += await client.receive_some(1)
    assert (await fake.chat()).status == 200
    while b"[DONE]" not in got:
        got += await client.receive_some(100)
    await client.aclose()


async def test_a_client_that_leaves_once_it_has_all_abandoned_nothing(fake):
    client = await fake.open_chat(stream=True, max_tokens=7)
    got = b""
    while b"[DONE]" not in got:  # what may still come is the end of the chunks
        got += await client.receive_some(1000)
    await client.aclose()
    await fake.until(lambda: not fake.handles())
    assert (fake.last().state.value, fake.last().completion_tokens) == ("done", 7)


async def test_a_slow_stream_is_relayed_without_waking_its_request(fake):
    await fake.chat()
    pump = fake.services.pump
    served = pump.served
    client = await fake.open_chat("[[token 0.01]]", stream=True, max_tokens=40)
    got = b""
    while b"[DONE]" not in got:
        got += await client.receive_some(1000)
    await client.aclose()
    await fake.until(lambda: not fake.handles())
    for number in range(40):
        assert got.count(b'"w%d ' % number) == 1
    assert pump.served - served > 20  # the others came together, or first, or last
    assert fake.last().events == got.count(b"data: ")
    assert fake.last().completion_tokens == 40


async def test_requests_behind_each_other_on_one_connection_are_all_answered(fake):
    request = fake.raw("/v1/chat/completions", {"messages": [{"role": "user", "content": "a"}]})
    stream = await fake.connect()
    await stream.send_all(request * 3)
    got = b""
    while got.count(b"HTTP/1.1 200") < 3 or not got.endswith(b"}"):
        got += await stream.receive_some()
    await stream.aclose()
    await fake.until(lambda: not fake.handles())
    fake.assert_nothing_left()


async def test_keys_are_asked_for_before_the_body_is_read(runtime_dir, fake_engine, demo_small):
    async with running(runtime_dir, fake_engine, [demo_small], api_keys=KEYS) as llmd:
        got = await bare(llmd, HEAD + b"Content-Length: 1000000\r\n\r\n")
        assert got.startswith(b"HTTP/1.1 401 ")
        assert b'"code":"invalid_api_key"' in got
        answer = await llmd.chat(key="sk-wrong")
        assert (answer.status, answer.code) == (401, "invalid_api_key")
        assert (await llmd.chat(key="sk-bob")).status == 200
        llmd.assert_nothing_left()


# --- the end --------------------------------------------------------------------------------


async def test_sigterm_lets_streams_finish_and_turns_others_away(
    runtime_dir, fake_engine, demo_small
):
    entry = {"name": NAME, "path": str(demo_small), "parallel": 20}
    async with running(runtime_dir, fake_engine, [entry], server={"drain_timeout_sec": 30}) as llmd:
        await llmd.chat()
        late = await llmd.connect()
        await late.send_all(llmd.raw("/live", {})[:20])  # a connection that is already there
        streams = [
            await llmd.open_chat("[[token 0.02]]", stream=True, max_tokens=50) for _ in range(20)
        ]
        await llmd.until(lambda: llmd.states() == ["decode"] * 20)
        signal.raise_signal(signal.SIGTERM)
        await llmd.until(lambda: llmd.services.draining)
        await late.send_all(b"")
        await late.aclose()
        refused = await llmd.chat()
        assert (refused.status, refused.code) == (503, "shutting_down")
        assert 1 <= int(refused.headers["retry-after"]) <= 60
        ready = await llmd.call("GET", "/ready")
        assert (ready.status, ready.json["status"]) == (503, "draining")
        for stream in streams:
            assert (await read_answer(stream)).events[-1] == "[DONE]"
        llmd.assert_nothing_left()


async def test_sigterm_answers_what_is_queued_with_503(runtime_dir, fake_engine, demo_small):
    async with running(runtime_dir, fake_engine, [demo_small]) as llmd:
        runners = [
            await llmd.open_chat("[[token 0.02]]", stream=True, max_tokens=50) for _ in range(2)
        ]
        queued = await llmd.open_chat()
        await llmd.until_states("decode", "decode", "queued")
        signal.raise_signal(signal.SIGTERM)
        answer = await read_answer(queued)
        assert (answer.status, answer.code) == (503, "shutting_down")
        assert 1 <= int(answer.headers["retry-after"]) <= 60
        for stream in runners:
            assert (await read_answer(stream)).events[-1] == "[DONE]"


async def test_a_second_sigterm_waits_for_nobody(runtime_dir, fake_engine, demo_small):
    async with running(
        runtime_dir, fake_engine, [demo_small], server={"drain_timeout_sec": 0}
    ) as llmd:
        client = await llmd.open_chat("[[token 0.1]]", stream=True, max_tokens=900)
        await llmd.until_states("decode")
        signal.raise_signal(signal.SIGTERM)
        await llmd.until(lambda: llmd.services.draining)
        signal.raise_signal(signal.SIGTERM)
        events = (await read_answer(client)).events
        assert events[-1]["error"]["code"] == "shutting_down"


async def test_a_fault_in_llmd_costs_one_request_and_says_so(fake, monkeypatch):
    def fail(*_args, **_fields):
        raise RuntimeError("made by the test")

    with monkeypatch.context() as broken:
        broken.setattr(fake.services.estimator, "estimate", fail)
        answer = await fake.chat()
    assert (answer.status, answer.code) == (500, "internal_error")
    assert "made by the test" not in answer.body.decode()
    assert (await fake.chat()).status == 200
    fake.assert_nothing_left()


async def test_a_plain_request_whose_worker_dies_while_it_generates_is_tried_again(fake):
    """Its client has had no byte yet, however many tokens the worker had made."""
    await fake.chat()
    client = await fake.open_chat("[[token 0.05]]", max_tokens=10)
    await fake.until(lambda: any(handle.record.events > 2 for handle in fake.handles()))
    os.kill(fake.worker(NAME).upstream.pid, signal.SIGKILL)
    got = b""
    while b"completion_tokens" not in got:
        got += await client.receive_some(1000)
    await client.aclose()
    await fake.until(lambda: not fake.handles())
    assert got.startswith(b"HTTP/1.1 200")
    record = fake.last()
    assert (record.state.value, record.retries, record.completion_tokens) == ("done", 1, 10)
    fake.assert_nothing_left()


async def test_what_the_worker_itself_refuses_is_not_done(fake):
    assert (await fake.chat("[[status 400]]")).status == 400
    assert (fake.last().state.value, fake.last().code) == ("refused", "worker_error")
    assert (await fake.chat("[[status 501]]")).status == 501
    assert (fake.last().state.value, fake.last().code) == ("failed", "worker_error")
    assert (await fake.chat("[[status 400]]", stream=True)).status == 400
    assert fake.last().state.value == "refused"
