"""The link to a daemon that is there and says nothing: stopped, swapped out, or in a loop."""

from __future__ import annotations

import asyncio

import pytest
from tui_box import Box

from llmd.admin import protocol as p
from llmtui import link as module
from llmtui.header import link as link_word
from llmtui.link import Link
from llmtui.rows import Look


class Stopped(Box):
    """Answers only while it runs."""

    def __init__(self):
        super().__init__()
        self.runs = asyncio.Event()
        self.runs.set()
        self.asked = 0

    async def connect(self):
        pass  # the kernel accepts for a process that is stopped

    async def hello(self):
        self.asked += 1
        await self.runs.wait()
        return await super().hello()


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    for name in ("_PING_S", "_ANSWER_S", "_FIRST_RETRY_S", "_LAST_RETRY_S"):
        monkeypatch.setattr(module, name, 0.02)


def follow(steps):
    async def run():
        box = Stopped()
        seen = []
        link = Link(lambda: box, lambda: seen.append(link.state))
        task = asyncio.create_task(link.run())

        async def until(true):
            while not true(link.state):
                await asyncio.sleep(0.005)

        try:
            await until(lambda state: state.link == "live")
            await steps(box, link, until, seen)
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    asyncio.run(asyncio.wait_for(run(), 20))


def word(state):
    return link_word(state, state.heard_at + 9, Look())[0]


def test_a_daemon_that_stops_is_stale_until_it_goes_on():
    async def steps(box, link, until, seen):
        box.runs.clear()
        await until(lambda state: state.link == "stale")
        assert link.state.trouble == "the daemon does not answer"
        assert link.state.workers  # the last data stay
        with pytest.raises(module.Unreachable):
            link.source  # noqa: B018
        await until(lambda state: state.retry_at is None)
        assert "retrying" in word(link.state)
        before = box.asked
        await until(lambda state: box.asked > before + 2 and state.retry_at is not None)
        assert "retry in 1s" in word(link.state)
        assert all(state.link == "stale" for state in seen if state.lost_at)
        box.runs.set()
        await until(lambda state: state.link == "live" and state.lost_at is None)

    follow(steps)


def test_the_time_of_an_answer_is_always_the_last_one():
    async def steps(box, link, until, seen):
        asked = box.asked
        link.state = module.replace(link.state, latency_s=9.0, heard_at=1.0)
        await until(lambda state: state.latency_s < 9.0 and state.heard_at > 1.0)
        assert box.asked > asked
        assert link.state.link == "live"

    follow(steps)


class Living(Box):
    """Says that it lives, then that somebody came."""

    async def subscribe(self, *topics):
        async for message in super().subscribe():
            yield message
            break
        for number in range(2, 5):
            yield p.Event(id=1, seq=number, at=1000.0 + number)
        yield p.Event(id=1, seq=5, at=1005.0, totals=p.Totals(running=7))
        await asyncio.sleep(3600)


def test_a_sign_of_life_is_heard_and_changes_nothing():
    async def run():
        seen = []
        clock = iter(range(1000))
        link = Link(Living, lambda: seen.append(link.state), lambda: float(next(clock)))
        task = asyncio.create_task(link.run())
        while link.state.totals.running != 7:
            await asyncio.sleep(0.005)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        first, last = seen
        assert (first.link, last.totals.running) == ("live", 7)
        assert last.heard_at >= first.heard_at + 4

    asyncio.run(asyncio.wait_for(run(), 20))
