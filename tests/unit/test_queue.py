"""The queue: its bounds, and the order in it."""

from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from policy_box import ask

from llmd.core.events import Refusal
from llmd.core.fairness import FairShares
from llmd.core.lifecycle import Priority
from llmd.core.policy import PolicySettings
from llmd.core.queue import RequestQueue, effective_rank, next_lift

HIGH, NORMAL, LOW = Priority.HIGH, Priority.NORMAL, Priority.LOW


def queue_of(*items, now=0.0, **bounds) -> RequestQueue:
    queue = RequestQueue(
        PolicySettings(**{"admin_quota": 0, "max_share": 0.0, **bounds}), FairShares()
    )
    for item in items:
        put(queue, item, now)
    return queue


def put(queue: RequestQueue, item, now=0.0):
    return queue.put(item, queue.shares.enter(item.key), now)


def order(queue: RequestQueue, now=0.0, aging_sec=0.0, model="a") -> str:
    return " ".join(w.item.id for w in queue.line(model).order(now, aging_sec))


# --- order ---


def test_classes_go_first_then_arrival():
    queue = queue_of(
        ask("low", priority=LOW, at=1),
        ask("second", at=3),
        ask("first", at=2),
        ask("high", priority=HIGH, at=4),
    )
    assert order(queue, 5) == "high first second low"


def test_waiting_lifts_a_request_one_class_each_time():
    queue = queue_of(
        ask("low", priority=LOW, at=0), ask("normal", at=50), ask("high", priority=HIGH, at=55)
    )
    assert order(queue, 59.9, 60) == "high normal low"
    assert order(queue, 60, 60) == "high low normal"
    assert order(queue, 110, 60) == "normal high low"
    assert order(queue, 120, 60) == "low normal high"
    assert order(queue, 120, 0) == "high normal low"


def test_aging_and_the_times_it_is_announced_for_agree():
    for rank in range(3):
        for arrived in (0.1, 7.3, 1e6 + 0.7):
            at = next_lift(rank, arrived, -math.inf, 0.7)
            left = rank
            while at < math.inf:
                left -= 1
                assert effective_rank(rank, arrived, at, 0.7) == left
                assert effective_rank(rank, arrived, math.nextafter(at, 0), 0.7) == left + 1
                at = next_lift(rank, arrived, at, 0.7)
            assert left == 0


def test_keys_take_turns_by_tokens_charged():
    queue = queue_of(
        *(ask(f"a{n}", key="a", tokens=100, at=n) for n in range(3)),
        *(ask(f"b{n}", key="b", tokens=100, at=n + 10) for n in range(3)),
    )
    assert order(queue) == "a0 b0 a1 b1 a2 b2"


def test_weight_buys_tokens_and_big_requests_cost_turns():
    queue = queue_of(
        *(ask(f"a{n}", key="a", weight=2.0, at=n) for n in range(4)),
        *(ask(f"b{n}", key="b", at=n + 10) for n in range(3)),
        *(ask(f"c{n}", key="c", tokens=300, at=n + 20) for n in range(2)),
    )
    assert order(queue) == "a0 b0 c0 a1 a2 b1 a3 b2 c1"


def test_the_forecast_is_what_happens():
    """Taking the head, charging its key, and so on yields the order that was told before."""
    queue = queue_of(
        *(
            ask(
                f"r{n}",
                key="abc"[n % 3],
                tokens=37 * n % 101 + 1,
                priority=list(Priority)[n % 2],
                at=n,
            )
            for n in range(24)
        ),
        max_size=0,
    )
    told = order(queue).split()
    taken = []
    while queue.line("a").count:
        head = queue.line("a").head(0.0, 0.0)
        taken.append(head.item.id)
        head.share.charge(head.item.tokens, head.item.weight)
        queue.remove(head)
    assert taken == told


