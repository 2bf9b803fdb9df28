"""Widgets of lines that have textual draw only those that look otherwise than before.

To colour a line takes longer than to make it, and to have textual draw it longer still. Which cells
of it are then sent to the terminal is seen to in `wire.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from rich.style import Style
from textual.geometry import Region
from textual.strip import Strip
from textual.widget import Widget

from llmtui.rows import Line
from llmtui.widgets.paint import strip

if TYPE_CHECKING:
    from typing_extensions import Self

Drawn = tuple[Line, bool, bool]
"""A line, whether the cursor is on it, and whether it is faded."""


class Sparing(Widget):
    """A widget whose lines are made by `drawn`; to be mixed in before its other base."""

    def __init__(self, *, id: str | None = None) -> None:  # noqa: A002
        self._on_screen: dict[int, Drawn] = {}  # before the base, which already asks to be drawn
        self._ground: Style | None = None
        self.colours: Mapping[str, Style] = {}
        super().__init__(id=id)

    @property
    def ground(self) -> Style:
        """What the widget's own style says of its cells; to ask textual for it takes a while."""
        if self._ground is None:
            self._ground = self.rich_style
        return self._ground

    def drawn(self, y: int, width: int) -> Drawn:
        """Return one visible line of `width` cells; to ask textual for that takes a while, too."""
        raise NotImplementedError

    def repaint(self) -> None:
        """Draw what differs from what was drawn before."""
        shown = self._on_screen
        width, height = self.size
        regions = []
        for y in range(height):
            new = self.drawn(y, width)
            if shown.get(y) != new:
                shown[y] = new
                regions.append(Region(0, y, width, 1))
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
        width = self.size.width
        if y not in self._on_screen:
            self._on_screen[y] = self.drawn(y, width)
        line, cursor, faded = self._on_screen[y]
        return strip(line, width, self.colours, self.ground, cursor=cursor, faded=faded)
