"""Where the data come from: the daemon, or something that plays one."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import aclosing, suppress
from dataclasses import replace
from typing import Protocol, TypeVar

from llmd.admin import protocol as p
from llmd.admin.calls import AdminError, Unreachable
from llmtui.state import State, greeted, heard, lost, retrying

R = TypeVar("R")

_FIRST_RETRY_S = 0.5
_LAST_RETRY_S = 5.0
_SILENCE_S = 15.0  # the daemon says something every 5 s
_PING_S = 2.0
_ANSWER_S = 2.0  # a daemon that is well answers within milliseconds


class Source(Protocol):
    """What the screen uses of `llmd.client.AsyncClient`; its documentation holds here."""

    async def connect(self) -> None:
        """Connect."""
        ...

    async def close(self) -> None:
        """Hang up."""
        ...

    async def hello(self) -> p.Welcome:
        """Greet."""
        ...

    async def call(self, command: p.Command[R]) -> R:
        """Send any command and return its result."""
        ...

    def subscribe(self, *topics: str) -> AsyncIterator[p.Snapshot | p.Event | p.Lagged]:
        """Yield a snapshot, then events."""
        ...

    def follow(self, model: str, *, lines: int = 0) -> AsyncIterator[p.LogLine]:
        """Yield a log's lines."""
        ...

    async def why(self, request: str) -> p.Story:
        """Return a request's story."""
        ...

    async def cancel(self, *requests: str) -> p.Cancelled:
        """Cancel requests."""
        ...

    async def switch(
        self,
        model: str,
        *,
        evict: Sequence[str] = (),
        add: bool = False,
        drain_s: float | None = None,
        force: bool = False,
        if_gen: int | None = None,
        dry_run: bool = False,
    ) -> p.Plan:
        """Switch, or plan a switch."""
        ...

    async def unload(
        self,
        model: str,
        *,
        drain_s: float | None = None,
        force: bool = False,
        if_gen: int | None = None,
    ) -> p.Acted:
        """Unload a model."""
        ...


class Link:
    """Keeps a state up to date, and comes back by itself when the daemon does.

    Args:
        make: Makes a source for each attempt.
        changed: Called after each change of `state`.
        clock: Unix seconds.
    """

    def __init__(
        self,
        make: Callable[[], Source],
        changed: Callable[[], None],
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._make = make
        self._changed = changed
        self._clock = clock
        self._source: Source | None = None
        self.state = State()

    @property
    def source(self) -> Source:
        """What to ask.

        Raises:
            Unreachable: The link is lost.
        """
        if self._source is None:
            raise Unreachable("the link to the daemon is lost; actions come back with it")
        return self._source

    async def run(self) -> None:
        """Follow the daemon until cancelled; no failure of the link ends it."""
        delay_s = _FIRST_RETRY_S
        while True:
            trouble = "the daemon hung up"
            source = self._make()
            try:
                await self._follow(source)
            except (AdminError, OSError, asyncio.TimeoutError) as error:
                trouble = str(error) or "the daemon does not answer"
            finally:
                self._source = None
                with suppress(OSError):
                    await source.close()
            if self.state.link == "live":
                delay_s = _FIRST_RETRY_S
            now = self._clock()
            self.state = lost(self.state, now, now + delay_s, trouble)
            self._changed()
            await asyncio.sleep(delay_s)
            self.state = retrying(self.state)
            self._changed()
            delay_s = min(_LAST_RETRY_S, delay_s * 2)

    async def _follow(self, source: Source) -> None:
        await asyncio.wait_for(source.connect(), _ANSWER_S)
        await self._greet(source)
        self._source = source
        tasks = [asyncio.create_task(work(source)) for work in (self._listen, self._ping)]
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        for task in done:
            task.result()

    async def _greet(self, source: Source) -> None:
        """Have an answer, and see how long it takes."""

        async def timed() -> tuple[p.Welcome, float]:
            # timed in the task itself: until that begins to run is no fault of the daemon
            started = time.perf_counter()
            return await source.hello(), time.perf_counter() - started

        welcome, latency_s = await asyncio.wait_for(timed(), _ANSWER_S)
        self.state = greeted(self.state, welcome, latency_s)

    async def _ping(self, source: Source) -> None:
        """Fail once there is neither an answer nor an event: a process that is stopped, or worse.

        Its sockets are still open, so nothing else would tell for long.
        """
        while True:
            await asyncio.sleep(_PING_S)
            try:
                await self._greet(source)
            except asyncio.TimeoutError:
                if self._clock() - self.state.heard_at > _ANSWER_S:
                    raise
            else:
                self.state = replace(self.state, heard_at=self._clock())

    async def _listen(self, source: Source) -> None:
        async with aclosing(source.subscribe()) as messages:  # type: ignore[type-var]
            while True:
                try:
                    message = await asyncio.wait_for(anext(messages), _SILENCE_S)
                except StopAsyncIteration:
                    return
                self.state = heard(self.state, message, self._clock())
                if not _only_lives(message):
                    self._changed()


def _only_lives(message: p.Snapshot | p.Event | p.Lagged) -> bool:
    """Return whether a message tells nothing but that the daemon is there."""
    return isinstance(message, p.Event) and message == p.Event(
        id=message.id, seq=message.seq, at=message.at
    )
