"""The windows over the board: each of their keys, against a box that holds still, and worse."""

from __future__ import annotations

import asyncio
import re

import pytest
from msgspec.structs import replace
from textual import events
from tui_box import CODER, GEMMA, QWEN, Box, refused

from llmd.admin import protocol as p
from llmd.admin.calls import Unreachable
from llmtui.rows import Look
from llmtui.screen import LlmTui
from llmtui.screens.loglines import ALL, Level
from llmtui.screens.logs import Logs
from llmtui.screens.logview import LogView
from llmtui.screens.switch import Switch
from llmtui.screens.unload import Unload

SIZES = [(120, 36), (80, 24), (60, 20)]
HOSTILE = "[red]\x1b]0;x\x07\x9b31m[/] [@click=app.quit]\u202e"


class Reader(Box):
    access = "read"


class Hostile(Box):
    async def why(self, request):
        story = await super().why(request)
        bad = p.Why(at=story.request.received_at, rule=HOSTILE, blockers=(HOSTILE,), detail=HOSTILE)
        return p.Story(request=replace(story.request, key=HOSTILE, path=HOSTILE), steps=(bad,))

    async def follow(self, model, *, lines=0):
        yield p.LogLine(seq=1, at=1e9, stream="stderr", text=f"0.00.000.001 E {HOSTILE} abc")
        await asyncio.sleep(3600)

    async def switch(self, model, **more):
        plan = await super().switch(model, **more)
        return replace(plan, fits=False, reason=HOSTILE, evict=(p.Eviction(model=HOSTILE),))


def play(steps, make=Box, size=(120, 36), **more):
    """Run the screen without a terminal and do `steps(app, pilot, box)` on it."""
    box = make()

    async def run():
        app = LlmTui(lambda: box, **more)
        async with app.run_test(size=size) as pilot:
            await until(pilot, lambda: app.shown.link != "connecting")
            await steps(app, pilot, box)

    asyncio.run(asyncio.wait_for(run(), 30))


async def until(pilot, true):
    for _ in range(250):
        if true():
            return
        await pilot.pause(0.02)
    raise AssertionError("it never came")


def drawn(app):
    """What is on the screen, as text."""
    lines = app.screen._compositor.render_strips()
    return "\n".join("".join(segment.text for segment in line) for line in lines)


def words(app):
    """The same without frames, however it was wrapped."""
    return " ".join(re.sub("[│╭╮╰╯─|+]", " ", drawn(app)).split())


async def shows(app, pilot, *expected):
    for text in expected:
        await until(pilot, lambda: text in words(app))  # noqa: B023


async def open_window(app, pilot, *keys):
    await pilot.press(*keys)
    await until(pilot, lambda: len(app.screen_stack) == 2)


def copied(app):
    return app.clipboard


# --- a request -----------------------------------------------------------------------------


@pytest.mark.parametrize("size", SIZES)
def test_a_requests_detail_tells_its_way_and_lives(size):
    async def steps(app, pilot, box):
        await open_window(app, pilot, "2", "g", "enter")
        await shows(
            app, pilot, "Request r-8f21c04a", "DECODE", "client ci-bot", "class high", "stream",
            "● received", "● queued 500ms #1 4/4 slots busy [slots_busy]", "● admitted",
            "◐ decode", "esc back",
        )  # fmt: skip
        before = drawn(app)
        await until(pilot, lambda: drawn(app) != before)
        assert {len(line) for line in before.split("\n")} == {size[0]}

    play(steps, size=size)


def test_each_key_of_a_requests_detail():
    async def steps(app, pilot, box):
        await open_window(app, pilot, "2", "G", "enter")
        await shows(app, pilot, "Request r-8f35acd4 QUEUED #4", "expected in", "body 0B, hidden")
        await pilot.press("v")
        await shows(app, pilot, "llmd keeps no bodies")
        await pilot.press("v")
        await shows(app, pilot, "hidden")
        await pilot.press("y")
        await shows(app, pilot, "copied: r-8f35acd4")
        assert copied(app) == "r-8f35acd4"
        await pilot.press("Y")
        assert copied(app) == "llmctl why r-8f35acd4"
        await pilot.press("l")
        await shows(app, pilot, f"Logs {QWEN}")
        await pilot.press("escape", "x")
        await shows(app, pilot, "Cancel 8f35acd4?")
        await pilot.press("y")
        await shows(app, pilot, "Request r-8f35acd4 CANCELLED", "in all")
        await pilot.press("x")
        await shows(app, pilot, "it has ended")
        await pilot.press("escape")
        assert len(app.screen_stack) == 1

    play(steps)


