"""The restart budget: bounded, forgetful, and the same every time."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmd.core.backoff import GiveUp, RestartBudget, Retry


def test_delays_double_up_to_the_cap():
    budget = RestartBudget(limit=0, window_s=0, base_s=0.25, max_s=2)
    delays = [budget.crashed(0.0) for _ in range(5)]
    assert delays == [Retry(0.25), Retry(0.5), Retry(1.0), Retry(2.0), Retry(2.0)]


def test_the_limit_within_the_window_gives_up_until_the_oldest_crash_is_forgotten():
    budget = RestartBudget(limit=3, window_s=300)
    assert isinstance(budget.crashed(0), Retry)
    assert isinstance(budget.crashed(10), Retry)
    assert budget.crashed(20) == GiveUp(300)


def test_crashes_spread_wider_than_the_window_never_give_up():
    budget = RestartBudget(limit=2, window_s=10)
    assert all(isinstance(budget.crashed(now), Retry) for now in range(0, 200, 10))


def test_after_the_wait_one_more_crash_is_allowed_again():
    budget = RestartBudget(limit=2, window_s=10)
    budget.crashed(0)
    verdict = budget.crashed(5)
    assert verdict == GiveUp(10)
    assert budget.spent(10) == 1
    assert budget.crashed(10) == GiveUp(15)


def test_reset_forgets():
    budget = RestartBudget(limit=2, window_s=10)
    budget.crashed(0)
    budget.reset()
    assert budget.spent(0) == 0
    assert isinstance(budget.crashed(0), Retry)


def test_no_window_means_until_reset():
    budget = RestartBudget(limit=1, window_s=0)
    assert budget.crashed(5) == GiveUp(math.inf)
    assert budget.refused(5) == GiveUp(math.inf)


def test_a_permanent_fault_waits_a_whole_window_and_costs_no_budget():
    budget = RestartBudget(limit=1, window_s=30)
    assert budget.refused(5) == GiveUp(35)
    assert budget.spent(5) == 0


def test_no_limit_never_gives_up_and_stays_finite():
    budget = RestartBudget(limit=0, window_s=0, base_s=1, max_s=30)
    verdicts = [budget.crashed(float(now)) for now in range(5000)]
    assert verdicts[-1] == Retry(4999 + 30)


@given(
    limit=st.integers(1, 6),
    window=st.floats(0.5, 100),
    gaps=st.lists(st.floats(0, 50), max_size=60),
)
def test_restarts_in_any_window_stay_below_the_limit(limit, window, gaps):
    budget = RestartBudget(limit=limit, window_s=window)
    now, starts = 0.0, []
    for gap in gaps:
        now += gap
        verdict = budget.crashed(now)
        if isinstance(verdict, Retry):
            assert verdict.at >= now
            starts.append(now)
        else:
            assert verdict.until > now
            now = verdict.until
    for index, start in enumerate(starts):
        inside = [other for other in starts[index:] if other < start + window]
        assert len(inside) <= max(limit - 1, 1)


@pytest.mark.parametrize("crashes", [1, 2, 3])
def test_the_same_history_gives_the_same_verdict(crashes):
    verdicts = []
    for _ in range(2):
        budget = RestartBudget(limit=4, window_s=60)
        verdicts.append([budget.crashed(float(now)) for now in range(crashes)])
    assert verdicts[0] == verdicts[1]
