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
        self._made_for = 0

    def update(self) -> None:
        """Make the lines anew and draw them if they differ."""
        width = self.size.width
        made = self._make(width)
        if made != self._made or width != self._made_for:
            self._made, self._made_for = made, width
            self.repaint()

    def on_resize(self) -> None:
        """Make the lines as wide as there is room."""
        self.update()

    def drawn(self, y: int, width: int) -> Drawn:
        """Return one line; the first frame is drawn before anybody is told how wide it is."""
        if width != self._made_for:
            self._made, self._made_for = self._make(width), width
        return self._made[y] if y < len(self._made) else [], False, False
