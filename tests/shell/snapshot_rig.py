"""Screens as files that can be read and compared: the text, the look of its cells, and a legend.

`UPDATE_SNAPSHOTS=1 pytest tests/shell/test_tui_snapshots.py` writes them anew; read the diff.
"""

from __future__ import annotations

import difflib
import os
import string
from itertools import groupby
from pathlib import Path

import pytest
from rich.cells import cell_len

from llmtui.picture import Run, page, svg

FOLDER = Path(__file__).parents[1] / "snapshots"
UPDATE = bool(os.environ.get("UPDATE_SNAPSHOTS"))
_LETTERS = string.ascii_lowercase + string.ascii_uppercase + string.digits


def written(lines) -> str:
    """Return a screen as a snapshot has it."""
    known = {}
    looks = []
    for line in lines:
        row, before = "", None
        for run in line:
            if run.text.strip():
                before = run
            elif before is None or before.ground != run.ground or before.underline:
                before = Run(run.text, run.ground, run.ground)  # no ink: only the ground is seen
            look = _look(before)
            row += known.setdefault(look, _LETTERS[len(known)]) * cell_len(run.text)
        looks.append(row)
    spans = [" ".join(f"{k}{len([*same])}" for k, same in groupby(row)) for row in looks]
    legend = [f"{letter} {look}" for look, letter in known.items()]
    return "\n".join([*page(lines), "-- looks", *spans, "-- legend", *legend, ""])


def _look(run) -> str:
    names = [name for name in ("bold", "underline") if getattr(run, name)]
    return " ".join([_short(run.ink), "on", _short(run.ground), *names])


def _short(colour: str) -> str:
    """Round a colour: what a blend is off by in its last bits is nothing to compare."""
    parts = (int(colour[i : i + 2], 16) for i in (1, 3, 5))
    return "#" + "".join(f"{round(part / 17):x}" for part in parts)


def compare(name: str, lines, tmp_path: Path) -> None:
    """Fail if a screen is not as it was kept; the new one is drawn beside for a look at it."""
    kept = FOLDER / f"{name}.txt"
    made = written(lines)
    if UPDATE:
        FOLDER.mkdir(exist_ok=True)
        kept.write_text(made, encoding="utf-8")
        return
    before = kept.read_text(encoding="utf-8") if kept.exists() else ""
    if made == before:
        return
    drawn = tmp_path / f"{name}.svg"
    drawn.write_text(svg(lines, name), encoding="utf-8")
    changes = difflib.unified_diff(before.splitlines(), made.splitlines(), "kept", "now", n=0)
    shown = "\n".join(list(changes)[:40])
    pytest.fail(f"{name} looks different, see {drawn}:\n{shown}", pytrace=False)
