"""What operators ask for: switch, its plan, unload, and closing admission."""

from __future__ import annotations

import math

import pytest
from policy_box import Box, FakeWorker

from llmd.core import policy
from llmd.core.events import (
    Admission,
    CancelLease,
    DrainWorker,
    Refusal,
    Rule,
    StartWorker,
    StopWorker,
    SwitchRequested,
    UnloadRequested,
    WorkerChanged,
)
from llmd.core.lifecycle import WorkerState
from llmd.core.policy import ModelInfo, PolicySettings, plan_switch


def box_of(names="abc", *, infos=None, ready="", workers=None, **settings) -> Box:
    models = [ModelInfo(name, **(infos or {}).get(name, {})) for name in names]
    box = Box(PolicySettings(**settings), models, workers or {})
    for name in ready:
        box.preload(name)
    return box


def switch(box: Box, model: str, **kw) -> list:
    return box.post(SwitchRequested(model, **kw))


# --- the plan ---


def test_the_plan_tells_what_would_happen_and_changes_nothing():
    box = box_of(ready="a", infos={"b": {"load_s": 14.0}}, workers={"a": FakeWorker(slots=2)})
    box.ask("a1", service_s=math.inf)
    box.ask("a2", service_s=math.inf)
    box.ask("a3", service_s=math.inf)
    box.ask("b1", "b")
    before = repr(box.state)
    plan = plan_switch(box.state, SwitchRequested("b"), 0.0)
    assert plan == policy.Plan(
        model="b",
        loaded=False,
        evict=("a",),
        add=False,
        fits=True,
        drains={"a": 2},
        queued={"a": 1, "b": 1},
        load_s=14.0,
        generation=box.state.generation,
    )
    assert repr(box.state) == before
    switch(box, "b")
    assert box.of(DrainWorker) == [DrainWorker("a", Rule.OPERATOR, "b")]


def test_a_plan_names_what_is_on_its_way_out_already():
    box = box_of(ready="a")
    box.ask("a1", service_s=math.inf)
    switch(box, "b")
    plan = plan_switch(box.state, SwitchRequested("b"), box.now)
    assert (plan.fits, plan.evict, plan.going) == (True, (), ("a",))
    plan = plan_switch(box.state, SwitchRequested("c"), box.now)  # takes over what goes for b
    assert (plan.evict, plan.going) == (("a",), ())


def test_a_plan_waits_for_nobody_who_goes_beside_room_enough():
    box = box_of(ready="a", max_loaded=2)
    box.ask("a1", service_s=math.inf)
    box.post(UnloadRequested("a"))
    plan = plan_switch(box.state, SwitchRequested("b"), box.now)
    assert (plan.fits, plan.evict, plan.going) == (True, (), ())
    assert plan_switch(box.state, SwitchRequested("a"), box.now).going == ()  # it may stay


def test_a_plan_waits_for_the_models_own_old_process():
    box = box_of(ready="a", max_loaded=2)
    box.post(UnloadRequested("a"))
    plan = plan_switch(box.state, SwitchRequested("a"), box.now)
    assert (plan.loaded, plan.going) == (False, ("a",))


def test_a_plan_for_a_model_never_heard_of_learns_nothing():
    box = box_of()
    assert plan_switch(box.state, SwitchRequested("hf:x"), 0.0).fits
    assert "hf:x" not in box.state.models


def test_a_plan_in_which_somebody_is_to_go_who_is_not_there_says_so():
    box = box_of(ready="a")
    plan = plan_switch(box.state, SwitchRequested("b", evict=("c",)), 0.0)
    assert (plan.fits, plan.not_loaded) == (False, ("c",))
    assert plan.reason == "c cannot make room: not loaded"
    assert switch(box, "b", evict=("c",)) == []
    assert not plan_switch(box.state, SwitchRequested("b", evict=("never-heard-of",)), 0.0).fits
    assert plan_switch(box.state, SwitchRequested("b", evict=("a", "b")), 0.0).fits


# --- switch ---


def test_a_switch_waits_neither_for_max_delay_nor_for_min_residency():
    box = box_of(ready="a")
    assert switch(box, "b") == [StopWorker("a", Rule.OPERATOR)]
    box.run()
    assert box.of(StartWorker) == [StartWorker("b", Rule.OPERATOR)]


def test_what_runs_finishes_unless_told_otherwise():
    box = box_of(ready="a")
    box.ask("1", service_s=100.0)
    switch(box, "b")
    box.run(99)
    assert not box.starts()
    box.run()
    assert box.ended["1"].released_at == 100
    assert box.starts() == ["b"]


