"""The demo models on real engines: whatever a client may ask of a chat model works on them.

One server a model and engine; every request has a deadline, and no test depends on another.
"""

from __future__ import annotations

import json
import socket
import subprocess
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from llmd.models.demo import LARGE, SMALL, Shape, write_demo_models, write_model
from llmd.models.gguf import read_header

pytestmark = pytest.mark.system

PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string"},
        "age": {"type": "integer"},
        "tags": {"type": "array", "items": {"type": "string"}},
        "home": {"type": "object", "properties": {"city": {"type": "string"}}},
        "kind": {"enum": ["cat", "dog"]},
        "tame": {"type": "boolean"},
        "weight": {"type": "number"},
        "owner": {"type": ["string", "null"]},
    },
    "required": ["name", "age", "tags", "kind", "tame", "weight", "owner"],
}
WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather of a city",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string"}, "days": {"type": "integer"}},
            "required": ["city", "days"],
        },
    },
}


@contextmanager
def serving(engine, model, **settings):
    """Run an engine on a model; yields an HTTP client of it."""
    with tempfile.TemporaryDirectory(prefix="llmd-") as directory:
        address = Path(directory) / "w.sock"
        spec = engine.spec(model, address, **settings)
        with (Path(directory) / "log").open("w+b") as log:
            process = subprocess.Popen(
                spec.argv, env=spec.env, stdin=subprocess.PIPE, stdout=log, stderr=log
            )
            try:
                until(lambda: listens(address), process, log)
                # llama-server closes a connection after an event stream, and now and then anyway
                fresh = httpx.Limits(max_keepalive_connections=0)
                transport = httpx.HTTPTransport(uds=str(address), limits=fresh)
                with httpx.Client(
                    transport=transport, base_url="http://worker", timeout=30
                ) as client:
                    until(lambda: client.get("/health").is_success, process, log)
                    yield client
            finally:
                process.terminate()
                process.stdin.close()  # which it waits for
                process.wait(10)


def until(true, process, log):
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline and process.poll() is None:
        if true():
            return
        time.sleep(0.01)
    log.seek(0)
    pytest.fail(f"not ready: {log.read()[-2000:]!r}")


def listens(path):
    # httpx leaves its socket open when it cannot connect
    with socket.socket(socket.AF_UNIX) as probe:
        return probe.connect_ex(str(path)) == 0


@pytest.fixture(scope="module", params=["demo-small", "demo-large"])
def server(request, real_engine, demo_models):
    model = demo_models / f"{request.param}.gguf"
    with serving(real_engine, model, context_tokens=2048) as client:
        yield client


@pytest.fixture(scope="module")
def embedder(real_engine, demo_models):
    with serving(real_engine, demo_models / "demo-embed.gguf", embedding=True) as client:
        yield client


def chat(server, text="Tell me of the river.", **fields):
    body = {"messages": [{"role": "user", "content": text}], **fields}
    response = server.post("/v1/chat/completions", json=body)
    assert response.status_code == 200, response.text
    return response.json()


def is_plain(text):
    return text.isascii() and text.isprintable()


# --- answers -------------------------------------------------------------------------------


def test_answers_are_printable_and_as_long_as_asked(server):
    answers = set()
    for seed in range(8):
        answer = chat(server, max_tokens=200, seed=seed)
        (choice,) = answer["choices"]
        assert choice["finish_reason"] == "length"
        assert answer["usage"]["completion_tokens"] == 200
        content = choice["message"]["content"]
        assert is_plain(content)
        assert len(content.split()) > 100
        answers.add(content)
    assert len(answers) == 8


def test_the_same_seed_gives_the_same_answer(server):
    first, second = (chat(server, max_tokens=50, seed=7, cache_prompt=False) for _ in range(2))
    assert first["choices"][0]["message"] == second["choices"][0]["message"]


def test_the_prompt_matters(server):
    answers = {
        chat(server, text, max_tokens=60, temperature=0)["choices"][0]["message"]["content"]
        for text in ("Hello.", "What is a queue?", "x" * 300, "Why?")
    }
    assert len(answers) > 1


