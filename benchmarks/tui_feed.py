"""A box that is only told of: the admin protocol on a Unix socket, with as much going on as asked.

`python -m benchmarks.tui_feed SOCKET` speaks to one client after another, until it is ended. It is
a process of its own, so that what it costs is not counted as the screen's.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import time
from collections import deque
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

import msgspec
from msgspec.structs import replace

from llmd.admin import protocol as p
from llmd.admin.framing import LineSplitter, LineTooLong

MODELS = ("qwen3-32b-q4", "gemma3-27b-q4", "llama3.3-70b-q4", "phi4-14b-q8")
SLOTS = 8
_KEYS = ("alice", "bob", "carol", "ci-bot", "eval", "batch-7")
_SHIFT_EVERY = 5  # events between two ends: each moves a whole line of waiting requests up
_QUIET_S = 5.0
_GIB = 1 << 30

encode = msgspec.json.Encoder().encode


@dataclass
class Box:
    """What the daemon would know; each step is what happens within one event.

    Args:
        count: Requests that are on their way at any time.
    """

    count: int
    random: random.Random = field(default_factory=lambda: random.Random(1))
    made: int = 0
    running: dict[str, p.Request] = field(default_factory=dict)
    waiting: dict[str, deque[p.Request]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Fill the slots, and the lines behind them."""
        self.waiting = {model: deque() for model in MODELS}
        for number in range(self.count):
            model = MODELS[number % len(MODELS)]
            if number < SLOTS * len(MODELS):
                self._grant(self._request(model))
            else:
                line = self.waiting[model]
                line.append(self._placed(self._request(model), len(line) + 1))

    def _request(self, model: str) -> p.Request:
        self.made += 1
        now = time.time()
        return p.Request(
            id=f"r-{self.made:08x}", state="queued", model=model, key=self.random.choice(_KEYS),
            client="127.0.0.1", path="/v1/chat/completions", stream=True,
            priority=self.random.choice(("high", "normal", "normal", "low")),
            received_at=now, queued_at=now, estimate_tokens=2000,
            prompt_tokens=self.random.randrange(100, 9000), prompt_exact=True,
            max_tokens=self.random.choice((256, 512, 2048)), request_bytes=4000,
        )  # fmt: skip

    def _placed(self, request: p.Request, place: int) -> p.Request:
        now = time.time()
        why = p.Why(
            at=request.received_at, rule="slots_busy", position=place,
            blockers=("r-00000001", "r-00000002"), detail=f"8/8 slots busy, {place - 1} ahead",
        )  # fmt: skip
        return replace(request, position=place, why=why, eta_at=now + 2 * place)

    def _grant(self, request: p.Request) -> p.Request:
        now = time.time()
        granted = replace(
            request, state="decode", position=0, why=None, granted_at=now, first_token_at=now,
            wait_s=round(now - request.received_at, 3), worker_pid=4100, tokens_per_s=50.0,
            progress=0.0,
        )  # fmt: skip
        self.running[request.id] = granted
        return granted

    def step(self, number: int) -> tuple[p.Request, ...]:
        """Let a tenth of a second's worth happen; return the rows that changed."""
        changed = {}
        for request in list(self.running.values()):
            done = request.completion_tokens + 5
            limit = request.max_tokens or 512
            rate = round(50 + self.random.uniform(-3, 3), 1)
            changed[request.id] = self.running[request.id] = replace(
                request, completion_tokens=done, tokens_per_s=rate, progress=min(1, done / limit)
            )
        if number % _SHIFT_EVERY == 0 and self.running:
            ended = self.running.pop(next(iter(self.running)))
            changed[ended.id] = replace(
                ended, state="done", ended_at=time.time(), status=200, tokens_per_s=None
            )
            for request in self._shift(ended.model):
                changed[request.id] = request
        return tuple(changed.values())

    def _shift(self, model: str) -> list[p.Request]:
        """Grant the first that waits for a model; the others move up, and a new one comes."""
        line = self.waiting[model]
        line.append(self._request(model))
        granted = self._grant(line.popleft())
        moved = [self._placed(request, place + 1) for place, request in enumerate(line)]
        self.waiting[model] = deque(moved)
        return [granted, *moved]

    def requests(self) -> tuple[p.Request, ...]:
        """Return every request."""
        return (*self.running.values(), *(r for line in self.waiting.values() for r in line))

    def workers(self) -> tuple[p.Worker, ...]:
        """Return the workers."""
        now = time.time()
        return tuple(
            p.Worker(
                model=model, state="ready", since_at=now - 5000, pid=4100, slots=SLOTS,
                slots_busy=sum(r.model == model for r in self.running.values()),
                running=SLOTS, queued={"normal": len(self.waiting[model])},
                memory_bytes=20 * _GIB, context_tokens=32768, kv_used=0.5,
                tokens_per_s=round(400 + self.random.uniform(-20, 20), 1), first_token_p95_s=1.8,
                load_s=14.0, starts=1,
            )
            for model in MODELS
        )  # fmt: skip

    def totals(self) -> p.Totals:
        """Return the box in a line."""
        queued = sum(len(line) for line in self.waiting.values())
        return p.Totals(
            running=len(self.running), slots=SLOTS * len(MODELS), slots_busy=len(self.running),
            queued=queued, oldest_at=time.time() - 60 if queued else None,
            tokens_per_s=round(1600 + self.random.uniform(-50, 50), 1),
            prefill_tokens_per_s=round(2700 + self.random.uniform(-99, 99), 1),
            first_token_p50_s=0.42, first_token_p95_s=2.1, wait_p95_s=6.3,
            memory_held_bytes=80 * _GIB, memory_limit_bytes=133 * _GIB,
            memory_total_bytes=141 * _GIB,
        )  # fmt: skip

    def daemon(self) -> p.Daemon:
        """Return the daemon."""
        return p.Daemon(
            version="0.0", pid=1, host="bench", started_at=0.0, state="ok", admission_open=True,
            generation=1,
        )  # fmt: skip

    def snapshot(self, id_: int | str | None) -> p.Snapshot:
        """Return all at once, for a subscription."""
        course = tuple(400 + 20 * self.random.random() for _ in range(60))
        return p.Snapshot(
            id=id_, seq=0, at=round(time.time(), 3), daemon=self.daemon(), totals=self.totals(),
            workers=self.workers(), requests=self.requests(), log=(),
            history=dict.fromkeys(("", *MODELS), course),
        )  # fmt: skip

    def event(self, id_: int | str | None, number: int) -> p.Event:
        """Let something happen and return it."""
        rest = number % 5 == 0  # the daemon tells totals less often than rows
        return p.Event(
            id=id_, seq=number, at=round(time.time(), 3), requests=self.step(number),
            totals=self.totals() if rest else None, workers=self.workers() if rest else (),
        )  # fmt: skip


