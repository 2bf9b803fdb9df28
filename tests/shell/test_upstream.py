"""The way to a worker: reuse, death, cancellation, strangers, rubbish."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio
import trio.testing

from llmd.errors import BadWorkerResponse, WorkerDied
from llmd.pump import Pump
from llmd.workers.upstream import Upstream

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"


@asynccontextmanager
async def worker(path: Path, handler: Callable[[trio.SocketStream], Awaitable[None]]):
    """Serve `handler` on a Unix socket and yield an Upstream to it."""
    sock = trio.socket.socket(trio.socket.AF_UNIX)
    await sock.bind(str(path))
    sock.listen(16)

    async def guarded(stream: trio.SocketStream) -> None:
        async with stream:
            with contextlib.suppress(trio.BrokenResourceError):
                await handler(stream)

    upstream = Upstream(path, os.getpid())
    async with trio.open_nursery() as nursery:
        nursery.start_soon(trio.serve_listeners, guarded, [trio.SocketListener(sock)])
        with trio.fail_after(10):
            yield upstream
        upstream.close()
        nursery.cancel_scope.cancel()


async def read_request(stream: trio.SocketStream) -> bytes:
    data = b""
    while b"\r\n\r\n" not in data:
        part = await stream.receive_some()
        if not part:
            return b""
        data += part
    return data


async def test_an_answer_is_read_and_the_connection_used_again(tmp_path):
    seen = []

    async def handler(stream):
        seen.append(0)
        while await read_request(stream):
            seen[-1] += 1
            await stream.send_all(OK)

    async with worker(tmp_path / "w.sock", handler) as upstream:
        for _ in range(3):
            response = await upstream.request(b"POST", b"/x", b"{}")
            assert await response.head() == 200
            assert await response.read(100) == b"ok"
    assert seen == [3]


async def test_a_kept_connection_that_died_is_no_failure(tmp_path):
    async def handler(stream):
        await read_request(stream)
        await stream.send_all(OK)

    async with worker(tmp_path / "w.sock", handler) as upstream:
        for _ in range(3):
            response = await upstream.request(b"POST", b"/x", b"{}")
            assert await response.head() == 200
            assert await response.read(100) == b"ok"


async def test_death_before_the_head_and_after_it(tmp_path):
    async def handler(stream):
        if b"/early" not in await read_request(stream):
            await stream.send_all(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhalf")

    async with worker(tmp_path / "w.sock", handler) as upstream:
        response = await upstream.request(b"POST", b"/early", b"")
        with pytest.raises(WorkerDied) as died:
            await response.head()
        assert not died.value.answered
        response = await upstream.request(b"POST", b"/late", b"")
        await response.head()
        assert await response.receive() == b"half"
        with pytest.raises(WorkerDied) as died:
            await response.receive()
        assert died.value.answered


async def test_chunks_come_as_they_are_sent(tmp_path):
    gate = trio.Event()

    async def handler(stream):
        await read_request(stream)
        await stream.send_all(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\none\r\n")
        await gate.wait()
        await stream.send_all(b"3\r\ntwo\r\n0\r\n\r\n")

    async with worker(tmp_path / "w.sock", handler) as upstream:
        response = await upstream.request(b"POST", b"/", b"")
        await response.head()
        assert await response.receive() == b"one"
        gate.set()
        assert await response.receive() == b"two"
        assert await response.receive() == b""


async def test_closing_an_answer_tells_the_worker(tmp_path):
    gone = trio.Event()

    async def handler(stream):
        await read_request(stream)
        await stream.send_all(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\none\r\n")
        with contextlib.suppress(trio.BrokenResourceError):  # a reset is an end, too
            assert await stream.receive_some() == b""
        gone.set()

    async with worker(tmp_path / "w.sock", handler) as upstream:
        response = await upstream.request(b"POST", b"/", b"")
        await response.head()
        await response.receive()
        response.close()
        response.close()
        await gone.wait()


async def test_a_cancelled_wait_can_be_taken_up_again(tmp_path):
    gate = trio.Event()

    async def handler(stream):
        await read_request(stream)
        await gate.wait()
        await stream.send_all(OK)

    async with worker(tmp_path / "w.sock", handler) as upstream:
        response = await upstream.request(b"POST", b"/", b"")
        with trio.move_on_after(0.01) as scope:
            await response.head()
        assert scope.cancelled_caught
        gate.set()
        assert await response.head() == 200
        assert await response.read(10) == b"ok"


@pytest.mark.parametrize(
    "rubbish",
    [b"\x00\x01\x02\x03\r\n\r\n", b"HTTP/1.1 abc\r\n\r\n", b"SSH-2.0-OpenSSH_9\r\n\r\n"],
)
async def test_what_is_no_http_is_refused(tmp_path, rubbish):
    async def handler(stream):
        await read_request(stream)
        await stream.send_all(rubbish)

    async with worker(tmp_path / "w.sock", handler) as upstream:
        response = await upstream.request(b"POST", b"/", b"")
        with pytest.raises(BadWorkerResponse):
            await response.head()


async def test_an_endless_head_is_refused(tmp_path):
    async def handler(stream):
        await read_request(stream)
        await stream.send_all(b"HTTP/1.1 200 OK\r\n")
        while True:
            await stream.send_all(b"x-a: " + b"a" * 1000 + b"\r\n")

    async with worker(tmp_path / "w.sock", handler) as upstream:
        response = await upstream.request(b"POST", b"/", b"")
        with pytest.raises(BadWorkerResponse, match="too large"):
            await response.head()


async def test_a_body_over_the_limit_is_refused(tmp_path):
    async def handler(stream):
        await read_request(stream)
        await stream.send_all(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n" + bytes(1000))

    async with worker(tmp_path / "w.sock", handler) as upstream:
        response = await upstream.request(b"POST", b"/", b"")
        await response.head()
        with pytest.raises(BadWorkerResponse, match="longer than 10"):
            await response.read(10)


async def test_a_stranger_on_the_socket_gets_no_byte(tmp_path):
    heard = []

    async def handler(stream):
        heard.append(await read_request(stream))

    async with worker(tmp_path / "w.sock", handler):
        stranger = Upstream(tmp_path / "w.sock", 1)
        with pytest.raises(WorkerDied, match="another process"):
            await stranger.request(b"POST", b"/", b"secret")
        stranger.close()
    assert heard in ([], [b""])


async def test_no_worker_is_a_death_before_the_answer(tmp_path):
    upstream = Upstream(tmp_path / "none.sock", 0)
    with pytest.raises(WorkerDied, match="cannot be reached"):
        await upstream.request(b"GET", b"/", b"")


async def test_closing_the_upstream_ends_what_runs(tmp_path):
    async def handler(stream):
        await read_request(stream)
        await trio.sleep_forever()

    async with worker(tmp_path / "w.sock", handler) as upstream:
        response = await upstream.request(b"POST", b"/", b"")
        async with trio.open_nursery() as nursery:

            async def wait() -> None:
                with pytest.raises(WorkerDied):
                    await response.head()

            nursery.start_soon(wait)
            await trio.testing.wait_all_tasks_blocked()
            upstream.close()
        with pytest.raises(WorkerDied, match="stopping"):
            await upstream.request(b"POST", b"/", b"")


CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"


@pytest.mark.parametrize(
    ("pieces", "taken"),
    [
        ([b"1\r\nb\r\n", b"2\r\ncc\r\n", b"0\r\n\r\n"], [b"1\r\nb\r\n", b"2\r\ncc\r\n"]),
        ([b"1\r\nb\r\n", b"2\r\nc", b"d\r\n", b"0\r\n\r\n"], [b"1\r\nb\r\n", b"c", b"d"]),
        ([b"1\r\nb\r\n2\r\ncd\r\n", b"0\r\n\r\n"], [b"bcd"]),
        ([b"2\r\nun\r\n", b"2\r\ncd\r\n", b"0\r\n\r\n"], [b"un", b"2\r\ncd\r\n"]),
        ([b"2;x=y\r\ncd\r\n", b"0\r\n\r\n"], [b"cd"]),
        ([b"02\r\ncd\r\n", b"0\r\n\r\n"], [b"cd"]),
        ([b"2", b"\r\n", b"cd\r\n", b"0\r\n\r\n"], [b"cd"]),
        ([b"1\r\nb\r\n", b"2\r\ncc\r\n0\r\n\r\n"], [b"1\r\nb\r\n"]),
        ([b"2\r\nno\r\n0\r\n\r\n"], []),
    ],
    ids=[
        "whole", "in pieces", "two at once", "unframed", "extension", "other spelling", "head",
        "with the end", "at once",
    ],
)  # fmt: skip
async def test_what_is_pumped_and_what_is_received_are_the_body(tmp_path, pieces, taken):
    """Each piece is one read of its own: the next is sent once the one before it was read."""
    go_on = trio.Event()

    async def handler(stream):
        await read_request(stream)
        await stream.send_all(CHUNKED + b"1\r\na\r\n")
        await go_on.wait()
        for piece in pieces:
            await stream.send_all(piece)
            await trio.testing.wait_all_tasks_blocked()
        await trio.sleep_forever()

    seen = []

    def take(data, framed, _now):
        if framed and data.startswith(b"2\r\nun"):
            return None
        seen.append(data)
        return 0.0

    pump = Pump()
    with pump.attach():
        async with worker(tmp_path / "s", handler) as upstream:
            response = await upstream.request(b"GET", b"/", b"")
            await response.head()
            assert await response.receive() == b"a"
            go_on.set()
            await response.pumped(pump, take)
            rest = await response.read(100)
            assert seen == taken
            assert response.complete
            body = b"".join(unframed(data) for data in seen) + rest
            assert body == dechunked(b"".join(pieces))


def unframed(data):
    return data[data.index(b"\r\n") + 2 : -2] if data.endswith(b"\r\n") else data


def dechunked(data):
    body = b""
    while data:
        head, data = data.split(b"\r\n", 1)
        size = int(head.split(b";")[0], 16)
        body, data = body + data[:size], data[size + 2 :]
    return body


async def test_what_is_no_http_is_told_when_it_is_received(tmp_path):
    async def handler(stream):
        await read_request(stream)
        await stream.send_all(CHUNKED + b"1\r\na\r\n")
        await trio.testing.wait_all_tasks_blocked()
        await stream.send_all(b"what?")
        await trio.sleep_forever()

    pump = Pump()
    with pump.attach():
        async with worker(tmp_path / "s", handler) as upstream:
            response = await upstream.request(b"GET", b"/", b"")
            await response.head()
            await response.receive()
            await response.pumped(pump, lambda _data, _framed, _now: 0.0)
            with pytest.raises(BadWorkerResponse):
                await response.receive()


async def test_bytes_that_are_not_taken_are_received(tmp_path):
    async def handler(stream):
        await read_request(stream)
        await stream.send_all(CHUNKED + b"1\r\na\r\n")
        await trio.testing.wait_all_tasks_blocked()
        await stream.send_all(b"2\r\nno\r\n")
        await trio.sleep_forever()

    pump = Pump()
    with pump.attach():
        async with worker(tmp_path / "s", handler) as upstream:
            response = await upstream.request(b"GET", b"/", b"")
            await response.head()
            assert await response.receive() == b"a"
            await response.pumped(pump, lambda _data, _framed, _now: None)
            assert await response.receive() == b"no"


async def test_a_worker_that_goes_while_pumped_is_a_death(tmp_path):
    async def handler(stream):
        await read_request(stream)
        await stream.send_all(CHUNKED + b"1\r\na\r\n")

    pump = Pump()
    with pump.attach():
        async with worker(tmp_path / "s", handler) as upstream:
            response = await upstream.request(b"GET", b"/", b"")
            await response.head()
            assert await response.receive() == b"a"
            await response.pumped(pump, lambda _data, _framed, _now: 0.0)
            with pytest.raises(WorkerDied):
                await response.receive()


async def test_an_upstream_that_is_closed_ends_the_pumping(tmp_path):
    async def handler(stream):
        await read_request(stream)
        await stream.send_all(CHUNKED + b"1\r\na\r\n")
        await trio.sleep_forever()

    pump = Pump()
    with pump.attach():
        async with worker(tmp_path / "s", handler) as upstream:
            response = await upstream.request(b"GET", b"/", b"")
            await response.head()
            assert await response.receive() == b"a"
            async with trio.open_nursery() as nursery:

                async def pumped():
                    with pytest.raises(WorkerDied):
                        await response.pumped(pump, lambda _data, _framed, _now: 0.0)

                nursery.start_soon(pumped)
                await trio.testing.wait_all_tasks_blocked()
                upstream.close()
