"""The HTTP API in one process: real rooms, workers without processes, requests without sockets.

`api(...)` gives a `Rig`; its `ask` sends one request through the ASGI application. What workers
answer is in `rig.answers`, by method and path.
"""

from __future__ import annotations

import json
from contextlib import asynccontextmanager
from pathlib import Path

import msgspec
import trio
from fake_worker_parts import FakeControl, FakeLauncher, spec

from llmd.api.app import build_app
from llmd.api.asgi import CONNECTION
from llmd.api.auth import Authenticator
from llmd.api.gate import Gate
from llmd.api.origin import TrustedProxies
from llmd.api.schema import SchemaLimits
from llmd.api.services import Services
from llmd.config import Config
from llmd.config.schema import ApiKey
from llmd.core import policy
from llmd.core.ratelimit import RateLimiter
from llmd.core.tokens import TokenEstimator
from llmd.errors import WorkerDied
from llmd.fleet import Fleet
from llmd.models.catalog import Catalog
from llmd.models.live import LiveCatalog
from llmd.observe.metrics import Metrics
from llmd.registry import Registry
from llmd.scheduler import Scheduler
from llmd.workers.engine import Engine, EngineKind
from llmd.workers.settings import WorkerSettings
from llmd.workers.supervisor import Supervisor
from llmd.workers.worker import Tools

KEYS = (
    ApiKey(name="root", key="root-key", role="admin"),
    ApiKey(name="alice", key="alice-key"),
    ApiKey(name="bob", key="bob-key", models=("demo-small",)),
)
ADMIN, ALICE, BOB = "root-key", "alice-key", "bob-key"
JSON_TYPE = [(b"content-type", b"application/json")]
ENGINE = Engine(("llama-server",), EngineKind.PATH, "fake", frozenset())


class Answer:
    """What came back."""

    def __init__(self, messages):
        start, *rest = messages
        self.status = start["status"]
        self.headers = {name.decode(): value.decode() for name, value in start["headers"]}
        self.body = b"".join(message.get("body", b"") for message in rest)
        self.ended = bool(rest) and not rest[-1].get("more_body", False)

    @property
    def json(self):
        return json.loads(self.body)

    @property
    def error(self):
        error = self.json["error"]
        assert set(error) == {"message", "type", "param", "code"}
        return error

    def __repr__(self):
        return f"<{self.status} {self.headers} {self.body[:500]!r}>"


class Client:
    """The client's side of one connection."""

    request_complete = True

    def __init__(self):
        self.gone = False
        self.on_disconnect = None

    def watch(self, on_disconnect):
        self.on_disconnect = on_disconnect

    async def invite(self):
        pass


class Response:
    """A worker's answer, as `UpstreamResponse` has it."""

    def __init__(self, status, headers, body):
        self._answer = status, headers, body
        self.status = 0
        self.headers = []
        self.closed = False

    async def head(self):
        await trio.lowlevel.checkpoint()
        self.status, self.headers, _ = self._answer
        return self.status

    def header(self, name):
        return next((value for key, value in self.headers if key == name), b"")

    @property
    def ready(self):
        return True

    async def receive(self):
        status, headers, body = self._answer
        self._answer = status, headers, b""
        return body

    async def read(self, limit_bytes):
        body = await self.receive()
        assert len(body) <= limit_bytes
        return body

    def close(self):
        self.closed = True


class Control(FakeControl):
    """As workers answer that know their context."""

    async def props(self, timeout_s=1.0):
        props = await super().props(timeout_s)
        props.default_generation_settings.n_ctx = 4096
        return props


class Upstream:
    """The way to a worker that answers from `rig.answers`."""

    def __init__(self, rig, pid):
        self.pid = pid
        self._rig = rig
        self._closed = trio.Event()

    async def request(self, method, target, body, headers=()):
        path = target.partition(b"?")[0].decode()
        self._rig.asked.append((method.decode(), target.decode(), body, dict(headers)))
        answer = self._rig.answers.get((method.decode(), path), (404, [], b"{}"))
        if answer == "hang":
            await self._closed.wait()
        if answer in ("hang", "die") or self._closed.is_set():
            raise WorkerDied("the worker went away: fake", answered=False)
        status, headers, data = answer
        if not isinstance(data, bytes):
            data, headers = msgspec.json.encode(data), [*JSON_TYPE, *headers]
        return Response(status, headers, data)

    def close(self):
        self._closed.set()


