"""A daemon that is played and not run, for `--demo`: it answers actions with their effect."""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterator, Sequence
from typing import Any, TypeVar, cast

from msgspec.structs import replace

from llmd import __version__
from llmd.admin import protocol as p
from llmd.admin.calls import Refused
from llmtui.play import GEMMA, LIMIT, Play

R = TypeVar("R")


_DRAIN_S = 8.0  # by then the play's requests are done, whatever longer time they were given
_BY = "operator: {} user=root uid=0".format


class Demo(Play):
    """Plays a daemon; see `llmtui.link.Source`."""

    async def connect(self) -> None:
        """Do nothing."""

    async def close(self) -> None:
        """Do nothing."""

    async def hello(self) -> p.Welcome:
        """Greet."""
        return p.Welcome(
            protocol=p.PROTOCOL, version=__version__, access="write", generation=self.generation
        )

    # --- what is asked ----------------------------------------------------------------------

    async def subscribe(self, *topics: str) -> AsyncIterator[p.Snapshot | p.Event | p.Lagged]:
        """Yield a snapshot, then an event twice a second."""
        now = self.clock()
        workers, requests = self.workers(now), self.requests(now)
        course = {
            name: tuple(
                max(0.0, worker.tokens_per_s * (1 + 0.4 * math.sin(i / 4 + len(name))))
                for i in range(60)
            )
            for name, worker in workers.items()
        }
        course[""] = tuple(sum(values) for values in zip(*course.values(), strict=True))
        yield p.Snapshot(
            seq=1, at=now, daemon=self.daemon(), totals=self.totals(now), history=course,
            workers=tuple(workers.values()), requests=tuple(requests.values()),
            log=tuple(self.notices),
        )  # fmt: skip
        seq, told = 1, len(self.notices)
        while True:
            await asyncio.sleep(0.5)
            now, seq = self.clock(), seq + 1
            before = requests
            workers, requests = self.workers(now), self.requests(now)
            changed = [r for r in requests.values() if before.get(r.id) != r]
            yield p.Event(
                seq=seq, at=now, daemon=self.daemon(), totals=self.totals(now),
                workers=tuple(workers.values()), requests=tuple(changed),
                log=tuple(self.notices[told:]),
            )  # fmt: skip
            told = len(self.notices)

    async def follow(self, model: str, *, lines: int = 0) -> AsyncIterator[p.LogLine]:
        """Yield lines such as a worker writes."""
        now = self.clock()
        for number in range(60):
            yield _log_line(number, now - 60 + number)
        while True:
            await asyncio.sleep(1.0)
            number += 1
            yield _log_line(number, self.clock())

    async def call(self, command: p.Command[R]) -> R:
        """Answer any command."""
        answer = await self._answer(command)
        if answer is None:
            raise _refused("not_supported", "the demo only plays a daemon; it cannot do this")
        return cast("R", answer)

    async def _answer(self, asked: p.Command[Any]) -> object:
        now = self.clock()
        workers, live = self.workers(now), self.requests(now)
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
            return p.Status(daemon=self.daemon(), totals=self.totals(now), workers=shown)
        if isinstance(asked, p.GetRequests):
            return p.Requests(requests=tuple(live.values()), total=len(live))
        if isinstance(asked, p.GetModels):
            return p.Models(models=tuple(map(_model, workers.values())))
        if isinstance(asked, p.GetVersion):
            return p.Version(version=__version__, protocol=p.PROTOCOL, engine="a play")
        return None

    async def why(self, request: str) -> p.Story:
        """Return a request's story."""
        found = self.requests(self.clock()).get(request)
        if found is None:
            raise _refused("request_not_found", "no such request")
        return p.Story(request=found, steps=_steps(found))

    async def cancel(self, *requests: str) -> p.Cancelled:
        """End requests."""
        now = self.clock()
        live = self.requests(now)
        hit = tuple(r for r in requests if r in live and not live[r].ended)
        for name in hit:
            self.gone[name] = replace(
                live[name], state="cancelled", ended_at=now, reason="by an operator"
            )
        self.note(f"{_BY('cancel')} hit={len(hit)}")
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
        now = self.clock()
        workers = self.workers(now)
        if model not in workers:
            raise _refused("model_not_found", f"there is no model {model}")
        worker = workers[model]
        held = sum(w.memory_bytes for w in workers.values())
        victim = workers[GEMMA]
        loaded = worker.state in ("ready", "loading")
        goes = not loaded and victim.state == "ready" and model != GEMMA and not add
        gone = (
            p.Eviction(
                model=GEMMA,
                running=victim.running,
                memory_bytes=victim.memory_bytes,
                service_s=9.0,
                service_p95_s=14.2,
            ),
        )
        plan = p.Plan(
            model=model, loaded=loaded, fits=True, add=add, evict=gone if goes else (),
            fits_beside=held + worker.estimate_bytes <= LIMIT, queued=worker.waiting,
            load_s=0.0 if loaded else worker.load_s, load_measured=worker.starts > 0,
            drain_s=drain_s or 0.0, auto_switch=True, memory_bytes=worker.estimate_bytes,
            held_bytes=held, limit_bytes=LIMIT, generation=self.generation, state=worker.state,
            dry_run=dry_run, command=f"llmctl switch {model} --if-gen {self.generation}",
        )  # fmt: skip
        if not dry_run and not loaded:
            self.generation += 1
            self.off.discard(model)
            self.loading[model] = now
            if goes:
                self.loading[model] += min(_DRAIN_S, drain_s or _DRAIN_S)
                self.drained(GEMMA, self.loading[model], model)
            evicts = f" evict={GEMMA}" if goes else ""
            self.note(f"{_BY('switch')} model={model}{evicts} generation={plan.generation}")
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
        self.generation += 1
        self.unloaded(model)
        self.note(f"{_BY('unload')} model={model}")
        return p.Acted(model=model, state="off")

    def _check(self, if_gen: int | None) -> None:
        if if_gen is not None and if_gen != self.generation:
            raise _refused("conflict", "what is loaded has changed meanwhile; look again")


def _model(worker: p.Worker) -> p.Model:
    return p.Model(
        name=worker.model, state=worker.state, context=32_768, quantisation="Q4_K_M",
        size_bytes=worker.estimate_bytes, estimate_bytes=worker.estimate_bytes,
        capabilities=("chat",),
    )  # fmt: skip


def _steps(request: p.Request) -> tuple[p.Why, ...]:
    """Return what a request waited for, the last as its row says it."""
    queued_at = request.queued_at or request.received_at
    if request.why is not None:
        before = p.Why(
            at=queued_at, rule="slots_busy" if request.position == 1 else "behind",
            blockers=("r-8f1ea711",), position=request.position, detail="4/4 slots busy",
        )  # fmt: skip
        return (before, replace(request.why, at=queued_at + 1.4, blockers=("r-8f21c04a",)))
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
