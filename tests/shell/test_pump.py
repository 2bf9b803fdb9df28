"""Sockets that are served while the loop sleeps: nothing is missed, late or left behind."""

from __future__ import annotations

import contextlib
import itertools
import socket
import threading
from collections.abc import Iterator

import pytest
import trio
import trio.testing

from llmd.netio import SocketStream
from llmd.pump import DONE, Pump

GUARD_S = 10


def done_if(ended: bool) -> float:
    return DONE if ended else 0.0


@pytest.fixture(params=["attached", "woken"])
def attach(request: pytest.FixtureRequest) -> bool:
    """Tell whether the pump stands in the loop's place, or wakes the task for each read."""
    return bool(request.param == "attached")


@contextlib.contextmanager
def pumping(attach: bool) -> Iterator[Pump]:
    pump = Pump()
    with pump.attach() if attach else contextlib.nullcontext():
        assert pump.attached is attach
        yield pump


@contextlib.contextmanager
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    near, far = socket.socketpair()
    with near, far:
        near.setblocking(False)
        yield near, far


async def test_every_read_is_served_until_it_says_so(attach: bool) -> None:
    with trio.fail_after(GUARD_S), pumping(attach) as pump, pair() as (near, far):
        got: list[bytes] = []
        more = trio.lowlevel.current_trio_token().run_sync_soon

        def readable(now: float) -> float:
            assert now <= trio.current_time()
            got.append(near.recv(100))
            if len(got) < 5:
                more(far.send, b"%d" % len(got))
            return DONE if len(got) == 5 else 0.0

        far.send(b"0")
        await pump.run(near, readable)
        assert got == [b"0", b"1", b"2", b"3", b"4"]
        assert pump.served == (4 if attach else 0)


async def test_the_task_is_not_taken_up_for_a_read() -> None:
    with trio.fail_after(GUARD_S), pumping(True) as pump, pair() as (near, far):
        steps = 0

        class Steps(trio.abc.Instrument):
            def before_task_step(self, task: trio.lowlevel.Task) -> None:
                nonlocal steps
                steps += task.name.endswith("pumped")

        async def pumped() -> None:
            await pump.run(near, lambda _: done_if(near.recv(100) == b"end"))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(pumped)
            await trio.testing.wait_all_tasks_blocked()
            trio.lowlevel.add_instrument(counter := Steps())
            for _ in range(20):
                served = pump.served
                far.send(b"x")
                while pump.served == served:
                    await trio.lowlevel.checkpoint()
            assert steps == 0
            far.send(b"end")
        trio.lowlevel.remove_instrument(counter)
        assert steps == 1


async def test_deadlines_and_other_threads_are_served_in_time(attach: bool) -> None:
    with trio.fail_after(GUARD_S), pumping(attach) as pump, pair() as (near, _):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(pump.run, near, lambda _: DONE)
            for _ in range(5):
                with trio.move_on_after(0.01) as scope:
                    await trio.sleep_forever()
                assert scope.cancelled_caught
            told = trio.Event()
            token = trio.lowlevel.current_trio_token()
            thread = threading.Thread(target=token.run_sync_soon, args=(told.set,))
            await trio.testing.wait_all_tasks_blocked()
            thread.start()
            await told.wait()
            thread.join()
            nursery.cancel_scope.cancel()


async def test_a_busy_loop_serves_too(attach: bool) -> None:
    with trio.fail_after(GUARD_S), pumping(attach) as pump, pair() as (near, far):
        ended = trio.Event()

        async def pumped() -> None:
            await pump.run(near, lambda _: done_if(near.recv(1) == b"z"))
            ended.set()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(pumped)
            await trio.testing.wait_all_tasks_blocked()
            far.send(b"xyz")
            while not ended.is_set():
                await trio.lowlevel.checkpoint()


async def test_cancelled_it_stops_and_can_begin_again(attach: bool) -> None:
    with trio.fail_after(GUARD_S), pumping(attach) as pump, pair() as (near, far):
        for _ in range(3):
            with trio.move_on_after(0.001) as scope:
                await pump.run(near, lambda _: pytest.fail("nothing was sent"))
            assert scope.cancelled_caught
        far.send(b"x")
        await pump.run(near, lambda _: done_if(near.recv(1) == b"x"))


async def test_what_it_raises_reaches_the_task(attach: bool) -> None:
    def readable(_: float) -> float:
        raise LookupError("what is this")

    with trio.fail_after(GUARD_S), pumping(attach) as pump, pair() as (near, far):
        far.send(b"x")
        with pytest.raises(LookupError, match="what is this"):
            await pump.run(near, readable)
        assert near.recv(1) == b"x"


async def test_it_may_cancel_its_own_task(attach: bool) -> None:
    with trio.fail_after(GUARD_S), pumping(attach) as pump, pair() as (near, far):
        with trio.CancelScope() as scope:

            def readable(_: float) -> float:
                near.recv(1)
                scope.cancel()
                return 0.0

            far.send(b"x")
            await pump.run(near, readable)
        assert scope.cancelled_caught


