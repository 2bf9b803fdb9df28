"""A made-up box that moves: what `--demo` and the README's picture show.

Numbers follow from the clock alone, so every start looks the same.
"""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from dataclasses import replace as changed

from msgspec.structs import replace

from llmd import __version__
from llmd.admin import protocol as p

GIB = 1 << 30
LIMIT = 133 * GIB  # the GPU's memory but for the reserve
_BYTES_PER_TOKEN, _EVENT_BYTES = 4, 212  # of a prompt's text; of a streamed token's event
_NEXT_ID = 0x1003F
_LOAD_S = 40.0  # of the model that loads when the play begins


@dataclass(frozen=True)
class _Part:
    """A client of the play: one request, and once it is answered the next of the same kind.

    Its first one was received `age_s` before the play began; a rate of 0 is a request that stalls.
    """

    id: str
    model: str
    key: str
    priority: str
    prompt: int
    limit: int
    rate: float
    cached: int = 0
    age_s: float = 0.0
    prefill_s: float = 0.5


QWEN, GEMMA, LLAMA = "qwen3-32b-q4", "gemma3-27b-q4", "llama3.3-70b-q4"
_CAST = (
    _Part("r-8f21c04a", QWEN, "ci-bot", "high", 4100, 2048, 53.1, 3900, 10),
    _Part("r-8f1ea711", QWEN, "alice", "normal", 812, 1024, 52.8, 0, 9),
    _Part("r-8f1c90de", QWEN, "bob", "normal", 31000, 4096, 48.0, 2000, 8, 11),
    _Part("r-8f1b55f0", QWEN, "dora", "normal", 1900, 800, 51.4, 0, 7),
    _Part("r-8f02e9b3", GEMMA, "eval", "normal", 220, 256, 0.0, 0, 41),
    _Part("r-8f2277aa", GEMMA, "eval", "normal", 240, 512, 61.7, 0, 5),
)
_WAITING = (
    _Part("r-8f301122", QWEN, "ci-bot", "high", 2200, 512, 0),
    _Part("r-8f336b01", LLAMA, "carol", "normal", 640, 2048, 0),
    _Part("r-8f34d8c2", LLAMA, "carol", "normal", 702, 2048, 0),
    _Part("r-8f35aa90", QWEN, "batch-7", "low", 9000, 4096, 0),
    _Part("r-8f35ab17", QWEN, "batch-7", "low", 8800, 4096, 0),
    _Part("r-8f35acd4", QWEN, "batch-7", "low", 9100, 4096, 0),
)


