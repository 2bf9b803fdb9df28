"""The way of a completion, from its head to its account.

Read `Inference._way`: authenticate, read, parse, resolve, estimate, limit, lease, relay. Whatever
way a request ends, `_account` comes last.
"""

from __future__ import annotations

import logging
import math

import trio

from llmd import errors
from llmd.api import schema
from llmd.api.answer import JSON, Answer, passed_on
from llmd.api.asgi import CONNECTION, Json, Receive, Send
from llmd.api.assemble import Assembler, WorkerError
from llmd.api.auth import Principal
from llmd.api.body import read_body
from llmd.api.connection import Connection
from llmd.api.fit import Call, expect_fit, prompt_size
from llmd.api.gate import header, wanted_priority
from llmd.api.relay import Relay
from llmd.api.schema.parsed import ONE_BATCH_BYTES
from llmd.api.services import Services
from llmd.api.sse import Usage
from llmd.core.events import Queued, Rule, Why
from llmd.core.ratelimit import Denied
from llmd.core.record import CancelCause
from llmd.core.tokens import Estimate
from llmd.models.catalog import CatalogModel
from llmd.registry import Handle
from llmd.scheduler import Lease
from llmd.workers.diagnosis import ExitCause
from llmd.workers.reclaim import Work
from llmd.workers.upstream import Upstream
from llmd.workers.worker import Worker

_log = logging.getLogger("llmd")
_NOTICE_S = 1.0
_MAX_TRIES = 2  # a request that was present at two deaths of workers is not tried again


