"""The program's one screen: the board, its keys, and what they do."""

from __future__ import annotations

from typing import ClassVar

from textual.binding import BindingType

from llmtui.acting import Acting
from llmtui.bindings import HELP, bindings
from llmtui.screens.dialogs import Help


class LlmTui(Acting):
    """The operators' screen; see `llmtui.board.Board` for its arguments."""

    BINDINGS: ClassVar[list[BindingType]] = bindings()

    def action_quit_now(self) -> None:
        """Leave."""
        self.exit(0)

    def action_help(self) -> None:
        """Show the keys."""
        text = HELP.encode("ascii", "replace").decode() if self.look.ascii_only else HELP
        self.push_screen(Help("Keys", text.splitlines()))
