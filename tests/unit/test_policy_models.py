"""Which models are in memory: affinity, who gives way to whom, and when."""

from __future__ import annotations

import math

import pytest
from policy_box import Box, FakeWorker

from llmd.core import policy
from llmd.core.events import (
    CancelLease,
    DrainWorker,
    Grant,
    Refusal,
    Reject,
    ResumeWorker,
    Rule,
    StartWorker,
    StopWorker,
    SwitchRequested,
    Tick,
    UnloadRequested,
    WorkerChanged,
)
from llmd.core.lifecycle import Priority, WorkerState
from llmd.core.policy import ModelInfo, PolicySettings

HIGH, NORMAL, LOW = Priority.HIGH, Priority.NORMAL, Priority.LOW
GROWS = {"memory_bytes": 4, "context_tokens": 1000, "context_max": 9000, "bytes_per_token": 0.001}


def box_of(names="abc", *, infos=None, ready="", workers=None, **settings) -> Box:
    models = [ModelInfo(name, **(infos or {}).get(name, {})) for name in names]
    settings = {"max_size": 0, "aging_sec": 0.0, **settings}
    box = Box(PolicySettings(**settings), models, workers or {})
    for name in ready:
        box.preload(name)
    return box


def kinds(box: Box, *wanted: type) -> list[tuple[float, str, str]]:
    """What was done to workers: when, what, to which."""
    wanted = wanted or (StartWorker, DrainWorker, StopWorker, ResumeWorker)
    return [
        (at, type(action).__name__.removesuffix("Worker").lower(), action.model)
        for at, action in box.log
        if isinstance(action, wanted)
    ]


# --- loading what is asked for ---


def test_a_model_is_loaded_when_somebody_asks_and_there_is_room():
    box = box_of()
    assert box.ask("1", "b") == [StartWorker("b", Rule.DEMAND, "1", 0)]
    assert box.ask("2", "b") == []
    box.run()
    assert box.wait_s("1") == 2.0
    assert box.starts() == ["b"]


def test_a_b_a_c_a_b_c_costs_three_loads():
    box = box_of()
    for number, model in enumerate("abacabc"):
        box.ask(str(number), model)
    box.run()
    assert box.starts() == ["a", "b", "c"]
    assert not box.waiting


@pytest.mark.parametrize("max_loaded", [2, 3, 0])
def test_with_more_places_models_stay_side_by_side(max_loaded):
    box = box_of(max_loaded=max_loaded)
    for number, model in enumerate("ababab"):
        box.ask(str(number), model)
    box.run()
    assert sorted(box.starts()) == ["a", "b"]
    assert not box.of(StopWorker)


def test_an_idle_model_gives_way_at_once_when_it_has_served_min_residency():
    box = box_of(min_residency_sec=5.0)
    box.ask("1", "a", service_s=1.0)
    box.run(2.5)
    box.ask("2", "b")
    box.run()
    assert kinds(box) == [(0, "start", "a"), (7, "stop", "a"), (7, "start", "b")]


def test_requests_for_the_loaded_model_go_first_until_max_delay():
    """Held back that long, b stops a's admission; what runs there finishes."""
    box = box_of(ready="a", max_delay_sec=30.0)
    for number in range(40):
        box.ask(f"a{number}", "a", service_s=4.0)
    box.run(1)
    box.ask("b", "b")
    box.run(60)
    assert kinds(box)[:3] == [(31, "drain", "a"), (32, "stop", "a"), (32, "start", "b")]
    assert box.of(DrainWorker)[0].rule is Rule.MAX_DELAY
    assert box.ended["a7"].granted_at == 28
    assert box.wait_s("b") == 33
    assert box.ended["a8"].granted_at > 34


def test_who_was_displaced_is_held_back_from_when_the_other_is_ready():
    """Both have work without end: each serves its 30 s, whatever a load costs."""
    slow = {name: FakeWorker(load_s=60.0) for name in "ab"}
    box = box_of(ready="a", max_delay_sec=30.0, workers=slow)
    for number in range(300):
        box.ask(f"a{number}", "a", service_s=1.0)
        box.ask(f"b{number}", "b", service_s=1.0)
    box.run(400)
    stops = [(at, model) for at, what, model in kinds(box) if what == "stop"]
    assert stops == [(30, "a"), (120, "b"), (210, "a"), (300, "b"), (390, "a")]


