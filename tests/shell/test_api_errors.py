"""Every refusal in the one shape, and every answer with its id."""

from __future__ import annotations

import re
from functools import partial

import pytest
import trio
from api_rig import ADMIN, ALICE, api
from trio.testing import wait_all_tasks_blocked

from llmd.api.routes import all_routes, later
from llmd.api.routing import Access
from llmd.config import Server

OWN_ID = re.compile(r"r-[0-9a-f]{16}")


@pytest.mark.parametrize(
    ("method", "path"),
    [("GET", "/nope"), ("POST", "/nope"), ("GET", "/v1"), ("GET", "/v1/models/")],
)
async def test_an_unknown_path_is_404(demo_models, method, path):
    async with api(demo_models) as rig:
        answer = await rig.ask(method, path)
    assert answer.status == 404
    assert answer.error["code"] == "not_found"
    assert answer.error["type"] == "invalid_request_error"


@pytest.mark.parametrize("target", ["//{}", "///{}", "{}", "?{}", "*", "x://[/{}"])
@pytest.mark.parametrize(
    ("method", "path"),
    [("POST", "v1/chat/completions"), ("GET", "health"), ("GET", "v1/models"), ("GET", "")],
)
async def test_what_is_no_path_is_404(demo_models, method, path, target):
    """Nobody's path is rewritten into another one, least of all into one that goes another way."""
    async with api(demo_models) as rig:
        answer = await rig.ask(method, target.format(path), b"{}")
    assert (answer.status, answer.error["code"]) == (404, "not_found")
    assert OWN_ID.fullmatch(answer.headers["x-request-id"])


@pytest.mark.parametrize("site", ["http://127.0.0.1:7860", "HTTPS://other.example"])
async def test_a_target_may_be_named_in_full(demo_models, site):
    async with api(demo_models) as rig:
        statuses = [
            (await rig.ask(method, site + path, b"{")).status
            for method, path in (
                ("GET", "/health"),
                ("GET", "/v1/models"),
                ("POST", "/v1/chat/completions"),
                ("GET", ""),
                ("GET", "//health"),
            )
        ]
    assert statuses == [200, 200, 400, 200, 404]


async def test_what_comes_later_says_that_it_is_not_there_yet(demo_models, autojump_clock):
    async with api(demo_models) as rig:
        for route in later.routes():
            answer = await rig.ask(route.method, route.path)
            assert answer.status == 501, route.path
            assert answer.error["code"] == "not_supported_yet"
            assert answer.error["type"] == "not_implemented"
            assert route.path in answer.error["message"]
            assert answer.headers["x-should-retry"] == "false"
            assert (await rig.ask(route.method, route.path, key=None)).status == 401
            other = "GET" if route.method == "POST" else "POST"
            assert (await rig.ask(other, route.path)).status in (404, 405), route.path
        documented = (await rig.ask("GET", "/openapi.json")).json["paths"]
    assert documented.keys().isdisjoint(route.path for route in later.routes())


SPECIFIED = """
POST /v1/chat/completions /v1/completions /v1/responses /v1/messages /v1/embeddings /v1/rerank
POST /v1/reranking /infill /v1/audio/transcriptions /chat/completions /completion /completions
POST /embedding /embeddings /rerank /reranking /responses
POST /tokenize /detokenize /apply-template /chat/completions/input_tokens /responses/input_tokens
POST /v1/chat/completions/input_tokens /v1/responses/input_tokens /v1/messages/count_tokens
POST /v1/chat/completions/control
GET /props /slots /lora-adapters
POST /slots/0 /lora-adapters
GET /models /v1/models /v1/models/x /live /ready /health
POST /switch-model /stop /requests/cancel-all /v1/models/x/load /v1/models/x/unload
POST /v1/models/x/reset /v1/models/eject
GET /requests /requests/x
POST /requests/x/cancel
GET /queue/metrics /v1/queue/stats /v1/models/status /v1/models/status/stream /v1/models/x/status
GET /v1/models/failed /v1/health/models /v1/usage
GET /health/detailed /vram /v1/telemetry/summary /metrics /metrics/stream
GET /docs /openapi.json
"""


async def test_every_endpoint_that_is_specified_is_known(demo_models):
    """Whatever is said about it, it is not that there is no such path or method."""
    async with api(demo_models) as rig:
        for line in SPECIFIED.split("\n"):
            method, *paths = line.split() or ("",)
            for path in paths:
                answer = await rig.ask(method, path, b"[" if method == "POST" else b"")
                code = answer.json.get("error", {}).get("code") if answer.status >= 400 else ""
                assert code not in ("not_found", "method_not_allowed"), (method, path)
                assert answer.status != 500, (method, path)


