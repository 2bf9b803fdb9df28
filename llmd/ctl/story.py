"""A request's whole story as lines for a person."""

from __future__ import annotations

from collections.abc import Mapping

from llmd.admin import protocol as p
from llmd.admin.units import count, span
from llmd.ctl.tables import Style, clock


def story(view: p.Story, style: Style, now: float) -> list[str]:
    """Return a request's whole story, each step with its time and the time since its start."""
    request = view.request
    lines = [
        f"{style.bold(request.id)}  {style.paint(request.state, request.state)}"
        f"  {request.model or '-'}  key {_key(request)}  class {request.priority}",
        f"{request.path} from {request.client or '-'}  {'stream' if request.stream else 'plain'}"
        f"  prompt {count(request.prompt_tokens)} ({count(request.cached_tokens)} cached)"
        f"  generated {request.completion_tokens}"
        + ("" if request.max_tokens is None else f" of {request.max_tokens}")
        + ("" if request.temperature is None else f"  temperature {request.temperature:g}"),
    ]
    if view.limited:
        lines.append(f"this key was turned away by its limits {view.limited} times in 5 minutes")
    lines.append("")
    moments = sorted(_moments(view), key=lambda moment: moment[0])
    if not request.ended:
        moments.append((now, f"now {_present(request, now)}"))
    for at, text in moments:
        lines.append(f"  {clock(at, fraction=True)}  +{at - request.received_at:8.3f}s  {text}")
    return lines


def _key(request: p.Request) -> str:
    fingerprint = f" ({request.fingerprint})" if request.fingerprint else ""
    return f"{request.key or '-'}{fingerprint}"


def _present(request: p.Request, now: float) -> str:
    """Say where a request is now; its last step may be of a while ago."""
    parts = [request.state]
    if request.why is not None:
        place = f"#{request.position} in line: " if request.position else ""
        parts.append(f"{place}{request.why.detail}")
    if request.completion_tokens:
        parts.append(f"{request.completion_tokens} tokens")
    if request.eta_at is not None:
        word = "granted" if request.state == "queued" else "done at the latest"
        parts.append(f"{word} in about {span(request.eta_at - now)}")
    return ", ".join(parts)


def _moments(view: p.Story) -> list[tuple[float, str]]:
    request = view.request
    moments = [(request.received_at, "received")]
    moments += [(step.at, _step(step)) for step in view.steps]
    if request.granted_at is not None and not any(s.rule == "granted" for s in view.steps):
        moments.append((request.granted_at, "granted"))
    if request.first_token_at is not None:
        moments.append((request.first_token_at, "first token"))
    if request.ended_at is not None:
        moments.append((request.ended_at, _end(request)))
    return moments


def _step(step: p.Why) -> str:
    if step.rule == "granted":
        return f"granted: {step.detail}"
    if step.rule == "worker_died":
        return f"to be tried again: {step.detail}"
    line = f", #{step.position} in line" if step.position else ""
    by = f", by {', '.join(step.blockers)}" if step.blockers else ""
    return f"waits{line}: {step.detail}  [{step.rule}{by}]"


_CAUSES: Mapping[str, str] = {
    "owner": "cancelled by owner",
    "operator": "cancelled by an operator",
    "evicted": "cancelled: its model had to go",
    "shutdown": "llmd ended",
}


def outcome(request: p.Request) -> str:
    """Return in a few words how a request ended."""
    if request.cancelled_by:
        return f"cancelled by {request.cancelled_by}"
    if request.reason:
        return request.reason
    cause = request.cancel_cause
    return _CAUSES.get(cause) or cause.replace("_", " ") or request.state.replace("_", " ")


def _end(request: p.Request) -> str:
    what = f"{request.state} {request.status or ''}".rstrip()
    if request.code:
        what += f" {request.code}"
    if request.cancelled_by:
        return f"{what}: by {request.cancelled_by}"
    why = request.reason or request.cancel_cause.replace("_", " ")
    return f"{what}: {why}" if why else what
