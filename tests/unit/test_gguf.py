"""What a header says is read, what it lies about is refused, and neither costs much."""

from __future__ import annotations

import os
import struct
import tracemalloc
from pathlib import Path

import gguf as reference
import gguf_maker as make
import pytest
from gguf_maker import ARR, BOOL, F32, I32, STR, U8, U16, U32, U64, pair
from hypothesis import given, settings
from hypothesis import strategies as st

from llmd.models import binary, gguf_file
from llmd.models.ggml import FILE_TYPES, TENSOR_TYPES
from llmd.models.gguf import FileKind, GgufError, merge_shards, read_header


@pytest.fixture
def read(tmp_path):
    """Read the header of these bytes."""

    def _read(data):
        path = tmp_path / "m.gguf"
        path.write_bytes(data)
        return read_header(path)

    return _read


def refused(read, data):
    with pytest.raises(GgufError) as caught:
        read(data)
    return caught.value.message


# --- what is read --------------------------------------------------------------------------


def test_a_plain_model(read):
    header = read(make.model())
    assert header.kind is FileKind.MODEL
    assert (header.architecture, header.name) == ("llama", "A model")
    assert (header.context_length, header.embedding_length, header.block_count) == (4096, 64, 2)
    assert (header.head_count, header.head_count_kv) == ((4, 4), (2, 2))
    assert (header.key_length, header.value_length) == (16, 16)
    assert (header.vocab_size, header.parameters, header.tensor_bytes) == (3, 128, 512)
    assert header.tensor_count == 1
    assert header.quantisation == "F32"
    assert (header.shard_no, header.shard_count) == (0, 1)
    assert header.causal
    assert not any((header.embedding, header.rerank, header.chat_template, header.tools))


def test_version_2_is_read_too(read):
    data = make.gguf(make.model_pairs(), [make.tensor()], 128, version=2)
    assert read(data).architecture == "llama"


def test_what_the_reference_writer_writes_is_read(tmp_path):
    path = tmp_path / "m.gguf"
    writer = reference.GGUFWriter(path, "qwen3")
    writer.add_name("Qwen")
    writer.add_context_length(40960)
    writer.add_embedding_length(1024)
    writer.add_block_count(28)
    writer.add_feed_forward_length(3072)
    writer.add_head_count(16)
    writer.add_head_count_kv(8)
    writer.add_key_length(128)
    writer.add_value_length(96)
    writer.add_file_type(reference.LlamaFileType.MOSTLY_Q8_0)
    writer.add_expert_count(128)
    writer.add_expert_used_count(8)
    writer.add_token_list([f"t{i}" for i in range(500)])
    writer.add_token_scores([0.5] * 500)
    writer.add_chat_template("{% if tools %}{{ tools }}{% endif %}")
    writer.add_custom_alignment(64)
    import numpy as np

    writer.add_tensor("a", np.zeros((3, 64), np.float32))
    writer.add_tensor("b", np.zeros((4, 64), np.float16))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    header = read_header(path)
    assert (header.architecture, header.quantisation) == ("qwen3", "Q8_0")
    assert (header.key_length, header.value_length) == (128, 96)
    assert (header.vocab_size, header.parameters) == (500, 3 * 64 + 4 * 64)
    assert header.tensor_bytes == 3 * 64 * 4 + 4 * 64 * 2
    assert (header.expert_count, header.expert_used_count) == (128, 8)
    assert header.chat_template
    assert header.tools
    assert header.file_size_bytes == path.stat().st_size


def test_the_tables_agree_with_the_reference():
    for kind, sizes in reference.GGML_QUANT_SIZES.items():
        if kind.name != "Q8_1":  # never in a file; the reference has an old size of it
            assert TENSOR_TYPES[kind] == (kind.name, *sizes)
    for kind, label in FILE_TYPES.items():
        name = reference.LlamaFileType(kind).name.removeprefix("ALL_").removeprefix("MOSTLY_")
        assert name in (label, f"{label}_MOE")


