"""A request's way as lines: each step with its time, in the scheduler's recorded words.

The steps are those of `llmctl why`; nothing is worked out here that the daemon did not record.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

from llmd.admin import protocol as p
from llmtui.form import bar, count, size, span
from llmtui.rows import Line, Look, is_measured, prefill_left_s, short_id
from llmtui.screens.flow import cells, flow, labelled, told
from llmtui.state import RUNNING, client_of

_CLASS_STYLE = {"high": "accent", "low": "dim"}
_END_STYLE = {"done": "ok", "cancelled": "warn", "abandoned": "warn", "refused": "warn"}
_BAR = 12
_ROOMY = 66  # cells from which on there is room between the columns
PASSED, NOW, AHEAD = "●", "◐", "○"
_SOON_S = 0.05  # a first wait this soon after the queue was entered is the same step


@dataclass(frozen=True)
class Step:
    """A step of a request's way.

    Attributes:
        at: When it began, in Unix seconds.
        word: What it is called.
        chunks: What is said of it.
        lasts: It has a length, up to the next step.
        mark: `PASSED`, `NOW` or `AHEAD`.
        style: Of its word.
    """

    at: float
    word: str
    chunks: tuple[Line, ...] = ()
    lasts: bool = False
    mark: str = PASSED
    style: str = ""


def clock(at: float) -> str:
    """Return a time of day with tenths of a second."""
    return time.strftime("%H:%M:%S", time.localtime(at)) + f".{int(at * 10) % 10}"


def short(seconds: float) -> str:
    """Return a span of time, in milliseconds below one second."""
    return f"{max(0.0, seconds) * 1000:.0f}ms" if seconds < 0.9995 else span(seconds)


def head_lines(request: p.Request, width: int, *, body: bool) -> list[Line]:
    """Return who asks for what, and where it runs.

    Args:
        request: It.
        width: Cells of a line.
        body: The body was asked for.
    """
    limit = "max not named" if request.max_tokens is None else f"max {count(request.max_tokens)}"
    many = f"{request.sequences} sequences" if request.sequences > 1 else ""
    user = request.user if request.user not in ("", request.key) else ""
    lines = labelled(
        "client",
        [
            [(client_of(request), "head")],
            [(f"key {request.fingerprint}" if request.fingerprint else "", "dim")],
            [(f"user {user}" if user else "", "")],
            [(f"from {request.client}" if request.client else "", "dim")],
            [("class ", "dim"), (request.priority, _CLASS_STYLE.get(request.priority, ""))],
        ],
        width,
    )
    lines += labelled(
        "model",
        [
            [(request.model or "not resolved", "")],
            [(f"worker pid {request.worker_pid}" if request.worker_pid else "", "dim")],
        ],
        width,
    )
    lines += labelled(
        "asks",
        [
            [(f"POST {request.path}" if request.path else "-", "")],  # all inference is posted
            [("stream" if request.stream else "plain", "dim")],
            [(limit, "")],
            [("" if request.temperature is None else f"temp {request.temperature:g}", "")],
            [(many, "")],
            [(f"body {size(request.request_bytes)}", "dim"), ("" if body else ", hidden", "dim")],
        ],
        width,
    )
    if body:
        why = "llmd keeps no bodies: the text passes through to the worker and is forgotten"
        lines += told(why, width, style="warn")
    return lines


def steps_of(story: p.Story, now: float, look: Look) -> list[Step]:
    """Return a request's way, in order, up to what is expected of it."""
    request = story.request
    steps = [Step(request.received_at, "received")]
    steps += [_recorded(step) for step in story.steps]
    if request.queued_at is not None and not any(
        abs(step.at - request.queued_at) < _SOON_S for step in story.steps
    ):
        steps.append(Step(request.queued_at, "queued", lasts=True, style="warn"))
    granted = any(step.rule == "granted" for step in story.steps)
    if request.granted_at is not None:
        if not granted:
            steps.append(Step(request.granted_at, "admitted"))
        steps.append(_prefill(request, now, look))
    if request.first_token_at is not None:
        steps.append(_decode(request, now, look))
    steps.sort(key=lambda step: step.at)  # stable: what began together stays in its order
    if request.ended_at is not None:
        return [*steps, _end(request, request.ended_at)]
    last = steps[-1]
    steps[-1] = Step(last.at, last.word, last.chunks, last.lasts, NOW, last.style)
    if request.eta_at is not None and is_measured(request, now):
        steps.append(_expected(request, request.eta_at, now))
    return steps


def _recorded(step: p.Why) -> Step:
    if step.rule == "granted":
        return Step(step.at, "admitted", ([(step.detail, "dim")],))
    place: Line = [(f"#{step.position}" if step.position else "", "head")]
    rule: Line = [(f"[{step.rule}]", "dim")]
    names = [short_id(name) if name.startswith("r-") else name for name in step.blockers]
    by: Line = [(f"← {' '.join(names)}" if names else "", "dim")]
    return Step(step.at, "queued", (place, [(step.detail, "")], rule, by), True, style="warn")


