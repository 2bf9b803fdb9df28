"""What subscribers are told: a snapshot, then numbered events with whole rows that changed.

The daemon is looked at once a tick for all subscribers together, and only while there are any. A
subscriber that reads too slowly loses events, is told so, and gets a fresh snapshot when it reads
again: what it costs the daemon is bounded by how fast it reads.
"""

from __future__ import annotations

import logging
import math
import time
from collections import deque
from collections.abc import Callable, Iterable

import msgspec
import trio

from llmd.admin import protocol as p
from llmd.admin.framing import clean_line
from llmd.admin.notices import Notices
from llmd.admin.views import Views
from llmd.core.policy import PolicyStatistics
from llmd.core.record import RequestRecord

_log = logging.getLogger("llmd")
TICK_S = 0.25
_FAULT_PAUSE_S = 5.0  # after a fault of our own: it may be there at each look
_SHARE = 0.04  # of the daemon's time, at most: with very many requests ticks are further apart
_QUIET_S = 5.0  # without any change, a sign of life
_TOTALS_S = 0.5
_KEPT_EVENTS = 64
_KEPT_BYTES = 1 << 18
_ENDED_A_TICK = 500
_CHUNK = 50  # rows made before others may run
_ETA_TOLERANCE_S = 1.0

encode = msgspec.json.Encoder().encode


class Subscription:
    """One client's interest, and what is on its way to it.

    Args:
        id: Of the command that asked for it.
        topics: What it is about.
        snapshot: Makes a fresh snapshot for it.
    """

    def __init__(
        self,
        id: int | str,  # noqa: A002
        topics: frozenset[str],
        snapshot: Callable[[Subscription], bytes],
    ) -> None:
        self.id = id
        self.topics = topics
        self.prefix = encode(id)
        self._snapshot = snapshot
        self._kept: deque[bytes] = deque()
        self._bytes = 0
        self._missed = 0
        self._fresh = True
        self._news = trio.Event()
        self._seq = 0

    def put(self, seq: int, body: bytes) -> None:
        """Have an event sent, or noted as missed when too much is waiting to be sent."""
        self._seq = seq
        if self._fresh:
            self._missed += bool(self._missed)
            return
        if len(self._kept) >= _KEPT_EVENTS or self._bytes + len(body) > _KEPT_BYTES:
            self.start_over()
        else:
            self._kept.append(addressed(body, self.prefix))
            self._bytes += len(body)
        self._news.set()

    def start_over(self) -> None:
        """Have a snapshot take the place of all that is on its way."""
        if not self._fresh:
            self._missed = len(self._kept) + 1
            self._kept.clear()
            self._bytes = 0
            self._fresh = True
        self._news.set()

    async def next(self) -> bytes:
        """Wait for what is to be sent next: one or several whole lines."""
        while not self._kept and not self._fresh:
            self._news = trio.Event()
            await self._news.wait()
        if not self._fresh:
            lines = b"".join(self._kept)
            self._kept.clear()
            self._bytes = 0
            return lines
        self._fresh = False
        head = b""
        if self._missed:
            head = encode(p.Lagged(id=self.id, seq=self._seq, missed=self._missed)) + b"\n"
            self._missed = 0
        return head + self._snapshot(self)


