"""Is it hung or busy, and does a cancel free its slot: on a clock that jumps."""

from __future__ import annotations

from dataclasses import replace

import pytest
import trio
from fake_worker_parts import Script
from test_worker_lifecycle import watched

from llmd.workers.reclaim import Work
from llmd.workers.settings import WorkerSettings

SETTINGS = WorkerSettings(backoff_base_s=1, health_interval_s=30, check_timeout_s=5)
NO_CHECKS = replace(SETTINGS, health_interval_s=0)


# --- hung or busy --------------------------------------------------------------------------


async def test_silence_on_health_is_a_hang_and_is_found_by_the_routine_check(autojump_clock):
    async with watched(settings=SETTINGS) as it:
        await it.worker.ensure_ready()
        ready_at = trio.current_time()
        it.child.silent = True
        await it.until("backoff")
        assert trio.current_time() - ready_at == pytest.approx(40.25, abs=0.1)
        assert "hangs" in it.changes[-1].reason
        assert "health check" in it.changes[-1].reason
        assert it.launcher.children[0].killed
        assert it.worker.statistics().exits == {"hung": 1}
        await it.until("ready")


async def test_a_suspicion_is_checked_at_once(autojump_clock):
    async with watched(settings=NO_CHECKS) as it:
        await it.worker.ensure_ready()
        it.child.silent = True
        began = trio.current_time()
        it.worker.suspect("no byte for 60 s")
        await it.until("backoff")
        assert trio.current_time() - began < 11
        assert "no byte for 60 s" in it.changes[-1].reason


async def test_an_unfounded_suspicion_changes_nothing(autojump_clock):
    async with watched(settings=NO_CHECKS) as it:
        await it.worker.ensure_ready()
        it.worker.suspect("nerves")
        await trio.sleep(100)
        assert it.states[-1] == "ready"
        assert [kind for kind, _ in it.child.asked][-2:] == ["health", "slots"]


async def test_many_suspicions_are_one_check(autojump_clock):
    async with watched(settings=NO_CHECKS) as it:
        await it.worker.ensure_ready()
        asked = len(it.child.asked)
        it.child.slots_silent = True
        it.child.cpu_share = 1.0
        for _ in range(20):
            it.worker.suspect("stall")
        await trio.sleep(100)
        assert len(it.child.asked) == asked + 1


async def test_a_worker_in_a_long_batch_is_busy_as_long_as_it_computes(autojump_clock):
    async with watched(settings=NO_CHECKS) as it:
        await it.worker.ensure_ready()
        it.child.slots_silent = True
        it.child.cpu_share = 0.9
        it.worker.suspect("no byte for 60 s")
        await trio.sleep(1000)
        assert it.states[-1] == "ready"


async def test_a_worker_that_computes_nothing_and_shows_no_slots_is_hung(autojump_clock):
    async with watched(settings=NO_CHECKS) as it:
        await it.worker.ensure_ready()
        it.child.slots_silent = True
        began = trio.current_time()
        it.worker.suspect("no byte for 60 s")
        await it.until("backoff")
        assert 25 < trio.current_time() - began < 35
        assert "computes nothing" in it.changes[-1].reason


async def test_a_worker_that_lacks_its_share_of_the_cpu_gets_more_time(autojump_clock):
    """Its /health is silent while it computes: the box is busy, and it may get over it."""
    async with watched(settings=NO_CHECKS) as it:
        await it.worker.ensure_ready()
        it.child.silent, it.child.cpu_share = True, 0.3
        it.worker.suspect("stall")
        await trio.sleep(20)
        assert it.states[-1] == "ready"
        it.child.silent = False
        await trio.sleep(100)
        assert it.states[-1] == "ready"


async def test_but_not_for_ever(autojump_clock):
    async with watched(settings=NO_CHECKS) as it:
        await it.worker.ensure_ready()
        it.child.silent, it.child.cpu_share = True, 1.0
        began = trio.current_time()
        it.worker.suspect("stall")
        await it.until("backoff")
        assert 25 < trio.current_time() - began < 35