class Rig:
    """See the module."""

    def __init__(self, config, models_dir, scripts):
        self.answers = {}
        self.asked = []
        self.launcher = FakeLauncher(**scripts)
        self.catalog = LiveCatalog(Catalog.load(config.models, models_dir))
        authenticator = Authenticator(config)
        fleet = Fleet(ENGINE, self.catalog, config, Path("/nowhere"), memory_bytes=1 << 33)
        self.metrics = Metrics(
            version="test",
            is_model=lambda name: self.catalog.resolve(name) is not None,
            is_key=authenticator.has_key,
            workers=lambda: fleet.worker_samples(
                self.supervisor.statistics(), self.services.operations.state_of
            ),
        )
        self.registry = Registry(config.server.request_history)
        self.supervisor = Supervisor(
            specs=spec,
            settings=WorkerSettings(backoff_base_s=1),
            on_change=lambda change: self.scheduler.worker_changed(change),
            on_progress=lambda model, done: self.scheduler.load_advanced(model, done),
            runtime_dir=Path("/nowhere"),
            tools=Tools(
                launcher=self.launcher,
                control=lambda path: Control(self.launcher, path),
                upstream=lambda _path, pid: Upstream(self, pid),
            ),
        )
        self.scheduler = Scheduler(
            policy.SchedulerState(fleet.policy_settings(), fleet.model_infos()),
            workers=self.supervisor,
            cancel=self._evict,
        )
        self.services = Services(
            config=config,
            catalog=self.catalog,
            fleet=fleet,
            gate=Gate(authenticator, TrustedProxies(()), on_failure=lambda: None),
            schema_limits=SchemaLimits.of(config.limits),
            estimator=TokenEstimator(config.limits.default_max_tokens),
            limiter=RateLimiter(),
            registry=self.registry,
            scheduler=self.scheduler,
            supervisor=self.supervisor,
            metrics=self.metrics,
        )
        self.app = build_app(self.services)

    def _evict(self, request_id, rule):
        handle = self.registry.live(request_id)
        if handle is not None:
            handle.evict(rule)

    def state(self, model):
        worker = self.supervisor.worker(model)
        return worker.state.value if worker else "off"

    async def loaded(self, model):
        """Have `model` serve."""
        answer = await self.ask("POST", "/switch-model", {"model": model, "wait": True})
        assert answer.status == 200, answer

    async def ask(
        self,
        method,
        path,
        body=b"",
        *,
        key=ADMIN,
        headers=(),
        more=None,
        left=None,
        task_status=trio.TASK_STATUS_IGNORED,
    ):
        """Send a request and return its answer; None when the client left before one came.

        Args:
            method: GET ...
            path: Decoded, with the query after a question mark.
            body: Bytes, or what is to be sent as JSON.
            key: Sent as Bearer; None sends none.
            headers: Further ones, name and value.
            more: An event: the body is not complete before it is set.
            left: An event: the client leaves once it is set.
            task_status: Started once the application has the request.
        """
        if not isinstance(body, bytes):
            body = msgspec.json.encode(body)
        found = [(name.encode(), value.encode()) for name, value in headers]
        if not any(name == b"host" for name, _ in found):
            found.append((b"host", b"127.0.0.1:7860"))
        if key is not None:
            found.append((b"authorization", f"Bearer {key}".encode()))
        if body and not any(name == b"content-length" for name, _ in found):
            found.append((b"content-length", b"%d" % len(body)))
        path, _, query = path.partition("?")
        self.client = Client()
        scope = {
            "type": "http",
            "http_version": "1.1",
            "method": method,
            "scheme": "http",
            "path": path,
            "raw_path": path.encode(),
            "query_string": query.encode(),
            "root_path": "",
            "headers": found,
            "client": ("127.0.0.1", 5000),
            "server": ("127.0.0.1", 7860),
            "state": {CONNECTION: self.client},
            "extensions": {},
        }
        messages = []
        given = []

        async def receive():
            if not given:
                given.append(body)
                return {"type": "http.request", "body": body, "more_body": more is not None}
            if more is not None and len(given) == 1:
                await more.wait()
                given.append(b"")
                return {"type": "http.request", "body": b"", "more_body": False}
            if left is None:
                await trio.sleep_forever()
            await left.wait()
            return {"type": "http.disconnect"}

        async def send(message):
            messages.append(message)

        task_status.started()
        await self.app(scope, receive, send)
        self.body_taken = bool(given)
        return Answer(messages) if messages else None


@asynccontextmanager
async def api(models_dir, *, keys=KEYS, scripts=None, timeout_s=100_000, **groups):
    """Run a rig; `groups` are those of the config, such as `server`."""
    rig = Rig(Config(api_keys=keys, **groups), models_dir, scripts or {})
    await rig.app.load()  # in a thread, for which the autojump clock has no patience
    with trio.fail_after(timeout_s):
        async with trio.open_nursery() as nursery:
            await nursery.start(rig.supervisor.run)
            await nursery.start(rig.scheduler.run)
            rig.nursery = nursery
            yield rig
            statistics = rig.scheduler.statistics()
            assert (statistics.running, statistics.queued, len(rig.registry)) == (0, 0, 0)
            nursery.cancel_scope.cancel()
