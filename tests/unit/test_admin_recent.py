"""What the last minutes were like, and who may use the socket."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmd.admin.peercred import Peer, Rights
from llmd.core.lifecycle import RequestState
from llmd.core.recent import Recent, percentile
from llmd.core.record import RequestRecord
from llmd.errors import ConfigError


def running(name="r", model="m", events=0):
    record = RequestRecord(id=name, received=0.0, created=1e9, model=model)
    record.enqueue(0.0)
    record.grant(0.5)
    record.first_byte(1.0)
    record.events = events
    return record


def test_rates_are_of_the_last_seconds_and_count_each_token_once():
    recent, record = Recent(), running()
    recent.sample([record], 1.0)
    for second in (2.0, 3.0, 4.0):
        record.events += 30
        recent.sample([record], second)
    assert recent.tokens_per_s() == recent.tokens_per_s("m") == 30.0
    assert recent.request_rate("r") == pytest.approx(30.0, rel=0.3)
    record.events += 6
    record.completion_tokens = record.events
    record.end(RequestState.DONE, 4.5, status=200)
    recent.ended(record, 4.5)
    recent.sample([], 5.0)
    assert recent.tokens_per_s() == pytest.approx((30 + 30 + 6) / 3)
    assert sum(recent.history()[""]) == 96
    assert recent.request_rate("r") is None


def test_a_first_second_has_a_rate_until_it_is_sampled():
    recent, record = Recent(), running(events=20)
    assert recent.first_rates([record], 1.5) == {"m": 40.0}
    assert recent.first_rates([record], 1.0) == {"m": 80.0}  # no rate of no time
    recent.sample([record], 2.0)
    assert recent.first_rates([record], 2.0) == {}
    assert recent.tokens_per_s("m") == 20.0


def test_a_request_between_two_samples_counts_too():
    recent, record = Recent(), running()
    record.completion_tokens = 12
    record.end(RequestState.DONE, 1.5, status=200)
    recent.ended(record, 1.5)
    recent.sample([], 2.0)
    assert recent.history()["m"] == (12.0,)


def test_how_long_requests_ran_is_told_by_model_and_only_of_those_served_whole():
    recent = Recent()
    for name, end in (("m", RequestState.DONE), ("m", RequestState.CANCELLED)):
        record = running(model=name)
        record.end(end, 4.5 if end is RequestState.DONE else 99.0, status=200)
        recent.ended(record, 99.0)
    assert recent.service_p95_s(99.0) == {"m": 4.0}
    assert recent.service_p95_s(1e6) == {}


def test_the_window_counts_and_forgets():
    recent = Recent()
    for number, (state, status) in enumerate(
        [(RequestState.DONE, 200), (RequestState.FAILED, 502), (RequestState.REFUSED, 429)]
    ):
        record = RequestRecord(id=str(number), received=0.0, created=1e9)
        record.end(state, 10.0, status=status)
        recent.ended(record, 10.0)
    now = recent.window(20.0)
    assert (now.ended, now.errors, now.limited) == (3, 1, 1)
    assert recent.window(100.0).limited == 0
    assert recent.window(400.0).ended == 0


def test_how_often_a_key_met_its_limits_is_told_by_key_and_forgotten():
    recent = Recent()
    for number, (key, status) in enumerate([("a", 429), ("a", 429), ("b", 429), ("a", 200)]):
        record = RequestRecord(id=str(number), received=0.0, created=1e9, key=key)
        record.end(RequestState.REFUSED, 10.0, status=status)
        recent.ended(record, 10.0)
    assert [recent.limited(key, 20.0) for key in "abc"] == [2, 1, 0]
    assert recent.limited("a", 400.0) == 0


@given(st.lists(st.floats(0, 1e6), min_size=1), st.floats(0, 1))
def test_a_percentile_is_one_of_the_values(values, share):
    assert percentile(values, share) in values


def test_silence_is_seen():
    recent, record = Recent(), running(events=3)
    recent.sample([record], 1.0)
    recent.sample([record], 9.0)
    assert recent.grew_at("r") == 1.0


# --- rights --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("peer", "group", "read_all", "access"),
    [
        (Peer(1, 0, 0, frozenset()), None, False, "write"),
        (Peer(1, 500, 500, frozenset()), None, False, "write"),
        (Peer(1, 600, 600, frozenset()), None, False, ""),
        (Peer(1, 600, 600, frozenset()), None, True, "read"),
        (Peer(1, 600, 70, frozenset()), 70, False, "write"),
        (Peer(1, 600, 600, frozenset({70})), 70, False, "write"),
        (Peer(1, 600, 600, frozenset({71})), 70, False, ""),
        (Peer(1, 600, 600, frozenset({71})), 70, True, "read"),
    ],
)
def test_credentials_decide(peer, group, read_all, access):
    assert Rights(500, group, read_all).access(peer) == access


def test_a_group_that_does_not_exist_is_told():
    with pytest.raises(ConfigError, match="admin_group"):
        Rights.of("no-such-group-here", read_all=False)