def test_several_answers_at_once(server):
    answer = chat(server, n=2, max_tokens=20)
    contents = [choice["message"]["content"] for choice in answer["choices"]]
    assert len(contents) == 2
    assert all(map(is_plain, contents))


def test_long_answers_fit(server):
    answer = chat(server, max_tokens=1900, seed=1)
    assert answer["usage"]["completion_tokens"] == 1900


def test_completions_go_on_with_a_text(server):
    for prompt in ("Once upon a time", "", "{", "grüße 日本語 🦙", "\n"):
        response = server.post("/v1/completions", json={"prompt": prompt, "max_tokens": 60})
        assert response.status_code == 200, response.text
        (choice,) = response.json()["choices"]
        assert choice["finish_reason"] == "length"
        assert is_plain(choice["text"])


def test_streams_carry_one_token_an_event(server):
    body = {
        "messages": [{"role": "user", "content": "Hello"}],
        "max_tokens": 30,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    with server.stream("POST", "/v1/chat/completions", json=body) as response:
        lines = [line for line in response.iter_lines() if line.startswith("data: ")]
    assert lines.pop() == "data: [DONE]"
    events = [json.loads(line.removeprefix("data: ")) for line in lines]
    deltas = [e["choices"][0]["delta"].get("content") for e in events if e["choices"]]
    assert len([text for text in deltas if text]) == 30
    assert is_plain("".join(filter(None, deltas)))
    assert events[-1]["usage"]["completion_tokens"] == 30


def test_logprobs(server):
    (choice,) = chat(server, max_tokens=5, logprobs=True, top_logprobs=3)["choices"]
    tokens = choice["logprobs"]["content"]
    assert len(tokens) == 5
    assert all(len(token["top_logprobs"]) == 3 for token in tokens)
    assert "".join(token["token"] for token in tokens) == choice["message"]["content"]


def test_stop_words_end_an_answer(server):
    (choice,) = chat(server, max_tokens=500, stop=["."])["choices"]
    assert choice["finish_reason"] == "stop"


# --- grammars and tools --------------------------------------------------------------------


def test_answers_follow_a_schema(server):
    wanted = {"type": "json_schema", "json_schema": {"name": "person", "schema": PERSON}}
    for seed in range(8):
        (choice,) = chat(server, max_tokens=1000, response_format=wanted, seed=seed)["choices"]
        assert choice["finish_reason"] == "stop"
        person = json.loads(choice["message"]["content"])
        assert set(PERSON["required"]) <= set(person)
        assert isinstance(person["name"], str)
        assert isinstance(person["age"], int)
        assert person["kind"] in ("cat", "dog")


def test_answers_are_json_when_asked(server):
    for seed in range(8):
        (choice,) = chat(
            server, max_tokens=1000, response_format={"type": "json_object"}, seed=seed
        )["choices"]
        assert choice["finish_reason"] == "stop"
        assert isinstance(json.loads(choice["message"]["content"]), dict)


@pytest.mark.parametrize("choice", ["required", "auto"])
def test_tools_are_called(server, choice):
    for seed in range(5):
        answer = chat(server, max_tokens=400, tools=[WEATHER], tool_choice=choice, seed=seed)
        (first,) = answer["choices"]
        assert first["finish_reason"] == "tool_calls", first
        call = first["message"]["tool_calls"][0]["function"]
        assert call["name"] == "get_weather"
        arguments = json.loads(call["arguments"])
        assert isinstance(arguments["city"], str)
        assert isinstance(arguments["days"], int)


def test_tool_calls_are_streamed(server):
    body = {
        "messages": [{"role": "user", "content": "Weather?"}],
        "tools": [WEATHER],
        "tool_choice": "required",
        "max_tokens": 400,
        "stream": True,
    }
    arguments = ""
    with server.stream("POST", "/v1/chat/completions", json=body) as response:
        for line in response.iter_lines():
            if line.startswith("data: {"):
                event = json.loads(line.removeprefix("data: "))
                for call in event["choices"][0]["delta"].get("tool_calls", []):
                    arguments += call["function"].get("arguments", "")
    assert set(json.loads(arguments)) == {"city", "days"}


def test_the_result_of_a_call_is_answered_in_words(server):
    call = {
        "id": "c1",
        "type": "function",
        "function": {"name": "get_weather", "arguments": '{"city":"Rome","days":1}'},
    }
    body = {
        "messages": [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": "Weather in Rome?"},
            {"role": "assistant", "content": None, "tool_calls": [call]},
            {"role": "tool", "tool_call_id": "c1", "content": "sunny"},
        ],
        "tools": [WEATHER],
        "max_tokens": 40,
    }
    prompt = server.post("/apply-template", json=body).json()["prompt"]
    assert "Be brief." in prompt
    assert '<tool_call>{"name": "get_weather", "arguments": {"city"' in prompt
    assert "<tool_response>\nsunny\n</tool_response>" in prompt
    response = server.post("/v1/chat/completions", json=body)
    (choice,) = response.json()["choices"]
    assert choice["finish_reason"] == "length"
    assert is_plain(choice["message"]["content"])
    assert choice["message"]["content"]


# --- tokens, embeddings, sizes -------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    ["Hello, world!", "".join(map(chr, range(32, 127))), " two  spaces ", "a\r\n\tb\0c",
     "grüße, 日本語, 🦙 ½", "<tool_call> <|im_end|>", ""],
)  # fmt: skip
def test_text_survives_tokens(server, text):
    tokens = server.post("/tokenize", json={"content": text}).json()["tokens"]
    back = server.post("/detokenize", json={"tokens": tokens}).json()["content"]
    assert back == text


