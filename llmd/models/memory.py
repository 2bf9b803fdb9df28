"""How much memory a model will take, from its header alone: estimates, pure.

They err on the large side: a measurement replaces them once the model has run. What they leave
out is what a process or a GPU context takes by itself.
"""

from __future__ import annotations

from dataclasses import dataclass

from llmd.models.ggml import CACHE_TYPES, TensorType
from llmd.models.gguf import GgufHeader

AUTO_CONTEXT_TOKENS = 32_768
"""The most that `context_size = "auto"` chooses."""

UNKNOWN_CONTEXT_TOKENS = 4_096
"""Taken for a model that does not say what it was trained for."""

MIN_CONTEXT_TOKENS = 512
"""Less than this per slot is of no use to anybody."""

MICRO_BATCH_TOKENS = 512  # llama-server's default for --ubatch-size
_STEP_TOKENS = 256  # llama.cpp rounds caches up to this


@dataclass(frozen=True)
class MemoryEstimate:
    """What a worker will hold, in bytes, wherever it holds it.

    Attributes:
        weights_bytes: Tensors, those of projector, draft and adapters included.
        kv_bytes: Key-value cache and recurrent state of all slots.
        compute_bytes: Scratch space of one micro-batch.
    """

    weights_bytes: int
    kv_bytes: int
    compute_bytes: int

    @property
    def total_bytes(self) -> int:
        """All of it."""
        return self.weights_bytes + self.kv_bytes + self.compute_bytes


def trained_context(header: GgufHeader) -> int:
    """Return the tokens that a model was trained for, or a cautious guess."""
    return header.context_length or UNKNOWN_CONTEXT_TOKENS


def kv_bytes_per_token(header: GgufHeader, cache_type_k: str = "", cache_type_v: str = "") -> float:
    """Return by how much the cache grows with each token of context.

    Only layers that look at everything count; see `fixed_kv_bytes` for the others.

    Args:
        header: Of the model.
        cache_type_k: llama-server's name of the keys' type; "" and unknown ones count as f16.
        cache_type_v: The same for values.
    """
    return sum(
        _layer_bytes(header, heads, cache_type_k, cache_type_v)
        for heads, windowed in _layers(header)
        if not windowed
    )


def fixed_kv_bytes(
    header: GgufHeader,
    context_tokens_total: int,
    *,
    slots: int = 1,
    cache_type_k: str = "",
    cache_type_v: str = "",
) -> int:
    """Return the cache's part that stops growing: windowed layers and recurrent state."""
    window = min(context_tokens_total, slots * (header.sliding_window + MICRO_BATCH_TOKENS))
    windowed = sum(
        _layer_bytes(header, heads, cache_type_k, cache_type_v)
        for heads, is_windowed in _layers(header)
        if is_windowed
    )
    return int(windowed * window) + slots * header.recurrent_bytes


def estimate_bytes(
    header: GgufHeader,
    context_tokens_total: int,
    *,
    slots: int = 1,
    cache_type_k: str = "",
    cache_type_v: str = "",
    flash_attention: bool = True,
    extra_weights_bytes: int = 0,
) -> MemoryEstimate:
    """Estimate what a worker will hold.

    Args:
        header: Of the whole model, shards merged.
        context_tokens_total: Context of all slots together.
        slots: Requests side by side.
        cache_type_k: llama-server's name of the keys' type; "" = f16.
        cache_type_v: The same for values.
        flash_attention: False makes llama.cpp hold all attention scores of a micro-batch.
        extra_weights_bytes: Sizes of a projector, a draft model, LoRA adapters.
    """
    per_token = kv_bytes_per_token(header, cache_type_k, cache_type_v)
    fixed = fixed_kv_bytes(
        header,
        context_tokens_total,
        slots=slots,
        cache_type_k=cache_type_k,
        cache_type_v=cache_type_v,
    )
    return MemoryEstimate(
        weights_bytes=header.tensor_bytes + extra_weights_bytes,
        kv_bytes=int(per_token * context_tokens_total) + fixed,
        compute_bytes=_compute_bytes(header, context_tokens_total, flash_attention=flash_attention),
    )


def auto_context(
    header: GgufHeader,
    available_bytes: int,
    slots: int,
    *,
    cache_type_k: str = "",
    cache_type_v: str = "",
    flash_attention: bool = True,
    extra_weights_bytes: int = 0,
    most_tokens: int = AUTO_CONTEXT_TOKENS,
) -> int:
    """Return the context of one slot: the least of trained, `most_tokens` and what fits.

    Args:
        header: Of the whole model, shards merged.
        available_bytes: What the worker may hold.
        slots: Requests side by side; each gets this context.
        cache_type_k: As in `estimate_bytes`, and so are the rest.
        cache_type_v: See there.
        flash_attention: See there.
        extra_weights_bytes: See there.
        most_tokens: The cap.

    Returns:
        Tokens; 0 when not even `MIN_CONTEXT_TOKENS` fit (or the model's own, if it has less).
    """

    def fits(tokens: int) -> bool:
        estimate = estimate_bytes(
            header,
            tokens * slots,
            slots=slots,
            cache_type_k=cache_type_k,
            cache_type_v=cache_type_v,
            flash_attention=flash_attention,
            extra_weights_bytes=extra_weights_bytes,
        )
        return estimate.total_bytes <= available_bytes

    most = min(trained_context(header), most_tokens)
    if fits(most):
        return most
    # the estimate grows with the context, so bisect over whole steps
    low, high = 0, most // _STEP_TOKENS
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if fits(middle * _STEP_TOKENS) else (low, middle - 1)
    return low * _STEP_TOKENS if low * _STEP_TOKENS >= MIN_CONTEXT_TOKENS else 0


def _layers(header: GgufHeader) -> list[tuple[int, bool]]:
    # a model that states no heads has no cache that could be computed
    return list(zip(header.head_count_kv, header.windowed_layers, strict=False))


def _layer_bytes(header: GgufHeader, kv_heads: int, type_k: str, type_v: str) -> float:
    return kv_heads * (
        header.key_length * _bytes_each(type_k) + header.value_length * _bytes_each(type_v)
    )


def _bytes_each(cache_type: str) -> float:
    kind: TensorType = CACHE_TYPES.get(cache_type.lower()) or CACHE_TYPES["f16"]
    return kind.block_bytes / kind.block_elements


def _compute_bytes(header: GgufHeader, context_tokens_total: int, *, flash_attention: bool) -> int:
    """Size the scratch space of one micro-batch, as measured on llama.cpp's CPU backend.

    Each token needs its logits (versions before autumn 2026 reserve them for a whole
    micro-batch), some copies of the hidden state and of the widest layer, in F32, and its row of
    the attention mask; without flash attention its attention scores too.
    """
    width, wide = header.embedding_length, header.feed_forward_length
    wide *= max(1, header.expert_used_count)
    token_bytes = 4 * (header.vocab_size + 5 * width + 3 * wide) + 2 * context_tokens_total
    if not flash_attention:
        heads = max(header.head_count, default=0)
        token_bytes += (4 * heads + 2) * context_tokens_total
    return MICRO_BATCH_TOKENS * token_bytes
