"""`llama.hf_allow`: which repositories an admin may load from without an entry, and who else."""

from __future__ import annotations

import pytest
from admin_rig import admin
from api_rig import ALICE, BOB, api

from llmd.config import Llama
from llmd.config.schema import ApiKey

REFERENCE = "ggml-org/Qwen3-0.6B-GGUF:Q8_0"
NAME = "Qwen3-0.6B-Q8_0"
CHAT = {"model": REFERENCE, "messages": [{"role": "user", "content": "hi"}]}


def allow(*patterns):
    return {"llama": Llama(hf_allow=patterns)}


@pytest.mark.parametrize("how", ["switch", "load"])
@pytest.mark.parametrize("pattern", ["*", "ggml-org/*", "*:Q8_0", REFERENCE, "ggml-org/Q*:Q?_0"])
async def test_within_hf_allow_it_becomes_a_model(demo_models, autojump_clock, pattern, how):
    async with api(demo_models, **allow("nobody/*", pattern)) as rig:
        if how == "switch":
            answer = await rig.ask("POST", "/switch-model", {"model": REFERENCE, "wait": True})
        else:
            answer = await rig.ask("POST", f"/v1/models/{REFERENCE}/load", {"wait": True})
        assert (answer.status, answer.json["model"]) == (200, NAME)
        assert answer.json["status"] == "ready"
        card = (await rig.ask("GET", f"/v1/models/{NAME}", key=ALICE)).json
        assert REFERENCE in card["aliases"]
        status = (await rig.ask("GET", f"/v1/models/{REFERENCE}/status")).json
        assert (status["id"], status["status"]) == (NAME, "ready")
        assert NAME in (await rig.ask("GET", "/queue/metrics", key=ALICE)).json["models"]
        again = await rig.ask("POST", "/switch-model", {"model": REFERENCE, "wait": True})
        assert again.json["model"] == NAME
        assert len((await rig.ask("GET", "/v1/models")).json["data"]) == 4


@pytest.mark.parametrize("patterns", [(), ("other/*",), ("ggml-org/Qwen3-0.6B-GGUF",)])
async def test_outside_hf_allow_it_is_403(demo_models, patterns):
    async with api(demo_models, **allow(*patterns)) as rig:
        for path in ("/switch-model", f"/v1/models/{REFERENCE}/load"):
            body = {"model": REFERENCE} if "switch" in path else b""
            answer = await rig.ask("POST", path, body)
            assert (answer.status, answer.error["code"]) == (403, "permission_denied")
            assert "llama.hf_allow" in answer.error["message"]
        assert len((await rig.ask("GET", "/v1/models")).json["data"]) == 3


@pytest.mark.parametrize(
    "name",
    ["ggml-org/Qwen3-0.6B-GGUF", "a/b/c:Q8_0", "../x:Q8_0", "a/..:Q8", "nope", "a:b", "x/y:"],
)
async def test_what_is_no_repository_with_its_quantisation_is_404(demo_models, name):
    async with api(demo_models, **allow("*")) as rig:
        answer = await rig.ask("POST", "/switch-model", {"model": name})
    assert (answer.status, answer.error["code"]) == (404, "model_not_found")


async def test_who_forgets_the_quantisation_is_told_how_to_name_it(demo_models):
    async with api(demo_models, **allow("*")) as rig:
        answer = await rig.ask("POST", "/v1/models/ggml-org/Qwen3-0.6B-GGUF/load")
    assert "ggml-org/Qwen3-0.6B-GGUF:Q4_K_M" in answer.error["message"]


