"""What a request's body must be, what is read of it, and what is refused with which field."""

from __future__ import annotations

import json
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmd.api.schema import KINDS, Form, SchemaLimits, parse
from llmd.api.schema.parse import MAX_DEPTH
from llmd.api.schema.parsed import MAX_SEQUENCES, MAX_TOKENS
from llmd.errors import InvalidRequest

CHAT, BARE_CHAT = "/v1/chat/completions", "/chat/completions"
TEXT, NATIVE, EMBED = "/v1/completions", "/completion", "/v1/embeddings"
HI = [{"role": "user", "content": "hi"}]
NO_LIMITS = SchemaLimits()


def read(path, limits=NO_LIMITS, **fields):
    return parse(KINDS[path], json.dumps(fields).encode(), limits)


def chat(**fields):
    return read(CHAT, **{"messages": HI, **fields})


def text(**fields):
    return read(TEXT, **{"prompt": "hi", **fields})


def refused(path, body, limits=NO_LIMITS):
    if not isinstance(body, bytes):
        body = json.dumps(body).encode()
    with pytest.raises(InvalidRequest) as caught:
        parse(KINDS[path], body, limits)
    assert caught.value.status == 400
    assert caught.value.message
    return caught.value


# --- kinds ---------------------------------------------------------------------------------


def test_every_spelling_has_its_form():
    assert {path: kind.form for path, kind in KINDS.items()} == {
        "/chat/completions": Form.CHAT,
        "/v1/chat/completions": Form.CHAT,
        "/v1/completions": Form.TEXT,
        "/completion": Form.NATIVE,
        "/completions": Form.NATIVE,
        "/embedding": Form.NONE,
        "/embeddings": Form.NONE,
        "/v1/embeddings": Form.NONE,
    }
    assert all(kind.path == path for path, kind in KINDS.items())


# --- bodies that are none ------------------------------------------------------------------


@pytest.mark.parametrize("path", KINDS)
@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b'"text"',
        b"{} {}",
        b'{"messages": NaN}',
        b'{"prompt": "\xff"}',
        b'{"messages": "\xff"}',
        b'{"\xff": 1}',
        b'{"x": "\\ud800"}',
        b"\xef\xbb\xbf{}",
        b'{"x": 1,}',
        b'{"x": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
        b'{"x": ' + b'{"a":' * 5_000 + b"1" + b"}" * 5_000 + b"}",
        b'{"x": ' + b"[" * 100_000,
    ],
)
def test_what_is_no_json_object_is_refused(path, body):
    assert len(refused(path, body).message) < 200


@pytest.mark.parametrize("depth", [MAX_DEPTH, MAX_DEPTH + 1, 900])
def test_depth_is_bounded_wherever_it_is(depth):
    nested = b"[" * (depth - 1) + b"]" * (depth - 1)
    body = b'{"prompt": "a", "x": %b}' % nested
    if depth == MAX_DEPTH:
        assert parse(KINDS[TEXT], body, NO_LIMITS).prompts == 1
    else:
        assert "nested" in refused(TEXT, body).message


def test_brackets_in_text_are_no_depth():
    code = "[{" * 500 + '\\"' + "\\"
    assert read(TEXT, prompt=code).prompt_bytes == len(code)


def test_many_shallow_values_are_no_depth():
    assert chat(logit_bias=[[n, 1] for n in range(5000)]).messages == 1


def test_the_last_of_duplicate_fields_counts_as_it_does_for_the_worker():
    body = b'{"prompt": "a", "max_tokens": 1, "max_tokens": 9, "max_t\\u006fkens": 7}'
    assert parse(KINDS[TEXT], body, NO_LIMITS).max_tokens == 7


