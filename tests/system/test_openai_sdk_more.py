"""The OpenAI SDK's finer points: retries, headers, helpers, every kind of stream, errors in it."""

from __future__ import annotations

import json

import openai
import pydantic
import pytest
import trio
from daemon_rig import KEYS, chat_body, running
from test_openai_sdk import HELLO, TOOL, sdk_on

from llmd.core.ratelimit import Limits
from llmd.core.record import CancelCause

pytestmark = pytest.mark.system


class Verdict(pydantic.BaseModel):
    ok: bool


@pytest.fixture
async def llmd(runtime_dir, real_engine, demo_models):
    models = [
        {"name": name, "path": str(demo_models / f"{name}.gguf"), "context_size": 2048}
        for name in ("demo-small", "demo-embed")
    ]
    async with running(runtime_dir, real_engine, models, api_keys=KEYS) as llmd:
        yield llmd


@pytest.fixture
async def sdk(llmd):
    async with sdk_on(llmd) as sdk:
        yield sdk


# --- what is asked for ----------------------------------------------------------------------


async def test_streams_carry_several_answers_their_probabilities_and_the_usage(sdk):
    chunks = await sdk.chunks(
        n=2, logprobs=True, top_logprobs=2, stream_options={"include_usage": True}
    )
    texts, finished = {0: "", 1: ""}, {}
    for chunk in chunks:
        for choice in chunk.choices:
            texts[choice.index] += choice.delta.content or ""
            if choice.delta.content:
                assert len(choice.logprobs.content[0].top_logprobs) == 2
            finished[choice.index] = choice.finish_reason or finished.get(choice.index)
    assert all(texts.values())
    assert finished == {0: "length", 1: "length"}
    # llama-server reports each answer's usage by itself, in an event without choices
    usages = [chunk.usage for chunk in chunks if chunk.usage]
    assert sum(usage.completion_tokens for usage in usages) == 24


async def test_without_include_usage_no_chunk_has_any(sdk):
    assert not [chunk for chunk in await sdk.chunks() if chunk.usage]


async def test_a_streamed_tool_call_is_whole_once_it_is_put_together(sdk):
    chunks = await sdk.chunks(tools=[TOOL], tool_choice="required", max_tokens=200)
    calls = [
        call
        for chunk in chunks
        if chunk.choices
        for call in chunk.choices[0].delta.tool_calls or ()
    ]
    assert calls[0].function.name == "get_weather"
    arguments = "".join(call.function.arguments or "" for call in calls)
    assert isinstance(json.loads(arguments)["city"], str)


async def test_the_sdks_own_helpers_for_schemas_and_streams(sdk):
    parsed = await sdk.run(
        sdk.client.chat.completions.parse,
        model="demo-small",
        messages=HELLO,
        max_tokens=200,
        response_format=Verdict,
    )
    assert isinstance(parsed.choices[0].message.parsed.ok, bool)

    def streamed():
        asked = {"model": "demo-small", "messages": HELLO, "max_tokens": 200}
        with sdk.client.chat.completions.stream(**asked, response_format=Verdict) as stream:
            kinds = {event.type for event in stream}
            return kinds, stream.get_final_completion()

    kinds, completion = await trio.to_thread.run_sync(streamed)
    assert {"chunk", "content.delta", "content.done"} <= kinds
    assert isinstance(completion.choices[0].message.parsed.ok, bool)


async def test_text_completions(sdk):
    create = sdk.client.completions.create
    asked = {"model": "demo-small", "prompt": "Once", "max_tokens": 8, "seed": 1}
    plain = await sdk.run(create, **asked, logprobs=2)
    assert plain.usage.completion_tokens == 8
    assert plain.choices[0].logprobs
    several = await sdk.run(create, **{**asked, "prompt": ["Once", "Twice"]}, n=2)
    assert sorted(choice.index for choice in several.choices) == [0, 1, 2, 3]

    def streamed():
        return list(create(**asked, stream=True, stream_options={"include_usage": True}))

    chunks = await trio.to_thread.run_sync(streamed)
    assert chunks[-1].usage.completion_tokens == 8
    text = "".join(chunk.choices[0].text for chunk in chunks if chunk.choices)
    assert text == plain.choices[0].text


