"""How much text a request may have, and which."""

from __future__ import annotations

import json

import pytest
import re2

from llmd.api.schema import KINDS, SchemaLimits, parse
from llmd.api.schema.text import compile_patterns
from llmd.config import Limits
from llmd.errors import BlockedContent, InvalidRequest

CHAT, TEXT, NATIVE, EMBED = (
    "/v1/chat/completions",
    "/v1/completions",
    "/completion",
    "/v1/embeddings",
)


def read(path, limits, **fields):
    return parse(KINDS[path], json.dumps(fields).encode(), limits)


def chat(limits, *contents):
    messages = [{"role": "user", "content": content} for content in contents]
    return read(CHAT, limits, messages=messages)


def refused(call, *args, **fields):
    with pytest.raises(InvalidRequest) as caught:
        call(*args, **fields)
    return caught.value


def test_limits_come_from_the_config():
    limits = SchemaLimits.of(Limits(max_messages=3, blocked_patterns=("a", "b")))
    assert (limits.max_messages, limits.max_message_bytes) == (3, 1048576)
    assert len(limits.blocked) == 1


def test_messages():
    assert chat(SchemaLimits(max_messages=2), "a", "b").messages == 2
    assert refused(chat, SchemaLimits(max_messages=2), "a", "b", "c").param == "messages"
    assert chat(SchemaLimits(), *["a"] * 50).messages == 50


def test_text_of_one_message_is_counted_in_utf8():
    limits = SchemaLimits(max_message_bytes=6)
    assert chat(limits, "abcdef", "üüü").prompt_bytes == 12
    assert refused(chat, limits, "a", "üüüü").param == "messages[1]"
    parts = [{"type": "text", "text": "abcd"}, {"type": "text", "text": "efg"}]
    assert refused(chat, limits, parts).param == "messages[0]"
    error = refused(read, TEXT, limits, prompt=["a", "abcdefg"])
    assert error.param == "prompt[1]"
    assert refused(read, NATIVE, limits, prompt="abcdefg").param == "prompt"
    assert refused(read, EMBED, limits, input=[[1], [1, 2]]).param == "input[1]"


def test_images_are_no_text():
    image = {"type": "image_url", "image_url": {"url": "data:," + "A" * 1000}}
    parsed = chat(SchemaLimits(max_message_bytes=10), [image, {"type": "text", "text": "what"}])
    assert (parsed.images, parsed.prompt_bytes) == (1, 4)


def test_calls_of_the_past_are_text():
    calls = [{"function": {"name": "f", "arguments": "{}" * 50}}]
    message = {"role": "assistant", "content": None, "tool_calls": calls}
    error = refused(read, CHAT, SchemaLimits(max_message_bytes=50), messages=[message])
    assert error.param == "messages[0]"


def test_text_of_all_messages():
    limits = SchemaLimits(max_content_bytes=6)
    assert chat(limits, "abc", "def").prompt_bytes == 6
    assert refused(chat, limits, "abc", "defg").param == "messages"
    assert refused(read, TEXT, limits, prompt=["abc", "defg"]).param == "prompt"
    assert refused(read, EMBED, limits, input=["abc", "defg"]).param == "input"


# --- blocked -------------------------------------------------------------------------------

BLOCKED = SchemaLimits(blocked=compile_patterns(["(?i)secret[0-9]+", "^forbidden$", "größe"]))


@pytest.mark.parametrize("words", ["the SECRET7", "forbidden", "die größe"])
def test_blocked_text_is_found_wherever_it_is(words):
    part = [{"type": "text", "text": "a"}, {"type": "text", "text": words}]
    calls = [{"function": {"name": "f", "arguments": json.dumps({"a": [words]})}}]
    for messages in (
        [{"role": "user", "content": words}],
        [{"role": "user", "content": part}],
        [{"role": "user", "content": "a"}, {"role": "tool", "content": words}],
        [{"role": "user", "content": "a", "name": words}],
        [{"role": "assistant", "content": None, "tool_calls": calls}],
        [{"role": "assistant", "content": "", "reasoning_content": words}],
    ):
        error = refused(read, CHAT, BLOCKED, messages=messages)
        assert isinstance(error, BlockedContent)
        assert error.code == "content_blocked"
        assert error.param == f"messages[{len(messages) - 1}]"
        assert words not in error.message
    for prompt in (words, ["a", words], {"prompt_string": words}):
        assert isinstance(refused(read, NATIVE, BLOCKED, prompt=prompt), BlockedContent)
        assert isinstance(refused(read, EMBED, BLOCKED, input=prompt), BlockedContent)


def test_other_text_passes():
    assert chat(BLOCKED, "secret", "not forbidden", "SECRET").messages == 3


def test_token_ids_cannot_be_looked_through():
    for prompt in ([1, 2], [[1], [2]], [1, "a"]):
        assert isinstance(refused(read, TEXT, BLOCKED, prompt=prompt), BlockedContent)


def test_deep_json_in_a_call_is_looked_through_without_recursion():
    arguments = "[" * 900 + json.dumps("secret1") + "]" * 900
    calls = [{"function": {"name": "f", "arguments": arguments}}]
    messages = [{"role": "assistant", "content": None, "tool_calls": calls}]
    assert isinstance(refused(read, CHAT, BLOCKED, messages=messages), BlockedContent)
    arguments = "[" * 100_000
    calls[0]["function"]["arguments"] = arguments
    assert read(CHAT, BLOCKED, messages=messages).messages == 1


@pytest.mark.parametrize("unread", [b'["\xff"]', b"[" + b"9" * 5000 + b"]"])
@pytest.mark.parametrize("field", [b"tool_calls", b"reasoning_content"])
def test_what_cannot_be_looked_through_is_refused(field, unread):
    message = b'{"role":"assistant","content":"a","' + field + b'":' + unread + b"}"
    error = refused(parse, KINDS[CHAT], b'{"messages":[' + message + b"]}", BLOCKED)
    assert error.param == "messages[0]"
    assert "cannot be read" in error.message


def test_many_patterns_are_one():
    assert compile_patterns([]) == ()
    assert len(compile_patterns([f"word{n}" for n in range(100)])) == 1
    with pytest.raises(re2.error):
        compile_patterns(["a", "(b"])
    # each faulty, together a good one
    with pytest.raises(re2.error):
        compile_patterns(["a)|(?:b", "c)|(d"])


def test_patterns_that_are_too_large_together_stay_apart():
    large = [rf"{letter}\pL{{100}}" for letter in "abcdefg"]
    compiled = compile_patterns(large)
    assert len(compiled) == len(large)
    assert any(pattern.search("g" + "ü" * 100) for pattern in compiled)
    assert not any(pattern.search("short") for pattern in compiled)
