"""What there is and what it is doing: models, health, numbers."""

from __future__ import annotations

import re
import shutil

import pytest
import trio
from api_rig import ALICE, BOB, api
from fake_worker_parts import Script
from prometheus_client.parser import text_string_to_metric_families
from test_api_control import FOR_EVER, running

from llmd.config import Server
from llmd.config.schema import ModelConfig


@pytest.fixture
def twins(demo_small, tmp_path):
    """Two files of one name, so that their models are called by their paths."""
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        shutil.copy(demo_small, tmp_path / folder / "twin.gguf")
    return tmp_path


# --- the list ------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["/v1/models", "/models"])
async def test_models_are_listed_in_openais_form(demo_models, path):
    async with api(demo_models) as rig:
        listed = (await rig.ask("GET", path, key=ALICE)).json
    assert listed["object"] == "list"
    models = {model["id"]: model for model in listed["data"]}
    assert set(models) == {"demo-embed", "demo-large", "demo-small"}
    small = models["demo-small"]
    assert (small["object"], small["owned_by"], small["status"]) == ("model", "llmd", "off")
    assert isinstance(small["created"], int)
    assert small["aliases"] == ["demo-small.gguf"]
    assert small["meta"]["context"] == small["meta"]["context_trained"] == 4096
    assert small["meta"]["parameters"] > 0
    assert small["meta"]["size"] > 0
    assert small["meta"]["quantisation"] == "F32"
    assert "chat" in small["meta"]["capabilities"]
    assert models["demo-embed"]["meta"]["capabilities"] == ["embedding"]


async def test_one_model_by_any_of_its_names(demo_models, autojump_clock):
    async with api(demo_models) as rig:
        await rig.loaded("demo-small")
        one = await rig.ask("GET", "/v1/models/demo-small.gguf", key=ALICE)
        assert one.json["id"] == "demo-small"
        assert one.json["status"] == "ready"
        missing = await rig.ask("GET", "/v1/models/nope")
    assert missing.status == 404
    assert missing.error["code"] == "model_not_found"


async def test_ids_with_slashes_work(twins):
    async with api(twins) as rig:
        listed = (await rig.ask("GET", "/v1/models")).json["data"]
        assert [model["id"] for model in listed] == ["a/twin", "b/twin"]
        # a server hands on the path decoded, whether the client encoded its slashes or not
        assert (await rig.ask("GET", "/v1/models/a/twin")).json["id"] == "a/twin"
        assert (await rig.ask("GET", "/v1/models/b/twin/status")).json["id"] == "b/twin"
        assert (await rig.ask("POST", "/v1/models/b/twin/unload")).json["model"] == "b/twin"


async def test_a_percent_sign_in_a_name_is_one(demo_small, tmp_path):
    shutil.copy(demo_small, tmp_path / "50%2F50.gguf")
    async with api(tmp_path) as rig:
        assert (await rig.ask("GET", "/v1/models/50%2F50")).json["id"] == "50%2F50"


async def test_a_key_sees_the_models_that_it_may_use(demo_models):
    async with api(demo_models) as rig:
        listed = (await rig.ask("GET", "/v1/models", key=BOB)).json["data"]
        statuses = (await rig.ask("GET", "/v1/models/status", key=BOB)).json["data"]
        words = (await rig.ask("GET", "/v1/health/models", key=BOB)).json["models"]
        queue = (await rig.ask("GET", "/queue/metrics", key=BOB)).json["models"]
        hidden = await rig.ask("GET", "/v1/models/demo-large", key=BOB)
        state = await rig.ask("GET", "/v1/models/demo-large/status", key=BOB)
    assert [model["id"] for model in listed] == ["demo-small"]
    assert [model["id"] for model in statuses] == ["demo-small"]
    assert list(words) == list(queue) == ["demo-small"]
    for refused in (hidden, state):  # as a completion is told
        assert (refused.status, refused.error["code"]) == (403, "permission_denied")


# --- what they are doing -------------------------------------------------------------------


async def test_a_failed_model_says_why(demo_models, autojump_clock):
    gone = ModelConfig(name="gone", path="/nowhere/gone.gguf")
    crash = Script(exit_s=0.01, status=3, words=("no such tensor",))
    async with api(demo_models, models=(gone,), scripts={"demo-large": [crash]}) as rig:
        crashed = await rig.ask("POST", "/switch-model", {"model": "demo-large", "wait": True})
        assert crashed.status == 503
        assert crashed.error["code"] == "model_failed"
        assert "no such tensor" in crashed.error["message"]
        assert crashed.headers["retry-after"] == "60"  # it may be tried again after 300 s
        failed = (await rig.ask("GET", "/v1/models/failed", key=ALICE)).json["data"]
        words = (await rig.ask("GET", "/v1/health/models", key=ALICE)).json
        one = (await rig.ask("GET", "/v1/models/demo-large/status", key=ALICE)).json
    reasons = {model["id"]: model["reason"] for model in failed}
    assert set(reasons) == {"demo-large", "gone"}
    assert "no such tensor" in reasons["demo-large"]
    assert reasons["gone"]
    assert words["status"] == "degraded"
    assert words["models"]["demo-large"] == words["models"]["gone"] == "failed"
    assert one["status"] == "failed"
    assert one["crashes"] > 0
    assert one["retry_in_s"] > 0


async def test_the_status_of_a_loaded_model(demo_models, autojump_clock):
    async with api(demo_models) as rig:
        await rig.loaded("demo-small")
        status = (await rig.ask("GET", "/v1/models/demo-small/status", key=ALICE)).json
    assert status["status"] == "ready"
    assert (status["slots"], status["slots_busy"], status["running"]) == (2, 0, 0)
    assert status["context"] == 4096
    assert status["load_s"] == pytest.approx(0.1, abs=0.1)
    assert status["queued"] == {"high": 0, "normal": 0, "low": 0}


