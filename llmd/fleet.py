"""What the catalog, the engine and the config say together about each model's worker.

How it is started, with how much context, what it needs in memory, and how the workers' counters
become metrics. Nothing here waits.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterable
from itertools import pairwise
from pathlib import Path
from typing import Any

from llmd.config import Config
from llmd.core.lifecycle import WorkerState
from llmd.core.policy import PolicyStatistics
from llmd.core.settings import ModelInfo, PolicySettings
from llmd.errors import ModelNotFound, StartFailed
from llmd.models.gguf import GgufHeader
from llmd.models.live import Models
from llmd.models.memory import (
    AUTO_CONTEXT_TOKENS,
    MIN_CONTEXT_TOKENS,
    MemoryEstimate,
    auto_context,
    estimate_bytes,
    trained_context,
)
from llmd.models.model import CatalogModel
from llmd.observe.metrics import Metrics, QueueSample, WorkerSample
from llmd.workers.command import WorkerSpec, build_spec, slot_count
from llmd.workers.engine import Engine
from llmd.workers.worker import WorkerStatistics

_MIB = 1 << 20
PROMPT_CACHE_MIB = 8192  # what llama-server keeps of finished prompts unless it is told otherwise
LEAST_PROMPT_CACHE_MIB = 64  # less would not hold one prompt
_PROMPT_CACHES_SHARE = 4  # all prompt caches together take at most this part of the memory
_PROMPT_CACHE_CONTEXTS = 4  # of all slots together: more prompts than that are seldom come back to
_PROMPT_CACHE_FLAGS = ("--cache-ram", "-cram")


class Fleet:
    """Every model's worker, before and beside its process.

    Args:
        engine: Which llama-server.
        catalog: The models.
        config: All settings.
        socket_dir: Where workers listen.
        memory_bytes: What models may hold together; 0 = unknown.
        host_bytes: This box's own memory, which prompt caches live in, GPU or not.
    """

    def __init__(
        self,
        engine: Engine,
        catalog: Models,
        config: Config,
        socket_dir: Path,
        *,
        memory_bytes: int,
        host_bytes: int | None = None,
    ) -> None:
        self._engine = engine
        self._catalog = catalog
        self._config = config
        self._socket_dir = socket_dir
        self._memory_bytes = memory_bytes
        self._host_bytes = total_memory_bytes() if host_bytes is None else host_bytes
        self._known_contexts: dict[str, tuple[int, int]] = {}
        self._numbers = {model.name: index for index, model in enumerate(catalog.models)}
        self._counted: dict[str, tuple[Counter[str], Counter[str]]] = {}

    # --- context and memory -----------------------------------------------------------------

    def largest_context(self, model: CatalogModel) -> int:
        """Return the most tokens that one request could ever have; 0 = unknown."""
        return self._contexts(model)[1]

    def planned_context(self, model: CatalogModel) -> int:
        """Return what a load gives one request, unless a request needs more."""
        return self._contexts(model)[0]

    def memory(self, model: CatalogModel, context_tokens: int) -> int:
        """Estimate the bytes that a worker with this context for each slot will hold.

        Its prompt cache is not among them; see `prompt_cache_mib`.
        """
        if model.header is None:
            return model.size_bytes
        return self._estimate(model, model.header, context_tokens).total_bytes

    def _estimate(
        self, model: CatalogModel, header: GgufHeader, context_tokens: int
    ) -> MemoryEstimate:
        slots = slot_count(model.config)
        return estimate_bytes(
            header, context_tokens * slots, slots=slots, **self._memory_options(model)
        )

    def prompt_cache_mib(self, model: CatalogModel) -> int:
        """Return how much of this box's memory a worker may fill with finished prompts; -1 = all.

        llama-server's 8 GiB would be counted by nobody. So each model that may be loaded at once
        gets an equal part of a quarter of the memory, no more than the model itself leaves free,
        what a few times its slots' contexts take, and llama-server's own limit at most; an
        operator's `--cache-ram` wins. 0 where the engine has no such cache, or the model no use
        for it.
        """
        if not any(map(self._engine.knows, _PROMPT_CACHE_FLAGS)):
            return 0
        asked = _last_value((*self._config.llama.args, *model.config.args))
        if asked is not None:
            return asked
        if model.config.embedding or model.config.reranking:
            return 0
        at_once = self._config.worker.max_loaded or len(self._catalog.models)
        part = self._host_bytes // _PROMPT_CACHES_SHARE // max(1, at_once)
        mib = min(PROMPT_CACHE_MIB, part // _MIB)
        if model.header is not None:
            estimate = self._estimate(model, model.header, self.planned_context(model))
            of_use = _PROMPT_CACHE_CONTEXTS * estimate.kv_bytes // _MIB
            mib = min(mib, max(LEAST_PROMPT_CACHE_MIB, of_use))
            if self._memory_bytes:
                mib = min(mib, (self._memory_bytes - estimate.total_bytes) // _MIB)
        return mib if mib >= LEAST_PROMPT_CACHE_MIB else 0

    def reserve_bytes(self, model: CatalogModel) -> int:
        """Return by how much a worker may grow once it serves, as far as memory is planned."""
        return max(0, self.prompt_cache_mib(model)) * _MIB if self._memory_bytes else 0

    def _contexts(self, model: CatalogModel) -> tuple[int, int]:
        known = self._known_contexts.get(model.name)
        if known is None:
            known = self._known_contexts[model.name] = self._decide_contexts(model)
        return known

    def _decide_contexts(self, model: CatalogModel) -> tuple[int, int]:
        own = model.config.context_size
        if own != "auto":
            return own, own
        if model.header is None:
            return AUTO_CONTEXT_TOKENS, 0
        trained = trained_context(model.header)
        fits = trained
        if self._memory_bytes:
            fits = auto_context(
                model.header,
                self._memory_bytes,
                slot_count(model.config),
                most_tokens=trained,
                **self._memory_options(model),
            )
        # what does not fit at all is started with the least, and says so itself
        fits = fits or min(trained, MIN_CONTEXT_TOKENS)
        return min(fits, AUTO_CONTEXT_TOKENS), fits

    def _memory_options(self, model: CatalogModel) -> dict[str, Any]:
        own = model.config
        return {
            "cache_type_k": own.cache_type_k,
            "cache_type_v": own.cache_type_v,
            "flash_attention": own.flash_attention != "off",
            "extra_weights_bytes": model.extra_bytes,
        }

    # --- for the supervisor and the policy --------------------------------------------------

    def spec(self, name: str, context_tokens: int) -> WorkerSpec:
        """Return how to start the worker of `name` with at least so much context.

        Raises:
            LlmdError: It cannot be started: the file is bad, the engine cannot do what it needs.
        """
        model = self._catalog.resolve(name)
        if model is None:
            raise ModelNotFound(f"the model {name!r} does not exist")
        if model.fault:
            raise StartFailed(model.fault, permanent=True)
        return self.spec_of(model, context_tokens)

    def spec_of(self, model: CatalogModel, context_tokens: int) -> WorkerSpec:
        """Return how a model's worker would be started, whatever state its files are in.

        Raises:
            ConfigError: Each setting that the engine cannot do or that llmd cannot allow.
        """
        planned, largest = self._contexts(model)
        wanted = max(planned, context_tokens)
        number = self._numbers.setdefault(model.name, len(self._numbers))
        return build_spec(
            self._engine,
            model,
            self._config,
            socket_path=self._socket_dir / f"{number}.sock",
            context_tokens=min(wanted, largest) if largest else wanted,
            prompt_cache_mib=self.prompt_cache_mib(model),
        )

    def policy_settings(self) -> PolicySettings:
        """Return what decisions follow."""
        queue, scheduler, worker = self._config.queue, self._config.scheduler, self._config.worker
        return PolicySettings(
            max_size=queue.max_size,
            max_size_per_model=queue.max_size_per_model,
            max_tokens=queue.max_tokens,
            admin_quota=queue.admin_quota,
            max_share=queue.max_share,
            aging_sec=scheduler.aging_sec,
            max_delay_sec=scheduler.max_delay_sec,
            max_drain_sec=scheduler.max_drain_sec,
            min_residency_sec=scheduler.min_residency_sec,
            auto_switch=scheduler.auto_switch,
            max_loaded=worker.max_loaded,
            memory_bytes=self._memory_bytes,
        )

    def model_infos(self) -> list[ModelInfo]:
        """Return what the policy knows of each model beforehand."""
        return [self.model_info(model) for model in self._catalog.models]

    def model_info(self, model: CatalogModel) -> ModelInfo:
        """Return what the policy knows of one model beforehand."""
        planned, largest = self._contexts(model)
        own = model.config
        idle_s = own.idle_timeout_sec
        needs, reserve = self.memory(model, planned), self.reserve_bytes(model)
        grows = self.memory(model, largest) - needs if largest > planned else 0
        return ModelInfo(
            name=model.name,
            memory_bytes=needs + reserve if needs else 0,
            size_bytes=model.size_bytes,
            slots=slot_count(own),
            context_tokens=planned,
            bytes_per_token=grows / (largest - planned) if grows else 0.0,
            reserve_bytes=reserve,
            pinned=own.pinned,
            context_max=largest,
            idle_timeout_s=self._config.worker.idle_timeout_sec if idle_s < 0 else idle_s,
        )

    # --- for the metrics --------------------------------------------------------------------

    def count(self, worker: WorkerStatistics, metrics: Metrics) -> None:
        """Add what a worker's counters have gained since the last call."""
        starts, exits = self._counted.get(worker.model, (Counter(), Counter()))
        now = Counter(worker.starts), Counter(worker.exits)
        for reason in (now[0] - starts).elements():
            metrics.worker_started(worker.model, reason)
        for cause in (now[1] - exits).elements():
            metrics.worker_exited(worker.model, cause)
        self._counted[worker.model] = now

    @staticmethod
    def queue_sample(policy: PolicyStatistics) -> QueueSample:
        """Return the queue's gauges."""
        return QueueSample(
            depth={
                (model.model, priority): count
                for model in policy.models
                for priority, count in model.queued.items()
            },
            tokens=policy.queued_tokens,
            running={model.model: model.running for model in policy.models},
        )

    def worker_samples(
        self,
        workers: Iterable[WorkerStatistics],
        state_of: Callable[[CatalogModel], WorkerState],
    ) -> list[WorkerSample]:
        """Return every model's worker, those that never started too.

        Args:
            workers: What is known of those that did.
            state_of: Says of each model what everybody says of it; see `Operations.state_of`.
        """
        held = {worker.model: worker.memory_bytes for worker in workers if worker.memory_bytes}
        return [
            WorkerSample(
                model.name,
                state_of(model),
                {"cpu": held[model.name]} if model.name in held else {},
            )
            for model in self._catalog.models
        ]


def _last_value(args: tuple[str, ...]) -> int | None:
    """Return the MiB that an operator's own flags give to prompt caches; None = they do not."""
    found = None
    for word, value in pairwise(args):
        if word.replace("_", "-") in _PROMPT_CACHE_FLAGS:
            try:
                found = int(value)
            except ValueError:
                return 0  # llama-server will refuse it, and say so
    return found


def total_memory_bytes() -> int:
    """Return this box's memory; what GPUs have is not known here."""
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
