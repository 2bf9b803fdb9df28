"""What operators do over HTTP, and what they are told."""

from __future__ import annotations

from functools import partial

import pytest
import trio
from api_rig import ALICE, api
from fake_worker_parts import Script
from trio.testing import wait_all_tasks_blocked

from llmd.config import Limits, SchedulerSettings, WorkerSettings
from llmd.config.schema import ModelConfig

FOR_EVER = {
    "limits": Limits(request_timeout_sec=0),
    "worker": WorkerSettings(stall_timeout_sec=0),
}
CHAT = {"model": "demo-small", "messages": [{"role": "user", "content": "hi"}]}


async def running(rig, nursery, *, key=ALICE, request_id="r1", body=CHAT):
    """Start a completion that never ends by itself, and wait until it runs or waits."""
    rig.answers["POST", "/v1/chat/completions"] = "hang"
    found = []

    async def ask(task_status):
        headers = [("x-request-id", request_id)]
        found.append(
            await rig.ask(
                "POST",
                "/v1/chat/completions",
                body,
                key=key,
                headers=headers,
                task_status=task_status,
            )
        )

    await nursery.start(partial(ask))
    await wait_all_tasks_blocked()
    return found


async def test_a_switch_says_what_it_means_for_others(demo_models, autojump_clock, caplog):
    caplog.set_level("INFO")
    async with api(demo_models) as rig:
        await rig.loaded("demo-small")
        answer = await rig.ask("POST", "/switch-model", {"model": "demo-large.gguf"})
        assert answer.status == 200
        assert answer.json["model"] == "demo-large"
        assert answer.json["status"] == "starting"  # decided: room is being made
        assert answer.json["evict"] == ["demo-small"]
        assert answer.json["running"] == {"demo-small": 0}
        await rig.loaded("demo-large")
        assert (rig.state("demo-small"), rig.state("demo-large")) == ("off", "ready")
        assert rig.services.default_model().name == "demo-large"
    acts = [record.llmd_fields for record in caplog.records if record.message == "operator: switch"]
    assert acts[1] == {
        "key": "root",
        "client": "127.0.0.1",
        "model": "demo-large",
        "evict": "demo-small",
    }


@pytest.mark.parametrize("how", ["body", "query"])
async def test_a_switch_can_be_waited_for(demo_models, autojump_clock, how):
    slow = {"demo-small": [Script(load_s=50, lines_s=1)]}
    async with api(demo_models, scripts=slow) as rig:
        path = "/switch-model?wait=1" if how == "query" else "/switch-model"
        began = trio.current_time()
        answer = await rig.ask("POST", path, {"model": "demo-small", "wait": how == "body"})
        assert trio.current_time() - began == pytest.approx(50, abs=1)
    assert answer.json["status"] == "ready"


async def test_a_switch_to_what_is_loaded_changes_nothing(demo_models, autojump_clock):
    async with api(demo_models) as rig:
        await rig.loaded("demo-small")
        answer = await rig.ask("POST", "/switch-model", {"model": "demo-small", "wait": True})
        assert answer.json == {
            "model": "demo-small",
            "status": "ready",
            "evict": [],
            "running": {},
            "queued": {"demo-small": 0},
            "load_s": 0.0,
        }


async def test_a_switch_away_from_a_named_model(demo_models, autojump_clock):
    async with api(demo_models, worker=WorkerSettings(max_loaded=2)) as rig:
        await rig.loaded("demo-small")
        await rig.loaded("demo-large")
        body = {"model": "demo-embed", "from": "demo-large", "wait": True}
        answer = await rig.ask("POST", "/switch-model", body)
        assert answer.json["evict"] == ["demo-large"]
        assert (rig.state("demo-small"), rig.state("demo-large")) == ("ready", "off")
        unknown = await rig.ask("POST", "/switch-model", {"model": "demo-small", "from": ["x"]})
        assert unknown.status == 404
        assert unknown.error["param"] == "from"


async def test_a_switch_away_from_what_is_not_loaded_says_so(demo_models, autojump_clock):
    async with api(demo_models) as rig:
        await rig.loaded("demo-small")
        body = {"model": "demo-embed", "from": "demo-large"}
        answer = await rig.ask("POST", "/switch-model", body)
        assert (answer.status, answer.error["code"]) == (409, "conflict")
        assert answer.error["message"] == (
            "demo-large cannot be unloaded for demo-embed: not loaded"
        )
        assert rig.state("demo-small") == "ready"


async def test_a_switch_that_is_not_waited_for_says_that_it_has_begun(demo_models, autojump_clock):
    async with api(demo_models) as rig:
        answer = await rig.ask("POST", "/switch-model", {"model": "demo-small"})
        assert answer.json["status"] == "starting"


