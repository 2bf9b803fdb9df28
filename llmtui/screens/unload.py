"""Before a model is unloaded or restarted: what it hits; one that serves must be named."""

from __future__ import annotations

import shlex
from typing import ClassVar

from textual.binding import Binding, BindingType

from llmd.admin import protocol as p
from llmd.admin.calls import AdminError, Refused
from llmd.admin.framing import clean
from llmtui.form import planned, span
from llmtui.rows import Line
from llmtui.screens.desk import Desk
from llmtui.screens.flow import labelled, told
from llmtui.screens.named import Named

_DRAINS = (0.0, 15.0, 60.0, 300.0)  # 0 = all may finish


class Unload(Named):
    """Asks before a model goes, for good or to come back. While it serves, its name must be typed.

    Args:
        desk: What it works with.
        model: Which.
        restart: It is to be loaded again.
        drain_s: What is chosen at first: what still runs after this long is cancelled; 0 = all may
            finish.
        force: What runs is to be cancelled at once.
        if_gen: What must be loaded still; None = as it is now.
    """

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("ctrl+d", "drain", show=False, id="unload.drain", priority=True),
        Binding("ctrl+f", "cancel", show=False, id="unload.cancel", priority=True),
    ]

    def __init__(
        self,
        desk: Desk,
        model: str,
        *,
        restart: bool = False,
        drain_s: float = 0.0,
        force: bool = False,
        if_gen: int | None = None,
    ) -> None:
        self._model = model
        self._restart = restart
        self._verb = "Restart" if restart else "Unload"
        self._drain_s = drain_s
        self._force = force
        self._generation = desk.state().generation if if_gen is None else if_gen
        super().__init__(desk, model, "the model's name")

    @property
    def row(self) -> p.Worker | None:
        """The worker as it was heard last."""
        return self.desk.state().workers.get(self._model)

    @property
    def serves(self) -> bool:
        """Whether anything runs on it or waits for it."""
        row = self.row
        return row is not None and row.running + row.waiting > 0

    # --- drawing ----------------------------------------------------------------------------

    def heading(self) -> str:
        """Return what is asked."""
        return f"{self._verb} {clean(self._model)}?"

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
        held = row.memory_bytes
        freed = planned(max(held, row.estimate_bytes) if held else 0, held)
        lines += labelled("frees", [[(freed, "")], [("memory", "dim")]], width, gap=1)
        if row.running:
            lines += labelled("how", self._how(row), width, gap=1)
        if self.serves:
            waits = "queued and new ones wait, and may have it loaded again"
            if self._restart:
                waits = "queued and new ones wait until it is back"
            lines += told(waits, width, style="dim", label="clients")
        lines += self.wanted_lines("It serves. To go on, type its name below.", width)
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
        words = ["llmctl", self._verb.lower(), clean(self._model)]
        if self._force:
            words.append("--force")
        elif self.row is not None and self.row.running:
            words += ["--drain", f"{self._drain_s:g}"]
        if self._generation is not None:
            words += ["--if-gen", str(self._generation)]
        return shlex.join(words)

    def yes(self) -> str:
        """Return what the acting button says."""
        return f"{self._verb}, cancel them" if self._force else self._verb

    @property
    def may(self) -> bool:
        """Whether it is there to go, and was named where it must be."""
        row = self.row
        return row is not None and row.state != "off" and super().may

    # --- keys -------------------------------------------------------------------------------

    def action_drain(self) -> None:
        """Give what runs another time to finish."""
        if not self._force:
            longer = [drain_s for drain_s in _DRAINS if drain_s > self._drain_s]
            self._drain_s = longer[0] if longer else 0.0
        self._force = False
        self.repaint()

    def action_cancel(self) -> None:
        """Cancel what runs, or let it finish after all."""
        self._force = not self._force
        self.repaint()

    # --- doing ------------------------------------------------------------------------------

    async def act(self) -> str:
        """Do it, if nothing has moved since the window was opened."""
        row = self.row
        runs = row is not None and row.running > 0
        source = self.desk.source()
        drain_s = self._drain_s if runs and not self._force else None
        force, if_gen = self._force, self._generation
        try:
            if self._restart:
                asked = p.Restart(model=self._model, drain_s=drain_s, force=force, if_gen=if_gen)
                await source.call(asked)
            else:
                await source.unload(self._model, drain_s=drain_s, force=force, if_gen=if_gen)
        except Refused as error:
            if error.code == "conflict":
                self._generation = (await source.hello()).generation
            raise
        return f"{self._verb.lower()}ing {clean(self._model)}"

    def refused(self, error: AdminError) -> None:
        """Say that nothing was done; what is shown is fresh, so it may be tried again."""
        self.trouble = clean(str(error))
        if isinstance(error, Refused) and error.code == "conflict":
            self.trouble += ". Nothing was done; look again, and choose again."