def test_a_request_that_is_forgotten_is_said_to_be():
    class Forgetful(Box):
        async def why(self, request):
            raise refused("request_not_found", "only the last are kept")

    async def steps(app, pilot, box):
        await open_window(app, pilot, "2", "enter")
        await shows(app, pilot, "only the last are kept")

    play(steps, Forgetful)


# --- logs ----------------------------------------------------------------------------------


class Talker(Box):
    """A worker whose lines are said by the test."""

    def __init__(self):
        super().__init__()
        self.lines = asyncio.Queue()
        self.began = 0

    async def follow(self, model, *, lines=0):
        self.began += 1
        while True:
            line = await self.lines.get()
            if isinstance(line, Exception):
                raise line
            yield line

    def say(self, *texts, seq=1):
        for number, text in enumerate(texts, seq):
            line = p.LogLine(seq=number, at=1e9 + number, stream="stderr", text=text)
            self.lines.put_nowait(line)


def shown(app):
    page = app.screen.query_one(LogView).page
    return [page.row(number)[2] for number in range(page.rows)]


@pytest.mark.parametrize("size", SIZES)
def test_a_log_follows_marks_and_filters_by_level(size):
    async def steps(app, pilot, box):
        await open_window(app, pilot, "1", "g", "l")
        box.say("E bad", "W odd", "I usual", "D small", "plain")
        await shows(app, pilot, f"Logs {GEMMA} READY FOLLOW", "5 of ring 20k", "E bad", "I plain")
        for key, left in (
            ("1", ["bad"]), ("2", ["bad", "odd"]), ("3", ["bad", "odd", "usual", "plain"]),
            ("4", ["bad", "odd", "usual", "plain"]),
            ("5", ["bad", "odd", "usual", "small", "plain"]),
            ("0", ["bad", "odd", "usual", "small", "plain"]),
        ):  # fmt: skip
            await pilot.press(key)
            assert shown(app) == left
        await pilot.press("1")
        await shows(app, pilot, "errors only")
        await pilot.press("0", "m")
        await until(pilot, lambda: shown(app)[-1].startswith("marker "))
        await shows(app, pilot, "marker")
        box.say("E later", seq=6)
        await until(pilot, lambda: shown(app)[-1] == "later")
        assert app.screen.query_one(LogView).page.level is ALL

    play(steps, Talker, size)


def test_a_log_is_searched_with_a_counter():
    async def steps(app, pilot, box):
        await open_window(app, pilot, "1", "g", "l")
        box.say(*[f"line {number} {'needle' if number % 20 == 0 else ''}" for number in range(200)])
        await until(pilot, lambda: len(shown(app)) == 200)
        view = app.screen.query_one(LogView)
        await pilot.press("slash", *"NEEDLE")
        await shows(app, pilot, "/NEEDLE".lower(), "-/10")
        await pilot.press("enter")
        await shows(app, pilot, "HELD", "/needle 10/10")
        assert not view.following
        await pilot.press("n")
        await shows(app, pilot, "/needle 1/10", "line 0 needle")
        assert view.scroll_offset.y == 0
        await pilot.press("N", "N")
        await shows(app, pilot, "/needle 9/10")
        await pilot.press("escape")
        assert view.page.word == ""
        await pilot.press("slash", *"nowhere", "enter")
        await shows(app, pilot, "nothing matches nowhere")
        await pilot.press("slash", "escape")
        assert view.page.word == ""
        for key in ("slash", *"wmq0"):  # so fast that none has been handled when the last one comes
            app.post_message(events.Key(key, key if len(key) == 1 else "/"))
        await shows(app, pilot, "/wmq0 -/0")
        assert not view.wrapped
        await pilot.press("slash", "escape", "escape")
        assert len(app.screen_stack) == 1

    play(steps, Talker)


