"""The shell around the policy: leases wait, are granted, and always come back."""

from __future__ import annotations

import math
import random
from collections import Counter
from contextlib import asynccontextmanager, contextmanager

import pytest
import trio
import trio.testing

from llmd import errors
from llmd.core.events import (
    Admission,
    DrainWorker,
    Grant,
    Queued,
    Refusal,
    Reject,
    Rule,
    StartWorker,
    StopWorker,
    SwitchRequested,
    UnloadRequested,
    WorkerChanged,
)
from llmd.core.lifecycle import WORKER_MOVES, Priority, WorkerState, move
from llmd.core.policy import ModelInfo, PolicySettings, SchedulerState
from llmd.scheduler import Scheduler, refusal

W = WorkerState
LOAD_S = 2.0
STOP_S = 0.5


def ask(request_id: str, model: str = "a", **more) -> Queued:
    fields = {
        "key": "k",
        "priority": Priority.NORMAL,
        "weight": 1.0,
        "tokens": 100,
        "slots": 1,
        "context_tokens": 0,
        "concurrency": 0,
        "admin": False,
        "arrived": trio.current_time(),
    }
    return Queued(id=request_id, model=model, **(fields | more))


class FakeWorkers:
    """What the supervisor does, without processes: every call returns before anything happens.

    A load takes LOAD_S, a stop STOP_S; a model in `broken` fails instead of being ready.
    """

    def __init__(self, slots: int) -> None:
        self.slots = slots
        self.scheduler: Scheduler | None = None
        self.broken: set[str] = set()
        self.states: dict[str, WorkerState] = {}
        self.calls: list[tuple[float, str, str, str]] = []
        self._orders, self._taken = trio.open_memory_channel(math.inf)
        self._lives: Counter[str] = Counter()  # a timer of an older life is ignored

    def start(self, model: str, *, context_tokens: int, reason: str) -> None:
        self._order("start", model, reason)

    def drain(self, model: str) -> None:
        self._order("drain", model, "")

    def stop(self, model: str, *, reason: str) -> None:
        self._order("stop", model, reason)

    def _order(self, call: str, model: str, reason: str) -> None:
        self.calls.append((trio.current_time(), call, model, reason))
        self._orders.send_nowait((call, model))

    async def run(self, nursery: trio.Nursery) -> None:
        async for call, model in self._taken:
            state = self.states.get(model, W.OFF)
            if call == "drain":
                if state is W.READY:
                    self._announce(model, W.DRAINING)
            elif call == "start" and state is W.DRAINING:
                self._announce(model, W.READY)
            else:
                self._lives[model] += 1
                self._announce(model, W.STARTING if call == "start" else W.STOPPING)
                nursery.start_soon(self._load if call == "start" else self._end, model)

    async def _load(self, model: str) -> None:
        life = self._lives[model]
        await trio.sleep(LOAD_S)
        if life != self._lives[model]:
            return
        if model in self.broken:
            self._announce(model, W.FAILED, reason="exit code 1: bad magic")
        else:
            self._announce(model, W.READY, load_s=LOAD_S)

    async def _end(self, model: str) -> None:
        await trio.sleep(STOP_S)
        self._announce(model, W.OFF)

    def _announce(self, model: str, state: WorkerState, **more) -> None:
        ready = state is W.READY
        self.states[model] = move(WORKER_MOVES, self.states.get(model, W.OFF), state)
        assert self.scheduler is not None
        self.scheduler.worker_changed(
            WorkerChanged(
                model,
                state,
                slots=self.slots if ready else 0,
                context_tokens=4096 if ready else 0,
                **more,
            )
        )

    def said(self, *, since: int = 0) -> list[tuple[str, str]]:
        """Return which calls came for which model."""
        return [(call, model) for _, call, model, _ in self.calls[since:]]


