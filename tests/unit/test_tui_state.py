"""The screen's state and its text, as plain functions."""

from __future__ import annotations

from llmd.admin import protocol as p
from llmtui.columns import heading, request_columns, worker_columns
from llmtui.form import Look, bar, count, fit, size, span, spark
from llmtui.happenings import happenings, mishaps, spoken
from llmtui.header import Bar, header
from llmtui.rows import request_row, worker_row
from llmtui.state import (
    GONE_S,
    HELD_S,
    State,
    heard,
    held,
    hold,
    lost,
    matches,
    newest_running,
    request_order,
    shown_at,
    ticked,
)
from llmtui.view import RATES, SORTS, first_rate, next_rate, without_rows
from llmtui.widths import Widths

NOW = 1000.0
DAEMON = p.Daemon(
    version="1", pid=1, host="box", started_at=0.0, state="ok", admission_open=True, generation=7
)


def request(name, state="decode", **more):
    return p.Request(id=name, state=state, received_at=NOW - 5, **more)


def snapshot(*requests, workers=()):
    return p.Snapshot(
        seq=1,
        at=NOW,
        daemon=DAEMON,
        totals=p.Totals(tokens_per_s=5.0),
        workers=tuple(workers),
        requests=requests,
        history={"": (1.0, 2.0)},
    )


def live(*requests, workers=()):
    return heard(State(), snapshot(*requests, workers=workers), NOW)


def event(*requests, **more):
    return p.Event(seq=2, at=NOW, requests=requests, **more)


def test_a_snapshot_replaces_everything_and_is_live():
    state = heard(lost(live(request("a")), NOW, NOW + 1, "gone"), snapshot(request("b")), NOW + 2)
    assert list(state.requests) == ["b"]
    assert (state.link, state.lost_at, state.generation) == ("live", None, 7)


def test_an_event_puts_rows_in_the_place_of_old_ones():
    old = live(request("a"), request("b"))
    state = heard(old, event(request("a", completion_tokens=9)), NOW + 1)
    assert state.requests["a"].completion_tokens == 9
    assert list(state.requests) == ["a", "b"]
    assert old.requests["a"].completion_tokens == 0


def test_new_rows_are_lit_and_ended_ones_linger_then_leave():
    state = heard(live(request("a")), event(request("b"), request("a", "done", ended_at=NOW)), NOW)
    assert list(state.fresh) == ["b"]
    assert set(state.requests) == {"a", "b"}
    assert set(ticked(state, NOW + GONE_S + 0.1, HELD_S).requests) == {"a", "b"}
    later = ticked(state, NOW + GONE_S + 0.1)
    assert set(later.requests) == {"b"}
    assert not later.fresh


def test_what_ended_before_it_was_seen_takes_no_row():
    state = heard(live(request("a")), event(request("b", "refused", ended_at=NOW)), NOW)
    assert list(state.requests) == ["a"]
    assert [one.request for one in state.wrong] == ["b"]


def test_a_flood_of_refusals_is_one_line_that_counts():
    def refused(number, at, **more):
        return request(f"r{number}", "refused", ended_at=at, key="ci", code="queue_full", **more)

    flood = [refused(number, NOW + number / 100) for number in range(200)]
    wrong = mishaps((), [*flood, request("ok", "done", ended_at=NOW)])
    assert [(one.count, one.request, one.at) for one in wrong] == [(200, "r199", NOW)]
    wrong = mishaps(wrong, [refused(1, NOW + 99), request("f", "failed", ended_at=NOW + 50)])
    assert [one.count for one in wrong] == [200, 1, 1]
    told = happenings([p.Notice(seq=7, at=NOW + 60, level="info", text="hi")], wrong)
    assert [one.key for one in told] == ["m1", "m3", "n7", "m2"]
    assert told[0].text == "ci: refused 200 times, last r199: queue_full"


def test_the_log_is_told_as_people_would():
    for line, said in (
        (
            "operator: switch user=root uid=0 pid=7 model=b evict=a generation=41",
            "root (uid 0): switch a -> b  plan#41",
        ),
        ('operator: cancel key="ci bot" hit=3', "ci bot: cancel  hit 3"),
        ("worker ready model=m load_s=0.03", "m is ready, loaded in 0.03s"),
        ('worker failed model=m reason="exit 139: \\"x=1\\""', 'm failed: exit 139: "x=1"'),
        ("worker off model=m reason=idle_timeout", "m is off: idle timeout"),
        ("listening url=http://x models=2", "listening url=http://x models=2"),
        ("open mode: every caller is an admin", "open mode: every caller is an admin"),
    ):
        assert spoken(line) == said


