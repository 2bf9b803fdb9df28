"""Answers as lines for a person."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from llmd.admin import protocol as p
from llmd.admin.units import count, size, span
from llmd.ctl.results import acted, admission, cancelled, plan, stopped
from llmd.ctl.story import outcome, story
from llmd.ctl.tables import Style, clock, flow, held, shorten, table

_PARTS = {"decode": 0, "prefill": 0, "queued": 1, "received": 2}
_PAUSED = "admission paused (llmctl resume)"


def status(view: p.Status, style: Style, now: float) -> list[str]:
    """Return the daemon in one page."""
    daemon, totals = view.daemon, view.totals
    oldest = f" (oldest {span(now - totals.oldest_at)})" if totals.oldest_at else ""
    lines = [
        *flow(
            [
                f"llmd {daemon.version} @{daemon.host}",
                style.paint(daemon.state, daemon.state),
                f"up {span(now - daemon.started_at)}",
                f"generation {daemon.generation}",
                daemon.url,
                "" if daemon.admission_open else _PAUSED,
            ],
            style,
        ),
        *flow(
            [
                f"run {totals.running}",
                f"slots {totals.slots_busy}/{totals.slots}",
                f"queue {totals.queued}/{totals.max_queued or '∞'}{oldest}",
                f"gen {totals.tokens_per_s:.0f} t/s",
                f"TTFT p95 {span(totals.first_token_p95_s)}",
                f"wait p95 {span(totals.wait_p95_s)}",
                f"429 {totals.limited_per_min}/min",
                f"err {totals.errors_5m}/5m",
            ],
            style,
        ),
        _memory(totals),
    ]
    if not view.workers:
        return [*lines, "", "no model is loaded; llmctl models lists them"]
    return [*lines, "", *workers(view.workers, style, now)]


def _memory(totals: p.Totals) -> str:
    now = f"{size(totals.memory_held_bytes)} held" if totals.memory_held_bytes else "nothing held"
    limit = f", limit {size(totals.memory_limit_bytes)}" if totals.memory_limit_bytes else ""
    return f"memory {now}{limit}, box {size(totals.memory_total_bytes)}"


def workers(views: Sequence[p.Worker], style: Style, now: float) -> list[str]:
    """Return a table of workers."""
    rows = [
        [
            worker.state,
            worker.model,
            held(worker.memory_bytes),
            f"{worker.slots_busy}/{worker.slots}" if worker.slots else "-",
            f"{worker.tokens_per_s:.0f}" if worker.slots else "-",
            span(worker.first_token_p95_s),
            str(worker.waiting),
            span(now - worker.since_at if worker.since_at else None),
            str(worker.crashes),
            worker.note,
        ]
        for worker in views
    ]
    columns = ("STATE", "MODEL", "MEM", "SLOTS", "T/S", "TTFT95", "QUEUE", "FOR", "CRASH", "NOTE")
    return table(
        columns,
        rows,
        style,
        right="MEM SLOTS T/S TTFT95 QUEUE FOR CRASH",
        spare="TTFT95 CRASH FOR T/S MEM SLOTS NOTE",
    )


def models(view: p.Models, style: Style) -> list[str]:
    """Return a table of the catalog."""
    rows = [
        [
            model.state,
            model.name,
            count(model.context) if model.context else "-",
            _parameters(model.parameters),
            model.quantisation or "-",
            held(model.size_bytes),
            held(model.estimate_bytes),
            model.fault or ", ".join(model.capabilities),
        ]
        for model in view.models
    ]
    columns = ("STATE", "MODEL", "CONTEXT", "PARAMS", "QUANT", "FILE", "MEM", "CAN")
    return table(
        columns,
        rows,
        style,
        right="CONTEXT PARAMS FILE MEM",
        spare="FILE PARAMS CONTEXT QUANT MEM CAN",
    )


def choices(models: Sequence[p.Model], style: Style) -> list[str]:
    """Return a numbered list of models to choose from."""
    rows = [
        [str(number), model.state, model.name, held(model.estimate_bytes)]
        for number, model in enumerate(models, 1)
    ]
    return table(("#", "STATE", "MODEL", "MEM"), rows, style, right="# MEM", spare="MEM STATE")


def _parameters(number: int | None) -> str:
    if not number:
        return "-"
    return f"{number / 1e9:.1f}B" if number >= 1e9 else f"{number / 1e6:.1f}M"


def requests(view: p.Requests, style: Style, now: float) -> list[str]:
    """Return a table of requests."""
    if not view.requests:
        return ["no requests"]
    rows = [_request(request, now) for request in sorted(view.requests, key=_in_line)]
    columns = (
        "ID", "STATE", "PRI", "MODEL", "KEY", "WAIT", "PROMPT", "GEN", "T/S", "AGE", "ETA", "WHY",
    )  # fmt: skip
    lines = table(
        columns,
        rows,
        style,
        right="WAIT PROMPT GEN T/S AGE ETA",
        spare="PROMPT T/S AGE PRI ETA KEY GEN WAIT WHY",
    )
    if view.total > len(view.requests):
        lines.append(f"and {view.total - len(view.requests)} more (--limit)")
    return lines


def _in_line(request: p.Request) -> tuple[int, bool, int]:
    """Return a request's place in a list: what runs, what waits in its order, what has ended."""
    part = _PARTS.get(request.state, len(_PARTS))
    waits = request.state == "queued"
    return part, waits and not request.position, request.position if waits else 0