def test_zero_max_delay_means_no_limit():
    box = box_of(ready="a", max_delay_sec=0.0)
    for number in range(100):
        box.ask(f"a{number}", "a")
    box.ask("b", "b")
    box.run()
    assert box.ended["b"].granted_at == 102


def test_the_longest_held_back_comes_first():
    box = box_of(ready="a", min_residency_sec=10.0)
    box.run(1)
    box.ask("c", "c")
    box.ask("b", "b")
    box.run()
    assert box.starts() == ["c", "b"]


# --- classes ---


def test_a_higher_class_than_all_that_is_queued_there_does_not_wait_for_max_delay():
    box = box_of(ready="a", min_residency_sec=5.0)
    for number in range(20):
        box.ask(f"a{number}", "a", service_s=3.0)
    box.run(1)
    box.ask("b", "b", priority=HIGH)
    box.run(20)
    assert kinds(box)[:3] == [(5, "drain", "a"), (6, "stop", "a"), (6, "start", "b")]
    assert box.of(DrainWorker)[0].rule is Rule.HIGHER_CLASS


def test_the_same_class_anywhere_in_the_queue_there_holds_it_back():
    box = box_of(ready="a", min_residency_sec=0.0)
    box.ask("a1", "a", service_s=9.0)
    box.ask("a2", "a", service_s=9.0)
    box.ask("a3", "a", priority=HIGH, service_s=9.0)
    box.ask("b", "b", priority=HIGH)
    box.run(8)
    assert kinds(box) == []
    box.run(17)
    assert kinds(box) == [(9, "drain", "a")], "once a3 runs, only lower ones are queued there"


def test_where_nothing_is_queued_what_runs_there_is_compared():
    box = box_of(ready="a", min_residency_sec=0.0)
    box.ask("a", "a", service_s=9.0)
    box.ask("b", "b")
    assert kinds(box) == []
    box.ask("c", "c", priority=HIGH)
    assert kinds(box) == [(0, "drain", "a")]


def test_a_higher_class_is_still_served_by_a_model_that_must_go():
    """Admission is stopped for the same and lower classes only."""
    box = box_of(ready="a", workers={"a": FakeWorker(slots=2)})
    box.ask("long", "a", service_s=100.0)
    box.ask("b", "b")
    box.run(40)
    assert kinds(box) == [(30, "drain", "a")]
    box.ask("normal", "a")
    box.run(41)
    box.ask("urgent", "a", priority=HIGH)
    assert box.wait_s("urgent") == 0
    assert [what for _, what, _ in kinds(box)] == ["drain", "resume", "drain"]
    assert "normal" in box.waiting


def test_a_lower_class_held_back_long_enough_waits_for_the_higher_ones_queued_only():
    box = box_of(ready="a", max_delay_sec=10.0)
    box.ask("low", "b", priority=LOW)
    for number in range(20):
        box.ask(f"a{number}", "a", priority=HIGH if number < 15 else LOW)
    box.run(60)
    assert box.ended["a14"].granted_at == 14
    assert box.ended["low"].granted_at == 17
    assert box.ended["a15"].granted_at > 17


# --- second thoughts ---


def test_a_drain_is_called_off_when_nobody_needs_it_any_more():
    box = box_of(ready="a")
    box.ask("long", "a", service_s=100.0)
    box.ask("b", "b")
    box.run(35)
    box.cancel("b")
    assert kinds(box) == [(30, "drain", "a"), (35, "resume", "a")]
    box.run(101)
    box.ask("next", "a")
    assert box.wait_s("next") == 0


def test_a_shell_that_cannot_resume_only_pays_a_reload():
    box = box_of(ready="a")
    box.resumes = False
    box.ask("long", "a", service_s=100.0)
    box.ask("b", "b")
    box.run(35)
    box.cancel("b")
    box.ask("next", "a")
    box.run()
    assert kinds(box)[-2:] == [(100, "stop", "a"), (100, "start", "a")]
    assert box.ended["next"].granted_at == 102


