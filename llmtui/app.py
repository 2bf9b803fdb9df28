"""The program `llmtui`: the operators' screen."""

from __future__ import annotations

import argparse
import asyncio
import gc
import os
import signal
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import aclosing
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

import msgspec

from llmd import __version__
from llmd.admin import protocol as p
from llmd.admin.async_client import AsyncClient
from llmd.admin.calls import AdminError
from llmtui.form import Look

if TYPE_CHECKING:
    from llmtui.link import Source

_ONCE_S = 10.0


def main(argv: Sequence[str] | None = None) -> int:
    """Run the screen, or print a snapshot; returns the exit code.

    0 = done, 1 = refused, 2 = wrong usage or no terminal, 3 = the daemon cannot be reached; a
    signal's 128 and its number.
    """
    options = _parser().parse_args(argv)
    if options.json and not options.once:
        return _complain("--json goes with --once")
    if options.once:
        once = _once(_maker(options), as_json=options.json, ascii_only=_plain(options))
        return asyncio.run(once)
    if options.keys:
        return _keys()
    if options.svg is not None:
        return _picture(options)
    # textual draws on stderr, so that a pipe may take what a program prints
    if not all(stream.isatty() for stream in (sys.stdin, sys.stdout, sys.stderr)):
        return _complain("needs a terminal; --once --json prints a snapshot for scripts")
    os.environ.setdefault("ESCDELAY", "25")
    for name in ("COLUMNS", "LINES"):  # textual would believe these for ever, whatever the size is
        os.environ.pop(name, None)
    # what a start makes stays: to look it through for garbage, again and again, finds nothing and
    # takes a tenth of the time to the first frame; see `LlmTui.on_ready`
    gc.disable()
    # textual takes time to import, and --once does without
    from llmtui.keymap import KeymapError, keymap_path, read_keymap
    from llmtui.screen import LlmTui, scopes

    try:
        keymap = read_keymap(keymap_path(os.environ), scopes)
    except KeymapError as error:
        return _complain(*error.faults)
    app = LlmTui(
        _maker(options),
        look=Look(ascii_only=_plain(options)),
        read_only=options.read_only,
        colours=options.theme,
        keymap=keymap,
    )
    return app.run() or app.return_code or 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="llmtui", description="The operators' screen of llmd.")
    parser.add_argument("--socket", help="the daemon's admin socket", default=None)
    parser.add_argument("--read-only", action="store_true", help="offer no actions")
    parser.add_argument("--ascii", action="store_true", help="draw with ASCII only")
    parser.add_argument(
        "--theme",
        choices=("dark", "light", "ansi"),
        default="ansi" if os.environ.get("NO_COLOR") else "dark",
        help="colours; ansi = the terminal's own, and what NO_COLOR means unless it is said",
    )
    parser.add_argument("--once", action="store_true", help="print what is so now, and exit")
    parser.add_argument("--json", action="store_true", help="with --once: as one JSON object")
    parser.add_argument("--demo", action="store_true", help="play a made-up box, without a daemon")
    parser.add_argument(
        "--svg",
        type=Path,
        metavar="FILE",
        help="draw the screen into a file, and exit; with --demo it is the same each time",
    )
    parser.add_argument(
        "--size", type=_size, default=(120, 36), metavar="CxR", help="with --svg: columns x rows"
    )
    parser.add_argument(
        "--press", default="", metavar="KEYS", help="with --svg: pressed before, as in '1 G s'"
    )
    parser.add_argument(
        "--keys", action="store_true", help="print a tui.toml with every key's id, and exit"
    )
    parser.add_argument("--version", action="version", version=f"llmtui {__version__}")
    return parser


def _size(text: str) -> tuple[int, int]:
    columns, _, rows = text.partition("x")
    if not (columns.isdecimal() and rows.isdecimal()):
        raise argparse.ArgumentTypeError(f"{text!r} is no size such as 120x36")
    size = int(columns), int(rows)
    if not (20 <= size[0] <= 500 and 8 <= size[1] <= 200):
        raise argparse.ArgumentTypeError(f"{text} is out of 20x8 to 500x200")
    return size


def _maker(options: argparse.Namespace) -> Callable[[], Source]:
    if options.demo:
        from llmtui.demo import Demo

        return Demo
    path: str | Path | None = options.socket
    return lambda: AsyncClient(path)


