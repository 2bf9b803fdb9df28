"""The composition root: who owns what, the order of starting, and the order of ending.

Ending: not ready any more, nothing admitted, what is queued is turned away, what runs may finish
until the drain is over, HTTP stops, workers stop side by side, and last the admin socket, where
operators watch. A second signal skips the waiting.
"""

from __future__ import annotations

import logging
import math
import os
import signal
from collections import Counter
from collections.abc import AsyncIterator, Iterable
from dataclasses import dataclass
from pathlib import Path

import trio

from llmd import __version__
from llmd.admin.peercred import Rights
from llmd.admin.rooms import Rooms
from llmd.admin.server import AdminServer, socket_path
from llmd.api.app import build_app
from llmd.api.auth import Authenticator
from llmd.api.connection import DROPPED
from llmd.api.gate import Gate
from llmd.api.origin import TrustedProxies, listen_allowed
from llmd.api.routes import health
from llmd.api.schema import SchemaLimits
from llmd.api.server import HttpServer
from llmd.api.services import Services
from llmd.api.tls import server_context
from llmd.config import Config
from llmd.config.places import runtime_dir
from llmd.core import policy
from llmd.core.events import Action, Rule, StopWorker, SwitchRequested, WorkerChanged
from llmd.core.lifecycle import RequestState, WorkerState
from llmd.core.ratelimit import RateLimiter
from llmd.core.recent import Recent
from llmd.core.record import CancelCause, RequestRecord
from llmd.core.tokens import TokenEstimator
from llmd.errors import ConfigError, LlmdError
from llmd.fleet import Fleet, total_memory_bytes
from llmd.models.catalog import Catalog
from llmd.models.live import LiveCatalog
from llmd.observe import sdnotify
from llmd.observe.log import log
from llmd.observe.metrics import Metrics
from llmd.registry import Registry
from llmd.scheduler import Scheduler
from llmd.workers.engine import Engine, find_engine
from llmd.workers.settings import WorkerSettings
from llmd.workers.supervisor import Supervisor

_log = logging.getLogger("llmd")


@dataclass(frozen=True)
class Bound:
    """Where a started daemon listens.

    Attributes:
        addresses: (host, port) of each listener.
        url: The base URL for a client on this box.
    """

    addresses: tuple[tuple[str, int], ...]
    url: str


async def serve(
    config: Config, *, task_status: trio.TaskStatus[Bound] = trio.TASK_STATUS_IGNORED
) -> None:
    """Run the daemon until a signal, and return after the drain.

    Args:
        config: Validated.
        task_status: Started with where it listens, once clients are accepted.

    Raises:
        ConfigError: The engine is missing, no model is usable, the address is taken.
    """
    await Daemon(config, runtime_dir(os.environ)).run(task_status=task_status)


