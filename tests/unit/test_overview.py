"""All that waits at once is told the same as one by one."""

from __future__ import annotations

from llmd.core import policy
from llmd.core.events import Queued, Submitted, SwitchRequested
from llmd.core.lifecycle import Priority
from llmd.core.overview import outlook
from llmd.core.settings import ModelInfo, PolicySettings


def test_it_says_what_explain_and_eta_say():
    state = policy.SchedulerState(
        PolicySettings(max_size=0, max_share=1.0),
        [ModelInfo("a", load_s=10.0), ModelInfo("b", load_s=3.0)],
    )
    policy.decide(state, SwitchRequested("a"), 0.0)
    for number in range(60):
        item = Queued(
            id=f"r-{number}",
            key=f"k-{number % 3}",
            model="ab"[number % 2],
            priority=list(Priority)[number % 3],
            weight=1.0,
            tokens=100,
            slots=1 + number % 2,
            context_tokens=100,
            concurrency=0,
            admin=False,
            arrived=1.0,
        )
        policy.decide(state, Submitted(item), 1.0)
    told = list(outlook(state, 2.0))
    assert {found.id for found in told} == set(state.queue.waiting)
    assert len(told) == 60
    for found in told:
        assert found.why == policy.explain(state, found.id, 2.0)
        assert found.eta_s == policy.eta_s(state, found.id, 2.0)
