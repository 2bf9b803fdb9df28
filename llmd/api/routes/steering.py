"""Steering a completion that runs: `/v1/chat/completions/control`, for its owner only.

The worker knows the completion by the id that its answer carries, and the record of the request
knows whose that is. Nothing is ever loaded for it: what does not run cannot be steered.
"""

from __future__ import annotations

from typing import Annotated

import msgspec
import trio

from llmd import errors
from llmd.api.routes.helpers import accounted, charge
from llmd.api.routes.upstream import ask, reply_of
from llmd.api.routing import Access, Call, Reply, Route, as_json, decode
from llmd.api.tidings import MAX_ID_CHARS
from llmd.core.record import RequestRecord
from llmd.registry import Handle

PATH = "/v1/chat/completions/control"
_DEADLINE_S = 10.0
_OVER = {"success": False, "message": "no active completion for this id"}  # llama-server's words


class Control(msgspec.Struct):
    """What is to happen to which completion: llama-server knows the action `reasoning_end`."""

    id: Annotated[str, msgspec.Meta(min_length=1, max_length=MAX_ID_CHARS)]
    action: str
    model: str | None = None


async def _control(call: Call) -> Reply:
    return await accounted(call, _way)


async def _way(call: Call, handle: Handle) -> Reply:
    body = await call.read()
    handle.record.request_bytes = len(body)
    form = decode(body, Control)
    charge(call, handle)
    wanted = _owned(call, form)
    handle.record.model = wanted.model
    worker = call.services.serving(wanted.model)
    if wanted.ended or worker is None:
        return as_json(_OVER)
    handle.record.grant(trio.current_time())
    answer = await ask(
        worker,
        b"POST",
        PATH.encode(),
        body,
        deadline_s=_DEADLINE_S,
        headers=((b"Content-Type", b"application/json"),),
    )
    return reply_of(answer)


def _owned(call: Call, form: Control) -> RequestRecord:
    """Return the record of the caller's own completion.

    Raises:
        RequestNotFound: There is none of that id, or none that the caller may know of.
        PermissionDenied: An admin asks, to whom it does not belong.
    """
    services = call.services
    record = services.registry.completion(form.id)
    model = services.catalog.resolve(form.model) if form.model else None
    elsewhere = record is not None and form.model and (not model or model.name != record.model)
    if record is not None and not elsewhere and record.key == call.principal.name:
        return record
    if record is not None and not elsewhere and call.principal.admin:
        raise errors.PermissionDenied(
            "only the key that asked for a completion may steer it; an admin may cancel it "
            f"(POST /requests/{record.id}/cancel)",
            param="id",
        )
    raise errors.RequestNotFound(
        f"there is no completion {form.id!r}; only the last ones are remembered", param="id"
    )


def routes() -> list[Route]:
    """Return this module's part of the table."""
    summary = "Steer a chat completion of your own that runs, such as to end its reasoning."
    return [Route("POST", PATH, Access.KEY, _control, summary, "Helpers", body=Control)]