def test_a_lost_link_keeps_the_data_and_when_it_was_lost():
    state = lost(lost(live(request("a")), NOW + 1, NOW + 2, "x"), NOW + 5, NOW + 7, "y")
    assert state.link == "stale"
    assert (state.lost_at, state.retry_at, state.trouble) == (NOW + 1, NOW + 7, "y")
    assert list(state.requests) == ["a"]


def test_without_any_data_nothing_is_stale():
    state = lost(State(), NOW, NOW + 2, "no llmd is running; start one")
    assert (state.link, state.retry_at) == ("absent", NOW + 2)
    for width in (60, 80, 120):
        text = text_of(header(state, width, NOW, Look(), Bar(at=NOW, rate=2.0))[0])
        assert "NOT CONNECTED, retry in 2s" in text
        assert not {"STALE", "run 0/0", "RO"} & set(text.split("  "))
    assert without_rows("workers", state) == "not connected"
    assert without_rows("requests", state) == without_rows("events", state) == state.trouble
    assert heard(state, snapshot(), NOW).link == "live"


def test_of_stale_data_the_time_stands_still():
    state = live()
    assert shown_at(state, NOW + 9) == NOW + 9
    assert shown_at(lost(state, NOW + 5, NOW + 6, "x"), NOW + 9) == NOW
    assert shown_at(lost(State(), NOW + 5, NOW + 6, "x"), NOW + 9) == NOW + 9


def test_each_second_adds_one_rate_to_the_history_while_live():
    state = live()
    assert ticked(state, NOW + 0.5).history[""] == (1.0, 2.0)
    assert ticked(state, NOW + 2.5).history[""] == (1.0, 2.0, 5.0, 5.0)
    assert ticked(lost(state, NOW, NOW, ""), NOW + 9).history[""] == (1.0, 2.0)


def test_rows_hold_still_under_the_cursor():
    assert hold(["a", "b", "c"], ["d", "c", "a"]) == ["a", "c", "d"]


def test_running_come_before_queued_in_the_order_of_the_queue():
    queue = [request("q2", "queued", position=2), request("q1", "queued", position=1)]
    shown = request_order([*queue, request("r", granted_at=NOW)], "sched")
    assert shown == ["r", "q1", "q2"]


def test_what_is_followed_is_what_started_last():
    state = live(
        request("a", granted_at=NOW), request("b", granted_at=NOW + 1), request("q", "queued")
    )
    assert newest_running(state, ["a", "b", "q"]) == "b"
    assert newest_running(state, ["a", "q"]) == "a"
    assert newest_running(state, ["q"]) is None


def test_a_paused_screen_keeps_its_data_and_not_its_link():
    shown = live(request("a"))
    now = held(shown, lost(live(), NOW + 1, NOW + 2, "gone"))
    assert (now.link, now.retry_at, list(now.requests)) == ("stale", NOW + 2, ["a"])


def test_requests_sort_by_each_letter():
    some = [
        request("a", "queued", queued_at=NOW, key="z", model="m2", prompt_tokens=1),
        request("b", granted_at=NOW, key="y", model="m1", tokens_per_s=9.0, prompt_tokens=9),
        request("c", "queued", queued_at=NOW - 9, key="x", model="m3"),
    ]
    for sort, wanted in (
        ("wait", "cab"), ("client", "cba"), ("model", "bac"), ("rate", "bac"), ("tokens", "bac"),
    ):  # fmt: skip
        assert "".join(request_order(some, sort)) == wanted
    letters = [list(sorts.values()) for sorts in SORTS.values()]
    assert all(len(set(each)) == len(each) for each in letters)


def test_the_rate_has_its_steps():
    assert [first_rate(over_ssh=False), first_rate(over_ssh=True)] == [2.0, 1.0]
    assert next_rate(2.0, 1) == next_rate(4.0, 1) == max(RATES) == 4.0
    assert next_rate(0.2, -1) == 0.2


def test_filters_want_every_word_and_none_of_the_inverted():
    assert matches("qwen !low", "Qwen3 normal")
    assert not matches("qwen !low", "qwen3 low")
    assert matches("!", "anything")
    assert matches("! qwen low", "qwen3 normal")
    assert not matches("! qwen low", "qwen3 low")


def test_text_of_exact_width_whatever_it_holds():
    assert fit("abc", 5) == "abc  "
    assert fit("abc", 5, right=True) == "  abc"
    assert fit("abcdef", 4) == "abc…"
    assert fit("日本語", 5) == "日本…"
    assert fit("\x1b[2Ja\x9bb\u202ec", 8) == "[2Jabc  "
    assert fit("é…", 3, ascii_only=True) == "?? "


def test_numbers_stay_short():
    assert [count(n) for n in (0, 812, 4100, 31000, 999_900)] == ["0", "812", "4.1k", "31k", "1.0M"]
    assert [size(n) for n in (512, 640 << 20, 25 << 30)] == ["512B", "640M", "25.0G"]
    assert [span(s) for s in (None, 0.42, 41, 192, 11520, 93600)] == [
        "-", "0.4s", "41s", "3m12s", "3h12m", "1d02h",
    ]  # fmt: skip


