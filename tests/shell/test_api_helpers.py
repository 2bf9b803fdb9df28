"""Helpers, looks into workers, and the page at `/`: what goes to a worker beside inference."""

from __future__ import annotations

import gzip

import pytest
import trio
from api_rig import ADMIN, ALICE, BOB, api
from fake_worker_parts import Script
from test_api_control import CHAT, FOR_EVER, running
from trio.testing import wait_all_tasks_blocked

from llmd.api.routes.helpers import PATHS
from llmd.config import Limits, RateLimit, SchedulerSettings, Server, WorkerSettings
from llmd.config.schema import ApiKey

TOKENS = 200, [], {"tokens": [1, 2]}


# --- helpers -------------------------------------------------------------------------------


@pytest.mark.parametrize("path", PATHS)
async def test_a_helper_loads_the_model_and_passes_the_answer_on(demo_models, autojump_clock, path):
    async with api(demo_models) as rig:
        rig.answers["POST", path] = TOKENS
        body = b'{"model": "demo-large", "content": "as it came"}'
        answer = await rig.ask("POST", path, body, key=ALICE)
        assert answer.json == {"tokens": [1, 2]}
        assert rig.asked[-1][:3] == ("POST", path, body)
        assert rig.state("demo-large") == "ready"
        record = (await rig.ask("GET", "/requests")).json["data"][0]
    assert record["id"] == answer.headers["x-request-id"]
    assert (record["state"], record["model"], record["key"]) == ("done", "demo-large", "alice")


@pytest.mark.parametrize(
    ("status", "theirs", "told"),
    [
        (501, [], {"x-should-retry": "false"}),
        (503, [], {"retry-after": "1", "retry-after-ms": "1000"}),
        (503, [(b"retry-after", b"7")], {"retry-after": "7", "retry-after-ms": "7000"}),
        (429, [(b"retry-after", b"soon")], {"retry-after": "1", "retry-after-ms": "1000"}),
        (400, [], {}),
    ],
)
async def test_a_workers_error_says_whether_and_when_to_try_again(
    demo_models, autojump_clock, status, theirs, told
):
    body = {"error": {"message": "as the worker says it", "code": status}}
    async with api(demo_models) as rig:
        for path in ("/tokenize", "/slots/0"):
            rig.answers["POST", path] = status, theirs, body
            answer = await rig.ask("POST", path, {"model": "demo-small"})
            assert (answer.status, answer.json) == (status, body)
            found = {k: v for k, v in answer.headers.items() if "retry" in k}
            assert found == told


async def test_without_a_name_it_is_the_default_model(demo_models, autojump_clock):
    scheduler = SchedulerSettings(default_model="demo-large")
    async with api(demo_models, scheduler=scheduler) as rig:
        rig.answers["POST", "/tokenize"] = TOKENS
        assert (await rig.ask("POST", "/tokenize", {"content": "x"})).status == 200
        assert rig.state("demo-large") == "ready"


async def test_a_busy_model_helps_at_once(demo_models, autojump_clock):
    async with api(demo_models, **FOR_EVER) as rig, trio.open_nursery() as nursery:
        rig.answers["POST", "/tokenize"] = TOKENS
        await rig.loaded("demo-small")
        for number in range(3):
            await running(rig, nursery, request_id=f"r{number}")
        answer = await rig.ask("POST", "/tokenize", {"model": "demo-small"})
        assert answer.status == 200
        await rig.ask("POST", "/requests/cancel-all")


async def test_a_helper_overtakes_nobody_for_a_load(demo_models, autojump_clock):
    async with api(demo_models, **FOR_EVER) as rig, trio.open_nursery() as nursery:
        rig.answers["POST", "/tokenize"] = TOKENS
        await rig.loaded("demo-small")
        await running(rig, nursery)
        found = []

        async def ask():
            found.append(await rig.ask("POST", "/tokenize", {"model": "demo-large"}))

        nursery.start_soon(ask)
        await wait_all_tasks_blocked()
        assert not found
        waiting = (await rig.ask("GET", "/requests?state=queued")).json["data"]
        assert waiting[0]["path"] == "/tokenize"
        assert waiting[0]["why"]["rule"] in ("min_residency", "model_not_loaded")
        await rig.ask("POST", "/requests/r1/cancel")
        with trio.fail_after(60):
            while not found:
                await trio.sleep(1)
        assert found[0].status == 200


