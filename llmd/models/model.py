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
        fault: Why it cannot be loaded; "" when nothing is known against it.
        capabilities: What can be asked of it; of a repository's what is likely.
        size_bytes: Of its files; 0 when unknown.
        extra_bytes: Of its projector, draft model and adapters.
        explicit: Whether it has a `[[models]]` entry.
    """

    name: str
    aliases: tuple[str, ...]
    path: Path | None
    hf: str | None
    shards: tuple[Path, ...]
    mmproj: Path | None
    header: GgufHeader | None
    config: ModelConfig
    fault: str = ""
    capabilities: frozenset[Capability] = frozenset()
    size_bytes: int = 0
    extra_bytes: int = 0
    explicit: bool = False
