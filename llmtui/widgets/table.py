"""A table of many rows of which only the visible ones are drawn."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from textwrap import wrap

from textual import events
from textual.content import Content
from textual.geometry import Region, Size
from textual.message import Message
from textual.scroll_view import ScrollView

from llmd.admin.framing import clean
from llmtui.rows import Line
from llmtui.widgets.sparing import Drawn, Sparing


class Table(Sparing, ScrollView, can_focus=True):
    """Rows with a cursor that stays on its row while others come and go.

    Args:
        draw: Makes the row of a key, as wide as asked for; its first part is one cell, which the
            cursor and a mark take when they are there.
        title: Makes the line of column titles, as wide as asked for.
    """

    class Chosen(Message):
        """A row was asked to be opened."""

        def __init__(self, table: Table, key: str) -> None:
            super().__init__()
            self.table = table
            self.key = key

    class Fitted(Message):
        """The table was scrolled or got another size: another number of rows is hidden."""

    def __init__(
        self,
        draw: Callable[[str, int], Line],
        title: Callable[[int], str],
        *,
        id: str,  # noqa: A002
    ) -> None:
        super().__init__(id=id)
        self._draw = draw
        self._title = title
        self.keys: list[str] = []
        self.cursor_key: str | None = None
        self.marked: set[str] = set()
        self.faded = False
        self.loose = False  # the cursor stays on top, until somebody moves it
        self.empty = ""
        self._entitled = ("", "", "")
        self.cursor_mark = "▌"

    @property
    def cursor(self) -> int:
        """The cursor's row; 0 when there is none."""
        try:
            return self.keys.index(self.cursor_key or "")
        except ValueError:
            return 0

    @property
    def hidden(self) -> int:
        """How many rows are below what is visible; 0 as long as the table has no room yet."""
        height = self.size.height
        return max(0, len(self.keys) - self.scroll_offset.y - max(0, height - 1)) if height else 0

    def show(self, keys: Sequence[str]) -> bool:
        """Show these rows; a cursor whose row has gone moves to the next one.

        Returns whether it had to.
        """
        row, had = (0, None) if self.loose else (self.cursor, self.cursor_key)
        self.keys = list(keys)
        if self.loose:
            self.cursor_key = None
        if self.cursor_key not in self.keys:
            self.cursor_key = self.keys[min(row, len(keys) - 1)] if keys else None
        self._sized()
        self.repaint()
        return had is not None and self.cursor_key != had

    def go(self, key: str | None) -> None:
        """Put the cursor on a row, if it is there."""
        self.loose = False
        if key in self.keys and key != self.cursor_key:
            self.cursor_key = key
            self._reveal(self.cursor)

    def move(self, by: int) -> None:
        """Move the cursor by rows, as far as there are any."""
        self.loose = False
        if self.keys:
            row = min(len(self.keys) - 1, max(0, self.cursor + by))
            self.cursor_key = self.keys[row]
            self._reveal(row)

    def entitle(self, title: str, about: str, below: str) -> None:
        """Say on the border what the table is and holds."""
        said = (title, about, below)
        if said != self._entitled:  # to set it draws everything anew
            self._entitled = said
            more = Content.styled(f"  {about}", "not bold $quiet") if about else Content("")
            self.border_title = Content(title) + more
            self.border_subtitle = Content(below)

    def _sized(self) -> None:
        size = Size(self.size.width, len(self.keys) + 1)
        if self.virtual_size != size:
            self.virtual_size = size

    def _reveal(self, row: int) -> None:
        # one line more than the row: the titles stand over the first visible one
        self.scroll_to_region(Region(0, row, 1, 2), animate=False, force=True)
        self.refresh()

    def on_resize(self) -> None:
        """Fit the scroll bar, and keep the cursor in sight."""
        self._sized()
        self._reveal(self.cursor)
        self.post_message(self.Fitted())

    def watch_scroll_y(self, old_value: float, new_value: float) -> None:
        """Tell that other rows are seen."""
        super().watch_scroll_y(old_value, new_value)
        self.post_message(self.Fitted())

    def on_click(self, event: events.Click) -> None:
        """Put the cursor where the mouse points; a second click opens the row."""
        place = event.get_content_offset(self)
        if place is None or place.y < 1:
            return
        row = place.y - 1 + self.scroll_offset.y
        if row < len(self.keys):
            self.loose = False
            again = self.cursor_key == self.keys[row]
            self.cursor_key = self.keys[row]
            self.refresh()
            if again and event.chain > 1:
                self.post_message(self.Chosen(self, self.keys[row]))

    def drawn(self, y: int, width: int) -> Drawn:
        """Return one line of what is visible."""
        room = max(1, width - 3)  # the cursor, a space, and one at the end
        if y == 0:
            return [("  " + self._title(room), "dim")], False, False
        row = y - 1 + self.scroll_offset.y
        if row >= len(self.keys):
            lines = wrap(clean(self.empty), room) if self.empty and not self.keys else []
            text = f"  {lines[row]}" if row < len(lines) else ""
            return [(text, "dim")], False, False
        key = self.keys[row]
        cursor = key == self.cursor_key and self.has_focus
        drawn = self._draw(key, room + 1)
        head, drawn = drawn[:1], drawn[1:]
        if key in self.marked:
            head = [("*", "accent")]
        elif cursor:
            head = [(self.cursor_mark, "accent")]
        line: Line = [*head, (" ", ""), *drawn]
        return line, cursor, self.faded
