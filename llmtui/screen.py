"""The main screen: two tables, what acts on them, and what is drawn when."""

from __future__ import annotations

import shlex
import time
from collections.abc import Callable
from typing import ClassVar

from textual import on, work
from textual.app import App, ComposeResult
from textual.binding import Binding, BindingType
from textual.content import Content
from textual.widgets import Input

from llmd.admin import protocol as p
from llmd.admin.calls import AdminError
from llmd.admin.framing import clean
from llmtui.app import on_signals, started
from llmtui.header import Own, header
from llmtui.link import Link, Source
from llmtui.rows import (
    Line,
    Look,
    heading,
    request_columns,
    request_flag,
    request_row,
    short_id,
    worker_columns,
    worker_row,
)
from llmtui.screens.detail import story_lines, worker_lines
from llmtui.screens.dialogs import Dialog, Help, Question, plan_buttons, plan_lines
from llmtui.screens.logs import FIRST, Logs
from llmtui.state import (
    REQUEST_SORTS,
    RUNNING,
    WORKER_SORTS,
    hold,
    is_faulty_request,
    is_faulty_worker,
    matches,
    request_order,
    request_text,
    ticked,
    worker_order,
    worker_text,
)
from llmtui.widgets.lines import Lines
from llmtui.widgets.paint import DARK, LIGHT, palette
from llmtui.widgets.table import Table

PAINT_S = 0.25
_SETTLE_S = 3.0  # rows are put in order again this long after the last key

HELP = """\
j k ↓ ↑      move             tab 1 2     the other table
g G          first, last      enter d     detail, with why
/            filter, !word inverts        esc  clears it
o            sort by the next column      I    inverts
z            faults only      p           pause
space        mark a request   w           wide columns
y            copy the id      Y           copy the llmctl line

x            cancel the marked requests, or this one
s            switch to this model: shows the plan first
S            unload this model
l            its worker's log
q            quit"""


