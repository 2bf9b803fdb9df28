"""The models that there are, and what each is doing, as far as the caller may see them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import trio

from llmd.api.routing import Access, Call, Reply, Route, as_json
from llmd.api.services import Services
from llmd.core.lifecycle import Priority, WorkerState
from llmd.core.policy import ModelStatistics
from llmd.models.catalog import CatalogModel
from llmd.workers.worker import WorkerStatistics

_OWNER = "llmd"
_PROBLEMS = (WorkerState.FAILED, WorkerState.BACKOFF)


# --- the catalog ---------------------------------------------------------------------------


async def _list(call: Call) -> Reply:
    data = [_card(call, model) for model in _visible(call)]
    return as_json({"object": "list", "data": data})


async def _one(call: Call, model: str) -> Reply:
    return as_json(_card(call, call.model(model)))


def _visible(call: Call) -> list[CatalogModel]:
    return [model for model in call.services.catalog.models if call.may_use(model)]


def _card(call: Call, model: CatalogModel) -> dict[str, Any]:
    services, header = call.services, model.header
    return {
        "id": model.name,
        "object": "model",
        "created": int(services.started_at),
        "owned_by": _OWNER,
        "status": services.operations.state_of(model),
        "aliases": model.aliases,
        "meta": {
            "context": services.context_tokens(model) or None,
            "context_trained": header.context_length or None if header else None,
            "parameters": header.parameters or None if header else None,
            "size": model.size_bytes or None,
            "quantisation": header.quantisation or None if header else None,
            "architecture": header.architecture or None if header else None,
            "capabilities": sorted(capability.value for capability in model.capabilities),
        },
    }


# --- what they are doing -------------------------------------------------------------------


async def _statuses(call: Call) -> Reply:
    return as_json({"object": "list", "data": statuses(call)})


async def _status(call: Call, model: str) -> Reply:
    wanted = call.model(model).name
    return as_json(next(status for status in statuses(call) if status["id"] == wanted))


async def _failed(call: Call) -> Reply:
    failed = [status for status in statuses(call) if status["status"] in _PROBLEMS]
    return as_json({"object": "list", "data": failed})


async def _health(call: Call) -> Reply:
    operations = call.services.operations
    states = {model.name: operations.state_of(model) for model in _visible(call)}
    usable = any(state is not WorkerState.FAILED for state in states.values())
    good = all(state not in _PROBLEMS for state in states.values())
    word = "ok" if usable and good else "degraded" if usable else "failed"
    return as_json({"status": word, "models": states})


def statuses(call: Call) -> list[dict[str, Any]]:
    """Return what each model is doing that the caller may use; durations end in `_s`."""
    services = call.services
    queues = {model.model: model for model in services.scheduler.statistics().models}
    workers = {worker.model: worker for worker in services.supervisor.statistics()}
    return [
        _describe(services, model, queues.get(model.name), workers.get(model.name))
        for model in _visible(call)
    ]


def _describe(
    services: Services,
    model: CatalogModel,
    queue: ModelStatistics | None,
    worker: WorkerStatistics | None,
) -> dict[str, Any]:
    now = trio.current_time()
    status: dict[str, Any] = {
        "id": model.name,
        "status": services.operations.state_of(model),
        "reason": model.fault or (worker.reason if worker else ""),
        "since_s": round(now - worker.since, 3) if worker else None,
        "retry_in_s": _left(worker.retry_at, now) if worker else None,
        "context": worker.context_tokens if worker else 0,
        "memory_bytes": worker.memory_bytes if worker else 0,
        "load_s": worker.load_s or None if worker else None,
        "crashes": worker.crashes if worker else 0,
        "pinned": model.config.pinned,
    }
    return status | (load(queue) if queue else {})


def load(queue: ModelStatistics) -> dict[str, Any]:
    """Return what runs on a model and what waits for it."""
    return {
        "slots": queue.slots,
        "slots_busy": queue.slots_busy,
        "running": queue.running,
        "queued": by_class(queue.queued),
        "queued_tokens": queue.queued_tokens,
        "oldest_wait_s": round(queue.oldest_wait_s, 3),
        "leaving": queue.leaving,
        "wanted": queue.wanted,
    }


def by_class(queued: Mapping[Priority, int]) -> dict[str, int]:
    """Return how many wait, by the words of the classes."""
    return {priority.value: count for priority, count in queued.items()}


def _left(moment: float, now: float) -> float | None:
    return round(max(0.0, moment - now), 3) if moment else None


def routes() -> list[Route]:
    """Return this module's part of the table."""

    def get(path: str, handler: Any, summary: str) -> Route:
        return Route("GET", path, Access.KEY, handler, summary, "Models")

    return [
        get("/v1/models", _list, "The models that this key may use, in OpenAI's form."),
        get("/models", _list, "The same as /v1/models."),
        get("/v1/models/<path:model>", _one, "One model; its id may hold slashes."),
        get("/v1/models/status", _statuses, "What each model is doing, and what waits for it."),
        get("/v1/models/failed", _failed, "Models that failed or crash, with the reason."),
        get("/v1/models/<path:model>/status", _status, "What one model is doing."),
        get("/v1/health/models", _health, "The state of every model's worker, in a word each."),
    ]
