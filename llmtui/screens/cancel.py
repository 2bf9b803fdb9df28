"""Before requests are cancelled: what it hits, counted, and the same as an `llmctl` line."""

from __future__ import annotations

import shlex
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import ClassVar

from textual.binding import Binding, BindingType

from llmd.admin import protocol as p
from llmd.admin.framing import clean
from llmtui.form import count, span
from llmtui.rows import Line, request_why, short_id
from llmtui.screens.confirm import Confirm
from llmtui.screens.desk import Desk
from llmtui.screens.flow import labelled, told
from llmtui.screens.window import Hint
from llmtui.state import RUNNING, client_of

_NAMED = 4


class Cancel(Confirm):
    """Asks before requests are cancelled; one that only waits is cancelled by `y` alone.

    Args:
        desk: What it works with.
        hit: The requests, as they were seen.
    """

    no: ClassVar[str] = "Keep"
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("y", "yes", show=False, id="cancel.yes"),
    ]

    def __init__(self, desk: Desk, hit: Sequence[p.Request]) -> None:
        super().__init__(desk)
        self._hit = {request.id: request for request in hit}

    @property
    def live(self) -> list[p.Request]:
        """Those that have not ended meanwhile, as they are now."""
        now = self.desk.state().requests
        if not self.desk.live:
            return list(self._hit.values())
        shown = [now[name] for name in self._hit if name in now]
        return [request for request in shown if not request.ended]

    @property
    def simple(self) -> bool:
        """Whether it is one request that only waits."""
        return len(self._hit) == 1 and not any(r.state in RUNNING for r in self.live)

    @property
    def may(self) -> bool:
        """Whether there is anything left to cancel, and it may be."""
        return bool(self.live) and not self.desk.refusal

    def yes(self) -> str:
        """Return what the acting button says."""
        number = len(self.live)
        return "Cancel it" if len(self._hit) == 1 else f"Cancel {number}"

    def heading(self) -> str:
        """Return what is asked."""
        if len(self._hit) == 1:
            return f"Cancel {short_id(next(iter(self._hit)))}?"
        return f"Cancel {len(self._hit)} requests?"

    def command(self) -> str:
        """Return the `llmctl` line that cancels the same ones."""
        return "llmctl cancel " + " ".join(shlex.quote(clean(name)) for name in self._hit)

    def lines(self, width: int) -> list[Line]:
        """Return what it hits."""
        live, now = self.live, self.desk.now()
        running = [request for request in live if request.state in RUNNING]
        waiting = len(live) - len(running)
        gone = len(self._hit) - len(live)
        lines = labelled(
            "hits",
            [
                [(f"{len(running)} running", "warn" if running else "dim")],
                [(f"{waiting} queued", "" if waiting else "dim")],
                [(f"{gone} ended meanwhile" if gone else "", "dim")],
            ],
            width,
        )
        lines += labelled("keys", _tally(client_of(request) for request in live), width)
        lines += labelled("models", _tally(request.model or "-" for request in live), width)
        if len(live) == 1:
            lines += _one(live[0], now, width)
        if running:
            made = sum(request.completion_tokens for request in running)
            lines += labelled("lost", [[(f"{count(made)} tokens made so far", "")]], width)
        lines += told(_GET, width, style="dim", label="clients")
        return lines + self.end_lines(width)

    def hints(self) -> Sequence[Hint]:
        """Return the keys."""
        first: tuple[Hint, ...] = (
            (("cancel.yes", "y", "cancels it", self.may),) if self.simple else ()
        )
        return (*first, *super().hints())

    def action_yes(self) -> None:
        """Cancel one that only waits."""
        if self.simple:
            self.go()

    async def act(self) -> str:
        """Cancel them by their ids, whatever moved in the table meanwhile."""
        done = await self.desk.source().cancel(*self._hit)
        over = len(done.ended) + len(done.unknown)
        more = f", {over} had ended" if over else ""
        wait = f", {len(done.pending)} still ending" if done.pending else ""
        return f"cancelled {len(done.cancelled)}{wait}{more}"


_GET = "get error 499 request_cancelled; slots are free within a second"


def _one(request: p.Request, now: float, width: int) -> list[Line]:
    chunks: list[Line] = [
        [(request.state, "")],
        [(f"for {span(now - request.received_at)}", "dim")],
        [(request_why(request, now), "")],
    ]
    return labelled("it is", chunks, width)


def _tally(names: Iterable[str]) -> list[Line]:
    """Return names with how often each comes, the most frequent first."""
    counted = Counter(names).most_common()
    chunks: list[Line] = [
        [(clean(name), ""), (f" x{number}" if number > 1 else "", "dim")]
        for name, number in counted[:_NAMED]
    ]
    left = len(counted) - _NAMED
    if left > 0:
        chunks.append([(f"and {left} more", "dim")])
    return chunks or [[("nobody", "dim")]]
