"""One worker's moves, on a clock that jumps: starts, stops, drains, crashes, and who is told."""

from __future__ import annotations

from contextlib import asynccontextmanager

import pytest
import trio
from fake_worker_parts import FakeLauncher, Script, spec

from llmd.core.lifecycle import WORKER_MOVES, WorkerState
from llmd.errors import ConfigError, StartFailed
from llmd.workers.diagnosis import ExitCause
from llmd.workers.settings import WorkerSettings
from llmd.workers.worker import Worker

SETTINGS = WorkerSettings(backoff_base_s=1, restart_limit=3, restart_window_s=100)


class Watched:
    """A worker, its fake processes, and what it announced."""

    def __init__(self, *scripts, settings=SETTINGS, specs=None):
        self.launcher = FakeLauncher(m=scripts or [Script()])
        self.changes = []
        self.times = []
        self.progress = []
        self.asked_context = []
        self.began = trio.current_time()
        self.worker = Worker(
            "m",
            spec=specs or self._spec,
            settings=settings,
            on_change=self._note,
            tools=self.launcher.tools(),
            on_reclaimed=lambda seconds: None,
            on_progress=lambda fraction: self.progress.append(fraction),
        )

    def _spec(self, context_tokens):
        self.asked_context.append(context_tokens)
        return spec("m", context_tokens)

    def _note(self, change):
        old = self.changes[-1].state if self.changes else WorkerState.OFF
        assert change.state in WORKER_MOVES[old]
        assert change.state is self.worker.state
        serving = change.state in (WorkerState.READY, WorkerState.DRAINING)
        assert (self.worker.upstream is not None) == serving
        assert (change.slots > 0) == serving
        self.changes.append(change)
        self.times.append(trio.current_time() - self.began)

    @property
    def states(self):
        return [change.state.value for change in self.changes]

    @property
    def child(self):
        return self.launcher.children[-1]

    async def until(self, state):
        while self.worker.state.value != state:
            await self.worker.moved()


@asynccontextmanager
async def watched(*scripts, **options):
    watched = Watched(*scripts, **options)
    with trio.fail_after(10_000):
        async with trio.open_nursery() as nursery:
            await nursery.start(watched.worker.run)
            yield watched
            nursery.cancel_scope.cancel()
    assert not watched.launcher.running
    assert all(child.status is not None for child in watched.launcher.children)


async def test_it_starts_loads_and_serves(autojump_clock):
    async with watched(Script(listen_s=0.5, load_s=2)) as it:
        await it.worker.ensure_ready(reason="demand")
        assert it.states == ["starting", "loading", "ready"]
        assert it.changes[-1].load_s == pytest.approx(2, rel=0.06)
        assert it.worker.statistics().starts == {"demand": 1}
        assert it.worker.upstream.pid == it.child.pid


async def test_it_tells_how_far_its_load_is_while_it_loads(autojump_clock):
    async with watched(Script(load_s=10, reports=True)) as it:
        it.worker.start()
        await it.until("loading")
        await trio.sleep(5)
        assert it.worker.statistics().load_fraction == pytest.approx(0.5, abs=0.05)
        assert it.progress == sorted(it.progress)
        assert it.progress[-1] == pytest.approx(0.5, abs=0.05)
        await it.until("ready")
        assert it.worker.statistics().load_fraction is None


async def test_how_each_process_ended_can_be_asked_for(autojump_clock):
    async with watched(Script(exit_s=1), Script()) as it:
        await it.worker.ensure_ready()
        first = it.child.pid
        assert it.worker.end_of(first) is None
        await it.until("backoff")
        assert it.worker.end_of(first).cause is ExitCause.EXITED
        assert it.worker.end_of(first + 1) is None
        await it.until("ready")
        it.worker.stop()
        await it.worker.stopped()
        assert it.worker.end_of(it.child.pid).cause is ExitCause.STOPPED


async def test_a_failure_says_whether_it_is_for_good(autojump_clock):
    bad = ("error: invalid argument: --nonsense",)
    async with watched(Script(exit_s=0.1, words=bad)) as it:
        it.worker.start()
        await it.until("failed")
        assert it.changes[-1].permanent
    async with watched(Script(exit_s=0.1)) as it:
        it.worker.start()
        await it.until("failed")
        assert not it.changes[-1].permanent
        assert it.changes[-1].retry_at > 0


async def test_a_load_of_a_tenth_second_is_seen_within_milliseconds(autojump_clock):
    async with watched(Script(listen_s=0.02, load_s=0.1)) as it:
        await it.worker.ensure_ready()
        assert it.times[-1] < 0.107


async def test_a_long_load_is_polled_seldom(autojump_clock):
    async with watched(Script(load_s=100, lines_s=10)) as it:
        await it.worker.ensure_ready()
        assert it.times[-1] < 100.3
        assert len(it.child.asked) < 700


