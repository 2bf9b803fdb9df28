"""What opens over the board: looking closer, and asking before something is done."""

from __future__ import annotations

import shlex
from collections.abc import Callable

from textual import on
from textual.screen import Screen

from llmtui import screens
from llmtui.finding import Finding
from llmtui.form import clock
from llmtui.happenings import Happening
from llmtui.rows import Line
from llmtui.screens.flow import told
from llmtui.widgets.table import Table

_JUMP_S = 0.8  # what a hand needs to stop


class Acting(Finding):
    """The board with the keys that open windows.

    A window is pushed at once and never after an `await`: a key that follows in a burst is for it.
    """

    def action_copy(self, whole: bool) -> None:
        """Copy the id under the cursor, or the `llmctl` line about it."""
        table = self.table
        key = table.cursor_key
        notice = self.happening(key or "") if table.id == "events" else None
        if notice is not None:
            text = notice.whole
        elif not key:
            return
        else:
            verb = "why" if table.id == "requests" else "switch"
            text = f"llmctl {verb} {shlex.quote(key)}" if whole else key
        self.copy_to_clipboard(text)
        self.say(f"copied: {text}", "accent")

    def model_here(self) -> str:
        """Return the model that the cursor is about; "" for none."""
        table = self.table
        if table.id == "workers":
            return table.cursor_key or ""
        request = self.shown.requests.get(table.cursor_key or "")
        return request.model if request and table.id == "requests" else ""

    @on(Table.Chosen)
    def chosen(self) -> None:
        """Open what was clicked."""
        self.action_detail()

    def action_detail(self) -> None:
        """Show all about the row under the cursor."""
        table, key = self.table, self.table.cursor_key
        if key is None:
            return
        if table.id == "events":
            notice = self.happening(key)
            if notice is not None:
                self.push_screen(
                    screens.Help(self.desk, lambda width: _told(notice, width), "Event")
                )
        elif table.id == "workers":
            self.push_screen(screens.WorkerDetail(self.desk, key))
        else:
            self.push_screen(screens.RequestDetail(self.desk, key))

    def action_logs(self) -> None:
        """Show the log of the model's worker."""
        model = self.model_here()
        if model:
            self.show_logs(model)
        else:
            self.say("no model stands here whose log could be shown")

    def show_logs(self, model: str) -> None:
        """Show the log of a model's worker."""
        self.push_screen(screens.Logs(self.desk, model))

    def ask_switch(self, model: str) -> None:
        """Show the plan of a switch to a model."""
        self.push_screen(screens.Switch(self.desk, model))

    # --- acting -----------------------------------------------------------------------------

    def _may_act(self, *, on_cursor: bool = True) -> bool:
        """Return whether to act; if not, say why."""
        refusal = self.desk.refusal
        if not refusal and on_cursor and self.jumped(self.table, _JUMP_S):
            refusal = "the row under the cursor has just gone; look again"
        if refusal:
            self.say(refusal, "warn")
        return not refusal

    def action_cancel(self) -> None:
        """Ask whether to cancel the marked requests, or the one under the cursor."""
        table = self.board("requests")
        marked = sorted(table.marked)
        if self.table is not table and not marked:
            self.say("requests are cancelled in their own table, or marked there")
            return
        if not self._may_act(on_cursor=not marked):
            return
        ids = marked or [table.cursor_key or ""]
        hit = [self.shown.requests[i] for i in ids if i in self.shown.requests]
        hit = [request for request in hit if not request.ended]
        if not hit:
            self.say("it has ended already" if table.keys else "there is nothing to cancel")
            return

        def done(cancelled: bool | None) -> None:
            if cancelled:
                table.marked.clear()
                self.redraw()

        self.push_screen(screens.Cancel(self.desk, hit), done)

    def action_switch(self) -> None:
        """Show the plan of a switch to the model under the cursor."""
        self._ask(lambda model: screens.Switch(self.desk, model))

    def action_stop(self) -> None:
        """Ask whether to unload the model under the cursor."""
        worker = self.shown.workers.get(self.model_here())
        if worker is not None and worker.state == "off":
            self.say(f"{worker.model} is not loaded")
            return
        self._ask(lambda model: screens.Unload(self.desk, model))

    def _ask(self, make: Callable[[str], Screen[bool]]) -> None:
        model = self.model_here()
        if not model:
            self.say("no model stands here")
        elif self._may_act():
            self.push_screen(make(model))


def _told(notice: Happening, width: int) -> list[Line]:
    lines = [[(f"{clock(notice.at)}  {notice.level}", "dim")], []]
    lines += told(notice.text, width)
    return (
        lines
        if notice.whole == notice.text
        else [*lines, [], *told(notice.whole, width, style="dim")]
    )
