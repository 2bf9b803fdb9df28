"""Fixtures that everybody shares: the demo models, and the engines that llmd runs on."""

from __future__ import annotations

import os
import shutil
import sys
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from llmd.config.schema import Config, ModelConfig
from llmd.workers.command import WorkerSpec, build_spec
from llmd.workers.engine import Engine, EngineKind, embedded_available, find_engine

# the same examples every time, and none that fails because the machine is busy
settings.register_profile(
    "llmd",
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
settings.load_profile("llmd")

FAKE_WORKER = Path(__file__).parent / "fakes" / "fake_worker.py"
ENGINES = ("fake", "embedded", "llama-server")


@dataclass(frozen=True)
class Loadable:
    """A model as `build_spec` wants it, without a catalog."""

    name: str
    path: Path | None
    config: ModelConfig
    hf: None = None
    mmproj: None = None
    header: None = None


@dataclass(frozen=True)
class EngineUnderTest:
    """An engine, and how to start workers on it."""

    name: str
    engine: Engine

    @property
    def is_fake(self) -> bool:
        return self.name == "fake"

    def spec(self, model: Path, socket_path: Path, **settings) -> WorkerSpec:
        """Return how to start `model`; `settings` are those of `[[models]]`.

        `env` adds to the worker's environment, `context_tokens` is what one request may fill.
        """
        context_tokens = settings.pop("context_tokens", 1024)
        settings.setdefault("parallel", 2)
        settings.setdefault("threads", 1)
        config = ModelConfig(name=model.stem, path=str(model), **settings)
        return build_spec(
            self.engine,
            Loadable(model.stem, model, config),
            Config(),
            socket_path=socket_path,
            context_tokens=context_tokens,
        )

    def with_words(self, spec: WorkerSpec, *words: str) -> WorkerSpec:
        """Return `spec` with more words on its command line."""
        return replace(spec, argv=(*spec.argv, *words))


@pytest.fixture(scope="session")
def demo_models(tmp_path_factory):
    """The directory of demo-small.gguf, demo-large.gguf and demo-embed.gguf."""
    demo = pytest.importorskip("llmd.models.demo")
    directory = tmp_path_factory.mktemp("models")
    demo.write_demo_models(directory, embed=True)
    return directory


@pytest.fixture(scope="session")
def demo_small(demo_models):
    return demo_models / "demo-small.gguf"


@pytest.fixture(scope="session")
def demo_slow(tmp_path_factory):
    """A model whose tokens take some milliseconds each: deep, as width would cost memory."""
    demo = pytest.importorskip("llmd.models.demo")
    shape = demo.Shape(
        "demo-slow", 4096, width=64, layers=100, feed_forward=32, heads=1, kv_heads=1
    )
    return demo.write_model(tmp_path_factory.mktemp("slow"), shape)


def _fake() -> Engine:
    found = find_engine(str(FAKE_WORKER), gpu_present=False)
    return replace(found, argv=(sys.executable, str(FAKE_WORKER)))


def _embedded() -> Engine:
    if not embedded_available():
        pytest.skip("the embedded engine needs xllamacpp")
    # as `auto` finds it where there is nothing else
    engine = find_engine("auto", env={**os.environ, "PATH": ""}, gpu_present=False)
    if engine.kind is not EngineKind.EMBEDDED:
        pytest.skip(f"llmd chose {engine.kind.value} over the embedded engine")
    return engine


def _llama_server() -> Engine:
    path = os.environ.get("TEST_LLAMA_SERVER") or shutil.which("llama-server")
    if not path:
        pytest.skip("no llama-server on PATH, and TEST_LLAMA_SERVER names none")
    return find_engine(path, gpu_present=False)


_MAKERS = {"fake": _fake, "embedded": _embedded, "llama-server": _llama_server}


@pytest.fixture(scope="session")
def fake_engine():
    return EngineUnderTest("fake", _fake())


@pytest.fixture(scope="session", params=ENGINES)
def engine(request):
    """Each engine in turn; one that is not here is skipped and says why."""
    return EngineUnderTest(request.param, _MAKERS[request.param]())


@pytest.fixture(scope="session", params=ENGINES[1:])
def real_engine(request):
    """Each engine that runs llama.cpp."""
    return EngineUnderTest(request.param, _MAKERS[request.param]())


@pytest.fixture(scope="session")
def any_real_engine():
    """The first engine that runs llama.cpp: for what does not depend on which."""
    path = os.environ.get("TEST_LLAMA_SERVER") or shutil.which("llama-server")
    if path:
        return EngineUnderTest("llama-server", _llama_server())
    return EngineUnderTest("embedded", _embedded())
