"""What actions answer as lines for a person: plans, and what was hit."""

from __future__ import annotations

from llmd.admin import protocol as p
from llmd.admin.units import planned, size, span
from llmd.ctl.tables import Style


def plan(view: p.Plan, style: Style) -> list[str]:
    """Return a plan, or what was done by one."""
    names = ", ".join(eviction.model for eviction in view.evict)
    instead = f" in place of {names}" if names else ""
    if view.loaded and not view.evict:
        comes = view.state in ("starting", "loading", "backoff")
        already = "is on its way already" if comes else "is loaded already"
        head = f"{view.model} {already} ({view.state})"
    elif view.dry_run:
        head = f"plan: load {view.model}{instead}; nothing is done yet"
    elif view.state == "ready":
        head = f"{view.model} is ready{instead}"
    else:
        head = f"loading {view.model}{instead}; llmctl watch workers follows it"
    lines = [style.bold(head)]
    if not view.fits:
        return [*lines, f"  does NOT fit: {view.reason}"]
    lines += [f"  waits for {_going(going, view.model)}" for going in view.going]
    lines += [f"  evicts {_eviction(eviction)}" for eviction in view.evict]
    lines += _fate(view)
    if not view.loaded:
        lines.append(f"  memory: {_memory(view)}")
    if view.fits_beside and view.evict:
        lines.append("  it also fits without evicting anything: llmctl load")
    if not view.loaded:
        lines.append(f"  load: {_load(view)}")
    if view.dry_run:
        lines.append(f"  do it: {view.command}")
    return lines


def _memory(view: p.Plan) -> str:
    """Say what is held before and after."""
    before = planned(view.held_bytes, view.now_bytes) if view.held_bytes else "nothing held now"
    if before == size(view.held_bytes):
        before += " held now"
    limit = f" of {size(view.limit_bytes)}" if view.limit_bytes else ""
    if view.memory_bytes is None:
        unknown = f"the size of {view.model} is not known until it is fetched"
        return (
            f"{before}{limit}; {unknown}, nor whether it fits" if limit else f"{before}; {unknown}"
        )
    freed = sum(eviction.memory_bytes for eviction in (*view.evict, *view.going))
    after = max(0, view.held_bytes - freed) + view.memory_bytes
    return f"{before}, {size(after)}{limit} afterwards"


def _going(view: p.Eviction, model: str) -> str:
    """Say what a load waits for that is on its way out already."""
    name = "its old process" if view.model == model else view.model
    if not view.running:
        return f"{name}, which is going already: frees {_freed(view)}"
    left = "nobody knows how long" if view.left_s is None else f"about {span(view.left_s)}"
    return f"{name}, which drains already: frees {_freed(view)}, {view.running} running, {left}"


def _eviction(view: p.Eviction) -> str:
    each = ""
    if view.service_s:
        longest = f", 95% within {span(view.service_p95_s)}" if view.service_p95_s else ""
        each = f" ({span(view.service_s)} each{longest})"
    running = f"{view.running} running{each}" if view.running else "idle"
    return f"{view.model}: frees {_freed(view)}, {running}, {view.queued} queued"


def _freed(view: p.Eviction) -> str:
    return planned(view.memory_bytes, view.now_bytes) if view.memory_bytes else "-"


def _fate(view: p.Plan) -> list[str]:
    """Say what becomes of the requests of evicted models."""
    lines = []
    if any(eviction.running for eviction in view.evict):
        if view.force:
            lines.append("  what runs there is cancelled at once")
        elif view.drain_s:
            lines.append(f"  what still runs there after {span(view.drain_s)} is cancelled")
        else:
            lines.append("  what runs there may finish first")
    if any(eviction.queued for eviction in view.evict) and view.auto_switch is not None:
        back = "waits until it is loaded again" if view.auto_switch else "is refused"
        lines.append(f"  what is queued there {back}")
    return lines


def _load(view: p.Plan) -> str:
    if not view.load_s:
        expected = "never measured"
    elif view.load_measured:
        expected = f"about {span(view.load_s)}"
    else:
        expected = f"about {span(view.load_s)}, a guess: it was never measured"
    verb = "waits" if view.queued == 1 else "wait"
    if view.going and view.load_s:
        expected += " from then on"
    waiting = f"; {_many(view.queued, 'request')} {verb} for it" if view.queued else ""
    return expected + waiting


def _many(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def acted(view: p.Acted) -> list[str]:
    """Return what an action on one model hit."""
    loaded = view.state not in ("off", "failed")
    if view.action == "reset":
        head = f"{view.model} may be tried again"
    elif view.action == "restart":
        head = f"{view.model} restarts"
    else:
        head = f"{view.model} is being unloaded" if loaded else f"{view.model} is unloaded"
    hit = "was cancelled" if view.force else "may finish"
    parts = [
        *([f"now {view.state}"] if view.state != "off" else []),
        *([f"{view.running} running {hit}"] if view.running else []),
        *([f"{view.queued} queued"] if view.queued else []),
    ]
    return [f"{head} ({', '.join(parts)})" if parts else head]


def cancelled(view: p.Cancelled) -> list[str]:
    """Return what a cancel hit."""
    lines = [f"cancelled {len(view.cancelled)}: {', '.join(view.cancelled)}"]
    if not view.cancelled:
        lines = [] if view.pending or view.ended or view.unknown else ["there is nothing to cancel"]
    for word, ids in (
        ("not ended yet", view.pending),
        ("had ended before", view.ended),
        ("not known", view.unknown),
    ):
        if ids:
            lines.append(f"{word}: {', '.join(ids)}")
    return lines


def stopped(view: p.Stopped) -> list[str]:
    """Return what a stop hit."""
    going = f"unloading {', '.join(view.unload)}" if view.unload else "nothing was loaded"
    return [f"{going}; {view.running} running may finish, {view.refused} queued turned away"]


def admission(view: p.Admission) -> list[str]:
    """Return whether requests are admitted."""
    if view.admission_open:
        return [f"admission open: {view.running} running, {view.queued} queued"]
    return [
        f"admission paused: {view.running} running may finish, {view.queued} queued are held;"
        " llmctl resume opens it"
    ]
