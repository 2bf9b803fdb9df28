"""What needs a model loaded, and what may be made to go for it.

The clock of `max_delay_sec`: a request is held back from its arrival, but no earlier than its
model went. Who was displaced is held back only from when the displacer is ready, so that each of
two models that both have work gets `max_delay_sec` of service and not what its load leaves of it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from llmd.core.events import Rule
from llmd.core.placement import Resident
from llmd.core.policy_state import Model, SchedulerState
from llmd.core.queue import NO_RANK, Waiting, effective_rank, next_lift


@dataclass(slots=True)
class Demand:
    """Requests that need their model loaded, or reloaded with more context.

    Attributes:
        model: Which.
        head: Who of them goes first.
        rank: The highest class among them, after aging.
        overdue_rank: The highest class among those held back for `max_delay_sec`.
        held_from: Since when the one held back longest is.
        reload: The model is loaded, with too little context.
    """

    model: Model
    head: Waiting
    rank: int
    overdue_rank: int
    held_from: float
    reload: bool


def demands(state: SchedulerState, now: float) -> list[Demand]:
    """Return what is needed and not yet decided, the highest class and longest held back first."""
    if not state.settings.auto_switch:
        return []
    found = []
    for name, line in state.queue.lines.items():
        model = state.models[name]
        if name in state.wants:
            continue
        if model.absent:
            demand = demand_for(state, model, now, reload=False)
        elif line.oversized and model.serving:
            demand = demand_for(state, model, now, reload=True)
        else:
            continue
        if demand is not None:
            found.append(demand)
    found.sort(key=lambda d: (d.rank, d.held_from, d.head.seq))
    return found


def demand_for(state: SchedulerState, model: Model, now: float, *, reload: bool) -> Demand | None:
    """Return what waits for `model` to be loaded or reloaded, None if nobody could use it now."""
    s = state.settings
    kind = True if reload else None
    # one whose key runs as many as it may could not use the model: nobody goes for it
    head = model.line.head(now, s.aging_sec, oversized=kind)
    if head is None:
        return None
    rank = overdue_rank = NO_RANK
    held_from = math.inf
    for waiting in model.line.heads(oversized=kind):
        if waiting.blocked_by_key():
            continue
        its_rank = effective_rank(waiting.rank, waiting.item.arrived, now, s.aging_sec)
        rank = min(rank, its_rank)
        since = state.hold_start(model, waiting)
        held_from = min(held_from, since)
        if s.max_delay_sec > 0 and now >= since + s.max_delay_sec:
            overdue_rank = min(overdue_rank, its_rank)
    return Demand(model, head, rank, overdue_rank, held_from, reload)


# --- may it go? ----------------------------------------------------------------------------


def may_go(state: SchedulerState, victim: Model, demand: Demand, now: float) -> tuple[bool, Rule]:
    """Return whether `victim` may be made to go for `demand`, and by, or else for, which rule."""
    s = state.settings
    reload = victim is demand.model
    if victim.loading and victim.line.count:
        return False, Rule.MODEL_NOT_LOADED
    if victim.started_by is Rule.OPERATOR:
        return False, Rule.MODEL_NOT_LOADED  # asked for, and not ready yet
    if now < victim.resident_until(s.min_residency_sec):
        return False, Rule.MIN_RESIDENCY
    queued_rank = victim.line.best_rank(now, s.aging_sec, oversized=False if reload else None)
    if queued_rank == NO_RANK and not victim.leases:
        return True, Rule.DEMAND  # it is idle
    # with nothing queued there, what runs there is what a higher class is compared with
    running = (lease.item.priority.rank for lease in victim.leases.values())
    if demand.rank < (queued_rank if queued_rank != NO_RANK else min(running, default=NO_RANK)):
        return True, Rule.HIGHER_CLASS
    if demand.overdue_rank == NO_RANK:
        return False, Rule.MODEL_NOT_LOADED
    if queued_rank < demand.overdue_rank:
        # the higher class is served first, and nobody else of this model
        victim.barrier = min(victim.barrier, demand.overdue_rank)
        return False, Rule.MODEL_NOT_LOADED
    return True, Rule.MAX_DELAY


def resident(model: Model, now: float, *, busy: bool) -> Resident:
    """Return `model` as placement sees it; `busy` as whoever asks judges it."""
    return Resident(
        name=model.name,
        memory_bytes=model.memory_bytes,
        load_s=model.load_s,
        idle_s=0.0 if busy else max(0.0, now - model.last_used),
        busy=busy,
        pinned=model.info.pinned,
    )


def demand_due(state: SchedulerState, after: float) -> float:
    """Return when, later than `after`, time alone may change what is decided for what waits."""
    s = state.settings
    due = math.inf
    held = demands(state, after)
    for demand in held:
        model = demand.model
        for waiting in model.line.heads(oversized=True if demand.reload else None):
            item = waiting.item
            # its class may come to exceed that of those in its way
            times = [next_lift(waiting.rank, item.arrived, after, s.aging_sec)]
            if s.max_delay_sec > 0:
                times.append(state.hold_start(model, waiting) + s.max_delay_sec)
            due = min([due, *(at for at in times if at > after)])
    if held or state.wants:
        for model in state.present.values():
            at = model.resident_until(s.min_residency_sec)
            if at > after:
                due = min(due, at)
    for name, line in state.queue.lines.items():
        model = state.models[name]
        if model.serving and model.used < model.slots:
            # slots are kept for a wide one; who is lifted past it may fit in them
            for waiting in line.heads():
                at = next_lift(waiting.rank, waiting.item.arrived, after, s.aging_sec)
                due = min(due, at)
    return due
