"""What the operators' screen costs: llmtui on a pty, fed by a box that is only told of.

CPU and memory are the kernel's word about llmtui's process; bytes are those that came out of the
terminal's other end. Nothing draws them: a terminal's own cost is not measured.
"""

from __future__ import annotations

import fcntl
import os
import pty
import re
import select
import signal
import statistics
import struct
import subprocess
import sys
import tempfile
import termios
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from benchmarks.job import process_cpu_s
from benchmarks.measures import Outcome, Yardstick
from benchmarks.rounds import Spread
from benchmarks.stack import ROOT, BenchmarkError, environment

NAME = "tui"
COLUMNS, ROWS = 120, 36
REQUESTS = 1000
HOUR_EVENTS = 36_000  # at ten a second
IMPORT_S = 0.16  # of textual, where the budgets were set
_PATIENCE_S = 30.0
_SETTLE_S = 3.0  # after a start, until what a start leaves behind is done
_COMPLETE = ("LIVE", "Workers", "Requests", "qwen3-32b-q4", "t/s", "quit")
_ESCAPES = re.compile(rb"\x1b(?:\[[0-?]*[ -/]*[@-~]|[\]P_].*?(?:\x07|\x1b\\)|[@-Z\\^=>78])", re.S)


class Screen:
    """llmtui on a pty of its own; a context manager that ends it.

    Args:
        words: Of its command line.
        directory: For what it would find of its user's.
    """

    def __init__(self, words: list[str], directory: Path) -> None:
        self._ours, theirs = pty.openpty()
        fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("4H", ROWS, COLUMNS, 0, 0))
        env = environment(directory) | {
            "TERM": "xterm-256color",
            "COLORTERM": "truecolor",
            "LC_ALL": "C.UTF-8",
            "XDG_CONFIG_HOME": str(directory),
        }
        env.pop("NO_COLOR", None)
        code = "import sys; from llmtui.app import main; sys.exit(main())"
        self.started_at = time.perf_counter()
        self._process = subprocess.Popen(
            [sys.executable, "-c", code, *words],
            stdin=theirs, stdout=theirs, stderr=theirs, env=env, start_new_session=True,
        )  # fmt: skip
        os.close(theirs)
        self.pid = self._process.pid
        self.bytes = 0
        self._tail = b""

    def read(self, seconds: float) -> bool:
        """Take what comes, for at most this long; return whether something did."""
        if not select.select([self._ours], [], [], max(0.0, seconds))[0]:
            return False
        try:
            data = os.read(self._ours, 1 << 16)
        except OSError as error:
            raise BenchmarkError(f"llmtui ended: {self.text()[-2000:]}") from error
        self.bytes += len(data)
        self._tail = (self._tail + data)[-200_000:]
        return True

    def watch(self, seconds: float) -> None:
        """Take what comes for this long."""
        until = time.perf_counter() + seconds
        while (left := until - time.perf_counter()) > 0:
            self.read(left)

    def text(self) -> str:
        """Return the text of the last that came, without escapes."""
        return _ESCAPES.sub(b"", self._tail).decode(errors="replace")

    def until_complete(self) -> float:
        """Wait for a whole frame with data on it; return the seconds since the start.

        Raises:
            BenchmarkError: None came.
        """
        while time.perf_counter() - self.started_at < _PATIENCE_S:
            if not self.read(_PATIENCE_S):
                break
            at = time.perf_counter()
            if all(word in self.text() for word in _COMPLETE):
                return at - self.started_at
        raise BenchmarkError(f"llmtui drew no whole frame: {self.text()[-2000:]}")

    def cpu_s(self) -> float:
        """Return the CPU that it has used."""
        return process_cpu_s(self.pid)

    def resident_bytes(self) -> int:
        """Return VmRSS."""
        status = Path(f"/proc/{self.pid}/status").read_text()
        return int(status.partition("VmRSS:")[2].split()[0]) * 1024

    def __enter__(self) -> Screen:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.send_signal(signal.SIGTERM)
        until = time.perf_counter() + 5
        try:
            while self._process.poll() is None and time.perf_counter() < until:
                self.read(0.1)
        except BenchmarkError:
            pass  # it hung up, as it was told to
        self._process.kill()
        self._process.wait()
        os.close(self._ours)


@contextmanager
def _fed(directory: Path, *words: str) -> Iterator[tuple[subprocess.Popen[bytes], Path]]:
    """Run a box to look at; yield its process and its socket."""
    with tempfile.TemporaryDirectory(prefix="llmd-bench-") as name:
        path = Path(name) / "admin.sock"  # of its own: a socket's path must be short
        feed = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.tui_feed", str(path), *words],
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, env=environment(directory), cwd=ROOT,
        )  # fmt: skip
        try:
            until = time.perf_counter() + _PATIENCE_S
            while not path.exists():
                if feed.poll() is not None or time.perf_counter() > until:
                    raise BenchmarkError("the box to look at did not start")
                time.sleep(0.01)
            yield feed, path
        finally:
            feed.terminate()
            feed.wait()


