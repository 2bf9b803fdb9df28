"""The lines above the tables: link, load, rates, memory."""

from __future__ import annotations

import time
from dataclasses import dataclass

from llmtui.form import bar, count, fit, size, span, spark
from llmtui.rows import Line, Look, Part
from llmtui.state import State


@dataclass(frozen=True)
class Own:
    """What the screen itself costs: a share of a core, and bytes a second to the terminal."""

    cpu: float = 0.0
    bytes_per_s: float = 0.0


def header(
    state: State, width: int, now: float, look: Look, *, can_write: bool, paused: bool, own: Own
) -> list[Line]:
    """Return two lines, or three where there is room for them."""
    lines = [_first(state, width, now, look, can_write=can_write, paused=paused)]
    if width >= 100:
        lines += [_rates(state, look, 16), _box(state, look, own)]
    else:
        lines.append(_short(state, look, width))
    return [_cut(line, width, look) for line in lines]


def link(state: State, now: float, look: Look) -> Part:
    """Return the word that says whether the data are live."""
    dot, ring = ("*", "o") if look.ascii_only else ("●", "○")
    if state.link == "live":
        ms = "" if state.latency_s is None else f" {state.latency_s * 1000:.0f}ms"
        return f"{dot} LIVE{ms}", "ok"
    if state.link == "connecting":
        return f"{ring} CONNECTING", "warn"
    ago = span(now - (state.heard_at or state.lost_at or now))
    retry = max(0, round((state.retry_at or now) - now))
    return f"{ring} STALE {ago}, retry in {retry}s", "bad"


def _first(
    state: State, width: int, now: float, look: Look, *, can_write: bool, paused: bool
) -> Line:
    daemon, totals = state.daemon, state.totals
    roomy = width >= 100
    gap: Part = ("  ", "dim") if look.ascii_only or not roomy else (" │ ", "dim")
    if look.ascii_only and roomy:
        gap = (" | ", "dim")
    host = f"@{daemon.host}" if daemon else ""
    version = f" {daemon.version}" if daemon and roomy else ""
    parts: Line = [(f" llmd{version} {host}", "head"), gap, link(state, now, look), gap]
    parts.append(("RW" if can_write else "RO", "" if can_write else "warn"))
    if daemon and daemon.state != "ok":
        parts += [gap, (daemon.state.upper(), "warn")]
    if daemon and not daemon.admission_open:
        parts += [gap, ("ADMISSION PAUSED", "warn")]
    if paused:
        parts += [gap, ("PAUSED", "accent")]
    oldest = f" ({span(now - totals.oldest_at)})" if totals.oldest_at else ""
    queue = "queue" if roomy else "que"
    parts += [gap, (f"run {totals.running}/{totals.slots}", "")]
    parts += [(f"  {queue} {totals.queued}{oldest}", "warn" if totals.queued else "")]
    if width >= 76:
        limited, errors = totals.limited_per_min, totals.errors_5m
        parts.append((f"  429 {limited}/min", "warn" if limited else "dim"))
        parts.append((f"  err {errors}/5m", "bad" if errors else "dim"))
    if roomy and daemon:
        parts += [gap, (f"up {span(now - daemon.started_at)}", "dim")]
    clock = time.strftime("%H:%M:%S", time.localtime(now))
    used = sum(len(text) for text, _ in parts)
    if used + len(clock) + 2 <= width:
        parts.append((" " * (width - used - len(clock) - 1) + clock, "dim"))
    return parts


def _rates(state: State, look: Look, length: int) -> Line:
    totals = state.totals
    course = spark(state.history.get("", ()), length, ascii_only=look.ascii_only)
    return [
        (" gen ", "dim"),
        (f"{count(totals.tokens_per_s):>5} t/s ", ""),
        (course, "ok" if totals.tokens_per_s else "dim"),
        ("   prefill ", "dim"),
        (f"{count(totals.prefill_tokens_per_s):>5} t/s", ""),
        ("   TTFT p50 ", "dim"),
        (span(totals.first_token_p50_s), ""),
        (" p95 ", "dim"),
        (span(totals.first_token_p95_s), ""),
        ("   wait p95 ", "dim"),
        (span(totals.wait_p95_s), ""),
        (f"   done {totals.ended_5m} in 5m", "dim"),
    ]


def _box(state: State, look: Look, own: Own) -> Line:
    totals = state.totals
    parts: Line = [(" mem ", "dim"), *_memory(state, look, 12)]
    parts += [("   box ", "dim"), (size(totals.memory_total_bytes), "")]
    for number, gpu in enumerate((totals.gpus or ())[:2]):
        parts.append((f"   GPU{number} ", "dim"))
        if gpu.utilization is not None:
            parts.append((f"{gpu.utilization:.0%} ", ""))
        if gpu.memory_used_bytes is not None and gpu.memory_total_bytes:
            parts.append((f"{size(gpu.memory_used_bytes)}/{size(gpu.memory_total_bytes)} ", ""))
        if gpu.temperature_c is not None:
            parts.append((f"{gpu.temperature_c:.0f}C ", ""))
        if gpu.power_w is not None:
            parts.append((f"{gpu.power_w:.0f}W", ""))
    parts.append((f"   tui {own.cpu:.1%}", "dim"))
    return parts


def _short(state: State, look: Look, width: int) -> Line:
    totals = state.totals
    course = spark(state.history.get("", ()), 10 if width < 76 else 16, ascii_only=look.ascii_only)
    parts: Line = [
        (" gen ", "dim"),
        (f"{count(totals.tokens_per_s)} t/s ", ""),
        (course, "ok" if totals.tokens_per_s else "dim"),
        ("  TTFT95 ", "dim"),
        (span(totals.first_token_p95_s), ""),
    ]
    if width >= 76:
        parts += [("  wait95 ", "dim"), (span(totals.wait_p95_s), "")]
    return [*parts, ("  mem ", "dim"), *_memory(state, look, 6 if width >= 76 else 0)]


def _memory(state: State, look: Look, length: int) -> Line:
    totals = state.totals
    held, limit = totals.memory_held_bytes, totals.memory_limit_bytes
    if not limit:
        return [(size(held), "")]
    share = held / limit
    text: Part = (f"{size(held)}/{size(limit)}", "")
    if not length:
        return [text]
    style = "warn" if share > 0.9 else "accent"
    drawn = bar(share, length, ascii_only=look.ascii_only)
    return [text, (" ", ""), (drawn, f"{style}.bar" if not look.ascii_only else style)]


def _cut(line: Line, width: int, look: Look) -> Line:
    """Return the line at exactly `width` cells."""
    made: Line = []
    left = width
    for text, style in line:
        if left <= 0:
            break
        shown = fit(text, min(left, len(text)), ascii_only=look.ascii_only)
        made.append((shown, style))
        left -= len(shown)
    if left > 0:
        made.append((" " * left, ""))
    return made