def test_another_model_that_became_idle_goes_instead_of_a_long_drain():
    box = box_of(ready="ab", max_loaded=2, infos={"b": {"load_s": 99.0}})
    box.ask("long", "a", service_s=600.0)
    box.ask("b", "b", service_s=40.0)
    box.ask("c", "c")
    box.run(100)
    assert kinds(box)[:4] == [
        (30, "drain", "a"),
        (40, "resume", "a"),
        (40, "stop", "b"),
        (40, "start", "c"),
    ]


def test_a_load_that_nobody_waits_for_any_more_is_stopped_for_another():
    box = box_of(workers={"a": FakeWorker(load_s=50.0)})
    box.ask("a", "a")
    box.run(10)
    box.cancel("a")
    assert not box.of(StopWorker), "it may go on until its place is needed"
    box.ask("b", "b")
    assert kinds(box)[1:] == [(10, "stop", "a")]
    box.run()
    assert box.ended["b"].granted_at == 12


def test_a_load_that_somebody_waits_for_is_finished_and_serves_before_it_goes():
    box = box_of(workers={"a": FakeWorker(load_s=50.0)}, min_residency_sec=0.0)
    box.ask("a", "a")
    box.ask("b", "b")
    box.run()
    assert box.ended["a"].granted_at == 50
    assert box.ended["b"].granted_at == 53


def test_nobody_goes_for_a_request_whose_key_runs_all_it_may():
    box = box_of("abcd", ready="ab", max_loaded=2, min_residency_sec=0.0)
    box.ask("runs", "a", concurrency=1, service_s=50.0)
    box.ask("more", "c", concurrency=1)
    box.run(40)
    assert kinds(box) == []
    box.run()
    assert kinds(box)[0] == (50, "stop", "b")


def test_a_model_that_only_such_requests_wait_for_counts_as_idle():
    box = box_of("abc", ready="ab", max_loaded=2, min_residency_sec=0.0)
    box.ask("runs", "a", concurrency=1, service_s=50.0)
    box.ask("more", "b", concurrency=1)
    box.ask("other", "c", key="else")
    assert kinds(box)[:1] == [(0, "stop", "b")]


# --- what goes ---


def test_max_drain_cancels_what_runs_on():
    box = box_of(ready="a", max_drain_sec=7.0)
    box.ask("endless", "a", service_s=math.inf)
    box.ask("b", "b")
    box.run(60)
    assert [(at, a) for at, a in box.log if isinstance(a, CancelLease)] == [
        (37, CancelLease("endless", Rule.MAX_DELAY))
    ]
    assert box.ended["b"].granted_at < 40


def test_the_long_idle_and_cheap_goes_and_the_pinned_stays():
    box = box_of(
        "abcd", ready="abc", max_loaded=3, infos={"a": {"pinned": True}, "b": {"load_s": 60.0}}
    )
    box.run(100)
    box.ask("b", "b")
    box.ask("c", "c", service_s=2.0)
    box.run(110)
    box.ask("d", "d")
    assert box.of(StopWorker) == [StopWorker("c", Rule.DEMAND)]


def test_memory_counts_besides_places():
    infos = {"a": {"memory_bytes": 4}, "b": {"memory_bytes": 5}, "c": {"memory_bytes": 7}}
    box = box_of(ready="ab", infos=infos, max_loaded=0, memory_bytes=10)
    box.run(10)
    box.ask("c", "c")
    box.run()
    assert {a.model for a in box.of(StopWorker)} == {"a", "b"}


def test_measured_memory_replaces_the_estimate():
    box = box_of(infos={"a": {"memory_bytes": 9}, "b": {"memory_bytes": 5}}, max_loaded=0)
    box.state.configure(PolicySettings(max_loaded=0, memory_bytes=10))
    box.preload("a")
    box.post(WorkerChanged("a", WorkerState.READY, slots=1, memory_bytes=5))
    box.ask("b", "b")
    assert box.starts() == ["b"]


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"max_loaded": 1}, "pinned (a)"),
        ({"max_loaded": 0, "memory_bytes": 3 << 20}, "needs about 4 MiB"),
    ],
)
def test_what_can_never_fit_is_turned_away_at_once(settings, said):
    box = box_of(
        ready="a", infos={"a": {"pinned": True}, "b": {"memory_bytes": 4 << 20}}, **settings
    )
    (refused,) = box.ask("b", "b")
    assert isinstance(refused, Reject)
    assert refused.refusal is Refusal.INSUFFICIENT_MEMORY
    assert said in refused.message


