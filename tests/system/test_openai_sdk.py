"""The OpenAI SDK against a whole daemon on real engines: what a user's program sees."""

from __future__ import annotations

import json
from contextlib import asynccontextmanager
from functools import partial

import openai
import pytest
import trio
from daemon_rig import KEYS, running

pytestmark = pytest.mark.system

TOOL = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Tell the weather",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string"}},
            "required": ["city"],
        },
    },
}
HELLO = [{"role": "user", "content": "Hello"}]


class Sdk:
    """The SDK's own client, each call in a thread so that the daemon can run beside it."""

    def __init__(self, llmd, key):
        self.client = openai.OpenAI(base_url=llmd.bound.url + "/v1", api_key=key, max_retries=0)

    async def chat(self, **fields):
        call = partial(
            self.client.chat.completions.create,
            **{"model": "demo-small", "messages": HELLO, "max_tokens": 12, **fields},
        )
        return await trio.to_thread.run_sync(call)

    async def chunks(self, **fields):
        def collect():
            return list(
                self.client.chat.completions.create(
                    **{"model": "demo-small", "messages": HELLO, "max_tokens": 12, **fields},
                    stream=True,
                )
            )

        return await trio.to_thread.run_sync(collect)

    async def run(self, function, *args, **fields):
        return await trio.to_thread.run_sync(partial(function, *args, **fields))


@asynccontextmanager
async def sdk_on(llmd, key="sk-alice"):
    sdk = Sdk(llmd, key)
    try:
        yield sdk
    finally:
        sdk.client.close()


@pytest.fixture
async def llmd(runtime_dir, real_engine, demo_models):
    models = [
        {"name": name, "path": str(demo_models / f"{name}.gguf"), "context_size": 2048}
        for name in ("demo-small", "demo-large", "demo-embed")
    ]
    async with running(runtime_dir, real_engine, models, api_keys=KEYS) as llmd:
        yield llmd


@pytest.fixture
async def sdk(llmd):
    async with sdk_on(llmd) as sdk:
        yield sdk


async def test_plain_and_streamed_answers_agree(sdk):
    plain = await sdk.chat(seed=1, temperature=0)
    chunks = await sdk.chunks(seed=1, temperature=0, stream_options={"include_usage": True})
    text = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
    assert plain.model == "demo-small"
    assert plain.usage.completion_tokens == 12
    assert chunks[-1].usage.completion_tokens == 12
    assert text == plain.choices[0].message.content


async def test_everything_a_request_may_ask_for_reaches_the_worker(sdk):
    several = await sdk.chat(n=2, logprobs=True, top_logprobs=2)
    assert [choice.index for choice in several.choices] == [0, 1]
    assert len(several.choices[0].logprobs.content[0].top_logprobs) == 2

    called = await sdk.chat(tools=[TOOL], tool_choice="required", max_tokens=200)
    call = called.choices[0].message.tool_calls[0]
    assert call.function.name == "get_weather"
    assert isinstance(json.loads(call.function.arguments)["city"], str)

    schema = {
        "type": "object",
        "properties": {"ok": {"type": "boolean"}},
        "required": ["ok"],
        "additionalProperties": False,
    }
    answered = await sdk.chat(
        response_format={"type": "json_schema", "json_schema": {"name": "a", "schema": schema}},
        max_tokens=200,
    )
    assert isinstance(json.loads(answered.choices[0].message.content)["ok"], bool)


async def test_models_embeddings_and_switching(sdk, llmd):
    listed = await sdk.run(sdk.client.models.list)
    assert [model.id for model in listed.data] == ["demo-embed", "demo-large", "demo-small"]
    got = await sdk.run(sdk.client.embeddings.create, model="demo-embed", input=["a", "b"])
    assert [item.index for item in got.data] == [0, 1]
    names = ["demo-small", "demo-large", "demo-embed.gguf", "demo-small"]
    answers = {}

    async def ask(number, name):
        if "embed" in name:
            answers[number] = await sdk.run(sdk.client.embeddings.create, model=name, input="a")
        else:
            answers[number] = await sdk.chat(model=name)

    async with trio.open_nursery() as nursery:
        for number, name in enumerate(names):
            nursery.start_soon(ask, number, name)
    assert [answers[n].model for n in range(4)] == [
        "demo-small",
        "demo-large",
        "demo-embed",
        "demo-small",
    ]
    llmd.assert_nothing_left()


async def test_each_refusal_is_the_exception_that_its_users_catch(sdk, llmd):
    with pytest.raises(openai.NotFoundError) as caught:
        await sdk.chat(model="no-such-model")
    assert caught.value.code == "model_not_found"
    with pytest.raises(openai.BadRequestError) as caught:
        await sdk.chat(temperature=5)
    assert caught.value.param == "temperature"
    with pytest.raises(openai.BadRequestError) as caught:
        await sdk.chat(max_tokens=100_000)
    assert caught.value.code == "context_length_exceeded"
    async with sdk_on(llmd, "sk-wrong") as stranger:
        with pytest.raises(openai.AuthenticationError) as caught:
            await stranger.chat()
        assert caught.value.code == "invalid_api_key"


async def test_a_rate_limit_is_told_with_its_reset(runtime_dir, real_engine, demo_small):
    keys = [{"name": "k", "key": "sk-k", "requests_per_minute": 2}]
    async with (
        running(runtime_dir, real_engine, [demo_small], api_keys=keys) as llmd,
        sdk_on(llmd, "sk-k") as sdk,
    ):
        first = await sdk.run(
            sdk.client.chat.completions.with_raw_response.create,
            model="demo-small",
            messages=HELLO,
            max_tokens=1,
        )
        assert first.headers["x-ratelimit-limit-requests"] == "2"
        assert first.headers["x-ratelimit-remaining-requests"] == "1"
        await sdk.chat()
        with pytest.raises(openai.RateLimitError) as caught:
            await sdk.chat()
        assert caught.value.code == "rate_limit_exceeded"
        assert 1 <= int(caught.value.response.headers["retry-after"]) <= 60
        assert int(caught.value.response.headers["retry-after-ms"]) > 0


async def test_a_client_that_stops_reading_its_stream_frees_the_slot(sdk, llmd):
    def one_chunk():
        stream = sdk.client.chat.completions.create(
            model="demo-large", messages=HELLO, max_tokens=1900, stream=True
        )
        for _ in stream:
            break
        stream.close()

    await trio.to_thread.run_sync(one_chunk)
    await llmd.until(lambda: not llmd.handles())
    await llmd.until_slots_free("demo-large")
    assert llmd.last().outcome == "abandoned"
