"""The plan of a switch as lines, and a request's way as lines."""

from __future__ import annotations

import shlex

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace
from rich.cells import cell_len

from llmd.admin import protocol as p
from llmd.admin.grammar import parse
from llmtui.rows import Look
from llmtui.screens.flow import as_text, cells, flow, labelled, plain, wrapped
from llmtui.screens.plan import Chosen, Way, command_of, first_choice, next_drain, plan_lines
from llmtui.screens.story import AHEAD, NOW, head_lines, steps_of, sum_lines, way_lines

GIB = 1 << 30
WIDTHS = (30, 55, 81, 95)


def text(lines):
    return "\n".join("".join(part for part, _ in line) for line in lines)


def flat(lines):
    """The words, however they were wrapped."""
    return " ".join(text(lines).split())


GOES = p.Eviction(
    model="gemma", running=2, queued=3, memory_bytes=20 * GIB, service_s=6.0, service_p95_s=12.0
)
PLAN = p.Plan(
    model="coder", loaded=False, fits=True, evict=(GOES,), fits_beside=True, queued=4,
    load_s=14.0, load_measured=True, auto_switch=True, memory_bytes=21 * GIB,
    held_bytes=86 * GIB, limit_bytes=133 * GIB, generation=41, state="off", dry_run=True,
)  # fmt: skip


def told(plan, chosen=None, width=81):
    return flat(plan_lines(plan, chosen or first_choice(plan), width, Look()))


def test_a_plan_says_what_goes_what_comes_and_that_it_fits():
    words = told(PLAN)
    for expected in (
        "86.0G now -20.0G evict +21.0G load = 87.0G of 133G", "65% FITS",
        "also fits WITHOUT evicting: 107G a adds it instead",
        "gemma 2 running 3 queued frees 20.0G", "● d drain: 2 may run 15s more",
        "95 % take 12s or less", "○ c cancel the 2", "○ a add", "takes 14s (average of its loads)",
        "4 wait for it", "queued and new ones wait until gemma may come back",
    ):  # fmt: skip
        assert expected in words


def test_a_plan_waits_for_what_goes_already():
    goes = p.Eviction(model="gemma", running=2, memory_bytes=20 * GIB, left_s=9.0)
    words = told(replace(PLAN, evict=(), fits_beside=False, going=(goes,)))
    for expected in (
        "86.0G now -20.0G goes already +21.0G load = 87.0G of 133G", "evicts nothing more",
        "waits for gemma, which drains already 2 running, about 9.0s frees 20.0G",
        "then takes 14s",
    ):  # fmt: skip
        assert expected in words


def test_a_plan_names_what_is_planned_for_where_workers_may_still_grow():
    goes = replace(GOES, now_bytes=12 * GIB)
    words = told(replace(PLAN, evict=(goes,), now_bytes=50 * GIB))
    assert "86.0G planned for (50.0G held now) -20.0G evict" in words
    assert "frees 20.0G planned for (12.0G held now)" in words
    same = replace(PLAN, evict=(replace(GOES, now_bytes=20 * GIB),), now_bytes=86 * GIB)
    assert told(same) == told(PLAN)


def test_each_way_has_its_memory_its_clients_and_its_line():
    drain, cancel, add = Chosen(Way.DRAIN, 15.0), Chosen(Way.CANCEL), Chosen(Way.ADD)
    assert command_of(PLAN, drain) == "llmctl switch coder --from gemma --drain 15 --if-gen 41"
    assert command_of(PLAN, cancel) == "llmctl switch coder --from gemma --force --if-gen 41"
    assert command_of(PLAN, add) == "llmctl switch coder --add --if-gen 41"
    assert "error 499 request_cancelled, now" in told(PLAN, cancel)
    words = told(PLAN, add)
    assert "86.0G now +21.0G load = 107G" in words
    assert "evict +" not in words
    assert "WITHOUT" not in words
    assert "finish, however long" in told(PLAN, Chosen(Way.DRAIN, 0.0))