def test_what_is_not_used_is_unloaded_after_its_time():
    box = box_of(infos={"a": {"idle_timeout_s": 60.0}, "b": {"idle_timeout_s": 0.0}}, max_loaded=2)
    box.ask("a", "a", service_s=3.0)
    box.ask("b", "b", service_s=3.0)
    box.run()
    assert kinds(box, StopWorker) == [(65, "stop", "a")]
    assert box.of(StopWorker)[0].rule is Rule.IDLE_TIMEOUT


def test_a_pinned_model_is_not_unloaded_for_idleness():
    box = box_of(ready="a", infos={"a": {"idle_timeout_s": 60.0, "pinned": True}})
    assert policy.next_deadline(box.state, 0.0) == math.inf


# --- failures ---


def test_a_failed_model_turns_its_requests_away_with_the_reason_and_delays_nobody():
    box = box_of(workers={"a": FakeWorker(fails=True)}, min_residency_sec=0.0)
    box.ask("a1", "a")
    box.ask("a2", "a")
    box.ask("b", "b")
    box.run()
    for name in ("a1", "a2"):
        assert box.ended[name].rejected.refusal is Refusal.MODEL_FAILED
        assert "bad file" in box.ended[name].rejected.message
    assert box.ended["b"].granted_at == 4
    (refused,) = box.ask("a3", "a")
    assert refused.refusal is Refusal.MODEL_FAILED
    assert box.starts() == ["a", "b"]


def test_a_failure_that_expires_is_tried_again():
    box = box_of()
    box.workers["a"].state = WorkerState.FAILED
    box.post(WorkerChanged("a", WorkerState.FAILED, reason="killed", retry_at=50.0))
    box.run(20)
    (refused,) = box.ask("1", "a")
    assert refused.retry_after_s == 30
    box.run(50)
    assert box.ask("2", "a") == [StartWorker("a", Rule.DEMAND, "2", 0)]


def test_a_reset_lets_it_load_again():
    box = box_of(workers={"a": FakeWorker(fails=True)})
    box.ask("1", "a")
    box.run()
    box.workers["a"].fails = False
    box.move("a", WorkerState.OFF)
    box.ask("2", "a")
    box.run()
    assert box.ended["2"].granted_at == 4


def test_a_reset_announced_after_a_start_was_sent_does_not_give_its_place_away():
    box = box_of()
    box.lag_s = 1.0
    box.workers["a"].state = WorkerState.FAILED
    box.post(WorkerChanged("a", WorkerState.FAILED, reason="killed"))
    box.post(SwitchRequested("a"))
    box.ask("b", "b")
    box.move("a", WorkerState.OFF)
    assert box.starts() == ["a"]
    box.run()
    assert box.starts() == ["a", "b"]


def test_when_the_displacer_fails_the_displaced_is_loaded_again():
    box = box_of(ready="a", workers={"b": FakeWorker(fails=True)})
    box.ask("a1", "a", service_s=40.0)
    box.ask("b", "b")
    box.run(31)
    box.ask("a2", "a")
    box.run()
    assert box.ended["b"].rejected.refusal is Refusal.MODEL_FAILED
    assert box.ended["a2"].granted_at == 44


def test_who_waits_for_a_crashed_worker_waits_on_and_goes_first_by_arrival():
    box = box_of(ready="a")
    box.ask("old", "a", service_s=9.0)
    box.run(1)
    box.ask("young", "a")
    box.crash("a", backoff_s=3.0)
    assert policy.explain(box.state, "young", 1).rule is Rule.MODEL_BACKOFF
    box.run()
    assert box.ended["old"].granted_at == 6
    assert box.ended["young"].granted_at == 15


def test_a_worker_in_backoff_that_nobody_waits_for_gives_way_at_once():
    box = box_of(ready="a")
    box.run(1)
    box.crash("a", backoff_s=100.0)
    box.ask("b", "b")
    box.run()
    assert box.ended["b"].granted_at == 3