class Rig:
    """A scheduler on fake workers, and what it did."""

    def __init__(self, models, slots: int, **settings) -> None:
        self.workers = FakeWorkers(slots)
        self.cancelled: list[str] = []
        self.actions: list[object] = []
        self.scheduler = Scheduler(
            SchedulerState(PolicySettings(**settings), models),
            workers=self.workers,
            cancel=lambda request_id, _rule: self.cancelled.append(request_id),
            on_action=self.actions.append,
        )
        self.workers.scheduler = self.scheduler

    async def load(self, model: str = "a") -> None:
        """Have `model` in memory, as an operator would."""
        self.scheduler.switch(SwitchRequested(model))
        while self.workers.states.get(model) is not W.READY:
            await self.scheduler.moved()

    async def use(self, item: Queued, for_s: float) -> None:
        """Be a request: wait for the lease, hold it, give it back."""
        with self.scheduler.lease(item) as lease:
            assert await lease.wait()
            await trio.sleep(for_s)

    def at_rest(self) -> bool:
        """Return whether nothing waits and nothing is leased, by every count there is."""
        now = self.scheduler.statistics()
        return not (
            now.queued
            or now.queued_tokens
            or now.running
            or now.keys
            or any(model.slots_busy for model in now.models)
            or any(self.scheduler.busy_slots(model.model) for model in now.models)
            or self.scheduler._leases
        )


@asynccontextmanager
async def rig(models=("a", "b"), *, slots=1, **settings):
    infos = [model if isinstance(model, ModelInfo) else ModelInfo(model) for model in models]
    with trio.fail_after(100_000):
        async with trio.open_nursery() as nursery:
            it = Rig(infos, slots, **settings)
            await nursery.start(it.scheduler.run)
            nursery.start_soon(it.workers.run, nursery)
            yield it
            assert it.at_rest()
            nursery.cancel_scope.cancel()


@contextmanager
def holding(it: Rig, item: Queued):
    """Hold a lease that is to be had at once."""
    with it.scheduler.lease(item) as lease:
        assert lease.grant is not None
        yield lease


# --- granted -------------------------------------------------------------------------------


async def test_a_lease_is_granted_at_once_where_a_slot_is_free(autojump_clock):
    async with rig() as it:
        await it.load()
        before = trio.current_time()
        with it.scheduler.lease(ask("r")) as lease:
            assert await lease.wait()
            assert lease.grant.slots == it.scheduler.busy_slots("a") == 1
            assert lease.why() is None
        assert trio.current_time() == before
        assert it.scheduler.busy_slots("a") == 0


async def test_a_lease_waits_for_its_model_to_load(autojump_clock):
    async with rig() as it:
        with it.scheduler.lease(ask("r")) as lease:
            assert lease.grant is None
            assert await lease.wait()
        assert it.workers.calls == [(0.0, "start", "a", "demand")]
        assert trio.current_time() == LOAD_S
        assert it.scheduler.active_model == "a"


async def test_a_lease_waits_for_a_slot_and_says_why(autojump_clock):
    async with rig() as it:
        await it.load()
        with it.scheduler.lease(ask("second")) as first, it.scheduler.lease(ask("r")) as lease:
            assert first.grant is not None
            assert not await lease.wait(5)
            assert lease.why().rule is Rule.SLOTS_BUSY
            assert lease.why().blockers == ("second",)
            assert [why.rule for why in it.scheduler.story("r")] == [Rule.SLOTS_BUSY]
            first.__exit__(None, None, None)
            assert await lease.wait(0)
            assert it.scheduler.story("r")[-1].rule is Rule.GRANTED


async def test_the_wait_can_be_taken_up_again_as_often_as_wished(autojump_clock):
    async with rig() as it:
        waits = 0
        with it.scheduler.lease(ask("r")) as lease:
            while not await lease.wait(0.3):
                waits += 1
            assert await lease.wait()
        assert waits == 6


async def test_how_long_it_takes_can_be_told_beforehand(autojump_clock):
    async with rig((ModelInfo("a", load_s=LOAD_S),)) as it:
        with it.scheduler.lease(ask("r")) as lease:
            assert lease.eta_s() == LOAD_S
            assert not await lease.wait(0.5)
            assert lease.eta_s() == LOAD_S - 0.5
            assert str(it.scheduler.load_progress("a")) == "~25%"
            it.scheduler.load_advanced("a", 0.5)
            assert str(it.scheduler.load_progress("a")) == "50%"
            await lease.wait()
            assert it.scheduler.load_progress("a") is None
            assert lease.eta_s() is None


