"""Text of an exact width: numbers, spans of time, bars and sparks."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

from rich.cells import cell_len, set_cell_size

from llmd.admin.framing import clean
from llmd.admin.units import count as count
from llmd.admin.units import planned as planned
from llmd.admin.units import size as size
from llmd.admin.units import span as span

_FULL, REST = "▆▁"  # lower than a cell, so that bars below each other stay apart
_LEFT = (0x00, 0x40, 0x44, 0x46, 0x47)  # braille dots of a column, filled from below
_RIGHT = (0x00, 0x80, 0xA0, 0xB0, 0xB8)
_PLAIN = " .:-=+*#"


@dataclass(frozen=True)
class Look:
    """How things are drawn.

    Attributes:
        ascii_only: Nothing but ASCII.
        wide: Flexible columns get all the room that narrow ones can spare.
    """

    ascii_only: bool = False
    wide: bool = False


@lru_cache(maxsize=2048)
def fit(text: str, width: int, *, right: bool = False, ascii_only: bool = False) -> str:
    """Return harmless text of exactly `width` cells: padded, or cut with an ellipsis."""
    text = clean(text)
    if ascii_only and not text.isascii():
        text = text.encode("ascii", "replace").decode()
    length = len(text) if text.isascii() else cell_len(text)
    if length > width:
        mark = "~" if ascii_only else "…"
        return set_cell_size(text, width - 1) + mark if width > 1 else set_cell_size(text, width)
    pad = " " * (width - length)
    return pad + text if right else text + pad


def clock(at: float) -> str:
    """Return a moment as the hour of this box: 12:41:07."""
    return time.strftime("%H:%M:%S", time.localtime(at))


def bar(share: float, width: int, *, ascii_only: bool = False) -> str:
    """Return a bar of `width` cells, filled by `share` (0 to 1)."""
    share = min(1.0, max(0.0, share))
    if ascii_only:
        inner = max(0, width - 2)
        return "[" + ("#" * round(share * inner)).ljust(inner, ".") + "]"
    return (_FULL * round(share * width)).ljust(width, REST)


def spark(values: Sequence[float], width: int, *, ascii_only: bool = False) -> str:
    """Return the course of values in `width` cells, the newest at the right end."""
    points = width if ascii_only else 2 * width
    shown = _resample(values, points)
    top = max(shown, default=0.0)
    if top <= 0:
        return ("." if ascii_only else "⣀") * width
    if ascii_only:
        return "".join(_PLAIN[max(1, round(v / top * 7)) if v > 0 else 1] for v in shown)
    levels = [max(1, round(v / top * 4)) for v in shown]
    pairs = zip(levels[::2], levels[1::2], strict=True)
    return "".join(chr(0x2800 + _LEFT[a] + _RIGHT[b]) for a, b in pairs)


def _resample(values: Sequence[float], points: int) -> list[float]:
    if len(values) <= points:
        return [0.0] * (points - len(values)) + list(values)
    step = len(values) / points
    cuts = [(int(i * step), max(int(i * step) + 1, int((i + 1) * step))) for i in range(points)]
    return [sum(values[a:b]) / (b - a) for a, b in cuts]