def test_a_log_holds_still_while_somebody_reads_it():
    async def steps(app, pilot, box):
        await open_window(app, pilot, "1", "g", "l")
        box.say(*[f"line {number}" for number in range(100)])
        await until(pilot, lambda: len(shown(app)) == 100)
        view = app.screen.query_one(LogView)
        at_end = view.scroll_offset.y
        assert at_end == 100 - view.size.height
        await pilot.press("k")
        assert not view.following
        assert view.scroll_offset.y == at_end - 1
        box.say("more", seq=200)
        await until(pilot, lambda: "more" in shown(app)[-1])
        assert view.scroll_offset.y == at_end - 1
        assert "99 lines were missed" in shown(app)
        await shows(app, pilot, "HELD")
        await pilot.press("g")
        assert view.scroll_offset.y == 0
        await pilot.press("pagedown")
        assert view.scroll_offset.y == view.size.height - 2
        await pilot.press("down", "down", "up")
        assert view.scroll_offset.y == view.size.height - 1
        for key in ("f", "G", "end"):
            await pilot.press("k", key)
            assert view.following
            assert view.scroll_offset.y == view.page.rows - view.size.height
        view.scroll_to(y=3, animate=False, immediate=True)  # as a mouse does
        assert not view.following

    play(steps, Talker)


def test_a_log_wraps_pans_and_hides_its_times():
    async def steps(app, pilot, box):
        await open_window(app, pilot, "1", "g", "l")
        box.say("start " + "x" * 100 + " end")
        await shows(app, pilot, "start")
        assert " end" not in drawn(app)
        await pilot.press("right", "right", "right", "right")
        await shows(app, pilot, "end")
        await pilot.press("left", "left", "left", "left", "w")
        await shows(app, pilot, "wrap", "end")
        view = app.screen.query_one(LogView)
        assert view.page.rows == 2
        narrow = view.room
        await pilot.press("t")
        assert view.room > narrow
        assert "01:46:4" not in drawn(app)
        await pilot.press("t", "w")
        assert view.page.rows == 1

    play(steps, Talker, (80, 24))


def test_a_log_is_saved_and_says_where(tmp_path):
    async def steps(app, pilot, box):
        app.push_screen(Logs(app.desk, "a/../b", places=(tmp_path / "none", tmp_path)))
        await shows(app, pilot, "Logs a/../b")
        box.say("W one", "two")
        await until(pilot, lambda: len(shown(app)) == 2)
        await pilot.press("1", "ctrl+s")
        await until(pilot, lambda: "saved 2 lines" in app.screen._note[0])
        (path,) = tmp_path.iterdir()
        assert str(path) in app.screen._note[0]
        assert path.stat().st_mode & 0o777 == 0o600
        assert "W stderr one" in path.read_text()
        await pilot.press("ctrl+s")
        await until(pilot, lambda: len(list(tmp_path.iterdir())) == 2)

    play(steps, Talker)


def test_a_log_that_cannot_be_saved_says_why(tmp_path):
    async def steps(app, pilot, box):
        app.push_screen(Logs(app.desk, GEMMA, places=(tmp_path / "none",)))
        await until(pilot, lambda: len(app.screen_stack) == 2)
        await pilot.press("ctrl+s")
        await shows(app, pilot, "not saved: No such file or directory")

    play(steps, Talker)


def test_a_log_goes_on_with_the_next_daemon(monkeypatch):
    monkeypatch.setattr("llmtui.screens.logs._RETRY_S", 0.01)

    async def steps(app, pilot, box):
        await open_window(app, pilot, "1", "g", "l")
        box.say("one", "two")
        await until(pilot, lambda: shown(app) == ["one", "two"])
        box.lines.put_nowait(Unreachable("it is gone"))
        await until(pilot, lambda: "lost the daemon" in " ".join(shown(app)))
        box.say("one", "two", "three")  # the same daemon: what was shown is passed over
        await until(pilot, lambda: shown(app)[-1] == "three")
        assert "LOST" not in drawn(app)
        assert [line for line in shown(app) if " " not in line] == ["one", "two", "three"]
        assert any(line.startswith("the daemon is back") for line in shown(app))
        box.move(pid=9)
        await until(pilot, lambda: app.link.state.daemon.pid == 9)
        box.lines.put_nowait(Unreachable("it is gone"))
        await until(pilot, lambda: box.began >= 3)
        box.say("anew")
        await until(pilot, lambda: shown(app)[-1] == "anew")
        assert any(line.startswith("another daemon") for line in shown(app))

    play(steps, Talker)


