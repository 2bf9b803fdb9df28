"""Many workers side by side: nothing that one does holds up another."""

from __future__ import annotations

from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio
from fake_worker_parts import FakeLauncher, Script, spec

from llmd.errors import StartFailed
from llmd.workers.settings import WorkerSettings
from llmd.workers.supervisor import Supervisor


class Watched:
    def __init__(self, **scripts):
        self.launcher = FakeLauncher(**scripts)
        self.changes = []
        self.reclaimed = []
        self.supervisor = Supervisor(
            specs=spec,
            settings=WorkerSettings(backoff_base_s=1),
            on_change=self.changes.append,
            runtime_dir=Path("/nowhere"),
            on_reclaimed=lambda *what: self.reclaimed.append(what),
            tools=self.launcher.tools(),
        )

    def states(self, model):
        return [change.state.value for change in self.changes if change.model == model]


@asynccontextmanager
async def watched(**scripts):
    it = Watched(**scripts)
    with trio.fail_after(10_000):
        async with trio.open_nursery() as nursery:
            await nursery.start(it.supervisor.run)
            yield it
            nursery.cancel_scope.cancel()
    assert not it.launcher.running


async def test_it_sweeps_before_it_is_up(autojump_clock):
    async with watched() as it:
        assert it.launcher.sweeps == 1


async def test_a_slow_load_and_a_crash_delay_nobody(autojump_clock):
    async with watched(
        slow=[Script(load_s=1000, lines_s=1)], broken=[Script(exit_s=0.01)], quick=[Script()]
    ) as it:
        began = trio.current_time()
        it.supervisor.start("slow")
        it.supervisor.start("broken")
        await it.supervisor.ensure_ready("quick")
        assert trio.current_time() - began < 0.2
        assert it.states("slow")[-1] == "loading"
        with pytest.raises(StartFailed):
            await it.supervisor.ensure_ready("broken")
        assert it.states("broken")[-1] == "failed"
        assert it.states("slow")[-1] == "loading"


async def test_calls_return_before_anything_happens(autojump_clock):
    async with watched() as it:
        it.supervisor.start("a", context_tokens=2048, reason="demand")
        it.supervisor.drain("a")
        it.supervisor.stop("a")
        it.supervisor.reset("a")
        assert it.changes == []


async def test_workers_appear_with_their_first_start_and_stay(autojump_clock):
    async with watched() as it:
        assert it.supervisor.worker("a") is None
        for call in (it.supervisor.drain, it.supervisor.stop, it.supervisor.reset):
            call("a")
        assert it.supervisor.workers() == ()
        worker = await it.supervisor.ensure_ready("a")
        it.supervisor.stop("a")
        await worker.stopped()
        assert it.supervisor.worker("a") is worker
        assert [entry.model for entry in it.supervisor.statistics()] == ["a"]
        await it.supervisor.ensure_ready("a")
        assert it.supervisor.statistics()[0].starts == {"": 2}


async def test_all_stop_side_by_side(autojump_clock):
    async with watched(a=[Script(stop_s=5)], b=[Script(stop_s=5)], c=[Script(stop_s=5)]) as it:
        for model in "abc":
            await it.supervisor.ensure_ready(model)
        began = trio.current_time()
        await it.supervisor.stop_all()
        assert trio.current_time() - began == pytest.approx(5)
        assert all(it.states(model)[-1] == "off" for model in "abc")
        assert {change.reason for change in it.changes[-3:]} == {"shutdown"}


async def test_what_does_not_stop_by_the_deadline_is_killed(autojump_clock):
    async with watched(a=[Script(stop_s=1e9)], b=[Script()]) as it:
        for model in "ab":
            await it.supervisor.ensure_ready(model)
        began = trio.current_time()
        await it.supervisor.stop_all(began + 2)
        assert trio.current_time() - began == pytest.approx(2)
        assert [child.killed for child in it.launcher.children] == [True, False]


async def test_a_deadline_that_has_passed_kills_at_once(autojump_clock):
    async with watched(a=[Script(stop_s=1e9)]) as it:
        await it.supervisor.ensure_ready("a")
        began = trio.current_time()
        await it.supervisor.stop_all(began)
        assert trio.current_time() == began
        assert it.launcher.children[0].killed


async def test_stopping_all_reaches_starts_backoffs_and_what_failed(autojump_clock):
    scripts = {
        "loading": [Script(load_s=1000, lines_s=1)],
        "crashing": [Script(exit_s=0.01)],
        "failed": [Script(spawn_error=FileNotFoundError(2, "No such file"))],
    }
    async with watched(**scripts) as it:
        for model in scripts:
            it.supervisor.start(model)
        await trio.sleep(0.5)
        assert it.states("crashing")[-1] == "backoff"
        it.supervisor.start("fresh")
        await it.supervisor.stop_all()
        assert it.states("loading")[-1] == "off"
        assert it.states("crashing")[-1] == "off"
        assert it.states("failed")[-1] == "failed"
        assert it.states("fresh")[-1] == "off"


async def test_nothing_starts_once_all_are_stopping(autojump_clock):
    async with watched() as it:
        await it.supervisor.ensure_ready("a")
        await it.supervisor.stop_all()
        it.supervisor.start("a")
        it.supervisor.start("b")
        with pytest.raises(StartFailed):
            await it.supervisor.ensure_ready("a")
        await trio.sleep(10)
        assert it.states("a")[-1] == "off"
        assert it.states("b") == []


async def test_cancels_are_reported_with_their_model(autojump_clock):
    async with watched() as it:
        worker = await it.supervisor.ensure_ready("a")
        worker.reclaim(lambda: 0, "client")
        await trio.sleep(1)
        assert [model for model, _ in it.reclaimed] == ["a"]