def test_the_label_falls_back_to_what_most_elements_have(read):
    tensors = [make.tensor("a", (32,), 0), make.tensor("b", (256, 4), 12, 128)]
    assert read(make.gguf(make.model_pairs(), tensors, 128 + 4 * 144)).quantisation == "Q4_K"


@pytest.mark.parametrize(
    ("number", "name", "embedding", "rerank"),
    [(0, "none", False, False), (1, "mean", True, False), (2, "cls", True, False),
     (3, "last", True, False), (4, "rank", False, True)],
)  # fmt: skip
def test_pooling_says_what_a_model_is_for(read, number, name, embedding, rerank):
    header = read(make.model(pooling_type=number))
    assert (header.pooling, header.embedding, header.rerank) == (name, embedding, rerank)


def test_pooling_may_say_that_it_does_not_say(read):
    assert read(make.model(pair("llama.pooling_type", I32, -1))).pooling == ""


def test_an_encoder_is_for_embeddings_even_if_it_does_not_say_so(read):
    header = read(make.model(arch="nomic-bert"))
    assert not header.causal
    assert header.embedding
    stated = read(make.model(pair("qwen3.attention.causal", BOOL, False), arch="qwen3"))
    assert stated.embedding


@pytest.mark.parametrize(
    ("pairs", "kind"),
    [
        ([pair("general.architecture", STR, "clip")], FileKind.PROJECTOR),
        ([pair("general.architecture", STR, "x"), pair("general.type", STR, "mmproj")],
         FileKind.PROJECTOR),
        ([pair("general.architecture", STR, "llama"), pair("general.type", STR, "adapter")],
         FileKind.ADAPTER),
        ([pair("general.architecture", STR, "controlvector")], FileKind.ADAPTER),
        ([pair("general.type", STR, "imatrix")], FileKind.IMATRIX),
        ([pair("split.no", U16, 1), pair("split.count", U16, 2)], FileKind.SHARD),
    ],
)  # fmt: skip
def test_files_that_are_no_models_are_told_apart(read, pairs, kind):
    assert read(make.gguf(pairs)).kind is kind


def test_a_projector(read):
    header = read(make.projector(640, pair("clip.has_audio_encoder", BOOL, True)))
    assert (header.projection_length, header.vision, header.audio) == (640, True, True)


def test_numbers_for_each_layer(read):
    heads = pair("llama.attention.head_count_kv", ARR, (I32, [2, 0, 4, 8]))
    pairs = [p for p in make.model_pairs(block_count=3) if b"head_count_kv" not in p]
    header = read(make.gguf([*pairs, heads], [make.tensor()], 128))
    assert header.head_count_kv == (2, 0, 4)  # the fourth is for next-token prediction


def test_windowed_layers(read):
    window = {"attention__sliding_window": 512, "block_count": 6}
    stated = read(make.model(attention__sliding_window_pattern=3, **window))
    assert stated.windowed_layers == (True, True, False) * 2
    assert read(make.model(arch="gemma3", **window)).windowed_layers == (True,) * 5 + (False,)
    flags = pair("llama.attention.sliding_window_pattern", ARR, (BOOL, [True, False, True]))
    assert read(make.model(flags, **window)).windowed_layers == (
        True, False, True, False, False, False,
    )  # fmt: skip
    unknown = read(make.model(arch="novel", **window))
    assert unknown.windowed_layers == (False,) * 6
    assert unknown.sliding_window == 0


def test_recurrent_layers(read):
    ssm = {"ssm__state_size": 16, "ssm__inner_size": 128, "ssm__conv_kernel": 4}
    header = read(make.model(block_count=4, full_attention_interval=4, **ssm))
    assert header.head_count_kv == (0, 0, 0, 2)
    assert header.recurrent_bytes == 4 * 3 * (3 * 128 + 16 * 128)