@pytest.mark.parametrize(("how", "cancelled_at"), [({"drain_s": 7.0}, 7.0), ({"force": True}, 0.0)])
def test_a_drain_can_be_cut_short(how, cancelled_at):
    box = box_of(ready="a", max_drain_sec=1.0)
    box.ask("1", service_s=math.inf)
    switch(box, "b", **how)
    box.run()
    assert [at for at, a in box.log if isinstance(a, CancelLease)] == [cancelled_at]
    assert box.starts() == ["b"]


def test_max_drain_is_for_demand_and_does_not_cut_an_operators_drain():
    box = box_of(ready="a", max_drain_sec=1.0)
    box.ask("1", service_s=100.0)
    switch(box, "b")
    box.run()
    assert not box.of(CancelLease)


def test_named_models_go_pinned_ones_too_and_no_other():
    box = box_of("abcd", ready="abc", max_loaded=3, infos={"b": {"pinned": True}})
    switch(box, "d", evict=("b",))
    assert box.of(StopWorker) == [StopWorker("b", Rule.OPERATOR)]
    box.run()
    assert box.starts() == ["d"]


def test_named_models_that_do_not_make_room_are_left_alone():
    box = box_of(
        "abc",
        ready="ab",
        infos={n: {"memory_bytes": 5} for n in "ab"} | {"c": {"memory_bytes": 9}},
        max_loaded=0,
        memory_bytes=10,
    )
    plan = plan_switch(box.state, SwitchRequested("c", evict=("a",)), 0.0)
    assert (plan.fits, plan.evict) == (False, ())
    assert "beside b" in plan.reason
    assert switch(box, "c", evict=("a",)) == []
    assert switch(box, "c")


def test_pinned_models_go_last_when_the_policy_chooses():
    infos = {"a": {"pinned": True}}
    box = box_of(ready="ab", max_loaded=2, infos=infos)
    assert plan_switch(box.state, SwitchRequested("c"), 0.0).evict == ("b",)
    box = box_of(ready="a", infos=infos)
    assert plan_switch(box.state, SwitchRequested("c"), 0.0).evict == ("a",)


def test_add_never_evicts():
    box = box_of(ready="a", max_loaded=2)
    assert switch(box, "b", add=True) == [StartWorker("b", Rule.OPERATOR)]
    box.run()
    plan = plan_switch(box.state, SwitchRequested("c", add=True), box.now)
    assert not plan.fits
    assert plan.reason == "there is no room beside a, b"
    assert switch(box, "c", add=True) == []


def test_a_switch_to_what_is_loaded_only_unloads_what_is_named():
    box = box_of(ready="ab", max_loaded=2)
    plan = plan_switch(box.state, SwitchRequested("a"), 0.0)
    assert (plan.loaded, plan.evict, plan.load_s) == (True, (), 0.0)
    assert switch(box, "a") == []
    assert switch(box, "a", evict=("b",)) == [StopWorker("b", Rule.OPERATOR)]


def test_what_cannot_fit_at_all_says_so():
    box = box_of(infos={"a": {"memory_bytes": 8 << 20}}, memory_bytes=4 << 20)
    plan = plan_switch(box.state, SwitchRequested("a"), 0.0)
    assert not plan.fits
    assert plan.reason == "it needs about 8 MiB and models may hold 4 MiB in all"


def test_the_last_switch_wins():
    box = box_of(ready="a")
    box.ask("1", service_s=20.0)
    switch(box, "b")
    box.run(5)
    assert plan_switch(box.state, SwitchRequested("c"), 5.0).evict == ("a",)
    switch(box, "c", drain_s=5.0)
    box.run()
    assert box.starts() == ["c"]
    assert box.ended["1"].cancelled


def test_an_operator_who_switches_back_has_the_drain_called_off():
    box = box_of(ready="a")
    box.ask("1", service_s=20.0)
    switch(box, "b")
    box.run(5)
    switch(box, "a")
    box.run()
    assert box.starts() == []
    assert box.workers["a"].state is WorkerState.READY


def test_an_operators_switch_comes_before_what_demand_was_about_to_load():
    box = box_of(ready="a", max_delay_sec=30.0)
    box.ask("1", service_s=50.0)
    box.ask("b", "b")
    box.run(35)
    switch(box, "c")
    box.run(60)
    assert box.starts()[0] == "c"
    box.run()
    assert box.starts() == ["c", "b"]


def test_demand_does_not_stop_an_operators_load():
    box = box_of(workers={"b": FakeWorker(load_s=50.0)})
    switch(box, "b")
    box.run(10)
    box.ask("a", "a")
    box.run()
    assert box.ended["a"].granted_at == 57  # b is ready at 50, and may go 5 s later


def test_a_switch_tries_a_failed_model_again():
    box = box_of(workers={"a": FakeWorker(fails=True)})
    box.ask("1")
    box.run()
    assert switch(box, "a") == [StartWorker("a", Rule.OPERATOR)]