async def test_what_was_really_used_is_charged_to_the_key(autojump_clock):
    async with rig(slots=3) as it:
        await it.load()
        with holding(it, ask("keeps its key active")):
            for used, counter in ((None, 200), (7, 207), (0, 207)):
                with holding(it, ask("r")) as lease:
                    lease.used_tokens = used
                (key,) = it.scheduler.statistics().keys
                assert key.counter == counter


# --- turned away ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("why", "error", "should_retry"),
    [
        (Refusal.QUEUE_FULL, errors.QueueFull, None),
        (Refusal.TOO_LARGE, errors.QueueFull, False),
        (Refusal.MODEL_FAILED, errors.ModelFailed, False),
        (Refusal.MODEL_NOT_LOADED, errors.ModelNotLoaded, None),
        (Refusal.INSUFFICIENT_MEMORY, errors.InsufficientMemory, None),
        (Refusal.SHUTTING_DOWN, errors.ShuttingDown, None),
    ],
)
def test_every_refusal_is_an_error_of_its_own(why, error, should_retry):
    made = refusal(Reject("r", why, "because", 7.5))
    assert type(made) is error
    assert (made.message, made.retry_after_s, made.should_retry) == ("because", 7.5, should_retry)
    assert made.status == 503


def test_a_refusal_for_good_says_that_another_try_is_no_use():
    no_room = Reject("r", Refusal.INSUFFICIENT_MEMORY, "", 60, final=True)
    assert refusal(no_room).should_retry is False


def test_no_refusal_is_without_its_error():
    for why in Refusal:
        refusal(Reject("r", why, "", 1))


async def test_turned_away_at_once(autojump_clock):
    async with rig(max_size=1, admin_quota=0) as it:
        with it.scheduler.lease(ask("waits")) as lease:
            with pytest.raises(errors.QueueFull) as caught:
                it.scheduler.lease(ask("r"))
            assert caught.value.retry_after_s > 0
            # a retry is no newcomer: no bound of the queue holds it off
            with it.scheduler.lease(ask("again"), again=True):
                assert it.scheduler.statistics().queued == 2
            assert await lease.wait()


async def test_turned_away_while_it_waits(autojump_clock):
    async with rig() as it:
        it.workers.broken.add("a")
        with it.scheduler.lease(ask("r")) as lease:
            with pytest.raises(errors.ModelFailed, match="bad magic") as caught:
                await lease.wait()
            assert caught.value.should_retry is False
            with pytest.raises(errors.ModelFailed):  # and it stays so
                await lease.wait()
            assert it.at_rest()
        with pytest.raises(errors.ModelFailed):
            it.scheduler.lease(ask("r"))


async def test_closed_admission_turns_away_and_keeps_what_waits(autojump_clock):
    async with rig() as it:
        with it.scheduler.lease(ask("waits")) as lease:
            it.scheduler.admit(is_open=False)
            with pytest.raises(errors.ShuttingDown):
                it.scheduler.lease(ask("r"))
            assert not await lease.wait(2 * LOAD_S)
            assert lease.why().rule is Rule.ADMISSION_CLOSED
            it.scheduler.admit(is_open=True)
            assert await lease.wait(0)


async def test_an_id_that_is_here_already_does_not_disturb_who_has_it(autojump_clock):
    async with rig() as it:
        await it.load()
        with holding(it, ask("r")):
            with pytest.raises(ValueError, match="'r'"):
                it.scheduler.lease(ask("r"))
            assert it.scheduler.busy_slots("a") == 1


# --- given back, whatever happens ----------------------------------------------------------


async def test_one_that_leaves_the_queue_leaves_at_once(autojump_clock):
    async with rig() as it:
        await it.load()
        with holding(it, ask("first")):
            with trio.move_on_after(1), it.scheduler.lease(ask("r", tokens=900)) as lease:
                await lease.wait()
            assert it.scheduler.statistics().queued_tokens == 0
            assert trio.current_time() == LOAD_S + 1


