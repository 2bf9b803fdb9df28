"""Keys and dialogs of the screen, against the made-up box."""

from __future__ import annotations

import asyncio
import time

import pytest
from msgspec.structs import replace
from textual import events
from tui_box import Box

from llmd.admin import protocol as p
from llmd.admin.calls import Unreachable
from llmtui.app import main
from llmtui.bindings import KEYS, help_lines
from llmtui.demo import Demo
from llmtui.screen import LlmTui
from llmtui.state import newest_running
from llmtui.widgets.table import Table


class Gone(Demo):
    async def connect(self):
        raise Unreachable("no llmd is running")


class Reader(Demo):
    async def hello(self):
        return replace(await super().hello(), access="read")


class Hostile(Demo):
    async def subscribe(self, *topics):
        bad = "[red]\x1b]0;x\x07[/] [@click=app.quit]"
        async for message in super().subscribe():
            first, *rest = message.requests
            yield replace(message, requests=(replace(first, key=bad, model=bad), *rest))


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
        assert "filter:carol" in drawn(app)
        await pilot.press("escape")
        assert len(app.query_one("#requests", Table).keys) == 12

    play(steps)


def test_a_cancel_starts_on_keep_and_counts_what_it_hits():
    async def steps(app, pilot):
        await pilot.press("space", "space", "x")
        await until(pilot, lambda: "2 running" in drawn(app))
        assert app.focused.id == "no"
        await pilot.press("enter")
        assert not app.shown.gone
        await pilot.press("x")
        await until(pilot, lambda: len(app.screen_stack) == 2)
        await pilot.press("right", "enter")
        await until(pilot, lambda: len(app.shown.gone) == 2)
        assert "cancelled 2" in drawn(app)
        assert not app.board("requests").marked

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
        await until(pilot, lambda: "llmctl switch qwen3-coder-30b" in drawn(app))
        await pilot.press("escape")
        assert app.shown.workers["qwen3-coder-30b"].state == "off"

    play(steps)


def test_unloading_a_model_that_serves_wants_its_name():
    async def steps(app, pilot):
        await pilot.press("1", "g", "S")
        await until(pilot, lambda: "type the model's name" in drawn(app))
        await pilot.press("escape", "G", "S")
        assert "qwen3-coder-30b is not loaded" in drawn(app)

    play(steps)


def test_details_logs_and_help_open_and_close():
    async def steps(app, pilot):
        for keys, word in ((("G", "enter"), "batch-7"), ("?", "Move"), ("l", "qwen3-32b-q4")):
            await pilot.press(*keys)
            await until(pilot, lambda: len(app.screen_stack) == 2)  # noqa: B023
            await until(pilot, lambda: word in drawn(app))  # noqa: B023
            await pilot.press("escape")
            assert len(app.screen_stack) == 1

    play(steps)


def burst(app, *keys):
    """Press keys so fast that none has been handled when the last one comes."""
    for key in keys:
        app.post_message(events.Key(key, key if len(key) == 1 else None))


def test_keys_in_a_burst_go_where_they_would_go_one_by_one():
    async def steps(app, pilot):
        burst(app, "1", "l")
        await until(pilot, lambda: len(app.screen_stack) == 2)
        await until(pilot, lambda: app.table.cursor_key in drawn(app))
        assert app.table.id == "workers"
        await pilot.press("escape")
        burst(app, "slash", *"sxq")  # nothing of a filter acts on the tables
        await until(pilot, lambda: app.view.words["workers"] == "sxq")
        await pilot.press("escape")
        burst(app, "colon", "v", "e", "r", "s", "tab", "x", "enter")
        await until(pilot, lambda: "usage: llmctl version" in drawn(app))
        burst(app, "2", "G", "x", "y")  # the answer is for the question, and cancels
        await until(pilot, lambda: len(app.shown.gone) == 1)

    play(steps)


