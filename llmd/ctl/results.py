"""What actions answer as lines for a person: plans, and what was hit."""

from __future__ import annotations

from llmd.admin import protocol as p
from llmd.admin.units import size, span
from llmd.ctl.tables import Style, held


def plan(view: p.Plan, style: Style) -> list[str]:
    """Return a plan, or what was done by one."""
    names = ", ".join(eviction.model for eviction in view.evict)
    instead = f" in place of {names}" if names else ""
    if view.loaded and not view.evict:
        head = f"{view.model} is loaded already ({view.state})"
    elif view.dry_run:
        head = f"plan: load {view.model}{instead}; nothing is done yet"
    elif view.state == "ready":
        head = f"{view.model} is ready{instead}"
    else:
        head = f"loading {view.model}{instead}; llmctl watch workers follows it"
    lines = [style.bold(head)]
    if not view.fits:
        return [*lines, f"  does NOT fit: {view.reason}"]
    for eviction in view.evict:
        service = f" ({span(eviction.service_s)} each)" if eviction.service_s else ""
        running = f"{eviction.running} running{service}" if eviction.running else "idle"
        lines.append(
            f"  evicts {eviction.model}: frees {held(eviction.memory_bytes)}, {running},"
            f" {eviction.queued} queued"
        )
    if not view.loaded:
        freed = sum(eviction.memory_bytes for eviction in view.evict)
        after = max(0, view.held_bytes - freed) + view.memory_bytes
        limit = f" of {size(view.limit_bytes)}" if view.limit_bytes else ""
        before = f"{size(view.held_bytes)} held now" if view.held_bytes else "nothing held now"
        lines.append(f"  memory: {before}, {size(after)}{limit} afterwards")
    if view.fits_beside and view.evict:
        lines.append("  it also fits without evicting anything: llmctl load")
    if view.load_s:
        verb = "waits" if view.queued == 1 else "wait"
        waiting = f"; {_many(view.queued, 'request')} {verb} for it" if view.queued else ""
        lines.append(f"  load: about {span(view.load_s)}{waiting}")
    if view.dry_run:
        lines.append(f"  do it: {view.command}")
    return lines


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