@pytest.mark.parametrize("grant_first", [True, False])
async def test_cancelled_while_it_is_being_granted_gives_the_grant_back(
    autojump_clock, grant_first
):
    async with rig() as it:
        await it.load()
        scope = trio.CancelScope()

        async def waiter() -> None:
            with scope, it.scheduler.lease(ask("waiter")) as lease:
                await lease.wait()
                await trio.lowlevel.checkpoint()
                raise AssertionError("it was cancelled")

        async with trio.open_nursery() as nursery:
            with it.scheduler.lease(ask("holder")) as holder:
                nursery.start_soon(waiter)
                await trio.testing.wait_all_tasks_blocked()
                for step in (1, 2):  # both before the waiter runs again
                    if grant_first is (step == 1):
                        holder.__exit__(None, None, None)
                        assert isinstance(it.actions[-1], Grant)
                        assert it.actions[-1].id == "waiter"
                    else:
                        scope.cancel()
                assert it.scheduler.busy_slots("a") == 1
        assert it.at_rest()
        with holding(it, ask("next")):
            pass


async def test_an_exception_under_the_lease_gives_it_back(autojump_clock):
    async with rig() as it:
        await it.load()
        with pytest.raises(errors.WorkerDied), holding(it, ask("r")):
            raise errors.WorkerDied("gone", answered=False)
        with holding(it, ask("r")):  # the same id, for its retry
            pass


async def test_leaving_twice_gives_back_once(autojump_clock):
    async with rig(slots=2) as it:
        await it.load()
        with holding(it, ask("other")), holding(it, ask("r")) as lease:
            lease.__exit__(None, None, None)
            assert it.scheduler.busy_slots("a") == 1


@pytest.mark.parametrize("seed", range(12))
async def test_nothing_is_left_after_any_mix_of_cancels(autojump_clock, seed):
    dice = random.Random(seed)
    ends: Counter[str] = Counter()

    async def request(it: Rig, number: int) -> None:
        await trio.sleep(dice.choice([0, 0, 1, 2.5, LOAD_S, LOAD_S + STOP_S]) * number / 8)
        width = dice.choice([1, 1, 2])
        item = ask(f"r{number}", dice.choice("abc"), slots=width, key=dice.choice("kl"))
        with trio.move_on_after(dice.choice([0, 0.5, LOAD_S, 3, 8, 40, math.inf])) as scope:
            try:
                with it.scheduler.lease(item) as lease:
                    while not await lease.wait(dice.choice([0.25, math.inf])):
                        assert lease.why() is not None
                    assert it.workers.states[item.model] in (W.READY, W.DRAINING)
                    await trio.sleep(dice.choice([0, 0.5, 3]))
            except errors.QueueFull:
                ends["refused"] += 1
        ends["cancelled" if scope.cancelled_caught else "over"] += 1

    limits = {"max_size": 12, "admin_quota": 0, "max_delay_sec": 4.0, "min_residency_sec": 1.0}
    async with rig("abc", slots=2, max_loaded=1 + seed % 3, **limits) as it:
        async with trio.open_nursery() as nursery:
            for number in range(40):
                nursery.start_soon(request, it, number)
        assert it.at_rest()
        await it.scheduler.quiet()
        assert ends["cancelled"] > 5
        assert ends["over"] > 5


# --- deciding ------------------------------------------------------------------------------


async def test_what_an_action_brings_about_is_decided_after_it(autojump_clock):
    order: list[str] = []

    class Hasty:
        """Workers that announce their moves within the call."""

        scheduler: Scheduler

        def start(self, model: str, *, context_tokens: int, reason: str) -> None:
            order.append(f"start {model}")
            self.scheduler.worker_changed(WorkerChanged(model, W.STARTING))
            self.scheduler.worker_changed(WorkerChanged(model, W.READY, slots=1))
            order.append("start is over")

        def drain(self, model: str) -> None:
            raise AssertionError

        def stop(self, model: str, *, reason: str) -> None:
            order.append(f"stop {model}")
            assert self.scheduler.post(Admission(open=True)) == []
            self.scheduler.worker_changed(WorkerChanged(model, W.OFF))

    workers = Hasty()
    scheduler = workers.scheduler = Scheduler(
        SchedulerState(PolicySettings(min_residency_sec=0), [ModelInfo("a"), ModelInfo("b")]),
        workers=workers,
        cancel=lambda _id, _rule: None,
        on_action=lambda action: order.append(type(action).__name__),
    )
    with scheduler.lease(ask("r")) as lease:
        assert lease.grant is not None
    assert order == ["start a", "start is over", "StartWorker", "Grant"]
    order.clear()
    done = scheduler.switch(SwitchRequested("b"))
    assert [type(action) for action in done] == [StopWorker, StartWorker]
    assert order == ["stop a", "StopWorker", "start b", "start is over", "StartWorker"]


