"""What is sent to the terminal: the cells that differ from what it shows, and little else.

Textual draws each changed span from the left edge of its widget on, all cells of a screen with a
window over it, and gives every segment all of its colours and a reset. Over ssh that is most of
what is sent. Here each update is compared with what was sent before.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import lru_cache
from itertools import groupby, repeat, zip_longest
from operator import itemgetter
from typing import ClassVar

from rich.cells import cell_len
from rich.color import ColorSystem
from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
from rich.segment import Segment
from rich.style import Style
from textual._compositor import ChopsUpdate, CompositorUpdate, LayoutUpdate
from textual.app import App
from textual.driver import Driver
from textual.screen import Screen
from textual.scrollbar import ScrollBar, ScrollBarRender
from textual.strip import Strip

from llmtui.terminal import Terminal

_APART = 8  # cells; to go to a place and set its colour costs about as much as to draw these
_ATTRIBUTES = (
    ("bold", "1"), ("dim", "2"), ("italic", "3"), ("underline", "4"), ("reverse", "7"),
    ("strike", "9"),
)  # fmt: skip


class WholeCells(ScrollBarRender):
    """Scroll bars of whole cells: half ones are no ASCII, and nobody misses them."""

    VERTICAL_BARS: ClassVar[list[str]] = [" "]
    HORIZONTAL_BARS: ClassVar[list[str]] = [" "]


class LeanApp(App[int]):
    """An app that sends what it draws in few bytes."""

    def __init__(self) -> None:
        super().__init__()
        ScrollBar.renderer = WholeCells  # textual has this for all bars of a process only
        self._glass = Glass()

    def get_driver_class(self) -> type[Driver]:
        """Return what speaks to the terminal."""
        found = super().get_driver_class()
        return Terminal if issubclass(Terminal, found) else found

    def on_mount(self) -> None:
        """Draw everything once the terminal is back."""
        self.app_resume_signal.subscribe(self, lambda _: self.action_redraw_all())

    def on_resize(self) -> None:
        """Draw everything: terminals differ in what becomes of what they showed."""
        self.action_redraw_all()

    def action_redraw_all(self) -> None:
        """Draw every cell: something else may have written to this terminal."""
        self._glass.forget()
        if self.screen_stack:
            self.screen.refresh()

    # textual has no public place for this; what is no such update any more is drawn as it comes,
    # and a test of the bytes sent says so
    def _display(self, screen: Screen[object], renderable: RenderableType | None) -> None:
        if isinstance(renderable, (ChopsUpdate, LayoutUpdate)):
            renderable = Narrow(renderable, self._glass)
        super()._display(screen, renderable)


Cell = tuple[str, "Style | None"]
_STYLE: Callable[[Cell], Style | None] = itemgetter(1)
_PLAIN = Style.null()


class Glass:
    """What the terminal shows, line by line, as far as it is known."""

    def __init__(self) -> None:
        self._lines: dict[int, list[Cell]] = {}

    def forget(self) -> None:
        """Know nothing: what is drawn next is sent whole."""
        self._lines.clear()

    def take(self, x: int, y: int, new: list[Cell]) -> list[tuple[int, int]]:
        """Note what is drawn from a cell on; return the spans of it that must be sent."""
        line = self._lines.get(y)
        end = x + len(new)
        if line is None or len(line) < end:
            if x == 0:
                self._lines[y] = new
            return [(0, len(new))]
        before = line[x:end]
        line[x:end] = new
        return differences(before, new)


def cells(strip: Strip) -> list[Cell]:
    """Return a strip's cells; one that a wide letter has taken from the one before it is empty."""
    made: list[Cell] = []
    for text, style, _ in strip:
        if text.isascii() or cell_len(text) == len(text):
            made.extend(zip(text, repeat(style)))
            continue
        for char in text:
            made.append((char, style))
            made.extend(("", style) for _ in range(cell_len(char) - 1))
    return made


