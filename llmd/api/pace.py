"""When to pause between the reads of a fast stream.

A token that is relayed alone costs a read, a send and the loop between them. When tokens come
faster than anyone can read them, a pause of a few milliseconds turns several into one read and
one send. Slow streams are never paused, nor is the beginning of a fast one.
"""

from __future__ import annotations

import math

PAUSE_S = 0.005
FAST_GAP_S = 0.0045  # less than the pause, which so gathers at least one token more
FAST_READS = 6


class Pace:
    """Decides on a pause after each read of one stream. Times are monotonic seconds."""

    __slots__ = ("_fast", "_last", "_paused")

    def __init__(self) -> None:
        self._fast = 0
        self._last = -math.inf
        self._paused = False

    def after_read(self, now: float, events: int) -> float:
        """Return how long to pause before the next read, 0 for not at all.

        Args:
            now: When the read returned.
            events: How many complete events it brought.
        """
        gap = now - self._last
        self._last = now
        if self._paused:
            # a pause that gathered nothing: the stream has become slow
            fast = events > 1
            self._fast = FAST_READS if fast else 0
        else:
            fast = gap < FAST_GAP_S
            self._fast = self._fast + 1 if fast else 0
        self._paused = self._fast >= FAST_READS
        return PAUSE_S if self._paused else 0.0