async def test_starting_what_is_up_changes_nothing(autojump_clock):
    async with watched() as it:
        await it.worker.ensure_ready()
        it.worker.start(reason="again")
        await it.worker.ensure_ready()
        assert it.states == ["starting", "loading", "ready"]
        assert len(it.launcher.children) == 1


async def test_many_waiters_share_one_start(autojump_clock):
    async with watched(Script(load_s=5)) as it:
        async with trio.open_nursery() as nursery:
            for _ in range(5):
                nursery.start_soon(it.worker.ensure_ready)
        assert len(it.launcher.children) == 1


async def test_a_waiter_that_gives_up_leaves_the_load_alone(autojump_clock):
    async with watched(Script(load_s=5)) as it:
        with trio.move_on_after(1):
            await it.worker.ensure_ready()
        assert it.worker.state is WorkerState.LOADING
        await it.worker.ensure_ready()
        assert len(it.launcher.children) == 1


async def test_it_stops_and_starts_again(autojump_clock):
    async with watched(Script(stop_s=3)) as it:
        await it.worker.ensure_ready()
        upstream = it.worker.upstream
        it.worker.stop(reason="idle_timeout")
        await it.worker.stopped()
        assert it.states[-2:] == ["stopping", "off"]
        assert it.changes[-1].reason == "idle_timeout"
        assert upstream.closed
        assert it.child.terminated
        assert not it.child.killed
        await it.worker.ensure_ready()
        assert len(it.launcher.children) == 2
        assert it.worker.statistics().exits == {"stopped": 1}


async def test_what_ignores_sigterm_is_killed_after_the_timeout(autojump_clock):
    async with watched(Script(stop_s=float("inf"))) as it:
        await it.worker.ensure_ready()
        began = trio.current_time()
        it.worker.stop()
        await it.worker.stopped()
        assert trio.current_time() - began == pytest.approx(SETTINGS.stop_timeout_s)
        assert it.child.killed
        assert it.worker.statistics().exits == {"stopped": 1}


async def test_a_sigterm_that_was_missed_is_repeated(autojump_clock):
    async with watched(Script(deaf=1, stop_s=0.1)) as it:
        await it.worker.ensure_ready()
        began = trio.current_time()
        it.worker.stop()
        await it.worker.stopped()
        assert trio.current_time() - began == pytest.approx(1.1)
        assert not it.child.killed


async def test_a_forced_stop_kills_at_once_even_while_stopping(autojump_clock):
    async with watched(Script(stop_s=float("inf"))) as it:
        await it.worker.ensure_ready()
        began = trio.current_time()
        it.worker.stop()
        await it.until("stopping")
        it.worker.stop(force=True)
        await it.worker.stopped()
        assert trio.current_time() == began


@pytest.mark.parametrize("state", ["starting", "loading"])
async def test_a_start_can_be_stopped_half_way(state, autojump_clock):
    async with watched(Script(listen_s=10, load_s=100, lines_s=1)) as it:
        it.worker.start()
        await it.until(state)
        it.worker.stop(reason="changed my mind")
        await it.worker.stopped()
        assert it.states[-2:] == ["stopping", "off"]


async def test_who_waits_for_a_start_that_is_stopped_is_told(autojump_clock):
    async with watched(Script(load_s=100, lines_s=1)) as it, trio.open_nursery() as nursery:

        @nursery.start_soon
        async def wait():
            with pytest.raises(StartFailed, match="operator") as failed:
                await it.worker.ensure_ready()
            assert not failed.value.permanent

        await it.until("loading")
        it.worker.stop(reason="operator")


async def test_a_start_while_it_stops_starts_it_afterwards(autojump_clock):
    async with watched(Script(stop_s=3)) as it:
        await it.worker.ensure_ready()
        it.worker.stop()
        await it.until("stopping")
        await it.worker.ensure_ready(context_tokens=4096, reason="context")
        assert it.states[-5:] == ["stopping", "off", "starting", "loading", "ready"]
        assert it.asked_context == [0, 4096]
        assert it.worker.statistics().starts == {"": 1, "context": 1}


async def test_a_stop_after_that_start_wins(autojump_clock):
    async with watched(Script(stop_s=3)) as it:
        await it.worker.ensure_ready()
        it.worker.stop()
        await it.until("stopping")
        it.worker.start()
        it.worker.stop()
        await it.worker.stopped()
        assert it.states[-1] == "off"
        assert len(it.launcher.children) == 1


async def test_draining_keeps_the_way_open_and_a_start_undoes_it(autojump_clock):
    async with watched() as it:
        await it.worker.ensure_ready()
        upstream = it.worker.upstream
        it.worker.drain()
        await it.until("draining")
        assert it.worker.upstream is upstream
        assert not upstream.closed
        it.worker.start()
        await it.until("ready")
        assert it.worker.upstream is upstream
        assert len(it.launcher.children) == 1


