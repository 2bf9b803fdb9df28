"""The rows of the tables as text.

A row is a list of `(text, style)` parts that together are exactly as wide as the panel. Styles are
names (`ok`, `warn`, `bad`, `accent`, `dim`, `new`, ""), which the widgets turn into colours.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

from llmd.admin import protocol as p
from llmtui.columns import Column
from llmtui.form import Look as Look
from llmtui.form import bar, clock, count, fit, size, span, spark
from llmtui.happenings import Happening
from llmtui.loading import load_left_s, load_percent, load_progress
from llmtui.reasons import phrase, word
from llmtui.state import RUNNING, State, client_of, is_faulty_request

Part = tuple[str, str]
Line = list[Part]

_WORKER_STYLE = {
    "ready": "ok", "loading": "accent", "starting": "accent", "draining": "warn",
    "stopping": "warn", "backoff": "bad", "failed": "bad", "off": "dim",
}  # fmt: skip
_REQUEST_STYLE = {
    "decode": "ok", "prefill": "accent", "queued": "", "received": "dim", "done": "dim",
    "cancelled": "dim", "abandoned": "dim", "refused": "warn", "failed": "bad", "timed_out": "bad",
}  # fmt: skip


_CLASSES = {"high": ("hi", "accent"), "normal": ("st", ""), "low": ("lo", "dim")}


_REASONS = {  # why a model is off
    "operator": "by an operator", "demand": "made room", "max_delay": "made room",
    "higher_class": "made room", "idle_timeout": "was idle", "context_reload": "reloads",
}  # fmt: skip


Cells = Callable[[str, int], Part]


def _line(shown: Sequence[Column], cell: Cells, look: Look, base: str) -> Line:
    parts: Line = []
    for index, column in enumerate(shown):
        text, style = cell(column.name, column.width)
        text = fit(text, column.width, right=column.right, ascii_only=look.ascii_only)
        parts.append((text if index == 0 else " " + text, base or style))
    return parts


def worker_row(
    worker: p.Worker, state: State, shown: Sequence[Column], now: float, look: Look
) -> Line:
    """Return a worker's row."""
    up = worker.slots > 0

    def cell(name: str, width: int) -> Part:
        if name == "st":
            return worker.state.upper(), _WORKER_STYLE.get(worker.state, "")
        if name == "model":
            return worker.model, ""
        if name == "last":
            return _course(worker, state, width, now, look)
        if name == "note":
            text, style = _note(worker, now)
            for shorter in (", retry ", ", "):
                if len(text) > width:
                    text = re.sub(", retry (in )?", shorter, text)
            return text, style
        if name == "queue":
            return str(worker.waiting), "" if worker.waiting else "dim"
        if name == "crashes":
            return str(worker.crashes), "bad" if worker.crashes else "dim"
        return _worker_number(worker, name, now, up=up)

    return _line(shown, cell, look, "dim" if worker.state == "off" else "")


def _worker_number(worker: p.Worker, name: str, now: float, *, up: bool) -> Part:
    if name == "mem":
        if worker.memory_bytes:
            return size(worker.memory_bytes), ""
        return f"~{size(worker.estimate_bytes)}" if worker.estimate_bytes else "-", "dim"
    if name == "since":
        idle = worker.state == "off" or worker.since_at is None
        return ("-", "dim") if idle else (span(now - (worker.since_at or now)), "dim")
    if not up:
        return "-", "dim"
    if name == "slots":
        return f"{worker.slots_busy}/{worker.slots}", ""
    if name == "kv":
        return ("-", "dim") if worker.kv_used is None else (f"{worker.kv_used * 100:.0f}", "")
    if name == "rate":
        return f"{worker.tokens_per_s:.0f}", "" if worker.tokens_per_s else "dim"
    return span(worker.first_token_p95_s), ""


def _course(worker: p.Worker, state: State, width: int, now: float, look: Look) -> Part:
    progress = load_progress(worker, now)
    if progress is not None:
        return bar(progress, width, ascii_only=look.ascii_only), "accent.bar"
    if worker.state not in ("ready", "draining"):
        return "", ""
    values = state.history.get(worker.model, ())
    return spark(values, width, ascii_only=look.ascii_only), "spark" if any(values) else "dim"


def _note(worker: p.Worker, now: float) -> Part:
    percent = load_percent(worker, now)
    if percent:
        left = load_left_s(worker, now)
        eta = "" if left is None else f", ETA {span(left) if left > 0 else 'any moment'}"
        return percent + eta, "accent"
    if worker.retry_at is not None and worker.state in ("backoff", "failed"):
        reason = worker.reason or worker.last_failure or worker.state
        return f"{reason}, retry in {span(worker.retry_at - now)}", "bad"
    style = "warn" if worker.leaving else "dim"
    return worker.note or _REASONS.get(worker.reason, worker.reason), style


def request_row(
    request: p.Request, state: State, shown: Sequence[Column], now: float, look: Look
) -> Line:
    """Return a request's row."""
    silent = request.silent_since_at is not None and request.state in RUNNING

    def cell(name: str, width: int) -> Part:
        if name == "id":
            return short_id(request.id)[-width:], ""
        if name in ("st", "word"):
            return _request_state(request, silent=silent, place=name == "st")
        if name == "model":
            return request.model or "-", ""
        if name == "client":
            return client_of(request), ""
        if name == "prio":
            styles = {"high": "accent", "low": "dim"}
            words = {"normal": "norm"}
            word = request.priority
            return words.get(word, word), styles.get(word, "")
        if name == "class":
            return _CLASSES.get(request.priority, ("", ""))
        if name in ("why", "short"):
            why = _brief_why(request, state, now)
            if name == "short" and len(why) > width:
                why = _short_why(request, now)
            return why, "bad" if silent else "dim"
        return _request_number(request, name, now)

    base = "dim" if request.ended else "new" if request.id in state.fresh else ""
    return _line(shown, cell, look, base)