@pytest.mark.parametrize(
    ("body", "status", "param"),
    [
        ({"model": "nope"}, 404, "model"),
        ({"model": 7}, 400, "model"),
        (b"[]", 400, None),
        (b"{", 400, None),
        (b'{"x":' + b"[" * 300 + b"]" * 300 + b"}", 400, None),
    ],
)
async def test_a_bad_request_is_refused_here(demo_models, body, status, param):
    async with api(demo_models) as rig:
        answer = await rig.ask("POST", "/tokenize", body)
        assert answer.status == status
        assert answer.error["param"] == param
        assert not rig.asked
        record = (await rig.ask("GET", "/requests")).json["data"][0]
    assert (record["state"], record["status"]) == ("refused", status)


async def test_a_key_helps_itself_to_its_own_models_only(demo_models):
    async with api(demo_models) as rig:
        answer = await rig.ask("POST", "/tokenize", {"model": "demo-large"}, key=BOB)
    assert answer.status == 403
    assert answer.error["code"] == "permission_denied"


async def test_the_workers_own_errors_are_passed_on(demo_models, autojump_clock):
    said = {"error": {"code": 400, "message": "no", "type": "invalid_request_error"}}
    async with api(demo_models) as rig:
        rig.answers["POST", "/detokenize"] = 400, [(b"x-of-worker", b"1")], said
        answer = await rig.ask("POST", "/detokenize", {"model": "demo-small"})
    assert (answer.status, answer.json) == (400, said)
    assert answer.headers["x-of-worker"] == "1"


@pytest.mark.parametrize(("status", "state"), [(400, "refused"), (500, "failed")])
async def test_what_the_worker_refuses_is_not_done(demo_models, autojump_clock, status, state):
    async with api(demo_models) as rig:
        rig.answers["POST", "/tokenize"] = status, [], {"error": {"code": status}}
        await rig.ask("POST", "/tokenize", {"model": "demo-small"}, key=ALICE)
        record = (await rig.ask("GET", "/requests")).json["data"][0]
        page = (await rig.ask("GET", "/metrics")).body.decode()
    assert (record["state"], record["status"], record["code"]) == (state, status, "worker_error")
    assert f'llmd_requests_total{{code="{status}",model="demo-small",outcome="{state}"}} 1' in page


async def test_helpers_count_against_the_requests_of_a_key(demo_models, autojump_clock):
    keys = (ApiKey(name="root", key=ADMIN, role="admin"), ApiKey(name="alice", key=ALICE))
    limits = RateLimit(requests_per_minute=2, estimated_tokens_per_minute=10)
    async with api(demo_models, keys=keys, rate_limit=limits) as rig:
        rig.answers["POST", "/tokenize"] = TOKENS
        ok = await rig.ask("POST", "/tokenize", {"model": "demo-small"}, key=ALICE)
        assert ok.headers["x-ratelimit-limit-requests"] == "2"
        assert ok.headers["x-ratelimit-remaining-requests"] == "1"
        assert ok.headers["x-ratelimit-remaining-tokens"] == "10"
        for _ in range(3):  # what is refused costs nothing
            await rig.ask("POST", "/tokenize", {"model": "nope"}, key=ALICE)
        last = await rig.ask("POST", "/tokenize", {"model": "demo-small"}, key=ALICE)
        assert last.status == 200
        denied = await rig.ask("POST", "/tokenize", {"model": "demo-small"}, key=ALICE)
    assert denied.status == 429
    assert denied.error["code"] == "rate_limit_exceeded"
    assert denied.headers["x-ratelimit-remaining-requests"] == "0"
    assert 1 <= int(denied.headers["retry-after"]) <= 60
    assert int(denied.headers["retry-after-ms"]) > 0


async def test_a_worker_that_dies_is_asked_once_more(demo_models, autojump_clock):
    async with api(demo_models) as rig:
        await rig.loaded("demo-small")
        rig.answers["POST", "/tokenize"] = "die"
        answer = await rig.ask("POST", "/tokenize", {"model": "demo-small"})
        assert [ask[1] for ask in rig.asked] == ["/tokenize"] * 2
    assert answer.status == 502
    assert answer.error["code"] == "bad_worker_response"


async def test_a_worker_that_hangs_is_suspected(demo_models, autojump_clock):
    async with api(demo_models, worker=WorkerSettings(stall_timeout_sec=30)) as rig:
        await rig.loaded("demo-small")
        rig.answers["POST", "/tokenize"] = "hang"
        rig.launcher.children[0].silent = True
        began = trio.current_time()
        answer = await rig.ask("POST", "/tokenize", {"model": "demo-small"})
        assert trio.current_time() - began == pytest.approx(30)
        assert answer.status == 504
        assert answer.error["code"] == "worker_stalled"
        with trio.fail_after(100):
            while rig.supervisor.worker("demo-small").statistics().crashes == 0:
                await trio.sleep(1)


