"""The whole table of errors on a real server: status, type, code, the one shape, and the headers.

A row is a scenario: it brings the error about on a daemon of its own and returns the answer.
"""

from __future__ import annotations

import json
import re
import signal
from dataclasses import dataclass, field

import pytest
from daemon_rig import chat_body, read_answer, running

pytestmark = pytest.mark.system

CHAT = "/v1/chat/completions"
KEYS = [
    {"name": "alice", "key": "sk-alice"},
    {"name": "root", "key": "sk-root", "role": "admin"},
    {"name": "listed", "key": "sk-listed", "models": ["bad"]},
    {"name": "expired", "key": "sk-expired", "expires": "2020-01-01T00:00:00Z"},
    {"name": "once", "key": "sk-once", "requests_per_minute": 1},
    {"name": "tiny", "key": "sk-tiny", "estimated_tokens_per_minute": 10},
]
RETRY = {"retry-after", "retry-after-ms"}


@dataclass
class Row:
    """What is expected, and how it is brought about."""

    status: int
    type: str
    code: str
    act: object
    param: str | None = None
    headers: dict[str, str] = field(default_factory=dict)
    groups: dict = field(default_factory=dict)


# --- scenarios ------------------------------------------------------------------------------


def asks(key="sk-alice", **fields):
    """Send one chat request."""

    async def act(llmd):
        return await llmd.chat(key=key, **fields)

    return act


def calls(method, path, body=None, key="sk-alice", **more):
    async def act(llmd):
        return await llmd.call(method, path, body, key=key, **more)

    return act


def raw(*parts, head=f"POST {CHAT} HTTP/1.1\r\nHost: 127.0.0.1\r\n"):
    """Send bytes as they are, without waiting for what they lack."""

    async def act(llmd):
        stream = await llmd.connect()
        await stream.send_all(b"".join(p.encode() for p in (head, *parts)))
        return await read_answer(stream)

    return act


BEARER = "Authorization: Bearer sk-alice\r\n"


async def limited(llmd):
    assert (await llmd.chat(key="sk-once", max_tokens=1)).status == 200
    return await llmd.chat(key="sk-once", max_tokens=1)


async def runs(llmd, request_id):
    """Have a request run that does not end by itself, and return its connection."""
    stream = await llmd.connect()
    headers = ("Authorization: Bearer sk-alice", f"X-Request-Id: {request_id}")
    body = chat_body("[[token 0.05]]", max_tokens=900, model="demo-small")
    await stream.send_all(llmd.raw(CHAT, body, *headers))
    await llmd.until(lambda: state_of(llmd, request_id) in ("prefill", "decode", "queued"))
    return stream


def state_of(llmd, request_id):
    handle = llmd.services.registry.live(request_id)
    return handle.record.state.value if handle else ""


def cancelled(key):
    async def act(llmd):
        stream = await runs(llmd, "r1")
        assert (await llmd.call("POST", "/requests/r1/cancel", key=key)).status == 200
        return await read_answer(stream)

    return act


async def queue_full(llmd):
    first = await runs(llmd, "r1")
    await llmd.until(lambda: state_of(llmd, "r1") in ("prefill", "decode"))
    second = await runs(llmd, "r2")
    answer = await llmd.chat(key="sk-alice")
    assert (await llmd.call("POST", "/requests/cancel-all", key="sk-root")).status == 200
    for stream in (first, second):
        assert (await read_answer(stream)).status == 499
    return answer


async def draining(llmd):
    stream = await runs(llmd, "r1")
    await llmd.until(lambda: state_of(llmd, "r1") in ("prefill", "decode"))
    signal.raise_signal(signal.SIGTERM)
    await llmd.until(lambda: llmd.services.draining)
    answer = await llmd.chat(key="sk-alice")
    await stream.aclose()
    return answer


async def no_room(llmd):
    assert (await llmd.chat(key="sk-alice", model="demo-small", max_tokens=1)).status == 200
    return await llmd.call("POST", "/v1/models/demo-large/load", key="sk-root")


async def hung(llmd):
    assert (await llmd.chat(key="sk-alice", max_tokens=1)).status == 200
    return await llmd.chat("[[hang]]", key="sk-alice")


async def moved_on(llmd):
    """Ask for a change that was decided on an older look."""
    assert (await llmd.chat(key="sk-alice", model="demo-small", max_tokens=1)).status == 200
    body = {"model": "demo-small", "from": "demo-large"}
    return await llmd.call("POST", "/switch-model", body, key="sk-root")


