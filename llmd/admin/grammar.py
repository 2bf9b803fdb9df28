"""The words of `llmctl`, and of the command line of `llmtui`: from words to a command.

One grammar for both, so that what the screen shows can be typed into a shell.
"""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NoReturn, Protocol, TypeAlias

from llmd import __version__
from llmd.admin import protocol as p
from llmd.admin.plain import BARE, why
from llmd.core.lifecycle import RequestState

SHELLS = ("bash", "zsh", "fish")
_MOST_SECONDS = 86400.0

Make: TypeAlias = Callable[[argparse.Namespace], p.Command[Any]]


class UsageError(Exception):
    """The words are no command.

    Attributes:
        usage: How they should have been.
    """

    def __init__(self, message: str, usage: str) -> None:
        super().__init__(message)
        self.usage = usage


class Parser(argparse.ArgumentParser):
    """An argument parser that raises instead of ending the program, and guesses what was meant."""

    def error(self, message: str) -> NoReturn:
        """Raise UsageError."""
        raise UsageError(message, self.format_usage())

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        if isinstance(action, argparse._SubParsersAction) and value not in action.choices:
            names = list(action.choices)
            raise UsageError(
                f"there is no command {str(value)[:100]!r}{did_you_mean(str(value), names)}",
                f"{self.format_usage()}commands: {', '.join(names)}\n",
            )
        super()._check_value(action, value)


def did_you_mean(said: str, names: Iterable[str]) -> str:
    """Return a guess to be put behind a message; "" when nothing is near."""
    from difflib import get_close_matches  # only where something went wrong

    near = get_close_matches(said, list(names), 1)
    return f"; did you mean {near[0]!r}?" if near else ""


