"""A few lines that are drawn as they are: the header, and the line at the bottom."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from rich.style import Style
from textual.strip import Strip

from llmtui.rows import Line
from llmtui.widgets.paint import strip
from llmtui.widgets.sparing import Sparing


class Lines(Sparing):
    """Lines of parts.

    Args:
        make: Makes the lines, as wide as asked for.
    """

    def __init__(self, make: Callable[[int], list[Line]], *, id: str) -> None:  # noqa: A002
        super().__init__(id=id)
        self._make = make
        self._made: list[Line] = []
        self.colours: Mapping[str, Style] = {}

    def update(self) -> None:
        """Make the lines anew and draw them if they differ."""
        made = self._make(self.size.width)
        if made != self._made:
            self._made = made
            self.repaint()

    def on_resize(self) -> None:
        """Make the lines as wide as there is room."""
        self._made = []
        self.update()

    def draw_line(self, y: int) -> Strip:
        """Return one line."""
        line = self._made[y] if y < len(self._made) else []
        return strip(line, self.size.width, self.colours, self.ground)
