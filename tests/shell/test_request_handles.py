"""Waiting for the end of a request, and being ended."""

from __future__ import annotations

import pytest
import trio
import trio.testing

from llmd.core.lifecycle import RequestState
from llmd.core.record import CancelCause
from llmd.registry import Registry


@pytest.fixture
def registry():
    return Registry(10)


def opened(registry):
    return registry.open(wanted_id=b"", path="/", client="")


async def test_who_waits_for_the_end_is_woken_by_it(registry, autojump_clock):
    handle = opened(registry)
    woken = []

    async def wait() -> None:
        await handle.closed()
        woken.append(trio.current_time())

    async with trio.open_nursery() as nursery:
        for _ in range(3):
            nursery.start_soon(wait)
        await trio.sleep(5)
        handle.end(None, 200, trio.current_time())
        await trio.testing.wait_all_tasks_blocked()
        assert woken == []  # it has its end, and is not yet accounted for
        registry.close(handle)
    assert woken == [5, 5, 5]
    await handle.closed()  # and from then on at once


async def test_giving_up_on_the_end_changes_nothing(registry, autojump_clock):
    handle = opened(registry)
    with trio.move_on_after(1):
        await handle.closed()
    handle.end(None, 200, trio.current_time())
    registry.close(handle)
    await handle.closed()


@pytest.mark.parametrize("early", [True, False])
async def test_a_cancel_ends_the_work_begun_or_not(registry, autojump_clock, early):
    handle = opened(registry)

    async def work() -> None:
        with handle.scope:
            await trio.sleep_forever()
        handle.end(handle.verdict(600), 0, trio.current_time())
        registry.close(handle)

    async with trio.open_nursery() as nursery:
        if early:
            handle.cancel(CancelCause.OPERATOR)
        nursery.start_soon(work)
        await trio.testing.wait_all_tasks_blocked()
        handle.cancel(CancelCause.OWNER)
        await handle.closed()
    assert handle.record.state is RequestState.CANCELLED
    cause = CancelCause.OPERATOR if early else CancelCause.OWNER
    assert handle.record.cancel_cause is cause
