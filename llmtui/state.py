"""What the screen knows, and how each message of the daemon changes it.

Everything here is a pure function from a state to a state: no clock, no terminal, no loop. Moments
named `now` are Unix seconds of this machine; the daemon runs on it, so its clock is the same one.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

from llmd.admin import protocol as p
from llmtui.happenings import Mishap, mishaps

NEW_S = 1.5
GONE_S = 2.0
HELD_S = 8.0  # while keys are pressed: a row that leaves moves those below it
HISTORY = 60
KEPT_NOTICES = 200

RUNNING = ("prefill", "decode")
FAULTY_WORKERS = ("backoff", "failed")
_RANK = {"decode": 0, "prefill": 1, "queued": 2, "received": 3}
_CLASS = {"high": 0, "normal": 1, "low": 2}


@dataclass(frozen=True)
class State:
    """What was last heard, and when.

    Attributes:
        link: `connecting`, `live`, `stale` (what is known is old) or `absent` (nothing is known).
        lost_at, retry_at: Of a link that is neither connecting nor live: since when, and when it is
            tried again; None = now.
        trouble: Why the link is not live.
        access: "write" or "read".
        latency_s: Of the last greeting, which is repeated all the time.
        heard_at: When the last message or answer came.
        fresh: Requests that have just come, and when.
        gone: Requests that have just ended, and when; they leave after `GONE_S`.
        log: The last lines of the daemon's log.
        wrong: Requests that ended badly since this screen listens.
        history: Tokens a second of the last minute, by model and "" for all, oldest first.
        prefill: Prompt tokens a second, likewise, as far as this screen has seen them.
        ticked_at: The second up to which both reach.
    """

    link: str = "connecting"
    lost_at: float | None = None
    retry_at: float | None = None
    trouble: str = ""
    access: str = "read"
    latency_s: float | None = None
    heard_at: float = 0.0
    daemon: p.Daemon | None = None
    totals: p.Totals = field(default_factory=p.Totals)
    workers: Mapping[str, p.Worker] = field(default_factory=dict)
    requests: Mapping[str, p.Request] = field(default_factory=dict)
    log: tuple[p.Notice, ...] = ()
    wrong: tuple[Mishap, ...] = ()
    history: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    prefill: tuple[float, ...] = ()
    ticked_at: float = 0.0
    fresh: Mapping[str, float] = field(default_factory=dict)
    gone: Mapping[str, float] = field(default_factory=dict)

    @property
    def generation(self) -> int | None:
        """Of what is loaded, as last heard; None before anything was."""
        return self.daemon.generation if self.daemon else None


def greeted(state: State, welcome: p.Welcome, latency_s: float) -> State:
    """Return the state once the daemon has said who it is."""
    return replace(state, access=welcome.access, latency_s=latency_s)


def lost(state: State, now: float, retry_at: float, trouble: str) -> State:
    """Return the state once the link broke: the last data stay, and are known to be old."""
    since = state.lost_at if state.lost_at is not None else now
    link = "stale" if state.daemon else "absent"
    return replace(state, link=link, lost_at=since, retry_at=retry_at, trouble=trouble)


def retrying(state: State) -> State:
    """Return the state while a lost link is tried again."""
    return replace(state, retry_at=None)


def shown_at(state: State, now: float) -> float:
    """Return the moment that ages and expected times are to be told for.

    Of what is not heard of any more nobody knows whether it goes on: it stands still.
    """
    return min(now, state.heard_at) if state.link == "stale" else now


def held(shown: State, link: State) -> State:
    """Return what a paused screen shows: the data as they were, the link as it is."""
    return replace(
        shown,
        link=link.link,
        lost_at=link.lost_at,
        retry_at=link.retry_at,
        trouble=link.trouble,
        heard_at=link.heard_at,
        latency_s=link.latency_s,
    )


def heard(state: State, message: p.Snapshot | p.Event | p.Lagged, now: float) -> State:
    """Return the state after a message of a subscription."""
    if isinstance(message, p.Snapshot):
        return _snapshot(state, message, now)
    if isinstance(message, p.Event):
        return _event(state, message, now)
    return replace(state, heard_at=now)  # what was missed is in the snapshot that follows


def _snapshot(state: State, message: p.Snapshot, now: float) -> State:
    return replace(
        state,
        link="live",
        lost_at=None,
        retry_at=None,
        trouble="",
        heard_at=now,
        daemon=message.daemon,
        totals=message.totals,
        workers={worker.model: worker for worker in message.workers or ()},
        requests={r.id: r for r in message.requests or () if not r.ended},
        log=(message.log or ())[-KEPT_NOTICES:],
        history={name: tuple(values[-HISTORY:]) for name, values in message.history.items()},
        ticked_at=now,
        fresh={},
        gone={},
    )


def _event(state: State, message: p.Event, now: float) -> State:
    workers, requests = state.workers, state.requests
    fresh, gone = state.fresh, state.gone
    if message.workers:
        workers = {**workers, **{worker.model: worker for worker in message.workers}}
    wrong = state.wrong
    if message.requests:
        come = [r.id for r in message.requests if r.id not in requests and not r.ended]
        # what came and ended between two messages was never seen: a flood of refusals would
        # only push aside those that run
        shown = [r for r in message.requests if not r.ended or r.id in requests]
        left = [r.id for r in shown if r.ended]
        fresh = {**fresh, **dict.fromkeys(come, now)}
        gone = {**gone, **dict.fromkeys(left, now)}
        requests = {**requests, **{r.id: r for r in shown}}
        wrong = mishaps(wrong, (r for r in message.requests if r.ended))
    return replace(
        state,
        link="live",
        heard_at=now,
        daemon=message.daemon or state.daemon,
        totals=message.totals or state.totals,
        workers=workers,
        requests=requests,
        log=(*state.log, *message.log)[-KEPT_NOTICES:] if message.log else state.log,
        wrong=wrong,
        fresh=fresh,
        gone=gone,
    )


def ticked(state: State, now: float, gone_s: float = GONE_S) -> State:
    """Return the state as time passes: rates join the history, gone rows leave after `gone_s`."""
    gone = {key: at for key, at in state.gone.items() if now - at < gone_s}
    if len(gone) != len(state.gone):
        requests = {k: v for k, v in state.requests.items() if k in gone or k not in state.gone}
        state = replace(state, requests=requests, gone=gone)
    fresh = {key: at for key, at in state.fresh.items() if now - at < NEW_S}
    if len(fresh) != len(state.fresh):
        state = replace(state, fresh=fresh)
    seconds = min(HISTORY, int(now - state.ticked_at)) if state.ticked_at else 0
    if seconds < 1 or state.link != "live":
        return state
    rates = {"": state.totals.tokens_per_s}
    rates.update((name, worker.tokens_per_s) for name, worker in state.workers.items())
    history = {
        name: (*state.history.get(name, ()), *[rate] * seconds)[-HISTORY:]
        for name, rate in rates.items()
    }
    prefill = (*state.prefill, *[state.totals.prefill_tokens_per_s] * seconds)[-HISTORY:]
    ticked_at = state.ticked_at + int(now - state.ticked_at)
    return replace(state, history=history, prefill=prefill, ticked_at=ticked_at)


# --- what is shown of it -------------------------------------------------------------------


def is_faulty_worker(worker: p.Worker) -> bool:
    """Return whether a worker needs an operator's eye."""
    return worker.state in FAULTY_WORKERS or bool(worker.leaving)