def test_a_cancel_right_after_the_row_has_gone_is_not_meant_for_the_next_one():
    async def steps(app, pilot):
        table = app.board("requests")
        await pilot.press("G")
        app._jumped["requests"] = time.monotonic()
        await pilot.press("x")
        assert len(app.screen_stack) == 1
        assert "look again" in drawn(app)
        app._jumped.clear()
        assert table.show([]) is True  # which is how it is noticed

    play(steps)


def test_a_letter_after_o_sorts_and_anything_else_does_not():
    async def steps(app, pilot):
        before = list(app.table.keys)
        await pilot.press("o")
        await until(pilot, lambda: "sort by" in drawn(app))
        assert "client" in drawn(app)
        await pilot.press("c")
        assert "sort:client" in drawn(app)
        clients = [app.shown.requests[key].key for key in app.table.keys]
        assert clients == sorted(clients)
        await pilot.press("I")
        clients = [app.shown.requests[key].key for key in app.table.keys]
        assert clients == sorted(clients, reverse=True)
        await pilot.press("o", "escape", "I", "o", "s")
        assert app.table.keys == before
        await pilot.press("1", "o", "m")
        assert app.table.keys == sorted(app.table.keys)

    play(steps)


def test_follow_keeps_to_what_started_last_until_the_cursor_is_moved():
    async def steps(app, pilot):
        await pilot.press("G", "F")
        newest = newest_running(app.shown, app.table.keys)
        assert app.table.cursor_key == newest
        assert "follows" in drawn(app)
        await pilot.press("j")
        assert not app.following

    play(steps)


def test_events_open_beside_the_tables_or_in_their_place():
    async def steps(app, pilot):
        await pilot.press("e")
        await until(pilot, lambda: "3 Events" in drawn(app))
        assert app.table.id == "events"
        assert ("2 Requests" in drawn(app)) is (app.size.height >= 30)
        assert "llama3.3-70b-q4 loads" in drawn(app)
        await pilot.press("slash", *"nothing", "enter")
        assert app.table.keys == []
        await pilot.press("escape", "enter")
        await until(pilot, lambda: len(app.screen_stack) == 2)
        await pilot.press("escape", "escape")
        assert "3 Events" not in drawn(app)
        await pilot.press("e", "tab", "tab", "e", "2")
        assert "3 Events" not in drawn(app)

    play(steps)
    play(steps, size=(80, 24))


def test_the_rate_is_shown_and_has_its_bounds():
    async def steps(app, pilot):
        assert "2Hz" in drawn(app)
        await pilot.press("plus", "plus", "plus")
        assert app.rate == 4
        await pilot.press(*["minus"] * 9)
        assert app.rate == 0.2
        assert "0.2Hz" in drawn(app)

    play(steps)


def test_over_ssh_it_is_drawn_less_often(monkeypatch):
    monkeypatch.setenv("SSH_CONNECTION", "::1 1 ::1 22")

    async def steps(app, pilot):
        assert app.rate == 1

    play(steps)


def test_keys_that_act_are_dim_where_nothing_may_be_done():
    async def steps(app, pilot):
        line = app.board_keys(120)[0]
        styles = {text.strip(): style for text, style in line if text.strip()}
        assert styles["x"] == styles["s"] == styles["S"] == "dim"
        assert styles["l"] == "accent"

    play(steps, Reader)


def test_every_key_of_the_table_is_bound_and_in_the_help():
    text = "\n".join("".join(part for part, _ in line) for line in help_lines({}, 120))
    for key in KEYS:
        assert key.about in text
        assert hasattr(LlmTui, f"action_{key.action.partition('(')[0]}")
    assert len({key.id for key in KEYS}) == len(KEYS)


# --- the command line ----------------------------------------------------------------------


def typed(text):
    return ["space" if char == " " else "minus" if char == "-" else char for char in text]


