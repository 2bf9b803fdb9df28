"""Terminals far too small to be of use: the screen must outlive them, with any window open."""

from __future__ import annotations

import asyncio

import pytest

from llmtui.demo import Demo
from llmtui.screen import LlmTui

SIZES = [(1, 1), (6, 6), (200, 1)]
OPENED = (
    (), ("colon", "s"), ("slash", "q"), ("question_mark",), ("1", "s"), ("1", "S"), ("1", "l"),
    ("1", "enter"), ("2", "enter"), ("2", "x"), ("2", "space", "j", "space", "x"), ("e",),
    ("ctrl+p",), ("z",), ("w",),
)  # fmt: skip


@pytest.mark.parametrize("keys", OPENED, ids=" ".join)
def test_it_survives_any_size(keys):
    async def run():
        app = LlmTui(Demo)
        async with app.run_test(size=(120, 36)) as pilot:
            while app.shown.link != "live":
                await pilot.pause(0.01)
            await pilot.press(*keys)
            for size in SIZES:
                await pilot.resize_terminal(*size)
                app.redraw()
                await pilot.pause()
                drawn = app.screen._compositor.render_strips()
                assert {line.cell_length for line in drawn} == {size[0]}
            assert app.is_running

    asyncio.run(asyncio.wait_for(run(), 30))


@pytest.mark.parametrize("size", [(1, 1), (6, 6)])
def test_it_starts_at_any_size(size):
    async def run():
        app = LlmTui(Demo)
        async with app.run_test(size=size) as pilot:
            while app.shown.link != "live":
                await pilot.pause(0.01)
            for keys in OPENED:
                await pilot.press(*keys)
                await pilot.pause()
                await pilot.press("escape", "escape")
            assert app.is_running

    asyncio.run(asyncio.wait_for(run(), 30))
