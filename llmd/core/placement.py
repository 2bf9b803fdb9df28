"""What fits in memory, and what to evict for it: reload cost against recency. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Room:
    """How many models, and how many bytes of them, may be in memory; 0 = no limit, or unknown."""

    max_loaded: int = 0
    memory_bytes: int = 0


@dataclass(frozen=True, slots=True)
class Resident:
    """One model in memory that could be evicted.

    Attributes:
        name: Its name.
        memory_bytes: What it holds; 0 = unknown.
        load_s: Seconds that loading it again takes.
        idle_s: Seconds since it last did anything; 0 while it works.
        busy: Something runs on it or waits for it.
        pinned: It goes only if nothing else does.
    """

    name: str
    memory_bytes: int
    load_s: float
    idle_s: float
    busy: bool = False
    pinned: bool = False


def shortfall(room: Room, held_bytes: Iterable[int], newcomer_bytes: int) -> tuple[int, int]:
    """Return the places and bytes that must be freed before a newcomer fits; (0, 0) if it does.

    Args:
        room: The limits.
        held_bytes: For each model in memory, what it holds.
        newcomer_bytes: What the newcomer will hold.
    """
    held = list(held_bytes)
    places = len(held) + 1 - room.max_loaded if room.max_loaded > 0 else 0
    size = sum(held) + newcomer_bytes - room.memory_bytes if room.memory_bytes > 0 else 0
    return max(0, places), max(0, size)


def keep_value(resident: Resident) -> float:
    """Return how much keeping a model is worth: its reload cost over the time it has been idle.

    The time since the last use stands for the time to the next, as in the hyperbolic caching of
    Blankstein, Sen and Freedman (USENIX ATC 2017), which values an object by cost times rate of
    use; of GreedyDual (Young 1994) it keeps that a costly object outlives a cheap one, and still
    goes in the end.
    """
    return resident.load_s / (1.0 + resident.idle_s)


def choose_evictions(
    candidates: Sequence[Resident], places: int, memory_bytes: int
) -> tuple[str, ...] | None:
    """Return whom to evict to free `places` and `memory_bytes`, or None if all are not enough.

    Idle ones go before busy ones, busy ones before pinned ones, and among equals those of the
    least `keep_value`. Nobody goes whom the others make superfluous.
    """
    ranked = sorted(candidates, key=lambda r: (r.pinned, r.busy, keep_value(r), r.name))
    chosen: list[Resident] = []
    size = 0
    for resident in ranked:
        if len(chosen) >= places and size >= memory_bytes:
            break
        chosen.append(resident)
        size += resident.memory_bytes
    if len(chosen) < places or size < memory_bytes:
        return None
    for resident in reversed(ranked[: len(chosen)]):
        if len(chosen) > places and size - resident.memory_bytes >= memory_bytes:
            chosen.remove(resident)
            size -= resident.memory_bytes
    return tuple(resident.name for resident in chosen)
