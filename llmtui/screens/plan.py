"""A switch as lines: what goes, what comes, whether it fits, and what each way of it costs.

No loop and no terminal; `switch.Switch` is the window around it.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from enum import Enum

from llmd.admin import protocol as p
from llmd.admin.framing import clean
from llmtui.form import bar, planned, size
from llmtui.rows import Line, Look
from llmtui.screens.flow import labelled, told
from llmtui.screens.story import short

DRAIN = (15.0, 60.0, 300.0, 0.0)  # 0 = all may finish
_BAR = 20


class Way(str, Enum):
    """How a switch treats what runs on a model that goes."""

    DRAIN = "drain"
    CANCEL = "cancel"
    ADD = "add"


@dataclass(frozen=True)
class Chosen:
    """Which way was chosen.

    Attributes:
        way: It.
        drain_s: What still runs after this long is cancelled; 0 = all may finish.
    """

    way: Way = Way.DRAIN
    drain_s: float = 0.0


def first_choice(plan: p.Plan, drain_s: float | None = None, *, force: bool = False) -> Chosen:
    """Return what a plan starts with.

    Args:
        plan: It.
        drain_s: The drain that was asked for; None = one long enough for nearly all that run.
        force: Cancelling what runs was asked for.
    """
    if plan.add:
        return Chosen(Way.ADD)
    if not running(plan):
        return Chosen()
    if force:
        return Chosen(Way.CANCEL)
    return Chosen(Way.DRAIN, suggested_drain_s(plan) if drain_s is None else drain_s)


def suggested_drain_s(plan: p.Plan) -> float:
    """Return how long a drain may take: as configured, else what measured requests need."""
    if plan.drain_s:
        return plan.drain_s
    needed = [e.service_p95_s or 2 * (e.service_s or 0.0) for e in plan.evict if e.running]
    longest = max(needed, default=0.0)
    return float(5 * -(-longest // 5)) if longest else DRAIN[0]


def next_drain(plan: p.Plan, chosen: Chosen) -> Chosen:
    """Return the next longer drain, after the longest the shortest again."""
    if chosen.way is not Way.DRAIN:
        return first_choice(replace_add(plan))
    steps = sorted({suggested_drain_s(plan), *(s for s in DRAIN if s)})
    longer = [s for s in steps if s > chosen.drain_s] if chosen.drain_s else steps
    return replace(chosen, drain_s=longer[0] if longer else 0.0)


def replace_add(plan: p.Plan) -> p.Plan:
    """Return a plan as one that evicts."""
    return p.Plan(**{name: getattr(plan, name) for name in plan.__struct_fields__} | {"add": False})


def running(plan: p.Plan) -> int:
    """Return how many requests run on what goes."""
    return sum(eviction.running for eviction in plan.evict)


def command_of(plan: p.Plan, chosen: Chosen) -> str:
    """Return the `llmctl` line that does it this way."""
    words = ["llmctl", "switch", clean(plan.model)]
    if chosen.way is Way.ADD:
        words.append("--add")
    else:
        for eviction in plan.evict:
            words += ["--from", clean(eviction.model)]
        if chosen.way is Way.CANCEL:
            words.append("--force")
        elif running(plan):
            words += ["--drain", f"{chosen.drain_s:g}"]
    return shlex.join([*words, "--if-gen", str(plan.generation)])


KEYS: Mapping[Way, str] = {Way.DRAIN: "d", Way.CANCEL: "c", Way.ADD: "a"}


def plan_lines(
    plan: p.Plan, chosen: Chosen, width: int, look: Look, keys: Mapping[Way, str] = KEYS
) -> list[Line]:
    """Return the plan, carried out the way that was chosen.

    Args:
        plan: It.
        chosen: The way.
        width: Cells of a line.
        look: How things are drawn.
        keys: Which key chooses a way.
    """
    lines = _memory(plan, chosen, width, look, keys[Way.ADD])
    if plan.loaded:
        state = f"{plan.model} is {plan.state} already: nothing need be loaded"
        return lines + told(state, width, style="accent")
    if not plan.fits:
        return lines + told(plan.reason, width, style="bad", label="why")
    for number, going in enumerate(plan.going):
        lines += _leaves(going, plan.model, width, "" if number else "waits")
    if plan.evict and chosen.way is not Way.ADD:
        for number, eviction in enumerate(plan.evict):
            lines += _goes(eviction, width, "" if number else "evicts")
    elif chosen.way is Way.ADD or not plan.evict:
        nothing = "nothing more" if plan.going else "nothing: it comes beside what is loaded"
        lines += told(nothing, width, label="evicts")
    ways = _ways(plan, chosen, width, keys)
    lines += [[], *ways, []] if ways else []
    lines += _load(plan, width)
    return lines + _clients(plan, chosen, width)


def _memory(plan: p.Plan, chosen: Chosen, width: int, look: Look, key: str) -> list[Line]:
    add = chosen.way is Way.ADD
    freed = 0 if add else sum(eviction.memory_bytes for eviction in plan.evict)
    left = sum(going.memory_bytes for going in plan.going)
    if plan.memory_bytes is None and not plan.loaded:
        return _memory_of_unknown(plan, left, freed, width)
    more = 0 if plan.loaded else plan.memory_bytes or 0
    after = max(0, plan.held_bytes - left - freed + more)
    sums: list[Line] = [
        [(_now(plan), "")],
        [(f"-{size(left)} goes already" if left else "", "ok")],
        [(f"-{size(freed)} evict" if freed else "", "ok")],
        [(f"+{size(more)} load" if more else "", "warn")],
    ]
    if not plan.limit_bytes:
        whole: Line = [(f"= {size(after)}", "head"), ("  no limit known", "dim")]
        return labelled("memory", [*sums, whole], width, gap=2)
    share = after / plan.limit_bytes
    whole = [(f"= {size(after)}", "head"), (f" of {size(plan.limit_bytes)}", "dim")]
    fits = plan.fits or plan.loaded
    verdict: Line = [("FITS", "ok") if fits else ("DOES NOT FIT", "bad")]
    style = "bad" if not fits else "warn" if share > 0.9 else "ok"
    style = style if style == "bad" else f"{style}.bar"
    drawn: Line = [(bar(share, _BAR, ascii_only=look.ascii_only), style), (f" {share:.0%}", "")]
    lines = labelled("memory", [*sums, whole], width, gap=2)
    lines += labelled("", [drawn, verdict], width)
    if plan.fits_beside and plan.evict and not add and not plan.loaded:
        beside = plan.held_bytes - left + more
        lines += labelled(
            "",
            [
                [("also fits WITHOUT evicting: ", "ok"), (size(beside), "")],
                [(key, "accent"), (" adds it instead", "dim")],
            ],
            width,
        )
    return lines


def _now(plan: p.Plan) -> str:
    """Return what is held before; where it is planned to grow, both."""
    held = planned(plan.held_bytes, plan.now_bytes)
    return held if held != size(plan.held_bytes) else f"{held} now"


def _memory_of_unknown(plan: p.Plan, left: int, freed: int, width: int) -> list[Line]:
    """Return what is known of memory when a model comes whose size nobody knows."""
    limit = f"of {size(plan.limit_bytes)}" if plan.limit_bytes else "no limit known"
    sums: list[Line] = [
        [(_now(plan), "")],
        [(f"-{size(left)} goes already" if left else "", "ok")],
        [(f"-{size(freed)} evict" if freed else "", "ok")],
        [("+? load", "warn")],
        [("= ? ", "head"), (limit, "dim")],
    ]
    lines = labelled("memory", sums, width, gap=2)
    if not plan.fits:
        return lines + labelled("", [[("DOES NOT FIT", "bad")]], width)
    unknown = "SIZE NOT KNOWN until it is fetched, nor whether it fits"
    return lines + told(unknown, width, style="warn")


def _leaves(going: p.Eviction, model: str, width: int, label: str) -> list[Line]:
    """Return what is on its way out already, and when the load can begin for it."""
    name = "its own old process" if going.model == model else clean(going.model)
    left = "nobody knows how long" if going.left_s is None else f"about {short(going.left_s)}"
    chunks: list[Line] = [
        [(f"for {name}, which {'drains' if going.running else 'goes'} already", "")],
        [(f"{going.running} running, {left}" if going.running else "", "warn")],
        [(f"frees {planned(going.memory_bytes, going.now_bytes)}", "dim")],
    ]
    return labelled(label, chunks, width)


def _goes(eviction: p.Eviction, width: int, label: str) -> list[Line]:
    chunks: list[Line] = [
        [(eviction.model, "")],
        [(f"{eviction.running} running", "warn" if eviction.running else "dim")],
        [(f"{eviction.queued} queued", "warn" if eviction.queued else "dim")],
        [(f"frees {planned(eviction.memory_bytes, eviction.now_bytes)}", "dim")],
    ]
    return labelled(label, chunks, width)


def _ways(plan: p.Plan, chosen: Chosen, width: int, keys: Mapping[Way, str]) -> list[Line]:
    """Return the ways that there are, the chosen one marked."""
    number = running(plan)
    lines: list[Line] = []
    if number:
        drain_s = chosen.drain_s if chosen.way is Way.DRAIN else suggested_drain_s(plan)
        if drain_s:
            text = f"drain: {number} may run {_whole(drain_s)} more, then are cancelled"
        else:
            text = f"drain: all {number} finish, however long that takes"
        lines += _way("how", keys[Way.DRAIN], text, _basis(plan), chosen.way is Way.DRAIN, width)
        text = f"cancel the {number} that run{'' if number > 1 else 's'} now"
        lines += _way("", keys[Way.CANCEL], text, "", chosen.way is Way.CANCEL, width)
    if plan.evict and plan.fits_beside:
        if not number:
            names = ", ".join(clean(eviction.model) for eviction in plan.evict)
            lines += _way(
                "how",
                keys[Way.DRAIN],
                f"switch: {names} goes",
                "",
                chosen.way is not Way.ADD,
                width,
            )
        lines += _way(
            "",
            keys[Way.ADD],
            "add it beside the others: nothing goes",
            "",
            chosen.way is Way.ADD,
            width,
        )
    return lines


def _way(label: str, key: str, text: str, basis: str, on: bool, width: int) -> list[Line]:
    mark: Line = [("●" if on else "○", "accent" if on else "dim"), (f" {key}", "accent")]
    head: list[Line] = [mark, *([[(word, "" if on else "dim")] for word in text.split()])]
    if basis:
        head.append([(basis, "dim")])
    return labelled(label, head, width, gap=1)


def _whole(seconds: float) -> str:
    return f"{seconds:.0f}s" if seconds < 120 else f"{seconds / 60:.0f}m"


def _basis(plan: p.Plan) -> str:
    """Return what is known of how long they run."""
    measured = [e for e in plan.evict if e.running]
    slow = max((e.service_p95_s or 0.0 for e in measured), default=0.0)
    if slow:
        return f"(95 % take {short(slow)} or less)"
    mean = max((e.service_s or 0.0 for e in measured), default=0.0)
    return f"(they take {short(mean)} on average)" if mean else "(none was measured yet)"


def _load(plan: p.Plan, width: int) -> list[Line]:
    if plan.load_measured and plan.load_s is not None:
        time, basis = short(plan.load_s), "average of its loads"
    elif plan.load_s:
        time, basis = f"~{short(plan.load_s)}", "a guess: it was not loaded yet"
    else:
        time, basis = "?", "it was never loaded, so nobody knows"
    waits = f"{plan.queued} wait{'' if plan.queued != 1 else 's'} for it"
    chunks: list[Line] = [
        [("then takes " if plan.going else "takes ", "dim"), (time, "")],
        [(f"({basis})", "dim")],
        [(waits, "warn" if plan.queued else "dim")],
    ]
    return labelled("load", chunks, width, gap=2)


def _clients(plan: p.Plan, chosen: Chosen, width: int) -> list[Line]:
    """Return what clients of what goes will get."""
    if not plan.evict or chosen.way is Way.ADD:
        return []
    parts: list[str] = []
    if running(plan) and chosen.way is Way.CANCEL:
        parts.append("running: error 499 request_cancelled, now")
    elif running(plan) and chosen.drain_s:
        parts.append("running: their answer, or error 499 when the drain is over")
    elif running(plan):
        parts.append("running: their answer")
    names: Sequence[str] = [clean(eviction.model) for eviction in plan.evict]
    model = names[0] if len(names) == 1 else "they"
    if plan.auto_switch is False:
        parts.append("new ones: 503 model_not_loaded with Retry-After")
    elif plan.auto_switch:
        parts.append(f"queued and new ones wait until {model} may come back")
    return told("; ".join(parts), width, style="dim", label="clients") if parts else []
