"""The ASGI application: inference by its lean way, everything else through Quart.

    build_app(services) -> async (scope, receive, send)

Health checks are answered here too: they come every second, and before Quart is loaded. And what is
no path at all: werkzeug would take `//x` and `x` for `/x`.
"""

from __future__ import annotations

import re
from functools import partial
from typing import cast
from urllib.parse import unquote

import msgspec
import trio

from llmd import errors
from llmd.api.answer import JSON, error_headers
from llmd.api.asgi import App, Json, Receive, Send
from llmd.api.cors import Cors
from llmd.api.gate import header
from llmd.api.inference import Inference
from llmd.api.routes import health
from llmd.api.routing import Reply
from llmd.api.schema import KINDS
from llmd.api.services import Services

_ABSOLUTE = re.compile(rb"https?://[^/?]*(?P<path>/?.*)", re.IGNORECASE | re.DOTALL)


def build_app(services: Services) -> Api:
    """Return the application of one daemon."""
    return Api(services)


class Api:
    """All endpoints of one daemon; holds no state of its own.

    Args:
        services: What they work with.
    """

    def __init__(self, services: Services) -> None:
        self._services = services
        self._inference = Inference(services)
        self._web: App | None = None
        self._loading = trio.Lock()
        self._entry: App = self._serve
        if origins := services.config.server.cors_origins:
            self._entry = Cors(self._serve, origins, fresh_id=services.registry.fresh_id)

    async def __call__(self, scope: Json, receive: Receive, send: Send) -> None:
        """Serve one request."""
        await self._entry(scope, receive, send)

    async def _serve(self, scope: Json, receive: Receive, send: Send) -> None:
        if not scope["path"].startswith("/"):
            scope = in_origin_form(scope)
        path, method = scope["path"], scope["method"]
        if method == "POST" and path in KINDS:
            await self._inference(scope, receive, send)
        elif path in health.PATHS and method in ("GET", "HEAD"):
            await self._reply(scope, send, health.reply(self._services, path))
        elif path.startswith("//") or not path.startswith("/"):
            await self._reply(scope, send, _no_path(path))
        else:
            web = self._web or await self.load()
            await web(scope, receive, send)

    async def _reply(self, scope: Json, send: Send, reply: Reply) -> None:
        request_id = self._services.registry.fresh_id(header(scope, b"x-request-id"))
        headers = [
            *reply.headers,
            (b"content-length", b"%d" % len(reply.body)),
            (b"x-request-id", request_id.encode()),
        ]
        await send({"type": "http.response.start", "status": reply.status, "headers": headers})
        await send({"type": "http.response.body", "body": reply.body})

    async def load(self) -> App:
        """Return the Quart application, made on first use: its import would delay the start."""
        async with self._loading:
            if self._web is None:
                self._web = await trio.to_thread.run_sync(partial(_build_web, self._services))
            return self._web


def in_origin_form(scope: Json) -> Json:
    """Return the scope of a request that names its target in full, as clients ask a proxy.

    Every server has to take that form (RFC 9112, 3.2.2). Whose host is named does not matter here.
    """
    absolute = _ABSOLUTE.fullmatch(scope["raw_path"])
    if absolute is None:
        return scope
    raw_path = absolute["path"] or b"/"
    return {**scope, "raw_path": raw_path, "path": unquote(raw_path.decode("ascii"))}


def _no_path(path: str) -> Reply:
    error = errors.NotFound(f"there is no {path[:200]}")
    return Reply(error.status, msgspec.json.encode(error.body()), (JSON, *error_headers(error)))


def _build_web(services: Services) -> App:
    from llmd.api.routes import all_routes
    from llmd.api.web import build_web

    return cast("App", build_web(services, all_routes(services.config)))
