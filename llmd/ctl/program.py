"""What `llmctl` does: from its words to an answer, an output and an exit status.

Exit status: 0 done, 1 refused, 2 wrong usage, 3 no daemon. It imports neither trio nor textual, and
what only some commands need is imported by them, so that it starts fast.
"""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, TextIO, TypeAlias

import msgspec

from llmd import __version__
from llmd.admin import protocol as p
from llmd.admin.plain import parse_plainly
from llmd.client import AdminError, BadReply, Client, Refused, Unreachable

if TYPE_CHECKING:
    from argparse import Namespace
    from types import SimpleNamespace

    from llmd.admin.grammar import UsageError
    from llmd.ctl.tables import Style

    Options: TypeAlias = Namespace | SimpleNamespace

DONE, REFUSED, USAGE, UNREACHABLE = 0, 1, 2, 3
_PLAIN: Mapping[int, str] = {ord("∞"): "-", ord("…"): "~"}


def main(argv: Sequence[str] | None = None) -> int:
    """Run `llmctl` with `argv` (default: the process's own) and return its exit status.

    Raises:
        SystemExit: From argparse, for `--help`.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    if sys.stdout is None:  # closed by who started us
        return _complain(
            "there is no output to write to", REFUSED, json=_wants_json(words), code="output"
        )
    try:
        try:
            return _carry_out(words)
        finally:
            sys.stdout.flush()
    except BrokenPipeError:
        # who read our output has had enough
        _write_no_more()
        return DONE
    except OSError as error:
        _write_no_more()
        message = f"the output cannot be written: {error.strerror or error}"
        return _complain(message, REFUSED, json=_wants_json(words), code="output")


def _wants_json(words: Sequence[str]) -> bool:
    return "--json" in words


def _write_no_more() -> None:
    """Have nothing flushed to the output any more, at exit either."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _carry_out(words: Sequence[str]) -> int:
    if words[:1] == ["_names"]:
        return _names(words[1:])
    options: Options | None = parse_plainly(words)
    if options is None:
        from llmd.admin.grammar import UsageError, parse_quickly

        try:
            options = parse_quickly(words)
        except UsageError as error:
            return _misused(words, error)
    try:
        return _run(options)
    except KeyboardInterrupt:
        return DONE if options.name in ("watch", "logs") else 130
    except Refused as error:
        return _complain(error.message, REFUSED, json=options.json, code=error.code)
    except (Unreachable, BadReply) as error:
        return _complain(str(error), UNREACHABLE, json=options.json, code="unreachable")
    except AdminError as error:  # of a command that no line can hold
        return _complain(str(error), USAGE, json=options.json, code="usage")


def _misused(words: Sequence[str], error: UsageError) -> int:
    """Say what is wrong with words that are no command, and return the exit status."""
    from llmd.admin.grammar import build_parser, commands_of

    json = _wants_json(words)
    named = next((word for word in words if word in p.NOT_BUILT), "")
    if named and not commands_of(build_parser()).keys() & set(words):
        message = f"{named} is not supported yet by this version of llmd"
        return _complain(message, REFUSED, json=json, code="not_supported")
    if not json:
        _say(error.usage)
    return _complain(str(error), USAGE, json=json, code="usage")


def _run(options: Options) -> int:
    if options.name == "completion":
        from llmd.admin.grammar import build_parser
        from llmd.ctl.completion import script

        sys.stdout.write(script(build_parser(), options.shell))
        return DONE
    if options.make is None:
        if options.json:
            return _complain("name a command", USAGE, json=True, code="usage")
        from llmd.admin.grammar import build_parser

        build_parser().print_help(sys.stderr)
        return USAGE
    if options.name == "switch" and not options.model:
        if not all(end and end.isatty() for end in (sys.stdin, sys.stderr)):
            wanted = "switch needs the name of a model, since there is no terminal to choose at"
            return _complain(wanted, USAGE, json=options.json, code="usage")
        options.model = _choose(options)
        if not options.model:
            return REFUSED
    if options.name == "version":
        return _version(options)
    out = _Output(sys.stdout, style(sys.stdout, os.environ), json=options.json)
    with Client(options.socket) as client:
        if options.name == "watch" or (options.name == "logs" and options.follow):
            return _follow(client, options, out)
        answer = client.call(options.make(options))
    out.show(answer)
    if isinstance(answer, p.Log) and not answer.lines and options.lines and not options.json:
        _complain(f"the worker of {answer.model} has said nothing yet", DONE)
    refused = isinstance(answer, p.Plan) and not answer.fits
    missed = isinstance(answer, p.Cancelled) and (answer.unknown or answer.pending)
    return REFUSED if refused or missed else DONE