async def test_only_an_operator_brings_a_repository_in(demo_models):
    async with api(demo_models, **allow("*")) as rig:
        for path, body in (
            ("/v1/chat/completions", CHAT),
            ("/tokenize", {"model": REFERENCE, "content": "x"}),
        ):
            assert (await rig.ask("POST", path, body)).status == 404  # an admin's request, too
        user = await rig.ask("POST", "/switch-model", {"model": REFERENCE}, key=ALICE)
        unload = await rig.ask("POST", f"/v1/models/{REFERENCE}/unload")
        made_room = {"model": "demo-small", "from": REFERENCE}
        assert (await rig.ask("POST", "/switch-model", made_room)).status == 404
    assert (user.status, unload.status) == (403, 404)


async def test_keys_with_a_list_of_models_do_not_get_it(demo_models, autojump_clock):
    async with api(demo_models, **allow("*")) as rig:
        await rig.loaded(REFERENCE)
        answer = await rig.ask("POST", "/v1/chat/completions", CHAT, key=BOB)
        assert (answer.status, answer.error["code"]) == (403, "permission_denied")


async def test_an_admin_with_a_list_of_models_is_held_to_it(demo_models):
    keys = (ApiKey(name="root", key="root-key", role="admin", models=("demo-small",)),)
    async with api(demo_models, keys=keys, **allow("*")) as rig:
        answer = await rig.ask("POST", "/switch-model", {"model": REFERENCE})
        assert (answer.status, answer.error["code"]) == (403, "permission_denied")
        assert len((await rig.ask("GET", "/v1/models/status")).json["data"]) == 1


async def test_operators_at_the_admin_socket_may_too(demo_models, autojump_clock):
    async with admin(demo_models, **allow("ggml-org/*")) as desk:
        peer = desk.peer()
        done = await peer.ask(type="load", id=2, model=REFERENCE, wait=True)
        assert (done["result"]["model"], done["result"]["state"]) == (NAME, "ready")
        refused = await peer.ask(type="switch", id=3, model="other/X-GGUF:Q8_0")
        assert (refused["type"], refused["code"]) == ("failure", "permission_denied")
        unknown = await peer.ask(type="switch", id=4, model="demo-smal")
        assert unknown["code"] == "model_not_found"
        assert "demo-small" in unknown["message"]


async def names(peer):
    return [m["name"] for m in (await peer.ask(type="models", id=0))["result"]["models"]]


async def test_a_plan_takes_no_repository_in_and_can_be_carried_out_as_it_says(
    demo_models, autojump_clock
):
    async with admin(demo_models, **allow("*")) as desk:
        peer = desk.peer()
        before = await names(peer)
        known = set(desk.rig.scheduler.state.models)
        plan = (await peer.ask(type="switch", id=1, model=REFERENCE, dry_run=True))["result"]
        assert (plan["model"], plan["fits"], plan["state"]) == (REFERENCE, True, "off")
        assert plan["memory_bytes"] is None  # nobody has looked at the repository yet
        assert plan["command"] == f"llmctl switch {REFERENCE} --if-gen {plan['generation']}"
        assert await names(peer) == before
        assert set(desk.rig.scheduler.state.models) == known
        generation = plan["generation"]
        done = await peer.ask(
            type="switch", id=2, model=plan["model"], if_gen=generation, wait=True
        )
        assert (done["result"]["model"], done["result"]["state"]) == (NAME, "ready")
        assert sorted(await names(peer)) == sorted([*before, NAME])


async def test_a_repository_whose_load_is_refused_is_not_taken_in(demo_models, autojump_clock):
    async with admin(demo_models, **allow("*")) as desk:  # which has room for one model
        peer = desk.peer()
        before = await names(peer)
        await peer.ask(type="switch", id=1, model="demo-small", wait=True)
        known = set(desk.rig.scheduler.state.models)
        refused = await peer.ask(type="load", id=2, model=REFERENCE)
        assert refused["code"] == "insufficient_memory"
        by_http = await desk.rig.ask("POST", f"/v1/models/{REFERENCE}/load")
        assert by_http.error["code"] == "insufficient_memory"
        assert await names(peer) == before
        assert set(desk.rig.scheduler.state.models) == known
