"""Lines of parts that are laid out within a width: chunks side by side, text word by word."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from rich.cells import cell_len, chop_cells
from rich.style import Style
from rich.text import Text

from llmd.admin.framing import clean
from llmtui.rows import Line, Part
from llmtui.widgets.paint import parted

LABEL = 8


def cells(line: Iterable[Part]) -> int:
    """Return how many cells a line takes."""
    return sum(cell_len(text) for text, _ in line)


def wrapped(text: str, width: int) -> list[str]:
    """Return harmless text in lines of at most `width` cells, broken between words if it can be."""
    width = max(1, width)
    lines: list[str] = []
    line = ""
    for word in clean(text).split():
        joined = f"{line} {word}" if line else word
        if cell_len(joined) <= width:
            line = joined
            continue
        if line:
            lines.append(line)
        pieces = chop_cells(word, width) if cell_len(word) > width else [word]
        lines += pieces[:-1]
        line = pieces[-1]
    return [*lines, line] if line or not lines else lines


def paragraph(text: str, width: int, style: str = "", *, indent: int = 0) -> list[Line]:
    """Return text as lines of one style."""
    pad = " " * indent
    return [[(pad + line, style)] for line in wrapped(text, width - indent)]


def flow(
    chunks: Iterable[Line], width: int, *, indent: int = 0, gap: int = 3, head: Line | None = None
) -> list[Line]:
    """Return chunks side by side, on as many lines as they need.

    A chunk is broken only if it alone is wider than a line.

    Args:
        chunks: Parts that belong together; empty ones are left out.
        width: Cells of a line.
        indent: Cells before the first chunk of each line.
        gap: Cells between two chunks.
        head: What stands in the first line's indent.
    """
    lines: list[Line] = []
    line: Line = [*(head or []), (" " * max(0, indent - cells(head or [])), "")]
    used, fresh = indent, True
    for chunk in chunks:
        wide = cells(chunk)
        if not wide:
            continue
        if not fresh and used + gap + wide > width:
            lines.append(line)
            line, used, fresh = [(" " * indent, "")], indent, True
        if not fresh:
            line.append((" " * gap, ""))
            used += gap
        if used + wide > width:
            first, *rest = _broken(chunk, max(1, width - indent))
            line += first
            used += cells(first)
            for more in rest:
                lines.append(line)
                line, used = [(" " * indent, ""), *more], indent + cells(more)
        else:
            line += [(clean(text), style) for text, style in chunk]
            used += wide
        fresh = False
    return lines if fresh and lines else [*lines, line]


def _broken(chunk: Line, width: int) -> list[Line]:
    """Return a chunk that is too wide, word by word."""
    lines: list[Line] = [[]]
    used = 0
    for text, style in chunk:
        for word in clean(text).split(" "):
            piece = word if not used else f" {word}"
            if used + cell_len(piece) > width:
                pieces = chop_cells(word, width) or [""]
                if used:
                    lines.append([])
                for number, part in enumerate(pieces):
                    if number:
                        lines.append([])
                    lines[-1].append((part, style))
                used = cell_len(pieces[-1])
            else:
                lines[-1].append((piece, style))
                used += cell_len(piece)
    return lines


def labelled(label: str, chunks: Iterable[Line], width: int, *, gap: int = 3) -> list[Line]:
    """Return chunks behind a quiet label, aligned with those of other labels."""
    return flow(chunks, width, indent=LABEL, gap=gap, head=[(label[:LABEL], "dim")])


def told(text: str, width: int, *, style: str = "", label: str = "") -> list[Line]:
    """Return text word by word behind a label."""
    return labelled(label, [[(word, style)] for word in clean(text).split()], width, gap=1)


def as_text(lines: Sequence[Line], colours: Mapping[str, Style], *, ascii_only: bool) -> Text:
    """Return lines as what a `Static` shows; nothing in them is markup."""
    made = Text(no_wrap=True, overflow="crop", end="")
    for number, line in enumerate(lines):
        if number:
            made.append("\n")
        before = ""
        for text, named in parted(line):
            style = before if text.isspace() else named  # one colour fewer to send over ssh
            made.append(plain(text) if ascii_only else clean(text), colours.get(style, Style()))
            before = style
    return made


_PLAIN = str.maketrans({
    "●": "*", "◐": ">", "○": "o", "→": ">", "←": "<", "─": "-", "▸": ">", "◂": "<", "·": ".",
    "≤": "<", "∞": "-", "…": "~", "↑": "^", "↓": "v", "✓": "+", "✗": "!",
})  # fmt: skip


def plain(text: str) -> str:
    """Return harmless text in ASCII alone."""
    text = clean(text)
    if text.isascii():
        return text
    return text.translate(_PLAIN).encode("ascii", "replace").decode()
