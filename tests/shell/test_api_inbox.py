"""What has come of a body and nobody has asked for is bounded, whatever pieces it comes in."""

from __future__ import annotations

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from llmd.api.protocol import MAX_BODY_AHEAD, MESSAGE_BYTES, _Inbox


@pytest.mark.parametrize("size", [1, 1000, 2 * MAX_BODY_AHEAD])
async def test_more_waits_until_the_application_has_taken_what_came(autojump_clock, size):
    inbox, put = _Inbox(), 0

    async def client():
        nonlocal put
        while True:
            await inbox.put({"type": "http.request", "body": b"x" * size, "more_body": True})
            put += 1

    with trio.fail_after(20):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(client)
            await wait_all_tasks_blocked()
            ahead = put
            assert ahead <= MAX_BODY_AHEAD // (size + MESSAGE_BYTES)
            for _ in range(ahead + 1):
                assert len((await inbox.get())["body"]) == size
            await wait_all_tasks_blocked()
            assert put > ahead
            nursery.cancel_scope.cancel()
