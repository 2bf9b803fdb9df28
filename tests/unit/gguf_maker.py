"""GGUF files made byte by byte: no library refuses to write the bad ones."""

from __future__ import annotations

import struct

U8, I8, U16, I16, U32, I32, F32, BOOL, STR, ARR, U64, I64, F64 = range(13)
_FORMATS = {
    U8: "<B", I8: "<b", U16: "<H", I16: "<h", U32: "<I", I32: "<i", F32: "<f", BOOL: "<?",
    U64: "<Q", I64: "<q", F64: "<d",
}  # fmt: skip


def text(value):
    data = value if isinstance(value, bytes) else value.encode()
    return struct.pack("<Q", len(data)) + data


def pair(key, kind, value):
    """One metadata pair; an array's value is (element type, elements)."""
    return text(key) + struct.pack("<I", kind) + _value(kind, value)


def _value(kind, value):
    if kind == STR:
        return text(value)
    if kind == ARR:
        of, elements = value
        return struct.pack("<IQ", of, len(elements)) + b"".join(_value(of, e) for e in elements)
    return struct.pack(_FORMATS[kind], value)


def tensor(name="t", shape=(32,), kind=0, offset=0):
    dims = struct.pack(f"<I{len(shape)}Q", len(shape), *shape)
    return text(name) + dims + struct.pack("<IQ", kind, offset)


def gguf(pairs=(), tensors=(), data=0, *, version=3, counts=None, align=32, magic=b"GGUF"):
    """A whole file; `data` bytes of tensor data follow, `counts` overrides the true numbers."""
    counts = counts or (len(tensors), len(pairs))
    head = magic + struct.pack("<IQQ", version, *counts) + b"".join(pairs) + b"".join(tensors)
    return head + bytes(-len(head) % align + data)


def model_pairs(arch="llama", **more):
    """The pairs of a small plausible model; `more` are whole numbers of the architecture."""
    numbers = {
        "context_length": 4096,
        "embedding_length": 64,
        "block_count": 2,
        "feed_forward_length": 128,
        "attention.head_count": 4,
        "attention.head_count_kv": 2,
    }
    numbers |= {key.replace("__", "."): value for key, value in more.items()}
    return [
        pair("general.architecture", STR, arch),
        pair("general.name", STR, "A model"),
        *(pair(f"{arch}.{key}", U32, value) for key, value in numbers.items()),
        pair("tokenizer.ggml.tokens", ARR, (STR, ["<s>", "a", "b"])),
    ]


def model(*extra, arch="llama", shape=(32, 4), **more):
    """A small plausible model with `extra` pairs."""
    size = 4
    for length in shape:
        size *= length
    return gguf([*model_pairs(arch, **more), *extra], [tensor(shape=shape)], size)


def projector(width=64, *extra):
    """A projector for models of this width."""
    pairs = [
        pair("general.architecture", STR, "clip"),
        pair("general.type", STR, "mmproj"),
        pair("clip.has_vision_encoder", BOOL, True),
        pair("clip.vision.projection_dim", U32, width),
        *extra,
    ]
    return gguf(pairs, [tensor()], 128)


def shards(count, **more):
    """The parts of one sharded model, in order."""
    split = [[pair("split.no", U16, n), pair("split.count", U16, count)] for n in range(count)]
    first = gguf([*model_pairs(**more), *split[0]], [tensor()], 128)
    return [first, *(gguf(pairs, [tensor(f"t{i}")], 128) for i, pairs in enumerate(split[1:]))]
