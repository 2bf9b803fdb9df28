"""Tiny GGUF models, written by code: a real backend with nothing to download.

The weights are random but for a sketch of a sentence in them: one hidden dimension is constant,
so that its column of the output matrix is a bias against everything unprintable, and a few more
say which class of word the last token was, so that the next class can be made likely. Answers are
readable nonsense that never ends by itself. JSON under a grammar closes its strings and brackets,
and a prompt with tools is answered with a call of one until a tool's response is in it. The files
are the same wherever they are written by the same numpy.
"""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llmd.models.gguf import GgufError, read_header

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Matrix = NDArray[np.float32]

DEMO_VERSION = 1
"""Raised whenever the files' contents change; older files are then replaced."""


@dataclass(frozen=True)
class Shape:
    """The size of one demo model; `context_tokens` is what it claims to be trained for."""

    name: str
    context_tokens: int
    width: int
    layers: int
    feed_forward: int
    heads: int
    kv_heads: int
    embedding: bool = False


# one layer with one head: over a long context attention is what a tiny model spends its time on
SMALL = Shape("demo-small", 4096, width=64, layers=1, feed_forward=128, heads=1, kv_heads=1)
LARGE = Shape("demo-large", 8192, width=128, layers=2, feed_forward=384, heads=2, kv_heads=1)
EMBED = Shape(
    "demo-embed", 2048, width=64, layers=1, feed_forward=128, heads=1, kv_heads=1, embedding=True
)

# Classes of tokens, and after each the classes that may follow, the likelier first. Words of a
# sentence carry their leading space, as SentencePiece has them (here `_`).
_WORDS = {
    "opening": "The One Every This My Our Some Your",
    "trait": "_old _quiet _small _clever _brave _patient _curious _gentle _sleepy _merry",
    "hero": "_robot _fox _sailor _river _baker _owl _painter _llama _dragon _clock _daemon",
    "act": "_sings _waits _dreams _travels _listens _hides _dances _rests _writes _laughs",
    "place": "_under _near _behind _above _beside _beyond _inside _across",
    "which": "_the _a _that _another _each",
    "look": "_golden _silent _distant _crooked _bright _frozen _hidden _wooden _blue _tiny",
    "thing": "_mountain _lantern _garden _bridge _harbor _queue _forest _window _kettle _moon",
    "stop": "._ !_ ?_",
    "value": "amber basil cedar delta ember fjord grove hazel indigo jade lotus maple",
}
_FOLLOWS: dict[str, tuple[str, ...]] = {
    "opening": ("hero", "trait"),
    "trait": ("hero",),
    "hero": ("act",),
    "act": ("place",),
    "place": ("which",),
    "which": ("thing", "look"),
    "look": ("thing",),
    "thing": ("stop",),
    "stop": ("opening",),
    "letter": ("act",),
    "control": ("opening",),
    # what only a grammar brings about: JSON
    "quote": ("value",),
    "value": ("quote",),
    "digit": ("punctuation",),
    "punctuation": ("quote", "digit", "open"),
    # tools in the prompt, the call of one, and what came of it
    "tools": (),
    "call": (),
    "response": (),
    "open": ("act",),
    "close": ("act",),
}
_CLASSES = tuple(_FOLLOWS)
_CALLABLE = 1 + len(_CLASSES)  # the dimension that says "there are tools, and no response yet"
_MEANINGS = _CALLABLE + 1  # the dimensions with a meaning; the rest are noise
_CONSTANT, _MARK, _JITTER = 8.0, 5.0, 0.5  # how large each kind is in an embedding

# logits
_LIKELY, _POSSIBLE, _RARE, _NEVER = 12.0, 11.0, -6.0, -30.0
_CALL = 20.0  # for a call, twice: the answer begins, and there are tools; minus it otherwise
_NOISE = 1.2
_ATTENTION = 14.0  # exceeds the logarithm of any context

_BOS, _EOS, _END_OF_TURN = 1, 2, 4
_CONTROL_TOKENS = ("<unk>", "<s>", "</s>", "<|im_start|>", "<|im_end|>")
_MARKUP_TOKENS = {"<tools>": "tools", "<tool_call>": "call", "<tool_response>": "response"}

CHAT_TEMPLATE = """\
{%- if tools -%}
<|im_start|>system
{% if messages[0].role == 'system' %}{{ messages[0].content }}

{% endif -%}
Tools, one JSON object a line:
<tools>
{% for tool in tools %}{{ tool | tojson }}
{% endfor -%}
</tools>
Call one like this:
<tool_call>{"name": NAME, "arguments": ARGUMENTS}</tool_call><|im_end|>
{% endif -%}
{%- for message in messages -%}
{%- if message.role == 'assistant' -%}
<|im_start|>assistant
{{ message.content or '' }}
{%- for call in message.tool_calls or [] -%}
<tool_call>{"name": {{ call.function.name | tojson }}, \
"arguments": {{ call.function.arguments | tojson }}}</tool_call>
{%- endfor -%}
<|im_end|>
{% elif message.role == 'tool' -%}
<|im_start|>user
<tool_response>
{{ message.content }}
</tool_response><|im_end|>
{% elif not (tools and loop.first and message.role == 'system') -%}
<|im_start|>{{ message.role }}
{{ message.content }}<|im_end|>
{% endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}
<|im_start|>assistant
{% endif -%}
"""


