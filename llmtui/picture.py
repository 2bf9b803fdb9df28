"""The screen as a picture, for the README and for whoever cannot be shown a terminal.

What a terminal draws with glyphs that should meet (borders, bars, sparks) is drawn as shapes, so
that the picture looks the same whatever fonts there are. The same screen gives the same file.
"""

from __future__ import annotations

import asyncio
import html
import os
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from rich.cells import cell_len
from rich.color import Color, blend_rgb
from rich.color_triplet import ColorTriplet
from rich.segment import Segment
from rich.terminal_theme import TerminalTheme
from textual._context import visible_screen_stack

from llmtui.own import Meter, Own

if TYPE_CHECKING:
    from textual.app import App

MOMENT = 1_767_271_267.0  # what every clock shows in a picture of the demo: 12:41:07
_WIDE, _HIGH = 9.0, 19.0  # of a cell, in pixels
_PAD = 14.0
_FONT = "ui-monospace,'SF Mono',Menlo,Consolas,'DejaVu Sans Mono',monospace"
_SETTLE_S = 0.1
_PATIENCE_S = 10.0

_EIGHTHS = "▏▎▍▌▋▊▉█"  # from the left
_HEIGHTS = "▁▂▃▄▅▆▇"  # from below
_LEFT, _RIGHT, _UP, _DOWN = 1, 2, 4, 8
_BORDERS = {
    "─": _LEFT | _RIGHT, "━": _LEFT | _RIGHT, "│": _UP | _DOWN, "┃": _UP | _DOWN,
    "╭": _RIGHT | _DOWN, "╮": _LEFT | _DOWN, "╰": _RIGHT | _UP, "╯": _LEFT | _UP,
    "┌": _RIGHT | _DOWN, "┐": _LEFT | _DOWN, "└": _RIGHT | _UP, "┘": _LEFT | _UP,
    "├": _RIGHT | _UP | _DOWN, "┤": _LEFT | _UP | _DOWN,
}  # fmt: skip
_DOTS = ((0, 0), (0, 1), (0, 2), (1, 0), (1, 1), (1, 2), (0, 3), (1, 3))  # bits of a braille cell


@dataclass(frozen=True)
class Run:
    """Cells of one look: their text, `#rrggbb` of ink and ground, and weight."""

    text: str
    ink: str
    ground: str
    bold: bool = False
    underline: bool = False


class Measured(Meter):
    """What the screen costs as `benchmarks` found it: a picture runs for too short to tell."""

    def sample(self) -> Own:
        """Return it."""
        return Own(cpu=0.007, bytes_per_s=300)


async def take(
    app: App[Any],
    size: tuple[int, int],
    keys: Sequence[str] = (),
    *,
    live: bool = True,
    until: str = "",
) -> list[list[Run]]:
    """Run an app without a terminal and return its screen once it holds still.

    Args:
        app: Not yet running.
        size: Columns and rows.
        keys: What is pressed once it is there, as textual names keys.
        live: Wait for data first.
        until: Wait for this text at the end.

    Raises:
        TimeoutError: What is waited for did not come within 10 s.
    """
    from llmtui.screen import LlmTui

    async with app.run_test(size=size) as pilot:
        if live and isinstance(app, LlmTui):
            await _when(lambda: app.shown.link == "live", pilot.pause)
        await _still(app, pilot.pause)
        for key in keys:
            await pilot.press(key)
        if until:
            await _when(lambda: any(until in line for line in page(runs(app))), pilot.pause)
        await _still(app, pilot.pause)
        return runs(app)


async def _when(true: Callable[[], bool], pause: Callable[[float], Any]) -> None:
    began = time.monotonic()
    while not true():
        if time.monotonic() - began > _PATIENCE_S:
            raise TimeoutError("what was waited for did not come")
        await pause(0.02)


async def _still(app: App[Any], pause: Callable[[float], Any]) -> None:
    """Wait until nothing is drawn any more, or for as long as patience lasts."""
    began, seen = time.monotonic(), runs(app)
    while time.monotonic() - began < _PATIENCE_S:
        await pause(_SETTLE_S)
        now = runs(app)
        if now == seen:
            return
        seen = now


