"""The queue: bounded by count and tokens, ordered by class, fair share and arrival.

One `Line` a model; in it one lane a key and class, oldest first. Within a lane the oldest goes
first whatever happens, so only the heads of lanes are ever compared.
"""

from __future__ import annotations

import math
from bisect import insort
from collections import deque
from collections.abc import Iterator
from heapq import heapify, heappop, heappush

from llmd.core.events import Queued, Refusal, Why
from llmd.core.fairness import FairShares, Share
from llmd.core.settings import PolicySettings

NO_RANK = 3  # a rank below every class
STORY_KEPT = 32


def effective_rank(rank: int, arrived: float, now: float, aging_sec: float) -> int:
    """Return the rank of a class after aging: each `aging_sec` waited lifts it by one."""
    # compared as `next_lift` computes it: the deadline it names must find the lift due
    if rank == 0 or aging_sec <= 0 or now < arrived + aging_sec:
        return rank
    if rank == 1 or now < arrived + 2 * aging_sec:
        return rank - 1
    return 0


def next_lift(rank: int, arrived: float, after: float, aging_sec: float) -> float:
    """Return when aging next lifts a request of base `rank`, later than `after`; inf = never."""
    if aging_sec > 0:
        for lifts in range(1, rank + 1):
            at = arrived + lifts * aging_sec
            if at > after:
                return at
    return math.inf


class Waiting:
    """One request in the queue.

    Attributes:
        item: The request.
        rank: Of its class, before aging.
        seq: Ties in arrival go by it.
        since: When it began to wait; later than `item.arrived` for a retry.
        share: Its key's account.
        oversized: It needs more context than its model is loaded with, and could have it.
        story: What it has waited for, the newest last.
    """

    __slots__ = ("item", "oversized", "rank", "seq", "share", "since", "story")

    def __init__(self, item: Queued, share: Share, seq: int, since: float) -> None:
        self.item = item
        self.rank = item.priority.rank
        self.seq = seq
        self.since = since
        self.share = share
        self.oversized = False
        self.story: deque[Why] = deque(maxlen=STORY_KEPT)

    def __repr__(self) -> str:
        return f"<Waiting {self.item.id} {self.item.key} {self.item.priority.value}>"

    def blocked_by_key(self) -> bool:
        """Return whether its key runs as many requests as it may."""
        return 0 < self.item.concurrency <= self.share.running


class Lane:
    """What one key waits for in one class, oldest first; never empty."""

    __slots__ = ("items", "rank", "share")

    def __init__(self, share: Share, rank: int) -> None:
        self.share = share
        self.rank = rank
        self.items: list[Waiting] = []


def _age(waiting: Waiting) -> tuple[float, int]:
    return (waiting.item.arrived, waiting.seq)


class Line:
    """Everything that waits for one model.

    Attributes:
        model: Its name.
        count: How many wait.
        tokens: Sum of their estimates.
        oversized: How many of them need more context than is loaded.
        lanes: By key and class.
    """

    __slots__ = ("count", "lanes", "model", "oversized", "tokens")

    def __init__(self, model: str) -> None:
        self.model = model
        self.count = 0
        self.tokens = 0
        self.oversized = 0
        self.lanes: dict[tuple[str, int], Lane] = {}

    def __repr__(self) -> str:
        return f"<Line {self.model} count={self.count}>"

    def __iter__(self) -> Iterator[Waiting]:
        """Go through all that waits, in no promised order."""
        for lane in self.lanes.values():
            yield from lane.items

    def heads(self, *, oversized: bool | None = None) -> Iterator[Waiting]:
        """Yield the oldest of each lane; with `oversized`, the oldest that is, or is not."""
        for lane in self.lanes.values():
            if oversized is None:
                yield lane.items[0]
                continue
            for waiting in lane.items:
                if waiting.oversized is oversized:
                    yield waiting
                    break

    def head(
        self, now: float, aging_sec: float, *, oversized: bool | None = None
    ) -> Waiting | None:
        """Return who goes first, passing over keys that run as many as they may."""
        best: Waiting | None = None
        best_order: tuple[int, float, float, int] | None = None
        for waiting in self.heads(oversized=oversized):
            if waiting.blocked_by_key():
                continue
            arrived = waiting.item.arrived
            rank = effective_rank(waiting.rank, arrived, now, aging_sec)
            order = (rank, waiting.share.counter, arrived, waiting.seq)
            if best_order is None or order < best_order:
                best, best_order = waiting, order
        return best

    def best_rank(self, now: float, aging_sec: float, *, oversized: bool | None = None) -> int:
        """Return the highest class that waits, after aging, as a rank; NO_RANK for none.

        Whose key runs as many as it may counts for nothing: nobody should make way, or stay, for
        a request that could not run.
        """
        return min(
            (
                effective_rank(waiting.rank, waiting.item.arrived, now, aging_sec)
                for waiting in self.heads(oversized=oversized)
                if not waiting.blocked_by_key()
            ),
            default=NO_RANK,
        )

    def order(self, now: float, aging_sec: float) -> Iterator[Waiting]:
        """Yield all that waits in the order in which it would go now, charges included.

        Each one that goes is charged to its key in the forecast, so that two keys take turns in
        it as they will in fact.
        """
        counters: dict[Share, float] = {}
        heap: list[tuple[int, float, float, int, int, Lane]] = []

        def entry(lane: Lane, place: int) -> tuple[int, float, float, int, int, Lane]:
            waiting = lane.items[place]
            arrived = waiting.item.arrived
            rank = effective_rank(lane.rank, arrived, now, aging_sec)
            counter = counters.setdefault(lane.share, lane.share.counter)
            return (rank, counter, arrived, waiting.seq, place, lane)

        heap.extend(entry(lane, 0) for lane in self.lanes.values())
        heapify(heap)
        while heap:
            _, counter, _, _, place, lane = heappop(heap)
            if counters[lane.share] > counter:
                heappush(heap, entry(lane, place))  # its key was charged by another lane
                continue
            waiting = lane.items[place]
            yield waiting
            counters[lane.share] += waiting.item.tokens / waiting.item.weight
            if place + 1 < len(lane.items):
                heappush(heap, entry(lane, place + 1))

    def set_oversized(self, waiting: Waiting, value: bool) -> None:
        """Mark whether `waiting` needs a reload with more context."""
        self.oversized += value - waiting.oversized
        waiting.oversized = value


