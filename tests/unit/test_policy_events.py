"""Every event in every state of a worker: an answer, never a fault, and nothing is lost."""

from __future__ import annotations

import itertools

import pytest
from policy_box import ask

from llmd.core.events import (
    Admission,
    Cancelled,
    LeaseReleased,
    Submitted,
    SwitchRequested,
    Tick,
    UnloadRequested,
    WorkerChanged,
)
from llmd.core.lifecycle import WorkerState
from llmd.core.policy import (
    ModelInfo,
    PolicySettings,
    SchedulerState,
    decide,
    eta_s,
    explain,
    next_deadline,
    plan_switch,
    statistics,
)

STATES = list(WorkerState)
EVENTS = [
    Submitted(ask("new", "a")),
    Submitted(ask("new", "b")),
    Submitted(ask("new", "never heard of")),
    Submitted(ask("new", "a", context=8000), again=True),
    Cancelled("waits"),
    Cancelled("nobody"),
    LeaseReleased("runs", 5),
    LeaseReleased("nobody", 5),
    *(WorkerChanged("a", state, slots=1, context_tokens=4096) for state in STATES),
    WorkerChanged("b", WorkerState.READY, slots=0),
    SwitchRequested("a", force=True),
    SwitchRequested("b", evict=("a", "nobody")),
    SwitchRequested("never heard of", add=True),
    UnloadRequested("a", drain_s=1.0),
    UnloadRequested("never heard of", force=True),
    Admission(open=False),
    Admission(open=False, reject_queued=True),
    Admission(open=True),
    Tick(),
]


@pytest.mark.parametrize("before", STATES)
@pytest.mark.parametrize("leaving", [None, SwitchRequested("b"), UnloadRequested("a")])
def test_any_event_in_any_state(before, leaving):
    for event, auto_switch in itertools.product(EVENTS, [True, False]):
        infos = [ModelInfo("a", context_max=9000, idle_timeout_s=9.0), ModelInfo("b")]
        state = SchedulerState(PolicySettings(auto_switch=auto_switch), infos)
        decide(state, WorkerChanged("a", WorkerState.READY, slots=1, context_tokens=4096), 0.0)
        decide(state, Submitted(ask("runs", "a")), 1.0)
        decide(state, Submitted(ask("waits", "a")), 2.0)
        decide(state, WorkerChanged("a", before, slots=1, context_tokens=4096), 3.0)
        if leaving is not None:
            decide(state, leaving, 4.0)
        decide(state, event, 50.0)
        for request_id in list(state.queue.waiting):
            assert explain(state, request_id, 51.0) is not None
            eta_s(state, request_id, 51.0)
        assert next_deadline(state, 51.0) >= 51.0
        assert statistics(state, 51.0).queued == len(state.queue)
        plan_switch(state, SwitchRequested("b"), 51.0)


def test_what_is_no_event_is_a_fault_of_the_caller():
    with pytest.raises(TypeError, match="no event"):
        decide(SchedulerState(PolicySettings(), []), "tick", 0.0)
