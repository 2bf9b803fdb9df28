"""From settings to a llama-server's command: pure, one function a group of flags.

What llmd relies on (the socket, the name, the context, the slots) is always given and cannot be
overridden; everything else in `args` comes last and wins.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from llmd.config.schema import Config, ModelConfig
from llmd.errors import ConfigError
from llmd.models.model import CatalogModel
from llmd.workers import loadreport

if TYPE_CHECKING:
    from llmd.workers.engine import Engine

AUTO_SLOTS = 4
"""Slots of a worker whose `parallel` is 0: what llama-server itself chooses."""

MAX_SOCKET_PATH_BYTES = 107
"""The longest path of a Unix socket on Linux, without its final null byte."""

_ALL_LAYERS = "999"  # understood by every version; "all" is not
_MAX_EMBEDDING_BATCH = 8192
# llama-server acts on a cancel between batches, and the other slots' tokens wait for the batch in
# hand; on a CPU its default of 2048 is half a minute of a 7B model, and no faster
_CPU_BATCH = 256

# What would take a worker away from llmd, or make it another one than it is taken for.
_RESERVED: Mapping[str, str] = {
    **dict.fromkeys(
        ("--host", "--port", "--reuse-port", "--api-prefix", "--ssl-key-file", "--ssl-cert-file"),
        "llmd reaches its workers over private sockets; see [server] for where it listens itself",
    ),
    **dict.fromkeys(("--api-key", "--api-key-file"), "keys are checked by llmd; see [[api_keys]]"),
    **dict.fromkeys(("-a", "--alias"), "the model's name is its `name`"),
    **dict.fromkeys(
        ("-m", "--model", "-mu", "--model-url", "-dr", "--docker-repo"), "the model is its `path`"
    ),
    **dict.fromkeys(("-hf", "-hfr", "--hf-repo", "-hff", "--hf-file"), "the model is its `hf`"),
    **dict.fromkeys(
        ("--models-dir", "--models-preset"), "models are llmd's to find; see llama.models_dir"
    ),
    "--no-slots": "llmd watches the slots",
}
# Names under which a daemon's own settings would reach a worker and change it: llama-server's
# and those of service managers. Keys of llmd are nobody else's business.
_SCRUBBED_PREFIXES = ("LLAMA_ARG_", "LLAMA_SERVER_", "AIP_", "LISTEN_", "WATCHDOG_", "LLMD_")
_SCRUBBED = frozenset({"LLAMA_API_KEY", "NOTIFY_SOCKET"})


@dataclass(frozen=True)
class ModelSource:
    """Where a worker's model comes from: a file, or a repository that it downloads itself.

    Attributes:
        path: The GGUF file (the first shard), absolute; "" when it comes from a repository.
        hf: `REPO[:QUANT]`; "" when it is a file.
    """

    path: str = ""
    hf: str = ""


@dataclass(frozen=True)
class WorkerSpec:
    """Everything that starts one llama-server.

    Attributes:
        model: The model's name, which the worker answers with.
        source: Where the model comes from; a worker that has loaded another one is a stranger.
        argv: The whole command, the program first.
        env: The whole environment.
        socket_path: Where it will listen. llama-server neither removes a socket that is already
            there nor its own when it ends: whoever starts it does both.
        context_tokens: Tokens that fit one request while every slot is in use. `/props` may
            answer less (never more than the model was trained for): what it says holds.
        slots: Slots it is expected to have; `total_slots` in `/props` holds.
        reports: It says how far its load is, and ends with its stdin; see `loadreport.py`.
    """

    model: str
    source: ModelSource
    argv: tuple[str, ...]
    env: Mapping[str, str]
    socket_path: Path
    context_tokens: int
    slots: int
    reports: bool = False

    @property
    def model_path(self) -> Path | None:
        """The file that its `/props` must name; None when it downloads the file itself."""
        return Path(self.source.path) if self.source.path else None


def slot_count(model: ModelConfig) -> int:
    """Return how many slots a worker of `model` gets, and so how many contexts need memory."""
    return model.parallel or AUTO_SLOTS


def build_spec(
    engine: Engine,
    model: CatalogModel,
    config: Config,
    *,
    socket_path: Path,
    context_tokens: int,
    prompt_cache_mib: int = -1,
    environ: Mapping[str, str] | None = None,
) -> WorkerSpec:
    """Return how to start a worker for `model`.

    Args:
        engine: The llama-server to start.
        model: The model, with its own settings.
        config: All settings.
        socket_path: Where it is to listen: absolute, ending in `.sock`, at most 107 bytes.
        context_tokens: What one request may fill; every slot gets this much.
        prompt_cache_mib: What it may keep of finished prompts; 0 = nothing, -1 = no limit is set
            here, and the operator's flags or llama-server's own hold.
        environ: The environment that the worker's is made from; default: the process's own.

    Raises:
        ConfigError: Each setting that this engine cannot do or that llmd cannot allow.
    """
    argv = _Command(engine, model.name)
    _check_socket(argv, socket_path)
    _add_model(argv, model, socket_path)
    _add_context(argv, model.config, context_tokens, (*config.llama.args, *model.config.args))
    _add_placement(argv, engine, model.config)
    _add_kind(argv, model)
    _add_batch(argv, engine, model, context_tokens)
    if prompt_cache_mib >= 0:
        argv.add("--cache-ram -cram", str(prompt_cache_mib))
    _add_service(argv, model.config, worker_ui=config.server.worker_ui)
    argv.extend("llama.args", config.llama.args)
    argv.extend(f"models.{model.name}.args", model.config.args)
    if argv.faults:
        raise ConfigError(argv.faults)
    own_env = {**loadreport.ENVIRONMENT, **model.config.env} if engine.reports else model.config.env
    return WorkerSpec(
        model=model.name,
        source=ModelSource(path=str(model.path or ""), hf=model.hf or ""),
        argv=tuple(argv.words),
        env=worker_environment(os.environ if environ is None else environ, own_env),
        reports=engine.reports,
        socket_path=socket_path,
        context_tokens=context_tokens,
        slots=slot_count(model.config),
    )


def worker_environment(environ: Mapping[str, str], own: Mapping[str, str]) -> dict[str, str]:
    """Return a worker's environment: the daemon's without what is not meant for it, then `own`."""
    kept = {
        name: value
        for name, value in environ.items()
        if name not in _SCRUBBED and not name.startswith(_SCRUBBED_PREFIXES)
    }
    return {**kept, **own}


class _Command:
    """A command that grows, and what is wrong with it."""

    def __init__(self, engine: Engine, model: str) -> None:
        self.words = list(engine.argv)
        self.faults: list[str] = []
        self._engine = engine
        self._model = model

    def add(self, names: str, *values: str) -> bool:
        """Add the first spelling in `names` that the engine knows; return False if none is."""
        for name in names.split():
            if self._engine.knows(name):
                self.words += [name, *values]
                return True
        return False

    def ask(self, key: str, names: str, *values: str) -> None:
        """Add what the user asked for with `key`; an engine that cannot is a fault."""
        if not self.add(names, *values):
            self.faults.append(
                f"models.{self._model}.{key}: this llama-server ({self._engine.version}) does not "
                f"know {names.split()[-1]}: install a newer one or remove the key"
            )

    def extend(self, key: str, args: tuple[str, ...]) -> None:
        """Add the user's own `args`, unchanged."""
        for word in args:
            # llama-server takes --like_this too
            flag = word.replace("_", "-") if word.startswith("--") else word
            if flag in _RESERVED:
                self.faults.append(f"{key}: {flag} is not yours to set: {_RESERVED[flag]}")
        self.words += args


