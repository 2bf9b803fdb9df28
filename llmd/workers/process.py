"""One worker's process: spawned in a session of its own, drained, waited for, ended.

The facts behind it: death is what `wait` says and never the end of a pipe, which a grandchild can
hold open; a pipe that nobody drains stalls the child; and signals go to the whole group, so that
no helper of the worker survives it.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import signal
import subprocess
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Protocol

import trio

from llmd.errors import StartFailed
from llmd.workers import loadreport, orphans, procfs
from llmd.workers.command import WorkerSpec
from llmd.workers.logring import LineSplitter, LogRing, LogStream
from llmd.workers.procfs import VitalSigns

LAST_WORDS_S = 0.5
REAP_S = 5.0
_READ_BYTES = 65536
PIPE_BYTES = 1 << 20
GATHER_S = 0.05
"""Between two reads of a log: a worker writes some thirty lines a request, and each read wakes the
daemon when it has requests to serve. What no read has fetched waits in the pipe, which is made
large enough that the worker never waits for room in it."""


class Child(Protocol):
    """A started process, as the worker sees it; tests put a fake in its place."""

    @property
    def pid(self) -> int:
        """Its process id, which is also its group."""

    @property
    def activity(self) -> int:
        """Bytes of output so far, without those that answer our own polling."""

    @property
    def load_fraction(self) -> float | None:
        """How far its load is, 0 to 1, as it said last; None if it does not say."""

    async def wait(self) -> int:
        """Wait until it is dead and its last words are in the log; return its exit status."""

    def terminate(self) -> None:
        """Ask the group to end; never blocks or raises."""

    def kill(self) -> None:
        """End the group; never blocks or raises."""

    def hold(self, still: bool) -> None:
        """Stop the group where it is, or let it go on; never blocks or raises."""

    def vital_signs(self) -> VitalSigns:
        """Return CPU time, memory and I/O so far."""


class Launcher(Protocol):
    """Starts and forgets processes."""

    async def start(self, spec: WorkerSpec, log: LogRing, nursery: trio.Nursery) -> Child:
        """Start what `spec` says.

        Raises:
            OSError: The binary cannot be executed.
            StartFailed: It must not be started here.
        """

    async def forget(self, spec: WorkerSpec) -> None:
        """Remove what a process that has ended left behind."""

    async def sweep(self) -> tuple[orphans.Swept, ...]:
        """End what a dead daemon left behind."""


class ChildProcess:
    """A real child. Made by `spawn`.

    Args:
        process: Started in its own session, with both outputs piped.
        log: Where its lines go.
    """

    def __init__(self, process: trio.Process, log: LogRing) -> None:
        self._process = process
        self._log = log
        self._undrained = 2
        self._group_ended = False
        self._drained = trio.Event()
        self.activity = 0
        self.load_fraction: float | None = None
        self._stdin: trio.lowlevel.FdStream | None = None
        if process.stdin is not None:
            assert isinstance(process.stdin, trio.lowlevel.FdStream)
            self._stdin = process.stdin

    @property
    def pid(self) -> int:
        """Its process id, which is also its group."""
        return self._process.pid

    async def drain(self, stream: LogStream) -> None:
        """Move one of its outputs into the log until its end; run both as tasks of their own."""
        pipe = self._process.stdout if stream is LogStream.STDOUT else self._process.stderr
        assert isinstance(pipe, trio.lowlevel.FdStream)
        with contextlib.suppress(OSError):  # it may not be allowed: then it stays as it is
            fcntl.fcntl(pipe.fileno(), fcntl.F_SETPIPE_SZ, PIPE_BYTES)
        take = self._take_lines() if stream is LogStream.STDOUT else self._log.feed
        try:
            while data := bytes(await pipe.receive_some(_READ_BYTES)):
                if b"/health" not in data:
                    self.activity += len(data)
                take(stream, data)
                if len(data) < _READ_BYTES:
                    await trio.sleep(GATHER_S)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            pass  # the pipe is gone: its end, as far as the log goes
        finally:
            take(stream, b"\n")  # its last line may have no end
            self._undrained -= 1
            if not self._undrained:
                self._drained.set()
            pipe.close()

    def _take_lines(self) -> Callable[[LogStream, bytes], None]:
        """Take the lines about the load out of what would go into the log."""
        splitter = LineSplitter()

        def take(stream: LogStream, data: bytes) -> None:
            for line in splitter.feed(data):
                if not loadreport.is_report(line):
                    self._log.append(stream, line)
                elif (said := loadreport.fraction(line)) is not None:
                    self.load_fraction = said

        return take

    async def wait(self) -> int:
        """Wait until it is dead and its last words are in the log; return its exit status.

        What is left of its group is killed, and a pipe held open by a stranger is waited for no
        longer than a moment. May be called by several tasks, and cancelled.
        """
        status = await self._process.wait()
        if not self._group_ended:  # only now: later the number may be another group's
            self._group_ended = True
            self._signal(signal.SIGKILL)
            if self._stdin is not None:
                self._stdin.close()
        with trio.move_on_after(LAST_WORDS_S):
            await self._drained.wait()
        return status

    def terminate(self) -> None:
        """Send SIGTERM to the group; a stopped one is continued, or it could not hear it."""
        if self._process.returncode is None:
            if self._stdin is not None:
                with contextlib.suppress(
                    OSError
                ):  # it has gone, or reads nothing: the signal is left
                    os.write(self._stdin.fileno(), loadreport.EXIT_COMMAND)
            self._signal(signal.SIGTERM)
            self._signal(signal.SIGCONT)

    def kill(self) -> None:
        """Send SIGKILL to the group."""
        if self._process.returncode is None:
            self._signal(signal.SIGKILL)

    def hold(self, still: bool) -> None:
        """Send SIGSTOP, or SIGCONT, to the group."""
        if self._process.returncode is None:
            self._signal(signal.SIGSTOP if still else signal.SIGCONT)

    def _signal(self, number: signal.Signals) -> None:
        # ESRCH: nobody is left; EPERM: what is left has changed its user. Neither can be helped.
        with contextlib.suppress(OSError):
            os.killpg(self.pid, number)

    def vital_signs(self) -> VitalSigns:
        """Return CPU time, memory and I/O so far."""
        return procfs.vital_signs(self.pid)


async def spawn(
    argv: Sequence[str],
    env: Mapping[str, str],
    log: LogRing,
    nursery: trio.Nursery,
    *,
    reports: bool = False,
) -> ChildProcess:
    """Start `argv` with exactly `env`, and drain its outputs into `log` by tasks in `nursery`.

    With `reports` its stdin is held open, whose end is its own (see `loadreport.py`): so it does
    not outlive this process, however that ends. The caller owns the child: it must `wait` for it.
    Once started it is returned even if the caller has been cancelled meanwhile, so that nothing is
    lost.

    Raises:
        OSError: It cannot be executed.
    """
    process = await trio.lowlevel.open_process(
        list(argv),
        env=dict(env),
        stdin=subprocess.PIPE if reports else subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )
    child = ChildProcess(process, log)
    nursery.start_soon(child.drain, LogStream.STDOUT)
    nursery.start_soon(child.drain, LogStream.STDERR)
    return child


class ProcessLauncher:
    """Real processes, each recorded in the runtime directory against the death of this daemon.

    Args:
        runtime_dir: Where sockets and records lie; made private to this user when it is missing.
    """

    def __init__(self, runtime_dir: Path) -> None:
        self._runtime_dir = runtime_dir

    async def start(self, spec: WorkerSpec, log: LogRing, nursery: trio.Nursery) -> ChildProcess:
        """Clear the socket path, start the process, record it.

        Raises:
            OSError: The binary cannot be executed, or the directory cannot be written.
            StartFailed: Another daemon uses this socket path.
        """
        await trio.to_thread.run_sync(_clear, spec.socket_path)
        child = await spawn(spec.argv, spec.env, log, nursery, reports=spec.reports)
        try:
            await trio.to_thread.run_sync(
                orphans.write_record, spec.model, child.pid, spec.socket_path
            )
        except BaseException:
            await end(child)
            raise
        return child

    async def forget(self, spec: WorkerSpec) -> None:
        """Remove the socket and the record; not cancellable, and quick."""
        with trio.CancelScope(shield=True):
            await trio.to_thread.run_sync(orphans.remove_record, spec.socket_path)

    async def sweep(self) -> tuple[orphans.Swept, ...]:
        """End what a dead daemon left in the runtime directory; makes the directory."""
        return await trio.to_thread.run_sync(_prepare_and_sweep, self._runtime_dir)


async def end(child: Child) -> None:
    """Kill and reap, whether cancelled or not; gives up on what SIGKILL does not end in time."""
    with trio.move_on_after(REAP_S) as scope:
        scope.shield = True
        child.kill()
        await child.wait()


def _clear(socket_path: Path) -> None:
    other = orphans.owned_by_another(socket_path)
    if other:
        raise StartFailed(
            f"another llmd (pid {other}) runs this model in the same runtime directory",
            permanent=True,
        )
    if socket_path.is_socket():
        socket_path.unlink()


def _prepare_and_sweep(runtime_dir: Path) -> tuple[orphans.Swept, ...]:
    runtime_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    return orphans.sweep(runtime_dir)