def test_a_crash_in_the_drain_ends_the_drain():
    box = box_of(ready="a")
    box.ask("a", "a", service_s=math.inf)
    box.ask("b", "b")
    box.run(35)
    box.crash("a")
    box.run(40)
    assert box.ended["b"].granted_at == 37
    assert "a" in box.waiting


# --- context ---


def test_a_request_that_needs_more_context_waits_for_a_reload():
    box = box_of(ready="a", infos={"a": {"context_max": 9000}}, min_residency_sec=0.0)
    box.ask("small", "a", service_s=3.0)
    box.ask("large", "a", context=8000)
    assert policy.explain(box.state, "large", 0).rule is Rule.CONTEXT_RELOAD
    box.run()
    assert kinds(box) == [(3, "stop", "a"), (3, "start", "a")]
    assert box.of(StartWorker)[0].context_tokens == 8000
    assert box.ended["large"].granted_at == 5


def test_a_reload_waits_while_others_use_the_model_at_most_max_delay():
    box = box_of(ready="a", infos={"a": {"context_max": 9000}})
    box.ask("large", "a", context=8000)
    for number in range(50):
        box.ask(f"small{number}", "a")
    box.run()
    assert box.ended["small29"].granted_at == 29
    assert kinds(box) == [(30, "stop", "a"), (30, "start", "a")]
    assert box.ended["large"].granted_at == 32


def test_what_no_reload_can_give_is_granted_for_the_api_to_refuse():
    box = box_of(ready="a", infos={"a": {"context_max": 9000}})
    assert isinstance(box.ask("huge", "a", context=9001)[0], Grant)


def test_a_reload_that_fell_short_is_not_tried_for_ever():
    box = box_of(
        ready="a",
        infos={"a": {"context_max": 9000}},
        workers={"a": FakeWorker(context_limit=6000)},
        min_residency_sec=0.0,
    )
    box.ask("large", "a", context=8000)
    box.run()
    assert box.starts() == ["a"]
    box.ask("again", "a", context=8000)
    box.run()
    assert box.wait_s("again") == 0
    assert box.starts() == ["a"]


def test_a_model_is_loaded_with_the_context_that_its_waiters_need():
    box = box_of(infos={"a": {"context_max": 9000}}, ready="b")
    box.ask("1", "a", context=100)
    box.ask("2", "a", context=7000)
    box.ask("3", "a", context=99_000)
    box.run()
    assert box.of(StartWorker) == [StartWorker("a", Rule.DEMAND, "1", 7000)]


# --- auto_switch ---


def test_without_auto_switch_requests_load_nothing():
    box = box_of(ready="a", auto_switch=False, infos={"a": {"context_max": 99_999}})
    assert isinstance(box.ask("a", "a", context=50_000)[0], Grant)
    (refused,) = box.ask("b", "b")
    assert refused.refusal is Refusal.MODEL_NOT_LOADED
    assert box.starts() == []


def test_without_auto_switch_who_waits_for_a_model_that_goes_is_told():
    box = box_of(ready="a", auto_switch=False)
    box.ask("1", "a", service_s=5.0)
    box.ask("2", "a")
    box.post(UnloadRequested("a"))
    box.run()
    assert box.ended["2"].rejected.refusal is Refusal.MODEL_NOT_LOADED
    assert box.ended["1"].released_at == 5


# --- time ---


def test_nothing_is_due_when_nothing_can_change_by_itself():
    box = box_of(ready="a")
    assert policy.next_deadline(box.state, 0.0) == math.inf
    box.ask("a", "a", service_s=math.inf)
    box.ask("a2", "a")
    assert policy.next_deadline(box.state, 0.0) == math.inf
    box.ask("b", "b")
    assert policy.next_deadline(box.state, 0.0) == 5.0, "then a may be evicted"


def test_a_deadline_missed_is_due_now_and_not_forgotten():
    box = box_of(ready="a")
    box.ask("a", "a", service_s=math.inf)
    box.ask("b", "b")
    assert policy.next_deadline(box.state, 99.0) == 99.0
    box.now = 99.0
    box.post(Tick())
    assert kinds(box) == [(99, "drain", "a")]


