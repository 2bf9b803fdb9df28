"""Reading a request's body: once, bounded, and with an error that says which field to mend."""

from __future__ import annotations

import re
from itertools import accumulate
from typing import Any

import msgspec
from msgspec import UNSET

from llmd.api.schema import bodies
from llmd.api.schema.kinds import Form, Kind, Prompt
from llmd.api.schema.parsed import ParsedRequest
from llmd.api.schema.text import SchemaLimits, TextMeter
from llmd.errors import InvalidRequest

MAX_DEPTH = 200
"""Deepest nesting taken: llama-server crashes on a few ten thousand levels of JSON schema."""

MAX_BRACKETS = 1_000_000
MAX_CHOICES = 128  # OpenAI's own bound on `n`


def parse(kind: Kind, body: bytes, limits: SchemaLimits) -> ParsedRequest:
    """Read and validate a request's body.

    Args:
        kind: What was asked for, by its path.
        body: JSON as it came, already bounded in size.
        limits: Bounds on its text.

    Raises:
        InvalidRequest: It is no JSON object, a field has a wrong type or, below `/v1`, a value
            out of OpenAI's range, or there is too much of it; `param` names the field.
        BlockedContent: A blocked pattern matches.
    """
    try:
        decoded = kind.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise _refusal(kind, error) from error
    check_depth(body)
    parsed = ParsedRequest(kind, body)
    parsed.model = decoded.model
    parsed.service_tier = decoded.service_tier
    meter = TextMeter(limits)
    if kind.prompt is Prompt.MESSAGES:
        _read_messages(parsed, decoded, meter, limits)
    elif kind.prompt is Prompt.PROMPT:
        _read_prompts(parsed, decoded.prompt, "prompt", meter)
    elif decoded.input is not UNSET or decoded.content is UNSET:
        _read_prompts(parsed, decoded.input, "input", meter)
    else:
        _read_prompts(parsed, decoded.content, "content", meter)
    parsed.prompt_bytes += meter.text_bytes
    parsed.largest_prompt_bytes = meter.largest_bytes
    parsed.images = meter.other_parts
    if kind.generates:
        _read_generation(parsed, decoded)
    else:
        parsed.max_tokens = 0
    return parsed


# --- prompts -------------------------------------------------------------------------------


def _read_messages(
    parsed: ParsedRequest,
    decoded: bodies.Chat | bodies.ChatV1,
    meter: TextMeter,
    limits: SchemaLimits,
) -> None:
    messages = decoded.messages
    if messages is UNSET or not messages:
        raise _wrong("messages", missing=messages is UNSET)
    if len(messages) > limits.max_messages > 0:
        raise InvalidRequest(
            f"messages has {len(messages)} messages, more than the {limits.max_messages} that "
            "are allowed; send fewer",
            param="messages",
        )
    for number, message in enumerate(messages):
        meter.message(message, number)
    parsed.messages = len(messages)
    parsed.continues = (
        messages[-1].role == "assistant" or decoded.continue_final_message is not UNSET
    )
    parsed.prompt_bytes = len(decoded.tools)


def _read_prompts(parsed: ParsedRequest, value: Any, param: str, meter: TextMeter) -> None:
    if value is UNSET or value is None:
        raise _wrong(param, missing=True)
    if type(value) is list and not any(type(item) in (int, float) for item in value):
        if not value:
            raise _wrong(param)
        for number, prompt in enumerate(value):
            meter.prompt(prompt, param, number)
        parsed.prompts = parsed.messages = len(value)
    else:
        meter.prompt(value, param, None)


# --- generation ----------------------------------------------------------------------------


def _read_generation(parsed: ParsedRequest, decoded: Any) -> None:
    kind = parsed.kind
    least = kind.least_tokens
    # llama-server takes the first of these that is there
    for name in ("n_predict", "max_completion_tokens", "max_tokens"):
        value = getattr(decoded, name)
        if value is not None:
            _check_tokens(name, value, least)
            parsed.count_tokens(value)
            break
    for name in ("n_cmpl", "n"):
        value = getattr(decoded, name)
        if value is not None:
            _check_choices(name, value, ranged=least is not None)
            parsed.count_choices(value)
            break
    parsed.note_temperature(decoded.temperature)
    stream, options = decoded.stream, decoded.stream_options
    parsed.note_stream(stream=stream is True, named=stream is not UNSET or options is not UNSET)
    if least is not None and isinstance(options, bodies.StreamOptions) and not stream:
        raise InvalidRequest(
            "stream_options is only allowed with stream=true; leave it out", param="stream_options"
        )
    parsed.decide_gathering(
        suspect=decoded.logprobs is not UNSET
        or decoded.n_probs is not UNSET
        or decoded.n_indent is not UNSET
        or decoded.reasoning_format is not UNSET
        or decoded.verbose is not UNSET
        or kind.form is Form.NATIVE
    )


