"""Requests as their owners and operators see them, and end them."""

from __future__ import annotations

import pytest
import trio
from api_rig import ADMIN, ALICE, BOB, api
from test_api_control import CHAT, FOR_EVER, running
from trio.testing import wait_all_tasks_blocked

from llmd.config import Server


async def ids(rig, path, key):
    listed = (await rig.ask("GET", path, key=key)).json
    assert listed["object"] == "list"
    return [request["id"] for request in listed["data"]]


async def test_each_key_sees_its_own_and_admins_see_all(demo_models, autojump_clock):
    async with api(demo_models, **FOR_EVER) as rig, trio.open_nursery() as nursery:
        await rig.loaded("demo-small")
        await running(rig, nursery, request_id="a1", key=ALICE)
        await running(rig, nursery, request_id="b1", key=BOB)
        await running(rig, nursery, request_id="a2", key=ALICE)
        assert await ids(rig, "/requests", ADMIN) == ["a2", "b1", "a1"]  # the newest first
        assert await ids(rig, "/requests", ALICE) == ["a2", "a1"]
        assert await ids(rig, "/requests", BOB) == ["b1"]
        await rig.ask("POST", "/requests/a2/cancel")
        assert await ids(rig, "/requests", ALICE) == ["a1", "a2"]  # live ones go first
        assert await ids(rig, "/requests?state=prefill", ADMIN) == ["b1", "a1"]
        assert await ids(rig, "/requests?limit=1", ADMIN) == ["b1"]
        hidden = await rig.ask("GET", "/requests/a1", key=BOB)
        assert hidden.status == 404
        assert hidden.error["code"] == "request_not_found"
        assert (await rig.ask("GET", "/requests/a1", key=ALICE)).json["key"] == "alice"
        await rig.ask("POST", "/requests/cancel-all")


@pytest.mark.parametrize("query", ["limit=0", "limit=x", "limit=99999999", "state=lost"])
async def test_a_bad_question_is_400(demo_models, query):
    async with api(demo_models) as rig:
        answer = await rig.ask("GET", f"/requests?{query}")
    assert answer.status == 400
    assert answer.error["param"] == query.partition("=")[0]


async def test_a_waiting_request_says_why_and_how_long(demo_models, autojump_clock):
    async with api(demo_models, **FOR_EVER) as rig, trio.open_nursery() as nursery:
        await rig.loaded("demo-small")
        await running(rig, nursery, request_id="a1")
        await running(rig, nursery, request_id="b1", key=BOB)
        await running(rig, nursery, request_id="a2")
        await running(rig, nursery, request_id="a3")
        listed = (await rig.ask("GET", "/requests?state=queued")).json["data"]
        by_id = {request["id"]: request for request in listed}
        assert by_id["a2"]["position"] == 1
        assert by_id["a2"]["why"]["rule"] == "slots_busy"
        assert by_id["a2"]["why"]["blockers"] == ["a1", "b1"]
        assert by_id["a3"]["position"] == 2
        assert by_id["a3"]["why"]["rule"] == "behind"
        own = (await rig.ask("GET", "/requests/a2", key=ALICE)).json
        assert own["why"]["blockers"] == ["a1"]  # other people's requests are theirs
        assert own["why"]["detail"] == "2/2 slots busy"
        assert own["story"][-1]["rule"] == "slots_busy"
        await rig.ask("POST", "/requests/a1/cancel")
        await wait_all_tasks_blocked()
        story = (await rig.ask("GET", "/requests/a2")).json["story"]
        assert [step["rule"] for step in story] == ["slots_busy", "granted"]
        await rig.ask("POST", "/requests/cancel-all")
        ended = (await rig.ask("GET", "/requests/a2")).json
        assert ended["state"] == "cancelled"
        assert ended["story"] == story  # it is remembered with the request


