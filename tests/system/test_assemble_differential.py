"""Plain answers put together from a stream against the worker's own, on real engines.

Each request is asked plainly twice and streamed once. Where the plain answers agree (the seed is
fixed, the prompt cache off), the assembled one must be the same JSON, fields in the same order;
ids and clocks aside, which no two answers share.
"""

from __future__ import annotations

import json
import socket
import subprocess
import tempfile
import time
from pathlib import Path

import gguf
import httpx
import pytest

from llmd.api.assemble import Assembler, WorkerError
from llmd.api.schema import KINDS, SchemaLimits, parse
from llmd.api.sse import Splitter

pytestmark = pytest.mark.system

CHAT, BARE_CHAT = "/v1/chat/completions", "/chat/completions"
TEXT, NATIVE = "/v1/completions", "/completion"
SPEAK = [{"role": "user", "content": "Tell me of the river."}]
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "get_weather",
            "parameters": {
                "type": "object",
                "properties": {
                    "city": {"enum": ["Rome", "Oslo"]},
                    "days": {"type": "integer"},
                },
                "required": ["city", "days"],
            },
        },
    },
    {
        "type": "function",
        "function": {"name": "ping", "parameters": {"type": "object", "properties": {}}},
    },
]
PERSON = {
    "type": "object",
    "properties": {"name": {"type": "string", "maxLength": 12}, "age": {"type": "integer"}},
    "required": ["name", "age"],
}
SCHEMA = {"type": "json_schema", "json_schema": {"name": "person", "schema": PERSON}}
# the demo models have a token for each of their bytes and none for the characters
CHARACTERS = 'root ::= "€é🦙€"'
END, END_OF_TURN = "</s>", "<|im_end|>"


class Worker:
    """One engine on one model, and what it answers."""

    def __init__(self, client, model):
        self.client = client
        field = gguf.GGUFReader(model).fields["tokenizer.ggml.tokens"]
        self.ids = {bytes(field.parts[at]).decode(): number for number, at in enumerate(field.data)}

    def named(self, request):
        """Put ids for the names of tokens that have no text of their own."""
        biases = [[self.ids[token], bias] for token, bias in request.get("logit_bias", ())]
        return {**request, "logit_bias": biases} if biases else request

    def send(self, path, body):
        response = self.client.post(
            path, content=body, headers={"content-type": "application/json"}
        )
        return response.status_code, response.content

    def plain(self, path, request):
        status, body = self.send(path, json.dumps(request).encode())
        return status, json.loads(body)

    def assembled(self, path, request):
        """Ask as llmd does: streamed, and put together."""
        kind = KINDS[path]
        parsed = parse(kind, json.dumps(request).encode(), SchemaLimits())
        assert parsed.gathers
        status, data = self.send(path, parsed.upstream_body(force_stream=True))
        if status != 200:
            return status, json.loads(data)
        splitter, assembler = Splitter(parsed.choices), Assembler(kind)
        size = 1 + len(data) % 300
        try:
            for start in range(0, len(data), size):
                assembler.feed(splitter.feed(data[start : start + size]))
        except WorkerError as error:
            return error.status, json.loads(error.body)
        assert splitter.finished
        answer = json.loads(assembler.result())
        check_usage(splitter.usage(), answer)
        return 200, answer

    def compare(self, path, request):
        """Assert that the assembled answer is the plain one; return it, or None if none is sure."""
        request = self.named(request)
        first, second = (clean(self.plain(path, request)) for _ in range(2))
        if first != second:
            return None
        assembled = clean(self.assembled(path, request))
        assert assembled == first, request
        assert json.dumps(assembled) == json.dumps(first), "the order of fields differs"
        return first[1]


def clean(answer):
    """Take out what no two answers share: ids, clocks, and which slot it was."""
    status, body = answer
    return status, _clean(body)


def _clean(value):
    if isinstance(value, list):
        return [_clean(item) for item in value]
    if not isinstance(value, dict):
        return value
    result = {}
    for name, item in value.items():
        if name in ("created", "id_slot") or (name == "id" and isinstance(item, str)):
            result[name] = "-"
        elif name == "timings":
            result[name] = {key: v if key.endswith("_n") else "-" for key, v in item.items()}
        else:
            result[name] = _clean(item)
    return result


