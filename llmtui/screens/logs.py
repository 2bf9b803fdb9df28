"""A worker's log: it follows, can be searched, and is never believed."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Mapping
from typing import ClassVar

from rich.style import Style
from textual import on
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.content import Content
from textual.geometry import Size
from textual.screen import ModalScreen
from textual.scroll_view import ScrollView
from textual.strip import Strip
from textual.widgets import Input

from llmd.admin import protocol as p
from llmd.admin.calls import AdminError
from llmd.admin.framing import clean
from llmtui.form import fit
from llmtui.widgets.paint import strip

RING = 20_000
FIRST = 500


class LogView(ScrollView, can_focus=True):
    """The lines, of which only the visible ones are drawn."""

    def __init__(self, colours: Mapping[str, Style]) -> None:
        super().__init__(id="log")
        self.lines: deque[p.LogLine] = deque(maxlen=RING)
        self.colours = colours
        self.following = True
        self.word = ""

    def add(self, lines: list[p.LogLine]) -> None:
        """Show more lines."""
        self.lines.extend(lines)
        self.virtual_size = Size(self.size.width, len(self.lines))
        if self.following:
            self.scroll_end(animate=False, force=True)
        self.refresh()

    def hits(self) -> list[int]:
        """Return the rows that hold the word that is searched."""
        word = self.word.lower()
        if not word:
            return []
        return [row for row, line in enumerate(self.lines) if word in line.text.lower()]

    def render_line(self, y: int) -> Strip:
        """Return one line of what is visible."""
        row = y + self.scroll_offset.y
        ground, width = self.rich_style, self.size.width
        if row >= len(self.lines):
            return strip([], width, self.colours, ground)
        line = self.lines[row]
        at = time.strftime(" %H:%M:%S ", time.localtime(line.at))
        hit = bool(self.word) and self.word.lower() in line.text.lower()
        lowered = line.text[:200].lower()
        style = "accent" if line.stream == "llmd" else ""
        if "error" in lowered or "fail" in lowered:
            style = "bad"
        elif "warn" in lowered:
            style = "warn"
        text = fit(line.text, max(1, width - len(at) - 1))
        return strip([(at, "dim"), (text, style)], width, self.colours, ground, cursor=hit)


class Logs(ModalScreen[None]):
    """A window with one worker's log.

    Args:
        model: Whose.
        follow: Starts the stream of its lines; raises `AdminError` when there is none.
    """

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape,q", "leave", show=False),
        Binding("f,F", "follow", show=False),
        Binding("slash", "search", show=False),
        Binding("n", "next(1)", show=False),
        Binding("N", "next(-1)", show=False),
        Binding("j,down", "scroll(1)", show=False),
        Binding("k,up", "scroll(-1)", show=False),
        Binding("g,home", "edge(0)", show=False),
        Binding("G,end", "edge(1)", show=False),
    ]

    def __init__(
        self,
        model: str,
        follow: Callable[[], AsyncIterator[p.LogLine]],
        colours: Mapping[str, Style],
    ) -> None:
        super().__init__()
        self._model = model
        self._follow = follow
        self._view = LogView(colours)
        self._new: list[p.LogLine] = []
        self._trouble = ""

    def compose(self) -> ComposeResult:
        """Lay the window out."""
        yield self._view
        search = Input(placeholder="search", id="search", compact=True)
        search.display = False
        yield search

    def on_mount(self) -> None:
        """Begin to read."""
        self._view.focus()
        self._titles()
        self.run_worker(self._read(), exclusive=True)
        self.set_interval(0.25, self._paint)

    async def _read(self) -> None:
        try:
            async for line in self._follow():
                self._new.append(line)
                if len(self._new) > RING:
                    del self._new[:-RING]
                if len(self._new) % 256 == 0:
                    await asyncio.sleep(0)
            self._trouble = "ended"
        except AdminError as error:
            self._trouble = clean(str(error))

    def _paint(self) -> None:
        if self._new:
            new, self._new = self._new, []
            self._view.add(new)
        self._titles()

    def _titles(self) -> None:
        view = self._view
        state = self._trouble or ("FOLLOW" if view.following else "held, f follows")
        view.border_title = Content(f" LOG {clean(self._model)} ─ {state} ")
        found = f"/{clean(view.word)} {len(view.hits())} hits  n next " if view.word else ""
        view.border_subtitle = Content(f" {found}/ search  f follow  esc back ")

    def action_leave(self) -> None:
        """Close the window, or what is being typed."""
        search = self.query_one("#search", Input)
        if search.display:
            search.display = False
            self._view.focus()
        else:
            self.dismiss(None)

    def action_follow(self) -> None:
        """Follow the end, or hold still."""
        self._view.following = not self._view.following
        if self._view.following:
            self._view.scroll_end(animate=False)
        self._titles()

    def action_scroll(self, by: int) -> None:
        """Scroll, which ends following."""
        self._view.following = False
        self._view.scroll_relative(y=by, animate=False)

    def action_edge(self, end: int) -> None:
        """Go to the first line, or follow the last."""
        self._view.following = bool(end)
        if end:
            self._view.scroll_end(animate=False)
        else:
            self._view.scroll_home(animate=False)

    def action_search(self) -> None:
        """Ask what to search."""
        search = self.query_one("#search", Input)
        search.display = True
        search.focus()

    @on(Input.Submitted, "#search")
    def searched(self, event: Input.Submitted) -> None:
        """Search, from the end on."""
        self._view.word = event.value
        event.input.display = False
        self._view.focus()
        self.action_next(-1)

    def action_next(self, step: int) -> None:
        """Go to the next line that holds the word, or the one before."""
        rows = self._view.hits()
        if not rows:
            self._view.refresh()
            return
        here = self._view.scroll_offset.y
        ahead = [row for row in rows if row > here] if step > 0 else []
        behind = [row for row in rows if row < here] if step < 0 else []
        row = ahead[0] if ahead else behind[-1] if behind else rows[0 if step > 0 else -1]
        self._view.following = False
        self._view.scroll_to(y=row, animate=False)
        self._view.refresh()
        self._titles()