def _request(request: p.Request, now: float) -> list[str]:
    queued = request.state == "queued" and request.queued_at is not None
    wait_s = request.wait_s + (now - (request.queued_at or now) if queued else 0.0)
    most = "" if request.max_tokens is None else f"/{request.max_tokens}"
    return [
        request.id,
        request.state,
        request.priority,
        request.model or "-",
        request.key or "-",
        span(wait_s),
        count(request.prompt_tokens),
        f"{request.completion_tokens}{most}",
        "-" if request.tokens_per_s is None else f"{request.tokens_per_s:.1f}",
        span((request.ended_at or now) - request.received_at),
        span(None if request.eta_at is None else request.eta_at - now),
        _why(request, now),
    ]


def _why(request: p.Request, now: float) -> str:
    if request.why is not None:
        return (
            f"#{request.position} {request.why.detail}"
            if request.position
            else (request.why.detail)
        )
    if request.ended:
        return outcome(request)
    if request.state == "prefill" and request.progress is not None:
        return f"{request.progress:.0%} of the prompt read"
    if request.silent_since_at is not None:
        return f"no token for {span(now - request.silent_since_at)}"
    return ""


def queue(view: p.Queue, style: Style, now: float) -> list[str]:
    """Return what waits, by model and by key."""
    lines = flow(
        [
            f"queued {view.queued}/{view.max_queued or '∞'}",
            f"tokens {count(view.queued_tokens)}/{_limit(view.max_queued_tokens)}",
            *(f"{name} {number}" for name, number in view.by_class.items()),
            "" if view.admission_open else _PAUSED,
        ],
        style,
    )
    if view.models:
        rows = [
            [
                model.model,
                str(model.running),
                *(str(model.queued.get(name, 0)) for name in ("high", "normal", "low")),
                count(model.queued_tokens),
                span(now - model.oldest_at if model.oldest_at else None),
                span(model.service_s),
                span(model.load_s or None),
            ]
            for model in view.models
        ]
        columns = (
            "MODEL", "RUN", "HIGH", "NORMAL", "LOW", "TOKENS", "OLDEST", "SERVICE", "LOAD",
        )  # fmt: skip
        right, spare = " ".join(columns[1:]), "SERVICE LOAD TOKENS OLDEST RUN LOW HIGH"
        lines += ["", *table(columns, rows, style, right=right, spare=spare)]
    if view.keys:
        keys = [[k.key, str(k.running), str(k.queued), f"{k.counter:.0f}"] for k in view.keys]
        headings = ("KEY", "RUN", "QUEUED", "COUNTER")
        lines += ["", *table(headings, keys, style, right="RUN QUEUED COUNTER")]
    return lines


def _limit(number: int) -> str:
    return count(number) if number else "∞"


def version(view: p.Version) -> list[str]:
    """Return the daemon's versions."""
    return [
        f"llmd {view.version} (protocol {view.protocol}, Python {view.python})",
        f"engine {view.engine}",
    ]


def log_line(line: p.LogLine) -> str:
    """Return a line of a worker's log."""
    return f"{clock(line.at, fraction=True)} {line.stream:6} {line.text}"


def event(message: p.Snapshot | p.Event | p.Lagged, style: Style) -> list[str]:
    """Return what has happened, a line for each."""
    if isinstance(message, p.Lagged):
        return [f"-- {message.missed} events missed --"]
    at = clock(message.at)
    lines = [
        f"{at} worker  {style.paint(f'{w.state:9}', w.state)} {w.model}  "
        f"{w.slots_busy}/{w.slots} busy  {w.waiting} queued  {w.note}".rstrip()
        for w in message.workers or ()
    ]
    lines += [
        f"{at} request {style.paint(f'{r.state:9}', r.state)} {r.id}  {r.model}  {r.key}  "
        f"{r.completion_tokens} tokens  {_why(r, message.at)}".rstrip()
        for r in message.requests or ()
    ]
    lines += [f"{clock(n.at)} log     {n.level:9} {n.text}" for n in message.log or ()]
    if message.queue is not None and isinstance(message, p.Event):
        running = sum(key.running for key in message.queue.keys)
        lines.append(f"{at} queue   {message.queue.queued} waiting, {running} running")
    return [shorten(line, style) for line in lines]


def text(answer: object, style: Style, now: float) -> list[str]:
    """Return any answer as lines for a person.

    Raises:
        KeyError: Nobody knows how to show it.
    """
    return _FORMS[type(answer)](answer, style, now)


_FORMS: Mapping[type, Callable[[Any, Style, float], list[str]]] = {
    p.Status: status,
    p.Models: lambda view, style, _now: models(view, style),
    p.Requests: requests,
    p.Queue: queue,
    p.Story: story,
    p.Plan: lambda view, style, _now: plan(view, style),
    p.Acted: lambda view, _style, _now: acted(view),
    p.Cancelled: lambda view, _style, _now: cancelled(view),
    p.Stopped: lambda view, _style, _now: stopped(view),
    p.Admission: lambda view, _style, _now: admission(view),
    p.Version: lambda view, _style, _now: version(view),
    p.Log: lambda view, _style, _now: [log_line(line) for line in view.lines],
    p.LogLine: lambda view, _style, _now: [log_line(view)],
    p.Snapshot: lambda message, style, _now: event(message, style),
    p.Event: lambda message, style, _now: event(message, style),
    p.Lagged: lambda message, style, _now: event(message, style),
}
