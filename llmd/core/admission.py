"""Requests: who gets a lease at once, who waits, who is turned away; and leases coming back."""

from __future__ import annotations

import math

from llmd.core.estimates import smoothed
from llmd.core.events import (
    Action,
    Grant,
    LeaseReleased,
    Queued,
    Refusal,
    Reject,
    Rule,
    Submitted,
    Why,
)
from llmd.core.fairness import Share
from llmd.core.forecast import place_frees_s
from llmd.core.lifecycle import WorkerState
from llmd.core.policy_state import Lease, Model, SchedulerState
from llmd.core.queue import NO_RANK, Waiting, effective_rank

_AT_ONCE = "a slot was free"
_UNKNOWN_RETRY_S = 60.0
_GOING = (WorkerState.DRAINING, WorkerState.STOPPING)


def submit(state: SchedulerState, event: Submitted, now: float, actions: list[Action]) -> bool:
    """Grant, queue or turn away a request; return whether models may have to move for it.

    Raises:
        ValueError: Its id is one that waits or runs.
    """
    item = event.item
    if item.id in state.leases or item.id in state.queue.waiting:
        raise ValueError(f"request {item.id!r} is here already")
    model = state.models.get(item.model) or state.model(item.model)
    if state.admission_open and model.serving and not model.line.count:
        # nobody of this model waits: no queue, no settling, on the way of most requests
        share = state.shares.enter(item.key)
        if (
            model.used + model.slots_for(item) <= model.slots
            and not 0 < item.concurrency <= share.running
            and not oversized(state, model, item)
        ):
            why = Why(now, Rule.GRANTED, (), 0, _AT_ONCE)
            actions.append(_grant(state, model, item, share, why, None))
            # the charge may have changed who goes first elsewhere
            return bool(state.queue.waiting)
        if not share.queued and not share.running:
            state.shares.leave(share)
    refused = _turned_away(state, event, model, now)
    if refused is not None:
        actions.append(refused)
        return False
    return _queue(state, event, model, now, actions)


def _queue(
    state: SchedulerState, event: Submitted, model: Model, now: float, actions: list[Action]
) -> bool:
    item = event.item
    bound = None if event.again else state.queue.refusal(item)
    waiting = state.queue.put(item, state.shares.enter(item.key), now)
    if model.state in (WorkerState.READY, WorkerState.DRAINING):
        model.line.set_oversized(waiting, oversized(state, model, item))
    if state.admission_open and model.serving:
        # it may be the first that can run, past others that cannot
        grant_waiting(state, model, now, actions)
        if item.id in state.leases:
            return True
    if bound is not None:
        retry_after_s = place_frees_s(state, item, now)
        state.queue.remove(waiting)
        refusal, message = bound
        if refusal is Refusal.QUEUE_FULL:
            message += f"; try again in about {max(1, math.ceil(retry_after_s))} s"
        actions.append(Reject(item.id, refusal, message, retry_after_s))
        return False
    # what waits here may decide whether this model may be made to go, for another or to reload
    return not model.serving or model.line.oversized > 0 or len(state.queue.lines) > 1


def _turned_away(
    state: SchedulerState, event: Submitted, model: Model, now: float
) -> Reject | None:
    """Return the refusal of what cannot even wait."""
    item = event.item
    if not state.admission_open and (state.rejecting or not event.again):
        return Reject(item.id, Refusal.SHUTTING_DOWN, *shut(state, again=event.again))
    failing = model.state is WorkerState.FAILED and not model.starting
    if failing and not 0 < model.retry_at <= now:
        return Reject(item.id, Refusal.MODEL_FAILED, *failed(model, now))
    if not may_load(state, model):
        return Reject(item.id, Refusal.MODEL_NOT_LOADED, *not_loaded(model))
    return None


def reject_line(
    state: SchedulerState,
    model: Model,
    refusal: Refusal,
    message: str,
    retry_after_s: float,
    actions: list[Action],
    *,
    final: bool = False,
    above_context: int = -1,
) -> None:
    """Turn away all that waits for `model` and needs more context than `above_context`."""
    for waiting in sorted(model.line, key=lambda w: w.seq):
        if waiting.item.context_tokens > above_context:
            state.queue.remove(waiting)
            story = tuple(waiting.story)
            actions.append(
                Reject(waiting.item.id, refusal, message, retry_after_s, story, final=final)
            )


