"""What is sent to the terminal: little, and all that it needs to show what the screen is."""

from __future__ import annotations

import asyncio
import re
from itertools import count
from pathlib import Path

import pytest
from rich.cells import cell_len
from rich.color import ColorSystem
from rich.segment import Segment
from rich.style import Style
from textual._compositor import ChopsUpdate, LayoutUpdate
from textual.strip import Strip

import llmtui
from llmtui.demo import Demo
from llmtui.picture import MOMENT, runs
from llmtui.screen import LlmTui
from llmtui.wire import Glass, Narrow, Pen, cells, differences

TOKEN = re.compile(r"\x1b\[([\d;]*)([A-Za-z])|([^\x1b\n]+)|\n")


class Terminal:
    """A terminal, as far as colours and places go."""

    def __init__(self, width, height):
        self.size = width, height
        self.cells = {}
        self.at = (0, 0)
        self.look = {}

    def write(self, data):
        end = 0
        for match in TOKEN.finditer(data):
            assert match.start() == end, repr(data[end : match.start()])
            end = match.end()
            codes, kind, text = match.groups()
            if kind == "H":
                y, x = codes.split(";")
                self.at = int(x) - 1, int(y) - 1
            elif kind == "m":
                self.take([int(code or 0) for code in codes.split(";")])
            elif text:
                self.put(text)
        assert end == len(data)

    def take(self, codes):
        codes = iter(codes)
        for code in codes:
            if code == 0:
                self.look = {}
            elif code in (38, 48):
                assert next(codes) == 2
                self.look[code] = "#" + "".join(f"{next(codes):02x}" for _ in range(3))
            elif code in (39, 49):
                self.look.pop(code - 1, None)
            else:
                self.look[code] = True

    def put(self, text):
        x, y = self.at
        ink, ground = self.look.get(38), self.look.get(48)
        if 7 in self.look:
            ink, ground = ground, ink
        for char in text:
            self.cells[x, y] = (char, ink, ground, 1 in self.look)
            x += cell_len(char)
        self.at = x, y

    def shows(self):
        width, height = self.size
        return [[self.cells.get((x, y)) for x in range(width)] for y in range(height)]


class Watched(LlmTui):
    """Sends what it draws to a glass too; without a terminal textual sends nothing."""

    CSS_PATH = str(Path(llmtui.__file__).with_name("llmtui.tcss"))
    terminal = None
    sent = 0

    def _display(self, screen, renderable):
        if self.terminal and isinstance(renderable, (ChopsUpdate, LayoutUpdate)):
            data = Narrow(renderable, self._glass).render_segments(self.console)
            self.sent += len(data.encode())
            self.terminal.write(data)


def meant(app):
    """Return the cells of the screen as a terminal should show them."""
    made = []
    for line in runs(app):
        row = []
        for run in line:
            for char in run.text:
                row.append((char, run.ink, run.ground, run.bold))
                row += [None] * (cell_len(char) - 1)
        made.append(row)
    return made


def apart(seen, wanted):
    """Yield where two screens differ; a blank has no ink."""
    for y, (row, other) in enumerate(zip(seen, wanted, strict=True)):
        for x, (a, b) in enumerate(zip(row, other, strict=True)):
            if b is not None and (a is None or _plain(a) != _plain(b)):
                yield x, y, a, b


def _plain(cell):
    return (cell[0], cell[2]) if cell[0] == " " else cell


@pytest.fixture(autouse=True)
def true_colours(monkeypatch):
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("COLORTERM", "truecolor")
    monkeypatch.delenv("NO_COLOR", raising=False)


KEYS = "j space G 1 w 2 o a slash a enter escape z z l escape s escape p p x escape e"


async def until_shown(app, pilot, after):
    for _ in range(100):
        await pilot.pause(0.02)
        different = list(apart(app.terminal.shows(), meant(app)))
        if not different:
            return
    raise AssertionError(f"after {after} the terminal is wrong in {different[:5]}")


