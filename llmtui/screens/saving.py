"""A file for a log that is saved: its own name, never another file's, for its owner alone."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Sequence
from pathlib import Path

_UNSAFE = re.compile(r"[^A-Za-z0-9._-]+")
_TRIES = 100


def file_name(model: str, at: float) -> str:
    """Return a harmless file name for a model's log, without its ending."""
    name = _UNSAFE.sub("_", model).strip("._-")[:80] or "model"
    return f"llmd-{name}-{time.strftime('%Y%m%d-%H%M%S', time.localtime(at))}"


def save(text: str, name: str, places: Sequence[Path]) -> Path:
    """Write a new file (0600) in the first place that takes it, and return its path.

    Nothing is ever overwritten and no link is followed: where the name is taken, a number is added.

    Raises:
        OSError: No place takes it.
    """
    trouble: OSError = OSError("there is no place for it")
    for place in places:
        try:
            return _save(text, name, place)
        except OSError as error:
            trouble = error
    raise trouble


def _save(text: str, name: str, place: Path) -> Path:
    for number in range(1, _TRIES):
        path = place / f"{name}{'' if number == 1 else f'-{number}'}.log"
        try:
            file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
        except FileExistsError:
            continue
        try:
            with os.fdopen(file, "w", encoding="utf-8", errors="replace") as stream:
                stream.write(text)
        except OSError:
            path.unlink(missing_ok=True)  # half a log is worse than none: the disk is full
            raise
        return path
    raise FileExistsError(f"{name}.log and {_TRIES - 2} more are there already")
