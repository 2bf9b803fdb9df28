"""Keys that compete for several models at once: nobody gets ahead, nobody saves up, nobody hoards.

Each runs with one, two and three models in memory, and requests for all of them.
"""

from __future__ import annotations

import math

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from policy_box import Box, FakeWorker

from llmd.core.lifecycle import Priority
from llmd.core.policy import ModelInfo, PolicySettings, statistics

QUICK = settings(
    max_examples=40,
    derandomize=True,
    deadline=None,
    database=None,
    suppress_health_check=[HealthCheck.too_slow],
)
LARGEST = 300
counts = st.sampled_from([1, 2, 3])


def loaded(count: int, *, slots: int = 1, **world) -> Box:
    """A box in which so many models are ready."""
    names = "abc"[:count]
    box = Box(
        PolicySettings(max_loaded=count, **world),
        [ModelInfo(name) for name in names],
        {name: FakeWorker(slots=slots) for name in names},
    )
    for name in names:
        box.preload(name)
    return box


def counters(box: Box) -> dict[str, float]:
    return {found.key: found.counter for found in statistics(box.state, box.now).keys}


@given(
    count=counts,
    slots=st.integers(1, 3),
    weights=st.lists(st.sampled_from([0.5, 1.0, 4.0]), min_size=2, max_size=4),
    sizes=st.lists(
        st.tuples(st.integers(1, LARGEST), st.floats(0, 1), st.sampled_from([0.2, 1.0, 3.0])),
        min_size=8,
        max_size=16,
    ),
)
@QUICK
def test_keys_that_want_all_models_never_drift_apart(count, slots, weights, sizes):
    """At most one charge, and what is charged for every slot of the box leased to one of them."""
    box = loaded(count, slots=slots, max_size=0, max_tokens=0, aging_sec=0.0)
    keys = {f"k{number}": weight for number, weight in enumerate(weights)}
    bound = (1 + count * slots) * LARGEST / min(weights)
    plain = box.release

    def release(request_id: str, used: int | None = None):
        item = box.items[request_id]
        _, share, _ = sizes[int(request_id.partition("-")[2]) % len(sizes)]
        done = plain(request_id, int(item.tokens * share) if used is None else used)
        wanted = {
            key: {box.items[i].model for i in box.waiting if box.items[i].key == key}
            for key in keys
        }
        if all(len(models) == count for models in wanted.values()):
            found = [counters(box)[key] for key in keys]
            assert max(found) - min(found) <= bound
        return done

    box.release = release
    for number in range(len(sizes) * count):
        for key, weight in keys.items():
            tokens, _, service_s = sizes[number % len(sizes)]
            box.ask(
                f"{key}-{number}",
                "abc"[number % count],
                key=key,
                weight=weight,
                tokens=tokens,
                service_s=service_s,
            )
    box.run()
    assert not box.waiting


@given(count=counts, slots=st.integers(1, 2), alone_s=st.integers(5, 40), away=st.booleans())
@QUICK
def test_a_key_that_was_away_gets_no_more_than_its_half_from_when_it_is_back(
    count, slots, alone_s, away
):
    """Whether it never asked before, or was served and then idle."""
    box = loaded(count, slots=slots, max_size=0, max_tokens=0, aging_sec=0.0)
    if not away:
        box.ask("early", key="late", service_s=0.5)
        box.run(1)
    for number in range((alone_s + 22) * count * slots):
        box.ask(f"busy{number}", "abc"[number % count], key="busy", service_s=1.0)
    back = float(alone_s)
    box.run(back)
    for number in range(22 * count * slots):
        box.ask(f"late{number}", "abc"[number % count], key="late", service_s=1.0)
    box.run(back + 20)
    since = [i for i, ended in box.ended.items() if back < ended.granted_at <= back + 20]
    late = sum(i.startswith("late") for i in since)
    assert abs(late - (len(since) - late)) <= 2 * count * slots


@given(
    count=counts,
    max_size=st.integers(1, 20),
    max_share=st.sampled_from([0.05, 0.3, 0.5, 1.0]),
    admin_quota=st.integers(0, 3),
    per_model=st.sampled_from([0, 2]),
    max_tokens=st.sampled_from([0, 700]),
    asked=st.lists(
        st.tuples(
            st.sampled_from(["k1", "k2", "k3", "root"]),
            st.integers(0, 2),
            st.sampled_from(list(Priority)),
            st.integers(1, LARGEST),
            st.sampled_from([0.0, 0.4]),
        ),
        max_size=60,
    ),
)
@QUICK
def test_no_bound_of_the_queue_is_ever_exceeded_and_no_key_holds_more_than_its_share(
    count, max_size, max_share, admin_quota, per_model, max_tokens, asked
):
    box = loaded(
        count,
        max_size=max_size,
        max_share=max_share,
        admin_quota=admin_quota,
        max_size_per_model=per_model,
        max_tokens=max_tokens,
    )
    for number, (key, model, priority, tokens, after_s) in enumerate(asked):
        box.run(box.now + after_s)
        name, admin = "abc"[model % count], key == "root"
        box.ask(f"r{number}", name, key=key, priority=priority, tokens=tokens, admin=admin)
        waiting = [box.items[i] for i in box.waiting]
        assert len(waiting) <= max_size
        assert sum(not item.admin for item in waiting) <= max(0, max_size - admin_quota)
        for held in ("k1", "k2", "k3", "root"):
            assert sum(item.key == held for item in waiting) <= max(1, max_size * max_share + 1e-9)
        if per_model:
            for found in "abc"[:count]:
                assert sum(item.model == found for item in waiting) <= per_model
        if max_tokens:
            assert sum(item.tokens for item in waiting) <= max_tokens
        rejected = box.ended[f"r{number}"].rejected
        assert rejected is None or 0.1 <= rejected.retry_after_s < math.inf
    box.run()
    assert not box.waiting


@given(
    count=counts,
    slots=st.integers(1, 3),
    aging_sec=st.sampled_from([5.0, 20.0]),
    low_at=st.integers(0, 10),
    others=st.lists(st.tuples(st.sampled_from(list(Priority)), st.integers(0, 2)), max_size=20),
)
@QUICK
def test_aging_lets_nobody_starve_under_a_load_of_high_requests(
    count, slots, aging_sec, low_at, others
):
    """Two lifts, then those who came before it, and as much again for its key to have its turn."""
    box = loaded(count, slots=slots, max_size=0, max_tokens=0, aging_sec=aging_sec)
    ahead = 0
    for second in range(int(6 * aging_sec) + 40):
        box.run(float(second))
        if second == low_at:
            for number, (priority, model) in enumerate(others):
                box.ask(f"o{number}", "abc"[model % count], key="other", priority=priority)
            ahead = sum(model % count == 0 for _, model in others)
            box.ask("low", "a", key="poor", priority=Priority.LOW)
        for slot in range(slots):  # as much as the model can serve, and a little more
            box.ask(f"h{second}-{slot}", "a", key="rich", priority=Priority.HIGH)
        if second % 5 == 0:
            box.ask(f"x{second}", "a", key="rich", priority=Priority.HIGH)
    box.run()
    assert box.wait_s("low") <= 2 * aging_sec + (ahead + 2 * aging_sec) / slots + 3
