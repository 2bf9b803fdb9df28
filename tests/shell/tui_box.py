"""A box for tests of the screen: it holds still until told to move, and remembers commands."""

from __future__ import annotations

import asyncio
import time

from msgspec.structs import replace

from llmd.admin import protocol as p
from llmd.admin.calls import Refused

GIB = 1 << 30
LIMIT = 133 * GIB
CODER, GEMMA, QWEN, PHI = "qwen3-coder-30b", "gemma3-27b-q4", "qwen3-32b-q4", "phi4-14b-q8"


def refused(code, message):
    return Refused(p.Failure(code=code, message=message))


class Box:
    """Plays a daemon; see `llmtui.link.Source`."""

    access = "write"

    def __init__(self):
        self.now = time.time()
        self.generation = 41
        self.pid = 4000
        self.done = []
        self.moved = asyncio.Event()
        self.workers = {worker.model: worker for worker in self.make_workers()}
        self.requests = {request.id: request for request in self.make_requests()}

    # --- what there is ----------------------------------------------------------------------

    def make_workers(self):
        ready = {"state": "ready", "since_at": self.now - 11_000, "pid": 4100, "slots": 4}
        yield p.Worker(
            model=GEMMA, slots_busy=2, running=2, memory_bytes=int(19.8 * GIB), tokens_per_s=61.0,
            context_tokens=8192, kv_used=0.45, load_s=11.0, starts=1, **ready,
        )  # fmt: skip
        yield p.Worker(
            model=QWEN, slots_busy=2, running=2, memory_bytes=int(24.1 * GIB), tokens_per_s=150.0,
            queued={"low": 1}, oldest_at=self.now - 5, context_tokens=32_768, starts=1, **ready,
        )  # fmt: skip
        yield p.Worker(
            model=PHI, state="backoff", since_at=self.now - 6, reason="exit 139", crashes=3,
            starts=3, retry_at=self.now + 24, last_failure="killed by signal 11 while it loaded",
        )  # fmt: skip
        yield p.Worker(
            model=CODER, state="off", estimate_bytes=int(20.5 * GIB), load_s=14.0, fits=True
        )

    def make_requests(self):
        for number, (name, model, key, priority) in enumerate(
            (
                ("r-8f21c04a", QWEN, "ci-bot", "high"),
                ("r-8f1ea711", QWEN, "alice", "normal"),
                ("r-8f02e9b3", GEMMA, "eval", "normal"),
                ("r-8f2277aa", GEMMA, "eval", "normal"),
            )
        ):
            at = self.now - 10 + number
            yield p.Request(
                id=name, state="decode", model=model, key=key, client="127.0.0.1", stream=True,
                path="/v1/chat/completions", priority=priority, received_at=at, queued_at=at,
                granted_at=at + 0.5, first_token_at=at + 1, wait_s=0.5, prompt_tokens=4100,
                prompt_exact=True, max_tokens=2048, completion_tokens=500, tokens_per_s=50.0,
                progress=0.25, eta_at=self.now + 30, worker_pid=4100,
            )  # fmt: skip
        at = self.now - 5
        yield p.Request(
            id="r-8f35acd4", state="queued", model=QWEN, key="batch-7", client="127.0.0.1",
            path="/v1/chat/completions", priority="low", received_at=at, queued_at=at,
            prompt_tokens=9100, max_tokens=4096, position=4, eta_at=self.now + 128,
            why=p.Why(at=at, rule="key_concurrency", position=4, detail="key at 4/4 concurrent"),
        )  # fmt: skip

    def daemon(self):
        return p.Daemon(
            version="0.1.0", pid=self.pid, host="box", started_at=self.now - 999, state="ok",
            admission_open=True, generation=self.generation,
        )  # fmt: skip

    def move(self, **changes):
        """Change attributes, and tell whoever listens."""
        for name, value in changes.items():
            setattr(self, name, value)
        self.moved.set()

    def end(self, *names):
        for name in names:
            request = replace(
                self.requests[name], state="cancelled", ended_at=time.time(), status=499,
                code="request_cancelled", cancel_cause="operator",
            )  # fmt: skip
            self.requests[name] = request
        self.moved.set()

    # --- what is asked ----------------------------------------------------------------------

    async def connect(self):
        pass

    async def close(self):
        pass

    async def hello(self):
        return p.Welcome(
            protocol=p.PROTOCOL, version="0.1.0", access=self.access, generation=self.generation
        )

    async def subscribe(self, *topics):
        rows = {"workers": tuple(self.workers.values()), "requests": tuple(self.requests.values())}
        totals, seq = p.Totals(running=4, slots=8, slots_busy=4, queued=1), 1
        yield p.Snapshot(seq=seq, at=time.time(), daemon=self.daemon(), totals=totals, **rows)
        while True:
            await self.moved.wait()
            self.moved.clear()
            seq += 1
            rows = {
                "workers": tuple(self.workers.values()),
                "requests": tuple(self.requests.values()),
            }
            yield p.Event(seq=seq, at=time.time(), daemon=self.daemon(), totals=totals, **rows)

    async def call(self, command):
        raise refused("not_supported", "not here")

    async def follow(self, model, *, lines=0):
        yield p.LogLine(seq=1, at=1e9, stream="stderr", text="0.00.000.001 I srv  said something")
        await asyncio.sleep(3600)

    async def why(self, request):
        found = self.requests.get(request)
        if found is None:
            raise refused("request_not_found", f"there is no request {request}")
        at = found.queued_at
        busy = p.Why(
            at=at, rule="slots_busy", blockers=("r-8f2277aa",), position=1, detail="4/4 slots busy"
        )
        if found.granted_at is None:
            return p.Story(request=found, steps=(busy, replace(found.why, at=at + 1.4)))
        granted = p.Why(at=found.granted_at, rule="granted", detail="first of 3")
        return p.Story(request=found, steps=(busy, granted))

    async def cancel(self, *requests):
        self.done.append(("cancel", requests))
        hit = tuple(r for r in requests if not self.requests[r].ended)
        self.end(*hit)
        return p.Cancelled(cancelled=hit)

    async def switch(self, model, *, dry_run=False, if_gen=None, add=False, **more):
        self.check(if_gen)
        if model not in self.workers:
            raise refused("model_not_found", f"there is no model {model}")
        worker = self.workers[model]
        held = sum(w.memory_bytes for w in self.workers.values())
        loaded = worker.state == "ready"
        victim = self.workers[GEMMA]
        goes = p.Eviction(
            model=GEMMA, running=victim.running, queued=victim.waiting,
            memory_bytes=victim.memory_bytes, service_s=9.0, service_p95_s=14.2,
        )  # fmt: skip
        if not dry_run:
            self.done.append(("switch", model, {"if_gen": if_gen, "add": add, **more}))
        return p.Plan(
            model=model, loaded=loaded, fits=True, add=add, evict=() if loaded or add else (goes,),
            fits_beside=True, queued=worker.waiting, load_s=0.0 if loaded else 14.0,
            auto_switch=True, memory_bytes=worker.estimate_bytes, held_bytes=held,
            limit_bytes=LIMIT, generation=self.generation, state=worker.state, dry_run=dry_run,
        )  # fmt: skip

    async def unload(self, model, *, if_gen=None, **more):
        self.check(if_gen)
        self.done.append(("unload", model, {"if_gen": if_gen, **more}))
        return p.Acted(model=model, state="stopping")

    def check(self, if_gen):
        if if_gen is not None and if_gen != self.generation:
            raise refused("conflict", f"the generation is {self.generation}, not {if_gen}")
