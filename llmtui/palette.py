"""Everything that can be done, to be found by its name: keys, models, requests."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, cast

from textual.command import DiscoveryHit, Hit, Hits, Provider
from textual.content import Content

from llmd.admin.framing import clean
from llmtui.bindings import KEYS, keys_of, spelt
from llmtui.rows import short_id
from llmtui.state import client_of

if TYPE_CHECKING:
    from llmtui.acting import Acting

_MOST = 200
_NOT_HERE = ("down", "up", "page_down", "page_up", "first", "last", "palette", "clear")


@dataclass(frozen=True)
class _Entry:
    name: str
    about: str
    do: Callable[[], object]


class Everything(Provider):
    """What the palette finds; names of the daemon's are shown as they are, never parsed."""

    async def discover(self) -> Hits:
        """Yield what is shown before a word is typed."""
        for entry in self._entries(names=False):
            yield DiscoveryHit(Content(entry.name), entry.do, text=entry.name, help=entry.about)

    async def search(self, query: str) -> Hits:
        """Yield what a word finds."""
        matcher = self.matcher(query)
        for entry in self._entries(names=True):
            score = matcher.match(entry.name)
            if score > 0:
                # not highlighted: that way leads through markup
                yield Hit(score, Content(entry.name), entry.do, text=entry.name, help=entry.about)

    def _entries(self, *, names: bool) -> Iterator[_Entry]:
        app = cast("Acting", self.app)
        for key in KEYS:
            if key.id in _NOT_HERE or (key.writes and not app.can_write):
                continue
            name = key.id.replace("_", " ").capitalize()
            spelling = " ".join(
                spelt(k, ascii_only=app.look.ascii_only) for k in keys_of(key, app.keymap)
            )
            yield _Entry(name, f"{key.about}   ({spelling})", partial(app.run_action, key.action))
        if names:
            yield from _named(app)


def _named(app: Acting) -> Iterator[_Entry]:
    state = app.link.state
    for model in list(state.workers)[:_MOST]:
        name = clean(model)
        yield _Entry(f"Model {name}", "goes to its row", partial(app.go_to, "workers", model))
        yield _Entry(f"Log of {name}", "its worker's log", partial(app.show_logs, model))
        if app.can_write:
            about = "shows the plan first"
            yield _Entry(f"Switch to {name}", about, partial(app.ask_switch, model))
    for request in list(state.requests.values())[:_MOST]:
        name = f"Request {short_id(clean(request.id))} of {clean(client_of(request))}"
        yield _Entry(name, "goes to its row", partial(app.go_to, "requests", request.id))
