"""Endpoints that llmd is to have and has not yet: told so, lest the answer mislead.

Without them `/v1/models/status/stream` would be a model that does not exist, and a client of
`/v1/responses` would look for a mistake of its own.
"""

from __future__ import annotations

from llmd.api.routing import Access, Call, Reply, Route
from llmd.errors import NotSupportedYet

INFERENCE = (
    "/audio/transcriptions",
    "/infill",
    "/rerank",
    "/reranking",
    "/responses",
    "/v1/audio/transcriptions",
    "/v1/messages",
    "/v1/rerank",
    "/v1/reranking",
    "/v1/responses",
)
FOR_KEYS = ("/v1/models/status/stream", "/v1/usage")
FOR_ADMINS = ("/metrics/stream", "/v1/telemetry/summary", "/vram")


async def _later(call: Call) -> Reply:
    raise NotSupportedYet(f"{call.scope['path']} is not supported yet by this version of llmd")


def routes() -> list[Route]:
    """Return this module's part of the table; none of it is documented."""

    def route(method: str, path: str, access: Access) -> Route:
        return Route(method, path, access, _later, "Not supported yet.", "Later")

    return [
        *(route("POST", path, Access.KEY) for path in INFERENCE),
        *(route("GET", path, Access.KEY) for path in FOR_KEYS),
        *(route("GET", path, Access.ADMIN) for path in FOR_ADMINS),
    ]
