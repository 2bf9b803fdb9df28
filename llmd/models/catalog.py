"""The models that llmd can serve: those of `[[models]]` and the files below `models_dir`.

A name is only ever looked up here and never made into a path. A file that cannot be used keeps
its place in the catalog with a `fault` that says why, so that whoever asks for it gets to know.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import msgspec

from llmd.config.faults import dotted
from llmd.config.locate import KeyPath
from llmd.config.schema import ModelConfig
from llmd.models.drafts import Draft, Headers, Known, draft_entry, draft_found
from llmd.models.find import find_gguf
from llmd.models.gguf import GgufHeader
from llmd.models.model import Capability, CatalogModel
from llmd.models.projector import Projector

__all__ = ["Capability", "Catalog", "CatalogModel", "hf_name"]

_MODELS_DIR: KeyPath = ("llama", "models_dir")
_HF = re.compile(r"[^/]+/(?P<repo>[^/:]+)(?::(?P<quant>[^/:]+))?\Z")


@dataclass(frozen=True, slots=True)
class CatalogFault:
    """One fault of what the config says about models.

    Attributes:
        path: The key at fault, as in the config: `("models", 0, "draft")`.
        message: What is wrong.
        model: The name of the model it is about; "" without one.
    """

    path: KeyPath
    message: str
    model: str = ""

    def __str__(self) -> str:
        """Say it where models are known by their names, and nobody counts entries."""
        about = ("models", self.model, *self.path[2:]) if self.model else self.path
        return f"{dotted(about)}: {self.message}"


@dataclass(frozen=True)
class Catalog:
    """All models at one moment; immutable. `rescan` makes the next one.

    Attributes:
        models: Sorted by name.
        faults: What is wrong with `[[models]]` and `models_dir`.
        warnings: What is wrong with, or was passed over among, the files below `models_dir`.
    """

    models: tuple[CatalogModel, ...]
    faults: tuple[CatalogFault, ...]
    warnings: tuple[str, ...]
    _names: Mapping[str, CatalogModel] = field(repr=False, compare=False)
    _entries: tuple[ModelConfig, ...] = field(repr=False, compare=False)
    _models_dir: Path | None = field(repr=False, compare=False)
    _known: Known = field(repr=False, compare=False)

    @classmethod
    def load(cls, models: Sequence[ModelConfig] = (), models_dir: Path | None = None) -> Catalog:
        """Find the models and read their headers.

        Blocks for the disk, so an event loop calls it in a thread.

        Args:
            models: The `[[models]]` entries, paths absolute; they win over files that are found.
            models_dir: Every GGUF file below it is a model; None = no directory.
        """
        return cls._build(tuple(models), models_dir, {})

    def rescan(self) -> Catalog:
        """Return the catalog as it is now; headers of files that did not change are kept."""
        return self._build(self._entries, self._models_dir, self._known)

    def with_repository(self, reference: str) -> tuple[Catalog, CatalogModel]:
        """Return this catalog with one more model, which its worker fetches, and that model.

        Reads no disk. Names that another model has stay with that one.

        Args:
            reference: `REPO:QUANT`, which is no name in this catalog.
        """
        entry = ModelConfig(hf=reference)
        free = [name for name in _hf_names(reference) if name not in self._names]
        name = hf_name(reference) if hf_name(reference) in free else reference
        aliases = [alias for alias in free if alias != name]
        added = _model(name, draft_entry(entry, Headers({})), aliases)
        grown = replace(
            self,
            models=tuple(sorted((*self.models, added), key=_by_name)),
            _names={**self._names, **dict.fromkeys((name, *aliases), added)},
            _entries=(*self._entries, msgspec.structs.replace(entry, name=name)),
        )
        return grown, added

    def resolve(self, name: str) -> CatalogModel | None:
        """Return the model with this name, alias or file name, letter by letter."""
        return self._names.get(name)

    @classmethod
    def _build(
        cls, entries: tuple[ModelConfig, ...], models_dir: Path | None, known: Known
    ) -> Catalog:
        headers = Headers(known)
        naming = _Naming()
        explicit = [draft_entry(entry, headers, n) for n, entry in enumerate(entries)]
        naming.add_entries(explicit)
        warnings: list[str] = []
        if models_dir is not None:
            claimed = {Path(os.path.realpath(file)) for d in explicit for file in d.shards}
            try:
                files, warnings = find_gguf(models_dir)
            except OSError as error:
                told = f"{models_dir}: {error.strerror}"
                naming.faults.append(CatalogFault(_MODELS_DIR, told))
                files = []
            found, more = draft_found(files, headers, claimed)
            naming.add_found(found)
            warnings += more
        naming.add_file_names()
        models = naming.models()
        return cls(
            models=tuple(sorted(models, key=_by_name)),
            faults=(*naming.faults, *_faults(models)),
            warnings=(*warnings, *naming.warnings, *_warnings(models)),
            _names={name: model for model in models for name in (model.name, *model.aliases)},
            _entries=entries,
            _models_dir=models_dir,
            _known=headers.read,
        )


def hf_name(reference: str) -> str:
    """Return the name of a model from a repository: its own part of `reference`, and the quant.

    `ggml-org/Qwen3-0.6B-GGUF:Q8_0` becomes `Qwen3-0.6B-Q8_0`, as a file of it would be called.
    """
    match = _HF.match(reference)
    if match is None:
        return reference
    repo = re.sub(r"(?<=.)[-_.]gguf\Z", "", match["repo"], flags=re.IGNORECASE)
    return f"{repo}-{match['quant']}" if match["quant"] else repo


def _hf_names(reference: str) -> list[str]:
    """Return the names by which a model from a repository is known, unless it got its own."""
    return [reference, reference.rpartition("/")[2], hf_name(reference)]


def _by_name(model: CatalogModel) -> tuple[str, str]:
    return model.name.casefold(), model.name


# --- names ---------------------------------------------------------------------------------


class _Naming:
    """Gives each model its names; whoever comes first keeps one."""

    def __init__(self) -> None:
        self.faults: list[CatalogFault] = []
        self.warnings: list[str] = []
        self._names: dict[str, Draft] = {}  # a model's own name
        self._aliases: dict[str, Draft] = {}

    def add_entries(self, drafts: Iterable[Draft]) -> None:
        """Name the models of `[[models]]`; two of one name are a fault."""
        named = []
        for draft in drafts:
            name = draft.config.name or (hf_name(draft.hf) if draft.hf else draft.stem)
            if name in self._names:
                self._blame(draft, name, ("name",), "two entries have this name")
                continue
            self._take(name, draft, "give its entry a name without one")
            named.append((name, draft))
        for name, draft in named:
            for index, alias in enumerate(draft.config.aliases):
                other = self._names.get(alias) or self._aliases.get(alias)
                if other is None:
                    self._aliases[alias] = draft
                elif other is not draft:
                    told = f"{alias} is another model's name"
                    self._blame(draft, name, ("aliases", index), told)
            if draft.hf:
                draft.file_aliases += _hf_names(draft.hf)

    def add_found(self, drafts: Sequence[Draft]) -> None:
        """Name files by their stem, or, where that is not unique, by their relative path."""
        stems = Counter(draft.stem for draft in drafts)
        for draft in drafts:
            # the stem, or the path without its suffix, or all of it
            folder, slash, _ = draft.relative.rpartition("/")
            whole = draft.relative
            candidates = [f"{folder}{slash}{draft.stem}", whole]
            if stems[draft.stem] == 1:
                candidates.insert(0, draft.stem)
            else:
                draft.file_aliases[0] = whole
            free = [name for name in candidates if not self._taken(name)]
            if not free:
                self.warnings.append(f"{draft.path}: another model has its name; ignored")
                continue
            self._take(
                free[0], draft, "rename the file" if "," in draft.stem else "rename its folder"
            )

    def add_file_names(self) -> None:
        """Make aliases of file names that belong to one model only."""
        claims: dict[str, list[Draft]] = {}
        for draft in self._names.values():
            for alias in dict.fromkeys(draft.file_aliases):
                claims.setdefault(alias, []).append(draft)
        for alias, drafts in claims.items():
            if len(drafts) == 1 and not self._taken(alias):
                self._aliases[alias] = drafts[0]

    def models(self) -> list[CatalogModel]:
        """Return the named models."""
        aliases: dict[int, list[str]] = {}
        for alias, draft in self._aliases.items():
            aliases.setdefault(id(draft), []).append(alias)
        return [
            _model(name, draft, aliases.get(id(draft), ())) for name, draft in self._names.items()
        ]

    def _take(self, name: str, draft: Draft, remedy: str) -> None:
        self._names[name] = draft
        if "," in name:  # it reads --alias as a list, and answers would name another model
            draft.blame(f"llama-server cannot be told of a name with a comma; {remedy}")

    def _blame(self, draft: Draft, name: str, key: KeyPath, message: str) -> None:
        assert draft.entry is not None
        self.faults.append(CatalogFault(("models", draft.entry, *key), message, name))

    def _taken(self, name: str) -> bool:
        return name in self._names or name in self._aliases


# --- models --------------------------------------------------------------------------------


def _model(name: str, draft: Draft, aliases: Iterable[str]) -> CatalogModel:
    config = _purposeful(msgspec.structs.replace(draft.config, name=name), draft.header)
    projector = draft.projector
    extra = [config.draft, *config.lora, str(projector.path) if projector else ""]
    return CatalogModel(
        name=name,
        aliases=tuple(aliases),
        path=draft.path,
        hf=draft.hf,
        shards=draft.shards,
        mmproj=projector.path if projector else None,
        header=draft.header,
        config=config,
        faults=tuple(draft.faults),
        capabilities=_capabilities(config, draft.header, projector),
        size_bytes=sum(map(_size_bytes, draft.shards)),
        extra_bytes=sum(_size_bytes(Path(file)) for file in extra if file),
        entry=draft.entry,
    )


def _purposeful(config: ModelConfig, header: GgufHeader | None) -> ModelConfig:
    """Return the settings with what the file says it is for, unless they say it themselves."""
    if header is None or config.embedding or config.reranking:
        return config
    if header.rerank:
        return msgspec.structs.replace(config, reranking=True)
    return msgspec.structs.replace(config, embedding=True) if header.embedding else config


def _capabilities(
    config: ModelConfig, header: GgufHeader | None, projector: Projector | None
) -> frozenset[Capability]:
    if config.reranking:
        return frozenset({Capability.RERANK})
    if config.embedding:
        return frozenset({Capability.EMBEDDING})
    found = {Capability.COMPLETION}
    if header is None or header.chat_template or config.chat_template:
        found.add(Capability.CHAT)
    if header is not None and header.tools and not config.chat_template:
        found.add(Capability.TOOLS)
    if projector is not None:
        hears, sees = projector.header.audio, projector.header.vision
        if hears:
            found.add(Capability.AUDIO)
        if sees or not hears:  # older projectors do not say
            found.add(Capability.VISION)
    return frozenset(found)


def _size_bytes(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0


def _faults(models: Iterable[CatalogModel]) -> list[CatalogFault]:
    """Return what is wrong with entries, and what is below `models_dir` in part only."""
    return [
        CatalogFault(
            ("models", model.entry, *fault.key), f"{fault.path}: {fault.reason}", model.name
        )
        for model in models
        if model.entry is not None
        for fault in model.faults
    ] + [
        CatalogFault(_MODELS_DIR, f"{fault.path}: {fault.reason}")
        for model in models
        if model.entry is None
        for fault in model.faults
        if fault.partial
    ]


def _warnings(models: Iterable[CatalogModel]) -> list[str]:
    return [
        f"{fault.path}: {fault.reason}"
        for model in models
        if model.entry is None
        for fault in model.faults
        if not fault.partial
    ]
