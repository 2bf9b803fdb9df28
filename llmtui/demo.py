"""A made-up box for `--demo`: it moves, and answers actions with their effect.

The daemon is played, not run: numbers follow from the clock alone, so every start looks the same.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar, cast

from msgspec.structs import replace

from llmd import __version__
from llmd.admin import protocol as p
from llmd.admin.calls import Refused

R = TypeVar("R")

GIB = 1 << 30
_LIMIT = 133 * GIB
_CYCLE_S = 60.0


@dataclass(frozen=True)
class _Part:
    """One request of the play: when it is granted and ends, in seconds of the cycle."""

    id: str
    model: str
    key: str
    priority: str
    prompt: int
    limit: int
    rate: float


_QWEN, _GEMMA, _LLAMA = "qwen3-32b-q4", "gemma3-27b-q4", "llama3.3-70b-q4"
_CAST = (
    _Part("r-8f21c04a", _QWEN, "ci-bot", "high", 4100, 2048, 53.1),
    _Part("r-8f1ea711", _QWEN, "alice", "normal", 812, 1024, 52.8),
    _Part("r-8f1c90de", _QWEN, "bob", "normal", 31000, 4096, 48.0),
    _Part("r-8f1b55f0", _QWEN, "dora", "normal", 1900, 800, 51.4),
    _Part("r-8f02e9b3", _GEMMA, "eval", "normal", 220, 256, 0.0),
    _Part("r-8f2277aa", _GEMMA, "eval", "normal", 240, 512, 61.7),
)
_WAITING = (
    _Part("r-8f301122", _QWEN, "ci-bot", "high", 2200, 512, 0),
    _Part("r-8f336b01", _LLAMA, "carol", "normal", 640, 2048, 0),
    _Part("r-8f34d8c2", _LLAMA, "carol", "normal", 702, 2048, 0),
    _Part("r-8f35aa90", _QWEN, "batch-7", "low", 9000, 4096, 0),
    _Part("r-8f35ab17", _QWEN, "batch-7", "low", 8800, 4096, 0),
    _Part("r-8f35acd4", _QWEN, "batch-7", "low", 9100, 4096, 0),
)


class Demo:
    """Plays a daemon; see `llmtui.link.Source`.

    Args:
        clock: Unix seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.time) -> None:
        self._clock = clock
        self._began = clock()
        self._generation = 41
        self._gone: dict[str, p.Request] = {}
        self._loading: dict[str, float] = {_LLAMA: self._began - 8}
        self._off: set[str] = set()
        self._notices: list[p.Notice] = []
        self._note("started; 3 models loaded", at=self._began - 11_000)
        self._note(f"loading {_LLAMA} for carol", at=self._began - 8)

    async def connect(self) -> None:
        """Do nothing."""

    async def close(self) -> None:
        """Do nothing."""

    async def hello(self) -> p.Welcome:
        """Greet."""
        return p.Welcome(
            protocol=p.PROTOCOL, version=__version__, access="write", generation=self._generation
        )

    def _note(self, text: str, *, at: float | None = None) -> None:
        seq = len(self._notices) + 1
        self._notices.append(p.Notice(seq=seq, at=at or self._clock(), level="info", text=text))

    # --- the play ---------------------------------------------------------------------------

    def _requests(self, now: float) -> dict[str, p.Request]:
        made = [self._running(number, part, now) for number, part in enumerate(_CAST)]
        made += [self._queued(number, part) for number, part in enumerate(_WAITING)]
        return {request.id: self._gone.get(request.id, request) for request in made}

    def _running(self, number: int, part: _Part, now: float) -> p.Request:
        base = p.Request(
            id=part.id, state="decode", model=part.model, key=part.key, client="127.0.0.1",
            path="/v1/chat/completions", priority=part.priority, stream=True,
            received_at=self._began - 10 + number, queued_at=self._began - 10 + number,
            granted_at=self._began - 9.5 + number, prompt_tokens=part.prompt, prompt_exact=True,
            max_tokens=part.limit, wait_s=0.5, worker_pid=4100,
        )  # fmt: skip
        if part.prompt > 20_000:
            share = min(0.99, ((now - self._began) % _CYCLE_S + 20) / (_CYCLE_S + 25))
            return replace(base, state="prefill", progress=share, eta_at=None)
        if not part.rate:
            return replace(
                base, completion_tokens=88, tokens_per_s=0.0, silent_since_at=self._began - 20
            )
        done = int((now - self._began + 10) * part.rate) % part.limit
        left_s = (part.limit - done) / part.rate
        rate = round(part.rate + 2 * math.sin(now / 3 + number), 1)
        return replace(
            base, completion_tokens=done, tokens_per_s=rate, progress=done / part.limit,
            first_token_at=self._began - 9 + number, eta_at=round(now + left_s),
        )  # fmt: skip

    def _queued(self, number: int, part: _Part) -> p.Request:
        at = self._began - 14 + 2 * number
        if part.model == _LLAMA:
            why = p.Why(at=at, rule="model_loading", position=number, detail=f"loading {_LLAMA}")
        elif part.key == "batch-7":
            why = p.Why(at=at, rule="key_busy", position=number, detail="key at 4/4 concurrent")
        else:
            why = p.Why(at=at, rule="slots_busy", position=1, detail="4/4 slots busy")
        position = max(1, number - 1) if part.model == _QWEN else max(1, number)
        return p.Request(
            id=part.id, state="queued", model=part.model, key=part.key, client="127.0.0.1",
            path="/v1/chat/completions", priority=part.priority, received_at=at, queued_at=at,
            prompt_tokens=part.prompt, max_tokens=part.limit, position=position, why=why,
            eta_at=self._began + 30 + 20 * number,
        )  # fmt: skip

    def _workers(self, now: float) -> dict[str, p.Worker]:
        requests = [r for r in self._requests(now).values() if not r.ended]
        made = {}
        for name, gib, slots, load_s in (
            (_QWEN, 24.1, 4, 14.0),
            (_GEMMA, 19.8, 4, 11.0),
            (_LLAMA, 42.0, 2, 40.0),
            ("phi4-14b-q8", 14.9, 0, 8.0),
            ("qwen3-coder-30b", 20.5, 0, 14.0),
        ):
            mine = [r for r in requests if r.model == name]
            running = sum(r.state != "queued" for r in mine)
            queued = {"normal": len(mine) - running}
            size = int(gib * GIB)
            worker = p.Worker(
                model=name,
                state="off",
                estimate_bytes=size,
                load_s=load_s,
                queued=queued,
                fits=True,
            )
            began = self._loading.get(name)
            if name in self._off:
                worker = replace(worker, note="unloaded by an operator")
            elif began is not None and now - began < load_s:
                worker = replace(worker, state="loading", since_at=began, memory_bytes=size)
            elif slots or began is not None:
                rate = sum(r.tokens_per_s or 0.0 for r in mine)
                worker = replace(
                    worker, state="ready", slots=slots or 4, slots_busy=running, running=running,
                    since_at=began or self._began - 11_000, memory_bytes=size, fits=None, pid=4100,
                    context_tokens=32_768, tokens_per_s=round(rate, 1),
                    first_token_p95_s=0.6 + gib / 16,
                    kv_used=min(0.9, 0.2 * running + 0.05), starts=1,
                )  # fmt: skip
            elif name.startswith("phi"):
                worker = replace(
                    worker, state="backoff", since_at=self._began - 6, crashes=3, starts=3,
                    retry_at=now + 24 - (now - self._began) % 24, reason="exit 139",
                    last_failure="killed by signal 11 while it loaded", fits=None,
                )  # fmt: skip
            else:
                worker = replace(worker, note="fits now")
            made[name] = worker
        return made

    def _totals(self, now: float) -> p.Totals:
        workers = self._workers(now).values()
        waiting = sum(worker.waiting for worker in workers)
        return p.Totals(
            running=sum(w.running for w in workers), slots=sum(w.slots for w in workers),
            slots_busy=sum(w.slots_busy for w in workers), queued=waiting, max_queued=512,
            oldest_at=self._began - 14 if waiting else None,
            tokens_per_s=sum(w.tokens_per_s for w in workers),
            prefill_tokens_per_s=2700 + 400 * math.sin(now / 5), first_token_p50_s=0.42,
            first_token_p95_s=2.1, wait_p95_s=6.3, limited_per_min=2, ended_5m=184,
            memory_held_bytes=sum(w.memory_bytes for w in workers), memory_limit_bytes=_LIMIT,
            memory_total_bytes=141 * GIB,
        )  # fmt: skip

    def _daemon(self) -> p.Daemon:
        return p.Daemon(
            version=__version__, pid=4000, host="demo", started_at=self._began - 273_600,
            state="ok", admission_open=True, generation=self._generation, url="http://127.0.0.1:8080",
        )  # fmt: skip

    # --- what is asked ----------------------------------------------------------------------

    async def subscribe(self, *topics: str) -> AsyncIterator[p.Snapshot | p.Event | p.Lagged]:
        """Yield a snapshot, then an event twice a second."""
        now = self._clock()
        workers, requests = self._workers(now), self._requests(now)
        course = {
            name: tuple(
                max(0.0, worker.tokens_per_s * (1 + 0.4 * math.sin(i / 4 + len(name))))
                for i in range(60)
            )
            for name, worker in workers.items()
        }
        course[""] = tuple(sum(values) for values in zip(*course.values(), strict=True))
        yield p.Snapshot(
            seq=1, at=now, daemon=self._daemon(), totals=self._totals(now), history=course,
            workers=tuple(workers.values()), requests=tuple(requests.values()),
            log=tuple(self._notices),
        )  # fmt: skip
        seq, told = 1, len(self._notices)
        while True:
            await asyncio.sleep(0.5)
            now, seq = self._clock(), seq + 1
            before = requests
            workers, requests = self._workers(now), self._requests(now)
            changed = [r for r in requests.values() if before[r.id] != r]
            yield p.Event(
                seq=seq, at=now, daemon=self._daemon(), totals=self._totals(now),
                workers=tuple(workers.values()), requests=tuple(changed),
                log=tuple(self._notices[told:]),
            )  # fmt: skip
            told = len(self._notices)

    async def follow(self, model: str, *, lines: int = 0) -> AsyncIterator[p.LogLine]:
        """Yield lines such as a worker writes."""
        now = self._clock()
        for number in range(60):
            yield _log_line(number, now - 60 + number)
        while True:
            await asyncio.sleep(1.0)
            number += 1
            yield _log_line(number, self._clock())

    async def call(self, command: p.Command[R]) -> R:
        """Answer any command."""
        answer = await self._answer(command)
        if answer is None:
            raise _refused("not_supported", "the demo only plays a daemon; it cannot do this")
        return cast("R", answer)

    async def _answer(self, asked: p.Command[Any]) -> object:
        now = self._clock()
        workers, live = self._workers(now), self._requests(now)
        if isinstance(asked, p.Switch):
            return await self.switch(
                asked.model, evict=asked.evict, add=asked.add, if_gen=asked.if_gen,
                dry_run=asked.dry_run,
            )  # fmt: skip
        if isinstance(asked, p.Load):
            return await self.switch(asked.model, add=True, if_gen=asked.if_gen)
        if isinstance(asked, p.Unload):
            return await self.unload(asked.model, if_gen=asked.if_gen)
        if isinstance(asked, p.Cancel):
            wanted = [r for r in live.values() if asked.model in ("", r.model)]
            wanted = [r for r in wanted if asked.key in ("", r.key)]
            return await self.cancel(*(asked.requests or [r.id for r in wanted]))
        if isinstance(asked, p.GetStatus):
            shown = tuple(workers.values())
            return p.Status(daemon=self._daemon(), totals=self._totals(now), workers=shown)
        if isinstance(asked, p.GetRequests):
            return p.Requests(requests=tuple(live.values()), total=len(live))
        if isinstance(asked, p.GetModels):
            return p.Models(models=tuple(map(_model, workers.values())))
        if isinstance(asked, p.GetVersion):
            return p.Version(version=__version__, protocol=p.PROTOCOL, engine="a play")
        return None

    async def why(self, request: str) -> p.Story:
        """Return a request's story."""
        found = self._requests(self._clock()).get(request)
        if found is None:
            raise _refused("request_not_found", "no such request")
        return p.Story(request=found, steps=_steps(found))

    async def cancel(self, *requests: str) -> p.Cancelled:
        """End requests."""
        now = self._clock()
        live = self._requests(now)
        hit = tuple(r for r in requests if r in live and not live[r].ended)
        for name in hit:
            self._gone[name] = replace(
                live[name], state="cancelled", ended_at=now, reason="by an operator"
            )
        self._note(f"cancelled {' '.join(hit) or 'nothing'}")
        return p.Cancelled(cancelled=hit)

    async def switch(
        self,
        model: str,
        *,
        evict: Sequence[str] = (),
        add: bool = False,
        drain_s: float | None = None,
        force: bool = False,
        if_gen: int | None = None,
        dry_run: bool = False,
    ) -> p.Plan:
        """Plan a switch, or do it."""
        self._check(if_gen)
        now = self._clock()
        workers = self._workers(now)
        if model not in workers:
            raise _refused("model_not_found", f"there is no model {model}")
        worker = workers[model]
        held = sum(w.memory_bytes for w in workers.values())
        victim = workers[_GEMMA]
        loaded = worker.state in ("ready", "loading")
        goes = not loaded and victim.state == "ready" and model != _GEMMA and not add
        gone = (
            p.Eviction(
                model=_GEMMA,
                running=victim.running,
                memory_bytes=victim.memory_bytes,
                service_s=9.0,
                service_p95_s=14.2,
            ),
        )
        plan = p.Plan(
            model=model, loaded=loaded, fits=True, add=add, evict=gone if goes else (),
            fits_beside=held + worker.estimate_bytes <= _LIMIT, queued=worker.waiting,
            load_s=0.0 if loaded else worker.load_s, load_measured=worker.starts > 0,
            drain_s=drain_s or 0.0, auto_switch=True, memory_bytes=worker.estimate_bytes,
            held_bytes=held, limit_bytes=_LIMIT, generation=self._generation, state=worker.state,
            dry_run=dry_run, command=f"llmctl switch {model} --if-gen {self._generation}",
        )  # fmt: skip
        if not dry_run and not loaded:
            self._generation += 1
            self._off.discard(model)
            self._loading[model] = now
            if goes:
                self._unloaded(_GEMMA)
            self._note(f"switch to {model}")
        return plan

    async def unload(
        self,
        model: str,
        *,
        drain_s: float | None = None,
        force: bool = False,
        if_gen: int | None = None,
    ) -> p.Acted:
        """Take a model out of memory."""
        self._check(if_gen)
        self._generation += 1
        self._unloaded(model)
        self._note(f"unloaded {model}")
        return p.Acted(model=model, state="off")

    def _unloaded(self, model: str) -> None:
        now = self._clock()
        self._off.add(model)
        self._loading.pop(model, None)
        for request in self._requests(now).values():
            if request.model == model and not request.ended and request.state != "queued":
                self._gone[request.id] = replace(request, state="done", ended_at=now)

    def _check(self, if_gen: int | None) -> None:
        if if_gen is not None and if_gen != self._generation:
            raise _refused("conflict", "what is loaded has changed meanwhile; look again")


