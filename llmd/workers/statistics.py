"""What a worker tells of itself: the same frozen data for metrics, HTTP, admin and TUI."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from llmd.core.lifecycle import WorkerState
from llmd.workers.reclaim import ReclaimStatistics


@dataclass(frozen=True, slots=True)
class WorkerStatistics:
    """One worker at one moment. Times are on the trio clock, durations in seconds.

    Attributes:
        model: Whose worker it is.
        state: What it is doing.
        since: When it moved there.
        reason: Why it is in `backoff`, `failed` or `off`; "" otherwise.
        retry_at: When `backoff` or `failed` ends by itself; 0 = not, or not known.
        pid: Its process; 0 when there is none.
        slots: Sequences that it decodes side by side; 0 until it is ready.
        context_tokens: Context of one slot; 0 until it is ready.
        ready_at: When it last became ready; 0 = never.
        load_s: What its last load took, from spawn to ready; 0 = none yet.
        memory_bytes: Its resident memory now; 0 without a process.
        starts: Starts so far by their reason.
        exits: Ends so far by their cause.
        crashes: Ends so far that nobody asked for.
        crashes_counted: Crashes that the restart window still remembers.
        last_failure: Why it last failed, kept when it serves again; "" = never.
        load_fraction: How far its load is, 0 to 1, as it says; None = it does not load, or say.
        reclaims: How cancels went.
        log_sequence: Number of the newest line in its log.
    """

    model: str
    state: WorkerState
    since: float
    reason: str
    retry_at: float
    pid: int
    slots: int
    context_tokens: int
    ready_at: float
    load_s: float
    memory_bytes: int
    starts: Mapping[str, int]
    exits: Mapping[str, int]
    crashes: int
    crashes_counted: int
    last_failure: str
    load_fraction: float | None
    reclaims: ReclaimStatistics
    log_sequence: int
