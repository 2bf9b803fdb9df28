"""Which models are in memory, as demand has it: who comes, who goes for it, and when.

In each decision, `review` lets go of what nobody needs any more, `place` decides who comes and
goes, and `advance` carries on what was decided: drained models stop, wanted ones start when there
is room. An operator's switch (`switching.py`) enters the same records.
"""

from __future__ import annotations

import math

from llmd.core.admission import reject_line
from llmd.core.demand import Demand, demand_due, demand_for, demands, may_go, resident
from llmd.core.events import (
    Action,
    CancelLease,
    DrainWorker,
    Refusal,
    ResumeWorker,
    Rule,
    StartWorker,
    StopWorker,
)
from llmd.core.lifecycle import WorkerState
from llmd.core.placement import choose_evictions, shortfall
from llmd.core.policy_state import Leaving, Model, SchedulerState, Want
from llmd.core.queue import NO_RANK
from llmd.core.room import held_bytes, missing

_DRAINABLE = (WorkerState.READY, WorkerState.DRAINING)


# --- deciding ------------------------------------------------------------------------------


def place(state: SchedulerState, now: float, actions: list[Action]) -> None:
    """Decide who comes and who goes for what waits."""
    waiting = -1
    while len(state.queue) != waiting:  # who is turned away may have kept a model from going
        waiting = len(state.queue)
        _place_all(state, now, actions)


def _place_all(state: SchedulerState, now: float, actions: list[Action]) -> None:
    for model in state.present.values():
        model.barrier = NO_RANK
    for demand in demands(state, now):
        if demand.reload:
            if demand.model.serving:  # and has not just been made to go for another
                _place_reload(state, demand, now, actions)
        else:
            _place(state, demand, now, actions)


def _place_reload(state: SchedulerState, demand: Demand, now: float, actions: list[Action]) -> None:
    model = demand.model
    may, rule = may_go(state, model, demand, now)
    if may:
        _place(state, demand, now, actions, rule, (model,))
    else:
        _hold(state, model, Rule.CONTEXT_RELOAD, (model.name,))


def _place(
    state: SchedulerState,
    demand: Demand,
    now: float,
    actions: list[Action],
    rule: Rule = Rule.DEMAND,
    itself: tuple[Model, ...] = (),
) -> None:
    """Make room for `demand`, by `rule` if that takes nobody else; a reload displaces `itself`."""
    model = demand.model
    staying = [m for m in state.staying() if m is not model]
    places, size = missing(state, staying, model)
    if not places and not size:
        _want(state, demand, itself, rule, now, actions)
        return
    movable = [m for m in staying if not m.info.pinned and m.name not in state.wants]
    fixed = [m for m in staying if m.info.pinned]
    if any(missing(state, fixed, model)):
        _reject_for_memory(state, model, fixed, actions)
        left = demand_for(state, model, now, reload=bool(itself))
        if left is not None:  # those who need less context than those turned away
            _place(state, left, now, actions, rule, itself)
        return
    verdicts = [(m, *may_go(state, m, demand, now)) for m in movable]
    rules = {m.name: rule for m, may, rule in verdicts if may}
    going = [resident(m, now, busy=rule is not Rule.DEMAND) for m, may, rule in verdicts if may]
    chosen = choose_evictions(going, places, size)
    if chosen is not None:
        victims = tuple(state.models[name] for name in chosen)
        rule = next((rules[n] for n in chosen if rules[n] is not Rule.DEMAND), rule)
        _want(state, demand, (*itself, *victims), rule, now, actions)
        return
    young = tuple(m.name for m, may, rule in verdicts if not may and rule is Rule.MIN_RESIDENCY)
    if young:
        _hold(state, model, Rule.MIN_RESIDENCY, young)
    else:
        _hold(state, model, Rule.MODEL_NOT_LOADED, tuple(m.name for m in staying))


def _hold(state: SchedulerState, model: Model, rule: Rule, blockers: tuple[str, ...]) -> None:
    if model.hold != (rule, blockers):
        model.hold = (rule, blockers)
        state.touch(model)