@dataclass(frozen=True)
class _Token:
    text: str
    kind: int  # gguf.TokenType
    group: str  # a class of _FOLLOWS
    base: float  # logit with nothing said for or against it
    score: float = 0.0  # SentencePiece merges the highest first


def write_demo_models(directory: Path, *, embed: bool = False) -> list[Path]:
    """Write the demo models that are not there yet.

    Each file appears whole or not at all, so several processes may do this at once. Blocks for
    half a second, most of it the import of numpy.

    Args:
        directory: Made if absent.
        embed: Also write `demo-embed.gguf`, besides `demo-small.gguf` and `demo-large.gguf`.

    Returns:
        The paths: small, large, and embed if asked.

    Raises:
        OSError: The directory cannot be written.
    """
    shapes = [SMALL, LARGE, EMBED] if embed else [SMALL, LARGE]
    return [write_model(directory, shape) for shape in shapes]


def write_model(directory: Path, shape: Shape) -> Path:
    """Write one model of any size, as `write_demo_models` does, unless it is there already.

    Returns:
        The path: the shape's name and `.gguf`.

    Raises:
        OSError: The directory cannot be written.
    """
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / f"{shape.name}.gguf"
    if not _is_current(path, shape):
        _write_whole(path, shape)
    return path


def _is_current(path: Path, shape: Shape) -> bool:
    try:
        read_header(path)  # finds a file that was cut off
        with path.open("rb") as file:
            return _stamp(shape).encode() in file.read(1024)
    except (GgufError, OSError):
        return False


def _stamp(shape: Shape) -> str:
    sizes = (shape.context_tokens, shape.width, shape.layers, shape.feed_forward)
    heads = (shape.heads, shape.kv_heads)
    return f"llmd demo {DEMO_VERSION}: {'x'.join(map(str, (*sizes, *heads)))}."


def _write_whole(path: Path, shape: Shape) -> None:
    descriptor, name = tempfile.mkstemp(prefix=f".{shape.name}-", suffix=".tmp", dir=path.parent)
    os.close(descriptor)
    temporary = Path(name)
    try:
        _write(temporary, shape)
        temporary.chmod(0o644)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


# --- the vocabulary ------------------------------------------------------------------------


def _vocabulary() -> list[_Token]:
    from gguf import TokenType

    tokens = [_Token(text, TokenType.CONTROL, "control", _NEVER) for text in _CONTROL_TOKENS]
    tokens[0] = replace(tokens[0], kind=TokenType.UNKNOWN)
    for text, group in _MARKUP_TOKENS.items():
        base = -_CALL if group == "call" else _NEVER
        tokens.append(_Token(text, TokenType.USER_DEFINED, group, base))
    for byte in range(256):
        group = "control" if byte == ord("\n") else "letter"
        tokens.append(_Token(f"<0x{byte:02X}>", TokenType.BYTE, group, _NEVER))
    for character in map(chr, range(0x20, 0x7F)):
        text = character.replace(" ", "▁")
        base = 2 * _RARE if text == "▁" else _RARE
        tokens.append(_Token(text, TokenType.NORMAL, _group(character), base, -1000.0))
    for group, words in _WORDS.items():
        for word in words.split():
            text = word.replace("_", "▁")
            tokens.append(_Token(text, TokenType.NORMAL, group, 0.0, -float(len(tokens))))
    return tokens


def _group(character: str) -> str:
    if character.isdigit():
        return "digit"
    if character in ",:{}[]":
        return "punctuation"
    return {'"': "quote", " ": "control", "<": "open", ">": "close"}.get(character, "letter")


# --- the weights ---------------------------------------------------------------------------