@pytest.mark.parametrize("encoding", ["float", "base64"])
async def test_embeddings(sdk, encoding):
    create = sdk.client.embeddings.create
    got = await sdk.run(create, model="demo-embed", input=["a", "b"], encoding_format=encoding)
    assert [item.index for item in got.data] == [0, 1]
    assert got.usage.prompt_tokens > 0
    default = await sdk.run(create, model="demo-embed", input="a")
    assert all(isinstance(number, float) for number in default.data[0].embedding)
    tokens = await sdk.run(create, model="demo-embed", input=[[1, 2, 3]])
    assert len(tokens.data) == 1


async def test_an_answer_names_its_request(sdk, llmd):
    answered = await sdk.chat()
    shown = await llmd.call("GET", f"/requests/{answered._request_id}", key="sk-alice")
    assert shown.json["completion_id"] == answered.id
    raw = await sdk.run(
        sdk.client.chat.completions.with_raw_response.create,
        model="demo-small",
        messages=HELLO,
        max_tokens=1,
        extra_headers={"X-Request-Id": "mine-1"},
    )
    assert raw.headers["x-request-id"] == "mine-1"
    assert raw.parse()._request_id == "mine-1"


# --- what goes wrong ------------------------------------------------------------------------


@pytest.fixture
async def fake(runtime_dir, fake_engine, demo_small, tmp_path):
    bad = tmp_path / "bad.gguf"
    bad.write_bytes(b"no model at all")
    models = [
        {"name": "demo-small", "path": str(demo_small), "parallel": 1},
        {"name": "bad", "path": str(bad)},
    ]
    keys = [*KEYS, {"name": "slow", "key": "sk-slow", "requests_per_minute": 60}]
    keys.append({"name": "listed", "key": "sk-listed", "models": ["bad"]})
    queue = {"max_size": 1, "admin_quota": 0, "max_share": 1.0}
    async with running(runtime_dir, fake_engine, models, api_keys=keys, queue=queue) as llmd:
        yield llmd


def told(llmd, key):
    """The codes of a key's requests, the oldest first."""
    records = [r for r in llmd.services.registry.records() if r.key == key and r.ended]
    return [record.code for record in reversed(records)]


async def test_a_429_is_tried_again_when_it_says(fake):
    async with sdk_on(fake, "sk-slow") as sdk:
        for _ in range(60):  # its minute's worth
            fake.services.limiter.check("slow", Limits(60, 100_000), 0, trio.current_time())
        patient = sdk.client.with_options(max_retries=2)
        ask = patient.chat.completions.create
        answered = await sdk.run(ask, model="demo-small", messages=HELLO, max_tokens=1)
    assert answered.choices
    assert told(fake, "slow") == ["rate_limit_exceeded", ""]


async def test_a_503_is_tried_again_when_it_says(fake):
    await fake.chat(model="demo-small", key="sk-bob", max_tokens=1)
    body = chat_body("[[token 0.05]]", model="demo-small", max_tokens=900)
    streams = []
    for place in ("runs", "waits"):
        stream = await fake.connect()
        streams.append(stream)
        headers = ("Authorization: Bearer sk-bob", f"X-Request-Id: {place}")
        await stream.send_all(fake.raw("/v1/chat/completions", body, *headers))
        await fake.until(lambda: fake.services.registry.live(place))  # noqa: B023
    await fake.until(lambda: "queued" in fake.states())

    async def make_room():
        await fake.until(lambda: told(fake, "alice"))
        for handle in fake.handles():
            handle.cancel(CancelCause.OPERATOR)

    async with sdk_on(fake) as sdk, trio.open_nursery() as nursery:
        nursery.start_soon(make_room)
        patient = sdk.client.with_options(max_retries=2)
        ask = patient.chat.completions.create
        assert await sdk.run(ask, model="demo-small", messages=HELLO, max_tokens=1)
    assert told(fake, "alice") == ["queue_full", ""]
    for stream in streams:
        await stream.aclose()


