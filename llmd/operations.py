"""What operators do, by whichever door they come: HTTP and the admin socket share these methods.

Actions are decided at once; who wants to know when they are done waits with the `until_*` methods.
An operation waits for workers' moves, and a wait that is cancelled leaves the action as it is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

import trio

from llmd import errors
from llmd.config.schema import is_hf_reference
from llmd.core.events import SwitchRequested, UnloadRequested
from llmd.core.lifecycle import WorkerState
from llmd.core.policy import ModelStatistics, Plan
from llmd.core.record import CancelCause
from llmd.fleet import Fleet
from llmd.models.live import LiveCatalog
from llmd.models.model import CatalogModel
from llmd.registry import Handle, Registry
from llmd.scheduler import Scheduler
from llmd.workers.supervisor import Supervisor

CANCEL_WAIT_S = 5.0
RESET_WAIT_S = 5.0
_MAY_GO = (WorkerState.STARTING, WorkerState.LOADING, WorkerState.READY, WorkerState.DRAINING)


@dataclass(frozen=True, slots=True)
class Stopped:
    """What a stop hit: models told to go, requests turned away, requests that may finish."""

    unload: tuple[str, ...]
    refused: int
    running: int


@dataclass(frozen=True, slots=True)
class Operations:
    """The actions on models, admission and requests; holds no state of its own.

    Attributes:
        catalog, fleet, registry, scheduler, supervisor: What they act on.
        hf_allow: Patterns of the repositories that may be loaded from without an entry.
        max_drain_s: For who names no time of his own; 0 = let all finish.
        draining: Tells whether the daemon is on its way out.
    """

    catalog: LiveCatalog
    fleet: Fleet
    registry: Registry
    scheduler: Scheduler
    supervisor: Supervisor
    max_drain_s: float
    draining: Callable[[], bool]
    hf_allow: tuple[str, ...]

    # --- looking ----------------------------------------------------------------------------

    def model(self, name: str, *, param: str | None = None) -> CatalogModel:
        """Return the model that was named.

        Raises:
            ModelNotFound: There is none.
        """
        model = self.catalog.resolve(name)
        if model is None:
            raise errors.ModelNotFound(f"the model {name[:200]!r} does not exist", param=param)
        return model

    def wanted(self, name: str, *, param: str | None = None) -> CatalogModel:
        """Return the model that is to be loaded, which may be one of a repository.

        To name a repository changes nothing: it becomes a model of the catalog when it is switched
        to.

        Raises:
            ModelNotFound: There is none of that name, and it is no `REPO:QUANT`.
            PermissionDenied: The repository is not within `llama.hf_allow`.
        """
        known = self.catalog.resolve(name)
        if known is not None:
            return known
        if is_hf_reference(name):
            if ":" not in name:
                raise errors.ModelNotFound(
                    f"the model {name[:200]!r} does not exist; to have it fetched from Hugging "
                    f"Face, name its quantisation, as in {name[:200]}:Q4_K_M",
                    param=param,
                )
            if not any(fnmatchcase(name, pattern) for pattern in self.hf_allow):
                raise errors.PermissionDenied(
                    f"{name[:200]} may not be fetched from Hugging Face: it is not within "
                    "llama.hf_allow",
                    param=param,
                )
            return self.catalog.repository(name)
        return self.model(name, param=param)

    def knows(self, model: CatalogModel) -> bool:
        """Tell whether a model is one of the catalog, and not only what would become one."""
        return self.catalog.resolve(model.name) is not None

    def state_of(self, model: CatalogModel) -> WorkerState:
        """Return what a model's worker is doing; a file that cannot be loaded is `failed`.

        What is decided counts, before the worker's own task has got that far: one that is to start
        by an operator's wish, or has been told to, is `starting`; one that has to go is `draining`
        while requests run there, else `stopping`.
        """
        if model.fault:
            return WorkerState.FAILED
        policy = self.scheduler.state
        known = policy.models.get(model.name)
        leaving = None if known is None else known.leaving
        if self.scheduler.starting(model.name) and (leaving is None or model.name in policy.wants):
            return WorkerState.STARTING
        worker = self.supervisor.worker(model.name)
        state = WorkerState.OFF if worker is None else worker.state
        if leaving is not None and state in _MAY_GO:
            return WorkerState.STOPPING if leaving.stop_sent else WorkerState.DRAINING
        return state

    def status(self, name: str) -> ModelStatistics:
        """Return what runs on a model and what waits for it."""
        return next(m for m in self.scheduler.statistics().models if m.model == name)

    def drain_s(self, asked: float | None) -> float:
        """Return how long what runs may go on: as asked, else as configured; 0 = no limit."""
        return self.max_drain_s if asked is None else asked

    def expect(self, generation: int | None) -> None:
        """Refuse what was decided on an older look.

        Raises:
            Conflict: The generation is another one by now.
        """
        now = self.scheduler.state.generation
        if generation is not None and generation != now:
            raise errors.Conflict(
                f"what is loaded has changed: the generation is {now}, not {generation}; look again"
            )

    # --- loading ----------------------------------------------------------------------------

    def switch(self, request: SwitchRequested, model: CatalogModel | None = None) -> Plan:
        """Have a model loaded, and return what that means for others.

        One of a repository that the catalog has not yet becomes a model of it, for as long as the
        daemon runs and like one of `[[models]]`; its worker fetches it. What is refused does not.

        Args:
            request: What is asked.
            model: As `wanted` returned it; None = the catalog's of that name.

        Raises:
            ShuttingDown: The daemon is on its way out.
            ModelFailed: Its file cannot be loaded.
            Conflict: A model that is to go for it is not loaded; nothing is done.
            InsufficientMemory: It does not fit; nothing is done.
        """
        model = model or self.model(request.model)
        if self.draining():
            raise errors.ShuttingDown("llmd is shutting down", retry_after_s=5.0)
        if model.fault:
            raise errors.ModelFailed(f"{model.name} could not be loaded: {model.fault}")
        plan = self.scheduler.plan(request)
        if plan.not_loaded:
            raise errors.Conflict(
                f"{', '.join(plan.not_loaded)} cannot be unloaded for {model.name}: not loaded",
                param="from",
            )
        if not plan.fits:
            raise errors.InsufficientMemory(
                f"{model.name} cannot be loaded: {plan.reason}", param="model"
            )
        if not self.knows(model):
            added = self.catalog.add_repository(model.hf or model.name)
            self.scheduler.learn(self.fleet.model_info(added))
        self.scheduler.switch(request)
        return plan

    async def until_loaded(self, name: str) -> None:
        """Wait until a model that was switched to serves.

        Raises:
            ModelFailed: It failed to load.
            Conflict: Somebody else has had it unloaded, or something else loaded, since.
        """
        while True:
            statistics = self.scheduler.statistics()
            status = self.status(name)
            if status.state is WorkerState.READY and status.leaving is None:
                return
            if name not in statistics.loaded and not status.wanted:
                if status.state is WorkerState.FAILED:
                    raise self._failed(name)
                raise errors.Conflict(f"{name} was unloaded or displaced before it was ready")
            await self.scheduler.moved()

    def _failed(self, name: str) -> errors.ModelFailed:
        worker = self.supervisor.worker(name)
        if worker is None:
            return errors.ModelFailed(f"{name} could not be loaded")
        now = worker.statistics()
        left_s = now.retry_at - trio.current_time() if now.retry_at else None
        return errors.ModelFailed(f"{name} could not be loaded: {now.reason}", retry_after_s=left_s)

    # --- unloading --------------------------------------------------------------------------

    def unload(self, name: str, *, drain_s: float | None = None, force: bool = False) -> int:
        """Have a model go, and return how many requests run there."""
        running = self.status(name).running
        self.scheduler.unload(UnloadRequested(name, drain_s=self.drain_s(drain_s), force=force))
        return running

    async def until_gone(self, names: Iterable[str]) -> None:
        """Wait until models that were sent away have gone; what waits may load them again."""
        left = set(names)
        while left := {name for name in left if self.status(name).leaving is not None}:
            await self.scheduler.moved()

    async def restart(self, name: str, *, drain_s: float | None, force: bool) -> None:
        """Unload a loaded model and have it loaded again; returns once that is decided.

        Cancelled, the model may be gone and not loaded again, so it belongs in a task that
        outlives who asked for it.

        Raises:
            Conflict: Another model has taken its place meanwhile.
        """
        self.unload(name, drain_s=drain_s, force=force)
        await self.until_gone([name])
        try:
            self.switch(SwitchRequested(name, add=True))
        except errors.InsufficientMemory as error:
            raise errors.Conflict(
                f"{name} was stopped, and its place was taken: {error.message}"
            ) from error

    async def reset(self, model: CatalogModel) -> None:
        """Forget a model's crashes, and return once it can be tried again.

        Raises:
            ModelFailed: Its file cannot be loaded, which no reset changes.
        """
        if model.fault:
            raise errors.ModelFailed(f"{model.name} cannot be loaded: {model.fault}")
        self.supervisor.reset(model.name)
        with trio.move_on_after(RESET_WAIT_S):
            while self.state_of(model) is WorkerState.FAILED:
                await self.scheduler.moved()

    def stop(self) -> Stopped:
        """Turn away what is queued and unload everything; the next request loads again."""
        before = self.scheduler.statistics()
        self.scheduler.stop_all()
        return Stopped(before.loaded, before.queued, before.running)

    # --- requests ---------------------------------------------------------------------------

    async def cancel(self, handles: Sequence[Handle], cause: CancelCause) -> None:
        """End requests, and wait a while until they have ended."""
        for handle in handles:
            handle.cancel(cause)
        with trio.move_on_after(CANCEL_WAIT_S):
            for handle in handles:
                await handle.closed()

    def admit(self, *, is_open: bool, reject_queued: bool = False) -> None:
        """Open or close admission.

        Raises:
            ShuttingDown: The daemon is on its way out, and admission stays closed.
        """
        if self.draining():
            raise errors.ShuttingDown("llmd is shutting down; admission stays closed")
        why = "an operator closed admission while this request was still queued; try again later"
        self.scheduler.admit(is_open=is_open, reject_queued=reject_queued, why=why)
