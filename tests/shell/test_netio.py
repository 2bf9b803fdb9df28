"""The socket stream keeps trio's promises although it seldom yields."""

from __future__ import annotations

import socket

import pytest
import trio
import trio.testing

from llmd.netio import SocketStream


@pytest.fixture
async def pair():
    ours, theirs = socket.socketpair()
    theirs.setblocking(False)
    stream = SocketStream(ours)
    yield stream, theirs
    stream.close()
    theirs.close()


async def test_bytes_go_both_ways(pair):
    stream, peer = pair
    await stream.send_all(b"hello")
    assert peer.recv(10) == b"hello"
    peer.send(b"world")
    with trio.fail_after(5):
        assert await stream.receive_some() == b"world"


async def test_a_send_larger_than_the_kernel_takes_waits_for_the_peer(pair):
    stream, peer = pair
    size = 4_000_000
    got = bytearray()

    async def read() -> None:
        while len(got) < size:
            await trio.lowlevel.wait_readable(peer)
            got.extend(peer.recv(65536))

    with trio.fail_after(10):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(read)
            await stream.send_all(bytes(size))
    assert len(got) == size


async def test_a_peer_that_takes_nothing_breaks_the_stream():
    ours, theirs = socket.socketpair()
    with theirs:
        stream = SocketStream(ours, send_timeout_s=0.05)
        with trio.fail_after(10), pytest.raises(trio.BrokenResourceError):
            await stream.send_all(bytes(10_000_000))
        stream.close()


async def test_the_end_is_told_once(pair):
    stream, peer = pair
    told = []
    stream.on_eof = lambda: told.append(1)
    peer.shutdown(socket.SHUT_WR)
    with trio.fail_after(5):
        assert await stream.receive_some() == b""
        assert await stream.receive_some() == b""
    assert told == [1]


async def test_closing_wakes_the_reader(pair):
    stream, _ = pair
    with trio.fail_after(5), pytest.RaisesGroup(trio.ClosedResourceError):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(stream.receive_some)
            await trio.testing.wait_all_tasks_blocked()
            stream.close()


async def test_a_closed_stream_says_so(pair):
    stream, _ = pair
    stream.close()
    for call in (stream.send_all(b"x"), stream.receive_some(), stream.send_eof()):
        with pytest.raises(trio.ClosedResourceError):
            await call


async def test_only_one_task_may_receive(pair):
    stream, peer = pair
    async with trio.open_nursery() as nursery:
        nursery.start_soon(stream.receive_some)
        await trio.testing.wait_all_tasks_blocked()
        with pytest.raises(trio.BusyResourceError):
            await stream.receive_some()
        peer.send(b"x")


async def test_a_cancelled_receive_loses_nothing(pair):
    stream, peer = pair
    with trio.move_on_after(0):
        await stream.receive_some()
    peer.send(b"kept")
    with trio.fail_after(5):
        assert await stream.receive_some() == b"kept"
