"""Every command as a method, described once for both clients.

`Client` and `AsyncClient` inherit these methods and differ in `call` alone: what a method returns
is the result for the one, and something to await for the other. Only what streams (`subscribe`,
`follow`) is written in each of them.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Sequence
from typing import Any, Concatenate, Generic, ParamSpec, Protocol, TypeVar, overload

from llmd.admin import protocol as p

P = ParamSpec("P")
R = TypeVar("R")
_R = TypeVar("_R")


class Blocking(Protocol):
    """A client whose calls return the result."""

    def call(self, command: p.Command[_R]) -> _R:
        """Send a command and return its result."""
        ...


class Awaiting(Protocol):
    """A client whose calls are awaited."""

    async def call(self, command: p.Command[_R]) -> _R:
        """Send a command and return its result."""
        ...


class asks(Generic[P, R]):  # noqa: N801  (a decorator)
    """Makes a client's method of one that returns the command to send.

    The method takes the same arguments and has the same documentation, and returns what the
    command returns (`Command[R]`).
    """

    def __init__(self, make: Callable[Concatenate[Any, P], p.Command[R]]) -> None:
        self._make = make
        self.__doc__ = make.__doc__

    @overload
    def __get__(self, client: None, owner: type) -> Callable[..., p.Command[R]]: ...
    @overload
    def __get__(self, client: Awaiting, owner: type) -> Callable[P, Coroutine[Any, Any, R]]: ...
    @overload
    def __get__(self, client: Blocking, owner: type) -> Callable[P, R]: ...
    def __get__(self, client: Any, owner: type) -> Any:
        make = self._make
        if client is None:
            return make

        def ask(*args: P.args, **kwargs: P.kwargs) -> Any:
            return client.call(make(client, *args, **kwargs))

        ask.__name__, ask.__doc__ = make.__name__, make.__doc__
        return ask


class Asking:
    """The commands. All raise what `call` raises: `Refused`, `Unreachable`, `BadReply`."""

    @asks
    def hello(self) -> p.Hello:
        """Return who the daemon is and what this connection may do."""
        return p.Hello()

    @asks
    def status(self) -> p.GetStatus:
        """Return the daemon in one page."""
        return p.GetStatus()

    @asks
    def models(self) -> p.GetModels:
        """Return the catalog."""
        return p.GetModels()

    @asks
    def requests(
        self,
        *,
        state: str = "",
        model: str = "",
        key: str = "",
        ended: bool = False,
        limit: int = 1000,
    ) -> p.GetRequests:
        """Return requests, live ones first; with `ended` also those that are remembered."""
        return p.GetRequests(state=state, model=model, key=key, ended=ended, limit=limit)

    @asks
    def queue(self) -> p.GetQueue:
        """Return the queue."""
        return p.GetQueue()

    @asks
    def why(self, request: str) -> p.GetWhy:
        """Return a request's whole story; refused when it is not remembered."""
        return p.GetWhy(request=request)

    @asks
    def version(self) -> p.GetVersion:
        """Return the daemon's versions."""
        return p.GetVersion()

    @asks
    def switch(
        self,
        model: str,
        *,
        evict: Sequence[str] = (),
        add: bool = False,
        drain_s: float | None = None,
        force: bool = False,
        if_gen: int | None = None,
        dry_run: bool = False,
        wait: bool = False,
    ) -> p.Switch:
        """Load a model in the place of others, or with `dry_run` only say how.

        Refused when it does not fit, fails to load, is not known, or the generation has moved on.

        Args:
            model: To be loaded.
            evict: What goes for it; () lets the daemon choose.
            add: Load it beside the others, or not at all.
            drain_s: Requests that run this long on an evicted model are cancelled then; 0 = they
                may finish, None = as configured.
            force: Cancel them at once.
            if_gen: Refuse when the generation is another one by now.
            dry_run: Change nothing.
            wait: Return when it is loaded. There is no time limit.
        """
        return p.Switch(
            model=model,
            evict=tuple(evict),
            add=add,
            drain_s=drain_s,
            force=force,
            if_gen=if_gen,
            dry_run=dry_run,
            wait=wait,
        )

    @asks
    def load(self, model: str, *, if_gen: int | None = None, wait: bool = False) -> p.Load:
        """Load a model beside the others; nothing is evicted for it."""
        return p.Load(model=model, if_gen=if_gen, wait=wait)

    @asks
    def unload(
        self,
        model: str,
        *,
        drain_s: float | None = None,
        force: bool = False,
        if_gen: int | None = None,
        wait: bool = False,
    ) -> p.Unload:
        """Take a model out of memory; arguments as for `switch`."""
        return p.Unload(model=model, drain_s=drain_s, force=force, if_gen=if_gen, wait=wait)

    @asks
    def restart(
        self,
        model: str,
        *,
        drain_s: float | None = None,
        force: bool = False,
        if_gen: int | None = None,
        wait: bool = False,
    ) -> p.Restart:
        """Unload a loaded model and load it again; arguments as for `switch`."""
        return p.Restart(model=model, drain_s=drain_s, force=force, if_gen=if_gen, wait=wait)

    @asks
    def reset(self, model: str) -> p.Reset:
        """Forget a model's crashes, so that a failed one may be tried again."""
        return p.Reset(model=model)

    @asks
    def cancel(
        self,
        *requests: str,
        everything: bool = False,
        model: str = "",
        key: str = "",
    ) -> p.Cancel:
        """Cancel the requests named, all that match, or everything; returns once they ended.

        Refused when none of those named is known.
        """
        return p.Cancel(requests=requests, all=everything, model=model, key=key)

    @asks
    def stop(self, *, if_gen: int | None = None, wait: bool = False) -> p.Stop:
        """Turn away what is queued and unload everything; the next request loads again."""
        return p.Stop(if_gen=if_gen, wait=wait)

    @asks
    def drain(self, *, reject_queued: bool = False) -> p.Drain:
        """Admit nothing new; with `reject_queued` turn away what waits, too."""
        return p.Drain(reject_queued=reject_queued)

    @asks
    def resume(self) -> p.Resume:
        """Admit again."""
        return p.Resume()

    @asks
    def logs(self, model: str, *, lines: int = 200, after: int = 0) -> p.Logs:
        """Return the last lines of a model's worker, those with a number above `after`."""
        return p.Logs(model=model, lines=lines, after=after)
