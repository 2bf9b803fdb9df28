"""llmctl on a terminal: the chooser, widths, colours, and what it shows as things happen."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import re
import select
import signal
import struct
import subprocess
import sys
import termios
import time
from functools import partial

import pytest
import trio
from daemon_rig import running

from llmd.ctl.tables import cells

pytestmark = pytest.mark.system

PROGRAM = [sys.executable, "-c", "import sys; from llmd.ctl import main; sys.exit(main())"]
PAINT = re.compile("\x1b\\[\\d*m")
DEADLINE_S = 30


@pytest.fixture
async def llmd(runtime_dir, fake_engine, demo_models):
    names = ("demo-small", "demo-large")
    models = [{"name": name, "path": str(demo_models / f"{name}.gguf")} for name in names]
    models.append({"name": "broken", "path": str(runtime_dir / "missing.gguf")})
    async with running(runtime_dir, fake_engine, models) as found:
        yield found


class Terminal:
    """llmctl on a terminal of its own."""

    def __init__(self, llmd, *words, columns=100, env=None):
        ours, theirs = pty.openpty()
        fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("4H", 30, columns, 0, 0))
        given = {**os.environ, "TERM": "xterm", "LLMD_SOCKET": str(llmd.daemon.admin.path)}
        given.pop("NO_COLOR", None)
        self._process = subprocess.Popen(
            [*PROGRAM, *words],
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            env={**given, **(env or {})},
            start_new_session=True,
        )
        os.close(theirs)
        self._terminal = ours
        self.shown = ""

    def until(self, text):
        """Read until a text has been shown."""
        end = time.monotonic() + DEADLINE_S
        while text not in self.shown:
            assert time.monotonic() < end, self.shown
            assert self._read(), self.shown

    def type(self, keys):
        os.write(self._terminal, keys.encode())

    def end(self):
        """Read all that comes, and return the exit status."""
        while self._read():
            pass
        return self._process.wait(DEADLINE_S)

    def interrupt(self):
        self._process.send_signal(signal.SIGINT)

    def close(self):
        self._process.kill()
        self._process.wait()
        os.close(self._terminal)

    def _read(self):
        assert select.select([self._terminal], [], [], DEADLINE_S)[0], self.shown
        try:
            data = os.read(self._terminal, 65536)
        except OSError:
            return False  # the other end is closed
        self.shown += data.decode().replace("\r\n", "\n")
        return bool(data)


async def on_terminal(llmd, *words, said=None, **how):
    """Return what llmctl shows and its exit status."""

    def work():
        terminal = Terminal(llmd, *words, **how)
        try:
            if said is not None:
                terminal.until("? ")
                terminal.type(said)
            return terminal.end(), terminal.shown
        finally:
            terminal.close()

    return await trio.to_thread.run_sync(work)


# --- choosing a model ----------------------------------------------------------------------


@pytest.mark.parametrize("said", ["2\n", "demo-small\n", " demo-small \n"])
async def test_a_model_is_chosen_from_a_list(llmd, said):
    status, shown = await on_terminal(llmd, "switch", "--wait", said=said)
    assert status == 0
    assert "broken" not in shown
    assert "demo-small is ready" in shown
    assert llmd.worker("demo-small").state.value == "ready"


@pytest.mark.parametrize(
    ("said", "told"),
    [
        ("0\n", "there is no '0' in the list"),
        ("3\n", "there is no '3' in the list"),
        ("demo-smal\n", "did you mean 'demo-small'?"),
        ("\n", ""),
        ("\x04", ""),
    ],
)
async def test_who_chooses_nothing_changes_nothing(llmd, said, told):
    status, shown = await on_terminal(llmd, "switch", said=said)
    assert status == 1
    assert told in shown
    assert "Traceback" not in shown
    assert llmd.services.scheduler.state.generation == 0


async def test_the_choice_can_be_a_plan_only(llmd):
    status, shown = await on_terminal(llmd, "switch", "--dry-run", said="1\n")
    assert status == 0
    assert "plan: load demo-large; nothing is done yet" in shown
    assert "do it: llmctl switch demo-large --if-gen 0" in shown


# --- looks ---------------------------------------------------------------------------------


@pytest.mark.parametrize("columns", [40, 60, 80, 200])
async def test_tables_fit_the_terminal(llmd, columns):
    await llmd.chat(model="demo-small", max_tokens=2, headers=[("x-request-id", "r" * 100)])
    for words in (["status"], ["models"], ["requests", "-a"], ["queue"]):
        status, shown = await on_terminal(llmd, *words, columns=columns)
        assert status == 0
        widths = [cells(PAINT.sub("", line)) for line in shown.splitlines()]
        assert max(widths) <= columns, shown


async def test_colours_are_for_terminals_that_want_them(llmd):
    await llmd.chat(model="demo-small", max_tokens=2)
    _, shown = await on_terminal(llmd, "status")
    assert "\x1b[32mready\x1b[0m" in shown
    for env in ({"NO_COLOR": "1"}, {"TERM": "dumb"}):
        _, plain = await on_terminal(llmd, "status", env=env)
        assert "\x1b" not in plain
        assert "ready" in plain
    _, shown = await on_terminal(llmd, "--json", "status")
    states = {worker["model"]: worker["state"] for worker in json.loads(shown)["workers"]}
    assert states["demo-small"] == "ready"


# --- watching ------------------------------------------------------------------------------


async def watched(llmd, *words, until, do):
    """Run `llmctl watch` while something is done, and return all that it showed."""
    terminal = Terminal(llmd, "watch", *words, columns=70)
    try:
        await trio.to_thread.run_sync(terminal.until, "\n")  # the snapshot
        await do()
        await trio.to_thread.run_sync(terminal.until, until)
        terminal.interrupt()
        status = await trio.to_thread.run_sync(terminal.end)
    finally:
        terminal.close()
    assert status == 0
    assert "Traceback" not in terminal.shown
    return terminal.shown


async def test_watch_tells_what_happens_a_line_for_each(llmd):
    async def do():
        await llmd.chat(model="demo-small", max_tokens=2, headers=[("x-request-id", "r-1")])

    shown = await watched(llmd, until="done     ", do=do)
    lines = [PAINT.sub("", line) for line in shown.splitlines() if line.strip("^C")]
    assert all(cells(line) <= 70 for line in lines)
    kinds = {line.split()[1] for line in lines}
    assert {"worker", "request", "log"} <= kinds
    [ended] = [line for line in lines if " request done" in line]
    assert "r-1" in ended


async def test_watch_tells_scripts_one_object_a_line(llmd):
    code = [*PROGRAM, "--socket", str(llmd.daemon.admin.path), "--json", "watch", "workers"]
    with subprocess.Popen(code, stdout=subprocess.PIPE) as process:
        read = partial(trio.to_thread.run_sync, process.stdout.readline)
        messages = [json.loads(await read())]
        await llmd.chat(model="demo-small", max_tokens=2)
        while "ready" not in {w["state"] for w in messages[-1].get("workers", ())}:
            messages.append(json.loads(await read()))
        process.send_signal(signal.SIGINT)
        while line := await read():
            messages.append(json.loads(line))
        assert await trio.to_thread.run_sync(process.wait) == 0
    assert messages[0]["type"] == "snapshot"
    assert {message["type"] for message in messages[1:]} == {"event"}
    numbers = [message["seq"] for message in messages]
    assert numbers == sorted(numbers)


async def test_watch_ends_with_the_daemon_and_says_so(llmd):
    terminal = Terminal(llmd, "watch")
    try:
        await trio.to_thread.run_sync(terminal.until, "\n")
        llmd.daemon.admin.close()
        assert await trio.to_thread.run_sync(terminal.end) == 3
    finally:
        terminal.close()
    assert "llmd has ended" in terminal.shown


async def test_a_log_is_followed_until_interrupted(llmd):
    await llmd.chat(model="demo-small", max_tokens=2)
    terminal = Terminal(llmd, "logs", "demo-small", "-f", "-n", "1")
    try:
        await trio.to_thread.run_sync(terminal.until, "\n")
        say = partial(llmd.chat, "[[say]] \x1b[31mred and \x07bell", model="demo-small")
        await say(max_tokens=2)
        await trio.to_thread.run_sync(terminal.until, "bell")
        terminal.interrupt()
        assert await trio.to_thread.run_sync(terminal.end) == 0
    finally:
        terminal.close()
    assert "\x07" not in terminal.shown
    assert "red and" in terminal.shown


async def test_a_reader_that_has_had_enough_is_no_failure(llmd):
    program = " ".join(f"'{word}'" for word in PROGRAM)
    line = f"{program} --socket {llmd.daemon.admin.path} models | head -n 1"
    done = await trio.run_process(
        ["bash", "-c", f"set -o pipefail; {line}"], capture_stdout=True, capture_stderr=True
    )
    assert done.stderr == b""
    assert done.stdout.startswith(b"STATE")
