"""The record of a request: the moves it allows, and what follows from its fields."""

from __future__ import annotations

import msgspec
import pytest

from llmd.core.lifecycle import REQUEST_ENDS, REQUEST_MOVES, IllegalMove, Priority, RequestState
from llmd.core.record import CancelCause, RequestRecord, RequestView

S = RequestState


def fresh(**fields) -> RequestRecord:
    return RequestRecord(id="r-1", received=10.0, created=1.7e9, **fields)


def test_the_usual_way():
    record = fresh(path="/v1/chat/completions", priority=Priority.HIGH)
    assert record.state is S.RECEIVED
    assert record.outcome == ""
    record.enqueue(10.5)
    assert record.queue_s(11.0) == 0.5
    record.grant(12.5, worker_pid=42)
    record.first_byte(13.0)
    record.completion_tokens = 11
    record.end(S.DONE, 15.0, status=200)
    assert record.outcome == "done"
    assert record.queue_s(99.0) == 2.0
    assert record.time_to_first_token_s == 3.0
    assert record.time_per_output_token_s == pytest.approx(0.2)
    assert record.duration_s(99.0) == 5.0
    assert (record.worker_pid, record.retries) == (42, 0)


def test_a_retry_keeps_the_time_of_both_waits():
    record = fresh()
    record.enqueue(10.0)
    record.grant(11.0)
    record.enqueue(20.0)
    assert record.retries == 1
    record.grant(23.0)
    assert record.queue_s(30.0) == 4.0


@pytest.mark.parametrize("end", sorted(REQUEST_ENDS - {S.DONE}))
def test_an_end_in_the_queue_counts_the_wait(end):
    record = fresh()
    record.enqueue(10.0)
    record.end(end, 14.0, status=499, code="request_cancelled", cause=CancelCause.OWNER)
    assert record.queue_s(99.0) == 4.0
    assert record.time_to_first_token_s is None
    assert record.used_tokens == 0
    assert record.outcome == end.value


@pytest.mark.parametrize("end", sorted(REQUEST_ENDS))
def test_it_ends_once(end):
    record = fresh()
    record.end(end, 11.0, status=200, reason="first")
    for again in REQUEST_ENDS:
        with pytest.raises(IllegalMove):
            record.end(again, 12.0, status=500, reason="second")
    for step in (record.enqueue, record.grant, record.first_byte):
        with pytest.raises(IllegalMove):
            step(12.0)
    assert (record.ended_at, record.status, record.reason) == (11.0, 200, "first")


@pytest.mark.parametrize("start", sorted(REQUEST_MOVES))
@pytest.mark.parametrize("goal", sorted(RequestState))
def test_moves_are_those_of_the_table(start, goal):
    record = fresh(state=start)

    def step() -> None:
        if goal in REQUEST_ENDS:
            record.end(goal, 11.0, status=200)
        elif goal is S.QUEUED:
            record.enqueue(11.0)
        elif goal is S.PREFILL:
            record.grant(11.0)
        elif goal is S.DECODE:
            record.first_byte(11.0)
        else:
            raise IllegalMove("nothing becomes received")

    if goal in REQUEST_MOVES[start]:
        step()
        assert record.state is goal
    else:
        with pytest.raises(IllegalMove):
            step()
        assert record.state is start


def test_only_ends_end():
    with pytest.raises(ValueError, match="queued"):
        fresh().end(S.QUEUED, 11.0, status=200)


def test_used_tokens_stand_in_what_the_worker_never_said():
    record = fresh(prompt_estimate_tokens=50)
    record.grant(10.0)
    record.first_byte(10.5)
    record.events = 7
    assert record.used_tokens == 57
    record.prompt_tokens, record.completion_tokens = 40, 9
    assert record.used_tokens == 49


def test_one_token_has_no_distance_to_the_next():
    record = fresh(sequences=2)
    record.grant(10.0)
    record.first_byte(10.5)
    record.completion_tokens = 2
    record.end(S.DONE, 11.0, status=200)
    assert record.time_per_output_token_s is None


