"""A relay as a process of its own, whichever program of this package it is."""

from __future__ import annotations

import subprocess
import sys

from benchmarks.stack import ROOT


class RelayProcess:
    """A relay to one Unix socket; a context manager that ends it.

    Args:
        program: The module of this package that is run; it prints its port on loopback first.
        target: The socket.

    Attributes:
        address: Where it listens.
        pid: Its process.
    """

    def __init__(self, program: str, target: str) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", f"benchmarks.{program}", target],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            cwd=ROOT,
        )
        assert self._process.stdout is not None
        self.address = ("127.0.0.1", int(self._process.stdout.readline()))
        self.pid = self._process.pid

    def __enter__(self) -> RelayProcess:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.terminate()
        self._process.wait()
        assert self._process.stdout is not None
        self._process.stdout.close()
