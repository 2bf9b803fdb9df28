"""`/v1/chat/completions/control`: for the owner of a completion that runs, and for nobody else."""

from __future__ import annotations

import pytest
import trio
from api_rig import ADMIN, ALICE, BOB, api
from test_api_control import FOR_EVER, running

from llmd.api.routes.steering import PATH
from llmd.config import RateLimit

OVER = {"success": False, "message": "no active completion for this id"}
ID = "chatcmpl-Ab1"


def order(**fields):
    return {"id": ID, "action": "reasoning_end", **fields}


async def a_completion(rig, nursery):
    """Have alice's completion run, as if its answer had begun."""
    await rig.loaded("demo-small")
    await running(rig, nursery)
    rig.registry.live("r1").record.completion_id = ID
    rig.answers["POST", PATH] = 200, [], {"success": True}


async def test_the_owners_order_reaches_the_worker_as_it_came(demo_models, autojump_clock):
    async with api(demo_models, **FOR_EVER) as rig, trio.open_nursery() as nursery:
        await a_completion(rig, nursery)
        body = b'{"id": "chatcmpl-Ab1", "action": "reasoning_end", "more": 1}'
        answer = await rig.ask("POST", PATH, body, key=ALICE)
        assert (answer.status, answer.json) == (200, {"success": True})
        assert rig.asked[-1][:3] == ("POST", PATH, body)
        assert (await rig.ask("POST", PATH, order(model="demo-small"), key=ALICE)).status == 200
        record = (await rig.ask("GET", "/requests?state=done", key=ALICE)).json["data"][0]
        await rig.ask("POST", "/requests/cancel-all")
    assert (record["path"], record["model"]) == (PATH, "demo-small")


async def test_a_workers_refusal_is_passed_on(demo_models, autojump_clock):
    async with api(demo_models, **FOR_EVER) as rig, trio.open_nursery() as nursery:
        await a_completion(rig, nursery)
        refusal = {"error": {"code": 400, "message": "unknown control action"}}
        rig.answers["POST", PATH] = 400, [], refusal
        answer = await rig.ask("POST", PATH, order(action="stop"), key=ALICE)
        assert (answer.status, answer.json) == (400, refusal)
        record = next(record for record in rig.registry.records() if record.path == PATH)
        assert (record.state.value, record.code) == ("refused", "worker_error")
        await rig.ask("POST", "/requests/cancel-all")


@pytest.mark.parametrize(
    ("key", "fields", "status", "code"),
    [
        (BOB, {}, 404, "request_not_found"),
        (ADMIN, {}, 403, "permission_denied"),
        (ALICE, {"id": "chatcmpl-other"}, 404, "request_not_found"),
        (ADMIN, {"id": "chatcmpl-other"}, 404, "request_not_found"),
        (ALICE, {"id": "r1"}, 404, "request_not_found"),
        (ALICE, {"model": "demo-large"}, 404, "request_not_found"),
        (ALICE, {"model": "nope"}, 404, "request_not_found"),
        (ALICE, {"id": ""}, 400, "invalid_request"),
        (ALICE, {"id": 7}, 400, "invalid_request"),
        (ALICE, {"action": None}, 400, "invalid_request"),
        (None, {}, 401, "invalid_api_key"),
    ],
)
async def test_nobody_else_steers_it(demo_models, autojump_clock, key, fields, status, code):
    async with api(demo_models, **FOR_EVER) as rig, trio.open_nursery() as nursery:
        await a_completion(rig, nursery)
        asked = len(rig.asked)
        answer = await rig.ask("POST", PATH, order(**fields), key=key)
        assert (answer.status, answer.error["code"]) == (status, code)
        assert len(rig.asked) == asked
        await rig.ask("POST", "/requests/cancel-all")


async def test_what_has_ended_is_not_steered_and_nothing_is_loaded_for_it(
    demo_models, autojump_clock
):
    async with api(demo_models, **FOR_EVER) as rig, trio.open_nursery() as nursery:
        await a_completion(rig, nursery)
        await rig.ask("POST", "/requests/cancel-all")
        assert (await rig.ask("POST", PATH, order(), key=ALICE)).json == OVER
        await rig.ask("POST", "/stop", {"wait": True})
        assert (await rig.ask("POST", PATH, order(), key=ALICE)).json == OVER
        assert rig.state("demo-small") == "off"


async def test_it_costs_a_request_of_the_limit(demo_models, autojump_clock):
    limit = RateLimit(requests_per_minute=2)
    async with api(demo_models, rate_limit=limit, **FOR_EVER) as rig:
        for _ in range(5):  # what was refused cost nothing
            assert (await rig.ask("POST", PATH, order(), key=BOB)).status == 404
        async with trio.open_nursery() as nursery:
            await a_completion(rig, nursery)
            first = await rig.ask("POST", PATH, order(), key=ALICE)
            assert first.headers["x-ratelimit-remaining-requests"] == "0"
            second = await rig.ask("POST", PATH, order(), key=ALICE)
            assert (second.status, second.error["code"]) == (429, "rate_limit_exceeded")
            await rig.ask("POST", "/requests/cancel-all")
