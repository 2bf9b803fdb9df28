"""Requests as their owners and operators see them: where each is, why it waits, how it ended."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import islice
from typing import Any

import msgspec
import trio

from llmd import errors
from llmd.api.routing import Access, Call, Reply, Route, as_json
from llmd.core.events import Why
from llmd.core.lifecycle import RequestState
from llmd.core.record import CancelCause, RequestRecord

_LISTED = 100
_MOST_LISTED = 10_000


async def _list(call: Call) -> Reply:
    limit = call.number("limit", _LISTED, most=_MOST_LISTED)
    state = call.query.get("state")
    if state is not None and state not in _STATES:
        raise errors.InvalidRequest(f"state must be one of {', '.join(_STATES)}", param="state")
    records = call.services.registry.records()
    wanted = (
        record
        for record in _newest_first(records)
        if _may_see(call, record) and state in (None, record.state.value)
    )
    data = [_describe(call, record) for record in islice(wanted, limit)]
    return as_json({"object": "list", "data": data})


async def _one(call: Call, request_id: str) -> Reply:
    record = _find(call, request_id)
    steps = (*record.story, *call.services.scheduler.story(record.id))
    story = [_step(call, record, why) for why in steps]
    return as_json({**_describe(call, record), "story": story})


async def _cancel(call: Call, request_id: str) -> Reply:
    """Cancel a request, and answer once it has ended; one that has ended stays as it is."""
    record = _find(call, request_id)
    handle = call.services.registry.live(record.id)
    if handle is not None:
        own = record.key == call.principal.name
        cause = CancelCause.OWNER if own else CancelCause.OPERATOR
        handle.cancel(cause, by=f"key {call.principal.name}")
        await call.services.operations.cancel([handle], cause)
    return as_json({**_describe(call, record), "cancelled": handle is not None})


# --- who may see what ----------------------------------------------------------------------


def _find(call: Call, request_id: str) -> RequestRecord:
    record = call.services.registry.record(request_id)
    if record is None or not _may_see(call, record):
        raise errors.RequestNotFound(
            f"there is no request {request_id[:128]!r}; only the last ones are remembered"
        )
    return record


def _may_see(call: Call, record: RequestRecord) -> bool:
    return call.principal.admin or (bool(record.key) and record.key == call.principal.name)


def _newest_first(records: Iterable[RequestRecord]) -> list[RequestRecord]:
    """Return live requests before ended ones, both with the newest first."""
    live: list[RequestRecord] = []
    ended: list[RequestRecord] = []
    for record in records:
        (ended if record.ended else live).append(record)
    return live[::-1] + ended


# --- what is told --------------------------------------------------------------------------


def _describe(call: Call, record: RequestRecord) -> dict[str, Any]:
    view: dict[str, Any] = msgspec.to_builtins(record.view(trio.current_time()))
    if record.state is RequestState.QUEUED:
        why = call.services.scheduler.explain(record.id)
        if why is not None:
            eta_s = call.services.scheduler.eta_s(record.id)
            view["why"] = _step(call, record, why)
            view["position"] = why.position
            view["eta_s"] = None if eta_s is None else round(eta_s, 3)
    return view


def _step(call: Call, record: RequestRecord, why: Why) -> dict[str, Any]:
    """Return a step of a request's story; users are not told of what they may not see."""
    blockers = [name for name in why.blockers if _may_know(call, name)]
    return {
        "at_ms": round((why.at - record.received) * 1000, 3),
        "rule": why.rule,
        "blockers": blockers,
        "detail": why.detail if _may_know_all(call) else "",
        "position": why.position,
    }


def _may_know_all(call: Call) -> bool:
    return call.principal.admin or not call.principal.models


def _may_know(call: Call, name: str) -> bool:
    """Tell whether the caller may know of a request, or a model, that is in the way."""
    if call.principal.admin:
        return True
    model = call.services.catalog.resolve(name)
    if model is not None:
        return call.may_use(model)
    record = call.services.registry.record(name)
    return record is not None and _may_see(call, record)


_STATES = tuple(state.value for state in RequestState)


def routes() -> list[Route]:
    """Return this module's part of the table."""
    one = "/requests/<request_id>"
    return [
        Route(
            "GET",
            "/requests",
            Access.KEY,
            _list,
            "Own requests, or all of them for admins: live ones first, then the newest.",
            "Requests",
            query={"limit": f"how many at most ({_LISTED})", "state": "only those in this state"},
        ),
        Route("GET", one, Access.KEY, _one, "One request, and what it waited for.", "Requests"),
        Route(
            "POST",
            f"{one}/cancel",
            Access.KEY,
            _cancel,
            "Cancel a request; its owner or an admin may.",
            "Requests",
        ),
    ]
