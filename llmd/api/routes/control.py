"""What operators do over HTTP: switch, load, unload and reset models, stop everything.

An action is answered once it is decided on; with `wait` once it is done, or known to fail.
"""

from __future__ import annotations

import logging
from typing import Annotated, Any

import msgspec

from llmd.api.routing import Access, Call, Reply, Route, as_json
from llmd.core.events import SwitchRequested
from llmd.core.record import CancelCause
from llmd.models.catalog import CatalogModel
from llmd.observe.log import log

_log = logging.getLogger(__name__)
Seconds = Annotated[float, msgspec.Meta(ge=0, le=86400)]
_WAIT = {"wait": "1: answer when it is done, and not when it is decided on"}


class Unload(msgspec.Struct, forbid_unknown_fields=True):
    """How a model goes: what runs there may finish, for `drain_sec` at most (0 = no limit)."""

    drain_sec: Seconds | None = None
    force: bool = False
    wait: bool = False


class Eject(Unload, kw_only=True):
    """An unload that names its model in the body."""

    model: str


class Load(msgspec.Struct, forbid_unknown_fields=True):
    """A load beside what is loaded; nothing is evicted for it."""

    wait: bool = False


class Switch(Unload, kw_only=True):
    """A model to load, and what may go for it: `from`, or whatever llmd chooses."""

    model: str
    evict: str | tuple[str, ...] = msgspec.field(name="from", default=())


class Stop(msgspec.Struct, forbid_unknown_fields=True):
    """Everything goes; what runs may finish."""

    wait: bool = False


class Nothing(msgspec.Struct, forbid_unknown_fields=True):
    """No choices."""


# --- loading -------------------------------------------------------------------------------


async def _switch(call: Call) -> Reply:
    form = await call.form(Switch)
    evict = (form.evict,) if isinstance(form.evict, str) else form.evict
    model = call.wanted(form.model, param="model")
    request = SwitchRequested(
        model=model.name,
        evict=tuple(call.model(name, param="from").name for name in evict),
        drain_s=call.services.operations.drain_s(form.drain_sec),
        force=form.force,
    )
    return await _load_by(call, request, model, wait=_wait(call, form.wait))


async def _load(call: Call, model: str) -> Reply:
    form = await call.form(Load)
    wanted = call.wanted(model)
    request = SwitchRequested(model=wanted.name, add=True)
    return await _load_by(call, request, wanted, wait=_wait(call, form.wait))


async def _load_by(
    call: Call, request: SwitchRequested, model: CatalogModel, *, wait: bool
) -> Reply:
    """Have a model loaded, and tell what that means for others."""
    operations = call.services.operations
    plan = operations.switch(request, model)
    _note(call, "load" if request.add else "switch", model=plan.model, evict=",".join(plan.evict))
    if wait:
        await operations.until_loaded(plan.model)
    return as_json(
        {
            "model": plan.model,
            "status": operations.state_of(operations.model(plan.model)),
            "evict": plan.evict,
            "running": plan.drains,
            "queued": plan.queued,
            "load_s": round(plan.load_s, 3),
        }
    )


# --- unloading -----------------------------------------------------------------------------


async def _unload(call: Call, model: str) -> Reply:
    return await _unload_by(call, call.model(model), await call.form(Unload))


async def _eject(call: Call) -> Reply:
    form = await call.form(Eject)
    return await _unload_by(call, call.model(form.model, param="model"), form)


async def _unload_by(call: Call, model: CatalogModel, form: Unload) -> Reply:
    operations = call.services.operations
    running = operations.unload(model.name, drain_s=form.drain_sec, force=form.force)
    _note(call, "unload", model=model.name, running=running)
    if _wait(call, form.wait):
        await operations.until_gone([model.name])
    return as_json({"model": model.name, "status": operations.state_of(model), "running": running})


async def _reset(call: Call, model: str) -> Reply:
    """Forget a model's crashes, and answer once it can be tried again."""
    operations, wanted = call.services.operations, call.model(model)
    await call.form(Nothing)
    await operations.reset(wanted)
    _note(call, "reset", model=wanted.name)
    return as_json({"model": wanted.name, "status": operations.state_of(wanted)})


async def _stop(call: Call) -> Reply:
    """Turn away what is queued and unload everything; the next request loads again."""
    form = await call.form(Stop)
    operations = call.services.operations
    stopped = operations.stop()
    _note(call, "stop", refused=stopped.refused, running=stopped.running)
    if _wait(call, form.wait):
        await operations.until_gone(stopped.unload)
    return as_json(stopped)


# --- requests ------------------------------------------------------------------------------


async def _cancel_all(call: Call) -> Reply:
    await call.form(Nothing)
    handles = call.services.registry.handles()
    _note(call, "cancel all", running=len(handles))
    for handle in handles:
        handle.cancel(CancelCause.OPERATOR, by=f"key {call.principal.name}")
    await call.services.operations.cancel(handles, CancelCause.OPERATOR)
    return as_json({"cancelled": [handle.record.id for handle in handles]})


def _note(call: Call, action: str, **fields: Any) -> None:
    """Log who did what."""
    client = call.services.gate.client(call.scope)
    log(_log, f"operator: {action}", key=call.principal.name, client=client, **fields)


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
