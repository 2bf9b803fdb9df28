"""What is sent to the terminal for a partial update: the cells that changed, and little else.

Textual draws each changed span from the left edge of its widget on, and gives every segment all of
its colours and a reset. Over ssh that is most of what is sent: here a span begins where it begins,
and a colour is sent when it differs from the one before.
"""

from __future__ import annotations

from functools import lru_cache
from typing import ClassVar

from rich.color import ColorSystem
from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
from rich.segment import Segment
from rich.style import Style
from textual._compositor import ChopsUpdate, CompositorUpdate
from textual.app import App
from textual.screen import Screen
from textual.scrollbar import ScrollBar, ScrollBarRender
from textual.strip import Strip

_ATTRIBUTES = (
    ("bold", "1"), ("dim", "2"), ("italic", "3"), ("underline", "4"), ("reverse", "7"),
    ("strike", "9"),
)  # fmt: skip


class WholeCells(ScrollBarRender):
    """Scroll bars of whole cells: half ones are no ASCII, and nobody misses them."""

    VERTICAL_BARS: ClassVar[list[str]] = [" "]
    HORIZONTAL_BARS: ClassVar[list[str]] = [" "]


class LeanApp(App[int]):
    """An app that sends its partial updates in few bytes."""

    def __init__(self, *, ansi_color: bool | None = None) -> None:
        super().__init__(ansi_color=ansi_color)
        ScrollBar.renderer = WholeCells  # textual has this for all bars of a process only

    def action_redraw_all(self) -> None:
        """Draw every cell: something else may have written to this terminal."""
        self.screen.refresh()

    # textual has no public place for this; what it hands on is drawn as before if it is no such
    # update any more, and a test of the bytes sent says so
    def _display(self, screen: Screen[object], renderable: RenderableType | None) -> None:
        if isinstance(renderable, ChopsUpdate):
            renderable = Narrow(renderable)
        super()._display(screen, renderable)


class Narrow(CompositorUpdate):
    """Renders a partial update in few bytes.

    Args:
        update: As textual's compositor makes it.
    """

    def __init__(self, update: ChopsUpdate) -> None:
        self._update = update

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Return the same as segments."""
        yield Segment(self.render_segments(console))

    def render_segments(self, console: Console) -> str:
        """Return what is to be written."""
        update, pen = self._update, Pen(_system(console))
        for y, begin, end in update.spans:
            for right, (left, strip) in zip(
                update.chop_ends[y], update.chops[y].items(), strict=False
            ):
                if strip is None or left >= end or right <= begin:
                    continue
                first, last = max(left, begin), min(right, end)
                pen.move(first, y)
                pen.draw(strip.crop(first - left, last - left))
        return pen.written()


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

    def draw(self, strip: Strip) -> None:
        """Draw from there on."""
        for text, style, control in strip:
            if text and not control:
                self._take(_codes(style or Style.null(), self._system))
                self._parts.append(text)

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