def _picture(options: argparse.Namespace) -> int:
    from llmtui import picture
    from llmtui.keymap import key_of
    from llmtui.screen import LlmTui

    keys = options.press.split()
    unknown = [f"--press: no such key: {key!r}" for key in keys if not key_of(key)]
    if unknown:
        return _complain(*unknown)
    make, clock = _maker(options), time.time
    if options.demo:
        from llmtui.demo import Demo

        picture.in_one_zone()

        def clock() -> float:
            return picture.MOMENT

        def make() -> Source:
            return Demo(clock)

    app = LlmTui(
        make,
        look=Look(ascii_only=options.ascii),
        read_only=options.read_only,
        colours=options.theme,
        clock=clock,
        meter=picture.Measured() if options.demo else None,
    )
    try:
        drawn = picture.draw(app, options.size, list(map(key_of, keys)), "llmtui")
    except TimeoutError:
        _complain("no data came: is llmd running?")
        return 3
    try:
        options.svg.write_text(drawn, encoding="utf-8")
    except OSError as error:
        _complain(f"cannot write {options.svg}: {error.strerror}")
        return 1
    return 0


def _keys() -> int:
    from llmtui.bindings import KEYS
    from llmtui.keymap import keymap_path, template
    from llmtui.screen import scopes

    head = f"# {keymap_path(os.environ)}: what is left out stays as it is here"
    lines = template(scopes(), {key.id: key.about for key in KEYS})
    return _print("\n".join([head, *lines]))


async def _once(make: Callable[[], Source], *, as_json: bool, ascii_only: bool) -> int:
    source = make()
    try:
        await source.connect()
        async with aclosing(source.subscribe()) as messages:  # type: ignore[type-var]
            message = await asyncio.wait_for(anext(messages), _ONCE_S)
    except (AdminError, OSError, asyncio.TimeoutError, StopAsyncIteration) as error:
        _complain(str(error) or "the daemon is silent")
        return 3
    finally:
        await source.close()
    assert isinstance(message, p.Snapshot)
    if as_json:
        return _print(msgspec.json.encode(message).decode())
    return _print("\n".join(page(message, ascii_only=ascii_only)))


def _print(text: str) -> int:
    """Write text out, whatever the locale can spell; returns the exit code."""
    stream = sys.stdout
    spelt = text.encode(stream.encoding or "ascii", "backslashreplace")
    try:
        stream.write(spelt.decode(stream.encoding or "ascii") + "\n")
        stream.flush()
    except BrokenPipeError:
        _swallow(stream)
        return 0  # who read it has seen enough
    except OSError as error:
        _swallow(stream)
        _complain(f"cannot write: {error.strerror}")
        return 1
    return 0


def _swallow(stream: TextIO) -> None:
    """Let what is still to be written go nowhere, or Python complains of it at the very end."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, stream.fileno())
    os.close(nowhere)


def _plain(options: argparse.Namespace) -> bool:
    """Return whether to draw with ASCII only: as asked for, or since the locale has no more."""
    return bool(options.ascii) or "utf" not in (sys.stdout.encoding or "").lower()


def page(message: p.Snapshot, width: int = 118, *, ascii_only: bool = False) -> list[str]:
    """Return a snapshot as plain lines."""
    from llmtui.columns import heading, request_columns, worker_columns
    from llmtui.header import Bar, header
    from llmtui.rows import request_row, worker_row
    from llmtui.state import State, heard, request_order, worker_order
    from llmtui.widths import widths

    now, look = message.at, Look(ascii_only=ascii_only)
    state = heard(State(), message, now)
    lines = header(state, width, now, look, Bar(at=now))
    shown = ["".join(text for text, _ in line) for line in lines]
    names = widths(state)
    columns = worker_columns(width, look, names)
    shown += ["", heading(columns)]
    for name in worker_order(state.workers.values(), "state"):
        row = worker_row(state.workers[name], state, columns, now, look)
        shown.append("".join(text for text, _ in row))
    columns = request_columns(width, look, names)
    shown += ["", heading(columns)]
    for name in request_order(state.requests.values(), "sched"):
        row = request_row(state.requests[name], state, columns, now, look)
        shown.append("".join(text for text, _ in row))
    return [line.rstrip() for line in shown]


def _complain(*texts: str) -> int:
    sys.stderr.write("".join(f"llmtui: {text}\n" for text in texts))
    return 2


def on_signals(stop: Callable[[int], Any]) -> None:
    """Have SIGTERM, SIGHUP and SIGINT end it in order, so that the terminal is put right."""
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
        loop.add_signal_handler(number, stop, 128 + number)


if __name__ == "__main__":
    sys.exit(main())