def _model(worker: p.Worker) -> p.Model:
    return p.Model(
        name=worker.model, state=worker.state, context=32_768, quantisation="Q4_K_M",
        size_bytes=worker.estimate_bytes, estimate_bytes=worker.estimate_bytes,
        capabilities=("chat",),
    )  # fmt: skip


def _steps(request: p.Request) -> tuple[p.Why, ...]:
    """Return what a request waited for: others first, then what its row says."""
    queued_at = request.queued_at or request.received_at
    if request.why is not None:
        ahead = p.Why(
            at=queued_at, rule="behind", blockers=("r-8f1ea711",), position=request.position + 1,
            detail="1 ahead, 4/4 slots busy",
        )  # fmt: skip
        return (ahead, replace(request.why, at=queued_at + 1.4, blockers=("r-8f21c04a",)))
    if request.granted_at is None:
        return ()
    busy = p.Why(
        at=queued_at, rule="slots_busy", blockers=("r-8f1b55f0",), position=1,
        detail="4/4 slots busy",
    )  # fmt: skip
    return (busy, p.Why(at=request.granted_at, rule="granted", detail="slot 3 of 4"))


def _refused(code: str, message: str) -> Refused:
    return Refused(p.Failure(code=code, message=message))


_SAID = (
    "0.00.052.301 I srv  update_slots: id 3 | task 812 | prompt processing, progress = 0.44",
    "0.00.052.644 I slot release: id 1 | task 812 | stop processing: n_tokens = 1364",
    "0.00.052.802 I srv  log_server_r: done request: POST /v1/chat/completions 127.0.0.1 200",
    "0.00.053.120 W slot update_slots: id 1 | context shift is disabled, truncated = 1",
    "0.00.053.377 D slot print_timing: id 0 | eval time = 2471.20 ms, 53.01 tokens per second",
    "0.00.053.910 I srv  params_from_: Chat format: Hermes 2 Pro",
    "0.00.054.404 E srv  send_error: task id = 815, error: the request exceeds the context size",
)


def _log_line(number: int, at: float) -> p.LogLine:
    text = _SAID[(3 * number + number // 5) % len(_SAID)]
    return p.LogLine(seq=number + 1, at=at, stream="stderr", text=text)
