"""Control calls to one worker over its Unix socket: health, properties, slots, metrics.

A worker's answers are hostile: their size is bounded, their shape checked, and every call has a
deadline. The HTTP is that of `upstream.py`: a second client library would cost the daemon 20 MB
and a third of a second of its start.
"""

from __future__ import annotations

import re
import socket
from enum import Enum
from pathlib import Path
from typing import Annotated, Any, TypeVar

import msgspec
import trio

from llmd.errors import BadWorkerResponse, WorkerDied, WorkerStalled
from llmd.workers.upstream import Upstream, peer_pid

MAX_ANSWER_BYTES = 8 << 20
DEFAULT_TIMEOUT_S = 5.0
# a kept-alive connection may be dead at the first write, and a bound on size needs plain bytes
_HEADERS = ((b"Connection", b"close"), (b"Accept-Encoding", b"identity"))
_DEFERRED = re.compile(r"^llamacpp:requests_deferred (\d{1,9})\b", re.MULTILINE)

T = TypeVar("T")
_Tokens = Annotated[int, msgspec.Meta(ge=0, le=1 << 31)]


class Health(Enum):
    """What a worker says of itself."""

    READY = "ready"
    LOADING = "loading"


class _Defaults(msgspec.Struct):
    n_ctx: _Tokens = 0


class Props(msgspec.Struct):
    """The part of `/props` that llmd relies on.

    Attributes:
        total_slots: Sequences that it decodes side by side.
        model_path: The file that it serves, as it was told.
        default_generation_settings: Holds `n_ctx`, the context of one slot.
    """

    total_slots: Annotated[int, msgspec.Meta(ge=1, le=4096)]
    model_path: str = ""
    default_generation_settings: _Defaults = msgspec.field(default_factory=_Defaults)

    @property
    def context_tokens(self) -> int:
        """Context of one slot, in tokens."""
        return self.default_generation_settings.n_ctx


class Slot(msgspec.Struct):
    """One entry of `/slots`."""

    id: int
    is_processing: bool
    n_ctx: _Tokens = 0
    next_token: Any = None  # a list of one object, once the object itself

    @property
    def is_decoding(self) -> bool:
        """Whether tokens come out of it, as far as it tells."""
        state = self.next_token[:1] if isinstance(self.next_token, list) else [self.next_token]
        count = state[0].get("n_decoded", 0) if state and isinstance(state[0], dict) else 0
        return self.is_processing and isinstance(count, int) and count > 0


class Control:
    """The control calls to one worker. Belongs to its worker, which closes it.

    All calls raise WorkerDied (no connection, or it broke), WorkerStalled (no whole answer in
    time) or BadWorkerResponse (an answer, but none that can be used), and are safe to cancel.
    Each takes a connection of its own, so that no call waits for another.

    Args:
        socket_path: Where the worker listens.
    """

    def __init__(self, socket_path: Path) -> None:
        self._path = socket_path
        self._upstream = Upstream(socket_path, 0)

    def pin(self, pid: int) -> None:
        """From now on talk to process `pid` only, whoever else may listen there."""
        self._upstream.close()
        self._upstream = Upstream(self._path, pid)

    def close(self) -> None:
        """Close every connection; calls that still wait raise WorkerDied."""
        self._upstream.close()

    async def peer_pid(self) -> int:
        """Return the process that listens on the socket, as the kernel knows it."""
        await trio.lowlevel.checkpoint()
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK) as sock:
                sock.connect(str(self._path))
                return peer_pid(sock)
        except BlockingIOError as error:
            raise WorkerStalled("the worker accepts no connections") from error
        except OSError as error:
            raise WorkerDied(f"the worker cannot be reached: {error}", answered=False) from error

    async def health(self, timeout_s: float = DEFAULT_TIMEOUT_S) -> Health:
        """Ask whether it serves; 503 means that it loads."""
        status, _ = await self._get("/health", timeout_s)
        if status == 200:
            return Health.READY
        if status == 503:
            return Health.LOADING
        raise BadWorkerResponse(f"the worker answered {status} to GET /health")

    async def props(self, timeout_s: float = DEFAULT_TIMEOUT_S) -> Props:
        """Return what it serves, with how many slots."""
        return await self._typed("/props", Props, timeout_s)

    async def slots(self, timeout_s: float = DEFAULT_TIMEOUT_S) -> list[Slot]:
        """Return its slots; it answers between batches only."""
        return await self._typed("/slots", list[Slot], timeout_s)

    async def metrics(self, timeout_s: float = DEFAULT_TIMEOUT_S) -> str:
        """Return its own Prometheus text."""
        return (await self._ok("/metrics", timeout_s)).decode("utf-8", "replace")

    async def deferred(self, timeout_s: float = DEFAULT_TIMEOUT_S) -> int:
        """Return how many requests wait inside it for a slot."""
        found = _DEFERRED.search(await self.metrics(timeout_s))
        return int(found.group(1)) if found else 0

    async def get_json(self, path: str, timeout_s: float = DEFAULT_TIMEOUT_S) -> Any:
        """Return the decoded answer to GET `path`."""
        return await self._typed(path, Any, timeout_s)

    async def _typed(self, path: str, shape: type[T] | Any, timeout_s: float) -> T:
        body = await self._ok(path, timeout_s)
        try:
            decoded: T = msgspec.json.decode(body, type=shape)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise BadWorkerResponse(f"the worker's {path} cannot be read: {error}") from error
        return decoded

    async def _ok(self, path: str, timeout_s: float) -> bytes:
        status, body = await self._get(path, timeout_s)
        if status != 200:
            raise BadWorkerResponse(f"the worker answered {status} to GET {path}")
        return body

    async def _get(self, path: str, timeout_s: float) -> tuple[int, bytes]:
        try:
            with trio.fail_after(timeout_s):
                response = await self._upstream.request(b"GET", path.encode(), b"", _HEADERS)
                try:
                    status = await response.head()
                    return status, await response.read(MAX_ANSWER_BYTES)
                finally:
                    response.close()
        except trio.TooSlowError as error:
            raise WorkerStalled(f"no answer to GET {path} within {timeout_s:g} s") from error
