"""A window that asks for a word before it acts: a name, typed out, is no slip of a finger."""

from __future__ import annotations

from collections.abc import Sequence

from textual import on
from textual.widget import Widget
from textual.widgets import Button, Input

from llmd.admin.framing import clean
from llmtui.rows import Line
from llmtui.screens.confirm import Confirm
from llmtui.screens.desk import Desk
from llmtui.screens.flow import told
from llmtui.screens.window import Hint


class Named(Confirm):
    """Acts only once a word was typed, where what it does hits somebody.

    Args:
        desk: What it works with.
        word: What must be typed.
        about: What that is: `the model's name`.
    """

    DEFAULT_CSS = """
    Named .field { height: 3; border: round $edge; margin: 0 0; padding: 0 1; width: 100%;
      background: $background; border-title-color: $quiet; }
    Named .field:focus { border: round $primary; }
    Named .plain .field { border: ascii $edge; }
    """

    def __init__(self, desk: Desk, word: str, about: str) -> None:
        super().__init__(desk)
        self._word = clean(word)
        self._about = about
        self._named = self.serves

    @property
    def serves(self) -> bool:
        """Whether somebody is hit now."""
        raise NotImplementedError

    def extra(self) -> Sequence[Widget]:
        """Return the field for the word, where one is wanted, and the buttons."""
        buttons = super().extra()
        if not self._named:
            return buttons
        field = Input(id="named", classes="field", select_on_focus=False)
        field.border_title = f"type {self._about}"
        return (field, *buttons)

    def first(self) -> Widget:
        """Return the field, where the word is wanted, else the button that does no harm."""
        return self.query_one("#named", Input) if self._named else super().first()

    def wanted_lines(self, text: str, width: int) -> list[Line]:
        """Return what asks for the word, until it is there."""
        if not self._named or self.typed_right():
            return []
        return [[], *told(text, width, style="warn")]

    def typed_right(self) -> bool:
        """Return whether the word is there, or none is wanted."""
        fields = self.query("#named").results(Input)
        return all(field.value.strip() == self._word for field in fields)

    @property
    def may(self) -> bool:
        """Whether it was named, where it must be; also if it began to hit somebody since."""
        return super().may and (not self.serves or self._named) and self.typed_right()

    def hints(self) -> Sequence[Hint]:
        """Return the keys."""
        return (
            ("confirm.right", "tab", "button", True),
            ("", "enter", "choose", True),
            ("window.back", "esc", "back", True),
        )

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        """Return whether a key may act: where a word is wanted, letters are for it."""
        if self._named and action in ("no", "copy"):
            return False
        return super().check_action(action, parameters)

    @on(Input.Changed, "#named")
    def typing(self) -> None:
        """Let the button work once the word is right."""
        self.repaint()

    @on(Input.Submitted, "#named")
    def typed(self) -> None:
        """Go on to the harmless button; with the right word, to the other one."""
        self.repaint()
        self.query_one("#yes" if self.may else "#no", Button).focus()