def test_a_command_answers_in_a_line_or_a_window():
    async def steps(app, pilot):
        await pilot.press("colon", *typed("version"), "enter")
        await until(pilot, lambda: len(app.screen_stack) == 2)
        await until(pilot, lambda: "protocol" in drawn(app))
        await pilot.press("escape", "colon", *typed("nonsense"), "enter")
        await until(pilot, lambda: "no such command: nonsense" in drawn(app))
        await pilot.press("colon", *typed("load qwen3-coder-30b"), "enter")
        await until(pilot, lambda: "loading qwen3-coder-30b" in drawn(app))
        await pilot.press("colon", *typed("queue"), "enter")
        await until(pilot, lambda: "cannot do this" in drawn(app))

    play(steps)


@pytest.mark.parametrize(
    ("line", "focused", "expected"),
    [
        ("cancel --key batch-7", "no", ["3 queued"]),
        ("cancel --all", "no", ["6 running"]),
        ("cancel 5aa90", "no", ["Cancel 8f35aa90?", "llmctl cancel r-8f35aa90"]),
        ("cancel r-8f30", "no", ["Cancel 8f301122?"]),
        (
            "unload qwen3-32b-q4 --force", "named",
            ["type the model's name", "unload qwen3-32b-q4 --force --if-gen 41"],
        ),
        ("unload qwen3-32b-q4 --drain 20", "named", ["--drain 20 --if-gen 41", "go on for 20s"]),
        ("restart qwen3-32b-q4", "named", ["type the model's name", "until it is back"]),
        ("stop", "named", ["type the word stop", "turned away", "llmctl stop --if-gen 41"]),
        ("switch qwen3-coder-30b --from gemma3-27b-q4", "no", ["fresh plan", "FITS"]),
        ("switch qwen3-coder-30b --drain 3", "no", ["run 3s more", "--drain 3 --if-gen 41"]),
        ("switch qwen3-coder-30b --force", "no", ["--force --if-gen 41", "cancel them"]),
        ("switch qwen3-coder-30b --if-gen 7", "no", ["has changed meanwhile"]),
    ],
)  # fmt: skip
def test_commands_that_hit_others_open_the_windows_of_the_keys(line, focused, expected):
    async def steps(app, pilot):
        await pilot.press("colon", *typed(line), "enter")
        await until(pilot, lambda: len(app.screen_stack) == 2)
        for words in expected:
            await until(pilot, lambda: words in drawn(app))  # noqa: B023
        assert app.focused.id == focused
        await pilot.press("escape")
        assert not app.shown.gone
        assert not app.link.source.off

    play(steps)


def test_stop_acts_once_its_word_is_typed():
    asked = []

    class Stops(Demo):
        async def call(self, command):
            asked.append(command)
            return p.Stopped(unload=("qwen3-32b-q4",), refused=6, running=6)

    async def steps(app, pilot):
        await pilot.press("colon", *typed("stop"), "enter")
        await until(pilot, lambda: "type the word stop" in drawn(app))
        await pilot.press(*"sto", "enter", "enter")
        assert not asked
        assert len(app.screen_stack) == 1
        await pilot.press("colon", *typed("stop"), "enter")
        await until(pilot, lambda: "type the word stop" in drawn(app))
        await pilot.press(*"stop", "enter", "enter")
        await until(pilot, lambda: "6 turned away" in drawn(app))
        assert asked == [p.Stop(if_gen=41)]

    play(steps, Stops)


def test_tab_completes_and_the_arrows_show_what_was_typed_before():
    async def steps(app, pilot):
        field = app.query_one("#command")
        await pilot.press("colon", *"vers", "tab")
        assert field.value == "version "
        await pilot.press("enter")
        await until(pilot, lambda: len(app.screen_stack) == 2)
        await pilot.press("escape", "colon", *typed("unload qwen3-3"), "tab")
        assert field.value == "unload qwen3-32b-q4 "
        await pilot.press("up")
        assert field.value == "version"
        await pilot.press("down")
        assert field.value == "unload qwen3-32b-q4 "
        await pilot.press("escape")
        assert app.focused.id == "requests"
        assert len(app.screen_stack) == 1

    play(steps)


