"""llmtui in a real terminal: tmux, with a server of its own that ends with the test."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from contextlib import asynccontextmanager
from pathlib import Path

import trio

ROOT = Path(__file__).parents[2]
PROMPT = "at-the-prompt$ "
_FOREIGN = ("TMUX", "TMUX_PANE", "NO_COLOR", "LLMD_SOCKET", "COLORTERM", "TEXTUAL")
_RUN = "import sys; from llmtui.app import main; sys.exit(main())"


class Terminal:
    """A shell in a pane, and what a person does in front of it."""

    def __init__(self, directory: Path) -> None:
        self._tmux = ["tmux", "-u", "-S", str(directory / "tmux.sock"), "-f", "/dev/null"]
        self._env = {k: v for k, v in os.environ.items() if k not in _FOREIGN}
        self._env |= {"LC_ALL": "C.UTF-8", "PS1": PROMPT, "ENV": "", "PYTHONPATH": str(ROOT)}
        self._env |= {"XDG_CONFIG_HOME": str(directory), "TERM": "xterm-256color"}

    async def tmux(self, *words: str) -> str:
        """Run a command of tmux and return what it prints."""
        done = await trio.run_process(
            [*self._tmux, *words], env=self._env, capture_stdout=True, stdin=subprocess.DEVNULL
        )
        return done.stdout.decode()

    async def open(self, columns: int, rows: int) -> None:
        size = ["-x", str(columns), "-y", str(rows)]
        await self.tmux("new-session", "-d", *size, "env", f"PS1={PROMPT}", "sh")
        await self.until(PROMPT.strip())

    async def close(self) -> None:
        await trio.run_process(
            [*self._tmux, "kill-server"], env=self._env, check=False, capture_stderr=True
        )

    # --- doing ------------------------------------------------------------------------------

    async def run(self, *words: str, env: str = "") -> None:
        """Start llmtui from the shell."""
        command = shlex.join([sys.executable, "-c", _RUN, *words])
        await self.type(f"{env} {command}".strip())

    async def type(self, line: str) -> None:
        """Type a line."""
        await self.tmux("send-keys", "-l", line)
        await self.press("Enter")

    async def press(self, *keys: str) -> None:
        """Press keys, as tmux names them."""
        for key in keys:
            await self.tmux("send-keys", key)

    async def leave(self, word: str) -> None:
        """Press escape, and wait until a word of what it closes is gone: keys that follow an
        escape at once would be read as one with it."""
        await self.press("Escape")
        await self.until(gone=word)

    async def resize(self, columns: int, rows: int) -> None:
        await self.tmux("resize-window", "-x", str(columns), "-y", str(rows))

    # --- looking ----------------------------------------------------------------------------

    async def screen(self) -> str:
        """Return what the terminal shows."""
        return await self.tmux("capture-pane", "-p")

    async def until(self, *words: str, gone: str = "") -> str:
        """Wait until every word is on the screen and `gone` is not; return the screen."""
        shown = ""
        try:
            with trio.fail_after(20):
                while True:
                    shown = await self.screen()
                    if all(word in shown for word in words) and not (gone and gone in shown):
                        return shown
                    await trio.sleep(0.05)
        except trio.TooSlowError:
            raise AssertionError(f"no {words} without {gone!r} in:\n{shown}") from None

    async def flag(self, name: str) -> str:
        """Return one of tmux's variables about the pane: `alternate_on`, `cursor_flag` ..."""
        return (await self.tmux("display-message", "-p", f"#{{{name}}}")).strip()

    async def child(self) -> int:
        """Return the process that runs in the shell."""
        shell = await self.flag("pane_pid")
        children = Path(f"/proc/{shell}/task/{shell}/children").read_text().split()
        assert len(children) == 1
        return int(children[0])

    async def row(self, mark: str) -> str:
        """Return the line that begins, within its border, with a mark."""
        for line in (await self.screen()).splitlines():
            if line.lstrip("│| ").startswith(mark):
                return line
        raise AssertionError(f"no line with {mark}")


@asynccontextmanager
async def terminal(directory: Path, columns: int = 120, rows: int = 36):
    """Open a terminal; its tmux server ends with the block, and nothing else does."""
    made = Terminal(directory)
    try:
        await made.open(columns, rows)
        yield made
    finally:
        with trio.CancelScope(shield=True, deadline=trio.current_time() + 5):
            await made.close()
