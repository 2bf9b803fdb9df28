"""Why each waiting request waits and when it is expected to run, for all of them at once.

The same words as `explain` and `eta_s`, but each line is walked once: asking for a thousand
requests one by one would walk it a thousand times.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from llmd.core.estimates import until_serving_s
from llmd.core.events import Why
from llmd.core.explain import tell
from llmd.core.policy_state import Model, SchedulerState
from llmd.core.queue import Waiting


@dataclass(frozen=True, slots=True)
class Outlook:
    """One waiting request: why it waits, and in how many seconds it is expected to be granted."""

    id: str
    why: Why
    eta_s: float | None


def outlook(state: SchedulerState, now: float) -> Iterator[Outlook]:
    """Yield each request that waits, model by model, the first in line first."""
    for name in list(state.queue.lines):
        model = state.models[name]
        ahead: list[Waiting] = []
        need = 0
        for waiting in model.line.order(now, state.settings.aging_sec):
            need += model.slots_for(waiting.item)
            why = tell(state, waiting, len(ahead) + 1, ahead, now)
            yield Outlook(waiting.item.id, why, _eta_s(state, model, waiting, need, now))
            ahead.append(waiting)


def _eta_s(
    state: SchedulerState, model: Model, waiting: Waiting, need: int, now: float
) -> float | None:
    """Return what `estimates.eta_s` says of one whose line needs `need` slots up to it."""
    if not state.admission_open or waiting.blocked_by_key():
        return None
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