def test_the_generation_grows_with_what_is_loaded():
    box = box_of()
    seen = [box.state.generation]
    for step in range(12):
        if step == 3:
            box.ask("a", "a")
        if step == 6:
            box.ask("b", "b")
        box.run(step)
        seen.append(box.state.generation)
    assert seen == sorted(seen)
    assert seen[3] == 0
    assert seen[4] < seen[6] < seen[-1]


def test_a_reload_with_more_context_evicts_what_no_longer_fits_beside_it():
    box = box_of(
        infos={"a": GROWS, "b": {"memory_bytes": 5}},
        workers={"a": FakeWorker(context=1000)},
        ready="ab",
        max_loaded=0,
        memory_bytes=10,
        min_residency_sec=0.0,
    )
    box.run(1)
    box.ask("fits", "a", context=2000)  # 4 and 1 more beside 5
    box.run(10)
    assert box.of(StopWorker) == [StopWorker("a", Rule.DEMAND)]
    box.ask("large", "a", context=6000)  # 9 in all
    box.run(20)
    assert {a.model for a in box.of(StopWorker)[1:]} == {"a", "b"}
    assert box.ended["large"].granted_at < 20
    assert policy.statistics(box.state, box.now).models[0].memory_bytes == 9


def test_a_reload_that_cannot_fit_turns_away_only_those_that_need_it():
    pinned = {"memory_bytes": 5, "pinned": True}
    box = box_of(infos={"a": GROWS, "b": pinned}, ready="ab", max_loaded=0, memory_bytes=10)
    box.workers["a"].context = 1000
    box.preload("a")
    box.run(6)
    box.ask("large", "a", context=6000)
    refused = box.ended["large"].rejected
    assert refused.refusal is Refusal.INSUFFICIENT_MEMORY
    assert "more than 1000 tokens" in refused.message
    assert isinstance(box.ask("small", "a", context=900)[0], Grant)
    assert box.of(StopWorker) == []


def test_who_asks_for_more_context_after_the_decision_is_served_by_a_later_reload():
    """Room was made for what was waited for then; the start must not wait for more than that."""
    infos = {"a": GROWS, "b": {"memory_bytes": 5}, "c": {"memory_bytes": 3}}
    box = box_of(infos=infos, max_loaded=0, memory_bytes=10, ready="bc")
    box.workers["a"].context = 1000
    box.workers["b"].stop_s = 5.0
    box.run(10)
    box.ask("small", "a", context=900)
    assert box.of(StopWorker) == [StopWorker("b", Rule.DEMAND)]
    box.ask("large", "a", context=6000)
    box.run(40)
    assert box.ended["small"].granted_at == 10 + 5 + 2
    assert box.ended["large"].granted_at < 40


def test_who_is_turned_away_for_its_context_keeps_no_model_from_going():
    box = box_of(infos={"a": GROWS, "b": {"memory_bytes": 7}}, max_loaded=0, memory_bytes=10)
    box.workers["a"].context = 1000
    box.preload("a")
    box.run(1)
    box.ask("b", "b")
    box.ask("large", "a", context=9000)  # 12 of 10, found out once a may be reloaded
    box.run(5)
    assert box.ended["large"].rejected.refusal is Refusal.INSUFFICIENT_MEMORY
    assert (5, "stop", "a") in kinds(box)


def test_what_is_still_in_memory_counts_with_what_it_holds_although_it_comes_back_with_less():
    infos = {"a": GROWS, "b": {"memory_bytes": 4}}
    box = box_of(infos=infos, max_loaded=0, memory_bytes=10, min_residency_sec=0.0)
    box.workers["a"].stop_s = 5.0
    box.ask("large", "a", context=9000, service_s=1.0)
    assert box.ended["large"].rejected  # 12 of 10
    box.ask("large", "a", context=7000, service_s=1.0)
    box.run(4)
    box.post(UnloadRequested("a"))  # it holds 10 until it has ended
    box.ask("b", "b")
    box.post(SwitchRequested("a", add=True))  # and will hold 4
    assert box.starts() == ["a"]
    box.run(20)
    assert box.starts() == ["a", "b", "a"] or box.starts() == ["a", "a", "b"]
    assert box.workers["b"].state is WorkerState.READY


