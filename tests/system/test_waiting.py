"""A client that waits is told why, and gets its answer all the same."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest
from daemon_rig import read_answer, running

pytestmark = pytest.mark.system

QUICK = {"keepalive_sec": 0.05}
PERCENT = re.compile(r" (\d+)%")


def comments(answer):
    return [line for line in answer.body.decode().split("\n") if line.startswith(":")]


async def test_a_stream_that_waits_for_a_load_says_so(runtime_dir, fake_engine, demo_small):
    entry = {"name": "slow", "path": str(demo_small), "env": {"FAKE_LOAD_S": "0.6"}}
    async with running(runtime_dir, fake_engine, [entry], streaming=QUICK) as llmd:
        answer = await llmd.chat(stream=True, max_tokens=3)
        assert answer.status == 200
        told = [line for line in comments(answer) if line.startswith(": loading slow")]
        assert answer.events[-1] == "[DONE]"
        percents = [int(found[1]) for line in told if (found := PERCENT.search(line))]
        assert percents
        assert percents == sorted(percents)
        assert percents[-1] > 20  # as the worker itself says, so without a tilde


async def test_a_load_that_says_nothing_is_told_by_what_the_last_one_took(
    runtime_dir, fake_engine, demo_small
):
    silent = replace(fake_engine, engine=replace(fake_engine.engine, reports=False))
    entry = {"name": "slow", "path": str(demo_small), "env": {"FAKE_LOAD_S": "0.6"}}
    async with running(runtime_dir, silent, [entry], streaming=QUICK) as llmd:
        first = await llmd.chat(stream=True, max_tokens=3)
        assert ": loading slow" in comments(first)  # nothing was measured: nothing is claimed
        await llmd.call("POST", "/stop", {"wait": True})
        second = await llmd.chat(stream=True, max_tokens=3)
        told = [line for line in comments(second) if " ~" in line]
        assert told
        assert all(re.fullmatch(r": loading slow ~\d+% eta=\d+s", line) for line in told)


async def test_a_stream_that_is_queued_or_in_prefill_says_so(runtime_dir, fake_engine, demo_small):
    entry = {"name": "m", "path": str(demo_small), "parallel": 1}
    async with running(runtime_dir, fake_engine, [entry], streaming=QUICK) as llmd:
        await llmd.chat()
        first = await llmd.open_chat("[[prefill 0.5]]", stream=True, max_tokens=2)
        await llmd.until_states("prefill")
        second = await llmd.open_chat(stream=True, max_tokens=2)
        answers = await read_answer(first), await read_answer(second)
        assert ": prefill" in comments(answers[0])
        assert any(line.startswith(": queued position=1") for line in comments(answers[1]))
        assert [answer.events[-1] for answer in answers] == ["[DONE]", "[DONE]"]


async def test_an_error_after_a_comment_is_an_event(runtime_dir, fake_engine, demo_small):
    entry = {"name": "m", "path": str(demo_small), "env": {"FAKE_LOAD_S": "0.3"}}
    async with running(runtime_dir, fake_engine, [entry], streaming=QUICK) as llmd:
        answer = await llmd.chat("[[status 500]]", stream=True)
        assert answer.status == 200
        assert comments(answer)
        assert "error" in answer.events[-1]


async def test_a_plain_request_waits_in_silence(runtime_dir, fake_engine, demo_small):
    entry = {"name": "m", "path": str(demo_small), "env": {"FAKE_LOAD_S": "0.3"}}
    async with running(runtime_dir, fake_engine, [entry], streaming=QUICK) as llmd:
        assert (await llmd.chat(max_tokens=2)).json["choices"]
