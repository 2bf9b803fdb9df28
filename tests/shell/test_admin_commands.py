"""What operators can ask on the admin socket, and what each command does."""

from __future__ import annotations

import hashlib
import os
import re
import shlex
from functools import partial
from itertools import product

import msgspec
import pytest
import trio
from admin_rig import admin
from api_rig import ADMIN
from fake_worker_parts import Script

from llmd.admin.grammar import parse
from llmd.config import RateLimit

CHAT = {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 8}
DONE = (200, [], {"choices": [], "usage": {"prompt_tokens": 3, "completion_tokens": 2}})


@pytest.fixture
async def desk(demo_models, autojump_clock):
    async with admin(demo_models) as found:
        yield found


async def running(desk, model="demo-small", request_id="r-1"):
    """Have a request run that never ends by itself."""
    desk.rig.answers["POST", "/v1/chat/completions"] = "hang"
    headers = [("x-request-id", request_id)]

    async def ask(task_status):
        await desk.rig.ask(
            "POST",
            "/v1/chat/completions",
            {**CHAT, "model": model},
            headers=headers,
            task_status=task_status,
        )

    await desk.rig.nursery.start(ask)
    while (handle := desk.rig.registry.live(request_id)) is None or (
        handle.record.state.value != "prefill"
    ):
        await trio.sleep(0.01)


async def test_hello_says_who_the_daemon_is_and_what_one_may(desk):
    answer = await desk.peer().ask(type="hello", id=1)
    assert answer["type"] == "ok"
    assert answer["id"] == 1
    result = answer["result"]
    assert (result["protocol"], result["access"], result["generation"]) == (1, "write", 0)


async def test_ids_may_be_words(desk):
    assert (await desk.peer().ask(type="version", id="x-1"))["id"] == "x-1"


async def test_status_shows_what_is_loaded(desk):
    peer = desk.peer()
    assert (await peer.ask(type="status", id=1))["result"]["workers"] == []
    await peer.ask(type="switch", id=2, model="demo-small", wait=True)
    status = (await peer.ask(type="status", id=3))["result"]
    [worker] = status["workers"]
    assert (worker["model"], worker["state"], worker["slots_busy"]) == ("demo-small", "ready", 0)
    assert status["daemon"]["state"] == "ok"
    assert status["totals"]["slots"] == worker["slots"] > 0


async def test_models_lists_the_catalog(desk):
    answer = await desk.peer().ask(type="models", id=1)
    assert {"demo-small", "demo-large"} <= {m["name"] for m in answer["result"]["models"]}


async def test_a_plan_changes_nothing_and_says_what_the_switch_then_does(desk):
    peer = desk.peer()
    first = (await peer.ask(type="switch", id=0, model="demo-small", dry_run=True))["result"]
    assert first["load_s"] is None  # nothing was ever measured here
    await peer.ask(type="switch", id=1, model="demo-small", wait=True)
    plan = (await peer.ask(type="switch", id=2, model="demo-large", dry_run=True))["result"]
    assert [eviction["model"] for eviction in plan["evict"]] == ["demo-small"]
    assert (plan["fits"], plan["fits_beside"], plan["dry_run"]) == (True, False, True)
    assert plan["command"] == f"llmctl switch demo-large --if-gen {plan['generation']}"
    assert desk.rig.state("demo-small") == "ready"
    done = await peer.ask(
        type="switch", id=3, model="demo-large", if_gen=plan["generation"], wait=True
    )
    assert done["result"]["state"] == "ready"
    assert done["result"]["evict"] == plan["evict"]
    assert desk.rig.state("demo-small") == "off"
    again = (await peer.ask(type="switch", id=4, model="demo-large", dry_run=True))["result"]
    assert (again["loaded"], again["load_s"], again["load_measured"]) == (True, 0, True)


async def test_a_plan_says_what_drains_already_and_counts_its_memory_once(desk):
    peer = desk.peer()
    await running(desk, "demo-small")
    await peer.ask(type="switch", id=1, model="demo-large")
    plan = (await peer.ask(type="switch", id=2, model="demo-large", dry_run=True))["result"]
    assert (plan["fits"], plan["evict"]) == (True, [])
    [going] = plan["going"]
    assert (going["model"], going["running"]) == ("demo-small", 1)
    assert going["memory_bytes"] == plan["held_bytes"]
    await peer.ask(type="cancel", id=3, all=True)


