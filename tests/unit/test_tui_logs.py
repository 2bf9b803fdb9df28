"""A worker's log as rows: levels, the ring, wrapping, searching; and the file it is saved to."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.cells import cell_len

from llmd.admin import protocol as p
from llmtui.screens.loglines import ALL, Level, LogPage, level_of, saved_text
from llmtui.screens.saving import file_name, save


def line(number, text, at=1e9):
    return p.LogLine(seq=number, at=at, stream="stderr", text=text)


def page_of(*texts, ring=20_000):
    page = LogPage(ring)
    page.add(line(number, text) for number, text in enumerate(texts))
    return page


def rows(page):
    return [page.row(number)[2] for number in range(page.rows)]


@pytest.mark.parametrize(
    ("text", "level", "shown"),
    [
        ("0.00.052.301 I srv  update_slots: x", Level.INFO, "srv  update_slots: x"),
        ("0.01.103.000 W slot 1: shift", Level.WARN, "slot 1: shift"),
        ("12.59.103.999 E srv  send_error: no", Level.ERROR, "srv  send_error: no"),
        ("D slot print_timing", Level.DEBUG, "slot print_timing"),
        ("0.00.000.001 T more", Level.TRACE, "more"),
        ('{"level":"WARN","msg":"x"}', Level.WARN, '{"level":"WARN","msg":"x"}'),
        ("error: invalid argument: --x", Level.ERROR, "error: invalid argument: --x"),
        ("WARNING: no GPU", Level.WARN, "WARNING: no GPU"),
        ("llama_model_load: error loading model: bad", Level.ERROR, None),
        ("common_init: failed to load model", Level.ERROR, None),
        ("llama_context: n_ctx = 4096", Level.INFO, None),
        ("Everything is fine", Level.INFO, None),
        ("Internal state", Level.INFO, None),
        ("errors = 0", Level.INFO, None),
        ("W", Level.INFO, None),
        ("", Level.INFO, None),
    ],
)
def test_levels_are_told_from_what_llama_server_writes(text, level, shown):
    assert level_of(text) == (level, text if shown is None else shown)


@given(st.text(max_size=60))
def test_any_text_has_a_level_and_is_kept(text):
    level, shown = level_of(text)
    assert level is not Level.NONE
    assert text.endswith(shown)


def test_hostile_text_becomes_harmless_text():
    page = page_of("\x1b]0;x\x07[red]\x9b31m\u202eabc\nnext")
    (row,) = rows(page)
    assert row.isprintable()
    assert "[red]" in row


def test_a_level_hides_what_matters_less_and_marks_stay():
    page = page_of("E a", "W b", "I c", "D d", "plain")
    page.mark(1e9, "here")
    assert rows(page) == ["a", "b", "c", "d", "plain", "here"]
    page.look(level=Level.WARN)
    assert rows(page) == ["a", "b", "here"]
    page.look(level=Level.ERROR)
    assert rows(page) == ["a", "here"]
    page.look(level=Level.INFO)
    assert rows(page) == ["a", "b", "c", "plain", "here"]
    page.look(level=ALL)
    assert page.lines == len(page) == 6


def test_wrapped_lines_take_the_rows_that_they_need():
    page = page_of("abcdef", "", "漢字漢字")
    page.look(width=4)
    assert rows(page) == ["abcd", "ef", "", "漢字", "漢字"]
    assert [page.row(number)[1] for number in range(page.rows)] == [0, 1, 0, 0, 1]
    assert page.row(5) is None
    assert page.row(-1) is None
    page.look(width=0)
    assert page.rows == 3


def test_the_ring_forgets_the_oldest_and_says_how_many_rows_went():
    page = LogPage(ring=3)
    page.look(width=2)
    assert [page.add([line(n, text)]) for n, text in enumerate(("abcd", "a", "b", "c", "d"))] == [
        0, 0, 0, 2, 1,
    ]  # fmt: skip
    assert rows(page) == ["b", "c", "d"]
    assert len(page) == 3


def test_searching_counts_goes_round_and_forgets_with_the_ring():
    page = page_of("one", "two one", "three", "ONE", ring=4)
    page.search("One")
    assert (page.hits, page.place) == (3, 0)
    assert page.step(1, 0) == 0
    assert page.step(1, 0) == 1
    assert page.place == 2
    assert page.step(1, 0) == 3
    assert page.step(1, 0) == 0
    assert page.step(-1, 0) == 3
    assert page.place == 3
    page.add([line(9, "one more")])
    assert (page.hits, page.place) == (3, 2)
    page.search("")
    assert (page.hits, page.step(1, 0)) == (0, None)


def test_a_search_begins_where_the_eye_is():
    page = page_of(*["x" if number % 10 else "hit" for number in range(100)])
    page.search("hit")
    assert page.step(1, 35) == 40
    page.search("hit")
    assert page.step(-1, 35) == 30
    page.search("hit")
    assert page.step(-1, page.rows) == 90


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.text(alphabet="abE W漢", max_size=12), max_size=80),
    st.integers(1, 30),
    st.integers(0, 5),
    st.sampled_from([level for level in Level if level]),
)
def test_a_page_that_grew_is_the_same_as_one_made_at_once(texts, ring, width, level):
    grown, once = LogPage(ring), LogPage(ring)
    for page in (grown, once):
        page.search("a")
    grown.look(width=width, level=level)
    total = 0
    for number, text in enumerate(texts):
        before = grown.rows
        gone = grown.add([line(number, text)])
        total += gone
        assert grown.rows >= before - gone
    once.add(line(number, text) for number, text in enumerate(texts))
    once.look(width=width, level=level)
    assert rows(grown) == rows(once)
    assert (grown.hits, len(grown)) == (once.hits, len(once))
    for number in range(grown.rows):
        entry, part, text = grown.row(number)
        assert grown.row_of(entry.number) == number - part
        assert not width or cell_len(text) <= max(width, 2)


def test_twenty_thousand_lines_are_kept_and_looked_at_in_no_time():
    page = LogPage()
    began = time.process_time()
    page.add(
        line(n, f"0.00.052.301 I slot {n}: some text of a usual length, {n}") for n in range(30_000)
    )
    page.look(width=40)
    page.search("slot 29999")
    for number in range(page.rows - 40, page.rows):
        page.row(number)
    assert len(page) == 20_000
    assert page.hits == 1
    assert time.process_time() - began < 5  # a hang, not a measurement


def test_a_saved_log_has_every_line_and_its_level():
    page = page_of("W one", "two")
    page.mark(1e9, "marker")
    page.look(level=Level.ERROR)
    text = saved_text(page, "log of \x1b[31mm")
    first, *lines, last = text.splitlines()
    assert first.startswith("# log of ")
    assert "\x1b" not in text
    assert [words.split(" ", 1)[1] for words in lines] == ["W stderr one", "I stderr two"]
    assert last.endswith(" -- marker --")


def test_a_saved_log_never_overwrites_and_is_its_owners_alone(tmp_path):
    first = save("a", "log", [tmp_path])
    second = save("b", "log", [tmp_path])
    assert (first.name, second.name) == ("log.log", "log-2.log")
    assert (first.read_text(), second.read_text()) == ("a", "b")
    assert first.stat().st_mode & 0o777 == 0o600
    target = tmp_path / "target"
    (tmp_path / "link.log").symlink_to(target)
    assert save("c", "link", [tmp_path]).name == "link-2.log"
    assert not target.exists()


def test_a_log_goes_to_the_first_place_that_takes_it(tmp_path):
    assert save("a", "log", [tmp_path / "none", tmp_path]).parent == tmp_path
    with pytest.raises(OSError, match="none"):
        save("a", "log", [tmp_path / "none"])


@pytest.mark.parametrize("model", ["../../etc/passwd", ".", "a b\x1b[31m/c", "", "x" * 500])
def test_a_models_name_makes_no_path(model):
    name = file_name(model, 1e9)
    assert name == Path(name).name
    assert name.startswith("llmd-")
    assert len(os.fsencode(name)) < 120
