"""What Prometheus reads at `/metrics`: every series, and the one place where each is fed.

Counters and histograms are fed by events: the end of a request, a move of a worker. What is true
only at the moment (queue depth, worker states) is asked for at the scrape; nothing polls. Every
label comes from a closed set, so no client can grow the page.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING

from llmd.core.lifecycle import Priority, RequestState, WorkerState
from llmd.core.record import CancelCause, RequestRecord
from llmd.observe.exposition import Counter, Histogram, encode, gauge
from llmd.observe.workerseries import WorkerSeries

if TYPE_CHECKING:
    from prometheus_client.core import CollectorRegistry, Metric

ANONYMOUS = "anonymous"
INVALID = "invalid"
UNKNOWN = "unknown"
OTHER = "other"

_SUBSECOND_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5)
_LATENCY_S = (*_SUBSECOND_S, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0)
_RECLAIM_S = (*_SUBSECOND_S, 1.0, 2.0, 5.0, 10.0, 30.0)
_LOAD_S = (*_SUBSECOND_S, 1.0, 2.5, 5.0, 10.0, 20.0, 30.0, 60.0, 120.0, 300.0, 600.0, 1800.0)
_PER_TOKEN_MS = (1, 2.5, 5, 7.5, 10, 15, 20, 30, 40, 50, 75, 100, 150, 200, 300, 500, 1000, 2500)
_PER_TOKEN_S = tuple(ms / 1000 for ms in _PER_TOKEN_MS)

_TOKEN_KINDS = ("prompt", "completion", "cached")
_WORD = re.compile(r"[a-z0-9_]{1,40}")
_MAX_WORDS = 100


@dataclass(frozen=True, slots=True)
class QueueSample:
    """The queue at the moment of a scrape.

    Attributes:
        depth: Requests waiting, by model and class.
        tokens: The sum of the estimates waiting.
        running: Leases out, by model.
    """

    depth: Mapping[tuple[str, Priority], int] = field(default_factory=dict)
    tokens: int = 0
    running: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class WorkerSample:
    """One worker at the moment of a scrape.

    Attributes:
        model: Its model.
        state: What it is doing.
        memory_bytes: What it holds, by device ("cpu", "gpu0"), as far as that was measured.
    """

    model: str
    state: WorkerState
    memory_bytes: Mapping[str, int] = field(default_factory=dict)


class Metrics:
    """All series of the daemon. Used from one thread; feeding costs a few microseconds a request.

    Args:
        version: llmd's, for `llmd_build_info`.
        is_model: Tells the names of the catalog from all others, which become "unknown".
        is_key: Tells configured key names from all others, which become "invalid".
        queue: Gives the queue as it is now.
        workers: Gives the workers as they are now.
    """

    def __init__(
        self,
        *,
        version: str,
        is_model: Callable[[str], bool],
        is_key: Callable[[str], bool],
        queue: Callable[[], QueueSample] = QueueSample,
        workers: Callable[[], Iterable[WorkerSample]] = tuple,
    ) -> None:
        self._version = version
        self._is_model = is_model
        self._is_key = is_key
        self._queue = queue
        self._workers = workers
        self._words: set[str] = set()
        self._counters: list[Counter] = []
        self._histograms: list[Histogram] = []

        counter, histogram = self._counter, self._histogram
        self._requests = counter(
            "llmd_requests_total",
            "Requests that reached an end, by HTTP status and outcome.",
            ("model", "code", "outcome"),
        )
        self._tokens = counter(
            "llmd_tokens_total",
            "Tokens as the workers counted them; of requests that were cut off, what had come.",
            ("model", "kind"),
        )
        self._refused = counter(
            "llmd_refused_total", "Requests turned away, by error code.", ("key", "reason")
        )
        self._cancels = counter(
            "llmd_cancels_total", "Requests ended early, by who or what did it.", ("cause",)
        )
        self._starts = counter(
            "llmd_worker_starts_total", "Worker processes started.", ("model", "reason")
        )
        self._exits = counter(
            "llmd_worker_exits_total", "Worker processes ended.", ("model", "cause")
        )
        self._evictions = counter(
            "llmd_evictions_total", "Models taken out of memory.", ("model", "reason")
        )
        self._queue_s = histogram(
            "llmd_queue_seconds", "Time in the queue.", _LATENCY_S, ("model", "class")
        )
        self._first_token_s = histogram(
            "llmd_time_to_first_token_seconds",
            "From a request's head to the first byte of its answer.",
            _LATENCY_S,
            ("model",),
        )
        self._per_token_s = histogram(
            "llmd_time_per_output_token_seconds",
            "Mean distance of a request's output tokens after the first.",
            _PER_TOKEN_S,
            ("model",),
        )
        self._request_s = histogram(
            "llmd_request_seconds",
            "From a request's head to its end.",
            _LATENCY_S,
            ("model", "outcome"),
        )
        self._reclaim_s = histogram(
            "llmd_slot_reclaim_seconds", "From a cancel to its slot being free.", _RECLAIM_S, ()
        )
        self._load_s = histogram(
            "llmd_model_load_seconds", "From a worker's start to ready.", _LOAD_S, ("model",)
        )
        for cause in CancelCause:
            self._cancels.add((cause.value,), 0)

    def _counter(self, name: str, text: str, labels: tuple[str, ...]) -> Counter:
        self._counters.append(Counter(name, text, labels))
        return self._counters[-1]

    def _histogram(
        self, name: str, text: str, bounds: tuple[float, ...], labels: tuple[str, ...]
    ) -> Histogram:
        self._histograms.append(Histogram(name, text, bounds, labels))
        return self._histograms[-1]

    # --- fed by the way of a request -------------------------------------------------------

    def finished(self, record: RequestRecord) -> None:
        """Count a request that has ended; once for each, and for nothing else.

        Refusals and cancels among them are counted as such here too.
        """
        model, outcome = self._model(record.model), record.outcome
        status = record.status
        code = str(status) if 100 <= status <= 599 else OTHER
        ended_at = record.received if record.ended_at is None else record.ended_at
        self._requests.add((model, code, outcome))
        self._request_s.observe((model, outcome), record.duration_s(ended_at))
        waited_s = record.queue_s(ended_at)
        if waited_s is not None:
            self._queue_s.observe((model, record.priority.value), waited_s)
        first_token_s = record.time_to_first_token_s
        if first_token_s is not None:
            self._first_token_s.observe((model,), first_token_s)
            per_token_s = record.time_per_output_token_s
            if per_token_s is not None:
                self._per_token_s.observe((model,), per_token_s)
        for kind, tokens in zip(_TOKEN_KINDS, record.served_tokens, strict=True):
            if tokens:
                self._tokens.add((model, kind), tokens)
        if record.state is RequestState.REFUSED:
            self.refused(record.key, record.code)
        if record.cancel_cause is not None:
            self._cancels.add((record.cancel_cause.value,))

    def refused(self, key: str, reason: str) -> None:
        """Count a refusal that has no record, such as a 401; `reason` is an error's code."""
        name = key if key == ANONYMOUS or self._is_key(key) else INVALID
        self._refused.add((name, self._word(reason)))

    def slot_reclaimed(self, seconds: float) -> None:
        """Count the time that a worker took to free the slot of a cancelled request."""
        self._reclaim_s.observe((), seconds)

    # --- fed by the workers ----------------------------------------------------------------

    def worker_started(self, model: str, reason: str) -> None:
        """Count a spawn; `reason` is the rule behind it."""
        self._starts.add((self._model(model), self._word(reason)))

    def worker_ready(self, model: str, load_s: float) -> None:
        """Count a load that has come to its good end."""
        self._load_s.observe((self._model(model),), load_s)

    def worker_exited(self, model: str, cause: str) -> None:
        """Count the end of a process; `cause` such as "stopped", "exit 1" or "signal 9"."""
        self._exits.add((self._model(model), self._word(cause)))

    def evicted(self, model: str, reason: str) -> None:
        """Count a model that was taken out of memory; `reason` is the rule behind it."""
        self._evictions.add((self._model(model), self._word(reason)))

    # --- read ------------------------------------------------------------------------------

    @cached_property
    def registry(self) -> CollectorRegistry:
        """The daemon's own registry, on which these metrics are a collector."""
        from prometheus_client.core import CollectorRegistry

        registry = CollectorRegistry()
        registry.register(self)
        return registry

    def render(
        self, worker_texts: Mapping[str, bytes] | None = None, *, openmetrics: bool = False
    ) -> tuple[bytes, str]:
        """Return the page and its Content-Type. A few milliseconds: not for the hot path.

        The first call imports the client library, some 60 ms.

        Args:
            worker_texts: What each model's worker answered to `GET /metrics`.
            openmetrics: As `exposition.wants_openmetrics` tells from the Accept header.
        """
        series = WorkerSeries(worker_texts or {})
        self.registry.register(series)
        try:
            return encode(self.registry, openmetrics=openmetrics)
        finally:
            self.registry.unregister(series)

    def collect(self) -> Iterator[Metric]:
        """Yield every family that has a value now; what the registry asks at a scrape."""
        for family in self._gauges():
            if family.samples:
                yield family
        for counter in self._counters:
            if counter.values:
                yield counter.family()
        for histogram in self._histograms:
            if histogram.values:
                yield histogram.family()

    def _gauges(self) -> Iterator[Metric]:
        yield gauge("llmd_build_info", "What runs here.", ("version",), [((self._version,), 1)])
        queue, workers = self._queue(), list(self._workers())
        depth = {(worker.model, cls.value): 0 for worker in workers for cls in Priority}
        depth |= {(model, cls.value): count for (model, cls), count in queue.depth.items()}
        yield gauge("llmd_queue_depth", "Requests that wait.", ("model", "class"), depth.items())
        yield gauge("llmd_queue_tokens", "Estimates that wait, summed.", (), [((), queue.tokens)])
        running = {worker.model: 0 for worker in workers} | dict(queue.running)
        yield gauge(
            "llmd_running",
            "Requests that have a lease.",
            ("model",),
            (((model,), count) for model, count in running.items()),
        )
        yield gauge(
            "llmd_worker_state",
            "1 for the state that a model's worker is in, 0 for the others.",
            ("model", "state"),
            (
                ((worker.model, state.value), float(worker.state is state))
                for worker in workers
                for state in WorkerState
            ),
        )
        yield gauge(
            "llmd_worker_memory_bytes",
            "Memory that a worker holds, as measured.",
            ("model", "device"),
            (
                ((worker.model, device), held)
                for worker in workers
                for device, held in worker.memory_bytes.items()
            ),
        )

    def _model(self, name: str) -> str:
        return name if self._is_model(name) else UNKNOWN

    def _word(self, text: str) -> str:
        """Bring a reason into the form of a label, of which there are only so many."""
        if text in self._words:
            return text
        word = re.sub(r"[^a-z0-9]+", "_", text[:80].lower()).strip("_")
        if word in self._words:
            return word
        if len(self._words) >= _MAX_WORDS or not _WORD.fullmatch(word):
            return OTHER
        self._words.add(word)
        return word
