"""What is done before the first frame: what it needs, once."""

from __future__ import annotations

import asyncio
import gc
import subprocess
import sys
from pathlib import Path

import pytest
from textual.css import stylesheet
from tui_box import Box

from llmtui import board
from llmtui.screen import LlmTui

ROOT = Path(__file__).parents[2]


class Frames(LlmTui):
    """Keeps the text of each frame that is drawn."""

    CSS_PATH = ROOT / "llmtui" / "llmtui.tcss"

    def __init__(self, *args, **more):
        super().__init__(*args, **more)
        self.frames = []

    def _display(self, screen, renderable):
        super()._display(screen, renderable)
        if renderable is not None and not self._batch_count:
            lines = screen._compositor.render_strips()
            self.frames.append("\n".join("".join(s.text for s in line) for line in lines))


class Silent(Box):
    """Accepts and says nothing."""

    async def hello(self):
        await asyncio.sleep(3600)


def first_frame(make, colours="dark"):
    """Start the screen; return what it drew first."""

    async def run():
        app = Frames(make, colours=colours)
        async with app.run_test(size=(120, 36)) as pilot:
            while not app.frames:
                await pilot.pause(0.01)
        return app.frames[0]

    return asyncio.run(asyncio.wait_for(run(), 30))


def test_the_first_frame_is_whole(monkeypatch):
    monkeypatch.setattr(board, "_FIRST_S", 20.0)  # however slow this machine is
    text = first_frame(Box)
    for word in ("LIVE", "1 Workers", "2 Requests", "qwen3-32b", "DECODE", " gen ", "quit"):
        assert word in text


def test_a_silent_daemon_is_not_waited_for_long():
    text = first_frame(Silent)
    for word in ("CONNECTING", "1 Workers", "2 Requests", "quit"):
        assert word in text


@pytest.mark.parametrize("colours", ["dark", "light", "ansi"])
def test_styles_are_read_once(colours, monkeypatch):
    read = []

    def parsed(scope, css, read_from, *args, of=stylesheet.parse, **more):
        read.append(read_from)
        return of(scope, css, read_from, *args, **more)

    monkeypatch.setattr(stylesheet, "parse", parsed)
    first_frame(Box, colours)
    assert [path for path, _ in read].count(str(Frames.CSS_PATH)) == 1


def test_windows_are_imported_after_the_board():
    code = (
        "import sys, llmtui.screen, llmtui.keymap\n"
        "found = [n for n in sys.modules if n.startswith('llmtui.screens.')]\n"
        "found += [n for n in ('tomllib', 'tomli') if n in sys.modules]\n"
        "print(*sorted(found))\n"
        "from llmtui import screens\n"
        "print(*[getattr(screens, name).__name__ for name in screens.WINDOWS])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    first, all_of_them = done.stdout.splitlines()
    assert first == "llmtui.screens.desk llmtui.screens.flow", done
    assert {"Help", "Logs", "Switch"} < set(all_of_them.split())


def test_garbage_is_looked_for_again_once_the_first_frame_stands():
    assert gc.isenabled()
    gc.disable()
    try:
        first_frame(Box)
        assert gc.isenabled()
        assert gc.get_freeze_count() > 10_000
    finally:
        gc.unfreeze()
        gc.enable()


def test_there_is_no_window_of_another_name():
    with pytest.raises(ImportError):
        exec("from llmtui.screens import Door")  # noqa: S102