async def test_a_worker_that_dies_while_it_is_checked_is_a_crash_not_a_hang(autojump_clock):
    async with watched(settings=NO_CHECKS) as it:
        await it.worker.ensure_ready()
        it.child.silent = True
        it.worker.suspect("stall")
        await trio.sleep(1)
        it.child.die(-6, ("GGML_ASSERT failed",))
        await it.until("backoff")
        assert it.worker.statistics().exits == {"killed": 1}


async def test_a_draining_worker_that_hangs_is_ended_and_not_restarted(autojump_clock):
    async with watched(settings=NO_CHECKS) as it:
        await it.worker.ensure_ready()
        it.worker.drain()
        await it.until("draining")
        it.child.silent = True
        it.worker.suspect("stall")
        await it.worker.stopped()
        assert it.states[-2:] == ["draining", "off"]
        await trio.sleep(100)
        assert it.states[-1] == "off"


async def test_a_suspicion_of_what_is_not_up_is_ignored(autojump_clock):
    async with watched(settings=NO_CHECKS) as it:
        it.worker.suspect("late")
        await it.worker.stopped()
        await it.worker.ensure_ready()
        it.worker.stop()
        await it.until("stopping")
        it.worker.suspect("late")
        await it.worker.stopped()
        assert it.worker.statistics().exits == {"stopped": 1}


# --- slots after cancels -------------------------------------------------------------------


class Leases:
    """What the scheduler would say."""

    def __init__(self, busy=0):
        self.busy = busy

    def __call__(self):
        return self.busy


async def ready(it, seconds):
    await it.worker.ensure_ready()
    it.worker._owner.watcher._on_reclaimed = seconds.append


async def test_a_slot_that_frees_is_timed(autojump_clock):
    seconds = []
    async with watched(settings=NO_CHECKS) as it:
        await ready(it, seconds)
        it.child.busy = 1
        it.worker.reclaim(Leases(), "client")
        await trio.sleep(0.2)
        assert it.worker.statistics().reclaims.pending == 1
        it.child.busy = 0
        await trio.sleep(1)
        assert seconds == [pytest.approx(0.2, rel=0.3)]
        reclaims = it.worker.statistics().reclaims
        assert (reclaims.reclaimed, reclaims.pending, reclaims.overdue) == (1, 0, 0)
        assert reclaims.slowest_s == seconds[0]


async def test_no_cancel_no_question(autojump_clock):
    async with watched(settings=NO_CHECKS) as it:
        await it.worker.ensure_ready()
        asked = len(it.child.asked)
        await trio.sleep(1000)
        assert len(it.child.asked) == asked


async def test_many_cancels_at_once_are_one_watch(autojump_clock):
    seconds = []
    async with watched(settings=NO_CHECKS) as it:
        await ready(it, seconds)
        asked = len(it.child.asked)
        for _ in range(1000):
            it.worker.reclaim(Leases(), "client")
        await trio.sleep(5)
        assert len(seconds) == 1000
        assert len(it.child.asked) == asked + 1


async def test_the_oldest_cancel_is_settled_first_and_one_a_slot(autojump_clock):
    seconds = []
    async with watched(settings=NO_CHECKS) as it:
        await ready(it, seconds)
        it.child.busy = 2
        it.worker.reclaim(Leases(), "client")
        it.worker.reclaim(Leases(), "client")
        await trio.sleep(0.3)
        it.child.busy = 1
        await trio.sleep(0.3)
        assert len(seconds) == 1
        it.child.busy = 0
        await trio.sleep(0.3)
        assert len(seconds) == 2


