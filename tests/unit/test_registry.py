"""Ids, the requests that are on their way and the ones remembered, and how each cause ends one."""

from __future__ import annotations

import re

import pytest
import trio

from llmd import errors
from llmd.core.lifecycle import REQUEST_ENDS, IllegalMove, RequestState
from llmd.core.record import CancelCause
from llmd.registry import Handle, Registry

S = RequestState
C = CancelCause
FRESH = re.compile(r"r-[0-9a-f]{16}")


@pytest.fixture(autouse=True)
def _monotonic_clock(monkeypatch):
    monkeypatch.setattr(trio, "current_time", lambda: 50.0)  # there is no event loop here


def registry(history: int = 3) -> Registry:
    return Registry(history, wall_clock=lambda: 1.7e9)


def opened(made: Registry, wanted: str = "") -> Handle:
    return made.open(wanted_id=wanted.encode("latin-1"), path="/v1/x", client="192.0.2.1")


def finish(made: Registry, handle: Handle) -> None:
    handle.end(None, 200, 60.0)
    made.close(handle)


# --- ids -----------------------------------------------------------------------------------


@pytest.mark.parametrize("wanted", ["a", "7", "x" * 128, "A.b_c-9", "...", "r-0"])
def test_a_client_may_choose_its_id(wanted):
    assert opened(registry(), wanted).record.id == wanted


@pytest.mark.parametrize(
    "wanted",
    [
        "",
        "x" * 129,
        "a b",
        "a/b",
        "a\n",
        "\n",
        "a\x00",
        "caf\xe9",
        "a,b",
        '"a"',
        "<script>",
        "\x1b[2J",
    ],
)
def test_what_is_no_id_gets_a_fresh_one(wanted):
    assert FRESH.fullmatch(opened(registry(), wanted).record.id)


def test_fresh_ids_differ():
    made = registry()
    assert len({made.fresh_id(b"") for _ in range(200)}) == 200


def test_an_id_is_taken_while_its_request_is_remembered():
    made = registry(history=1)
    first = opened(made, "mine")
    assert FRESH.fullmatch(opened(made, "mine").record.id)
    finish(made, first)
    assert FRESH.fullmatch(made.fresh_id(b"mine"))
    finish(made, opened(made, "other"))  # now the first one is forgotten
    assert made.fresh_id(b"mine") == "mine"


def test_asking_for_an_id_takes_nothing():
    made = registry()
    assert made.fresh_id(b"mine") == made.fresh_id(b"mine") == "mine"
    assert len(made) == 0


# --- live and remembered -------------------------------------------------------------------


def test_a_request_is_found_while_it_is_on_its_way_and_after():
    made = registry()
    handle = opened(made, "r")
    record = handle.record
    assert (record.received, record.created) == (50.0, 1.7e9)
    assert (record.path, record.client, record.state) == ("/v1/x", "192.0.2.1", S.RECEIVED)
    assert made.live("r") is handle
    assert made.record("r") is record
    assert made.handles() == [handle]
    assert len(made) == 1
    finish(made, handle)
    assert made.live("r") is None
    assert made.record("r") is record
    assert made.handles() == []
    assert len(made) == 0
    assert made.record("other") is made.live("other") is None


def test_records_come_live_ones_first_then_the_newest():
    made = registry()
    handles = {name: opened(made, name) for name in "abcde"}
    for name in "bda":
        finish(made, handles[name])
    assert [record.id for record in made.records()] == ["c", "e", "a", "d", "b"]
    assert [handle.record.id for handle in made.handles()] == ["c", "e"]


def test_records_can_be_gone_through_while_requests_come_and_end():
    made = registry()
    handles = {name: opened(made, name) for name in "abc"}
    seen = []
    for record in made.records():
        seen.append(record.id)
        opened(made)
        if record.id in handles:
            finish(made, handles.pop(record.id))
    assert seen[:3] == ["a", "b", "c"]


@pytest.mark.parametrize("history", [0, 1, 2, 5])
def test_so_many_are_remembered_and_no_more(history):
    made = registry(history)
    for number in range(8):
        finish(made, opened(made, f"r{number}"))
        assert len(list(made.records())) == min(history, number + 1)
    assert [r.id for r in made.records()] == [f"r{7 - back}" for back in range(history)]


def test_nothing_is_forgotten_while_it_is_on_its_way():
    made = registry(history=1)
    live = opened(made, "live")
    for _ in range(5):
        finish(made, opened(made))
    assert made.record("live") is live.record


def test_a_request_is_closed_once_and_only_at_its_end():
    made = registry()
    handle = opened(made, "r")
    with pytest.raises(AssertionError):
        made.close(handle)
    assert made.live("r") is handle
    finish(made, handle)
    with pytest.raises(KeyError):
        made.close(handle)
    assert [record.id for record in made.records()] == ["r"]