async def test_draining_then_stopping(autojump_clock):
    async with watched() as it:
        await it.worker.ensure_ready()
        it.worker.drain()
        it.worker.stop()
        await it.worker.stopped()
        assert it.states[-3:] == ["draining", "stopping", "off"]


async def test_a_crash_is_restarted_after_a_wait_that_doubles(autojump_clock):
    crash = Script(load_s=0.1, exit_s=10, status=-11, words=("GGML_ASSERT(x) failed",))
    async with watched(crash, crash, Script()) as it:
        await it.worker.ensure_ready()
        await it.until("backoff")
        first = it.changes[-1]
        assert "SIGSEGV" in first.reason
        assert "GGML_ASSERT(x) failed" in first.reason
        assert first.retry_at - trio.current_time() == pytest.approx(1)
        await it.until("ready")
        await it.until("backoff")
        assert it.changes[-1].retry_at - trio.current_time() == pytest.approx(2)
        await it.until("ready")
        statistics = it.worker.statistics()
        assert statistics.crashes == statistics.crashes_counted == 2
        assert statistics.exits == {"killed": 2}
        assert statistics.starts == {"": 1, "restart": 2}
        assert statistics.last_failure == first.reason
        assert statistics.reason == ""


async def test_the_restart_keeps_the_context_it_had(autojump_clock):
    async with watched(Script(load_s=0.1, exit_s=1), Script()) as it:
        await it.worker.ensure_ready(context_tokens=9000)
        await it.until("backoff")
        await it.until("ready")
        assert it.asked_context == [9000, 9000]


async def test_a_crash_loop_fails_and_expires_with_the_window(autojump_clock):
    async with watched(Script(exit_s=0.05, words=("boom",))) as it:
        with pytest.raises(StartFailed, match="boom") as failed:
            await it.worker.ensure_ready()
        assert not failed.value.permanent
        assert it.states == ["starting", "loading", "backoff"] * 2 + [
            "starting",
            "loading",
            "failed",
        ]
        first_crash = it.times[2]
        assert it.changes[-1].retry_at - it.began == pytest.approx(first_crash + 100)
        await it.until("off")
        assert it.times[-1] == pytest.approx(first_crash + 100)


async def test_a_start_may_be_asked_for_while_failed(autojump_clock):
    async with watched(*[Script(exit_s=0.05)] * 3, Script()) as it:
        with pytest.raises(StartFailed):
            await it.worker.ensure_ready()
        await it.worker.ensure_ready()
        assert it.states[-1] == "ready"


async def test_reset_forgets_crashes_and_makes_it_off(autojump_clock):
    async with watched(*[Script(exit_s=0.05)] * 3, Script()) as it:
        with pytest.raises(StartFailed):
            await it.worker.ensure_ready()
        it.worker.reset()
        await it.until("off")
        assert it.worker.statistics().crashes_counted == 0
        assert it.worker.statistics().crashes == 3


async def test_reset_ends_a_backoff_at_once(autojump_clock):
    async with watched(Script(exit_s=0.05), Script()) as it:
        it.worker.start()
        await it.until("backoff")
        began = trio.current_time()
        it.worker.reset()
        await it.until("starting")
        assert trio.current_time() == began


async def test_a_stop_ends_a_backoff(autojump_clock):
    async with watched(Script(exit_s=0.05)) as it:
        it.worker.start()
        await it.until("backoff")
        it.worker.stop(reason="operator")
        await it.worker.stopped()
        assert it.states[-1] == "off"
        await trio.sleep(50)
        assert it.states[-1] == "off"


async def test_waiting_goes_on_through_a_backoff(autojump_clock):
    async with watched(Script(exit_s=0.05), Script()) as it:
        await it.worker.ensure_ready()
        assert "backoff" in it.states


async def test_a_start_in_backoff_does_not_cut_the_wait_short(autojump_clock):
    async with watched(Script(exit_s=0.05), Script()) as it:
        it.worker.start()
        await it.until("backoff")
        due = it.changes[-1].retry_at
        await it.worker.ensure_ready()
        assert trio.current_time() > due


async def test_a_permanent_fault_fails_at_once(autojump_clock):
    words = ("E gguf_init_from_reader: invalid magic characters: '????', expected 'GGUF'",)
    async with watched(Script(exit_s=0.05, words=words)) as it:
        with pytest.raises(StartFailed, match="invalid magic") as failed:
            await it.worker.ensure_ready()
        assert failed.value.permanent
        assert it.states == ["starting", "loading", "failed"]
        assert it.worker.statistics().crashes_counted == 0


