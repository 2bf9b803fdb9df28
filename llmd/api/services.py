"""What the HTTP side works with, handed in by the composition root."""

from __future__ import annotations

import itertools
import time
from dataclasses import dataclass, field

from llmd import errors
from llmd.api.auth import Principal, may_use_model
from llmd.api.gate import Gate
from llmd.api.schema import SchemaLimits
from llmd.config import Config
from llmd.core.ratelimit import RateLimiter
from llmd.core.tokens import TokenEstimator
from llmd.fleet import Fleet
from llmd.models.live import LiveCatalog
from llmd.models.model import CatalogModel
from llmd.observe.metrics import Metrics
from llmd.operations import Operations
from llmd.pump import Pump
from llmd.registry import Registry
from llmd.scheduler import Scheduler
from llmd.workers.supervisor import Supervisor
from llmd.workers.worker import Worker


@dataclass(slots=True)
class Services:
    """The rooms that requests pass through. Owned by the daemon; requests only use them.

    Attributes:
        preloading: Models named in `worker.preload` are still being loaded.
        draining: The daemon is on its way out.
        started_at: Unix seconds.
    """

    config: Config
    catalog: LiveCatalog
    fleet: Fleet
    gate: Gate
    schema_limits: SchemaLimits
    estimator: TokenEstimator
    limiter: RateLimiter
    registry: Registry
    scheduler: Scheduler
    supervisor: Supervisor
    metrics: Metrics
    pump: Pump = field(default_factory=Pump)
    preloading: bool = False
    draining: bool = False
    started_at: float = field(default_factory=time.time)

    @property
    def operations(self) -> Operations:
        """What operators do."""
        return Operations(
            catalog=self.catalog,
            fleet=self.fleet,
            registry=self.registry,
            scheduler=self.scheduler,
            supervisor=self.supervisor,
            max_drain_s=self.config.scheduler.max_drain_sec,
            draining=lambda: self.draining,
            hf_allow=self.config.llama.hf_allow,
        )

    def resolve(self, name: str | None, principal: Principal) -> CatalogModel:
        """Return the model that a request means.

        A name is only ever looked up. None, or an unknown one with
        `scheduler.unknown_model = "default"`, means the default model.

        Raises:
            ModelNotFound: There is no such model, or none at all.
            PermissionDenied: There is, but not for this key.
        """
        model = self.catalog.resolve(name) if name else None
        if model is None and (not name or self.config.scheduler.unknown_model == "default"):
            model = self.default_model()
        if model is None:
            allowed = (
                m.name for m in self.catalog.models if may_use_model(principal, m.name, m.aliases)
            )
            known = ", ".join(itertools.islice(allowed, 10))
            raise errors.ModelNotFound(
                f"the model {name[:200]!r} does not exist; known: {known or 'none'}"
                if name
                else "no model is configured; set llama.models_dir or add [[models]]",
                param="model",
            )
        return self.permitted(model, principal, param="model")

    @staticmethod
    def expect_loadable(model: CatalogModel) -> None:
        """Refuse a model whose file is known to be unusable: nothing waits, or goes, for it.

        Raises:
            ModelFailed: Its file cannot be loaded.
        """
        if model.fault:
            raise errors.ModelFailed(f"{model.name} could not be loaded: {model.fault}")

    @staticmethod
    def permitted(
        model: CatalogModel, principal: Principal, *, param: str | None = None
    ) -> CatalogModel:
        """Return a model that the caller may use.

        Raises:
            PermissionDenied: It is not on the key's list.
        """
        if not may_use_model(principal, model.name, model.aliases):
            raise errors.PermissionDenied(
                f"this key may not use the model {model.name!r}", param=param
            )
        return model

    def default_model(self) -> CatalogModel | None:
        """Return the configured default, else the active model, else the only or first one."""
        name = self.config.scheduler.default_model or self.scheduler.active_model
        found = self.catalog.resolve(name) if name else None
        if found is None and self.catalog.models:
            found = self.catalog.models[0]
        return found

    def serving(self, model: str) -> Worker | None:
        """Return the worker of `model` if it can be asked now."""
        worker = self.supervisor.worker(model)
        return worker if worker is not None and worker.upstream is not None else None

    def context_tokens(self, model: CatalogModel) -> int:
        """Return the context that one request to `model` can have now; 0 = unknown."""
        loaded = self.scheduler.context_tokens(model.name) if self.serving(model.name) else 0
        return loaded or self.fleet.planned_context(model)