def is_faulty_request(request: p.Request, now: float) -> bool:
    """Return whether a request is stuck or went wrong."""
    silent = request.silent_since_at is not None and not request.ended
    return silent or request.state in ("failed", "timed_out") or request.retries > 0


def matches(words: str, text: str) -> bool:
    """Return whether text holds every word of a filter; a word with `!` must not be in it.

    A `!` that stands alone before the words inverts them all together.
    """
    text = text.lower()
    first, *rest = words.lower().split() or [""]
    if first == "!":
        return not rest or not _holds(rest, text)
    return _holds([first, *rest], text)


def _holds(words: Iterable[str], text: str) -> bool:
    for word in words:
        if word.startswith("!"):
            if len(word) > 1 and word[1:] in text:
                return False
        elif word not in text:
            return False
    return True


def worker_text(worker: p.Worker) -> str:
    """Return what a filter looks at."""
    return f"{worker.model} {worker.state} {worker.note} {worker.reason}"


def request_text(request: p.Request) -> str:
    """Return what a filter looks at."""
    why = f"{request.why.rule} {request.why.detail}" if request.why else ""
    return (
        f"{request.id} {request.state} {request.priority} {request.model} {request.key}"
        f" {request.user} {request.client} {why}"
    )


WORKER_SORTS = {"state": "s", "model": "m", "memory": "v", "rate": "t", "queue": "q"}
REQUEST_SORTS = {
    "sched": "s", "age": "a", "model": "m", "client": "c", "wait": "w", "rate": "t", "tokens": "n",
}  # fmt: skip
_WORKER_RANK = {
    name: rank
    for rank, name in enumerate(
        ("ready", "draining", "loading", "starting", "stopping", "backoff", "failed", "off")
    )
}


