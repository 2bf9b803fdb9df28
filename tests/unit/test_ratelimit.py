"""Token buckets: never more than they promise, never less after settling."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmd.core.ratelimit import Allowed, Denied, Limits, RateLimiter, format_duration

steps = st.lists(
    st.tuples(st.floats(0, 120), st.integers(0, 150)), min_size=1, max_size=60
)  # (seconds since the step before, tokens)


def test_zero_means_no_limit():
    limiter = RateLimiter()
    for _ in range(1000):
        assert limiter.check("k", Limits(0, 0), 10**9, 0.0) == Allowed()
    assert len(limiter) == 0
    assert limiter.snapshot("k", Limits(0, 0), 0.0).headers() == []


def test_requests_run_out_and_come_back_when_promised():
    limiter, limits = RateLimiter(), Limits(2, 0)
    assert isinstance(limiter.check("k", limits, 5, 0.0), Allowed)
    assert isinstance(limiter.check("k", limits, 5, 0.0), Allowed)
    denied = limiter.check("k", limits, 5, 0.0)
    assert isinstance(denied, Denied)
    assert denied.what == "requests"
    assert not denied.could_never
    assert denied.retry_after_s == pytest.approx(30.0)
    assert isinstance(limiter.check("k", limits, 5, denied.retry_after_s), Allowed)


def test_both_buckets_are_charged_or_neither():
    limiter, limits = RateLimiter(), Limits(10, 100)
    assert isinstance(limiter.check("k", limits, 90, 0.0), Allowed)
    denied = limiter.check("k", limits, 20, 0.0)
    assert isinstance(denied, Denied)
    assert denied.what == "tokens"
    assert denied.retry_after_s == pytest.approx(6.0)
    left = limiter.snapshot("k", limits, 0.0)
    assert (left.remaining_requests, left.remaining_tokens) == (9, 10)


def test_the_longer_wait_of_both_is_told():
    limiter, limits = RateLimiter(), Limits(1, 100)
    limiter.check("k", limits, 50, 0.0)
    denied = limiter.check("k", limits, 60, 0.0)
    assert isinstance(denied, Denied)
    assert (denied.what, denied.retry_after_s) == ("requests", pytest.approx(60.0))


def test_a_request_larger_than_the_bucket_can_never_pass():
    limiter, limits = RateLimiter(), Limits(10, 100)
    denied = limiter.check("k", limits, 101, 0.0)
    assert isinstance(denied, Denied)
    assert denied.could_never
    assert "101" in denied.message
    assert "100" in denied.message
    assert limiter.snapshot("k", limits, 0.0).remaining_requests == 10


def test_keys_do_not_share():
    limiter, limits = RateLimiter(), Limits(1, 0)
    assert isinstance(limiter.check("a", limits, 1, 0.0), Allowed)
    assert isinstance(limiter.check("b", limits, 1, 0.0), Allowed)
    assert isinstance(limiter.check("a", limits, 1, 0.0), Denied)


def test_refund_undoes_a_charge():
    limiter, limits = RateLimiter(), Limits(1, 100)
    limiter.check("k", limits, 100, 0.0)
    limiter.refund("k", 100, 0.0)
    assert isinstance(limiter.check("k", limits, 100, 0.0), Allowed)


def test_debt_is_charged_and_bounded_by_one_bucket():
    limiter, limits = RateLimiter(), Limits(0, 60)
    limiter.check("k", limits, 10, 0.0)
    limiter.settle("k", 10, 10**9, 0.0)
    denied = limiter.check("k", limits, 60, 0.0)
    assert isinstance(denied, Denied)
    assert denied.retry_after_s == pytest.approx(120.0)
    assert limiter.snapshot("k", limits, 0.0).remaining_tokens == 0


def test_new_limits_hold_at_once():
    limiter = RateLimiter()
    limiter.check("k", Limits(10, 100), 10, 0.0)
    assert limiter.snapshot("k", Limits(5, 50), 0.0).remaining_tokens == 50
    assert limiter.snapshot("k", Limits(5, 0), 0.0).remaining_requests == 5
    # a limit that was not there before starts full
    assert limiter.snapshot("k", Limits(5, 70), 0.0).remaining_tokens == 70


def test_the_key_that_was_away_longest_is_forgotten():
    limiter, limits = RateLimiter(max_keys=3), Limits(1, 0)
    for at, key in enumerate(["a", "b", "c", "a", "d"]):
        limiter.check(key, limits, 1, at / 1000)
    assert len(limiter) == 3
    assert isinstance(limiter.check("a", limits, 1, 0.01), Denied)
    assert isinstance(limiter.check("b", limits, 1, 0.01), Allowed)
    limiter.settle("long gone", 1, 100, 0.02)
    assert len(limiter) == 3


def test_headers_tell_what_is_left():
    limiter, limits = RateLimiter(), Limits(60, 6000)
    limiter.check("k", limits, 1000, 0.0)
    assert dict(limiter.snapshot("k", limits, 0.0).headers()) == {
        b"x-ratelimit-limit-requests": b"60",
        b"x-ratelimit-remaining-requests": b"59",
        b"x-ratelimit-reset-requests": b"1s",
        b"x-ratelimit-limit-tokens": b"6000",
        b"x-ratelimit-remaining-tokens": b"5000",
        b"x-ratelimit-reset-tokens": b"10s",
    }
    assert len(limiter.snapshot("new", Limits(60, 0), 0.0).headers()) == 3


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (-1, "0s"), (0, "0s"), (0.0001, "1ms"), (0.02, "20ms"), (0.9995, "1s"), (1, "1s"),
        (6.2, "7s"), (59.5, "1m0s"), (60, "1m0s"), (360, "6m0s"), (119.1, "2m0s"),
    ],
)  # fmt: skip
def test_durations_read_as_openais(seconds, text):
    assert format_duration(seconds) == text


@given(steps, st.integers(1, 20), st.integers(1, 200))
def test_no_window_grants_more_than_a_bucket_and_its_refill(script, rpm, tpm):
    limiter, limits, now = RateLimiter(), Limits(rpm, tpm), 0.0
    granted = []
    for wait, tokens in script:
        now += wait
        if isinstance(limiter.check("k", limits, tokens, now), Allowed):
            granted.append((now, tokens))
    for first, (start, _) in enumerate(granted):
        spent = 0
        for count, (end, tokens) in enumerate(granted[first:], 1):
            spent += tokens
            minutes = (end - start) / 60
            assert count <= rpm * (1 + minutes) + 1e-3
            assert spent <= tpm * (1 + minutes) + 1e-3


@given(steps, st.integers(1, 20), st.integers(1, 200))
def test_what_is_denied_now_passes_when_promised(script, rpm, tpm):
    limiter, limits, now = RateLimiter(), Limits(rpm, tpm), 0.0
    for wait, tokens in script:
        now += wait
        decision = limiter.check("k", limits, tokens, now)
        if isinstance(decision, Denied) and not decision.could_never:
            now += decision.retry_after_s
            assert isinstance(limiter.check("k", limits, tokens, now), Allowed)


@given(st.lists(st.tuples(st.floats(0, 5), st.integers(0, 40), st.integers(0, 40)), max_size=40))
def test_settling_equals_having_known_the_real_usage(script):
    """While neither the top nor the bound of debt is touched, nothing is made or lost."""
    limits = Limits(0, 100_000)
    guessed, knew, now = RateLimiter(), RateLimiter(), 0.0
    for limiter in (guessed, knew):
        limiter.check("k", limits, 50_000, 0.0)
        limiter.check("k", limits, 45_000, 0.0)
    for wait, estimate, actual in script:
        now += wait / 100
        assert isinstance(guessed.check("k", limits, estimate, now), Allowed)
        assert isinstance(knew.check("k", limits, actual, now), Allowed)
        guessed.settle("k", estimate, actual, now)
        left = [x.snapshot("k", limits, now).reset_tokens_s for x in (guessed, knew)]
        assert left[0] == pytest.approx(left[1], abs=1e-6)


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["check", "settle", "refund"]),
            st.floats(-1000, 1000),
            st.integers(0, 500),
            st.integers(0, 500),
        ),
        max_size=60,
    )
)
def test_levels_stay_within_bounds_wherever_time_goes(script):
    limiter, limits, now = RateLimiter(), Limits(5, 100), 0.0
    for what, jump, estimate, actual in script:
        now += jump
        if what == "check":
            limiter.check("k", limits, estimate, now)
        elif what == "settle":
            limiter.settle("k", estimate, actual, now)
        else:
            limiter.refund("k", estimate, now)
        left = limiter.snapshot("k", limits, now)
        assert 0 <= left.remaining_requests <= 5
        assert 0 <= left.remaining_tokens <= 100
        assert 0 <= left.reset_tokens_s <= 120 + 1e-6
        assert 0 <= left.reset_requests_s <= 60 + 1e-3


def test_time_running_backwards_refills_nothing():
    limiter, limits = RateLimiter(), Limits(1, 0)
    limiter.check("k", limits, 1, 100.0)
    for now in (50.0, 100.0, 0.0, 100.0):
        assert isinstance(limiter.check("k", limits, 1, now), Denied)
    assert isinstance(limiter.check("k", limits, 1, 160.0), Allowed)
