"""Why each waiting request waits and when it is expected to run, for all of them at once.

The same words as `explain` and `eta_s`, but each line is walked once: asking for a thousand
requests one by one would walk it a thousand times.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from llmd.core.events import Why
from llmd.core.explain import tell
from llmd.core.forecast import Forecast
from llmd.core.policy_state import SchedulerState
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
        forecast = Forecast(state, model, now)
        for waiting in model.line.order(now, state.settings.aging_sec):
            why = tell(state, waiting, len(ahead) + 1, ahead, now)
            yield Outlook(waiting.item.id, why, forecast.place(waiting))
            ahead.append(waiting)
