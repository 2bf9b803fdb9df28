"""Properties with numbers: how long anybody waits, how far two keys drift apart."""

from __future__ import annotations

import math

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from policy_box import Box, FakeWorker

from llmd.core.lifecycle import Priority
from llmd.core.policy import ModelInfo, PolicySettings, eta_s, statistics

QUICK = settings(
    max_examples=80,
    derandomize=True,
    deadline=None,
    database=None,
    suppress_health_check=[HealthCheck.too_slow],
)
FREE = {"max_size": 0, "max_tokens": 0, "aging_sec": 0.0}


@given(
    max_loaded=st.sampled_from([1, 2, 3]),
    count=st.integers(2, 5),
    max_delay_sec=st.sampled_from([3.0, 30.0]),
    min_residency_sec=st.sampled_from([0.0, 5.0]),
    stop_s=st.sampled_from([0.0, 1.5]),
    asked=st.lists(
        st.tuples(
            st.sampled_from([0.0, 0.5, 2.0, 9.0]),  # seconds after the last
            st.integers(0, 4),  # model
            st.sampled_from([0.2, 1.0, 6.0]),  # service
        ),
        min_size=1,
        max_size=60,
    ),
)
@QUICK
def test_nobody_waits_longer_than_max_delay_and_a_drain_and_a_load_for_each_model_ahead(
    max_loaded, count, max_delay_sec, min_residency_sec, stop_s, asked
):
    """With slots enough for all, so that only what is loaded can hold a request back."""
    load_s, longest = 4.0, 6.0
    box = Box(
        PolicySettings(
            max_loaded=max_loaded,
            max_delay_sec=max_delay_sec,
            min_residency_sec=min_residency_sec,
            **FREE,
        ),
        [ModelInfo(f"m{n}") for n in range(count)],
        {f"m{n}": FakeWorker(load_s=load_s, slots=99, stop_s=stop_s) for n in range(count)},
    )
    for number, (after_s, model, service_s) in enumerate(asked):
        box.run(box.now + after_s)
        box.ask(f"r{number}", f"m{model % count}", service_s=service_s)
    box.run()
    ahead = count  # every model once, its own included
    bound = max_delay_sec + ahead * (longest + stop_s + load_s + min_residency_sec)
    for number in range(len(asked)):
        assert box.wait_s(f"r{number}") <= bound


@given(
    max_loaded=st.sampled_from([1, 2, 3]),
    slots=st.integers(1, 3),
    weights=st.tuples(st.sampled_from([0.5, 1.0, 3.0]), st.sampled_from([1.0, 2.0])),
    sizes=st.lists(
        st.tuples(st.integers(1, 300), st.integers(1, 300), st.sampled_from([0.3, 1.0])),
        min_size=30,
        max_size=60,
    ),
    starts_late=st.sampled_from([0.0, 7.0]),
)
@QUICK
def test_two_keys_with_requests_waiting_never_drift_apart_beyond_one_charge_and_what_runs(
    max_loaded, slots, weights, sizes, starts_late
):
    box = Box(PolicySettings(max_loaded=max_loaded, **FREE), workers={"a": FakeWorker(slots=slots)})
    keys = dict(zip("xy", weights, strict=True))
    largest = 300 / min(weights)
    # the largest charge, and every slot leased to one key at an over-estimate
    bound = largest + slots * largest
    served = dict.fromkeys(keys, 0.0)
    both_since: dict[str, float] | None = None

    def fill(key: str) -> None:
        for number, (estimate, _, service_s) in enumerate(sizes):
            box.ask(
                f"{key}{number}", key=key, weight=keys[key], tokens=estimate, service_s=service_s
            )

    plain_release = box.release

    def release(request_id: str, used: int | None = None):
        if request_id in box.leases and used is None:
            estimate, real, _ = sizes[int(request_id[1:])]
            used = min(real, estimate)
            served[request_id[0]] += used / keys[request_id[0]]
        done = plain_release(request_id, used)
        check()
        return done

    def check() -> None:
        nonlocal both_since
        found = {k.key: k for k in statistics(box.state, box.now).keys}
        if len(found) < 2 or not all(k.queued for k in found.values()):
            return
        assert abs(found["x"].counter - found["y"].counter) <= bound
        if both_since is None:
            both_since = dict(served)
        # and what was really served to them meanwhile, as much
        gained = [served[key] - both_since[key] for key in keys]
        assert abs(gained[0] - gained[1]) <= 2 * bound

    box.release = release
    fill("x")
    box.run(starts_late)
    fill("y")
    box.run()
    assert not box.waiting


