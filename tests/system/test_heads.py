"""What a head may ask for beside its request: to be told to go on, to speak another protocol."""

from __future__ import annotations

import contextlib
import signal

import pytest
import trio
from daemon_rig import KEYS, chat_body, read_answer, running

pytestmark = pytest.mark.system

CHAT = "/v1/chat/completions"
KEY = "Authorization: Bearer sk-alice"
WAITS = "Expect: 100-continue"
WEBSOCKET = (
    "Connection: keep-alive, Upgrade",
    "Upgrade: websocket",
    "Sec-WebSocket-Version: 13",
    "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",
)
H2C = ("Connection: Upgrade, HTTP2-Settings", "Upgrade: h2c", "HTTP2-Settings: AAMAAABk")


@pytest.fixture
async def llmd(runtime_dir, fake_engine, demo_small):
    server = {"max_body_bytes": 1000, "body_timeout_sec": 0.3}
    async with running(
        runtime_dir, fake_engine, [demo_small], api_keys=KEYS, server=server
    ) as running_daemon:
        yield running_daemon


def head(method, path, *headers):
    lines = [f"{method} {path} HTTP/1.1", "Host: 127.0.0.1", *headers]
    return "\r\n".join(lines).encode() + b"\r\n\r\n"


# --- Expect: 100-continue ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "path", "headers", "status"),
    [
        ("POST", CHAT, ["Content-Length: 9"], 401),
        ("POST", "/tokenize", ["Content-Length: 9"], 401),
        ("POST", "/stop", [KEY, "Content-Length: 9"], 403),
        ("POST", "/v1/nope", [KEY, "Content-Length: 9"], 404),
        ("PUT", CHAT, [KEY, "Content-Length: 9"], 405),
        ("POST", CHAT, [KEY, "Content-Length: 1001"], 413),
        ("POST", "/tokenize", [KEY, "Content-Length: 1001"], 413),
        ("GET", "/v1/models", [KEY, "Content-Length: 9"], 200),
        ("POST", "/v1/responses", [KEY, "Transfer-Encoding: chunked"], 501),
    ],
)
async def test_who_waits_for_leave_is_answered_without_it_where_no_body_is_read(
    llmd, method, path, headers, status
):
    stream = await llmd.connect()
    await stream.send_all(head(method, path, WAITS, *headers))
    began = bytes(await stream.receive_some())
    assert began.startswith(b"HTTP/1.1 %d " % status)
    assert b"\r\nconnection: close\r\n" in began.lower()  # or the body would come next
    await stream.aclose()


async def test_nor_while_shutting_down(llmd):
    running_chat = await llmd.connect()
    body = chat_body("[[token 0.02]]", stream=True, max_tokens=50)
    await running_chat.send_all(llmd.raw(CHAT, body, KEY))
    await llmd.until_states("decode")
    signal.raise_signal(signal.SIGTERM)
    await llmd.until(lambda: llmd.services.draining)
    for path in (CHAT, "/tokenize"):
        stream = await llmd.connect()
        await stream.send_all(head("POST", path, WAITS, KEY, "Content-Length: 9"))
        assert bytes(await stream.receive_some()).startswith(b"HTTP/1.1 503 ")
        await stream.aclose()
    assert (await read_answer(running_chat)).events[-1] == "[DONE]"


@pytest.mark.parametrize("path", [CHAT, "/tokenize", "/requests/x/cancel"])
async def test_it_is_given_when_the_body_is_about_to_be_read(llmd, path):
    request = llmd.raw(path, chat_body(max_tokens=1, content="x"), WAITS, KEY)
    asked, _, body = request.partition(b"\r\n\r\n")
    for _ in range(2):  # on one connection, too
        stream = await llmd.connect()
        await stream.send_all(asked + b"\r\n\r\n")
        if path.startswith("/requests"):
            assert bytes(await stream.receive_some()).startswith(b"HTTP/1.1 404 ")
            await stream.aclose()
            continue
        leave = bytes(await stream.receive_some())
        assert leave.startswith(b"HTTP/1.1 100 ")
        assert leave.count(b"HTTP/1.1") == 1
        await stream.send_all(body)
        answer = await read_answer(stream)
        assert answer.status == 200
        assert "connection" not in answer.headers


async def test_who_gets_leave_and_sends_nothing_is_slow(llmd):
    stream = await llmd.connect()
    await stream.send_all(head("POST", CHAT, WAITS, KEY, "Content-Length: 9"))
    answer = await read_answer(stream)
    assert (answer.status, answer.code) == (408, "request_timeout")


# --- Upgrade -------------------------------------------------------------------------------