def test_who_waits_for_what_was_switched_away_may_have_it_back():
    box = box_of(ready="a")
    box.ask("1", service_s=3.0)
    box.ask("2", service_s=3.0)
    switch(box, "b")
    box.run()
    assert box.starts() == ["b", "a"]
    assert not box.waiting


def test_without_auto_switch_an_operators_switch_lets_requests_wait_for_it():
    box = box_of(ready="a", auto_switch=False)
    box.ask("1", service_s=9.0)
    switch(box, "b")
    box.ask("b", "b")
    box.run()
    assert box.ended["b"].granted_at == 11


# --- unload ---


def test_unload_drains_and_stops():
    box = box_of(ready="a", infos={"a": {"pinned": True}})
    box.ask("1", service_s=9.0)
    assert box.post(UnloadRequested("a")) == [DrainWorker("a", Rule.OPERATOR)]
    box.run()
    assert box.log[-1] == (9, StopWorker("a", Rule.OPERATOR))


def test_unload_by_force_cancels_what_runs():
    box = box_of(ready="a")
    box.ask("1", service_s=math.inf)
    done = box.post(UnloadRequested("a", force=True))
    assert done == [DrainWorker("a", Rule.OPERATOR), CancelLease("1", Rule.OPERATOR)]


def test_unload_stops_a_load_and_a_backoff_and_ignores_what_is_off():
    box = box_of(max_loaded=3)
    switch(box, "a")
    assert box.post(UnloadRequested("a")) == [StopWorker("a", Rule.OPERATOR)]
    box.preload("b")
    box.crash("b", backoff_s=99)
    assert box.post(UnloadRequested("b")) == [StopWorker("b", Rule.OPERATOR)]
    assert box.post(UnloadRequested("c")) == []
    assert box.post(UnloadRequested("unknown")) == []


def test_unload_then_switch_is_a_restart():
    box = box_of(ready="a", workers={"a": FakeWorker(stop_s=1.0)})
    box.post(UnloadRequested("a"))
    switch(box, "a", add=True)
    box.run()
    assert box.log == [
        (0, StopWorker("a", Rule.OPERATOR)),
        (1, StartWorker("a", Rule.OPERATOR)),
    ]


def test_an_unload_in_a_drain_for_another_is_not_called_off_with_it():
    box = box_of(ready="a")
    box.ask("1", service_s=60.0)
    box.ask("b", "b")
    box.run(35)
    box.post(UnloadRequested("a"))
    box.cancel("b")
    box.run()
    assert box.log[-1] == (60, StopWorker("a", Rule.OPERATOR))


def test_a_worker_that_others_drain_is_stopped_when_it_has():
    box = box_of(ready="a")
    box.ask("1", service_s=5.0)
    box.workers["a"].state = WorkerState.DRAINING
    box.post(WorkerChanged("a", WorkerState.DRAINING, slots=1))
    box.ask("2")
    box.run()
    assert box.of(StopWorker)[0].model == "a"
    assert box.ended["2"].granted_at == 7


# --- admission ---


def test_closed_admission_turns_new_requests_away_and_holds_what_is_queued():
    box = box_of(ready="a")
    box.ask("1", service_s=5.0)
    box.ask("2")
    assert box.post(Admission(open=False)) == []
    (refused,) = box.ask("3")
    assert refused.refusal is Refusal.SHUTTING_DOWN
    assert "takes no new requests" in refused.message
    assert policy.explain(box.state, "2", 0.0).rule is Rule.ADMISSION_CLOSED
    assert policy.eta_s(box.state, "2", 0.0) is None
    box.run(100)
    assert "2" in box.waiting
    assert policy.next_deadline(box.state, box.now) == math.inf
    box.post(Admission(open=True))
    assert box.ended["2"].granted_at == 100


def test_closing_for_good_turns_away_what_is_queued_and_retries_but_not_what_runs():
    box = box_of(ready="a")
    box.ask("1", service_s=5.0)
    box.ask("2", service_s=5.0)
    done = box.post(Admission(open=False, reject_queued=True, why="the box is moved"))
    assert [(a.id, a.refusal) for a in done] == [("2", Refusal.SHUTTING_DOWN)]
    assert done[0].message == "the box is moved"
    assert [why.rule for why in done[0].story] == [Rule.SLOTS_BUSY]
    box.crash("a")
    assert box.ended["1"].rejected.refusal is Refusal.SHUTTING_DOWN
    assert "its worker ended" in box.ended["1"].rejected.message


def test_a_pause_keeps_retries():
    box = box_of(ready="a")
    box.ask("1", service_s=5.0)
    box.post(Admission(open=False))
    box.crash("a")
    assert box.waiting == {"1"}
    box.run(20)
    box.post(Admission(open=True))
    assert box.ended["1"].granted_at == 20
