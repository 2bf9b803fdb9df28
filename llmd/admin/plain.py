"""The plainest lines of `llmctl`, those that are typed all day: a command and nothing special.

They are understood at a glance. Setting up a parser for them, and importing it, would take longer
than to ask the daemon; `grammar.py` has one for all other lines, and for these it says the same.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import SimpleNamespace
from typing import Any

from llmd.admin import protocol as p

BARE: Mapping[str, Callable[[Any], p.Command[Any]]] = {
    "status": lambda _: p.GetStatus(),
    "models": lambda _: p.GetModels(),
    "requests": lambda _: p.GetRequests(),
    "queue": lambda _: p.GetQueue(),
    "version": lambda _: p.GetVersion(),
    "resume": lambda _: p.Resume(),
}
"""Commands that need nothing but their name."""


def why(options: Any) -> p.GetWhy:
    """Return the command of `why ID`."""
    return p.GetWhy(request=options.request)


def parse_plainly(words: Sequence[str]) -> SimpleNamespace | None:
    """Return what a plain line says, as `grammar.parse` would; None for any other line.

    Plain is a command of `BARE`, or `why` with an ID, with or without `--json` and `--socket PATH`,
    and no other word that begins with a dash.
    """
    options = SimpleNamespace(socket=None, json=False)
    names = []
    left = iter(words)
    for word in left:
        if word == "--json":
            options.json = True
        elif word == "--socket":
            options.socket = next(left, "-")
            if options.socket.startswith("-"):
                return None
        elif word.startswith("-"):
            return None
        else:
            names.append(word)
    match names:
        case [name] if name in BARE:
            options.make = BARE[name]
        case ["why" as name, request]:
            options.make = why
            options.request = request
        case _:
            return None
    options.name = name
    return options