def _check_socket(argv: _Command, path: Path) -> None:
    length = len(os.fsencode(path))
    if path.suffix != ".sock" or not path.is_absolute():
        argv.faults.append(f"{path}: a worker's socket must be an absolute path in .sock")
    if length > MAX_SOCKET_PATH_BYTES:
        argv.faults.append(
            f"{path}: {length} bytes are too long for a Unix socket (at most "
            f"{MAX_SOCKET_PATH_BYTES}): choose a shorter runtime directory"
        )


def _add_model(argv: _Command, model: CatalogModel, socket_path: Path) -> None:
    if model.path is not None:
        argv.add("--model", str(model.path))
    else:
        argv.ask("hf", "-hf --hf-repo", model.hf or "")
    argv.add("--alias", model.name)
    argv.add("--host", str(socket_path))
    own = model.config
    if own.lora:
        argv.ask("lora", "--lora", ",".join(own.lora))
    if own.draft:
        argv.ask("draft", "-md --model-draft --spec-draft-model", own.draft)
        argv.add("--spec-type", "draft-simple")  # without it, newer ones load the draft in vain


def _add_context(
    argv: _Command, own: ModelConfig, context_tokens: int, args: tuple[str, ...]
) -> None:
    """Add the context so that one request has all of its `context_tokens`, however many run.

    `-c` counts all slots together, and where they share one KV cache, one request may take more
    than its part of it and starve the others; so each slot's own limit is given where the engine
    has it. It sizes the cache too, for however many slots llama-server chooses.
    """
    total_given = not {"-c", "--ctx-size"}.isdisjoint(args)
    limited = not total_given and argv.add("--kv-unified-per-slot", str(context_tokens))
    if own.parallel or not limited:
        argv.add("--parallel", str(slot_count(own)))
        argv.add("--ctx-size", str(context_tokens * slot_count(own)))
    # llmd decides what fits: fitting would shrink the context and not say so
    argv.add("--fit", "off")
    for key, names in (
        ("cache_type_k", "--cache-type-k"),
        ("cache_type_v", "--cache-type-v"),
    ):
        value = getattr(own, key)
        if value:
            argv.ask(key, names, value)
    if own.flash_attention != "auto":
        argv.ask("flash_attention", "--flash-attn", own.flash_attention)


