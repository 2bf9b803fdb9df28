"""Widgets of lines that send the terminal only the cells that differ from what it shows.

Over ssh every byte counts, and a row of twelve colours is half a kilobyte: where three numbers of
it have changed, three numbers are drawn.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import zip_longest
from typing import TYPE_CHECKING

from rich.cells import cell_len
from rich.style import Style
from textual.geometry import Region
from textual.strip import Strip
from textual.widget import Widget

if TYPE_CHECKING:
    from typing_extensions import Self

_APART = 8  # cells; to go to a place and set its colour costs about as much as to draw these

Cell = tuple[str, "Style | None"]


class Sparing(Widget):
    """A widget whose lines are made by `draw_line`; to be mixed in before its other base."""

    def __init__(self, *, id: str | None = None) -> None:  # noqa: A002
        self._on_screen: dict[int, Strip] = {}  # before the base, which already asks to be drawn
        self._ground: Style | None = None
        super().__init__(id=id)

    @property
    def ground(self) -> Style:
        """What the widget's own style says of its cells; to ask textual for it takes a while."""
        if self._ground is None:
            self._ground = self.rich_style
        return self._ground

    def draw_line(self, y: int) -> Strip:
        """Return one visible line."""
        raise NotImplementedError

    def repaint(self) -> None:
        """Draw what differs from what was drawn before."""
        shown = self._on_screen
        width, height = self.size
        regions = []
        for y in range(height):
            old, new = shown.get(y), self.draw_line(y)
            if old is not None and old == new:
                continue
            shown[y] = new
            spans = [(0, width)] if old is None else differences(old, new)
            regions += [Region(start, y, end - start, 1) for start, end in spans]
        if regions:
            super().refresh(*regions)

    def refresh(
        self,
        *regions: Region,
        repaint: bool = True,
        layout: bool = False,
        recompose: bool = False,
    ) -> Self:
        """Draw everything anew: whoever asks for it knows of something that the lines do not."""
        self._on_screen.clear()
        self._ground = None
        super().refresh(*regions, repaint=repaint, layout=layout, recompose=recompose)
        return self

    def render_line(self, y: int) -> Strip:
        """Return a line as it was compared, since only what differed reaches the terminal."""
        if y not in self._on_screen:
            self._on_screen[y] = self.draw_line(y)
        return self._on_screen[y]


def differences(old: Strip, new: Strip) -> list[tuple[int, int]]:
    """Return the spans of cells in which two lines differ, those close together as one."""
    spans: list[tuple[int, int]] = []
    for x, (before, after) in enumerate(zip_longest(_cells(old), _cells(new))):
        if before == after:
            continue
        if spans and x - spans[-1][1] < _APART:
            spans[-1] = (spans[-1][0], x + 1)
        else:
            spans.append((x, x + 1))
    return spans


def _cells(line: Strip) -> Iterator[Cell]:
    for text, style, _ in line:
        if text.isascii():
            for char in text:
                yield char, style
            continue
        for char in text:
            yield char, style
            for _ in range(cell_len(char) - 1):
                yield "", style