class Hub:
    """Looks at the daemon for all subscribers.

    Args:
        views: What it looks at.
        notices: The daemon's log.
        tick_s: Seconds between two looks, at least.
    """

    def __init__(self, views: Views, notices: Notices, *, tick_s: float = TICK_S) -> None:
        self._views = views
        self._notices = notices
        self._tick_s = tick_s
        self._subscriptions: set[Subscription] = set()
        self._wanted = trio.Event()
        self._ended: deque[RequestRecord] = deque(maxlen=_ENDED_A_TICK)
        self._seq = 0
        self._notice_seq = 0
        self._said_at = -math.inf
        self._totals_at = -math.inf
        self._daemon: p.Daemon | None = None
        self._totals: p.Totals | None = None
        self._queue: p.Queue | None = None
        self._workers: dict[str, p.Worker] = {}
        self._requests: dict[str, p.Request] = {}

    def __len__(self) -> int:
        return len(self._subscriptions)

    def subscribe(self, id: int | str, topics: Iterable[str]) -> Subscription:  # noqa: A002
        """Return a new subscription; its first message is a snapshot."""
        if not self._subscriptions:
            self._look_afresh()
        made = Subscription(id, frozenset(topics), self._snapshot)
        self._subscriptions.add(made)
        self._wanted.set()
        return made

    def unsubscribe(self, subscription: Subscription) -> None:
        """Forget a subscription."""
        self._subscriptions.discard(subscription)

    def ended(self, record: RequestRecord) -> None:
        """Take in that a request has ended."""
        if self._subscriptions:
            self._ended.append(record)

    async def run(self) -> None:
        """Publish what changes, until cancelled."""
        pause_s = self._tick_s
        while True:
            if not self._subscriptions:
                self._wanted = trio.Event()
                await self._wanted.wait()
            await trio.sleep(pause_s)
            started = time.perf_counter()
            try:
                await self._publish()
            except Exception:  # whoever watches must not end what he watches
                _log.exception("what has changed could not be told; this is a fault in llmd")
                for subscription in self._subscriptions:
                    subscription.start_over()
                pause_s = _FAULT_PAUSE_S
                continue
            pause_s = max(self._tick_s, (time.perf_counter() - started) / _SHARE)

    # --- looking ----------------------------------------------------------------------------

    def _look_afresh(self) -> None:
        """Know everything as it is now, for the first snapshot after a time without anybody."""
        now = self._views.statistics()
        self._ended.clear()
        self._daemon = self._views.daemon(now)
        self._totals = self._views.totals(now)
        self._queue = self._views.queue(now)
        self._workers = {worker.model: worker for worker in self._views.workers(now)}
        self._requests = {request.id: request for request in self._views.live()}
        self._notice_seq = self._notices.seq

    def _snapshot(self, subscription: Subscription) -> bytes:
        assert self._daemon is not None
        assert self._totals is not None
        topics = subscription.topics
        message = p.Snapshot(
            id=subscription.id,
            seq=self._seq,
            at=round(time.time(), 3),
            daemon=self._daemon,
            totals=self._totals,
            workers=tuple(self._workers.values()) if "workers" in topics else None,
            requests=tuple(self._requests.values()) if "requests" in topics else None,
            queue=self._queue if "queue" in topics else None,
            log=self._notices.until(self._notice_seq) if "log" in topics else None,
            history=self._views.history(),
        )
        return clean_line(encode(message)) + b"\n"

    # --- publishing -------------------------------------------------------------------------

    async def _publish(self) -> None:
        """Compare the daemon with what was told before, and tell what is different."""
        now = self._views.statistics()
        requests = await self._changed_requests()
        daemon = self._changed_daemon(now)
        totals = self._changed_totals(now)
        queue = self._changed_queue(now)
        workers = self._changed_workers(now)
        notices = self._notices.since(self._notice_seq)
        self._notice_seq = self._notices.seq
        clock = trio.current_time()
        changed = daemon or totals or queue or workers or requests or notices
        if not changed and clock - self._said_at < _QUIET_S:
            return
        self._said_at = clock
        self._seq += 1
        event = p.Event(
            seq=self._seq,
            at=round(time.time(), 3),
            daemon=daemon,
            totals=totals,
            workers=tuple(workers),
            requests=tuple(requests),
            queue=queue,
            log=notices,
        )
        bodies: dict[frozenset[str], bytes | None] = {}
        for subscription in self._subscriptions:
            topics = subscription.topics
            if topics not in bodies:
                bodies[topics] = _body(event, topics)
            body = bodies[topics]
            if body is not None:
                subscription.put(self._seq, body)

    async def _changed_requests(self) -> list[p.Request]:
        changed, seen = [], {}
        for count, row in enumerate(list(self._views.live())):
            old = self._requests.get(row.id)
            if old is None or not _same(old, row):
                changed.append(row)
            else:
                row = old  # noqa: PLW2901
            seen[row.id] = row
            if count % _CHUNK == _CHUNK - 1:
                await trio.lowlevel.checkpoint()
        ended = [self._views.request(record) for record in self._ended]
        self._ended.clear()
        gone = {row.id for row in ended}
        # one whose end was pushed out of the bounded list is told as the record has it
        for request_id in self._requests.keys() - seen.keys() - gone:
            record = self._views.record(request_id)
            if record is not None:
                ended.append(self._views.request(record))
                gone.add(request_id)
        self._requests = {id_: row for id_, row in seen.items() if id_ not in gone}
        return [row for row in changed if row.id not in gone] + ended

    def _changed_daemon(self, now: PolicyStatistics) -> p.Daemon | None:
        daemon = self._views.daemon(now)
        if daemon == self._daemon:
            return None
        self._daemon = daemon
        return daemon

    def _changed_totals(self, now: PolicyStatistics) -> p.Totals | None:
        clock = trio.current_time()
        if clock - self._totals_at < _TOTALS_S:
            return None
        totals = self._views.totals(now)
        if totals == self._totals:
            return None
        self._totals, self._totals_at = totals, clock
        return totals

    def _changed_queue(self, now: PolicyStatistics) -> p.Queue | None:
        queue = self._views.queue(now)
        if queue == self._queue:
            return None
        self._queue = queue
        return queue

    def _changed_workers(self, now: PolicyStatistics) -> list[p.Worker]:
        changed = []
        for worker in self._views.workers(now):
            if worker != self._workers.get(worker.model):
                self._workers[worker.model] = worker
                changed.append(worker)
        return changed


def _same(old: p.Request, new: p.Request) -> bool:
    """Tell whether a row is as before; an expectation that drifts a little is no change."""
    if old == new:
        return True
    if old.eta_at is None or new.eta_at is None:
        return False
    if abs(old.eta_at - new.eta_at) >= _ETA_TOLERANCE_S:
        return False
    return old == msgspec.structs.replace(new, eta_at=old.eta_at)


def _body(event: p.Event, topics: frozenset[str]) -> bytes | None:
    """Return an event as those see it who asked for these topics, without an `id`."""
    told = msgspec.structs.replace(
        event,
        workers=event.workers if "workers" in topics else (),
        requests=event.requests if "requests" in topics else (),
        queue=event.queue if "queue" in topics else None,
        log=event.log if "log" in topics else (),
    )
    return clean_line(encode(told)) + b"\n"


_HEAD = b'{"type":"event",'


def addressed(body: bytes, id_: bytes) -> bytes:
    """Return an encoded event with its subscription's `id`: one encoding serves many."""
    return _HEAD + b'"id":' + id_ + b"," + body[len(_HEAD) :]
