"""Why a request waits, in as few words as a row has room for.

The scheduler's whole sentence stands in the request's window and in `llmctl why`. A row says the
same in a phrase that leaves out what stands in its other columns: the model, and the expected time.
"""

from __future__ import annotations

import re
from collections.abc import Callable

from llmd.admin import protocol as p
from llmd.admin.units import count, span
from llmtui.loading import load_percent

_WORDS = {  # where there is hardly room for a word
    "slots_busy": "slots", "behind": "behind", "key_concurrency": "key", "model_loading": "load",
    "model_backoff": "crash", "model_not_loaded": "held", "draining_other": "drain",
    "min_residency": "held", "context_reload": "reload", "admission_closed": "closed",
    "yielding": "yields", "worker_died": "died",
}  # fmt: skip
_RUNS = re.compile(r"(\d+) still run there")
_HELD = re.compile(r"held back for (.+?)(?:, at most (\d+) s more|$)")


def word(why: p.Why) -> str:
    """Return why one waits in a word."""
    return _WORDS.get(why.rule, why.rule.replace("_", " "))


def phrase(why: p.Why, model: str, worker: p.Worker | None, now: float) -> str:
    """Return why one waits in a phrase, most of them within twenty cells.

    Args:
        why: As the scheduler has it; a sentence that is not known stays as it is.
        model: Of the request, which its row names already.
        worker: Of this model, which knows how far it is; None where nothing is known of it.
        now: Unix seconds.
    """
    if why.rule == "model_loading":
        return f"loading model{_percent(why, worker, now)}"
    if why.rule == "model_backoff":
        again = f", again in {span(worker.retry_at - now)}" if worker and worker.retry_at else ""
        return f"crashed{again}"
    make = _PHRASES.get(why.rule)
    said = make(why.detail) if make else ""
    return said or _without(model, why.detail) or why.rule.replace("_", " ")


def _percent(why: p.Why, worker: p.Worker | None, now: float) -> str:
    percent = load_percent(worker, now) if worker else ""
    if not percent:
        found = re.search(r"~?\d+%", why.detail)
        percent = found[0] if found else ""
    return f" {percent}" if percent else ""


def _without(model: str, text: str) -> str:
    """Return a sentence without the name of the row's own model."""
    if not model:
        return text
    found = re.sub(rf"(?<![\w.-]){re.escape(model)}(?![\w.-])", "", text)
    return " ".join(found.split())


def _busy(detail: str) -> str:
    found = re.fullmatch(r"(?:(more than )?(\d+) ahead, )?(\d+/\d+) slots busy(.*)", detail)
    if not found:
        return ""
    more, ahead, busy, takes = found.groups()
    if ahead:
        return f"{ahead}{'+' if more else ''} ahead, {busy} busy"
    takes = takes.removeprefix(", it takes ")
    return f"{busy} busy, takes {takes}" if takes else f"{busy} slots busy"


def _key(detail: str) -> str:
    found = re.search(r"runs (\d+) of (\d+)", detail)
    return f"key at {found[1]}/{found[2]} conc." if found else "key at its limit"


def _reload(detail: str) -> str:
    needs, runs = re.search(r"needs (\d+) tokens", detail), _RUNS.search(detail)
    if needs:
        return f"needs {count(int(needs[1]))} context"
    return f"reloads, {runs[1]} still run" if runs else ""


def _yields(detail: str) -> str:
    if "higher class" in detail:
        return "higher class first"
    to, runs = re.search(r"gives way to (.+), ", detail), _RUNS.search(detail)
    if to:
        return f"yields to {to[1]}"
    return f"unloads, {runs[1]} still run" if runs else ""


def _drains(detail: str) -> str:
    _, _, who = detail.partition("room is being made: ")
    return f"drains {who.replace(' running)', ')')}" if who else ""


def _held(detail: str) -> str:
    found = _HELD.search(detail)
    if found:
        return f"held by {found[1]}" + (f", {found[2]}s" if found[2] else "")
    most = re.search(r"at most (\d+) s more", detail)
    return f"not loaded, max {most[1]}s" if most else "not loaded"


def _young(detail: str) -> str:
    who, _, rest = detail.rpartition(" was loaded a moment ago")
    return f"just came: {who}" if who and not rest else ""


_PHRASES: dict[str, Callable[[str], str]] = {
    "slots_busy": _busy,
    "behind": _busy,
    "key_concurrency": _key,
    "context_reload": _reload,
    "admission_closed": lambda _: "admission paused",
    "yielding": _yields,
    "draining_other": _drains,
    "model_not_loaded": _held,
    "min_residency": _young,
    "worker_died": lambda _: "its worker died",
}
