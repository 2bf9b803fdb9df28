"""A switch is a plan before it is an action: shown, chosen, done only if nothing moved since."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from textual import work
from textual.binding import Binding, BindingType

from llmd.admin import protocol as p
from llmd.admin.calls import AdminError, Refused
from llmd.admin.framing import clean
from llmtui.rows import Line
from llmtui.screens.confirm import Confirm
from llmtui.screens.desk import Desk
from llmtui.screens.flow import told
from llmtui.screens.plan import (
    KEYS,
    Chosen,
    Way,
    command_of,
    first_choice,
    next_drain,
    plan_lines,
    running,
)
from llmtui.screens.window import Hint


class Switch(Confirm):
    """Shows the plan of a switch, and carries it out if told to.

    What is done carries the generation that the plan was made for: the daemon refuses when what is
    loaded has changed since, and the window then offers a fresh plan.

    Args:
        desk: What it works with.
        model: To be loaded.
        evict: What is to go for it; () lets the daemon choose.
        add: Begin with nothing going.
        drain_s: Begin with this drain; 0 = all may finish, None = what the plan suggests.
        force: Begin with what runs being cancelled.
        if_gen: What must be loaded still when the first plan is made; None = anything.
    """

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("d", "drain", show=False, id="switch.drain"),
        Binding("c", "cancel", show=False, id="switch.cancel"),
        Binding("a", "add", show=False, id="switch.add"),
        Binding("r", "renew", show=False, id="switch.renew"),
    ]

    def __init__(
        self,
        desk: Desk,
        model: str,
        *,
        evict: Sequence[str] = (),
        add: bool = False,
        drain_s: float | None = None,
        force: bool = False,
        if_gen: int | None = None,
    ) -> None:
        super().__init__(desk)
        self._model = model
        self._evict = tuple(evict)
        self._add = add
        self._drain_s = drain_s
        self._force = force
        self._if_gen = if_gen
        self._plan: p.Plan | None = None
        self._chosen = Chosen()

    def on_mount(self) -> None:
        """Ask for the plan."""
        self.action_renew()

    @work(exclusive=True, group="plan")
    async def action_renew(self) -> None:
        """Ask for a fresh plan."""
        try:
            source = self.desk.source()
            if_gen, self._if_gen = self._if_gen, None  # a fresh plan is of what is loaded then
            plan = await source.switch(
                self._model, evict=self._evict, add=self._add, if_gen=if_gen, dry_run=True
            )
        except AdminError as error:
            self.trouble = clean(str(error))
        else:
            self.trouble = ""
            if self._plan is None or not self._same_ways(plan):
                self._chosen = first_choice(plan, self._drain_s, force=self._force)
            self._plan = plan
        self.repaint()

    def _same_ways(self, plan: p.Plan) -> bool:
        """Whether what was chosen still makes sense in a fresh plan."""
        if self._chosen.way is Way.ADD:
            return plan.fits_beside
        return self._plan is not None and bool(running(plan)) == bool(running(self._plan))

    @property
    def stale(self) -> bool:
        """Whether what is loaded has changed since the plan was made."""
        now = self.desk.state().generation
        return self._plan is not None and now is not None and now != self._plan.generation

    # --- drawing ----------------------------------------------------------------------------

    def heading(self) -> str:
        """Return what goes and what comes."""
        plan = self._plan
        goes = ""
        if plan is not None and plan.evict and self._chosen.way is not Way.ADD:
            goes = ", ".join(clean(eviction.model) for eviction in plan.evict) + " → "
        return f"Switch  {goes}{clean(self._model)}"

    def lines(self, width: int) -> list[Line]:
        """Return the plan."""
        plan = self._plan
        if plan is None:
            text = self.trouble or self.desk.refusal or "asking the daemon for a plan ..."
            return told(text, width, style="bad" if self.trouble else "dim")
        lines = plan_lines(plan, self._chosen, width, self.look, self._keys())
        if self.stale and not self.trouble:
            lines += [[], *told(_MOVED, width, style="warn")]
        return lines + self.end_lines(width)

    def _keys(self) -> dict[Way, str]:
        return {way: self.key(f"switch.{way.value}", key) for way, key in KEYS.items()}

    def command(self) -> str:
        """Return the `llmctl` line that does it."""
        return command_of(self._plan, self._chosen) if self._plan is not None else ""

    def yes(self) -> str:
        """Return what the acting button says."""
        way = self._chosen.way
        if way is Way.ADD:
            return "Add"
        if self._plan is not None and running(self._plan):
            return "Switch, cancel them" if way is Way.CANCEL else "Switch, drain"
        return "Switch" if self._plan is None or self._plan.evict else "Load"

    @property
    def may(self) -> bool:
        """Whether the plan can be carried out."""
        plan = self._plan
        if plan is None or self.desk.refusal or self.stale:
            return False
        return not plan.loaded and (plan.fits or (self._chosen.way is Way.ADD and plan.fits_beside))

    def hints(self) -> Sequence[Hint]:
        """Return the keys."""
        plan = self._plan
        runs = plan is not None and running(plan) > 0
        beside = plan is not None and plan.fits_beside and bool(plan.evict)
        keys: tuple[Hint, ...] = ()
        if runs:
            keys += (
                ("switch.drain", "d", "drain, longer", True),
                ("switch.cancel", "c", "cancel", True),
            )
        if beside:
            keys += (("switch.add", "a", "add", True),)
        keys += (
            ("switch.renew", "r", "fresh plan", True),
            ("confirm.right", "tab", "button", True),
        )
        return (
            *keys,
            ("confirm.copy_command", "Y", "copy llmctl", True),
            ("window.back", "esc", "back", True),
        )

    def aside(self) -> str:
        """Return that this is a plan, or what was copied."""
        return super().aside() or "a plan: nothing is done yet"

    # --- keys -------------------------------------------------------------------------------

    def action_drain(self) -> None:
        """Let what runs finish; pressed again, for longer."""
        if self._plan is not None and self._plan.evict:
            self._chosen = next_drain(self._plan, self._chosen)
            self.repaint()

    def action_cancel(self) -> None:
        """Cancel what runs on the model that goes."""
        if self._plan is not None and running(self._plan):
            self._chosen = Chosen(Way.CANCEL)
            self.repaint()

    def action_add(self) -> None:
        """Load it beside the others."""
        if self._plan is not None and self._plan.fits_beside and self._plan.evict:
            self._chosen = Chosen(Way.ADD)
            self.repaint()

    # --- doing ------------------------------------------------------------------------------

    async def act(self) -> str:
        """Carry out what is shown, and nothing else."""
        plan, chosen = self._plan, self._chosen
        assert plan is not None
        add = chosen.way is Way.ADD
        drain = chosen.way is Way.DRAIN and bool(running(plan))
        await self.desk.source().switch(
            plan.model,
            evict=() if add else tuple(eviction.model for eviction in plan.evict),
            add=add,
            drain_s=chosen.drain_s if drain else None,
            force=chosen.way is Way.CANCEL,
            if_gen=plan.generation,
        )
        return f"{'loading' if add or not plan.evict else 'switching to'} {clean(plan.model)}"

    def refused(self, error: AdminError) -> None:
        """Say that nothing was done, and what to do about it."""
        self.trouble = clean(str(error))
        if isinstance(error, Refused) and error.code == "conflict":
            self.trouble += ". Nothing was done; ask for a fresh plan."


_MOVED = "What is loaded has changed since this plan was made: ask for a fresh one."
