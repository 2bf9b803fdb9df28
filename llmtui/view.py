"""What is looked at: each table's filter and order. No clock, no terminal, no loop."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from llmd.admin.framing import clean
from llmtui.happenings import Happening, happenings
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

SORTS: Mapping[str, Mapping[str, str]] = {"workers": WORKER_SORTS, "requests": REQUEST_SORTS}
"""What each table can be sorted by, and the letter for it; the first is how it is by itself."""

TABLES = (*SORTS, "events")

RATES = (0.2, 0.5, 1.0, 2.0, 4.0)
"""How often a second the screen may be drawn."""


@dataclass
class View:
    """How the tables, `workers`, `requests` and `events`, are looked at.

    Attributes:
        words: Each table's filter.
        sorts: What each is sorted by, of `SORTS`.
        inverted: Those that are sorted the other way round.
        faults: Only what is wrong is shown.
    """

    words: dict[str, str] = field(default_factory=lambda: dict.fromkeys(TABLES, ""))
    sorts: dict[str, str] = field(
        default_factory=lambda: {name: next(iter(sorts)) for name, sorts in SORTS.items()}
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
            if (not words or matches(words, request_text(request)))
            and (not self.faults or is_faulty_request(request, now))
        ]
        inverted = "requests" in self.inverted
        return request_order(shown, self.sorts["requests"], inverted=inverted)

    def happenings(self, state: State) -> list[Happening]:
        """Return what happened and is shown, the newest first."""
        words = self.words["events"]
        shown = [
            one
            for one in happenings(state.log, state.wrong)
            if (not words or matches(words, f"{one.level} {one.text}"))
            and (not self.faults or one.level != "info")
        ]
        return shown if "events" in self.inverted else shown[::-1]

    def told(self, table: str, *, sort: bool = False) -> list[str]:
        """Return in words what of a table is not as usual; its `sort`, if wanted, in any case."""
        words = clean(self.words[table])
        parts = [f"filter:{words}"] if words else []
        if self.faults:
            parts.append("faults only")
        inverted = table in self.inverted
        if table not in SORTS:
            return [*parts, "oldest first"] if inverted else parts
        if sort or self.sorts[table] != next(iter(SORTS[table])) or inverted:
            parts.append(f"sort:{self.sorts[table]}{' inverted' if inverted else ''}")
        return parts

    def clear(self, table: str) -> None:
        """Show all of a table again."""
        self.words[table] = ""
        self.faults = False


def first_rate(over_ssh: bool) -> float:
    """Return how often a second the screen is drawn at first."""
    return 1.0 if over_ssh else 2.0


def next_rate(rate: float, step: int) -> float:
    """Return the rate `step` places on, within `RATES`."""
    place = RATES.index(rate) + step
    return RATES[min(len(RATES) - 1, max(0, place))]


def without_rows(name: str, state: State) -> str:
    """Return what a table says when it has no rows."""
    if state.link == "absent":
        return "not connected" if name == "workers" else state.trouble
    if state.link != "live":
        return "not connected" if name == "workers" else ""
    if name == "events":
        return "nothing has happened"
    if name == "workers":
        return "no model matches" if state.workers else "there are no models"
    return "no request matches" if state.requests else "nobody asks for anything"