def _want(
    state: SchedulerState,
    demand: Demand,
    victims: tuple[Model, ...],
    rule: Rule,
    now: float,
    actions: list[Action],
) -> None:
    model = demand.model
    model.hold = None
    displaced = tuple(victim.name for victim in victims)
    state.wants[model.name] = Want(
        rule,
        now,
        demand.head.item.id,
        displaced,
        context_tokens=model.next_context(),
        final=model.rethought,
    )
    model.rethought = False
    state.touch(model)
    drain_s = state.settings.max_drain_sec
    cancel_at = now + drain_s if drain_s > 0 else math.inf
    for victim in victims:
        send_away(state, victim, Leaving(rule, now, model.name, cancel_at), actions)


def send_away(state: SchedulerState, model: Model, leaving: Leaving, actions: list[Action]) -> None:
    """Decide that `model` goes; its line is held back from now on."""
    model.leaving = leaving
    model.held_from = leaving.since
    model.hold = None
    state.generation += 1
    state.touch(model)
    if model.leases and model.state is WorkerState.READY:
        leaving.drain_sent = True
        actions.append(DrainWorker(model.name, leaving.rule, leaving.for_model))
    else:
        leaving.drain_sent = model.state is WorkerState.DRAINING


def _reject_for_memory(
    state: SchedulerState, model: Model, fixed: list[Model], actions: list[Action]
) -> None:
    room = state.room
    retry_after_s = max(1.0, model.load_s)
    above = max(model.info.context_tokens, model.context_tokens)
    if model.next_context() > above and not any(missing(state, fixed, model, above)):
        # the model has room, but not with as much context as some need
        message = (
            f"{model.name} with more than {above} tokens of context for a request does not fit "
            "in memory; shorten the prompt or lower max_tokens"
        )
        reject_line(
            state,
            model,
            Refusal.INSUFFICIENT_MEMORY,
            message,
            retry_after_s,
            actions,
            above_context=above,
        )
        return
    alone = any(missing(state, [], model))
    if fixed and not alone:
        names = ", ".join(m.name for m in fixed)
        message = (
            f"{model.name} does not fit beside what is pinned ({names}); an operator can switch "
            "to it, or unload that"
        )
    else:
        message = (
            f"{model.name} needs about {model.memory_bytes >> 20} MiB and models may hold "
            f"{room.memory_bytes >> 20} MiB in all; it needs a smaller context or quantisation"
        )
    reject_line(
        state,
        model,
        Refusal.INSUFFICIENT_MEMORY,
        message,
        retry_after_s,
        actions,
        final=alone,
    )


# --- second thoughts -----------------------------------------------------------------------


def review(state: SchedulerState, now: float, actions: list[Action]) -> None:
    """Take back what is decided, not begun, and needed no longer or in a better way."""
    for name, want in list(state.wants.items()):
        model = state.models[name]
        if any(missing(state, list(state.staying()), model)):
            # what stays was measured to hold more than it was taken for when this was decided
            drop_want(state, name, actions)
            continue
        if want.rule is Rule.OPERATOR:
            continue
        reload = name in want.displaced
        needed = model.line.oversized if reload else model.line.count
        if not needed or _outranked(state, model, want, now):
            drop_want(state, name, actions)
        elif _quicker(state, model, want, now):
            drop_want(state, name, actions)
            model.rethought = True


def leaving_for(state: SchedulerState, name: str) -> list[Model]:
    """Return what demand makes go for `name` and could still be kept."""
    return [
        model
        for model in state.present.values()
        if model.leaving is not None
        and model.leaving.for_model == name
        and model.leaving.rule is not Rule.OPERATOR
        and not model.leaving.stop_sent
    ]


def _outranked(state: SchedulerState, model: Model, want: Want, now: float) -> bool:
    """Return whether someone of a higher class has come to a model that drains for `model`."""
    aging_sec = state.settings.aging_sec
    if model.name in want.displaced:
        rank = model.line.best_rank(now, aging_sec, oversized=True)
        return bool(model.leases) and model.line.best_rank(now, aging_sec, oversized=False) < rank
    rank = model.line.best_rank(now, aging_sec)
    return any(
        victim.leases and victim.line.best_rank(now, aging_sec) < rank
        for victim in leaving_for(state, model.name)
    )