async def test_a_helper_ends_with_its_time(demo_models, autojump_clock):
    limits = Limits(request_timeout_sec=20)
    async with api(demo_models, limits=limits) as rig:
        await rig.loaded("demo-small")
        rig.answers["POST", "/tokenize"] = "hang"
        answer = await rig.ask("POST", "/tokenize", {"model": "demo-small"})
        record = (await rig.ask("GET", "/requests")).json["data"][0]
    assert answer.status == 504
    assert answer.error["code"] == "request_timeout"
    assert record["state"] == "timed_out"


async def test_a_client_that_leaves_ends_its_helper(demo_models, autojump_clock):
    async with api(demo_models, **FOR_EVER) as rig, trio.open_nursery() as nursery:
        await rig.loaded("demo-small")
        rig.answers["POST", "/tokenize"] = "hang"
        left, found = trio.Event(), []

        async def ask():
            found.append(await rig.ask("POST", "/tokenize", {"model": "demo-small"}, left=left))

        nursery.start_soon(ask)
        await wait_all_tasks_blocked()
        assert len(rig.registry) == 1
        left.set()
        await wait_all_tasks_blocked()
        assert found == [None]
        record = (await rig.ask("GET", "/requests")).json["data"][0]
        assert record["state"] == "abandoned"


async def test_a_helper_can_be_cancelled(demo_models, autojump_clock):
    async with api(demo_models, **FOR_EVER) as rig, trio.open_nursery() as nursery:
        slow = {"x-request-id": "t1"}
        await rig.loaded("demo-small")
        rig.answers["POST", "/tokenize"] = "hang"
        found = []

        async def ask():
            body = {"model": "demo-small"}
            found.append(await rig.ask("POST", "/tokenize", body, headers=slow.items()))

        nursery.start_soon(ask)
        await wait_all_tasks_blocked()
        answer = await rig.ask("POST", "/requests/t1/cancel")
        assert answer.json["state"] == "cancelled"
        assert found[0].status == 499


async def test_no_help_while_shutting_down(demo_models, autojump_clock):
    async with api(demo_models) as rig:
        await rig.loaded("demo-small")
        rig.services.draining = True
        answer = await rig.ask("POST", "/tokenize", {"model": "demo-small"})
    assert answer.status == 503
    assert answer.error["code"] == "shutting_down"


async def test_what_only_operators_load_is_not_loaded_for_help(demo_models, autojump_clock):
    async with api(demo_models, scheduler=SchedulerSettings(auto_switch=False)) as rig:
        answer = await rig.ask("POST", "/tokenize", {"model": "demo-small"})
    assert answer.status == 503
    assert answer.error["code"] == "model_not_loaded"


# --- looks into workers --------------------------------------------------------------------

SLOT = {
    "id": 0,
    "id_task": 7,
    "n_ctx": 4096,
    "speculative": False,
    "is_processing": True,
    "n_prompt_tokens": 5,
    "params": {"grammar": "secret", "stop": ["secret"]},
    "next_token": [{"has_next_token": True, "n_decoded": 3, "n_remain": 9, "text": "secret"}],
    "prompt": "secret",
    "generated": "secret",
}


async def test_prompts_in_slots_are_for_admins_only(demo_models, autojump_clock):
    async with api(demo_models) as rig:
        await rig.loaded("demo-small")
        rig.answers["GET", "/slots"] = 200, [], [SLOT]
        user = await rig.ask("GET", "/slots?model=demo-small", key=ALICE)
        admin = await rig.ask("GET", "/slots?model=demo-small&fail_on_no_slot=1")
        assert rig.asked[-1][1] == "/slots?fail_on_no_slot=1"
    assert admin.json == [SLOT]
    assert b"secret" not in user.body
    assert user.json[0]["is_processing"] is True
    assert user.json[0]["next_token"] == [{"has_next_token": True, "n_decoded": 3, "n_remain": 9}]


@pytest.mark.parametrize("said", [b"no json", b"{}", b"[1]"])
async def test_slots_that_cannot_be_read_are_not_passed_on(demo_models, autojump_clock, said):
    async with api(demo_models) as rig:
        await rig.loaded("demo-small")
        rig.answers["GET", "/slots"] = 200, [], said
        answer = await rig.ask("GET", "/slots", key=ALICE)
    assert answer.status == 502
    assert answer.error["code"] == "bad_worker_response"


