"""Keys and dialogs of the screen, against the made-up box."""

from __future__ import annotations

import asyncio

import pytest
from msgspec.structs import replace

from llmd.admin import protocol as p
from llmd.admin.calls import Unreachable
from llmtui.app import main
from llmtui.demo import Demo
from llmtui.screen import LlmTui
from llmtui.widgets.table import Table


class Gone(Demo):
    async def connect(self):
        raise Unreachable("no llmd is running")


class Reader(Demo):
    async def hello(self):
        return replace(await super().hello(), access="read")


class Hostile(Demo):
    async def subscribe(self, *topics):
        async for message in super().subscribe():
            if isinstance(message, p.Snapshot):
                bad = "[red]\x1b]0;x\x07[/] [@click=app.quit]"
                first = replace(message.requests[0], key=bad, model=bad)
                message = replace(message, requests=(first, *message.requests[1:]))
            yield message


def play(steps, make=Demo, size=(120, 36), **more):
    """Run the screen without a terminal and do `steps(app, pilot)` on it."""

    async def run():
        app = LlmTui(make, **more)
        async with app.run_test(size=size) as pilot:
            await until(pilot, lambda: app.shown.link != "connecting")
            await steps(app, pilot)

    asyncio.run(asyncio.wait_for(run(), 30))


async def until(pilot, true):
    for _ in range(200):
        if true():
            return
        await pilot.pause(0.02)
    raise AssertionError("it never came")


def drawn(app):
    """What is on the screen, as text."""
    lines = app.screen._compositor.render_strips()
    return "\n".join("".join(segment.text for segment in line) for line in lines)


@pytest.mark.parametrize("size", [(120, 36), (80, 24), (60, 20)])
def test_both_tables_are_there_at_each_size(size):
    async def steps(app, pilot):
        await until(pilot, lambda: "BACKOFF" in drawn(app))
        text = drawn(app)
        for word in ("LIVE", "1 Workers", "2 Requests", "LOADING", "BACKOFF", "DECODE", "quit"):
            assert word in text
        assert {len(line) for line in text.split("\n")} == {size[0]}

    play(steps, size=size)


def test_the_cursor_moves_and_stays_on_its_row():
    async def steps(app, pilot):
        table = app.query_one("#requests", Table)
        first = table.cursor_key
        await pilot.press("j", "j")
        assert table.keys.index(table.cursor_key) == 2
        kept = table.cursor_key
        table.show([kept, *[key for key in table.keys if key != kept]])
        assert table.cursor_key == kept
        await pilot.press("g")
        assert table.cursor_key == kept != first
        await pilot.press("tab")
        assert app.table.id == "workers"
        await pilot.press("2")
        assert app.table.id == "requests"

    play(steps)


def test_a_filter_and_its_end():
    async def steps(app, pilot):
        await pilot.press("slash", *"carol", "enter")
        assert len(app.query_one("#requests", Table).keys) == 2
        assert "filter carol" in drawn(app)
        await pilot.press("escape")
        assert len(app.query_one("#requests", Table).keys) == 12

    play(steps)


def test_a_cancel_starts_on_keep_and_counts_what_it_hits():
    async def steps(app, pilot):
        await pilot.press("space", "space", "x")
        await until(pilot, lambda: len(app.screen_stack) == 2)
        assert "2 running, 0 waiting" in drawn(app)
        assert app.focused.id == "cancel"
        await pilot.press("enter")
        assert not app.shown.gone
        await pilot.press("x")
        await until(pilot, lambda: len(app.screen_stack) == 2)
        await pilot.press("right", "enter")
        await until(pilot, lambda: len(app.shown.gone) == 2)
        assert "cancelled 2" in drawn(app)

    play(steps)


def test_y_cancels_one_that_waits():
    async def steps(app, pilot):
        await pilot.press("G", "x")
        await until(pilot, lambda: len(app.screen_stack) == 2)
        await pilot.press("y")
        await until(pilot, lambda: len(app.shown.gone) == 1)

    play(steps)


def test_a_switch_is_a_plan_first():
    async def steps(app, pilot):
        await pilot.press("1", "G", "s")
        await until(pilot, lambda: len(app.screen_stack) == 2)
        text = drawn(app)
        for word in ("Switch to qwen3-coder-30b", "FITS", "evict   gemma3", "llmctl switch"):
            assert word in text
        assert app.focused.id == "cancel"
        await pilot.press("escape")
        assert app.shown.workers["qwen3-coder-30b"].state == "off"
        await pilot.press("s")
        await until(pilot, lambda: len(app.screen_stack) == 2)
        app.screen.query_one("#switch").press()
        await until(pilot, lambda: app.shown.workers["qwen3-coder-30b"].state == "loading")

    play(steps)


def test_unloading_a_model_that_serves_wants_its_name():
    async def steps(app, pilot):
        await pilot.press("1", "g", "S")
        await until(pilot, lambda: len(app.screen_stack) == 2)
        await pilot.press(*"nonsense", "enter")
        assert len(app.screen_stack) == 2
        app.screen.query_one("#typed").value = "gemma3-27b-q4"
        await pilot.press("enter")
        await until(pilot, lambda: app.shown.workers["gemma3-27b-q4"].state == "off")

    play(steps)


def test_details_logs_and_help_open_and_close():
    async def steps(app, pilot):
        for keys, word in ((("G", "enter"), "key at 4/4 concurrent"), ("?", "move"), ("l", "LOG")):
            await pilot.press(*keys)
            await until(pilot, lambda: len(app.screen_stack) == 2)
            await pilot.pause(0.3)
            assert word in drawn(app)
            await pilot.press("escape")
            assert len(app.screen_stack) == 1

    play(steps)


def test_actions_are_off_where_only_reading_is_allowed():
    async def steps(app, pilot):
        assert " RO " in drawn(app)
        await pilot.press("x")
        await until(pilot, lambda: "read-only" in drawn(app))
        assert len(app.screen_stack) == 1

    play(steps, Reader)
    play(steps, read_only=True)


def test_a_lost_daemon_shows_as_stale_and_the_screen_stays():
    async def steps(app, pilot):
        await until(pilot, lambda: "STALE" in drawn(app))
        assert "no llmd is running" in drawn(app)
        await pilot.press("x")
        await until(pilot, lambda: "actions are off" in drawn(app))

    play(steps, Gone)


def test_hostile_text_is_shown_as_text():
    async def steps(app, pilot):
        text = drawn(app)
        assert not {"\x1b", "\x07"} & set(text)
        assert "[red]" in text

    play(steps, Hostile)


def test_pause_holds_the_screen():
    async def steps(app, pilot):
        await pilot.press("p")
        held = app.shown
        await pilot.pause(0.8)
        assert app.shown is held
        assert "PAUSED" in drawn(app)

    play(steps)


def test_without_a_terminal_it_says_so(capsys):
    assert main([]) == 2
    assert "needs a terminal" in capsys.readouterr().err


def test_once_prints_a_snapshot(capsys):
    assert main(["--demo", "--once", "--json"]) == 0
    assert capsys.readouterr().out.startswith('{"type":"snapshot"')
    assert main(["--demo", "--once"]) == 0
    assert "STALLED" in capsys.readouterr().out


def test_once_without_a_daemon(capsys, tmp_path):
    assert main(["--once", "--socket", str(tmp_path / "none")]) == 3
    assert "no llmd" in capsys.readouterr().err
