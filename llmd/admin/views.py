"""The daemon's statistics and records as the views of the protocol. Nothing here waits."""

from __future__ import annotations

import os
import socket
import sys
import time
from collections.abc import Iterator, Mapping
from itertools import islice

import trio

from llmd import __version__
from llmd.admin import protocol as p
from llmd.admin.rooms import Rooms
from llmd.admin.worker_view import context_filled, describe_worker
from llmd.core import events
from llmd.core.lifecycle import Priority, RequestState, WorkerState
from llmd.core.overview import Outlook, outlook
from llmd.core.placement import Room, shortfall
from llmd.core.policy import ModelStatistics, PolicyStatistics
from llmd.core.record import RequestRecord
from llmd.models.catalog import CatalogModel
from llmd.workers.procfs import memory_used_bytes
from llmd.workers.worker import WorkerStatistics

_SILENT_S = 5.0  # without a token before a screen is told
_STATISTICS_AGE_S = 0.5  # a worker's own numbers cost system calls


class Views:
    """Makes the views.

    Args:
        rooms: What is looked at.
    """

    def __init__(self, rooms: Rooms) -> None:
        self._rooms = rooms
        self._operations = rooms.operations
        self._scheduler = rooms.operations.scheduler
        self._host = socket.gethostname()
        self._workers: dict[str, tuple[float, WorkerStatistics]] = {}
        self._used = (float("-inf"), 0)

    def statistics(self) -> PolicyStatistics:
        """Return the scheduler's numbers, from which several views are made."""
        return self._scheduler.statistics()

    def history(self) -> Mapping[str, tuple[float, ...]]:
        """Return tokens a second of the last minute, by model and "" for all."""
        return {
            model: tuple(round(value, 1) for value in values)
            for model, values in self._rooms.recent.history().items()
        }

    def record(self, request_id: str) -> RequestRecord | None:
        """Return the record of a request, live or remembered."""
        return self._operations.registry.record(request_id)

    def service_p95_s(self) -> Mapping[str, float]:
        """Return how long nearly all requests lasted that ended in the last minutes, by model."""
        return self._rooms.recent.service_p95_s(trio.current_time())

    # --- the daemon -------------------------------------------------------------------------

    def daemon(self, now: PolicyStatistics | None = None) -> p.Daemon:
        """Return the daemon's own state."""
        state = self._scheduler.state
        return p.Daemon(
            version=__version__,
            pid=os.getpid(),
            host=self._host,
            started_at=self._rooms.started_at,
            state=self._rooms.health(),
            admission_open=now.admission_open if now else state.admission_open,
            generation=now.generation if now else state.generation,
            url=self._rooms.url(),
        )

    def totals(self, now: PolicyStatistics) -> p.Totals:
        """Return the box in a line."""
        clock = Clock()
        recent, window = self._rooms.recent, self._rooms.recent.window(clock.now)
        workers = self.worker_statistics(clock.now)
        waits = [model.oldest_wait_s for model in now.models if model.oldest_wait_s > 0]
        return p.Totals(
            running=now.running,
            slots=sum(model.slots for model in now.models),
            slots_busy=sum(model.slots_busy for model in now.models),
            queued=now.queued,
            max_queued=self._rooms.max_queued,
            queued_tokens=now.queued_tokens,
            oldest_at=_rounded(clock.wall - max(waits)) if waits else None,
            tokens_per_s=round(recent.tokens_per_s(), 1),
            prefill_tokens_per_s=round(recent.prefill_per_s(), 1),
            first_token_p50_s=_rounded(window.first_token_p50_s),
            first_token_p95_s=_rounded(window.first_token_p95_s),
            wait_p95_s=_rounded(window.wait_p95_s),
            limited_per_min=window.limited,
            errors_5m=window.errors,
            ended_5m=window.ended,
            memory_held_bytes=sum(worker.memory_bytes for worker in workers.values()),
            memory_limit_bytes=self._scheduler.state.settings.memory_bytes,
            memory_used_bytes=self._memory_used(clock.now),
            memory_total_bytes=self._rooms.memory_total_bytes,
        )

    def _memory_used(self, now: float) -> int:
        at, used = self._used
        if now - at > _STATISTICS_AGE_S:
            # in whole MiB: what moves by itself should not make every event longer
            used = memory_used_bytes() >> 20 << 20
            self._used = (now, used)
        return used

    def status(self) -> p.Status:
        """Return the daemon in one page."""
        now = self._scheduler.statistics()
        return p.Status(
            daemon=self.daemon(now),
            totals=self.totals(now),
            workers=tuple(worker for worker in self.workers(now) if _matters(worker)),
        )

    def version(self) -> p.Version:
        """Return the versions."""
        return p.Version(
            version=__version__,
            protocol=p.PROTOCOL,
            python=sys.version.split()[0],
            engine=self._rooms.engine,
        )

    # --- workers and models -----------------------------------------------------------------

    def workers(self, now: PolicyStatistics) -> list[p.Worker]:
        """Return every model's worker, in the catalog's order."""
        clock = Clock()
        statistics = self.worker_statistics(clock.now)
        first_token = self._rooms.recent.first_token_p95_s(clock.now)
        queues = {model.model: model for model in now.models}
        room = self._scheduler.state.room
        held = [m.memory_bytes for m in self._scheduler.state.staying()]
        records = [handle.record for handle in self._operations.registry.handles()]
        filled = context_filled(records)
        first_rates = self._rooms.recent.first_rates(records, clock.now)
        views = []
        for model in self._operations.catalog.models:
            queue = queues[model.name]
            worker = statistics.get(model.name)
            views.append(
                describe_worker(
                    model,
                    queue,
                    worker,
                    state=self._operations.state_of(model),
                    wall_offset=clock.wall - clock.now,
                    now=clock.now,
                    fits=_fits(queue, room, held) if not model.fault else None,
                    tokens_per_s=self._rooms.recent.tokens_per_s(model.name)
                    or first_rates.get(model.name, 0.0),
                    first_token_p95_s=first_token.get(model.name),
                    context_filled_tokens=filled[model.name],
                )
            )
        return views

    def worker_statistics(self, now: float) -> dict[str, WorkerStatistics]:
        """Return each worker's own numbers, at most half a second old."""
        found = {}
        for worker in self._operations.supervisor.workers():
            at, known = self._workers.get(worker.model, (0.0, None))
            if known is None or known.state is not worker.state or now - at > _STATISTICS_AGE_S:
                known = worker.statistics()
                self._workers[worker.model] = (now, known)
            found[worker.model] = known
        return found

    def models(self) -> p.Models:
        """Return the catalog."""
        return p.Models(models=tuple(map(self._model, self._operations.catalog.models)))

    def _model(self, model: CatalogModel) -> p.Model:
        header = model.header
        serving = self._operations.state_of(model) in (WorkerState.READY, WorkerState.DRAINING)
        planned = self._rooms.fleet.planned_context(model)
        loaded = self._scheduler.context_tokens(model.name) if serving else 0
        known = self._scheduler.state.models.get(model.name)
        return p.Model(
            name=model.name,
            state=self._operations.state_of(model).value,
            aliases=model.aliases,
            context=loaded or planned,
            context_trained=header.context_length or None if header else None,
            parameters=header.parameters or None if header else None,
            quantisation=header.quantisation if header else "",
            architecture=header.architecture if header else "",
            capabilities=tuple(sorted(capability.value for capability in model.capabilities)),
            size_bytes=model.size_bytes,
            estimate_bytes=known.memory_bytes if known else 0,
            pinned=model.config.pinned,
            source=model.hf or str(model.path or ""),
            fault=model.fault,
        )

    # --- requests ---------------------------------------------------------------------------

    def live(self) -> Iterator[p.Request]:
        """Yield the requests that are on their way, the oldest first."""
        clock = Clock()
        outlooks = self._outlooks(clock.now)
        for handle in self._operations.registry.handles():
            yield self.request(handle.record, clock, outlooks.get(handle.record.id))

    def requests(self, command: p.GetRequests) -> p.Requests:
        """Return what was asked for."""
        clock = Clock()
        wanted = [record for record in self._records() if _matches(record, command)]
        outlooks = self._outlooks(clock.now)
        listed = islice(wanted, command.limit)
        return p.Requests(
            requests=tuple(self.request(r, clock, outlooks.get(r.id)) for r in listed),
            total=len(wanted),
        )

    def _records(self) -> Iterator[RequestRecord]:
        return self._operations.registry.records()

    def _outlooks(self, now: float) -> dict[str, Outlook]:
        return {found.id: found for found in outlook(self._scheduler.state, now)}

    def story(self, record: RequestRecord) -> p.Story:
        """Return a request's whole story."""
        clock = Clock()
        waiting = self._outlooks(clock.now).get(record.id)
        steps = (*record.story, *self._scheduler.story(record.id))
        shift = record.created - record.received
        return p.Story(
            request=self.request(record, clock, waiting),
            steps=tuple(_why(step, shift) for step in steps),
            limited=self._rooms.recent.limited(record.key, clock.now),
        )

    def request(
        self, record: RequestRecord, clock: Clock | None = None, waiting: Outlook | None = None
    ) -> p.Request:
        """Return one request; `waiting` says what it waits for, if it does."""
        clock = clock or Clock()
        shift = record.created - record.received  # from the monotonic clock to Unix seconds
        decoding = record.state is RequestState.DECODE
        rate = self._rooms.recent.request_rate(record.id) if decoding else None
        produced = record.completion_tokens or record.events
        most = (record.max_tokens or 0) * record.sequences
        counted = record.prompt_tokens or record.prefill_total_tokens
        return p.Request(
            id=record.id,
            state=record.state.value,
            model=record.model,
            key=record.key,
            fingerprint=record.fingerprint,
            user=record.user,
            role=record.role,
            client=record.client,
            path=record.path,
            priority=record.priority.value,
            stream=record.stream,
            sequences=record.sequences,
            received_at=round(record.created, 3),
            queued_at=_moment(record.queued_at, shift),
            granted_at=_moment(record.granted_at, shift),
            first_token_at=_moment(record.first_byte_at, shift),
            ended_at=_moment(record.ended_at, shift),
            wait_s=round(record.waited_s, 3),
            estimate_tokens=record.estimate_tokens,
            prompt_tokens=counted or record.prompt_estimate_tokens,
            prompt_exact=counted > 0,
            cached_tokens=record.cached_tokens,
            completion_tokens=produced,
            max_tokens=record.max_tokens,
            temperature=record.temperature,
            tokens_per_s=None if rate is None else round(rate, 1),
            progress=_progress(record, produced, most),
            eta_at=_eta_at(clock, waiting, rate, most - produced if most > 0 else 0),
            silent_since_at=self._silent_since(record, clock) if decoding else None,
            position=waiting.why.position if waiting else 0,
            why=_why(waiting.why, shift) if waiting else None,
            retries=record.retries,
            worker_pid=record.worker_pid,
            request_bytes=record.request_bytes,
            response_bytes=record.response_bytes,
            status=record.status,
            code=record.code,
            reason=record.reason,
            cancel_cause=record.cancel_cause.value if record.cancel_cause else "",
            cancelled_by=record.cancelled_by,
        )

    def _silent_since(self, record: RequestRecord, clock: Clock) -> float | None:
        grew_at = self._rooms.recent.grew_at(record.id)
        if grew_at is None or clock.now - grew_at < _SILENT_S:
            return None
        return round(grew_at + record.created - record.received, 1)

    # --- the queue --------------------------------------------------------------------------

    def queue(self, now: PolicyStatistics) -> p.Queue:
        """Return the queue at one moment."""
        wall = time.time()
        return p.Queue(
            admission_open=now.admission_open,
            queued=now.queued,
            queued_tokens=now.queued_tokens,
            max_queued=self._rooms.max_queued,
            max_queued_tokens=self._rooms.max_queued_tokens,
            by_class={
                priority.value: sum(model.queued.get(priority, 0) for model in now.models)
                for priority in Priority
            },
            models=tuple(
                p.QueueModel(
                    model=model.model,
                    running=model.running,
                    queued={priority.value: n for priority, n in model.queued.items() if n},
                    queued_tokens=model.queued_tokens,
                    oldest_at=_rounded(wall - model.oldest_wait_s) if model.oldest_wait_s else None,
                    service_s=_rounded(model.service_s),
                    load_s=round(model.load_s, 3),
                )
                for model in now.models
                if model.running or model.queued_tokens or model.model in now.loaded
            ),
            keys=tuple(
                p.QueueKey(key=k.key, queued=k.queued, running=k.running, counter=k.counter)
                for k in now.keys
            ),
        )


