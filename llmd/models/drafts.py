"""From files to models that have no name yet: shards joined, headers read, projectors matched."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeAlias

from llmd.config.schema import ModelConfig
from llmd.models.find import SUFFIX, FoundFile, Shard, is_gguf_name, parse_shard
from llmd.models.gguf import FileKind, GgufError, GgufHeader, merge_shards, read_header
from llmd.models.model import FileFault
from llmd.models.projector import Projector, choose_projector, is_projector_name

_OTHER_KINDS = {
    FileKind.PROJECTOR: "a projector (mmproj) and no model",
    FileKind.ADAPTER: "an adapter and no model",
    FileKind.IMATRIX: "an importance matrix and no model",
    FileKind.SHARD: "a later shard of a model",
}
_MAX_NAMED = 8  # missing shards

# what changes when a file does; the time of its last status change covers permissions
_STAMPED = ("st_dev", "st_ino", "st_size", "st_mtime_ns", "st_ctime_ns")
_Stamp: TypeAlias = tuple[int, ...]
Known: TypeAlias = "Mapping[Path, tuple[_Stamp, GgufHeader | GgufError]]"
"""Headers, or why there is none, and the state of the file in which it was read."""


class Headers:
    """Reads headers; a file that has not changed since `known` is not read again."""

    def __init__(self, known: Known) -> None:
        self._known = known
        self.read: dict[Path, tuple[_Stamp, GgufHeader | GgufError]] = {}

    def of(self, path: Path) -> GgufHeader | GgufError:
        """Return a file's header, or why there is none."""
        try:
            status = path.stat()
        except OSError as error:
            return GgufError(error.strerror or str(error))
        stamp = tuple(getattr(status, name) for name in _STAMPED)
        known = self.read.get(path) or self._known.get(path)
        if known is None or known[0] != stamp:
            known = (stamp, _read(path))
        self.read[path] = known
        return known[1]


def _read(path: Path) -> GgufHeader | GgufError:
    try:
        return read_header(path)
    except GgufError as error:
        return error


@dataclass
class Draft:
    """A model on its way into the catalog.

    Attributes:
        config: Its settings.
        path: Its file or first shard, which may be missing.
        hf: Or its repository.
        relative: Where it was found below `models_dir`, with suffix; "" if it was not.
        stem: Its file name without suffix and shard number.
        shards: Its files.
        header: Its header.
        faults: All that keeps it from being loaded.
        projector: Its projector.
        file_aliases: Names of its file, its own first; given up when another model has the same.
        entry: The number of its entry, from 0; None where it was found.
    """

    config: ModelConfig
    path: Path | None = None
    hf: str | None = None
    relative: str = ""
    stem: str = ""
    shards: tuple[Path, ...] = ()
    header: GgufHeader | None = None
    faults: list[FileFault] = field(default_factory=list)
    projector: Projector | None = None
    file_aliases: list[str] = field(default_factory=list)
    entry: int | None = None

    def blame(self, reason: str, *, partial: bool = False) -> None:
        """Note what is wrong with the model's own file."""
        assert self.path is not None
        self.faults.append(FileFault(("path",), self.path, reason, partial))


# --- [[models]] ----------------------------------------------------------------------------


def draft_entry(entry: ModelConfig, headers: Headers, number: int | None = None) -> Draft:
    """Return the model of a `[[models]]` entry; `number` is its place among them."""
    if entry.hf:
        draft = Draft(config=entry, hf=entry.hf, entry=number)
        _add_files_of_entry(draft, (), headers)
        return draft
    path = Path(entry.path)
    names = _names_in(path.parent)
    shard = _shard_of(path)
    if shard is not None:
        path = path.with_name(shard.sibling(1))
    draft = Draft(config=entry, path=path, file_aliases=[path.name], entry=number)
    _complete(draft, shard, names, headers)
    if draft.header is not None and draft.header.kind is not FileKind.MODEL:
        draft.blame(f"is {_OTHER_KINDS[draft.header.kind]}")
    _add_files_of_entry(draft, names, headers)
    return draft


def _add_files_of_entry(draft: Draft, names: Collection[str], headers: Headers) -> None:
    """Check the other files that an entry names, and look for a projector if it names none."""
    entry = draft.config
    named: list[tuple[tuple[str | int, ...], str]] = [(("draft",), entry.draft)]
    named += [(("lora", index), file) for index, file in enumerate(entry.lora)]
    for key, file in named:
        if file and not _is_file(Path(file)):
            draft.faults.append(FileFault(key, Path(file), "no such file"))
    if entry.mmproj:
        projector = _projector(Path(entry.mmproj), headers)
        if isinstance(projector, GgufError):
            draft.faults.append(FileFault(("mmproj",), Path(entry.mmproj), projector.message))
        else:
            draft.projector = projector
    elif draft.path is not None and draft.header is not None:
        folder = draft.path.parent
        beside = [_projector(folder / n, headers) for n in sorted(names) if is_projector_name(n)]
        # one that cannot be used was not asked for by name: the model works without it
        projectors = [found for found in beside if isinstance(found, Projector)]
        stems = [_stem(folder / name) for name in names if not is_projector_name(name)]
        draft.projector = choose_projector(draft.stem, draft.header, stems, projectors)


