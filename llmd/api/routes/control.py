"""What operators do over HTTP: switch, load, unload and reset models, stop everything.

An action is answered once it is decided on; with `wait` once it is done, or known to fail.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated

import msgspec
import trio

from llmd import errors
from llmd.api.routes.models import state_of
from llmd.api.routing import Access, Call, Reply, Route, as_json
from llmd.api.services import Services
from llmd.core.events import SwitchRequested, UnloadRequested
from llmd.core.lifecycle import WorkerState
from llmd.core.policy import ModelStatistics, Plan
from llmd.core.record import CancelCause
from llmd.models.catalog import CatalogModel

Seconds = Annotated[float, msgspec.Meta(ge=0, le=86400)]
_CANCEL_WAIT_S = 5.0
_RESET_WAIT_S = 5.0
_WAIT = {"wait": "1: answer when it is done, and not when it is decided on"}


class Unload(msgspec.Struct):
    """How a model goes: what runs there may finish, for `drain_sec` at most (0 = no limit)."""

    drain_sec: Seconds | None = None
    force: bool = False
    wait: bool = False


class Eject(Unload, kw_only=True):
    """An unload that names its model in the body."""

    model: str


class Load(msgspec.Struct):
    """A load beside what is loaded; nothing is evicted for it."""

    wait: bool = False


class Switch(Unload, kw_only=True):
    """A model to load, and what may go for it: `from`, or whatever llmd chooses."""

    model: str
    evict: str | tuple[str, ...] = msgspec.field(name="from", default=())


class Stop(msgspec.Struct):
    """Everything goes; what runs may finish."""

    wait: bool = False


# --- loading -------------------------------------------------------------------------------


async def _switch(call: Call) -> Reply:
    form = await call.form(Switch)
    evict = (form.evict,) if isinstance(form.evict, str) else form.evict
    request = SwitchRequested(
        model=call.model(form.model, param="model").name,
        evict=tuple(call.model(name, param="from").name for name in evict),
        drain_s=_drain_s(call.services, form),
        force=form.force,
    )
    return await _load_by(call, request, wait=_wait(call, form.wait))


async def _load(call: Call, model: str) -> Reply:
    form = await call.form(Load)
    request = SwitchRequested(model=call.model(model).name, add=True)
    return await _load_by(call, request, wait=_wait(call, form.wait))


async def _load_by(call: Call, request: SwitchRequested, *, wait: bool) -> Reply:
    """Have a model loaded, and tell what that means for others."""
    services = call.services
    model = call.model(request.model)
    if services.draining:
        raise errors.ShuttingDown("llmd is shutting down", retry_after_s=5.0)
    if model.fault:
        raise errors.ModelFailed(f"{model.name} could not be loaded: {model.fault}")
    plan = services.scheduler.plan(request)
    if not plan.fits:
        raise errors.InsufficientMemory(
            f"{model.name} cannot be loaded: {plan.reason}", param="model"
        )
    services.scheduler.switch(request)
    if wait:
        await _until_loaded(services, model)
    return as_json(_planned(services, model, plan))


def _planned(services: Services, model: CatalogModel, plan: Plan) -> dict[str, object]:
    return {
        "model": plan.model,
        "status": state_of(services, model),
        "evict": plan.evict,
        "running": plan.drains,
        "queued": plan.queued,
        "load_s": round(plan.load_s, 3),
    }


async def _until_loaded(services: Services, model: CatalogModel) -> None:
    """Wait until a model that was switched to serves.

    Raises:
        ModelFailed: It failed to load.
        Conflict: Somebody else has had it unloaded, or something else loaded, since.
    """
    while True:
        statistics = services.scheduler.statistics()
        status = _status(services, model.name)
        if status.state is WorkerState.READY and status.leaving is None:
            return
        if model.name not in statistics.loaded and not status.wanted:
            if status.state is WorkerState.FAILED:
                worker = services.supervisor.worker(model.name)
                reason = worker.statistics().reason if worker else ""
                raise errors.ModelFailed(f"{model.name} could not be loaded: {reason}")
            raise errors.Conflict(f"{model.name} was unloaded or displaced before it was ready")
        await services.scheduler.moved()


def _status(services: Services, name: str) -> ModelStatistics:
    return next(m for m in services.scheduler.statistics().models if m.model == name)


# --- unloading -----------------------------------------------------------------------------


async def _unload(call: Call, model: str) -> Reply:
    return await _unload_by(call, call.model(model), await call.form(Unload))


async def _eject(call: Call) -> Reply:
    form = await call.form(Eject)
    return await _unload_by(call, call.model(form.model, param="model"), form)


async def _unload_by(call: Call, model: CatalogModel, form: Unload) -> Reply:
    services = call.services
    running = _status(services, model.name).running
    services.scheduler.unload(
        UnloadRequested(model.name, drain_s=_drain_s(services, form), force=form.force)
    )
    if _wait(call, form.wait):
        await _until(services, lambda: _left(services, model.name))
    return as_json({"model": model.name, "status": state_of(services, model), "running": running})


async def _reset(call: Call, model: str) -> Reply:
    """Forget a model's crashes, and answer once it can be tried again."""
    services, wanted = call.services, call.model(model)
    if wanted.fault:
        raise errors.ModelFailed(f"{wanted.name} cannot be loaded: {wanted.fault}")
    services.supervisor.reset(wanted.name)
    with trio.move_on_after(_RESET_WAIT_S):
        await _until(services, lambda: state_of(services, wanted) is not WorkerState.FAILED)
    return as_json({"model": wanted.name, "status": state_of(services, wanted)})