def test_remembered_text_is_bounded():
    record = fresh(path="/" + "x" * 100_000)
    record.end(S.REFUSED, 11.0, status=404, code="not_found", reason="y" * 100_000)
    assert len(record.path) == len(record.reason) == 500


def test_the_view_is_frozen_json_that_reads_back():
    record = fresh(key="alice", model="qwen", max_tokens=-1, stream=True)
    record.enqueue(10.0)
    view = record.view(12.0)
    assert (view.state, view.queue_ms, view.first_token_ms, view.duration_ms) == (
        S.QUEUED, 2000.0, None, 2000.0,
    )  # fmt: skip
    with pytest.raises(AttributeError):
        view.status = 1
    data = msgspec.json.encode(view)
    assert b'"state":"queued"' in data
    assert b'"priority":"normal"' in data
    assert msgspec.json.decode(data, type=RequestView) == view
    record.grant(13.0)
    assert view.state is S.QUEUED


def test_the_view_misses_no_field_that_others_could_want():
    internal = {
        "received", "queued_at", "granted_at", "first_byte_at", "ended_at", "waited_s",
        "prompt_estimate_tokens", "story", "cancelled_by", "fingerprint",
    }  # fmt: skip
    derived = {"queue_ms", "first_token_ms", "duration_ms"}
    fields = set(RequestRecord.__struct_fields__)
    assert set(RequestView.__struct_fields__) == fields - internal | derived


def test_records_are_compared_by_identity():
    assert fresh() != fresh()
    assert len({fresh(), fresh()}) == 2


# --- tokens that were served ---------------------------------------------------------------


def test_a_request_that_is_done_served_what_the_worker_counted():
    record = fresh(prompt_tokens=20, completion_tokens=9, cached_tokens=5, events=11)
    record.grant(11.0)
    record.first_byte(12.0)
    record.end(S.DONE, 13.0, status=200)
    assert record.served_tokens == (20, 9, 5)


@pytest.mark.parametrize("end", [S.CANCELLED, S.ABANDONED, S.FAILED, S.TIMED_OUT])
def test_one_that_was_cut_off_served_what_had_come(end):
    record = fresh(prompt_estimate_tokens=40)
    record.grant(11.0)
    record.prefill(30, 50, 10)
    assert record.served_tokens == (0, 0, 10)  # nothing is settled before its end
    record.first_byte(12.0)
    record.events = 7
    record.end(end, 13.0, status=499)
    assert record.served_tokens == (50, 7, 10)


def test_one_that_was_cut_off_in_its_prompt_served_what_was_read_of_it():
    record = fresh(prompt_estimate_tokens=40)
    record.grant(11.0)
    record.prefill(30, 50, 10)
    record.end(S.CANCELLED, 13.0, status=499)
    assert record.served_tokens == (30, 0, 10)


def test_without_reports_the_estimate_stands_in_once_the_answer_has_begun():
    record = fresh(prompt_estimate_tokens=40)
    record.grant(11.0)
    record.first_byte(12.0)
    record.events = 2
    record.end(S.ABANDONED, 13.0, status=499)
    assert record.served_tokens == (40, 2, 0)


def test_who_was_never_granted_was_served_nothing():
    record = fresh(prompt_estimate_tokens=40)
    record.enqueue(10.0)
    record.end(S.ABANDONED, 13.0, status=499)
    assert record.served_tokens == (0, 0, 0)


def test_a_retry_forgets_what_the_dead_worker_told():
    record = fresh()
    record.grant(11.0)
    record.prefill(30, 50, 10)
    record.completion_id = "chatcmpl-1"
    record.enqueue(12.0)
    record.grant(13.0)
    assert (record.prefill_tokens, record.prefill_total_tokens, record.completion_id) == (0, 0, "")
    assert record.view(14.0).completion_id == ""