def test_a_log_that_stays_silent_is_not_called_lost_for_ever(monkeypatch):
    monkeypatch.setattr("llmtui.screens.logs._RETRY_S", 0.01)

    async def steps(app, pilot, box):
        await open_window(app, pilot, "1", "g", "l")
        box.say("one")
        await until(pilot, lambda: shown(app) == ["one"])
        box.lines.put_nowait(Unreachable("it is gone"))
        await until(pilot, lambda: len(shown(app)) == 3)
        assert "LOST" not in drawn(app)
        assert shown(app)[-1].startswith("the daemon is back")

    play(steps, Talker)


def test_a_flood_is_shown_without_growing_beyond_the_ring():
    async def steps(app, pilot, box):
        await open_window(app, pilot, "1", "g", "l")
        box.say(*[f"line {number}" for number in range(30_000)])
        await until(pilot, lambda: "line 29999" in drawn(app))
        view = app.screen.query_one(LogView)
        assert len(view.page) == 20_000
        await pilot.press("w", "slash", *"line 2999", "enter")
        await shows(app, pilot, "/line 2999 10/10")

    play(steps, Talker)


# --- a switch ------------------------------------------------------------------------------


async def open_switch(app, pilot, model=CODER):
    app.push_screen(Switch(app.desk, model))
    await shows(app, pilot, "Switch")
    await until(pilot, lambda: "asking" not in drawn(app))


@pytest.mark.parametrize("size", SIZES)
def test_a_switch_starts_on_cancel_and_fits_the_terminal(size):
    async def steps(app, pilot, box):
        await open_switch(app, pilot)
        assert app.focused.id == "no"
        await shows(app, pilot, f"{GEMMA} → {CODER}", "FITS", "WITHOUT evicting", "● d drain")
        assert {len(line) for line in drawn(app).split("\n")} == {size[0]}
        await shows(app, pilot, "▸ Cancel ◂", "Switch, drain", "esc back", "nothing is done yet")
        await pilot.press("G")
        await shows(app, pilot, "if-gen 41")
        await pilot.press("enter")
        assert len(app.screen_stack) == 1
        assert box.done == []

    play(steps, size=size)


def test_the_line_changes_with_the_way_and_what_is_shown_is_done():
    async def steps(app, pilot, box):
        for keys, line, done in (
            ((), f"--from {GEMMA} --drain 15 --if-gen", {"drain_s": 15.0, "force": False}),
            (("d",), "--drain 60", {"drain_s": 60.0}),
            (("d", "d", "d"), "--drain 0", {"drain_s": 0.0}),
            (("c",), "--force", {"force": True, "drain_s": None, "evict": (GEMMA,)}),
            (("c", "d"), "--drain 15", {"drain_s": 15.0, "force": False}),
            (("a",), "--add", {"add": True, "evict": (), "force": False, "drain_s": None}),
        ):
            await open_switch(app, pilot)
            await pilot.press(*keys)
            command = app.screen.command()
            assert line in command
            await pilot.press("Y")
            assert copied(app) == command
            generation = box.generation
            assert command.endswith(f"--if-gen {generation}")
            await pilot.press("tab", "enter")
            await until(pilot, lambda: len(app.screen_stack) == 1)
            what, model, more = box.done.pop()
            assert (what, model, more["if_gen"]) == ("switch", CODER, generation)
            assert {name: more[name] for name in done} == done
            box.move(generation=generation + 7)
            await until(pilot, lambda: app.link.state.generation == box.generation)

    play(steps)


