"""The scheduler's plan of a switch as operators see it."""

from __future__ import annotations

import trio
from msgspec.structs import replace

from llmd.admin import protocol as p
from llmd.admin.grammar import line_of
from llmd.admin.views import Views
from llmd.core.estimates import drain_left_s
from llmd.core.events import SwitchRequested
from llmd.core.policy import Plan
from llmd.models.model import CatalogModel
from llmd.operations import Operations


def describe_plan(
    views: Views,
    operations: Operations,
    plan: Plan,
    request: SwitchRequested,
    command: p.Switch | p.Load,
    model: CatalogModel,
) -> p.Plan:
    """Return the scheduler's plan with the numbers that make it readable.

    Args:
        views: For what has been measured.
        operations: For what is.
        plan: What the scheduler would do now.
        request: What it was asked.
        command: What the operator asked.
        model: The one to be loaded, which may be none of the catalog yet.
    """
    scheduler = operations.scheduler
    models = {known.model: known for known in scheduler.statistics().models}
    planned = scheduler.state.models.get(plan.model)
    # what the catalog does not have yet is called as whoever acts on this plan has to call it
    name = plan.model if operations.knows(model) else model.hf or plan.model
    beside = scheduler.plan(SwitchRequested(request.model, add=True))
    longest = views.service_p95_s()
    workers = views.worker_statistics(trio.current_time())

    def goes(name: str) -> p.Eviction:
        left_s = drain_left_s(scheduler.state, scheduler.state.models[name], trio.current_time())
        return p.Eviction(
            model=name,
            running=models[name].running,
            queued=sum(models[name].queued.values()),
            memory_bytes=models[name].memory_bytes,
            now_bytes=workers[name].memory_bytes if name in workers else 0,
            service_s=models[name].service_s,
            service_p95_s=longest.get(name),
            left_s=None if left_s is None else round(left_s, 3),
        )

    return p.Plan(
        model=name,
        loaded=plan.loaded,
        fits=plan.fits,
        reason=plan.reason,
        add=plan.add,
        fits_beside=beside.fits,
        evict=tuple(map(goes, plan.evict)),
        going=tuple(map(goes, plan.going)),
        queued=plan.queued.get(plan.model, 0),
        load_s=round(plan.load_s, 3) if plan.load_s or plan.loaded else None,
        load_measured=planned is not None and planned.measured_load,
        drain_s=request.drain_s,
        force=request.force,
        auto_switch=scheduler.state.settings.auto_switch,
        memory_bytes=(planned.memory_bytes or None) if planned is not None else None,
        held_bytes=sum(m.memory_bytes for m in scheduler.state.present.values()),
        now_bytes=sum(worker.memory_bytes for worker in workers.values()),
        limit_bytes=scheduler.state.settings.memory_bytes,
        generation=plan.generation,
        state=operations.state_of(model).value,
        dry_run=isinstance(command, p.Switch) and command.dry_run,
        command=line_of(_to_do(command, name, request, plan.generation)),
    )


def _to_do(
    command: p.Switch | p.Load, name: str, request: SwitchRequested, generation: int
) -> p.Switch | p.Load:
    """Return the command that does what this one asks or only looks at, and no later."""
    if isinstance(command, p.Load):
        return replace(command, model=name, if_gen=generation)
    return replace(command, model=name, evict=request.evict, if_gen=generation, dry_run=False)
