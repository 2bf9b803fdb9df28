"""Messages to a client: answers, and what a subscription tells."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeAlias

import msgspec
from msgspec import Struct

from llmd.admin.protocol.box import Daemon, LogLine, Notice, Totals, Worker
from llmd.admin.protocol.requests import Queue, Request


class Message(Struct, frozen=True, kw_only=True, omit_defaults=True, tag_field="type"):
    """What all messages to a client share: the `id` of the command that they belong to."""

    id: int | str | None = None


class Ok(Message, frozen=True, kw_only=True, tag="ok"):
    """Done; `result` is what the command returns."""

    result: msgspec.Raw = msgspec.Raw(b"{}")


class Failure(Message, frozen=True, kw_only=True, tag="failure"):
    """Refused, or failed.

    Attributes:
        code: For programs: the same words as in the HTTP API's errors, and `not_supported`,
            `unknown_command`, `line_too_long`, `incomplete_line`, `too_many`.
        message: For a person.
        retry_after_s: When another try is likely to succeed.
    """

    code: str
    message: str
    retry_after_s: float | None = None


class Snapshot(Message, frozen=True, kw_only=True, tag="snapshot"):
    """All that a subscription is about, at one moment.

    Attributes:
        seq: The next event has a higher number.
        at: Unix seconds, of the daemon's clock.
        workers: One for each model of the catalog.
        requests: Those that are on their way.
        log: The last lines of the daemon's log.
        history: Tokens a second of the last minute, one value for each second, the oldest
            first; by model, and "" for all together.
    """

    seq: int
    at: float
    daemon: Daemon
    totals: Totals
    workers: tuple[Worker, ...] | None = None
    requests: tuple[Request, ...] | None = None
    queue: Queue | None = None
    log: tuple[Notice, ...] | None = None
    history: Mapping[str, tuple[float, ...]] = {}


class Event(Message, frozen=True, kw_only=True, tag="event"):
    """What has changed since the message before: whole rows, to be put in the place of old ones.

    Without any change one comes every few seconds all the same, as a sign of life.

    Attributes:
        seq: Grows with each event; a gap means that topics not subscribed to have changed.
        requests: Changed, new, and (with an end as `state`) gone ones.
    """

    seq: int
    at: float
    daemon: Daemon | None = None
    totals: Totals | None = None
    workers: tuple[Worker, ...] = ()
    requests: tuple[Request, ...] = ()
    queue: Queue | None = None
    log: tuple[Notice, ...] = ()


class Lagged(Message, frozen=True, kw_only=True, tag="lagged"):
    """The client read too slowly: `missed` events were dropped, and a `Snapshot` follows."""

    seq: int
    missed: int


class Lines(Message, frozen=True, kw_only=True, tag="lines"):
    """More lines of a log; `missed` were forgotten before they could be sent."""

    model: str
    lines: tuple[LogLine, ...] = ()
    missed: int = 0


class Ended(Message, frozen=True, kw_only=True, tag="ended"):
    """A subscription is over; `reason` says why."""

    reason: str = ""


AnyMessage: TypeAlias = Ok | Failure | Snapshot | Event | Lagged | Lines | Ended