def _add_placement(argv: _Command, engine: Engine, own: ModelConfig) -> None:
    if own.threads:
        argv.ask("threads", "--threads", str(own.threads))
    if own.gpu_layers >= 0:
        argv.ask("gpu_layers", "-ngl --gpu-layers --n-gpu-layers", str(own.gpu_layers))
    elif engine.gpu or not engine.knows("--fit"):
        # the others take all layers by themselves, and without a GPU complain of the flag
        argv.add("-ngl --gpu-layers --n-gpu-layers", _ALL_LAYERS)
    if own.tensor_split:
        argv.ask("tensor_split", "--tensor-split", own.tensor_split)


def _add_kind(argv: _Command, model: CatalogModel) -> None:
    own = model.config
    mmproj = own.mmproj or str(model.mmproj or "")
    if mmproj:
        argv.ask("mmproj", "--mmproj", mmproj)
    if own.embedding:
        argv.ask("embedding", "--embeddings --embedding")
    if own.reranking:
        argv.ask("reranking", "--reranking --rerank")
    if own.pooling:
        argv.ask("pooling", "--pooling", own.pooling)


def _add_batch(argv: _Command, engine: Engine, model: CatalogModel, context_tokens: int) -> None:
    """Add the batch size where llama-server's default does not do.

    An embedding's input must fit one batch, unless the model is causal and pooled by its last
    token: the default would refuse inputs of more than 512 tokens. Images must fit one too, so
    models with a projector keep the default.
    """
    own = model.config
    if own.embedding or own.reranking:
        pooling = own.pooling or (model.header.pooling if model.header else "")
        if pooling != "last" or (model.header is not None and not model.header.causal):
            tokens = str(min(max(context_tokens, 512), _MAX_EMBEDDING_BATCH))
            argv.add("--batch-size", tokens)
            argv.add("--ubatch-size", tokens)
    elif not (own.mmproj or model.mmproj) and (not engine.gpu or own.gpu_layers == 0):
        argv.add("--batch-size", str(_CPU_BATCH))


def _add_service(argv: _Command, own: ModelConfig, *, worker_ui: bool) -> None:
    argv.add("--jinja")
    if own.chat_template:
        argv.ask("chat_template", "--chat-template", own.chat_template)
    argv.add("--slots")
    argv.add("--metrics")
    if not worker_ui:
        argv.add("--no-ui --no-webui")
