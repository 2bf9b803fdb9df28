"""What the policy is set to, and what it knows of a model beforehand: frozen data."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class PolicySettings:
    """The keys of `[queue]`, `[scheduler]` and `[worker]` that decisions follow.

    0 means no limit wherever a limit is meant.

    Attributes:
        max_size: Places in the queue.
        max_size_per_model: Places that the requests for one model may take.
        max_tokens: Sum of the estimates that may wait.
        admin_quota: Places of `max_size` that only admin keys may take.
        max_share: Largest part of `max_size` that one key may hold, at least one place.
        aging_sec: Waiting this long lifts a request one class; 0 = never.
        max_delay_sec: Longest that a request is held back because its model is not loaded;
            0 = until the model in its way has nothing to do.
        max_drain_sec: What still runs this long on a model to be evicted is cancelled.
        min_residency_sec: A model serves at least this long before it may be evicted.
        auto_switch: False: only operators change what is loaded.
        max_loaded: Models in memory at once.
        memory_bytes: What all models together may hold; 0 = unknown.
        load_s: What a load of a model of unknown size is taken to cost when models are compared
            for eviction; never told to anybody as a time.
    """

    max_size: int = 100
    max_size_per_model: int = 0
    max_tokens: int = 1_000_000
    admin_quota: int = 10
    max_share: float = 0.5
    aging_sec: float = 60.0
    max_delay_sec: float = 30.0
    max_drain_sec: float = 0.0
    min_residency_sec: float = 5.0
    auto_switch: bool = True
    max_loaded: int = 1
    memory_bytes: int = 0
    load_s: float = 10.0


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """What the catalog knows of a model.

    Attributes:
        name: As in `Queued.model`.
        memory_bytes: Estimate of what it holds when loaded with `context_tokens`, and of what it
            may grow by (`reserve_bytes`); 0 = unknown, counts as nothing.
        load_s: Estimated seconds of a load; 0 = unknown. A measured load replaces it.
        size_bytes: Of its files: what a load reads; 0 = unknown.
        slots: It is expected to have once loaded; 0 = unknown.
        context_tokens: Context of one request that a load gives it unless more is asked for.
        bytes_per_token: By how much each further token of that context makes it grow.
        reserve_bytes: What it may grow by once it serves: added to what is measured of it.
        pinned: Evicted only by an explicit switch or unload.
        context_max: Largest context that one request could get by a reload; 0 = unknown, so
            it is never reloaded for more.
        idle_timeout_s: Unloaded after this long without work; 0 = never.
    """

    name: str
    memory_bytes: int = 0
    load_s: float = 0.0
    size_bytes: int = 0
    slots: int = 0
    context_tokens: int = 0
    bytes_per_token: float = 0.0
    reserve_bytes: int = 0
    pinned: bool = False
    context_max: int = 0
    idle_timeout_s: float = 0.0
