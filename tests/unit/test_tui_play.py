"""The made-up box of `--demo`: it must not contradict itself, at any moment."""

from __future__ import annotations

import asyncio

import pytest

from llmtui.demo import Demo
from llmtui.play import GEMMA


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