class RequestQueue:
    """All that waits, within its bounds.

    The bounds are asked (`refusal`) before `put`, so that what need not wait, and what is queued
    again after a worker's death, can go in unbounded. The queue calls `enter` and `leave` of the
    shares for what waits; who takes a request out to run it counts `running` before.

    Attributes:
        waiting: By request id.
        lines: By model; only those in which something waits.
        tokens: Sum of the estimates that wait.
    """

    __slots__ = (
        "_all_lines",
        "_ordinary",
        "_seq",
        "lines",
        "settings",
        "shares",
        "tokens",
        "waiting",
    )

    def __init__(self, settings: PolicySettings, shares: FairShares) -> None:
        self.settings = settings
        self.shares = shares
        self.waiting: dict[str, Waiting] = {}
        self.lines: dict[str, Line] = {}
        self.tokens = 0
        self._all_lines: dict[str, Line] = {}
        self._ordinary = 0  # those of keys that are no admins
        self._seq = 0

    def __len__(self) -> int:
        return len(self.waiting)

    def line(self, model: str) -> Line:
        """Return the line of a model; the same object for as long as the queue lives."""
        line = self._all_lines.get(model)
        if line is None:
            line = self._all_lines[model] = Line(model)
        return line

    def refusal(self, item: Queued) -> tuple[Refusal, str] | None:
        """Return why `item` may not wait here, and what its sender can do; None if it may."""
        s = self.settings
        if 0 < s.max_tokens < item.tokens:
            return Refusal.TOO_LARGE, (
                f"this request is estimated at {item.tokens} tokens and may not wait: the queue "
                f"holds {s.max_tokens} in all; shorten it, or try when its model is idle"
            )
        if s.max_size > 0:
            if len(self.waiting) >= s.max_size:
                return Refusal.QUEUE_FULL, f"all {s.max_size} places of the queue are taken"
            if not item.admin and self._ordinary >= s.max_size - s.admin_quota:
                return Refusal.QUEUE_FULL, (
                    f"all {max(0, s.max_size - s.admin_quota)} places of the queue that are not "
                    "kept for admins are taken"
                )
            share = self.shares.active.get(item.key)
            if share is not None and share.queued >= self.places_per_key():
                return Refusal.QUEUE_FULL, (
                    f"this key has {share.queued} requests in the queue, all that one key may have"
                )
        if 0 < s.max_size_per_model <= self.line(item.model).count:
            return Refusal.QUEUE_FULL, (
                f"{s.max_size_per_model} requests wait for {item.model} already; try another model"
            )
        if 0 < s.max_tokens < self.tokens + item.tokens:
            return Refusal.QUEUE_FULL, (
                f"{self.tokens} tokens wait already and this request adds {item.tokens}; the queue "
                f"holds {s.max_tokens}"
            )
        return None

    def places_per_key(self) -> float:
        """Return how many places one key may hold; infinite when places have no limit."""
        s = self.settings
        if s.max_size <= 0 or s.max_share <= 0:
            return math.inf
        return max(1, int(s.max_size * s.max_share + 1e-9))  # 0.29 * 100 is a little less than 29

    def put(self, item: Queued, share: Share, now: float) -> Waiting:
        """Queue `item` in its place by arrival; `share` is its key's, entered."""
        self._seq += 1
        waiting = Waiting(item, share, self._seq, now)
        line = self.line(item.model)
        lane = line.lanes.get((item.key, waiting.rank))
        if lane is None:
            lane = line.lanes[item.key, waiting.rank] = Lane(share, waiting.rank)
        if lane.items and lane.items[-1].item.arrived > item.arrived:
            insort(lane.items, waiting, key=_age)  # a retry keeps its arrival
        else:
            lane.items.append(waiting)
        line.count += 1
        line.tokens += item.tokens
        self.lines[item.model] = line
        self.waiting[item.id] = waiting
        self.tokens += item.tokens
        self._ordinary += not item.admin
        share.queued += 1
        return waiting

    def remove(self, waiting: Waiting) -> None:
        """Take `waiting` out, wherever it stands."""
        item = waiting.item
        del self.waiting[item.id]
        line = self._all_lines[item.model]
        lane = line.lanes[item.key, waiting.rank]
        lane.items.remove(waiting)
        if not lane.items:
            del line.lanes[item.key, waiting.rank]
        line.count -= 1
        line.tokens -= item.tokens
        line.oversized -= waiting.oversized
        if not line.count:
            del self.lines[item.model]
        self.tokens -= item.tokens
        self._ordinary -= not item.admin
        share = waiting.share
        share.queued -= 1
        if not share.queued and not share.running:
            self.shares.leave(share)