def _quicker(state: SchedulerState, model: Model, want: Want, now: float) -> bool:
    """Return whether others have become idle, so that nothing need drain for `model`."""
    draining = [victim for victim in leaving_for(state, model.name) if victim.leases]
    if not draining or want.final or model.name in want.displaced:
        return False
    demand = demand_for(state, model, now, reload=False)
    if demand is None:
        return False
    # judged as `place` will judge: else the two would undo each other without end
    unused = [
        resident(m, now, busy=False)
        for m in state.present.values()
        if m.leaving is None
        and not m.info.pinned
        and may_go(state, m, demand, now) == (True, Rule.DEMAND)
    ]
    if not unused:
        return False
    held = [m for m in state.staying() if m is not model] + draining
    return choose_evictions(unused, *missing(state, held, model)) is not None


def drop_want(state: SchedulerState, name: str, actions: list[Action]) -> None:
    """Give up starting `name`; what drains only for it serves again where that still fits."""
    del state.wants[name]
    state.touch(state.models[name])
    for victim in leaving_for(state, name):
        held = [held_bytes(state, m) for m in state.staying()]
        if not victim.leases or any(shortfall(state.room, held, victim.memory_bytes)):
            continue
        resume(state, victim, actions)


def resume(state: SchedulerState, model: Model, actions: list[Action]) -> None:
    """Let a draining model serve again."""
    leaving = model.leaving
    assert leaving is not None
    model.leaving = None
    state.generation += 1
    state.touch(model)
    if leaving.drain_sent:
        actions.append(ResumeWorker(model.name))


# --- carrying on ---------------------------------------------------------------------------


def advance(state: SchedulerState, now: float, actions: list[Action]) -> None:
    """Stop what has drained, cancel what drains too long, start what has room."""
    for model in list(state.present.values()):
        _stop_unused(state, model, now, actions)
        if model.leaving is not None:
            _advance_leaving(model, model.leaving, now, actions)
    for name in list(state.wants):
        _start_wanted(state, name, now, actions)


def _stop_unused(state: SchedulerState, model: Model, now: float, actions: list[Action]) -> None:
    if model.leaving is not None or model.leases:
        return
    if model.state is WorkerState.DRAINING:
        # drained by others than the policy, or its resumption was not heard: it ends all the same
        send_away(state, model, Leaving(Rule.DEMAND, now), actions)
    elif model.state is WorkerState.READY and now >= idle_until(model):
        send_away(state, model, Leaving(Rule.IDLE_TIMEOUT, now), actions)


def idle_until(model: Model) -> float:
    """Return when a model without work is unloaded for that; inf = never, or it has work."""
    timeout_s = model.info.idle_timeout_s
    if timeout_s <= 0 or model.info.pinned or model.leases or model.line.count:
        return math.inf
    return model.last_used + timeout_s


def _advance_leaving(model: Model, leaving: Leaving, now: float, actions: list[Action]) -> None:
    if leaving.stop_sent or model.state is WorkerState.STOPPING:
        return
    if not model.leases or model.state not in _DRAINABLE:
        leaving.stop_sent = True
        actions.append(StopWorker(model.name, leaving.rule))
    elif now >= leaving.cancel_at:
        for lease in model.leases.values():
            if not lease.cancelled:
                lease.cancelled = True
                actions.append(CancelLease(lease.item.id, leaving.rule))


def _start_wanted(state: SchedulerState, name: str, now: float, actions: list[Action]) -> None:
    model, want = state.models[name], state.wants[name]
    # what is in memory now counts with what it holds now, also if it is to come back with less
    held = (other.memory_bytes for other in state.present.values())
    if not model.absent or any(shortfall(state.room, held, model.bytes_with(want.context_tokens))):
        return
    del state.wants[name]
    context = want.context_tokens
    model.memory_bytes = model.bytes_with(context)
    model.starting = True
    model.forget_progress()
    model.started_at = now
    model.started_by = want.rule
    model.displaced = want.displaced
    model.asked_context = context
    model.hold = None
    state.present[name] = model
    state.generation += 1
    state.touch(model)
    actions.append(StartWorker(name, want.rule, want.for_request, model.asked_context))


# --- time ----------------------------------------------------------------------------------


def next_due(state: SchedulerState) -> float:
    """Return when, after the last settling, time alone changes something here; inf = never."""
    after = state.settled_at
    due = math.inf
    for model in state.present.values():
        if model.leaving is None:
            at = idle_until(model) if model.state is WorkerState.READY else math.inf
        elif model.leases and not model.leaving.stop_sent:
            at = model.leaving.cancel_at
        else:
            continue
        if after < at < due:
            due = at
    if state.queue.lines and state.admission_open:
        due = min(due, demand_due(state, after))
    return due