def runs(app: App[Any]) -> list[list[Run]]:
    """Return what is on an app's screen, line by line."""
    # textual has no public way to the cells; its own pictures take a full update, which would keep
    # the next partial one from the terminal
    visible_screen_stack.set(app._background_screens)
    theme = app.ansi_theme
    return [_line(strip, theme) for strip in app.screen._compositor.render_strips()]


def _line(segments: Iterable[Segment], theme: TerminalTheme) -> list[Run]:
    made: list[Run] = []
    for text, style, control in segments:
        if control or not text:
            continue
        ink, ground = theme.foreground_color, theme.background_color
        bold = underline = False
        if style is not None:
            ink = _rgb(style.color, theme, ink)
            ground = _rgb(style.bgcolor, theme, ground)
            if style.reverse:
                ink, ground = ground, ink
            if style.dim:
                ink = blend_rgb(ink, ground, 0.5)
            bold, underline = bool(style.bold), bool(style.underline)
        run = Run(text, ink.hex, ground.hex, bold, underline)
        if made and (made[-1].ink, made[-1].ground, made[-1].bold, made[-1].underline) == (
            run.ink, run.ground, run.bold, run.underline,
        ):  # fmt: skip
            run = Run(made.pop().text + text, run.ink, run.ground, bold, underline)
        made.append(run)
    return made


def _rgb(color: Color | None, theme: TerminalTheme, default: ColorTriplet) -> ColorTriplet:
    if color is None or color.is_default:
        return default
    return color.get_truecolor(theme)


def page(lines: Sequence[Sequence[Run]]) -> list[str]:
    """Return the screen's text, line by line, without spaces at the ends."""
    return ["".join(run.text for run in line).rstrip() for line in lines]


# --- drawing -------------------------------------------------------------------------------


def svg(lines: Sequence[Sequence[Run]], title: str) -> str:
    """Return the screen as an SVG document.

    Args:
        lines: As `runs` returns them.
        title: For those who cannot see it.
    """
    cells = max((sum(cell_len(run.text) for run in line) for line in lines), default=0)
    width, height = cells * _WIDE + 2 * _PAD, len(lines) * _HIGH + 2 * _PAD
    ground = lines[0][0].ground if lines and lines[0] else "#000000"
    sheet = _Sheet(ground)
    for row, line in enumerate(lines):
        sheet.line(line, _PAD + row * _HIGH)
    return "\n".join(
        (
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_n(width)} {_n(height)}" '
            f'width="{_n(width)}" height="{_n(height)}" role="img">',
            f"<title>{html.escape(title, quote=False)}</title>",
            f"<style>text{{font:15px {_FONT};white-space:pre}}.b{{font-weight:700}}"
            ".u{text-decoration:underline}</style>",
            f'<rect width="{_n(width)}" height="{_n(height)}" rx="10" fill="{ground}"/>',
            *sheet.drawn(),
            "</svg>",
            "",
        )
    )


