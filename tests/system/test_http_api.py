"""The HTTP API of a whole daemon, over real sockets and on real engines; inference is elsewhere."""

from __future__ import annotations

import gzip
import json

import httpx
import openai
import pytest
import trio
from daemon_rig import DEADLINE_S, KEYS, read_answer, running
from prometheus_client.parser import text_string_to_metric_families

from llmd.workers.upstream import UpstreamResponse

pytestmark = pytest.mark.system


@pytest.fixture(autouse=True)
async def deadline():
    with trio.fail_after(DEADLINE_S):
        yield


@pytest.fixture
async def real(runtime_dir, real_engine, demo_models):
    """Two models, of which one fits at a time."""
    models = [demo_models / "demo-small.gguf", demo_models / "demo-large.gguf"]
    async with running(runtime_dir, real_engine, models, key="sk-root", api_keys=KEYS) as llmd:
        yield llmd


@pytest.fixture
async def llmd(runtime_dir, any_real_engine, demo_models):
    models = [demo_models / "demo-small.gguf", demo_models / "demo-large.gguf"]
    async with running(runtime_dir, any_real_engine, models, key="sk-root", api_keys=KEYS) as it:
        yield it


async def direct(llmd, model, method, path, body=None) -> object:
    """Ask the worker itself, past llmd."""
    content = b"" if body is None else json.dumps(body).encode()
    headers = [(b"Content-Type", b"application/json")]
    response: UpstreamResponse = await llmd.worker(model).upstream.request(
        method.encode(), path.encode(), content, headers
    )
    await response.head()
    return json.loads(await response.read(1 << 24))


MESSAGES = {"messages": [{"role": "user", "content": "Hello"}]}
HELP = {
    "/tokenize": {"content": "Hello world", "with_pieces": True},
    "/detokenize": {"tokens": [300, 301, 302]},
    "/apply-template": MESSAGES,
    "/chat/completions/input_tokens": MESSAGES,
    "/v1/chat/completions/input_tokens": MESSAGES,
    "/v1/responses/input_tokens": {"input": "Hello"},
    "/v1/messages/count_tokens": {**MESSAGES, "max_tokens": 1},
}


async def test_helpers_answer_as_the_worker_does(real):
    for path, body in HELP.items():
        answer = await real.call("POST", path, {"model": "demo-large", **body}, key="sk-alice")
        assert answer.status == 200, (path, answer)
        assert answer.json == await direct(real, "demo-large", "POST", path, body), path
        assert answer.headers["x-request-id"].startswith("r-")
    broken = await real.call("POST", "/detokenize", {"model": "demo-large", "tokens": "x"})
    assert broken.status in (400, 500)
    assert broken.json == await direct(real, "demo-large", "POST", "/detokenize", {"tokens": "x"})
    real.assert_nothing_left()


async def test_a_look_into_a_worker(real):
    off = await real.call("GET", "/props?model=demo-small")
    assert (off.status, off.code) == (503, "model_not_loaded")
    switched = await real.call("POST", "/switch-model", {"model": "demo-small", "wait": True})
    assert switched.json["status"] == "ready"
    for path in ("/props", "/lora-adapters"):
        seen = await real.call("GET", path, key="sk-alice")
        assert seen.json == await direct(real, "demo-small", "GET", path)
    slots = (await real.call("GET", "/slots?model=demo-small", key="sk-alice")).json
    assert [slot["is_processing"] for slot in slots] == [False, False]
    assert not any("prompt" in slot for slot in slots)


async def test_models_switch_load_and_go_by_hand(real):
    for model, other in (("demo-small", "demo-large"), ("demo-large", "demo-small")):
        answer = await real.call("POST", "/switch-model", {"model": model, "wait": True})
        assert (answer.status, answer.json["status"]) == (200, "ready")
        listed = (await real.call("GET", "/v1/models")).json["data"]
        assert {m["id"]: m["status"] for m in listed} == {model: "ready", other: "off"}
        said = await real.chat(max_tokens=1)
        assert said.json["model"] == model  # the default is the active one
    gone = await real.call("POST", "/v1/models/demo-large/unload", {"wait": True})
    assert gone.json == {"model": "demo-large", "status": "off", "running": 0}
    loaded = await real.call("POST", "/v1/models/demo-small/load", {"wait": True})
    assert loaded.json["status"] == "ready"
    full = await real.call("POST", "/v1/models/demo-large/load")
    assert (full.status, full.code) == (503, "insufficient_memory")
    stopped = await real.call("POST", "/stop", {"wait": True})
    assert stopped.json["unload"] == ["demo-small"]
    assert (await real.call("GET", "/v1/models/demo-small")).json["status"] == "off"
    assert (await real.chat(max_tokens=1)).status == 200


