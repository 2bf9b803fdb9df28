"""What the daemon answered to a command, as lines for the screen."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import msgspec

from llmd.admin import protocol as p
from llmd.admin.framing import clean
from llmtui.columns import heading, request_columns, worker_columns
from llmtui.form import count, fit, planned, size, span
from llmtui.rows import (
    Line,
    Look,
    request_row,
    worker_row,
)
from llmtui.screens.flow import told
from llmtui.state import State


def sentence(answer: object) -> str:
    """Return an answer in one line; "" for one that needs more."""
    if isinstance(answer, p.Acted):
        hits = f": {answer.running} running, {answer.queued} queued"
        return f"{answer.model} is {answer.state}{hits if answer.running or answer.queued else ''}"
    if isinstance(answer, p.Cancelled):
        parts = [
            f"{len(names)} {word}"
            for names, word in (
                (answer.pending, "still ending"),
                (answer.ended, "had ended"),
                (answer.unknown, "unknown"),
            )
            if names
        ]
        return ", ".join([f"cancelled {len(answer.cancelled)}", *parts])
    if isinstance(answer, p.Stopped):
        names = ", ".join(answer.unload) or "nothing"
        return f"unloads {names}; {answer.refused} turned away, {answer.running} may finish"
    if isinstance(answer, p.Admission):
        word = "open" if answer.admission_open else "closed"
        return f"admission is {word}; {answer.queued} queued, {answer.running} running"
    if isinstance(answer, p.Plan) and not answer.dry_run:
        return _done(answer)
    return ""


def _done(plan: p.Plan) -> str:
    if not plan.fits:
        return f"{plan.model} does not fit: {plan.reason}"
    if plan.loaded and not plan.evict:
        return f"{plan.model} is loaded already ({plan.state})"
    names = ", ".join(eviction.model for eviction in plan.evict)
    return f"loading {plan.model}" + (f" in place of {names}" if names else "")


def refused(answer: object) -> bool:
    """Return whether an answer says that it was not done."""
    if isinstance(answer, p.Plan):
        return not answer.fits
    return isinstance(answer, p.Cancelled) and bool(answer.unknown or answer.pending)


def lines(answer: object, width: int, now: float, look: Look) -> list[Line]:
    """Return an answer as lines of at most `width` cells."""
    make = _FORMS.get(type(answer))
    return make(answer, width, now, look) if make else as_json(answer, width)


def as_json(answer: object, width: int) -> list[Line]:
    """Return an answer as `--json` shows it, an object a line, broken to the width."""
    rows: Sequence[object] = (answer,)
    for name in ("models", "requests", "lines"):
        if isinstance(answer, p.Models | p.Requests | p.Log) and hasattr(answer, name):
            rows = getattr(answer, name)
    made: list[Line] = []
    for row in rows:
        text = clean(msgspec.json.encode(row).decode())
        made += [[(text[at : at + width], "")] for at in range(0, len(text), width)]
    return made or [[("nothing", "dim")]]


def table(columns: str, rows: Sequence[Sequence[str]], width: int, right: str = "") -> list[Line]:
    """Return rows under titles, the last column cut to what is left of `width`.

    Args:
        columns: The titles, with spaces between.
        rows: As many texts in each.
        width: Cells.
        right: The titles of columns of numbers.
    """
    titles = columns.split()
    cells = [[clean(text) for text in row] for row in rows]
    wide = [max(len(row[i]) for row in [titles, *cells]) for i in range(len(titles))]
    left = width - sum(wide[:-1]) - 2 * (len(titles) - 1)
    wide[-1] = max(4, min(wide[-1], left))
    numbers = right.split()
    made: list[Line] = []
    for row in [titles, *cells]:
        parts = [
            fit(text, cell, right=title in numbers)
            for text, cell, title in zip(row, wide, titles, strict=True)
        ]
        made.append([("  ".join(parts)[:width], "" if made else "dim")])
    return made


def _models(answer: p.Models, width: int, _now: float, _look: Look) -> list[Line]:
    rows = [
        [
            model.state,
            model.name,
            count(model.context) if model.context else "-",
            model.quantisation or "-",
            size(model.size_bytes),
            size(model.estimate_bytes),
            model.fault or ", ".join(model.capabilities),
        ]
        for model in answer.models
    ]
    return table("STATE MODEL CONTEXT QUANT FILE MEM CAN", rows, width, "CONTEXT FILE MEM")


def _requests(answer: p.Requests, width: int, now: float, look: Look) -> list[Line]:
    columns = request_columns(width, look)
    made: list[Line] = [[(heading(columns), "dim")]]
    made += [request_row(r, State(), columns, now, look) for r in answer.requests]
    if answer.total > len(answer.requests):
        made.append([(f"and {answer.total - len(answer.requests)} more (--limit)", "dim")])
    return made if answer.requests else [[("no requests", "dim")]]


def _status(answer: p.Status, width: int, now: float, look: Look) -> list[Line]:
    daemon, totals = answer.daemon, answer.totals
    made = told(
        f"llmd {daemon.version} @{daemon.host} {daemon.state}, up {span(now - daemon.started_at)},"
        f" generation {daemon.generation}, {daemon.url}",
        width,
    )
    made += told(
        f"run {totals.running}  slots {totals.slots_busy}/{totals.slots}  queue {totals.queued}"
        f"  gen {totals.tokens_per_s:.0f} t/s  TTFT p95 {span(totals.first_token_p95_s)}"
        f"  wait p95 {span(totals.wait_p95_s)}  429 {totals.limited_per_min}/min"
        f"  err {totals.errors_5m}/5m",
        width,
    )
    columns = worker_columns(width, look)
    made += [[], [(heading(columns), "dim")]]
    return made + [worker_row(w, State(), columns, now, look) for w in answer.workers]


def _queue(answer: p.Queue, width: int, now: float, _look: Look) -> list[Line]:
    limit = answer.max_queued or "no limit"
    made = told(
        f"queued {answer.queued} of {limit}, {count(answer.queued_tokens)} tokens"
        + "".join(f"  {name} {number}" for name, number in answer.by_class.items())
        + ("" if answer.admission_open else "  admission is closed"),
        width,
    )
    models = [
        [
            str(model.running),
            str(sum(model.queued.values())),
            count(model.queued_tokens),
            span(now - model.oldest_at if model.oldest_at else None),
            span(model.service_s),
            span(model.load_s),
            model.model,
        ]
        for model in answer.models
    ]
    if models:
        titles = "RUN QUEUED TOKENS OLDEST SERVICE LOAD"
        made += [[], *table(f"{titles} MODEL", models, width, titles)]
    keys = [[str(k.running), str(k.queued), f"{k.counter:.0f}", k.key] for k in answer.keys]
    if keys:
        made += [[], *table("RUN QUEUED COUNTER KEY", keys, width, "RUN QUEUED COUNTER")]
    return made


def _plan(answer: p.Plan, width: int, _now: float, _look: Look) -> list[Line]:
    made = told(f"{_done(answer)}   (plan, nothing is done)", width)
    for eviction in answer.evict:
        made += told(
            f"evicts {eviction.model}: frees {planned(eviction.memory_bytes, eviction.now_bytes)},"
            f" {eviction.running} running, {eviction.queued} queued",
            width,
        )
    if answer.load_s:
        made += told(f"load about {span(answer.load_s)}, {answer.queued} wait for it", width)
    return [*made, *told(f"= {answer.command}", width)] if answer.command else made


def _version(answer: p.Version, width: int, _now: float, _look: Look) -> list[Line]:
    return told(
        f"llmd {answer.version}, protocol {answer.protocol}, Python {answer.python},"
        f" engine {answer.engine}",
        width,
    )


Form = Callable[[Any, int, float, Look], list[Line]]
_FORMS: Mapping[type, Form] = {
    p.Models: _models,
    p.Requests: _requests,
    p.Status: _status,
    p.Queue: _queue,
    p.Plan: _plan,
    p.Version: _version,
}