class _Sheet:
    """Collects what is drawn: grounds first, then text, then shapes by their colour."""

    def __init__(self, ground: str) -> None:
        self._ground = ground
        self._grounds: list[str] = []
        self._texts: list[str] = []
        self._strokes: dict[str, list[str]] = {}
        self._dots: dict[str, list[str]] = {}
        self._fills: dict[str, list[str]] = {}

    def line(self, line: Sequence[Run], top: float) -> None:
        """Draw one line whose upper edge is at `top`."""
        left = _PAD
        for run in line:
            width = cell_len(run.text) * _WIDE
            if run.ground != self._ground:
                self._grounds.append(
                    f'<rect x="{_n(left)}" y="{_n(top)}" width="{_n(width)}" '
                    f'height="{_n(_HIGH)}" fill="{run.ground}"/>'
                )
            self._run(run, left, top)
            left += width

    def _run(self, run: Run, left: float, top: float) -> None:
        plain, start = "", left
        for char in run.text:
            if char in _BORDERS or "▁" <= char <= "▏" or "\u2800" <= char <= "\u28ff":
                self._write(plain, run, start, top)
                self._shape(char, run.ink, left, top)
                plain, start = "", left + _WIDE
            elif char == " " and plain.endswith(" "):
                self._write(plain, run, start, top)
                plain, start = "", left + _WIDE
            elif char == " " and not plain:
                start = left + _WIDE
            else:
                plain += char
            left += cell_len(char) * _WIDE
        self._write(plain, run, start, top)

    def _write(self, text: str, run: Run, left: float, top: float) -> None:
        text = text.rstrip()
        if not text:
            return
        looks = " ".join(name for name, on in (("b", run.bold), ("u", run.underline)) if on)
        style = f' class="{looks}"' if looks else ""
        self._texts.append(
            f'<text x="{_n(left)}" y="{_n(top + 14)}" fill="{run.ink}"{style} '
            f'textLength="{_n(cell_len(text) * _WIDE)}" lengthAdjust="spacingAndGlyphs">'
            f"{html.escape(text, quote=False)}</text>"
        )

    def _shape(self, char: str, ink: str, left: float, top: float) -> None:
        if char in _BORDERS:
            self._strokes.setdefault(ink, []).append(_border(char, left, top))
        elif char in _EIGHTHS:
            width = _WIDE * (_EIGHTHS.index(char) + 1) / 8
            self._fill(ink, left, top, width, _HIGH)
        elif char in _HEIGHTS:
            height = _HIGH * (_HEIGHTS.index(char) + 1) / 8
            self._fill(ink, left, top + _HIGH - height, _WIDE, height)
        else:
            bits = ord(char) - 0x2800
            for bit, (column, row) in enumerate(_DOTS):
                if bits >> bit & 1:
                    x, y = left + _WIDE * (0.25 + column / 2), top + _HIGH * (0.125 + row / 4)
                    self._dots.setdefault(ink, []).append(f"M{_n(x)} {_n(y)}h0")

    def _fill(self, ink: str, left: float, top: float, width: float, height: float) -> None:
        shape = f"M{_n(left)} {_n(top)}h{_n(width)}v{_n(height)}h{_n(-width)}z"
        self._fills.setdefault(ink, []).append(shape)

    def drawn(self) -> list[str]:
        """Return the elements in the order in which they lie on each other."""
        shapes = [f'<path fill="{ink}" d="{"".join(d)}"/>' for ink, d in self._fills.items()]
        for strokes, width in ((self._strokes, 1.2), (self._dots, 2.6)):
            shapes += [
                f'<path fill="none" stroke="{ink}" stroke-width="{width}" stroke-linecap="round" '
                f'd="{"".join(d)}"/>'
                for ink, d in strokes.items()
            ]
        return self._grounds + shapes + self._texts


def _border(char: str, left: float, top: float) -> str:
    """Return the path of a piece of a border; two arms that meet at a corner are rounded."""
    arms, x, y = _BORDERS[char], left + _WIDE / 2, top + _HIGH / 2
    right, bottom = left + _WIDE, top + _HIGH
    if char in "╭╮╰╯":
        side = right if arms & _RIGHT else left
        end = bottom if arms & _DOWN else top
        return f"M{_n(side)} {_n(y)}Q{_n(x)} {_n(y)} {_n(x)} {_n(end)}"
    path = ""
    if arms & (_LEFT | _RIGHT):
        begin, end = left if arms & _LEFT else x, right if arms & _RIGHT else x
        path += f"M{_n(begin)} {_n(y)}H{_n(end)}"
    if arms & (_UP | _DOWN):
        begin, end = top if arms & _UP else y, bottom if arms & _DOWN else y
        path += f"M{_n(x)} {_n(begin)}V{_n(end)}"
    return path


def _n(number: float) -> str:
    return f"{number:.2f}".rstrip("0").rstrip(".")


def in_one_zone() -> None:
    """Have this process tell the time in UTC, so that pictures do not depend on where it runs."""
    os.environ["TZ"] = "UTC"
    time.tzset()


def draw(app: App[Any], size: tuple[int, int], keys: Sequence[str], title: str) -> str:
    """Run an app, press keys, and return its screen as an SVG document; see `take`."""
    return svg(asyncio.run(take(app, size, keys)), title)