@given(st.binary(max_size=200))
def test_any_bytes_are_parsed_or_refused(data):
    for kind in KINDS.values():
        with suppress(InvalidRequest):
            parse(kind, data, NO_LIMITS)


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=6,
)
FIELDS = st.sampled_from(
    [
        "model", "messages", "prompt", "input", "content", "stream", "n", "max_tokens",
        "n_predict", "tools", "logprobs", "top_logprobs", "temperature", "stream_options",
        "service_tier", "stop", "verbose", "n_indent", "reasoning_format", "return_tokens",
    ]
)  # fmt: skip
MESSAGE = st.fixed_dictionaries(
    {}, optional={"role": JSON | st.just("user"), "content": JSON, "tool_calls": JSON}
)


@given(st.dictionaries(FIELDS, JSON | st.lists(MESSAGE, max_size=3)), st.sampled_from([*KINDS]))
def test_any_json_is_parsed_or_refused_with_its_field(fields, path):
    try:
        parsed = read(path, SchemaLimits(5, 50, 100), **fields)
    except InvalidRequest as error:
        name = error.param.partition("[")[0].partition(".")[0]
        # the field at fault, or the one that is missing
        assert name in fields or name in ("messages", "prompt", "input")
        return
    assert 1 <= parsed.sequences <= MAX_SEQUENCES
    assert parsed.max_tokens is None or -1 <= parsed.max_tokens <= MAX_TOKENS
    sent = json.loads(parsed.upstream_body(force_stream=parsed.gathers))
    if parsed.gathers:
        assert sent.pop("stream") is True
        sent.pop("stream_options", None)
    for name, value in sent.items():
        assert fields[name] == value


# --- messages ------------------------------------------------------------------------------


def test_what_is_read_of_a_chat():
    parsed = read(
        CHAT,
        model="m",
        messages=[
            {"role": "system", "content": "häh"},
            {
                "role": "user",
                "content": [
                    {"type": "text", "text": "what is"},
                    {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}},
                ],
            },
        ],
        max_tokens=5,
        n=3,
        stream=True,
        service_tier="flex",
        tools=[{"type": "function"}],
        unknown={"passes": "through"},
    )
    assert parsed.model == "m"
    assert parsed.messages == 2
    assert parsed.images == 1
    assert parsed.prompt_bytes == len("häh".encode()) + 7 + len('[{"type": "function"}]')
    assert (parsed.max_tokens, parsed.sequences, parsed.choices) == (5, 3, 3)
    assert parsed.stream
    assert parsed.service_tier == "flex"


def test_absent_and_null_fields_are_the_same():
    for fields in (
        {},
        dict.fromkeys(("model", "max_tokens", "n", "temperature", "stop", "service_tier")),
        dict.fromkeys(("logprobs", "top_logprobs", "top_p", "stream_options", "stream")),
    ):
        parsed = chat(**fields)
        assert parsed.model is None
        assert parsed.max_tokens is None
        assert parsed.sequences == 1
        assert not parsed.stream


def test_roles_and_contents_that_openai_and_templates_know():
    parsed = chat(
        messages=[
            {"role": "developer", "content": "a"},
            {"role": "assistant", "content": None, "tool_calls": [{"id": "1"}]},
            {"role": "tool", "tool_call_id": "1", "content": "b"},
            {"role": "assistant", "reasoning_content": "hm", "content": []},
            {"role": "user", "content": [{"type": "text", "text": ""}], "name": "x"},
        ]
    )
    assert parsed.messages == 5


@pytest.mark.parametrize(
    ("messages", "param"),
    [
        (None, "messages"),
        ([], "messages"),
        ("hi", "messages"),
        ({"role": "user"}, "messages"),
        (["hi"], "messages[0]"),
        ([*HI, None], "messages[1]"),
        ([*HI, [1]], "messages[1]"),
        ([{"content": "hi"}], "messages[0].role"),
        ([{"role": None, "content": "hi"}], "messages[0].role"),
        ([*HI, {"role": 1}], "messages[1].role"),
        ([*HI, *HI, {"role": "user", "content": 1}], "messages[2].content"),
        ([{"role": "user", "content": {"text": "a"}}], "messages[0].content"),
        ([{"role": "user", "content": ["a"]}], "messages[0].content"),
        ([{"role": "user", "content": [{"type": 1}]}], "messages[0].content"),
        ([{"role": "user", "content": "a", "name": 3}], "messages[0].name"),
    ],
)
def test_messages_that_are_refused(messages, param):
    for path in (CHAT, BARE_CHAT):
        assert refused(path, {"messages": messages}).param == param


