"""How wide the columns of names are, and that they hold still."""

from __future__ import annotations

import pytest

from llmd.admin import protocol as p
from llmtui.columns import heading, request_columns, worker_columns
from llmtui.form import Look
from llmtui.rows import request_row, worker_row
from llmtui.state import State, heard
from llmtui.widths import Widths, widths

NOW = 1000.0


def request(name, model, key):
    return p.Request(id=name, state="decode", model=model, key=key, received_at=NOW)


def of(*requests, models=("short", "a-longer-one")):
    return State(
        workers={name: p.Worker(model=name, state="ready") for name in models},
        requests={one.id: one for one in requests},
    )


def cells(columns):
    return {column.name: column.width for column in columns}


def test_columns_are_as_wide_as_the_names_and_only_grow():
    first = widths(of(request("a", "short", "bob")))
    assert (first.workers, first.models, first.clients) == (12, 5, 3)
    state = of(request("b", "a-longer-one", "carol"))
    grown = widths(state, first)
    assert (grown.models, grown.clients) == (12, 5)
    assert widths(of(), grown) is grown  # who was longest has gone: nothing moves
    assert widths(of(), None).models == 0  # but for another size
    assert widths(of(models=("x",)), grown) == Widths(workers=1)  # and other models


def test_what_a_name_holds_is_counted_in_cells():
    assert widths(of(request("a", "模型", "\x1b[2Jx"))).models == 4
    assert widths(of(request("a", "模型", "\x1b[2Jx"))).clients == 4


@pytest.mark.parametrize("width", [115, 195, 295])
def test_reasons_have_what_names_need_not(width):
    names = Widths(workers=15, models=15, clients=7)
    shown = cells(request_columns(width, Look(), names))
    assert (shown["model"], shown["client"], shown["why"]) == (15, 7, width - 95)
    shown = cells(worker_columns(width, Look(), names))
    assert (shown["model"], shown["note"]) == (15, width - 89)


def test_names_have_no_more_than_their_share():
    long = Widths(workers=90, models=90, clients=90)
    assert request_columns(115, Look(), long) == request_columns(115, Look())
    assert worker_columns(115, Look(), long) == worker_columns(115, Look())
    one = cells(request_columns(115, Look(), Widths(workers=90, models=90, clients=7)))
    assert one["client"] == 7
    assert one["model"] > cells(request_columns(115, Look(), long))["model"]


@pytest.mark.parametrize("width", [0, 17, 55, 75, 90, 115, 295])
def test_rows_fill_their_table_at_every_width(width):
    asked = request("r-1", "模型-long-name", "somebody")
    snapshot = p.Snapshot(
        seq=1, at=NOW, totals=p.Totals(), requests=(asked,), history={},
        workers=(p.Worker(model="模型-long-name", state="ready", slots=2),),
        daemon=p.Daemon(
            version="1", pid=1, host="h", started_at=0.0, state="ok", admission_open=True,
            generation=1,
        ),
    )  # fmt: skip
    state = heard(State(), snapshot, NOW)
    names = widths(state)
    columns = request_columns(width, Look(), names)
    if width >= 55:
        assert len(heading(columns)) == width
    assert sum(c.width for c in columns) + len(columns) - 1 >= width
    assert request_row(asked, state, columns, NOW, Look())
    columns = worker_columns(width, Look(), names)
    assert worker_row(state.workers["模型-long-name"], state, columns, NOW, Look())