def _prefill(request: p.Request, now: float, look: Look) -> Step:
    assert request.granted_at is not None
    total = ("" if request.prompt_exact else "~") + count(request.prompt_tokens)
    chunks: list[Line] = []
    running = request.state == "prefill"
    if running and request.progress:
        done = request.progress * request.prompt_tokens
        chunks.append([(f"{count(done)}/{total} tok", "")])
        chunks.append(_bar(request.progress, "accent", look))
        left_s = prefill_left_s(request, now)
        if left_s is not None and now > request.granted_at:
            rate = (done - request.cached_tokens) / (now - request.granted_at)
            chunks.append([(f"{count(rate)} t/s", "")])
            chunks.append([(f"first token in {span(left_s)}", "dim")])
    else:
        chunks.append([(f"{total} tok", "")])
    if request.cached_tokens:
        chunks.append([(f"{count(request.cached_tokens)} cached", "dim")])
    return Step(request.granted_at, "prefill", tuple(chunks), True, style="accent")


def _decode(request: p.Request, now: float, look: Look) -> Step:
    assert request.first_token_at is not None
    limit = "" if request.max_tokens is None else f"/{count(request.max_tokens)}"
    chunks: list[Line] = [[(f"{count(request.completion_tokens)}{limit} tok", "")]]
    passed = (request.ended_at or now) - request.first_token_at
    rate = request.tokens_per_s
    if request.ended and passed > 0 and request.completion_tokens > 1:
        rate = request.completion_tokens / passed
    if request.state == "decode" and request.progress:
        chunks.append(_bar(request.progress, "ok", look))
    if rate is not None and is_measured(request, now):
        chunks.append([(f"{rate:.1f} t/s", "")])
    if request.silent_since_at is not None and request.state in RUNNING:
        silent = f"no token for {span(now - request.silent_since_at)}"
        chunks.append([(silent, "bad")])
    return Step(request.first_token_at, "decode", tuple(chunks), True, style="ok")


def _bar(share: float, style: str, look: Look) -> Line:
    return [(bar(share, _BAR, ascii_only=look.ascii_only), f"{style}.bar"), (f" {share:.0%}", "")]


def _expected(request: p.Request, at: float, now: float) -> Step:
    waits = request.state in ("queued", "received")
    word = "admitted" if waits else "done"
    most = "" if waits else " at the latest"
    left_s = at - now
    text = f"expected in {span(left_s)}{most}" if left_s > 0 else "expected any moment"
    return Step(max(at, now), word, ([(text, "dim")],), mark=AHEAD, style="dim")


def _end(request: p.Request, at: float) -> Step:
    by = f"by {request.cancel_cause.replace('_', ' ')}" if request.cancel_cause else ""
    chunks: tuple[Line, ...] = (
        [(by, "")],
        [(str(request.status) if request.status else "", "dim")],
        [(request.code, "dim")],
        [(request.reason, "")],
    )
    style = _END_STYLE.get(request.state, "bad")
    return Step(at, request.state.replace("_", " "), chunks, style=style)


def way_lines(steps: list[Step], now: float, width: int) -> list[Line]:
    """Return the steps, one below the other, each with its time and how long it took."""
    lines: list[Line] = []
    start = steps[0].at
    gap, word = ("  ", 10) if width >= _ROOMY else (" ", 9)
    for number, step in enumerate(steps):
        later = [s.at for s in steps[number + 1 :] if s.mark != AHEAD]
        until = later[0] if later else now
        lasted = short(until - step.at) if step.lasts else ""
        at = clock(step.at) if not number else f"+{short(step.at - start)}"
        mark = {NOW: "accent", AHEAD: "dim"}.get(step.mark, "ok" if number else "dim")
        head: Line = [
            (f"{at:>10}{gap}", "dim"),
            (f"{step.mark} ", mark),
            (f"{step.word:<{word}}", step.style),
            (f"{lasted:>6}{gap}", ""),
        ]
        lines += flow(step.chunks, width, indent=cells(head), gap=2, head=head)
    return lines


def sum_lines(story: p.Story, now: float, width: int) -> list[Line]:
    """Return a request's figures in a line."""
    request = story.request
    waits = request.queued_at is not None and request.granted_at is None and not request.ended
    wait_s = request.wait_s + (now - (request.queued_at or now) if waits else 0.0)
    first = None
    if request.first_token_at is not None:
        first = request.first_token_at - request.received_at
    figures = (
        ("wait", short(wait_s)),
        ("TTFT", "-" if first is None else short(first)),
        ("bytes out", size(request.response_bytes)),
        ("retries", str(request.retries)),
        ("429s", str(story.limited)),
        ("tokens", f"{count(request.prompt_tokens)}+{count(request.completion_tokens)}"),
    )
    chunks: list[Line] = [[(f"{name} ", "dim"), (value, "")] for name, value in figures]
    return labelled("so far" if not request.ended else "in all", chunks, width)