@pytest.mark.parametrize(
    ("method", "path", "allow"),
    [
        ("GET", "/v1/chat/completions", "POST"),
        ("PUT", "/v1/embeddings", "POST"),
        ("GET", "/tokenize", "POST"),
        ("POST", "/v1/models", "GET, HEAD"),
        ("POST", "/live", "GET, HEAD"),
        ("DELETE", "/requests/x", "GET, HEAD"),
        ("OPTIONS", "/v1/models", "GET, HEAD"),
    ],
)
async def test_a_wrong_method_is_405_and_says_which_are_right(demo_models, method, path, allow):
    async with api(demo_models) as rig:
        answer = await rig.ask(method, path)
    assert answer.status == 405
    assert answer.error["code"] == "method_not_allowed"
    assert answer.headers["allow"] == allow


async def test_a_fault_in_llmd_tells_nothing_of_itself(demo_models, monkeypatch, caplog):
    async with api(demo_models) as rig:

        def crash():
            raise ZeroDivisionError("a secret")

        monkeypatch.setattr(rig.scheduler, "statistics", crash)
        answer = await rig.ask("GET", "/queue/metrics")
        monkeypatch.undo()
    assert answer.status == 500
    assert answer.error["code"] == "internal_error"
    assert b"secret" not in answer.body
    assert b"ZeroDivision" not in answer.body
    assert "a secret" in caplog.text


# --- ids -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "path"),
    [("GET", "/live"), ("GET", "/v1/models"), ("GET", "/nope"), ("PUT", "/tokenize")],
)
async def test_every_answer_carries_an_id(demo_models, method, path):
    async with api(demo_models) as rig:
        fresh = await rig.ask(method, path)
        own = await rig.ask(method, path, headers=[("x-request-id", "mine-1")])
        bad = await rig.ask(method, path, headers=[("x-request-id", "not mine")])
    assert OWN_ID.fullmatch(fresh.headers["x-request-id"])
    assert own.headers["x-request-id"] == "mine-1"
    assert OWN_ID.fullmatch(bad.headers["x-request-id"])


async def test_an_id_that_is_remembered_is_not_given_again(demo_models, autojump_clock):
    async with api(demo_models) as rig:
        rig.answers["POST", "/tokenize"] = 200, [], {"tokens": []}
        asks = [("x-request-id", "once")]
        first = await rig.ask("POST", "/tokenize", {"content": ""}, headers=asks)
        second = await rig.ask("POST", "/tokenize", {"content": ""}, headers=asks)
        third = await rig.ask("GET", "/v1/models", headers=asks)
        record = await rig.ask("GET", "/requests/once")
    assert first.headers["x-request-id"] == "once"
    assert OWN_ID.fullmatch(second.headers["x-request-id"])
    assert OWN_ID.fullmatch(third.headers["x-request-id"])
    assert record.json["path"] == "/tokenize"


# --- who may what --------------------------------------------------------------------------


async def test_each_route_keeps_out_who_may_not_use_it(demo_models, autojump_clock):
    async with api(demo_models) as rig:
        for route in all_routes(rig.services.config):
            path = re.sub(r"<int:\w+>", "0", route.path).replace("<asset:name>", "favicon.ico")
            path = re.sub(r"<[^>]+>", "x", path)
            nobody = await rig.ask(route.method, path, key=None)
            wrong = await rig.ask(route.method, path, key="wrong")
            user = await rig.ask(route.method, path, b"]", key=ALICE)
            found = nobody.status, wrong.status, user.status == 403
            if route.access is Access.OPEN:
                assert not {401, 403} & {nobody.status, wrong.status, user.status}, route
                continue
            assert found == (401, 401, route.access is Access.ADMIN), route
            assert nobody.error["code"] == "invalid_api_key"
            assert nobody.headers["www-authenticate"].startswith("Bearer")
            if route.access is Access.ADMIN:
                assert user.error["code"] == "permission_denied"
                assert user.error["type"] == "permission_error"


async def test_who_is_kept_out_is_counted(demo_models):
    async with api(demo_models) as rig:
        await rig.ask("GET", "/v1/models", key="wrong")
        await rig.ask("GET", "/metrics", key=ALICE)
        page = (await rig.ask("GET", "/metrics")).body
    assert b'llmd_refused_total{key="invalid",reason="invalid_api_key"} 1' in page
    assert b'llmd_refused_total{key="alice",reason="permission_denied"} 1' in page


CHAT = "/v1/chat/completions"


