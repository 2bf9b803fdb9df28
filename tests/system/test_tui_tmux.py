"""llmtui as a person meets it: in a terminal, against a whole daemon.

What is waited for is looked for on the screen; every wait has an end.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from contextlib import asynccontextmanager
from functools import partial

import pytest
import trio
from daemon_rig import running
from terminal_rig import PROMPT, ROOT, terminal

pytestmark = [
    pytest.mark.system,
    pytest.mark.skipif(shutil.which("tmux") is None, reason="there is no tmux"),
]

MARKUP = "[/foo][bold red]"
ESCAPES = "\x1b]2;TAKEN\x07\x1b[2J\x1b[31m\x9b5m\x1bc\x1b[?1049l\r\n\t\u202e"


@asynccontextmanager
async def box(runtime_dir, engine, demo_models, **groups):
    """A daemon with both demo models, and its admin socket."""
    models = groups.pop(
        "models", [demo_models / f"demo-{size}.gguf" for size in ("small", "large")]
    )
    async with running(runtime_dir, engine, models, **groups) as daemon:
        yield daemon


def socket_of(runtime_dir):
    return ["--socket", str(runtime_dir / "admin.sock")]


@asynccontextmanager
async def sent(daemon, *requests):
    """Have these requests on their way, one after another; `(id, prompt, tokens)` each."""
    async with trio.open_nursery() as nursery:
        for name, prompt, tokens in requests:
            ask = partial(
                daemon.chat, prompt, model="demo-small", max_tokens=tokens,
                headers=[("x-request-id", name)],
            )  # fmt: skip
            nursery.start_soon(ask)
            await daemon.until(lambda name=name: state_of(daemon, name) in ("queued", "decode"))
        yield
        nursery.cancel_scope.cancel()


def state_of(daemon, name):
    for record in daemon.services.registry.records():
        if record.id == name:
            return record.state.value
    return ""


# --- the daemon comes and goes -------------------------------------------------------------


async def test_it_outlives_the_daemon(runtime_dir, any_real_engine, demo_models):
    async with terminal(runtime_dir) as screen:
        async with box(runtime_dir, any_real_engine, demo_models) as daemon:
            await screen.run(*socket_of(runtime_dir))
            await screen.until("LIVE", "demo-small", "demo-large", "OFF")
            assert (await daemon.chat(model="demo-small", max_tokens=4)).status == 200
            await screen.until("READY")
            pid = await screen.child()
        shown = await screen.until("STALE", gone="LIVE")
        assert "READY" in shown  # the last that was known stays
        await screen.press("1", "s")
        await screen.until("not connected")
        async with box(runtime_dir, any_real_engine, demo_models):
            shown = await screen.until("LIVE", "OFF", gone="STALE")
            assert "READY" not in shown
        assert await screen.child() == pid


async def test_it_waits_for_a_daemon_that_is_not_there_yet(runtime_dir, fake_engine, demo_models):
    async with terminal(runtime_dir) as screen:
        await screen.run(*socket_of(runtime_dir))
        await screen.until("NOT CONNECTED", "no llmd")
        async with box(runtime_dir, fake_engine, demo_models):
            await screen.until("LIVE", "demo-small")


async def test_a_switch_is_planned_then_done(runtime_dir, any_real_engine, demo_models):
    async with (
        box(runtime_dir, any_real_engine, demo_models) as daemon,
        terminal(runtime_dir) as screen,
    ):
        await screen.run(*socket_of(runtime_dir))
        await screen.until("LIVE", "demo-large")
        await screen.press("1", "g", "s")
        await screen.until("FITS", "llmctl switch demo-large")
        await screen.press("Enter")  # the focus is on what does nothing
        await screen.until("LIVE", gone="llmctl switch")
        assert daemon.services.supervisor.worker("demo-large") is None
        await screen.press("s")
        await screen.until("FITS")
        await screen.press("Right", "Enter")
        await screen.until("READY")
        await daemon.until(lambda: daemon.worker("demo-large") is not None)


# --- its size ------------------------------------------------------------------------------


async def test_it_fits_whatever_size_it_gets(runtime_dir, fake_engine, demo_models):
    async with (
        box(runtime_dir, fake_engine, demo_models) as daemon,
        terminal(runtime_dir) as screen,
        sent(daemon, ("r-one", "[[token 0.2]]", 900)),
    ):
        await screen.run(*socket_of(runtime_dir), env="COLUMNS=70 LINES=22")  # as shells export
        for columns, rows in ((120, 36), (80, 24), (60, 20), (100, 30), (60, 20), (120, 36)):
            await screen.resize(columns, rows)
            shown = await screen.until("LIVE", "r-one", "DECODE", "demo-large", "quit")
            with trio.move_on_after(20):
                while not is_whole(shown, columns, rows):
                    await trio.sleep(0.05)
                    shown = await screen.screen()
            assert is_whole(shown, columns, rows), f"{columns} x {rows}:\n{shown}"


def is_whole(shown, columns, rows):
    """Whether both panels are closed at the terminal's edges, and the keys stand below them."""
    lines = shown.rstrip("\n").split("\n")
    corners = [
        [line for line in lines if line.startswith(a) and len(line) == columns and line[-1] == b]
        for a, b in ("╭╮", "╰╯")
    ]
    return len(lines) == rows and [len(c) for c in corners] == [2, 2] and "quit" in lines[-1]