@pytest.mark.parametrize("way", list(Way))
def test_the_line_is_one_that_llmctl_understands_and_that_does_the_same(way):
    hostile = replace(PLAN, model="a b;rm", evict=(replace(GOES, model="--all"),))
    words = shlex.split(command_of(hostile, Chosen(way, 5.0)))
    assert words[:3] == ["llmctl", "switch", "a b;rm"]
    asked = parse(shlex.split(command_of(PLAN, Chosen(way, 5.0)))[1:])
    command = asked.make(asked)
    assert command.add is (way is Way.ADD)
    assert command.force is (way is Way.CANCEL)
    assert command.drain_s == (5.0 if way is Way.DRAIN else None)
    assert command.evict == (() if way is Way.ADD else ("gemma",))
    assert command.if_gen == 41


def test_the_drain_comes_from_what_was_measured_and_grows_with_each_press():
    assert first_choice(PLAN) == Chosen(Way.DRAIN, 15.0)
    assert first_choice(replace(PLAN, drain_s=7.0)).drain_s == 7.0
    slow = replace(PLAN, evict=(replace(GOES, service_p95_s=None),))
    assert first_choice(slow).drain_s == 15.0
    unknown = replace(PLAN, evict=(replace(GOES, service_p95_s=None, service_s=None),))
    assert first_choice(unknown).drain_s == 15.0
    assert "none was measured yet" in told(unknown)
    seen, chosen = [], first_choice(PLAN)
    for _ in range(4):
        chosen = next_drain(PLAN, chosen)
        seen.append(chosen.drain_s)
    assert seen == [60.0, 300.0, 0.0, 15.0]
    assert next_drain(PLAN, Chosen(Way.CANCEL)) == Chosen(Way.DRAIN, 15.0)


def test_what_does_not_fit_or_is_there_already_is_said():
    words = told(replace(PLAN, fits=False, fits_beside=False, evict=(), reason="it needs 900 GiB"))
    assert "DOES NOT FIT" in words
    assert "it needs 900 GiB" in words
    assert "coder is ready already" in told(replace(PLAN, loaded=True, state="ready", evict=()))


def test_of_what_has_no_known_size_it_is_not_said_that_it_fits():
    unknown = replace(PLAN, memory_bytes=None)
    words = told(unknown)
    assert "86.0G now -20.0G evict +? load = ? of 133G SIZE NOT KNOWN until it is fetched" in words
    assert "FITS" not in words
    assert "WITHOUT" not in words
    assert "DOES NOT FIT" in told(replace(unknown, fits=False, reason="no room"))
    assert "ready already" in told(replace(unknown, loaded=True, state="ready"))


def test_an_idle_model_goes_without_a_drain():
    idle = replace(PLAN, evict=(replace(GOES, running=0),))
    assert command_of(idle, first_choice(idle)) == "llmctl switch coder --from gemma --if-gen 41"
    assert "cancel the" not in told(idle)


def test_where_requests_load_nothing_their_clients_get_503():
    assert "503 model_not_loaded" in told(replace(PLAN, auto_switch=False))
    assert "wait" not in told(replace(PLAN, auto_switch=None, queued=0)).split("clients")[1]


def test_a_guess_is_called_one():
    assert "~14s (a guess" in told(replace(PLAN, load_measured=False))
    assert "nobody knows" in told(replace(PLAN, load_measured=False, load_s=None))


# --- a request's way -----------------------------------------------------------------------

AT = 1e9
WAITED = (
    p.Why(at=AT + 0.1, rule="slots_busy", blockers=("r-1", "r-2"), position=3, detail="4/4 busy"),
    p.Why(at=AT + 1.1, rule="model_loading", blockers=("m",), position=1, detail="loading"),
    p.Why(at=AT + 2.1, rule="granted", detail="first of 3"),
)
REQUEST = p.Request(
    id="r-8f1c", state="prefill", model="m", key="bob", client="127.0.0.1", path="/v1/x",
    stream=True, received_at=AT, queued_at=AT + 0.1, granted_at=AT + 2.1, wait_s=2.0,
    prompt_tokens=31_000, prompt_exact=True, cached_tokens=2000, max_tokens=4096, progress=0.44,
    worker_pid=7, request_bytes=124_000,
)  # fmt: skip


def way(request, steps=WAITED, now=AT + 6.1, width=95):
    story = p.Story(request=request, steps=steps)
    return flat(way_lines(steps_of(story, now, Look()), now, width))


