"""What goes to the worker: the client's own bytes, defaults filled in, and a stream if gathered."""

from __future__ import annotations

import json

import pytest

from llmd.api.schema import KINDS, NEVER_DEFAULTS, SchemaLimits, parse
from llmd.api.schema.parsed import ONE_BATCH_BYTES

CHAT, BARE_CHAT = "/v1/chat/completions", "/chat/completions"
TEXT, NATIVE, EMBED = "/v1/completions", "/completion", "/v1/embeddings"
HI = [{"role": "user", "content": "hi"}]


def read(path, **fields):
    body = json.dumps(fields, indent=1).encode() + b"\n"
    return parse(KINDS[path], body, SchemaLimits())


def chat(path=CHAT, **fields):
    return read(path, messages=HI, **fields)


def native(**fields):
    return read(NATIVE, prompt="hi", **fields)


def sent(parsed, *, force_stream):
    return json.loads(parsed.upstream_body(force_stream=force_stream))


# --- streams -------------------------------------------------------------------------------


def test_nothing_is_touched_without_need():
    for parsed in (chat(), chat(stream=True), native(n_predict=3), read(EMBED, input="a")):
        assert parsed.upstream_body(force_stream=False) is parsed.body
    streamed = chat(stream=True)
    assert streamed.upstream_body(force_stream=True) is streamed.body


def test_a_chat_is_streamed_with_usage():
    parsed = chat(temperature=0.5)
    body = parsed.upstream_body(force_stream=True)
    # the client's own bytes, and what is added behind them
    assert body.startswith(parsed.body.rstrip()[:-1])
    assert json.loads(body) == {
        "messages": HI,
        "temperature": 0.5,
        "stream": True,
        "stream_options": {"include_usage": True},
    }


def test_completions_tell_their_usage_anyway():
    assert sent(native(), force_stream=True) == {"prompt": "hi", "stream": True}
    parsed = read(TEXT, prompt="hi")
    assert sent(parsed, force_stream=True) == {"prompt": "hi", "stream": True}


@pytest.mark.parametrize("said", [False, None])
def test_what_the_client_said_of_streams_is_replaced_not_repeated(said):
    for path in (CHAT, BARE_CHAT):
        parsed = chat(path, stream=said, stream_options=None)
        body = parsed.upstream_body(force_stream=True)
        assert body.count(b'"stream"') == 1
        assert body.count(b'"stream_options"') == 1
        assert json.loads(body)["stream"] is True
    spelled = b'{"prompt": "a", "str\\u0065am": false}'
    body = parse(KINDS[NATIVE], spelled, SchemaLimits()).upstream_body(force_stream=True)
    assert json.loads(body) == {"prompt": "a", "stream": True}


# --- defaults ------------------------------------------------------------------------------


def test_absent_fields_are_filled_in_the_model_before_the_config():
    parsed = chat(top_p=0.5)
    parsed.apply_defaults({"temperature": 0.6, "top_p": 0.1}, {"temperature": 1, "top_k": 20})
    assert sent(parsed, force_stream=False) == {
        "messages": HI,
        "top_p": 0.5,
        "temperature": 0.6,
        "top_k": 20,
    }


def test_null_is_absent():
    parsed = chat(temperature=None)
    parsed.apply_defaults({"temperature": 0.6})
    body = parsed.upstream_body(force_stream=False)
    assert body.count(b"temperature") == 1
    assert json.loads(body)["temperature"] == 0.6


@pytest.mark.parametrize(
    ("fields", "defaults", "added"),
    [
        ({"max_completion_tokens": 5}, {"max_tokens": 9}, set()),
        ({"n_predict": 5}, {"max_tokens": 9}, set()),
        ({"max_tokens": None}, {"max_tokens": 9}, {"max_tokens"}),
        ({"n": 2}, {"n_cmpl": 3}, set()),
        ({"response_format": {"type": "text"}}, {"grammar": "root ::= 'a'"}, set()),
        ({}, {"max_tokens": 9, "n_predict": 8}, {"max_tokens"}),
    ],
)
def test_a_field_is_there_under_any_of_its_names(fields, defaults, added):
    parsed = chat(**fields)
    parsed.apply_defaults(defaults)
    body = sent(parsed, force_stream=False)
    assert {name for name in body if body[name] == defaults.get(name)} == added


