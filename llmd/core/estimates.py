"""How long things will take, from measured service and load times: ETA and Retry-After."""

from __future__ import annotations

import math

from llmd.core.events import Queued
from llmd.core.lifecycle import WorkerState
from llmd.core.policy_state import Model, SchedulerState
from llmd.core.queue import Waiting

_SMOOTHING = 0.2  # weight of the newest measurement
_UNKNOWN_SERVICE_S = 1.0  # only for Retry-After, which must name a number
_SOONEST_S = 0.1
_LOOKED_AT = 512  # places; who stands further back is told to be at the end


def smoothed(old: float | None, new: float) -> float:
    """Return the moving average after one more measurement."""
    return new if old is None else old + _SMOOTHING * (new - old)


def position(state: SchedulerState, waiting: Waiting, now: float) -> tuple[int, list[Waiting]]:
    """Return the place in line from 1, and who is ahead, the first first."""
    line = state.queue.line(waiting.item.model)
    ahead: list[Waiting] = []
    for other in line.order(now, state.settings.aging_sec):
        if other is waiting:
            return len(ahead) + 1, ahead
        ahead.append(other)
        if len(ahead) >= _LOOKED_AT:
            break
    return line.count, ahead


def load_left_s(model: Model, now: float) -> float:
    """Return the expected rest of a load under way."""
    return max(0.0, model.load_s - (now - model.started_at))


def drain_left_s(model: Model, now: float) -> float | None:
    """Return when the last lease on `model` is expected back; None = not known."""
    if not model.leases:
        return 0.0
    limit = math.inf if model.leaving is None else max(0.0, model.leaving.cancel_at - now)
    if model.service_s is None:
        return None if limit == math.inf else limit
    newest = max(lease.granted_at for lease in model.leases.values())
    return min(limit, max(0.0, model.service_s - (now - newest)))


def _until_gone_s(victims: list[Model], now: float) -> float | None:
    drains = [drain_left_s(victim, now) for victim in victims]
    if any(drain is None for drain in drains):
        return None
    return max((drain for drain in drains if drain is not None), default=0.0)


def until_serving_s(
    state: SchedulerState, model: Model, waiting: Waiting, now: float
) -> float | None:
    """Return when `model` is expected to take requests; 0 if it does, None = not known."""
    s = state.settings
    if model.serving and not waiting.oversized:
        return 0.0
    if model.loading:
        return load_left_s(model, now)
    if model.state is WorkerState.BACKOFF:
        return max(0.0, model.retry_at - now) + model.load_s
    if model.name in state.wants:
        going = [m for m in state.present.values() if m.leaving is not None]
        gone = _until_gone_s(going, now)
        return None if gone is None else gone + model.load_s
    ahead = 0.0
    if model.leaving is not None and model.leaving.for_model:
        gone = drain_left_s(model, now)
        if gone is None:
            return None
        # held back from when its displacer is ready
        ahead = gone + state.model(model.leaving.for_model).load_s + s.max_delay_sec
    elif model.absent or model.serving:
        held = s.max_delay_sec - (now - state.hold_start(model, waiting))
        in_way = [m for m in state.present.values() if not m.info.pinned]
        gone = _until_gone_s(in_way, now)
        if gone is None:
            return None
        if any(m.line.count for m in in_way):
            gone += max(0.0, held)
        ahead = gone
    return ahead + model.load_s


def eta_s(state: SchedulerState, request_id: str, now: float) -> float | None:
    """Return the expected seconds until a waiting request is granted; None = not known.

    Not known is: what does not wait, what waits for an operator or for its own key, and what
    waits for others to finish on a model that has served nothing yet.
    """
    waiting = state.queue.waiting.get(request_id)
    if waiting is None:
        return None
    model = state.models[waiting.item.model]
    _, ahead = position(state, waiting, now)
    need = sum(model.slots_for(other.item) for other in [*ahead, waiting])
    return eta_in_line_s(state, waiting, need, now)


def eta_in_line_s(state: SchedulerState, waiting: Waiting, need: int, now: float) -> float | None:
    """Return `eta_s` of `waiting`, whose line takes `need` slots up to it, itself included."""
    if not state.admission_open or waiting.blocked_by_key():
        return None
    model = state.models[waiting.item.model]
    serving_s = until_serving_s(state, model, waiting, now)
    if serving_s is None:
        return None
    slots = max(1, model.slots)
    free = slots - model.used if model.serving and not waiting.oversized else slots
    if need <= free:
        return serving_s
    if model.service_s is None:
        return None
    return serving_s + model.service_s * (need - free) / slots


def place_frees_s(state: SchedulerState, item: Queued, now: float) -> float:
    """Return in how many seconds a place in the queue is likely to become free for `item`."""
    lines = list(state.queue.lines.values())
    s = state.settings
    own = state.queue.line(item.model)
    if 0 < s.max_size_per_model <= own.count:
        lines = [own]
    share = state.shares.active.get(item.key)
    if share is not None and share.queued >= state.queue.places_per_key():
        lines = [line for line in lines if any(key == item.key for key, _ in line.lanes)]
    soonest = math.inf
    for line in lines:
        model = state.models[line.model]
        waiting = next(line.heads())
        serving_s = until_serving_s(state, model, waiting, now)
        if serving_s is None:
            serving_s = model.load_s
        service_s = _UNKNOWN_SERVICE_S if model.service_s is None else model.service_s
        soonest = min(soonest, serving_s + service_s / max(1, model.slots))
    return max(_SOONEST_S, soonest) if soonest < math.inf else _UNKNOWN_SERVICE_S
