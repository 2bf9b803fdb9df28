"""Whether llmd lives, whether it is ready, and what keeps it from that."""

from __future__ import annotations

import msgspec

from llmd import errors
from llmd.api.answer import JSON, error_headers
from llmd.api.routing import Access, Call, Reply, Route
from llmd.api.services import Services
from llmd.core.lifecycle import WorkerState

PATHS = frozenset({"/live", "/ready", "/health"})

_MESSAGES = {
    "loading": "models are being preloaded; requests are admitted and wait",
    "draining": "llmd is shutting down",
    "failed": "no model can be served; GET /v1/models/failed says why",
}
_RETRY_AFTER_S = {"loading": 1.0, "draining": 5.0, "failed": 30.0}


class _NotReady(errors.Unavailable):
    """What goes with a status other than ok."""

    code = "not_ready"


def state(services: Services) -> str:
    """Return `ok`, `loading` (preloading), `draining` or `failed` (no model can be served)."""
    if services.draining:
        return "draining"
    if services.preloading:
        return "loading"
    return "ok" if _any_usable(services) else "failed"


def reply(services: Services, path: str) -> Reply:
    """Return the answer to one of `PATHS`."""
    word = "ok" if path == "/live" else state(services)
    if word == "ok":
        return Reply(200, b'{"status":"ok"}')
    error = _NotReady(_MESSAGES[word], retry_after_s=_RETRY_AFTER_S[word])
    body = msgspec.json.encode({"status": word, **error.body()})
    return Reply(503, body, (JSON, *error_headers(error)))


def _any_usable(services: Services) -> bool:
    for model in services.catalog.models:
        worker = services.supervisor.worker(model.name)
        if not model.fault and (worker is None or worker.state is not WorkerState.FAILED):
            return True
    return False


async def _answer(call: Call) -> Reply:
    return reply(call.services, call.scope["path"])


def routes() -> list[Route]:
    """Return this module's part of the table."""
    return [
        Route("GET", "/live", Access.OPEN, _answer, "200 while the process runs.", "Health"),
        Route(
            "GET",
            "/ready",
            Access.OPEN,
            _answer,
            "200 once requests are served at once; 503 while preloading or draining.",
            "Health",
        ),
        Route(
            "GET",
            "/health",
            Access.OPEN,
            _answer,
            "As /ready; the status is ok, loading, draining or failed.",
            "Health",
        ),
    ]
