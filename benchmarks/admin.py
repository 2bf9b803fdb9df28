"""What the operators' side costs: how soon llmctl answers, how many questions are answered.

The daemon is a real one with a model loaded and nothing else to do.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from benchmarks import stack
from benchmarks.job import process_cpu_s
from benchmarks.measures import Outcome
from benchmarks.rounds import Spread
from benchmarks.stack import Address, BenchmarkError, environment
from llmd.client import Client

NAME = "admin"
_LLMCTL = "import sys; from llmd.ctl import main; sys.exit(main())"
_QUESTION = b'{"type":"status","id":1}\n'


def measure(
    directory: Path, address: Address, *, rounds: int = 0, quick: bool = False
) -> Iterator[Outcome]:
    """Measure both, each as it comes.

    Raises:
        BenchmarkError: It could not be run.
    """
    with stack.start_daemon(directory) as daemon:
        daemon.wait_for(address, "/ready")
        stack.load(daemon, address, stack.SMALL)
        path = str(directory / "run" / "llmd" / "admin.sock")
        yield _llmctl(directory, path, rounds or (5 if quick else 31))
        yield _round_trips(path, daemon.pid, rounds or (3 if quick else 9), 0.3 if quick else 1.0)


def _llmctl(directory: Path, path: str, rounds: int) -> Outcome:
    """Run `llmctl status`, and an interpreter that does nothing, in turns."""
    llmctl = ["-c", _LLMCTL, "--socket", path, "status"]
    cold_ms, _ = _run(directory, llmctl)
    ours, bare = [], []
    for _ in range(rounds):
        ours.append(_run(directory, llmctl))
        bare.append(_run(directory, ["-c", "pass"]))
    wall = Spread.of([wall_ms for wall_ms, _ in ours])
    outcome = Outcome(
        NAME,
        "llmctl status",
        "ms",
        Spread.of([wall_ms for wall_ms, _ in bare]),
        wall,
        wall,
        "ms",
        100.0,
        remark="direct is an interpreter that does nothing",
    )
    outcome.notes["fastest ms"] = min(wall_ms for wall_ms, _ in ours)
    outcome.notes["CPU ms"] = Spread.of([cpu_ms for _, cpu_ms in ours]).median
    outcome.notes["least CPU ms"] = min(cpu_ms for _, cpu_ms in ours)
    outcome.notes["first, compiling all byte code ms"] = cold_ms
    return outcome


def _run(directory: Path, words: list[str]) -> tuple[float, float]:
    """Run Python; return the milliseconds by the clock and of CPU."""
    began = time.perf_counter()
    process = subprocess.Popen(
        [sys.executable, *words],
        env=environment(directory),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
    )
    _, status, used = os.wait4(process.pid, 0)
    wall_ms = 1000 * (time.perf_counter() - began)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise BenchmarkError(f"{' '.join(words[:2])} ended with {process.returncode}")
    return wall_ms, 1000 * (used.ru_utime + used.ru_stime)


def _round_trips(path: str, pid: int, rounds: int, window_s: float) -> Outcome:
    """Ask `status` again and again on one connection, by hand and with the client."""
    by_hand, with_client, cpu_us = [], [], []
    with socket.socket(socket.AF_UNIX) as sock, Client(path) as client:
        sock.connect(path)
        answers = sock.makefile("rb")

        def ask() -> None:
            sock.sendall(_QUESTION)
            if not answers.readline().startswith(b'{"type":"ok"'):
                raise BenchmarkError("status was not answered")

        for _ in range(rounds):
            cpu_s = process_cpu_s(pid)
            count, passed_s = _repeat(ask, window_s)
            by_hand.append(count / passed_s)
            cpu_us.append(1e6 * (process_cpu_s(pid) - cpu_s) / count)
            count, passed_s = _repeat(client.status, window_s)
            with_client.append(count / passed_s)
    rate = Spread.of(by_hand)
    title = "status round trips, one client"
    outcome = Outcome(NAME, title, "/s", None, rate, rate, "/s", 5000.0, at_least=True)
    outcome.notes["most /s"] = max(by_hand)
    outcome.notes["daemon's CPU us/trip"] = Spread.of(cpu_us).median
    outcome.notes["with llmd.client /s"] = Spread.of(with_client).median
    return outcome


def _repeat(ask, window_s: float) -> tuple[int, float]:
    began, count = time.perf_counter(), 0
    while (passed_s := time.perf_counter() - began) < window_s:
        for _ in range(50):
            ask()
        count += 50
    return count, passed_s