async def test_who_may_not_use_a_model_is_not_told_of_it(demo_models, autojump_clock):
    async with api(demo_models, **FOR_EVER) as rig, trio.open_nursery() as nursery:
        await rig.loaded("demo-large")
        await running(rig, nursery, request_id="a1", body={**CHAT, "model": "demo-large"})
        await running(rig, nursery, request_id="b1", key=BOB)  # may use demo-small only
        mine = await rig.ask("GET", "/requests/b1", key=BOB)
        assert mine.json["state"] == "queued"
        assert b"demo-large" not in mine.body
        assert b"demo-large" in (await rig.ask("GET", "/requests/b1")).body
        await rig.ask("POST", "/requests/cancel-all")


# --- cancel --------------------------------------------------------------------------------


@pytest.mark.parametrize(("key", "cause"), [(ALICE, "owner"), (ADMIN, "operator")])
async def test_owners_and_admins_cancel(demo_models, autojump_clock, key, cause):
    async with api(demo_models, **FOR_EVER) as rig, trio.open_nursery() as nursery:
        await rig.loaded("demo-small")
        found = await running(rig, nursery)
        answer = await rig.ask("POST", "/requests/r1/cancel", key=key)
        assert answer.json["cancelled"] is True
        assert answer.json["state"] == "cancelled"  # it waits for the end
        assert answer.json["cancel_cause"] == cause
        assert found[0].status == 499
        assert found[0].error["code"] == "request_cancelled"
        again = await rig.ask("POST", "/requests/r1/cancel", key=key)
        assert again.status == 200
        assert again.json["cancelled"] is False


async def test_a_queued_request_is_cancelled_too(demo_models, autojump_clock):
    async with api(demo_models, **FOR_EVER) as rig, trio.open_nursery() as nursery:
        await rig.loaded("demo-small")
        found = [await running(rig, nursery, request_id=f"r{number}") for number in range(3)]
        answer = await rig.ask("POST", "/requests/r2/cancel", key=ALICE)
        assert answer.json["state"] == "cancelled"
        assert found[2][0].status == 499
        await rig.ask("POST", "/requests/cancel-all")


async def test_others_do_not_cancel(demo_models, autojump_clock):
    async with api(demo_models, **FOR_EVER) as rig, trio.open_nursery() as nursery:
        await rig.loaded("demo-small")
        await running(rig, nursery)
        answer = await rig.ask("POST", "/requests/r1/cancel", key=BOB)
        assert answer.status == 404
        assert answer.error["code"] == "request_not_found"
        assert (await rig.ask("GET", "/requests/r1")).json["state"] == "prefill"
        await rig.ask("POST", "/requests/r1/cancel")


async def test_only_so_many_are_remembered(demo_models, autojump_clock):
    async with api(demo_models, server=Server(request_history=2)) as rig:
        rig.answers["POST", "/tokenize"] = 200, [], {"tokens": []}
        for number in range(3):
            headers = [("x-request-id", f"r{number}")]
            await rig.ask("POST", "/tokenize", {"content": ""}, headers=headers)
        assert await ids(rig, "/requests", ADMIN) == ["r2", "r1"]
        assert (await rig.ask("GET", "/requests/r0")).status == 404


async def test_a_request_that_everything_ended_around_was_shut_down(demo_models, autojump_clock):
    """However the daemon ends: what it cuts off is not told as done."""
    async with api(demo_models, **FOR_EVER) as rig:
        await rig.loaded("demo-small")
        async with trio.open_nursery() as nursery:
            for number in range(3):  # two slots: one waits
                await running(rig, nursery, request_id=f"r{number}")
            states = {handle.record.state.value for handle in rig.registry.handles()}
            assert states == {"prefill", "queued"}
            nursery.cancel_scope.cancel()
        ended = {record.id: record for record in rig.registry.records()}
    for number in range(3):
        record = ended[f"r{number}"]
        assert (record.outcome, record.cancel_cause.value) == ("cancelled", "shutdown")
