"""What llmd asks a worker before it trusts it, and when it no longer does.

`until_ready` watches a start to its end; `examine` tells a hung worker from a busy one.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Protocol

import trio

from llmd.errors import BadWorkerResponse, WorkerDied, WorkerStalled
from llmd.workers.command import WorkerSpec
from llmd.workers.control import Health, Props, Slot
from llmd.workers.diagnosis import Diagnosis, ExitCause
from llmd.workers.logring import clean
from llmd.workers.process import Child

FIRST_POLL_S = 0.005
LAST_POLL_S = 0.25
_POLL_SHARE = 0.05  # of the time waited so far: a load is seen at most this much late
_MEMORY_STEP_BYTES = 1 << 20
_IO_STEP_BYTES = 1 << 16
_BUSY_SHARE = 0.05  # CPU seconds a second below which nothing is being computed
_PATIENCE = 6  # deadlines missed before a worker is given up in any case
_HEALTH_IDLE = 2  # deadlines that /health may miss without using the CPU


class ControlCalls(Protocol):
    """The part of `Control` that workers use; tests put a fake in its place."""

    async def peer_pid(self) -> int: ...  # noqa: D102  # see Control, for all of these
    async def health(self, timeout_s: float = ...) -> Health: ...  # noqa: D102
    async def props(self, timeout_s: float = ...) -> Props: ...  # noqa: D102
    async def slots(self, timeout_s: float = ...) -> list[Slot]: ...  # noqa: D102
    async def deferred(self, timeout_s: float = ...) -> int: ...  # noqa: D102
    def pin(self, pid: int) -> None: ...  # noqa: D102
    def close(self) -> None: ...  # noqa: D102


@dataclass(frozen=True, slots=True)
class Readiness:
    """What a worker that has become ready is.

    Attributes:
        pid: The process that listens, verified to be our child or of its group.
        slots: Sequences that it decodes side by side, as it says.
        context_tokens: Context of one slot, as it says.
    """

    pid: int
    slots: int
    context_tokens: int


class Unfit(Exception):
    """The worker must not be used; `diagnosis` says why."""

    def __init__(self, diagnosis: Diagnosis) -> None:
        super().__init__(diagnosis.reason)
        self.diagnosis = diagnosis


class _Progress:
    """Tells whether a loading process gets on, by all that it does to the outside."""

    def __init__(self, child: Child) -> None:
        self._child = child
        self._activity = 0
        self._memory_bytes = 0
        self._io_bytes = 0

    def seen(self) -> bool:
        """Return True when anything has moved since the last call."""
        signs, activity = self._child.vital_signs(), self._child.activity
        moved = (
            activity > self._activity
            or signs.memory_bytes >= self._memory_bytes + _MEMORY_STEP_BYTES
            or signs.io_bytes >= self._io_bytes + _IO_STEP_BYTES
        )
        if moved:
            self._activity = activity
            self._memory_bytes = max(self._memory_bytes, signs.memory_bytes)
            self._io_bytes = signs.io_bytes
        return moved


async def until_ready(
    control: ControlCalls,
    child: Child,
    spec: WorkerSpec,
    *,
    progress_timeout_s: float,
    call_timeout_s: float,
    on_loading: Callable[[], None],
    on_progress: Callable[[float], None] = lambda _fraction: None,
) -> Readiness:
    """Wait until the worker serves, and verify what it is.

    Polls at intervals that grow with the time waited, so that a load of 100 ms is seen within
    5 ms and one of a minute costs nothing. Never ends by itself while the process gets on: its
    death is somebody else's to see, who then cancels this.

    Args:
        control: The way to ask it.
        child: Its process.
        spec: What it was started as.
        progress_timeout_s: Silence without any sign of progress that ends the wait; 0 = never.
        call_timeout_s: For each call.
        on_loading: Called once, when it first answers that it loads.
        on_progress: Called with how far the load is, 0 to 1, whenever it has said so anew.

    Raises:
        Unfit: No progress, or not the process or the model that it should be.
    """
    began = progressed = trio.current_time()
    progress, loading, answer = _Progress(child), False, ""
    told: float | None = None
    while True:
        try:
            await _verify_peer(control, child)
            health = await control.health(call_timeout_s)
            if health is Health.READY:
                return await _identify(control, child, spec, call_timeout_s)
        except (WorkerDied, WorkerStalled, BadWorkerResponse) as error:
            health, answer = None, error.message
        now = trio.current_time()
        if health is Health.LOADING:
            answer = "it still says that it loads"
            if not loading:
                loading, progressed = True, now
                on_loading()
        if child.load_fraction is not None and child.load_fraction != told:
            told = child.load_fraction
            on_progress(told)
        if progress.seen():
            progressed = now
        elif progress_timeout_s and now - progressed >= progress_timeout_s:
            reason = f"not ready after {now - began:.0f} s, the last {progress_timeout_s:g} s of "
            reason += f"them without a sign of progress: {answer}"
            raise Unfit(Diagnosis(ExitCause.NOT_READY, reason))
        await trio.sleep(min(max(FIRST_POLL_S, (now - began) * _POLL_SHARE), LAST_POLL_S))


async def _verify_peer(control: ControlCalls, child: Child) -> int:
    """Return the pid behind the socket.

    Raises:
        Unfit: It is neither our child nor one of its group.
    """
    pid = await control.peer_pid()
    if pid != child.pid:
        group = 0
        with contextlib.suppress(OSError):
            group = os.getpgid(pid)
        if group != child.pid:
            reason = f"process {pid} answers on the worker's socket, which is not our {child.pid}"
            raise Unfit(Diagnosis(ExitCause.IDENTITY, reason))
    return pid


async def _identify(
    control: ControlCalls, child: Child, spec: WorkerSpec, timeout_s: float
) -> Readiness:
    try:
        pid = await _verify_peer(control, child)
        control.pin(pid)
        props = await control.props(timeout_s)
    except BadWorkerResponse as error:
        # what answers /health but not /props will do so at every start: a key, a prefix
        raise Unfit(Diagnosis(ExitCause.IDENTITY, error.message, permanent=True)) from error
    wanted = spec.source.path  # "" for a repository, whose file the worker chose itself
    if wanted and not _same_file(props.model_path, wanted):
        reason = f"the worker serves {clean(props.model_path[:200])!r} instead of {wanted}"
        raise Unfit(Diagnosis(ExitCause.IDENTITY, reason, permanent=True))
    return Readiness(pid, props.total_slots, props.context_tokens or spec.context_tokens)


def _same_file(left: str, right: str) -> bool:
    return os.path.normpath(left) == os.path.normpath(right)


async def examine(control: ControlCalls, child: Child, timeout_s: float) -> str:
    """Check a worker that is suspected, or just due; return what is wrong, "" when it is well.

    /health is answered at any time, so silence there is a hang, unless the box is so busy that
    the process merely lacks its share. /slots is answered between batches, so silence there is a
    hang only of a process that computes nothing for longer than a GPU takes over any batch.
    """
    wrong = await _insist(
        control.health, child, timeout_s, idle_limit=_HEALTH_IDLE, busy_is_well=False
    )
    return wrong or await _insist(
        control.slots, child, timeout_s, idle_limit=_PATIENCE, busy_is_well=True
    )


async def _insist(
    ask: Callable[[float], Awaitable[object]],
    child: Child,
    timeout_s: float,
    *,
    idle_limit: int,
    busy_is_well: bool,
) -> str:
    """Ask until there is an answer, or too many deadlines were missed, and say what is wrong."""
    idle = 0
    for _ in range(_PATIENCE):
        cpu_s, asked = child.vital_signs().cpu_s, trio.current_time()
        try:
            await ask(timeout_s)
        except WorkerStalled as error:
            silent = error.message
            used_s = child.vital_signs().cpu_s - cpu_s
            if used_s > _BUSY_SHARE * (trio.current_time() - asked):
                if busy_is_well:
                    return ""
                continue
            idle += 1
            if idle >= idle_limit:
                return f"{silent}, {idle} times, and it computes nothing"
        except WorkerDied as error:
            return error.message
        except BadWorkerResponse:
            return ""  # it answers, though not what it should: not hung
        else:
            return ""
    return f"{silent}, {_PATIENCE} times"