def test_an_expected_time_is_no_more_exact_than_it_is():
    columns = [column for column in request_columns(117, Look()) if column.name == "eta"]
    for left_s, text in ((0, "~0s"), (99, "~99s"), (109, "~2m"), (5969, "~99m"), (7300, "~2h")):
        asked = request("r", "queued", eta_at=NOW + left_s)
        assert text_of(request_row(asked, State(), columns, NOW, Look())).strip() == text


def test_bars_and_sparks_have_their_width():
    assert bar(0.5, 4) == "▆▆▁▁"
    assert bar(2.0, 6, ascii_only=True) == "[####]"
    assert spark((), 4) == "⣀⣀⣀⣀"
    assert len(spark(range(60), 9)) == 9
    assert len(spark(range(7), 9, ascii_only=True)) == 9


def text_of(line):
    return "".join(text for text, _ in line)


def test_every_row_is_as_wide_as_its_heading_at_every_width():
    hostile = "[red]\x1b[31m模型" * 9
    asked = request(hostile, model=hostile, key=hostile, why=p.Why(at=NOW, rule="x" * 99))
    worker = p.Worker(model=hostile, state="ready", slots=4, note=hostile)
    state = live(asked, workers=[worker])
    for width in (56, 76, 110, 117, 200):
        look = Look()
        columns = request_columns(width, look)
        row = text_of(request_row(asked, state, columns, NOW, look))
        assert fit(row, width) == row
        assert len(heading(columns)) == width
        columns = worker_columns(width, look)
        row = text_of(worker_row(worker, state, columns, NOW, look))
        assert fit(row, width) == row
        assert "\x1b" not in row


def test_the_header_says_when_the_data_are_stale():
    state = lost(live(), NOW + 2, NOW + 5, "gone")
    for width in (60, 80, 120):
        lines = header(state, width, NOW + 2, Look(), Bar(at=NOW + 2))
        text = text_of(lines[0])
        assert "STALE 2.0s, retry in 3s" in text
        assert {len(text_of(line)) for line in lines} == {width}


def test_plain_drawing_is_ascii():
    asked = request("r", "decode", max_tokens=None)
    look = Look(ascii_only=True)
    state = live(asked, workers=[p.Worker(model="m", state="ready", slots=1)])
    lines = header(state, 120, NOW, look, Bar(at=NOW, can_write=True))
    lines.append(request_row(asked, state, request_columns(117, look), NOW, look))
    lines.append(worker_row(state.workers["m"], state, worker_columns(117, look), NOW, look))
    assert all(text_of(line).isascii() for line in lines)


def cell(name, asked, now=NOW):
    columns = [column for column in request_columns(117, Look()) if column.name == name]
    return text_of(request_row(asked, State(), columns, now, Look())).strip()


def test_a_stream_of_a_moment_tells_no_rate_and_no_end():
    young = request(
        "r", first_token_at=NOW - 1, completion_tokens=355, tokens_per_s=22.0, eta_at=NOW + 97
    )
    assert (cell("speed", young), cell("eta", young)) == ("-", "-")
    assert (cell("speed", young, NOW + 1), cell("eta", young, NOW + 1)) == ("22.0", "~96s")
    few = request(
        "r", first_token_at=NOW - 9, completion_tokens=2, tokens_per_s=0.2, eta_at=NOW + 900
    )
    assert (cell("speed", few), cell("eta", few)) == ("-", "-")
    asked = request("r", "queued", eta_at=NOW + 9)
    assert cell("eta", asked) == "~9s"


def test_a_rate_fits_its_column():
    for rate, text in ((0.0, "0.0"), (52.84, "52.8"), (999.9, "999.9"), (1331.4, "1331")):
        assert cell("speed", request("r", tokens_per_s=rate)) == text


def test_a_worker_that_comes_again_says_when_wherever_there_is_room_for_that():
    worker = p.Worker(model="m", state="backoff", reason="exit 139", retry_at=NOW + 24)
    for width, note in (
        (115, "exit 139, retry in 24s"), (75, "exit 139, retry 24s"), (55, "exit 139, 24s"),
    ):  # fmt: skip
        columns = worker_columns(width, Look(), Widths(workers=15))
        row = text_of(worker_row(worker, State(), columns, NOW, Look()))
        assert row.rstrip().endswith(note)


def test_while_a_prompt_is_read_the_first_token_is_what_is_expected():
    asked = request("r", "prefill", granted_at=NOW - 7, progress=0.7, prompt_tokens=1000)
    assert (cell("eta", asked), cell("why", asked)) == ("~3s", "prefill 70%")
    assert cell("eta", request("r", "prefill", granted_at=NOW)) == "-"
