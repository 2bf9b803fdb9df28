"""What /proc tells of a process. Each read is a few microseconds and never blocks on a disk."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

PROC = Path("/proc")
_TICKS_PER_S = os.sysconf("SC_CLK_TCK")
_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")


@dataclass(frozen=True, slots=True)
class VitalSigns:
    """How a process does; all zero once it is gone.

    Attributes:
        cpu_s: CPU time used so far, user and system.
        memory_bytes: Resident memory, mapped model files included.
        io_bytes: Bytes read from and written to storage so far; 0 where that may not be read.
    """

    cpu_s: float = 0.0
    memory_bytes: int = 0
    io_bytes: int = 0


@dataclass(frozen=True, slots=True)
class _Stat:
    state: str
    cpu_ticks: int
    started_ticks: int
    rss_pages: int


def _stat(pid: int, proc: Path) -> _Stat | None:
    try:
        text = (proc / str(pid) / "stat").read_bytes()
    except OSError:
        return None
    # the command name may contain blanks and parentheses: the fields begin after the last one
    fields = text[text.rfind(b")") + 2 :].split()
    return _Stat(
        state=fields[0].decode(),
        cpu_ticks=int(fields[11]) + int(fields[12]),
        started_ticks=int(fields[19]),
        rss_pages=int(fields[21]),
    )


def started_ticks(pid: int, proc: Path = PROC) -> int | None:
    """Return when `pid` started, in clock ticks since boot; None when it does not run.

    With the pid this names one process for as long as the machine is up, which the pid alone
    does not. A zombie counts as not running.
    """
    stat = _stat(pid, proc)
    return None if stat is None or stat.state in "ZX" else stat.started_ticks


def vital_signs(pid: int, proc: Path = PROC) -> VitalSigns:
    """Return how `pid` does."""
    stat = _stat(pid, proc)
    if stat is None:
        return VitalSigns()
    return VitalSigns(
        cpu_s=stat.cpu_ticks / _TICKS_PER_S,
        memory_bytes=stat.rss_pages * _PAGE_BYTES,
        io_bytes=_io_bytes(pid, proc),
    )


def memory_bytes(pid: int, proc: Path = PROC) -> int:
    """Return the resident memory of `pid`; 0 when it does not run."""
    stat = _stat(pid, proc)
    return 0 if stat is None else stat.rss_pages * _PAGE_BYTES


def _io_bytes(pid: int, proc: Path) -> int:
    try:
        lines = (proc / str(pid) / "io").read_bytes().splitlines()
    except OSError:
        return 0
    counts = dict(line.split(b": ", 1) for line in lines)
    return int(counts.get(b"read_bytes", 0)) + int(counts.get(b"write_bytes", 0))


def command_line(pid: int, proc: Path = PROC) -> tuple[bytes, ...]:
    """Return the arguments that `pid` was started with; () when it does not run."""
    try:
        return tuple((proc / str(pid) / "cmdline").read_bytes().split(b"\0")[:-1])
    except OSError:
        return ()


def memory_used_bytes(proc: Path = PROC) -> int:
    """Return how much of the box's main memory is in use by anybody, caches not counted.

    0 where that cannot be read.
    """
    try:
        text = (proc / "meminfo").read_bytes()
    except OSError:
        return 0
    kib = {
        name: int(rest.split()[0])
        for name, _, rest in (line.partition(b":") for line in text.splitlines())
        if name in (b"MemTotal", b"MemAvailable") and rest.split()
    }
    return max(0, kib.get(b"MemTotal", 0) - kib.get(b"MemAvailable", 0)) * 1024