async def test_the_line_of_a_plan_is_the_action_that_was_looked_at(desk):
    peer = desk.peer()
    await peer.ask(type="switch", id=1, model="demo-small", wait=True)
    for flags in product(
        ({}, {"from": ["demo-small"]}),
        ({}, {"add": True}),
        ({}, {"force": True}, {"drain_s": 0}, {"drain_s": 2.5}),
        ({}, {"wait": True}),
    ):
        asked = {k: v for flag in flags for k, v in flag.items()} | {"model": "demo-large"}
        plan = (await peer.ask(type="switch", id=2, dry_run=True, **asked))["result"]
        options = parse(shlex.split(plan["command"])[1:])
        said = msgspec.json.decode(msgspec.json.encode(options.make(options)))
        assert said == {"type": "switch", "if_gen": plan["generation"], **asked}


async def test_an_action_on_an_older_look_is_refused(desk):
    peer = desk.peer()
    await peer.ask(type="switch", id=1, model="demo-small", wait=True)
    for action in ("switch", "load", "unload", "restart"):
        answer = await peer.ask(type=action, id=2, model="demo-small", if_gen=0)
        assert (answer["type"], answer["code"]) == ("failure", "conflict")
    assert (await peer.ask(type="stop", id=3, if_gen=0))["code"] == "conflict"
    assert desk.rig.state("demo-small") == "ready"


async def test_load_evicts_nothing(desk):
    peer = desk.peer()
    await peer.ask(type="load", id=1, model="demo-small", wait=True)
    answer = await peer.ask(type="load", id=2, model="demo-large")
    assert answer["code"] == "insufficient_memory"
    assert desk.rig.state("demo-small") == "ready"


async def test_unknown_models_are_told(desk):
    for action in ("switch", "load", "unload", "restart", "reset", "logs"):
        assert (await desk.peer().ask(type=action, id=1, model="nope"))["code"] == "model_not_found"


async def test_an_unload_is_answered_with_the_state_after_it(desk):
    await running(desk)
    peer = desk.peer()
    answer = await peer.ask(type="unload", id=1, model="demo-small")
    assert (answer["result"]["state"], answer["result"]["running"]) == ("draining", 1)
    await peer.ask(type="cancel", id=2, all=True)
    await peer.ask(type="unload", id=3, model="demo-small", wait=True)
    await peer.ask(type="switch", id=4, model="demo-small", wait=True)
    answer = await peer.ask(type="unload", id=5, model="demo-small")
    assert answer["result"]["state"] == "stopping"
    answer = await peer.ask(type="unload", id=6, model="demo-small", wait=True)
    assert answer["result"]["state"] == "off"


async def test_a_restart_unloads_and_loads_again(desk):
    peer = desk.peer()
    refused = await peer.ask(type="restart", id=1, model="demo-small")
    assert refused["code"] == "conflict"
    await peer.ask(type="switch", id=2, model="demo-small", wait=True)
    answer = await peer.ask(type="restart", id=3, model="demo-small", wait=True)
    assert answer["result"]["state"] == "ready"
    worker = desk.rig.supervisor.worker("demo-small").statistics()
    assert sum(worker.starts.values()) == 2


async def test_a_restart_goes_on_without_who_asked_for_it(desk):
    peer = desk.peer()
    await peer.ask(type="switch", id=2, model="demo-small", wait=True)
    await peer.ask(type="restart", id=3, model="demo-small")
    peer.stream.close()
    while sum(desk.rig.supervisor.worker("demo-small").statistics().starts.values()) < 2:
        await desk.rig.scheduler.moved()
    while desk.rig.state("demo-small") != "ready":
        await desk.rig.scheduler.moved()


async def test_cancel_by_id_answers_once_it_has_ended(desk):
    await running(desk)
    peer = desk.peer()
    answer = await peer.ask(type="cancel", id=1, request="r-1")
    assert answer["result"]["cancelled"] == ["r-1"]
    record = desk.rig.registry.record("r-1")
    assert (record.state.value, record.cancel_cause.value) == ("cancelled", "operator")
    again = await peer.ask(type="cancel", id=2, requests=["r-1", "r-nope"])
    assert again["result"]["ended"] == ["r-1"]
    assert again["result"]["unknown"] == ["r-nope"]
    assert (await peer.ask(type="cancel", id=3, request="r-nope"))["code"] == "request_not_found"


async def test_a_part_of_an_id_as_tables_show_it_is_enough_and_never_hits_another(desk):
    first, second = "r-11110000aaaa1234", "r-3333000082b01234"
    await running(desk, request_id=first)
    await running(desk, request_id=second)
    peer = desk.peer()
    story = await peer.ask(type="why", id=1, request="82b01234")
    assert story["result"]["request"]["id"] == second
    for refused in ({"request": "1234"}, {"requests": ["82b01234", "1234"]}):
        answer = await peer.ask(type="cancel", id=2, **refused)
        assert answer["code"] == "invalid_request"
        assert f"any of {first}, {second}" in answer["message"]
    assert not any(handle.cause for handle in desk.rig.registry.handles())
    hit = await peer.ask(type="cancel", id=3, requests=["3333", "82b01234", second])
    assert hit["result"]["cancelled"] == [second]
    again = await peer.ask(type="cancel", id=4, request="82b01234")
    assert again["result"]["ended"] == [second]
    assert (await desk.rig.ask("GET", "/requests/82b01234")).status == 404
    await peer.ask(type="cancel", id=5, all=True)