async def test_a_fault_in_a_call_leaves_the_scheduler_usable(autojump_clock):
    async with rig() as it:
        with pytest.raises(TypeError):
            it.scheduler.post("no event")
        await it.load()


# --- time ----------------------------------------------------------------------------------


async def test_a_model_without_work_goes_when_its_time_has_come(autojump_clock):
    async with rig((ModelInfo("a", idle_timeout_s=60),)) as it:
        await it.use(ask("r"), for_s=10)
        used = trio.current_time()
        while it.workers.states["a"] is not W.OFF:
            await it.scheduler.moved()
        assert it.workers.calls[1:] == [(used + 60, "stop", "a", "idle_timeout")]


async def test_one_held_back_has_its_model_loaded_after_max_delay(autojump_clock):
    async with rig(max_delay_sec=30) as it:
        await it.load("a")
        await trio.sleep(5)  # min_residency_sec is over
        async with trio.open_nursery() as nursery:
            nursery.start_soon(it.use, ask("long"), 50)
            await trio.testing.wait_all_tasks_blocked()
            asked = trio.current_time()
            nursery.start_soon(it.use, ask("r", "b"), 1)
            await trio.testing.wait_all_tasks_blocked()
            assert it.scheduler.explain("r").rule is Rule.MODEL_NOT_LOADED
        assert [call[:3] for call in it.workers.calls[1:]] == [
            (asked + 30, "drain", "a"),
            (asked + 50, "stop", "a"),
            (asked + 50 + STOP_S, "start", "b"),
        ]


async def test_a_deadline_that_comes_nearer_is_heard(autojump_clock):
    async with rig(max_delay_sec=1000) as it:
        await it.load("a")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(it.use, ask("long"), 500)
            nursery.start_soon(it.use, ask("patient", "b"), 0)
            await trio.testing.wait_all_tasks_blocked()
            it.scheduler.switch(SwitchRequested("b", drain_s=7))
            asked = trio.current_time()
            while not it.cancelled:
                await trio.sleep(1)
            assert it.cancelled == ["long"]
            assert trio.current_time() - asked < 9
            nursery.cancel_scope.cancel()


# --- operators -----------------------------------------------------------------------------


async def test_a_switch_from_end_to_end(autojump_clock):
    async with rig() as it:
        await it.load("a")
        assert it.scheduler.active_model == "a"
        assert it.scheduler.context_tokens("a") == 4096
        plan = it.scheduler.plan(SwitchRequested("b"))
        assert (plan.evict, plan.fits, plan.loaded) == (("a",), True, False)
        assert it.workers.said() == [("start", "a")]  # a plan does nothing
        async with trio.open_nursery() as nursery:
            nursery.start_soon(it.use, ask("runs"), 10)
            await trio.testing.wait_all_tasks_blocked()
            actions = it.scheduler.switch(SwitchRequested("b"))
            assert actions == [DrainWorker("a", Rule.OPERATOR, "b")]
            assert it.scheduler.active_model == "b"
            nursery.start_soon(it.use, ask("waits", "b"), 1)
        assert it.workers.said(since=1) == [("drain", "a"), ("stop", "a"), ("start", "b")]
        assert it.workers.states == {"a": W.OFF, "b": W.READY}
        assert it.cancelled == []
        assert it.scheduler.statistics().loaded == ("b",)
        assert it.scheduler.context_tokens("b") == 4096
        assert it.scheduler.context_tokens("c") == 0