def differences(old: Sequence[Cell], new: Sequence[Cell]) -> list[tuple[int, int]]:
    """Return the spans of cells in which two lines differ, those close together as one."""
    if old == new:
        return []
    spans: list[tuple[int, int]] = []
    changed = [x for x, (a, b) in enumerate(zip_longest(old, new)) if a is not b and a != b]
    for x in changed:
        if spans and x - spans[-1][1] < _APART:
            spans[-1] = (spans[-1][0], x + 1)
        else:
            spans.append((x, x + 1))
    return spans


class Narrow(CompositorUpdate):
    """Renders an update in few bytes.

    Args:
        update: As textual's compositor makes it.
        glass: What the terminal shows; it is then what the update made of it.
    """

    def __init__(self, update: ChopsUpdate | LayoutUpdate, glass: Glass) -> None:
        self._update = update
        self._glass = glass

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Return the same as segments."""
        yield Segment(self.render_segments(console))

    def render_segments(self, console: Console) -> str:
        """Return what is to be written."""
        pen = Pen(_system(console))
        for x, y, strip in _pieces(self._update):
            line = cells(strip)
            for begin, end in self._glass.take(x, y, line):
                pen.move(x + begin, y)
                pen.draw(line[begin:end])
        return pen.written()


def _pieces(update: ChopsUpdate | LayoutUpdate) -> Iterator[tuple[int, int, Strip]]:
    """Yield what an update draws: from which cell on, and what."""
    if isinstance(update, LayoutUpdate):
        for y, line in enumerate(update.strips, update.region.y):
            yield update.region.x, y, Strip.join(line)
        return
    for y, begin, end in update.spans:
        ends = update.chop_ends[y]
        for right, (left, strip) in zip(ends, update.chops[y].items(), strict=False):
            if strip is not None and left < end and right > begin:
                first, last = max(left, begin), min(right, end)
                yield first, y, strip.crop(first - left, last - left)


class Pen:
    """Collects what is written, and knows which colours the terminal draws with.

    Args:
        system: The colours that the terminal has.
    """

    def __init__(self, system: ColorSystem) -> None:
        self._system = system
        self._parts: list[str] = []
        self._codes: tuple[str, str, str] | None = None

    def move(self, x: int, y: int) -> None:
        """Go to a cell."""
        self._parts.append(f"\x1b[{y + 1};{x + 1}H")

    def draw(self, line: Iterable[Cell]) -> None:
        """Draw from there on."""
        for style, run in groupby(line, _STYLE):
            self._take(_codes(style or _PLAIN, self._system))
            self._parts.extend(char for char, _ in run)

    def _take(self, codes: tuple[str, str, str]) -> None:
        before, self._codes = self._codes, codes
        if codes == before:
            return
        if before is None or before[0] != codes[0]:
            sent = ["0", *filter(None, codes)]
        else:
            sent = [
                new or default
                for old, new, default in zip(before[1:], codes[1:], ("39", "49"), strict=True)
                if old != new
            ]
        self._parts.append(f"\x1b[{';'.join(sent)}m")

    def written(self) -> str:
        """Return all of it; the terminal then draws plainly again."""
        return "".join(self._parts) + ("\x1b[0m" if self._codes is not None else "")


def _system(console: Console) -> ColorSystem:
    names = {
        "standard": ColorSystem.STANDARD,
        "256": ColorSystem.EIGHT_BIT,
        "truecolor": ColorSystem.TRUECOLOR,
    }
    return names.get(console.color_system or "", ColorSystem.TRUECOLOR)


@lru_cache(maxsize=512)
def _codes(style: Style, system: ColorSystem) -> tuple[str, str, str]:
    """Return the attributes, the ink and the ground as a terminal is told of them."""
    attributes = ";".join(code for name, code in _ATTRIBUTES if getattr(style, name))
    ink = ground = ""
    if style.color is not None:
        ink = ";".join(style.color.downgrade(system).get_ansi_codes())
    if style.bgcolor is not None:
        ground = ";".join(style.bgcolor.downgrade(system).get_ansi_codes(foreground=False))
    return attributes, ink, ground
