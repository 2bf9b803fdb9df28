"""A line at the bottom that tells letters, one of which is pressed next."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from rich.style import Style
from textual import events
from textual.app import ComposeResult
from textual.screen import ModalScreen

from llmtui.rows import Line
from llmtui.widgets.lines import Lines


class Menu(ModalScreen[str | None]):
    """Returns the choice whose letter was pressed; None for any other key.

    Args:
        title: What is chosen.
        choices: Letters and words.
        chosen: The word that holds now.
        colours: A style for each style name.
    """

    DEFAULT_CSS = """
    Menu { align: left bottom; background: transparent; }
    Menu Lines { height: 1; background: $surface; }
    """

    def __init__(
        self,
        title: str,
        choices: Sequence[tuple[str, str]],
        chosen: str,
        colours: Mapping[str, Style],
    ) -> None:
        super().__init__()
        self._head = title
        self._choices = choices
        self._chosen = chosen
        self._colours = colours

    def compose(self) -> ComposeResult:
        """Lay the line out."""
        lines = Lines(self._line, id="menu")
        lines.colours = self._colours
        yield lines

    def _line(self, width: int) -> list[Line]:
        line: Line = [(f" {self._head}", "head")]
        for letter, word in self._choices:
            style = "accent" if word == self._chosen else "dim"
            line += [(f"  {letter}", "accent"), (f" {word}", style)]
        return [line]

    def on_key(self, event: events.Key) -> None:
        """Choose, or leave."""
        event.stop()
        event.prevent_default()
        words = dict(self._choices)
        self.dismiss(words.get(event.character or ""))
