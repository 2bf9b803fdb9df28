"""Why a worker ended, in words, and whether trying again can help. Pure.

The patterns are what llama-server prints (read off llama.cpp of autumn 2026) and what the
embedded engine, which is the same C++ code, prints too.
"""

from __future__ import annotations

import re
import signal
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum

MAX_REASON_CHARS = 600
_QUOTED_LINES = 3


class ExitCause(str, Enum):
    """Why a worker's process ended; the label of `llmd_worker_exits_total`.

    `stopped`: told to. `exited`, `killed`: by itself with a status, by a signal that we did not
    send. `refused`: for a reason that will not change. `unstartable`: no process came to be.
    `not_ready`, `hung`, `identity`, `stuck_slot`: ended by llmd since it made no progress while
    loading, did not answer, was not what it should be, or did not free a cancelled slot.
    """

    STOPPED = "stopped"
    EXITED = "exited"
    KILLED = "killed"
    REFUSED = "refused"
    UNSTARTABLE = "unstartable"
    NOT_READY = "not_ready"
    HUNG = "hung"
    IDENTITY = "identity"
    STUCK_SLOT = "stuck_slot"


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """Why a worker failed.

    Attributes:
        cause: The kind of end.
        reason: For a person: what happened, and the worker's last words.
        permanent: True when trying again cannot help.
    """

    cause: ExitCause
    reason: str
    permanent: bool = False


_MEMORY = re.compile(
    r"out of memory|cannot allocate|unable to allocate|failed to allocate|bad_alloc"
    r"|insufficient memory|not enough memory|cudaMalloc failed|OutOfDeviceMemory",
    re.IGNORECASE,
)
# what will not change by itself: the first pattern that matches any line names the fault
_PERMANENT: tuple[tuple[str, re.Pattern[str]], ...] = (
    (
        "it does not know a flag, or its value",
        re.compile(
            r"^error: (?:invalid argument|unknown argument|expected value)"
            r"|^error while handling (?:argument|environment variable)"
            r"|^error: .*(?:unrecognized arguments|unsupported flag)"
            r"|supplied chat template is not supported"
        ),
    ),
    (
        "the model could not be fetched",  # before all that follows from it
        re.compile(r"^(?:get_repo|common_download)_\w+: "),
    ),
    (
        "a file is missing",
        re.compile(
            r"failed to open .*(?:No such file|Permission denied)|No such file or directory"
            r"|Does this file exist\?"
        ),
    ),
    (
        "a file may not be read",
        re.compile(r"Permission denied"),
    ),
    (
        "the file is not a GGUF that it can load",
        re.compile(
            r"invalid magic|failed to read magic|is corrupted|not within the file bounds"
            r"|unknown model architecture|unsupported model architecture|unknown .*tokenizer"
            r"|bad GGUF|gguf_init_from\w+: (?!failed to open)|error loading model"
        ),
    ),
    (
        "a library is missing",
        re.compile(r"error while loading shared libraries|symbol lookup error"),
    ),
)
_NOISE = re.compile(r"cleaning up before exit|exiting due to|to show complete usage|^usage:?$")
_ERROR = re.compile(
    r"\b(?:error|failed|fatal|abort|exception|assert\w*|invalid|cannot)\b| E ", re.I
)
# llama-server's own prefix: 0.00.007.017 E
_STAMP = re.compile(r"^\d+(?:\.\d+){2,} [A-Z] +")


def exit_words(status: int) -> str:
    """Return an exit status in words; negative ones are signals, as in `subprocess`."""
    if status >= 0:
        return f"exited with code {status}"
    try:
        return f"was killed by {signal.Signals(-status).name}"
    except ValueError:
        return f"was killed by signal {-status}"


def diagnose_exit(status: int, stderr: Sequence[str], *, was_ready: bool) -> Diagnosis:
    """Say why a worker ended by itself.

    Args:
        status: Its exit status; negative for a signal.
        stderr: The last lines that this process wrote there, cleaned.
        was_ready: It had served before; then no fault is permanent, as the same start worked.
    """
    cause = ExitCause.KILLED if status < 0 else ExitCause.EXITED
    words = exit_words(status)
    fault, telling = ("", ()) if was_ready else _permanent_fault(status, stderr)
    if fault:
        return Diagnosis(
            ExitCause.REFUSED, _reason(f"{fault}; it {words}", telling), permanent=True
        )
    return Diagnosis(cause, _reason(f"the worker {words}", last_words(stderr)))


def diagnose_spawn(error: OSError, binary: str) -> Diagnosis:
    """Say why a process could not be started."""
    text = f"{binary} cannot be started: {error.strerror or error}"
    passing = isinstance(error, (BlockingIOError, InterruptedError)) or error.errno in _PASSING
    return Diagnosis(ExitCause.UNSTARTABLE, text[:MAX_REASON_CHARS], permanent=not passing)


_PASSING = frozenset({11, 12, 23, 24, 26, 28})  # EAGAIN ENOMEM ENFILE EMFILE ETXTBSY ENOSPC


def last_words(lines: Sequence[str]) -> tuple[str, ...]:
    """Return the few last lines that say most: errors if there are any."""
    kept = [line for line in lines if not _NOISE.search(line)] or lines
    errors = [line for line in kept if _ERROR.search(line)]
    return tuple(_STAMP.sub("", line) for line in (errors or kept)[-_QUOTED_LINES:])


def _permanent_fault(status: int, lines: Sequence[str]) -> tuple[str, tuple[str, ...]]:
    if status == -signal.SIGILL:
        return "it was built for another processor", last_words(lines)
    if status <= 0 or any(_MEMORY.search(line) for line in lines):
        return "", ()
    for fault, pattern in _PERMANENT:
        # the embedded engine's lines carry the same stamp, and a flag's error has none
        telling = [
            line for line in (_STAMP.sub("", line) for line in lines) if pattern.search(line)
        ]
        if telling:
            return fault, tuple(dict.fromkeys(telling))[:_QUOTED_LINES]
    return "", ()


def _reason(head: str, quoted: Sequence[str]) -> str:
    text = head + ": " + " | ".join(quoted) if quoted else head
    return text if len(text) <= MAX_REASON_CHARS else text[: MAX_REASON_CHARS - 1] + "…"
