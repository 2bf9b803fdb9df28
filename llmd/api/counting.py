"""A prompt's tokens as the worker itself counts them: asked only where an estimate would refuse."""

from __future__ import annotations

from typing import Any

import msgspec
import trio

from llmd.api.schema import ParsedRequest
from llmd.errors import BadWorkerResponse, WorkerDied
from llmd.workers.upstream import Upstream

COUNT_DEADLINE_S = 5.0
MAX_COUNT_BYTES = 1 << 26
_HEADERS = ((b"Content-Type", b"application/json"),)


class _Prompt(msgspec.Struct):
    prompt: str


class _Tokens(msgspec.Struct):
    tokens: list[msgspec.Raw]


async def count_prompts(upstream: Upstream, parsed: ParsedRequest) -> list[int] | None:
    """Return the tokens of each prompt of a request.

    Returns:
        None where the worker cannot tell: images, prompts of mixed kinds, no answer in time.
    """
    if parsed.images:
        return None
    with trio.move_on_after(COUNT_DEADLINE_S):
        try:
            return [await _count(upstream, prompt) for prompt in await _prompts(upstream, parsed)]
        except (
            BadWorkerResponse,
            WorkerDied,
            msgspec.MsgspecError,
            UnicodeDecodeError,
            RecursionError,
        ):
            return None
    return None


async def _prompts(upstream: Upstream, parsed: ParsedRequest) -> list[Any]:
    name = parsed.kind.prompt.value
    if name == "messages":
        answer = await _ask(upstream, b"/apply-template", parsed.body)
        return [msgspec.json.decode(answer, type=_Prompt).prompt]
    held: Any = None
    for field in (name, "content"):  # llama.cpp's own name of an embedding's input
        if field in parsed.fields:
            held = msgspec.json.decode(parsed.fields[field])
            break
    several = isinstance(held, list) and not all(isinstance(item, int) for item in held)
    return held if several else [held]


async def _count(upstream: Upstream, prompt: Any) -> int:
    if isinstance(prompt, list):
        return len(prompt)
    if not isinstance(prompt, str):
        raise BadWorkerResponse("a prompt of a kind that cannot be counted")
    body = msgspec.json.encode({"content": prompt, "add_special": True, "parse_special": True})
    answer = await _ask(upstream, b"/tokenize", body)
    return len(msgspec.json.decode(answer, type=_Tokens).tokens)


async def _ask(upstream: Upstream, target: bytes, body: bytes) -> bytes:
    response = await upstream.request(b"POST", target, body, _HEADERS)
    try:
        if await response.head() != 200:
            raise BadWorkerResponse(f"the worker answered {response.status}")
        return await response.read(MAX_COUNT_BYTES)
    finally:
        response.close()