def test_reading_is_no_acting():
    async def steps(app, pilot):
        await pilot.press("colon", *typed("load qwen3-coder-30b"), "enter")
        await until(pilot, lambda: "read-only" in drawn(app))
        await pilot.press("colon", *typed("models"), "enter")
        await until(pilot, lambda: "Q4_K_M" in drawn(app))

    play(steps, Reader)


def test_the_palette_finds_keys_and_rows_and_never_parses_names():
    async def steps(app, pilot):
        await pilot.press("ctrl+p")
        await until(pilot, lambda: len(app.screen_stack) == 2)
        await pilot.press(*"modelqwen3c")
        await until(pilot, lambda: "Model qwen3-coder-30b" in drawn(app))
        await pilot.press("down", "enter")
        await until(pilot, lambda: app.table.cursor_key == "qwen3-coder-30b")
        await pilot.press("ctrl+p", *"log of phi")
        await until(pilot, lambda: "Log of phi4-14b" in drawn(app))
        await pilot.press("down", "enter")
        await until(pilot, lambda: "Logs phi4-14b" in drawn(app))
        await pilot.press("escape", "ctrl+p", *"clickapp")
        await until(pilot, lambda: "of [red]]0;x[/] [@click=app.quit]" in drawn(app))
        assert not {"\x1b", "\x07"} & set(drawn(app))

    play(steps, Hostile)


# --- keys of one's own ---------------------------------------------------------------------


def test_other_keys_take_the_place_of_the_old_ones():
    async def steps(app, pilot):
        await pilot.press("x")
        assert len(app.screen_stack) == 1
        await pilot.press("X")
        await until(pilot, lambda: len(app.screen_stack) == 2)
        await pilot.press("escape", "f1")
        await until(pilot, lambda: "X         cancels" in drawn(app))

    play(steps, keymap={"cancel": "X", "help": "f1"})


@pytest.mark.parametrize(
    ("more", "why"),
    [
        ({"make": Reader}, "read-only: this socket lets you look"),
        ({"read_only": True}, "read-only: started with --read-only"),
    ],
)
def test_actions_are_off_where_only_reading_is_allowed(more, why):
    async def steps(app, pilot):
        assert " RO " in drawn(app)
        await pilot.press("x")
        await until(pilot, lambda: why in drawn(app))
        assert len(app.screen_stack) == 1

    play(steps, **more)


@pytest.mark.parametrize("size", [(120, 36), (80, 24), (60, 20), (40, 12)])
def test_a_daemon_that_was_never_there_is_missed_with_the_reason(size):
    async def steps(app, pilot):
        await until(pilot, lambda: "NOT CONNECTED" in drawn(app))
        assert "no llmd is running" in drawn(app)
        assert "STALE" not in drawn(app)
        await pilot.press("x")
        await until(pilot, lambda: drawn(app).count("not connected") == 2)

    play(steps, Gone, size=size)


class Comes(Box):
    """Hangs up when told to, and is away until told to come back."""

    def __init__(self):
        super().__init__()
        self.goes, self.back = asyncio.Event(), asyncio.Event()

    async def connect(self):
        if self.goes.is_set():
            await self.back.wait()

    async def subscribe(self, *topics):
        async for message in super().subscribe():
            yield message
            if not self.back.is_set():
                await self.goes.wait()
                raise Unreachable("the daemon hung up, for a reason that takes a whole line to say")


def rows(app):
    return [line for line in drawn(app).split("\n") if "DECODE" in line or "QUEUED" in line]


@pytest.mark.parametrize("size", [(120, 36), (80, 24), (60, 20)])
def test_what_is_stale_stands_still_and_says_why(size):
    box = Comes()
    clock = [box.now]

    async def steps(app, pilot):
        await until(pilot, lambda: "LIVE" in drawn(app))
        before = rows(app)
        assert before
        box.goes.set()
        await until(pilot, lambda: "STALE" in drawn(app))
        for _ in range(3):
            clock[0] += 20
            app.redraw()
            await until(pilot, lambda: f"STALE {clock[0] - box.now:.0f}s" in drawn(app))
        assert rows(app) == before
        assert "the daemon hung up" in drawn(app)
        assert "quit" in drawn(app)

    play(steps, lambda: box, size=size, clock=lambda: clock[0])