# --- health --------------------------------------------------------------------------------


async def health(rig):
    answers = [await rig.ask("GET", path, key=None) for path in ("/live", "/ready", "/health")]
    return [(answer.status, answer.json["status"]) for answer in answers]


async def test_health_tells_what_llmd_is_about(demo_models):
    async with api(demo_models) as rig:
        assert await health(rig) == [(200, "ok")] * 3
        rig.services.preloading = True
        assert await health(rig) == [(200, "ok"), (503, "loading"), (503, "loading")]
        rig.services.draining = True
        assert await health(rig) == [(200, "ok"), (503, "draining"), (503, "draining")]
        answer = await rig.ask("GET", "/health", key=None)
    assert int(answer.headers["retry-after"]) >= 1
    assert answer.error["code"] == "not_ready"


async def test_health_fails_when_no_model_can_be_served(tmp_path, autojump_clock):
    gone = ModelConfig(name="gone", path="/nowhere/gone.gguf")
    async with api(tmp_path, models=(gone,)) as rig:
        assert await health(rig) == [(200, "ok"), (503, "failed"), (503, "failed")]
        assert (await rig.ask("GET", "/health/detailed")).json["status"] == "failed"
        assert (await rig.ask("GET", "/v1/health/models")).json["status"] == "failed"


async def test_a_head_request_is_a_get_without_its_body(demo_models):
    async with api(demo_models) as rig:
        for path in ("/health", "/v1/models"):
            head, get = await rig.ask("HEAD", path), await rig.ask("GET", path)
            assert head.status == get.status == 200
            assert head.headers["content-length"] == get.headers["content-length"]


async def test_the_detailed_page_is_complete(demo_models, autojump_clock):
    async with api(demo_models) as rig:
        await rig.loaded("demo-small")
        page = (await rig.ask("GET", "/health/detailed")).json
    assert page["status"] == "ok"
    assert page["version"]
    assert {model["id"] for model in page["models"]} == {"demo-embed", "demo-large", "demo-small"}
    assert page["workers"][0]["starts"] == {"operator": 1}
    assert page["workers"][0]["pid"] == 1000


# --- numbers -------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["/queue/metrics", "/v1/queue/stats"])
async def test_the_queue_in_numbers(demo_models, autojump_clock, path):
    async with api(demo_models) as rig:
        await rig.loaded("demo-small")
        page = (await rig.ask("GET", path, key=ALICE)).json
        assert "keys" not in page  # they name users
        assert (await rig.ask("GET", path)).json["keys"] == {}
    assert (page["queued"], page["queued_tokens"], page["running"]) == (0, 0, 0)
    assert page["max_size"] == 100
    assert page["loaded"] == ["demo-small"]
    assert page["models"]["demo-small"]["slots"] == 2
    assert page["queued_by_class"] == {"high": 0, "normal": 0, "low": 0}


async def test_the_page_for_prometheus_has_the_workers_series_too(demo_models, autojump_clock):
    async with api(demo_models) as rig:
        rig.answers["GET", "/metrics"] = (
            200,
            [],
            b"# TYPE llamacpp:requests_deferred gauge\nllamacpp:requests_deferred 3\n",
        )
        await rig.loaded("demo-small")
        answer = await rig.ask("GET", "/metrics")
    assert answer.headers["content-type"].startswith("text/plain; version=0.0.4")
    samples = {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(answer.body.decode())
        for sample in family.samples
    }
    assert samples["llamacpp:requests_deferred", (("model", "demo-small"),)] == 3
    ready = (("model", "demo-small"), ("state", "ready"))
    assert samples["llmd_worker_state", ready] == 1


async def test_metrics_say_the_states_that_the_api_says(demo_models, autojump_clock):
    """Of a file that cannot be loaded, and of both sides of a switch that has to wait."""
    gone = ModelConfig(name="gone", path="/nowhere/gone.gguf")
    async with (
        api(demo_models, models=(gone,), **FOR_EVER) as rig,
        trio.open_nursery() as nursery,
    ):
        await rig.loaded("demo-small")
        await running(rig, nursery)
        await rig.ask("POST", "/switch-model", {"model": "demo-large", "drain_sec": 100})
        listed = (await rig.ask("GET", "/v1/models")).json["data"]
        page = (await rig.ask("GET", "/metrics")).body.decode()
        await rig.ask("POST", "/requests/cancel-all")
    said = {model["id"]: model["status"] for model in listed}
    assert said["gone"] == "failed"
    assert (said["demo-small"], said["demo-large"]) == ("draining", "starting")
    told = re.findall(r'llmd_worker_state\{model="([^"]+)",state="(\w+)"\} 1\.0', page)
    assert dict(told) == said


async def test_openmetrics_for_those_who_ask(demo_models):
    async with api(demo_models) as rig:
        accept = [("accept", "application/openmetrics-text; version=1.0.0")]
        answer = await rig.ask("GET", "/metrics", headers=accept)
    assert answer.headers["content-type"].startswith("application/openmetrics-text")
    assert answer.body.endswith(b"# EOF\n")


@pytest.mark.parametrize("trouble", ["hang", "die", (500, [], b"no"), (200, [], b"\xff\x00")])
async def test_a_worker_in_trouble_does_not_keep_the_page(demo_models, autojump_clock, trouble):
    async with api(demo_models, server=Server(metrics_open=True)) as rig:
        rig.answers["GET", "/metrics"] = trouble
        await rig.loaded("demo-small")
        began = trio.current_time()
        answer = await rig.ask("GET", "/metrics", key=None)
        assert trio.current_time() - began <= 1.1
    assert answer.status == 200
    assert b"llmd_build_info" in answer.body
