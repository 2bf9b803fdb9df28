"""The rows of a log, of which only the visible ones are made."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from rich.cells import cell_len
from rich.style import Style
from textual.geometry import Size
from textual.scroll_view import ScrollView
from textual.strip import Strip

from llmtui.rows import Line
from llmtui.screens.flow import plain
from llmtui.screens.loglines import Entry, Level, LogPage
from llmtui.screens.story import clock
from llmtui.widgets.paint import strip

_STYLE = {Level.ERROR: "bad", Level.WARN: "warn", Level.TRACE: "dim", Level.DEBUG: "dim"}
_TIME = 12
_PAN = 16


class LogView(ScrollView, can_focus=True, inherit_bindings=False):
    """Shows a `LogPage`; at its end it follows, elsewhere it holds still.

    Args:
        page: What is shown; belongs to this view from now on.
        colours: A style for each style name.
        ascii_only: Draw with ASCII alone.
    """

    DEFAULT_CSS = """
    LogView { height: 1fr; width: 100%; background: $background; overflow-x: hidden;
      scrollbar-size-vertical: 1; scrollbar-size-horizontal: 0; scrollbar-color: $edge;
      scrollbar-background: $background; scrollbar-color-hover: $primary;
      scrollbar-color-active: $primary; scrollbar-background-hover: $background;
      scrollbar-background-active: $background; }
    """

    def __init__(self, page: LogPage, colours: Mapping[str, Style], *, ascii_only: bool) -> None:
        super().__init__(id="lines")
        self.page = page
        self.following = True
        self.timed = True
        self.wrapped = False
        self._pan = 0
        self._ascii = ascii_only
        self._own_scroll = False
        self._colours = {
            **colours,
            "hit": colours["warn"] + Style(underline=True, bold=True),
            # where the line of a match is reversed itself, reversing once more would hide the match
            "here": Style(color="black", bgcolor="yellow", bold=True, underline=True)
            if colours["cursor"].reverse
            else colours["warn"] + Style(reverse=True, bold=True),
        }

    # --- size and place ---------------------------------------------------------------------

    @property
    def room(self) -> int:
        """Cells of a line's text."""
        return max(8, self.size.width - (_TIME if self.timed else 1) - 2 - 1)

    def fit(self, gone: int = 0) -> None:
        """Take the page's new size; `gone` rows were forgotten at its top."""
        self.page.look(width=self.room if self.wrapped else 0)
        size = Size(self.size.width, self.page.rows)
        if self.virtual_size != size:
            self.virtual_size = size
        if self.following:
            self.go_to(self.page.rows)
        elif gone:
            self.go_to(self.scroll_offset.y - gone)
        self.refresh()

    def go_to(self, row: int) -> None:
        """Scroll so that a row is the first, as far as there are rows."""
        self._own_scroll = True
        self.scroll_to(y=max(0, row), animate=False, force=True, immediate=True)
        self._own_scroll = False

    def show(self, row: int) -> None:
        """Scroll so that a row is in sight, and hold still there."""
        self.following = False
        top, height = self.scroll_offset.y, self.size.height
        if not top <= row < top + height:
            self.go_to(row - height // 3)
        self.refresh()

    def watch_scroll_y(self, old_value: float, new_value: float) -> None:
        """Stop following when somebody scrolls back."""
        super().watch_scroll_y(old_value, new_value)
        if not self._own_scroll and new_value < old_value:
            self.following = False

    def watch_show_vertical_scrollbar(self, shown: bool) -> None:
        """Tell a bar that has just come how far down it is, which textual does only for moves."""
        if shown:
            self.vertical_scrollbar.position = self.scroll_y

    def on_resize(self) -> None:
        """Wrap to the new width, with the same line on top."""
        self.keep()

    def keep(self, change: Callable[[], None] | None = None) -> None:
        """Do what changes the rows, and keep the line on top where it is."""
        top = self.page.row(self.scroll_offset.y)
        if change is not None:
            change()
        self.fit()
        if top is not None and not self.following:
            self.go_to(self.page.row_of(top[0].number))

    # --- how it is looked at ----------------------------------------------------------------

    def wrap(self) -> None:
        """Break long lines, or do not."""
        self.wrapped = not self.wrapped
        self._pan = 0
        self.keep()

    def time(self) -> None:
        """Show the time of each line, or do not."""
        self.timed = not self.timed
        self.keep()

    def levels(self, level: Level) -> None:
        """Show lines that matter as much as `level`, and more."""
        self.keep(lambda: self.page.look(level=level))

    def pan(self, by: int) -> None:
        """Look further to the right or to the left, where lines are not broken."""
        if not self.wrapped:
            self._pan = max(0, self._pan + by * _PAN)
            self.refresh()

    # --- drawing ----------------------------------------------------------------------------

    def render_line(self, y: int) -> Strip:
        """Return one line of what is visible."""
        width, ground = self.size.width, self.rich_style
        found = self.page.row(y + self.scroll_offset.y)
        if found is None:
            empty = "  nothing yet" if not self.page.rows and y == 0 else ""
            return strip([(empty, "dim")], width, self._colours, ground)
        entry, part, text = found
        here = entry.number == self.page.current
        line = self._mark(entry, width) if entry.stream == "mark" else self._row(entry, part, text)
        if self._ascii:
            line = [(plain(words), style) for words, style in line]
        return strip(line, width, self._colours, ground, cursor=here)

    def _mark(self, entry: Entry, width: int) -> Line:
        rule = "─" * max(2, width - cell_len(entry.text) - 8)
        return [("  ── ", "accent"), (entry.text, "accent"), (f" {rule}", "dim")]

    def _row(self, entry: Entry, part: int, text: str) -> Line:
        style = "accent" if entry.stream == "llmd" else _STYLE.get(entry.level, "")
        line: Line = []
        if self.timed:
            line.append((f" {clock(entry.at)} " if not part else " " * _TIME, "dim"))
        else:
            line.append((" ", ""))
        letter = entry.level.name[0] if not part else " "
        line.append((f"{letter} ", style or "dim"))
        if not self.wrapped:
            room = self.room
            cut, text = self._pan, text[self._pan :]
            if cut:
                text = "…" + text[1:]
            if cell_len(text) > room:
                text = text[: room - 1] + "…"  # a strip is cut to its cells as well
        return [*line, *self._lit(text, style, here=entry.number == self.page.current)]

    def _lit(self, text: str, style: str, *, here: bool) -> Line:
        word = self.page.word
        lowered = text.lower()
        if not word or len(lowered) != len(text):
            return [(text, style)]
        parts: Line = []
        at = 0
        while (found := lowered.find(word, at)) >= 0:
            parts.append((text[at:found], style))
            parts.append((text[found : found + len(word)], "here" if here else "hit"))
            at = found + len(word)
        return [*parts, (text[at:], style)]
