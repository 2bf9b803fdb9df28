"""What a GGUF file says about itself: `read_header`, for files that nobody vouches for.

Each count, length and depth has a bound, big arrays are skipped and never held, and every fault
ends as a `GgufError` that says what is wrong.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from enum import Enum
from pathlib import Path

from llmd.errors import LlmdError
from llmd.models.binary import BinaryError, BoundedReader
from llmd.models.ggml import FILE_TYPE_GUESSED, FILE_TYPES
from llmd.models.gguf_file import (
    CHAT_TEMPLATE,
    MAX_ARRAY_KEPT,
    Metadata,
    Tensors,
    read_metadata,
    read_preamble,
    read_tensors,
)

MAX_NAME_CHARACTERS = 200

_POOLING = ("none", "mean", "cls", "last", "rank")
# encoders: they have no next token to predict, whatever their metadata leaves out
_ENCODERS = frozenset(
    {
        "bert",
        "nomic-bert",
        "nomic-bert-moe",
        "jina-bert-v2",
        "jina-bert-v3",
        "neo-bert",
        "modern-bert",
        "eurobert",
        "gemma-embedding",
        "llama-embed",
        "t5encoder",
    }
)
# of each n layers the last looks at everything and the others at the window only: llama.cpp's
# own periods for architectures whose files need not state one
_WINDOW_PERIODS: Mapping[str, int] = {
    "cohere2": 4,
    "exaone4": 4,
    "gemma2": 2,
    "gemma3": 6,
    "gemma3n": 5,
    "gemma-embedding": 6,
    "gpt-oss": 2,
    "llama4": 4,
    "olmo2": 4,
}
_LLAMA4_WINDOW_TOKENS = 8192


class GgufError(LlmdError):
    """The file is no GGUF file that could be loaded; the message says what is wrong with it."""

    code = "model_failed"
    status = 503
    default_should_retry = False


class FileKind(str, Enum):
    """What a GGUF file holds; only a `model` can be served by itself."""

    MODEL = "model"
    PROJECTOR = "projector"  # mmproj: the eyes or ears of a model
    ADAPTER = "adapter"  # a LoRA or a control vector
    IMATRIX = "imatrix"
    SHARD = "shard"  # the second or a later part of a model


@dataclass(frozen=True)
class GgufHeader:
    """One file's header, or that of a whole sharded model once `merge_shards` has summed it.

    Numbers that the file does not state are 0, texts "".

    Attributes:
        kind: What the file holds.
        architecture: llama.cpp's name of it, such as `qwen3`; "" only in later shards.
        name: `general.name`, printable, at most 200 characters.
        parameters: Elements of all tensors.
        quantisation: Such as `Q4_K_M`.
        context_length: Tokens the model was trained for.
        embedding_length: Width of the hidden state.
        feed_forward_length: Width of the widest feed-forward layer.
        block_count: Layers.
        head_count: Attention heads of each layer, `block_count` numbers, or ().
        head_count_kv: The same for keys and values; 0 in layers without attention.
        key_length: Width of one key head.
        value_length: Width of one value head.
        sliding_window: Tokens that windowed layers look back; 0 = no layer is windowed.
        windowed_layers: True for each layer that looks back only so far.
        recurrent_bytes: State that recurrent layers keep for one sequence, all layers together.
        vocab_size: Tokens in the vocabulary.
        chat_template: Whether there is one.
        tools: Whether the chat template speaks of tools.
        causal: False for encoders, which cannot generate.
        pooling: none, mean, cls, last, rank, or "" when not stated.
        embedding: The file says that it is for embeddings.
        rerank: The file says that it is for reranking.
        vision: A projector that takes images.
        audio: A projector that takes sound.
        projection_length: Width of a projector's output, that of its model's hidden state.
        expert_count: Experts of each layer.
        expert_used_count: How many of them see a token.
        shard_no: From 0.
        shard_count: 1 for a model in one file.
        tensor_count: Tensors in the file.
        tensor_bytes: Bytes of tensor data.
        file_size_bytes: Size of the file.
    """

    kind: FileKind
    architecture: str
    name: str
    parameters: int
    quantisation: str
    context_length: int
    embedding_length: int
    feed_forward_length: int
    block_count: int
    head_count: tuple[int, ...]
    head_count_kv: tuple[int, ...]
    key_length: int
    value_length: int
    sliding_window: int
    windowed_layers: tuple[bool, ...]
    recurrent_bytes: int
    vocab_size: int
    chat_template: bool
    tools: bool
    causal: bool
    pooling: str
    embedding: bool
    rerank: bool
    vision: bool
    audio: bool
    projection_length: int
    expert_count: int
    expert_used_count: int
    shard_no: int
    shard_count: int
    tensor_count: int
    tensor_bytes: int
    file_size_bytes: int


def read_header(path: Path) -> GgufHeader:
    """Read what a GGUF file says about itself.

    Reads a few MiB of a usual file and never more than 128 MiB, and holds none of it after.
    Blocks for the disk, so an event loop calls it in a thread.

    Raises:
        GgufError: For whatever reason: unreadable, no GGUF, cut off, contradictory.
    """
    try:
        with BoundedReader(path) as reader:
            tensor_count, pair_count = read_preamble(reader)
            metadata = read_metadata(reader, pair_count)
            tensors = read_tensors(reader, tensor_count, metadata.alignment_bytes())
            return _header(metadata, tensors, reader.size_bytes)
    except OSError as error:
        raise GgufError(f"cannot be read: {error.strerror or error}") from error
    except ValueError as error:  # a path with a null byte
        raise GgufError(f"cannot be read: {error}") from error
    except BinaryError as error:
        raise GgufError(str(error)) from error


def merge_shards(headers: Sequence[GgufHeader]) -> GgufHeader:
    """Return the header of a whole model from those of all its shards, in order.

    Raises:
        GgufError: A shard says that it is another one, or of another set.
    """
    first = headers[0]
    for number, header in enumerate(headers):
        if (header.shard_no, header.shard_count) != (number, len(headers)):
            raise GgufError(
                f"the file named shard {number + 1} of {len(headers)} says inside that it is "
                f"{header.shard_no + 1} of {header.shard_count}"
            )
    return replace(
        first,
        parameters=sum(header.parameters for header in headers),
        tensor_count=sum(header.tensor_count for header in headers),
        tensor_bytes=sum(header.tensor_bytes for header in headers),
        file_size_bytes=sum(header.file_size_bytes for header in headers),
    )


def _header(metadata: Metadata, tensors: Tensors, file_size_bytes: int) -> GgufHeader:
    shard_no, shard_count = metadata.number("split.no"), metadata.number("split.count", 1)
    kind = _kind(metadata, shard_no)
    if kind is FileKind.MODEL:
        _check_model(metadata, tensors, shard_count)
    layers = metadata.number(".block_count")
    if layers > MAX_ARRAY_KEPT:
        raise BinaryError(f"claims {layers} layers, at most {MAX_ARRAY_KEPT} are believed")
    heads = metadata.per_layer(".attention.head_count", layers)
    width = metadata.number(".embedding_length")
    kv_heads = _kv_heads(metadata, heads, layers)
    most_heads = max(heads, default=0)
    head_width = width // most_heads if most_heads else 0
    window, windowed = _windowed_layers(metadata, layers)
    causal = metadata.flag(".attention.causal", default=metadata.architecture not in _ENCODERS)
    pooling = _pooling(metadata)
    return GgufHeader(
        kind=kind,
        architecture=metadata.architecture,
        name=_printable(metadata.text("general.name")),
        parameters=tensors.elements,
        quantisation=_quantisation(metadata, tensors),
        context_length=metadata.number(".context_length"),
        embedding_length=width,
        feed_forward_length=metadata.largest(".feed_forward_length"),
        block_count=layers,
        head_count=heads,
        head_count_kv=kv_heads,
        key_length=metadata.number(".attention.key_length", head_width),
        value_length=metadata.number(".attention.value_length", head_width),
        sliding_window=window,
        windowed_layers=windowed,
        recurrent_bytes=_recurrent_bytes(metadata, kv_heads),
        vocab_size=metadata.length("tokenizer.ggml.tokens") or metadata.number(".vocab_size"),
        chat_template=metadata.has_text(CHAT_TEMPLATE),
        tools=metadata.mentions(CHAT_TEMPLATE, b"tools"),
        causal=causal,
        pooling=pooling,
        embedding=pooling != "rank" and (not causal or pooling in {"mean", "cls", "last"}),
        rerank=pooling == "rank",
        vision=metadata.flag("clip.has_vision_encoder", default=False),
        audio=metadata.flag("clip.has_audio_encoder", default=False),
        projection_length=metadata.number("clip.vision.projection_dim")
        or metadata.number("clip.audio.projection_dim"),
        expert_count=metadata.number(".expert_count"),
        expert_used_count=metadata.largest(".expert_used_count"),
        shard_no=shard_no,
        shard_count=max(1, shard_count),
        tensor_count=tensors.count,
        tensor_bytes=tensors.data_bytes,
        file_size_bytes=file_size_bytes,
    )


def _kind(metadata: Metadata, shard_no: int) -> FileKind:
    if shard_no:
        return FileKind.SHARD
    stated = metadata.text("general.type")
    if metadata.architecture == "clip" or stated == "mmproj":
        return FileKind.PROJECTOR
    if metadata.architecture == "controlvector" or stated == "adapter":
        return FileKind.ADAPTER
    return FileKind.IMATRIX if stated == "imatrix" else FileKind.MODEL


def _check_model(metadata: Metadata, tensors: Tensors, shard_count: int) -> None:
    if not metadata.architecture:
        raise BinaryError("general.architecture is missing")
    # the first of several shards may hold nothing but metadata
    if not tensors.count and shard_count <= 1:
        raise BinaryError("holds no tensors (a vocabulary only?)")


def _pooling(metadata: Metadata) -> str:
    number = metadata.number_or_minus_one(".pooling_type")
    if number >= len(_POOLING):
        raise BinaryError(f"pooling_type is {number}, which llama.cpp does not define")
    return _POOLING[number] if number >= 0 else ""


def _quantisation(metadata: Metadata, tensors: Tensors) -> str:
    stated = metadata.number("general.file_type", FILE_TYPE_GUESSED - 1) & ~FILE_TYPE_GUESSED
    return FILE_TYPES.get(stated) or tensors.dominant


def _printable(text: str) -> str:
    return "".join(c for c in text if c.isprintable())[:MAX_NAME_CHARACTERS].strip()


def _windowed_layers(metadata: Metadata, layers: int) -> tuple[int, tuple[bool, ...]]:
    """Return the window in tokens and which layers have it.

    A layer counts as a full one when in doubt: that overestimates the cache, where the other
    error would run out of memory.
    """
    default = _LLAMA4_WINDOW_TOKENS if metadata.architecture == "llama4" else 0
    window = metadata.number(".attention.sliding_window", default)
    flags = metadata.flags(".attention.sliding_window_pattern")[:layers]
    if flags:
        flags += (False,) * (layers - len(flags))
    else:
        known = _WINDOW_PERIODS.get(metadata.architecture, 1)
        period = metadata.largest(".attention.sliding_window_pattern") or known
        flags = tuple(layer % period < period - 1 for layer in range(layers))
    if not window or not any(flags):
        return 0, (False,) * layers
    return window, flags


def _kv_heads(metadata: Metadata, heads: tuple[int, ...], layers: int) -> tuple[int, ...]:
    """Return key-value heads of each layer; recurrent layers of hybrids have none."""
    stated = metadata.per_layer(".attention.head_count_kv", layers) or heads
    interval = metadata.number(".full_attention_interval")
    if not interval:
        return stated
    return tuple(n if (layer + 1) % interval == 0 else 0 for layer, n in enumerate(stated))


def _recurrent_bytes(metadata: Metadata, kv_heads: tuple[int, ...]) -> int:
    """Size one sequence's state in recurrent layers: the convolution and the SSM state, in F32.

    Counted as if every layer that does not attend were recurrent, and every layer if all attend
    (some hybrids do both in one layer).
    """
    state, inner = metadata.number(".ssm.state_size"), metadata.number(".ssm.inner_size")
    if not state or not inner:
        return 0
    layers = metadata.number(".block_count")
    recurrent = layers - sum(map(bool, kv_heads)) or layers
    groups = metadata.number(".ssm.group_count")
    window = max(0, metadata.number(".ssm.conv_kernel") - 1) * (inner + 2 * groups * state)
    return 4 * recurrent * (window + state * inner)