def _projector(path: Path, headers: Headers) -> Projector | GgufError:
    header = headers.of(path)
    if isinstance(header, GgufError):
        return header
    return (
        Projector(path, header)
        if header.kind is FileKind.PROJECTOR
        else GgufError("is no projector")
    )


def _names_in(folder: Path) -> frozenset[str]:
    try:
        return frozenset(path.name for path in folder.iterdir() if is_gguf_name(path.name))
    except OSError:
        return frozenset()  # opening the file says what is wrong


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:  # a directory on the way that we may not search
        return False


# --- models_dir ----------------------------------------------------------------------------


def draft_found(
    files: Iterable[FoundFile], headers: Headers, claimed: Collection[Path]
) -> tuple[list[Draft], list[str]]:
    """Return the models among files below a directory, and warnings.

    Args:
        files: Sorted.
        headers: Reads them.
        claimed: Real paths of files that are somebody else's, to be left out.
    """
    folders: dict[Path, list[FoundFile]] = {}
    for file in files:
        folders.setdefault(file.path.parent, []).append(file)
    drafts: list[Draft] = []
    leaders: list[FoundFile] = []
    warnings: list[str] = []
    for folder in folders.values():
        for draft, leader in _draft_folder(folder, headers, warnings):
            if leader.real not in claimed:
                drafts.append(draft)
                leaders.append(leader)
    return _merge_links(drafts, leaders), warnings


def _draft_folder(
    files: list[FoundFile], headers: Headers, warnings: list[str]
) -> list[tuple[Draft, FoundFile]]:
    names = frozenset(file.path.name for file in files)
    models: list[tuple[Draft, FoundFile]] = []
    projectors: list[Projector] = []
    seen: set[Path] = set()
    for file in files:
        draft = _draft_file(file, names, headers)
        if draft.path in seen:
            continue
        assert draft.path is not None
        seen.add(draft.path)
        if draft.header is not None and draft.header.kind is FileKind.PROJECTOR:
            projectors.append(Projector(draft.path, draft.header))
        elif is_projector_name(file.path.name):
            warnings.append(f"{file.path}: {_first_reason(draft) or 'is no projector'}; ignored")
        elif draft.header is not None and draft.header.kind is not FileKind.MODEL:
            warnings.append(f"{file.path}: {_OTHER_KINDS[draft.header.kind]}; ignored")
        else:
            models.append((draft, file))
    stems = [draft.stem for draft, _ in models]
    for draft, _ in models:
        if draft.header is not None:
            draft.projector = choose_projector(draft.stem, draft.header, stems, projectors)
    return models


def _draft_file(file: FoundFile, names: Collection[str], headers: Headers) -> Draft:
    shard = _shard_of(file.path)
    path = file.path.with_name(shard.sibling(1)) if shard is not None else file.path
    draft = Draft(
        config=ModelConfig(path=str(path)),
        path=path,
        relative=file.relative[: -len(file.path.name)] + path.name,
        file_aliases=[path.name],
    )
    _complete(draft, shard, names, headers)
    return draft


def _merge_links(drafts: list[Draft], leaders: list[FoundFile]) -> list[Draft]:
    """Make one model of all that lead to the same file: links give it further names."""
    merged: dict[Path, Draft] = {}
    order = sorted(range(len(drafts)), key=lambda i: (leaders[i].linked, leaders[i].relative))
    for index in order:
        draft, real = drafts[index], leaders[index].real
        first = merged.setdefault(real, draft)
        if first is not draft:
            first.file_aliases += [draft.stem, *draft.file_aliases]
    return list(merged.values())


# --- both ----------------------------------------------------------------------------------


def _complete(draft: Draft, shard: Shard | None, names: Collection[str], headers: Headers) -> None:
    """Fill in stem, shards, header and fault from the files; `names` are those beside it."""
    path = draft.path
    assert path is not None
    draft.stem = _stem(path)
    draft.shards = (path,)
    if shard is not None:
        wanted = [shard.sibling(number) for number in range(1, shard.count + 1)]
        missing = [name for name in wanted if name not in names]
        draft.shards = tuple(path.with_name(name) for name in wanted if name in names)
        if missing:
            more = f" and {len(missing) - _MAX_NAMED} more" if len(missing) > _MAX_NAMED else ""
            named = ", ".join(missing[:_MAX_NAMED])
            draft.blame(f"shards are missing: {named}{more}", partial=True)
            return
    parts: list[GgufHeader] = []
    for file in draft.shards:
        header = headers.of(file)
        if isinstance(header, GgufError):
            draft.blame(header.message if shard is None else f"{file.name}: {header.message}")
            return
        parts.append(header)
    if len(parts) == 1 and parts[0].kind is not FileKind.MODEL:
        draft.header = parts[0]  # the caller says that it is no model
        return
    try:
        draft.header = merge_shards(parts)
    except GgufError as error:
        draft.blame(error.message)


def _first_reason(draft: Draft) -> str:
    return draft.faults[0].reason if draft.faults else ""


def _shard_of(path: Path) -> Shard | None:
    return parse_shard(_without_suffix(path.name))


def _stem(path: Path) -> str:
    shard = _shard_of(path)
    return shard.base if shard is not None else _without_suffix(path.name)


def _without_suffix(name: str) -> str:
    return name[: -len(SUFFIX)] if name.lower().endswith(SUFFIX) else name
