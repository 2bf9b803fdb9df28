"""The embedded engine's command line: what it reads, refuses, and sets in llama.cpp."""

from __future__ import annotations

import json
from collections import Counter

import pytest

from llmd.workers import embedded
from llmd.workers.embedded import FlagError, build_params, parse
from llmd.workers.embedded_flags import GROUPS, Flag, Kind, by_name
from llmd.workers.engine import help_flags

FLAGS = [flag for group in GROUPS.values() for flag in group]
SETTINGS = [flag for title, group in GROUPS.items() if title != "program" for flag in group]
SAMPLES = {
    "--lora": "/a.gguf,/b.gguf",
    "--lora-scaled": "/a.gguf:0.5",
    "--tensor-split": "3,1",
    "--fit-target": "512,1024",
    "--override-tensor": "blk=CPU",
    "--n-cpu-moe": "2",
    "--rope-scale": "4",
    "--spec-type": "draft-simple,ngram-mod",
    "--chat-template-kwargs": '{"enable_thinking": false}',
    "--timeout": "60",
    "--samplers": "top_k;temperature",
    "--mmproj-device": "none",
    "--device-draft": "none",
}


@pytest.fixture(scope="module")
def engine():
    return pytest.importorskip("xllamacpp")


def sample(flag: Flag, tmp_path) -> str:
    for name in flag.names:
        if name in SAMPLES:
            return SAMPLES[name]
    if flag.kind is Kind.FILE:
        path = tmp_path / "text"
        path.write_text("{{ messages }}")
        return str(path)
    if flag.kind is Kind.CHOICE:
        return next(iter(flag.choices))
    return {Kind.INT: "3", Kind.FLOAT: "0.5", Kind.TEXT: "text", Kind.LIST: "a,b"}.get(
        flag.kind, ""
    )


def params(engine, *argv):
    return build_params(engine, parse(["-m", "/m.gguf", *argv]))


def status(capsys, *argv) -> tuple[int, str, str]:
    code = embedded.main(argv)
    captured = capsys.readouterr()
    return code, captured.out, captured.err


# --- the table -----------------------------------------------------------------------------


def test_no_spelling_is_there_twice():
    names = Counter(name for flag in FLAGS for name in flag.names)
    assert [name for name, count in names.items() if count > 1] == []


@pytest.mark.parametrize("flag", SETTINGS, ids=lambda flag: flag.names[-1])
def test_every_flag_reaches_llama_cpp(engine, flag, tmp_path):
    params(engine, flag.names[0], *([sample(flag, tmp_path)] if flag.takes_value else []))


@pytest.mark.parametrize(
    "flag", [flag for flag in SETTINGS if flag.choices], ids=lambda flag: flag.names[-1]
)
def test_every_word_of_a_choice_is_known_to_llama_cpp(engine, flag):
    for word in flag.choices:
        params(engine, flag.names[0], *([word] if flag.takes_value else []))


def test_its_help_names_every_flag_as_llama_servers_does(capsys):
    code, out, _ = status(capsys, "--help")
    assert code == 0
    assert help_flags(out) == set(by_name())


# --- reading -------------------------------------------------------------------------------


def test_flags_keep_their_order_and_the_last_one_wins(engine):
    assert params(engine, "-c", "100", "--ctx-size", "200").n_ctx == 200


def test_underscores_are_taken_for_dashes(engine):
    assert params(engine, "--ctx_size", "300").n_ctx == 300


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (("--bogus",), "error: invalid argument: --bogus"),
        (("model.gguf",), "error: invalid argument: model.gguf"),
        (("-m", "/m.gguf", "-c"), "error: expected value for argument: -c"),
        ((), "error: no model"),
    ],
)
def test_a_wrong_command_line_is_refused_in_llama_servers_words(capsys, argv, said):
    code, out, err = status(capsys, *argv)
    assert (code, out) == (1, "")
    assert err.startswith(said)


