"""Asks before a typed command is carried out that more than one person would feel.

Switch, unload, restart and cancel have windows of their own; here is what else there is.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from llmd.admin import protocol as p
from llmtui import answers
from llmtui.rows import Line
from llmtui.screens.desk import Desk
from llmtui.screens.flow import told
from llmtui.screens.named import Named
from llmtui.state import RUNNING, State


class Carry(Named):
    """Says what a command hits, and carries it out if told to.

    Args:
        desk: What it works with.
        asked: The command; it carries the generation that was seen.
        text: As it was typed.
    """

    def __init__(self, desk: Desk, asked: p.Command[Any], text: str) -> None:
        self._asked = asked
        self._text = text
        word = text.split()[0]
        super().__init__(desk, word, f"the word {word}")

    @property
    def serves(self) -> bool:
        """Whether anything is to be typed: everything goes, and somebody is served."""
        totals = self.desk.state().totals
        return isinstance(self._asked, p.Stop) and totals.running + totals.queued > 0

    def heading(self) -> str:
        """Return what is asked."""
        return f"{self._text.split()[0].capitalize()}?"

    def yes(self) -> str:
        """Return what the acting button says."""
        return self._text.split()[0].capitalize()

    def command(self) -> str:
        """Return the `llmctl` line that does the same."""
        generation = getattr(self._asked, "if_gen", None)
        if generation is None or "--if-gen" in self._text:
            return f"llmctl {self._text}"
        return f"llmctl {self._text} --if-gen {generation}"

    def lines(self, width: int) -> list[Line]:
        """Return what it hits."""
        made: list[Line] = []
        for sentence in hits(self._asked, self.desk.state()):
            made += told(sentence, width)
        word = self._text.split()[0]
        made += self.wanted_lines(f"It serves. To go on, type {word} below.", width)
        return made + self.end_lines(width)

    async def act(self) -> str:
        """Do it."""
        return answers.sentence(await self.desk.source().call(self._asked))


def hits(asked: p.Command[Any], state: State) -> Sequence[str]:
    """Return in sentences whom a command hits."""
    workers = state.workers
    if isinstance(asked, p.Stop | p.Drain):
        queued = sum(request.state == "queued" for request in state.requests.values())
        running = sum(request.state in RUNNING for request in state.requests.values())
        sentences = [f"{queued} queued are turned away; {running} running may finish."]
        if isinstance(asked, p.Stop):
            up = [worker.model for worker in workers.values() if worker.memory_bytes]
            sentences.insert(0, f"Unloads {', '.join(up) or 'nothing'}.")
        return sentences
    return ()
