"""The layout of a GGUF file: its metadata pairs and tensor infos, read within bounds.

What they mean is `gguf.py`'s business. Format: `docs/gguf.md` of ggml, versions 2 and 3,
little-endian. Every function raises `BinaryError` for a file that breaks a rule or a bound.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeAlias

from llmd.models.binary import BinaryError, BoundedReader
from llmd.models.ggml import TENSOR_TYPES

MAX_PAIRS = 4_096
MAX_TENSORS = 131_072
MAX_KEY_BYTES = 1_024
MAX_TENSOR_NAME_BYTES = 512
MAX_TEXT_BYTES = 1_048_576
MAX_ARRAY_KEPT = 4_096
MAX_ELEMENTS_KEPT = 65_536
MAX_NUMBER = 2**31 - 1
MAX_DIMENSION = 2**40
MAX_ELEMENTS = 2**56
MAX_ALIGNMENT_BYTES = 1_048_576

CHAT_TEMPLATE = "tokenizer.chat_template"
# only these texts are ever kept in memory
_TEXTS = frozenset({"general.architecture", "general.name", "general.type", CHAT_TEMPLATE})

_MAGIC = b"GGUF"
_TYPE_STRING, _TYPE_ARRAY = 8, 9
_SCALARS: Mapping[int, struct.Struct] = {
    0: struct.Struct("<B"),
    1: struct.Struct("<b"),
    2: struct.Struct("<H"),
    3: struct.Struct("<h"),
    4: struct.Struct("<I"),
    5: struct.Struct("<i"),
    6: struct.Struct("<f"),
    7: struct.Struct("<?"),
    10: struct.Struct("<Q"),
    11: struct.Struct("<q"),
    12: struct.Struct("<d"),
}
_ARCHITECTURE = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}\Z")


# --- metadata pairs ------------------------------------------------------------------------


@dataclass(frozen=True)
class Array:
    """An array: its length, and its elements only if they are few and of a scalar type."""

    length: int
    elements: tuple[int | float | bool, ...] | None


@dataclass(frozen=True)
class SkippedText:
    """A string that was not kept."""

    length_bytes: int


Value: TypeAlias = "int | float | bool | bytes | Array | SkippedText"


def read_preamble(reader: BoundedReader) -> tuple[int, int]:
    """Check magic and version; return the numbers of tensors and of metadata pairs."""
    if reader.size_bytes < 24:
        raise BinaryError("too short for a GGUF header")
    if reader.take(4) != _MAGIC:
        raise BinaryError("not a GGUF file (it does not start with GGUF)")
    version = reader.u32()
    if version & 0xFFFF == 0:
        raise BinaryError("a big-endian GGUF file, which llmd does not read")
    if version not in {2, 3}:
        raise BinaryError(f"GGUF version {version}; 2 and 3 are known")
    tensors, pairs = reader.u64(), reader.u64()
    if tensors > MAX_TENSORS:
        raise BinaryError(f"claims {tensors} tensors, at most {MAX_TENSORS} are believed")
    if pairs > MAX_PAIRS:
        raise BinaryError(f"claims {pairs} metadata pairs, at most {MAX_PAIRS} are believed")
    return tensors, pairs


def read_metadata(reader: BoundedReader, count: int) -> Metadata:
    """Read `count` metadata pairs."""
    pairs: dict[str, Value] = {}
    kept = 0
    for _ in range(count):
        key = reader.string(MAX_KEY_BYTES, "a metadata key").decode("utf-8", "replace")
        if key in pairs:
            raise BinaryError(f"metadata key {key!r} appears twice")
        value = _read_value(reader, reader.u32(), key)
        if isinstance(value, Array):
            kept += len(value.elements or ())
            if kept > MAX_ELEMENTS_KEPT:
                raise BinaryError("too many arrays in the metadata")
        pairs[key] = value
    return Metadata(pairs)


def _read_value(reader: BoundedReader, kind: int, key: str) -> Value:
    if kind == _TYPE_STRING:
        length = reader.u64()
        if key in _TEXTS and length <= MAX_TEXT_BYTES:
            return reader.take(length)
        reader.skip(length)
        return SkippedText(length)
    if kind == _TYPE_ARRAY:
        return _read_array(reader, key)
    layout = _layout(kind, key)
    value: int | float | bool = layout.unpack(reader.take(layout.size))[0]
    return value


def _read_array(reader: BoundedReader, key: str) -> Array:
    kind, count = reader.u32(), reader.u64()
    if kind == _TYPE_STRING:
        reader.skip_strings(count)
        return Array(count, None)
    if kind == _TYPE_ARRAY:
        raise BinaryError(f"{key!r} is an array of arrays, which llama.cpp does not read")
    layout = _layout(kind, key)
    if count > MAX_ARRAY_KEPT:
        reader.skip(count * layout.size)
        return Array(count, None)
    data = reader.take(count * layout.size)
    return Array(count, tuple(value[0] for value in layout.iter_unpack(data)))


def _layout(kind: int, key: str) -> struct.Struct:
    layout = _SCALARS.get(kind)
    if layout is None:
        raise BinaryError(f"{key!r} has value type {kind}, which GGUF does not define")
    return layout


class Metadata:
    """Typed access to the pairs; a value of the wrong kind is a fault, an absent one is not.

    Keys that start with a dot belong to the file's architecture: `.block_count` of a `llama`
    is `llama.block_count`.
    """

    def __init__(self, pairs: Mapping[str, Value]) -> None:
        self._pairs = pairs
        self.architecture = self.text("general.architecture")
        if self.architecture and not _ARCHITECTURE.match(self.architecture):
            raise BinaryError("general.architecture is no plausible name")

    def text(self, key: str) -> str:
        """Return one of the texts that are kept, "" without it."""
        value = self._pairs.get(key, b"")
        if isinstance(value, SkippedText):
            raise BinaryError(f"{key!r} is longer than {MAX_TEXT_BYTES} bytes")
        if not isinstance(value, bytes):
            raise BinaryError(f"{key!r} is not a string")
        return value.decode("utf-8", "replace")

    def has_text(self, key: str) -> bool:
        """Tell whether there is a string that is not empty."""
        value = self._pairs.get(key)
        if isinstance(value, SkippedText):
            return value.length_bytes > 0
        return isinstance(value, bytes) and value != b""

    def mentions(self, key: str, word: bytes) -> bool:
        """Tell whether a kept text contains `word`."""
        value = self._pairs.get(key)
        return isinstance(value, bytes) and word in value

    def flag(self, key: str, *, default: bool) -> bool:
        """Return a boolean."""
        value = self._pairs.get(self._full(key), default)
        if not isinstance(value, bool):
            raise BinaryError(f"{self._full(key)!r} is neither true nor false")
        return value

    def number(self, key: str, default: int = 0) -> int:
        """Return a whole number in 0..2^31-1."""
        value = self._pairs.get(self._full(key), default)
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not _whole(value):
            raise BinaryError(f"{self._full(key)!r} is no whole number from 0 to {MAX_NUMBER}")
        return int(value)

    def number_or_minus_one(self, key: str) -> int:
        """Return a whole number, -1 when it is absent or states -1 itself."""
        return -1 if self._pairs.get(self._full(key), -1) == -1 else self.number(key)

    def length(self, key: str) -> int:
        """Return the length of an array, 0 without one."""
        value = self._pairs.get(key)
        return value.length if isinstance(value, Array) else 0

    def per_layer(self, key: str, layers: int) -> tuple[int, ...]:
        """Return a number for each layer, () when absent; written as one number or an array."""
        value = self._pairs.get(self._full(key))
        if value is None:
            return ()
        if not isinstance(value, Array):
            return (self.number(key),) * layers
        # layers for next-token prediction may be stated too
        numbers = tuple(int(e) for e in (value.elements or ())[:layers] if _whole(e))
        if len(numbers) != layers:
            raise BinaryError(f"{self._full(key)!r} does not hold {layers} whole numbers")
        return numbers

    def largest(self, key: str) -> int:
        """Return a number, or the largest of an array of numbers."""
        value = self._pairs.get(self._full(key))
        if not isinstance(value, Array):
            return self.number(key)
        return max((int(e) for e in value.elements or () if _whole(e)), default=0)

    def flags(self, key: str) -> tuple[bool, ...]:
        """Return the elements of an array as booleans, () when it is none."""
        value = self._pairs.get(self._full(key))
        return tuple(map(bool, value.elements or ())) if isinstance(value, Array) else ()

    def alignment_bytes(self) -> int:
        """Return the alignment of tensor data."""
        alignment = self.number("general.alignment", 32)
        if not 0 < alignment <= MAX_ALIGNMENT_BYTES or alignment & (alignment - 1):
            raise BinaryError(f"general.alignment is {alignment}, no plausible power of two")
        return alignment

    def _full(self, key: str) -> str:
        return f"{self.architecture}{key}" if key.startswith(".") else key


def _whole(value: float) -> bool:
    return 0 <= value <= MAX_NUMBER and float(value).is_integer()


# --- tensor infos --------------------------------------------------------------------------


@dataclass(frozen=True)
class Tensors:
    """The sum of a file's tensors; `dominant` is the type that most elements have."""

    count: int
    elements: int
    data_bytes: int
    dominant: str


