"""The restart budget: how long to wait after a crash, and when to stop trying."""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass
from typing import TypeAlias

BASE_DELAY_S = 0.25
MAX_DELAY_S = 30.0
_MAX_DOUBLINGS = 32  # beyond any cap; keeps the power finite


@dataclass(frozen=True, slots=True)
class Retry:
    """Try again.

    Attributes:
        at: When, on the caller's clock.
    """

    at: float


@dataclass(frozen=True, slots=True)
class GiveUp:
    """The budget is spent.

    Attributes:
        until: When the budget allows another try; inf = only after `reset`.
    """

    until: float


Verdict: TypeAlias = Retry | GiveUp


class RestartBudget:
    """Counts one worker's crashes over a sliding window.

    The delay doubles with each crash that the window remembers, from `base_s` up to `max_s`, and
    carries no jitter: the restarts of one box need no spreading, and tests and ETAs can tell it.

    Args:
        limit: So many crashes within the window spend the budget; 0 = never.
        window_s: How long a crash is remembered, in seconds; 0 = until `reset`.
        base_s: The first delay, in seconds.
        max_s: The longest delay, in seconds.
    """

    def __init__(
        self,
        *,
        limit: int,
        window_s: float,
        base_s: float = BASE_DELAY_S,
        max_s: float = MAX_DELAY_S,
    ) -> None:
        self._limit = limit
        self._window_s = window_s or math.inf
        self._base_s = base_s
        self._max_s = max_s
        # the delay needs no more crashes than it takes to reach its cap
        self._crashes: deque[float] = deque(maxlen=limit or _MAX_DOUBLINGS)

    def crashed(self, now: float) -> Verdict:
        """Note a crash at `now` and say what follows. Times must not go backwards."""
        self._crashes.append(now)
        count = self.spent(now)
        if self._limit and count >= self._limit:
            return GiveUp(self._crashes[0] + self._window_s)
        doublings = min(count - 1, _MAX_DOUBLINGS)
        return Retry(now + min(self._base_s * 2.0**doublings, self._max_s))

    def refused(self, now: float) -> GiveUp:
        """Say when to try again what failed for a reason that does not change by itself."""
        return GiveUp(now + self._window_s)

    def spent(self, now: float) -> int:
        """Return how many crashes the window still remembers."""
        while self._crashes and self._crashes[0] + self._window_s <= now:
            self._crashes.popleft()
        return len(self._crashes)

    def reset(self) -> None:
        """Forget every crash."""
        self._crashes.clear()
