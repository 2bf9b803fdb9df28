"""What a worker does beside generating: tokens of a text, the text of a chat, counts.

A model that is loaded answers at once, whatever its slots do. One that is not is loaded as for a
completion: by a lease, so that nobody in the queue is overtaken.
"""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

import msgspec
import trio

from llmd import errors
from llmd.api.gate import header, wanted_priority
from llmd.api.routes.upstream import ask, reply_of
from llmd.api.routing import Access, Call, Reply, Route, decode
from llmd.core.events import Queued
from llmd.core.ratelimit import Denied
from llmd.models.catalog import CatalogModel
from llmd.registry import Handle
from llmd.workers.worker import Worker

PATHS = {
    "/tokenize": "The tokens of a text.",
    "/detokenize": "The text of tokens.",
    "/apply-template": "The prompt that a chat becomes.",
    "/chat/completions/input_tokens": "The tokens of a chat, counted.",
    "/v1/chat/completions/input_tokens": "The tokens of a chat, counted.",
    "/responses/input_tokens": "The tokens of a response's input, counted.",
    "/v1/responses/input_tokens": "The tokens of a response's input, counted.",
    "/v1/messages/count_tokens": "The tokens of messages in Anthropic's form, counted.",
}


class _Body(msgspec.Struct):
    model: str | None = None


@dataclass(slots=True)
class _Help:
    """One request for help, once it is admitted."""

    call: Call
    handle: Handle
    body: bytes
    model: CatalogModel


Way = Callable[[Call, Handle], Awaitable[Reply]]


async def accounted(call: Call, way: Way) -> Reply:
    """Serve one; like every request it has a record, can be cancelled, and is accounted for.

    Args:
        call: From a caller with a key.
        way: From the body to the reply, inside the request's own scope.
    """
    services, scope = call.services, call.scope
    handle = services.registry.open(
        wanted_id=header(scope, b"x-request-id"),
        path=scope["path"],
        client=services.gate.client(scope),
    )
    record, principal = handle.record, call.principal
    call.request_id = record.id
    record.key, record.user, record.role = principal.name, principal.user, principal.role
    timeout_s = services.config.limits.request_timeout_sec or math.inf
    handle.scope.deadline = trio.current_time() + timeout_s
    error: errors.LlmdError | None = None
    reply: Reply | None = None
    try:
        with handle.scope:
            try:
                reply = await way(call, handle)
            except errors.LlmdError as refused:
                error = refused
        if handle.scope.cancelled_caught:
            error = handle.verdict(timeout_s)
    except trio.Cancelled:
        handle.abandon()
        raise
    except Exception as crash:
        error = errors.LlmdError(f"it crashed: {type(crash).__name__}")
        raise
    finally:
        _account(call, handle, error, reply)
    if error is not None:
        raise error
    assert reply is not None
    return reply


async def _help(call: Call) -> Reply:
    return await accounted(call, _way)


async def _way(call: Call, handle: Handle) -> Reply:
    """Read, resolve, limit, and pass on."""
    services, record, principal = call.services, handle.record, call.principal
    if services.draining:
        raise errors.ShuttingDown("llmd is shutting down; try again in a moment")
    body = await call.read()
    record.request_bytes = len(body)
    record.priority = principal.capped(wanted_priority(call.scope, None))
    model = services.resolve(decode(body, _Body).model, principal)
    record.model = model.name
    services.expect_loadable(model)
    charge(call, handle)
    request = _Help(call, handle, body, model)
    worker = services.serving(model.name)
    if worker is not None:
        try:
            record.grant(trio.current_time())
            return await _exchange(request, worker)
        except errors.WorkerDied:
            if not services.config.scheduler.retry_on_worker_death:
                raise
    return await _leased(request)


def charge(call: Call, handle: Handle) -> None:
    """Charge one request and no tokens.

    Raises:
        RateLimitExceeded: The key's bucket of requests is empty.
    """
    limiter, principal = call.services.limiter, call.principal
    if principal.limits.unlimited:
        return
    now, account = trio.current_time(), principal.account
    decision = limiter.check(account, principal.limits, 0, now)
    call.headers += limiter.snapshot(account, principal.limits, now).headers()
    if isinstance(decision, Denied):
        raise errors.RateLimitExceeded(decision.message, retry_after_s=decision.retry_after_s)
    handle.settle = lambda used: (
        limiter.refund(account, 0, trio.current_time()) if used is None else None
    )


async def _leased(request: _Help) -> Reply:
    """Have the model loaded in its turn, and ask it then."""
    services, record, principal = (
        request.call.services,
        request.handle.record,
        request.call.principal,
    )
    item = Queued(
        id=record.id,
        key=principal.account,
        model=request.model.name,
        priority=record.priority,
        weight=principal.weight,
        tokens=0,
        slots=1,
        context_tokens=0,
        concurrency=principal.concurrency,
        admin=principal.admin,
        arrived=trio.current_time(),
    )
    record.enqueue(trio.current_time())
    lease = services.scheduler.lease(item, again=record.retries > 0)
    try:
        with lease:
            lease.used_tokens = 0
            await lease.wait()
            worker = services.serving(request.model.name)
            record.grant(trio.current_time())
            if worker is None:
                raise errors.BadWorkerResponse("the model's worker has just gone")
            return await _exchange(request, worker)
    finally:
        record.story += lease.story


async def _exchange(request: _Help, worker: Worker) -> Reply:
    call = request.call
    stall_s = call.services.config.worker.stall_timeout_sec or math.inf
    try:
        answer = await ask(
            worker,
            b"POST",
            call.scope["path"].encode(),
            request.body,
            deadline_s=stall_s,
            headers=((b"Content-Type", b"application/json"),),
        )
    except errors.WorkerStalled:
        worker.suspect(f"no byte for {stall_s:g} s ({request.handle.record.id})")
        raise
    return reply_of(answer)


def _account(
    call: Call, handle: Handle, error: errors.LlmdError | None, reply: Reply | None
) -> None:
    services, record = call.services, handle.record
    if reply is not None:
        record.response_bytes = len(reply.body)
        # handlers raise what llmd refuses: a reply that is an error is the worker's own
        handle.worker_status = reply.status if reply.status >= 400 else 0
    handle.end(error, reply.status if reply else 0, trio.current_time())
    if handle.settle is not None:
        handle.settle(None if record.granted_at is None else 0)
    services.registry.close(handle)
    services.metrics.finished(record)


def routes() -> list[Route]:
    """Return this module's part of the table."""
    return [
        Route("POST", path, Access.KEY, _help, summary, "Helpers")
        for path, summary in PATHS.items()
    ]