def test_names_are_made_printable(read):
    data = make.gguf(
        [pair("general.architecture", STR, "llama"), pair("general.name", STR, "\x1b[2Jx\n" * 99)],
        [make.tensor()],
        128,
    )
    name = read(data).name
    assert name.startswith("[2Jx[2Jx")
    assert name.isprintable()
    assert len(name) == 200


def test_whole_numbers_written_as_floats_are_numbers(read):
    pairs = [p for p in make.model_pairs() if b"context_length" not in p]
    pairs.append(pair("llama.context_length", F32, 8192.0))
    assert read(make.gguf(pairs, [make.tensor()], 128)).context_length == 8192


def test_a_type_newer_than_the_table_is_no_fault(read):
    header = read(make.gguf(make.model_pairs(), [make.tensor(kind=99)], 640))
    assert (header.quantisation, header.tensor_bytes) == ("", 640)


def test_shards_are_summed_and_must_agree(read):
    parts = [read(data) for data in make.shards(3)]
    whole = merge_shards(parts)
    assert (whole.architecture, whole.tensor_count, whole.parameters) == ("llama", 3, 96)
    assert whole.file_size_bytes == sum(part.file_size_bytes for part in parts)
    with pytest.raises(GgufError, match="named shard 2 of 3 says inside that it is 3 of 3"):
        merge_shards([parts[0], parts[2], parts[1]])
    with pytest.raises(GgufError, match="1 of 1 says inside that it is 1 of 3"):
        merge_shards(parts[:1])


# --- what is refused -----------------------------------------------------------------------

LONG = 2**62


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "too short"),
        (b"GGUF" + bytes(8), "too short"),
        (make.gguf(magic=b"GGML"), "does not start with GGUF"),
        (b"<!DOCTYPE html><html>" * 9, "does not start with GGUF"),
        (make.gguf(version=1), "version 1"),
        (make.gguf(version=4), "version 4"),
        (make.gguf(version=3 << 24), "big-endian"),
        (make.gguf(counts=(LONG, 0)), "claims 4611686018427387904 tensors"),
        (make.gguf(counts=(0, LONG)), "claims 4611686018427387904 metadata pairs"),
        (make.gguf(counts=(0, 3)), "cut off"),
        (make.gguf([struct.pack("<Q", LONG)], counts=(0, 1)), "a metadata key claims"),
        (make.gguf([pair("a", U8, 1), pair("a", U8, 1)]), "'a' appears twice"),
        (make.gguf([make.text("a") + struct.pack("<I", 13)]), "value type 13"),
        (make.gguf([make.text("a") + struct.pack("<IIQ", ARR, 77, 1)]), "value type 77"),
        (make.gguf([pair("a", ARR, (ARR, []))]), "array of arrays"),
        (make.gguf([make.text("a") + struct.pack("<IIQ", ARR, STR, LONG)]), "cannot fit"),
        (make.gguf([make.text("a") + struct.pack("<IIQ", ARR, U64, LONG)]), "cut off"),
        (make.gguf([make.text("a") + struct.pack("<IQ", STR, LONG)]), "cut off"),
        (
            make.gguf([make.text("a") + struct.pack("<IIQQ", ARR, STR, 1, LONG)], data=99),
            "ends beyond the file",
        ),
        (make.gguf([], [make.tensor()], 128), "general.architecture is missing"),
        (make.gguf([pair("general.architecture", STR, "../x")]), "no plausible name"),
        (make.gguf([pair("general.architecture", U32, 1)]), "is not a string"),
        (make.gguf(make.model_pairs()), "holds no tensors"),
        (make.model(pair("general.alignment", U32, 33)), "no plausible power of two"),
        (make.model(pair("general.alignment", U32, 0)), "no plausible power of two"),
        (make.model(pair("general.file_type", STR, "x")), "no whole number"),
        (make.model(pair("llama.expert_count", F32, float("nan"))), "no whole number"),
        (make.model(pair("llama.expert_count", F32, 0.5)), "no whole number"),
        (make.model(pair("llama.expert_count", BOOL, True)), "no whole number"),
        (make.model(pair("llama.vocab_size", U64, LONG), block_count=5000), "5000 layers"),
        (make.model(pair("llama.attention.causal", U8, 1)), "neither true nor false"),
        (make.model(pooling_type=9), "pooling_type is 9"),
        (make.model(context_length=2**32 - 1), "'llama.context_length' is no whole number"),
        (make.gguf(make.model_pairs(), [make.tensor(shape=())]), "0 dimensions"),
        (make.gguf(make.model_pairs(), [make.tensor(shape=(1,) * 5)]), "5 dimensions"),
        (make.gguf(make.model_pairs(), [make.tensor(shape=(0,))]), "dimension of 0"),
        (make.gguf(make.model_pairs(), [make.tensor(shape=(LONG,))]), "not plausible"),
        (make.gguf(make.model_pairs(), [make.tensor(shape=(2**39, 2**39))]), "not plausible"),
        (make.gguf(make.model_pairs(), [make.tensor(shape=(31,), kind=8)]), "no multiple of 32"),
        (make.gguf(make.model_pairs(), [make.tensor("x" * 600)]), "a tensor name claims 600"),
        (make.gguf(make.model_pairs(), [make.tensor()], 127), "a download that is not finished"),
        (make.gguf(make.model_pairs(), [make.tensor(offset=LONG)], 128), "cut off"),
    ],
)  # fmt: skip
def test_faults_are_named(read, data, message):
    assert message in refused(read, data)