async def test_completions_of_strangers_are_counted_and_not_remembered(demo_models):
    """Else whoever has no key could push everybody's requests out of the history."""
    async with api(demo_models) as rig:
        asks = [("x-request-id", "mine")]
        for key in (None, "wrong"):
            answer = await rig.ask("POST", CHAT, b"{", key=key, headers=asks)
            assert (answer.status, answer.headers["x-request-id"]) == (401, "mine")
        assert list(rig.registry.records()) == []
        assert (await rig.ask("GET", "/requests")).json["data"] == []
        known = await rig.ask("POST", CHAT, b"{", key=ALICE, headers=asks)
        assert (known.status, known.headers["x-request-id"]) == (400, "mine")
        page = (await rig.ask("GET", "/metrics")).body
    assert [record.id for record in rig.registry.records()] == ["mine"]
    assert b'llmd_refused_total{key="invalid",reason="invalid_api_key"} 2' in page


async def test_a_stranger_that_leaves_while_its_401_is_held_back_is_forgotten(
    demo_models, autojump_clock
):
    async with api(demo_models) as rig:
        for _ in range(5):
            await rig.ask("POST", CHAT, b"{", key="wrong")
        async with trio.open_nursery() as nursery:
            await nursery.start(partial(rig.ask, "POST", CHAT, b"{", key="wrong"))
            await wait_all_tasks_blocked()
            assert len(rig.registry) == 0
            rig.client.on_disconnect("")
        assert list(rig.registry.records()) == []
        page = (await rig.ask("GET", "/metrics")).body
    assert b'llmd_refused_total{key="invalid",reason="invalid_api_key"} 6' in page


@pytest.mark.parametrize("host", ["", "a b", "[::1", "x" * 300, "\x7f", "évil"])
async def test_an_odd_host_is_no_crash(demo_models, host):
    async with api(demo_models) as rig:
        answer = await rig.ask("GET", "/v1/models", headers=[("host", host)])
    assert answer.status == 200


async def test_guessing_keys_becomes_slow(demo_models, autojump_clock):
    async with api(demo_models) as rig:
        for _ in range(20):
            await rig.ask("GET", "/v1/models", key="wrong")
        began = trio.current_time()
        await rig.ask("GET", "/v1/models", key="wrong")
        assert trio.current_time() - began >= 1
        began = trio.current_time()
        assert (await rig.ask("GET", "/v1/models")).status == 200
        assert trio.current_time() == began  # those who have one do not suffer for it


@pytest.mark.parametrize(
    ("key", "path", "status"), [(None, "/tokenize", 401), (ALICE, "/switch-model", 403)]
)
async def test_callers_are_known_before_the_body_is_read(demo_models, key, path, status):
    async with api(demo_models) as rig:
        answer = await rig.ask("POST", path, b"{}", key=key, more=trio.Event())
        assert answer.status == status
        assert not rig.body_taken


async def test_without_any_key_everybody_is_an_admin_but_other_sites(demo_models):
    async with api(demo_models, keys=()) as rig:
        assert (await rig.ask("GET", "/metrics", key=None)).status == 200
        evil = [("origin", "https://evil.example")]
        answer = await rig.ask("GET", "/v1/models", key=None, headers=evil)
        assert answer.status == 403


async def test_metrics_can_be_open(demo_models):
    async with api(demo_models, server=Server(metrics_open=True)) as rig:
        assert (await rig.ask("GET", "/metrics", key=None)).status == 200
        assert (await rig.ask("GET", "/health/detailed", key=None)).status == 401


# --- bodies --------------------------------------------------------------------------------


async def test_a_body_over_the_limit_is_413_announced_or_not(demo_models):
    async with api(demo_models, server=Server(max_body_bytes=100)) as rig:
        announced = await rig.ask("POST", "/switch-model", b"x" * 101)
        chunked = [("content-length", "5")]
        found = await rig.ask("POST", "/switch-model", b"x" * 101, headers=chunked)
        fits = await rig.ask("POST", "/switch-model", b'{"model":"nope"}' + b" " * 84)
    for answer in (announced, found):
        assert answer.status == 413
        assert answer.error["code"] == "request_too_large"
        assert answer.headers["connection"] == "close"
    assert fits.status == 404


async def test_a_body_that_does_not_come_is_408(demo_models, autojump_clock):
    async with api(demo_models, server=Server(body_timeout_sec=7)) as rig:
        began = trio.current_time()
        answer = await rig.ask("POST", "/switch-model", b"{", more=trio.Event())
        helper = await rig.ask("POST", "/tokenize", b"{", more=trio.Event())
        assert trio.current_time() - began == pytest.approx(14)
    assert answer.status == helper.status == 408
    assert answer.error["code"] == "request_timeout"


