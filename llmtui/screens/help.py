"""The keys, on one page or scrolled."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import ClassVar

from textual.binding import Binding, BindingType

from llmtui.rows import Line
from llmtui.screens.desk import Desk
from llmtui.screens.window import Hint, Window


class Help(Window[None]):
    """Shows lines until it is left.

    Args:
        desk: What it works with.
        text: Makes the lines, as wide as asked for; one that begins without a space is a title.
        heading: What stands in the frame.
    """

    wide: ClassVar[int] = 110
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("question_mark,q,enter", "leave", show=False, id="help.back"),
    ]

    def __init__(
        self, desk: Desk, text: Callable[[int], Sequence[Line]], heading: str = "Keys"
    ) -> None:
        super().__init__(desk)
        self._text = text
        self._title = heading

    def heading(self) -> str:
        """Return what stands in the frame."""
        return self._title

    def lines(self, width: int) -> list[Line]:
        """Return the lines."""
        return list(self._text(width))

    def hints(self) -> Sequence[Hint]:
        """Return the keys."""
        return (("", "j k", "scroll", True), ("window.back", "esc", "back", True))