@pytest.mark.parametrize("size", [(120, 36), (60, 20)])
def test_the_terminal_shows_the_screen_after_every_partial_update(size):
    async def run():
        seconds = count(MOMENT, 0.4)
        app = Watched(lambda: Demo(clock), clock=(clock := lambda: next(seconds)))
        app.terminal = Terminal(*size)
        async with app.run_test(size=size) as pilot:
            app.set_rate(8)
            for key in KEYS.split():
                await pilot.press(key)
                await until_shown(app, pilot, key)
            await pilot.press("escape", "enter")
            for other in ((80, 24), size):
                app.terminal = Terminal(*other)
                app.terminal.put("what a terminal leaves behind")
                await pilot.resize_terminal(*other)
                await until_shown(app, pilot, other)
            assert app.sent

    asyncio.run(asyncio.wait_for(run(), 60))


def test_a_second_of_a_quiet_box_costs_little():
    async def run():
        app = Watched(Demo)
        app.terminal = Terminal(120, 36)
        async with app.run_test(size=(120, 36)) as pilot:
            while app.shown.link != "live":
                await pilot.pause(0.02)
            for keys in ((), ("enter",), ("escape", "1", "s")):
                await pilot.press(*keys)
                await pilot.pause(1.0)
                app.sent = 0
                painted = app.shown
                while app.shown is painted:
                    await pilot.pause(0.02)
                await pilot.pause(0.1)
                # a whole frame is 12 kB and more; this is the clock, and some numbers of 12 rows
                assert 0 < app.sent < 3000
            app.sent = 0
            await pilot.press("escape", "ctrl+l")
            while app.sent < 8000:
                await pilot.pause(0.02)

    asyncio.run(asyncio.wait_for(run(), 60))


def line(*parts):
    return cells(strip_of(*parts))


def strip_of(*parts):
    return Strip([Segment(text, Style.parse(style)) for text, style in parts])


def test_differences_are_spans_of_cells():
    old = line(("abc", "red"), ("d" * 40, "blue"), ("z", ""))
    assert differences(old, line(("abc" + "", "red"), ("d" * 40, "blue"), ("z", ""))) == []
    assert differences(old, line(("axc", "red"), ("d" * 40, "blue"), ("z", ""))) == [(1, 2)]
    assert differences(old, line(("abx", "red"), ("d" * 40, "blue"), ("y", ""))) == [
        (2, 3),
        (43, 44),
    ]
    assert differences(old, line(("abc", "green"), ("dd", "blue"))) == [(0, 44)]
    # those close together are one, and a wide character is two cells
    assert differences(line(("a.b.c", "")), line(("x.b.y", ""))) == [(0, 5)]
    assert differences(line(("中a", "")), line(("中b", ""))) == [(2, 3)]


def test_a_colour_is_sent_when_it_changes():
    pen = Pen(ColorSystem.TRUECOLOR)
    pen.move(3, 1)
    pen.draw(line(("a", "#010203 on #040506"), ("b", "#010203 on #040506"), ("c", "#070809")))
    pen.draw(line(("d", "bold #070809"), ("e", "#070809")))
    assert pen.written() == (
        "\x1b[2;4H\x1b[0;38;2;1;2;3;48;2;4;5;6mab\x1b[38;2;7;8;9;49mc"
        "\x1b[0;1;38;2;7;8;9md\x1b[0;38;2;7;8;9me\x1b[0m"
    )


def test_a_wide_character_is_sent_whole():
    glass, pen = Glass(), Pen(ColorSystem.TRUECOLOR)
    glass.take(0, 0, line(("a中b", "")))
    new = line(("a国b", ""))
    ((begin, end),) = glass.take(0, 0, new)
    pen.draw(new[begin:end])
    assert pen.written() == "\x1b[0m国\x1b[0m"
