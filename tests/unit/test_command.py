"""What a llama-server is started with, for each setting and for old and new engines."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from llmd.config.schema import Config, Llama, ModelConfig, Server
from llmd.errors import ConfigError
from llmd.models.model import CatalogModel
from llmd.workers.command import (
    AUTO_SLOTS,
    MAX_SOCKET_PATH_BYTES,
    ModelSource,
    build_spec,
    slot_count,
    worker_environment,
)
from llmd.workers.embedded_flags import by_name
from llmd.workers.engine import Engine, EngineKind

SOCKET = Path("/run/llmd/w1.sock")
NEW = Engine(("llama-server",), EngineKind.PATH, "9999", frozenset(by_name()))
OLD_FLAGS = frozenset(
    {"-m", "--model", "--host", "--alias", "--ctx-size", "--parallel", "--threads"}
    | {"-ngl", "--gpu-layers", "--metrics"}
)
OLD = Engine(("/old/llama-server",), EngineKind.PATH, "1234", OLD_FLAGS)


def model(**settings) -> CatalogModel:
    config = ModelConfig(name="m", path="/models/m.gguf", **settings)
    path = Path("/models/m.gguf")
    return CatalogModel("m", (), path, None, (path,), None, None, config)


def spec(subject=None, *, engine=NEW, context_tokens=1000, config=None, environ=None):
    return build_spec(
        engine,
        subject or model(),
        config or Config(),
        socket_path=SOCKET,
        context_tokens=context_tokens,
        environ=environ or {},
    )


def value(argv, flag):
    """The word after the last `flag`, which is the one that counts."""
    places = [place for place, word in enumerate(argv) if word == flag]
    return argv[places[-1] + 1] if places else None


def faults(*args, **kwargs) -> str:
    with pytest.raises(ConfigError) as caught:
        spec(*args, **kwargs)
    return "\n".join(caught.value.faults)


# --- what is always there ------------------------------------------------------------------


def test_names_the_model_the_socket_and_nothing_else_to_listen_on():
    found = spec()
    assert found.argv[0] == "llama-server"
    assert value(found.argv, "--model") == "/models/m.gguf"
    assert value(found.argv, "--alias") == "m"
    assert value(found.argv, "--host") == str(SOCKET)
    assert "--port" not in found.argv
    assert found.socket_path == SOCKET
    assert found.source == ModelSource(path="/models/m.gguf")
    assert found.model_path == Path("/models/m.gguf")


def test_turns_on_what_llmd_reads_and_off_what_it_decides_itself():
    argv = spec().argv
    assert {"--slots", "--metrics", "--jinja"} <= set(argv)
    assert value(argv, "--fit") == "off"


def test_an_engine_that_can_is_asked_how_far_its_load_is():
    asked = {"LLAMA_SERVER_ROUTER_PORT": "99", "PATH": "/bin"}
    silent = spec(environ=asked)
    assert (silent.reports, dict(silent.env)) == (False, {"PATH": "/bin"})
    found = spec(engine=replace(NEW, reports=True), environ=asked)
    assert found.reports
    assert dict(found.env) == {"LLAMA_SERVER_ROUTER_PORT": "1", "PATH": "/bin"}


@pytest.mark.parametrize(("mib", "word"), [(-1, None), (0, "0"), (512, "512")])
def test_the_prompt_cache_is_limited_where_the_engine_has_one(mib, word):
    def made(engine):
        return build_spec(
            engine, model(), Config(), socket_path=SOCKET, context_tokens=9, prompt_cache_mib=mib,
            environ={},
        ).argv  # fmt: skip

    assert value(made(NEW), "--cache-ram") == word
    assert "--cache-ram" not in made(OLD)


def test_a_repository_is_left_to_the_engine_to_fetch():
    config = ModelConfig(name="m", hf="org/repo:Q4_K_M")
    found = spec(CatalogModel("m", (), None, "org/repo:Q4_K_M", (), None, None, config))
    assert value(found.argv, "-hf") == "org/repo:Q4_K_M"
    assert "--model" not in found.argv
    assert found.model_path is None


@pytest.mark.parametrize(
    "path",
    ["/run/llmd/worker", "relative.sock", "/" + "x" * (MAX_SOCKET_PATH_BYTES - 5) + ".sock"],
)
def test_a_socket_path_that_cannot_work_is_refused(path):
    with pytest.raises(ConfigError):
        build_spec(NEW, model(), Config(), socket_path=Path(path), context_tokens=1, environ={})


def test_the_longest_socket_path_is_taken():
    path = Path("/" + "x" * (MAX_SOCKET_PATH_BYTES - 6) + ".sock")
    build_spec(NEW, model(), Config(), socket_path=path, context_tokens=1, environ={})


# --- context and slots ---------------------------------------------------------------------


def test_the_engine_chooses_the_slots_and_each_has_the_whole_context():
    found = spec(context_tokens=1000)
    assert value(found.argv, "--kv-unified-per-slot") == "1000"
    assert "--ctx-size" not in found.argv
    assert "--parallel" not in found.argv
    assert found.slots == AUTO_SLOTS


def test_chosen_slots_multiply_the_context():
    found = spec(model(parallel=3), context_tokens=1000)
    assert value(found.argv, "--parallel") == "3"
    assert value(found.argv, "--ctx-size") == "3000"
    assert value(found.argv, "--kv-unified-per-slot") == "1000"
    assert found.slots == slot_count(model(parallel=3).config) == 3


def test_an_engine_without_a_limit_for_each_slot_gets_a_fixed_share_for_each():
    found = spec(engine=OLD, context_tokens=1000)
    assert value(found.argv, "--parallel") == str(AUTO_SLOTS)
    assert value(found.argv, "--ctx-size") == str(1000 * AUTO_SLOTS)


@pytest.mark.parametrize("where", ["llama", "model"])
def test_a_total_in_args_is_not_cut_by_a_limit_of_ours(where):
    args = ("-c", "9000")
    if where == "llama":
        argv = spec(config=Config(llama=Llama(args=args))).argv
    else:
        argv = spec(model(args=args)).argv
    assert "--kv-unified-per-slot" not in argv
    assert argv[-2:] == args


# --- each key ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("key", "given", "flag", "word"),
    [
        ("threads", 7, "--threads", "7"),
        ("gpu_layers", 20, "-ngl", "20"),
        ("gpu_layers", 0, "-ngl", "0"),
        ("tensor_split", "3,1", "--tensor-split", "3,1"),
        ("cache_type_k", "q8_0", "--cache-type-k", "q8_0"),
        ("cache_type_v", "q4_0", "--cache-type-v", "q4_0"),
        ("flash_attention", "on", "--flash-attn", "on"),
        ("flash_attention", "off", "--flash-attn", "off"),
        ("pooling", "mean", "--pooling", "mean"),
        ("mmproj", "/models/mmproj.gguf", "--mmproj", "/models/mmproj.gguf"),
        ("draft", "/models/draft.gguf", "-md", "/models/draft.gguf"),
        ("lora", ("/a.gguf", "/b.gguf"), "--lora", "/a.gguf,/b.gguf"),
        ("chat_template", "chatml", "--chat-template", "chatml"),
    ],
)
def test_a_key_becomes_its_flag(key, given, flag, word):
    assert value(spec(model(**{key: given})).argv, flag) == word


@pytest.mark.parametrize(
    ("key", "flag"), [("embedding", "--embeddings"), ("reranking", "--reranking")]
)
def test_a_switch_becomes_its_flag(key, flag):
    assert flag in spec(model(**{key: True})).argv


@pytest.mark.parametrize(
    "settings",
    [
        {"cache_type_k": "q8_0"},
        {"cache_type_v": "q8_0"},
        {"flash_attention": "on"},
        {"tensor_split": "1,1"},
        {"embedding": True},
        {"reranking": True},
        {"pooling": "cls"},
        {"mmproj": "/p.gguf"},
        {"draft": "/d.gguf"},
        {"lora": ("/l.gguf",)},
        {"chat_template": "chatml"},
    ],
)
def test_a_key_that_the_engine_cannot_do_is_a_fault_that_names_it(settings):
    said = faults(model(**settings), engine=OLD)
    assert f"models.m.{next(iter(settings))}" in said
    assert "1234" in said


def test_all_faults_come_at_once():
    said = faults(model(mmproj="/p.gguf", pooling="cls", args=("--port", "1")), engine=OLD)
    assert said.count("\n") == 2


def test_an_old_engine_gets_only_flags_that_it_knows():
    argv = spec(model(threads=2), engine=OLD).argv
    assert {word for word in argv if word.startswith("-")} <= OLD_FLAGS


def test_a_draft_model_is_switched_on():
    # newer engines load a draft model and leave it idle unless told how to draft
    assert value(spec(model(draft="/d.gguf")).argv, "--spec-type") == "draft-simple"


def test_the_catalogs_projector_is_used_unless_the_entry_names_one():
    own = model()
    beside = CatalogModel(
        "m", (), own.path, None, own.shards, Path("/models/mmproj-m.gguf"), None, own.config
    )
    assert value(spec(beside).argv, "--mmproj") == "/models/mmproj-m.gguf"


def test_the_worker_ui_can_be_left_out():
    assert "--no-ui" not in spec().argv
    assert "--no-ui" in spec(config=Config(server=Server(worker_ui=False))).argv


# --- GPUs and batches ----------------------------------------------------------------------


def engine_with(*, gpu):
    return Engine(NEW.argv, NEW.kind, NEW.version, NEW.flags, gpu=gpu)


def test_all_layers_go_to_a_gpu():
    assert value(spec(engine=engine_with(gpu=True)).argv, "-ngl") == "999"


def test_without_a_gpu_no_flag_makes_the_engine_complain():
    assert "-ngl" not in spec(engine=engine_with(gpu=False)).argv


def test_prefill_on_a_cpu_comes_in_batches_that_a_cancel_need_not_wait_for_long():
    assert value(spec(engine=engine_with(gpu=False)).argv, "--batch-size") == "256"
    assert value(spec(model(gpu_layers=0), engine=engine_with(gpu=True)).argv, "--batch-size")
    assert "--batch-size" not in spec(engine=engine_with(gpu=True)).argv
    # an image must fit one batch
    assert "--batch-size" not in spec(model(mmproj="/p.gguf")).argv


def test_an_embedding_input_as_long_as_the_context_fits_one_batch():
    argv = spec(model(embedding=True), context_tokens=2048).argv
    assert value(argv, "--batch-size") == value(argv, "--ubatch-size") == "2048"
    argv = spec(model(embedding=True), context_tokens=300).argv
    assert value(argv, "--ubatch-size") == "512"


def test_an_embedding_model_that_reads_in_parts_keeps_its_batches():
    assert "--ubatch-size" not in spec(model(embedding=True, pooling="last")).argv


# --- the user's own ------------------------------------------------------------------------


def test_args_come_last_the_models_after_the_general_ones():
    config = Config(llama=Llama(args=("--threads", "1")))
    argv = spec(model(threads=4, args=("--threads", "9", "--made-up")), config=config).argv
    assert argv[-5:] == ("--threads", "1", "--threads", "9", "--made-up")


@pytest.mark.parametrize(
    "flag", ["--host", "--port", "-m", "--alias", "--api-key", "--api_key", "--no-slots", "-hf"]
)
def test_what_would_take_a_worker_away_is_refused(flag):
    assert "models.m.args" in faults(model(args=(flag, "x")))
    assert "llama.args" in faults(config=Config(llama=Llama(args=(flag, "x"))))


def test_the_environment_is_the_daemons_without_what_would_change_a_worker():
    environ = {
        "PATH": "/bin",
        "HF_TOKEN": "t",
        "CUDA_VISIBLE_DEVICES": "0",
        "LLAMA_CACHE": "/cache",
        "LLAMA_ARG_PORT": "1",
        "LLAMA_API_KEY": "k",
        "LLAMA_SERVER_ROUTER_PORT": "1",
        "AIP_HTTP_PORT": "1",
        "NOTIFY_SOCKET": "/n",
        "LISTEN_FDS": "1",
        "WATCHDOG_USEC": "1",
        "LLMD_API_KEYS": "secret",
    }
    assert worker_environment(environ, {}) == {
        "PATH": "/bin",
        "HF_TOKEN": "t",
        "CUDA_VISIBLE_DEVICES": "0",
        "LLAMA_CACHE": "/cache",
    }


def test_a_models_env_wins_and_is_not_scrubbed():
    environ = {"PATH": "/bin", "X": "1"}
    found = spec(model(env={"X": "2", "LLAMA_ARG_POLL": "0"}), environ=environ)
    assert found.env == {"PATH": "/bin", "X": "2", "LLAMA_ARG_POLL": "0"}
