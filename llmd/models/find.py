"""The GGUF files below a directory, and what their names say.

Nothing outside of the directory is ever returned, wherever links lead, and no odd tree (loops,
FIFOs, names that cannot be printed, a million files) does more than cause a warning.
"""

from __future__ import annotations

import errno
import os
import re
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

SUFFIX = ".gguf"
MAX_DEPTH = 24
MAX_ENTRIES = 200_000
MAX_NAME_CHARACTERS = 512

_SHARD = re.compile(r"(?P<base>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})\Z", re.DOTALL)


@dataclass(frozen=True)
class FoundFile:
    """A GGUF file below the directory.

    Attributes:
        path: Where it was found; a link is not followed here, since its name may carry a shard
            number that its target's does not.
        real: Where it really is, inside of the directory too.
        relative: `path` from the directory, with slashes.
        linked: Whether a link inside of the directory leads there.
    """

    path: Path
    real: Path
    relative: str
    linked: bool = False

    @property
    def stem(self) -> str:
        """The file name without its suffix."""
        return self.path.name[: -len(SUFFIX)]


@dataclass(frozen=True)
class Shard:
    """What the name of one part of a model says: part `number` (from 1) of `count` of `base`."""

    base: str
    number: int
    count: int

    def sibling(self, number: int) -> str:
        """Return the file name of another part."""
        return f"{self.base}-{number:05}-of-{self.count:05}{SUFFIX}"


def parse_shard(stem: str) -> Shard | None:
    """Return what a file name without its suffix says of shards; None if it names a whole model."""
    match = _SHARD.match(stem)
    if match is None:
        return None
    shard = Shard(match["base"], int(match["number"]), int(match["count"]))
    return shard if 1 <= shard.number <= shard.count else None


def is_gguf_name(name: str) -> bool:
    """Tell whether a file name is one to look at: not hidden, with the suffix in any case."""
    return name.lower().endswith(SUFFIX) and len(name) > len(SUFFIX) and not name.startswith(".")


def find_gguf(root: Path) -> tuple[list[FoundFile], list[str]]:
    """Return the GGUF files below `root`, sorted, and warnings for a person.

    Hidden files and directories are passed over. Blocks for the disk.

    Raises:
        OSError: `root` itself cannot be read.
    """
    walk = _Walk(root.absolute())
    walk.run()
    return sorted(walk.files, key=lambda file: file.relative), walk.warnings


class _Walk:
    def __init__(self, root: Path) -> None:
        self.files: list[FoundFile] = []
        self.warnings: list[str] = []
        self._root = root
        self._real_root = _resolve(root)
        self._seen: set[Path] = set()
        self._links: list[tuple[Path, int]] = []
        self._entries = 0

    def run(self) -> None:
        os.scandir(self._root).close()  # raises what its callers promise
        self._walk([(self._root, 0)])
        # linked directories last: most lead to what has been seen under its own name
        while self._links and self._entries <= MAX_ENTRIES:
            self._walk([self._links.pop(0)])

    def _walk(self, pending: list[tuple[Path, int]]) -> None:
        while pending:
            directory, depth = pending.pop()
            real = self._inside(directory)
            if real is None or real in self._seen:
                continue
            self._seen.add(real)
            if depth > MAX_DEPTH:
                self.warnings.append(f"{_shown(directory)}: too deep; nothing below it is read")
                continue
            for entry in self._list(directory):
                self._entries += 1
                if self._entries > MAX_ENTRIES:
                    self.warnings.append(
                        f"{self._root}: more than {MAX_ENTRIES} entries; the rest is not read"
                    )
                    return
                self._look_at(entry, depth, pending)

    def _list(self, directory: Path) -> list[os.DirEntry[str]]:
        try:
            with os.scandir(directory) as entries:
                return sorted(islice(entries, MAX_ENTRIES + 1), key=lambda entry: entry.name)
        except OSError as error:
            self.warnings.append(f"{_shown(directory)}: cannot be read: {_reason(error)}")
            return []

    def _look_at(
        self, entry: os.DirEntry[str], depth: int, pending: list[tuple[Path, int]]
    ) -> None:
        if entry.name.startswith("."):
            return
        path = Path(entry.path)
        try:
            if entry.is_dir():
                where = self._links if entry.is_symlink() else pending
                where.append((path, depth + 1))
                return
            if not is_gguf_name(entry.name):
                return
            regular = entry.is_file()
        except OSError as error:
            self.warnings.append(f"{_shown(path)}: cannot be read: {_reason(error)}")
            return
        if not regular:
            broken = entry.is_symlink() and not path.exists()
            what = "a link that leads nowhere" if broken else "not a regular file"
            self.warnings.append(f"{_shown(path)}: {what}; ignored")
            return
        self._add(path)

    def _add(self, path: Path) -> None:
        relative = path.relative_to(self._root).as_posix()
        if not relative.isprintable() or len(relative) > MAX_NAME_CHARACTERS:
            self.warnings.append(f"{_shown(path)}: its name cannot be a model's; ignored")
            return
        real = self._inside(path)
        if real is not None:
            linked = real != self._real_root / relative
            self.files.append(FoundFile(path, real, relative, linked))

    def _inside(self, path: Path) -> Path | None:
        """Return where `path` really is; None, with a warning, if that is outside."""
        try:
            real = _resolve(path)
        except OSError as error:
            self.warnings.append(f"{_shown(path)}: cannot be read: {_reason(error)}")
            return None
        if not real.is_relative_to(self._real_root):
            self.warnings.append(f"{_shown(path)}: leads outside of {self._root}; ignored")
            return None
        return real


def _resolve(path: Path) -> Path:
    try:
        return path.resolve(strict=True)
    except RuntimeError as error:  # a loop of links, before Python 3.13
        raise OSError(errno.ELOOP, os.strerror(errno.ELOOP)) from error


def _reason(error: OSError) -> str:
    return error.strerror or str(error)


def _shown(path: Path) -> str:
    text = str(path)
    return text if text.isprintable() else ascii(text)
