"""What was found, for a person and as JSON."""

from __future__ import annotations

import os
import platform
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks.measures import Outcome, Yardstick
from benchmarks.rounds import FOREIGN_CPUS

_VERDICTS = {True: "ok", False: "OVER", None: ""}


def heading(*, null: bool) -> str:
    """Return the header of the table."""
    other = "direct again" if null else "llmd"
    return (
        f"{'measure':<38} {'direct':>17} {other:>17}   {'result':>16}  "
        f"{'quartiles':<17} {'target':<11}"
    )


def row(outcome: Outcome) -> str:
    """Return one outcome: a line, and one for its notes and one for each warning."""
    direct = "" if outcome.direct is None else _number(outcome.direct.median, outcome.unit)
    value, llmd = outcome.value, _number(outcome.llmd.median, outcome.unit)
    quartiles = f"[{_plain(value.low)} .. {_plain(value.high)}]"
    target = ""
    if outcome.target is not None:
        target = f"{'>=' if outcome.at_least else '<='} {_plain(outcome.target)}"
    verdict = _VERDICTS[outcome.met]
    lines = [
        f"{outcome.title:<38} {direct:>17} {llmd:>17}   "
        f"{_number(value.median, outcome.value_unit):>16}  {quartiles:<17} {target:<8} {verdict}"
    ]
    if outcome.remark:
        lines.append(f"    {outcome.remark}")
    if outcome.notes:
        notes = ", ".join(f"{name} {_plain(number)}" for name, number in outcome.notes.items())
        lines.append(f"    {notes}")
    if outcome.yardstick is not None:
        lines.append(f"    {outcome.yardstick.name}: {_by_yardstick(outcome, outcome.yardstick)}")
    lines += [f"    INVALID: {fault}" for fault in outcome.faults]
    if outcome.repeated:
        lines.append(f"    disturbed rounds that were run again: {outcome.repeated}")
    if outcome.foreign_cpu > FOREIGN_CPUS:
        lines.append(f"    other processes kept {outcome.foreign_cpu:.2f} CPUs busy meanwhile")
    return "\n".join(line.rstrip() for line in lines)


def _by_yardstick(outcome: Outcome, yardstick: Yardstick) -> str:
    """Return what the yardstick took, and what the target means by that."""
    here = _number(yardstick.here.median, yardstick.unit)
    if yardstick.reference is None or outcome.scaled_target is None:
        return here
    target = f"{'>=' if outcome.at_least else '<='} {_plain(outcome.scaled_target)}"
    return (
        f"{here}, {_plain(yardstick.reference)} where the targets were set; "
        f"by its measure {target} {_VERDICTS[outcome.met_by_yardstick]}"
    )


def machine() -> dict[str, Any]:
    """Return what the absolute numbers depend on; nothing that names the machine."""
    model = ""
    with Path("/proc/cpuinfo").open(encoding="utf-8", errors="replace") as file:
        for line in file:
            if line.startswith("model name"):
                model = line.partition(":")[2].strip()
                break
    return {
        "cpus": os.cpu_count(),
        "cpu": model,
        "kernel": platform.release(),
        "python": platform.python_version(),
    }


def as_json(outcomes: list[Outcome], about: dict[str, Any]) -> dict[str, Any]:
    """Return everything that was found as JSON values."""
    return {
        **about,
        "measures": [
            asdict(outcome) | {"met": outcome.met, "met_by_yardstick": outcome.met_by_yardstick}
            for outcome in outcomes
        ],
    }


def _plain(number: float) -> str:
    size = abs(number)
    if size >= 1000:
        return f"{number:,.0f}"
    return f"{number:.0f}" if size >= 100 else f"{number:.1f}" if size >= 10 else f"{number:.2f}"


def _number(number: float, unit: str) -> str:
    return f"{_plain(number)} {unit}".rstrip()
