"""The types of ASGI, and where a request finds its client's connection."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

Json = dict[str, Any]
Receive = Callable[[], Awaitable[Json]]
Send = Callable[[Json], Awaitable[None]]
App = Callable[[Json, Receive, Send], Awaitable[None]]

CONNECTION = "llmd.connection"  # the key of the Connection in an ASGI scope's state
MALFORMED = "llmd.malformed"  # a true key in a message: the body is broken, this is its end