def check_usage(usage, answer):
    assert usage.exact
    if isinstance(answer, dict) and "usage" in answer:
        several = len(answer["choices"]) > 1
        if not several:
            assert usage.prompt_tokens == answer["usage"]["prompt_tokens"]
            assert usage.completion_tokens == answer["usage"]["completion_tokens"]
        assert usage.completion_tokens >= answer["usage"]["completion_tokens"]
    else:
        sequences = answer if isinstance(answer, list) else [answer]
        total = sum(sequence["tokens_predicted"] for sequence in sequences)
        assert usage.completion_tokens == total


@pytest.fixture(scope="module")
def worker(real_engine, demo_models):
    with tempfile.TemporaryDirectory(prefix="llmd-") as directory:
        address = Path(directory) / "w.sock"
        spec = real_engine.spec(demo_models / "demo-small.gguf", address, parallel=4)
        with (Path(directory) / "log").open("wb") as log:
            process = subprocess.Popen(
                spec.argv, env=spec.env, stdin=subprocess.PIPE, stdout=log, stderr=log
            )
            # llama-server closes a connection after an event stream
            fresh = httpx.Limits(max_keepalive_connections=0)
            transport = httpx.HTTPTransport(uds=str(address), limits=fresh)
            try:
                with httpx.Client(
                    transport=transport, base_url="http://worker", timeout=30
                ) as client:
                    until_ready(client, process, address)
                    yield Worker(client, demo_models / "demo-small.gguf")
            finally:
                process.terminate()
                process.stdin.close()  # which it waits for
                process.wait(10)


def until_ready(client, process, address):
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline and process.poll() is None:
        # httpx leaks its socket when a Unix connect fails, so it is not asked before it can work
        with socket.socket(socket.AF_UNIX) as probe:
            listening = probe.connect_ex(str(address)) == 0
        if listening and client.get("/health").is_success:
            return
        time.sleep(0.02)
    pytest.fail("the engine did not become ready")


CHATS = {
    "nothing else": {},
    "two": {"n": 2},
    "three": {"n": 3},
    "stop words": {"stop": ["fox", "lantern"]},
    "a stop word": {"stop": " the"},
    "no stop": {"stop": []},
    "schema": {"response_format": SCHEMA, "max_tokens": 200},
    "schema, cut": {"response_format": SCHEMA, "max_tokens": 9},
    "any json": {"response_format": {"type": "json_object"}, "max_tokens": 200},
    "schema, two": {"response_format": SCHEMA, "max_tokens": 200, "n": 2},
    "grammar": {"grammar": 'root ::= "yes" | "no" | "perhaps"'},
    "tools required": {"tools": TOOLS, "tool_choice": "required", "max_tokens": 300},
    "tools": {"tools": TOOLS, "max_tokens": 300},
    "tools, cut": {"tools": TOOLS, "max_tokens": 36},
    "tools, two": {"tools": TOOLS, "tool_choice": "required", "max_tokens": 300, "n": 2},
    "tools, parallel": {"tools": TOOLS, "parallel_tool_calls": True, "max_tokens": 300},
    "tools, none": {"tools": TOOLS, "tool_choice": "none"},
    "tools, no reasoning": {"tools": TOOLS, "reasoning_format": "none", "max_tokens": 300},
    "sampling": {"min_p": 0.1, "top_k": 20, "top_p": 0.9, "repeat_penalty": 1.1},
    "penalties": {"presence_penalty": 0.5, "frequency_penalty": 0.5},
    "characters of several tokens": {"grammar": CHARACTERS},
    "turn ended": {"logit_bias": [[END_OF_TURN, 100]]},
    "turn ended later": {"logit_bias": [[END, 12.5]], "max_tokens": 200},
    "per-token timings": {"timings_per_token": True},
    "progress": {"return_progress": True},
    "nothing generated": {"max_completion_tokens": -1, "n_predict": 5},
    "n_predict wins": {"n_predict": 3, "max_tokens": 30},
    "text parts": {"messages": [{"role": "user", "content": [{"type": "text", "text": "hi"}]}]},
    "system": {"messages": [{"role": "system", "content": "Be kind."}, *SPEAK]},
    "bad response_format": {"response_format": {"type": "nope"}},
    "bad tool_choice": {"tools": TOOLS, "tool_choice": "nonsense"},
    "bad grammar": {"grammar": "root ::= ("},
    "bad schema": {"response_format": {**SCHEMA, "json_schema": {"schema": {"type": "nope"}}}},
    "too many answers": {"n": 50},
    "too long": {"messages": [{"role": "user", "content": "river " * 3000}]},
    "no content": {"messages": [{"role": "user"}]},
    "image without projector": {
        "messages": [
            {
                "role": "user",
                "content": [{"type": "image_url", "image_url": {"url": "data:image/png;base64,"}}],
            }
        ]
    },
}