def read_tensors(reader: BoundedReader, count: int, alignment_bytes: int) -> Tensors:
    """Sum up `count` tensor infos and check that their data lies inside the file."""
    elements_by_type: dict[int, int] = {}
    end = data_bytes = 0
    for _ in range(count):
        reader.string(MAX_TENSOR_NAME_BYTES, "a tensor name")
        dimensions = reader.u32()
        if not 1 <= dimensions <= 4:
            raise BinaryError(f"a tensor with {dimensions} dimensions; 1 to 4 are possible")
        shape = struct.unpack(f"<{dimensions}Q", reader.take(8 * dimensions))
        kind, offset = reader.u32(), reader.u64()
        elements = _elements(shape)
        elements_by_type[kind] = elements_by_type.get(kind, 0) + elements
        size_bytes = _tensor_bytes(kind, shape[0], elements)
        end = max(end, offset + size_bytes)
        data_bytes += size_bytes
    start = -(-reader.position // alignment_bytes) * alignment_bytes
    if count and start + end > reader.size_bytes:
        raise BinaryError(
            f"cut off: its tensors end at byte {start + end}, the file at "
            f"{reader.size_bytes} (a download that is not finished?)"
        )
    if any(kind not in TENSOR_TYPES for kind in elements_by_type):
        data_bytes = max(data_bytes, reader.size_bytes - start)
    dominant = max(elements_by_type, key=lambda kind: elements_by_type[kind], default=-1)
    return Tensors(
        count=count,
        elements=sum(elements_by_type.values()),
        data_bytes=data_bytes,
        dominant=TENSOR_TYPES[dominant].label if dominant in TENSOR_TYPES else "",
    )


def _elements(shape: tuple[int, ...]) -> int:
    elements = 1
    for length in shape:
        if not 1 <= length <= MAX_DIMENSION:
            raise BinaryError(f"a tensor dimension of {length} is not plausible")
        elements *= length
    if elements > MAX_ELEMENTS:
        raise BinaryError(f"a tensor of {elements} elements is not plausible")
    return elements


def _tensor_bytes(kind: int, row_elements: int, elements: int) -> int:
    layout = TENSOR_TYPES.get(kind)
    if layout is None:
        return 0
    if row_elements % layout.block_elements:
        raise BinaryError(
            f"a {layout.label} tensor with rows of {row_elements}, "
            f"which is no multiple of {layout.block_elements}"
        )
    return elements // layout.block_elements * layout.block_bytes
