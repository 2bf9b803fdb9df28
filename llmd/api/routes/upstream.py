"""One bounded question to a worker, and its whole answer."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import trio

from llmd import errors
from llmd.api.answer import Header, passed_on
from llmd.api.routing import Reply
from llmd.workers.worker import Worker

MAX_ANSWER_BYTES = 1 << 28  # the tokens of the largest body that is taken


@dataclass(frozen=True, slots=True)
class WorkerAnswer:
    """What a worker said."""

    status: int
    headers: list[Header]
    body: bytes


async def ask(
    worker: Worker,
    method: bytes,
    target: bytes,
    body: bytes = b"",
    *,
    deadline_s: float,
    headers: Iterable[Header] = (),
    limit_bytes: int = MAX_ANSWER_BYTES,
) -> WorkerAnswer:
    """Ask a worker, and wait for all that it says.

    Args:
        worker: One that serves.
        method: GET or POST.
        target: Path and query, encoded.
        body: The request's.
        deadline_s: For the whole answer.
        headers: Sent along.
        limit_bytes: The longest answer taken.

    Raises:
        WorkerDied: It went, before or while it answered.
        WorkerStalled: It did not answer in time.
        BadWorkerResponse: What came is no HTTP, or too much of it.
    """
    upstream = worker.upstream
    if upstream is None:
        raise errors.WorkerDied("the worker has just gone", answered=False)
    response = None
    with trio.move_on_after(deadline_s):
        try:
            response = await upstream.request(method, target, body, headers)
            await response.head()
            data = await response.read(limit_bytes)
            return WorkerAnswer(response.status, response.headers, data)
        finally:
            if response is not None:
                response.close()
    raise errors.WorkerStalled(f"the worker did not answer within {deadline_s:g} s")


def reply_of(answer: WorkerAnswer) -> Reply:
    """Return a worker's answer as ours, with those of its headers that may go on."""
    return Reply(answer.status, answer.body, tuple(passed_on(answer.status, answer.headers)))