def test_missing_fields_are_named():
    assert refused(CHAT, {}).param == "messages"
    assert refused(TEXT, {}).param == "prompt"
    assert refused(NATIVE, {"prompt": None}).param == "prompt"
    assert refused(EMBED, {}).param == "input"


# --- prompts -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("prompt", "prompts", "size"),
    [
        ("häh", 1, 4),
        ("", 1, 0),
        (["a", "bc"], 2, 3),
        ([1, 2, 3], 1, 12),
        ([[1, 2], [3]], 2, 12),
        ([[1, 2], "abc", {"prompt_string": "de"}], 3, 13),
        ([1, "abc"], 1, 7),
        ({"prompt_string": "abc", "multimodal_data": ["x", "y"]}, 1, 3),
    ],
)
def test_prompts_are_counted(prompt, prompts, size):
    for path in (TEXT, NATIVE, EMBED):
        field = "input" if path == EMBED else "prompt"
        parsed = read(path, **{field: prompt})
        assert (parsed.prompts, parsed.sequences) == (prompts, prompts)
        assert parsed.prompt_bytes == size


@pytest.mark.parametrize(
    "prompt", [[], 3, True, {}, {"text": "a"}, [1.5], [None], [["a", None]], [{"a": 1}], [1, []]]
)
def test_prompts_that_are_refused(prompt):
    assert refused(TEXT, {"prompt": prompt}).param.startswith("prompt")
    assert refused(EMBED, {"input": prompt}).param.startswith("input")


def test_the_temperature_is_noted_as_asked_for_or_as_filled_in():
    assert chat(temperature=0.5).temperature == 0.5
    assert chat().temperature is None
    assert read("/completion", prompt="a", temperature="hot").temperature is None
    parsed, asked = chat(), chat(temperature=0)
    for one in (parsed, asked):
        one.apply_defaults({"temperature": 0.6}, {"temperature": 0.9})
    assert (parsed.temperature, asked.temperature) == (0.6, 0)


def test_sequences_are_prompts_times_answers():
    assert text(prompt=["a", "b"], n=3).sequences == 6


def test_embeddings_generate_nothing():
    parsed = read(EMBED, input=[{"content": [{"type": "text", "text": "abc"}, {"type": "x"}]}])
    assert parsed.max_tokens == 0
    assert parsed.prompt_bytes == 3
    assert parsed.images == 1
    assert not parsed.gathers
    assert read("/embedding", content=["a", "b"]).sequences == 2


# --- numbers of tokens and answers ----------------------------------------------------------


def test_the_field_that_llama_server_takes_first_counts():
    assert chat(max_tokens=1, max_completion_tokens=2).max_tokens == 2
    assert chat(max_tokens=1, max_completion_tokens=2, n_predict=3).max_tokens == 3
    assert chat(max_tokens=1, max_completion_tokens=None).max_tokens == 1
    assert chat(n=2, n_cmpl=3).sequences == 3


def test_whole_numbers_may_be_written_as_floats():
    parsed = chat(max_tokens=512.0, n=2.0)
    assert (parsed.max_tokens, parsed.sequences) == (512, 2)
    assert isinstance(parsed.max_tokens, int)


def test_as_many_tokens_as_fit():
    assert chat(max_tokens=-1).max_tokens == -1
    assert read(NATIVE, prompt="a", n_predict=-1).max_tokens == -1


def test_numbers_beyond_any_worker_are_cut_for_the_count_only():
    parsed = chat(max_tokens=10**40)
    assert parsed.max_tokens == MAX_TOKENS
    assert b"1" + b"0" * 40 in parsed.upstream_body(force_stream=True)
    assert read(NATIVE, prompt="a", n=10**30, max_tokens=-7).sequences == MAX_SEQUENCES
    assert read(NATIVE, prompt="a", max_tokens=-7).max_tokens == -1


