"""Requests for a model that is loaded: who is granted, who waits, who is turned away."""

from __future__ import annotations

import math

import pytest
from policy_box import Box, FakeWorker, ask

from llmd.core import policy
from llmd.core.events import (
    Cancelled,
    Grant,
    LeaseReleased,
    Refusal,
    Reject,
    Rule,
    Submitted,
)
from llmd.core.lifecycle import Priority
from llmd.core.policy import ModelInfo, PolicySettings, SchedulerState, decide


def box_with(slots=1, **settings) -> Box:
    """A box whose model a is ready with so many slots; leases end when the test says so."""
    box = Box(PolicySettings(**settings), workers={"a": FakeWorker(slots=slots)})
    box.preload("a")
    return box


def granted(actions) -> list[str]:
    return [action.id for action in actions if isinstance(action, Grant)]


def asks(box: Box, request_id: str, **kw) -> list[str]:
    return granted(box.ask(request_id, service_s=math.inf, **kw))


def rejection(actions) -> Reject:
    (found,) = actions
    assert isinstance(found, Reject)
    return found


def test_a_free_slot_is_granted_at_once():
    box = box_with(slots=2)
    assert asks(box, "1") == ["1"]
    assert asks(box, "2") == ["2"]
    assert asks(box, "3") == []
    assert granted(box.release("1")) == ["3"]


def test_a_lease_takes_a_slot_for_each_sequence_and_at_most_all():
    box = box_with(slots=4)
    (grant,) = box.ask("wide", slots=3)
    assert grant.slots == 3
    assert asks(box, "all", slots=9) == []
    (grant,) = box.release("wide")
    assert (grant.id, grant.slots) == ("all", 4)


def test_the_first_in_line_is_not_starved_by_narrow_ones_behind_it():
    box = box_with(slots=2)
    asks(box, "1")
    asks(box, "2")
    asks(box, "wide", slots=2)
    asks(box, "narrow")
    assert granted(box.release("1")) == []
    assert asks(box, "late") == [], "nor by who comes while a slot is kept for it"
    assert granted(box.release("2")) == ["wide"]
    assert granted(box.release("wide")) == ["narrow", "late"]


def test_class_then_share_then_arrival():
    box = box_with()
    asks(box, "runs", key="a")
    asks(box, "a1", key="a")
    asks(box, "a2", key="a")
    asks(box, "b1", key="b")
    asks(box, "low", key="c", priority=Priority.LOW)
    asks(box, "high", key="a", priority=Priority.HIGH)
    order = []
    while box.leases:
        order += granted(box.release(next(iter(box.leases))))
    # a has been charged for what ran when b comes to its turn
    assert order == ["high", "b1", "a1", "a2", "low"]


def test_a_key_at_its_concurrency_waits_and_blocks_nobody():
    box = box_with(slots=3)
    assert asks(box, "1", key="one", concurrency=1) == ["1"]
    assert asks(box, "2", key="one", concurrency=1) == []
    assert asks(box, "3", key="two") == ["3"]
    assert policy.explain(box.state, "2", 0).rule is Rule.KEY_CONCURRENCY
    assert policy.explain(box.state, "2", 0).blockers == ("1",)
    assert granted(box.release("1")) == ["2"]


def test_a_key_s_release_on_one_model_lets_it_run_on_another():
    box = box_with(max_loaded=2)
    box.preload("b")
    asks(box, "1", concurrency=1)
    asks(box, "2", model="b", concurrency=1)
    assert granted(box.release("1")) == ["2"]


# --- bounds ---


def test_bounds_hold_only_for_who_must_wait():
    box = box_with(slots=2, max_size=1, admin_quota=0, max_tokens=10)
    assert asks(box, "1", tokens=9999) == ["1"]
    assert asks(box, "2", tokens=9999) == ["2"]
    asks(box, "3", tokens=10)
    assert rejection(box.ask("4", tokens=1)).refusal is Refusal.QUEUE_FULL


def test_who_can_run_past_those_that_cannot_is_granted_though_the_queue_is_full():
    box = box_with(slots=2, max_size=1, admin_quota=0, max_share=0.0)
    asks(box, "1", key="one", concurrency=1)
    asks(box, "2", key="one", concurrency=1)
    assert asks(box, "3", key="two") == ["3"]


def test_what_is_larger_than_the_queue_is_told_so():
    box = box_with(max_tokens=100)
    asks(box, "1")
    refused = rejection(box.ask("2", tokens=101))
    assert refused.refusal is Refusal.TOO_LARGE
    assert "101 tokens" in refused.message


