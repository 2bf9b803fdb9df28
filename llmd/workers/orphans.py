"""Workers left behind by a daemon that was killed: recorded when spawned, swept at the next start.

One small JSON file a worker, beside its socket. Nothing in it is taken on trust: a process is
killed only if its pid, its start time and the socket path in its command line all agree with the
record, and only if the daemon that wrote the record is dead.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import msgspec

from llmd.workers import procfs

MAX_RECORD_BYTES = 65536
_SUFFIX = ".worker.json"

_Pid = Annotated[int, msgspec.Meta(gt=1, lt=1 << 31)]


class WorkerRecord(msgspec.Struct, frozen=True, kw_only=True):
    """What the next daemon must know of a worker, should this one die.

    Attributes:
        model: The model's name, for the log.
        pid: The worker's process, which leads its own group.
        started: Its start time in clock ticks since boot.
        socket: Where it listens, as in its command line.
        daemon_pid: Who supervises it.
        daemon_started: That daemon's start time.
    """

    model: str
    pid: _Pid
    started: int
    socket: str
    daemon_pid: _Pid
    daemon_started: int


@dataclass(frozen=True, slots=True)
class Swept:
    """What became of one record.

    Attributes:
        model: The model's name; "" when the record could not be read.
        pid: The recorded pid; 0 likewise.
        killed: True when the process was a left-over of ours and was killed.
        note: The same for a person.
    """

    model: str
    pid: int
    killed: bool
    note: str


def record_path(socket_path: Path) -> Path:
    """Return where the record of the worker on `socket_path` lies."""
    return socket_path.with_name(socket_path.name + _SUFFIX)


def write_record(model: str, pid: int, socket_path: Path) -> None:
    """Record a worker just spawned; a process that is already gone needs no record.

    Raises:
        OSError: The directory cannot be written.
    """
    started, own = procfs.started_ticks(pid), procfs.started_ticks(os.getpid())
    if started is None or own is None:
        return
    record = WorkerRecord(
        model=model,
        pid=pid,
        started=started,
        socket=str(socket_path),
        daemon_pid=os.getpid(),
        daemon_started=own,
    )
    path = record_path(socket_path)
    fresh = path.with_name(path.name + ".new")
    fresh.unlink(missing_ok=True)
    descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(msgspec.json.encode(record))
    fresh.replace(path)


def remove_record(socket_path: Path) -> None:
    """Forget a worker whose process has ended, and its socket."""
    for path in (record_path(socket_path), socket_path):
        with contextlib.suppress(OSError):
            path.unlink(missing_ok=True)


def owned_by_another(socket_path: Path) -> int:
    """Return the pid of another running daemon that uses this socket path; 0 = none does."""
    record = _read(record_path(socket_path))
    if record is None or record.daemon_pid == os.getpid():
        return 0
    return record.daemon_pid if _daemon_lives(record) else 0


def sweep(runtime_dir: Path, *, kill_wait_s: float = 5.0) -> tuple[Swept, ...]:
    """Kill the workers of dead daemons recorded in `runtime_dir`, and remove what they left.

    Blocks for at most `kill_wait_s` seconds a worker, until its memory is free again: call it in
    a thread.
    """
    return tuple(
        _sweep_one(path, runtime_dir, kill_wait_s)
        for path in sorted(runtime_dir.glob("*" + _SUFFIX))
    )


def _sweep_one(path: Path, runtime_dir: Path, kill_wait_s: float) -> Swept:
    record = _read(path)
    if record is None:
        with contextlib.suppress(OSError):
            path.unlink()
        return Swept("", 0, killed=False, note=f"{path.name} is no record of a worker")
    if record.daemon_pid != os.getpid() and _daemon_lives(record):
        note = f"supervised by another llmd, pid {record.daemon_pid}"
        return Swept(record.model, record.pid, killed=False, note=note)
    killed = _kill(record, kill_wait_s)
    socket_path = Path(record.socket)
    if record_path(socket_path) == path and socket_path.parent == runtime_dir:
        remove_record(socket_path)
    else:
        path.unlink(missing_ok=True)
    note = "killed: its daemon is dead" if killed else "had already ended"
    return Swept(record.model, record.pid, killed=killed, note=note)


def _read(path: Path) -> WorkerRecord | None:
    """Return the record in `path`; None unless it is a small valid file of our own user."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
        with os.fdopen(descriptor, "rb") as file:
            info = os.fstat(descriptor)
            if not stat.S_ISREG(info.st_mode) or info.st_uid != os.geteuid():
                return None
            return msgspec.json.decode(file.read(MAX_RECORD_BYTES), type=WorkerRecord)
    except (OSError, msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None


def _daemon_lives(record: WorkerRecord) -> bool:
    return procfs.started_ticks(record.daemon_pid) == record.daemon_started


def _kill(record: WorkerRecord, wait_s: float) -> bool:
    """Kill the recorded process if it still is that process; True when it was."""
    try:
        # from here on the descriptor names this process, even if its pid were used again
        descriptor = os.pidfd_open(record.pid)
    except OSError:
        return False
    try:
        if procfs.started_ticks(record.pid) != record.started:
            return False
        arguments = procfs.command_line(record.pid)
        if os.fsencode(record.socket) not in arguments:
            return False
        with contextlib.suppress(OSError):
            if os.getpgid(record.pid) == record.pid:
                os.killpg(record.pid, signal.SIGKILL)
        with contextlib.suppress(OSError):
            signal.pidfd_send_signal(descriptor, signal.SIGKILL)
        poller = select.poll()
        poller.register(descriptor, select.POLLIN)
        poller.poll(wait_s * 1000)
        return True
    finally:
        os.close(descriptor)
