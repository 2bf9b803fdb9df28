"""Which projector (`mmproj*`: eyes and ears) belongs to which model beside it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from llmd.models.gguf import GgufHeader

PREFIX = "mmproj"

# what in a name does not say which model it is: the format of its weights, and filler
_FORMAT = re.compile(
    r"(?<![a-z0-9])"
    r"(?:i?q\d(?:_(?:[01klmsx]+|nl))*|b?f16|fp16|f32|fp32|mxfp4|model|gguf|mmproj)"
    r"(?![a-z0-9])"
)
_SEPARATORS = re.compile(r"[^a-z0-9]+")
# a projector is small: the usual format first, the needlessly large one last
_PREFERRED = ("F16", "BF16", "Q8_0")


@dataclass(frozen=True)
class Projector:
    """A projector file."""

    path: Path
    header: GgufHeader


def is_projector_name(name: str) -> bool:
    """Tell whether a file name claims to be a projector's."""
    return name.lower().startswith(PREFIX)


def choose_projector(
    stem: str, header: GgufHeader, siblings: Sequence[str], projectors: Sequence[Projector]
) -> Projector | None:
    """Return the projector that belongs to a model, or None.

    A projector that names a model belongs to it and to no other; one that names none belongs to
    every model of its width, or to the only model beside it.

    Args:
        stem: The model's file name without suffix and shard number.
        header: The model's.
        siblings: The stems of all models in its directory, its own included.
        projectors: Those in its directory.
    """
    alone = len({_words(sibling) for sibling in siblings}) <= 1
    fitting = [p for p in projectors if alone or _belongs(p, stem, header, siblings)]
    return min(fitting, key=lambda p: _rank(p, stem, header), default=None)


def _belongs(projector: Projector, stem: str, header: GgufHeader, siblings: Sequence[str]) -> bool:
    if _names(projector, stem):
        return True
    if any(_names(projector, sibling) for sibling in siblings):
        return False
    return projector.header.projection_length == header.embedding_length


def _rank(projector: Projector, stem: str, header: GgufHeader) -> tuple[bool, bool, int, str]:
    label = projector.header.quantisation
    return (
        not _names(projector, stem),
        projector.header.projection_length != header.embedding_length,
        _PREFERRED.index(label) if label in _PREFERRED else len(_PREFERRED),
        projector.path.name,
    )


def _names(projector: Projector, stem: str) -> bool:
    """Tell whether a projector's name holds the beginning of a model's, or all of it."""
    own, words = _words(projector.path.stem), _words(stem)
    return bool(own) and (words[: len(own)] == own or own[: len(words)] == words)


def _words(stem: str) -> tuple[str, ...]:
    words = _SEPARATORS.split(_FORMAT.sub(" ", stem.lower()))
    return tuple(word for word in words if word)
