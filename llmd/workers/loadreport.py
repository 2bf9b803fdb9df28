"""How far a load is, in the worker's own words.

llama-server can be a router that starts llama-servers of its own. Such a child (it knows by a
variable in its environment) writes on stdout how far its model is read, in a line each, and ends
when its stdin ends or tells it to. That is an internal protocol (read off llama.cpp of autumn
2026; the embedded engine is the same code): used where the engine's files show that it is there,
and done without elsewhere. What it says is a worker's word: bounded, checked, never trusted.
"""

from __future__ import annotations

import mmap
from collections.abc import Iterable
from pathlib import Path

import msgspec

ENVIRONMENT = {"LLAMA_SERVER_ROUTER_PORT": "1"}
"""What makes a llama-server a router's child; it asks only whether it is set."""

EXIT_COMMAND = b"cmd_router_to_child:exit\n"
"""What ends it, on stdin; it waits there at its end, so that a signal alone does not do."""

_MARK = "cmd_child_to_router:state:"
_MOST_BYTES = 512 << 20  # of one file that are searched; statically linked GPU builds are larger
_MAIN_STAGE = "text_model"
_MAIN_SHARE = 0.9  # what the model itself counts where a projector or a draft is loaded too


class _Payload(msgspec.Struct):
    stages: list[str] = msgspec.field(default_factory=list)
    current: str = ""
    value: float = 0.0


class _State(msgspec.Struct):
    state: str
    payload: _Payload


def speaks(files: Iterable[Path]) -> bool:
    """Return whether one of a llama-server's `files` holds the protocol; reads, may block."""
    return any(_holds_mark(path) for path in files)


def program_files(program: Path) -> list[Path]:
    """Return the files that a llama-server's own code may be in: itself, and a library of it."""
    real = program.resolve()
    places = dict.fromkeys([real.parent, real.parent.parent / "lib"])
    found = [path for place in places for path in sorted(place.glob("libllama-server*.so*"))]
    return [real, *found[:8]]


def _holds_mark(path: Path) -> bool:
    try:
        with (
            path.open("rb") as file,
            mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as text,
        ):
            return text.find(_MARK.encode(), 0, _MOST_BYTES) >= 0
    except (OSError, ValueError):  # not there, not readable, or empty
        return False


def is_report(line: str) -> bool:
    """Return whether a line of output belongs to the protocol, and not into the log."""
    return line.startswith(_MARK)


def fraction(line: str) -> float | None:
    """Return how far the load is, 0 to 1, as a line of the protocol says; None if it says not."""
    try:
        said = msgspec.json.decode(line[len(_MARK) :], type=_State)
    except (msgspec.DecodeError, RecursionError):
        return None
    stages, value = said.payload.stages, said.payload.value
    if said.state != "loading" or said.payload.current not in stages or not 0 <= value <= 1:
        return None
    others = [stage for stage in stages if stage != _MAIN_STAGE]
    if len(others) in (0, len(stages)):
        return (stages.index(said.payload.current) + value) / len(stages)
    if said.payload.current == _MAIN_STAGE:
        return value * _MAIN_SHARE
    done = (others.index(said.payload.current) + value) / len(others)
    return _MAIN_SHARE + (1 - _MAIN_SHARE) * done
