"""What the screen itself costs: its processor time, and the bytes that it writes."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

_WINDOW_S = 2.0


@dataclass(frozen=True)
class Own:
    """A share of a core, and bytes a second to the terminal; None = not measured."""

    cpu: float | None = None
    bytes_per_s: float | None = None


class Meter:
    """Measures this process over windows of a few seconds."""

    def __init__(self) -> None:
        self._last = _readings()
        self.own = Own()

    def sample(self) -> Own:
        """Return what the last whole window cost."""
        if time.monotonic() - self._last[0] >= _WINDOW_S:
            at, cpu, written = _readings()
            passed = at - self._last[0]
            before = self._last[2]
            rate = None if written is None or before is None else (written - before) / passed
            self.own = Own(cpu=(cpu - self._last[1]) / passed, bytes_per_s=rate)
            self._last = (at, cpu, written)
        return self.own


def _readings() -> tuple[float, float, int | None]:
    return time.monotonic(), time.process_time(), _written()


def _written() -> int | None:
    """Return the bytes written so far: the terminal's, since sockets are not counted there."""
    try:
        with Path("/proc/self/io").open("rb") as file:
            for line in file:
                if line.startswith(b"wchar:"):
                    return int(line[6:])
    except OSError:
        return None
    return None
