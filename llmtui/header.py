"""The lines above the tables: link, load, rates, memory."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from math import ceil

from llmd.admin import protocol as p
from llmtui.form import bar, count, fit, size, span, spark
from llmtui.own import Own
from llmtui.rows import Line, Look, Part
from llmtui.state import State


@dataclass(frozen=True)
class Bar:
    """What the header tells of the screen itself.

    Attributes:
        at: Unix seconds, also while the screen is paused.
        can_write: Actions are allowed here.
        paused: The rest is as it was when the screen was paused.
        own: What the screen costs.
        rate: How often a second it is drawn; 0 = it is not.
    """

    at: float
    can_write: bool = False
    paused: bool = False
    own: Own = field(default_factory=Own)
    rate: float = 0.0


def header(state: State, width: int, now: float, look: Look, tells: Bar) -> list[Line]:
    """Return two lines, or three where there is room for them."""
    lines = [_first(state, width, now, look, tells)]
    if width >= 100:
        lines += [_rates(state, look, width), _box(state, look, tells, width)]
    else:
        lines.append(_short(state, look, width))
    if state.link in ("stale", "absent"):  # old figures look old; what says so does not
        lines = [[(t, s if s in ("head", "bad") else "dim") for t, s in line] for line in lines]
    return [_cut(line, width, look) for line in lines]


def link(state: State, now: float, look: Look) -> Part:
    """Return the word that says whether the data are live."""
    dot, ring = ("*", "o") if look.ascii_only else ("●", "○")
    if state.link == "live":
        ms = "" if state.latency_s is None else f" {state.latency_s * 1000:.0f}ms"
        return f"{dot} LIVE{ms}", "ok"
    if state.link == "connecting":
        return f"{ring} CONNECTING", "warn"
    word = "NOT CONNECTED"
    if state.link == "stale":
        word = f"STALE {span(now - (state.heard_at or state.lost_at or now))}"
    if state.retry_at is None:
        return f"{ring} {word}, retrying", "bad"
    return f"{ring} {word}, retry in {max(1, ceil(state.retry_at - now))}s", "bad"


def _first(state: State, width: int, now: float, look: Look, tells: Bar) -> Line:
    """Return who this is and how it goes, the least important left out where room is short."""
    roomy = width >= 100
    gap = ("  " if not roomy else " | " if look.ascii_only else " │ ", "dim")
    left = _who(state, look, tells, gap, roomy=roomy)
    right: Line = []
    clock = time.strftime("%H:%M:%S", time.localtime(now if tells.paused else tells.at))
    rate = f"{tells.rate:g}Hz" if tells.rate else ""
    up = f"up {span(now - state.daemon.started_at)}" if state.daemon else ""
    room = width - _cells(left) - 1
    load = _load(state, now, roomy=roomy, least=width < 76) if state.daemon else []
    while len(load) > 1 and _cells(load) > room - len(gap[0]):
        load.pop()
    middle: Line = [gap, *load] if load else []
    room -= _cells(middle)
    for text in (clock, rate, up) if roomy else (clock,):
        if text and room >= len(text) + len(gap[0]):
            right = [(text, "dim"), *([gap] if right else []), *right]
            room -= len(text) + len(gap[0])
    used = _cells(left) + _cells(middle) + _cells(right) + 1
    return [*left, *middle, (" " * max(1, width - used), ""), *right]


def _cells(line: Line) -> int:
    return sum(len(text) for text, _ in line)


def _who(state: State, look: Look, tells: Bar, gap: Part, *, roomy: bool) -> Line:
    daemon = state.daemon
    name = f" llmd {daemon.version if roomy else ''}".rstrip() if daemon else " llmd"
    host = f" @{daemon.host}" if daemon else ""
    write = ("RW", "") if tells.can_write else ("RO", "warn")
    parts: Line = [(name + host, "head"), gap, link(state, tells.at, look)]
    if tells.rate and daemon:  # a printed snapshot allows nothing, and costs nothing
        parts += [gap, write]
    if daemon and daemon.state != "ok":
        parts += [gap, (daemon.state.upper(), "warn")]
    if daemon and not daemon.admission_open:
        parts += [gap, ("ADMISSION PAUSED" if roomy else "NO ADMISSION", "warn")]
    if tells.paused:
        parts += [gap, ("PAUSED", "accent")]
    return parts


def _load(state: State, now: float, *, roomy: bool, least: bool) -> Line:
    """Return who runs, waits and was refused, the most important first."""
    totals = state.totals
    oldest = f"{span(now - totals.oldest_at)}" if totals.oldest_at else ""
    oldest = f" ({'oldest ' if roomy else ''}{oldest})" if oldest else ""
    parts: Line = [
        (f"run {totals.running}/{totals.slots}", ""),
        (
            f"  {'queue' if roomy else 'que'} {totals.queued}{oldest}",
            "" if totals.queued else "dim",
        ),
    ]
    limited, errors = totals.limited_per_min, totals.errors_5m
    if not least:
        parts.append((f"  429 {limited}/{'min' if roomy else 'm'}", "warn" if limited else "dim"))
        parts.append((f"  err {errors}{'/5m' if roomy else ''}", "bad" if errors else "dim"))
    return parts


def _rates(state: State, look: Look, width: int) -> Line:
    totals = state.totals
    length = 18 if width >= 118 else 10
    made = spark(state.history.get("", ()), length, ascii_only=look.ascii_only)
    read = spark(state.prefill, length, ascii_only=look.ascii_only)
    window: Line = [("  [5m]", "dim")] if width >= 116 else []
    return [
        (" gen ", "dim"),
        (f"{count(totals.tokens_per_s):>4} t/s ", ""),
        (made, "spark" if totals.tokens_per_s else "dim"),
        ("  prefill ", "dim"),
        (f"{count(totals.prefill_tokens_per_s):>4} t/s ", ""),
        (read, "spark" if totals.prefill_tokens_per_s else "dim"),
        ("  TTFT p50 ", "dim"),
        (span(totals.first_token_p50_s), ""),
        (" p95 ", "dim"),
        (span(totals.first_token_p95_s), ""),
        ("  wait p95 ", "dim"),
        (span(totals.wait_p95_s), ""),
        *window,
    ]


def _box(state: State, look: Look, tells: Bar, width: int) -> Line:
    """Return what is full: the GPUs, or what models hold of main memory where there are none."""
    totals = state.totals
    gap: Part = (" | " if look.ascii_only else " │ ", "dim")
    free = totals.memory_limit_bytes - totals.memory_held_bytes
    room: Line = []
    if totals.memory_limit_bytes and free > 0:
        room = [("  free ", "dim"), (size(free), "")]
    parts: Line = [(" ", "")]
    for number, gpu in enumerate((totals.gpus or ())[: 1 if width < 160 else 2]):
        parts += [*([gap] if number else []), *_gpu(number, gpu, look, 8 if width >= 116 else 4)]
    if not totals.gpus:
        parts += [("models ", "dim"), *_memory(state, look, 14)]
    cost = [gap, *_own(tells.own)] if tells.rate else []
    return [*parts, *room, gap, *_ram(totals), *cost]


def _gpu(number: int, gpu: p.Gpu, look: Look, length: int) -> Line:
    name = gpu.name.removeprefix("NVIDIA ").split(" ")[0]
    parts: Line = [(f"GPU{number} {name}", "dim")]
    if gpu.utilization is not None:
        drawn = bar(gpu.utilization, length, ascii_only=look.ascii_only)
        parts += [("  SM ", "dim"), (f"{gpu.utilization:.0%} ", ""), _bar(drawn, "ok", look)]
    if gpu.memory_used_bytes is not None and gpu.memory_total_bytes:
        share = gpu.memory_used_bytes / gpu.memory_total_bytes
        drawn = bar(share, length, ascii_only=look.ascii_only)
        text = f"{_of(gpu.memory_used_bytes, gpu.memory_total_bytes)} "
        parts += [("  VRAM ", "dim"), (text, ""), _bar(drawn, _full(share), look)]
    if gpu.temperature_c is not None:
        parts.append((f"  {gpu.temperature_c:.0f}C", ""))
    if gpu.power_w is not None:
        parts.append((f" {gpu.power_w:.0f}W", ""))
    return parts


def _ram(totals: p.Totals) -> Line:
    used, total = totals.memory_used_bytes, totals.memory_total_bytes
    style = "warn" if used > 0.95 * total else ""
    return [("RAM ", "dim"), (_of(used, total) if used else size(total), style)]


def _own(own: Own) -> Line:
    cpu = "-" if own.cpu is None else f"{own.cpu:.1%}"
    rate = "" if own.bytes_per_s is None else f" {_kilo(own.bytes_per_s)}B/s"
    return [(f"tui {cpu}{rate}", "dim")]


def _kilo(number: float) -> str:
    return f"{number / 1000:.0f}k" if number >= 9950 else f"{number / 1000:.1f}k"


def _short(state: State, look: Look, width: int) -> Line:
    totals = state.totals
    course = spark(state.history.get("", ()), 10 if width < 76 else 14, ascii_only=look.ascii_only)
    parts: Line = [
        (" gen ", "dim"),
        (f"{count(totals.tokens_per_s)} t/s ", ""),
        (course, "spark" if totals.tokens_per_s else "dim"),
        ("  TTFT95 ", "dim"),
        (span(totals.first_token_p95_s), ""),
    ]
    if width >= 76:
        parts += [("  wait95 ", "dim"), (span(totals.wait_p95_s), "")]
    gpu = totals.gpus[0] if totals.gpus else None
    if gpu is None or width < 76:
        return [*parts, ("  mem ", "dim"), *_memory(state, look, 6 if width >= 76 else 0)]
    if gpu.utilization is not None:
        parts += [("  SM ", "dim"), (f"{gpu.utilization:.0%}", "")]
    if gpu.memory_used_bytes is not None and gpu.memory_total_bytes:
        parts += [("  VRAM ", "dim"), (_of(gpu.memory_used_bytes, gpu.memory_total_bytes), "")]
    if gpu.temperature_c is not None and width >= 86:
        parts.append((f"  {gpu.temperature_c:.0f}C", ""))
    return parts


def _memory(state: State, look: Look, length: int) -> Line:
    totals = state.totals
    held, limit = totals.memory_held_bytes, totals.memory_limit_bytes
    if not limit:
        return [(size(held), "")]
    share = held / limit
    text: Part = (_of(held, limit), "")
    if not length:
        return [text]
    drawn = bar(share, length, ascii_only=look.ascii_only)
    return [text, (" ", ""), _bar(drawn, _full(share), look)]


def _of(part: int, whole: int) -> str:
    """Return two sizes, the unit only once where it is the same: 86.0/141G."""
    first, second = size(part), size(whole)
    if second.endswith("G") and first.endswith("M") and part > 0.9 * (1 << 30):
        first = f"{part / (1 << 30):.1f}G"
    return f"{first[:-1] if first[-1:] == second[-1:] else first}/{second}"


def _bar(drawn: str, style: str, look: Look) -> Part:
    return drawn, style if look.ascii_only else f"{style}.bar"


def _full(share: float) -> str:
    return "warn" if share > 0.9 else "accent"


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
