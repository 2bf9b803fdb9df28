"""Before a model is unloaded: what it hits; one that serves must be named."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from typing import ClassVar

from textual import on
from textual.binding import Binding, BindingType
from textual.widget import Widget
from textual.widgets import Button, Input

from llmd.admin import protocol as p
from llmd.admin.calls import AdminError, Refused
from llmd.admin.framing import clean
from llmtui.form import size, span
from llmtui.rows import Line
from llmtui.screens.confirm import Confirm
from llmtui.screens.desk import Desk
from llmtui.screens.flow import labelled, told
from llmtui.screens.window import Hint

_DRAINS = (0.0, 15.0, 60.0, 300.0)  # 0 = all may finish


class Unload(Confirm):
    """Asks before a model goes. While it serves, its name must be typed.

    Args:
        desk: What it works with.
        model: Which.
    """

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("ctrl+d", "drain", show=False, id="unload.drain", priority=True),
        Binding("ctrl+f", "cancel", show=False, id="unload.cancel", priority=True),
    ]
    DEFAULT_CSS = """
    Unload .field { height: 3; border: round $edge; margin: 0 0; padding: 0 1; width: 100%;
      background: $background; border-title-color: $quiet; }
    Unload .field:focus { border: round $primary; }
    Unload .plain .field { border: ascii $edge; }
    """

    def __init__(self, desk: Desk, model: str) -> None:
        super().__init__(desk)
        self._model = model
        self._drain_s = 0.0
        self._force = False
        self._generation = desk.state().generation
        self._named = self._serves

    @property
    def row(self) -> p.Worker | None:
        """The worker as it was heard last."""
        return self.desk.state().workers.get(self._model)

    @property
    def _serves(self) -> bool:
        row = self.row
        return row is not None and row.running + row.waiting > 0

    # --- drawing ----------------------------------------------------------------------------

    def extra(self) -> Sequence[Widget]:
        """Return the field for the name, where one is wanted, and the buttons."""
        buttons = super().extra()
        if not self._named:
            return buttons
        field = Input(id="named", classes="field", select_on_focus=False)
        field.border_title = "type the model's name"
        return (field, *buttons)

    def first(self) -> Widget:
        """Return the field, where the name is wanted, else the button that does no harm."""
        return self.query_one("#named", Input) if self._named else super().first()

    def heading(self) -> str:
        """Return what is asked."""
        return f"Unload {clean(self._model)}?"

    def lines(self, width: int) -> list[Line]:
        """Return what it hits."""
        row, now = self.row, self.desk.now()
        if row is None:
            return told("the daemon knows no such model", width, style="bad")
        oldest = f"oldest waits {span(now - row.oldest_at)}" if row.oldest_at else ""
        lines = labelled(
            "hits",
            [
                [(f"{row.running} running", "warn" if row.running else "dim")],
                [(f"{row.waiting} queued", "warn" if row.waiting else "dim")],
                [(oldest, "dim")],
            ],
            width,
        )
        lines += labelled(
            "frees", [[(size(row.memory_bytes), "")], [("memory", "dim")]], width, gap=1
        )
        if row.running:
            lines += labelled("how", self._how(row), width, gap=1)
        if self._serves:
            waits = "queued and new ones wait, and may have it loaded again"
            lines += told(waits, width, style="dim", label="clients")
        if self._named and not self._typed_right():
            text = "It serves. To go on, type its name below."
            lines += [[], *told(text, width, style="warn")]
        return lines + self.end_lines(width)

    def _how(self, row: p.Worker) -> list[Line]:
        number = row.running
        if self._force:
            text = f"the {number} running are cancelled now"
        elif self._drain_s:
            text = f"the {number} running may go on for {self._drain_s:.0f}s, then are cancelled"
        else:
            text = f"the {number} running may finish"
        longer, cancel = self.key("unload.drain", "^d"), self.key("unload.cancel", "^f")
        keys: list[Line] = [
            [(f"  {longer}", "accent"), (" limit", "dim")],
            [(f" {cancel}", "accent"), (" cancel", "dim")],
        ]
        return [*([[(word, "")] for word in text.split()]), *keys]

    def command(self) -> str:
        """Return the `llmctl` line that does it."""
        words = ["llmctl", "unload", clean(self._model)]
        if self._force:
            words.append("--force")
        elif self.row is not None and self.row.running:
            words += ["--drain", f"{self._drain_s:g}"]
        if self._generation is not None:
            words += ["--if-gen", str(self._generation)]
        return shlex.join(words)

    def yes(self) -> str:
        """Return what the acting button says."""
        return "Unload, cancel them" if self._force else "Unload"

    def _typed_right(self) -> bool:
        fields = self.query("#named").results(Input)
        return all(field.value.strip() == clean(self._model) for field in fields)

    @property
    def may(self) -> bool:
        """Whether it was named, where it must be."""
        row = self.row
        return (
            row is not None
            and row.state != "off"
            and not self.desk.refusal
            and (not self._serves or self._named)
            and self._typed_right()
        )

    def hints(self) -> Sequence[Hint]:
        """Return the keys."""
        return (
            ("confirm.right", "tab", "button", True),
            ("", "enter", "choose", True),
            ("window.back", "esc", "back", True),
        )

    # --- keys -------------------------------------------------------------------------------

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        """Return whether a key may act: where a name is wanted, letters are for it."""
        if self._named and action in ("no", "copy"):
            return False
        return super().check_action(action, parameters)

    @on(Input.Changed, "#named")
    def typing(self) -> None:
        """Let the button work once the name is right."""
        self.repaint()

    @on(Input.Submitted, "#named")
    def typed(self) -> None:
        """Go on to the harmless button; with the right name, to the other one."""
        self.repaint()
        self.query_one("#yes" if self.may else "#no", Button).focus()

    def action_drain(self) -> None:
        """Give what runs another time to finish."""
        if not self._force:
            place = _DRAINS.index(self._drain_s) + 1
            self._drain_s = _DRAINS[place % len(_DRAINS)]
        self._force = False
        self.repaint()

    def action_cancel(self) -> None:
        """Cancel what runs, or let it finish after all."""
        self._force = not self._force
        self.repaint()

    # --- doing ------------------------------------------------------------------------------

    async def act(self) -> str:
        """Unload it, if nothing has moved since the window was opened."""
        row = self.row
        runs = row is not None and row.running > 0
        source = self.desk.source()
        try:
            await source.unload(
                self._model,
                drain_s=self._drain_s if runs and not self._force else None,
                force=self._force,
                if_gen=self._generation,
            )
        except Refused as error:
            if error.code == "conflict":
                self._generation = (await source.hello()).generation
            raise
        return f"unloading {clean(self._model)}"

    def refused(self, error: AdminError) -> None:
        """Say that nothing was done; what is shown is fresh, so it may be tried again."""
        self.trouble = clean(str(error))
        if isinstance(error, Refused) and error.code == "conflict":
            self.trouble += ". Nothing was done; look again, and choose again."
