"""What a worker's owner task is told, and the box that it reads it from."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import TypeAlias

import trio

from llmd.errors import StartFailed
from llmd.workers.diagnosis import Diagnosis
from llmd.workers.probes import Readiness


class Waiter:
    """Somebody who waits for a worker to be ready; answered exactly once."""

    def __init__(self) -> None:
        self.done = trio.Event()
        self.error: StartFailed | None = None

    def answer(self, error: StartFailed | None) -> None:
        """Wake it, with why there will be no worker, or None when there is one."""
        if not self.done.is_set():
            self.error = error
            self.done.set()


# --- asked by others -----------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Start:
    """Want it up, with this much context (0 = as configured)."""

    context_tokens: int
    reason: str
    waiter: Waiter | None = None


@dataclass(frozen=True, slots=True)
class Drain:
    """Take nothing new."""


@dataclass(frozen=True, slots=True)
class Stop:
    """End it; `force` kills at once."""

    reason: str
    force: bool


@dataclass(frozen=True, slots=True)
class Reset:
    """Forget its crashes."""


@dataclass(frozen=True, slots=True)
class Suspect:
    """Check it now."""

    reason: str


# --- found by the helpers of one life ------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Finding:
    """Root of what a helper found; void once its process is history.

    Attributes:
        life: Number of the life that it is about.
    """

    life: int


@dataclass(frozen=True, slots=True)
class Answers(Finding):
    """It answers, and says that it loads."""


@dataclass(frozen=True, slots=True)
class Advanced(Finding):
    """It says how far its load is, 0 to 1."""

    fraction: float


@dataclass(frozen=True, slots=True)
class Ready(Finding):
    """It serves, and is what it should be."""

    readiness: Readiness


@dataclass(frozen=True, slots=True)
class Failing(Finding):
    """Its process must be ended."""

    diagnosis: Diagnosis


@dataclass(frozen=True, slots=True)
class Exited(Finding):
    """Its process has ended."""

    status: int


Message: TypeAlias = (
    Start | Drain | Stop | Reset | Suspect | Answers | Advanced | Ready | Failing | Exited
)


@dataclass
class Mailbox:
    """Messages in order, for one reader.

    Nothing is between the box and the reader: `get` has no checkpoint after it took a message,
    so that an empty box means that everything before has been handled.
    """

    _messages: deque[Message] = field(default_factory=deque)
    _filled: trio.Event = field(default_factory=trio.Event)

    def post(self, message: Message) -> None:
        """Add a message; never blocks."""
        self._messages.append(message)
        self._filled.set()

    def post_first(self, message: Message) -> None:
        """Add a message that goes before all others."""
        self._messages.appendleft(message)
        self._filled.set()

    def __len__(self) -> int:
        return len(self._messages)

    async def get(self, deadline: float, life: int) -> Message | None:
        """Wait for the next message; None when the absolute `deadline` passes first.

        Args:
            deadline: On the trio clock; messages that are there go before it.
            life: Findings about any other life are dropped.
        """
        while True:
            while self._messages:
                message = self._messages.popleft()
                if not isinstance(message, Finding) or message.life == life:
                    return message
            self._filled = trio.Event()
            with trio.CancelScope(deadline=deadline):
                await self._filled.wait()
            if not self._messages:
                return None
