"""The command line's text: what it means, how its words go on, and what was typed before.

No terminal, no loop. The grammar is `llmctl`'s own, and so is every name in it.
"""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any

from llmd.admin import protocol as p
from llmd.admin.grammar import Parser, UsageError, build_parser, parse
from llmtui.state import State

OWN = {"quit": "leave llmtui", "help": "show the keys"}
_FOREIGN = ("completion",)  # of a shell alone
_MOST_KEPT = 100


@dataclass(frozen=True)
class Words:
    """What was typed.

    Attributes:
        text: As `llmctl` would be given it.
        name: Of the command; "" for none.
        options: What it says; None for the commands that are llmtui's own, and for help.
        help: Text that was asked for instead.
    """

    text: str
    name: str = ""
    options: argparse.Namespace | None = None
    help: str = ""


def understood(text: str) -> Words:
    """Return what a line means.

    Raises:
        UsageError: It is no command, or none for this screen.
    """
    try:
        words = shlex.split(text)
    except ValueError as error:
        raise UsageError(f"not understood: {error}", "") from error
    words = words[1:] if words[:1] == ["llmctl"] else words
    if not words:
        return Words("")
    name, plain = words[0], shlex.join(words)
    if name in ("q", "quit", "exit"):
        return Words(plain, "quit")
    if words == ["help"]:
        return Words(plain, "help")
    if name in p.NOT_BUILT:
        raise UsageError(f"{name} is not supported yet by this version of llmd", "")
    parser = build_parser()
    known = commands(parser)
    if "-h" in words or "--help" in words:
        about = known.get(name)
        return Words(plain, "help", help=(about or parser).format_help())
    if name not in known and name not in _FOREIGN and not name.startswith("-"):
        near = get_close_matches(name, [*known, *OWN], 1)
        raise UsageError(f"no such command: {name}" + (f"; {near[0]}?" if near else ""), "")
    if name in _FOREIGN:
        raise UsageError(f"{name} is for shells: llmctl {name}", "")
    options = parse(words, parser)
    if options.socket is not None:
        raise UsageError("--socket is for llmctl: this screen talks to its own daemon", "")
    if options.make is None:
        raise UsageError("say a command", "")
    if name == "switch" and not options.model:
        raise UsageError("switch to which model?", known[name].format_usage())
    return Words(plain, name, options)


def whole_id(part: str, ids: Iterable[str]) -> str:
    """Return the one id that begins or ends with what was typed; where none or several do, that.

    Rows show the end of an id; the daemon is asked about whole ones.
    """
    known = list(ids)
    if part in known:
        return part
    fits = [name for name in known if name.startswith((part, f"r-{part}")) or name.endswith(part)]
    return fits[0] if part and len(fits) == 1 else part


def commands(parser: Parser) -> dict[str, argparse.ArgumentParser]:
    """Return the commands of the grammar with their own parsers."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            return {name: sub for name, sub in action.choices.items() if name not in _FOREIGN}
    return {}


def completed(text: str, names: Mapping[str, Sequence[str]]) -> tuple[str, list[str]]:
    """Return a line with its last word as complete as it can be, and what it may become.

    Args:
        text: What stands before the cursor.
        names: By the grammar's word for it (`MODEL`, `ID`, `KEY`, `TOPIC`), what can stand there.
    """
    head, _, word = text.rpartition(" ")
    found = sorted(set(_candidates(head.split(), names)))
    fits = [shlex.quote(name) for name in found]
    fits = [name for name in fits if name.startswith(word) and (word or name[0] != "-")]
    if not fits:
        return text, []
    lead = f"{head} " if head or text.startswith(" ") else ""
    if len(fits) == 1:
        return f"{lead}{fits[0]} ", fits
    return lead + _shared(fits), fits


def _shared(names: Sequence[str]) -> str:
    """Return what all names begin with."""
    first, last = min(names), max(names)
    same = 0
    while same < min(len(first), len(last)) and first[same] == last[same]:
        same += 1
    return first[:same]


def _candidates(before: Sequence[str], names: Mapping[str, Sequence[str]]) -> list[str]:
    known = commands(build_parser())
    if not before:
        return [*known, *OWN]
    sub = known.get(before[0])
    if sub is None:
        return []
    options = {flag: action for action in sub._actions for flag in action.option_strings}
    last = options.get(before[-1])
    if last is not None and last.nargs != 0:
        return list(names.get(str(last.metavar), ()))
    found = [flag for flag in options if flag.startswith("--") and flag != "--socket"]
    for action in sub._actions:
        if not action.option_strings:
            found += [name for name in names.get(str(action.metavar), ()) if name not in before]
    return found


class History:
    """What was typed, the newest last."""

    def __init__(self) -> None:
        self._lines: list[str] = []
        self._place = 0
        self._draft = ""

    def add(self, line: str) -> None:
        """Remember a line, and start from the end again."""
        if line:
            self._lines = [known for known in self._lines if known != line][-_MOST_KEPT + 1 :]
            self._lines.append(line)
        self._place, self._draft = len(self._lines), ""

    def step(self, by: int, now: str) -> str:
        """Return the line before (-1) or after (1); what stands there `now` is kept as the last."""
        if self._place == len(self._lines):
            self._draft = now
        self._place = min(len(self._lines), max(0, self._place + by))
        return self._draft if self._place == len(self._lines) else self._lines[self._place]


def must_ask(asked: p.Command[Any], state: State) -> bool:
    """Return whether a command may hit others, so that it is asked first."""
    if isinstance(asked, p.Unload | p.Restart):
        worker = state.workers.get(asked.model)
        return worker is not None and worker.state != "off"
    if isinstance(asked, p.Drain):
        return asked.reject_queued and state.totals.queued > 0
    return isinstance(asked, p.Stop)
