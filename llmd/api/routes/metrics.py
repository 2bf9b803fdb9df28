"""Numbers: the queue as any key may see it, everything for Prometheus and for operators."""

from __future__ import annotations

import time
from typing import Any

import msgspec
import trio

from llmd import __version__, errors
from llmd.api.gate import header
from llmd.api.routes import health
from llmd.api.routes.models import by_class, load, statuses
from llmd.api.routes.upstream import ask
from llmd.api.routing import Access, Call, Reply, Route, as_json
from llmd.config import Config
from llmd.core.lifecycle import Priority
from llmd.observe.exposition import wants_openmetrics
from llmd.observe.workerseries import MAX_TEXT_BYTES
from llmd.workers.worker import Worker

WORKER_DEADLINE_S = 1.0
"""For a worker's own series; one that is slower is left out of the page, and holds nobody up."""


async def _queue(call: Call) -> Reply:
    """Tell of the queue and of what runs; keys are named to admins only."""
    services = call.services
    now, settings = services.scheduler.statistics(), services.config.queue
    visible = [
        model
        for model in now.models
        if (found := services.catalog.resolve(model.model)) and call.may_use(found)
    ]
    classes = {
        priority.value: sum(model.queued.get(priority, 0) for model in now.models)
        for priority in Priority
    }
    page: dict[str, Any] = {
        "admission_open": now.admission_open,
        "queued": now.queued,
        "queued_by_class": classes,
        "queued_tokens": now.queued_tokens,
        "max_size": settings.max_size,
        "max_tokens": settings.max_tokens,
        "running": now.running,
        "loaded": [model.model for model in visible if model.model in now.loaded],
        "models": {
            model.model: load(model)
            | {"service_s": model.service_s, "load_s": model.load_s or None}
            for model in visible
        },
    }
    if call.principal.admin:
        page["keys"] = {
            key.key: {"queued": key.queued, "running": key.running, "counter": key.counter}
            for key in now.keys
        }
    return as_json(page)


async def _prometheus(call: Call) -> Reply:
    texts: dict[str, bytes] = {}
    async with trio.open_nursery() as nursery:
        for worker in call.services.supervisor.workers():
            if worker.upstream is not None:
                nursery.start_soon(_series, worker, texts)
    accept = header(call.scope, b"accept").decode("latin-1")
    body, kind = call.services.metrics.render(texts, openmetrics=wants_openmetrics(accept))
    return Reply(200, body, ((b"content-type", kind.encode()),))


async def _series(worker: Worker, texts: dict[str, bytes]) -> None:
    try:
        answer = await ask(
            worker, b"GET", b"/metrics", deadline_s=WORKER_DEADLINE_S, limit_bytes=MAX_TEXT_BYTES
        )
    except errors.LlmdError:
        return
    if answer.status == 200:
        texts[worker.model] = answer.body


async def _detailed(call: Call) -> Reply:
    services = call.services
    queue = services.scheduler.statistics()
    word = health.state(services)
    page = {
        "status": word,
        "version": __version__,
        "uptime_s": round(time.time() - services.started_at, 3),
        "preloading": services.preloading,
        "draining": services.draining,
        "admission_open": queue.admission_open,
        "requests": {
            "live": len(services.registry),
            "queued": queue.queued,
            "running": queue.running,
        },
        "queue_by_class": by_class(
            {p: sum(model.queued.get(p, 0) for model in queue.models) for p in Priority}
        ),
        "models": statuses(call),
        "workers": [
            {
                "model": worker.model,
                "pid": worker.pid,
                "starts": dict(worker.starts),
                "exits": dict(worker.exits),
                "last_failure": worker.last_failure,
                "reclaims": msgspec.to_builtins(worker.reclaims),
            }
            for worker in services.supervisor.statistics()
        ],
    }
    return as_json(page, status=200 if word == "ok" else 503)


def routes(config: Config) -> list[Route]:
    """Return this module's part of the table."""
    page = Access.OPEN if config.server.metrics_open else Access.ADMIN
    queue = "What waits and what runs, by model."
    return [
        Route("GET", "/queue/metrics", Access.KEY, _queue, queue, "Numbers"),
        Route("GET", "/v1/queue/stats", Access.KEY, _queue, queue, "Numbers"),
        Route("GET", "/metrics", page, _prometheus, "Everything, for Prometheus.", "Numbers"),
        Route(
            "GET",
            "/health/detailed",
            Access.ADMIN,
            _detailed,
            "Health, workers and queue in one page.",
            "Numbers",
        ),
    ]