class Daemon:
    """Everything that runs in one llmd process.

    Args:
        config: Validated.
        runtime: Directory for sockets and worker records; made private to the daemon's user.
        engine: Which llama-server; default: the one that `llama.binary` means.

    Raises:
        ConfigError: No engine, no model, or an address that would be open to the network.
    """

    def __init__(self, config: Config, runtime: Path, *, engine: Engine | None = None) -> None:
        self.config = config
        authenticator = Authenticator(config)
        listen_allowed(
            config.server.host,
            has_keys=not authenticator.open,
            allow_open=config.auth.allow_open,
        )
        models_dir = Path(config.llama.models_dir) if config.llama.models_dir else None
        if models_dir is None and not config.models:
            raise ConfigError(
                [
                    "there are no models: give llmd serve --models-dir or --model, set "
                    "llama.models_dir, add [[models]], or try llmd demo"
                ]
            )
        self.engine = engine or find_engine(config.llama.binary)
        self.catalog = LiveCatalog(Catalog.load(config.models, models_dir))
        sockets = runtime / "workers"
        self.fleet = Fleet(
            self.engine,
            self.catalog,
            config,
            sockets,
            memory_bytes=0 if self.engine.gpu else total_memory_bytes(),
        )
        self.metrics = Metrics(
            version=__version__,
            is_model=lambda name: self.catalog.resolve(name) is not None,
            is_key=authenticator.has_key,
            queue=lambda: self.fleet.queue_sample(self.scheduler.statistics()),
            workers=lambda: self.fleet.worker_samples(
                self.supervisor.statistics(), self.services.operations.state_of
            ),
        )
        self.registry = Registry(config.server.request_history, on_close=self._request_ended)
        self.supervisor = Supervisor(
            specs=self.fleet.spec,
            settings=WorkerSettings.of(config.worker),
            on_change=self._worker_changed,
            runtime_dir=sockets,
            on_reclaimed=lambda _model, seconds: self.metrics.slot_reclaimed(seconds),
            on_progress=self._load_advanced,
        )
        self.scheduler = Scheduler(
            policy.SchedulerState(
                self.fleet.policy_settings(), self.fleet.model_infos(), decoded=self._decoded
            ),
            workers=self.supervisor,
            cancel=self._evict_request,
            on_action=self._acted,
        )
        self.services = Services(
            config=config,
            catalog=self.catalog,
            fleet=self.fleet,
            gate=Gate(
                authenticator,
                TrustedProxies(config.server.trusted_proxies),
                on_failure=lambda: None,
            ),
            schema_limits=SchemaLimits.of(config.limits),
            estimator=TokenEstimator(config.limits.default_max_tokens),
            limiter=RateLimiter(),
            registry=self.registry,
            scheduler=self.scheduler,
            supervisor=self.supervisor,
            metrics=self.metrics,
            preloading=bool(config.worker.preload),
        )
        self._url = ""
        self.admin = self._admin_server(runtime)
        self.http = HttpServer(
            build_app(self.services),
            tls=server_context(config.server.tls_cert, config.server.tls_key),
            max_connections=config.server.max_connections,
            header_timeout_s=config.server.header_timeout_sec,
            send_timeout_s=config.server.send_timeout_sec,
            on_crash=_crashed,
        )
        self._open = authenticator.open

    async def run(self, *, task_status: trio.TaskStatus[Bound] = trio.TASK_STATUS_IGNORED) -> None:
        """Serve until SIGTERM, SIGINT or SIGHUP; see `serve`."""
        self.admin.open()  # first, so that a second daemon is told before it does anything
        try:
            bound = self._bind()
            with self.services.pump.attach():
                async with trio.open_nursery() as last:  # operators watch the rest start and end
                    await last.start(self.admin.run)
                    await self._run(bound, task_status)
                    last.cancel_scope.cancel()
        finally:
            self.admin.close()
        log(_log, "stopped")

    async def _run(self, bound: Bound, task_status: trio.TaskStatus[Bound]) -> None:
        notify = sdnotify.Notifier.from_env(os.environ, os.getpid())
        with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT, signal.SIGHUP) as signals:
            async with trio.open_nursery() as owners:
                await owners.start(self.supervisor.run)
                await owners.start(self.scheduler.run)
                await owners.start(self.http.serve)
                owners.start_soon(self._preload)
                owners.start_soon(_watchdog, notify)
                self._announce(bound)
                notify.ready()
                task_status.started(bound)
                await anext(signals)
                notify.stopping()
                await self._end(signals)
                owners.cancel_scope.cancel()

    # --- starting ---------------------------------------------------------------------------

    def _bind(self) -> Bound:
        server = self.config.server
        try:
            addresses = self.http.bind(server.host, server.port)
        except OSError as error:
            self.http.close()
            raise ConfigError(
                [
                    f"server.host, server.port: cannot listen on {server.host}:{server.port}: "
                    f"{error.strerror or error}; choose another port (0 = any free one) or stop "
                    "what uses it"
                ]
            ) from error
        host, port = addresses[0]
        local = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104
        shown = f"[{local}]" if ":" in local else local
        scheme = "https" if server.tls_cert else "http"
        self._url = f"{scheme}://{shown}:{port}"
        return Bound(tuple(addresses), self._url)

    def _admin_server(self, runtime: Path) -> AdminServer:
        server, queue = self.config.server, self.config.queue
        rooms = Rooms(
            operations=self.services.operations,
            fleet=self.fleet,
            recent=Recent(),
            health=lambda: health.state(self.services),
            url=lambda: self._url,
            engine=f"{self.engine.kind.value} {self.engine.version}",
            max_queued=queue.max_size,
            max_queued_tokens=queue.max_tokens,
            memory_total_bytes=total_memory_bytes(),
            started_at=self.services.started_at,
        )
        rights = Rights.of(server.admin_group, read_all=server.admin_read_all)
        path = socket_path(server.admin_socket, runtime)
        return AdminServer(rooms, path, rights, own_directory=not server.admin_socket)

    def _announce(self, bound: Bound) -> None:
        if self._open:
            log(
                _log,
                "open mode: no API key is configured, so every caller on this box is an admin",
                logging.WARNING,
            )
        faults = map(str, self.catalog.faults)
        for warning in (*self.engine.warnings, *faults, *self.catalog.warnings):
            log(_log, warning, logging.WARNING)
        if all(model.fault for model in self.catalog.models):
            log(_log, self._nothing_to_serve(), logging.ERROR)
        log(
            _log,
            "listening",
            url=bound.url,
            engine=self.engine.kind.value,
            llama_server=self.engine.version,
            models=len(self.catalog.models),
        )

    def _nothing_to_serve(self) -> str:
        if self.catalog.models:
            return "no model can be served: each has a fault; mend it and start llmd again"
        folder = self.config.llama.models_dir
        return (
            f"no model can be served: there is no GGUF file in {folder}, and it is looked through "
            "at the start only; put some there and start llmd again"
        )

    async def _preload(self) -> None:
        """Load what `worker.preload` names, one after another, as far as it fits."""
        try:
            for name in self._preload_names():
                self.scheduler.switch(SwitchRequested(name, add=True))
                try:
                    await self.supervisor.ensure_ready(name, reason="preload")
                except LlmdError as error:
                    log(_log, "preload failed", logging.ERROR, model=name, reason=error.message)
        finally:
            self.services.preloading = False

    def _preload_names(self) -> list[str]:
        wanted: Iterable[str] = self.config.worker.preload
        if "*" in wanted:
            wanted = [model.name for model in self.catalog.models]
        names = []
        for name in wanted:
            model = self.catalog.resolve(name)
            if model is None:
                log(_log, "worker.preload names no model", logging.ERROR, model=name)
            elif model.name not in names:
                names.append(model.name)
        return names[: self.config.worker.max_loaded or len(names)]

    # --- running ----------------------------------------------------------------------------

    def _worker_changed(self, change: WorkerChanged) -> None:
        worker = self.supervisor.worker(change.model)
        if worker is not None:
            self.fleet.count(worker.statistics(), self.metrics)
        level = logging.WARNING if change.state in _TROUBLE else logging.INFO
        log(
            _log,
            f"worker {change.state.value}",
            level,
            model=change.model,
            **({"reason": change.reason} if change.reason else {}),
            **({"load_s": round(change.load_s, 3)} if change.load_s else {}),
        )
        if change.load_s:
            self.metrics.worker_ready(change.model, change.load_s)
        self.scheduler.worker_changed(change)

    def _acted(self, action: Action) -> None:
        if isinstance(action, StopWorker):  # what only drained may yet be resumed
            self.metrics.evicted(action.model, action.rule.value)

    def _request_ended(self, record: RequestRecord) -> None:
        if record.cancel_cause is CancelCause.CLIENT_GONE and record.reason:
            log(
                _log,
                DROPPED,
                logging.WARNING,
                request=record.id,
                client=record.client,
                reason=record.reason,
            )
        self.admin.ended(record)

    def _load_advanced(self, model: str, fraction: float) -> None:
        self.scheduler.load_advanced(model, fraction)

    def _decoded(self, request_id: str) -> int:
        handle = self.registry.live(request_id)
        return handle.record.events if handle is not None else 0

    def _evict_request(self, request_id: str, rule: Rule) -> None:
        handle = self.registry.live(request_id)
        if handle is not None:
            handle.evict(rule)

    # --- ending -----------------------------------------------------------------------------

    async def _end(self, signals: AsyncIterator[int]) -> None:
        """Drain and stop; a further signal skips what is left of the waiting."""
        states = Counter(handle.record.state for handle in self.registry.handles())
        running = states[RequestState.PREFILL] + states[RequestState.DECODE]
        log(_log, "draining", running=running, queued=states[RequestState.QUEUED])
        self.services.draining = True
        why = "llmd is shutting down and this request was still queued; try again in a moment"
        self.scheduler.admit(is_open=False, reject_queued=True, why=why)
        for handle in self.registry.handles():
            if handle.record.state is RequestState.RECEIVED:  # nothing to wait for: it has no place
                handle.cancel(CancelCause.SHUTDOWN)
        drain_s = self.config.server.drain_timeout_sec or math.inf
        with trio.CancelScope(deadline=trio.current_time() + drain_s) as patience:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(_skip_waiting, signals, patience)
                await self.http.drain()
                nursery.cancel_scope.cancel()
        for handle in self.registry.handles():
            handle.cancel(CancelCause.SHUTDOWN)
        with trio.move_on_after(_LAST_WORDS_S):
            await self.http.drain()
        hurried = patience.cancelled_caught and trio.current_time() < patience.deadline
        stop_s = 0.0 if hurried else self.config.worker.stop_timeout_sec or math.inf
        async with trio.open_nursery() as nursery:
            deadline = trio.CancelScope(deadline=trio.current_time() + stop_s)
            nursery.start_soon(_skip_waiting, signals, deadline)
            with deadline:
                await self.supervisor.stop_all()
            if deadline.cancelled_caught:
                await self.supervisor.stop_all(-math.inf)
            nursery.cancel_scope.cancel()


async def _skip_waiting(signals: AsyncIterator[int], patience: trio.CancelScope) -> None:
    await anext(signals)
    log(_log, "another signal: not waiting any longer", logging.WARNING)
    patience.cancel()


async def _watchdog(notify: sdnotify.Notifier) -> None:
    while notify.watchdog_s:
        notify.watchdog()
        await trio.sleep(notify.watchdog_s / 2)


def _crashed(error: BaseException) -> None:
    log(_log, "a request crashed; this is a fault in llmd", logging.ERROR)
    _log.error("traceback", exc_info=error)


_LAST_WORDS_S = 2.0  # for the errors that requests cut by the shutdown still get
_TROUBLE = frozenset({WorkerState.BACKOFF, WorkerState.FAILED})
