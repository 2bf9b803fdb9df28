"""Who is calling: the first step of every request, before its body is read."""

from __future__ import annotations

from collections.abc import Callable

import trio

from llmd.api.asgi import Json
from llmd.api.auth import Authenticator, Principal
from llmd.api.origin import TrustedProxies
from llmd.core.lifecycle import Priority
from llmd.errors import InvalidApiKey, InvalidRequest, PermissionDenied

_CLASSES = {priority.value.encode(): priority for priority in Priority}
_TIERS = {"priority": Priority.HIGH, "flex": Priority.LOW}


class Gate:
    """Lets callers in.

    Args:
        authenticator: Knows the keys.
        proxies: Whose word about client addresses is believed.
        on_failure: Told of each key that was refused.
    """

    def __init__(
        self,
        authenticator: Authenticator,
        proxies: TrustedProxies,
        on_failure: Callable[[], None],
    ) -> None:
        self._authenticator = authenticator
        self._proxies = proxies
        self._on_failure = on_failure

    @property
    def open(self) -> bool:
        """True while every caller is an admin because there is no key."""
        return self._authenticator.open

    def open_to(self, scope: Json) -> bool:
        """Tell whether a request needs no key: open mode, and no other site can have sent it."""
        try:
            return self.open and self._authenticator.authenticate(scope["headers"]).anonymous
        except PermissionDenied:
            return False

    def client(self, scope: Json) -> str:
        """Return the client's address, as far as proxies are believed."""
        return self._proxies.client(scope["client"][0], scope["headers"])

    async def admit(self, scope: Json, client: str) -> Principal:
        """Tell who is calling; a wrong key is told so after a while if there were many.

        Raises:
            InvalidApiKey: No key, or a wrong one.
            PermissionDenied: Open mode, and the request may be another site's.
        """
        try:
            return self._authenticator.authenticate(scope["headers"], client)
        except InvalidApiKey:
            self._on_failure()
            delay_s = self._authenticator.delay_s(scope["client"][0], trio.current_time())
            if delay_s > 0:
                await trio.sleep(delay_s)
            raise


def header(scope: Json, name: bytes) -> bytes:
    """Return the first header of that (lower-case) name, or b""."""
    for key, value in scope["headers"]:
        if key == name:
            found: bytes = value
            return found
    return b""


def wanted_priority(scope: Json, service_tier: str | None) -> Priority | None:
    """Return the class that a request asks for; the header goes before `service_tier`.

    Raises:
        InvalidRequest: The header names no class.
    """
    asked = header(scope, b"x-request-priority")
    if asked:
        found = _CLASSES.get(asked.strip().lower())
        if found is None:
            raise InvalidRequest(
                "X-Request-Priority must be high, normal or low", param="X-Request-Priority"
            )
        return found
    return _TIERS.get(service_tier or "")