def test_defaults_count():
    parsed = chat()
    parsed.apply_defaults({"max_tokens": 9, "n": 2})
    assert (parsed.max_tokens, parsed.sequences) == (9, 2)


def test_defaults_never_change_what_a_request_is():
    parsed = chat()
    parsed.apply_defaults(dict.fromkeys(NEVER_DEFAULTS, "x"))
    assert parsed.upstream_body(force_stream=False) == parsed.body


def test_embeddings_take_no_defaults():
    parsed = read(EMBED, input="a")
    parsed.apply_defaults({"temperature": 1})
    assert parsed.upstream_body(force_stream=False) is parsed.body


def test_defaults_and_stream_together():
    parsed = chat()
    parsed.apply_defaults({"temperature": 0.6}, {})
    assert sent(parsed, force_stream=True) == {
        "messages": HI,
        "temperature": 0.6,
        "stream": True,
        "stream_options": {"include_usage": True},
    }


# --- what is gathered ----------------------------------------------------------------------


def test_plain_requests_that_run_for_a_while_are_gathered():
    assert chat().gathers
    assert chat(max_tokens=2, stop=["a"], tools=[], response_format={"type": "text"}).gathers
    assert chat(logprobs=False, n_probs=0, verbose=False, reasoning_format="auto").gathers
    assert read(TEXT, prompt="a", logprobs=3).gathers
    assert read(TEXT, prompt="a", logprobs=0, stop="x").gathers
    assert native(n_probs=2, return_tokens=False, response_fields=[]).gathers


@pytest.mark.parametrize(
    "parsed",
    [
        chat(stream=True),
        chat(logprobs=True),
        chat(BARE_CHAT, logprobs=3),
        chat(n_probs=1),
        chat(verbose=True),
        chat(n_indent=2),
        chat(reasoning_format="deepseek-legacy"),
        chat(continue_final_message=True),
        read(CHAT, messages=[*HI, {"role": "assistant", "content": "The"}]),
        read(TEXT, prompt="a", verbose=True),
        read(TEXT, prompt="a", logprobs=1, stop="x"),
        read(TEXT, prompt="a", n_probs=1, stop=["x"]),
        native(n_probs=1, stop=["x"]),
        native(return_tokens=True),
        native(response_fields=["content"]),
        native(n_indent=1),
        read(EMBED, input="a"),
    ],
)
def test_what_a_stream_does_not_tell_is_asked_for_plainly(parsed):
    assert not parsed.gathers


def test_defaults_decide_too():
    parsed = chat()
    parsed.apply_defaults({"n_probs": 2})
    assert not parsed.gathers
    parsed = read(TEXT, prompt="a", logprobs=1)
    assert parsed.gathers
    parsed.apply_defaults({"stop": ["x"]})
    assert not parsed.gathers
    parsed = chat()
    parsed.apply_defaults({"max_tokens": 1})
    assert not parsed.gathers


def test_one_batch_is_not_worth_a_stream():
    assert not chat(max_tokens=1).gathers
    assert not native(n_predict=0).gathers
    assert chat(max_tokens=2).gathers
    assert chat(max_tokens=1, n=2).gathers
    assert read(NATIVE, prompt=["a", "b"], max_tokens=1).gathers
    assert read(NATIVE, prompt="a" * (ONE_BATCH_BYTES + 1), max_tokens=1).gathers
    image = {"type": "image_url", "image_url": {"url": "data:,"}}
    assert read(CHAT, messages=[{"role": "user", "content": [image]}], max_tokens=1).gathers
