"""One model's worker as operators see it, with its state in a few words."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from llmd.admin import protocol as p
from llmd.core.estimates import MOST_FRACTION
from llmd.core.lifecycle import RequestState, WorkerState
from llmd.core.policy import ModelStatistics, Progress
from llmd.core.record import RequestRecord
from llmd.models.catalog import CatalogModel
from llmd.workers.worker import WorkerStatistics

LOADING = (WorkerState.STARTING, WorkerState.LOADING)
_NOTE_CHARS = 80


def describe_worker(
    model: CatalogModel,
    queue: ModelStatistics,
    worker: WorkerStatistics | None,
    *,
    state: WorkerState,
    now: float,
    wall_offset: float,
    fits: bool | None,
    tokens_per_s: float,
    first_token_p95_s: float | None,
    context_filled_tokens: int,
) -> p.Worker:
    """Return the view.

    Args:
        model: From the catalog.
        queue: What runs there and waits for it.
        worker: None when it was never started.
        state: What everybody is told that it is doing; its own task may not have got that far.
        now: Monotonic seconds.
        wall_offset: What makes Unix seconds of them.
        fits: It could be loaded now without any eviction; None when it is loaded.
        tokens_per_s: Of the last seconds.
        first_token_p95_s: Of the last minutes.
        context_filled_tokens: Of prompts and answers of what runs there.
    """
    loading = state in LOADING
    retry_in_s = max(0.0, worker.retry_at - now) if worker and worker.retry_at else None
    left_s = queue.load_left_s if loading else None
    progress = queue.load_progress if loading else None
    reason = model.fault or (worker.reason if worker else "")
    context_tokens = worker.context_tokens if worker else 0
    room_tokens = queue.slots * context_tokens
    return p.Worker(
        model=model.name,
        state=state.value,
        since_at=round(worker.since + wall_offset, 1) if worker else None,
        reason=reason,
        retry_at=round(worker.retry_at + wall_offset, 1) if worker and worker.retry_at else None,
        pid=worker.pid if worker else 0,
        slots=queue.slots,
        slots_busy=queue.slots_busy,
        running=queue.running,
        queued={priority.value: count for priority, count in queue.queued.items() if count},
        queued_tokens=queue.queued_tokens,
        oldest_at=round(now - queue.oldest_wait_s + wall_offset, 1)
        if queue.oldest_wait_s
        else None,
        context_tokens=context_tokens,
        memory_bytes=worker.memory_bytes if worker else 0,
        estimate_bytes=queue.memory_bytes,
        fits=fits,
        tokens_per_s=round(tokens_per_s, 1),
        first_token_p95_s=None if first_token_p95_s is None else round(first_token_p95_s, 3),
        kv_used=round(min(1.0, context_filled_tokens / room_tokens), 2) if room_tokens else None,
        load_s=round(queue.load_s, 3),
        load_progress=None if progress is None else round(progress.fraction, 2),
        load_left_s=None if left_s is None else round(left_s, 1),
        starts=sum(worker.starts.values()) if worker else 0,
        crashes=worker.crashes if worker else 0,
        last_failure=worker.last_failure if worker else "",
        leaving=queue.leaving.value if queue.leaving else "",
        leaving_for=queue.leaving_for,
        wanted=queue.wanted,
        pinned=queue.pinned,
        note=_note(state, queue, reason, progress, left_s, retry_in_s, fits),
    )


def context_filled(records: Iterable[RequestRecord]) -> Counter[str]:
    """Return the tokens that running requests keep in their slots, by model."""
    filled: Counter[str] = Counter()
    for record in records:
        if record.state in (RequestState.PREFILL, RequestState.DECODE):
            prompt = record.prompt_tokens or record.prompt_estimate_tokens
            made = record.completion_tokens or record.events
            filled[record.model] += prompt * record.sequences + made
    return filled


def _note(
    state: WorkerState,
    queue: ModelStatistics,
    reason: str,
    progress: Progress | None,
    left_s: float | None,
    retry_in_s: float | None,
    fits: bool | None,
) -> str:
    """Say in a few words what is worth knowing beyond the state."""
    if progress is not None:
        late = not progress.exact and progress.fraction >= MOST_FRACTION
        words = "longer than usual" if late else str(progress)
        return words if left_s is None else f"{words}, ETA {left_s:.0f}s"
    if state in (WorkerState.BACKOFF, WorkerState.FAILED):
        said = _first_line(reason)
        return f"{said}, retry in {retry_in_s:.0f}s" if retry_in_s is not None else said
    if queue.leaving is not None:
        whom = f" to {queue.leaving_for}" if queue.leaving_for else ""
        return f"gives way{whom}, {queue.running} running"
    if queue.wanted:
        return "starts when there is room"
    if state is WorkerState.OFF and fits:
        return "fits now"
    return "pinned" if queue.pinned else ""


def _first_line(text: str) -> str:
    line = text.splitlines()[0] if text else ""
    return line if len(line) <= _NOTE_CHARS else line[: _NOTE_CHARS - 1] + "…"