async def test_a_switch_that_somebody_else_undoes_says_so(demo_models, autojump_clock):
    slow = {"demo-small": [Script(load_s=50, lines_s=1)]}
    async with api(demo_models, scripts=slow) as rig:
        found = []

        async def wait_for_it():
            found.append(
                await rig.ask("POST", "/switch-model", {"model": "demo-small", "wait": True})
            )

        async with trio.open_nursery() as nursery:
            nursery.start_soon(wait_for_it)
            await trio.sleep(10)
            await rig.loaded("demo-large")
    assert found[0].status == 409
    assert found[0].error["code"] == "conflict"


async def test_a_model_whose_file_is_bad_fails_at_once(tmp_path, autojump_clock):
    gone = ModelConfig(name="gone", path="/nowhere/gone.gguf")
    async with api(tmp_path, models=(gone,)) as rig:
        for path in ("/switch-model", "/v1/models/gone/load", "/v1/models/gone/reset"):
            answer = await rig.ask("POST", path, {"model": "gone"} if "switch" in path else b"")
            assert answer.status == 503
            assert answer.error["code"] == "model_failed"
            assert answer.headers["x-should-retry"] == "false"


async def test_force_cancels_what_runs(demo_models, autojump_clock):
    async with api(demo_models, **FOR_EVER) as rig, trio.open_nursery() as nursery:
        await rig.loaded("demo-small")
        found = await running(rig, nursery)
        body = {"model": "demo-large", "force": True, "wait": True}
        answer = await rig.ask("POST", "/switch-model", body)
        assert answer.json["running"] == {"demo-small": 1}
        assert answer.json["status"] == "ready"
        assert found[0].status == 499
        assert found[0].error["code"] == "request_cancelled"
        assert "an operator had its model unloaded" in found[0].error["message"]


async def test_a_drain_has_an_end(demo_models, autojump_clock):
    async with api(demo_models, **FOR_EVER) as rig, trio.open_nursery() as nursery:
        await rig.loaded("demo-small")
        found = await running(rig, nursery)
        began = trio.current_time()
        body = {"model": "demo-large", "drain_sec": 20, "wait": True}
        assert (await rig.ask("POST", "/switch-model", body)).json["status"] == "ready"
        assert trio.current_time() - began == pytest.approx(20, abs=1)
        assert "an operator had its model unloaded" in found[0].error["message"]


async def test_a_drain_that_no_operator_began_names_the_setting(demo_models, autojump_clock):
    scheduler = SchedulerSettings(max_delay_sec=10, max_drain_sec=7, min_residency_sec=0)
    async with (
        api(demo_models, scheduler=scheduler, **FOR_EVER) as rig,
        trio.open_nursery() as nursery,
    ):
        await rig.loaded("demo-small")
        found = await running(rig, nursery)
        rig.answers["POST", "/v1/embeddings"] = 200, [], {"data": []}
        body = {"model": "demo-large", "input": "x"}
        assert (await rig.ask("POST", "/v1/embeddings", body)).status == 200
        assert found[0].status == 499
        assert "scheduler.max_drain_sec" in found[0].error["message"]


async def test_load_evicts_nobody(demo_models, autojump_clock):
    async with api(demo_models, worker=WorkerSettings(max_loaded=2)) as rig:
        for model in ("demo-small", "demo-large"):
            answer = await rig.ask("POST", f"/v1/models/{model}/load", {"wait": True})
            assert answer.json["status"] == "ready"
        full = await rig.ask("POST", "/v1/models/demo-embed/load")
    assert full.status == 503
    assert full.error["code"] == "insufficient_memory"
    assert "demo-small" in full.error["message"]


@pytest.mark.parametrize("how", ["unload", "eject"])
async def test_unload(demo_models, autojump_clock, how):
    async with api(demo_models) as rig:
        await rig.loaded("demo-small")
        if how == "eject":
            answer = await rig.ask(
                "POST", "/v1/models/eject", {"model": "demo-small", "wait": True}
            )
        else:
            answer = await rig.ask("POST", "/v1/models/demo-small/unload?wait=1")
        assert answer.json == {"model": "demo-small", "status": "off", "running": 0}
        again = await rig.ask("POST", "/v1/models/demo-small/unload?wait=1")
        assert again.json["status"] == "off"