class Inference:
    """The ASGI application for everything that generates: chat, completions, embeddings.

    Args:
        services: What it works with; owns none of it.
    """

    def __init__(self, services: Services) -> None:
        self._services = services
        limits = services.config.limits
        self._timeout_s = limits.request_timeout_sec or math.inf
        self._keepalive_s = services.config.streaming.keepalive_sec or math.inf
        self._stall_s = services.config.worker.stall_timeout_sec or math.inf

    async def __call__(self, scope: Json, receive: Receive, send: Send) -> None:
        """Serve one request; it ends in an answer or in the client's leaving."""
        services = self._services
        connection: Connection = scope["state"][CONNECTION]
        handle = services.registry.begin(
            wanted_id=header(scope, b"x-request-id"),
            path=scope["path"],
            client=services.gate.client(scope),
        )
        answer = Answer(send, handle.record, connection)
        connection.watch(handle.abandon)
        error: errors.LlmdError | None = None
        handle.scope.deadline = trio.current_time() + self._timeout_s
        try:
            with handle.scope:
                try:
                    await self._way(handle, answer, scope, receive)
                except errors.LlmdError as refused:
                    error = refused
                except Exception:  # a fault in llmd must cost one request, and say so
                    _log.exception("request %s crashed; this is a fault in llmd", handle.record.id)
                    error = errors.LlmdError("llmd failed at this request; its log says more")
            if handle.scope.cancelled_caught:
                error = handle.verdict(self._timeout_s)
            if error is not None and not connection.gone:
                await answer.error(error)
        except trio.Cancelled:  # everything ends, and this request with it
            handle.cancel(CancelCause.SHUTDOWN)
            raise
        finally:
            self._account(handle, error, answer)

    async def _way(self, handle: Handle, answer: Answer, scope: Json, receive: Receive) -> None:
        services, record, config = self._services, handle.record, self._services.config
        principal = await self._admit(handle, scope)
        record.key, record.fingerprint = principal.name, principal.fingerprint
        record.user, record.role = principal.user, principal.role
        if services.draining:  # before its body: a slow one must not hold up the end
            raise errors.ShuttingDown("llmd is shutting down; try again in a moment")
        body = await read_body(
            scope,
            receive,
            limit_bytes=config.server.max_body_bytes,
            timeout_s=config.server.body_timeout_sec,
        )
        record.request_bytes = len(body)
        parsed = schema.parse(schema.KINDS[scope["path"]], body, services.schema_limits)
        record.stream = parsed.stream
        record.priority = principal.capped(wanted_priority(scope, parsed.service_tier))
        model = services.resolve(parsed.model, principal)
        record.model = model.name
        services.expect_loadable(model)
        parsed.name_model(model.name)
        parsed.apply_defaults(model.config.generation, config.generation)
        record.max_tokens, record.temperature = parsed.max_tokens, parsed.temperature
        if parsed.stream and not config.streaming.enabled:
            raise errors.StreamingDisabled(
                "streaming is disabled on this server; send stream=false", param="stream"
            )
        call = Call(handle, answer, principal, parsed, model, self._estimate(parsed, model))
        await expect_fit(call, services, services.serving(model.name))
        self._limit(call)
        try:
            await self._serve(call)
        except WorkerError as said:
            handle.worker_status = said.status
            await answer.whole(said.status, passed_on(said.status, [JSON]), said.body)

    # --- before the queue -------------------------------------------------------------------

    async def _admit(self, handle: Handle, scope: Json) -> Principal:
        """Tell who is calling, and list the request; one without a good key stays unlisted."""
        gate, registry = self._services.gate, self._services.registry
        try:
            principal = await gate.admit(scope, handle.record.client)
        except errors.PermissionDenied:  # open mode, and another site's: refused like any other
            registry.enter(handle)
            raise
        registry.enter(handle)
        return principal

    def _estimate(self, parsed: schema.ParsedRequest, model: CatalogModel) -> Estimate:
        return self._services.estimator.estimate(
            model.name,
            prompt_size(parsed),
            max_tokens=parsed.max_tokens,
            n=parsed.choices,
            context_tokens=self._services.context_tokens(model),
        )

    def _limit(self, call: Call) -> None:
        """Charge the key's buckets, and have the answer say what is left.

        Raises:
            RateLimitExceeded: One of them is empty.
        """
        services, principal = self._services, call.principal
        record = call.handle.record
        record.estimate_tokens = tokens = call.estimate.total_tokens
        record.prompt_estimate_tokens = call.estimate.prompt_tokens
        record.sequences = call.estimate.sequences
        if principal.limits.unlimited:
            return
        now = trio.current_time()
        decision = services.limiter.check(principal.account, principal.limits, tokens, now)
        left = services.limiter.snapshot(principal.account, principal.limits, now)
        call.answer.headers += left.headers()
        if isinstance(decision, Denied):
            raise errors.RateLimitExceeded(
                decision.message,
                retry_after_s=decision.retry_after_s,
                should_retry=False if decision.could_never else None,
            )
        account = principal.account  # not the call, which holds the handle: it would outlive both
        call.handle.settle = lambda used: self._settle(account, tokens, used)

    def _settle(self, account: str, charged: int, used: int | None) -> None:
        now = trio.current_time()
        if used is None:
            self._services.limiter.refund(account, charged, now)
        else:
            self._services.limiter.settle(account, charged, used, now)

    # --- queue, lease and relay -------------------------------------------------------------

    async def _serve(self, call: Call) -> None:
        """Wait for a lease and relay; once more if the worker died before the client had a byte."""
        item = self._item(call)
        tries = first = 1 if self._services.config.scheduler.retry_on_worker_death else _MAX_TRIES
        while True:
            try:
                await self._try(call, item, again=tries > first)
            except errors.WorkerDied as died:
                await self._until_noticed(call.model.name, call.handle.record.worker_pid)
                begun = call.answer.started and call.handle.record.first_byte_at is not None
                if begun or tries >= _MAX_TRIES:
                    raise errors.BadWorkerResponse(self._what_broke(call, died)) from died
                self._tell_retry(call, self._what_broke(call, died))
                tries += 1
                continue
            return

    @staticmethod
    def _tell_retry(call: Call, what: str) -> None:
        """Have the request's story say why it waits once more."""
        now, model = trio.current_time(), call.model.name
        call.handle.record.story += (Why(now, Rule.WORKER_DIED, (model,), detail=what),)

    def _what_broke(self, call: Call, died: errors.WorkerDied) -> str:
        """Say what ended a request: its worker, or only its connection to it."""
        pid = call.handle.record.worker_pid
        serving = self._services.serving(call.model.name)
        if serving is not None and serving.upstream is not None and serving.upstream.pid == pid:
            return (
                "the connection to the model's worker broke while it served this request, and the "
                f"worker lives on ({died})"
            )
        worker = self._services.supervisor.worker(call.model.name)
        end = worker.end_of(pid) if worker is not None else None
        # no more of the reason: the worker's last words may be about another one's request
        how = str(died) if end is None else end.reason.partition(": ")[0]
        return f"the model's worker ended while it served this request ({how})"

    async def _until_noticed(self, model: str, pid: int) -> None:
        """Wait until a dead worker is known to be dead, lest the retry goes to it again.

        A connection breaks before the process is reaped. A worker that broke one connection and
        lives on is asked to account for itself, and used again when it did.
        """
        with trio.move_on_after(_NOTICE_S):
            while (worker := self._services.serving(model)) is not None:
                if worker.upstream is None or worker.upstream.pid != pid:
                    return
                worker.suspect("a connection broke before the answer")
                await self._services.scheduler.moved()

    async def _try(self, call: Call, item: Queued, *, again: bool) -> None:
        """Hold one lease from its place in the queue to its end."""
        services, record = self._services, call.handle.record
        worker: Worker | None = None
        record.enqueue(trio.current_time())
        lease = services.scheduler.lease(item, again=again)
        try:
            with lease:
                await self._wait(call, lease)
                worker = services.serving(call.model.name)
                upstream = worker.upstream if worker is not None else None
                record.grant(trio.current_time(), worker_pid=upstream.pid if upstream else 0)
                try:
                    if worker is None or upstream is None:
                        raise errors.WorkerDied("the worker has just gone", answered=False)
                    await expect_fit(call, services, worker)
                    usage = await self._exchange(call, worker, upstream)
                    self._learn(call, usage)
                except errors.WorkerStalled as stalled:
                    end = worker.end_of(record.worker_pid) if worker is not None else None
                    if end is None or end.cause is ExitCause.HUNG:
                        raise
                    # it was silent, but ended for another reason: this one may be tried again
                    raise errors.WorkerDied(end.reason, answered=False) from stalled
                finally:
                    lease.used_tokens = record.used_tokens
        finally:
            record.story += lease.story
            # the client's half of a cancel is done; see that the worker's is, too
            if worker is not None and call.handle.cause is not None:
                worker.reclaim(
                    lambda: services.scheduler.busy_slots(call.model.name),
                    call.handle.cause.value,
                    work_of(call.parsed),
                )

    async def _wait(self, call: Call, lease: Lease) -> None:
        """Wait for the grant, telling a streaming client why it takes long."""
        keepalive_s = self._keepalive_s if call.parsed.stream else math.inf
        while not await lease.wait(keepalive_s):
            await call.answer.comment(waiting(lease))

    async def _exchange(self, call: Call, worker: Worker, upstream: Upstream) -> Usage:
        """Relay between client and worker."""
        parsed, record = call.parsed, call.handle.record
        relay = Relay(
            upstream,
            call.answer,
            record,
            pump=self._services.pump,
            choices=parsed.choices,
            keepalive_s=self._keepalive_s if parsed.stream else math.inf,
            stall_s=self._stall_s,
            suspect=lambda: worker.suspect(f"no byte for {self._stall_s:g} s ({record.id})"),
        )
        gather = parsed.gathers and not parsed.stream
        body = parsed.upstream_body(force_stream=gather)
        if (gather or parsed.stream) and parsed.prompt_bytes > ONE_BATCH_BYTES:
            body, relay.drop_progress = with_progress(body)
        usage = await relay.exchange(
            parsed.kind.path.encode(), body, Assembler(parsed.kind) if gather else None
        )
        call.handle.worker_status = relay.worker_status
        return usage

    def _item(self, call: Call) -> Queued:
        principal, record = call.principal, call.handle.record
        return Queued(
            id=record.id,
            key=principal.account,
            model=call.model.name,
            priority=record.priority,
            weight=principal.weight,
            tokens=call.estimate.total_tokens,
            slots=call.estimate.sequences if call.parsed.kind.generates else 1,
            context_tokens=call.estimate.context_tokens,
            concurrency=principal.concurrency,
            admin=principal.admin,
            arrived=trio.current_time(),
            completion_tokens=call.estimate.completion_tokens * call.estimate.sequences,
        )

    # --- after it ---------------------------------------------------------------------------

    def _learn(self, call: Call, usage: Usage) -> None:
        record = call.handle.record
        record.prompt_tokens = usage.prompt_tokens
        record.completion_tokens = usage.completion_tokens
        record.cached_tokens = usage.cached_tokens
        if usage.exact and usage.prompt_tokens:
            self._services.estimator.observe(
                call.model.name, prompt_size(call.parsed), usage.prompt_tokens
            )

    def _account(self, handle: Handle, error: errors.LlmdError | None, answer: Answer) -> None:
        """Write the record's end and tell everybody who counts; never waits."""
        services, record = self._services, handle.record
        handle.end(error, answer.status, trio.current_time())
        if handle.settle is not None:
            handle.settle(None if record.granted_at is None else record.used_tokens)
        if services.registry.entered(handle):
            services.registry.close(handle)
            services.metrics.finished(record)
        else:  # also one that left while its 401 was held back
            services.metrics.refused("", errors.InvalidApiKey.code)