async def _stop(call: Call) -> Reply:
    """Turn away what is queued and unload everything; the next request loads again."""
    form = await call.form(Stop)
    services = call.services
    before = services.scheduler.statistics()
    services.scheduler.stop_all()
    if _wait(call, form.wait):
        await _until(services, lambda: all(_left(services, name) for name in before.loaded))
    return as_json({"unload": before.loaded, "refused": before.queued, "running": before.running})


def _left(services: Services, name: str) -> bool:
    """Tell whether a model that was sent away has gone; what waits may load it at once again."""
    return _status(services, name).leaving is None


async def _until(services: Services, done: Callable[[], bool]) -> None:
    """Wait for something that some worker's next move brings about."""
    while not done():
        await services.scheduler.moved()


# --- requests ------------------------------------------------------------------------------


async def _cancel_all(call: Call) -> Reply:
    handles = call.services.registry.handles()
    for handle in handles:
        handle.cancel(CancelCause.OPERATOR)
    with trio.move_on_after(_CANCEL_WAIT_S):
        for handle in handles:
            await handle.closed()
    return as_json({"cancelled": [handle.record.id for handle in handles]})


# --- small ---------------------------------------------------------------------------------


def _drain_s(services: Services, form: Unload) -> float:
    asked = form.drain_sec
    return services.config.scheduler.max_drain_sec if asked is None else asked


def _wait(call: Call, asked: bool) -> bool:
    return asked or call.flag("wait")


def routes() -> list[Route]:
    """Return this module's part of the table."""

    def post(path: str, handler: object, summary: str, **more: object) -> Route:
        return Route("POST", path, Access.ADMIN, handler, summary, "Control", **more)  # type: ignore[arg-type]

    model = "/v1/models/<path:model>"
    return [
        post(
            "/switch-model",
            _switch,
            "Load a model, in place of `from` or of what llmd chooses.",
            body=Switch,
            query=_WAIT,
        ),
        post(f"{model}/load", _load, "Load a model beside the others.", body=Load, query=_WAIT),
        post(f"{model}/unload", _unload, "Take a model out of memory.", body=Unload, query=_WAIT),
        post("/v1/models/eject", _eject, "The same, with the model named in the body.", body=Eject),
        post(f"{model}/reset", _reset, "Let a failed model be tried again."),
        post(
            "/stop",
            _stop,
            "Drain and unload everything; what is queued is answered 503.",
            body=Stop,
            query=_WAIT,
        ),
        post("/requests/cancel-all", _cancel_all, "Cancel every request."),
    ]
