"""Asks before a typed command is carried out that more than one person would feel."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from msgspec.structs import replace

from llmd.admin import protocol as p
from llmtui import answers
from llmtui.form import span
from llmtui.rows import Line
from llmtui.screens.confirm import Confirm
from llmtui.screens.desk import Desk
from llmtui.screens.flow import told
from llmtui.state import RUNNING, State


class Carry(Confirm):
    """Says what a command hits, and carries it out if told to.

    Args:
        desk: What it works with.
        asked: The command; it carries the generation that was seen.
        text: As it was typed.
        plan: What a switch would do.
    """

    def __init__(
        self, desk: Desk, asked: p.Command[Any], text: str, plan: p.Plan | None = None
    ) -> None:
        super().__init__(desk)
        self._asked = asked
        self._text = text
        self._plan = plan

    def heading(self) -> str:
        """Return what is asked."""
        return f"{self._text.split()[0].capitalize()}?"

    def yes(self) -> str:
        """Return what the acting button says."""
        return self._text.split()[0].capitalize()

    def command(self) -> str:
        """Return the `llmctl` line that does the same."""
        return f"llmctl {self._text}"

    def lines(self, width: int) -> list[Line]:
        """Return what it hits."""
        made: list[Line] = []
        if self._plan is not None:
            plan = replace(self._plan, command="")  # what was typed stands below
            made += answers.lines(plan, width, self.desk.now(), self.look)
        for sentence in hits(self._asked, self.desk.state()):
            made += told(sentence, width)
        return made + self.end_lines(width)

    async def act(self) -> str:
        """Do it."""
        return answers.sentence(await self.desk.source().call(self._asked))


def hits(asked: p.Command[Any], state: State) -> Sequence[str]:
    """Return in sentences whom a command hits."""
    workers = state.workers
    if isinstance(asked, p.Unload | p.Restart):
        worker = workers.get(asked.model)
        if worker is None:
            return ()
        fate = "are cancelled" if asked.force else "may finish"
        if asked.drain_s and not asked.force:
            fate += f" within {span(asked.drain_s)}, then they are cancelled"
        return (
            f"{worker.running} running on {asked.model} {fate}.",
            f"{worker.waiting} queued for it wait on.",
        )
    if isinstance(asked, p.Stop | p.Drain):
        queued = sum(request.state == "queued" for request in state.requests.values())
        running = sum(request.state in RUNNING for request in state.requests.values())
        sentences = [f"{queued} queued are turned away; {running} running may finish."]
        if isinstance(asked, p.Stop):
            up = [worker.model for worker in workers.values() if worker.memory_bytes]
            sentences.insert(0, f"Unloads {', '.join(up) or 'nothing'}.")
        return sentences
    return ()


def must_ask(asked: p.Command[Any], state: State) -> bool:
    """Return whether a command may hit others, so that it is asked first."""
    if isinstance(asked, p.Switch):
        return not asked.dry_run
    if isinstance(asked, p.Unload | p.Restart):
        worker = state.workers.get(asked.model)
        return worker is not None and bool(worker.running or worker.waiting)
    if isinstance(asked, p.Drain):
        return asked.reject_queued and state.totals.queued > 0
    return isinstance(asked, p.Stop)
