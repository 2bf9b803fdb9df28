"""A few lines that are drawn as they are: the header, and the line at the bottom."""

from __future__ import annotations

from collections.abc import Callable

from llmtui.rows import Line
from llmtui.widgets.sparing import Drawn, Sparing


class Lines(Sparing):
    """Lines of parts.

    Args:
        make: Makes the lines, as wide as asked for.
    """

    def __init__(self, make: Callable[[int], list[Line]], *, id: str) -> None:  # noqa: A002
        super().__init__(id=id)
        self._make = make
        self._made: list[Line] = []

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

    def drawn(self, y: int, width: int) -> Drawn:
        """Return one line."""
        return self._made[y] if y < len(self._made) else [], False, False
