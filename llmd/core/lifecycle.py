"""States of workers and requests, and the moves between them, as data.

The words are the same everywhere: API, metrics, admin socket, TUI. Whatever is not in a table is
an illegal move and raises, so a missing case is found by the test that walks every pair.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum
from typing import TypeVar


class WorkerState(str, Enum):
    """What a worker (one model's llama-server) is doing.

    `off`: no process. `starting`: spawned, not answering yet. `loading`: answers, model not yet
    in memory. `ready`: serves. `draining`: finishes what runs, takes nothing new. `stopping`:
    told to end. `backoff`: died, waits before the next try. `failed`: given up until reset or
    until the restart window has passed.
    """

    OFF = "off"
    STARTING = "starting"
    LOADING = "loading"
    READY = "ready"
    DRAINING = "draining"
    STOPPING = "stopping"
    BACKOFF = "backoff"
    FAILED = "failed"


class RequestState(str, Enum):
    """Where a request is: on its way, or one of six ends.

    `abandoned` means that the client has gone.
    """

    RECEIVED = "received"
    QUEUED = "queued"
    PREFILL = "prefill"
    DECODE = "decode"
    DONE = "done"
    REFUSED = "refused"
    CANCELLED = "cancelled"
    ABANDONED = "abandoned"
    FAILED = "failed"
    TIMED_OUT = "timed_out"


class Priority(str, Enum):
    """A request's class. Compare by `rank`: 0 is served first."""

    HIGH = "high"
    NORMAL = "normal"
    LOW = "low"

    @property
    def rank(self) -> int:
        """0 for high, 1 for normal, 2 for low."""
        return _RANKS[self]


_RANKS = {Priority.HIGH: 0, Priority.NORMAL: 1, Priority.LOW: 2}

_W = WorkerState
WORKER_MOVES: Mapping[WorkerState, frozenset[WorkerState]] = {
    _W.OFF: frozenset({_W.STARTING, _W.FAILED}),
    _W.STARTING: frozenset({_W.LOADING, _W.READY, _W.STOPPING, _W.BACKOFF, _W.FAILED}),
    _W.LOADING: frozenset({_W.READY, _W.STOPPING, _W.BACKOFF, _W.FAILED}),
    _W.READY: frozenset({_W.DRAINING, _W.STOPPING, _W.BACKOFF, _W.FAILED}),
    _W.DRAINING: frozenset({_W.READY, _W.STOPPING, _W.BACKOFF, _W.FAILED, _W.OFF}),
    _W.STOPPING: frozenset({_W.OFF}),
    _W.BACKOFF: frozenset({_W.STARTING, _W.OFF, _W.FAILED}),
    _W.FAILED: frozenset({_W.OFF, _W.STARTING}),
}

_R = RequestState
REQUEST_ENDS = frozenset({_R.DONE, _R.REFUSED, _R.CANCELLED, _R.ABANDONED, _R.FAILED, _R.TIMED_OUT})
_NOT_DONE = REQUEST_ENDS - {_R.DONE}
REQUEST_MOVES: Mapping[RequestState, frozenset[RequestState]] = {
    _R.RECEIVED: frozenset({_R.QUEUED, _R.PREFILL}) | REQUEST_ENDS,
    _R.QUEUED: frozenset({_R.PREFILL}) | _NOT_DONE,
    # back to queued: the worker died before the client had a byte and the request is retried once
    _R.PREFILL: frozenset({_R.DECODE, _R.QUEUED}) | REQUEST_ENDS,
    _R.DECODE: frozenset({_R.QUEUED}) | REQUEST_ENDS,
    **dict.fromkeys(REQUEST_ENDS, frozenset()),
}

_S = TypeVar("_S", WorkerState, RequestState)


class IllegalMove(Exception):
    """A transition that is not in the table: a fault in llmd, never in its input."""


def move(table: Mapping[_S, frozenset[_S]], old: _S, new: _S) -> _S:
    """Return `new` if `table` allows `old` -> `new`.

    Raises:
        IllegalMove: It does not. Staying in a state is a move like any other.
    """
    if new not in table[old]:
        raise IllegalMove(f"{old.value} -> {new.value}")
    return new
