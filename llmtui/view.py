"""What is looked at: each table's filter and order. No clock, no terminal, no loop."""

from __future__ import annotations

from dataclasses import dataclass, field

from llmd.admin.framing import clean
from llmtui.state import (
    REQUEST_SORTS,
    WORKER_SORTS,
    State,
    is_faulty_request,
    is_faulty_worker,
    matches,
    request_order,
    request_text,
    worker_order,
    worker_text,
)

SORTS = {"workers": WORKER_SORTS, "requests": REQUEST_SORTS}


def _by_table(value: str) -> dict[str, str]:
    return dict.fromkeys(SORTS, value)


@dataclass
class View:
    """How the two tables, `workers` and `requests`, are looked at.

    Attributes:
        words: Each table's filter.
        sorts: What each is sorted by, of `SORTS`.
        inverted: Those that are sorted the other way round.
        faults: Only what is wrong is shown.
    """

    words: dict[str, str] = field(default_factory=lambda: _by_table(""))
    sorts: dict[str, str] = field(
        default_factory=lambda: {name: sorts[0] for name, sorts in SORTS.items()}
    )
    inverted: set[str] = field(default_factory=set)
    faults: bool = False

    def worker_keys(self, state: State) -> list[str]:
        """Return the models that are shown, in their order."""
        words = self.words["workers"]
        shown = [
            worker
            for worker in state.workers.values()
            if matches(words, worker_text(worker)) and (not self.faults or is_faulty_worker(worker))
        ]
        inverted = "workers" in self.inverted
        return worker_order(shown, self.sorts["workers"], inverted=inverted)

    def request_keys(self, state: State, now: float) -> list[str]:
        """Return the ids of the requests that are shown, in their order."""
        words = self.words["requests"]
        shown = [
            request
            for request in state.requests.values()
            if matches(words, request_text(request))
            and (not self.faults or is_faulty_request(request, now))
        ]
        inverted = "requests" in self.inverted
        return request_order(shown, self.sorts["requests"], inverted=inverted)

    def told(self, table: str) -> list[str]:
        """Return in words what of a table is not as usual."""
        words = clean(self.words[table])
        parts = [f"filter {words}"] if words else []
        if self.faults:
            parts.append("faults only")
        inverted = table in self.inverted
        if self.sorts[table] != SORTS[table][0] or inverted:
            parts.append(f"by {self.sorts[table]}{' inverted' if inverted else ''}")
        return parts

    def sort_next(self, table: str) -> None:
        """Sort a table by the next column."""
        sorts = SORTS[table]
        self.sorts[table] = sorts[(sorts.index(self.sorts[table]) + 1) % len(sorts)]

    def clear(self, table: str) -> None:
        """Show all of a table again."""
        self.words[table] = ""
        self.faults = False