@pytest.mark.parametrize("name", ["max_tokens", "max_completion_tokens", "n_predict"])
@pytest.mark.parametrize("value", ["5", True, 1.5, [], {}, 1e400])
def test_what_is_no_number_of_tokens_is_refused_everywhere(name, value):
    body = json.dumps({"messages": HI, "prompt": "a", name: value}).replace("Infinity", "1e400")
    for path in (CHAT, BARE_CHAT, TEXT, NATIVE):
        assert refused(path, body.encode()).param == name


@pytest.mark.parametrize("name", ["n", "n_cmpl"])
@pytest.mark.parametrize("value", ["5", True, 1.5])
def test_what_is_no_number_of_answers_is_refused_everywhere(name, value):
    for path in (CHAT, BARE_CHAT, TEXT, NATIVE):
        assert refused(path, {"messages": HI, "prompt": "a", name: value}).param == name


# --- ranges --------------------------------------------------------------------------------

RANGES = [
    ("temperature", [0, 0.7, 2], [-0.1, 2.1, "1", True, []]),
    ("top_p", [0, 1, 0.5], [-0.1, 1.1, "1"]),
    ("frequency_penalty", [-2, 0, 2], [-2.1, 2.1, "0"]),
    ("presence_penalty", [-2, 0, 2], [-2.1, 2.1, "0"]),
    ("max_tokens", [1, -1, 100], [-2]),
    ("n", [1, 128], [0, -1, 129]),
    ("stop", ["a", ["a", "b"], []], [1, [1], {}]),
]


@pytest.mark.parametrize(("name", "good", "bad"), RANGES)
def test_ranges_are_checked_below_v1_only(name, good, bad):
    for path, bare in ((CHAT, BARE_CHAT), (TEXT, NATIVE)):
        request = {"messages": HI, "prompt": "a"}
        for value in good:
            read(path, **request, **{name: value})
        for value in bad:
            error = refused(path, {**request, name: value})
            assert error.param == name
            assert name in error.message
            if name not in ("max_tokens", "n"):
                read(bare, **request, **{name: value})


def test_no_tokens_at_all():
    assert refused(CHAT, {"messages": HI, "max_tokens": 0}).param == "max_tokens"
    assert text(max_tokens=0).max_tokens == 0
    assert read(BARE_CHAT, messages=HI, max_tokens=0).max_tokens == 0


def test_logprobs():
    assert chat(logprobs=True, top_logprobs=20).model is None
    assert text(logprobs=5).model is None
    assert refused(CHAT, {"messages": HI, "logprobs": 5}).param == "logprobs"
    assert "true or false" in refused(CHAT, {"messages": HI, "logprobs": 5}).message
    assert refused(TEXT, {"prompt": "a", "logprobs": -1}).param == "logprobs"
    for value in (-1, 21, "x"):
        assert refused(CHAT, {"messages": HI, "top_logprobs": value}).param == "top_logprobs"


def test_stream_options_need_a_stream():
    options = {"stream_options": {"include_usage": True}}
    assert chat(stream=True, **options).stream
    assert refused(CHAT, {"messages": HI, **options}).param == "stream_options"
    assert refused(TEXT, {"prompt": "a", "stream": False, **options}).param == "stream_options"
    assert refused(CHAT, {"messages": HI, "stream_options": 1}).param == "stream_options"
    assert not read(BARE_CHAT, messages=HI, **options).stream


@pytest.mark.parametrize("value", [1, "true", [], {}])
def test_stream_is_a_flag(value):
    for path in (CHAT, BARE_CHAT, TEXT, NATIVE):
        assert refused(path, {"messages": HI, "prompt": "a", "stream": value}).param == "stream"


def test_model_and_tier_are_names():
    for path in KINDS:
        request = {"messages": HI, "prompt": "a", "input": "a"}
        assert refused(path, {**request, "model": 3}).param == "model"
        assert refused(path, {**request, "service_tier": 3}).param == "service_tier"