@pytest.mark.parametrize(
    ("body", "param"),
    [
        (b"", "model"),
        (b"{}", "model"),
        (b"{", None),
        (b"[]", None),
        (b"\xff", None),
        (b'{"model":1}', "model"),
        (b'{"model":"demo-small","force":"yes"}', "force"),
        (b'{"model":"demo-small","drain_sec":-1}', "drain_sec"),
        (b'{"model":"demo-small","from":[1]}', "from[0]"),
        (b'{"model":"demo-small","x":' + b"[" * 300 + b"]" * 300 + b"}", "x"),
        (b'{"model":"demo-small","x":' + b"[" * 99999 + b"]" * 99999 + b"}", "x"),
        (b'{"model":' + b"[" * 99999 + b"]" * 99999 + b"}", "model"),
    ],
)
async def test_a_bad_body_is_400_and_names_the_field(demo_models, body, param):
    async with api(demo_models) as rig:
        answer = await rig.ask("POST", "/switch-model", body)
    assert answer.status == 400
    assert answer.error["code"] == "invalid_request"
    assert answer.error["param"] == param


# --- other sites ---------------------------------------------------------------------------


SITE = "https://chat.example"
PREFLIGHT = [
    ("access-control-request-method", "POST"),
    ("access-control-request-headers", "authorization, x-stainless-os"),
]


@pytest.mark.parametrize("allowed", [SITE, "*"])
@pytest.mark.parametrize("path", ["/live", "/v1/models", "/nope", "/v1/embeddings"])
async def test_listed_sites_may_read_every_answer(demo_models, allowed, path):
    async with api(demo_models, server=Server(cors_origins=(allowed,))) as rig:
        method = "POST" if "embed" in path else "GET"
        answer = await rig.ask(method, path, b"{", headers=[("origin", SITE)])
        preflight = await rig.ask("OPTIONS", path, key=None, headers=[("origin", SITE), *PREFLIGHT])
    expected = "*" if allowed == "*" else SITE
    for came in (answer, preflight):
        assert came.headers["access-control-allow-origin"] == expected
        assert (came.headers.get("vary") == "Origin") is (allowed != "*")
        assert "x-request-id" in came.headers
    assert "x-request-id" in answer.headers["access-control-expose-headers"]
    assert preflight.status == 204
    assert preflight.headers["access-control-allow-headers"] == "authorization, x-stainless-os"
    assert "POST" in preflight.headers["access-control-allow-methods"]


@pytest.mark.parametrize("allowed", [(), ("https://other.example",)])
async def test_other_sites_get_no_leave(demo_models, allowed):
    async with api(demo_models, server=Server(cors_origins=allowed)) as rig:
        answer = await rig.ask("GET", "/v1/models", headers=[("origin", SITE)])
        preflight = await rig.ask("OPTIONS", "/v1/models", headers=[("origin", SITE), *PREFLIGHT])
        no_site = await rig.ask("GET", "/live")
    for came in (answer, preflight, no_site):
        assert not [name for name in came.headers if name.startswith("access-control")]
        assert came.headers.get("vary") == ("Origin" if allowed else None)
    assert preflight.status == 405


async def test_what_a_preflight_asks_for_is_not_echoed_blindly(demo_models):
    async with api(demo_models, server=Server(cors_origins=("*",))) as rig:
        odd = [
            ("access-control-request-method", "POST"),
            ("access-control-request-headers", "a\tb"),
        ]
        answer = await rig.ask("OPTIONS", "/v1/models", headers=[("origin", SITE), *odd])
    assert answer.status == 204
    assert "access-control-allow-headers" not in answer.headers


# --- documentation -------------------------------------------------------------------------


async def test_the_documentation_names_every_route(demo_models):
    async with api(demo_models) as rig:
        page = await rig.ask("GET", "/docs", key=None)
        schema = (await rig.ask("GET", "/openapi.json", key=None)).json
    assert page.headers["content-type"].startswith("text/html")
    assert b"<script" not in page.body
    assert b"http://" not in page.body
    assert b"https://" not in page.body
    for path in ("/v1/chat/completions", "/v1/models/{model}", "/requests/{request_id}/cancel"):
        assert path.encode() in page.body
        assert path in schema["paths"]
    switch = schema["paths"]["/switch-model"]["post"]
    reference = switch["requestBody"]["content"]["application/json"]["schema"]["$ref"]
    shape = schema["components"]["schemas"][reference.rpartition("/")[2]]
    assert {"model", "from", "drain_sec", "force"} <= set(shape["properties"])
    assert switch["security"] == [{"key": []}]
    assert "security" not in schema["paths"]["/live"]["get"]


async def test_the_documentation_can_be_left_out(demo_models):
    async with api(demo_models, server=Server(docs=False)) as rig:
        assert (await rig.ask("GET", "/docs")).status == 404
        assert (await rig.ask("GET", "/openapi.json")).status == 404


async def test_inference_goes_its_own_way(demo_models, autojump_clock):
    async with api(demo_models) as rig:
        rig.answers["POST", "/v1/embeddings"] = 200, [], {"data": []}
        body = {"model": "demo-small", "input": "x"}
        answer = await rig.ask("POST", "/v1/embeddings", body, key=ADMIN)
    assert answer.status == 200
    assert answer.json == {"data": []}