# --- acting on what was seen ---------------------------------------------------------------


async def test_what_is_cancelled_is_what_was_under_the_cursor(
    runtime_dir, fake_engine, demo_models
):
    requests = [(f"r-{name}", "[[token 0.2]]", 900) for name in "abcde"]
    async with (
        box(runtime_dir, fake_engine, demo_models) as daemon,
        terminal(runtime_dir) as screen,
        sent(daemon, *requests),
    ):
        await screen.run(*socket_of(runtime_dir))
        await screen.until("LIVE", "r-a", "r-b", "r-c", "r-d", "r-e")
        await screen.press("g", "j", "j", "j", "j")
        with trio.fail_after(20):
            while "r-e" not in await screen.row("▌"):
                await trio.sleep(0.05)
        await screen.press("x")
        await screen.until("Cancel", "r-e")
        # both that ran leave; r-c and r-d get their slots, and every row below moves
        for name in ("r-a", "r-b"):
            await daemon.call("POST", f"/requests/{name}/cancel")
        for name in ("r-c", "r-d"):
            await daemon.until(lambda name=name: state_of(daemon, name) == "decode")
        await screen.press("y")  # it still waits, so that this is enough
        await screen.until("cancelled", gone="Cancel r-e")
        await daemon.until(lambda: state_of(daemon, "r-e") == "cancelled")
        assert [state_of(daemon, name) for name in ("r-c", "r-d")] == ["decode", "decode"]


async def test_read_only_offers_nothing(runtime_dir, fake_engine, demo_models):
    async with (
        box(runtime_dir, fake_engine, demo_models) as daemon,
        terminal(runtime_dir) as screen,
        sent(daemon, ("r-one", "[[token 0.2]]", 900)),
    ):
        await screen.run(*socket_of(runtime_dir), "--read-only")
        await screen.until("LIVE", " RO ", "r-one")
        for key in ("x", "s", "S"):
            await screen.press(key)
            await screen.until("read-only", gone="llmctl")
        assert state_of(daemon, "r-one") == "decode"


# --- hostile text --------------------------------------------------------------------------


async def test_hostile_text_is_shown_and_not_obeyed(runtime_dir, fake_engine, demo_models):
    small = demo_models / "demo-small.gguf"
    models = [
        {"name": "demo-small", "path": str(small)},
        {"name": f"m{MARKUP}", "path": str(small), "env": {"FAKE_CRASH": f"{ESCAPES}{MARKUP}no"}},
    ]
    keys = [{"name": f"k{MARKUP}", "key": "sk-1", "role": "admin"}]
    async with (
        box(
            runtime_dir, fake_engine, demo_models, models=models, api_keys=keys, key="sk-1",
            worker={"max_loaded": 2},
        ) as daemon,
        terminal(runtime_dir) as screen,
    ):  # fmt: skip
        title = await screen.flag("pane_title")
        prompt = f"[[say]] [[token 0.2]] {ESCAPES}{MARKUP}evil"
        async with sent(daemon, ("r-one", prompt, 900)):
            await screen.run(*socket_of(runtime_dir))
            await screen.until("LIVE", "k[/foo]", "m[/foo]")
            answer = await daemon.chat(model=f"m{MARKUP}", max_tokens=1)
            assert answer.status == 503
            await screen.until("r-one", "FAILED")
            await screen.press("Enter")
            await screen.until("received", f"k{MARKUP}")
            await screen.leave("received")
            await screen.press("l")
            await screen.until("evil", "demo-small")
            await screen.leave("evil")
            await screen.press("1", "G", "Enter")
            # the line of events at the bottom may tell of that code as well
            await screen.until(f"Worker m{MARKUP}", "with code 1")
            await screen.leave(f"Worker m{MARKUP}")
            await screen.press("l")
            await screen.until("follow", f"{MARKUP}no")
            await screen.press("Escape")
            await screen.until("LIVE", "╭", "quit")
        assert await screen.flag("pane_title") == title
        assert await screen.flag("alternate_on") == "1"