def commands_of(parser: argparse.ArgumentParser) -> dict[str, argparse.ArgumentParser]:
    """Return the parser of each command."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            return dict(action.choices)
    return {}


class Options(Protocol):
    """What takes the arguments of a command."""

    def add_argument(self, *names: str, **how: Any) -> Any:
        """Add one; as argparse has it."""
        ...


class _Skipped:
    """Takes the arguments of a command that is not wanted."""

    def add_argument(self, *names: str, **how: Any) -> None:
        """Do nothing."""


def build_parser(only: str = "") -> Parser:
    """Return the parser; its namespace holds `name`, and `make` where a command follows.

    Args:
        only: Knows this command and no other: building the parsers of all of them takes longer
            than everything else that a parser does. "" = all.
    """
    parser = Parser(
        prog="llmctl",
        description="Steer the llmd of this box through its admin socket.",
        epilog="Exit status: 0 done, 1 refused, 2 wrong usage, 3 no daemon.",
        allow_abbrev=False,
    )
    shared = Parser(add_help=False)
    for target in (parser, shared):
        # below a command they must not undo what was said before it
        default: Any = None if target is parser else argparse.SUPPRESS
        target.add_argument("--socket", metavar="PATH", default=default, help="the admin socket")
        target.add_argument(
            "--json",
            action="store_true",
            default=False if target is parser else default,
            help="one JSON object a line, for scripts",
        )
    parser.add_argument(
        "--version",
        action="version",
        version=f"llmctl {__version__}",
        help="print llmctl's version",
    )
    parser.set_defaults(name="", make=None)
    commands = parser.add_subparsers(title="commands", metavar="COMMAND")

    def command(name: str, about: str, make: Make | None) -> Options:
        if only not in ("", name):
            return _Skipped()
        added = commands.add_parser(
            name, help=about, description=about, parents=[shared], allow_abbrev=False
        )
        added.set_defaults(name=name, make=make)
        return added

    _looking(command)
    _models(command)
    _requests(command)
    completion = command("completion", "Print a completion script for a shell.", None)
    completion.add_argument("shell", choices=SHELLS)
    return parser


Add: TypeAlias = Callable[[str, str, "Make | None"], Options]


def _looking(command: Add) -> None:
    command("status", "Show daemon, totals and workers.", BARE["status"])
    command("models", "List the models that llmd knows.", BARE["models"])
    requests = command(
        "requests",
        "List requests.",
        lambda o: p.GetRequests(
            state=o.state, model=o.model, key=o.key, ended=o.ended, limit=o.limit
        ),
    )
    requests.add_argument(
        "--state",
        metavar="STATE",
        choices=[state.value for state in RequestState],
        default="",
        help="only those in this state: queued, decode, done, ...",
    )
    requests.add_argument("--model", metavar="MODEL", default="", help="only those for this model")
    requests.add_argument("--key", metavar="KEY", default="", help="only those of this key")
    requests.add_argument("-a", "--ended", action="store_true", help="ended ones, too")
    requests.add_argument("--limit", metavar="N", type=_count, default=1000, help="N at most")
    command("queue", "Show what waits.", BARE["queue"])
    story = command("why", "Tell a request's whole story.", why)
    story.add_argument("request", metavar="ID")
    logs = command(
        "logs",
        "Show what a model's worker said.",
        lambda o: p.Logs(model=o.model, lines=o.lines, follow=o.follow),
    )
    logs.add_argument("model", metavar="MODEL")
    logs.add_argument("-f", "--follow", action="store_true", help="go on as it says more")
    logs.add_argument("-n", "--lines", metavar="N", type=_natural, default=50, help="the last N")
    watch = command(
        "watch", "Show what happens, as it happens.", lambda o: p.Subscribe(topics=tuple(o.topics))
    )
    watch.add_argument(
        "topics", metavar="TOPIC", nargs="*", help=f"of {', '.join(p.TOPICS)}; none = all"
    )
    command("version", "Print the versions of llmctl and of the daemon.", BARE["version"])


def _models(command: Add) -> None:
    switch = command(
        "switch",
        "Load a model in the place of others.",
        lambda o: p.Switch(
            model=o.model,
            evict=tuple(o.evict),
            add=o.add,
            drain_s=o.drain,
            force=o.force,
            if_gen=o.if_gen,
            dry_run=o.dry_run,
            wait=o.wait,
        ),
    )
    switch.add_argument("model", metavar="MODEL", nargs="?", default="")
    switch.add_argument(
        "--from",
        dest="evict",
        metavar="MODEL",
        action="append",
        default=[],
        help="what goes for it (default: llmd chooses); may be repeated",
    )
    switch.add_argument("--add", action="store_true", help="evict nothing, or do nothing")
    switch.add_argument("--dry-run", action="store_true", help="only print the plan")
    _leaving(switch)
    load = command(
        "load",
        "Load a model beside the others.",
        lambda o: p.Load(model=o.model, if_gen=o.if_gen, wait=o.wait),
    )
    load.add_argument("model", metavar="MODEL")
    _careful(load)
    for name, about, kind in (
        ("unload", "Take a model out of memory.", p.Unload),
        ("restart", "Unload a loaded model and load it again.", p.Restart),
    ):
        added = command(name, about, _goes(kind))
        added.add_argument("model", metavar="MODEL")
        _leaving(added)
    reset = command("reset", "Let a failed model be tried again.", lambda o: p.Reset(model=o.model))
    reset.add_argument("model", metavar="MODEL")
    stop = command(
        "stop",
        "Turn away what waits and unload everything.",
        lambda o: p.Stop(if_gen=o.if_gen, wait=o.wait),
    )
    _careful(stop)


def _goes(kind: type[p.Unload] | type[p.Restart]) -> Make:
    return lambda o: kind(
        model=o.model, drain_s=o.drain, force=o.force, if_gen=o.if_gen, wait=o.wait
    )


def _requests(command: Add) -> None:
    cancel = command(
        "cancel",
        "Cancel requests.",
        lambda o: p.Cancel(requests=tuple(o.requests), all=o.all, model=o.model, key=o.key),
    )
    cancel.add_argument("requests", metavar="ID", nargs="*")
    cancel.add_argument("--all", action="store_true", help="every request")
    cancel.add_argument("--model", metavar="MODEL", default="", help="all for this model")
    cancel.add_argument("--key", metavar="KEY", default="", help="all of this key")
    drain = command(
        "drain",
        "Admit nothing new; what runs goes on.",
        lambda o: p.Drain(reject_queued=o.reject_queued),
    )
    drain.add_argument("--reject-queued", action="store_true", help="turn away what waits, too")
    command("resume", "Admit again.", BARE["resume"])


def _leaving(parser: Options) -> None:
    parser.add_argument(
        "--drain",
        metavar="SEC",
        type=_seconds,
        help="cancel what still runs after SEC seconds; 0 = let it finish",
    )
    parser.add_argument("--force", action="store_true", help="cancel what runs at once")
    _careful(parser)


def _careful(parser: Options) -> None:
    parser.add_argument(
        "--if-gen", metavar="N", type=int, help="do nothing if the generation is not N any more"
    )
    parser.add_argument("--wait", action="store_true", help="return when it is done")


def parse(words: Sequence[str], parser: Parser | None = None) -> argparse.Namespace:
    """Return what the words say.

    Raises:
        UsageError: They are no command.
        SystemExit: They ask for help.
    """
    parser = parser or build_parser()
    options, unknown = parser.parse_known_args(words)
    if unknown:
        used = commands_of(parser).get(options.name, parser)
        flags = [flag for action in used._actions for flag in action.option_strings]
        guess = did_you_mean(unknown[0], flags) if unknown[0].startswith("-") else ""
        raise UsageError(f"{unknown[0][:100]!r} is not understood{guess}", used.format_usage())
    if options.name == "cancel":
        chosen = [bool(options.requests), options.all, bool(options.model or options.key)]
        if sum(chosen) != 1:
            usage = "usage: llmctl cancel ID... | --all | --model MODEL | --key KEY\n"
            raise UsageError("name requests, or say --all, --model or --key", usage)
    if options.name == "watch":
        unknown = [topic for topic in options.topics if topic not in p.TOPICS]
        if unknown:
            guess = did_you_mean(unknown[0], p.TOPICS) or f"; there are {', '.join(p.TOPICS)}"
            raise UsageError(
                f"there is no topic {unknown[0][:100]!r}{guess}",
                commands_of(parser)["watch"].format_usage(),
            )
    if getattr(options, "force", False) and getattr(options, "drain", None):
        usage = commands_of(parser)[options.name].format_usage()
        raise UsageError("say --drain or --force: --force leaves no time", usage)
    return options


def line_of(command: p.Switch | p.Load) -> str:
    """Return the line that `parse` makes this command of, quoted for a shell."""
    words = []
    if isinstance(command, p.Switch):
        words = [f"--from={name}" for name in command.evict if name.startswith("-")]
        for name in command.evict:
            words += [] if name.startswith("-") else ["--from", name]
        words += ["--add"] if command.add else []
        if command.force:
            words.append("--force")
        elif command.drain_s is not None:
            words += ["--drain", repr(command.drain_s).removesuffix(".0")]
        words += ["--dry-run"] if command.dry_run else []
    words += ["--wait"] if command.wait else []
    words += [] if command.if_gen is None else ["--if-gen", str(command.if_gen)]
    if command.model.startswith("-"):
        words += ["--", command.model]
    else:
        words.insert(0, command.model)
    return shlex.join(["llmctl", type(command).__name__.lower(), *words])


def parse_quickly(words: Sequence[str]) -> argparse.Namespace:
    """Return what the words say, having built no more than is needed for it.

    Raises:
        UsageError, SystemExit: As `parse` does.
    """
    named = _first_name(words)
    alone = bool(named) and not {"-h", "--help"} & set(words)  # help names all commands
    try:
        return parse(words, build_parser(named) if alone else None)
    except UsageError:
        # a slip: now with all the words there are, to say what was meant
        return parse(words)


def _first_name(words: Sequence[str]) -> str:
    """Return the first word that is neither an option nor the socket's path."""
    left = iter(words)
    for word in left:
        if word == "--socket":
            next(left, None)
        elif not word.startswith("-"):
            return word
    return ""


def _seconds(text: str) -> float:
    value = float(text)
    if not 0 <= value <= _MOST_SECONDS:
        raise argparse.ArgumentTypeError(f"must be between 0 and {_MOST_SECONDS:g}")
    return value


def _natural(text: str) -> int:
    value = int(text)
    if not 0 <= value <= 100_000:
        raise argparse.ArgumentTypeError("must be between 0 and 100000")
    return value


def _count(text: str) -> int:
    value = int(text)
    if not 1 <= value <= 10_000:
        raise argparse.ArgumentTypeError("must be between 1 and 10000")
    return value
