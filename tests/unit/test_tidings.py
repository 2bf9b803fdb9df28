"""What a worker's events tell in passing: ids and progress, and nothing from hostile ones."""

from __future__ import annotations

import pytest

from llmd.api.tidings import Progress, completion_id, parse_progress

FIRST = (
    b'data: {"choices":[{"finish_reason":null,"index":0,"delta":{"role":"assistant",'
    b'"content":null,"tool_calls":[{"id":"call_1"}]}}],"created":1,"id":"chatcmpl-Ab1",'
    b'"model":"m","object":"chat.completion.chunk"%b}\n\n'
)
REPORT = b',"prompt_progress":{"total":%d,"cache":%d,"processed":%d,"time_ms":3}'


def test_the_id_is_the_first_events_own():
    assert completion_id(FIRST % b"" + b'data: {"id":"chatcmpl-other"}\n\n') == "chatcmpl-Ab1"


def test_comments_may_come_first():
    assert completion_id(b": ping\n\n" + FIRST % b"") == "chatcmpl-Ab1"


def test_a_plain_answer_has_one_too():
    assert completion_id(b'{"id":"chatcmpl-x","choices":[]}') == "chatcmpl-x"


@pytest.mark.parametrize(
    "events",
    [
        b"",
        b": ping\n\n",
        b"data: [DONE]\n\n",
        b'data: {"choices":[]}\n\n',
        b'data: {"id":7}\n\n',
        b'data: {"id":"%b"}\n\n' % (b"x" * 129),
        b'data: {"id":"a\\u001b[2J"}\n\n',
        b'data: {"id":"\xff"}\n\n',
        b'data: {"content":"\\"id\\":\\"chatcmpl-1\\""}\n\n',
        b"data: " + b"[" * 100_000,
    ],
)
def test_what_carries_none_or_a_strange_one_has_none(events):
    assert completion_id(events) == ""


def test_the_last_report_counts():
    events = FIRST % (REPORT % (900, 100, 256)) + FIRST % (REPORT % (900, 100, 512))
    assert parse_progress(events) == Progress(512, 900, 100)


def test_events_without_a_report_have_none():
    assert parse_progress(FIRST % b"") is None
    assert parse_progress(b"") is None


@pytest.mark.parametrize(
    ("report", "found"),
    [
        (REPORT % (10, 0, 99), Progress(10, 10, 0)),
        (REPORT % (-1, 0, 99), Progress(0, 0, 0)),
        (REPORT % (10, 99, 5), Progress(5, 10, 5)),
        (b',"prompt_progress":{"total":"10"}', None),
        (b',"prompt_progress":null', None),
    ],
)
def test_counts_that_cannot_be_are_brought_into_bounds(report, found):
    assert parse_progress(FIRST % report) == found