class Clock:
    """One moment on both clocks."""

    __slots__ = ("now", "wall")

    def __init__(self) -> None:
        self.now = trio.current_time()
        self.wall = time.time()


def _matters(worker: p.Worker) -> bool:
    return worker.state != WorkerState.OFF.value or worker.waiting > 0 or worker.wanted


def _matches(record: RequestRecord, command: p.GetRequests) -> bool:
    return (
        (command.ended or not record.ended or bool(command.state))
        and command.state in ("", record.state.value)
        and command.model in ("", record.model)
        and command.key in ("", record.key)
    )


def _progress(record: RequestRecord, produced: int, most: int) -> float | None:
    """Return how far a request is, 0 to 1: of its prompt, then of its `max_tokens`."""
    done, whole = produced, most
    if record.state is RequestState.PREFILL:
        done, whole = record.prefill_tokens, record.prefill_total_tokens
    elif record.state is not RequestState.DECODE:
        return None
    return round(min(1.0, done / whole), 3) if whole > 0 else None


def _fits(queue: ModelStatistics, room: Room, held: list[int]) -> bool | None:
    if queue.state in (WorkerState.OFF, WorkerState.FAILED) and not queue.wanted:
        return shortfall(room, held, queue.memory_bytes) == (0, 0)
    return None


def _why(why: events.Why, shift: float) -> p.Why:
    return p.Why(
        at=round(why.at + shift, 3),
        rule=why.rule.value,
        blockers=why.blockers,
        position=why.position,
        detail=why.detail,
    )


def _eta_at(clock: Clock, waiting: Outlook | None, rate: float | None, left: int) -> float | None:
    if waiting is not None:
        return None if waiting.eta_s is None else round(clock.wall + waiting.eta_s, 1)
    return round(clock.wall + left / rate, 1) if rate and left > 0 else None


def _moment(at: float | None, shift: float) -> float | None:
    return None if at is None else round(at + shift, 3)


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 3)