@pytest.mark.parametrize(
    ("chosen", "hit"),
    [
        ({"all": True}, ["r-1"]),
        ({"model": "demo-small"}, ["r-1"]),
        ({"model": "demo-large"}, []),
        ({"key": "root"}, ["r-1"]),
        ({"key": "alice"}, []),
        ({"model": "demo-small", "key": "alice"}, []),
    ],
)
async def test_cancel_by_what_requests_have_in_common(desk, chosen, hit):
    await running(desk)
    peer = desk.peer()
    assert (await peer.ask(type="cancel", id=1, **chosen))["result"]["cancelled"] == hit
    await peer.ask(type="cancel", id=2, all=True)


@pytest.mark.parametrize("chosen", [{}, {"request": "r-1", "all": True}])
async def test_a_cancel_says_which(desk, chosen):
    assert (await desk.peer().ask(type="cancel", id=1, **chosen))["code"] == "invalid_request"


async def test_stop_unloads_everything(desk):
    peer = desk.peer()
    await peer.ask(type="switch", id=1, model="demo-small", wait=True)
    answer = await peer.ask(type="stop", id=2, wait=True)
    assert answer["result"]["unload"] == ["demo-small"]
    assert desk.rig.state("demo-small") == "off"


async def test_status_shows_how_far_a_load_is_as_its_worker_says(desk):
    desk.rig.launcher.scripts["demo-small"] = [Script(load_s=1, reports=True)]
    peer = desk.peer()
    await peer.ask(type="switch", id=1, model="demo-small")
    worker = await loading(peer)
    while (worker.get("load_progress") or 0) < 0.2:
        await trio.sleep(0.01)
        worker = await loading(peer)
    assert worker["load_progress"] < 1
    assert re.fullmatch(r"\d\d%(, ETA \d+s)?", worker["note"])


async def test_status_says_of_a_load_that_is_late_by_the_last_one_that_it_is(desk):
    desk.rig.launcher.scripts["demo-small"] = [Script(load_s=0.1), Script(load_s=9)]
    peer = desk.peer()
    await peer.ask(type="switch", id=1, model="demo-small")
    assert (await loading(peer)).get("load_progress") is None  # nothing was measured
    await peer.ask(type="switch", id=2, model="demo-small", wait=True)
    await peer.ask(type="restart", id=3, model="demo-small")
    while not (await loading(peer))["note"].startswith("longer than usual, ETA"):
        await trio.sleep(0.01)


async def loading(peer):
    """Return the only worker, as status shows it."""
    [worker] = (await peer.ask(type="status", id=9))["result"]["workers"]
    return worker


async def waiting(desk, nursery, request_id):
    """Have a request wait: for a model in whose way is one that was loaded a moment ago."""
    peer = desk.peer()
    await peer.ask(type="switch", id=0, model="demo-small", wait=True)
    body, headers = {**CHAT, "model": "demo-large"}, [("x-request-id", request_id)]
    nursery.start_soon(partial(desk.rig.ask, "POST", "/v1/chat/completions", body, headers=headers))
    while desk.rig.scheduler.statistics().queued == 0:
        await trio.sleep(0.01)
    assert not (await peer.ask(type="drain", id=1))["result"]["admission_open"]
    return peer


async def test_why_tells_the_key_by_its_ends_and_how_often_it_met_its_limits(demo_models):
    limits = {"rate_limit": RateLimit(requests_per_minute=1)}
    async with admin(demo_models, **limits) as desk:
        desk.rig.answers["POST", "/v1/chat/completions"] = DONE
        for name in ("r-1", "r-2"):
            await desk.rig.ask(
                "POST", "/v1/chat/completions", {**CHAT, "temperature": 0.3},
                headers=[("x-request-id", name)],
            )  # fmt: skip
        story = (await desk.peer().ask(type="why", id=1, request="r-1"))["result"]
        ends = hashlib.sha256(ADMIN.encode()).hexdigest()
        assert story["request"]["fingerprint"] == f"{ends[:2]}..{ends[-2:]}"
        assert story["request"]["temperature"] == 0.3
        assert story["limited"] == 1
        assert ADMIN not in str(story)