def test_a_key_at_its_concurrency_is_passed_over():
    queue = queue_of(ask("a", key="a", concurrency=1, at=0), ask("b", key="b", at=1))
    queue.shares.enter("a").running = 1
    assert queue.line("a").head(1, 0).item.id == "b"


def test_a_retry_keeps_its_place_by_arrival():
    queue = queue_of(ask("b", at=2), ask("c", at=3))
    put(queue, ask("a", at=1), now=9)
    assert order(queue) == "a b c"


# --- bounds ---


def test_places_tokens_and_places_a_model_are_bounded():
    queue = queue_of(ask("1"), ask("2", "b"), max_size=3, max_size_per_model=1, max_tokens=250)
    assert queue.refusal(ask("3", "a", tokens=1))[0] is Refusal.QUEUE_FULL
    assert queue.refusal(ask("3", "c", tokens=51))[0] is Refusal.QUEUE_FULL
    assert queue.refusal(ask("3", "c", tokens=251))[0] is Refusal.TOO_LARGE
    assert queue.refusal(ask("3", "c", tokens=50)) is None
    put(queue, ask("3", "c", tokens=50))
    assert queue.refusal(ask("4", "d", tokens=0))[0] is Refusal.QUEUE_FULL


def test_zero_means_no_limit():
    queue = queue_of(max_size=0, max_tokens=0, max_share=0.01, admin_quota=10)
    for n in range(500):
        item = ask(str(n), tokens=10**9)
        assert queue.refusal(item) is None
        put(queue, item)


def test_the_admin_quota_is_for_admins_who_may_use_other_places_too():
    queue = queue_of(ask("1"), ask("2"), max_size=4, admin_quota=2)
    assert queue.refusal(ask("3"))[0] is Refusal.QUEUE_FULL
    assert queue.refusal(ask("3", admin=True)) is None
    queue = queue_of(*(ask(str(n), admin=True) for n in range(3)), max_size=4, admin_quota=2)
    assert queue.refusal(ask("3")) is None
    assert queue.refusal(ask("3", admin=True)) is None


@pytest.mark.parametrize(
    ("max_size", "max_share", "places"),
    [
        (10, 0.5, 5),
        (10, 0.29, 2),
        (100, 0.29, 29),
        (3, 0.1, 1),
        (10, 1.0, 10),
        (10, 0.0, math.inf),
        (0, 0.5, math.inf),
    ],
)
def test_one_key_holds_at_most_its_share_and_at_least_one_place(max_size, max_share, places):
    queue = queue_of(max_size=max_size, max_share=max_share)
    assert queue.places_per_key() == places
    held = 0
    while held < min(places, 40):
        assert queue.refusal(ask("next")) is None or held >= max_size > 0
        put(queue, ask(str(held)))
        held += 1
    if places < math.inf:
        assert queue.refusal(ask("next"))[0] is Refusal.QUEUE_FULL
        assert places == max_size or queue.refusal(ask("next", key="other")) is None


# --- what is left ---


@given(
    st.lists(
        st.tuples(st.sampled_from("ab"), st.sampled_from("kl"), st.integers(0, 9)), max_size=30
    ),
    st.randoms(),
)
@settings(max_examples=60, derandomize=True, deadline=None, database=None)
def test_whatever_leaves_in_whatever_order_leaves_nothing_behind(asked, random):
    queue = queue_of(max_size=0)
    for n, (model, key, at) in enumerate(asked):
        put(queue, ask(f"r{n}", model, key=key, tokens=n, at=float(at)))
    ids = list(queue.waiting)
    random.shuffle(ids)
    for request_id in ids:
        arrivals = [
            [w.item.arrived for w in lane.items]
            for line in queue.lines.values()
            for lane in line.lanes.values()
        ]
        assert all(a == sorted(a) and a for a in arrivals)
        queue.remove(queue.waiting[request_id])
    assert (len(queue), queue.tokens, queue.lines, len(queue.shares)) == (0, 0, {}, 0)
    assert queue.refusal(ask("x")) is None