@pytest.mark.parametrize("path", ["/props", "/slots", "/lora-adapters"])
async def test_a_look_never_loads_a_model(demo_models, autojump_clock, path):
    async with api(demo_models) as rig:
        rig.answers["GET", path] = 200, [], [{"id": 1}]
        off = await rig.ask("GET", f"{path}?model=demo-large", key=ALICE)
        assert off.status == 503
        assert off.error["code"] == "model_not_loaded"
        assert off.headers["x-should-retry"] == "false"  # SDKs would ask again in vain
        assert rig.state("demo-large") == "off"
        await rig.loaded("demo-large")
        assert (await rig.ask("GET", f"{path}?model=demo-large", key=ALICE)).status == 200
        assert (await rig.ask("GET", path, key=ALICE)).status == 200  # the default: the active one
        assert (await rig.ask("GET", f"{path}?model=nope", key=ALICE)).status == 404


async def test_admins_change_slots_and_adapters(demo_models, autojump_clock):
    async with api(demo_models) as rig:
        await rig.loaded("demo-small")
        rig.answers["POST", "/slots/1"] = 200, [], {"id_slot": 1}
        rig.answers["POST", "/lora-adapters"] = 200, [], {"success": True}
        erased = await rig.ask("POST", "/slots/1?action=erase&model=demo-small&evil=1")
        assert erased.json == {"id_slot": 1}
        assert rig.asked[-1][1] == "/slots/1?action=erase"
        scaled = await rig.ask("POST", "/lora-adapters", b'[{"id":0,"scale":0.5}]')
        assert scaled.json == {"success": True}
        assert rig.asked[-1][2] == b'[{"id":0,"scale":0.5}]'
        assert (await rig.ask("POST", "/lora-adapters", b"[")).status == 400
        assert (await rig.ask("POST", "/slots/x?action=erase")).status == 404


async def test_a_look_at_a_hung_worker_ends(demo_models, autojump_clock):
    async with api(demo_models) as rig:
        await rig.loaded("demo-small")
        rig.answers["GET", "/props"] = "hang"
        answer = await rig.ask("GET", "/props")
    assert answer.status == 504
    assert answer.error["code"] == "worker_stalled"


# --- the page ------------------------------------------------------------------------------

PAGE = (
    200,
    [
        (b"content-type", b"text/html"),
        (b"content-encoding", b"gzip"),
        (b"cross-origin-opener-policy", b"same-origin"),
        (b"etag", b'"1"'),
        (b"access-control-allow-origin", b"https://evil.example"),
        (b"connection", b"keep-alive"),
    ],
    b"\x1f\x8bnot really",
)
BROWSER = [("accept-encoding", "gzip, br")]


async def test_the_page_comes_from_the_default_models_worker(demo_models, autojump_clock):
    async with api(demo_models) as rig:
        await rig.loaded("demo-small")
        rig.answers["GET", "/"] = PAGE
        answer = await rig.ask("GET", "/", key=None, headers=BROWSER)
        assert dict(rig.asked[-1][3])[b"Accept-Encoding"] == b"gzip"
        rig.answers["GET", "/"] = 304, [(b"etag", b'"1"')], b""
        known = await rig.ask("GET", "/", headers=[*BROWSER, ("if-none-match", '"1"')])
        assert dict(rig.asked[-1][3])[b"If-None-Match"] == b'"1"'
    assert answer.status == 200
    assert answer.body == PAGE[2]
    assert answer.headers["content-encoding"] == "gzip"
    assert answer.headers["cross-origin-opener-policy"] == "same-origin"
    assert "access-control-allow-origin" not in answer.headers
    assert "connection" not in answer.headers
    assert known.status == 304
    assert "content-length" not in known.headers


@pytest.mark.parametrize("accepted", [None, "", "br", "gzip;q=0", "*;q=0, br"])
async def test_who_takes_no_gzip_gets_the_page_unpacked(demo_models, autojump_clock, accepted):
    """A worker answers 415 to such clients."""
    headers = [] if accepted is None else [("accept-encoding", accepted)]
    page = b"<html>" + b"a long page " * 10_000
    async with api(demo_models) as rig:
        await rig.loaded("demo-small")
        for path in ("/", "/index.html"):
            rig.answers["GET", path] = *PAGE[:2], gzip.compress(page)
            answer = await rig.ask("GET", path, key=None, headers=headers)
            assert dict(rig.asked[-1][3])[b"Accept-Encoding"] == b"gzip"
            assert (answer.status, answer.body) == (200, page)
            assert "content-encoding" not in answer.headers
            assert answer.headers["vary"] == "Accept-Encoding"


