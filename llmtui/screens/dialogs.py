"""Small windows: help, questions, the plan of a switch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from rich.text import Text
from textual import on
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Horizontal, Vertical
from textual.content import Content
from textual.screen import ModalScreen
from textual.widgets import Button, Input, Static

from llmd.admin import protocol as p
from llmd.admin.framing import clean
from llmtui.form import bar, size, span
from llmtui.rows import Look

_CLOSE: list[BindingType] = [Binding("escape", "leave", "back", show=False)]


class Dialog(ModalScreen[str | None]):
    """A window that returns the id of the button that was chosen; None when it was left."""

    BINDINGS: ClassVar[list[BindingType]] = [
        *_CLOSE,
        Binding("left", "app.focus_previous", show=False),
        Binding("right", "app.focus_next", show=False),
    ]

    def __init__(
        self,
        title: str,
        lines: Sequence[str],
        buttons: Sequence[tuple[str, str]] = (),
        *,
        type_this: str = "",
    ) -> None:
        super().__init__()
        self._title = title
        self._lines = lines
        self._buttons = buttons
        self._type_this = type_this

    def compose(self) -> ComposeResult:
        """Lay the window out; the focus starts on its first, harmless button."""
        with Vertical(classes="window") as window:
            window.border_title = Content(f" {clean(self._title)} ")
            text = "\n".join(clean(line) for line in self._lines)
            yield Static(Text(text), classes="text", markup=False)
            if self._type_this:
                yield Input(placeholder=self._type_this, id="typed")
            with Horizontal(classes="buttons"):
                for name, label in self._buttons:
                    yield Button(Content(label), id=name, compact=True)

    def on_mount(self) -> None:
        """Focus what is to be used first."""
        wanted = self.query("#typed") or self.query(Button)
        if wanted:
            wanted.first().focus()

    def action_leave(self) -> None:
        """Leave without doing anything."""
        self.dismiss(None)

    @on(Button.Pressed)
    def chosen(self, event: Button.Pressed) -> None:
        """Return what was chosen, if it may be."""
        name = event.button.id or ""
        if name == "cancel":
            self.dismiss(None)
        elif not self._type_this or self.query_one("#typed", Input).value == self._type_this:
            self.dismiss(name)
        else:
            self.query_one("#typed", Input).focus()

    @on(Input.Submitted)
    def typed(self, event: Input.Submitted) -> None:
        """Take a typed name for the last button."""
        if event.value == self._type_this and self._buttons:
            self.dismiss(self._buttons[-1][0])


class Question(Dialog):
    """A question that `y` answers with yes."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("y", "yes", show=False),
        Binding("n", "leave", show=False),
    ]

    def action_yes(self) -> None:
        """Do it."""
        self.dismiss("yes")


class Help(Dialog):
    """The keys."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("question_mark,q,enter", "leave", show=False),
    ]


def plan_lines(plan: p.Plan, look: Look) -> list[str]:
    """Return the plan of a switch for a person."""
    freed = sum(eviction.memory_bytes for eviction in plan.evict)
    after = plan.held_bytes - freed + (0 if plan.loaded else plan.memory_bytes)
    words = ["FITS" if plan.fits else "DOES NOT FIT"]
    sums = f"memory  {size(plan.held_bytes)} now"
    if freed:
        sums += f"  -{size(freed)} evicted"
    if not plan.loaded:
        sums += f"  +{size(plan.memory_bytes)} loaded"
    sums += f"  = {size(max(0, after))}"
    lines = []
    if plan.limit_bytes:
        sums += f" of {size(plan.limit_bytes)}"
        words.insert(0, bar(after / plan.limit_bytes, 16, ascii_only=look.ascii_only))
    lines += [sums, "        " + " ".join(words)]
    if plan.reason:
        lines.append(f"        {plan.reason}")
    if plan.loaded:
        lines.append("It is loaded already, or on its way.")
    elif plan.fits_beside:
        lines.append("It fits beside what is loaded: nothing need go.")
    lines.append("")
    for eviction in plan.evict:
        each = f", {span(eviction.service_s)} each on average" if eviction.service_s else ""
        lines.append(
            f"evict   {eviction.model}: {eviction.running} running, {eviction.queued} queued{each}"
        )
    lines.append(f"load    {plan.model}: about {span(plan.load_s)}, {plan.queued} wait for it")
    if plan.command:
        lines += ["", f"= {plan.command}"]
    return lines


def plan_buttons(plan: p.Plan) -> list[tuple[str, str]]:
    """Return what can be done about a plan, the harmless choice first."""
    buttons = [("cancel", " Cancel ")]
    if plan.fits and not plan.loaded:
        if plan.evict and plan.fits_beside:
            buttons.append(("add", " Add beside "))
        if any(eviction.running for eviction in plan.evict):
            buttons += [("force", " Switch, cancel theirs "), ("switch", " Switch, drain ")]
        else:
            buttons.append(("switch", " Switch "))
    return buttons