def test_each_step_has_its_time_its_length_and_its_rule():
    words = way(REQUEST)
    for expected in (
        "● received", "+100ms ● queued 1.0s #3 4/4 busy [slots_busy] ← r-1 r-2",
        "+1.1s ● queued 1.0s #1 loading [model_loading] ← m", "+2.1s ● admitted first of 3",
        "◐ prefill 4.0s 14k/31k tok", "44%", "2.9k t/s", "first token in 6.0s", "2.0k cached",
    ):  # fmt: skip
        assert expected in words


def test_what_is_expected_is_shown_ahead():
    waiting = replace(REQUEST, state="queued", granted_at=None, progress=None, eta_at=AT + 11.1)
    story = p.Story(request=waiting, steps=WAITED[:2])
    *_, now, ahead = steps_of(story, AT + 6.1, Look())
    assert (now.mark, now.word) == (NOW, "queued")
    assert (ahead.mark, ahead.word) == (AHEAD, "admitted")
    assert "expected in 5.0s" in way(waiting, WAITED[:2])
    assert "expected any moment" in way(waiting, WAITED[:2], now=AT + 60)


def test_a_silent_request_says_for_how_long():
    silent = replace(
        REQUEST, state="decode", first_token_at=AT + 3, completion_tokens=88,
        silent_since_at=AT + 4.1, progress=None,
    )  # fmt: skip
    assert "no token for 2.0s" in way(silent)


def test_an_end_says_who_and_why():
    over = replace(
        REQUEST, state="timed_out", ended_at=AT + 9, status=504, code="request_timeout",
        reason="not done within 9 s", cancel_cause="client_gone",
    )  # fmt: skip
    words = way(over, now=AT + 900)
    assert "+9.0s ● timed out by client gone 504 request_timeout not done within 9 s" in words
    assert "prefill 6.9s" in words
    assert "in all" in text(sum_lines(p.Story(request=over, steps=()), AT + 900, 81))


def test_a_request_that_never_waited_has_no_wait():
    direct = replace(REQUEST, queued_at=None, granted_at=AT, wait_s=0.0)
    words = way(direct, ())
    assert "queued" not in words
    assert "admitted" in words


def test_who_asks_and_how_is_told():
    asked = replace(REQUEST, fingerprint="3a..f1", temperature=0.7)
    words = flat(head_lines(asked, 95, body=False))
    assert "bob key 3a..f1" in words
    assert "temp 0.7" in words
    assert "temp" not in flat(head_lines(REQUEST, 95, body=False))
    assert "429s 2" in flat(sum_lines(p.Story(request=asked, steps=(), limited=2), AT + 9, 95))


def test_the_body_is_said_not_to_be_kept():
    assert "hidden" in flat(head_lines(REQUEST, 81, body=False))
    assert "llmd keeps no bodies" in flat(head_lines(REQUEST, 81, body=True))


@pytest.mark.parametrize("width", WIDTHS)
def test_nothing_is_wider_than_it_may_be(width):
    long = replace(REQUEST, path="/v1/" + "x" * 300, model="漢" * 90, key="[red]" * 30)
    story = p.Story(request=long, steps=tuple(replace(s, detail="word " * 40) for s in WAITED))
    made = head_lines(long, width, body=True) + sum_lines(story, AT + 9, width)
    made += plan_lines(replace(PLAN, model="m" * 200), first_choice(PLAN), width, Look())
    if width > 40:
        made += way_lines(steps_of(story, AT + 9, Look()), AT + 9, width)
    assert max(map(cells, made)) <= width


# --- laying out ----------------------------------------------------------------------------


@given(st.text(max_size=80), st.integers(2, 30))
def test_wrapped_text_keeps_its_words_and_its_width(words, width):
    lines = wrapped(words, width)
    assert all(cell_len(line) <= width for line in lines)
    if words.isascii() and words.isprintable():
        assert "".join("".join(lines).split()) == "".join(words.split())


def test_chunks_flow_and_empty_ones_vanish():
    made = flow([[("aaa", "")], [("", "")], [("bbb", "dim")], [("ccc", "")]], 10, indent=2, gap=1)
    assert text(made) == "  aaa bbb\n  ccc"
    assert text(labelled("label", [[("x" * 12, "")]], 16)) == "label   xxxxxxxx\n        xxxx"


def test_ascii_is_ascii_and_markup_is_text():
    assert plain("● → … 漢\x1b[31m").isascii()
    shown = as_text([[("[bold]●[/]", "")], [("\x07x", "ok")]], {}, ascii_only=True)
    assert shown.plain == "[bold]*[/]\nx"
