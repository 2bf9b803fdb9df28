"""Why it waits, since when, who is in the way, how long yet: told for every rule."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import pairwise

import pytest
from policy_box import Box, FakeWorker, ask

from llmd.core import policy
from llmd.core.estimates import load_progress
from llmd.core.events import (
    Admission,
    LoadAdvanced,
    Rule,
    SwitchRequested,
    UnloadRequested,
    Why,
)
from llmd.core.lifecycle import Priority, WorkerState
from llmd.core.overview import outlook
from llmd.core.policy import ModelInfo, PolicySettings, eta_s, explain, story


def box_of(names="abc", *, infos=None, ready="", workers=None, **settings) -> Box:
    models = [ModelInfo(name, **(infos or {}).get(name, {})) for name in names]
    box = Box(PolicySettings(**{"max_size": 0, **settings}), models, workers or {})
    for name in ready:
        box.preload(name)
    return box


def why(box: Box, request_id: str) -> Why:
    found = explain(box.state, request_id, box.now)
    assert found is not None
    return found


def test_slots_busy_names_what_runs():
    box = box_of(ready="a", workers={"a": FakeWorker(slots=2)})
    for name in "123":
        box.ask(name, service_s=9.0)
    assert why(box, "3") == Why(0, Rule.SLOTS_BUSY, ("1", "2"), 1, "2/2 slots busy")


def test_behind_names_who_goes_first_the_nearest_first_and_at_most_eight():
    box = box_of(ready="a")
    for number in range(12):
        box.ask(f"r{number}", service_s=9.0)
    told = why(box, "r11")
    assert (told.rule, told.position) == (Rule.BEHIND, 11)
    assert told.blockers == tuple(f"r{n}" for n in range(10, 2, -1))
    assert told.detail == "10 ahead, 1/1 slots busy"


def test_a_place_in_line_follows_class_and_share():
    box = box_of(ready="a")
    box.ask("runs", key="a", service_s=9.0)
    for number in range(3):
        box.ask(f"a{number}", key="a")
    box.ask("b", key="b")
    box.ask("high", key="a", priority=Priority.HIGH)
    places = {name: why(box, name).position for name in ("high", "b", "a0", "a1", "a2")}
    assert places == {"high": 1, "b": 2, "a0": 3, "a1": 4, "a2": 5}


def test_the_story_of_a_request_whose_model_must_be_loaded():
    box = box_of(ready="a", max_delay_sec=30.0, infos={"b": {"load_s": 10.0}})
    box.ask("long", service_s=40.0)
    box.ask("b", "b", service_s=5.0)
    assert why(box, "b").rule is Rule.MIN_RESIDENCY
    assert why(box, "b").blockers == ("a",)
    box.run(10)
    assert why(box, "b").blockers == ("a",)
    assert why(box, "b").detail == "held back for a, at most 20 s more before room is made"
    box.run(31)
    assert why(box, "b").detail == "room is being made: a (1 running)"
    box.run(41)
    assert why(box, "b").detail == "loading, ~10%, about 9 s left"
    box.run(43)
    assert explain(box.state, "b", box.now) is None
    steps = story(box.state, "b")
    assert [(step.at, step.rule) for step in steps] == [
        (0, Rule.MIN_RESIDENCY),
        (5, Rule.MODEL_NOT_LOADED),
        (30, Rule.DRAINING_OTHER),
        (40, Rule.MODEL_LOADING),
        (42, Rule.GRANTED),
    ]
    assert steps[-1].detail == "first of 1 after 42.0 s"
    box.run()
    assert story(box.state, "b") == ()


def test_yielding_names_for_whom():
    box = box_of(ready="a", max_delay_sec=3.0, min_residency_sec=0.0)
    box.ask("long", service_s=40.0)
    box.ask("a", "a")
    box.ask("b", "b")
    box.run(10)
    told = why(box, "a")
    assert (told.at, told.rule, told.blockers) == (3, Rule.YIELDING, ("b",))
    assert told.detail == "gives way to b, 1 still run there"
    box.post(SwitchRequested("c"))
    assert why(box, "a").blockers == ("c",)


def test_a_model_being_unloaded_is_told():
    box = box_of(ready="a")
    box.ask("long", service_s=40.0)
    box.ask("a")
    box.post(UnloadRequested("a"))
    assert why(box, "a").detail == "its model is being unloaded, 1 still run there"


def test_while_only_a_higher_class_is_served_the_others_yield():
    box = box_of(
        ready="a",
        max_delay_sec=3.0,
        min_residency_sec=0.0,
        aging_sec=0.0,
        workers={"a": FakeWorker(slots=2)},
    )
    box.ask("runs", service_s=40.0)
    box.ask("wide", priority=Priority.HIGH, slots=2)
    box.ask("narrow")
    box.ask("b", "b")
    box.run(5)
    assert why(box, "wide").detail == "1/2 slots busy, it takes 2"
    assert why(box, "narrow").rule is Rule.YIELDING


def test_backoff_says_what_died_and_when_it_is_tried_again():
    box = box_of(ready="a")
    box.ask("1", service_s=9.0)
    box.crash("a", backoff_s=4.0)
    told = why(box, "1")
    assert (told.rule, told.detail) == (
        Rule.MODEL_BACKOFF,
        "its worker died (killed); next try in 4 s",
    )


def test_a_reload_is_told_before_and_while_it_drains():
    box = box_of(
        ready="a", infos={"a": {"context_max": 9000}}, max_delay_sec=3.0, min_residency_sec=0.0
    )
    box.ask("runs", service_s=9.0)
    box.ask("large", context=8000)
    assert why(box, "large").detail == "needs 8000 tokens of context, loaded are 4096"
    box.run(5)
    assert why(box, "large").detail == "reloads with a larger context, 1 still run there"
    assert {step.rule for step in story(box.state, "large")} == {Rule.CONTEXT_RELOAD}


def test_a_granted_request_tells_its_grant_until_it_is_released():
    box = box_of(ready="a")
    (grant,) = box.ask("1", service_s=9.0)
    assert grant.why.rule is Rule.GRANTED
    assert story(box.state, "1") == (grant.why,)


def test_when_a_rule_began_to_hold_is_kept_while_details_move_on():
    box = box_of(ready="a", max_delay_sec=0.0)
    box.ask("1", service_s=50.0)
    for number in range(4):
        box.ask(f"b{number}", "b")
    box.run(20)
    assert {why(box, f"b{n}").at for n in range(4)} == {5}


def test_a_story_is_bounded():
    box = box_of(ready="a")
    box.ask("runs", service_s=math.inf)
    box.ask("1")
    for second in range(100):
        box.run(second)
        box.post(Admission(open=bool(second % 2)))
    steps = story(box.state, "1")
    assert len(steps) == 32
    assert all(one.at <= two.at for one, two in pairwise(steps))


# --- when ---


def trained(box: Box, service_s: float) -> Box:
    """Let the policy measure how long a lease lasts."""
    for number in range(30):
        box.ask(f"trained{number}", service_s=service_s)
    box.run()
    return box


def test_eta_is_unknown_before_anything_was_measured():
    box = box_of(ready="a")
    box.ask("1", service_s=9.0)
    box.ask("2")
    assert eta_s(box.state, "2", 0.0) is None


def test_eta_plays_the_line_through_as_slots_become_free():
    box = trained(box_of(ready="a", workers={"a": FakeWorker(slots=2)}), 8.0)
    start = box.now
    box.ask("r0", service_s=8.0)
    box.run(start + 3)
    for number in range(1, 6):
        box.ask(f"r{number}", service_s=8.0)
    etas = [eta_s(box.state, f"r{n}", box.now) for n in range(2, 6)]
    assert etas == pytest.approx([5.0, 8.0, 13.0, 16.0])
    assert [one.eta_s for one in outlook(box.state, box.now)] == etas
    box.run(start + 7)
    assert eta_s(box.state, "r2", box.now) == pytest.approx(1.0)
    box.run()
    assert box.ended["r5"].granted_at == start + 3 + 16


def test_eta_of_what_asks_for_more_is_longer_for_those_behind_it():
    box = trained(box_of(ready="a"), 8.0)  # requests of 100 tokens take 8 s
    box.ask("double", service_s=16.0, tokens=200)
    box.ask("half", tokens=50)
    box.ask("next")
    assert eta_s(box.state, "half", box.now) == pytest.approx(16.0)
    assert eta_s(box.state, "next", box.now) == pytest.approx(16.0 + 4.0)


def test_what_is_late_is_taken_to_be_as_late_again():
    box = trained(box_of(ready="a"), 8.0)
    start = box.now
    box.ask("late", service_s=50.0)
    box.ask("next")
    box.run(start + 20)
    assert eta_s(box.state, "next", box.now) == pytest.approx(12.0)


def test_what_a_running_request_has_got_tells_when_it_ends():
    box = box_of(ready="a")
    got = {"runs": 0}
    box.state.decoded = got.__getitem__
    box.submit(replace(ask("runs"), completion_tokens=100), 50.0)
    box.ask("next")
    box.run(4)
    assert eta_s(box.state, "next", 4.0) is None
    got["runs"] = 20
    assert eta_s(box.state, "next", 4.0) == pytest.approx(16.0)
    got["runs"] = 100
    assert eta_s(box.state, "next", 4.0) == 0.0


def test_a_worker_that_says_how_far_its_load_is_is_believed():
    box = box_of(infos={"a": {"load_s": 100.0}}, workers={"a": FakeWorker(load_s=20.0)})
    box.ask("1")
    box.run(4)
    assert str(load_progress(box.state, box.state.models["a"], box.now)) == "~4%"
    box.post(LoadAdvanced("a", 0.4))
    assert why(box, "1").detail == "loading, 40%, about 96 s left"
    box.post(LoadAdvanced("a", 0.3))  # a worker that goes back is not followed
    assert str(load_progress(box.state, box.state.models["a"], box.now)) == "40%"
    box.run()
    box.post(LoadAdvanced("a", 0.5))  # too late to mean anything
    assert load_progress(box.state, box.state.models["a"], box.now) is None


def test_a_load_that_says_how_far_it_is_reads_on_at_its_pace_and_then_warms_up_as_before():
    box = box_of(workers={"a": FakeWorker(load_s=20.0)})
    box.ask("1")
    box.run(4)
    box.post(LoadAdvanced("a", 0.4))
    assert why(box, "1").detail == "loading, 40%"  # what comes after reading is not known
    assert eta_s(box.state, "1", box.now) is None
    box.run(10)
    box.post(LoadAdvanced("a", 1.0))
    assert why(box, "1").detail == "loading, 99%"
    box.run()  # ready at 20
    box.post(UnloadRequested("a"))
    box.run()
    start = box.now
    box.ask("2")
    box.run(start + 3)
    box.post(LoadAdvanced("a", 0.5))
    assert eta_s(box.state, "2", box.now) == pytest.approx(3 + 10)
    box.run(start + 6)
    box.post(LoadAdvanced("a", 1.0))
    assert eta_s(box.state, "2", box.now) == pytest.approx(10)
    box.run(start + 18)
    assert eta_s(box.state, "2", box.now) == pytest.approx(2)  # late by two


def test_a_load_that_is_late_is_taken_to_be_as_late_again():
    box = box_of(infos={"a": {"load_s": 10.0}}, workers={"a": FakeWorker(load_s=60.0)})
    box.ask("1")
    box.run(25)
    assert why(box, "1").detail == "loading, ~99%, about 15 s left"
    box.post(LoadAdvanced("a", 0.0))  # nothing to go by yet
    assert eta_s(box.state, "1", box.now) == 15.0


def test_a_first_load_is_expected_by_what_others_of_its_size_took():
    gib = 1 << 30
    sizes = {"a": 4 * gib, "b": 8 * gib, "c": 400 * gib}
    box = box_of(
        "abc",
        infos={name: {"size_bytes": size} for name, size in sizes.items()},
        workers={"a": FakeWorker(load_s=10.0)},
    )
    box.ask("a", "a", service_s=0.0)
    assert eta_s(box.state, "a", 0.0) is None
    assert why(box, "a").detail == "loading"
    box.run()
    box.ask("b", "b")
    box.ask("c", "c")
    assert eta_s(box.state, "b", box.now) == pytest.approx(20.0, rel=0.02)
    assert eta_s(box.state, "c", box.now) is None
    told = {m.model: m.load_s for m in policy.statistics(box.state, box.now).models}
    assert told["a"] == 10.0
    assert told["b"] == pytest.approx(20.0, rel=0.02)
    assert told["c"] == 0.0


def test_eta_counts_the_load():
    box = box_of(infos={"a": {"load_s": 20.0}}, workers={"a": FakeWorker(load_s=20.0)})
    box.ask("1")
    assert eta_s(box.state, "1", 0.0) == 20.0
    box.run(15)
    assert eta_s(box.state, "1", 15.0) == 5.0


def test_eta_of_what_is_held_back_counts_hold_drain_and_load():
    box = trained(box_of(ready="a", infos={"b": {"load_s": 7.0}}), 8.0)
    start = box.now
    for number in range(9):
        box.ask(f"r{number}", service_s=8.0)
    box.ask("b", "b")
    assert eta_s(box.state, "b", start) == pytest.approx(30 + 8 + 7)
    box.run(start + 31)
    assert eta_s(box.state, "b", box.now) == pytest.approx(32 - 31 + 7)


def test_a_measured_load_replaces_the_estimate():
    box = box_of(infos={"a": {"load_s": 20.0}}, workers={"a": FakeWorker(load_s=4.0)})
    box.ask("1")
    box.run()
    assert policy.statistics(box.state, 0).models[0].load_s == 4.0


# --- numbers ---


def test_statistics_are_of_one_moment():
    box = box_of(ready="a", infos={"a": {"memory_bytes": 5, "pinned": True}})
    box.ask("1", key="x", service_s=50.0, tokens=10)
    box.run(2)
    box.ask("2", key="y", tokens=20)
    box.ask("3", key="y", tokens=30, priority=Priority.LOW)
    box.run(6)
    found = policy.statistics(box.state, 6.0)
    assert (found.queued, found.queued_tokens, found.running) == (2, 50, 1)
    assert (found.loaded, found.admission_open) == (("a",), True)
    assert [(k.key, k.queued, k.running) for k in found.keys] == [("x", 0, 1), ("y", 2, 0)]
    model = found.models[0]
    assert (model.model, model.state) == ("a", WorkerState.READY)
    assert (model.slots, model.slots_busy, model.running) == (1, 1, 1)
    assert model.queued == {Priority.HIGH: 0, Priority.NORMAL: 1, Priority.LOW: 1}
    assert (model.queued_tokens, model.oldest_wait_s) == (50, 4.0)
    assert (model.memory_bytes, model.pinned, model.leaving, model.wanted) == (5, True, None, False)


def test_who_stands_far_back_is_told_that_there_are_more_than_were_looked_at():
    box = box_of(ready="a")
    for number in range(602):
        box.ask(f"r{number}", service_s=9.0)
    first = policy.story(box.state, "r601")[0]
    assert first.detail.startswith("more than 512 ahead, ")
    assert policy.story(box.state, "r99")[0].detail.startswith("98 ahead, ")
