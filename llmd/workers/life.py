"""One process of a worker, from its start to its end, and the tasks that watch it.

The watchers decide nothing: they post what they found to the worker's owner, with the number of
this life, so that findings about a process that is history are dropped.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import trio

from llmd.workers import probes
from llmd.workers.command import WorkerSpec
from llmd.workers.control import Control
from llmd.workers.diagnosis import Diagnosis, ExitCause
from llmd.workers.mailbox import Advanced, Answers, Exited, Failing, Mailbox, Ready, Start
from llmd.workers.process import Child, Launcher, end
from llmd.workers.settings import WorkerSettings
from llmd.workers.upstream import Upstream

_DEATH_GRACE_S = 0.25


@dataclass(frozen=True)
class Tools:
    """What a worker is made of; tests put fakes here.

    Attributes:
        launcher: Starts processes.
        control: Makes the control client for a socket.
        upstream: Makes the inference client for a socket and the process behind it.
    """

    launcher: Launcher
    control: Callable[[Path], probes.ControlCalls] = Control
    upstream: Callable[[Path, int], Upstream] = Upstream


@dataclass
class Life:
    """What belongs to one process. The worker's owner makes, reads and changes it.

    Attributes:
        number: From 1, for the findings about it.
        spec: How it was started.
        child: The process.
        control: The control calls to it.
        nursery: Of everything that watches it.
        inbox: Where the watchers post.
        settings: Deadlines.
        started_at: When it was started.
        first_line: Number of the log's newest line before it.
        pid: Who listens on its socket; the child until it is known better.
        was_ready: It has served.
        stop_reason: Why it was told to end.
        urge_at: When to tell it to end again.
        kill_at: When to kill it.
        again: A start that was asked for while it was ending.
    """

    number: int
    spec: WorkerSpec
    child: Child
    control: probes.ControlCalls
    nursery: trio.Nursery
    inbox: Mailbox
    settings: WorkerSettings
    started_at: float
    first_line: int
    pid: int
    was_ready: bool = False
    stop_reason: str = ""
    urge_at: float = math.inf
    kill_at: float = math.inf
    again: Start | None = None
    _checking: bool = False

    async def watch_death(self) -> None:
        """Post its end."""
        self.inbox.post(Exited(self.number, await self.child.wait()))

    async def watch_start(self) -> None:
        """Post that it loads, that it serves, or why it must not."""
        try:
            readiness = await probes.until_ready(
                self.control,
                self.child,
                self.spec,
                progress_timeout_s=self.settings.startup_timeout_s,
                call_timeout_s=self.settings.check_timeout_s,
                on_loading=lambda: self.inbox.post(Answers(self.number)),
                on_progress=lambda done: self.inbox.post(Advanced(self.number, done)),
            )
        except probes.Unfit as unfit:
            self.fail(unfit.diagnosis)
        else:
            self.inbox.post(Ready(self.number, readiness))

    async def watch_health(self) -> None:
        """Check it every now and then."""
        while self.settings.health_interval_s:
            await trio.sleep(self.settings.health_interval_s)
            await self.check("health check")

    async def check(self, occasion: str) -> None:
        """Check it now, unless that is being done; post it if it hangs."""
        if self._checking:
            return
        self._checking = True
        wrong = await probes.examine(self.control, self.child, self.settings.check_timeout_s)
        if wrong:
            with trio.move_on_after(_DEATH_GRACE_S) as scope:
                await self.child.wait()  # it may just be dying: then its exit says more
            if scope.cancelled_caught:
                text = f"the worker hangs: {wrong} ({occasion})"
                self.fail(Diagnosis(ExitCause.HUNG, text))
        self._checking = False

    def fail(self, diagnosis: Diagnosis) -> None:
        """Post that it must be ended."""
        self.inbox.post(Failing(self.number, diagnosis))

    async def bury(self, launcher: Launcher) -> None:
        """End what is left of it, whether cancelled or not, and what it leaves behind."""
        self.nursery.cancel_scope.cancel()
        await end(self.child)
        self.control.close()
        await launcher.forget(self.spec)
