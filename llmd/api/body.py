"""Reading a request's body: bounded in size and time, whatever its framing."""

from __future__ import annotations

import math

import trio

from llmd.api.asgi import CONNECTION, MALFORMED, Json, Receive
from llmd.api.connection import Connection
from llmd.errors import InvalidRequest, RequestTooLarge, SlowClient


async def read_body(scope: Json, receive: Receive, *, limit_bytes: int, timeout_s: float) -> bytes:
    """Return the whole body.

    Args:
        scope: The ASGI scope, for the announced length.
        receive: The ASGI channel.
        limit_bytes: The longest body taken, chunked or not; 0 = no limit.
        timeout_s: For the whole body; 0 = no limit.

    Raises:
        InvalidRequest: Its chunks are broken.
        RequestTooLarge: Announced or found to be longer.
        SlowClient: Not complete in time.
    """
    await invite(scope, limit_bytes=limit_bytes)
    connection: Connection = scope["state"][CONNECTION]
    if connection.request_complete:  # nothing is waited for, and a cancel scope is not cheap
        return await _gather(receive, limit_bytes or 1 << 62)
    with trio.move_on_after(timeout_s or math.inf):
        return await _gather(receive, limit_bytes or 1 << 62)
    raise SlowClient(f"the request body was not completed within {timeout_s:g} s")


async def _gather(receive: Receive, limit_bytes: int) -> bytes:
    parts: list[bytes] = []
    size = 0
    while True:
        message = await receive()
        if message.get(MALFORMED):
            raise InvalidRequest("the request body is broken: its chunks are not well formed")
        part = message.get("body", b"")
        size += len(part)
        if size > limit_bytes:
            raise _too_large(limit_bytes)
        parts.append(part)
        if not message.get("more_body"):
            return parts[0] if len(parts) == 2 and not part else b"".join(parts)


async def invite(scope: Json, *, limit_bytes: int) -> None:
    """Have the client send its body, now that it is about to be read.

    Raises:
        RequestTooLarge: It is announced to be longer than `limit_bytes`; 0 = no limit.
    """
    if limit_bytes and _announced_bytes(scope) > limit_bytes:
        raise _too_large(limit_bytes)
    connection: Connection = scope["state"][CONNECTION]
    await connection.invite()


def _announced_bytes(scope: Json) -> int:
    for name, value in scope["headers"]:
        if name == b"content-length":
            return int(value)  # Hypercorn has checked that it is a number
    return 0


def _too_large(limit_bytes: int) -> RequestTooLarge:
    return RequestTooLarge(
        f"the request body is larger than {limit_bytes} bytes; send less, or raise "
        "server.max_body_bytes"
    )
