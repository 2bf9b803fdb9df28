"""A look into a loaded worker: properties, slots, adapters. Never loads a model.

What a slot holds of other people's prompts is for admins only.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from urllib.parse import urlencode

import msgspec

from llmd import errors
from llmd.api.routes.upstream import WorkerAnswer, ask, reply_of
from llmd.api.routing import Access, Call, Reply, Route, decode
from llmd.workers.worker import Worker

_LOOK_S = 10.0
_CHANGE_S = 120.0  # a slot's state may be large, and the disk slow
_MAX_BYTES = 16 << 20
_MODEL = {"model": "whose worker; the default model's if absent"}
_PUBLIC_FIELDS = frozenset(
    {
        "id",
        "is_processing",
        "n_ctx",
        "n_prompt_tokens",
        "n_prompt_tokens_cache",
        "n_prompt_tokens_processed",
        "speculative",
    }
)
"""Of a slot. A list of what may be told cannot be outgrown by what llama-server tells next."""

_PUBLIC_PROGRESS = frozenset({"has_next_token", "n_decoded", "n_remain"})


async def _look(call: Call) -> Reply:
    """Pass on what the worker says of itself."""
    answer = await _ask(call, b"GET", call.scope["path"], {}, deadline_s=_LOOK_S)
    return reply_of(answer)


async def _slots(call: Call) -> Reply:
    """Pass on what the slots do, without the prompts unless an admin asks."""
    kept = {name: call.query[name] for name in ("fail_on_no_slot",) if name in call.query}
    answer = await _ask(call, b"GET", "/slots", kept, deadline_s=_LOOK_S)
    reply = reply_of(answer)
    if call.principal.admin or answer.status != 200:
        return reply
    try:
        slots = msgspec.json.decode(answer.body, type=list[dict[str, Any]])
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise errors.BadWorkerResponse(f"the worker's slots cannot be read: {error}") from error
    return Reply(200, msgspec.json.encode([_public(slot) for slot in slots]), reply.headers)


def _public(slot: Mapping[str, Any]) -> dict[str, Any]:
    shown = {name: value for name, value in slot.items() if name in _PUBLIC_FIELDS}
    progress = slot.get("next_token")
    if isinstance(progress, list):
        shown["next_token"] = [
            {name: value for name, value in step.items() if name in _PUBLIC_PROGRESS}
            for step in progress
            if isinstance(step, dict)
        ]
    return shown


async def _act_on_slot(call: Call, slot: int) -> Reply:
    kept = {name: call.query[name] for name in ("action",) if name in call.query}
    return await _change(call, f"/slots/{slot}", kept)


async def _set_adapters(call: Call) -> Reply:
    return await _change(call, "/lora-adapters", {})


async def _change(call: Call, path: str, query: Mapping[str, str]) -> Reply:
    body = await call.read() or b"{}"
    decode(body, object)
    answer = await _ask(call, b"POST", path, query, body, deadline_s=_CHANGE_S)
    return reply_of(answer)


async def _ask(
    call: Call,
    method: bytes,
    path: str,
    query: Mapping[str, str],
    body: bytes = b"",
    *,
    deadline_s: float,
) -> WorkerAnswer:
    target = f"{path}?{urlencode(query)}" if query else path
    return await ask(
        _worker(call),
        method,
        target.encode(),
        body,
        deadline_s=deadline_s,
        headers=((b"Content-Type", b"application/json"),) if body else (),
        limit_bytes=_MAX_BYTES,
    )


def _worker(call: Call) -> Worker:
    model = call.services.resolve(call.query.get("model"), call.principal)
    worker = call.services.serving(model.name)
    if worker is None:
        queues = call.services.scheduler.statistics().models
        raise errors.ModelNotLoaded(
            f"{model.name} is not loaded now, and this path never loads a model",
            param="model",
            should_retry=False,  # asking again loads nothing either
            retry_after_s=next((q.load_s or None for q in queues if q.model == model.name), None),
        )
    return worker


def routes() -> list[Route]:
    """Return this module's part of the table."""

    def get(path: str, handler: Any, summary: str) -> Route:
        return Route("GET", path, Access.KEY, handler, summary, "Worker state", query=_MODEL)

    def post(path: str, handler: Any, summary: str) -> Route:
        return Route("POST", path, Access.ADMIN, handler, summary, "Worker state", query=_MODEL)

    return [
        get("/props", _look, "A loaded worker's properties, as llama-server tells them."),
        get("/slots", _slots, "What a loaded worker's slots do; prompts are for admins only."),
        get("/lora-adapters", _look, "A loaded worker's adapters and their scales."),
        post("/slots/<int:slot>", _act_on_slot, "Save, restore or erase a slot (`?action=`)."),
        post("/lora-adapters", _set_adapters, "Set the scales of a loaded worker's adapters."),
    ]
