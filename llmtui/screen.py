"""The program's one screen: the board, its keys, and what they do."""

from __future__ import annotations

import gc
from typing import ClassVar

from textual.binding import BindingType

from llmtui import screens
from llmtui.bindings import bindings, help_lines
from llmtui.commanding import Commanding
from llmtui.rows import Line


def scopes() -> list[list[BindingType]]:
    """Return the bindings that work at the same time: the board's, and each window's."""
    from llmtui.screens.window import Window

    found = [bindings()]
    for window in _windows():
        kinds = [kind for kind in window.__mro__ if issubclass(kind, Window)]
        found.append([b for kind in kinds for b in kind.__dict__.get("BINDINGS", ())])
    return found


def _windows() -> list[type]:
    return [getattr(screens, name) for name in screens.WINDOWS]


class LlmTui(Commanding):
    """The operators' screen; see `llmtui.board.Board` for its arguments."""

    BINDINGS: ClassVar[list[BindingType]] = bindings()

    def on_ready(self) -> None:
        """Load what the first frame, which now stands, could do without.

        Not later either: the first key should not wait for it, and the files of a program that is
        left open all day may be replaced by those of another version.
        """
        _windows()
        if not gc.isenabled():  # the program's own start, see `llmtui.app.main`
            gc.freeze()
            gc.enable()

    def action_leave(self) -> None:
        """Leave, from wherever one is."""
        self.exit(0)

    def action_quit_now(self) -> None:
        """Leave."""
        self.exit(0)

    def action_help(self) -> None:
        """Show the keys."""
        from llmtui.screens.help import window_lines

        ascii_only = self.look.ascii_only

        def lines(width: int) -> list[Line]:
            own = help_lines(self.keymap, width, ascii_only=ascii_only)
            return [*own, [], *window_lines(self.keymap, width, ascii_only=ascii_only)]

        self.push_screen(screens.Help(self.desk, lines))
