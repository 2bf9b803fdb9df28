"""The main screen as it is drawn: the tables, the lines around them, and when they are painted."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable, Mapping
from contextlib import suppress

from textual import on
from textual.app import ComposeResult
from textual.screen import Screen
from textual.theme import Theme
from textual.timer import Timer

from llmtui.app import on_signals
from llmtui.bindings import footer_line, of_board
from llmtui.columns import heading, request_columns, worker_columns
from llmtui.form import clock, fit
from llmtui.happenings import Happening, happenings
from llmtui.header import Bar, header
from llmtui.link import Link, Source
from llmtui.own import Meter, Own
from llmtui.rows import (
    Line,
    Look,
    event_row,
    request_flag,
    request_row,
    worker_row,
)
from llmtui.screens.desk import Desk
from llmtui.state import (
    GONE_S,
    HELD_S,
    RUNNING,
    held,
    hold,
    is_faulty_worker,
    newest_running,
    shown_at,
    ticked,
)
from llmtui.view import View, first_rate, without_rows
from llmtui.widgets.lines import Lines
from llmtui.widgets.paint import THEMES, palette
from llmtui.widgets.prompt import Prompt, PromptLine
from llmtui.widgets.table import Table
from llmtui.widths import Widths, widths
from llmtui.wire import LeanApp

SETTLE_S = 3.0  # rows are put in order again this long after the last key
_SAID_S = 6.0
_FIRST_S = 0.1  # a daemon that is well has told everything long before
_KEYS_CELLS = 16  # what is left of the line at the bottom for help and quit
_WIDE = 100  # columns from which on a table says how it is sorted, also if that is as usual
_ROOMY = 30  # rows from which on the daemon's last word has a line of its own


class Board(LeanApp):
    """Shows what the link hears; keys come with `llmtui.screen.LlmTui`.

    Args:
        make: Makes a source of data for each attempt to connect.
        look: How things are drawn.
        read_only: Offer no actions even where the socket allows them.
        colours: `dark`, `light` or `ansi`.
        clock: Unix seconds.
        keymap: Other keys, by binding id.
        meter: Of what the screen costs.
    """

    CSS_PATH = "llmtui.tcss"
    TITLE = "llmtui"

    def __init__(
        self,
        make: Callable[[], Source],
        *,
        look: Look | None = None,
        read_only: bool = False,
        colours: str = "dark",
        clock: Callable[[], float] = time.time,
        keymap: Mapping[str, str] | None = None,
        meter: Meter | None = None,
    ) -> None:
        self._theme = THEMES[colours]  # before the base, which makes its styles of it
        super().__init__()
        self.look = look or Look()
        self._read_only = read_only
        self.clock = clock
        self.keymap = dict(keymap or {})
        self.link = Link(make, self._changed, clock)
        self.shown = self.link.state
        self.paused = False
        self.following = False
        self.view = View()
        self.rate = first_rate(over_ssh=bool(os.environ.get("SSH_CONNECTION")))
        self.keyed_at = 0.0
        self._focused = "requests"
        self.now = clock()
        self._timer: Timer | None = None
        self._known = asyncio.Event()  # whether there is a daemon, or not
        self._dirty = True
        self._drawn_second = 0
        self._happened: dict[str, Happening] = {}
        self._jumped: dict[str, float] = {}
        self._widths: Widths | None = None
        self._said = ("", "", 0.0)
        self._said_lost = False  # it tells of a failure, while there is no link
        self._meter = meter or Meter()
        self._own = Own()
        self.palette = palette(self._theme)
        # to look them up by their names takes a while, and it is done each second
        self._tables = {
            "workers": Table(self._worker, self._worker_title, id="workers"),
            "requests": Table(self._request, self._request_title, id="requests"),
            "events": Table(self._event, lambda _width: "AT        WHAT", id="events"),
        }
        self._lines = [
            Lines(self._header, id="header"),
            Lines(self._notice, id="notice"),
            Lines(self.board_keys, id="footer"),
        ]

    # --- layout -----------------------------------------------------------------------------

    @property
    def current_theme(self) -> Theme:
        """The colours, the same from the start: other ones would have every style read again.

        It is also what makes NO_COLOR mean no colours, and not grey ones.
        """
        return self._theme

    def get_theme_variable_defaults(self) -> dict[str, str]:
        """Return what themes that are not llmd's own lack."""
        return {"cursor": "ansi_black", "quiet": "ansi_bright_black", "edge": "ansi_bright_black"}

    def compose(self) -> ComposeResult:
        """Lay the screen out."""
        header, notice, footer = self._lines
        yield header
        yield from self._tables.values()
        yield notice
        yield footer
        yield PromptLine("/", Prompt(id="filter", done=self.filtered))
        yield PromptLine(":", Prompt(id="command", done=self.commanded, more=self.more_words))

    async def on_load(self) -> None:
        """Begin to listen, and give the daemon a moment: then the first frame has its data."""
        self.run_worker(self.link.run(), name="link")
        with suppress(asyncio.TimeoutError):
            await asyncio.wait_for(self._known.wait(), _FIRST_S)

    def on_mount(self) -> None:
        """Begin to draw."""
        for table in self._tables.values():
            table.colours = self.palette
            table.cursor_mark = ">" if self.look.ascii_only else "▌"
        for lines in self._lines:
            lines.colours = self.palette
        if self.look.ascii_only:
            self.add_class("plain")
        self.set_keymap(self.keymap)
        self.focus_table("requests")
        self.set_rate(self.rate)
        self._paint()
        on_signals(lambda code: self.exit(code, return_code=code))

    def on_resize(self) -> None:
        """Fit into the terminal's new size."""
        self._widths = None
        self._fit()
        self._dirty = True

    def set_rate(self, rate: float) -> None:
        """Draw this often a second from now on."""
        self.rate = rate
        if self._timer is not None:
            self._timer.stop()
        self._timer = self.set_interval(1 / rate, self._paint)

    def _fit(self) -> None:
        """Give each part its rows: the events take the requests' place where there are few."""
        width, height = self.size
        header, notice, _ = self._lines
        workers, requests, events = self._tables.values()
        header.set_class(width < 100, "short")
        notice.display = height >= _ROOMY
        rows = max(1, len(self.view.worker_keys(self.shown)))
        workers.styles.height = min(rows + 3, max(4, (height - 4) // 2))
        requests.display = height >= _ROOMY or not events.display
        events.styles.height = 12 if height >= _ROOMY else "1fr"

    def filtered(self, words: str | None) -> None:
        """Take what was typed as a filter; None = it was left."""

    def commanded(self, text: str | None) -> None:
        """Take what was typed as a command; None = it was left."""

    def more_words(self, field: Prompt, step: int) -> None:
        """Complete what is typed, or show what was typed before; see `Prompt`."""

    # --- when it is drawn -------------------------------------------------------------------

    def _changed(self) -> None:
        self._dirty = True
        if self.link.state.link != "connecting":
            self._known.set()
        if self._said_lost and self.link.state.link == "live":
            self._said, self._said_lost = ("", "", 0.0), False
        if self.link.state.link != self.shown.link and not self.paused:
            self.call_later(self._paint)  # found, or lost: nobody should wait to see it

    def _paint(self) -> None:
        """Draw what has changed, and once a second what grows older."""
        if not self.screen_stack or not self._lines[0].is_attached:
            return  # the screen is being taken down, and the timer was due once more
        now = self.clock()
        if int(now) == self._drawn_second and not self._dirty:
            return
        if int(now) != self._drawn_second:
            self._own = self._meter.sample()
        self._drawn_second, self._dirty = int(now), False
        self.link.state = ticked(self.link.state, now, HELD_S if self.still else GONE_S)
        if not self.paused:
            self.shown, self.now = self.link.state, shown_at(self.link.state, now)
        self.draw()

    def redraw(self) -> None:
        """Draw at once what a key has changed."""
        if not self.paused:
            self.now = shown_at(self.shown, self.clock())
        self.draw()

    def draw(self) -> None:
        """Draw everything as it is shown now; widgets that look the same stay untouched."""
        self._fit()
        self._widths = widths(self.shown, self._widths)
        still = self.still
        if self.board("events").display:
            self._happened = {one.key: one for one in self.view.happenings(self.shown)}
        for table, keys in (
            (self.board("workers"), self.view.worker_keys(self.shown)),
            (self.board("requests"), self.view.request_keys(self.shown, self.now)),
            (self.board("events"), list(self._happened)),
        ):
            table.faded = self.shown.link != "live"
            table.empty = without_rows(table.id or "", self.shown)
            if table.show(hold(table.keys, keys) if still and table.id != "events" else keys):
                self._jumped[table.id or ""] = time.monotonic()
        if self.following:
            self.board("requests").go(newest_running(self.shown, self.board("requests").keys))
        self.titles()
        for lines in self._lines:
            lines.update()

    @property
    def still(self) -> bool:
        """Whether rows must keep their places, since the cursor has just been moved."""
        return time.monotonic() - self.keyed_at <= SETTLE_S

    def jumped(self, table: Table, within_s: float) -> bool:
        """Return whether the cursor has just lost its row, so that a key may hit another."""
        return time.monotonic() - self._jumped.get(table.id or "", -within_s) < within_s

    # --- what is drawn ----------------------------------------------------------------------

    def titles(self) -> None:
        """Say above each table what it holds."""
        state = self.shown
        workers, requests, events = map(self.board, ("workers", "requests", "events"))
        up = sum(worker.slots > 0 for worker in state.workers.values())
        running = sum(request.state in RUNNING for request in state.requests.values())
        waiting = sum(request.state == "queued" for request in state.requests.values())
        requests.marked &= set(state.requests)
        marks = [f"marked {len(requests.marked)}"] if requests.marked else []
        follows = ["follows"] if self.following else []
        known = state.daemon is not None
        models = f"{up} up of {len(state.workers)}" if known else ""
        asked = f"{running} running, {waiting} queued" if known else ""
        self._title(workers, "1 Workers", models, [])
        self._title(requests, "2 Requests", asked, follows + marks)
        self._title(events, "3 Events", "", [])

    @on(Table.Fitted)
    def fitted(self) -> None:
        """Say how many rows are hidden now."""
        if self.screen_stack:  # else it is being taken down
            self.titles()

    def _title(self, table: Table, title: str, about: str, more: list[str]) -> None:
        words = [*self.view.told(table.id or "", sort=self.size.width >= _WIDE), *more]
        if table.hidden:
            words.append(f"+{table.hidden} below")
        table.entitle(title, about, "  ".join(words))

    def _header(self, width: int) -> list[Line]:
        link = self.link.state
        return header(
            self.shown if not self.paused else held(self.shown, link),
            width,
            self.now,
            self.look,
            Bar(
                at=self.clock(),
                can_write=link.access == "write" and not self._read_only,
                paused=self.paused,
                own=self._own,
                rate=self.rate,
            ),
        )

    @property
    def _widest(self) -> Widths:
        """How long names are; between a resize and what is drawn of it nobody knows."""
        if self._widths is None:
            self._widths = widths(self.shown)
        return self._widths

    def _worker_title(self, width: int) -> str:
        return heading(worker_columns(width, self.look, self._widest))

    def _request_title(self, width: int) -> str:
        return heading(request_columns(width, self.look, self._widest))

    def _worker(self, key: str, width: int) -> Line:
        worker = self.shown.workers.get(key)
        if worker is None:
            return []
        columns = worker_columns(width - 1, self.look, self._widest)
        row = worker_row(worker, self.shown, columns, self.now, self.look)
        return [("!" if is_faulty_worker(worker) else " ", "bad"), *row]

    def _request(self, key: str, width: int) -> Line:
        request = self.shown.requests.get(key)
        if request is None:
            return []
        columns = request_columns(width - 1, self.look, self._widest)
        row = request_row(request, self.shown, columns, self.now, self.look)
        return [(request_flag(request, self.now), "bad"), *row]

    def happening(self, key: str) -> Happening | None:
        """Return what a row of the events is about."""
        return self._happened.get(key)

    def _event(self, key: str, width: int) -> Line:
        one = self.happening(key)
        return [] if one is None else event_row(one, width, self.look)

    def _notice(self, width: int) -> list[Line]:
        text, style, until = self._said
        if self.clock() < until:
            return [[(self._cut(f" {text}", width), style)]]
        if self.shown.link == "stale":
            return [[(self._cut(f" {self.shown.trouble}", width), "bad")]]
        last = happenings(self.shown.log[-1:], self.shown.wrong[-1:])[-1:]
        if not last or self.board("events").display:
            return [[]]
        style = "dim" if last[0].level == "info" else "warn"
        at = f" {clock(last[0].at)} "
        return [[(at, "dim"), (self._cut(last[0].text, width - len(at)), style)]]

    def _cut(self, text: str, width: int) -> str:
        """Return text that ends with an ellipsis where there is no room for all of it."""
        return fit(text, max(1, width - 1), ascii_only=self.look.ascii_only).rstrip()

    def board_keys(self, width: int) -> list[Line]:
        """Return the line at the bottom: the keys, or what was said or is wrong, if only there."""
        text, style, until = self._said
        alone = self.size.height < _ROOMY  # there is no line of events above it
        if alone and self.clock() < until:
            return [[(self._cut(f" {text}", width), style)]]
        if alone and self.shown.link == "stale":
            trouble = self._cut(f" {self.shown.trouble}", width - _KEYS_CELLS)
            keys = footer_line(self.keymap, width - len(trouble) - 1, can_write=False)
            return [[(trouble, "bad"), (" ", ""), *keys]]
        return [footer_line(self.keymap, width, can_write=self.can_write)]

    def say(self, text: str, style: str = "") -> None:
        """Show a line for some seconds."""
        self._said = (text, style, self.clock() + _SAID_S)
        self._said_lost = style in ("warn", "bad") and self.link.state.link != "live"
        self.redraw()

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        """Return whether an action may run: the board's keys only on the board itself."""
        if of_board(action) and (len(self.screen_stack) > 1 or isinstance(self.focused, Prompt)):
            return False
        return super().check_action(action, parameters)

    # --- what is on the screen --------------------------------------------------------------

    @property
    def main(self) -> Screen[object]:
        """The screen below all windows."""
        return self.screen_stack[0]

    def board(self, name: str) -> Table:
        """Return a table by its name."""
        return self._tables[name]

    @property
    def table(self) -> Table:
        """The table that has the focus, or had it last."""
        focused = self.main.focused
        return focused if isinstance(focused, Table) else self.board(self._focused)

    def focus_table(self, name: str) -> None:
        """Give a table the focus, if it is on the screen."""
        table = self.board(name)
        if table.display:
            self._focused = name
            # at once, and not through the queue as `Widget.focus` has it: in a burst of keys the
            # next one would still go to the old table
            self.main.set_focus(table)

    def go_to(self, name: str, key: str) -> None:
        """Put a table's cursor on a row, and give it the focus."""
        self.board(name).go(key)
        self.focus_table(name)

    @property
    def can_write(self) -> bool:
        """Whether actions are offered."""
        state = self.link.state
        return state.link == "live" and state.access == "write" and not self._read_only

    @property
    def desk(self) -> Desk:
        """What windows work with."""
        return Desk(
            state=lambda: self.link.state,
            source=lambda: self.link.source,
            colours=self.palette,
            look=lambda: self.look,
            can_write=lambda: self.can_write,
            read_only=self._read_only,
            say=self.say,
            now=self.clock,
            keymap=self.keymap,
        )