@pytest.mark.parametrize(
    "argv",
    [
        ("-c", "many"),
        ("-c", str(2**40)),
        ("--temp", "warm"),
        ("-ctk", "q99"),
        ("--fit", "maybe"),
        ("--spec-type", "magic"),
        ("--chat-template-kwargs", "[1]"),
        ("--chat-template-kwargs", "{"),
        ("--chat-template-file", "/nowhere/template"),
        ("--rope-scale", "0"),
        ("--tensor-split", ",".join(["1"] * 500)),
        ("--lora-scaled", "/a.gguf:much"),
        ("--seed", "-2"),
    ],
)
def test_a_wrong_value_is_refused(capsys, argv):
    code, _, err = status(capsys, "-m", "/m.gguf", *argv)
    assert code == 1
    assert err.startswith('error while handling argument "--')


# --- what is set ---------------------------------------------------------------------------


def test_without_flags_the_slots_are_llama_servers_choice(engine):
    assert params(engine).n_parallel == -1


def test_values_arrive(engine):
    found = params(
        engine,
        *("-np", "3", "-b", "256", "--host", "/run/w.sock", "--alias", "a name", "-ngl", "all"),
        *("--fit", "off", "--metrics", "--no-slots", "-ctk", "q8_0", "-fa", "on", "--no-jinja"),
        *("--tensor-split", "3,1", "--seed", "-1", "--no-mmap", "--no-kv-offload"),
    )
    assert found.n_parallel == 3
    assert found.n_batch == 256
    assert found.hostnames == ["/run/w.sock"]
    assert found.model_alias == {"a name"}
    assert found.n_gpu_layers == -1
    assert found.fit_params is False
    assert found.endpoint_metrics is True
    assert found.endpoint_slots is False
    assert found.cache_type_k == engine.ggml_type.GGML_TYPE_Q8_0
    assert found.flash_attn_type == engine.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_ENABLED
    assert found.use_jinja is False
    assert found.tensor_split[:3] == [3.0, 1.0, 0.0]
    assert found.sampling.seed == 2**32 - 1
    assert found.load_mode == engine.llama_load_mode.LLAMA_LOAD_MODE_NONE
    assert found.no_kv_offload is True


def test_a_users_sampling_goes_before_what_the_model_recommends(engine):
    bits = engine.common_params_sampling_config
    found = params(engine, "--temp", "0.5", "--top-k", "9")
    wanted = bits.COMMON_PARAMS_SAMPLING_CONFIG_TEMP | bits.COMMON_PARAMS_SAMPLING_CONFIG_TOP_K
    assert found.sampling.user_sampling_config == wanted
    assert params(engine).sampling.user_sampling_config == 0


def test_reranking_is_embedding_pooled_by_rank(engine):
    found = params(engine, "--reranking")
    assert found.embedding is True
    assert found.pooling_type == engine.llama_pooling_type.LLAMA_POOLING_TYPE_RANK


def test_adapters_draft_and_template_arguments(engine):
    found = params(
        engine,
        *("--lora-scaled", "/a.gguf:0.5,/b:c.gguf:2", "-md", "/draft.gguf"),
        *("--spec-type", "draft-simple", "--chat-template-kwargs", '{"think": false, "n": [1]}'),
    )
    assert [(one.path, one.scale) for one in found.lora_adapters] == [
        ("/a.gguf", 0.5),
        ("/b:c.gguf", 2.0),
    ]
    assert found.speculative.draft.mparams.path == "/draft.gguf"
    assert [kind.name for kind in found.speculative.types] == [
        "COMMON_SPECULATIVE_TYPE_DRAFT_SIMPLE"
    ]
    values = found.default_template_kwargs
    assert {name: json.loads(text) for name, text in values.items()} == {"think": False, "n": [1]}


def test_a_repository_counts_as_the_model(engine):
    found = build_params(engine, parse(["-hf", "org/repo:Q8_0"]))
    assert found.model.hf_repo == "org/repo:Q8_0"
    assert found.model.path


def test_a_setting_that_this_version_lacks_is_refused(engine):
    class Older:
        def CommonParams(self):  # noqa: N802
            return type("Params", (), {})()

    with pytest.raises(FlagError, match="not supported by this xllamacpp"):
        build_params(Older(), parse(["-m", "/m.gguf"]))


def test_version_and_devices_are_said_and_end_it(capsys):
    code, out, _ = status(capsys, "--version")
    assert code == 0
    assert out.startswith("version: xllamacpp ")
    code, out, _ = status(capsys, "--list-devices")
    assert code == 0
    assert out.startswith("Available devices:\n")
