"""Answers to browsers that ask on behalf of other sites (`server.cors_origins`)."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable

from llmd.api.answer import Header
from llmd.api.asgi import App, Json, Receive, Send
from llmd.api.gate import header

_EXPOSED = (
    b"access-control-expose-headers",
    b"retry-after, retry-after-ms, x-request-id, x-should-retry, "
    b"x-ratelimit-limit-requests, x-ratelimit-remaining-requests, x-ratelimit-reset-requests, "
    b"x-ratelimit-limit-tokens, x-ratelimit-remaining-tokens, x-ratelimit-reset-tokens",
)
_METHODS = (b"access-control-allow-methods", b"GET, POST")
_MAX_AGE = (b"access-control-max-age", b"600")
_ORDINARY_NAMES = re.compile(rb"[A-Za-z0-9_, -]{1,2000}")
_VARY = (b"vary", b"Origin")


class Cors:
    """Wraps an application: preflights are answered here, other answers get their headers.

    Keys travel in headers that a page sets itself, never in cookies, so credentials are not
    allowed for any site. A site that is not listed gets no header, and its browser no answer.

    Args:
        app: What is wrapped.
        origins: Which sites may ask; "*" means all.
        fresh_id: Makes the request id of an answer that is given here.
    """

    def __init__(
        self, app: App, origins: Iterable[str], *, fresh_id: Callable[[bytes], str]
    ) -> None:
        self._app = app
        self._origins = frozenset(origin.lower().encode() for origin in origins)
        self._all = b"*" in self._origins
        self._fresh_id = fresh_id

    async def __call__(self, scope: Json, receive: Receive, send: Send) -> None:
        """Serve one request."""
        origin = header(scope, b"origin")
        # a cache must not give one site what another one got, or was not let have
        added: list[Header] = [] if self._all else [_VARY]
        if origin and (self._all or origin.lower() in self._origins):
            added.append((b"access-control-allow-origin", b"*" if self._all else origin))
            if scope["method"] == "OPTIONS" and header(scope, b"access-control-request-method"):
                await self._preflight(scope, send, added)
                return
            added.append(_EXPOSED)

        async def send_on(message: Json) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message["headers"], *added]
            await send(message)

        await self._app(scope, receive, send_on)

    async def _preflight(self, scope: Json, send: Send, allowed: list[Header]) -> None:
        wanted = header(scope, b"access-control-request-headers")
        if _ORDINARY_NAMES.fullmatch(wanted):  # SDKs send many of their own
            allowed.append((b"access-control-allow-headers", wanted))
        request_id = self._fresh_id(header(scope, b"x-request-id")).encode()
        headers = [*allowed, _METHODS, _MAX_AGE, (b"x-request-id", request_id)]
        await send({"type": "http.response.start", "status": 204, "headers": headers})
        await send({"type": "http.response.body", "body": b""})
