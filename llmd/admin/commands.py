"""What each command does: it looks through `Views` and acts through `Operations`.

An action is carried out at once, in the order in which a connection asks; only the waiting for its
effect is left to a task, so that one who waits holds up nobody, not even himself. Every action is
logged with who asked for it and what it hit.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import msgspec
import trio

from llmd import errors
from llmd.admin import protocol as p
from llmd.admin.grammar import did_you_mean
from llmd.admin.ids import whole_ids
from llmd.admin.peercred import Peer
from llmd.admin.plans import describe_plan
from llmd.admin.views import Views
from llmd.core.events import SwitchRequested
from llmd.core.lifecycle import RequestState
from llmd.core.record import CancelCause
from llmd.models.catalog import CatalogModel
from llmd.observe.log import clean, log
from llmd.operations import Operations
from llmd.registry import Handle

_log = logging.getLogger(__name__)
_NAMED = 20  # ids in a line of the log

Answer: TypeAlias = p.View | Awaitable[p.View]


@dataclass(frozen=True, slots=True)
class Actor:
    """Who asks: the peer, and "write" or "read"."""

    peer: Peer
    access: str


class Commands:
    """Answers commands.

    Args:
        operations: What acts.
        views: What looks.
        spawn: Starts a task that outlives the connection that asked for it.
    """

    def __init__(
        self,
        operations: Operations,
        views: Views,
        spawn: Callable[[Callable[[], Awaitable[None]]], None],
    ) -> None:
        self._operations = operations
        self._views = views
        self._spawn = spawn
        self._handlers: Mapping[type, Callable[[Any, Actor], Answer]] = {
            p.Hello: self._hello,
            p.GetStatus: lambda _command, _actor: views.status(),
            p.GetModels: lambda _command, _actor: views.models(),
            p.GetRequests: self._requests,
            p.GetQueue: lambda _command, _actor: views.queue(views.statistics()),
            p.GetVersion: lambda _command, _actor: views.version(),
            p.GetWhy: self._why,
            p.Switch: self._switch,
            p.Load: self._load,
            p.Unload: self._unload,
            p.Restart: self._restart,
            p.Reset: self._reset,
            p.Cancel: self._cancel,
            p.Stop: self._stop,
            p.Drain: self._drain,
            p.Resume: self._resume,
        }

    def answer(self, command: p.Command[Any], actor: Actor) -> Answer:
        """Carry a command out, and return its result or, if that takes time, what to await.

        Raises:
            LlmdError: It is refused.
        """
        looks = isinstance(command, p.Switch) and command.dry_run
        if command.writes and not looks and actor.access != "write":
            raise errors.PermissionDenied(
                "this connection may only look: only root, the daemon's own user and members of "
                "server.admin_group may change anything"
            )
        return self._handlers[type(command)](command, actor)

    # --- looking ----------------------------------------------------------------------------

    def _hello(self, command: p.Hello, actor: Actor) -> p.Welcome:
        daemon = self._views.daemon()
        return p.Welcome(
            protocol=p.PROTOCOL,
            version=daemon.version,
            access=actor.access,
            generation=daemon.generation,
            pid=daemon.pid,
        )

    def _requests(self, command: p.GetRequests, actor: Actor) -> p.Requests:
        states = [state.value for state in RequestState]
        if command.state and command.state not in states:
            raise errors.InvalidRequest(
                f"there is no state {command.state[:100]!r}{did_you_mean(command.state, states)}",
                param="state",
            )
        model = self.model(command.model).name if command.model else ""
        return self._views.requests(msgspec.structs.replace(command, model=model))

    def _why(self, command: p.GetWhy, actor: Actor) -> p.Story:
        [request_id] = self._whole([command.request])
        record = self._views.record(request_id)
        if record is None:
            raise errors.RequestNotFound(_unknown(command.request))
        return self._views.story(record)

    # --- models -----------------------------------------------------------------------------

    def model(self, name: str) -> CatalogModel:
        """Return the model that was named, also by its name as a client was shown it.

        Raises:
            ModelNotFound: There is none.
        """
        try:
            return self._operations.model(name, param="model")
        except errors.ModelNotFound:
            names = {clean(model.name): model for model in self._operations.catalog.models}
            if name in names:
                return names[name]
            raise errors.ModelNotFound(
                f"the model {name[:200]!r} does not exist{did_you_mean(name, names)}", param="model"
            ) from None

    def _wanted(self, name: str) -> CatalogModel:
        """Return the model that is to be loaded, which may be one of a repository.

        Raises:
            ModelNotFound: There is none.
            PermissionDenied: The repository is not within `llama.hf_allow`.
        """
        try:
            return self._operations.wanted(name, param="model")
        except errors.ModelNotFound as unknown:
            try:
                return self.model(name)
            except errors.ModelNotFound as guess:
                raise (unknown if "/" in name else guess) from None

    def _switch(self, command: p.Switch, actor: Actor) -> Answer:
        operations = self._operations
        operations.expect(command.if_gen)
        model = self._wanted(command.model)
        request = SwitchRequested(
            model=model.name,
            evict=tuple(self.model(name).name for name in command.evict),
            add=command.add,
            drain_s=operations.drain_s(command.drain_s),
            force=command.force,
        )
        if command.dry_run:
            plan = operations.scheduler.plan(request)
            return describe_plan(self._views, operations, plan, request, command, model)
        return self._load_by(request, actor, command, model)

    def _load(self, command: p.Load, actor: Actor) -> Answer:
        self._operations.expect(command.if_gen)
        model = self._wanted(command.model)
        request = SwitchRequested(model=model.name, add=True)
        return self._load_by(request, actor, command, model)

    def _load_by(
        self,
        request: SwitchRequested,
        actor: Actor,
        command: p.Switch | p.Load,
        model: CatalogModel,
    ) -> Answer:
        before = self._operations.scheduler.plan(request)
        told = describe_plan(self._views, self._operations, before, request, command, model)
        plan = self._operations.switch(request, model)
        self._note(
            actor,
            type(command).__name__.lower(),
            model=plan.model,
            evict=",".join(plan.evict) or None,
            running=sum(plan.drains.values()) or None,
            force=request.force or None,
            generation=plan.generation,
        )

        def answer() -> p.Plan:
            state = self._operations.state_of(self._operations.model(plan.model))
            return msgspec.structs.replace(told, model=plan.model, state=state.value)

        async def loaded() -> p.View:
            await self._operations.until_loaded(plan.model)
            return answer()

        return loaded() if command.wait else answer()

    def _unload(self, command: p.Unload, actor: Actor) -> Answer:
        self._operations.expect(command.if_gen)
        model = self.model(command.model)
        running = self._operations.unload(model.name, drain_s=command.drain_s, force=command.force)
        self._note(actor, "unload", model=model.name, running=running, force=command.force or None)

        async def gone() -> p.View:
            await self._operations.until_gone([model.name])
            return self._acted(command, model, running)

        return gone() if command.wait else self._acted(command, model, running)

    def _restart(self, command: p.Restart, actor: Actor) -> Answer:
        operations = self._operations
        operations.expect(command.if_gen)
        model = self.model(command.model)
        status = operations.status(model.name)
        if model.name not in operations.scheduler.statistics().loaded:
            raise errors.Conflict(
                f"{model.name} is {status.state.value}, so there is nothing to restart; "
                "load it, or reset it if it failed"
            )
        self._note(
            actor, "restart", model=model.name, running=status.running, force=command.force or None
        )
        over = trio.Event()
        refused: list[errors.LlmdError] = []

        async def restart() -> None:
            try:
                await operations.restart(model.name, drain_s=command.drain_s, force=command.force)
            except errors.LlmdError as error:
                refused.append(error)
                log(_log, "restart failed", logging.WARNING, model=model.name, reason=error.message)
            finally:
                over.set()

        self._spawn(restart)

        async def restarted() -> p.View:
            await over.wait()
            if refused:
                raise refused[0]
            await operations.until_loaded(model.name)
            return self._acted(command, model, status.running)

        return restarted() if command.wait else self._acted(command, model, status.running)

    async def _reset(self, command: p.Reset, actor: Actor) -> p.View:
        model = self.model(command.model)
        self._note(actor, "reset", model=model.name)
        await self._operations.reset(model)
        return self._acted(command, model, 0)

    def _acted(
        self, command: p.Unload | p.Restart | p.Reset, model: CatalogModel, running: int
    ) -> p.Acted:
        queued = self._operations.status(model.name).queued
        return p.Acted(
            model=model.name,
            state=self._operations.state_of(model).value,
            action=type(command).__name__.lower(),
            force=not isinstance(command, p.Reset) and command.force,
            running=running,
            queued=sum(queued.values()),
        )

    # --- requests ---------------------------------------------------------------------------

    def _cancel(self, command: p.Cancel, actor: Actor) -> Answer:
        handles, ended, unknown = self._chosen(command)
        for handle in handles:
            handle.cancel(CancelCause.OPERATOR, by=str(actor.peer))
        ids = [handle.record.id for handle in handles]
        self._note(
            actor,
            "cancel",
            requests=",".join([*ids[:_NAMED], *(["..."] if len(ids) > _NAMED else [])]) or None,
            count=len(ids),
            model=command.model or None,
            key_name=command.key or None,
        )

        async def cancelled() -> p.View:
            await self._operations.cancel(handles, CancelCause.OPERATOR)
            return p.Cancelled(
                cancelled=tuple(h.record.id for h in handles if h.record.ended),
                pending=tuple(h.record.id for h in handles if not h.record.ended),
                ended=tuple(ended),
                unknown=tuple(unknown),
            )

        return cancelled()

    def _chosen(self, command: p.Cancel) -> tuple[list[Handle], list[str], list[str]]:
        """Return the requests to cancel, and the named ones that have ended or are not known."""
        registry = self._operations.registry
        ids = (command.request, *command.requests) if command.request else command.requests
        matching = command.all or command.model or command.key
        if bool(ids) == bool(matching):
            raise errors.InvalidRequest(
                "name requests, or say all, a model or a key", param="request"
            )
        if matching:
            model = self.model(command.model).name if command.model else ""
            handles = [
                handle
                for handle in registry.handles()
                if model in ("", handle.record.model) and command.key in ("", handle.record.key)
            ]
            return handles, [], []
        handles, ended, unknown = [], [], []
        for request_id in dict.fromkeys(self._whole(ids)):
            handle = registry.live(request_id)
            if handle is not None:
                handles.append(handle)
            elif registry.record(request_id) is not None:
                ended.append(request_id)
            else:
                unknown.append(request_id)
        if unknown and not handles and not ended:
            raise errors.RequestNotFound(_unknown(", ".join(unknown[:_NAMED])))
        return handles, ended, unknown

    def _whole(self, said: Sequence[str]) -> list[str]:
        """Return whole ids for those that were said in part.

        Raises:
            InvalidRequest: A part means several requests; the ended ones count, too.
        """
        registry = self._operations.registry
        if all(registry.record(name) for name in said):
            return list(said)
        return whole_ids(said, (record.id for record in registry.records()))

    # --- everything -------------------------------------------------------------------------

    def _stop(self, command: p.Stop, actor: Actor) -> Answer:
        self._operations.expect(command.if_gen)
        hit = self._operations.stop()
        self._note(
            actor,
            "stop",
            unload=",".join(hit.unload) or None,
            refused=hit.refused,
            running=hit.running,
        )
        stopped = p.Stopped(unload=hit.unload, refused=hit.refused, running=hit.running)

        async def gone() -> p.View:
            await self._operations.until_gone(hit.unload)
            return stopped

        return gone() if command.wait else stopped

    def _drain(self, command: p.Drain, actor: Actor) -> p.Admission:
        self._operations.admit(is_open=False, reject_queued=command.reject_queued)
        self._note(actor, "drain", reject_queued=command.reject_queued or None)
        return self._admission()

    def _resume(self, command: p.Resume, actor: Actor) -> p.Admission:
        self._operations.admit(is_open=True)
        self._note(actor, "resume")
        return self._admission()

    def _admission(self) -> p.Admission:
        now = self._views.statistics()
        return p.Admission(
            admission_open=now.admission_open, queued=now.queued, running=now.running
        )

    def _note(self, actor: Actor, action: str, **hit: Any) -> None:
        fields = {name: value for name, value in hit.items() if value is not None}
        peer = actor.peer
        log(_log, f"operator: {action}", user=peer.user, uid=peer.uid, pid=peer.pid, **fields)


def _unknown(request_id: str) -> str:
    return f"there is no request {request_id[:200]!r}; only the last ones are remembered"
