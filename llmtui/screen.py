"""The program's one screen: the board, its keys, and what they do."""

from __future__ import annotations

from typing import ClassVar

from textual.binding import BindingType

from llmtui.bindings import bindings, help_lines
from llmtui.commanding import Commanding
from llmtui.screens.help import Help


class LlmTui(Commanding):
    """The operators' screen; see `llmtui.board.Board` for its arguments."""

    BINDINGS: ClassVar[list[BindingType]] = bindings()

    def action_leave(self) -> None:
        """Leave, from wherever one is."""
        self.exit(0)

    def action_quit_now(self) -> None:
        """Leave."""
        self.exit(0)

    def action_help(self) -> None:
        """Show the keys."""
        ascii_only = self.look.ascii_only
        self.push_screen(
            Help(self.desk, lambda width: help_lines(self.keymap, width, ascii_only=ascii_only))
        )