def test_a_refusal_says_what_to_do_and_when_from_measured_times():
    box = box_with(slots=2, max_size=1, admin_quota=0)
    for number in range(5):
        asks(box, f"old{number}")
        box.run(box.now + 8)
        box.release(f"old{number}")
    for name in "123":
        asks(box, name)
    refused = rejection(box.ask("4"))
    assert refused.retry_after_s == pytest.approx(8)
    assert "try again in about 8 s" in refused.message
    box.run(box.now + 5)
    assert rejection(box.ask("5")).retry_after_s == pytest.approx(3)


def test_a_key_that_holds_all_its_places_is_told_when_one_of_its_own_becomes_free():
    box = box_with(slots=1, max_size=10, admin_quota=0, max_share=0.1)
    for number in range(5):
        asks(box, f"old{number}")
        box.run(box.now + 8)
        box.release(f"old{number}")
    asks(box, "runs", key="other")
    asks(box, "first", key="third")
    asks(box, "second", key="greedy")
    refused = rejection(box.ask("third", key="greedy"))
    assert refused.retry_after_s == pytest.approx(16)


def test_with_nothing_measured_a_refusal_takes_what_runs_for_half_done():
    box = box_with(slots=1, max_size=1, admin_quota=0)
    asks(box, "runs")
    asks(box, "waits")
    assert rejection(box.ask("at once")).retry_after_s == 1
    box.run(box.now + 7)
    assert rejection(box.ask("refused")).retry_after_s == pytest.approx(7)


def test_a_retry_after_a_workers_death_is_refused_by_no_bound_and_keeps_its_place():
    box = box_with(max_size=1, admin_quota=0)
    asks(box, "old")
    box.run(1)
    asks(box, "young")
    box.crash("a")
    assert box.waiting == {"old", "young"}
    assert [w.item.id for w in box.state.queue.line("a").order(1, 0)] == ["old", "young"]


# --- coming and going ---


def test_a_waiter_that_goes_makes_way():
    box = box_with(slots=2)
    asks(box, "1")
    asks(box, "wide", slots=2)
    asks(box, "narrow")
    box.cancel("wide")
    assert set(box.leases) == {"1", "narrow"}


def test_unknown_ids_are_ignored():
    state = SchedulerState(PolicySettings(), [])
    assert decide(state, Cancelled("x"), 0.0) == []
    assert decide(state, LeaseReleased("x", 5), 0.0) == []
    assert policy.explain(state, "x", 0.0) is None
    assert policy.story(state, "x") == ()
    assert policy.eta_s(state, "x", 0.0) is None


def test_an_id_is_asked_for_once():
    box = box_with()
    asks(box, "1")
    with pytest.raises(ValueError, match="here already"):
        decide(box.state, Submitted(ask("1")), 0.0)


def test_a_grant_that_is_given_back_unused_costs_nothing():
    box = box_with()
    asks(box, "1", key="a", tokens=500)
    asks(box, "2", key="b")
    box.release("1", used=0)
    assert {k.key: k.counter for k in policy.statistics(box.state, 0).keys} == {"b": 100.0}
    assert policy.statistics(box.state, 0).models[0].service_s is None


def test_tokens_really_used_are_what_counts():
    box = box_with(slots=2)
    asks(box, "a1", key="a", tokens=1000)
    asks(box, "b1", key="b", tokens=100)
    box.release("a1", used=10)
    asks(box, "a2", key="a", tokens=10)
    counters = {k.key: k.counter for k in policy.statistics(box.state, 0).keys}
    assert counters == {"a": 20.0, "b": 100.0}


def test_a_worker_that_comes_back_smaller_is_not_overfilled():
    box = box_with(slots=4)
    for name in "1234":
        asks(box, name)
    box.crash("a")
    box.workers["a"].slots = 2
    box.run(20)
    assert len(box.leases) == 2
    assert len(box.waiting) == 2


def test_settings_and_models_can_change_at_any_time():
    box = box_with(max_size=10, admin_quota=0)
    asks(box, "1")
    asks(box, "2")
    box.state.configure(PolicySettings(max_size=1, admin_quota=0))
    box.settings = box.state.settings
    assert rejection(box.ask("3")).refusal is Refusal.QUEUE_FULL
    box.state.put_model(ModelInfo("a", load_s=77.0))
    assert policy.statistics(box.state, 0).models[0].load_s == 77.0
