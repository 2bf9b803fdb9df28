"""A window that asks before it acts: buttons, the harmless one first, and the `llmctl` line."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from textual import on, work
from textual.binding import Binding, BindingType
from textual.containers import Horizontal
from textual.widget import Widget
from textual.widgets import Button

from llmd.admin.calls import AdminError
from llmd.admin.framing import clean
from llmtui.rows import Line
from llmtui.screens.desk import Desk
from llmtui.screens.flow import labelled, told
from llmtui.screens.window import Choice, Hint, Window

_COMMAND_ROWS = 3


class Choices(Horizontal):
    """Buttons in a row, the harmless one first."""

    def __init__(self, *buttons: Choice) -> None:
        super().__init__(*buttons, classes="choices")


class Confirm(Window[bool]):
    """A window that asks before it acts; the focus starts on its first, harmless button."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("left,shift+tab", "app.focus_previous", show=False, id="confirm.left"),
        Binding("right,tab", "app.focus_next", show=False, id="confirm.right"),
        Binding("Y", "copy", show=False, id="confirm.copy_command"),
        Binding("n", "no", show=False, id="confirm.no"),
    ]
    no: ClassVar[str] = "Cancel"

    def __init__(self, desk: Desk) -> None:
        super().__init__(desk)
        self.trouble = ""
        self._copied = ""

    def yes(self) -> str:
        """Return what the acting button says."""
        return "Yes"

    def command(self) -> str:
        """Return the `llmctl` line that does the same."""
        return ""

    async def act(self) -> str:
        """Do it, and return what to say of it.

        Raises:
            AdminError: It was refused, or the daemon has gone; the window stays and says so.
        """
        raise NotImplementedError

    @property
    def may(self) -> bool:
        """Whether the acting button works now."""
        return not self.desk.refusal

    # --- the window -------------------------------------------------------------------------

    def extra(self) -> Sequence[Widget]:
        """Return the buttons."""
        return (Choices(Choice(self.no, "no", self.look), Choice(self.yes(), "yes", self.look)),)

    def on_mount(self) -> None:
        """Focus what does no harm."""
        self.set_focus(self.first())

    def first(self) -> Widget:
        """Return what has the focus at first."""
        return self.query_one("#no", Button)

    def repaint(self) -> None:
        """Draw what has changed."""
        for button in self.query("#yes").results(Choice):
            button.relabel(self.yes())
            button.disabled = not self.may
            if button.disabled and self.focused is None:
                self.query_one("#no", Button).focus()
        super().repaint()

    def end_lines(self, width: int) -> list[Line]:
        """Return what stands last: what went wrong, and the `llmctl` line."""
        lines: list[Line] = []
        problem = self.trouble or self.desk.refusal
        if problem:
            lines += [[], *told(problem, width, style="bad")]
        return [*lines, [], *command_lines(self.command(), width)]

    def hints(self) -> Sequence[Hint]:
        """Return the keys."""
        return (
            ("", "enter", "choose", True),
            ("confirm.right", "tab", "other button", True),
            ("confirm.copy_command", "Y", "copy llmctl", True),
            ("window.back", "esc", "back", True),
        )

    def aside(self) -> str:
        """Return what was copied."""
        return self._copied

    # --- keys -------------------------------------------------------------------------------

    def action_copy(self) -> None:
        """Copy the `llmctl` line."""
        self.app.copy_to_clipboard(self.command())
        self._copied = "copied the llmctl line"
        self.repaint()

    def action_leave(self) -> None:
        """Leave without doing anything."""
        self.dismiss(False)

    def action_no(self) -> None:
        """Leave without doing anything."""
        self.dismiss(False)

    @on(Button.Pressed)
    def chosen(self, event: Button.Pressed) -> None:
        """Do it, or leave."""
        event.stop()
        if event.button.id == "no":
            self.dismiss(False)
        else:
            self.go()

    def go(self) -> None:
        """Do it, if that may be."""
        if self.may:
            self._go()
        else:
            self.repaint()

    @work(exclusive=True, group="act")
    async def _go(self) -> None:
        try:
            said = await self.act()
        except AdminError as error:
            self.refused(error)
            self.repaint()
            return
        self.desk.say(said, "accent")
        self.dismiss(True)

    def refused(self, error: AdminError) -> None:
        """Remember why it was not done."""
        self.trouble = clean(str(error))


def command_lines(command: str, width: int) -> list[Line]:
    """Return an `llmctl` line, cut where it is very long; `Y` copies it whole."""
    words: list[Line] = [[(word, "")] for word in clean(command).split(" ")]
    lines = labelled("=", words, width, gap=1)
    if len(lines) > _COMMAND_ROWS:
        lines = [*lines[:_COMMAND_ROWS], [("        ... Y copies all of it", "dim")]]
    return lines