INVALID, SERVER, LIMIT = "invalid_request_error", "server_error", "rate_limit_error"
GONE = "request_cancelled"
NEVER = {"x-should-retry": "false"}
TABLE = {
    "bad JSON": Row(400, INVALID, "invalid_request", calls("POST", CHAT, content=b"{")),
    "wrong type": Row(400, INVALID, "invalid_request", asks(temperature="hot"), "temperature"),
    "out of range": Row(400, INVALID, "invalid_request", asks(top_p=2), "top_p"),
    "blocked": Row(
        400,
        INVALID,
        "content_blocked",
        asks(prompt="the SECRET"),
        "messages[0]",
        groups={"limits": {"blocked_patterns": ["SECRET"]}},
    ),
    "too many messages": Row(
        400,
        INVALID,
        "invalid_request",
        calls("POST", CHAT, {"messages": chat_body()["messages"] * 3}),
        "messages",
        groups={"limits": {"max_messages": 2}},
    ),
    "context": Row(400, INVALID, "context_length_exceeded", asks(max_tokens=9999), "max_tokens"),
    "no key": Row(401, INVALID, "invalid_api_key", calls("POST", CHAT, {}, key="")),
    "wrong key": Row(401, INVALID, "invalid_api_key", asks("sk-wrong")),
    "expired key": Row(401, INVALID, "invalid_api_key", asks("sk-expired")),
    "not an admin": Row(403, "permission_error", "permission_denied", calls("POST", "/stop")),
    "not this model": Row(
        403, "permission_error", "permission_denied", asks("sk-listed", model="demo-small"), "model"
    ),
    "not this model's card": Row(
        403,
        "permission_error",
        "permission_denied",
        calls("GET", "/v1/models/demo-small", key="sk-listed"),
    ),
    "no such model": Row(404, INVALID, "model_not_found", asks(model="nope"), "model"),
    "no such request": Row(404, INVALID, "request_not_found", calls("GET", "/requests/nope")),
    "no such path": Row(404, INVALID, "not_found", calls("GET", "/v1/nope")),
    "wrong method": Row(
        405, INVALID, "method_not_allowed", calls("GET", CHAT), headers={"allow": "POST"}
    ),
    "slow head": Row(408, INVALID, "request_timeout", raw("X: ")),
    "slow body": Row(408, INVALID, "request_timeout", raw(BEARER, "Content-Length: 9\r\n\r\n{")),
    "body too large": Row(
        413, INVALID, "request_too_large", raw(BEARER, "Content-Length: 99999\r\n\r\n{")
    ),
    "broken chunks": Row(
        400,
        INVALID,
        "invalid_request",
        raw(BEARER, "Transfer-Encoding: chunked\r\n\r\n", "2\r\n{}\r\nzz\r\n"),
    ),
    "broken chunks for a helper": Row(
        400,
        INVALID,
        "invalid_request",
        raw(
            BEARER,
            "Transfer-Encoding: chunked\r\n\r\n",
            "zz\r\n",
            head="POST /tokenize HTTP/1.1\r\nHost: 127.0.0.1\r\n",
        ),
    ),
    "chunks too large": Row(
        413,
        INVALID,
        "request_too_large",
        raw(BEARER, "Transfer-Encoding: chunked\r\n\r\n", "fa0\r\n" + "x" * 4000 + "\r\n"),
    ),
    "header too large": Row(431, INVALID, "header_too_large", raw("X: " + "x" * 70_000)),
    "no HTTP": Row(400, INVALID, "invalid_request", raw("\r\n\r\n", head="\x16\x03\x01\x02")),
    "an older HTTP": Row(
        505, INVALID, "invalid_request", raw(head="GET / HTTP/1.9\r\nHost: x\r\n\r\n")
    ),
    "over its limit": Row(429, LIMIT, "rate_limit_exceeded", limited),
    "over any limit": Row(
        429, LIMIT, "rate_limit_exceeded", asks("sk-tiny", max_tokens=99), headers=NEVER
    ),
    "cancelled by its owner": Row(499, GONE, GONE, cancelled("sk-alice"), headers=NEVER),
    "cancelled by an operator": Row(499, GONE, GONE, cancelled("sk-root"), headers=NEVER),
    "what runs has moved on": Row(409, INVALID, "conflict", moved_on, "from"),
    "streaming off": Row(
        501,
        "not_implemented",
        "streaming_disabled",
        asks(stream=True),
        "stream",
        headers=NEVER,
        groups={"streaming": {"enabled": False}},
    ),
    "not built yet": Row(
        501, "not_implemented", "not_supported_yet", calls("POST", "/v1/rerank"), headers=NEVER
    ),
    "garbage": Row(502, SERVER, "bad_worker_response", asks(prompt="[[garbage]]")),
    "queue full": Row(
        503,
        SERVER,
        "queue_full",
        queue_full,
        groups={"queue": {"max_size": 1, "admin_quota": 0, "max_share": 1.0}},
    ),
    "draining": Row(503, SERVER, "shutting_down", draining),
    "no memory": Row(503, SERVER, "insufficient_memory", no_room, "model"),
    "model failed": Row(503, SERVER, "model_failed", asks(model="bad"), headers=NEVER),
    "too long": Row(
        504,
        SERVER,
        "request_timeout",
        asks(prompt="[[prefill 9]]"),
        headers=NEVER,
        groups={"limits": {"request_timeout_sec": 0.3}},
    ),
    "hung": Row(504, SERVER, "worker_stalled", hung, headers=NEVER),
}
BARE = ("slow head", "header too large", "no HTTP", "an older HTTP")  # before there is a request


