"""A whole daemon in this process, on a real engine or the fake one, and raw clients for it."""

from __future__ import annotations

import json
from contextlib import asynccontextmanager
from dataclasses import dataclass

import h11
import httpx
import msgspec
import trio

from llmd.config import Config
from llmd.daemon import Bound, Daemon

DEADLINE_S = 60


@dataclass
class Answer:
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self):
        return json.loads(self.body)

    @property
    def code(self):
        return self.json["error"]["code"]

    @property
    def events(self):
        """The JSON of each `data:` line, `[DONE]` as it is."""
        lines = [line[6:] for line in self.body.decode().split("\n") if line.startswith("data: ")]
        return [line if line == "[DONE]" else json.loads(line) for line in lines]


@dataclass
class RunningDaemon:
    """What tests hold of a daemon that serves."""

    daemon: Daemon
    bound: Bound
    key: str = ""

    @property
    def address(self):
        return self.bound.addresses[0]

    @property
    def services(self):
        return self.daemon.services

    async def call(self, method, path, body=None, *, key=None, headers=(), content=None) -> Answer:
        """Send one request on a connection of its own and read the whole answer."""
        if content is None:
            content = b"" if body is None else msgspec.json.encode(body)
        sent = [("connection", "close"), ("content-type", "application/json"), *headers]
        key = self.key if key is None else key
        if key:
            sent.append(("authorization", f"Bearer {key}"))
        async with httpx.AsyncClient(trust_env=False, timeout=DEADLINE_S) as client:
            got = await client.request(method, self.bound.url + path, content=content, headers=sent)
        return Answer(got.status_code, dict(got.headers), got.content)

    async def chat(self, prompt="hi", *, key=None, headers=(), **fields) -> Answer:
        return await self.call(
            "POST", "/v1/chat/completions", chat_body(prompt, **fields), key=key, headers=headers
        )

    async def connect(self) -> trio.SocketStream:
        return await trio.open_tcp_stream(*self.address)

    async def open_chat(self, prompt="hi", **fields) -> trio.SocketStream:
        """Send a chat request on a raw connection and leave the answer to the caller."""
        stream = await self.connect()
        await stream.send_all(self.chat_bytes(prompt, **fields))
        return stream

    def chat_bytes(self, prompt="hi", **fields) -> bytes:
        return self.raw("/v1/chat/completions", chat_body(prompt, **fields))

    def raw(self, path, body, *headers: str) -> bytes:
        content = msgspec.json.encode(body)
        lines = [
            f"POST {path} HTTP/1.1",
            "Host: 127.0.0.1",
            "Content-Type: application/json",
            f"Content-Length: {len(content)}",
            *([f"Authorization: Bearer {self.key}"] if self.key else []),
            *headers,
        ]
        return "\r\n".join(lines).encode() + b"\r\n\r\n" + content

    # --- watching -----------------------------------------------------------------------

    async def until(self, what, *, every_s=0.005):
        """Wait until `what()` is true; polls, since what is waited for is a process's doing."""
        while not what():
            await trio.sleep(every_s)

    def handles(self):
        return self.services.registry.handles()

    def states(self):
        return [handle.record.state.value for handle in self.handles()]

    async def until_states(self, *states):
        await self.until(lambda: sorted(self.states()) == sorted(states))

    def last(self):
        """The record of the request that ended last."""
        return next(r for r in self.services.registry.records() if r.ended)

    def worker(self, model):
        return self.services.supervisor.worker(model)

    async def slots_busy(self, model) -> int:
        """Ask the worker itself, past llmd."""
        upstream = self.worker(model).upstream
        response = await upstream.request(b"GET", b"/slots", b"")
        await response.head()
        slots = json.loads(await response.read(1 << 20))
        return sum(slot["is_processing"] for slot in slots)

    async def until_slots_free(self, model):
        while await self.slots_busy(model):
            await trio.sleep(0.005)

    def assert_nothing_left(self):
        """No lease, nothing queued, no request on its way."""
        statistics = self.services.scheduler.statistics()
        assert (statistics.queued, statistics.queued_tokens, statistics.running) == (0, 0, 0)
        assert self.handles() == []
        assert self.services.scheduler._leases == {}
        assert not any(self.services.scheduler._granted.values())


def chat_body(prompt="hi", **fields):
    return {"messages": [{"role": "user", "content": prompt}], **fields}


async def read_answer(stream: trio.SocketStream) -> Answer:
    """Read one whole answer from a raw connection, and close it."""
    parser = h11.Connection(h11.CLIENT)
    parser.send(h11.Request(method="GET", target="/", headers=[("Host", "x")]))
    parser.send(h11.EndOfMessage())
    head, parts = None, []
    while True:
        event = parser.next_event()
        if event is h11.NEED_DATA:
            parser.receive_data(bytes(await stream.receive_some()))
        elif isinstance(event, h11.Response):
            head = event
        elif isinstance(event, h11.Data):
            parts.append(bytes(event.data))
        elif isinstance(event, (h11.EndOfMessage, h11.ConnectionClosed)):
            break
    await stream.aclose()
    headers = {name.decode(): value.decode() for name, value in head.headers}
    return Answer(head.status_code, headers, b"".join(parts))


KEYS = [
    {"name": "alice", "key": "sk-alice"},
    {"name": "bob", "key": "sk-bob"},
    {"name": "root", "key": "sk-root", "role": "admin"},
]


@asynccontextmanager
async def running(runtime_dir, engine, models, *, key="", **groups):
    """Run a daemon in this process.

    Args:
        runtime_dir: Short and private.
        engine: An EngineUnderTest.
        models: Paths, or whole `[[models]]` entries.
        key: A key to send by default.
        groups: Tables of the config by name, over settings that suit tests.
    """
    named = (m if isinstance(m, dict) else {"name": m.stem, "path": str(m)} for m in models)
    entries = [{"threads": 1, "parallel": 2, "context_size": 1024, **entry} for entry in named]
    document = {
        "server": {"port": 0, "drain_timeout_sec": 5, **groups.pop("server", {})},
        "rate_limit": {
            "requests_per_minute": 0,
            "estimated_tokens_per_minute": 0,
            **groups.pop("rate_limit", {}),
        },
        "models": entries,
        **groups,
    }
    daemon = Daemon(msgspec.convert(document, type=Config), runtime_dir, engine=engine.engine)
    with trio.fail_after(DEADLINE_S):
        async with trio.open_nursery() as nursery:
            bound = await nursery.start(daemon.run)
            try:
                yield RunningDaemon(daemon, bound, key)
            finally:
                nursery.cancel_scope.cancel()