class Play:
    """The box: what is loaded, who runs and who waits, as the clock has it.

    Args:
        clock: Unix seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.time) -> None:
        self.clock = clock
        self.began = clock()
        self.generation = 41
        self.gone: dict[str, p.Request] = {}
        self.loading: dict[str, float] = {LLAMA: self.began - 8}
        self.leaving: dict[str, tuple[float, str]] = {}  # until when, and for which model
        self.off: set[str] = set()
        self.notices: list[p.Notice] = []
        for ago, text in (
            (11_060, "listening url=http://127.0.0.1:8080 engine=path models=5"),
            (11_000, f"worker ready model={GEMMA} load_s=11.2"),
            (10_980, f"worker ready model={QWEN} load_s=14.1"),
            (8, f"operator: switch user=root uid=0 model={LLAMA} evict=gemma3-12b generation=41"),
            (8, f"worker loading model={LLAMA}"),
        ):
            self.note(text, at=self.began - ago)

    def note(self, text: str, *, at: float | None = None) -> None:
        """Write a line into the daemon's log."""
        seq = len(self.notices) + 1
        self.notices.append(p.Notice(seq=seq, at=at or self.clock(), level="info", text=text))

    # --- the play ---------------------------------------------------------------------------

    def requests(self, now: float) -> dict[str, p.Request]:
        """Return the requests, ended ones as they ended."""
        self._let_go(now)
        made = []
        for part in _CAST:
            away = part.model in self.off or part.model in self.loading
            made += [r for r in self._answered(part, now) if r.id in self.gone or not away]
        lines = dict.fromkeys((QWEN, LLAMA), 0)
        for part in _WAITING:
            if part.model == LLAMA and self._loaded_at() <= now:
                made += self._served(part, now)
                continue
            queued = self._queued(part, lines[part.model] + 1, now)
            lines[part.model] += queued.id not in self.gone
            made.append(queued)
        return {request.id: self.gone.get(request.id, request) for request in made}

    def _loaded_at(self) -> float:
        """Return when the model that loads first will have: whoever waits for it runs then."""
        return self.loading.get(LLAMA, math.inf) + _LOAD_S

    def _served(self, part: _Part, now: float) -> list[p.Request]:
        """Return a client's request that ran once its model was there, and what came after it."""
        came_at, at = self._came_at(part), self._loaded_at() - 0.5
        runs = changed(part, rate=31.0, age_s=self.began - at)
        return [
            replace(r, received_at=came_at, queued_at=came_at, wait_s=at + 0.5 - came_at)
            if r.id == part.id
            else r
            for r in self._answered(runs, now)
        ]

    def _came_at(self, part: _Part) -> float:
        return self.began - 14 + 2 * _WAITING.index(part)

    def _answered(self, part: _Part, now: float) -> list[p.Request]:
        """Return a client's request of now, and before it the one that it had."""
        at = self.began - part.age_s
        if not part.rate:
            return [self._running(part, part.id, at, now)]
        life_s = 0.5 + part.prefill_s + part.limit / part.rate
        number = int((now - at) / life_s)
        return [
            self._running(
                part, f"r-{int(part.id[2:], 16) + n * _NEXT_ID:08x}", at + n * life_s, now
            )
            for n in range(max(0, number - 1), number + 1)
        ]

    def _running(self, part: _Part, name: str, at: float, now: float) -> p.Request:
        granted_at, first_at = at + 0.5, at + 0.5 + part.prefill_s
        base = p.Request(
            id=name, state="decode", model=part.model, key=part.key, client="127.0.0.1",
            fingerprint=_fingerprint(part.key), temperature=0.7,
            path="/v1/chat/completions", priority=part.priority, stream=True, received_at=at,
            queued_at=at, granted_at=granted_at, prompt_tokens=part.prompt, prompt_exact=True,
            cached_tokens=part.cached, max_tokens=part.limit, wait_s=0.5, worker_pid=4100,
            request_bytes=_BYTES_PER_TOKEN * part.prompt + 180,
        )  # fmt: skip
        if now < first_at:
            fresh = (1 - part.cached / part.prompt) * max(0.0, now - granted_at) / part.prefill_s
            return replace(base, state="prefill", progress=part.cached / part.prompt + fresh)
        if not part.rate:
            return replace(
                base, first_token_at=first_at, completion_tokens=88, tokens_per_s=0.0,
                silent_since_at=self.began - 20, response_bytes=88 * _EVENT_BYTES,
            )  # fmt: skip
        done = min(part.limit, int((now - first_at) * part.rate))
        base = replace(
            base, completion_tokens=done, first_token_at=first_at, progress=done / part.limit,
            response_bytes=done * _EVENT_BYTES,
        )  # fmt: skip
        ends_at = first_at + part.limit / part.rate
        if now >= ends_at:
            return replace(base, state="done", status=200, ended_at=ends_at)
        rate = round(part.rate + 2 * math.sin(now / 3 + part.age_s), 1)
        return replace(base, tokens_per_s=rate, eta_at=round(ends_at))

    def _queued(self, part: _Part, position: int, now: float) -> p.Request:
        place, at = _WAITING.index(part), self._came_at(part)
        rule, detail = "behind", f"{position - 1} ahead, 4/4 slots busy"
        if part.model == LLAMA:
            began = self.loading.get(LLAMA, now)
            share, left_s = min(0.99, (now - began) / _LOAD_S), max(0, began + _LOAD_S - now)
            rule, detail = "model_loading", f"loading, {share:.0%}, about {left_s:.0f} s left"
        elif position == 1:
            rule, detail = "slots_busy", "4/4 slots busy"
        eta_at = self.began + 30 + 20 * place
        while eta_at <= now:
            eta_at += 60
        return p.Request(
            id=part.id, state="queued", model=part.model, key=part.key, client="127.0.0.1",
            fingerprint=_fingerprint(part.key), temperature=0.7,
            path="/v1/chat/completions", priority=part.priority, received_at=at, queued_at=at,
            prompt_tokens=part.prompt, max_tokens=part.limit, position=position,
            why=p.Why(at=at, rule=rule, position=position, detail=detail), eta_at=eta_at,
            request_bytes=_BYTES_PER_TOKEN * part.prompt + 180,
        )  # fmt: skip

    def workers(self, now: float) -> dict[str, p.Worker]:
        """Return the workers by model."""
        requests = [r for r in self.requests(now).values() if not r.ended]
        made: dict[str, p.Worker] = {}
        for name, gib, slots, load_s in (
            (QWEN, 24.1, 4, 14.0),
            (GEMMA, 19.8, 4, 11.0),
            (LLAMA, 42.0, 2, _LOAD_S),
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
            began = self.loading.get(name)
            if name in self.off:
                worker = replace(worker, note="unloaded by an operator")
            elif began is not None and now < began:
                worker = replace(worker, wanted=True, note="starts when there is room")
            elif began is not None and now - began < load_s:
                worker = replace(
                    worker, state="loading", since_at=began, memory_bytes=size,
                    load_progress=round((now - began) / load_s, 2),
                )  # fmt: skip
            elif slots or began is not None:
                rate = sum(r.tokens_per_s or 0.0 for r in mine)
                worker = replace(
                    worker, state="ready", slots=slots or 4, slots_busy=running, running=running,
                    since_at=began or self.began - 11_000, memory_bytes=size, fits=None, pid=4100,
                    context_tokens=32_768, tokens_per_s=round(rate, 1),
                    first_token_p95_s=0.6 + gib / 16,
                    kv_used=min(0.9, 0.2 * running + 0.05), starts=1,
                )  # fmt: skip
                if name in self.leaving:
                    whom = self.leaving[name][1]
                    worker = replace(
                        worker, state="draining", leaving="operator", leaving_for=whom,
                        note=f"gives way to {whom}, {running} running",
                    )  # fmt: skip
            elif name.startswith("phi"):
                worker = replace(
                    worker, state="backoff", since_at=self.began - 6, crashes=3, starts=3,
                    retry_at=now + 24 - (now - self.began) % 24, reason="exit 139",
                    last_failure="killed by signal 11 while it loaded", fits=None,
                )  # fmt: skip
            else:
                worker = replace(worker, note="fits now")
            made[name] = worker
        return made

    def totals(self, now: float) -> p.Totals:
        """Return the box in a line."""
        workers = self.workers(now).values()
        waiting = sum(worker.waiting for worker in workers)
        return p.Totals(
            running=sum(w.running for w in workers), slots=sum(w.slots for w in workers),
            slots_busy=sum(w.slots_busy for w in workers), queued=waiting, max_queued=512,
            oldest_at=self.began - 14 if waiting else None,
            tokens_per_s=sum(w.tokens_per_s for w in workers),
            prefill_tokens_per_s=self._prefilled(now), first_token_p50_s=0.42,
            first_token_p95_s=2.1, wait_p95_s=6.3, limited_per_min=2, ended_5m=184,
            memory_held_bytes=sum(w.memory_bytes for w in workers), memory_limit_bytes=LIMIT,
            memory_used_bytes=61 * GIB, memory_total_bytes=128 * GIB,
            gpus=(self._gpu(now, sum(w.memory_bytes for w in workers)),),
        )  # fmt: skip

    def _prefilled(self, now: float) -> float:
        """Return how many prompt tokens a second are read now."""
        reading = {r.key: r for r in self.requests(now).values() if r.state == "prefill"}
        return sum((c.prompt - c.cached) / c.prefill_s for c in _CAST if c.key in reading)

    def _gpu(self, now: float, held: int) -> p.Gpu:
        return p.Gpu(
            name="NVIDIA H200", utilization=0.88 + 0.05 * math.sin(now / 4),
            memory_used_bytes=held, memory_total_bytes=141 * GIB,
            temperature_c=round(64 + math.sin(now / 9)), power_w=round(412 + 9 * math.sin(now / 4)),
        )  # fmt: skip

    def daemon(self) -> p.Daemon:
        """Return the daemon."""
        return p.Daemon(
            version=__version__, pid=4000, host="demo", started_at=self.began - 273_600,
            state="ok", admission_open=True, generation=self.generation, url="http://127.0.0.1:8080",
        )  # fmt: skip

    def drained(self, model: str, until: float, whom: str) -> None:
        """Let a model's requests run on for a while before it goes for another."""
        self.leaving[model] = (until, whom)

    def _let_go(self, now: float) -> None:
        """Take out what has been drained for long enough."""
        for model, (until, _) in [*self.leaving.items()]:
            if now >= until:
                del self.leaving[model]
                self.unloaded(model)
                self.note(f"worker off model={model} reason=operator", at=until)

    def unloaded(self, model: str) -> None:
        """Take a model out, and end what runs there."""
        now = self.clock()
        live = self.requests(now)
        self.off.add(model)
        self.loading.pop(model, None)
        for request in live.values():
            if request.model == model and not request.ended and request.state != "queued":
                self.gone[request.id] = replace(request, state="done", ended_at=now)


def _fingerprint(key: str) -> str:
    digest = hashlib.sha256(key.encode()).hexdigest()
    return f"{digest[:2]}..{digest[-2:]}"
