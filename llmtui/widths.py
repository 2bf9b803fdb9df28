"""How wide the columns of names are to be: as the names are, so that the rest is for reasons.

Columns hold still as rows do: they grow with a longer name, and shrink only when all that is shown
is laid out anew, since the terminal has another size or the daemon other models.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace

from rich.cells import cell_len

from llmd.admin.framing import clean
from llmtui.state import State, client_of


@dataclass(frozen=True)
class Widths:
    """Cells of the longest name that each column has shown; 0 = nothing is known of it.

    Attributes:
        workers: Of a model, in the workers' table.
        models: Of a model, in the requests' table.
        clients: Of a client.
        known: The models that there are.
    """

    workers: int = 0
    models: int = 0
    clients: int = 0
    known: frozenset[str] = field(default=frozenset(), compare=False)


def widths(state: State, before: Widths | None = None) -> Widths:
    """Return the widths for what is shown now.

    Args:
        state: It.
        before: What was shown before, and still holds; None = all is laid out anew.
    """
    known = frozenset(state.workers)
    if before is None or known != before.known:
        before = Widths(workers=_longest(known), known=known)
    requests = state.requests.values()
    models = max(before.models, _longest({request.model for request in requests}))
    clients = max(before.clients, _longest({client_of(request) for request in requests}))
    if (models, clients) == (before.models, before.clients):
        return before
    return replace(before, models=models, clients=clients)


def _longest(names: Iterable[str]) -> int:
    return max((cell_len(clean(name)) for name in names), default=0)