@pytest.mark.parametrize("accepted", ["gzip", "deflate, GZIP;q=0.5", "*", "br;q=1.0, *;q=0.1"])
async def test_who_takes_gzip_gets_it_as_it_came(demo_models, autojump_clock, accepted):
    async with api(demo_models) as rig:
        await rig.loaded("demo-small")
        rig.answers["GET", "/"] = PAGE
        answer = await rig.ask("GET", "/", headers=[("accept-encoding", accepted)])
    assert answer.body == PAGE[2]
    assert answer.headers["vary"] == "Accept-Encoding"


@pytest.mark.parametrize("fault", ["broken", "cut", "huge"])
async def test_a_page_that_cannot_be_unpacked_is_none(demo_models, autojump_clock, fault):
    huge = gzip.compress(bytes((32 << 20) + 1), compresslevel=1)
    body = {"broken": PAGE[2], "cut": gzip.compress(b"page")[:-9], "huge": huge}[fault]
    async with api(demo_models) as rig:
        await rig.loaded("demo-small")
        for path in ("/", "/index.html"):
            rig.answers["GET", path] = *PAGE[:2], body
        ours = await rig.ask("GET", "/", key=None)
        file = await rig.ask("GET", "/index.html", key=None)
    assert ours.status == 200
    assert b"<h1>llmd" in ours.body
    assert file.status == 404


@pytest.mark.parametrize("trouble", ["off", "die", "hang", (415, [], b"no gzip"), (404, [], b"")])
async def test_a_page_of_ours_stands_in(demo_models, autojump_clock, trouble):
    async with api(demo_models) as rig:
        if trouble != "off":
            await rig.loaded("demo-small")
            rig.answers["GET", "/"] = trouble
        answer = await rig.ask("GET", "/", key=None)
    assert answer.status == 200
    assert answer.headers["content-type"].startswith("text/html")
    assert b"demo-small" not in answer.body  # what there is, is for those with a key
    assert b"http" not in answer.body
    assert b"<script" not in answer.body


async def test_without_keys_the_page_names_the_models(demo_models):
    async with api(demo_models, keys=()) as rig:
        answer = await rig.ask("GET", "/", key=None)
    assert b"demo-small" in answer.body
    assert b"demo-large" in answer.body


@pytest.mark.parametrize("foreign", [("host", "evil.example"), ("origin", "https://evil.example")])
async def test_without_keys_no_other_site_learns_the_models(demo_models, foreign):
    """By a name of its own for this address, or from a page of its own, as the API is kept."""
    async with api(demo_models, keys=()) as rig:
        answer = await rig.ask("GET", "/", key=None, headers=[foreign])
    assert answer.status == 200
    assert b"demo-" not in answer.body


@pytest.mark.parametrize(
    "path", ["/favicon.ico", "/_app/immutable/assets/bundle.DeU5_J36.css", "/_app/version.json"]
)
async def test_files_of_the_page_are_passed_on(demo_models, autojump_clock, path):
    async with api(demo_models) as rig:
        off = await rig.ask("GET", path, key=None)
        assert off.status == 404
        assert off.error["code"] == "not_found"
        await rig.loaded("demo-small")
        rig.answers["GET", path] = 200, [], b"data"
        assert (await rig.ask("GET", path, key=None)).body == b"data"


@pytest.mark.parametrize(
    "path",
    ["/tools", "/v1/stream/x", "/cors-proxy", "/_app/../slots", "/..css", "/a/b.js", "/_app/.js"],
)
async def test_nothing_else_is_passed_on(demo_models, autojump_clock, path):
    async with api(demo_models) as rig:
        await rig.loaded("demo-small")
        rig.answers["GET", path] = 200, [], b"leak"
        answer = await rig.ask("GET", path)
        assert answer.status == 404
        assert not rig.asked


async def test_the_page_can_be_switched_off(demo_models, autojump_clock):
    async with api(demo_models, server=Server(worker_ui=False)) as rig:
        await rig.loaded("demo-small")
        assert (await rig.ask("GET", "/")).status == 404
        assert (await rig.ask("GET", "/favicon.ico")).status == 404


async def test_a_slow_load_is_waited_for(demo_models, autojump_clock):
    slow = {"demo-small": [Script(load_s=50, lines_s=1)]}
    async with api(demo_models, scripts=slow) as rig:
        rig.answers["POST", "/tokenize"] = TOKENS
        began = trio.current_time()
        assert (await rig.ask("POST", "/tokenize", CHAT)).status == 200
        assert trio.current_time() - began == pytest.approx(50, abs=1)
