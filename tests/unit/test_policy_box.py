"""The policy in a simulated box, with whatever may happen: what must hold for every course."""

from __future__ import annotations

import copy

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from policy_box import Box, FakeWorker

from llmd.core import policy
from llmd.core.events import (
    Admission,
    Rule,
    StopWorker,
    SwitchRequested,
    UnloadRequested,
)
from llmd.core.lifecycle import Priority, WorkerState
from llmd.core.policy import ModelInfo, PolicySettings
from llmd.core.policy_state import Model

QUICK = settings(
    max_examples=120,
    derandomize=True,
    deadline=None,
    database=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)

MODELS = "abcd"
models = st.sampled_from(MODELS)
keys = st.sampled_from(["k1", "k2", "k3", "root"])
seconds = st.sampled_from([0.0, 0.1, 1.0, 3.0, 10.0, 40.0])

requests = st.fixed_dictionaries(
    {
        "model": models,
        "key": keys,
        "priority": st.sampled_from(list(Priority)),
        "tokens": st.integers(1, 400),
        "slots": st.sampled_from([1, 1, 1, 2, 9]),
        "context": st.sampled_from([0, 0, 100, 5000, 9000, 99999]),
        "concurrency": st.sampled_from([0, 0, 0, 1, 2]),
        "service_s": st.sampled_from([0.0, 0.5, 2.0, 25.0]),
    }
)
steps = st.one_of(
    st.tuples(st.just("ask"), requests),
    st.tuples(st.just("ask"), requests),
    st.tuples(st.just("ask"), requests),
    st.tuples(st.just("wait"), seconds),
    st.tuples(st.just("wait"), seconds),
    st.tuples(st.just("cancel"), st.integers(0, 200)),
    st.tuples(st.just("crash"), models),
    st.tuples(st.just("fail"), models),
    st.tuples(st.just("reset"), models),
    st.tuples(
        st.just("switch"),
        st.builds(
            SwitchRequested,
            model=models,
            evict=st.lists(models, max_size=2).map(tuple),
            add=st.booleans(),
            drain_s=st.sampled_from([0.0, 1.0]),
            force=st.booleans(),
        ),
    ),
    st.tuples(st.just("unload"), st.builds(UnloadRequested, model=models, force=st.booleans())),
    st.tuples(st.just("admit"), st.tuples(st.booleans(), st.booleans())),
)
worlds = st.fixed_dictionaries(
    {
        "max_loaded": st.sampled_from([1, 2, 3, 0]),
        "memory_bytes": st.sampled_from([0, 0, 10, 6]),
        "max_size": st.sampled_from([0, 5, 12]),
        "max_size_per_model": st.sampled_from([0, 3]),
        "max_tokens": st.sampled_from([0, 1000]),
        "admin_quota": st.sampled_from([0, 2]),
        "max_share": st.sampled_from([0.5, 0.0, 0.1]),
        "aging_sec": st.sampled_from([0.0, 20.0]),
        "max_delay_sec": st.sampled_from([30.0, 0.0, 5.0]),
        "max_drain_sec": st.sampled_from([0.0, 3.0]),
        "min_residency_sec": st.sampled_from([5.0, 0.0]),
        "auto_switch": st.sampled_from([True, True, True, False]),
    }
)


def check_bounds(box: Box, item_id: str) -> None:
    """A request that waits after it was submitted found its place within all bounds."""
    s, queue = box.settings, box.state.queue
    waiting = [box.items[i] for i in box.waiting]
    item = box.items[item_id]
    if s.max_size:
        assert len(waiting) <= s.max_size
        if not item.admin:
            assert sum(not w.admin for w in waiting) <= s.max_size - s.admin_quota
        if s.max_share:
            own = sum(w.key == item.key for w in waiting)
            assert own <= max(1, s.max_share * s.max_size)
    if s.max_size_per_model:
        assert queue.line(item.model).count <= s.max_size_per_model
    if s.max_tokens:
        assert sum(w.tokens for w in waiting) <= s.max_tokens


def by_operator(model: Model) -> bool:
    return model.leaving is not None and model.leaving.rule is Rule.OPERATOR


def play(box: Box, course: list) -> None:
    retries_may_exceed = False
    for number, (what, value) in enumerate(course):
        match what:
            case "ask":
                rest = dict(value)
                request_id = f"r{number}"
                box.ask(request_id, rest.pop("model"), admin=value["key"] == "root", **rest)
                if request_id in box.waiting and not retries_may_exceed:
                    check_bounds(box, request_id)
            case "wait":
                box.run(box.now + value)
            case "cancel":
                box.cancel(f"r{value % (number + 1)}")
            case "crash":
                box.crash(value)
                retries_may_exceed = True
            case "fail":
                box.crash(value, fail=True)
                retries_may_exceed = True
            case "reset":
                if box.workers[value].state is WorkerState.FAILED:
                    box.move(value, WorkerState.OFF)
            case "switch":
                untouched = copy.deepcopy(box.state)
                plan = policy.plan_switch(box.state, value, box.now)
                before = {m.name for m in box.state.models.values() if by_operator(m)}
                done = box.post(value)
                assert plan == policy.plan_switch(untouched, value, box.now)
                if plan.fits:
                    found = box.state.models
                    # what demand then decides for itself is not of the plan
                    after = {m.name for m in found.values() if by_operator(m)}
                    assert after - before <= set(plan.evict)
                    stopped = {a.model for a in done if isinstance(a, StopWorker)}
                    assert set(plan.evict) <= after | stopped
                    target = found[value.model]
                    kept = not target.absent or value.model in box.state.wants
                    assert kept or plan.loaded
                else:
                    assert done == [], (value, plan, done)
            case "unload":
                box.post(value)
            case "admit":
                box.post(Admission(*value))
        box.whys()


@pytest.mark.parametrize(("resumes", "lag_s"), [(True, 0.0), (True, 0.2), (False, 0.0)])
@given(world=worlds, course=st.lists(steps, max_size=40), fixed=st.sampled_from(["", "d"]))
@QUICK
def test_whatever_happens_all_is_served_or_told_why_and_nothing_is_left(
    resumes, lag_s, world, course, fixed
):
    infos = [
        ModelInfo(
            name,
            memory_bytes=1 + 2 * number,
            context_max=9000,
            pinned=name == fixed,
            idle_timeout_s=7.0 * number,
        )
        for number, name in enumerate(MODELS)
    ]
    box = Box(
        PolicySettings(**world),
        infos,
        {
            "a": FakeWorker(slots=2),
            "b": FakeWorker(slots=1, load_s=12.0, stop_s=1.0),
            "c": FakeWorker(slots=4, context_limit=6000),
            "d": FakeWorker(slots=2, load_s=0.1),
        },
        resumes=resumes,
        lag_s=lag_s,
    )
    play(box, course)
    box.post(Admission(open=True))
    box.run(box.now + 1000)
    assert not box.waiting
    box.post(Admission(open=False, reject_queued=True))
    box.run(box.now + 1000)
    assert not box.waiting
    assert not box.leases
    assert not box.state.queue.lines
    assert not box.state.queue.tokens
    assert not box.state.leases
    assert not len(box.state.shares)
    for model in box.state.models.values():
        assert model.used == 0
        assert not model.leases
    for request_id, ended in box.ended.items():
        assert ended.cancelled or ended.rejected or ended.released_at >= ended.granted_at, (
            request_id
        )
