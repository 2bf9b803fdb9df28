"""The kinds of request that llmd reads, one row each."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Any

import msgspec

from llmd.api.schema import bodies


class Form(Enum):
    """In which form a worker streams the answer, and so how a plain one is put together."""

    NONE = "none"  # it does not: a plain request goes to the worker as it is
    CHAT = "chat"  # OpenAI's chat completions
    TEXT = "text"  # OpenAI's text completions
    NATIVE = "native"  # llama.cpp's own completions


class Prompt(Enum):
    """Where the text of a request is."""

    MESSAGES = "messages"
    PROMPT = "prompt"
    INPUT = "input"


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of request.

    Attributes:
        name: Of the group of spellings that mean the same.
        path: The client's and the worker's.
        form: How the worker streams its answers.
        prompt: Where the text is.
        decode: Reads the fields that llmd acts on.
        generates: It generates tokens, so `max_tokens` and generation defaults apply.
        least_tokens: The least `max_tokens` besides -1; None where no ranges are checked.
    """

    name: str
    path: str
    form: Form
    prompt: Prompt
    decode: Callable[[bytes], Any]
    generates: bool = True
    least_tokens: int | None = None


_chat = msgspec.json.Decoder(bodies.Chat).decode
_chat_v1 = msgspec.json.Decoder(bodies.ChatV1).decode
_text = msgspec.json.Decoder(bodies.Text).decode
_text_v1 = msgspec.json.Decoder(bodies.TextV1).decode
_embeddings = msgspec.json.Decoder(bodies.Embeddings).decode


def _embedding(path: str) -> Kind:
    return Kind("embeddings", path, Form.NONE, Prompt.INPUT, _embeddings, generates=False)


KINDS: Mapping[str, Kind] = {
    kind.path: kind
    for kind in (
        Kind("chat", "/chat/completions", Form.CHAT, Prompt.MESSAGES, _chat),
        Kind("chat", "/v1/chat/completions", Form.CHAT, Prompt.MESSAGES, _chat_v1, least_tokens=1),
        # without /v1 both spellings are llama.cpp's own form
        Kind("completion", "/completion", Form.NATIVE, Prompt.PROMPT, _text),
        Kind("completion", "/completions", Form.NATIVE, Prompt.PROMPT, _text),
        # OpenAI takes 0 here: the prompt is read, nothing is generated
        Kind("completion", "/v1/completions", Form.TEXT, Prompt.PROMPT, _text_v1, least_tokens=0),
        _embedding("/embedding"),
        _embedding("/embeddings"),
        _embedding("/v1/embeddings"),
    )
}
"""By path. A new kind is a row here, and a structure in `bodies` if it has fields of its own."""
