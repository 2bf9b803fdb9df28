"""What the last minutes were like: rates, percentiles and counts for operators' screens.

Fed with each request that ends and, once a second, with what those that run have produced.
Prometheus has the exact and long history; this answers "how is it now" without one.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from llmd.core.lifecycle import RequestState
from llmd.core.record import RequestRecord

WINDOW_S = 300.0
HISTORY = 60
_MOST = 4096  # ended requests looked at; beyond that the window is shorter
_RATE_SECONDS = 3
_LIMITED = 429
_LEAST_S = 0.25  # over which a rate is told
_FAULTS = (RequestState.FAILED, RequestState.TIMED_OUT)


@dataclass(frozen=True, slots=True)
class Window:
    """Counts and percentiles; seconds, None without a single value.

    Attributes:
        ended: Requests that reached an end within the window.
        errors: Of these, failed or timed out.
        limited: Refused for their key's limits within the last minute.
        first_token_p50_s, first_token_p95_s: Of requests that got an answer.
        wait_p95_s: In the queue, of requests that were there.
    """

    ended: int
    errors: int
    limited: int
    first_token_p50_s: float | None
    first_token_p95_s: float | None
    wait_p95_s: float | None


@dataclass(slots=True)
class _Run:
    """What is known of a running request since the last sample."""

    events: int
    grew_at: float
    rate: float | None = None


class Recent:
    """The last minutes. Times are seconds on one monotonic clock."""

    def __init__(self) -> None:
        self._ended: deque[tuple[float, RequestRecord]] = deque(maxlen=_MOST)
        self._runs: dict[str, _Run] = {}
        self._fresh: dict[str, int] = {}
        self._prefilled = 0
        self._history: dict[str, deque[float]] = {"": deque(maxlen=HISTORY)}
        self._prefill: deque[float] = deque(maxlen=_RATE_SECONDS)
        self._sampled_at: float | None = None

    def ended(self, record: RequestRecord, now: float) -> None:
        """Take in that a request has reached its end."""
        self._ended.append((now, record))
        run = self._runs.pop(record.id, None)
        more = max(record.events, record.completion_tokens) - (run.events if run else 0)
        if record.granted_at is not None:
            self._add(record.model, more)
            self._prefilled += max(0, record.prompt_tokens - record.cached_tokens)

    def sample(self, records: Iterable[RequestRecord], now: float) -> None:
        """Take in what running requests have produced; once a second.

        Args:
            records: Those that are on their way.
            now: Seconds.
        """
        elapsed = 1.0 if self._sampled_at is None else max(1e-3, now - self._sampled_at)
        self._sampled_at = now
        for record in records:
            if record.state is RequestState.DECODE:
                self._sample_one(record, elapsed, now)
        for model in self._fresh:
            if model not in self._history:
                zeros = [0.0] * len(self._history[""])
                self._history[model] = deque(zeros, maxlen=HISTORY)
        self._history[""].append(sum(self._fresh.values()) / elapsed)
        for model, values in self._history.items():
            if model:
                values.append(self._fresh.get(model, 0) / elapsed)
        self._prefill.append(self._prefilled / elapsed)
        self._fresh.clear()
        self._prefilled = 0

    def _sample_one(self, record: RequestRecord, elapsed: float, now: float) -> None:
        run = self._runs.get(record.id)
        if run is None:
            run = self._runs[record.id] = _Run(0, now)
        more = record.events - run.events
        self._add(record.model, more)
        if more:
            run.grew_at = now
        rate = more / elapsed
        # the first sample covers only a part of its second
        run.rate = rate if run.rate is None else run.rate + 0.5 * (rate - run.rate)
        run.events = record.events

    def _add(self, model: str, tokens: int) -> None:
        if tokens > 0:
            self._fresh[model] = self._fresh.get(model, 0) + tokens

    # --- looking ----------------------------------------------------------------------------

    def tokens_per_s(self, model: str = "") -> float:
        """Return the rate of the last seconds, of one model or of all."""
        return _mean(list(self._history.get(model, ()))[-_RATE_SECONDS:])

    def first_rates(self, records: Iterable[RequestRecord], now: float) -> Mapping[str, float]:
        """Return tokens a second, by model, of what has begun to decode since the last sample.

        For the first second of a model's work, of which `tokens_per_s` knows nothing yet.

        Args:
            records: Those that are on their way.
            now: Seconds.
        """
        rates: dict[str, float] = {}
        for record in records:
            if record.state is not RequestState.DECODE or record.id in self._runs:
                continue
            if record.first_byte_at is not None:
                rate = record.events / max(_LEAST_S, now - record.first_byte_at)
                rates[record.model] = rates.get(record.model, 0.0) + rate
        return rates

    def prefill_per_s(self) -> float:
        """Return the rate of prompt tokens computed; a prompt counts when its request ends."""
        return _mean(list(self._prefill))

    def request_rate(self, request_id: str) -> float | None:
        """Return the tokens a second of a running request; None before the first sample."""
        run = self._runs.get(request_id)
        return None if run is None else run.rate

    def grew_at(self, request_id: str) -> float | None:
        """Return when a running request was last seen to produce something."""
        run = self._runs.get(request_id)
        return None if run is None else run.grew_at

    def history(self) -> Mapping[str, tuple[float, ...]]:
        """Return tokens a second for each of the last seconds, by model and "" for all."""
        return {model: tuple(values) for model, values in self._history.items()}

    def window(self, now: float) -> Window:
        """Return counts and percentiles of the last minutes."""
        recent = self._within(now)
        first = [t for r in recent if (t := r.time_to_first_token_s) is not None]
        waits = [r.waited_s for r in recent if r.queued_at is not None]
        limited = [
            r
            for r in recent
            if r.status == _LIMITED and r.ended_at is not None and r.ended_at >= now - 60.0
        ]
        return Window(
            ended=len(recent),
            errors=sum(r.state in _FAULTS for r in recent),
            limited=len(limited),
            first_token_p50_s=percentile(first, 0.50),
            first_token_p95_s=percentile(first, 0.95),
            wait_p95_s=percentile(waits, 0.95),
        )

    def limited(self, key: str, now: float) -> int:
        """Return how many requests of a key its limits have turned away in the last minutes."""
        return sum(r.key == key and r.status == _LIMITED for r in self._within(now))

    def first_token_p95_s(self, now: float) -> Mapping[str, float]:
        """Return the 95th percentile of the time to the first token, by model."""
        return self._p95_s(now, lambda record: record.time_to_first_token_s)

    def service_p95_s(self, now: float) -> Mapping[str, float]:
        """Return the 95th percentile of how long requests ran that were served whole, by model."""
        return self._p95_s(now, _served_s)

    def _p95_s(
        self, now: float, measure: Callable[[RequestRecord], float | None]
    ) -> Mapping[str, float]:
        by_model: dict[str, list[float]] = {}
        for record in self._within(now):
            seconds = measure(record)
            if seconds is not None:
                by_model.setdefault(record.model, []).append(seconds)
        return {
            model: value
            for model, values in by_model.items()
            if (value := percentile(values, 0.95)) is not None
        }

    def _within(self, now: float) -> list[RequestRecord]:
        while self._ended and self._ended[0][0] < now - WINDOW_S:
            self._ended.popleft()
        return [record for _, record in self._ended]


def percentile(values: list[float], share: float) -> float | None:
    """Return the nearest-rank percentile; None of nothing."""
    if not values:
        return None
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def _served_s(record: RequestRecord) -> float | None:
    if record.state is not RequestState.DONE or record.granted_at is None:
        return None
    return None if record.ended_at is None else record.ended_at - record.granted_at


def _mean(values: list[float]) -> float:
    return sum(values) / len(values) if values else 0.0