def test_what_the_header_says_is_what_the_engine_sees(server):
    props = server.get("/props").json()
    header = read_header(Path(props["model_path"]))
    assert props["default_generation_settings"]["n_ctx"] == 2048
    assert "<tool_call>" in props["chat_template"]
    (meta,) = (entry["meta"] for entry in server.get("/v1/models").json()["data"])
    assert meta["n_ctx_train"] == header.context_length
    assert meta["n_params"] == header.parameters
    assert meta["n_vocab"] == header.vocab_size
    assert meta["size"] == header.tensor_bytes


def test_embeddings(embedder):
    texts = ["The fox.", "The fox.", "Something quite different."]
    response = embedder.post("/v1/embeddings", json={"input": texts})
    assert response.status_code == 200, response.text
    first, same, other = (entry["embedding"] for entry in response.json()["data"])
    assert len(first) == 64
    assert first == pytest.approx(same, abs=1e-5)
    assert first != pytest.approx(other, abs=1e-2)


# --- the files -----------------------------------------------------------------------------


def test_files_are_written_once_and_always_the_same(tmp_path):
    first = write_demo_models(tmp_path / "a", embed=True)
    assert [path.name for path in first] == [
        "demo-small.gguf", "demo-large.gguf", "demo-embed.gguf",
    ]  # fmt: skip
    again = write_demo_models(tmp_path / "b", embed=True)
    assert [path.read_bytes() for path in first] == [path.read_bytes() for path in again]
    before = [path.stat() for path in first]
    assert write_demo_models(tmp_path / "a", embed=True) == first
    assert [path.stat() for path in first] == before
    assert sorted(path.name for path in (tmp_path / "a").iterdir()) == sorted(
        path.name for path in first
    )


@pytest.mark.parametrize("damage", [b"", b"GGUF", None])
def test_damaged_and_foreign_files_are_replaced(tmp_path, damage):
    small, _large = write_demo_models(tmp_path)
    whole = small.read_bytes()
    small.write_bytes(whole[:-10] if damage is None else damage)
    write_demo_models(tmp_path)
    assert small.read_bytes() == whole


def test_a_model_of_another_size_under_the_same_name_is_replaced(tmp_path):
    path = write_model(tmp_path, SMALL)
    wider = Shape(SMALL.name, 1024, width=128, layers=1, feed_forward=64, heads=2, kv_heads=1)
    assert write_model(tmp_path, wider) == path
    assert read_header(path).embedding_length == 128


def test_nothing_is_left_behind_when_writing_fails(tmp_path, monkeypatch):
    monkeypatch.setattr(Path, "replace", _refuse)
    with pytest.raises(OSError, match="no"):
        write_model(tmp_path, LARGE)
    assert list(tmp_path.iterdir()) == []


def _refuse(*_):
    raise OSError("no")