def test_a_plan_that_has_moved_on_is_not_carried_out():
    async def steps(app, pilot, box):
        await open_switch(app, pilot)
        box.generation += 1
        app.screen.query_one("#yes").press()  # before the screen has heard of it
        await shows(app, pilot, "Nothing was done; ask for a fresh plan")
        assert box.done == []
        box.move()
        await until(pilot, lambda: app.screen.query_one("#yes").disabled)
        await pilot.press("r")
        await shows(app, pilot, "if-gen 42")
        box.move(generation=43)
        await shows(app, pilot, "What is loaded has changed since this plan was made")
        await pilot.press("tab", "enter")
        assert box.done == []
        assert len(app.screen_stack) == 1  # the focus was on Cancel: the other one is off
        await open_switch(app, pilot)
        await pilot.press("tab", "enter")
        await until(pilot, lambda: len(box.done) == 1)

    play(steps)


def test_what_cannot_be_done_is_not_offered():
    async def steps(app, pilot, box):
        await open_switch(app, pilot, QWEN)
        await shows(app, pilot, f"{QWEN} is ready already")
        assert app.screen.query_one("#yes").disabled
        await pilot.press("escape")
        app.push_screen(Switch(app.desk, "nonsense"))
        await shows(app, pilot, "there is no model nonsense")
        assert app.screen.query_one("#yes").disabled

    play(steps)


def test_a_switch_on_a_lost_link_says_so_and_stays():
    class Breaks(Box):
        broken = False

        async def switch(self, model, **more):
            if self.broken:
                raise Unreachable("the daemon hung up")
            return await super().switch(model, **more)

    async def steps(app, pilot, box):
        await open_switch(app, pilot)
        box.broken = True
        await pilot.press("tab", "enter")
        await shows(app, pilot, "the daemon hung up")
        assert len(app.screen_stack) == 2

    play(steps, Breaks)


# --- cancelling and unloading --------------------------------------------------------------


def test_several_are_counted_by_state_key_and_model():
    async def steps(app, pilot, box):
        await open_window(app, pilot, "2", "g", "space", "space", "G", "space", "x")
        await shows(
            app, pilot, "Cancel 3 requests?", "2 running", "1 queued", "ci-bot", "alice", "batch-7",
            f"{QWEN} x3", "tokens made so far", "error 499", "▸ Keep ◂", "Cancel 3",
            "llmctl cancel r-8f1ea711 r-8f21c04a r-8f35acd4",
        )  # fmt: skip
        await pilot.press("y")  # which is only for one that waits
        await pilot.press("n")
        assert len(app.screen_stack) == 1
        await open_window(app, pilot, "x")
        await pilot.press("Y", "tab", "enter")
        await until(pilot, lambda: len(box.done) == 1)
        ids = ("r-8f1ea711", "r-8f21c04a", "r-8f35acd4")
        assert box.done == [("cancel", ids)]
        assert copied(app) == "llmctl cancel " + " ".join(ids)

    play(steps)


def test_one_that_runs_is_asked_for_with_buttons_and_one_that_waits_with_y():
    async def steps(app, pilot, box):
        await open_window(app, pilot, "2", "g", "x")
        await shows(app, pilot, "1 running", "it is decode")
        await pilot.press("y")
        assert box.done == []
        await pilot.press("escape")
        await open_window(app, pilot, "G", "x")
        await shows(app, pilot, "y cancels it")
        await pilot.press("y")
        await until(pilot, lambda: box.done == [("cancel", ("r-8f35acd4",))])

    play(steps)


def test_what_ends_meanwhile_is_told_and_nothing_left_is_nothing_to_do():
    async def steps(app, pilot, box):
        await open_window(app, pilot, "2", "g", "space", "space", "x")
        box.end("r-8f21c04a")
        await shows(app, pilot, "1 running", "1 ended meanwhile", "Cancel 1")
        box.end("r-8f1ea711")
        await shows(app, pilot, "2 ended meanwhile")
        assert app.screen.query_one("#yes").disabled

    play(steps)


def test_an_unload_names_what_was_planned_for_beside_what_is_held():
    async def steps(app, pilot, box):
        app.push_screen(Unload(app.desk, QWEN))
        await shows(
            app, pilot, f"Unload {QWEN}?", "frees 32.0G planned for (24.1G held now) memory"
        )

    class Grows(Box):
        def make_workers(self):
            for worker in super().make_workers():
                yield replace(worker, estimate_bytes=32 << 30) if worker.model == QWEN else worker

    play(steps, Grows)