def test_a_key_that_was_idle_cannot_spend_what_it_did_not_use():
    """An hour alone earns the late key no more than its half from the moment it comes."""
    box = Box(PolicySettings(**FREE), workers={"a": FakeWorker(slots=1)})
    for number in range(400):
        box.ask(f"busy{number}", key="busy", service_s=1.0)
    box.run(100)
    for number in range(60):
        box.ask(f"late{number}", key="late", service_s=1.0)
    box.run(160)
    late = [e for i, e in box.ended.items() if i.startswith("late") and e.granted_at <= 160]
    busy = [e for i, e in box.ended.items() if i.startswith("busy") and 100 < e.granted_at <= 160]
    assert abs(len(late) - len(busy)) <= 1


@given(st.lists(st.tuples(st.sampled_from("xyz"), st.booleans()), max_size=60))
@QUICK
def test_one_greedy_key_leaves_places_for_the_others(asked):
    box = Box(
        PolicySettings(max_size=10, admin_quota=2, max_share=0.3),
        workers={"a": FakeWorker(slots=1)},
    )
    for number, (key, admin) in enumerate(asked):
        box.ask(f"r{number}", key=key + ("!" if admin else ""), admin=admin, service_s=math.inf)
        for found in statistics(box.state, box.now).keys:
            assert found.queued <= 3
        ordinary = [i for i in box.waiting if not box.items[i].admin]
        assert len(ordinary) <= 8
        assert len(box.waiting) <= 10


@given(
    st.lists(st.tuples(st.sampled_from(list(Priority)), st.integers(0, 3)), min_size=1, max_size=30)
)
@QUICK
def test_with_aging_the_lowest_class_gets_its_turn_under_any_load(asked):
    """Once lifted to the top, only what was lifted or came before goes first."""
    box = Box(
        PolicySettings(max_size=0, aging_sec=10.0), workers={"a": FakeWorker(slots=1, load_s=0.1)}
    )
    box.ask("first", service_s=1.0)
    box.run(0.2)
    box.ask("low", key="poor", priority=Priority.LOW)
    for number in range(60):
        box.ask(f"high{number}", key="rich", priority=Priority.HIGH)
        box.run(box.now + 1.0)
    for number, (priority, gap) in enumerate(asked):
        box.ask(f"r{number}", key="other", priority=priority)
        box.run(box.now + gap)
    box.run()
    assert box.wait_s("low") <= 22.0


@given(
    slots=st.integers(1, 4),
    service_s=st.sampled_from([0.5, 4.0]),
    asked=st.lists(
        st.tuples(st.sampled_from([0.0, 0.3, 1.0, 6.0]), st.integers(1, 3)), min_size=1, max_size=25
    ),
)
@QUICK
def test_where_all_requests_take_the_same_the_time_told_is_the_time_taken(slots, service_s, asked):
    """Told when it is asked for, and the same whenever it is asked again."""
    box = Box(PolicySettings(**FREE), workers={"a": FakeWorker(slots=slots)})
    box.preload("a")
    box.ask("first", service_s=service_s)
    box.run()
    told: dict[str, float] = {}
    for number, (after_s, width) in enumerate(asked):
        box.run(box.now + after_s)
        box.ask(f"r{number}", slots=width, service_s=service_s)
        for request_id in box.waiting:
            eta = eta_s(box.state, request_id, box.now)
            assert eta is not None
            assert told.setdefault(request_id, box.now + eta) == pytest.approx(box.now + eta)
    box.run()
    for request_id, at in told.items():
        assert box.ended[request_id].granted_at == pytest.approx(at)