@pytest.mark.parametrize("name", TABLE)
async def test_each_row_of_the_table(name, runtime_dir, fake_engine, demo_models, tmp_path):
    row = TABLE[name]
    bad = tmp_path / "bad.gguf"
    bad.write_bytes(b"no model at all")
    models = [
        {"name": "demo-small", "path": str(demo_models / "demo-small.gguf"), "parallel": 1},
        {"name": "demo-large", "path": str(demo_models / "demo-large.gguf")},
        {"name": "bad", "path": str(bad)},
    ]
    server = {"max_body_bytes": 3000, "header_timeout_sec": 0.3, "body_timeout_sec": 0.3}
    groups = {
        "worker": {"stall_timeout_sec": 0.5},
        "scheduler": {"default_model": "demo-small"},
        **row.groups,
    }
    async with running(
        runtime_dir, fake_engine, models, api_keys=KEYS, server=server, **groups
    ) as llmd:
        answer = await row.act(llmd)
        await llmd.until(lambda: not llmd.handles())
        ended = list(llmd.services.registry.records())
    assert answer.status == row.status, answer
    assert answer.headers["content-type"].startswith("application/json")
    error = json.loads(answer.body)["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert (error["type"], error["code"], error["param"]) == (row.type, row.code, row.param)
    assert error["message"]
    check_headers(answer.headers, row, bare=name in BARE)
    if name not in BARE and answer.status not in (401, 405, 501):
        told = {record.id: record for record in ended}.get(answer.headers["x-request-id"])
        if told is not None:
            assert (told.status, told.code) == (row.status, row.code)


def check_headers(headers, row, *, bare):
    if bare:
        assert headers["connection"] == "close"
    else:
        assert re.fullmatch(r"[A-Za-z0-9._-]{1,128}", headers["x-request-id"])
    told = {name: headers[name] for name in ("x-should-retry", "allow") if name in headers}
    assert told == row.headers
    if row.status in (429, 503):
        assert 1 <= int(headers["retry-after"]) <= 60
        assert 0 < int(headers["retry-after-ms"]) <= 60_000
    else:
        assert RETRY.isdisjoint(headers)
    if row.status in (408, 413):
        assert headers["connection"] == "close"
    assert ("www-authenticate" in headers) is (row.status == 401)
    if row.status == 429:
        assert [name for name in headers if name.startswith("x-ratelimit-")]


async def test_limits_are_told_with_every_answer_that_was_charged(
    runtime_dir, fake_engine, demo_small
):
    keys = [{"name": "k", "key": "sk-k", "requests_per_minute": 9}]
    limit = {"estimated_tokens_per_minute": 900}
    async with running(
        runtime_dir, fake_engine, [demo_small], api_keys=keys, rate_limit=limit, key="sk-k"
    ) as llmd:
        good = await llmd.chat(max_tokens=3)
        streamed = await llmd.chat(max_tokens=3, stream=True)
        helped = await llmd.call("POST", "/tokenize", {"content": "x"})
        theirs = await llmd.chat("[[status 501]]")
        broken = await llmd.chat("[[garbage]]", max_tokens=3)
        for answer in (good, streamed, helped, theirs, broken):
            for kind, most in (("requests", 9), ("tokens", 900)):
                assert answer.headers[f"x-ratelimit-limit-{kind}"] == str(most)
                assert 0 <= int(answer.headers[f"x-ratelimit-remaining-{kind}"]) <= most
                reset = answer.headers[f"x-ratelimit-reset-{kind}"]
                assert re.fullmatch(r"\d+ms|\d+s|\d+m\d+s", reset)
        assert (broken.status, theirs.status) == (502, 501)
        refused = await llmd.chat(model="nope")
        assert not [name for name in refused.headers if "ratelimit" in name]  # nothing was charged


DEEP = b"[" * 900 + b"]" * 900
MESSAGES = b'"messages":[{"role":"user","content":"x"}]'
HOSTILE = {
    "nothing": (b"", None),
    "blanks": (b" \r\n\t", None),
    "an array": (b"[]", None),
    "deep": (b'{"messages":' + DEEP + b"}", "messages[0]"),
    "deep where nobody looks": (b'{"x":' + DEEP + b"," + MESSAGES + b"}", None),
    "very deep": (b"[" * 2900, None),
    "deep objects": (b'{"x":' * 900, None),
    "a huge exponent": (b'{"max_tokens":1e400,' + MESSAGES + b"}", "max_tokens"),
    "a huge number": (b'{"n":' + b"9" * 2000 + b"," + MESSAGES + b"}", "n"),
    "NaN": (b'{"temperature":NaN,' + MESSAGES + b"}", None),
    "Infinity": (b'{"temperature":-Infinity,' + MESSAGES + b"}", None),
    "a fraction of an answer": (b'{"n":1.5,' + MESSAGES + b"}", "n"),
    "bad UTF-8 in text": (b'{"messages":[{"role":"user","content":"\xff"}]}', None),
    "UTF-16": ('{"messages":[]}'.encode("utf-16"), None),
    "a byte order mark": (b"\xef\xbb\xbf" + b'{"messages":[]}', None),
    "two values": (b"{}{}", None),
    "a comment": (b"{} // x", None),
    "single quotes": (b"{'messages': []}", None),
    "a null byte": (b'{"messages":\x00[]}', None),
    "a lone surrogate": (b'{"messages":[{"role":"user","content":"\\ud800"}]}', None),
    "a lone surrogate as a name": (b'{"model":"\\udfff","messages":[]}', None),
}


@pytest.fixture
async def plain(runtime_dir, fake_engine, demo_small):
    async with running(
        runtime_dir, fake_engine, [demo_small], server={"max_body_bytes": 10_000}
    ) as llmd:
        yield llmd


async def refused(llmd, body):
    answer = await llmd.call("POST", CHAT, content=body)
    assert answer.status == 400, answer
    error = answer.json["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert (error["type"], error["code"]) == (INVALID, "invalid_request")
    assert "x-request-id" in answer.headers
    return error["param"]


async def test_hostile_bodies_are_400_with_the_field_if_there_is_one(plain):
    for name, (body, param) in HOSTILE.items():
        found = await refused(plain, body)
        assert found == param, (name, found)
    assert (await plain.chat(max_tokens=1)).status == 200
    plain.assert_nothing_left()


WRONG = (None, True, 7, 1.5, "x", [], {}, [[]], [{}], {"x": []}, "", -1, 10**30)


FIELDS = (
    "frequency_penalty",
    "logprobs",
    "max_completion_tokens",
    "max_tokens",
    "messages",
    "model",
    "n",
    "n_predict",
    "presence_penalty",
    "service_tier",
    "stop",
    "stream",
    "stream_options",
    "temperature",
    "top_logprobs",
    "top_p",
    "tools",
    "tool_choice",
    "response_format",
    "seed",
    "user",
)


UNREAD = (
    b'{"\xff":1,"max_tokens":1,' + MESSAGES + b"}",
    b'{"x":"\xff","max_tokens":1,' + MESSAGES + b"}",
    b'{"seed":1e400,"max_tokens":1,' + MESSAGES + b"}",
    b'{"seed":' + b"9" * 3000 + b',"max_tokens":1,' + MESSAGES + b"}",
    b'{"max_tokens":1,"max_tokens":1,' + MESSAGES + b"," + MESSAGES + b"}",
)
"""What llmd does not look into, and a worker has to bear."""


async def test_wrong_types_in_any_field_never_crash_anything(
    runtime_dir, any_real_engine, demo_small
):
    """Each field with each kind of value: refused with the field, or passed on; never a 500."""
    async with running(runtime_dir, any_real_engine, [demo_small]) as llmd:
        for name in FIELDS:
            for value in WRONG:
                body = {**chat_body(), "max_tokens": 1, name: value}
                if name in ("n_predict", "max_completion_tokens"):
                    del body["max_tokens"]
                answer = await llmd.call("POST", CHAT, body)
                if answer.status == 200 or isinstance(answer.code, int):
                    continue  # passed on, and what the worker says of it is its own
                error = answer.json["error"]
                assert set(error) == {"message", "type", "param", "code"}
                if answer.code != "context_length_exceeded":
                    assert answer.status in (400, 404), (name, value, answer)
                    assert error["param"].startswith(name), (name, value, error)
        for body in UNREAD:
            answer = await llmd.call("POST", CHAT, content=body)
            assert answer.status in (200, 400, 500), (body[:50], answer)
        assert (await llmd.chat(max_tokens=1)).status == 200
        assert llmd.worker("demo-small").statistics().exits == {}
        llmd.assert_nothing_left()


async def test_the_last_of_duplicate_fields_counts(plain):
    body = b'{"max_tokens":9,"messages":[{"role":"user","content":"x"}],"max_tokens":2}'
    answer = await plain.call("POST", CHAT, content=body)
    assert answer.json["usage"]["completion_tokens"] == 2