def test_a_list_that_does_not_cover_the_layers_is_refused(read):
    short = pair("llama.attention.head_count_kv", ARR, (I32, [2]))
    pairs = [p for p in make.model_pairs() if b"head_count_kv" not in p]
    message = refused(read, make.gguf([*pairs, short], [make.tensor()], 128))
    assert "does not hold 2 whole numbers" in message


def test_too_many_small_arrays_are_refused(read):
    pairs = [pair(f"k{i}", ARR, (U8, bytes(4096))) for i in range(17)]
    assert "too many arrays" in refused(read, make.gguf(pairs))


def test_budgets_hold(read, monkeypatch):
    strings = make.gguf([pair("a", ARR, (STR, ["x"] * 100))])
    monkeypatch.setattr(binary, "MAX_STRINGS", 99)
    assert "more than 99 strings" in refused(read, strings)
    monkeypatch.setattr(binary, "CHUNK_BYTES", 64)
    monkeypatch.setattr(binary, "MAX_READ_BYTES", 640)
    assert "of metadata" in refused(read, make.gguf([pair(f"k{i}", U8, 1) for i in range(99)]))


def test_an_architecture_or_name_of_a_megabyte_is_refused(read):
    data = make.gguf([pair("general.architecture", STR, "a" * (gguf_file.MAX_TEXT_BYTES + 1))])
    assert "longer than" in refused(read, data)


def test_a_chat_template_may_be_long(read):
    template = pair("tokenizer.chat_template", STR, "t" * (gguf_file.MAX_TEXT_BYTES + 1))
    assert read(make.model(template)).chat_template


# --- files that are none -------------------------------------------------------------------


def test_what_is_no_regular_file_is_refused_at_once(tmp_path):
    fifo = tmp_path / "fifo.gguf"
    os.mkfifo(fifo)
    for path, message in [
        (fifo, "not a regular file"),
        (tmp_path, "not a regular file"),
        (tmp_path / "absent", "No such file"),
        (Path("\0"), "cannot be read"),
        (Path("/dev/zero"), "not a regular file"),
    ]:
        with pytest.raises(GgufError, match=message):
            read_header(path)


