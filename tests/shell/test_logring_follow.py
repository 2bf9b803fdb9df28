"""Following a log wakes on each line, and a cancelled follower leaves nothing behind."""

from __future__ import annotations

import trio
import trio.testing

from llmd.workers.logring import LogRing, LogStream


async def test_a_follower_is_woken_and_can_catch_up(autojump_clock):
    log = LogRing()
    seen = []

    async def follow():
        last = 0
        while len(seen) < 3:
            await log.newer(last)
            for line in log.since(last):
                seen.append(line.text)
                last = line.sequence

    with trio.fail_after(5):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(follow)
            await trio.testing.wait_all_tasks_blocked()
            log.append(LogStream.STDERR, "one")
            await trio.testing.wait_all_tasks_blocked()
            log.feed(LogStream.STDERR, b"tw")
            await trio.testing.wait_all_tasks_blocked()
            log.feed(LogStream.STDERR, b"o\nthree\n")
    assert seen == ["one", "two", "three"]


async def test_newer_returns_at_once_when_there_is_something(autojump_clock):
    log = LogRing()
    log.append(LogStream.STDOUT, "one")
    with trio.fail_after(1):
        await log.newer(0)


async def test_a_cancelled_follower_disturbs_nobody(autojump_clock):
    log = LogRing()
    with trio.move_on_after(1):
        await log.newer(0)
    log.append(LogStream.STDOUT, "one")
    with trio.fail_after(1):
        await log.newer(0)
