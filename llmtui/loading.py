"""How far a load is: as the daemon says, else as the clock has it."""

from __future__ import annotations

from llmd.admin import protocol as p


def load_progress(worker: p.Worker, now: float) -> float | None:
    """Return how far a load is, 0 to 1, and 0 where nobody knows; None without one."""
    if worker.state not in ("starting", "loading"):
        return None
    if worker.load_progress is not None:
        return worker.load_progress
    if worker.since_at is not None and worker.load_s > 0:
        return min(0.99, max(0.0, (now - worker.since_at) / worker.load_s))
    return 0.0


def load_percent(worker: p.Worker, now: float) -> str:
    """Return the same in words: `62%`, or `~62%` if that is the time taken; "" = nobody knows."""
    share = load_progress(worker, now)
    if share is None or (worker.load_progress is None and worker.load_s <= 0):
        return ""
    guessed = worker.load_progress is None or worker.note.startswith("~")
    return f"{'~' if guessed else ''}{share:.0%}"


def load_left_s(worker: p.Worker, now: float) -> float | None:
    """Return the rest of a load; None when nobody knows."""
    if worker.load_left_s is not None:
        return worker.load_left_s
    if worker.load_s <= 0:
        return None
    return worker.load_s - (now - (worker.since_at or now))
