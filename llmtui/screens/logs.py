"""A worker's log: followed over restarts of the worker and of the daemon, and searched."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import aclosing
from pathlib import Path
from typing import ClassVar

from rich.cells import cell_len
from textual import on, work
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Vertical
from textual.content import Content
from textual.widgets import Input, Static

from llmd.admin import protocol as p
from llmd.admin.calls import AdminError, Unreachable
from llmd.admin.framing import clean
from llmtui.form import count
from llmtui.screens.desk import Desk
from llmtui.screens.flow import plain
from llmtui.screens.loglines import ALL, RING, Level, LogPage, saved_text
from llmtui.screens.logview import LogView
from llmtui.screens.saving import file_name, save
from llmtui.screens.story import clock
from llmtui.screens.window import Hint, Window
from llmtui.widgets.prompt import Prompt, PromptLine

FIRST = 1000
_RETRY_S = 1.0
_SAID_S = 8.0
_BATCH = 256


class Logs(Window[None]):
    """One worker's log, over the whole screen.

    Args:
        desk: What it works with.
        model: Whose.
        places: Where a saved log goes, the first that takes it; () = here, then the home.
    """

    wide: ClassVar[int] = 0
    DEFAULT_CSS = """
    Logs { background: $background; }
    Logs .frame { height: 100%; padding: 0; }
    Logs .hints { margin: 0 1; }
    """
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("f,F", "follow", show=False, id="logs.follow"),
        Binding("w", "wrap", show=False, id="logs.wrap"),
        Binding("t", "time", show=False, id="logs.time"),
        # with priority, so that what follows in a burst is typed and not obeyed
        Binding("slash", "search", show=False, id="logs.search", priority=True),
        Binding("n", "next(1)", show=False, id="logs.next"),
        Binding("N", "next(-1)", show=False, id="logs.previous"),
        Binding("1", "level(1)", show=False, id="logs.errors"),
        Binding("2", "level(2)", show=False, id="logs.warnings"),
        Binding("3", "level(3)", show=False, id="logs.info"),
        Binding("4", "level(4)", show=False, id="logs.trace"),
        Binding("5", "level(5)", show=False, id="logs.debug"),
        Binding("0", "level(5)", show=False, id="logs.all"),
        Binding("m", "mark", show=False, id="logs.mark"),
        Binding("ctrl+s", "save", show=False, id="logs.save"),
        Binding("left,h", "pan(-1)", show=False, id="logs.left"),
        Binding("right,l", "pan(1)", show=False, id="logs.right"),
        Binding("q", "leave", show=False, id="logs.back"),
    ]

    def __init__(self, desk: Desk, model: str, *, places: Sequence[Path] = ()) -> None:
        super().__init__(desk)
        self._model = model
        self._places = places
        self._view = LogView(LogPage(RING), desk.colours, ascii_only=desk.look().ascii_only)
        self._prompt = Prompt(id="search", done=self._searched)
        self._new: list[p.LogLine | str] = []
        self._trouble = ""
        self._failed_at = 0.0
        self._seen = 0
        self._daemon: tuple[int, float] | None = None
        self._note = ("", 0.0)
        self._titled: tuple[str, str, str] = ("", "", "")

    def compose(self) -> ComposeResult:
        """Lay the window out."""
        with Vertical(classes="frame") as frame:
            frame.set_class(self.look.ascii_only, "plain")
            yield self._view
            yield PromptLine("/", self._prompt)
            yield Static("", classes="hints tight", markup=False)

    def on_mount(self) -> None:
        """Begin to read."""
        self._view.focus()
        self._read()

    # --- reading ----------------------------------------------------------------------------

    @work(exclusive=True, group="log")
    async def _read(self) -> None:
        """Read until the window is closed, from whichever daemon there is."""
        while True:
            try:
                await self._follow()
                trouble = "the daemon hung up"
            except AdminError as error:
                trouble = clean(str(error))
            if not self._trouble:
                self._new.append(f"lost the daemon {clock(self.desk.now())}")
            self._trouble, self._failed_at = trouble, self.desk.now()
            await asyncio.sleep(_RETRY_S)

    async def _follow(self) -> None:
        """Read one connection to its end; lines that were seen before are passed over."""
        if not self.desk.live:  # until it is, nobody knows whether it is another daemon
            raise Unreachable("the link to the daemon is lost")
        lines = self.desk.source().follow(self._model, lines=FIRST)
        async with aclosing(lines) as stream:  # type: ignore[type-var]
            async for line in stream:
                self._greet()
                if line.seq <= self._seen:
                    continue
                if self._seen and line.seq > self._seen + 1:
                    self._new.append(f"{line.seq - self._seen - 1} lines were missed")
                self._seen = line.seq
                self._new.append(line)
                if len(self._new) > 2 * RING:
                    del self._new[:-RING]
                if len(self._new) % _BATCH == 0:
                    await asyncio.sleep(0)

    def _greet(self) -> None:
        """Notice a daemon that came back, and whether it is another one, whose lines begin anew."""
        daemon = self.desk.state().daemon
        which = None if daemon is None else (daemon.pid, daemon.started_at)
        if self._trouble:
            self._trouble = ""
            other = which != self._daemon
            self._new.append(
                ("another daemon is here " if other else "the daemon is back ")
                + clock(self.desk.now())
            )
            if other:
                self._seen = 0
        self._daemon = which or self._daemon

    def _take(self) -> None:
        """Show what was read since the last time."""
        if not self._new:
            return
        new, self._new = self._new, []
        gone = 0
        for line in new:
            if isinstance(line, str):
                gone += self._view.page.mark(self.desk.now(), line)
            else:
                gone += self._view.page.add((line,))
        self._view.fit(gone)

    # --- drawing ----------------------------------------------------------------------------

    def tick(self) -> None:
        """Draw when lines have come, too."""
        if self._trouble and self.desk.live and self.desk.now() > self._failed_at + 2 * _RETRY_S:
            self._greet()  # it listens again, and its worker has nothing to say
        if self._new:
            self.repaint()
        super().tick()

    def repaint(self) -> None:
        """Draw what has come, and what the frame says."""
        if not self.is_attached or not self.query("#lines"):
            return
        self._take()
        frame = self.query_one(".frame")
        ascii_only = self.look.ascii_only
        titled = (self.heading(), self._ring(), self.aside())
        if titled != self._titled:
            self._titled = titled
            left, ring, aside = (plain(t) if ascii_only else t for t in titled)
            rule = "-" if ascii_only else "─"
            fill = self.size.width - 8 - cell_len(left) - cell_len(ring)
            whole = f"{left} {rule * fill} {ring}" if fill > 0 else left
            frame.border_title = Content(whole)
            frame.border_subtitle = Content(aside) if aside else None
        self.show_hints(self.fitted_hints())

    @property
    def inner(self) -> int:
        """Cells of a line."""
        return max(20, self.app.size.width - 4)

    def heading(self) -> str:
        """Return whose log it is, and how it is looked at."""
        view, page = self._view, self._view.page
        worker = self.desk.state().workers.get(self._model)
        state = worker.state.upper() if worker else ""
        parts = [f"Logs {clean(self._model)}", "LOST, trying again" if self._trouble else state]
        parts.append("FOLLOW" if view.following else "HELD")
        parts.append(f"wrap {'on' if view.wrapped else 'off'}")
        if page.level < ALL:
            parts.append(_LEVELS[page.level])
        if page.word:
            parts.append(f"/{clean(page.word)} {page.place or '-'}/{page.hits}")
        told = "  ".join(part for part in parts if part)
        room = self.size.width - 10 - cell_len(self._ring())
        return told if cell_len(told) <= room else told.replace("  wrap off", "", 1)

    def _ring(self) -> str:
        page = self._view.page
        return f"{count(len(page))} of ring {count(page.ring)}"

    def aside(self) -> str:
        """Return what was done last, or what is wrong."""
        text, until = self._note
        text = text if self.desk.now() < until else self._trouble
        room = self.app.size.width - 8
        return text if cell_len(text) <= room else "…" + text[-room + 1 :]

    def hints(self) -> Sequence[Hint]:
        """Return the keys."""
        page = self._view.page
        search: Hint = (
            ("logs.next", "n/N", "match", True)
            if page.word
            else ("logs.search", "/", "search", True)
        )
        return (
            ("logs.follow", "f", "follow", True),
            ("logs.wrap", "w", "wrap", True),
            ("logs.time", "t", "time", True),
            search,
            ("", "1-5", "level", True),
            ("logs.all", "0", "all", True),
            ("logs.mark", "m", "mark", True),
            ("logs.save", "^s", "save", True),
            ("", "← →", "pan", not self._view.wrapped),
            ("window.back", "esc", "back", True),
        )

    def _say(self, text: str) -> None:
        self._note = (clean(text), self.desk.now() + _SAID_S)
        self.repaint()

    # --- keys -------------------------------------------------------------------------------

    def action_leave(self) -> None:
        """End the search, then close the window."""
        if self._view.page.word:
            self._search("")
        else:
            self.dismiss(None)

    def action_follow(self) -> None:
        """Follow the end, or hold still."""
        self._view.following = not self._view.following
        self._view.fit()
        self.repaint()

    def action_wrap(self) -> None:
        """Break long lines, or do not."""
        self._view.wrap()
        self.repaint()

    def action_time(self) -> None:
        """Show times, or do not."""
        self._view.time()
        self.repaint()

    def action_pan(self, by: int) -> None:
        """Look at the rest of long lines."""
        self._view.pan(by)

    def action_level(self, level: int) -> None:
        """Show lines of this level and above."""
        self._view.levels(Level(level))
        self.repaint()

    def action_mark(self) -> None:
        """Put a mark behind the last line."""
        now = self.desk.now()
        self._take()
        self._view.fit(self._view.page.mark(now, f"marker {clock(now)[:8]}"))
        self.repaint()

    def action_page(self, pages: int) -> None:
        """Scroll by what is in sight, less two lines."""
        self.action_scroll_by(pages * max(1, self._view.size.height - 2))

    def action_scroll_by(self, rows: int) -> None:
        """Scroll, which ends following; going to the end begins it."""
        view = self._view
        if rows >= 1000:
            view.following = True
            view.fit()
        else:
            view.following = False
            view.go_to(view.scroll_offset.y + rows)
        self.repaint()

    # --- searching --------------------------------------------------------------------------

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        """Return whether a key may act: while a search is typed, its key is a letter."""
        if action == "search" and self._prompt.used:
            return False
        return super().check_action(action, parameters)

    def action_search(self) -> None:
        """Ask what to search."""
        self._prompt.open(self._view.page.word, "enter goes to a match, esc ends the search")

    def _search(self, word: str) -> None:
        self._view.page.search(word)
        self._view.refresh()
        self.repaint()

    @on(Input.Changed, "#search")
    def searching(self, event: Input.Changed) -> None:
        """Light what is found while it is typed."""
        if self._prompt.used:
            self._search(event.value)

    def _searched(self, word: str | None) -> None:
        """Go to the match that is nearest to what is in sight, or forget the search."""
        self.set_focus(self._view)
        self._search(word or "")
        if word:
            self._go(-1 if self._view.following else 1)

    def action_next(self, by: int) -> None:
        """Go to the next match, or the one before."""
        self._go(by)

    def _go(self, by: int) -> None:
        view = self._view
        end = view.page.rows if view.following else view.scroll_offset.y
        row = view.page.step(by, end)
        if row is not None:
            view.show(row)
        elif view.page.word:
            self._say(f"nothing matches {view.page.word}")
        self.repaint()

    # --- saving -----------------------------------------------------------------------------

    @work(exclusive=True, group="save")
    async def action_save(self) -> None:
        """Save every line that is kept, hidden ones included, to a new file."""
        self._take()
        now, page = self.desk.now(), self._view.page
        title = f"log of {self._model}, the last {len(page)} lines"
        places = self._places or (Path.cwd(), Path.home())
        text = saved_text(page, title)
        try:
            path = await asyncio.to_thread(save, text, file_name(self._model, now), places)
        except OSError as error:
            self._say(f"not saved: {error.strerror or error}")
            return
        self._say(f"saved {len(page)} lines: {path}")


_LEVELS = {
    Level.ERROR: "errors only",
    Level.WARN: "warnings and up",
    Level.INFO: "info and up",
    Level.TRACE: "trace and up",
}