@pytest.mark.parametrize("temperature", [0, 0.8])
@pytest.mark.parametrize("name", CHATS)
def test_chat(worker, name, temperature):
    request = {
        "messages": SPEAK,
        "max_tokens": 40,
        "seed": 5,
        "temperature": temperature,
        "cache_prompt": False,
        **CHATS[name],
    }
    answer = worker.compare(CHAT, request)
    if answer is None:
        pytest.skip("two plain answers differed")
    if name == "tools required":
        (choice,) = answer["choices"]
        assert choice["finish_reason"] == "tool_calls"
        assert json.loads(choice["message"]["tool_calls"][0]["function"]["arguments"]) is not None


def test_several_tool_calls_in_one_answer(worker):
    found = 0
    for seed in range(12):
        request = {
            "messages": SPEAK,
            "tools": TOOLS,
            "parallel_tool_calls": True,
            "tool_choice": "required",
            "max_tokens": 300,
            "temperature": 1.5,
            "seed": seed,
            "cache_prompt": False,
            "logit_bias": [[END, False], [END_OF_TURN, False]],
        }
        answer = worker.compare(BARE_CHAT, request)
        if answer is not None:
            found = max(found, len(answer["choices"][0]["message"].get("tool_calls", ())))
    assert found > 1


TEXTS = {
    "nothing else": {},
    "one token": {"max_tokens": 2},
    "two": {"n": 2},
    "stop words": {"stop": ["fox", "lantern"]},
    "probabilities": {"logprobs": 3},
    "probabilities, native": {"n_probs": 2},
    "probabilities after sampling": {"n_probs": 2, "post_sampling_probs": True},
    "probabilities, two": {"logprobs": 2, "n": 2},
    "probabilities, ended": {"n_probs": 2, "logit_bias": [[END, 12.5]], "max_tokens": 200},
    "prompts": {"prompt": ["One", "The old", "Every"]},
    "prompts, two each": {"prompt": ["One", "Every"], "n": 2},
    "token ids": {"prompt": [300, 301, 302]},
    "token ids, several": {"prompt": [[300, 301], [302]]},
    "mixed": {"prompt": [300, "abc"]},
    "an object": {"prompt": {"prompt_string": "abc"}},
    "empty": {"prompt": ""},
    "unicode": {"prompt": "grüße 日本語 🦙"},
    "echo": {"echo": True},
    "suffix": {"suffix": "x"},
    "best_of": {"best_of": 2},
    "characters of several tokens": {"grammar": CHARACTERS},
    "ended": {"logit_bias": [[END, 100]]},
    "grammar": {"grammar": 'root ::= "yes" | "no" | "perhaps"'},
    "schema": {"json_schema": PERSON, "max_tokens": 200},
    "per-token timings": {"timings_per_token": True},
    "progress": {"return_progress": True},
    "penalties": {"presence_penalty": 0.5, "frequency_penalty": 0.5},
    "nothing generated": {"n_predict": 0, "prompt": "a " * 700},
    "bad grammar": {"grammar": "root ::= ("},
    "too many answers": {"n": 50},
    "too long": {"prompt": "river " * 3000},
    "one of several too long": {"prompt": ["a", "river " * 3000]},
    "bad sampler": {"dry_sequence_breakers": []},
}


@pytest.mark.parametrize("temperature", [0, 0.8])
@pytest.mark.parametrize("name", TEXTS)
@pytest.mark.parametrize("path", [TEXT, NATIVE])
def test_completion(worker, path, name, temperature):
    request = {
        "prompt": "Once upon a time",
        "max_tokens": 40,
        "seed": 5,
        "temperature": temperature,
        "cache_prompt": False,
        **TEXTS[name],
    }
    if worker.compare(path, request) is None:
        pytest.skip("two plain answers differed")


