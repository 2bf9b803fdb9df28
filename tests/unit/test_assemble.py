"""Plain answers from streams, in every form, with what a hostile or broken worker may send."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmd.api.assemble import Assembler, WorkerError
from llmd.api.schema import KINDS
from llmd.errors import BadWorkerResponse

CHAT, TEXT, NATIVE = (
    KINDS["/v1/chat/completions"],
    KINDS["/v1/completions"],
    KINDS["/completion"],
)
HEAD = {"created": 7, "id": "chatcmpl-1", "model": "m", "system_fingerprint": "b1"}
USAGE = {"completion_tokens": 2, "prompt_tokens": 10, "total_tokens": 12}
TIMINGS = {"cache_n": 0, "prompt_n": 10, "predicted_n": 2, "predicted_ms": 0.1}
DONE = b"data: [DONE]\n\n"


def event(data):
    return b"data: " + json.dumps(data, ensure_ascii=False).encode() + b"\n\n"


def delta(index=0, finish=None, **fields):
    choice = {"finish_reason": finish, "index": index, "delta": fields}
    return event({"choices": [choice], **HEAD, "object": "chat.completion.chunk"})


def usage(**fields):
    return event({"choices": [], **HEAD, "object": "chat.completion.chunk", **fields})


def text(content, index=0, finish=None, logprobs=None, **fields):
    choice = {"text": content, "index": index, "logprobs": logprobs, "finish_reason": finish}
    return event({"choices": [choice], **HEAD, "object": "text_completion", **fields})


def assembled(kind, *pieces):
    assembler = Assembler(kind)
    for piece in pieces:
        assembler.feed(piece)
    return json.loads(assembler.result())


END = (usage(usage=USAGE, timings=TIMINGS), DONE)


# --- chats ---------------------------------------------------------------------------------


def test_a_chat():
    answer = assembled(
        CHAT,
        b":\n\n",
        delta(role="assistant", content=None),
        delta(reasoning_content="hm"),
        delta(reasoning_content=", ja"),
        delta(content="ü"),
        delta(content="🦙"),
        delta(finish="stop"),
        *END,
    )
    assert answer == {
        "choices": [
            {
                "finish_reason": "stop",
                "index": 0,
                "message": {
                    "role": "assistant",
                    "content": "ü🦙",
                    "reasoning_content": "hm, ja",
                },
            }
        ],
        "created": 7,
        "model": "m",
        "system_fingerprint": "b1",
        "object": "chat.completion",
        "usage": USAGE,
        "id": "chatcmpl-1",
        "timings": TIMINGS,
    }
    assert list(answer) == [
        "choices", "created", "model", "system_fingerprint", "object", "usage", "id", "timings",
    ]  # fmt: skip


def test_events_may_come_together():
    pieces = (delta(content="a"), delta(content="b"), delta(finish="length"), *END)
    assert assembled(CHAT, *pieces) == assembled(CHAT, b"".join(pieces))


def test_a_chat_of_nothing():
    answer = assembled(CHAT, delta(finish="length"), *END)
    assert answer["choices"][0]["message"] == {"role": "assistant", "content": ""}


def test_tool_calls_are_joined_by_index():
    def call(index, **fields):
        return delta(tool_calls=[{"index": index, **fields}])

    answer = assembled(
        CHAT,
        delta(role="assistant", content=None),
        delta(content="Well."),
        call(0, id="A", type="function", function={"name": "get"}),
        call(0, function={"arguments": '{"a'}),
        call(1, id="B", type="function", function={"name": "ping", "arguments": "{}"}),
        call(0, function={"arguments": '":1}'}),
        # a name that grew is sent again
        call(1, id="B", type="function", function={"name": "pingpong"}),
        delta(finish="tool_calls"),
        *END,
    )
    message = answer["choices"][0]["message"]
    assert message["content"] == "Well."
    assert message["tool_calls"] == [
        {"type": "function", "function": {"name": "get", "arguments": '{"a":1}'}, "id": "A"},
        {"type": "function", "function": {"name": "pingpong", "arguments": "{}"}, "id": "B"},
    ]


def test_several_answers_are_sorted_and_the_first_ones_usage_counts():
    other = {**USAGE, "completion_tokens": 9}
    answer = assembled(
        CHAT,
        delta(1, content="b"),
        delta(0, content="a"),
        delta(1, finish="length"),
        usage(usage=other, timings={}),
        delta(2, content="c"),
        delta(0, finish="stop"),
        usage(usage=USAGE, timings=TIMINGS),
        delta(2, finish="stop"),
        usage(usage=other, timings={}),
        DONE,
    )
    contents = [choice["message"]["content"] for choice in answer["choices"]]
    assert contents == ["a", "b", "c"]
    assert [choice["index"] for choice in answer["choices"]] == [0, 1, 2]
    assert (answer["usage"], answer["timings"]) == (USAGE, TIMINGS)


def test_what_only_streams_have_is_left_out():
    progress = json.loads(delta(role="assistant", content=None)[6:])
    progress["prompt_progress"] = {"total": 5}
    answer = assembled(CHAT, event(progress), delta(content="a"), delta(finish="stop"), *END)
    assert "prompt_progress" not in json.dumps(answer)


def test_what_later_workers_may_add_is_kept():
    answer = assembled(
        CHAT,
        delta(refusal="No", content=None),
        delta(refusal=", never", audio={"id": 1}),
        delta(finish="stop"),
        usage(usage=USAGE, timings=TIMINGS, service_tier="x"),
        DONE,
    )
    message = answer["choices"][0]["message"]
    assert message["refusal"] == "No, never"
    assert message["audio"] == {"id": 1}
    assert answer["service_tier"] == "x"


# --- completions ---------------------------------------------------------------------------


def test_a_text_completion():
    def probability(token):
        return {"content": [{"id": 1, "token": token, "logprob": -0.1234567890123, "bytes": [97]}]}

    answer = assembled(
        TEXT,
        b"data: null\n\n",
        text("a", logprobs=probability("a")),
        text("b", logprobs=probability("b")),
        text("", finish="length", usage=USAGE, timings=TIMINGS),
        DONE,
    )
    (choice,) = answer["choices"]
    assert choice == {
        "text": "ab",
        "index": 0,
        "logprobs": {"content": [*probability("a")["content"], *probability("b")["content"]]},
        "finish_reason": "length",
    }
    assert answer["object"] == "text_completion"
    assert (answer["usage"], answer["timings"]) == (USAGE, TIMINGS)


def test_completions_of_several_prompts():
    answer = assembled(
        TEXT,
        text("b", 1),
        text("a", 0),
        text("", 1, finish="length", usage={}, timings={}),
        text("", 0, finish="stop", usage=USAGE, timings=TIMINGS),
        DONE,
    )
    assert [(c["text"], c["logprobs"]) for c in answer["choices"]] == [("a", None), ("b", None)]
    assert answer["usage"] == USAGE


def native(content, index=0, *, stop=False, tokens=1, **fields):
    return event(
        {"index": index, "content": content, "stop": stop, "tokens_predicted": tokens, **fields}
    )


def test_llama_cpps_own_form():
    settings = {"prompt": '"stream":true', "stream": True, "stop": []}
    answer = assembled(
        NATIVE,
        native("a", tokens=1, completion_probabilities=[{"id": 1}]),
        native("b", tokens=2, completion_probabilities=[{"id": 2}]),
        event(
            {
                "index": 0,
                "content": "",
                "tokens": [],
                "stop": True,
                "tokens_predicted": 2,
                "generation_settings": settings,
                "stop_type": "limit",
            }
        ).replace(b'"stream": true', b'"stream":true'),
    )
    assert answer == {
        "index": 0,
        "content": "ab",
        "tokens": [],
        "stop": True,
        "tokens_predicted": 2,
        "generation_settings": {**settings, "stream": False},
        "stop_type": "limit",
        "completion_probabilities": [{"id": 1}, {"id": 2}],
    }


def test_half_a_character_at_the_end_shows():
    pieces = (native("a", tokens=1), native("", stop=True, tokens=3))
    assert assembled(NATIVE, *pieces)["content"] == "a\ufffd"


def test_several_of_llama_cpps_own_are_a_list():
    answer = assembled(
        NATIVE,
        native("b", 1),
        native("a", 0),
        native("", 1, stop=True),
        native("", 0, stop=True),
    )
    assert [(item["index"], item["content"]) for item in answer] == [(0, "a"), (1, "b")]


# --- errors --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("code", "status"),
    [(400, 400), (501, 501), (503, 503), (200, 500), ("400", 500), (None, 500), (True, 500)],
)
@pytest.mark.parametrize("kind", [CHAT, TEXT, NATIVE])
def test_an_error_in_the_stream_is_the_answer(kind, code, status):
    body = json.dumps({"error": {"code": code, "message": "no"}}, separators=(",", ":")).encode()
    with pytest.raises(WorkerError) as caught:
        assembled(kind, b"data: " + body + b"\n\n")
    assert (caught.value.status, caught.value.body) == (status, body)


def test_the_old_form_of_errors():
    with pytest.raises(WorkerError) as caught:
        assembled(CHAT, delta(content="a"), b'error: {"code":400,"message":"no"}\n\n')
    assert caught.value.status == 400
    assert json.loads(caught.value.body) == {"error": {"code": 400, "message": "no"}}


@pytest.mark.parametrize(
    ("kind", "pieces"),
    [
        (CHAT, ()),
        (CHAT, (delta(content="a"), DONE)),
        (CHAT, (delta(content="a"), delta(1, finish="stop"), DONE)),
        (TEXT, (text("a"), DONE)),
        (NATIVE, ()),
        (NATIVE, (native("a"),)),
        (NATIVE, (native("a"), native("", 1, stop=True))),
        (CHAT, (b"data: {\n\n",)),
        (CHAT, (b"data: []\n\n",)),
        (CHAT, (b"data: {}\n\n",)),
        (CHAT, (b'data: {"choices":[{"delta":{"content":"\xff"}}]}\n\n',)),
        (CHAT, (b'data: {"choices":' + b"[" * 100_000 + b"\n\n",)),
        (CHAT, (delta(tool_calls=["x"]),)),
        (CHAT, (delta(tool_calls=7),)),
        (CHAT, (delta(tool_calls=[{"index": "a", "function": 1}]),)),
        (CHAT, (delta(tool_calls=[{"function": {"arguments": 3}}]), delta(finish="x"), *END)),
        (NATIVE, (b'data: {"index":"a"}\n\n',)),
    ],
)
def test_what_is_no_such_stream(kind, pieces):
    with pytest.raises(BadWorkerResponse):
        assembled(kind, *pieces)


def test_kinds_that_do_not_stream():
    with pytest.raises(ValueError, match="not streamed"):
        Assembler(KINDS["/v1/embeddings"])


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 3) | st.text(max_size=3),
    lambda inner: (
        st.lists(inner, max_size=2)
        | st.dictionaries(st.sampled_from(["index", "id", "function", "name", "arguments"]), inner)
    ),
    max_leaves=5,
)
CHOICE = st.fixed_dictionaries(
    {},
    optional={
        "index": st.integers(-1, 2),
        "finish_reason": st.none() | st.just("stop"),
        "delta": st.dictionaries(st.sampled_from(["content", "role", "tool_calls", "x"]), JSON),
        "text": st.text(max_size=2),
        "logprobs": JSON,
    },
)


@given(st.lists(st.fixed_dictionaries({"choices": st.lists(CHOICE, max_size=2)}), max_size=4))
def test_whatever_comes_is_an_answer_or_a_bad_worker(events):
    for kind in (CHAT, TEXT):
        try:
            answer = assembled(kind, *map(event, events))
        except BadWorkerResponse:
            continue
        assert answer["choices"]
