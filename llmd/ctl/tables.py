"""Text for people: aligned tables that fit the terminal."""

from __future__ import annotations

import re
import time
from collections.abc import Iterable, Mapping, Sequence

from msgspec import Struct

from llmd.admin.units import size

_COLOURS: Mapping[str, str] = {
    **dict.fromkeys(("ready", "decode", "done", "ok"), "32"),
    **dict.fromkeys(("starting", "loading", "prefill", "queued", "draining", "stopping"), "33"),
    **dict.fromkeys(("failed", "backoff", "timed_out"), "31"),
    **dict.fromkeys(("off", "cancelled", "abandoned", "refused", "received"), "2"),
}
_PAINT = re.compile("\x1b\\[\\d*m")
_PIECE = re.compile("\x1b\\[\\d*m|.", re.DOTALL)
_LEGIBLE = 12  # cells that a name needs at least


class Style(Struct, frozen=True):
    """How wide lines may be, and whether they may have colours.

    Attributes:
        width: In cells; 0 = no limit.
        colour: Escape sequences are welcome.
    """

    width: int = 0
    colour: bool = False

    def paint(self, text: str, word: str) -> str:
        """Return text in the colour of a state's word."""
        code = _COLOURS.get(word)
        return f"\x1b[{code}m{text}\x1b[0m" if self.colour and code else text

    def bold(self, text: str) -> str:
        """Return text that stands out."""
        return f"\x1b[1m{text}\x1b[0m" if self.colour else text


def cells(text: str) -> int:
    """Return how many cells of a terminal text takes."""
    if text.isascii():
        return len(text)
    import unicodedata  # a library of its own, which most tables do without

    return sum(
        0 if unicodedata.combining(char) else 2 if unicodedata.east_asian_width(char) in "WF" else 1
        for char in text
    )


def cut(text: str, width: int) -> str:
    """Return text in at most `width` cells, with an ellipsis where something is missing."""
    if cells(text) <= width:
        return text
    kept, used = "", 0
    for char in text:
        used += cells(char)
        if used > width - 1:
            break
        kept += char
    return kept + "…" if width > 0 else ""


def shorten(line: str, style: Style) -> str:
    """Return a line, coloured or not, in at most the terminal's width."""
    plain = _PAINT.sub("", line)
    if not style.width or cells(plain) <= style.width:
        return line
    kept, used = "", 0
    for piece in _PIECE.findall(line):
        if piece[0] != "\x1b":
            used += cells(piece)
            if used > style.width - 1:
                break
        kept += piece
    return kept + ("\x1b[0m" if "\x1b" in kept else "") + "…"


def flow(parts: Sequence[str], style: Style) -> list[str]:
    """Return parts beside each other, two spaces apart, on as many lines as they need."""
    lines: list[str] = []
    used = 0
    for part in filter(None, parts):
        width = cells(_PAINT.sub("", part))
        if lines and (not style.width or used + 2 + width <= style.width):
            lines[-1] += "  " + part
            used += 2 + width
        else:
            lines.append(part)
            used = width
    return [shorten(line, style) for line in lines]


def table(
    columns: Sequence[str],
    rows: Sequence[Sequence[str]],
    style: Style,
    *,
    right: str = "",
    spare: str = "",
) -> list[str]:
    """Return the lines of a table that fits the terminal.

    Args:
        columns: Headings. Where it is narrow the last column is cut first, then the widest ones.
        rows: Cells; a cell that is the word of a state gets its colour.
        style: Of the terminal.
        right: Headings of the columns that are aligned to the right, separated by spaces.
        spare: Headings of the columns that a narrow terminal does without, the first one first.
    """
    widths = {
        heading: max(cells(heading), *(cells(row[i]) for row in rows), 0)
        for i, heading in enumerate(columns)
    }
    _leave_out(widths, style.width, spare.split())
    _shrink(widths, style.width)
    numeric = set(right.split())
    shown = [
        (i, heading, widths[heading]) for i, heading in enumerate(columns) if heading in widths
    ]

    def line(row: Sequence[str], *, heading: bool) -> str:
        parts = []
        for i, column, width in shown:
            text = cut(row[i], width)
            gap = " " * (width - cells(text))
            painted = style.bold(text) if heading else style.paint(text, row[i])
            parts.append(gap + painted if column in numeric else painted + gap)
        return "  ".join(parts).rstrip()

    return [line(columns, heading=True), *(line(row, heading=False) for row in rows)]


def _over(widths: Iterable[int], limit: int) -> int:
    """Return how many cells a line is too long."""
    taken = [width + 2 for width in widths]
    return sum(taken) - 2 - limit if limit else 0


def _leave_out(widths: dict[str, int], limit: int, spare: Sequence[str]) -> None:
    """Leave out columns until the others can be read, if they are cut at all."""
    for heading in spare:
        if _over((min(width, _LEGIBLE) for width in widths.values()), limit) <= 0:
            return
        del widths[heading]


def _shrink(widths: dict[str, int], limit: int) -> None:
    """Make columns narrower until they fit: the last one first, then whichever is widest."""
    last = next(reversed(widths))
    widths[last] -= max(0, min(_over(widths.values(), limit), widths[last] - _LEGIBLE))
    while _over(widths.values(), limit) > 0:
        widest = max(widths, key=lambda heading: widths[heading])
        if widths[widest] <= 1:
            return
        widths[widest] -= 1


def held(number: int) -> str:
    """Return bytes as 24.1G; "-" for none."""
    return size(number) if number else "-"


def clock(at: float, *, fraction: bool = False) -> str:
    """Return a moment as local time of day."""
    text = time.strftime("%H:%M:%S", time.localtime(at))
    return f"{text}.{int(at % 1 * 1000):03d}" if fraction else text
