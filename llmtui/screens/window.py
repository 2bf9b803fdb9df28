"""A window over the board: a frame, lines that stay up to date, and the keys that work in it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Generic, TypeVar

from rich.style import Style
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Vertical, VerticalScroll
from textual.content import Content
from textual.screen import ModalScreen
from textual.widget import Widget
from textual.widgets import Button, Static

from llmtui.bindings import spelt
from llmtui.rows import Line, Look
from llmtui.screens.desk import Desk
from llmtui.screens.flow import as_text, cells, plain
from llmtui.state import State

R = TypeVar("R")
PAINT_S = 0.25
# a binding's id, its key as people read it unless it is bound otherwise, what it does, and
# whether it works now
Hint = tuple[str, str, str, bool]

BINDINGS: list[BindingType] = [
    Binding("escape", "leave", show=False, id="window.back"),
    Binding("j,down", "scroll_by(1)", show=False, id="window.down"),
    Binding("k,up", "scroll_by(-1)", show=False, id="window.up"),
    Binding("pagedown,ctrl+d", "page(1)", show=False, id="window.page_down"),
    Binding("pageup,ctrl+u", "page(-1)", show=False, id="window.page_up"),
    Binding("g,home", "scroll_by(-100000)", show=False, id="window.first"),
    Binding("G,end", "scroll_by(100000)", show=False, id="window.last"),
]


class Choice(Button):
    """A button that shows its focus without colour, too."""

    def __init__(self, label: str, name: str, look: Look) -> None:
        super().__init__(Content(f"  {label}  "), id=name, compact=True)
        self._plain = label
        self._lit = False  # `has_focus` comes about only after `on_focus`
        self._marks = "><" if look.ascii_only else "▸◂"

    def relabel(self, label: str) -> None:
        """Say something else."""
        if label != self._plain:
            self._plain = label
            self._mark()

    def _mark(self) -> None:
        left, right = tuple(self._marks) if self._lit else (" ", " ")
        self.label = Content(f"{left} {self._plain} {right}")
        self.refresh(layout=True)

    def on_focus(self) -> None:
        """Show the focus."""
        self._lit = True
        self._mark()

    def on_blur(self) -> None:
        """Show that it has gone."""
        self._lit = False
        self._mark()


class Window(ModalScreen[R], Generic[R]):
    """What all windows share. A window draws itself anew four times a second, where it changed.

    Textual calls each class's own `on_mount`, the base's last: none calls its base's.

    Args:
        desk: What it works with.
    """

    DEFAULT_CSS = """
    Window { align: center middle; background: $background 60%; }
    Window .frame { width: 86; max-width: 100%; height: auto; max-height: 100%;
      border: round $primary; border-title-color: $primary; border-title-style: bold;
      border-subtitle-color: $quiet; background: $background; padding: 0 1; }
    Window .sheet { height: auto; background: $background; scrollbar-size-vertical: 1;
      scrollbar-color: $edge; scrollbar-background: $background; overflow-x: hidden;
      scrollbar-color-hover: $primary; scrollbar-color-active: $primary;
      scrollbar-background-hover: $background; scrollbar-background-active: $background; }
    Window .lines { width: 100%; height: auto; background: $background; }
    Window .hints { width: 100%; height: 1; background: $background; margin-top: 1; }
    Window .choices { height: 1; width: 100%; align-horizontal: center; margin-top: 1; }
    Window .choices Button { width: auto; min-width: 8; height: 1; border: none; padding: 0;
      margin: 0 1; background: $panel; color: $foreground; text-style: none; }
    Window .choices Button:focus { background: $primary; color: $background;
      text-style: bold; background-tint: $primary 0%; }
    Window .choices Button:disabled { color: $quiet; background: $background; opacity: 100%;
      text-opacity: 100%; }
    Window .frame.plain { border: ascii $primary; }
    Window .tight { margin-top: 0; }
    """
    BINDINGS: ClassVar[list[BindingType]] = BINDINGS
    wide: ClassVar[int] = 86  # cells; 0 = all there are

    def __init__(self, desk: Desk) -> None:
        super().__init__()
        self.desk = desk
        self._drawn: list[Line] = []
        self._hinted: Line = []
        self._state: State | None = None
        self._second = 0
        self._entitled = ("", "")
        self._colours: dict[str, Style] = dict(desk.colours)

    # --- for each window to say -------------------------------------------------------------

    def heading(self) -> str:
        """Return what stands in the frame."""
        return ""

    def aside(self) -> str:
        """Return what stands in the frame's lower edge."""
        return ""

    def lines(self, width: int) -> list[Line]:
        """Return what is shown, in lines of `width` cells."""
        return []

    def hints(self) -> Sequence[Hint]:
        """Return the keys that work here, the most useful first."""
        return ()

    def extra(self) -> Sequence[Widget]:
        """Return what stands between the lines and the keys."""
        return ()

    # --- the frame --------------------------------------------------------------------------

    @property
    def look(self) -> Look:
        """How things are drawn."""
        return self.desk.look()

    def compose(self) -> ComposeResult:
        """Lay the window out."""
        with Vertical(classes="frame") as frame:
            frame.set_class(self.look.ascii_only, "plain")
            with VerticalScroll(classes="sheet", can_focus=False):
                yield Static("", classes="lines", markup=False)
            yield from self.extra()
            yield Static("", classes="hints", markup=False)

    def on_mount(self) -> None:
        """Begin to draw."""
        self.query_one(".frame").styles.width = self.wide or "100%"
        self.set_interval(PAINT_S, self.tick)
        self.call_after_refresh(self.repaint)

    def on_resize(self) -> None:
        """Draw to the new size."""
        self._drawn = []
        self.call_after_refresh(self.repaint)

    @property
    def inner(self) -> int:
        """Cells of a line, the frame and the scroll bar taken off."""
        return max(20, min(self.wide, self.app.size.width) - 5)

    def tick(self) -> None:
        """Draw when something was heard, and once a second what grows older."""
        state, second = self.desk.state(), int(self.desk.now())
        if state is not self._state or second != self._second:
            self._state, self._second = state, second
            self.repaint()

    def repaint(self) -> None:
        """Draw what has changed."""
        if not self.is_attached or not self.query(".sheet"):
            return  # it is being taken down, and the timer was due once more
        ascii_only = self.look.ascii_only
        made = self.lines(self.inner)
        if made != self._drawn:
            self._drawn = made
            text = as_text(made, self._colours, ascii_only=ascii_only)
            self.query_one(".lines", Static).update(text)
        room = self._fit_rows(len(made))
        title = self.heading()
        aside = "  ".join(part for part in (self.aside(), self._below(len(made), room)) if part)
        if ascii_only:
            title, aside = plain(title), plain(aside)
        if (title, aside) != self._entitled:  # to set them draws the whole frame anew
            self._entitled = (title, aside)
            frame = self.query_one(".frame")
            frame.border_title = Content(title) if title else None
            frame.border_subtitle = Content(aside) if aside else None
        self.show_hints(self.fitted_hints())

    def _fit_rows(self, rows: int) -> int:
        """Give the lines as many rows as there are, or as there is room for; return how many."""
        taken = 2  # the frame
        tight = rows + self._rest() + 2 > self.app.size.height
        for widget in self.query(".hints, .choices, .field"):
            widget.set_class(tight, "tight")
        taken += self._rest() - (len(self.query(".hints, .choices")) if tight else 0)
        height = max(1, min(rows, self.app.size.height - taken))
        sheet = self.query_one(".sheet")
        if sheet.styles.height is None or sheet.styles.height.value != height:
            sheet.styles.height = height
        return height

    def _below(self, rows: int, room: int) -> str:
        """Return how much is out of sight."""
        hidden = rows - self.query_one(".sheet").scroll_offset.y - room
        return f"↓ {hidden} more" if hidden > 0 else ""

    def _rest(self) -> int:
        """Rows of what stands below the lines, each with its space above."""
        rows = 2 * len(self.query(".hints, .choices"))
        return rows + sum(3 for widget in self.query(".field") if widget.display)

    def fitted_hints(self) -> Line:
        """Return as many keys as there is room for; the last one, the way out, is always there."""
        parts: list[Line] = [
            [(key, "accent" if works else "dim"), (f" {word}", "dim")]
            for key, word, works in ((self.key(h[0], h[1]), h[2], h[3]) for h in self.hints())
        ]
        if not parts:
            return []
        gap = 2 if sum(map(cells, parts)) + 2 * len(parts) <= self.inner + 2 else 1
        left = self.inner - cells(parts[-1])
        line: Line = []
        for part in parts[:-1]:
            wide = cells(part) + gap
            if wide <= left:
                line += [*part, (" " * gap, "")]
                left -= wide
        return [*line, *parts[-1]]

    def key(self, binding: str, usual: str) -> str:
        """Return how a binding's key is spelt, the user's own keys taken into account."""
        own = self.desk.keymap.get(binding, "").split(",")[0]
        return spelt(own, ascii_only=self.look.ascii_only) if own else usual

    def show_hints(self, hints: Line) -> None:
        """Draw the keys, if they differ from what is drawn."""
        if hints != self._hinted:
            self._hinted = hints
            text = as_text([hints], self._colours, ascii_only=self.look.ascii_only)
            self.query_one(".hints", Static).update(text)

    # --- keys -------------------------------------------------------------------------------

    def action_leave(self) -> None:
        """Close the window, and do nothing."""
        self.dismiss(None)

    def action_page(self, pages: int) -> None:
        """Scroll by what is in sight, less two lines."""
        height = self.query_one(".sheet").size.height
        self.action_scroll_by(pages * max(1, height - 2))

    def action_scroll_by(self, rows: int) -> None:
        """Scroll the lines."""
        self.query_one(".sheet", VerticalScroll).scroll_relative(
            y=rows, animate=False, immediate=True
        )
        self.repaint()