def measure(directory: Path, *, rounds: int = 0, quick: bool = False) -> Iterator[Outcome]:
    """Measure the budgets of the screen, each as it comes.

    Raises:
        BenchmarkError: It could not be run.
    """
    directory.mkdir(exist_ok=True)
    yield _first_paint(directory, rounds or (3 if quick else 9))
    yield from _share(directory, "idle", 1.0, 5.0 if quick else 20.0, "--requests=12", "--per-s=0")
    yield from _share(directory, "busy", 10.0, 5.0 if quick else 20.0, f"--requests={REQUESTS}")
    yield _hour(directory, HOUR_EVENTS // (20 if quick else 1))


def _import_s(directory: Path) -> float:
    """Return how long the import of textual takes here, as a start of llmtui has to wait for."""
    code = "import time; began = time.perf_counter(); import textual.app"
    done = subprocess.run(
        [sys.executable, "-c", f"{code}; print(time.perf_counter() - began)"],
        env=environment(directory), stdin=subprocess.DEVNULL, capture_output=True, check=True,
    )  # fmt: skip
    return float(done.stdout)


def _weigh(outcome: Outcome, imports_s: list[float]) -> None:
    """Have the report say what the budget means on a machine that imports textual so fast."""
    here = Spread.of(imports_s)
    outcome.yardstick = Yardstick("the import of textual", "s", here, IMPORT_S)


def _first_paint(directory: Path, rounds: int) -> Outcome:
    seconds, cpu, imports = [], [], []
    with _fed(directory, "--requests=40") as (_, path):
        with Screen(["--socket", str(path)], directory) as screen:
            cold_s = screen.until_complete()
        for _ in range(rounds):
            with Screen(["--socket", str(path)], directory) as screen:
                seconds.append(screen.until_complete())
                cpu.append(screen.cpu_s())
            imports.append(_import_s(directory))
    spread = Spread.of(seconds)
    outcome = _outcome("first paint", "s", spread, 0.5)
    _weigh(outcome, imports)
    outcome.notes["CPU s"] = statistics.median(cpu)
    outcome.notes["fastest s"] = min(seconds)
    outcome.notes["first start, compiling all byte code s"] = cold_s
    return outcome


def _share(
    directory: Path, name: str, target: float, window_s: float, *words: str
) -> Iterator[Outcome]:
    """Measure the share of a core, and of the terminal's line, that a box like this takes."""
    shares, rates, imports = [], [], [_import_s(directory)]
    with _fed(directory, *words) as (_, path), Screen(["--socket", str(path)], directory) as screen:
        screen.until_complete()
        screen.watch(_SETTLE_S)
        for _ in range(5):
            cpu, sent, at = screen.cpu_s(), screen.bytes, time.perf_counter()
            screen.watch(window_s / 5)
            passed = time.perf_counter() - at
            shares.append(100 * (screen.cpu_s() - cpu) / passed)
            rates.append((screen.bytes - sent) / passed / 1000)
        resident = screen.resident_bytes()
    imports += [_import_s(directory) for _ in range(2)]
    share = _outcome(f"{name}: share of a core", "%", Spread.of(shares), target)
    _weigh(share, imports)
    share.notes["resident MB"] = resident / 1e6
    yield share
    limit = 40.0 if name == "busy" else None
    yield _outcome(f"{name}: to the terminal", "kB/s", Spread.of(rates), limit)


def _hour(directory: Path, events: int) -> Outcome:
    """Tell it an hour's events as fast as it takes them; return what it holds then."""
    words = (f"--requests={REQUESTS}", f"--flood={events}")
    with (
        _fed(directory, *words) as (feed, path),
        Screen(["--socket", str(path)], directory) as screen,
    ):
        screen.until_complete()
        before, cpu = screen.resident_bytes(), screen.cpu_s()
        assert feed.stdout is not None
        while not select.select([feed.stdout], [], [], 0)[0]:
            screen.watch(0.2)
        screen.watch(_SETTLE_S)
        found = Spread.of([screen.resident_bytes() / 1e6])
        outcome = _outcome(f"memory after {events:,} events", "MB", found, 80.0)
        outcome.notes["at the first frame MB"] = before / 1e6
        outcome.notes["CPU us/event"] = 1e6 * (screen.cpu_s() - cpu) / events
    return outcome


def _outcome(title: str, unit: str, value: Spread, target: float | None) -> Outcome:
    return Outcome(NAME, f"llmtui, {title}", unit, None, value, value, unit, target)