async def test_drain_holds_what_waits_and_why_tells_the_whole_story(desk, autojump_clock):
    desk.rig.answers["POST", "/v1/chat/completions"] = DONE
    async with trio.open_nursery() as nursery:
        peer = await waiting(desk, nursery, "r-7")
        [row] = (await peer.ask(type="requests", id=2))["result"]["requests"]
        assert (row["id"], row["state"], row["position"]) == ("r-7", "queued", 1)
        assert row["why"]["rule"] == "admission_closed"
        assert (await peer.ask(type="queue", id=3))["result"]["queued"] == 1
        assert (await peer.ask(type="resume", id=4))["result"]["admission_open"]
    story = (await peer.ask(type="why", id=5, request="r-7"))["result"]
    rules = [step["rule"] for step in story["steps"]]
    assert rules[:2] == ["min_residency", "admission_closed"]
    assert rules[-2:] == ["model_loading", "granted"]
    moments = [step["at"] for step in story["steps"]]
    assert moments == sorted(moments)
    assert story["request"]["received_at"] <= moments[0]


async def test_the_story_of_one_turned_away_while_it_waited_is_kept(desk):
    async with trio.open_nursery() as nursery:
        peer = await waiting(desk, nursery, "r-8")
        await peer.ask(type="drain", id=2, reject_queued=True)
    story = (await peer.ask(type="why", id=3, request="r-8"))["result"]
    assert (story["request"]["state"], story["request"]["code"]) == ("refused", "shutting_down")
    assert [step["rule"] for step in story["steps"]] == ["min_residency", "admission_closed"]


async def test_requests_are_chosen_by_words_that_exist(desk):
    await running(desk)
    peer = desk.peer()
    assert (await peer.ask(type="requests", id=1, state="queud"))["message"].endswith(
        "did you mean 'queued'?"
    )
    unknown = await peer.ask(type="requests", id=2, model="demo-smal")
    assert (unknown["code"], unknown["message"]) == (
        "model_not_found",
        "the model 'demo-smal' does not exist; did you mean 'demo-small'?",
    )
    for model in ("demo-small", "demo-small.gguf"):  # its file is an alias
        answer = await peer.ask(type="requests", id=3, model=model, state="prefill")
        assert [row["id"] for row in answer["result"]["requests"]] == ["r-1"]
    await peer.ask(type="cancel", id=4, all=True)


async def test_why_knows_only_what_is_remembered(desk):
    assert (await desk.peer().ask(type="why", id=1, request="x"))["code"] == "request_not_found"


async def test_reset_lets_a_failed_model_be_tried_again(desk):
    peer = desk.peer()
    await peer.ask(type="switch", id=1, model="demo-small", wait=True)
    assert (await peer.ask(type="reset", id=2, model="demo-small"))["result"]["state"] == "ready"


@pytest.mark.parametrize(
    ("command", "hit"),
    [
        ({"type": "switch", "model": "demo-large"}, {"model": "demo-large", "evict": "demo-small"}),
        ({"type": "load", "model": "demo-small"}, {"model": "demo-small"}),
        ({"type": "unload", "model": "demo-small", "force": True}, {"running": 1, "force": True}),
        ({"type": "restart", "model": "demo-small", "force": True}, {"running": 1}),
        ({"type": "reset", "model": "demo-small"}, {"model": "demo-small"}),
        ({"type": "cancel", "request": "r-1"}, {"requests": "r-1", "count": 1}),
        ({"type": "cancel", "key": "root"}, {"requests": "r-1", "key_name": "root"}),
        ({"type": "stop"}, {"unload": "demo-small", "running": 1}),
        ({"type": "drain", "reject_queued": True}, {"reject_queued": True}),
        ({"type": "resume"}, {}),
    ],
)
async def test_every_action_is_logged_with_who_did_it_and_what_it_hit(desk, caplog, command, hit):
    caplog.set_level("INFO", "llmd")
    await running(desk)
    peer = desk.peer()
    assert (await peer.ask(**command, id=1))["type"] == "ok"
    noted = [
        record.__dict__["llmd_fields"]
        for record in caplog.records
        if record.getMessage() == f"operator: {command['type']}"
    ]
    [fields] = noted
    assert (fields["uid"], fields["pid"]) == (os.geteuid(), os.getpid())
    assert fields["user"]
    assert hit.items() <= fields.items()
    await peer.ask(type="cancel", id=2, all=True)


async def test_what_is_refused_or_only_looked_at_is_not_logged_as_done(desk, caplog):
    caplog.set_level("INFO", "llmd")
    peer = desk.peer()
    await peer.ask(type="switch", id=1, model="demo-small", dry_run=True)
    await peer.ask(type="switch", id=2, model="demo-small", if_gen=99)
    await peer.ask(type="unload", id=3, model="nope")
    await peer.ask(type="status", id=4)
    assert not [r for r in caplog.records if r.getMessage().startswith("operator: ")]
