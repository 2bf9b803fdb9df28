"""How long loads, services and drains will take, from what was measured on this box.

What nothing was measured for is not known, and said so: a made-up time is worse than none. Only
`Retry-After` must always name a number; see `forecast.py`, which puts these together for a line.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from llmd.core.events import Queued
from llmd.core.lifecycle import WorkerState
from llmd.core.policy_state import Lease, Model, SchedulerState
from llmd.core.queue import Waiting

_SMOOTHING = 0.2  # weight of the newest measurement
# Requests differ, but not as much as their estimates: prompts are cheap, answers end early
_LARGEST_RATIO = 4.0
_FIRST_TOKENS = 8  # with fewer, the pace of a running request says nothing
# A load's time goes with the file's size, but that of a small file is the process's own start.
_START_BYTES = 64 << 20
_LIKE_ENOUGH = 4.0  # sizes that differ more than this say nothing about each other
_TELLING_FRACTION = 0.05  # of a load, below which its pace says nothing
MOST_FRACTION = 0.99  # of a load that is not over


def smoothed(old: float | None, new: float) -> float:
    """Return the moving average after one more measurement."""
    return new if old is None else old + _SMOOTHING * (new - old)


# --- loads ---------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a load is.

    Attributes:
        fraction: 0 to 1, below 1 as long as it goes on.
        exact: The worker said so; else it is the time taken of the time expected.
    """

    fraction: float
    exact: bool

    def __str__(self) -> str:
        """As a percentage; what is estimated is marked so: `62%`, `~62%`."""
        return f"{'' if self.exact else '~'}{math.floor(self.fraction * 100)}%"


def expected_load_s(state: SchedulerState, model: Model) -> float | None:
    """Return what a load of `model` is expected to take; None = not known.

    Measured if it was ever loaded; else scaled from the model nearest in size that was, if there
    is one near enough; else not known.
    """
    if model.measured_load:
        return model.load_s
    if model.info.load_s:
        return model.info.load_s
    if not model.info.size_bytes:
        return None
    size = model.info.size_bytes + _START_BYTES
    best: tuple[float, float] | None = None
    for other in state.models.values():
        if other.measured_load and other.info.size_bytes:
            ratio = size / (other.info.size_bytes + _START_BYTES)
            distance = max(ratio, 1 / ratio)
            if distance <= _LIKE_ENOUGH and (best is None or distance < best[0]):
                best = (distance, other.load_s * ratio)
    return None if best is None else best[1]


def load_progress(state: SchedulerState, model: Model, now: float) -> Progress | None:
    """Return how far the load of `model` is; None when it does not load, or nobody knows."""
    if not model.loading:
        return None
    if model.progress is not None:
        return Progress(min(model.progress, MOST_FRACTION), exact=True)
    expected = expected_load_s(state, model)
    if not expected:
        return None
    return Progress(min(max(0.0, now - model.started_at) / expected, MOST_FRACTION), exact=False)


def load_left_s(state: SchedulerState, model: Model, now: float) -> float | None:
    """Return the expected rest of a load under way, or of one not begun; None = not known.

    A worker that says how far it is reads the rest at that pace, and then needs as long for its
    warm-up as it did before (which a large model on a CPU may take most of its load for). Else
    the load takes what is expected of it, and what is late is taken to be as late again.
    """
    if not model.loading:
        return expected_load_s(state, model)
    elapsed = max(0.0, now - model.started_at)
    told = model.progress or 0.0
    read_left_s = 0.0
    if told >= _TELLING_FRACTION:
        read_left_s = elapsed * (1 - told) / told
        if model.warm_up_s is not None:
            if model.read_at is None:
                return read_left_s + model.warm_up_s
            return abs(model.warm_up_s - (now - model.read_at))
    expected = expected_load_s(state, model)
    return None if expected is None else max(read_left_s, abs(expected - elapsed))


# --- services and drains -------------------------------------------------------------------


def service_of_s(model: Model, item: Queued) -> float | None:
    """Return how long a lease for `item` is expected to last; None before any was measured."""
    if model.service_s is None or model.service_tokens <= 0:
        return model.service_s
    ratio = item.tokens / model.service_tokens
    return model.service_s * min(max(ratio, 1 / _LARGEST_RATIO), _LARGEST_RATIO)


def lease_left_s(state: SchedulerState, model: Model, lease: Lease, now: float) -> float | None:
    """Return when a lease is expected back; None = not known.

    By what such requests took before, less what it has had; what is late is taken to be as late
    again. And, once it generates, no later than when it would have all the tokens that it may
    have, at its own pace.
    """
    elapsed = max(0.0, now - lease.granted_at)
    expected = service_of_s(model, lease.item)
    left = None if expected is None else abs(expected - elapsed)
    most = lease.item.completion_tokens
    decoded = state.decoded(lease.item.id) if most else 0
    if decoded >= _FIRST_TOKENS:
        at_pace = elapsed * max(0, most - decoded) / decoded
        left = at_pace if left is None else min(left, at_pace)
    return left


def drain_left_s(state: SchedulerState, model: Model, now: float) -> float | None:
    """Return when the last lease on `model` is expected back; None = not known."""
    if not model.leases:
        return 0.0
    limit = math.inf if model.leaving is None else max(0.0, model.leaving.cancel_at - now)
    last = 0.0
    for lease in model.leases.values():
        left = lease_left_s(state, model, lease, now)
        last = max(last, math.inf if left is None else left)
    last = min(last, limit)
    return None if last == math.inf else last


def _until_gone_s(state: SchedulerState, victims: list[Model], now: float) -> float | None:
    latest = 0.0
    for victim in victims:
        drain = drain_left_s(state, victim, now)
        if drain is None:
            return None
        latest = max(latest, drain)
    return latest


def until_serving_s(
    state: SchedulerState, model: Model, waiting: Waiting, now: float
) -> float | None:
    """Return when `model` is expected to take `waiting`; 0 if it does now, None = not known."""
    if model.serving and not waiting.oversized:
        return 0.0
    if model.loading:
        return load_left_s(state, model, now)
    load_s = expected_load_s(state, model)
    before = None if load_s is None else _until_load_s(state, model, waiting, now)
    return None if load_s is None or before is None else before + load_s


def _until_load_s(
    state: SchedulerState, model: Model, waiting: Waiting, now: float
) -> float | None:
    """Return when the load that `waiting` needs is expected to begin."""
    max_delay_sec = state.settings.max_delay_sec
    if model.state is WorkerState.BACKOFF:
        return max(0.0, model.retry_at - now)
    if model.name in state.wants:
        going = [m for m in state.present.values() if m.leaving is not None]
        return _until_gone_s(state, going, now)
    if model.leaving is not None and model.leaving.for_model:
        gone = drain_left_s(state, model, now)
        other_s = expected_load_s(state, state.model(model.leaving.for_model))
        # held back from when its displacer is ready
        return None if gone is None or other_s is None else gone + other_s + max_delay_sec
    if not model.absent and not model.serving:
        return 0.0  # on its way out, and nobody comes in its place
    in_way = [m for m in state.present.values() if not m.info.pinned]
    gone = _until_gone_s(state, in_way, now)
    if gone is not None and any(m.line.count for m in in_way):
        gone += max(0.0, max_delay_sec - (now - state.hold_start(model, waiting)))
    return gone