@pytest.mark.parametrize("size", [(120, 36), (80, 24)])
def test_not_connected_is_said_no_longer_once_it_is(size):
    box = Comes()

    async def steps(app, pilot):
        await until(pilot, lambda: "LIVE" in drawn(app))
        box.goes.set()
        await until(pilot, lambda: "STALE" in drawn(app))
        await pilot.press("x")
        await until(pilot, lambda: "not connected" in drawn(app))
        box.back.set()
        await until(pilot, lambda: "LIVE" in drawn(app))
        assert "not connected" not in drawn(app)
        app.say("only a hint", "warn")
        box.move()
        await pilot.pause()
        assert "only a hint" in drawn(app)

    play(steps, lambda: box, size=size)


@pytest.mark.parametrize("size", [(120, 36), (60, 20)])
def test_a_line_at_the_bottom_that_is_cut_says_so(size):
    async def steps(app, pilot):
        app.say("so many words " * 20)
        lines = [line for line in drawn(app).split("\n") if "so many words" in line]
        assert len(lines) == 1
        assert lines[0].rstrip().endswith("…")

    play(steps, size=size)


def test_an_event_that_is_cut_says_so():
    class Talks(Demo):
        async def subscribe(self, *topics):
            async for message in super().subscribe():
                notice = p.Notice(seq=99, at=message.at, level="info", text="it went on " * 20)
                yield replace(message, log=(notice,))
                await asyncio.Event().wait()

    async def steps(app, pilot):
        await until(pilot, lambda: "it went on" in drawn(app))
        (line,) = [line for line in drawn(app).split("\n") if "it went on" in line]
        assert line.rstrip().endswith("…")

    play(steps, Talks)


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


def test_a_paused_screen_still_says_that_the_daemon_has_gone():
    class Goes(Demo):
        async def subscribe(self, *topics):
            async for message in super().subscribe():
                yield message
                return  # it hangs up after its first word

    async def steps(app, pilot):
        await pilot.press("p")
        await until(pilot, lambda: "STALE" in drawn(app))
        assert "PAUSED" in drawn(app)
        assert "DECODE" in drawn(app)

    play(steps, Goes)


def test_faults_leave_what_is_wrong_and_wide_gives_names_room():
    async def steps(app, pilot):
        await pilot.press("z")
        assert app.table.keys == ["r-8f02e9b3"]
        assert app.board("workers").keys == ["phi4-14b-q8"]
        assert "faults only" in drawn(app)
        await pilot.press("escape")
        assert len(app.table.keys) == 12
        assert "KV%" in drawn(app)
        await pilot.press("w")
        await until(pilot, lambda: "KV%" not in drawn(app))

    play(steps)


def test_copies_are_the_id_or_the_line_for_a_shell():
    async def steps(app, pilot):
        await pilot.press("G", "y")
        assert app.clipboard == "r-8f35acd4"
        await pilot.press("Y")
        assert app.clipboard == "llmctl why r-8f35acd4"
        await pilot.press("1", "Y")
        assert app.clipboard.startswith("llmctl switch ")
        await pilot.press("e", "y")
        assert app.clipboard == "worker loading model=llama3.3-70b-q4"

    play(steps)


def test_the_board_goes_on_beneath_a_window():
    async def steps(app, pilot):
        await pilot.press("question_mark")
        await until(pilot, lambda: len(app.screen_stack) == 2)
        before = app.shown
        await until(pilot, lambda: app.shown is not before)
        await pilot.press("x", "s", "q")  # for the window, and not for the board beneath
        assert len(app.screen_stack) == 1
        assert app.is_running

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
