"""How the screen looks: each state, window, size and theme, as it was when somebody looked at it.

The text is asserted by what it must tell as well, since a snapshot only says that it is the same.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass

import pytest
from msgspec.structs import replace
from rich.cells import cell_len
from snapshot_rig import FOLDER, UPDATE, compare

from llmd.admin import protocol as p
from llmd.admin.calls import Unreachable
from llmtui.app import main
from llmtui.demo import Demo
from llmtui.picture import MOMENT, Measured, page, take
from llmtui.rows import Look
from llmtui.screen import LlmTui

SIZES = ((120, 36), (80, 24), (60, 20))


class Clock:
    """Stands still."""

    def __init__(self):
        self.now = MOMENT

    def __call__(self):
        return self.now


class Lost(Demo):
    """Is there once, and never again."""

    def __init__(self, clock):
        super().__init__(clock)
        self.told = False
        self.ticks = clock

    async def connect(self):
        if self.told:
            await asyncio.Event().wait()

    async def subscribe(self, *topics):
        async for message in super().subscribe(*topics):
            yield message
            break
        self.told = True
        self.ticks.now += 12
        raise Unreachable("the daemon hung up")


class Absent(Demo):
    """Was never there."""

    tried = False

    async def connect(self):
        if self.tried:
            await asyncio.Event().wait()
        self.tried = True
        raise Unreachable(
            "no llmd is running; tried /run/llmd/admin.sock (not there); start one (llmd serve), "
            "or name its socket with --socket or $LLMD_SOCKET"
        )


class Empty(Demo):
    """Knows no model, and nobody comes."""

    async def subscribe(self, *topics):
        async for message in super().subscribe(*topics):
            if isinstance(message, p.Snapshot):
                yield p.Snapshot(
                    seq=1, at=message.at, daemon=message.daemon, totals=p.Totals(),
                    workers=(), requests=(), log=(),
                )  # fmt: skip
            await asyncio.Event().wait()


class Crowd(Demo):
    """Has a thousand requests."""

    async def subscribe(self, *topics):
        async for message in super().subscribe(*topics):
            if isinstance(message, p.Snapshot):
                cast = message.requests
                more = [
                    replace(
                        cast[6 + number % 6],
                        id=f"r-{number:08x}",
                        position=number,
                        received_at=MOMENT - 2000 + number,
                        queued_at=MOMENT - 2000 + number,
                    )
                    for number in range(1000 - len(cast))
                ]
                yield replace(message, requests=(*cast, *more))
            await asyncio.Event().wait()


class Reader(Demo):
    async def hello(self):
        return replace(await super().hello(), access="read")


@dataclass(frozen=True)
class Case:
    """A screen: what it is fed by, what is pressed, and what it must tell.

    `tells` holds for every size, `wide` where there is room; `lacks` is nowhere.
    """

    name: str
    tells: tuple[str, ...]
    wide: tuple[str, ...] = ()
    make: type[Demo] = Demo
    press: tuple[str, ...] = ()
    live: bool = True
    lacks: str = "Traceback"

    def __str__(self):
        return self.name


LIVE = Case(
    "live",
    ("@demo", "LIVE", "RW", "run 6/8", "READY", "LOADING", "! BACKOFF", "OFF", "DECODE",
     "PREFILL", "02e9b3 STALLED", "2.1s", "qwen3-32b-q4", "477/2.0k", "quit"),
    ("queue 6 (oldest 14s)", "429 2/min", "QUEUED #1", "no token for 20s", "4/4 slots busy",
     "loading model 20%", "1 ahead, 4/4 busy", "norm gemma3-27b-q4 ", "norm llama3.3-70b-q4 ",
     "exit 139, retry in 24s", "20%, ETA 32s", "~30s", "ci-bot", "high", "12:40:59 llama3.3",
     "switch", "up 3d04h", "47.1G", "85.9/141G", "GPU0 H200", "SM 89%", "64C 413W", "61.0/128G",
     "4.1k (3.9k)"),
)  # fmt: skip
SWITCH = Case(
    "switch",
    ("Switch", "gemma3-27b-q4", "qwen3-coder-30b", "85.9G now", "-19.8G", "+20.5G", "86.6G",
     "FITS", "2 running", "Cancel"),
    ("llmctl switch qwen3-coder-30b", "--if-gen 41"),
    press=("1", "G", "s"),
)  # fmt: skip
CASES = (
    LIVE,
    SWITCH,
    Case("stale", ("STALE 12s", "READY", "21c04a", "the daemon hung up", "quit"), ("12:41:19",),
         Lost, live=False),
    Case("absent", ("NOT CONNECTED", "not connected", "no llmd is running", "/run/llmd",
                    "$LLMD_SOCKET", "help"), (), Absent, live=False, lacks="run 0"),
    Case("empty", ("LIVE", "0 running, 0 queued", "nobody asks", "there are no models"), (), Empty),
    Case("thousand", ("1 Workers", "6 running, 994 queued", "below"), (), Crowd),
    Case("thousand-end", ("6 running, 994 queued", "▌"), (), Crowd, ("G",), lacks="below"),
    Case("read-only", ("RO", "READY"), (), Reader),
    Case("help", ("Keys", "all keys", "filters this table"), ("Act", "Move"),
         press=("question_mark",)),
    Case("request", ("r-8f1c90de", "PREFILL 70%", "bob", "received", "500ms", "/31k",
                     "esc back"),
         ("llmctl why r-8f1c90de", "slot 3", "POST /v1/chat/completions   stream"),
         press=("j", "j", "j", "enter")),
    Case("worker", ("Worker qwen3-32b-q4", "4/4 busy", "33k tokens each", "24.1G", "alice",
                    "llmctl"), (), press=("1", "j", "enter")),
    Case("logs", ("qwen3-32b-q4", "FOLLOW", "update_slots", "follow"), ("wrap off",),
         press=("j", "l")),
    Case("cancel", ("Cancel 2 requests?", "2 running", "alice", "ci-bot", "Keep",
                    "llmctl cancel"), (), press=("j", "space", "space", "x")),
    Case("cancel-one", ("Cancel", "r-8f35acd4", "cancels it"), (), press=("G", "x")),
    Case("unload", ("Unload gemma3-27b-q4?", "2 running", "19.8G", "type its name", "Cancel"), (),
         press=("1", "g", "S")),
    Case("events", ("3 Events", "llama3.3-70b-q4 loads", "qwen3-32b-q4 is ready", "root (uid 0)"),
         ("plan#41",), press=("e",)),
    Case("filter", ("carol", "336b01", "34d8c2"), ("2 Requests",),
         press=("slash", "c", "a", "r", "o", "l", "enter")),
    Case("paused", ("PAUSED", "DECODE"), (), press=("p",)),
    Case("faults", ("BACKOFF", "STALLED", "faults only"), (), press=("z",)),
)  # fmt: skip
LOOKS = ("light", "ansi", "no-color", "ascii")


@pytest.fixture(autouse=True)
def one_zone(monkeypatch):
    """Clocks on the screen tell UTC."""
    monkeypatch.setenv("TZ", "UTC")
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.delenv("SSH_CONNECTION", raising=False)
    monkeypatch.setattr("llmtui.link._FIRST_RETRY_S", 9.0)  # longer than a picture takes
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()


def seen(case, size, look="dark"):
    """Return the screen of a case, once it tells what it must."""
    clock = Clock()
    app = LlmTui(
        lambda source=[]: source[0] if source else source.append(case.make(clock)) or source[0],
        look=Look(ascii_only=look == "ascii"),
        colours={"ascii": "dark", "no-color": "ansi"}.get(look, look),
        clock=clock,
        meter=Measured(),
    )
    until = case.tells[0]
    return asyncio.run(take(app, size, case.press, live=case.live, until=until))


def assert_tells(case, size, lines):
    text = "\n".join(page(lines))
    missing = [word for word in case.tells if word not in text]
    if size == SIZES[0]:
        missing += [word for word in case.wide if word not in text]
    assert not missing, f"{missing} not in\n{text}"
    assert case.lacks not in text
    assert len(lines) == size[1]
    assert {sum(cell_len(run.text) for run in line) for line in lines} == {size[0]}
    assert text.replace("\n", "").isprintable()


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_each_screen(case, size, tmp_path):
    lines = seen(case, size)
    assert_tells(case, size, lines)
    compare(f"{case}-{size[0]}x{size[1]}", lines, tmp_path)


@pytest.mark.parametrize("look", LOOKS)
@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("case", [LIVE, SWITCH], ids=str)
def test_each_look(case, size, look, tmp_path, monkeypatch):
    if look == "no-color":
        monkeypatch.setenv("NO_COLOR", "1")
    lines = seen(case, size, look)
    assert_tells(case, size, lines)
    if look == "ascii":
        assert "\n".join(page(lines)).isascii()
    if look == "no-color":
        colours = {colour for line in lines for run in line for colour in (run.ink, run.ground)}
        assert all(len({c[1:3], c[3:5], c[5:7]}) == 1 for c in colours)  # greys
    compare(f"{case}-{look}-{size[0]}x{size[1]}", lines, tmp_path)


def test_no_snapshot_is_left_of_what_is_gone():
    wanted = {f"{case}-{w}x{h}.txt" for case in CASES for w, h in SIZES}
    wanted |= {
        f"{c}-{look}-{w}x{h}.txt" for c in (LIVE, SWITCH) for look in LOOKS for w, h in SIZES
    }
    assert {path.name for path in FOLDER.iterdir()} == wanted


# --- the pictures --------------------------------------------------------------------------

DOCS = FOLDER.parents[1] / "docs"
PICTURES = {
    "llmtui.svg": ("--size", "120x36"),
    "llmtui-light.svg": ("--size", "120x36", "--theme", "light"),
    "llmtui-switch.svg": ("--size", "100x30", "--press", "1 G s"),
}


@pytest.mark.parametrize("name", PICTURES)
def test_the_pictures_in_the_docs_are_what_the_command_draws(name, tmp_path):
    drawn = tmp_path / name
    words = ["--demo", "--svg", str(drawn), *PICTURES[name]]
    assert main(words) == 0
    made = drawn.read_text(encoding="utf-8")
    assert "@demo" in made
    if UPDATE:
        (DOCS / name).write_text(made, encoding="utf-8")
    command = "llmtui --demo --svg docs/" + " ".join([name, *PICTURES[name]])
    assert (DOCS / name).read_text(encoding="utf-8") == made, f"draw it anew: {command}"


@pytest.mark.parametrize("words", ["j nosuchkey", "nosuchkey", "1 ctrl+ s"])
def test_a_key_that_there_is_not_is_named(words, tmp_path, capsys):
    drawn = tmp_path / "x.svg"
    assert main(["--demo", "--svg", str(drawn), "--press", words]) == 2
    assert "no such key" in capsys.readouterr().err
    assert not drawn.exists()


def test_the_bar_of_a_log_is_where_its_text_is():
    case = next(case for case in CASES if case.name == "logs")
    lines = seen(case, (80, 24))
    bar = [row for row, line in enumerate(lines[1:-2]) if line[-2].ground != lines[1][0].ground]
    assert max(bar) == len(lines) - 4  # at the end, as what is followed
    assert min(bar) > 0