class LlmTui(App[int]):
    """The operators' screen.

    Args:
        make: Makes a source of data for each attempt to connect.
        look: How things are drawn.
        read_only: Offer no actions even where the socket allows them.
        colours: `dark`, `light` or `ansi`.
        clock: Unix seconds.
    """

    CSS_PATH = "llmtui.tcss"
    ENABLE_COMMAND_PALETTE = False
    TITLE = "llmtui"
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("q", "quit_now", id="quit"),
        Binding("ctrl+c", "quit_now", show=False, priority=True),
        Binding("question_mark", "help", id="help"),
        Binding("j,down", "move(1)", id="down"),
        Binding("k,up", "move(-1)", id="up"),
        Binding("pagedown,ctrl+d", "move(10)", id="page_down"),
        Binding("pageup,ctrl+u", "move(-10)", id="page_up"),
        Binding("g,home", "move(-1000000)", id="first"),
        Binding("G,end", "move(1000000)", id="last"),
        Binding("tab", "other", id="other", priority=False),
        Binding("1", "panel('workers')", id="workers"),
        Binding("2", "panel('requests')", id="requests"),
        Binding("slash", "filter", id="filter"),
        Binding("escape", "clear", id="clear"),
        Binding("o", "sort", id="sort"),
        Binding("I", "invert", id="invert"),
        Binding("z", "faults", id="faults"),
        Binding("p", "pause", id="pause"),
        Binding("w", "wide", id="wide"),
        Binding("space", "mark", id="mark"),
        Binding("enter,d", "detail", id="detail"),
        Binding("l", "logs", id="logs"),
        Binding("x", "cancel", id="cancel"),
        Binding("s", "switch", id="switch"),
        Binding("S", "stop", id="stop"),
        Binding("y", "copy(False)", id="copy_id"),
        Binding("Y", "copy(True)", id="copy_command"),
    ]

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
        self._clock = clock
        self._link = Link(make, self._changed, clock)
        self.shown = self._link.state
        self.paused = False
        self._dirty = True
        self._drawn_second = 0
        self._keyed_at = 0.0
        self._now = self._clock()
        self._words = {"workers": "", "requests": ""}
        self._sorts = {"workers": "state", "requests": "sched"}
        self._inverted = {"workers": False, "requests": False}
        self._filtering = "requests"
        self._faults = False
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
        self.run_worker(self._link.run(), name="link")
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
        rows = max(1, len(self._worker_keys()))
        room = max(4, (self.size.height - 4) // 2)
        self.query_one("#workers").styles.height = min(rows + 3, room)

    # --- drawing ----------------------------------------------------------------------------

    def _changed(self) -> None:
        self._dirty = True

    def _paint(self) -> None:
        """Draw what has changed, and once a second what grows older."""
        if not self.query("#header"):
            return  # the screen is being taken down, and the timer was due once more
        now = self._clock()
        if int(now) == self._drawn_second and not self._dirty:
            return
        if int(now) != self._drawn_second:
            self._measure()
        self._drawn_second, self._dirty = int(now), False
        self._link.state = ticked(self._link.state, now)
        if not self.paused:
            self.shown, self._now = self._link.state, now
        self._draw()

    def _draw(self) -> None:
        self._fit()
        state = self.shown
        for table, keys in (
            (self.query_one("#workers", Table), self._worker_keys()),
            (self.query_one("#requests", Table), self._request_keys()),
        ):
            table.faded = state.link != "live"
            settled = time.monotonic() - self._keyed_at > _SETTLE_S
            table.show(keys if settled else hold(table.keys, keys))
        self._titles()
        for lines in self.query(Lines):
            lines.update()

    def _measure(self) -> None:
        wall, cpu = started()
        passed = wall - self._clocks[0]
        if passed > 2:
            self._own = Own(cpu=(cpu - self._clocks[1]) / passed)
            self._clocks = (wall, cpu)

    def _titles(self) -> None:
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
        name = table.id or ""
        words = clean(self._words[name])
        parts = [f"filter {words}"] if words else []
        if self._faults:
            parts.append("faults only")
        if self._sorts[name] not in ("state", "sched") or self._inverted[name]:
            parts.append(f"by {self._sorts[name]}{' inverted' if self._inverted[name] else ''}")
        table.border_title = Content(f" {title} ")
        text = "  ".join(parts) + more
        table.border_subtitle = Content(f" {text.strip()} " if text.strip() else "")

    def _worker_keys(self) -> list[str]:
        words = self._words["workers"]
        shown = [
            worker
            for worker in self.shown.workers.values()
            if matches(words, worker_text(worker))
            and (not self._faults or is_faulty_worker(worker))
        ]
        return worker_order(shown, self._sorts["workers"], inverted=self._inverted["workers"])

    def _request_keys(self) -> list[str]:
        words = self._words["requests"]
        shown = [
            request
            for request in self.shown.requests.values()
            if matches(words, request_text(request))
            and (not self._faults or is_faulty_request(request, self._now))
        ]
        return request_order(shown, self._sorts["requests"], inverted=self._inverted["requests"])

    def _header(self, width: int) -> list[Line]:
        can_write = self._link.state.access == "write" and not self._read_only
        return header(
            self.shown, width, self._now, self.look,
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
        row = worker_row(worker, self.shown, columns, self._now, self.look)
        return [("!" if is_faulty_worker(worker) else " ", "bad"), *row]

    def _request(self, key: str, width: int) -> Line:
        request = self.shown.requests.get(key)
        if request is None:
            return []
        columns = request_columns(width - 1, self.look)
        row = request_row(request, self.shown, columns, self._now, self.look)
        return [(request_flag(request, self._now), "bad"), *row]

    def _notice(self, width: int) -> list[Line]:
        text, style, until = self._said
        if self._now < until:
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
        if self._now < until and self.size.height < 30:
            return [[(f" {clean(text)}", style)]]
        keys = [("?", "help"), ("/", "filter"), ("enter", "detail"), ("l", "log")]
        if self.can_write:
            keys += [("s", "switch"), ("x", "cancel"), ("S", "unload")]
        keys += [("space", "mark"), ("o", "sort"), ("p", "pause"), ("z", "faults")]
        line: Line = []
        left = width - 8
        for key, word in keys:
            if left < len(key) + len(word) + 3:
                continue
            line += [(f" {key}", "accent"), (f" {word} ", "dim")]
            left -= len(key) + len(word) + 3
        return [[*line, (" q", "accent"), (" quit", "dim")]]

    def say(self, text: str, style: str = "") -> None:
        """Show a line for some seconds."""
        self._said = (text, style, self._clock() + 6)
        self._redraw()

    def _redraw(self) -> None:
        if not self.paused:
            self._now = self._clock()
        self._draw()

    # --- moving and finding -----------------------------------------------------------------

    @property
    def table(self) -> Table:
        """The table that has the focus, or had it last."""
        focused = self.focused
        return focused if isinstance(focused, Table) else self.query_one("#requests", Table)

    @property
    def can_write(self) -> bool:
        """Whether actions are offered."""
        state = self._link.state
        return state.link == "live" and state.access == "write" and not self._read_only

    def action_quit_now(self) -> None:
        """Leave."""
        self.exit(0)

    def action_help(self) -> None:
        """Show the keys."""
        text = HELP.encode("ascii", "replace").decode() if self.look.ascii_only else HELP
        self.push_screen(Help("Keys", text.splitlines()))

    def action_move(self, by: int) -> None:
        """Move the cursor."""
        self._keyed_at = time.monotonic()
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
        field.value = self._words[table.id or ""]
        field.placeholder = f"filter {table.id}: words, !word for those without"
        field.display = True
        field.focus()

    @on(Input.Changed, "#filter")
    def filtering(self, event: Input.Changed) -> None:
        """Filter while it is typed."""
        if event.input.display:
            self._words[self._filtering] = event.value
            self._redraw()

    @on(Input.Submitted, "#filter")
    def filtered(self, event: Input.Submitted) -> None:
        """Keep the filter."""
        self._end_filter(event.input)

    def _end_filter(self, field: Input) -> None:
        field.display = False
        self.query_one(f"#{self._filtering}").focus()
        self._redraw()

    def action_clear(self) -> None:
        """Forget the filter, the faults and the marks."""
        field = self.query_one("#filter", Input)
        if field.display:
            self._words[self._filtering] = ""
            self._end_filter(field)
            return
        self._words[self.table.id or ""] = ""
        self._faults = False
        self.query_one("#requests", Table).marked.clear()
        self._redraw()

    def action_sort(self) -> None:
        """Sort by the next column."""
        name = self.table.id or ""
        sorts = WORKER_SORTS if name == "workers" else REQUEST_SORTS
        self._sorts[name] = sorts[(sorts.index(self._sorts[name]) + 1) % len(sorts)]
        self._keyed_at = 0.0
        self._redraw()

    def action_invert(self) -> None:
        """Sort the other way round."""
        name = self.table.id or ""
        self._inverted[name] = not self._inverted[name]
        self._keyed_at = 0.0
        self._redraw()

    def action_faults(self) -> None:
        """Show only what is wrong, or everything."""
        self._faults = not self._faults
        self._keyed_at = 0.0
        self._redraw()

    def action_pause(self) -> None:
        """Hold the screen still, or let it go on."""
        self.paused = not self.paused
        if not self.paused:
            self.shown = self._link.state
        self._redraw()

    def action_wide(self) -> None:
        """Give names and reasons more room."""
        self.look = Look(ascii_only=self.look.ascii_only, wide=not self.look.wide)
        self._redraw()

    def action_mark(self) -> None:
        """Mark the request under the cursor, and go on."""
        table = self.table
        if table.id == "requests" and table.cursor_key:
            table.marked ^= {table.cursor_key}
            self.action_move(1)
            self._titles()

    def action_copy(self, whole: bool) -> None:
        """Copy the id under the cursor, or the `llmctl` line about it."""
        table = self.table
        key = table.cursor_key
        if not key:
            return
        verb = "why" if table.id == "requests" else "switch"
        text = f"llmctl {verb} {shlex.quote(key)}" if whole else key
        self.copy_to_clipboard(text)
        self.say(f"copied: {text}", "accent")

    # --- looking closer ---------------------------------------------------------------------

    def _model(self) -> str:
        """Return the model that the cursor is about."""
        table = self.table
        if table.id == "workers":
            return table.cursor_key or ""
        request = self.shown.requests.get(table.cursor_key or "")
        return request.model if request else ""

    @on(Table.Chosen)
    def chosen(self) -> None:
        """Open what was clicked."""
        self.action_detail()

    @work(exclusive=True, group="detail")
    async def action_detail(self) -> None:
        """Show all about the row under the cursor."""
        key = self.table.cursor_key
        if not key:
            return
        if self.table.id == "workers":
            worker = self.shown.workers.get(key)
            if worker is not None:
                lines = worker_lines(worker, self._now)
                self.push_screen(Help(f"Worker {key}", [*lines, "", "esc back"]))
            return
        try:
            story = await self._link.source.why(key)
        except AdminError as error:
            self.say(str(error), "bad")
            return
        title = f"Request {key}  {story.request.state.upper()}"
        lines = [*story_lines(story, self._clock()), "", f"= llmctl why {shlex.quote(key)}"]
        self.push_screen(Help(title, lines))

    def action_logs(self) -> None:
        """Show the log of the model's worker."""
        model = self._model()
        if not model:
            return
        try:
            source = self._link.source
        except AdminError as error:
            self.say(str(error), "bad")
            return
        colours = self.query_one("#requests", Table).colours
        self.push_screen(Logs(model, lambda: source.follow(model, lines=FIRST), colours))

    # --- acting -----------------------------------------------------------------------------

    def _may_act(self) -> bool:
        if self.can_write:
            return True
        live = self._link.state.link == "live"
        self.say("read-only" if live else "not connected: actions are off", "warn")
        return False

    @work(exclusive=True, group="action")
    async def action_cancel(self) -> None:
        """Cancel the marked requests, or the one under the cursor, once that is confirmed."""
        table = self.query_one("#requests", Table)
        if not self._may_act() or (self.table is not table and not table.marked):
            return
        here = table.cursor_key
        ids = tuple(sorted(table.marked)) or ((here,) if here else ())
        hit = [self.shown.requests[i] for i in ids if i in self.shown.requests]
        hit = [request for request in hit if not request.ended]
        if not hit:
            return
        ids = tuple(request.id for request in hit)
        if await self.push_screen_wait(_cancel_question(hit)) != "yes":
            return
        try:
            done = await self._link.source.cancel(*ids)
        except AdminError as error:
            self.say(str(error), "bad")
            return
        table.marked.clear()
        over = len(done.ended) + len(done.unknown)
        more = f", {over} had ended" if over else ""
        wait = f", {len(done.pending)} still ending" if done.pending else ""
        self.say(f"cancelled {len(done.cancelled)}{wait}{more}", "accent")

    @work(exclusive=True, group="action")
    async def action_switch(self) -> None:
        """Show the plan of a switch to the model under the cursor; carry it out if told to."""
        model = self._model()
        if not model or not self._may_act():
            return
        try:
            plan = await self._link.source.switch(model, dry_run=True)
            lines, buttons = plan_lines(plan, self.look), plan_buttons(plan)
            choice = await self.push_screen_wait(Dialog(f"Switch to {model}", lines, buttons))
            if choice is None:
                return
            evict = () if choice == "add" else tuple(e.model for e in plan.evict)
            await self._link.source.switch(
                model,
                evict=evict,
                add=choice == "add",
                force=choice == "force",
                if_gen=plan.generation,
            )
        except AdminError as error:
            self.say(str(error), "bad")
            return
        self.say(f"switching to {model}", "accent")

    @work(exclusive=True, group="action")
    async def action_stop(self) -> None:
        """Unload the model under the cursor; one that serves must be named."""
        model, generation = self._model(), self.shown.generation
        worker = self.shown.workers.get(model)
        if worker is None or worker.state == "off" or not self._may_act():
            return
        serves = worker.running + worker.waiting
        lines = [
            f"{worker.running} running: they may finish; {worker.waiting} queued.",
            f"frees {worker.memory_bytes / 2**30:.1f}G",
            f"= llmctl unload {shlex.quote(model)}",
        ]
        buttons = [("cancel", " Cancel "), ("yes", " Unload ")]
        title = f"Unload {model}"
        if serves:
            lines.append("It serves: type its name to go on.")
        question = Dialog(title, lines, buttons, type_this=model if serves else "")
        if await self.push_screen_wait(question) != "yes":
            return
        try:
            await self._link.source.unload(model, if_gen=generation)
        except AdminError as error:
            self.say(str(error), "bad")
            return
        self.say(f"unloading {model}", "accent")


def _cancel_question(hit: list[p.Request]) -> Dialog:
    running = sum(request.state in RUNNING for request in hit)
    ids = " ".join(shlex.quote(request.id) for request in hit[:3])
    more = " ..." if len(hit) > 3 else ""
    buttons = [("cancel", " Keep "), ("yes", " Cancel them " if len(hit) > 1 else " Cancel it ")]
    lines = [f"= llmctl cancel {ids}{more}"]
    if len(hit) == 1 and not running:
        lines.insert(0, "It waits in the queue.   y cancels it, esc keeps it.")
        return Question(f"Cancel {short_id(hit[0].id)}?", lines, buttons)
    lines.insert(0, f"{running} running, {len(hit) - running} waiting")
    return Dialog(f"Cancel {len(hit)} request{'s' if len(hit) > 1 else ''}?", lines, buttons)