async def test_the_workers_page_with_its_files(real):
    ours = await real.call("GET", "/", key="")
    assert b"llmd" in ours.body
    await real.call("POST", "/switch-model", {"model": "demo-small", "wait": True})
    page = await real.call("GET", "/", headers=[("accept-encoding", "gzip")])
    assert page.status == 200
    if b"llmd serves" in page.body or b"<h1>llmd" in page.body:
        pytest.skip("this llama-server was built without its page")
    text = page.body if page.body.startswith(b"<") else gzip.decompress(page.body)
    assert b"<html" in text
    plain = await real.call("GET", "/", headers=[("accept-encoding", "identity")])
    assert (plain.status, plain.body) == (200, text)
    assert page.headers["cross-origin-opener-policy"] == "same-origin"
    icon = await real.call("GET", "/favicon.svg", key="", headers=[("accept-encoding", "gzip")])
    assert icon.status == 200
    known = [("accept-encoding", "gzip"), ("if-none-match", page.headers["etag"])]
    assert (await real.call("GET", "/", headers=known)).status == 304


async def test_the_metrics_of_a_worker_and_of_requests(real):
    await real.chat(model="demo-small", max_tokens=2)
    answer = await real.call("GET", "/metrics")
    families = {
        family.name: family for family in text_string_to_metric_families(answer.body.decode())
    }
    done = {
        sample.labels["outcome"]: sample.value
        for sample in families["llmd_requests"].samples
        if sample.labels["model"] == "demo-small"
    }
    assert done["done"] == 1
    theirs = families["llamacpp:requests_processing"].samples
    assert [sample.labels["model"] for sample in theirs] == ["demo-small"]
    assert "llmd_evictions" not in families
    await real.call("POST", "/switch-model", {"model": "demo-large", "wait": True})
    page = (await real.call("GET", "/metrics")).body.decode()
    assert 'llmd_evictions_total{model="demo-small",reason="operator"} 1.0' in page
    assert (await real.call("GET", "/metrics", key="sk-alice")).status == 403


async def test_what_can_never_fit_moves_no_model(runtime_dir, any_real_engine, demo_models):
    models = [demo_models / "demo-small.gguf", demo_models / "demo-large.gguf"]
    limits = {"max_tokens_per_request": 300}
    async with running(runtime_dir, any_real_engine, models, limits=limits) as llmd:
        assert (await llmd.chat(model="demo-small", max_tokens=1)).status == 200
        for asked in ({"max_tokens": 301}, {"max_tokens": 151, "n": 2}, {"max_tokens": 99999}):
            refused = await llmd.chat(model="demo-large", **asked)
            assert refused.status == 400, asked
        assert (await llmd.call("GET", "/v1/models/demo-large")).json["status"] == "off"


# --- over sockets --------------------------------------------------------------------------


async def test_health_over_a_socket(llmd):
    for path in ("/live", "/ready", "/health"):
        answer = await llmd.call("GET", path, key="")
        assert (answer.status, answer.json) == (200, {"status": "ok"})
        head = await llmd.call("HEAD", path, key="")
        assert (head.status, head.body) == (200, b"")
        assert head.headers["content-length"] == answer.headers["content-length"]


async def test_head_has_no_body_elsewhere_either(llmd):
    head = await llmd.call("HEAD", "/v1/models")
    assert (head.status, head.body) == (200, b"")


async def test_encoded_paths_mean_what_they_say(llmd):
    for path in ("/v1/models/demo%2Dsmall", "/v1/models/demo-small.gguf"):
        assert (await llmd.call("GET", path)).json["id"] == "demo-small"
    missing = await llmd.call("GET", "/v1/models/org%2Fname%20x%00%0d")
    assert (missing.status, missing.code) == (404, "model_not_found")
    assert (await llmd.call("GET", "/v1/models/x%0d%0ax-evil:%201")).status == 404


async def test_one_connection_serves_one_request_after_another(llmd):
    async with httpx.AsyncClient(trust_env=False, base_url=llmd.bound.url) as client:
        client.headers["authorization"] = "Bearer sk-root"
        limits = {(await client.get(path)).status_code for path in ("/live", "/v1/models", "/nope")}
        assert limits == {200, 404}
        posted = await client.post("/tokenize", json={"model": "demo-small", "content": "x"})
        assert posted.status_code == 200
        assert (await client.get("/requests")).json()["data"][0]["path"] == "/tokenize"


@pytest.mark.parametrize("framing", ["length", "chunks"])
async def test_a_refused_upload_is_answered_while_it_still_comes(llmd, framing):
    """401 and 413 arrive although the client has not finished its body."""
    stream = await llmd.connect()
    length = {"length": "Content-Length: 99999999", "chunks": "Transfer-Encoding: chunked"}[framing]
    head = f"POST /tokenize HTTP/1.1\r\nHost: 127.0.0.1\r\n{length}\r\n"
    await stream.send_all(head.encode() + b"\r\n")
    answer = await read_answer(stream)
    assert (answer.status, answer.code) == (401, "invalid_api_key")
    assert "x-request-id" in answer.headers
    stream = await llmd.connect()
    await stream.send_all(f"{head}Authorization: Bearer sk-alice\r\n\r\n".encode())
    if framing == "chunks":
        block = b"x" * 65536
        with pytest.raises(trio.BrokenResourceError):  # noqa: PT012
            for _ in range(2000):
                await stream.send_all(b"%x\r\n%b\r\n" % (len(block), block))
        await stream.aclose()
    else:
        answer = await read_answer(stream)
        assert (answer.status, answer.code) == (413, "request_too_large")
    llmd.assert_nothing_left()