def _follow(client: Client, options: Options, out: _Output) -> int:
    """Show what goes on until the daemon ends."""
    if options.name == "watch":
        for message in client.subscribe(*options.topics):
            out.show(message)
    else:
        for line in client.follow(options.model, lines=options.lines):
            out.show(line)
    return _complain("llmd has ended", UNREACHABLE, json=options.json, code="unreachable")


def _version(options: Options) -> int:
    """Print both versions; without a daemon that of llmctl is still known."""
    try:
        with Client(options.socket) as client:
            daemon = client.version()
    except Unreachable as error:
        if not options.json:
            sys.stdout.write(f"llmctl {__version__}\n")
        return _complain(str(error), UNREACHABLE, json=options.json, code="unreachable")
    if not options.json:
        sys.stdout.write(f"llmctl {__version__}\n")
    _Output(sys.stdout, style(sys.stdout, os.environ), json=options.json).show(daemon)
    return DONE


def _choose(options: Options) -> str:
    """Return the model that the person at the terminal picks from a list; "" for none."""
    from llmd.ctl import render

    with Client(options.socket) as client:
        models = [model for model in client.models().models if not model.fault]
    if not models:
        _complain("there is no model to switch to", REFUSED)
        return ""
    names = [model.name for model in models]
    lines = render.choices(models, style(sys.stderr, os.environ))
    sys.stderr.write("\n".join([*lines, f"switch to which (1-{len(names)} or a name)? "]))
    sys.stderr.flush()
    said = sys.stdin.readline()
    if not said:
        sys.stderr.write("\n")
    said = said.strip()
    if said.isascii() and said.isdigit() and 1 <= int(said) <= len(names):
        return names[int(said) - 1]
    if said and said not in names:
        from llmd.admin.grammar import did_you_mean

        _complain(f"there is no {said!r} in the list{did_you_mean(said, names)}", REFUSED)
        return ""
    return said


def _names(words: Sequence[str]) -> int:
    """Print `models` or `requests` for completion, one a line; nothing without a daemon."""
    kind, path = (*words, "", "")[:2]
    try:
        with Client(path or None, timeout_s=1.0) as client:
            if kind == "models":
                names = [model.name for model in client.models().models]
            else:
                names = [request.id for request in client.requests().requests]
    except AdminError:
        return UNREACHABLE
    sys.stdout.write("".join(f"{name}\n" for name in names))
    return DONE


def style(out: TextIO, env: Mapping[str, str]) -> Style:
    """Return how to write to `out`: cut and coloured on a terminal only."""
    from llmd.ctl.tables import Style

    if not out.isatty():
        return Style()
    plain = env.get("NO_COLOR") or env.get("TERM") == "dumb"
    try:
        columns = os.get_terminal_size(out.fileno()).columns
    except OSError:
        columns = 0
    return Style(columns, colour=not plain)


class _Output:
    """Shows answers: as JSON, one object a line, or as text for a person."""

    def __init__(self, out: TextIO, style: Style, *, json: bool) -> None:
        self._out = out
        self._style = style
        self._json = json

    def show(self, answer: Any) -> None:
        for line in self._as_json(answer) if self._json else self._as_text(answer):
            try:
                self._out.write(line + "\n")
            except UnicodeEncodeError:
                self._out.write(self._encodable(line) + "\n")
        self._out.flush()

    def _encodable(self, line: str) -> str:
        """Return a line as the output's encoding, such as ASCII, can have it."""
        if self._json:
            from json import dumps, loads

            return dumps(loads(line))  # escapes say the same
        encoding = self._out.encoding or "ascii"
        return line.translate(_PLAIN).encode(encoding, "replace").decode(encoding)

    def _as_json(self, answer: Any) -> list[str]:
        rows: Sequence[Any] = (answer,)
        if isinstance(answer, p.Models):
            rows = answer.models
        elif isinstance(answer, p.Requests):
            rows = answer.requests
        elif isinstance(answer, p.Log):
            rows = answer.lines
        return [msgspec.json.encode(row).decode() for row in rows]

    def _as_text(self, answer: Any) -> list[str]:
        from llmd.ctl import render

        return render.text(answer, self._style, time.time())


def _complain(message: str, status: int, *, json: bool = False, code: str = "") -> int:
    if json:
        error = {"error": {"code": code, "message": message}}
        _say(msgspec.json.encode(error).decode() + "\n")
    else:
        _say(f"llmctl: {message}\n")
    return status


def _say(text: str) -> None:
    """Write to who started us, if he listens: the exit status says the rest."""
    with contextlib.suppress(OSError):
        if sys.stderr is not None:
            sys.stderr.write(text)