_YOUNG_S, _FEW_TOKENS = 2.0, 3  # below these a stream's rate is more chance than measure
_LEVEL_STYLE = {"warning": "warn", "error": "bad", "critical": "bad"}


def event_row(one: Happening, width: int, look: Look) -> Line:
    """Return what happened as a row, behind `!` for what needs an eye."""
    at = f"{clock(one.at)}  "
    style = _LEVEL_STYLE.get(one.level, "")
    text = fit(one.text, max(1, width - len(at) - 1), ascii_only=look.ascii_only)
    return [("!" if style else " ", style), (at, "dim"), (text, style)]


def short_id(name: str) -> str:
    """Return the end of a request's id, which tells it from the others."""
    return name[-8:]


def _request_state(request: p.Request, *, silent: bool, place: bool) -> Part:
    if silent:
        return "STALLED", "bad"
    text = request.state.upper()
    if place and request.state == "queued" and request.position:
        text = f"QUEUED #{request.position}" if request.position < 100 else f"Q #{request.position}"
    return text, _REQUEST_STYLE.get(request.state, "")


def _request_number(request: p.Request, name: str, now: float) -> Part:
    if name == "wait":
        waits = request.queued_at is not None and request.granted_at is None and not request.ended
        return span(now - (request.queued_at or now) if waits else request.wait_s), ""
    if name == "hit":
        mark = "" if request.prompt_exact else "~"
        hit = f" ({count(request.cached_tokens)})" if request.cached_tokens else ""
        return f"{mark}{count(request.prompt_tokens)}{hit}", ""
    if name in ("gen", "place"):
        limit = "∞" if request.max_tokens is None else count(request.max_tokens)
        if name == "place" and request.position and not request.granted_at:
            return f"#{request.position} {limit}", ""
        made = count(request.completion_tokens) if request.granted_at else "-"
        return f"{made}/{limit}", ""
    if name == "speed":
        rate = request.tokens_per_s
        if rate is None or request.ended or not is_measured(request, now):
            return "-", "dim"
        return f"{rate:.{1 if rate < 999.95 else 0}f}", ""
    if name == "age":
        return span((request.ended_at or now) - request.received_at), ""
    left_s = _left_s(request, now)
    return ("-", "dim") if left_s is None else (_about(left_s), "")


def _left_s(request: p.Request, now: float) -> float | None:
    """Return what is expected: until it may run, until its first token, or until its end."""
    if request.ended or not is_measured(request, now):
        return None
    if request.eta_at is not None:
        return request.eta_at - now
    return prefill_left_s(request, now) if request.state == "prefill" else None


def is_measured(request: p.Request, now: float) -> bool:
    """Return whether a stream has run for long enough to tell its rate, and its end by that.

    The daemon counts by whole seconds, and the first of them is only a part of one.
    """
    if request.state != "decode" or request.first_token_at is None:
        return True
    return request.completion_tokens >= _FEW_TOKENS and now - request.first_token_at >= _YOUNG_S


def _about(seconds: float) -> str:
    """Return an expected time, no more exact than it is, in at most five characters."""
    left = max(0, round(seconds))
    if left < 100:
        return f"~{left}s"
    return f"~{round(left / 60)}m" if left < 5970 else f"~{min(999, round(left / 3600))}h"


def request_why(request: p.Request, now: float) -> str:
    """Return in a few words what keeps a request, or how it ended."""
    if request.ended:
        return request.reason or request.code or request.cancel_cause
    if request.silent_since_at is not None and request.state in RUNNING:
        return f"no token for {span(now - request.silent_since_at)}"
    if request.state == "prefill" and request.progress:
        return f"prefill {request.progress:.0%}"
    if request.state in ("queued", "received") and request.why is not None:
        return request.why.detail or request.why.rule.replace("_", " ")
    return f"retried {request.retries}x" if request.retries else ""


def _brief_why(request: p.Request, state: State, now: float) -> str:
    """Return the same without what stands elsewhere in the row."""
    if request.state in ("queued", "received") and request.why is not None:
        return phrase(request.why, request.model, state.workers.get(request.model), now)
    return request_why(request, now)


def prefill_left_s(request: p.Request, now: float) -> float | None:
    """Return when the first token is to come, once enough was read to tell.

    What was cached took no time, so it tells nothing about the rest.
    """
    share = request.progress or 0.0
    cached = request.cached_tokens / request.prompt_tokens if request.prompt_tokens else 0.0
    if request.granted_at is None or share >= 1 or share - cached < 0.05:
        return None
    return (now - request.granted_at) * (1 - share) / (share - cached)


def _short_why(request: p.Request, now: float) -> str:
    """Return the same in a word."""
    if request.ended:
        return request.code or request.cancel_cause
    if request.silent_since_at is not None and request.state in RUNNING:
        return span(now - request.silent_since_at)
    if request.state == "prefill" and request.progress:
        return f"{request.progress:.0%}"
    if request.state in ("queued", "received") and request.why is not None:
        return word(request.why)
    return f"retry{request.retries}" if request.retries else ""


def request_flag(request: p.Request, now: float) -> str:
    """Return `!` for a row that needs an eye."""
    return "!" if is_faulty_request(request, now) else " "
