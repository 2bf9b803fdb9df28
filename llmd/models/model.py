"""One model of the catalog, as data."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from pathlib import Path

from llmd.config.schema import ModelConfig
from llmd.models.gguf import GgufHeader


class Capability(str, Enum):
    """What can be asked of a model."""

    COMPLETION = "completion"
    CHAT = "chat"
    TOOLS = "tools"
    EMBEDDING = "embedding"
    RERANK = "rerank"
    VISION = "vision"
    AUDIO = "audio"


@dataclass(frozen=True, slots=True)
class FileFault:
    """One thing that keeps a model from being loaded.

    Attributes:
        key: The key of a `[[models]]` entry whose file it is; an index follows that of a list.
        path: The file.
        reason: What is wrong with it.
        partial: The model is there in part only: some of its shards are, and others are missing.
    """

    key: tuple[str | int, ...]
    path: Path
    reason: str
    partial: bool = False

    def __str__(self) -> str:
        """Say it to whoever asks for the model, and so knows which one it is."""
        if self.key == ("path",):
            return self.reason
        return f"{self.key[0]}: {self.path}: {self.reason}"


@dataclass(frozen=True)
class CatalogModel:
    """A model, and what is known of it without loading it.

    Attributes:
        name: Unique in the catalog; what answers call it.
        aliases: Other names that lead to it, unique too.
        path: The file, or its first shard; None when it comes from a repository.
        hf: `REPO[:QUANT]`; None when it is a file.
        shards: All its files, `path` first; () when it comes from a repository.
        mmproj: Its projector, or None.
        header: Its header, shards merged; None when unknown or unreadable.
        config: Its settings: its `[[models]]` entry or the defaults, with `embedding` or
            `reranking` set where the file says that it is for that.
        faults: All that keeps it from being loaded, as far as is known.
        capabilities: What can be asked of it; of a repository's what is likely.
        size_bytes: Of its files; 0 when unknown.
        extra_bytes: Of its projector, draft model and adapters.
        entry: The number of its `[[models]]` entry, from 0; None where it was found.
    """

    name: str
    aliases: tuple[str, ...]
    path: Path | None
    hf: str | None
    shards: tuple[Path, ...]
    mmproj: Path | None
    header: GgufHeader | None
    config: ModelConfig
    faults: tuple[FileFault, ...] = ()
    capabilities: frozenset[Capability] = frozenset()
    size_bytes: int = 0
    extra_bytes: int = 0
    entry: int | None = None

    @property
    def fault(self) -> str:
        """Why it cannot be loaded; "" when nothing is known against it."""
        return "; ".join(map(str, self.faults))
