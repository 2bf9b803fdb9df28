"""`llmctl why`: each request's whole story, in the scheduler's own words."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys

import pytest
import trio
from daemon_rig import KEYS, chat_body, read_answer, running

pytestmark = pytest.mark.system

_STEP = re.compile(r"  \d\d:\d\d:\d\d\.\d{3}  \+ *(\d+\.\d{3})s  (.*)")


@pytest.fixture
async def llmd(runtime_dir, fake_engine, demo_models):
    """Two models of two slots each, one of them in memory at a time."""
    models = [demo_models / "demo-small.gguf", demo_models / "demo-large.gguf"]
    models.append({"name": "broken", "path": str(runtime_dir / "missing.gguf")})
    keys = [*KEYS, {"name": "quick", "key": "sk-quick", "concurrent_requests": 1}]
    async with running(
        runtime_dir,
        fake_engine,
        models,
        key="sk-alice",
        api_keys=keys,
        queue={"max_size": 5, "max_share": 1.0, "admin_quota": 0},
        limits={"request_timeout_sec": 4},
    ) as found:
        found.streams = []
        try:
            yield found
        finally:
            for stream in found.streams:
                stream.socket.close()


async def llmctl(llmd, *words):
    code = "import sys; from llmd.ctl import main; sys.exit(main())"
    done = await trio.run_process(
        [sys.executable, "-c", code, "--socket", str(llmd.daemon.admin.path), *words],
        capture_stdout=True,
        capture_stderr=True,
        check=False,
        stdin=subprocess.DEVNULL,
    )
    return done.returncode, done.stdout.decode(), done.stderr.decode()


async def why(llmd, request_id):
    """Return what the steps of a story say, having checked that their times ascend."""
    status, out, err = await llmctl(llmd, "why", request_id)
    assert (status, err) == (0, "")
    head, _, way = out.partition("\n\n")
    assert head.startswith(request_id)
    steps = [_STEP.fullmatch(line).groups() for line in way.splitlines()]
    times = [float(seconds) for seconds, _ in steps]
    assert times == sorted(times)
    return [text for _, text in steps]


async def begin(llmd, request_id, prompt="[[token 0.05]]", *, state, key="sk-alice", **fields):
    """Begin a request and return its connection once it is where it should be."""
    stream = await llmd.connect()
    llmd.streams.append(stream)  # a connection that nobody holds is closed
    body = chat_body(prompt, **{"model": "demo-small", "max_tokens": 500, **fields})
    headers = [f"X-Request-Id: {request_id}", f"Authorization: Bearer {key}"]
    own, llmd.key = llmd.key, ""
    await stream.send_all(llmd.raw("/v1/chat/completions", body, *headers))
    llmd.key = own

    def there():
        handle = llmd.services.registry.live(request_id)
        return handle is not None and handle.record.state.value == state

    with trio.fail_after(10):
        await llmd.until(there)
    return stream


async def ended(llmd, request_id):
    await llmd.until(lambda: llmd.services.registry.live(request_id) is None)


async def test_one_that_was_served(llmd):
    await llmd.chat(model="demo-small", max_tokens=2, headers=[("x-request-id", "r-1")])
    steps = await why(llmd, "r-1")
    assert steps[0] == "received"
    assert steps[-3].startswith("granted: ")
    assert steps[-2] == "first token"
    assert steps[-1] == "done 200"
    assert any("[model_loading, by demo-small]" in step for step in steps)


async def test_those_who_wait_and_who_was_ahead_of_them(llmd):
    for number in (1, 2):
        await begin(llmd, f"run-{number}", state="decode")
    await begin(llmd, "next", state="queued")
    await begin(llmd, "last", state="queued")
    await begin(llmd, "other", state="queued", model="demo-large")
    [_, waits, now] = await why(llmd, "next")
    assert waits.startswith("waits, #1 in line: 2/2 slots busy  [slots_busy, by run-")
    assert now.startswith("now queued, #1 in line: 2/2 slots busy")
    [_, waits, _] = await why(llmd, "last")
    assert waits.startswith("waits, #2 in line: 1 ahead, 2/2 slots busy  [behind, by next]")
    waits = (await why(llmd, "other"))[1]
    assert waits.startswith("waits, #1 in line: ")
    assert "by demo-small]" in waits
    status, _, _ = await llmctl(llmd, "cancel", "run-1")
    assert status == 0
    await llmd.until(lambda: llmd.services.registry.live("next").record.state.value == "decode")
    assert (await why(llmd, "next"))[2].startswith("granted: ")
    await llmctl(llmd, "cancel", "--all")


async def test_one_held_back_for_anothers_model_and_let_through_by_a_switch(llmd):
    await begin(llmd, "run", state="decode")
    other = await begin(llmd, "other", "hi", state="queued", model="demo-large", max_tokens=2)
    status, out, _ = await llmctl(llmd, "switch", "demo-large", "--force", "--wait")
    assert status == 0
    assert "demo-large is ready in place of demo-small" in out
    assert (await read_answer(other)).status == 200
    steps = await why(llmd, "other")
    rules = [found.group(1) for step in steps if (found := re.search(r"\[(\w+)", step))]
    assert rules[0] in ("min_residency", "model_not_loaded")
    assert rules[-1] == "model_loading"
    assert "cancelled 499 request_cancelled" in (await why(llmd, "run"))[-1]


async def test_one_that_was_refused(llmd):
    for number in range(2):
        await begin(llmd, f"run-{number}", state="decode")
    for number in range(5):
        await begin(llmd, f"wait-{number}", state="queued")
    refused = await llmd.chat(model="demo-small", headers=[("x-request-id", "late")])
    assert refused.code == "queue_full"
    [received, end] = await why(llmd, "late")
    assert received == "received"
    assert end.startswith("refused 503 queue_full: all 5 places of the queue are taken")
    wrong = await llmd.chat(model="nope", headers=[("x-request-id", "wrong")])
    assert wrong.status == 404
    assert "refused 404 model_not_found: the model 'nope'" in (await why(llmd, "wrong"))[-1]
    await llmctl(llmd, "cancel", "--all")


async def test_one_for_a_model_whose_file_is_unusable(llmd):
    """It is refused at once: it neither waits nor has another model make room for it."""
    await llmd.chat(model="demo-small", max_tokens=2)
    for number, path in enumerate(("/v1/chat/completions", "/tokenize")):
        body = {**chat_body(), "model": "broken", "content": "hi"}
        headers = [("x-request-id", f"b-{number}")]
        answer = await llmd.call("POST", path, body, headers=headers)
        assert (answer.status, answer.code) == (503, "model_failed")
        assert answer.headers["x-should-retry"] == "false"
        [_, end] = await why(llmd, f"b-{number}")
        assert end.startswith("refused 503 model_failed: broken could not be loaded: ")
    assert llmd.worker("demo-small").state.value == "ready"


async def test_those_that_somebody_cancelled(llmd):
    await begin(llmd, "mine", state="decode")
    await begin(llmd, "his", state="decode")
    await llmctl(llmd, "cancel", "his")
    assert re.fullmatch(
        rf"cancelled 499 request_cancelled: by \S+ \(uid {os.geteuid()}, pid \d+\)",
        (await why(llmd, "his"))[-1],
    )
    answer = await llmd.call("POST", "/requests/mine/cancel", key="sk-alice")
    assert "cancelled_by" not in answer.json
    assert (await why(llmd, "mine"))[-1] == "cancelled 499 request_cancelled: by key alice"


async def test_one_whose_client_left_and_one_that_took_too_long(llmd):
    gone = await begin(llmd, "gone", state="decode", stream=True)
    await gone.aclose()
    await begin(llmd, "long", state="decode")
    await ended(llmd, "gone")
    assert re.match(r"abandoned \d+: .*client gone", (await why(llmd, "gone"))[-1])
    await ended(llmd, "long")
    end = (await why(llmd, "long"))[-1]
    assert end.startswith("timed_out 504 request_timeout: the request was not done within 4 s")


async def test_one_whose_worker_died_under_it(llmd):
    client = await begin(llmd, "twice", "[[prefill 0.5]]", state="prefill", max_tokens=2)
    os.kill(llmd.worker("demo-small").statistics().pid, signal.SIGKILL)
    assert (await read_answer(client)).status == 200
    steps = await why(llmd, "twice")
    [died] = [n for n, step in enumerate(steps) if step.startswith("to be tried again: ")]
    assert "the model's worker ended" in steps[died]
    assert any(step.startswith("granted: ") for step in steps[:died])
    assert any(step.startswith("granted: ") for step in steps[died:])
    assert any("[model_" in step for step in steps[died:])
    await llmd.chat("[[crash]]", model="demo-small", headers=[("x-request-id", "deadly")])
    steps = await why(llmd, "deadly")
    assert sum(step.startswith("granted: ") for step in steps) == 2
    assert steps[-1].startswith("failed 502 bad_worker_response: the model's worker ended")


async def test_one_that_is_not_known(llmd):
    status, out, err = await llmctl(llmd, "why", "nobody")
    assert (status, out) == (1, "")
    assert "there is no request 'nobody'" in err