async def test_a_slot_that_stays_busy_restarts_the_worker_where_nothing_else_runs(autojump_clock):
    async with watched(settings=NO_CHECKS) as it:
        await it.worker.ensure_ready()
        it.child.busy = 1
        began = trio.current_time()
        it.worker.reclaim(Leases(), "operator")
        await it.until("backoff")
        assert 5 <= trio.current_time() - began < 6.2
        assert "slot not reclaimed" in it.changes[-1].reason
        assert "operator" in it.changes[-1].reason
        await it.until("ready")
        statistics = it.worker.statistics()
        assert statistics.exits == {"stuck_slot": 1}
        assert statistics.crashes == 0
        assert statistics.crashes_counted == 0
        assert statistics.reclaims.overdue == 1
        assert statistics.reclaims.unverified == 1


async def test_while_others_run_it_only_watches_and_reports(autojump_clock):
    leases = Leases(1)
    async with watched(settings=NO_CHECKS) as it:
        await it.worker.ensure_ready()
        it.child.busy = 2
        it.worker.reclaim(leases, "client")
        await trio.sleep(100)
        assert it.states[-1] == "ready"
        remarks = [line.text for line in it.worker.log.since(0) if "slot still busy" in line.text]
        assert len(remarks) == 2
        leases.busy, it.child.busy = 0, 1
        await it.until("backoff")


async def test_a_lease_that_only_waits_behind_the_stuck_slot_does_not_protect_it(autojump_clock):
    """Both slots are stuck; what was granted since waits inside the worker, and is retried."""
    async with watched(settings=NO_CHECKS) as it:
        await it.worker.ensure_ready()
        it.child.busy, it.child.deferred = 2, 1
        it.worker.reclaim(Leases(1), "client")
        it.worker.reclaim(Leases(1), "client")
        await it.until("backoff")
        assert it.worker.statistics().exits == {"stuck_slot": 1}


async def test_slots_full_of_accounted_work_are_no_surplus(autojump_clock):
    seconds = []
    async with watched(settings=NO_CHECKS) as it:
        await ready(it, seconds)
        it.child.busy = 2
        it.worker.reclaim(Leases(2), "client")
        await trio.sleep(1)
        assert len(seconds) == 1


async def test_a_long_batch_is_waited_for(autojump_clock):
    seconds = []
    async with watched(settings=NO_CHECKS) as it:
        await ready(it, seconds)
        it.child.busy, it.child.slots_silent = 1, True
        it.worker.reclaim(Leases(), "client")
        await trio.sleep(40)
        assert it.states[-1] == "ready"
        it.child.busy, it.child.slots_silent = 0, False
        await trio.sleep(10)
        assert len(seconds) == 1


async def test_a_batch_without_end_is_not(autojump_clock):
    async with watched(settings=NO_CHECKS) as it:
        await it.worker.ensure_ready()
        it.child.slots_silent = True
        began = trio.current_time()
        it.worker.reclaim(Leases(), "client")
        await it.until("backoff")
        assert 50 <= trio.current_time() - began < 60


async def test_cancels_of_a_worker_that_ends_are_unverified(autojump_clock):
    async with watched(settings=NO_CHECKS) as it:
        await it.worker.ensure_ready()
        it.child.busy = 1
        it.worker.reclaim(Leases(), "client")
        await trio.sleep(0.1)
        it.worker.stop()
        await it.worker.stopped()
        it.worker.reclaim(Leases(), "client")
        reclaims = it.worker.statistics().reclaims
        assert (reclaims.pending, reclaims.unverified) == (0, 1)


async def test_the_next_process_is_watched_too(autojump_clock):
    seconds = []
    async with watched(Script(load_s=0.1, exit_s=5), Script(), settings=NO_CHECKS) as it:
        await ready(it, seconds)
        await it.until("backoff")
        await it.until("ready")
        it.worker.reclaim(Leases(), "client")
        await trio.sleep(1)
        assert len(seconds) == 1


