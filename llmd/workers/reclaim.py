"""Does a cancelled request really free its slot? One watcher a worker asks /slots until it has.

Many cancels at once are one watch: what counts is how much work the worker holds beyond what
leases account for. That surplus is the cancelled work that still runs.

Watching must not disturb: a llama-server handler that waits for its first result looks for a
closed connection only when no result of anybody has come for a second, and an answer to /slots is
such a result. Asked every 100 ms, it never noticed a disconnect in prefill (measured: 2.1 s, the
whole prefill, instead of 1.0 s). So after a few quick looks the watcher pauses for longer than
that, unless tokens flow anyway.

Work whose worker writes nothing before its end is found out only in such a second, which beside a
streaming neighbour never comes (measured: over 60 s). Then the watcher makes that second: it has
the whole process held still. When it goes on, what has been waited for since before the hold is
overdue, each handler looks for its client, and those without one are ended (measured: 1.0 to 1.1 s
after the cancel). Neighbours lose that second and nothing else; holds are rationed.
"""

from __future__ import annotations

import contextlib
import math
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from typing import Protocol

import trio

from llmd.errors import BadWorkerResponse, WorkerDied, WorkerStalled
from llmd.workers.control import Slot

PROMISED_S = 1.0
_QUICK_S = (0.01, 0.02, 0.04)  # a cancelled stream's slot takes some 15 ms
_FLOWING_SHARE = 0.25  # while tokens flow: this part of the time waited so far ...
_FLOWING_S = 0.25  # ... and at most this
_PAUSE_S = 1.1  # else: longer than the second after which llama-server looks for itself
_SILENCE_FACTOR = 10  # a worker that computes without ever answering /slots gets this much longer
_HOLD_S = 1.03  # a little longer than that second, too
_HOLD_EVERY_S = 5.0  # so that whoever cancels again and again costs others a fifth at most


class Work(Enum):
    """How a worker goes about what was cancelled, which says what can be done about it.

    Attributes:
        STREAM: It writes as it goes, and notices at once; or it is over after the batch in hand.
        WHOLE: It writes once, at the end, and until then looks for its client after quiet seconds.
        BATCH: As WHOLE, but of many inputs, and short as a rule: no reason for a restart.
    """

    STREAM = "stream"
    WHOLE = "whole"
    BATCH = "batch"


class SlotCalls(Protocol):
    """What the watcher asks of a worker; see `Control`."""

    async def slots(self, timeout_s: float = ...) -> list[Slot]: ...  # noqa: D102
    async def deferred(self, timeout_s: float = ...) -> int: ...  # noqa: D102


@dataclass(frozen=True, slots=True)
class ReclaimStatistics:
    """How cancels went on one worker, over all of its lives.

    Attributes:
        reclaimed: Cancels whose slot was seen free.
        overdue: Those among all cancels that took longer than the promised second.
        pending: Cancels whose slot has not been seen free yet.
        unverified: Cancels of which nothing can be said: the worker ended, or has no /slots.
        slowest_s: The longest time that a slot took to be free.
        holds: How often the worker was held still so that it noticed.
    """

    reclaimed: int = 0
    overdue: int = 0
    pending: int = 0
    unverified: int = 0
    slowest_s: float = 0.0
    holds: int = 0


@dataclass(slots=True)
class _Cancel:
    at: float
    cause: str
    work: Work
    complaints: int = 0

    def unheard(self, now: float) -> bool:
        """Tell whether it takes a quiet second to end it soon."""
        overdue = now - self.at >= PROMISED_S
        return self.work is Work.WHOLE or (self.work is Work.BATCH and overdue)


@dataclass(frozen=True, slots=True)
class _Observation:
    """How much work a worker held at `asked_at` or later, in slots."""

    asked_at: float
    processing: int
    deferred: int
    decoding: bool