@pytest.mark.parametrize("offer", [WEBSOCKET, H2C])
async def test_another_protocol_is_not_spoken(llmd, offer):
    for path, headers, status in (
        ("/v1/models", [KEY], 200),
        ("/v1/models", [], 401),
        ("/live", [], 200),
        ("/v1/nope", [KEY], 404),
        (CHAT, [KEY], 405),
    ):
        stream = await llmd.connect()
        await stream.send_all(head("GET", path, *headers, *offer))
        answer = await read_answer(stream)
        assert answer.status == status
        assert "x-request-id" in answer.headers
        assert "upgrade" not in answer.headers
    await llmd.until(lambda: llmd.daemon.http.connections == 0)


@pytest.mark.parametrize("offer", [(), WEBSOCKET, H2C])
async def test_requests_that_come_together_are_answered_in_turn(llmd, offer):
    chat = llmd.raw(CHAT, chat_body(max_tokens=1), KEY, *offer)
    stream = await llmd.connect()
    await stream.send_all(head("GET", "/live", *offer) + chat + head("GET", "/nope", *offer))
    got = b""
    while b"not_found" not in got:
        got += await stream.receive_some()
    await stream.aclose()
    statuses = [int(part[:3]) for part in got.split(b"HTTP/1.1 ")[1:]]
    assert statuses == [200, 200, 404]


@pytest.mark.parametrize("offer", [(), WEBSOCKET, H2C])
@pytest.mark.parametrize("follows", [b"", head("GET", "/live")])
async def test_a_client_that_leaves_is_noticed_whatever_it_asked_for(llmd, offer, follows):
    """Also with a further request that came with the one that is served."""
    stream = await llmd.connect()
    body = chat_body("[[token 0.05]]", max_tokens=900)
    await stream.send_all(llmd.raw(CHAT, body, KEY, *offer) + follows)
    await llmd.until_states("decode")
    await stream.aclose()
    await llmd.until(lambda: not llmd.handles())
    assert llmd.last().state.value == "abandoned"


@pytest.mark.parametrize("ask", [("Connection: close",), WEBSOCKET, H2C])
async def test_an_answer_that_runs_may_end_whatever_its_client_asked_for(
    runtime_dir, fake_engine, demo_small, ask
):
    """At the end only bodies that have not come yet get no more time than a head."""
    server = {"header_timeout_sec": 0.2, "drain_timeout_sec": 0}
    async with running(runtime_dir, fake_engine, [demo_small], server=server) as llmd:
        stream = await llmd.connect()
        body = chat_body("[[token 0.02]]", stream=True, max_tokens=30)
        await stream.send_all(llmd.raw(CHAT, body, *ask))
        await llmd.until_states("decode")
        signal.raise_signal(signal.SIGTERM)
        assert (await read_answer(stream)).events[-1] == "[DONE]"


# --- what comes early ----------------------------------------------------------------------


@pytest.mark.parametrize("behind", [True, False])
async def test_a_head_that_stays_half_is_slow_also_behind_a_whole_request(
    runtime_dir, fake_engine, demo_small, behind
):
    server = {"header_timeout_sec": 0.3}
    async with running(runtime_dir, fake_engine, [demo_small], server=server) as llmd:
        stream = await llmd.connect()
        await stream.send_all(head("GET", "/live") * behind + b"GET /live HT")
        got = b""
        while part := bytes(await stream.receive_some()):
            got += part
        assert [part[:3] for part in got.split(b"HTTP/1.1 ")[1:]] == [b"200"] * behind + [b"408"]
        await stream.aclose()


async def test_requests_ahead_are_bounded_also_for_a_client_that_takes_its_answers(llmd):
    """Each answer makes room for as much as it took, not for as much as may come early."""
    chat = llmd.raw(CHAT, chat_body("[[token 0.01]]", max_tokens=1), KEY)
    piece = chat * 9 + b"GET /live HTTP/1.1\r\nHost:\r\n\r\n" * 1500
    stream = await llmd.connect()
    await stream.send_all(piece)
    (connection,) = llmd.daemon.http._connections
    answered = 0
    with contextlib.suppress(trio.BrokenResourceError):  # more and more would wait: it is cut
        while part := bytes(await stream.receive_some()):
            answered += part.count(b"HTTP/1.1 200")
            await stream.send_all(piece)
            assert len(connection._protocol.wire._events) < 10_000
    assert 0 < answered < 2000
    await stream.aclose()


async def test_requests_in_many_pieces_are_answered_in_turn(llmd):
    paths = [f"/live?{number}" if number % 9 else f"/none-{number}" for number in range(2000)]
    data = b"".join(head("GET", path, KEY) for path in paths)
    stream, got = await llmd.connect(), b""
    for at in range(0, len(data), 20_000):  # which ends within a head
        await stream.send_all(data[at : at + 20_000])
        while got.count(b"HTTP/1.1") < data[: at + 20_000].count(b"\r\n\r\n"):
            got += await stream.receive_some()
    await stream.aclose()
    told = [int(part[:3]) for part in got.split(b"HTTP/1.1 ")[1:]]
    assert told == [200 if number % 9 else 404 for number in range(2000)]
