"""Which columns the two tables have at which width."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

from llmtui.form import Look, fit
from llmtui.widths import Widths


@dataclass(frozen=True)
class Column:
    """A column: `width` cells, 0 = its part of what is left over.

    Numbers stand `right`.
    """

    name: str
    title: str
    width: int
    right: bool = False
    weight: int = 1


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
        Column("model", "MODEL", 0, weight=5),
        Column("slots", "SLOT", 5, right=True),
        Column("kv", "KV%", 4, right=True),
        Column("queue", "QUE", 4, right=True),
        Column("note", "NOTE", 0, weight=4),
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
        Column("client", "CLIENT", 0, weight=3),
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


ANY = Widths()  # no name is known to be shorter than there is room
Layouts = Sequence[tuple[int, Sequence[Column]]]


def columns(
    layouts: Layouts, width: int, *, wide: bool = False, most: Mapping[str, int] | None = None
) -> list[Column]:
    """Return the columns of the layout for `width` cells, each with its width.

    Args:
        layouts: From which width on which columns there are.
        width: Cells of a row.
        wide: Leave out what names can do without.
        most: Cells that a column has a use for, by name. The last column, of reasons, has what
            others need not.
    """
    width = max(0, width)  # a terminal may be narrower than what stands around a table
    shown = next(list(found) for least, found in layouts if width >= least)
    if wide:
        shown = [column for column in shown if column.name not in _SPARED]
    left = max(0, width - sum(column.width for column in shown) - (len(shown) - 1))
    parts = _parts([column for column in shown if not column.width], left, most or {})
    made = [replace(c, width=parts[c.name]) if c.name in parts else c for c in shown]
    last = made[-1]
    made[-1] = replace(last, width=last.width + left - sum(parts.values()))
    return made


def _parts(flexible: Sequence[Column], left: int, most: Mapping[str, int]) -> dict[str, int]:
    """Return what each of these columns has of what is left, by its weight and up to its most."""
    weight = sum(column.weight for column in flexible)
    parts = {column.name: left * column.weight // weight for column in flexible}
    needs = {c.name: max(most[c.name], len(c.title)) for c in flexible if most.get(c.name)}
    settled = {name: need for name, need in needs.items() if parts[name] >= need}
    if not settled:
        return parts
    rest = [column for column in flexible if column.name not in settled]
    others = _parts(rest, left - sum(settled.values()), most) if rest else {}
    return settled | others


@lru_cache(maxsize=64)
def worker_columns(width: int, look: Look, names: Widths = ANY) -> Sequence[Column]:
    """Return the columns of the workers' table."""
    return columns(_WORKERS, width, wide=look.wide, most={"model": names.workers})


@lru_cache(maxsize=64)
def request_columns(width: int, look: Look, names: Widths = ANY) -> Sequence[Column]:
    """Return the columns of the requests' table."""
    most = {"model": names.models, "client": names.clients}
    return columns(_REQUESTS, width, wide=look.wide, most=most)


def heading(shown: Sequence[Column]) -> str:
    """Return the columns' titles as one line."""
    return " ".join(fit(c.title, c.width, right=c.right) for c in shown)