@pytest.mark.parametrize(
    ("fields", "key", "error", "code"),
    [
        ({"model": "bad"}, "sk-alice", openai.InternalServerError, "model_failed"),
        ({"model": "demo-small"}, "sk-listed", openai.PermissionDeniedError, "permission_denied"),
        ({"temperature": 9}, "sk-alice", openai.BadRequestError, "invalid_request"),
        ({"model": "nope"}, "sk-alice", openai.NotFoundError, "model_not_found"),
        ({"max_tokens": 99_999}, "sk-alice", openai.BadRequestError, "context_length_exceeded"),
    ],
)
async def test_what_can_never_succeed_is_tried_once(fake, fields, key, error, code):
    async with sdk_on(fake, key) as sdk:
        patient = sdk.client.with_options(max_retries=2)
        asked = {"model": "demo-small", "messages": HELLO, "max_tokens": 1, **fields}
        with pytest.raises(error) as caught:
            await sdk.run(patient.chat.completions.create, **asked)
    assert caught.value.code == code
    assert caught.value.type
    assert caught.value.request_id
    assert told(fake, key.removeprefix("sk-")) == [code]


async def test_what_is_not_built_yet_says_so_and_is_not_tried_again(fake):
    async with sdk_on(fake) as sdk:
        patient = sdk.client.with_options(max_retries=2)
        with pytest.raises(openai.InternalServerError) as caught:
            await sdk.run(patient.responses.create, model="demo-small", input="x")
    assert (caught.value.status_code, caught.value.code) == (501, "not_supported_yet")


@pytest.mark.parametrize(
    ("prompt", "code"), [("[[garbage]]", "bad_worker_response"), ("[[status 501]]", 501)]
)
async def test_a_workers_trouble_is_a_server_error(fake, prompt, code):
    async with sdk_on(fake) as sdk:
        with pytest.raises(openai.InternalServerError) as caught:
            await sdk.chat(messages=[{"role": "user", "content": prompt}], max_tokens=1)
    assert caught.value.code in (code, str(code))


async def test_an_error_within_a_stream_is_raised_where_it_is_read(fake):
    def read():
        got = []
        stream = sdk.client.chat.completions.create(
            model="demo-small",
            messages=[{"role": "user", "content": "[[cut]]"}],
            max_tokens=10,
            stream=True,
        )
        with pytest.raises(openai.APIError) as caught:
            got.extend(stream)
        return got, caught.value

    async with sdk_on(fake) as sdk:
        _, error = await trio.to_thread.run_sync(read)
    assert error.code == "bad_worker_response"
    assert "ended" in error.message


async def test_a_cancelled_request_is_no_success(fake):
    async def cancel():
        await fake.until(lambda: fake.states() in (["prefill"], ["decode"]))
        [handle] = fake.handles()
        await fake.call("POST", f"/requests/{handle.record.id}/cancel", key="sk-alice")

    async with sdk_on(fake) as sdk, trio.open_nursery() as nursery:
        nursery.start_soon(cancel)
        patient = sdk.client.with_options(max_retries=2)
        asked = [{"role": "user", "content": "[[token 0.05]]"}]
        with pytest.raises(openai.APIStatusError) as caught:
            await sdk.run(
                patient.chat.completions.create,
                model="demo-small",
                messages=asked,
                max_tokens=900,
            )
    assert (caught.value.status_code, caught.value.code) == (499, "request_cancelled")
    assert told(fake, "alice") == ["request_cancelled"]
