"""What actions answer: the plan that they follow, and what they hit."""

from __future__ import annotations

from llmd.admin.protocol.base import View


class Eviction(View, frozen=True, kw_only=True):
    """A model that goes for another.

    Attributes:
        running: Requests that run there now.
        queued: Requests that wait for it.
        memory_bytes: What its going frees, as memory is planned: what it was measured to hold and
            what it may still grow by, such as its prompt cache.
        now_bytes: What its process holds now, as its `Worker` says; 0 = not known.
        service_s: How long a request there lasts on average.
        service_p95_s: How long all but the longest 5 % of those lasted that ended in the last
            minutes; None when none did.
        left_s: When the last request there is expected to have ended, in seconds from now and no
            later than a drain allows; None = not known.
    """

    model: str
    running: int = 0
    queued: int = 0
    memory_bytes: int = 0
    now_bytes: int = 0
    service_s: float | None = None
    service_p95_s: float | None = None
    left_s: float | None = None


class Plan(View, frozen=True, kw_only=True):
    """What a switch would do, or did.

    Attributes:
        model: To be loaded; until it is, one of a repository is called `REPO:QUANT`.
        loaded: It is, or is on its way, already.
        fits: It can be loaded; if not, nothing is done. Of what has no known size, that there is
            a place for it.
        reason: Why it does not fit.
        add: It was asked to come beside what is loaded.
        fits_beside: It would fit without evicting anything.
        evict: What goes for it.
        going: What is on its way out already, and has to be gone before the model is loaded.
        queued: Requests that wait for the model already.
        load_s: Expected seconds of its load; 0 when it is loaded, None when nothing tells.
        load_measured: It was loaded before, and `load_s` is what that took on average.
        drain_s: What still runs on an evicted model after this long is cancelled; 0 = all may
            finish. As asked for, else as configured.
        force: What runs on an evicted model is cancelled at once.
        auto_switch: Requests have models loaded, so those for an evicted model wait for it;
            False: they are refused (503). None = not known.
        memory_bytes: What the model holds, or will; None = not known before it is fetched.
        held_bytes: What is planned for all loaded models together (see `Eviction`).
        now_bytes: What their processes hold now, as `Totals` says; 0 = not known.
        limit_bytes: What models may hold; 0 = not known.
        generation: What the plan was made for; `if_gen` carries it back.
        state: Of its worker, now.
        dry_run: Nothing was done.
        command: The `llmctl` line that does it.
    """

    model: str
    loaded: bool
    fits: bool
    reason: str = ""
    add: bool = False
    fits_beside: bool = False
    evict: tuple[Eviction, ...] = ()
    going: tuple[Eviction, ...] = ()
    queued: int = 0
    load_s: float | None = None
    load_measured: bool = False
    drain_s: float = 0.0
    force: bool = False
    auto_switch: bool | None = None
    memory_bytes: int | None = None
    held_bytes: int = 0
    now_bytes: int = 0
    limit_bytes: int = 0
    generation: int = 0
    state: str = ""
    dry_run: bool = False
    command: str = ""


class Acted(View, frozen=True, kw_only=True):
    """What an action on one model hit.

    Attributes:
        action: `unload`, `restart` or `reset`.
        force: What ran was cancelled at once.
        running: Requests that ran there.
        queued: Requests that waited for it.
        state: Of its worker, now.
    """

    model: str
    state: str
    action: str = ""
    force: bool = False
    running: int = 0
    queued: int = 0


class Cancelled(View, frozen=True, kw_only=True):
    """What a cancel hit.

    Attributes:
        cancelled: Ended by it.
        pending: Told to end, and not ended within 5 s.
        ended: Had ended before.
        unknown: Not remembered, or never there.
    """

    cancelled: tuple[str, ...] = ()
    pending: tuple[str, ...] = ()
    ended: tuple[str, ...] = ()
    unknown: tuple[str, ...] = ()


class Stopped(View, frozen=True, kw_only=True):
    """What a stop hit: models told to go, requests turned away, requests that may finish."""

    unload: tuple[str, ...] = ()
    refused: int = 0
    running: int = 0


class Admission(View, frozen=True, kw_only=True):
    """Whether new requests are admitted, and what waits or runs."""

    admission_open: bool
    queued: int = 0
    running: int = 0


class Done(View, frozen=True, kw_only=True):
    """Nothing more to say."""
