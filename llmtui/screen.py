"""The program's one screen: the board, its keys, and what they do."""

from __future__ import annotations

from typing import ClassVar

from textual.binding import BindingType

from llmtui.bindings import bindings, help_lines
from llmtui.carry import Carry
from llmtui.commanding import Commanding
from llmtui.rows import Line
from llmtui.screens.cancel import Cancel
from llmtui.screens.help import Help, window_lines
from llmtui.screens.logs import Logs
from llmtui.screens.request import RequestDetail
from llmtui.screens.switch import Switch
from llmtui.screens.unload import Unload
from llmtui.screens.window import Window
from llmtui.screens.worker import WorkerDetail

_WINDOWS = (Help, RequestDetail, WorkerDetail, Logs, Switch, Unload, Cancel, Carry)


def scopes() -> list[list[BindingType]]:
    """Return the bindings that work at the same time: the board's, and each window's."""
    found = [bindings()]
    for window in _WINDOWS:
        kinds = [kind for kind in window.__mro__ if issubclass(kind, Window)]
        found.append([b for kind in kinds for b in kind.__dict__.get("BINDINGS", ())])
    return found


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

        def lines(width: int) -> list[Line]:
            own = help_lines(self.keymap, width, ascii_only=ascii_only)
            return [*own, [], *window_lines(self.keymap, width, ascii_only=ascii_only)]

        self.push_screen(Help(self.desk, lines))
