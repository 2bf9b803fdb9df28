"""What the admin socket works with, handed in by the composition root."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from llmd.core.recent import Recent
from llmd.fleet import Fleet
from llmd.operations import Operations


@dataclass(frozen=True, slots=True)
class Rooms:
    """The daemon, as the admin socket sees it. Owned by the daemon.

    Attributes:
        operations: What operators do, and through it catalog, registry, scheduler, supervisor.
        fleet: What is known of models before they are loaded.
        recent: What the last minutes were like.
        health: Says `ok`, `loading`, `draining` or `failed`.
        url: Where the HTTP API listens, once it does.
        engine: Name and version of the llama-server.
        max_queued, max_queued_tokens: Bounds of the queue; 0 = none.
        memory_total_bytes: Of the box.
        started_at: Unix seconds.
    """

    operations: Operations
    fleet: Fleet
    recent: Recent
    health: Callable[[], str]
    url: Callable[[], str]
    engine: str
    max_queued: int
    max_queued_tokens: int
    memory_total_bytes: int
    started_at: float