def test_a_request_that_never_entered_is_unknown_and_holds_no_id():
    told = []
    made = Registry(3, wall_clock=lambda: 1.7e9, on_close=told.append)
    stranger = made.begin(wanted_id=b"mine", path="/v1/x", client="192.0.2.1")
    assert stranger.record.id == "mine"
    assert not made.entered(stranger)
    assert (len(made), list(made.records()), made.live("mine")) == (0, [], None)
    known = opened(made, "mine")
    assert known.record.id == "mine"
    assert made.entered(known)
    assert not made.entered(stranger)
    finish(made, known)
    assert told == [known.record]


# --- verdicts and ends ---------------------------------------------------------------------


def told(cause: CancelCause | None) -> errors.LlmdError | None:
    handle = opened(registry())
    if cause is not None:
        handle.cancel(cause)
    return handle.verdict(600)


@pytest.mark.parametrize(
    ("cause", "error", "status", "words"),
    [
        (None, errors.RequestTimedOut, 504, "within 600 s"),
        (C.OWNER, errors.RequestCancelled, 499, "by its owner"),
        (C.OPERATOR, errors.RequestCancelled, 499, "by an operator"),
        (C.EVICTED, errors.RequestCancelled, 499, "max_drain_sec"),
        (C.SHUTDOWN, errors.ShuttingDown, 503, "shutting down"),
    ],
)
def test_the_client_is_told_why(cause, error, status, words):
    verdict = told(cause)
    assert type(verdict) is error
    assert verdict.status == status
    assert words in verdict.message


def test_nobody_is_told_when_the_client_has_gone():
    assert told(C.CLIENT_GONE) is None


def test_a_cancel_without_a_cause_was_the_timeout():
    handle = opened(registry())
    handle.verdict(1)
    assert handle.cause is C.TIMEOUT


@pytest.mark.parametrize("cause", C)
def test_the_first_cause_stays(cause):
    handle = opened(registry())
    handle.cancel(cause)
    handle.cancel(C.OPERATOR)
    handle.abandon()
    assert handle.cause is cause


def test_a_client_that_goes_is_a_cause():
    handle = opened(registry())
    handle.abandon()
    assert handle.cause is C.CLIENT_GONE


@pytest.mark.parametrize("cause", C)
@pytest.mark.parametrize("granted", [False, True])
def test_each_cause_ends_a_request_in_its_own_way(cause, granted):
    handle = opened(registry())
    handle.record.enqueue(51.0)
    if granted:
        handle.record.grant(52.0)
    handle.cancel(cause)
    error = handle.verdict(600)
    handle.end(error, 0, 55.0)
    record = handle.record
    ends = {C.CLIENT_GONE: S.ABANDONED, C.TIMEOUT: S.TIMED_OUT}
    assert record.state is ends.get(cause, S.CANCELLED)
    assert record.cancel_cause is cause
    assert record.ended_at == 55.0
    assert record.code == (error.code if error else "")
    assert record.reason == (error.message if error else "")
    assert record.status == (error.status if error else 499)


def test_a_timeout_ends_as_timed_out():
    handle = opened(registry())
    handle.end(handle.verdict(600), 0, 55.0)
    assert handle.record.state is S.TIMED_OUT
    assert handle.record.cancel_cause is C.TIMEOUT
    assert (handle.record.status, handle.record.code) == (504, "request_timeout")


def test_what_went_well_is_done():
    handle = opened(registry())
    handle.record.enqueue(51.0)
    handle.record.grant(52.0)
    handle.end(None, 200, 55.0)
    record = handle.record
    assert (record.state, record.status, record.code, record.reason) == (S.DONE, 200, "", "")
    assert record.cancel_cause is None


def test_an_error_before_the_lease_is_a_refusal_and_after_it_a_failure():
    refused, failed = opened(registry()), opened(registry())
    refused.record.enqueue(51.0)
    refused.end(errors.QueueFull("full"), 0, 55.0)
    failed.record.enqueue(51.0)
    failed.record.grant(52.0)
    failed.end(errors.BadWorkerResponse("garbage"), 200, 55.0)
    assert refused.record.state is S.REFUSED
    assert (refused.record.status, refused.record.code) == (503, "queue_full")
    assert failed.record.state is S.FAILED
    assert (failed.record.status, failed.record.reason) == (502, "garbage")
    assert {refused.record.state, failed.record.state} <= REQUEST_ENDS


def test_a_request_ends_once():
    handle = opened(registry())
    handle.end(errors.QueueFull("full"), 0, 55.0)
    with pytest.raises(IllegalMove):
        handle.end(None, 200, 56.0)
    assert handle.record.state is S.REFUSED
