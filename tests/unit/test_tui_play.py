"""The made-up box of `--demo`: it must not contradict itself, at any moment."""

from __future__ import annotations

import asyncio

import pytest

from llmtui.demo import Demo
from llmtui.happenings import spoken
from llmtui.play import GEMMA, LLAMA

CODER = "qwen3-coder-30b"


class Hands:
    now = 1_000_000.0

    def __call__(self):
        return self.now


@pytest.mark.parametrize("later_s", [0, 3, 17, 30, 95, 600, 4000])
def test_rows_and_stories_agree(later_s):
    clock = Hands()
    demo = Demo(clock)
    clock.now += later_s
    rows = demo.requests(clock.now)
    live = [row for row in rows.values() if not row.ended]
    assert len(live) == 12
    for row in rows.values():
        assert row.request_bytes > row.prompt_tokens
        assert (row.response_bytes > 0) == (row.completion_tokens > 0)
        assert row.ended or row.completion_tokens < row.max_tokens
        assert row.received_at <= (row.silent_since_at or clock.now) <= clock.now
        assert row.eta_at is None or row.ended or row.eta_at >= int(clock.now)
        story = asyncio.run(demo.why(row.id))
        assert not row.position or {step.position for step in story.steps} == {row.position}
    ended = [row for row in rows.values() if row.ended]
    assert all(row.state == "done" and row.completion_tokens == row.max_tokens for row in ended)


def test_nothing_new_comes_to_a_model_that_was_unloaded():
    clock = Hands()
    demo = Demo(clock)
    demo.unloaded(GEMMA)
    clock.now += 100
    assert not [r for r in demo.requests(clock.now).values() if r.model == GEMMA and not r.ended]


def test_who_waits_for_a_load_runs_once_it_is_done():
    clock = Hands()
    demo = Demo(clock)
    clock.now += 33
    worker = demo.workers(clock.now)[LLAMA]
    assert (worker.state, worker.running, worker.waiting) == ("ready", 2, 0)
    rows = [r for r in demo.requests(clock.now).values() if r.model == LLAMA]
    assert [r.state for r in rows] == ["decode", "decode"]
    assert all(r.granted_at - r.received_at == pytest.approx(r.wait_s) for r in rows)


def test_a_switch_drains_first_and_is_told_as_a_daemon_tells_it():
    clock = Hands()
    demo = Demo(clock)
    asyncio.run(demo.switch(CODER, drain_s=15.0))
    assert spoken(demo.notices[-1].text) == (f"root (uid 0): switch {GEMMA} -> {CODER}  plan#41")
    before, rows = demo.workers(clock.now), demo.requests(clock.now)
    assert (before[GEMMA].state, before[GEMMA].leaving_for) == ("draining", CODER)
    assert before[CODER].state == "off"
    assert before[CODER].wanted
    assert [r.state for r in rows.values() if r.model == GEMMA] == ["decode", "decode"]
    clock.now += 9
    after, rows = demo.workers(clock.now), demo.requests(clock.now)
    assert (after[GEMMA].state, after[CODER].state) == ("off", "loading")
    assert all(r.ended for r in rows.values() if r.model == GEMMA)
    assert spoken(demo.notices[-1].text) == f"{GEMMA} is off: operator"


def test_acts_of_the_play_name_who_did_them():
    demo = Demo(Hands())
    asyncio.run(demo.cancel("r-8f301122"))
    asyncio.run(demo.unload(GEMMA))
    told = [spoken(notice.text) for notice in demo.notices[-2:]]
    assert told == ["root (uid 0): cancel  hit 1", f"root (uid 0): unload {GEMMA}"]