def test_half_a_character_at_the_end_of_a_native_answer(worker):
    request = {"prompt": "Price:", "temperature": 0, "cache_prompt": False, "grammar": CHARACTERS}
    for tokens, content in ((2, "\ufffd"), (3, "€"), (4, "€\ufffd"), (5, "€é"), (8, "€é\ufffd")):
        answer = worker.compare(NATIVE, {**request, "max_tokens": tokens})
        assert answer["content"] == content


def test_prompt_cache_and_plain_order_of_sequences(worker):
    worker.plain(TEXT, {"prompt": "Once upon a time", "max_tokens": 4})
    request = {"prompt": ["a", "b", "c", "d"], "max_tokens": 5, "temperature": 0}
    status, answer = worker.assembled(TEXT, request)
    assert status == 200
    assert [choice["index"] for choice in answer["choices"]] == [0, 1, 2, 3]
    status, answer = worker.assembled(NATIVE, request)
    assert [sequence["index"] for sequence in answer] == [0, 1, 2, 3]


# --- what is not the same, and no more than this ------------------------------------------


def test_text_held_back_for_a_stop_word_is_all_that_is_missing(worker):
    """The worker holds back what may become a stop word, and forgets it at the token limit."""
    request = {
        "prompt": "Once upon a time",
        "max_tokens": 12,
        "temperature": 0,
        "seed": 5,
        "cache_prompt": False,
    }
    text = worker.plain(TEXT, request)[1]["choices"][0]["text"]
    request["stop"] = [text[-3:] + "#"]
    _, plain = worker.plain(TEXT, request)
    _, assembled = worker.assembled(TEXT, request)
    held = plain["choices"][0]["text"].removeprefix(assembled["choices"][0].pop("text"))
    assert held
    assert request["stop"][0].removesuffix("#") in held
    del plain["choices"][0]["text"]
    assert _clean(assembled) == _clean(plain)


def test_a_tool_call_cut_before_its_name_is_all_that_is_missing(worker):
    """The worker streams nothing of it, and its plain answer has it as text."""
    request = {
        "messages": SPEAK,
        "tools": TOOLS,
        "tool_choice": "required",
        "max_tokens": 12,
        "temperature": 0,
        "seed": 5,
        "cache_prompt": False,
    }
    _, plain = worker.plain(CHAT, request)
    _, assembled = worker.assembled(CHAT, request)
    (choice,) = assembled["choices"]
    if plain["choices"][0]["message"].pop("content") != "":
        assert choice["finish_reason"] == "length"
        assert choice["message"]["content"] == ""
    del choice["message"]["content"]
    assert _clean(assembled) == _clean(plain)


# --- what goes plain ------------------------------------------------------------------------

WHY_PLAIN = [
    # (path, fields, what the stream would not tell)
    (CHAT, {"logprobs": True, "logit_bias": [[END_OF_TURN, 100]]}, "the end of turn has no event"),
    (CHAT, {"logprobs": True, "tools": TOOLS}, "the worker refuses"),
    (BARE_CHAT, {"n_probs": 2, "logit_bias": [[END_OF_TURN, 100]]}, "the end of turn has no event"),
    (CHAT, {"verbose": True}, "the raw text"),
    (TEXT, {"verbose": True}, "the whole of `__verbose`"),
    (TEXT, {"logprobs": 2, "stop": [" the", " a", " that", " each"]}, "tokens of the stop word"),
    (NATIVE, {"return_tokens": True}, "only tokens with an event"),
    (NATIVE, {"response_fields": ["content", "stop_type"]}, "another shape"),
]


@pytest.mark.parametrize(("path", "fields", "reason"), WHY_PLAIN)
def test_requests_that_a_stream_could_not_answer_are_not_gathered(worker, path, fields, reason):
    request = {"max_tokens": 40, "temperature": 0, "cache_prompt": False, **fields}
    if path in (CHAT, BARE_CHAT):
        request["messages"] = SPEAK
    else:
        request["prompt"] = "Once upon a time"
    parsed = parse(KINDS[path], json.dumps(request).encode(), SchemaLimits())
    assert not parsed.gathers, reason
    assert parsed.upstream_body(force_stream=False) == json.dumps(request).encode()
    assert worker.plain(path, worker.named(request))[0] == 200