async def test_words_of_an_earlier_process_are_not_held_against_a_later_one(autojump_clock):
    bad = Script(exit_s=0.05, words=("error: invalid argument: --x",))
    async with watched(bad, Script(exit_s=0.05), Script()) as it:
        with pytest.raises(StartFailed):
            await it.worker.ensure_ready()
        await it.worker.ensure_ready()
        assert "backoff" in it.states


@pytest.mark.parametrize(
    ("error", "permanent"),
    [
        (FileNotFoundError(2, "No such file or directory"), True),
        (PermissionError(13, "Permission denied"), True),
        (BlockingIOError(11, "Resource temporarily unavailable"), False),
        (StartFailed("another llmd", permanent=True), True),
    ],
)
async def test_what_cannot_be_spawned(error, permanent, autojump_clock):
    async with watched(Script(spawn_error=error), Script()) as it:
        it.worker.start()
        await it.until("failed" if permanent else "backoff")
        assert it.worker.statistics().exits == {"unstartable": 1}
        assert it.worker.statistics().pid == 0


async def test_settings_that_cannot_be_started(autojump_clock):
    def specs(_context):
        raise ConfigError(["models.m.draft: this llama-server does not know -md"])

    async with watched(specs=specs) as it:
        with pytest.raises(StartFailed, match="does not know -md") as failed:
            await it.worker.ensure_ready()
        assert failed.value.permanent
        with pytest.raises(StartFailed):
            await it.worker.ensure_ready()
        assert it.states == ["starting", "failed"] * 2


async def test_a_start_without_progress_is_given_up(autojump_clock):
    async with watched(Script(load_s=1e9), Script()) as it:
        it.worker.start()
        await it.until("backoff")
        assert it.times[-1] == pytest.approx(SETTINGS.startup_timeout_s, rel=0.01)
        assert it.launcher.children[0].killed
        assert "loads" in it.changes[-1].reason
        assert it.worker.statistics().exits == {"not_ready": 1}


async def test_a_start_that_never_listens_is_given_up(autojump_clock):
    async with watched(Script(listen_s=1e9), Script()) as it:
        it.worker.start()
        await it.until("backoff")
        assert "starting" in it.states
        assert "loading" not in it.states
        assert "cannot be reached" in it.changes[-1].reason


@pytest.mark.parametrize("progress", [{"lines_s": 30}, {"growth": 1 << 20}])
async def test_a_load_longer_than_the_timeout_is_fine_while_it_gets_on(progress, autojump_clock):
    async with watched(Script(load_s=1000, **progress)) as it:
        await it.worker.ensure_ready()
        assert it.worker.statistics().crashes == 0
        assert it.worker.statistics().load_s >= 1000


async def test_no_startup_timeout_means_for_ever(autojump_clock):
    settings = WorkerSettings(startup_timeout_s=0)
    async with watched(Script(load_s=5000), settings=settings) as it:
        await it.worker.ensure_ready()


async def test_another_model_than_asked_for_is_refused(autojump_clock):
    async with watched(Script(path="/models/other.gguf")) as it:
        with pytest.raises(StartFailed, match="other") as failed:
            await it.worker.ensure_ready()
        assert failed.value.permanent
        assert "ready" not in it.states
        assert it.worker.statistics().exits == {"identity": 1}


async def test_a_stranger_on_the_socket_is_refused(autojump_clock):
    async with watched(Script(stranger=True), Script()) as it:
        it.worker.start()
        await it.until("backoff")
        assert "not our" in it.changes[-1].reason
        await it.until("ready")


async def test_a_worker_that_hides_what_it_serves_is_refused(autojump_clock):
    async with watched(Script(props_status=401)) as it:
        with pytest.raises(StartFailed, match="401"):
            await it.worker.ensure_ready()


async def test_cancelled_it_kills_its_process(autojump_clock):
    async with watched(Script(stop_s=1e9)) as it:
        await it.worker.ensure_ready()
    assert it.child.killed


async def test_cancelled_in_a_start_it_tells_who_waits(autojump_clock):
    worker = Worker(
        "m",
        spec=lambda context: spec("m", context),
        settings=SETTINGS,
        on_change=lambda change: None,
        tools=FakeLauncher(m=[Script(load_s=100)]).tools(),
    )
    errors = []

    async def wait():
        try:
            await worker.ensure_ready()
        except StartFailed as error:
            errors.append(error.message)

    async with trio.open_nursery() as outer, trio.open_nursery() as nursery:
        await nursery.start(worker.run)
        outer.start_soon(wait)
        await trio.sleep(1)
        nursery.cancel_scope.cancel()
    assert errors == ["llmd is shutting down"]
    with pytest.raises(StartFailed):
        await worker.ensure_ready()
    await worker.stopped()