def test_a_lower_class_that_comes_to_a_model_that_must_reload_decides_at_once():
    box = box_of(infos={"a": {"context_max": 9000}}, workers={"a": FakeWorker(slots=1)}, ready="a")
    box.run(6)
    box.ask("high", "a", priority=HIGH, service_s=50.0)
    box.ask("large", "a", context=9000)
    box.ask("low", "a", priority=LOW)
    before = len(box.log)
    box.post(Tick())
    assert box.log[before:] == []  # whatever follows from it has been done


def test_a_switch_to_what_is_on_its_way_out_counts_what_it_will_hold_then():
    box = box_of(infos={"a": GROWS, "b": {"memory_bytes": 4}}, max_loaded=0, memory_bytes=10)
    box.workers["a"].context = 1000
    box.workers["a"].stop_s = 5.0
    box.preload("a")
    box.preload("b")
    box.post(UnloadRequested("a"))
    box.ask("large", "a", context=6000)  # 9, and b holds 4
    plan = policy.plan_switch(box.state, SwitchRequested("a", add=True), box.now)
    assert plan.fits  # as it was: with the context that fits
    box.post(SwitchRequested("a", add=True))
    box.run(8)
    assert box.workers["a"].state is WorkerState.READY
    assert box.workers["b"].starts == 0


def test_a_start_for_which_there_turns_out_to_be_no_room_is_decided_anew():
    """What was taken for small is measured to be large while another model waits to be started."""
    infos = {"a": {"memory_bytes": 2}, "b": {"memory_bytes": 5}, "c": {"memory_bytes": 3}}
    box = box_of(infos=infos, max_loaded=0, memory_bytes=10, ready="c", min_residency_sec=0.0)
    box.workers["a"].load_s = 20.0
    box.workers["c"].stop_s = 30.0
    box.run(1)
    box.ask("a", "a", service_s=2.0)
    box.run(2)
    box.state.put_model(ModelInfo("b", memory_bytes=6))
    box.ask("b", "b")
    assert box.of(StopWorker) == [StopWorker("c", Rule.DEMAND)]
    box.workers["a"].epoch += 1
    box.workers["a"].state = WorkerState.READY
    box.post(WorkerChanged("a", WorkerState.READY, slots=1, memory_bytes=9))
    assert "b" not in box.state.wants
    box.state.put_model(ModelInfo("b", memory_bytes=1))
    box.run(60)
    assert not box.waiting


def test_a_first_load_counts_the_context_that_is_waited_for():
    pinned = {"memory_bytes": 5, "pinned": True}
    box = box_of(infos={"a": GROWS, "b": pinned}, ready="b", max_loaded=0, memory_bytes=10)
    box.ask("large", "a", context=6000)
    assert box.ended["large"].rejected.refusal is Refusal.INSUFFICIENT_MEMORY
    box.ask("small", "a", context=900)
    box.run(9)
    assert box.ended["small"].granted_at < 9


def test_a_loading_worker_counts_with_its_estimate_and_a_ready_one_with_what_it_may_grow_by():
    box = box_of(infos={"a": {"memory_bytes": 9, "reserve_bytes": 2}}, memory_bytes=10)
    box.ask("a", "a")
    box.post(WorkerChanged("a", WorkerState.LOADING, memory_bytes=1))
    assert policy.statistics(box.state, box.now).models[0].memory_bytes == 9
    box.workers["a"].state = WorkerState.READY
    box.post(WorkerChanged("a", WorkerState.READY, slots=1, memory_bytes=5))
    assert policy.statistics(box.state, box.now).models[0].memory_bytes == 7


# --- failed for now, failed for good ---


@pytest.mark.parametrize("permanent", [True, False])
def test_a_refusal_says_whether_a_failed_model_may_serve_again(permanent):
    box = box_of()
    box.ask("waits", "a")
    box.workers["a"].epoch += 1
    box.move("a", WorkerState.FAILED, reason="killed", retry_at=50.0, permanent=permanent)
    (later,) = box.ask("later", "a")
    assert later.message == box.ended["waits"].rejected.message
    assert ("is tried again in 50 s" in later.message) is not permanent
    assert later.retry_after_s == 50.0