def shut(state: SchedulerState, *, again: bool = False) -> tuple[str, float]:
    """Return message and retry_after_s of a refusal while admission is closed.

    Args:
        state: The state.
        again: It is of a request that was in already, and lost its worker.
    """
    longest = max((m.service_s or 0.0 for m in state.present.values()), default=0.0)
    told = "llmd takes no new requests now; try again later"
    if again:
        told = "its worker ended, and llmd begins no request again now; try again later"
    return told, max(1.0, longest)


def failed(model: Model, now: float) -> tuple[str, float]:
    """Return message and retry_after_s of a refusal because the model failed."""
    reason = model.reason or "its worker gave up"
    retry_after_s = model.retry_at - now if model.retry_at > now else _UNKNOWN_RETRY_S
    if model.failed_for_good:
        return f"{model.name} could not be loaded: {reason}", retry_after_s
    return (
        f"{model.name} has failed too often: {reason}; it is tried again in "
        f"{math.ceil(retry_after_s)} s, or as soon as an operator resets it",
        retry_after_s,
    )


def not_loaded(model: Model) -> tuple[str, float]:
    """Return message and retry_after_s of a refusal because requests load nothing here."""
    message = f"{model.name} is not loaded, and only an operator's switch loads models here"
    return message, max(model.load_s, 1.0)


def may_load(state: SchedulerState, model: Model) -> bool:
    """Return whether waiting for the model can be of use while requests load nothing."""
    if state.settings.auto_switch or model.name in state.wants:
        return True
    leaving = model.leaving is not None or model.state in _GOING
    return not model.absent and not leaving


def oversized(state: SchedulerState, model: Model, item: Queued) -> bool:
    """Return whether `item` must wait for a reload of its model with more context."""
    if item.context_tokens <= model.context_tokens:
        return False
    return state.settings.auto_switch and model.needs_reload(item)


def _grant(
    state: SchedulerState,
    model: Model,
    item: Queued,
    share: Share,
    why: Why,
    waited: Waiting | None,
) -> Grant:
    slots = model.slots_for(item)
    story = None if waited is None else waited.story
    lease = Lease(item, share, slots, why.at, why, story)
    state.leases[item.id] = model.leases[item.id] = lease
    model.used += slots
    share.charge(item.tokens, item.weight)
    return Grant(item.id, model.name, slots, why)


def grant_waiting(state: SchedulerState, model: Model, now: float, actions: list[Action]) -> bool:
    """Grant what can run on `model` now, in order; return whether anything was granted."""
    line = model.line
    aging_sec = state.settings.aging_sec
    granted = False
    while line.count and model.serving and model.used < model.slots:
        waiting = line.head(now, aging_sec, oversized=False)
        if waiting is None:
            break
        item = waiting.item
        if model.barrier != NO_RANK:
            rank = effective_rank(waiting.rank, item.arrived, now, aging_sec)
            if rank >= model.barrier:
                break
        if model.used + model.slots_for(item) > model.slots:
            break  # the free slots are kept for it: narrow ones behind it would starve it
        detail = f"first of {line.count} after {now - waiting.since:.1f} s"
        why = Why(now, Rule.GRANTED, (), 0, detail)
        actions.append(_grant(state, model, item, waiting.share, why, waiting))
        state.queue.remove(waiting)
        granted = True
    return granted


def release(state: SchedulerState, event: LeaseReleased, now: float) -> bool:
    """Take a lease back; return whether anything may follow from it."""
    lease = state.leases.pop(event.id, None)
    if lease is None:
        return False
    item = lease.item
    model = state.models[item.model]
    del model.leases[item.id]
    model.used -= lease.slots
    model.last_used = now
    if event.used_tokens > 0 and not lease.cancelled:  # else it tells nothing of a service
        first = model.service_s is None
        model.service_tokens = smoothed(None if first else model.service_tokens, item.tokens)
        model.service_s = smoothed(model.service_s, now - lease.granted_at)
    share = lease.share
    share.settle(item.tokens, event.used_tokens, item.weight)
    if not share.running and not share.queued:
        state.shares.leave(share)
    return bool(state.queue.waiting) or not model.serving