async def test_a_forced_switch_cancels_what_runs(autojump_clock):
    async with rig() as it:
        await it.load("a")
        with holding(it, ask("runs")):
            it.scheduler.switch(SwitchRequested("b", force=True))
            assert it.cancelled == ["runs"]
            assert ("stop", "a") not in it.workers.said()
        assert it.workers.said()[-1] == ("stop", "a")
        while it.workers.states.get("b") is not W.READY:
            await it.scheduler.moved()


async def test_a_switch_taken_back_lets_the_draining_model_serve_again(autojump_clock):
    async with rig() as it:
        await it.load("a")
        with holding(it, ask("runs")):
            it.scheduler.switch(SwitchRequested("b"))
            await it.scheduler.moved()
            assert it.workers.states["a"] is W.DRAINING
            it.scheduler.switch(SwitchRequested("a"))
            await it.scheduler.moved()
            assert it.workers.states["a"] is W.READY
        assert it.workers.said()[-1] == ("start", "a")
        with holding(it, ask("next")):
            pass


async def test_an_unload(autojump_clock):
    async with rig() as it:
        await it.load("a")
        with holding(it, ask("runs")):
            assert it.scheduler.unload(UnloadRequested("a")) == [DrainWorker("a", Rule.OPERATOR)]
            await trio.testing.wait_all_tasks_blocked()
            assert it.workers.said()[-1] == ("drain", "a")
        assert it.workers.said()[-1] == ("stop", "a")
        await it.scheduler.moved()
        assert not it.scheduler.unload(UnloadRequested("a"))


async def test_stop_all_turns_away_what_is_queued_and_unloads_all(autojump_clock):
    async with rig("abc", max_loaded=2) as it:
        await it.load("a")
        await it.load("b")
        with (
            holding(it, ask("runs")),
            it.scheduler.lease(ask("queued")) as queued,
            it.scheduler.lease(ask("other", "c")) as other,
        ):
            it.scheduler.stop_all()
            for lease in (queued, other):
                with pytest.raises(errors.ShuttingDown):
                    await lease.wait()
            assert set(it.workers.said(since=2)) == {("drain", "a"), ("stop", "b")}
        assert it.workers.said()[-1] == ("stop", "a")
        while set(it.workers.states.values()) != {W.OFF}:
            await it.scheduler.moved()
        await it.use(ask("next"), for_s=0)  # loads again: admission is open


async def test_stop_all_leaves_admission_closed_where_it_was(autojump_clock):
    async with rig() as it:
        it.scheduler.admit(is_open=False)
        it.scheduler.stop_all()
        with pytest.raises(errors.ShuttingDown):
            it.scheduler.lease(ask("r"))


async def test_quiet_comes_with_the_last_lease(autojump_clock):
    async with rig(slots=2) as it:
        await it.scheduler.quiet()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(it.use, ask("r1"), 10)
            nursery.start_soon(it.use, ask("r2"), 20)
            await it.scheduler.quiet()  # none is held yet: the model loads
            assert trio.current_time() < LOAD_S
            await trio.sleep(LOAD_S + 1)
            await it.scheduler.quiet()
            assert trio.current_time() == LOAD_S + 20
        with holding(it, ask("r3")), trio.move_on_after(5) as scope:
            await it.scheduler.quiet()
        assert scope.cancelled_caught


async def test_quiet_holds_on_while_one_lease_hands_over_to_the_next(autojump_clock):
    async with rig() as it:
        await it.load()
        async with trio.open_nursery() as nursery:
            for number in range(3):
                nursery.start_soon(it.use, ask(f"r{number}"), 10)
            await trio.testing.wait_all_tasks_blocked()
            await it.scheduler.quiet()
            assert trio.current_time() == LOAD_S + 30


async def test_the_actions_of_a_model_that_comes_are_told(autojump_clock):
    async with rig() as it:
        await it.use(ask("r"), for_s=0)
        start, grant = it.actions
        assert start == StartWorker("a", Rule.DEMAND, "r")
        assert (grant.id, grant.model, grant.slots) == ("r", "a", 1)