async def serve(path: str, requests: int, per_s: float, flood: int) -> None:
    """Serve for ever.

    Args:
        path: Of the socket.
        requests: On their way at any time.
        per_s: Events a second; 0 = only signs of life.
        flood: Events sent as fast as they are read, before those; then a line is printed.
    """

    async def client(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await _client(Box(requests), reader, writer, per_s, flood)
        except ConnectionError:
            pass
        finally:
            writer.close()

    async with await asyncio.start_unix_server(client, path) as server:
        await server.serve_forever()


async def _client(
    box: Box,
    reader: asyncio.StreamReader,
    writer: asyncio.StreamWriter,
    per_s: float,
    flood: int,
) -> None:
    async for line in _lines(reader):
        command = msgspec.json.decode(line)
        if command["type"] == "subscribe":
            writer.write(encode(box.snapshot(command["id"])) + b"\n")
            await writer.drain()
            await _tell(box, writer, command["id"], per_s, flood)
        welcome = p.Welcome(protocol=p.PROTOCOL, version="0.0", access="write", generation=1)
        answer = p.Ok(id=command["id"], result=msgspec.Raw(encode(welcome)))
        writer.write(encode(answer) + b"\n")


async def _tell(
    box: Box, writer: asyncio.StreamWriter, id_: int | str, per_s: float, flood: int
) -> None:
    for number in range(1, flood + 1):
        writer.write(encode(box.event(id_, number)) + b"\n")
        await writer.drain()
    if flood:
        print("flooded", flush=True)
    number, due = flood, time.monotonic()
    while True:
        number += 1
        if per_s:
            due += 1 / per_s
            await asyncio.sleep(max(0.0, due - time.monotonic()))
            event = box.event(id_, number)
        else:
            await asyncio.sleep(_QUIET_S)
            event = p.Event(id=id_, seq=number, at=round(time.time(), 3))
        writer.write(encode(event) + b"\n")
        await writer.drain()


async def _lines(reader: asyncio.StreamReader) -> AsyncIterator[bytes]:
    splitter = LineSplitter()
    while data := await reader.read(65536):
        for line in splitter.feed(data):
            if not isinstance(line, LineTooLong):
                yield line


def main() -> None:
    """Serve as the command line says."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.tui_feed", description=__doc__)
    parser.add_argument("socket")
    parser.add_argument("--requests", type=int, default=1000)
    parser.add_argument("--per-s", type=float, default=10.0)
    parser.add_argument("--flood", type=int, default=0)
    options = parser.parse_args()
    asyncio.run(serve(options.socket, options.requests, options.per_s, options.flood))


if __name__ == "__main__":
    main()
