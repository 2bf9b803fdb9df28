"""Style names as colours, and lines of parts as strips."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import lru_cache

from rich.cells import cell_len
from rich.segment import Segment
from rich.style import Style
from textual.strip import Strip
from textual.theme import BUILTIN_THEMES, Theme

from llmtui.form import REST

DARK = Theme(
    name="llmd-dark",
    primary="#7aa2c8",
    secondary="#8fb8a8",
    warning="#d9b36c",
    error="#e07a78",
    success="#8fbf8a",
    accent="#7fb4d6",
    foreground="#c9d1d9",
    background="#12161c",
    surface="#161b22",
    panel="#30363d",
    dark=True,
    variables={"cursor": "#23303d", "quiet": "#7b8694", "edge": "#39424d", "spark": "#6fa592"},
)
LIGHT = Theme(
    name="llmd-light",
    primary="#2f6690",
    secondary="#3a7d6a",
    warning="#8a5a00",
    error="#b3261e",
    success="#2e7031",
    accent="#1f6f9f",
    foreground="#24292f",
    background="#fbfaf7",
    surface="#f4f2ec",
    panel="#d8d4ca",
    dark=False,
    variables={"cursor": "#e3e9ee", "quiet": "#6c727b", "edge": "#c9c4b8", "spark": "#4f8f7c"},
)
# the terminal's own colours; what is quiet is dim and not bright black, which some palettes hide
ANSI = Theme(
    name="llmd-ansi",
    ansi=True,
    primary="ansi_cyan",
    secondary="ansi_cyan",
    warning="ansi_yellow",
    error="ansi_red",
    success="ansi_green",
    accent="ansi_cyan",
    foreground="ansi_default",
    background="ansi_default",
    surface="ansi_default",
    panel="ansi_default",
    boost="ansi_default",
    dark=True,
    variables={
        **BUILTIN_THEMES["ansi-dark"].variables,
        "cursor": "ansi_default",
        "quiet": "ansi_default",
        "edge": "ansi_bright_black",
    },
)
_NOTHING = Style.null()
THEMES = {"dark": DARK, "light": LIGHT, "ansi": ANSI}

_ANSI = {
    "": "default",
    "ok": "green",
    "warn": "yellow",
    "bad": "bold red",
    "accent": "cyan",
    "dim": "dim",
    "new": "bold",
    "head": "bold",
    "spark": "green",
}


def palette(theme: Theme) -> Mapping[str, Style]:
    """Return a style for each name."""
    if theme.ansi:
        made = {name: Style.parse(text) for name, text in _ANSI.items()}
        made["cursor"] = Style(reverse=True)
    else:
        quiet = theme.variables["quiet"]
        made = {
            "": Style(color=theme.foreground),
            "ok": Style(color=theme.success),
            "warn": Style(color=theme.warning),
            "bad": Style(color=theme.error, bold=True),
            "accent": Style(color=theme.accent),
            "dim": Style(color=quiet),
            "new": Style(color=theme.foreground, bold=True),
            "head": Style(color=theme.primary, bold=True),
            "spark": Style(color=theme.variables["spark"]),
            "cursor": Style(bgcolor=theme.variables["cursor"]),
        }
    return made


def strip(
    line: Sequence[tuple[str, str]],
    width: int,
    colours: Mapping[str, Style],
    ground: Style,
    *,
    cursor: bool = False,
    faded: bool = False,
) -> Strip:
    """Return a line as a strip of `width` cells; of a `.bar` the rest is dim."""
    over = colours["cursor"] if cursor else _NOTHING
    joined: list[tuple[str, str]] = []
    for text, name in parted(line):
        if joined and joined[-1][1] == name:
            joined[-1] = (joined[-1][0] + text, name)
        else:
            joined.append((text, name))
    segments, cells = [], 0
    for text, name in joined:
        look = colours.get("dim" if faded else name, _NOTHING)
        segments.append(Segment(text, _mixed(ground, look, over)))
        cells += len(text) if text.isascii() else cell_len(text)
    if cells < width:
        segments.append(Segment(" " * (width - cells), _mixed(ground, _NOTHING, over)))
    made = Strip(segments, max(cells, width))  # it would count its cells once more
    return made.adjust_cell_length(width) if cells > width else made


@lru_cache(maxsize=256)
def _mixed(ground: Style, look: Style, over: Style) -> Style:
    """Return a look on its ground; the few that there are take long to add."""
    if over.reverse:  # of many colours it would make many grounds
        look = Style(bold=look.bold)
    return ground + look + over


def parted(line: Iterable[tuple[str, str]]) -> Iterator[tuple[str, str]]:
    """Yield the parts of a line, with what is left empty of each `.bar` as a dim one."""
    for text, name in line:
        if name.endswith(".bar"):
            full = text.rstrip(REST)
            yield full, name.removesuffix(".bar")
            yield text[len(full) :], "dim"
        else:
            yield text, name
