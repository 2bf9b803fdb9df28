"""What is planned for each model: memory, prompt cache, how it grows with its context."""

from __future__ import annotations

from pathlib import Path

import pytest

from llmd.config import Config, ModelConfig
from llmd.config.schema import Llama, WorkerSettings
from llmd.fleet import Fleet
from llmd.models.catalog import Catalog
from llmd.workers.engine import Engine, EngineKind

GIB = 1 << 30
FLAGS = frozenset({"--host", "--model", "--ctx-size", "--parallel", "--alias", "--cache-ram"})


@pytest.fixture
def fleet_of(demo_models):
    def make(memory=64 * GIB, *, flags=FLAGS, host=None, args=(), at_once=1, **model):
        name = model.pop("file", "demo-small")
        entry = ModelConfig(name="m", path=str(demo_models / f"{name}.gguf"), **model)
        config = Config(
            models=(entry,),
            llama=Llama(args=tuple(args)),
            worker=WorkerSettings(max_loaded=at_once),
        )
        catalog = Catalog.load(config.models, None)
        assert not catalog.faults
        fleet = Fleet(
            Engine(("llama-server",), EngineKind.PATH, "1", flags),
            catalog,
            config,
            Path("/run/llmd"),
            memory_bytes=memory,
            host_bytes=memory if host is None else host,
        )
        return fleet, catalog.models[0]

    return make


@pytest.mark.parametrize(
    ("made", "mib"),
    [
        ({}, 8192),  # llama-server's own limit
        ({"memory": 8 * GIB}, 2048),
        ({"memory": 8 * GIB, "at_once": 4}, 512),
        ({"memory": 8 * GIB, "at_once": 0}, 2048),  # as many as there are: one
        ({"memory": 128 << 20}, 0),  # too little to be of use
        ({"memory": 0, "host": 8 * GIB}, 2048),  # what a GPU holds is not known, the box's own is
        ({"flags": FLAGS - {"--cache-ram"}}, 0),
        ({"file": "demo-embed"}, 0),
        ({"args": ["--cache-ram", "100"]}, 100),
        ({"args": ["--cache_ram", "100"], "memory": 8 * GIB}, 100),
        ({"args": ["-cram", "100"], "memory": 8 * GIB}, 100),
        ({"args": ["-cram", "-1"]}, -1),
        ({"args": ["-cram", "many"]}, 0),
    ],
)
def test_a_prompt_cache_gets_what_can_be_spared(fleet_of, monkeypatch, made, mib):
    monkeypatch.setattr("llmd.fleet._PROMPT_CACHE_CONTEXTS", 1 << 20)  # what is of use, aside
    fleet, model = fleet_of(**made)
    assert fleet.prompt_cache_mib(model) == mib


def test_a_prompt_cache_is_no_larger_than_is_of_use(fleet_of):
    fleet, model = fleet_of()
    assert fleet.prompt_cache_mib(model) == 64  # what is least of use
    fleet, model = fleet_of(context_size=131_072)
    assert 64 < fleet.prompt_cache_mib(model) < 8192


def test_a_models_own_flags_go_before_those_of_all(demo_models):
    entry = ModelConfig(name="m", path=str(demo_models / "demo-small.gguf"), args=("-cram", "7"))
    config = Config(models=(entry,), llama=Llama(args=("-cram", "100")))
    catalog = Catalog.load(config.models, None)
    engine = Engine(("llama-server",), EngineKind.PATH, "1", FLAGS)
    fleet = Fleet(engine, catalog, config, Path("/run/llmd"), memory_bytes=GIB)
    assert fleet.prompt_cache_mib(catalog.models[0]) == 7


def test_the_prompt_cache_is_planned_for_and_told_to_the_worker(fleet_of):
    fleet, model = fleet_of(memory=8 * GIB)
    (info,) = fleet.model_infos()
    assert info.reserve_bytes == 64 << 20
    assert info.memory_bytes == fleet.memory(model, info.context_tokens) + (64 << 20)
    words = fleet.spec("m", 0).argv
    assert words[words.index("--cache-ram") + 1] == "64"


def test_an_operators_flag_comes_last_and_so_wins(fleet_of):
    fleet, _ = fleet_of(args=("--cache-ram", "77"))
    words = fleet.spec("m", 0).argv
    assert words[-2:] == ("--cache-ram", "77")
    assert "64" not in words


def test_on_a_gpu_no_memory_is_planned_for_the_cache(fleet_of):
    fleet, _ = fleet_of(memory=0, host=8 * GIB)
    assert fleet.model_infos()[0].reserve_bytes == 0


def test_what_more_context_costs_is_told_to_the_policy(fleet_of):
    fleet, model = fleet_of(memory=8 * GIB, context_size="auto")
    (info,) = fleet.model_infos()
    assert info.size_bytes == model.size_bytes
    assert info.slots == 4
    if info.context_max > info.context_tokens:
        more = fleet.memory(model, info.context_max) - fleet.memory(model, info.context_tokens)
        tokens = info.context_max - info.context_tokens
        assert info.bytes_per_token == pytest.approx(more / tokens)
    else:
        assert info.bytes_per_token == 0
    assert info.load_s == 0  # nobody has measured it