@pytest.mark.parametrize("how", ["unload", "eject"])
async def test_an_unload_is_answered_with_the_state_after_it(demo_models, autojump_clock, how):
    async with api(demo_models, **FOR_EVER) as rig, trio.open_nursery() as nursery:
        path = f"/v1/models/{'eject' if how == 'eject' else 'demo-small/unload'}"
        body = {"model": "demo-small"} if how == "eject" else {}
        await rig.loaded("demo-small")
        await running(rig, nursery, request_id="r1")
        answer = await rig.ask("POST", path, body)
        assert answer.json == {"model": "demo-small", "status": "draining", "running": 1}
        await rig.ask("POST", "/requests/r1/cancel")
        await rig.ask("POST", path, {**body, "wait": True})
        await rig.loaded("demo-small")
        assert (await rig.ask("POST", path, body)).json["status"] == "stopping"
        assert (await rig.ask("POST", path, {**body, "wait": True})).json["status"] == "off"


async def test_reset_lets_a_failed_model_be_tried_again(demo_models, autojump_clock):
    scripts = {"demo-small": [*[Script(exit_s=0.01)] * 4, Script()]}
    async with api(demo_models, scripts=scripts) as rig:
        failed = await rig.ask("POST", "/switch-model", {"model": "demo-small", "wait": True})
        assert failed.status == 503
        answer = await rig.ask("POST", "/v1/models/demo-small/reset")
        assert answer.json == {"model": "demo-small", "status": "off"}
        await rig.loaded("demo-small")


async def test_stop_turns_away_what_waits_and_unloads_everything(demo_models, autojump_clock):
    async with api(demo_models, **FOR_EVER) as rig, trio.open_nursery() as nursery:
        await rig.loaded("demo-small")
        first = await running(rig, nursery, request_id="r1")
        second = await running(rig, nursery, request_id="r2")
        third = await running(rig, nursery, request_id="r3")  # two slots: it waits
        answer = await rig.ask("POST", "/stop")
        assert answer.json == {"unload": ["demo-small"], "refused": 1, "running": 2}
        await wait_all_tasks_blocked()
        assert third[0].status == 503
        assert third[0].error["code"] == "shutting_down"
        assert "stopped all models while this request was still queued" in third[0].error["message"]
        assert int(third[0].headers["retry-after"]) >= 1
        assert not first
        assert not second  # what runs may finish
        for request_id in ("r1", "r2"):
            await rig.ask("POST", f"/requests/{request_id}/cancel")
        waited = await rig.ask("POST", "/stop?wait=1")
        assert waited.status == 200
        assert rig.state("demo-small") == "off"
        await rig.loaded("demo-small")  # the next who asks loads again


async def test_cancel_all(demo_models, autojump_clock):
    async with api(demo_models, **FOR_EVER) as rig, trio.open_nursery() as nursery:
        await rig.loaded("demo-small")
        found = [await running(rig, nursery, request_id=f"r{number}") for number in range(4)]
        answer = await rig.ask("POST", "/requests/cancel-all")
        assert sorted(answer.json["cancelled"]) == ["r0", "r1", "r2", "r3"]
        assert [came[0].status for came in found] == [499] * 4
        assert (await rig.ask("POST", "/requests/cancel-all")).json["cancelled"] == []


async def test_nothing_is_loaded_while_shutting_down(demo_models):
    async with api(demo_models) as rig:
        rig.services.draining = True
        answer = await rig.ask("POST", "/switch-model", {"model": "demo-small"})
    assert answer.status == 503
    assert answer.error["code"] == "shutting_down"


@pytest.mark.parametrize(
    ("path", "body", "param", "nearest"),
    [
        ("/switch-model", {"model": "demo-small", "form": "demo-large"}, "form", "from"),
        ("/switch-model", {"model": "demo-small", "drain": 5}, "drain", "drain_sec"),
        ("/v1/models/demo-small/load", {"wiat": True}, "wiat", "wait"),
        ("/v1/models/demo-small/unload", {"forced": True}, "forced", "force"),
        ("/v1/models/eject", {"model": "demo-small", "drain_s": 5}, "drain_s", "drain_sec"),
        ("/stop", {"Wait": True}, "Wait", "wait"),
        ("/v1/models/demo-small/reset", {"wait": True}, "wait", "takes no fields"),
        ("/requests/cancel-all", {"model": "demo-small"}, "model", "takes no fields"),
    ],
)
async def test_an_unknown_field_is_refused_with_the_nearest_name(
    demo_models, path, body, param, nearest
):
    async with api(demo_models) as rig:
        answer = await rig.ask("POST", path, body)
        assert rig.state("demo-small") == "off"
    assert (answer.status, answer.error["code"]) == (400, "invalid_request")
    assert answer.error["param"] == param
    assert nearest in answer.error["message"]
