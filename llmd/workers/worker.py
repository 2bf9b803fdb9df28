"""One model's worker as the rest of llmd sees it: what can be asked of it, waited for and read.

`start`, `drain`, `stop`, `reset`, `suspect` and `reclaim` post a message and return at once; the
worker's own task (`owner.py`) does the rest.
"""

from __future__ import annotations

from collections.abc import Callable

import trio

from llmd.core.events import WorkerChanged
from llmd.core.lifecycle import WorkerState
from llmd.errors import StartFailed
from llmd.workers.command import WorkerSpec
from llmd.workers.diagnosis import Diagnosis
from llmd.workers.life import Tools
from llmd.workers.logring import LogRing
from llmd.workers.mailbox import Drain, Reset, Start, Stop, Suspect, Waiter
from llmd.workers.owner import SERVING, Owner
from llmd.workers.reclaim import Work
from llmd.workers.settings import WorkerSettings
from llmd.workers.statistics import WorkerStatistics
from llmd.workers.upstream import Upstream

__all__ = ["Worker", "WorkerStatistics"]


class Worker:
    """One model's llama-server, over all of its processes.

    Args:
        model: The model's name.
        spec: Says how to start it with at least so many tokens of context (0 = as configured);
            raises LlmdError when it cannot be started at all.
        settings: Deadlines and budgets.
        on_change: Called synchronously at every move; must neither block nor raise.
        tools: Process launcher and clients.
        on_reclaimed: Called with the seconds from a cancel to its slot being free.
        on_progress: Called with how far its load is, 0 to 1, as it says; as `on_change`.
        on_remark: Called with a sentence for the operator's log.

    `run` must be running for anything to happen. Cancelled, it kills its process and reaps it.

    Attributes:
        model: The model's name.
    """

    def __init__(
        self,
        model: str,
        *,
        spec: Callable[[int], WorkerSpec],
        settings: WorkerSettings,
        on_change: Callable[[WorkerChanged], None],
        tools: Tools,
        on_reclaimed: Callable[[float], None] = lambda _seconds: None,
        on_progress: Callable[[float], None] = lambda _fraction: None,
        on_remark: Callable[[str], None] = lambda _text: None,
    ) -> None:
        self.model = model
        self._owner = Owner(
            model,
            spec=spec,
            settings=settings,
            on_change=on_change,
            tools=tools,
            on_reclaimed=on_reclaimed,
            on_progress=on_progress,
            on_remark=on_remark,
        )

    @property
    def state(self) -> WorkerState:
        """What it is doing."""
        return self._owner.state

    @property
    def upstream(self) -> Upstream | None:
        """The way for inference while it is ready or draining, else None.

        Closed when it leaves that, which breaks what still runs through it.
        """
        return self._owner.upstream

    @property
    def slots(self) -> int:
        """Sequences that it decodes side by side while it serves, else 0."""
        return self._owner.slots

    @property
    def context_tokens(self) -> int:
        """Context of one slot while it serves, else 0."""
        return self._owner.context_tokens

    @property
    def log(self) -> LogRing:
        """Its output, over all of its processes."""
        return self._owner.log

    @property
    def spec(self) -> WorkerSpec | None:
        """How its last process was started; None before the first."""
        return self._owner.spec

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Own the worker until cancelled."""
        await self._owner.run(task_status=task_status)

    # --- asking it: synchronous, never blocks ---------------------------------------------

    def start(self, *, context_tokens: int = 0, reason: str = "") -> None:
        """Want it up. Undoes a drain; while it stops, it starts again afterwards.

        Args:
            context_tokens: At least this much context for one sequence; 0 = as configured.
            reason: For `llmd_worker_starts_total`; one of few words.
        """
        self._owner.inbox.post(Start(context_tokens, reason))

    def drain(self) -> None:
        """Take nothing new; what runs goes on. Only a worker that is ready can drain."""
        self._owner.inbox.post(Drain())

    def stop(self, *, reason: str = "", force: bool = False) -> None:
        """End it: SIGTERM, and SIGKILL after `stop_timeout_s`, or at once with `force`."""
        self._owner.inbox.post(Stop(reason, force))

    def reset(self) -> None:
        """Forget its crashes; `failed` becomes `off`, a `backoff` ends now."""
        self._owner.inbox.post(Reset())

    def suspect(self, reason: str) -> None:
        """Have it checked now, as a request saw it stall; a hung one is killed and restarted."""
        self._owner.inbox.post(Suspect(reason))

    def reclaim(
        self, expected_busy: Callable[[], int], cause: str, work: Work = Work.STREAM
    ) -> None:
        """Check that a request just cancelled frees its slot; see `SlotWatcher.cancelled`."""
        if self.state in SERVING:
            self._owner.watcher.cancelled(expected_busy, cause, work)

    # --- waiting for it -------------------------------------------------------------------

    async def ensure_ready(self, *, context_tokens: int = 0, reason: str = "") -> None:
        """Start it if need be and wait until it serves; through backoffs, if any.

        Cancelled, the worker goes on loading.

        Raises:
            StartFailed: It failed or was stopped; the message says why.
        """
        if self._owner.over:
            raise StartFailed("llmd is shutting down", permanent=False)
        waiter = Waiter()
        self._owner.inbox.post(Start(context_tokens, reason, waiter))
        await waiter.done.wait()
        if waiter.error is not None:
            raise waiter.error

    async def moved(self) -> None:
        """Wait until it moves, or until `run` has ended."""
        await self._owner.moved.wait()

    async def stopped(self) -> None:
        """Wait until it has no process and nothing that it was asked is left to do."""
        while not self._owner.over and not self._owner.settled:
            await self._owner.moved.wait()

    def statistics(self) -> WorkerStatistics:
        """Return how it does; reads its memory from /proc."""
        owner, history = self._owner, self._owner.history
        return WorkerStatistics(
            model=self.model,
            state=owner.state,
            since=owner.since,
            reason=owner.reason,
            retry_at=owner.retry_at,
            pid=owner.life.pid if owner.life else 0,
            slots=owner.slots,
            context_tokens=owner.context_tokens,
            ready_at=owner.ready_at,
            load_s=owner.load_s,
            memory_bytes=owner.memory_bytes(),
            starts=dict(history.starts),
            exits=dict(history.exits),
            crashes=history.crashes,
            crashes_counted=history.budget.spent(trio.current_time()),
            last_failure=history.last_failure,
            load_fraction=owner.load_fraction(),
            reclaims=owner.watcher.statistics(),
            log_sequence=owner.log.sequence,
        )

    def end_of(self, pid: int) -> Diagnosis | None:
        """Return how process `pid` ended; None while it lives, or when another ended since."""
        return self._owner.history.end if pid and self._owner.history.ended_pid == pid else None

    def __repr__(self) -> str:
        return f"<Worker {self.model} {self.state.value}>"