@pytest.mark.parametrize("size", SIZES)
def test_a_model_that_serves_goes_only_once_it_was_named(size):
    async def steps(app, pilot, box):
        app.push_screen(Unload(app.desk, GEMMA))
        await shows(app, pilot, f"Unload {GEMMA}?", "2 running", "frees 19.8G", "type its name")
        assert app.focused.id == "named"
        assert app.screen.query_one("#yes").disabled
        await pilot.press(*"wrong", "enter")
        assert app.focused.id == "no"
        await shows(app, pilot, "▸ Cancel ◂")
        assert box.done == []
        app.screen.query_one("#named").focus()
        app.screen.query_one("#named").value = GEMMA
        await until(pilot, lambda: not app.screen.query_one("#yes").disabled)
        assert f"llmctl unload {GEMMA} --drain 0 --if-gen 41" == app.screen.command()
        await pilot.press("ctrl+d")
        assert "--drain 15" in app.screen.command()
        await pilot.press("ctrl+f")
        assert "--force" in app.screen.command()
        await shows(app, pilot, "Unload, cancel them", "esc back")
        assert {len(line) for line in drawn(app).split("\n")} == {size[0]}
        await pilot.press("ctrl+f", "enter")  # in the field: on to the button
        await shows(app, pilot, "▸ Unload ◂")
        assert app.focused.id == "yes"
        await pilot.press("enter")
        await until(pilot, lambda: len(app.screen_stack) == 1)
        more = {"drain_s": 15.0, "force": False, "if_gen": 41}
        assert box.done == [("unload", GEMMA, more)]

    play(steps, size=size)


def test_unloading_what_has_moved_on_is_refused_once():
    async def steps(app, pilot, box):
        app.push_screen(Unload(app.desk, GEMMA))
        await shows(app, pilot, "type its name")
        app.screen.query_one("#named").value = GEMMA
        box.generation += 1
        app.screen.query_one("#named").focus()
        await until(pilot, lambda: app.screen.may)
        app.screen.go()
        await shows(app, pilot, "Nothing was done; look again")
        assert box.done == []
        assert app.screen.command().endswith("--if-gen 42")
        app.screen.go()
        await until(pilot, lambda: len(box.done) == 1)

    play(steps)


# --- a worker ------------------------------------------------------------------------------


@pytest.mark.parametrize("size", SIZES)
def test_a_workers_detail_and_its_keys(size):
    async def steps(app, pilot, box):
        await open_window(app, pilot, "1", "g", "enter")
        await shows(app, pilot, f"Worker {GEMMA} READY", "2/4 busy", "19.8G held", "runs", "eval")
        await pilot.press("y")
        assert copied(app) == GEMMA
        await pilot.press("Y")
        assert copied(app) == f"llmctl switch {GEMMA}"
        for key, title in (("l", "Logs"), ("s", "Switch"), ("S", "Unload")):
            await pilot.press(key)
            await shows(app, pilot, f"{title} {GEMMA}")
            await pilot.press("escape")
        await pilot.press("q")
        assert len(app.screen_stack) == 1

    play(steps, size=size)


def test_what_is_wrong_with_a_worker_is_told():
    async def steps(app, pilot, box):
        await pilot.press("1", "g", "j", "j")
        await open_window(app, pilot, "enter")
        await shows(app, pilot, "BACKOFF", "exit 139", "killed by signal 11", "tries again in")

    play(steps)


# --- all of them ---------------------------------------------------------------------------

WINDOWS = {
    "detail": ("2", "g", "enter"),
    "queued": ("2", "G", "enter"),
    "cancel": ("2", "g", "space", "space", "x"),
    "worker": ("1", "g", "enter"),
    "logs": ("1", "g", "l"),
    "switch": ("1", "G", "s"),
    "unload": ("1", "g", "S"),
    "help": ("question_mark",),
}


