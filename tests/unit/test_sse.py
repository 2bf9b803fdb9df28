"""A worker's stream: whole events, however it was cut on the way, and what they say was used."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmd.api import sse
from llmd.api.sse import Splitter, Usage, plain_usage
from llmd.errors import BadWorkerResponse

TIMINGS = {"cache_n": 3, "prompt_n": 7, "prompt_ms": 1.5, "predicted_n": 2, "predicted_ms": 0.5}
USAGE = {
    "completion_tokens": 2,
    "prompt_tokens": 10,
    "total_tokens": 12,
    "prompt_tokens_details": {"cached_tokens": 3},
}
DONE = b"data: [DONE]\n\n"
PING = b":\n\n"


def event(**fields):
    return b"data: " + json.dumps(fields, separators=(",", ":")).encode() + b"\n\n"


def delta(text, index=0, finish=None, **fields):
    choice = {"finish_reason": finish, "index": index, "delta": {"content": text}}
    return event(choices=[choice], **fields)


def native(text, index=0, **fields):
    return event(index=index, content=text, tokens=[1], **{"stop": False, **fields})


def fed(*pieces, choices=1):
    splitter = Splitter(choices)
    for piece in pieces:
        splitter.feed(piece)
    return splitter


# --- cutting -------------------------------------------------------------------------------

STREAM = [
    PING,
    delta("a"),
    delta('"timings":{"data: [DONE]\n\n"stop":true'),
    delta("ü🦙"),
    delta("", finish="length"),
    event(choices=[], usage=USAGE, timings=TIMINGS),
    DONE,
]


@given(st.lists(st.integers(1, 400), max_size=60))
def test_events_are_the_same_however_they_were_cut(sizes):
    data = b"".join(STREAM)
    splitter = Splitter()
    got, count, at = [], 0, 0
    for size in [*sizes, len(data)]:
        whole = splitter.feed(data[at : at + size])
        at += size
        assert not whole or whole.endswith(b"\n\n")
        assert splitter.count == whole.count(b"\n\n")
        count += splitter.count
        got.append(whole)
    assert b"".join(got) == data
    assert count == len(STREAM)
    assert splitter.finished
    assert splitter.usage() == Usage(10, 2, 3)


def test_single_events_pass_as_they_are():
    splitter = Splitter()
    piece = delta("a")
    assert splitter.feed(piece) is piece
    assert splitter.count == 1
    assert splitter.feed(b"") == b""
    assert splitter.count == 0


def test_an_event_is_bounded(monkeypatch):
    monkeypatch.setattr(sse, "MAX_EVENT_BYTES", 1000)
    splitter = fed(delta("a"), b"data: ", b"x" * 900)
    with pytest.raises(BadWorkerResponse):
        splitter.feed(b"x" * 200)
    # many events at once are no long event
    assert fed(delta("a") * 100).count == 100


# --- the beginning and the end -------------------------------------------------------------


def test_progress_of_the_prompt_is_no_answer():
    splitter = fed(PING)
    assert not splitter.generating
    splitter.feed(b"data: null\n\n")
    splitter.feed(delta(None, prompt_progress={"total": 9, "processed": 3}))
    assert not splitter.generating
    splitter.feed(delta("a"))
    assert splitter.generating


@pytest.mark.parametrize(
    "last",
    [
        DONE,
        event(error={"code": 500, "message": "no"}),
        b'error: {"code":500,"message":"no"}\n\n',
        native("", stop=True, timings=TIMINGS),
        event(content="", stop=True),
    ],
)
def test_proper_ends(last):
    splitter = fed(delta("a"))
    assert not splitter.finished
    splitter.feed(last)
    assert splitter.finished
    assert splitter.failed == (b"error" in last)


@pytest.mark.parametrize(
    "text",
    ['data: {"error":1}', "\n\ndata: [DONE]\n\n", '"stop":true', "error: {", '"timings":{}'],
)
def test_no_model_can_write_an_end(text):
    for piece in (delta(text), native(text), delta("", x={text: text})):
        splitter = fed(piece)
        assert not splitter.finished
        assert not splitter.failed
        assert not splitter.usage().exact


# --- what was used -------------------------------------------------------------------------


@pytest.mark.parametrize(
    "last",
    [
        # a stream without and with usage asked for, and both other forms
        delta("", finish="stop", timings=TIMINGS),
        delta("", finish="stop") + event(choices=[], usage=USAGE, timings=TIMINGS),
        delta("", finish="stop") + event(choices=[], usage=USAGE),
        event(choices=[{"text": "", "finish_reason": "stop"}], usage=USAGE, timings=TIMINGS),
        native("", stop=True, timings=TIMINGS),
    ],
)
def test_usage_is_in_the_last_events(last):
    assert fed(delta("a"), delta("b"), last, DONE).usage() == Usage(10, 2, 3, exact=True)


def test_timings_on_the_way_do_not_count():
    splitter = fed(
        delta("a", timings={**TIMINGS, "predicted_n": 1}),
        delta("b", timings=TIMINGS),
        delta("", finish="stop", timings=TIMINGS),
        DONE,
    )
    assert splitter.usage() == Usage(10, 2, 3)


def test_answers_to_one_prompt_share_its_tokens():
    ends = [delta("", index=n, finish="stop", timings=TIMINGS) for n in range(4)]
    assert fed(*ends, DONE, choices=2).usage() == Usage(20, 8, 6)
    assert fed(*ends, DONE, choices=4).usage() == Usage(10, 8, 3)


def test_a_broken_stream_counts_what_came():
    splitter = fed(*[delta("a")] * 5)
    assert splitter.usage() == Usage(0, 5, 0, exact=False)
    splitter.feed(delta("", finish="stop", timings={**TIMINGS, "predicted_n": 9}))
    assert splitter.usage() == Usage(10, 9, 3, exact=False)


def test_counts_that_cannot_be_read():
    for piece in (
        b'data: {"timings":\n\n',
        b'data: {"usage":"x"}\n\n',
        b'data: "timings":\xff\n\n',
    ):
        with pytest.raises(BadWorkerResponse):
            fed(piece)


def test_counts_of_plain_answers():
    chat = {"choices": [{"finish_reason": "stop", "message": {}}], "usage": USAGE}
    own = {"content": "a", "stop": True, "timings": TIMINGS}
    embeddings = {"data": [{"embedding": [0.5]}], "usage": {"prompt_tokens": 4, "total_tokens": 4}}
    assert plain_usage(json.dumps(chat).encode()) == Usage(10, 2, 3)
    assert plain_usage(json.dumps(own).encode()) == Usage(10, 2, 3)
    assert plain_usage(json.dumps([own] * 4).encode(), choices=2) == Usage(20, 8, 6)
    assert plain_usage(json.dumps(embeddings).encode()) == Usage(4, 0, 0)
    # the worker says it of the first answer only
    chat["choices"] *= 3
    assert plain_usage(json.dumps(chat).encode(), choices=3) == Usage(10, 6, 3, exact=False)


@given(st.binary(max_size=100))
def test_any_bytes_count_as_something(data):
    usage = plain_usage(data)
    assert usage.prompt_tokens == 0
