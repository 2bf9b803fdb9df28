"""Moving, filtering, sorting and marking: what changes only how things are looked at."""

from __future__ import annotations

import time

from textual import on
from textual.widgets import Input

from llmtui.board import Board
from llmtui.rows import Look
from llmtui.widgets.table import Table


class Finding(Board):
    """The board with the keys that change nothing but the view."""

    _filtering = "requests"

    def action_move(self, by: int) -> None:
        """Move the cursor."""
        self.keyed_at = time.monotonic()
        self.table.move(by)

    def action_other(self) -> None:
        """Go to the other table."""
        self.action_panel("requests" if self.table.id == "workers" else "workers")

    def action_panel(self, name: str) -> None:
        """Go to a table."""
        self.query_one(f"#{name}").focus()

    def action_filter(self) -> None:
        """Ask for a filter of the table that has the focus."""
        table = self.table
        field = self.query_one("#filter", Input)
        self._filtering = table.id or "requests"
        field.value = self.view.words[table.id or ""]
        field.placeholder = f"filter {table.id}: words, !word for those without"
        field.display = True
        field.focus()

    @on(Input.Changed, "#filter")
    def filtering(self, event: Input.Changed) -> None:
        """Filter while it is typed."""
        if event.input.display:
            self.view.words[self._filtering] = event.value
            self.redraw()

    @on(Input.Submitted, "#filter")
    def filtered(self, event: Input.Submitted) -> None:
        """Keep the filter."""
        self._end_filter(event.input)

    def _end_filter(self, field: Input) -> None:
        field.display = False
        self.query_one(f"#{self._filtering}").focus()
        self.redraw()

    def action_clear(self) -> None:
        """Forget the filter, the faults and the marks."""
        field = self.query_one("#filter", Input)
        if field.display:
            self.view.words[self._filtering] = ""
            self._end_filter(field)
            return
        self.view.clear(self.table.id or "")
        self.query_one("#requests", Table).marked.clear()
        self.redraw()

    def action_sort(self) -> None:
        """Sort by the next column."""
        self.view.sort_next(self.table.id or "")
        self._resort()

    def action_invert(self) -> None:
        """Sort the other way round."""
        self.view.inverted ^= {self.table.id or ""}
        self._resort()

    def _resort(self) -> None:
        self.keyed_at = 0.0  # the rows may move: this key asked for it
        self.redraw()

    def action_faults(self) -> None:
        """Show only what is wrong, or everything."""
        self.view.faults = not self.view.faults
        self._resort()

    def action_pause(self) -> None:
        """Hold the screen still, or let it go on."""
        self.paused = not self.paused
        if not self.paused:
            self.shown = self.link.state
        self.redraw()

    def action_wide(self) -> None:
        """Give names and reasons more room."""
        self.look = Look(ascii_only=self.look.ascii_only, wide=not self.look.wide)
        self.redraw()

    def action_mark(self) -> None:
        """Mark the request under the cursor, and go on."""
        table = self.table
        if table.id == "requests" and table.cursor_key:
            table.marked ^= {table.cursor_key}
            self.action_move(1)
            self.titles()