@pytest.mark.parametrize("name", WINDOWS)
def test_ascii_alone_draws_every_window(name):
    async def steps(app, pilot, box):
        await open_window(app, pilot, *WINDOWS[name])
        await until(pilot, lambda: "asking" not in drawn(app))
        await pilot.pause(0.3)
        assert drawn(app).isascii()

    play(steps, size=(80, 24), look=Look(ascii_only=True))


@pytest.mark.parametrize("colours", ["light", "ansi"])
def test_every_window_opens_in_the_other_colours(colours):
    async def steps(app, pilot, box):
        for keys in WINDOWS.values():
            await open_window(app, pilot, *keys)
            await shows(app, pilot, "esc")
            await pilot.press("escape")
            await until(pilot, lambda: len(app.screen_stack) == 1)
            app.board("requests").marked.clear()

    play(steps, size=(80, 24), colours=colours)


@pytest.mark.parametrize("name", ["detail", "switch", "logs"])
def test_hostile_text_is_shown_as_text(name):
    async def steps(app, pilot, box):
        await open_window(app, pilot, *WINDOWS[name])
        await shows(app, pilot, "[red]")
        assert all(char.isprintable() or char == "\n" for char in drawn(app))

    play(steps, Hostile)


def test_where_only_reading_is_allowed_the_windows_only_look():
    async def steps(app, pilot, box):
        await open_window(app, pilot, *WINDOWS["detail"])
        await shows(app, pilot, "DECODE")
        await pilot.press("x")
        await shows(app, pilot, "read-only")
        assert len(app.screen_stack) == 2
        await pilot.press("escape")
        await open_window(app, pilot, *WINDOWS["worker"])
        await pilot.press("s")
        await shows(app, pilot, "read-only")
        app.push_screen(Switch(app.desk, CODER))
        await shows(app, pilot, "FITS", "read-only")
        assert app.screen.query_one("#yes").disabled

    play(steps, Reader)


def test_a_window_on_a_lost_link_says_that_it_is_old():
    class Short(Box):
        async def subscribe(self, *topics):
            async for message in super().subscribe():
                yield message
                await self.over.wait()
                return

        def __init__(self):
            super().__init__()
            self.over = asyncio.Event()

    async def steps(app, pilot, box):
        await open_window(app, pilot, *WINDOWS["detail"])
        await shows(app, pilot, "DECODE")
        box.over.set()
        await shows(app, pilot, "STALE")
        await pilot.press("x")
        await shows(app, pilot, "not connected")

    play(steps, Short)


def test_a_window_is_drawn_anew_when_the_terminal_changes():
    async def steps(app, pilot, box):
        await open_switch(app, pilot)
        for width, height in ((60, 20), (140, 50), (80, 24)):
            await pilot.resize_terminal(width, height)
            await shows(app, pilot, "FITS", "esc back")
            assert {len(line) for line in drawn(app).split("\n")} == {width}

    play(steps)


def test_keys_of_ones_own_are_the_ones_that_are_shown():
    async def steps(app, pilot, box):
        await open_window(app, pilot, "2", "G", "enter")
        await shows(app, pilot, "X cancel", "f5 back")
        await pilot.press("x")
        assert len(app.screen_stack) == 2
        await pilot.press("X")
        await shows(app, pilot, "Cancel 8f35acd4?")
        await pilot.press("f5", "f5")
        await until(pilot, lambda: len(app.screen_stack) == 1)

    play(steps, keymap={"request.cancel": "X", "window.back": "f5"})


def test_help_shows_every_section_at_the_smallest_size():
    async def steps(app, pilot, box):
        await open_window(app, pilot, "question_mark")
        seen = set()
        for key in ("j", *["pagedown"] * 6):
            seen |= set(drawn(app).split("\n"))
            await pilot.press(key)
        text = "\n".join(seen)
        for title in ("Find", "Look", "Act", "Move", "View", "leaves", "In windows", "unload"):
            assert title in text
        await pilot.press("question_mark")
        assert len(app.screen_stack) == 1

    play(steps, size=(60, 20))


def test_levels_have_the_numbers_that_llama_server_gives_them():
    assert [level.name for level in sorted(Level)][1:] == [
        "ERROR",
        "WARN",
        "INFO",
        "TRACE",
        "DEBUG",
    ]