def _check_tokens(name: str, value: float, least: int | None) -> None:
    """Refuse what is no number of tokens; `least` is the least besides -1, None takes any."""
    if isinstance(value, float) and not value.is_integer():
        raise _wrong(name)
    if least is not None and value < least and value != -1:
        raise InvalidRequest(
            f"{name} must be at least {least}, or -1 for as many tokens as fit", param=name
        )


def _check_choices(name: str, value: float, *, ranged: bool) -> None:
    if isinstance(value, float) and not value.is_integer():
        raise _wrong(name)
    if ranged and not 1 <= value <= MAX_CHOICES:
        raise InvalidRequest(f"{name} must be from 1 to {MAX_CHOICES}", param=name)


# --- refusals ------------------------------------------------------------------------------


def _wrong(name: str, *, missing: bool = False) -> InvalidRequest:
    wanted = bodies.WANTED.get(name, "of another type")
    verb = "is required:" if missing else "must be"
    return InvalidRequest(f"{name} {verb} {wanted}", param=name)


_PATH = re.compile(r" - at `\$\.?(.*)`$")


def _refusal(kind: Kind, error: Exception) -> InvalidRequest:
    """Say what is wrong with a body that could not be decoded."""
    if isinstance(error, RecursionError):
        return _too_deep()
    if isinstance(error, UnicodeDecodeError):
        return InvalidRequest("the request body is not valid UTF-8")
    if not isinstance(error, msgspec.ValidationError):
        reason = str(error).removeprefix("JSON is malformed: ")
        return InvalidRequest(f"the request body is not valid JSON: {reason}")
    path = _PATH.search(str(error))
    if path is None:
        return InvalidRequest("the request body must be a JSON object")
    name = path.group(1)
    field, bracket, _ = name.partition("[")
    if field == "messages" and bracket:
        return _faulty_message(name, str(error))
    field = field.partition(".")[0]
    if field == "logprobs":
        chat = kind.form is Form.CHAT
        wanted = "true or false" if chat else "a whole number of tokens, 0 or more"
        return InvalidRequest(f"logprobs must be {wanted}", param=field)
    return _wrong(field)


def _faulty_message(name: str, reason: str) -> InvalidRequest:
    """Say what is wrong with one message; `name` is the field, as in `messages[2].role`."""
    if "field `role`" in reason:
        return InvalidRequest(f"{name} has no role; add one such as user", param=f"{name}.role")
    place, _, field = name.partition(".")
    if not field:
        wanted = "an object with a role and a content"
    elif field.startswith("content"):
        name = f"{place}.content"
        wanted = "a string, an array of objects with a type, or null"
    else:
        wanted = "a string"
    return InvalidRequest(f"{name} must be {wanted}", param=name)


# --- depth ---------------------------------------------------------------------------------

_STRINGS = re.compile(rb'"[^"\\]*(?:\\.[^"\\]*)*"', re.DOTALL)
_NOT_BRACKETS = bytes(sorted(set(range(256)) - set(b"[]{}")))
_STEP = {ord("["): 1, ord("{"): 1, ord("]"): -1, ord("}"): -1}


def check_depth(body: bytes) -> None:
    """Refuse JSON, known to be well-formed, that is nested deeper than `MAX_DEPTH`.

    Raises:
        InvalidRequest: It is.
    """
    if body.count(b"{") + body.count(b"[") <= MAX_DEPTH:
        return
    brackets = _STRINGS.sub(b"", body).translate(None, _NOT_BRACKETS)
    if len(brackets) > 2 * MAX_BRACKETS:
        raise InvalidRequest(f"the request body has more than {MAX_BRACKETS} arrays and objects")
    if max(accumulate(map(_STEP.__getitem__, brackets))) > MAX_DEPTH:
        raise _too_deep()


def _too_deep() -> InvalidRequest:
    return InvalidRequest(
        f"the request body is nested too deeply; {MAX_DEPTH} levels are the most that is taken"
    )