def test_a_file_that_shrinks_meanwhile_is_refused(tmp_path, monkeypatch):
    path = tmp_path / "m.gguf"
    path.write_bytes(make.model())
    monkeypatch.setattr(os, "pread", lambda *_: b"")
    with pytest.raises(GgufError, match="shorter while it was read"):
        read_header(path)


# --- what it costs -------------------------------------------------------------------------


def peak_bytes(path):
    tracemalloc.start()
    try:
        read_header(path)
    except GgufError:
        pass
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    return peak


def test_big_vocabularies_are_passed_over(tmp_path):
    path = tmp_path / "m.gguf"
    tokens = pair("tokenizer.ggml.merges", ARR, (STR, ["ab cd"] * 100_000))
    scores = pair("tokenizer.ggml.scores", ARR, (F32, [0.5] * 100_000))
    path.write_bytes(make.model(tokens, scores))
    assert read_header(path).vocab_size == 3
    assert peak_bytes(path) < 2**20


@pytest.mark.parametrize("kind", [U8, STR, U64])
def test_a_huge_sparse_file_does_not_help_a_huge_claim(tmp_path, kind):
    path = tmp_path / "m.gguf"
    claim = make.text("a") + struct.pack("<IIQ", ARR, kind, 2**32)
    path.write_bytes(make.gguf([claim]))
    os.truncate(path, 2**40)
    with pytest.raises(GgufError):
        read_header(path)
    assert peak_bytes(path) < 4 * 2**20


def test_texts_that_nobody_asked_for_are_not_held(tmp_path):
    path = tmp_path / "m.gguf"
    path.write_bytes(make.model(*(pair(f"k{i}", STR, "x" * 100_000) for i in range(99))))
    assert peak_bytes(path) < 2**20


# --- fuzz ----------------------------------------------------------------------------------

SEEDS = [
    make.model(
        pair("tokenizer.chat_template", STR, "tools"),
        pair("llama.rope.scaling", ARR, (F32, [1.0, 2.0])),
        pair("llama.attention.sliding_window", U32, 128),
        pair("llama.ssm.state_size", U32, 16),
        pair("llama.pooling_type", I32, 1),
    ),
    make.projector(),
    *make.shards(2),
]
NUMBERS = st.sampled_from([0, 1, 2, 7, 8, 9, 13, 255, 2**31, 2**32 - 1, 2**63, 2**64 - 1])


@st.composite
def mutated(draw):
    data = bytearray(draw(st.sampled_from(SEEDS)))
    for _ in range(draw(st.integers(1, 6))):
        at = draw(st.integers(0, len(data)))
        match draw(st.integers(0, 4)):
            case 0:
                data[at : at + 1] = draw(st.binary(max_size=4))
            case 1:
                data[at : at + 8] = struct.pack("<Q", draw(NUMBERS))
            case 2:
                data[at : at + 4] = struct.pack("<I", draw(NUMBERS) & 0xFFFFFFFF)
            case 3:
                del data[at : at + draw(st.integers(1, 64))]
            case 4:
                other = draw(st.sampled_from(SEEDS))
                data[at:at] = other[draw(st.integers(0, len(other))) :][:64]
    return bytes(data)


@pytest.fixture(scope="module")
def scratch(tmp_path_factory):
    return tmp_path_factory.mktemp("fuzz") / "m.gguf"


@settings(max_examples=400, deadline=None)
@given(data=st.one_of(mutated(), st.binary(max_size=200).map(lambda tail: SEEDS[0][:24] + tail)))
def test_whatever_the_bytes_there_is_a_header_or_a_gguf_error(scratch, data):
    scratch.write_bytes(data)
    try:
        header = read_header(scratch)
    except GgufError:
        return
    assert header.file_size_bytes == len(data)
    assert len(header.head_count_kv) in (0, header.block_count)
    assert len(header.windowed_layers) == header.block_count
    assert header.name.isprintable()
