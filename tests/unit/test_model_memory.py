"""Estimates: the cache exactly, the rest an upper bound, and contexts that fit them."""

from __future__ import annotations

from dataclasses import replace

import gguf_maker as make
import pytest
from gguf_maker import U32, pair
from hypothesis import given
from hypothesis import strategies as st

from llmd.models.gguf import read_header
from llmd.models.memory import (
    AUTO_CONTEXT_TOKENS,
    MICRO_BATCH_TOKENS,
    MIN_CONTEXT_TOKENS,
    UNKNOWN_CONTEXT_TOKENS,
    auto_context,
    estimate_bytes,
    fixed_kv_bytes,
    kv_bytes_per_token,
    trained_context,
)

MIB = 2**20


@pytest.fixture(scope="module")
def header(tmp_path_factory):
    """A header of two layers, two key-value heads of 16 each."""
    path = tmp_path_factory.mktemp("memory") / "m.gguf"
    path.write_bytes(make.model(pair("llama.vocab_size", U32, 1)))
    return read_header(path)


def test_each_layer_keeps_keys_and_values(header):
    assert kv_bytes_per_token(header) == 2 * 2 * (16 + 16) * 2
    assert kv_bytes_per_token(header, "f32", "F16") == 2 * 2 * (16 * 4 + 16 * 2)
    assert kv_bytes_per_token(header, "q8_0", "q4_0") == 2 * 2 * 16 * (34 / 32 + 18 / 32)
    # llama-server refuses what it does not know
    assert kv_bytes_per_token(header, "novel", "") == kv_bytes_per_token(header)


def test_layers_without_heads_keep_none(header):
    hybrid = replace(header, head_count_kv=(0, 2))
    assert kv_bytes_per_token(hybrid) == kv_bytes_per_token(header) / 2
    assert kv_bytes_per_token(replace(header, head_count_kv=())) == 0


def test_windowed_layers_stop_growing(header):
    windowed = replace(header, windowed_layers=(True, False), sliding_window=1024)
    layer = kv_bytes_per_token(header) / 2
    assert kv_bytes_per_token(windowed) == layer
    assert fixed_kv_bytes(windowed, 512) == 512 * layer
    window = 1024 + MICRO_BATCH_TOKENS
    assert fixed_kv_bytes(windowed, 10**6) == window * layer
    assert fixed_kv_bytes(windowed, 10**6, slots=3) == 3 * window * layer
    assert fixed_kv_bytes(header, 10**6) == 0


def test_recurrent_state_is_kept_for_each_slot(header):
    recurrent = replace(header, recurrent_bytes=1000)
    assert fixed_kv_bytes(recurrent, 1, slots=4) == 4000
    estimate = estimate_bytes(recurrent, 100, slots=4)
    assert estimate.kv_bytes == 100 * kv_bytes_per_token(header) + 4000


def test_the_parts_add_up(header):
    estimate = estimate_bytes(header, 8192, slots=2, extra_weights_bytes=77)
    assert estimate.weights_bytes == header.tensor_bytes + 77
    parts = estimate.weights_bytes + estimate.kv_bytes + estimate.compute_bytes
    assert estimate.total_bytes == parts


@pytest.mark.parametrize(
    ("feed_forward", "context", "flash_attention", "measured_mib"),
    [
        (2048, 8192, True, 25.02),
        (8192, 8192, True, 61.02),
        (2048, 65536, True, 81.02),
        (2048, 8192, False, 151.01),
    ],
)
def test_scratch_space_is_what_llama_cpp_reserved(
    header, feed_forward, context, flash_attention, measured_mib
):
    """Sizes of "CPU compute buffer" that llama-server logged for such a model."""
    model = replace(
        header,
        embedding_length=512,
        feed_forward_length=feed_forward,
        head_count=(8, 8),
        vocab_size=440,
    )
    estimate = estimate_bytes(model, context, flash_attention=flash_attention)
    assert measured_mib * 0.95 * MIB < estimate.compute_bytes < measured_mib * 1.1 * MIB


def test_auto_is_the_least_of_trained_cap_and_what_fits(header):
    plenty = 2**50
    assert auto_context(header, plenty, 4) == 4096
    assert auto_context(replace(header, context_length=10**6), plenty, 4) == AUTO_CONTEXT_TOKENS
    assert auto_context(replace(header, context_length=0), plenty, 4) == UNKNOWN_CONTEXT_TOKENS
    assert auto_context(header, plenty, 4, most_tokens=1000) == 1000
    tight = estimate_bytes(header, 4 * 1280, slots=4).total_bytes
    assert auto_context(header, tight, 4) == 1280
    assert auto_context(header, tight - 1, 4) == 1024
    assert auto_context(header, 0, 4) == 0


def test_a_model_of_little_context_gets_all_of_it_or_nothing(header):
    small = replace(header, context_length=300)
    assert trained_context(small) == 300
    assert auto_context(small, 2**50, 1) == 300
    assert auto_context(small, 0, 1) == 0


@given(
    available=st.integers(0, 2**33),
    slots=st.integers(1, 16),
    trained=st.integers(0, 2**20),
    window=st.integers(0, 8192),
    kinds=st.sampled_from(["", "q8_0", "f32"]),
    flash_attention=st.booleans(),
)
def test_what_auto_chooses_fits_and_one_step_more_does_not(
    header, available, slots, trained, window, kinds, flash_attention
):
    model = replace(
        header,
        context_length=trained,
        sliding_window=window,
        windowed_layers=(window > 0, False),
    )
    options = {"cache_type_k": kinds, "flash_attention": flash_attention}

    def total(tokens):
        return estimate_bytes(model, tokens * slots, slots=slots, **options).total_bytes

    most = min(trained_context(model), AUTO_CONTEXT_TOKENS)
    chosen = auto_context(model, available, slots, **options)
    assert 0 <= chosen <= most
    if chosen:
        assert total(chosen) <= available
    if chosen < most:
        assert total(min(most, max(chosen + 256, MIN_CONTEXT_TOKENS))) > available