def worker_order(workers: Iterable[p.Worker], sort: str, *, inverted: bool = False) -> list[str]:
    """Return the models' names in the order in which they are shown."""

    def key(worker: p.Worker) -> tuple[float | str, ...]:
        if sort == "model":
            return (worker.model,)
        if sort == "memory":
            return (-(worker.memory_bytes or worker.estimate_bytes), worker.model)
        if sort == "rate":
            return (-worker.tokens_per_s, worker.model)
        if sort == "queue":
            return (-worker.waiting, worker.model)
        return (_WORKER_RANK.get(worker.state, 9), worker.model)

    return [worker.model for worker in sorted(workers, key=key, reverse=inverted)]


def request_order(requests: Iterable[p.Request], sort: str, *, inverted: bool = False) -> list[str]:
    """Return the requests' ids in the order in which they are shown."""

    def key(request: p.Request) -> tuple[float | str, ...]:
        if sort == "age":
            return (request.received_at, request.id)
        if sort == "model":
            return (request.model, request.received_at, request.id)
        if sort == "client":
            return (client_of(request), request.received_at, request.id)
        if sort == "wait":
            queued = request.granted_at is None and not request.ended
            return (not queued, request.queued_at or request.received_at, request.id)
        if sort == "rate":
            return (-(request.tokens_per_s or 0.0), request.id)
        if sort == "tokens":
            return (-(request.prompt_tokens + request.completion_tokens), request.id)
        rank = _RANK.get(request.state, 4)
        if request.state in RUNNING:  # one that starts to decode keeps its place
            return (0, request.granted_at or request.received_at, 0, 0, request.id)
        waits = (request.position, _CLASS.get(request.priority, 1))
        return (rank, *waits, request.received_at, request.id)

    return [request.id for request in sorted(requests, key=key, reverse=inverted)]


def newest_running(state: State, keys: Iterable[str]) -> str | None:
    """Return the one of these requests that was granted last; None when none of them runs."""
    running = [state.requests[key] for key in keys if key in state.requests]
    running = [request for request in running if request.state in RUNNING]
    newest = max(running, key=lambda r: (r.granted_at or r.received_at, r.id), default=None)
    return newest.id if newest else None


def hold(shown: Iterable[str], wanted: Iterable[str]) -> list[str]:
    """Return `wanted` with rows that are shown kept in their order, and new ones at the end.

    What the eye or the cursor is on must not move away under it.
    """
    present = list(wanted)
    still = set(present)
    kept = [key for key in shown if key in still]
    seen = set(kept)
    return kept + [key for key in present if key not in seen]


def client_of(request: p.Request) -> str:
    """Return who sent a request, as people know them."""
    return request.key or request.user or request.client or "-"