def _write(path: Path, shape: Shape) -> None:
    import gguf

    tokens = _vocabulary()
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_description(_stamp(shape))
    writer.add_name(shape.name)
    writer.add_file_type(gguf.LlamaFileType.ALL_F32)
    writer.add_context_length(shape.context_tokens)
    writer.add_embedding_length(shape.width)
    writer.add_block_count(shape.layers)
    writer.add_feed_forward_length(shape.feed_forward)
    writer.add_head_count(shape.heads)
    writer.add_head_count_kv(shape.kv_heads)
    writer.add_rope_dimension_count(shape.width // shape.heads)
    writer.add_rope_freq_base(1e6)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(len(tokens))
    if shape.embedding:
        writer.add_pooling_type(gguf.PoolingType.MEAN)
    _add_tokenizer(writer, tokens)
    for name, matrix in _tensors(shape, tokens):
        writer.add_tensor(name, matrix)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _add_tokenizer(writer: Any, tokens: list[_Token]) -> None:
    writer.add_tokenizer_model("llama")
    writer.add_token_list([token.text for token in tokens])
    writer.add_token_scores([token.score for token in tokens])
    writer.add_token_types([token.kind for token in tokens])
    writer.add_bos_token_id(_BOS)
    writer.add_eos_token_id(_EOS)
    writer.add_unk_token_id(0)
    writer.add_eot_token_id(_END_OF_TURN)
    writer.add_add_bos_token(True)
    # else a grammar cannot match what the chat template has opened
    writer.add_add_space_prefix(False)
    writer.add_chat_template(CHAT_TEMPLATE)


def _tensors(shape: Shape, tokens: list[_Token]) -> Iterator[tuple[str, Matrix]]:
    import numpy as np

    random = np.random.default_rng(20260)
    width, ff = shape.width, shape.feed_forward
    kv_width = width // shape.heads * shape.kv_heads

    def normal(rows: int, columns: int, scale: float) -> Matrix:
        return (random.standard_normal((rows, columns)) * scale).astype(np.float32)

    def reads(rows: int) -> Matrix:
        # blind to the constant, which would make each layer add the same to every token
        matrix = normal(rows, width, width**-0.5)
        matrix[:, 0] = 0
        return matrix

    def adds(columns: int) -> Matrix:
        # only to the noise: the dimensions with a meaning stay as they are
        matrix = normal(width, columns, (shape.layers * columns) ** -0.5)
        matrix[:_MEANINGS] = 0
        return matrix

    yield "token_embd.weight", _embedding(tokens, normal(len(tokens), width, _JITTER))
    yield "output_norm.weight", np.ones(width, np.float32)
    yield "output.weight", _output(shape, tokens, normal(len(tokens), width, width**-0.5))
    for layer in range(shape.layers):
        query, key, value, output = reads(width), reads(kv_width), reads(kv_width), adds(width)
        if layer == 0:
            _notice_tools(shape, query, key, value, output)
        yield f"blk.{layer}.attn_norm.weight", np.ones(width, np.float32)
        yield f"blk.{layer}.attn_q.weight", query
        yield f"blk.{layer}.attn_k.weight", key
        yield f"blk.{layer}.attn_v.weight", value
        yield f"blk.{layer}.attn_output.weight", output
        yield f"blk.{layer}.ffn_norm.weight", np.ones(width, np.float32)
        yield f"blk.{layer}.ffn_gate.weight", reads(ff)
        yield f"blk.{layer}.ffn_up.weight", reads(ff)
        yield f"blk.{layer}.ffn_down.weight", adds(ff)


def _mark(group: str) -> int:
    return 1 + _CLASSES.index(group)


def _embedding(tokens: list[_Token], jitter: Matrix) -> Matrix:
    jitter[:, 0] = _CONSTANT
    jitter[:, 1:_MEANINGS] = 0
    for row, token in zip(jitter, tokens, strict=True):
        row[_mark(token.group)] = _MARK
    return jitter


def _norm(shape: Shape, noise: float) -> float:
    """Return what RMS norm divides a hidden state by, with `noise` its noise's mean square."""
    square = _CONSTANT**2 + _MARK**2 + noise * (shape.width - _MEANINGS)
    return float((square / shape.width) ** 0.5)


def _notice_tools(shape: Shape, query: Matrix, key: Matrix, value: Matrix, output: Matrix) -> None:
    """Make the first head look for tools in the prompt, and at the response to a call first.

    It uses the slowest pair of rotary dimensions, in which position hardly matters.
    """
    norm, head = _norm(shape, _JITTER**2), shape.width // shape.heads
    for number in range(shape.heads):
        query[(number + 1) * head - 2 : (number + 1) * head] = 0
    key[head - 2 : head] = 0
    query[head - 1, 0] = _ATTENTION * head**0.5 * norm / _CONSTANT
    key[head - 1, _mark("tools")] = norm / _MARK
    key[head - 1, _mark("response")] = 2 * norm / _MARK
    value[0] = 0
    value[0, _mark("tools")] = norm
    output[_CALLABLE] = 0
    output[_CALLABLE, 0] = 1


def _output(shape: Shape, tokens: list[_Token], noise: Matrix) -> Matrix:
    """Shape the output matrix, in whose rows a token finds what speaks for it."""
    norm = _norm(shape, _JITTER**2 + 0.5)
    noise *= _NOISE
    noise[:, :_MEANINGS] = 0
    for row, token in zip(noise, tokens, strict=True):
        row[0] = token.base * norm / _CONSTANT
        if token.base <= -_CALL:
            row[_MEANINGS:] = 0
        if token.base == _NEVER:
            continue
        for group, followers in _FOLLOWS.items():
            if token.group in followers:
                likely = _LIKELY if token.group == followers[0] else _POSSIBLE
                row[_mark(group)] = (likely - token.base) * norm / _MARK
        if token.group == "call":
            row[_mark("control")] = row[_CALLABLE] = _CALL * norm / _MARK
    # between the end of one call and the next, the end; anywhere else it has no chance
    noise[_EOS, _mark("close")] = (8 - _NEVER) * norm / _MARK
    return noise


if __name__ == "__main__":
    write_demo_models(Path(sys.argv[1]))
