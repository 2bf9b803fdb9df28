"""What a window over the main screen works with: everything that it does not own, handed in."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from rich.style import Style

from llmtui.link import Source
from llmtui.rows import Look
from llmtui.state import State

NOT_CONNECTED = "not connected"


def _silent(text: str, style: str) -> None:
    """Say nothing."""


@dataclass(frozen=True)
class Desk:
    """The app, as far as its windows need it.

    Attributes:
        state: Returns what was heard last, also while the board is paused.
        source: Returns what to ask; raises `Unreachable` while the link is lost.
        colours: A style for each style name.
        look: Returns how things are drawn.
        can_write: Tells whether actions may be offered now.
        read_only: The screen was started to offer none.
        say: Shows a line and its style on the board for some seconds.
        now: Unix seconds.
        keymap: Keys of the user's own, by binding id.
    """

    state: Callable[[], State]
    source: Callable[[], Source]
    colours: Mapping[str, Style]
    look: Callable[[], Look] = Look
    can_write: Callable[[], bool] = lambda: True
    read_only: bool = False
    say: Callable[[str, str], None] = field(default=_silent)
    now: Callable[[], float] = time.time
    keymap: Mapping[str, str] = field(default_factory=dict)

    @property
    def live(self) -> bool:
        """True while the daemon is heard."""
        return self.state().link == "live"

    @property
    def refusal(self) -> str:
        """Why nothing may be done now; "" when it may."""
        if self.can_write():
            return ""
        if self.read_only:
            return "read-only: started with --read-only"
        return "read-only: this socket lets you look" if self.live else NOT_CONNECTED

    def holds(self, said: str) -> str:
        """Return what a key was answered, as long as it is true: a link comes back by itself."""
        return "" if said == NOT_CONNECTED and self.live else said
