"""A request's whole story, and a worker's particulars."""

from __future__ import annotations

import time

from llmd.admin import protocol as p
from llmtui.form import count, size, span
from llmtui.rows import request_why
from llmtui.state import client_of


def story_lines(story: p.Story, now: float) -> list[str]:
    """Return what is known of a request, for a person."""
    request = story.request
    limit = "no limit" if request.max_tokens is None else count(request.max_tokens)
    lines = [
        f"client  {client_of(request)}  {request.client}   class {request.priority}"
        f"   model {request.model or '-'}",
        f"asks    {request.path}{'  stream' if request.stream else ''}   max tokens {limit}"
        f"   body {size(request.request_bytes)}",
        f"tokens  prompt {count(request.prompt_tokens)}"
        f" ({count(request.cached_tokens)} cached)   made {count(request.completion_tokens)}"
        f"   rate {request.tokens_per_s or 0:.1f}/s   out {size(request.response_bytes)}",
        f"runs    pid {request.worker_pid or '-'}"
        f"   retries {request.retries}   waited {span(request.wait_s)}",
    ]
    word = request_why(request, now)
    if word:
        lines.append(f"now     {word}")
    lines += ["", *_way(request, story.steps)]
    return lines


def _way(request: p.Request, steps: tuple[p.Why, ...]) -> list[str]:
    moments = [(request.received_at, "received", "")]
    moments += [(step.at, step.rule.replace("_", " "), _step(step)) for step in steps]
    for at, word in (
        (request.granted_at, "admitted"),
        (request.first_token_at, "first token"),
        (request.ended_at, request.state),
    ):
        if at is not None:
            moments.append((at, word, request.reason if word == request.state else ""))
    moments.sort(key=lambda moment: moment[0])
    return [
        f"{_clock(at)}  +{span(at - request.received_at):<6} {word:<14} {text}".rstrip()
        for at, word, text in moments
    ]


def _step(step: p.Why) -> str:
    place = f"#{step.position} " if step.position else ""
    return f"{place}{step.detail or ', '.join(step.blockers)}"


def _clock(at: float) -> str:
    return time.strftime("%H:%M:%S", time.localtime(at)) + f".{int(at * 10) % 10}"


def worker_lines(worker: p.Worker, now: float) -> list[str]:
    """Return what is known of a worker, for a person."""
    since = span(now - worker.since_at) if worker.since_at else "-"
    queued = ", ".join(f"{number} {name}" for name, number in worker.queued.items() if number)
    lines = [
        f"state   {worker.state} for {since}   pid {worker.pid or '-'}"
        f"{'   pinned' if worker.pinned else ''}",
        f"slots   {worker.slots_busy}/{worker.slots} busy   context {count(worker.context_tokens)}"
        f" tokens each   running {worker.running}",
        f"queue   {queued or 'nobody'}   {count(worker.queued_tokens)} tokens",
        f"memory  {size(worker.memory_bytes)} held   {size(worker.estimate_bytes)} expected",
        f"speed   {worker.tokens_per_s:.0f} t/s   TTFT p95 {span(worker.first_token_p95_s)}"
        f"   loads in {span(worker.load_s)}",
        f"life    started {worker.starts} times, crashed {worker.crashes} times",
    ]
    for title, text in (
        ("why", worker.reason),
        ("failed", worker.last_failure),
        ("goes", f"{worker.leaving} for {worker.leaving_for}" if worker.leaving else ""),
        ("note", worker.note),
    ):
        if text:
            lines.append(f"{title:<7} {text}")
    return lines
