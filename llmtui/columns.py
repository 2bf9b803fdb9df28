"""Which columns the two tables have at which width."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from llmtui.form import Look, fit


@dataclass(frozen=True)
class Column:
    """A column: `width` cells, 0 = its part of what is left over, but the `least`.

    Numbers stand `right`.
    """

    name: str
    title: str
    width: int
    right: bool = False
    weight: int = 1
    least: int = 0


_WORKERS = (  # from which width on, and what is shown there
    (108, (
        Column("st", "ST", 9),
        Column("model", "MODEL", 0, weight=3),
        Column("mem", "MEM", 7, right=True),
        Column("slots", "SLOT", 5, right=True),
        Column("kv", "KV%", 4, right=True),
        Column("rate", "t/s", 5, right=True),
        Column("ttft", "TTFT95", 6, right=True),
        Column("queue", "QUE", 4, right=True),
        Column("last", "LAST 60s", 14),
        Column("since", "FOR", 6, right=True),
        Column("crashes", "CRS", 3, right=True),
        Column("note", "NOTE", 0, weight=4),
    )),
    (70, (
        Column("st", "ST", 9),
        Column("model", "MODEL", 0, weight=4),
        Column("mem", "MEM", 7, right=True),
        Column("slots", "SLOT", 5, right=True),
        Column("kv", "KV%", 4, right=True),
        Column("rate", "t/s", 5, right=True),
        Column("queue", "QUE", 4, right=True),
        Column("note", "NOTE", 0, weight=5),
    )),
    (0, (
        Column("st", "ST", 9),
        Column("model", "MODEL", 0, weight=3),
        Column("slots", "SLOT", 5, right=True),
        Column("kv", "KV%", 4, right=True),
        Column("queue", "QUE", 4, right=True),
        Column("note", "NOTE", 0, weight=3),
    )),
)  # fmt: skip
_NARROW = (
    Column("id", "ID", 6),
    Column("word", "ST", 8),
    Column("class", "P", 2),
    Column("model", "MODEL", 0, weight=5),
    Column("client", "CLIENT", 0, weight=3),
    Column("place", "GEN/MAX", 9, right=True),
    Column("speed", "t/s", 5, right=True),
    Column("age", "AGE", 5, right=True),
    Column("eta", "ETA", 5, right=True),
)  # the requests below 108 cells, but for how much of a reason there is room
_REQUESTS = (
    (108, (
        Column("id", "ID", 8),
        Column("st", "ST", 10),
        Column("prio", "PRI", 4),
        Column("model", "MODEL", 0, weight=6),
        Column("client", "CLIENT", 0, weight=3, least=9),
        Column("wait", "WAIT", 5, right=True),
        Column("hit", "PROMPT(hit)", 11, right=True),
        Column("gen", "GEN/MAX", 9, right=True),
        Column("speed", "t/s", 5, right=True),
        Column("age", "AGE", 5, right=True),
        Column("eta", "ETA", 5, right=True),
        Column("why", "WHY", 0, weight=7),
    )),
    (88, (*_NARROW, Column("why", "WHY", 0, weight=6))),
    (70, (*_NARROW, Column("short", "WHY", 6))),
    (0, (
        Column("id", "ID", 6),
        Column("word", "ST", 8),
        Column("model", "MODEL", 0),
        Column("place", "GEN/MAX", 9, right=True),
        Column("eta", "ETA", 5, right=True),
        Column("short", "WHY", 6),
    )),
)  # fmt: skip
_SPARED = ("kv", "ttft", "crashes", "prio", "class", "age", "speed")  # for wide names


Layouts = Sequence[tuple[int, Sequence[Column]]]


def columns(layouts: Layouts, width: int, *, wide: bool = False) -> list[Column]:
    """Return the columns of the layout for `width` cells, each with its width."""
    width = max(0, width)  # a terminal may be narrower than what stands around a table
    shown = next(list(found) for least, found in layouts if width >= least)
    if wide:
        shown = [column for column in shown if column.name not in _SPARED]
    left = max(0, width - sum(column.width for column in shown) - (len(shown) - 1))
    weight = sum(column.weight for column in shown if not column.width)
    made, rest, last = [], left, 0
    for column in shown:
        if column.width:
            made.append(column)
            continue
        part = max(column.least, left * column.weight // weight)
        rest -= part
        last = len(made)
        made.append(replace(column, width=part))
    made[last] = replace(made[last], width=made[last].width + rest)
    return made


def worker_columns(width: int, look: Look) -> list[Column]:
    """Return the columns of the workers' table."""
    return columns(_WORKERS, width, wide=look.wide)


def request_columns(width: int, look: Look) -> list[Column]:
    """Return the columns of the requests' table."""
    return columns(_REQUESTS, width, wide=look.wide)


def heading(shown: Sequence[Column]) -> str:
    """Return the columns' titles as one line."""
    return " ".join(fit(c.title, c.width, right=c.right) for c in shown)
