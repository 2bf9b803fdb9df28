"""When those who wait will run, and when a place in the queue becomes free.

A line is played through: slots become free when what runs there is expected back, and who waits
takes them in order, each for as long as such a request is expected to take.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from heapq import heapify, heappop, heappush

from llmd.core.estimates import lease_left_s, service_of_s, until_serving_s
from llmd.core.events import Queued
from llmd.core.policy_state import Model, SchedulerState
from llmd.core.queue import Line, Waiting

_UNKNOWN_S = 1.0  # only for Retry-After, which must name a number
_SOONEST_S = 0.1
_LOOKED_AT = 512  # places; who stands further back is told to be at the end


class Forecast:
    """One line, played through from now on; ask for those who wait one by one, in their order."""

    def __init__(self, state: SchedulerState, model: Model, now: float) -> None:
        self._state = state
        self._model = model
        self._now = now
        slots = max(1, model.slots or model.info.slots)
        self._free = [0.0] * slots
        if model.serving:
            self._free = [0.0] * (slots - model.used)
            for lease in model.leases.values():
                left = lease_left_s(state, model, lease, now)
                self._free += [math.inf if left is None else left] * lease.slots
            heapify(self._free)

    def place(self, waiting: Waiting) -> float | None:
        """Return in how many seconds `waiting` is expected to be granted; None = not known.

        Not known is: what waits for an operator or for its own key, a load or a drain that
        nothing was measured for, and what waits for others on a model that has served nothing.
        """
        if not self._state.admission_open or waiting.blocked_by_key():
            return None
        serving_s = until_serving_s(self._state, self._model, waiting, self._now)
        if serving_s is None:
            return None
        wide = min(max(1, waiting.item.slots), len(self._free))
        taken = [heappop(self._free) for _ in range(wide)]
        at = max(serving_s, taken[-1])
        service_s = service_of_s(self._model, waiting.item)
        for _ in taken:
            heappush(self._free, math.inf if service_s is None else at + service_s)
        return None if at == math.inf else at


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


def eta_s(state: SchedulerState, request_id: str, now: float) -> float | None:
    """Return the expected seconds until a waiting request is granted; None = not known.

    See `Forecast.place` for what is not known; what does not wait is not, either.
    """
    waiting = state.queue.waiting.get(request_id)
    if waiting is None:
        return None
    _, ahead = position(state, waiting, now)
    forecast = Forecast(state, state.models[waiting.item.model], now)
    for other in ahead:
        forecast.place(other)
    return forecast.place(waiting)


def place_frees_s(state: SchedulerState, item: Queued, now: float) -> float:
    """Return in how many seconds a place in the queue is likely to become free for `item`.

    Some number always: where nothing was measured, what runs longest is taken for half done.
    """
    lines = list(state.queue.lines.values())
    s = state.settings
    own = state.queue.line(item.model)
    share = state.shares.active.get(item.key)
    counts: Callable[[Waiting], bool] = bool
    if 0 < s.max_size_per_model <= own.count:
        lines = [own]
    elif share is not None and share.queued >= state.queue.places_per_key():
        # only a place of its own helps a key that holds all that it may
        lines = [line for line in lines if any(key == item.key for key, _ in line.lanes)]
        counts = _is_of(item.key)
    soonest = math.inf
    for line in lines:
        soonest = min(soonest, _first_goes_s(state, line, counts, now))
    return max(_SOONEST_S, soonest) if soonest < math.inf else _UNKNOWN_S


def _is_of(key: str) -> Callable[[Waiting], bool]:
    return lambda waiting: waiting.item.key == key


def _first_goes_s(
    state: SchedulerState, line: Line, counts: Callable[[Waiting], bool], now: float
) -> float:
    """Return when the first in `line` for whom `counts` is true is expected to leave it."""
    model = state.models[line.model]
    forecast = Forecast(state, model, now)
    for looked_at, waiting in enumerate(line.order(now, state.settings.aging_sec), 1):
        at = forecast.place(waiting)
        if at is not None and counts(waiting):
            return at
        if looked_at >= _LOOKED_AT:
            break
    if model.serving:
        longest_s = max((now - lease.granted_at for lease in model.leases.values()), default=0.0)
        return max(_UNKNOWN_S, longest_s)
    return max(_UNKNOWN_S, model.load_s - (now - model.started_at if model.loading else 0.0))