async def test_an_end_and_a_cancel_at_once_wake_the_task_once(attach: bool) -> None:
    with trio.fail_after(GUARD_S), pumping(attach) as pump, pair() as (near, far):
        for _ in range(3):
            with trio.CancelScope() as scope:
                far.send(b"x")

                def readable(_: float, scope: trio.CancelScope = scope) -> float:
                    near.recv(1)
                    # comes between the end, which it returns, and the task's next turn
                    trio.lowlevel.current_trio_token().run_sync_soon(scope.cancel)
                    return DONE

                await pump.run(near, readable)
                await trio.lowlevel.checkpoint()
                await trio.sleep_forever()
            assert scope.cancelled_caught


async def test_a_pause_gathers_and_is_never_longer(attach: bool) -> None:
    """What comes in a pause is left for its end, unless it can go with another socket's."""
    with trio.fail_after(GUARD_S), pumping(attach) as pump, pair() as (near, far):
        called: list[float] = []
        send = trio.lowlevel.current_trio_token().run_sync_soon

        def readable(now: float) -> float:
            called.append(now)
            assert near.recv(100) == b"x"
            if len(called) < 4:
                send(far.send, b"x")
            return DONE if len(called) == 4 else 0.005

        far.send(b"x")
        await pump.run(near, readable, 0.005)
        gaps = [late - early for early, late in itertools.pairwise(called)]
        assert min(gaps) >= 0.0049


async def test_a_pause_without_bytes_ends_in_waiting_for_some() -> None:
    with trio.fail_after(GUARD_S), pumping(True) as pump, pair() as (near, far):
        calls: list[bytes] = []

        def readable(_: float) -> float:
            try:
                calls.append(near.recv(100))
            except BlockingIOError:
                calls.append(b"")
                trio.lowlevel.current_trio_token().run_sync_soon(far.send, b"end")
            return {b"x": 0.001, b"": 0.0, b"end": DONE}[calls[-1]]

        far.send(b"x")
        await pump.run(near, readable)
        assert calls == [b"x", b"", b"end"]


async def test_pauses_end_together() -> None:
    with trio.fail_after(GUARD_S), pumping(True) as pump, contextlib.ExitStack() as stack:
        pairs = [stack.enter_context(pair()) for _ in range(8)]
        times: dict[int, list[float]] = {number: [] for number in range(8)}
        async with trio.open_nursery() as nursery:
            for number, (near, far) in enumerate(pairs):
                far.send(b"x" * 100)

                def readable(now: float, number: int = number, near: socket.socket = near) -> float:
                    near.recv(1)
                    times[number].append(now)
                    return DONE if len(times[number]) == 20 else 0.005

                nursery.start_soon(pump.run, near, readable, 0.001 * number)
        assert len({at for seen in times.values() for at in seen}) < 30  # of 160, one by one


async def test_the_peers_end_is_readable(attach: bool) -> None:
    with trio.fail_after(GUARD_S), pumping(attach) as pump, pair() as (near, far):
        far.close()
        await pump.run(near, lambda _: done_if(near.recv(1) == b""))


async def test_many_sockets_at_once(attach: bool) -> None:
    with trio.fail_after(GUARD_S), pumping(attach) as pump, contextlib.ExitStack() as stack:
        pairs = [stack.enter_context(pair()) for _ in range(100)]
        async with trio.open_nursery() as nursery:
            for near, _ in pairs:
                nursery.start_soon(
                    pump.run, near, lambda _, near=near: done_if(near.recv(1) == b"e")
                )
            await trio.testing.wait_all_tasks_blocked()
            for byte in (b"a", b"b", b"e"):
                for _, far in pairs:
                    far.send(byte)


async def test_two_tasks_cannot_pump_one_socket() -> None:
    with trio.fail_after(GUARD_S), pumping(True) as pump, pair() as (near, _):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(pump.run, near, lambda _: DONE)
            await trio.testing.wait_all_tasks_blocked()
            with pytest.raises(trio.BusyResourceError):
                await pump.run(near, lambda _: DONE)
            nursery.cancel_scope.cancel()


async def test_a_stream_that_is_closed_meanwhile_says_so(attach: bool) -> None:
    with trio.fail_after(GUARD_S), pumping(attach) as pump, pair() as (near, _):
        stream = SocketStream(near)
        async with trio.open_nursery() as nursery:

            async def pumped() -> None:
                with pytest.raises(trio.ClosedResourceError):
                    await stream.pumped(pump, lambda _: DONE)

            nursery.start_soon(pumped)
            await trio.testing.wait_all_tasks_blocked()
            with pytest.raises(trio.BusyResourceError):
                await stream.receive_some()
            stream.close()
        with pytest.raises(trio.ClosedResourceError):
            await stream.pumped(pump, lambda _: DONE)


async def test_a_loop_that_hides_its_set_is_woken_as_usual(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("llmd.pump._epoll_of_trio", lambda: None)
    with trio.fail_after(GUARD_S), pair() as (near, far):
        pump = Pump()
        with pump.attach():
            assert not pump.attached
            far.send(b"x")
            await pump.run(near, lambda _: done_if(near.recv(1) == b"x"))
