"""All workers of one daemon: one owner task each, and nothing that one could hold up another by."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from functools import partial
from pathlib import Path

import trio

from llmd.core.events import WorkerChanged
from llmd.errors import StartFailed
from llmd.workers.command import WorkerSpec
from llmd.workers.life import Tools
from llmd.workers.process import REAP_S, ProcessLauncher
from llmd.workers.settings import WorkerSettings
from llmd.workers.statistics import WorkerStatistics
from llmd.workers.worker import Worker

_log = logging.getLogger(__name__)


class Supervisor:
    """Starts, finds and stops workers by their model's name.

    A worker is made by the first `start` of its model and kept from then on, for its log and its
    counters. `start`, `drain`, `stop` and `reset` post to the worker's own task and return.

    Args:
        specs: Says how to start a model with at least so much context (0 = as configured);
            raises LlmdError when it cannot be started. Called by workers' tasks; must not block.
        settings: Deadlines and budgets, the same for all.
        on_change: Called synchronously at every move of a worker; must neither block nor raise.
        runtime_dir: For sockets and records; made private to this user when it is missing.
        on_reclaimed: Called with a model and the seconds from a cancel to its slot being free.
        on_progress: Called with a model and how far its load is, 0 to 1; as `on_change`.
        tools: Process launcher and clients; by default the real ones on `runtime_dir`.
    """

    def __init__(
        self,
        *,
        specs: Callable[[str, int], WorkerSpec],
        settings: WorkerSettings,
        on_change: Callable[[WorkerChanged], None],
        runtime_dir: Path,
        on_reclaimed: Callable[[str, float], None] = lambda _model, _seconds: None,
        on_progress: Callable[[str, float], None] = lambda _model, _fraction: None,
        tools: Tools | None = None,
    ) -> None:
        self._specs = specs
        self._settings = settings
        self._on_change = on_change
        self._on_reclaimed = on_reclaimed
        self._on_progress = on_progress
        self._tools = tools or Tools(ProcessLauncher(runtime_dir))
        self._workers: dict[str, Worker] = {}
        self._nursery: trio.Nursery | None = None
        self._closing = False

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Sweep what a killed daemon left, then own every worker's task until cancelled.

        Started once workers can be. Cancelled, it kills and reaps what still runs; `stop_all`
        first is the kind way.
        """
        for swept in await self._tools.launcher.sweep():
            _log.warning("left-over worker of %s (pid %d): %s", swept.model, swept.pid, swept.note)
        async with trio.open_nursery() as self._nursery:
            task_status.started()
            await trio.sleep_forever()

    # --- asking: synchronous, never blocks ------------------------------------------------

    def start(self, model: str, *, context_tokens: int = 0, reason: str = "") -> None:
        """Want `model` up; see `Worker.start`. Ignored once `stop_all` has begun."""
        if not self._closing:
            self._made(model).start(context_tokens=context_tokens, reason=reason)

    def drain(self, model: str) -> None:
        """Take nothing new on `model`; see `Worker.drain`."""
        if (worker := self._workers.get(model)) is not None:
            worker.drain()

    def stop(self, model: str, *, reason: str = "", force: bool = False) -> None:
        """End `model`'s process; see `Worker.stop`."""
        if (worker := self._workers.get(model)) is not None:
            worker.stop(reason=reason, force=force)

    def reset(self, model: str) -> None:
        """Forget `model`'s crashes: `failed` becomes `off`."""
        if (worker := self._workers.get(model)) is not None:
            worker.reset()

    def worker(self, model: str) -> Worker | None:
        """Return the worker of `model`; None when it was never started."""
        return self._workers.get(model)

    def workers(self) -> tuple[Worker, ...]:
        """Return every worker that was ever started, in the order of their first starts."""
        return tuple(self._workers.values())

    def statistics(self) -> tuple[WorkerStatistics, ...]:
        """Return how each worker does, in the order of their first starts."""
        return tuple(worker.statistics() for worker in self._workers.values())

    # --- waiting --------------------------------------------------------------------------

    async def ensure_ready(
        self, model: str, *, context_tokens: int = 0, reason: str = ""
    ) -> Worker:
        """Start `model` if need be, wait until it serves, and return its worker.

        Raises:
            StartFailed: It failed, or was stopped, or everything is being stopped.
        """
        if self._closing:
            raise StartFailed("llmd is shutting down", permanent=False)
        worker = self._made(model)
        await worker.ensure_ready(context_tokens=context_tokens, reason=reason)
        return worker

    async def stop_all(self, deadline: float = math.inf, *, reason: str = "shutdown") -> None:
        """Stop every worker side by side, and start none any more.

        Args:
            deadline: On the trio clock; what has not ended by then is killed. May be past.
            reason: Shown as the reason of their `off`.
        """
        self._closing = True
        for worker in self._workers.values():
            worker.stop(reason=reason)
        with trio.CancelScope(deadline=deadline) as scope:
            await self._all_stopped()
        if scope.cancelled_caught:
            for worker in self._workers.values():
                worker.stop(reason=reason, force=True)
            with trio.move_on_after(REAP_S):
                await self._all_stopped()

    async def _all_stopped(self) -> None:
        for worker in self._workers.values():
            await worker.stopped()

    def _made(self, model: str) -> Worker:
        worker = self._workers.get(model)
        if worker is None:
            assert self._nursery is not None, "start workers while run() runs"
            worker = Worker(
                model,
                spec=partial(self._specs, model),
                settings=self._settings,
                on_change=self._on_change,
                tools=self._tools,
                on_reclaimed=partial(self._on_reclaimed, model),
                on_progress=partial(self._on_progress, model),
                on_remark=partial(_log.warning, "%s: %s", model),
            )
            self._workers[model] = worker
            self._nursery.start_soon(worker.run, name=f"worker {model}")
        return worker
