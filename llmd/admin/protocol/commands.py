"""What can be asked: commands, each with the type that it returns."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Generic, TypeAlias, TypeVar

import msgspec
from msgspec import Meta, Struct

from llmd.admin.protocol.box import Log, Models, Status, Version, Welcome
from llmd.admin.protocol.requests import Queue, Requests, Story
from llmd.admin.protocol.results import Acted, Admission, Cancelled, Done, Plan, Stopped

R = TypeVar("R")

Id: TypeAlias = int | Annotated[str, Meta(max_length=128)]
Name: TypeAlias = Annotated[str, Meta(max_length=1024)]
Names: TypeAlias = Annotated[tuple[Name, ...], Meta(max_length=10_000)]
Seconds: TypeAlias = Annotated[float, Meta(ge=0, le=86400)]


class Command(
    Struct,
    Generic[R],
    frozen=True,
    kw_only=True,
    omit_defaults=True,
    forbid_unknown_fields=True,
    tag_field="type",
):
    """What all commands share.

    Attributes:
        id: Echoed by every message that belongs to it.
        writes: It changes something, so it needs the right to.
        returns: What `Ok.result` holds.
    """

    writes: ClassVar[bool] = False
    returns: ClassVar[Any] = Done

    id: Id = 0


class Hello(Command[Welcome], frozen=True, kw_only=True, tag="hello"):
    """Ask who the daemon is and what this connection may do."""

    returns = Welcome


class GetStatus(Command[Status], frozen=True, kw_only=True, tag="status"):
    """Ask for the daemon in one page."""

    returns = Status


class GetModels(Command[Models], frozen=True, kw_only=True, tag="models"):
    """Ask for the catalog."""

    returns = Models


class GetRequests(Command[Requests], frozen=True, kw_only=True, tag="requests"):
    """Ask for requests.

    Attributes:
        state: Only those in this state; "" = any.
        model, key: Only of these.
        ended: Remembered ones, too.
        limit: How many at most.
    """

    returns = Requests

    state: Name = ""
    model: Name = ""
    key: Name = ""
    ended: bool = False
    limit: Annotated[int, Meta(ge=1, le=10_000)] = 1000


class GetQueue(Command[Queue], frozen=True, kw_only=True, tag="queue"):
    """Ask for the queue."""

    returns = Queue


class GetWhy(Command[Story], frozen=True, kw_only=True, tag="why"):
    """Ask for a request's whole story.

    Attributes:
        request: Its id, or the part of it that a table shows (see `Cancel`).
    """

    returns = Story

    request: Name


class GetVersion(Command[Version], frozen=True, kw_only=True, tag="version"):
    """Ask for versions."""

    returns = Version


class Switch(Command[Plan], frozen=True, kw_only=True, tag="switch"):
    """Load a model in the place of others.

    Attributes:
        model: To be loaded.
        evict: (`from`) What goes for it; () lets the daemon choose.
        add: Load it beside the others, or not at all.
        drain_s: Requests that run this long on an evicted model are cancelled then; 0 = they may
            finish, None = as configured.
        force: Cancel them at once.
        if_gen: Refuse when the generation is another one by now.
        dry_run: Only say what would be done, which takes no right to change anything.
        wait: Answer when it is loaded, or known to fail.
    """

    writes = True
    returns = Plan

    model: Name
    evict: Names = msgspec.field(name="from", default=())
    add: bool = False
    drain_s: Seconds | None = None
    force: bool = False
    if_gen: int | None = None
    dry_run: bool = False
    wait: bool = False


class Load(Command[Plan], frozen=True, kw_only=True, tag="load"):
    """Load a model beside the others; nothing is evicted for it."""

    writes = True
    returns = Plan

    model: Name
    if_gen: int | None = None
    wait: bool = False


class Unload(Command[Acted], frozen=True, kw_only=True, tag="unload"):
    """Take a model out of memory; see `Switch` for the rest."""

    writes = True
    returns = Acted

    model: Name
    drain_s: Seconds | None = None
    force: bool = False
    if_gen: int | None = None
    wait: bool = False


class Restart(Command[Acted], frozen=True, kw_only=True, tag="restart"):
    """Unload a loaded model and load it again; see `Switch` for the rest."""

    writes = True
    returns = Acted

    model: Name
    drain_s: Seconds | None = None
    force: bool = False
    if_gen: int | None = None
    wait: bool = False


class Reset(Command[Acted], frozen=True, kw_only=True, tag="reset"):
    """Forget a model's crashes, so that a failed one may be tried again."""

    writes = True
    returns = Acted

    model: Name


class Cancel(Command[Cancelled], frozen=True, kw_only=True, tag="cancel"):
    """Cancel requests: those named, or all that match.

    An id may be said in part: its end or its beginning, from 4 characters on (llmd's own `r-` does
    not count, and may be left out). What fits several requests, ended ones included, is refused
    and nothing is cancelled.

    Attributes:
        request: One id.
        requests: Several ids.
        all: Every request.
        model, key: All requests of that model, of that key, or of both.
    """

    writes = True
    returns = Cancelled

    request: Name = ""
    requests: Names = ()
    all: bool = False
    model: Name = ""
    key: Name = ""


class Stop(Command[Stopped], frozen=True, kw_only=True, tag="stop"):
    """Turn away what is queued and unload everything; the next request loads again.

    Attributes:
        if_gen: Refuse when the generation is another one by now.
        wait: Answer when all have gone.
    """

    writes = True
    returns = Stopped

    if_gen: int | None = None
    wait: bool = False


class Drain(Command[Admission], frozen=True, kw_only=True, tag="drain"):
    """Admit nothing new: what comes is answered 503, what waits is held, what runs goes on.

    Attributes:
        reject_queued: Turn away what waits, too.
    """

    writes = True
    returns = Admission

    reject_queued: bool = False


class Resume(Command[Admission], frozen=True, kw_only=True, tag="resume"):
    """Admit again."""

    writes = True
    returns = Admission


class Logs(Command[Log], frozen=True, kw_only=True, tag="logs"):
    """Ask for the last lines of a model's worker.

    Attributes:
        lines: How many at most.
        after: Only those with a higher number.
        follow: Go on with `Lines` messages until `Unsubscribe`.
    """

    returns = Log

    model: Name
    lines: Annotated[int, Meta(ge=0, le=100_000)] = 200
    after: Annotated[int, Meta(ge=0)] = 0
    follow: bool = False


TOPICS = ("requests", "workers", "queue", "log")


class Subscribe(Command[Done], frozen=True, kw_only=True, tag="subscribe"):
    """Ask for a `Snapshot` and, from then on, an `Event` for each change.

    There is no `Ok`: the snapshot is the answer. Daemon and totals come with every topic.

    Attributes:
        topics: Of `TOPICS`; () = all of them.
    """

    topics: Names = ()


class Unsubscribe(Command[Done], frozen=True, kw_only=True, tag="unsubscribe"):
    """End a subscription, or the following of a log.

    Attributes:
        subscription: The `id` that it was asked for with.
    """

    subscription: Id


AnyCommand: TypeAlias = (
    Hello
    | GetStatus
    | GetModels
    | GetRequests
    | GetQueue
    | GetWhy
    | GetVersion
    | Switch
    | Load
    | Unload
    | Restart
    | Reset
    | Cancel
    | Stop
    | Drain
    | Resume
    | Logs
    | Subscribe
    | Unsubscribe
)

NOT_BUILT = frozenset({"users", "keys", "usage", "reload"})
"""Commands of the protocol that this daemon does not have yet: refused as `not_supported`."""