async def test_in_a_prefill_it_looks_seldom_so_that_the_worker_can_see_for_itself(autojump_clock):
    seconds = []
    async with watched(settings=NO_CHECKS) as it:
        await ready(it, seconds)
        it.child.busy, it.child.decoding = 1, False
        began = trio.current_time()
        it.worker.reclaim(Leases(), "client")
        await trio.sleep(3)
        looks = [at - began for kind, at in it.child.asked if kind == "slots"]
        assert looks[2] < 0.1
        assert min(later - sooner for sooner, later in zip(looks[2:-1], looks[3:], strict=True)) > 1
        it.child.busy = 0
        await trio.sleep(1.2)
        assert len(seconds) == 1


async def test_a_fresh_cancel_is_looked_after_at_once_in_such_a_pause(autojump_clock):
    seconds = []
    async with watched(settings=NO_CHECKS) as it:
        await ready(it, seconds)
        it.child.busy, it.child.decoding = 1, False
        it.worker.reclaim(Leases(), "client")
        await trio.sleep(0.5)
        it.worker.reclaim(Leases(), "client")
        await trio.sleep(0.02)
        assert len(seconds) == 1


async def test_a_batch_is_timed_and_never_costs_the_worker(autojump_clock):
    seconds = []
    async with watched(settings=NO_CHECKS) as it:
        await ready(it, seconds)
        it.child.busy = 1
        it.worker.reclaim(Leases(), "client", Work.BATCH)
        await trio.sleep(60)
        assert it.states[-1] == "ready"
        it.child.busy = 0
        await trio.sleep(7)
        assert seconds == [pytest.approx(60, abs=7)]
        assert it.worker.statistics().reclaims.overdue == 1


# --- holding still -------------------------------------------------------------------------


async def test_what_notices_nothing_beside_others_is_ended_by_a_hold(autojump_clock):
    seconds = []
    async with watched(settings=NO_CHECKS) as it:
        await ready(it, seconds)
        it.child.busy, it.child.heard_in_hold = 2, 1
        it.worker.reclaim(Leases(1), "client", Work.WHOLE)
        await trio.sleep(1.2)
        began, ended = it.child.held
        assert 1 < ended - began < 1.1
        assert len(seconds) == 1
        assert seconds[0] < 1.1
        await trio.sleep(100)
        assert len(it.child.held) == 2
        assert it.worker.statistics().reclaims.holds == 1
        assert it.states[-1] == "ready"


async def test_nothing_is_held_for_what_notices_by_itself_or_has_just_ended(autojump_clock):
    async with watched(settings=NO_CHECKS) as it:
        await it.worker.ensure_ready()
        it.child.busy = 1
        it.worker.reclaim(Leases(1), "client", Work.WHOLE)  # a lease holds the busy one
        await trio.sleep(10)
        it.child.busy = 2
        it.worker.reclaim(Leases(1), "client", Work.STREAM)
        await trio.sleep(10)
        assert it.child.held == []


async def test_many_cancels_share_a_hold_and_holds_are_rationed(autojump_clock):
    """Whoever cancels without end must not hold the others still without end."""
    async with watched(settings=NO_CHECKS) as it:
        await it.worker.ensure_ready()
        it.child.busy = 2
        for _ in range(100):
            it.worker.reclaim(Leases(1), "client", Work.WHOLE)
            await trio.sleep(0.5)
        holds = it.child.held
        still_s = sum(end - begin for begin, end in zip(holds[::2], holds[1::2], strict=True))
        assert 8 <= len(holds) // 2 <= 11
        assert still_s < 50 / 4


async def test_a_batch_is_held_only_once_it_is_overdue(autojump_clock):
    seconds = []
    async with watched(settings=NO_CHECKS) as it:
        await ready(it, seconds)
        it.child.busy, it.child.heard_in_hold = 1, 1
        cancelled_at = trio.current_time()
        it.worker.reclaim(Leases(), "client", Work.BATCH)
        await trio.sleep(5)
        assert it.child.held[0] - cancelled_at >= 1
        assert len(seconds) == 1