# --- the ways out --------------------------------------------------------------------------


async def assert_restored(screen, code):
    """The shell is back on its own screen, and the terminal is as it was."""
    shown = await screen.until(PROMPT.strip(), gone="LIVE")
    assert "Traceback" not in shown
    flags = {name: await screen.flag(name) for name in ("alternate_on", "cursor_flag")}
    assert flags == {"alternate_on": "0", "cursor_flag": "1"}
    assert await screen.flag("mouse_any_flag") == "0"
    await screen.type("echo code=$?; stty -a; echo dashed='-'echo")
    shown = await screen.until(f"code={code}", "dashed=-echo")
    assert "echo code=$?;" in shown  # what was typed could be seen
    words = shown.split()
    assert {"echo", "icanon", "isig"} <= set(words)
    assert "-icanon" not in words


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
async def test_a_signal_puts_the_terminal_right(runtime_dir, number):
    async with terminal(runtime_dir) as screen:
        await screen.run("--demo")
        await screen.until("LIVE", "READY")
        assert await screen.flag("alternate_on") == "1"
        os.kill(await screen.child(), number)
        await assert_restored(screen, 128 + number)


async def test_a_signal_in_a_dialog_does_so_too(runtime_dir):
    async with terminal(runtime_dir) as screen:
        await screen.run("--demo")
        await screen.until("LIVE", "READY")
        await screen.press("x")
        await screen.until("Cancel")
        os.kill(await screen.child(), signal.SIGTERM)
        await assert_restored(screen, 128 + signal.SIGTERM)


@pytest.mark.parametrize("key", ["q", "C-c"])
async def test_it_is_left_by_a_key(runtime_dir, key):
    async with terminal(runtime_dir) as screen:
        await screen.run("--demo")
        await screen.until("LIVE", "READY")
        await screen.press(key)
        await assert_restored(screen, 0)


async def test_it_ends_with_its_terminal(runtime_dir):
    async with terminal(runtime_dir) as screen:
        await screen.run("--demo")
        await screen.until("LIVE", "READY")
        pid = await screen.child()
        await screen.close()
        with trio.fail_after(20):
            while is_there(pid):
                await trio.sleep(0.05)


async def test_it_can_be_stopped_and_comes_back(runtime_dir):
    async with terminal(runtime_dir) as screen:
        await screen.run("--demo")
        await screen.until("LIVE", "READY")
        pid = await screen.child()
        os.kill(pid, signal.SIGTSTP)
        await screen.until(PROMPT.strip(), gone="LIVE")
        assert await screen.flag("alternate_on") == "0"
        await screen.type("fg")
        await screen.until("LIVE", "READY", "quit")
        assert await screen.flag("alternate_on") == "1"
        await screen.press("q")
        await assert_restored(screen, 0)


def is_there(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


# --- for scripts ---------------------------------------------------------------------------


async def llmtui(*words):
    code = "import sys; from llmtui.app import main; sys.exit(main())"
    done = await trio.run_process(
        [sys.executable, "-c", code, *words],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_stdout=True, capture_stderr=True, check=False, stdin=subprocess.DEVNULL,
    )  # fmt: skip
    return done.returncode, done.stdout.decode(), done.stderr.decode()


async def test_a_snapshot_for_scripts(runtime_dir, fake_engine, demo_models):
    async with (
        box(runtime_dir, fake_engine, demo_models) as daemon,
        sent(daemon, ("r-one", "[[token 0.2]]", 900)),
    ):
        status, out, err = await llmtui(*socket_of(runtime_dir), "--once", "--json")
        assert (status, err, out.count("\n")) == (0, "", 1)
        found = json.loads(out)
        assert found["type"] == "snapshot"
        assert {w["model"]: w["state"] for w in found["workers"]} == {
            "demo-small": "ready",
            "demo-large": "off",
        }
        assert [(r["id"], r["state"]) for r in found["requests"]] == [("r-one", "decode")]
        status, out, err = await llmtui(*socket_of(runtime_dir), "--once")
        assert (status, err) == (0, "")
        assert "demo-large" in out
        assert "r-one" in out
        assert "\x1b" not in out


async def test_without_a_terminal_it_says_so(runtime_dir):
    status, out, err = await llmtui(*socket_of(runtime_dir))
    assert (status, out) == (2, "")
    assert "terminal" in err


async def test_a_snapshot_of_nobody(runtime_dir):
    status, out, err = await llmtui(*socket_of(runtime_dir), "--once", "--json")
    assert (status, out) == (3, "")
    assert "no llmd" in err
