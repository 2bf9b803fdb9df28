"""Prompts as the worker counts them: what it says is a worker's word."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from api_rig import Upstream

from llmd.api.counting import count_prompts
from llmd.api.schema import KINDS, SchemaLimits, parse

TEMPLATE, TOKENIZE = ("POST", "/apply-template"), ("POST", "/tokenize")
CHAT = parse(
    KINDS["/v1/chat/completions"],
    b'{"messages":[{"role":"user","content":"a"}]}',
    SchemaLimits(),
)
GOOD = {TEMPLATE: (200, [], b'{"prompt":"a"}'), TOKENIZE: (200, [], b'{"tokens":[1,2]}')}


async def counted(answers):
    return await count_prompts(Upstream(SimpleNamespace(answers=answers, asked=[]), pid=1), CHAT)


async def test_a_prompt_is_counted():
    assert await counted(GOOD) == [2]


@pytest.mark.parametrize("step", [TEMPLATE, TOKENIZE])
@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{}",
        b'{"prompt":"\xff","tokens":["\xff"]}',
        b'{"prompt":1,"tokens":1}',
        b'{"more":' + b"[" * 100_000,
    ],
)
async def test_an_answer_that_is_none_counts_nothing(step, body):
    expected = [1] if step == TOKENIZE and b"\xff" in body else None  # tokens are not looked into
    assert await counted(GOOD | {step: (200, [], body)}) == expected
