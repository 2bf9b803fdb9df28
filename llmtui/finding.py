"""Moving, filtering, sorting and marking: what changes only how things are looked at."""

from __future__ import annotations

import time
from dataclasses import replace

from textual import on
from textual.widgets import Input

from llmtui.board import Board
from llmtui.view import SORTS, next_rate
from llmtui.widgets.menu import Menu
from llmtui.widgets.prompt import Prompt


class Finding(Board):
    """The board with the keys that change nothing but the view."""

    _filtering = "requests"

    # --- moving -----------------------------------------------------------------------------

    def action_move(self, by: int) -> None:
        """Move the cursor."""
        self.keyed_at = time.monotonic()
        if self.following and self.table.id == "requests":
            self.following = False
            self.titles()
        self.table.move(by)

    def action_other(self) -> None:
        """Go to the next table that is on the screen."""
        names = [name for name in ("workers", "requests", "events") if self.board(name).display]
        place = names.index(self.table.id) if self.table.id in names else -1
        self.focus_table(names[(place + 1) % len(names)])

    def action_panel(self, name: str) -> None:
        """Go to a table."""
        if name == "requests" and not self.board(name).display:
            self.board("events").display = False
        self._fit()
        self.focus_table(name)

    def action_follow(self) -> None:
        """Keep the cursor on the request that started last, or let it be."""
        self.following = not self.following
        if self.following:
            self.action_panel("requests")
        self.redraw()

    def action_mark(self) -> None:
        """Mark the request under the cursor, and go on."""
        table = self.table
        if table.id == "requests" and table.cursor_key:
            table.marked ^= {table.cursor_key}
            self.action_move(1)
            self.titles()

    # --- finding ----------------------------------------------------------------------------

    def action_filter(self) -> None:
        """Ask for a filter of the table that has the focus."""
        self._filtering = self.table.id or "requests"
        hint = f"filter {self._filtering}: words; !word for rows without it, '! ' before for none"
        self.main.query_one("#filter", Prompt).open(self.view.words[self._filtering], hint)

    @on(Input.Changed, "#filter")
    def filtering(self, event: Input.Changed) -> None:
        """Filter while it is typed."""
        if isinstance(event.input, Prompt) and event.input.used:
            self.view.words[self._filtering] = event.value
            self._resort()

    def filtered(self, words: str | None) -> None:
        """Keep the filter, or forget it; see `Board`."""
        self.view.words[self._filtering] = words or ""
        self.focus_table(self._filtering)
        self._resort()

    def action_clear(self) -> None:
        """Forget the filter, the faults and the marks; without any, leave the events."""
        name, marked = self.table.id or "requests", self.board("requests").marked
        if name == "events" and not (self.view.words[name] or self.view.faults or marked):
            self.action_events()
            return
        self.view.clear(name)
        marked.clear()
        self._resort()

    def action_sort(self) -> None:
        """Ask by what to sort."""
        name = self.table.id or "requests"
        if name not in SORTS:
            self.say("events come in their order; I turns it round")
            return

        def sort(word: str | None) -> None:
            if word is not None:
                self.view.sorts[name] = word
                self._resort()

        choices = [(letter, word) for word, letter in SORTS[name].items()]
        self.push_screen(Menu("sort by", choices, self.view.sorts[name], self.palette), sort)

    def action_invert(self) -> None:
        """Sort the other way round."""
        self.view.inverted ^= {self.table.id or "requests"}
        self._resort()

    def action_faults(self) -> None:
        """Show only what is wrong, or everything."""
        self.view.faults = not self.view.faults
        self._resort()

    def _resort(self) -> None:
        self.keyed_at = 0.0  # the rows may move: this key asked for it
        self.redraw()

    # --- how it is shown --------------------------------------------------------------------

    def action_events(self) -> None:
        """Show what the daemon did, or hide it."""
        events = self.board("events")
        events.display = not events.display
        self._fit()
        self.focus_table("events" if events.display else "requests")
        self.redraw()

    def action_pause(self) -> None:
        """Hold the screen still, or let it go on."""
        self.paused = not self.paused
        if not self.paused:
            self.shown = self.link.state
        self.redraw()

    def action_rate(self, step: int) -> None:
        """Draw more or less often."""
        self.set_rate(next_rate(self.rate, step))
        self.say(f"draws {self.rate:g} times a second")

    def action_wide(self) -> None:
        """Give names and reasons more room."""
        self.look = replace(self.look, wide=not self.look.wide)
        self.redraw()