async def test_clients_that_leave_a_helper_leave_nothing(llmd):
    await llmd.call("POST", "/switch-model", {"model": "demo-small", "wait": True})
    body = {"model": "demo-small", "content": "word " * 200_000}
    for _ in range(20):
        stream = await llmd.connect()
        await stream.send_all(llmd.raw("/tokenize", body))
        await stream.aclose()
    await llmd.until(lambda: not llmd.handles())
    await llmd.until(lambda: llmd.daemon.http.connections == 0)
    llmd.assert_nothing_left()
    outcomes = {record.outcome for record in llmd.services.registry.records()}
    assert outcomes <= {"abandoned", "done"}


async def test_a_request_is_seen_explained_and_cancelled(llmd):
    await llmd.chat(model="demo-large", max_tokens=1)
    streams = [await llmd.open_chat(model="demo-large", max_tokens=1000) for _ in range(3)]
    await llmd.until(lambda: "queued" in llmd.states() or len(llmd.states()) < 3)
    for request in (await llmd.call("GET", "/requests?state=queued")).json["data"]:
        assert request["position"] == 1
        assert request["why"]["rule"] == "slots_busy"
    cancelled = (await llmd.call("POST", "/requests/cancel-all")).json["cancelled"]
    assert len(cancelled) >= 1
    for stream in streams:
        assert (await read_answer(stream)).status in (200, 499)
    llmd.assert_nothing_left()


async def test_openais_client_lists_models_and_reads_our_errors(llmd):
    def ask() -> None:
        with openai.OpenAI(base_url=f"{llmd.bound.url}/v1", api_key="sk-alice") as client:
            assert [model.id for model in client.models.list()] == ["demo-large", "demo-small"]
            assert client.models.retrieve("demo-small").id == "demo-small"
            with pytest.raises(openai.NotFoundError) as caught:
                client.models.retrieve("nope")
            assert caught.value.code == "model_not_found"
        with openai.OpenAI(base_url=f"{llmd.bound.url}/v1", api_key="wrong") as client:
            with pytest.raises(openai.AuthenticationError) as refused:
                client.models.list()
            assert refused.value.code == "invalid_api_key"

    await trio.to_thread.run_sync(ask)


async def test_each_of_many_prompts_has_the_whole_context(runtime_dir, real_engine, demo_models):
    """What a batch takes in all is no matter of the context; the longest of them is."""
    small, embed = (demo_models / f"demo-{name}.gguf" for name in ("small", "embed"))
    entries = [
        {"name": "m", "path": str(small), "context_size": 512},
        {"name": "e", "path": str(embed), "context_size": 512, "embedding": True},
    ]
    worker = {"max_loaded": 2}
    async with running(runtime_dir, real_engine, entries, worker=worker) as llmd:
        for loaded in (False, True):  # estimated, then counted by the worker
            inputs = ["hello " * 40] * 30
            got = await llmd.call("POST", "/v1/embeddings", {"model": "e", "input": inputs})
            assert (got.status, len(got.json["data"])) == (200, 30), got.body
            body = {"model": "m", "prompt": ["tell " * 60] * 6, "max_tokens": 4}
            got = await llmd.call("POST", "/v1/completions", body)
            assert (got.status, len(got.json["choices"])) == (200, 6), (loaded, got.body)
        inputs[7] = "hello " * 400
        got = await llmd.call("POST", "/v1/embeddings", {"model": "e", "input": inputs})
        assert (got.status, got.code) == (400, "context_length_exceeded")
        assert "of its longest prompt" in got.json["error"]["message"]


@pytest.mark.parametrize(
    ("words", "max_tokens", "param"),
    [(250, 10, "messages"), (150, 400, "messages"), (10, 1020, "max_tokens"), (100, 400, "")],
)
async def test_what_cannot_fit_is_refused_by_an_exact_count_and_never_cut(
    llmd, words, max_tokens, param
):
    """The text has five tokens a word, far more than any estimate from its length."""
    model = {"model": "demo-small", "ignore_eos": True}
    assert (await llmd.chat("warm", max_tokens=1, **model)).status == 200
    got = await llmd.chat("word " * words, max_tokens=max_tokens, **model)
    if param:
        error = json.loads(got.body)["error"]
        assert (got.status, error["code"]) == (400, "context_length_exceeded")
        assert error["param"] == param
        assert llmd.last().state.value == "refused"
    else:
        assert got.status == 200, got.body
        assert json.loads(got.body)["usage"]["completion_tokens"] == max_tokens