def work_of(parsed: schema.ParsedRequest) -> Work:
    """Say how the worker goes about a request: whether it will notice that it was cancelled."""
    if not parsed.kind.generates:
        return Work.BATCH
    brief = parsed.stream or parsed.gathers or parsed.is_one_batch
    return Work.STREAM if brief else Work.WHOLE


def with_progress(body: bytes) -> tuple[bytes, bool]:
    """Have the worker report on a long prompt, and tell whether the client must not see it.

    A worker notices that its client has gone when it writes, or once nobody on it got anything
    for a second. Through a long prefill it writes nothing, beside a busy neighbour that second
    never comes, and the slot of a cancelled request would stay busy. Reports make it write.
    """
    if b'"return_progress"' in body:
        return body, False
    end = body.rindex(b"}")
    return body[:end] + b',"return_progress":true}', True


def waiting(lease: Lease) -> str:
    """Say in one line what a request waits for."""
    why = lease.why()
    if why is None:
        return "queued"
    eta_s = lease.eta_s()
    eta = "" if eta_s is None else f" eta={math.ceil(eta_s)}s"
    if why.rule is Rule.MODEL_LOADING:
        progress = lease.load_progress()
        return f"loading {lease.item.model}{'' if progress is None else f' {progress}'}{eta}"
    return f"queued position={why.position}{eta}"
