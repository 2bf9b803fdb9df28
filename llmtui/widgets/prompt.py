"""The line at the bottom into which a filter or a command is typed."""

from __future__ import annotations

from typing import ClassVar

from textual.binding import Binding, BindingType
from textual.message import Message
from textual.suggester import Suggester
from textual.widgets import Input


class Prompt(Input):
    """A field that is there only while it is used.

    It takes every key while it is open, so that what is typed quickly never acts on the tables.
    """

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape", "leave", show=False),
        Binding("tab", "complete", show=False),
        Binding("up", "older", show=False),
        Binding("down", "newer", show=False),
        Binding("ctrl+p", "older", show=False),
        Binding("ctrl+n", "newer", show=False),
    ]

    class _Told(Message):
        def __init__(self, prompt: Prompt, step: int = 0) -> None:
            super().__init__()
            self.prompt = prompt
            self.step = step

        @property
        def control(self) -> Prompt:
            """Which one it was."""
            return self.prompt

    class Left(_Told):
        """It was left without an answer."""

    class Asked(_Told):
        """More is wanted: the rest of a word (`step` 0), or what was typed before or after."""

    def __init__(self, *, id: str, suggester: Suggester | None = None) -> None:  # noqa: A002
        super().__init__(id=id, compact=True, suggester=suggester, select_on_focus=False)
        self.display = False

    def open(self, value: str, hint: str) -> None:
        """Show it, ready to type.

        Args:
            value: What stands in it.
            hint: What is shown while nothing does.
        """
        self.placeholder = hint
        self.display = True
        with self.prevent(Input.Changed):
            self.value = value
        self.cursor_position = len(value)
        # at once, and not through the queue as `focus` has it: the next key may be there already
        self.screen.set_focus(self)

    def close(self) -> None:
        """Hide it."""
        self.display = False

    def action_leave(self) -> None:
        """Leave."""
        self.post_message(self.Left(self))

    def action_complete(self) -> None:
        """Ask for the rest of a word."""
        self.post_message(self.Asked(self, 0))

    def action_older(self) -> None:
        """Ask for what was typed before."""
        self.post_message(self.Asked(self, -1))

    def action_newer(self) -> None:
        """Ask for what was typed after."""
        self.post_message(self.Asked(self, 1))
