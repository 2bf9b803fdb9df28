"""The Quart-Trio application for everything but inference, made from the table of routes.

Quart finds the route and carries the body; who is calling is settled before a byte of the body is
taken. Importing Quart takes a third of a second and some megabytes, so only `app.py` imports this
module, in a thread, once it is needed.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable
from typing import Any, cast

import trio
from hypercorn.typing import ASGIReceiveCallable
from quart import Request
from quart import request as current
from quart.wrappers.base import BaseRequestWebsocket
from quart_trio import QuartTrio
from quart_trio.asgi import TrioASGIHTTPConnection
from quart_trio.wrappers import TrioRequest, TrioResponse
from werkzeug.exceptions import HTTPException, MethodNotAllowed
from werkzeug.routing import BaseConverter, MapAdapter

from llmd.api import errors as edge
from llmd.api.asgi import Json
from llmd.api.auth import Principal, require_admin
from llmd.api.body import invite
from llmd.api.gate import header
from llmd.api.routes.ui import ASSET
from llmd.api.routing import Access, Call, Reply, Route
from llmd.api.schema import KINDS
from llmd.api.services import Services
from llmd.errors import LlmdError

_BODILESS = (204, 304)


def build_web(services: Services, routes: Iterable[Route]) -> QuartTrio:
    """Return the application; it keeps nothing but `services` and its routes."""
    app = _Web("llmd", static_folder=None, template_folder=None)
    server = services.config.server
    app.config.update(
        BODY_TIMEOUT=server.body_timeout_sec or None,
        MAX_CONTENT_LENGTH=server.max_body_bytes or None,
        PROVIDE_AUTOMATIC_OPTIONS=False,
        RESPONSE_TIMEOUT=None,  # Quart's own would cut a slow answer without a word
    )
    app.url_map.merge_slashes = False
    app.url_map.converters["asset"] = _AssetName
    for route in routes:
        app.add_url_rule(
            route.path,
            endpoint=f"{route.method} {route.path}",
            view_func=_view(services, route),
            methods=[route.method],
        )
    for path in KINDS:  # POST goes another way; here is only what other methods are told
        app.add_url_rule(path, endpoint=f"POST {path}", view_func=_elsewhere, methods=["POST"])
    app.register_error_handler(Exception, _failed(services))
    return app


class _Request(TrioRequest):
    """A request that remembers its call, and whose body is left with the client at first."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.call: Call | None = None
        self.admitted = trio.Event()


class _Connection(TrioASGIHTTPConnection):
    """Takes messages of the client only once it is known who it is."""

    async def handle_messages(  # type: ignore[override]
        self, nursery: trio.Nursery, request: Request, receive: ASGIReceiveCallable
    ) -> None:
        await cast("_Request", request).admitted.wait()
        await super().handle_messages(nursery, request, receive)


class _Web(QuartTrio):
    asgi_http_class = _Connection
    request_class = _Request

    def create_url_adapter(self, request: BaseRequestWebsocket | None) -> MapAdapter | None:
        """Find routes by path alone: Quart reads the Host header here, and falls over odd ones."""
        if request is None:
            return None
        return self.url_map.bind("llmd", default_method=request.method, path_info=request.path)


class _AssetName(BaseConverter):
    """The names of files that a llama-server's web UI consists of."""

    regex = ASSET
    part_isolating = False


def _view(services: Services, route: Route) -> Callable[..., Awaitable[TrioResponse]]:
    async def view(**parts: Any) -> TrioResponse:
        request = cast("_Request", current._get_current_object())  # type: ignore[attr-defined]
        call = request.call = _call(services, request)
        call.caller = await _admit(services, route.access, cast("Json", request.scope))
        request.admitted.set()
        return _response(await route.handler(call, **parts), call)

    return view


async def _elsewhere() -> TrioResponse:
    raise AssertionError("POST to an inference path never comes here")


def _call(services: Services, request: _Request) -> Call:
    scope = cast("Json", request.scope)

    async def read() -> bytes:
        await invite(scope, limit_bytes=services.config.server.max_body_bytes)
        try:
            return cast("bytes", await request.get_data())
        except HTTPException as error:
            raise edge.translate(error, request.path, "") from error

    return Call(
        services=services,
        scope=scope,
        query=request.args.to_dict(),
        request_id=services.registry.fresh_id(header(scope, b"x-request-id")),
        read=read,
    )


async def _admit(services: Services, access: Access, scope: Json) -> Principal | None:
    if access is Access.OPEN:
        return None
    name = ""
    try:
        principal = await services.gate.admit(scope, services.gate.client(scope))
        name = principal.name
        if access is Access.ADMIN:
            require_admin(principal)
    except LlmdError as refused:
        services.metrics.refused(name, refused.code)  # it has no record that could be counted
        raise
    return principal


def _failed(services: Services) -> Callable[[Exception], Awaitable[TrioResponse]]:
    async def answer(error: Exception) -> TrioResponse:
        request = cast("_Request", current._get_current_object())  # type: ignore[attr-defined]
        call = request.call
        if call is None:  # there is no such route
            call = _call(services, request)
        if isinstance(error, MethodNotAllowed):
            call.headers.append((b"allow", edge.allowed(error).encode()))
        refusal = edge.translate(error, request.path, call.request_id)
        return _response(edge.reply(refusal), call)

    return answer


def _response(reply: Reply, call: Call) -> TrioResponse:
    response = TrioResponse(reply.body, status=reply.status)
    del response.headers["content-type"]  # Quart's guess
    for name, value in (*reply.headers, *call.headers):
        response.headers.add(name.decode("latin-1"), value.decode("latin-1"))
    if reply.status in _BODILESS:
        del response.headers["content-length"]
    response.headers["x-request-id"] = call.request_id
    return response
