"""The main screen as it is drawn: two tables, the lines around them, and when they are painted."""

from __future__ import annotations

import time
from collections.abc import Callable

from textual.app import App, ComposeResult
from textual.content import Content
from textual.widgets import Input

from llmd.admin.framing import clean
from llmtui.app import on_signals, started
from llmtui.bindings import KEYS
from llmtui.header import Own, header
from llmtui.link import Link, Source
from llmtui.rows import (
    Line,
    Look,
    heading,
    request_columns,
    request_flag,
    request_row,
    worker_columns,
    worker_row,
)
from llmtui.state import RUNNING, hold, is_faulty_worker, ticked
from llmtui.view import View
from llmtui.widgets.lines import Lines
from llmtui.widgets.paint import DARK, LIGHT, palette
from llmtui.widgets.table import Table

PAINT_S = 0.25
_SETTLE_S = 3.0  # rows are put in order again this long after the last key


class Board(App[int]):
    """Shows what the link hears; keys come with `llmtui.screen.LlmTui`.

    Args:
        make: Makes a source of data for each attempt to connect.
        look: How things are drawn.
        read_only: Offer no actions even where the socket allows them.
        colours: `dark`, `light` or `ansi`.
    """

    CSS_PATH = "llmtui.tcss"
    ENABLE_COMMAND_PALETTE = False
    TITLE = "llmtui"

    def __init__(
        self,
        make: Callable[[], Source],
        *,
        look: Look | None = None,
        read_only: bool = False,
        colours: str = "dark",
        clock: Callable[[], float] = time.time,
    ) -> None:
        super().__init__()
        self.look = look or Look()
        self._read_only = read_only
        self.clock = clock
        self.link = Link(make, self._changed, clock)
        self.shown = self.link.state
        self.paused = False
        self._dirty = True
        self._drawn_second = 0
        self.keyed_at = 0.0
        self.now = self.clock()
        self.view = View()
        self._said = ("", "", 0.0)
        self._clocks = started()
        self._own = Own()
        self.register_theme(DARK)
        self.register_theme(LIGHT)
        self._colours = colours

    # --- layout -----------------------------------------------------------------------------

    def get_theme_variable_defaults(self) -> dict[str, str]:
        """Return what themes that are not llmd's own lack."""
        return {"cursor": "ansi_black", "quiet": "ansi_bright_black", "edge": "ansi_bright_black"}

    def compose(self) -> ComposeResult:
        """Lay the screen out."""
        yield Lines(self._header, id="header")
        yield Table(self._worker, self._worker_title, id="workers")
        yield Table(self._request, self._request_title, id="requests")
        yield Lines(self._notice, id="notice")
        yield Lines(self._keys, id="footer")
        yield Input(id="filter", placeholder="filter", compact=True)

    def on_mount(self) -> None:
        """Begin to listen and to draw."""
        theme = {"dark": DARK, "light": LIGHT}.get(self._colours)
        self.theme = theme.name if theme else "ansi-dark"
        colours = palette(theme)
        for table in self.query(Table):
            table.colours = colours
            table.cursor_mark = ">" if self.look.ascii_only else "▌"
        for lines in self.query(Lines):
            lines.colours = colours
        if self.look.ascii_only:
            self.add_class("plain")
        self.query_one("#requests").focus()
        self.run_worker(self.link.run(), name="link")
        self.set_interval(PAINT_S, self._paint)
        self._fit()
        on_signals(lambda code: self.exit(code, return_code=code))

    def on_resize(self) -> None:
        """Fit into the terminal's new size."""
        self._fit()
        self._dirty = True

    def _fit(self) -> None:
        short = self.size.width < 100
        self.query_one("#header").set_class(short, "short")
        self.query_one("#notice").display = self.size.height >= 30
        rows = max(1, len(self.view.worker_keys(self.shown)))
        room = max(4, (self.size.height - 4) // 2)
        self.query_one("#workers").styles.height = min(rows + 3, room)

    # --- drawing ----------------------------------------------------------------------------

    def _changed(self) -> None:
        self._dirty = True

    def _paint(self) -> None:
        """Draw what has changed, and once a second what grows older."""
        if not self.query("#header"):
            return  # the screen is being taken down, and the timer was due once more
        now = self.clock()
        if int(now) == self._drawn_second and not self._dirty:
            return
        if int(now) != self._drawn_second:
            self._measure()
        self._drawn_second, self._dirty = int(now), False
        self.link.state = ticked(self.link.state, now)
        if not self.paused:
            self.shown, self.now = self.link.state, now
        self._draw()

    def _draw(self) -> None:
        self._fit()
        state = self.shown
        for table, keys in (
            (self.query_one("#workers", Table), self.view.worker_keys(self.shown)),
            (self.query_one("#requests", Table), self.view.request_keys(self.shown, self.now)),
        ):
            table.faded = state.link != "live"
            settled = time.monotonic() - self.keyed_at > _SETTLE_S
            table.show(keys if settled else hold(table.keys, keys))
        self.titles()
        for lines in self.query(Lines):
            lines.update()

    def _measure(self) -> None:
        wall, cpu = started()
        passed = wall - self._clocks[0]
        if passed > 2:
            self._own = Own(cpu=(cpu - self._clocks[1]) / passed)
            self._clocks = (wall, cpu)

    def titles(self) -> None:
        """Say above each table what it holds."""
        state = self.shown
        workers, requests = self.query_one("#workers", Table), self.query_one("#requests", Table)
        up = sum(worker.slots > 0 for worker in state.workers.values())
        running = sum(request.state in RUNNING for request in state.requests.values())
        waiting = sum(request.state == "queued" for request in state.requests.values())
        requests.marked &= set(state.requests)
        marked = f"  marked {len(requests.marked)}" if requests.marked else ""
        self._title(workers, f"1 Workers  {up} up of {len(state.workers)}", "")
        self._title(requests, f"2 Requests  {running} running, {waiting} queued", marked)
        old = state.link != "live"
        workers.empty = "not connected" if old else "no model matches"
        requests.empty = "" if old else "nobody asks for anything"

    def _title(self, table: Table, title: str, more: str) -> None:
        table.border_title = Content(f" {title} ")
        text = "  ".join(self.view.told(table.id or "")) + more
        table.border_subtitle = Content(f" {text.strip()} " if text.strip() else "")

    def _header(self, width: int) -> list[Line]:
        can_write = self.link.state.access == "write" and not self._read_only
        return header(
            self.shown, width, self.now, self.look,
            can_write=can_write, paused=self.paused, own=self._own,
        )  # fmt: skip

    def _worker_title(self, width: int) -> str:
        return heading(worker_columns(width, self.look))

    def _request_title(self, width: int) -> str:
        return heading(request_columns(width, self.look))

    def _worker(self, key: str, width: int) -> Line:
        worker = self.shown.workers.get(key)
        if worker is None:
            return []
        columns = worker_columns(width - 1, self.look)
        row = worker_row(worker, self.shown, columns, self.now, self.look)
        return [("!" if is_faulty_worker(worker) else " ", "bad"), *row]

    def _request(self, key: str, width: int) -> Line:
        request = self.shown.requests.get(key)
        if request is None:
            return []
        columns = request_columns(width - 1, self.look)
        row = request_row(request, self.shown, columns, self.now, self.look)
        return [(request_flag(request, self.now), "bad"), *row]

    def _notice(self, width: int) -> list[Line]:
        text, style, until = self._said
        if self.now < until:
            return [[(f" {clean(text)}", style)]]
        if self.shown.link == "stale":
            return [[(f" {clean(self.shown.trouble)}", "bad")]]
        if not self.shown.log:
            return [[]]
        last = self.shown.log[-1]
        at = time.strftime(" %H:%M:%S ", time.localtime(last.at))
        return [[(at, "dim"), (clean(last.text)[:width], "dim")]]

    def _keys(self, width: int) -> list[Line]:
        text, style, until = self._said
        if self.now < until and self.size.height < 30:
            return [[(f" {clean(text)}", style)]]
        line: Line = []
        left = width - 8
        for key in KEYS:
            if not key.word or key.id == "quit" or (key.writes and not self.can_write):
                continue
            if left < len(key.shown) + len(key.word) + 3:
                continue
            line += [(f" {key.shown}", "accent"), (f" {key.word} ", "dim")]
            left -= len(key.shown) + len(key.word) + 3
        return [[*line, (" q", "accent"), (" quit", "dim")]]

    def say(self, text: str, style: str = "") -> None:
        """Show a line for some seconds."""
        self._said = (text, style, self.clock() + 6)
        self.redraw()

    def redraw(self) -> None:
        """Draw at once what a key has changed."""
        if not self.paused:
            self.now = self.clock()
        self._draw()

    # --- what is on the screen --------------------------------------------------------------

    @property
    def table(self) -> Table:
        """The table that has the focus, or had it last."""
        focused = self.focused
        return focused if isinstance(focused, Table) else self.query_one("#requests", Table)

    @property
    def can_write(self) -> bool:
        """Whether actions are offered."""
        state = self.link.state
        return state.link == "live" and state.access == "write" and not self._read_only