class SlotWatcher:
    """Watches one worker's slots after cancels.

    Args:
        timeout_s: After this long, a slot still busy is `on_stuck`, unless others run; 0 = never.
        call_timeout_s: For each call.
        on_reclaimed: Called with the seconds from cancel to free slot, for each cancel.
        on_overdue: Called with a sentence when a cancel breaks the promise, and once more when
            it is still pending after `timeout_s`.
        on_stuck: Called with a sentence when only a restart helps; the watch then ends.
        hold: Called with True to hold the worker's process still, and with False to let it go on;
            always in turns, whatever ends the watch.

    The callbacks are called by the watcher's task and must neither block nor raise.
    """

    def __init__(
        self,
        *,
        timeout_s: float,
        call_timeout_s: float,
        on_reclaimed: Callable[[float], None],
        on_overdue: Callable[[str], None],
        on_stuck: Callable[[str], None],
        hold: Callable[[bool], None],
    ) -> None:
        self._timeout_s = timeout_s or math.inf
        self._call_timeout_s = call_timeout_s
        self._on_reclaimed = on_reclaimed
        self._on_overdue = on_overdue
        self._on_stuck = on_stuck
        self._hold = hold
        self._expected: Callable[[], int] = int
        self._pending: deque[_Cancel] = deque()
        self._woken = trio.Event()
        self._looks = 0  # since the newest cancel
        self._reclaimed = self._overdue = self._unverified = 0
        self._slowest_s = 0.0
        self._holds = 0
        self._hold_from = -math.inf  # no hold before

    def cancelled(
        self, expected_busy: Callable[[], int], cause: str, work: Work = Work.STREAM
    ) -> None:
        """Note a cancel just made; never blocks.

        Args:
            expected_busy: Returns how many slots leases account for, whenever it is asked.
            cause: Why it was cancelled, for the report.
            work: How the worker goes about it.
        """
        self._expected = expected_busy
        self._pending.append(_Cancel(trio.current_time(), cause, work))
        self._looks = 0
        self._woken.set()

    def statistics(self) -> ReclaimStatistics:
        """Return the counters."""
        return ReclaimStatistics(
            reclaimed=self._reclaimed,
            overdue=self._overdue,
            pending=len(self._pending),
            unverified=self._unverified,
            slowest_s=self._slowest_s,
            holds=self._holds,
        )

    def forget(self) -> None:
        """Give up on what is pending: the worker has ended, and its slots with it."""
        self._unverified += len(self._pending)
        self._pending.clear()

    async def run(self, calls: SlotCalls) -> None:
        """Watch the worker behind `calls` until cancelled, or until it is stuck."""
        while True:
            if not self._pending:
                self._woken = trio.Event()
                await self._woken.wait()
            seen: _Observation | None = None
            while self._pending:
                await self._pause(flowing=seen is not None and seen.decoding)
                try:
                    seen = await self._observe(calls)
                except BadWorkerResponse:  # no /slots there: nothing can be known
                    self.forget()
                    break
                except (WorkerDied, WorkerStalled):
                    seen = None
                self._settle(seen)
                self._complain()
                if self._is_stuck(seen):
                    return
                if seen is not None and self._needs_hold():
                    await self._hold_still()

    async def _pause(self, *, flowing: bool) -> None:
        """Wait until the next look; a fresh cancel brings it forward."""
        if self._looks >= len(_QUICK_S):
            waited_s = trio.current_time() - self._pending[-1].at
            self._woken = trio.Event()
            pause_s = min(waited_s * _FLOWING_SHARE, _FLOWING_S) if flowing else _PAUSE_S
            with trio.move_on_after(pause_s):
                await self._woken.wait()
        if self._looks < len(_QUICK_S):
            await trio.sleep(_QUICK_S[self._looks])
        self._looks += 1

    def _needs_hold(self) -> bool:
        now = trio.current_time()
        return now >= self._hold_from and any(cancel.unheard(now) for cancel in self._pending)

    async def _hold_still(self) -> None:
        """Hold the process for the second that its handlers wait for, then look again."""
        self._holds += 1
        self._hold_from = trio.current_time() + _HOLD_EVERY_S
        self._hold(True)
        try:
            await trio.sleep(_HOLD_S)
        finally:
            self._hold(False)
        self._looks = 0

    async def _observe(self, calls: SlotCalls) -> _Observation:
        asked_at = trio.current_time()
        slots = await calls.slots(self._call_timeout_s)
        processing = sum(slot.is_processing for slot in slots)
        deferred = 0
        if processing == len(slots) and self._expected() > 0:
            # what a lease accounts for may itself wait inside, behind the slot that is not freed
            with contextlib.suppress(BadWorkerResponse):
                deferred = await calls.deferred(self._call_timeout_s)
        decoding = any(slot.is_decoding for slot in slots)
        return _Observation(asked_at, processing, deferred, decoding)

    def _surplus(self, seen: _Observation) -> int:
        return max(0, seen.processing + seen.deferred - self._expected())

    def _settle(self, seen: _Observation | None) -> None:
        """Account for what is free: the oldest cancels first, one a slot."""
        if seen is None:
            return
        due = sum(cancel.at <= seen.asked_at for cancel in self._pending)
        now = trio.current_time()
        for _ in range(due - self._surplus(seen)):
            took_s = now - self._pending.popleft().at
            self._reclaimed += 1
            self._slowest_s = max(self._slowest_s, took_s)
            self._on_reclaimed(took_s)

    def _complain(self) -> None:
        now = trio.current_time()
        for cancel in self._pending:
            late = cancel.at + (self._timeout_s if cancel.complaints else PROMISED_S) <= now
            if late and cancel.complaints < 2:
                cancel.complaints += 1
                self._overdue += cancel.complaints == 1
                self._on_overdue(
                    f"slot still busy {now - cancel.at:.1f} s after a cancel ({cancel.cause})"
                )

    def _is_stuck(self, seen: _Observation | None) -> bool:
        """Tell the owner, and return True, when only a restart frees the oldest cancel's slot."""
        if not self._pending or self._pending[0].work is Work.BATCH:
            return False
        oldest, now = self._pending[0], trio.current_time()
        if seen is None:
            patience_s = self._timeout_s * _SILENCE_FACTOR
            stuck = now - oldest.at >= patience_s and self._expected() == 0
        else:
            # asked after the deadline, so that the worker had the whole of it before it answered;
            # all that runs there is cancelled work, so nobody loses by a restart
            late = seen.asked_at - oldest.at >= self._timeout_s
            stuck = late and seen.processing <= self._surplus(seen)
        if stuck:
            self._on_stuck(
                f"slot not reclaimed {now - oldest.at:.1f} s after a cancel ({oldest.cause})"
            )
        return stuck
