"""What llmd reads of each kind of request body: the fields it acts on, and OpenAI's ranges.

One structure a kind. Fields that are not named here pass through unread, so that whatever
llama-server learns next works at once; the worker judges them. The structures for `/v1/*` add
OpenAI's ranges to OpenAI's own fields.
"""

from __future__ import annotations

from typing import Annotated, Any, TypeAlias

from msgspec import UNSET, Meta, Raw, Struct, UnsetType

Whole: TypeAlias = int | float | None  # 512.0 is as good as 512
Unread: TypeAlias = Raw | UnsetType
Temperature: TypeAlias = Annotated[float, Meta(ge=0, le=2)] | None
Probability: TypeAlias = Annotated[float, Meta(ge=0, le=1)] | None
Penalty: TypeAlias = Annotated[float, Meta(ge=-2, le=2)] | None
TopLogprobs: TypeAlias = Annotated[int, Meta(ge=0, le=20)] | None
Logprobs: TypeAlias = Annotated[int, Meta(ge=0)] | bool | None

_NOTHING = Raw()


class Part(Struct, gc=False):
    """A part of a message's content; one without text is an image, a sound or a video."""

    type: str = ""
    text: str | None = None


class Message(Struct, gc=False):
    """A message of a chat. What is not text goes into the prompt too, as the template likes."""

    role: str
    content: str | list[Part] | None = None
    name: str | None = None
    reasoning_content: Raw = _NOTHING
    tool_calls: Raw = _NOTHING


class StreamOptions(Struct):
    """`stream_options`."""

    include_usage: bool | None = None


class Body(Struct):
    """What every kind has."""

    model: str | None = None
    service_tier: str | None = None


class Generation(Body):
    """What the kinds that generate have."""

    stream: bool | UnsetType | None = UNSET
    n: Whole = None
    n_cmpl: Whole = None
    max_tokens: Whole = None
    max_completion_tokens: Whole = None
    n_predict: Whole = None
    # of interest only for what a stream does not tell, see `lossy`
    n_indent: Unread = UNSET
    n_probs: Unread = UNSET
    reasoning_format: Unread = UNSET
    verbose: Unread = UNSET
    # of interest only to operators
    temperature: Any = None


class Ranged(Generation):
    """What OpenAI has, with OpenAI's ranges: the kinds below `/v1`."""

    frequency_penalty: Penalty = None
    presence_penalty: Penalty = None
    stop: str | list[str] | None = None
    stream_options: StreamOptions | UnsetType | None = UNSET
    temperature: Temperature = None
    top_p: Probability = None


class Chat(Generation):
    """`/chat/completions`."""

    messages: list[Message] | UnsetType = UNSET
    tools: Raw = _NOTHING
    continue_final_message: Unread = UNSET
    logprobs: Unread = UNSET
    stream_options: Unread = UNSET


class ChatV1(Ranged):
    """`/v1/chat/completions`."""

    messages: list[Message] | UnsetType = UNSET
    tools: Raw = _NOTHING
    continue_final_message: Unread = UNSET
    logprobs: bool | UnsetType | None = UNSET
    top_logprobs: TopLogprobs = None


class Text(Generation):
    """`/completion` and `/completions`, llama.cpp's own form."""

    prompt: Any = UNSET
    logprobs: Unread = UNSET
    response_fields: Unread = UNSET
    return_tokens: Unread = UNSET
    stream_options: Unread = UNSET


class TextV1(Ranged):
    """`/v1/completions`."""

    prompt: Any = UNSET
    logprobs: Logprobs | UnsetType = UNSET


class Embeddings(Body):
    """`/embeddings` in all spellings."""

    input: Any = UNSET
    content: Any = UNSET


WANTED = {
    "content": "a string, an array of token ids, or an array of these",
    "input": "a string, an array of token ids, or an array of these",
    "max_completion_tokens": "a whole number of tokens, or -1 for as many as fit",
    "max_tokens": "a whole number of tokens, or -1 for as many as fit",
    "messages": "a non-empty array of objects, each with a role and a content",
    "model": "a string: the name of a model",
    "n": "a whole number of answers, at least 1",
    "n_cmpl": "a whole number of answers, at least 1",
    "n_predict": "a whole number of tokens, or -1 for as many as fit",
    "prompt": "a string, an array of token ids, or an array of these",
    "service_tier": "a string such as default, flex or priority",
    "stream": "true or false",
    "stream_options": 'an object such as {"include_usage": true}',
    "stop": "a string or an array of strings",
    # ranges of /v1/*
    "frequency_penalty": "a number from -2 to 2",
    "presence_penalty": "a number from -2 to 2",
    "temperature": "a number from 0 to 2",
    "top_logprobs": "a whole number from 0 to 20",
    "top_p": "a number from 0 to 1",
}
"""What a field must be, for the message that says that it is not. `logprobs` differs by kind."""
