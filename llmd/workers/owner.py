"""The one owner of one worker: a task that starts it, watches it, and writes its state.

What others ask (`worker.py`) and what helper tasks find (the wait for its death, the readiness
probe, checks) are messages. They are handled in order, so every read that gates a change happens
here.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import trio

from llmd.core.backoff import GiveUp
from llmd.core.events import WorkerChanged
from llmd.core.lifecycle import WORKER_MOVES, WorkerState, move
from llmd.errors import LlmdError, StartFailed
from llmd.workers import procfs
from llmd.workers.command import WorkerSpec
from llmd.workers.diagnosis import Diagnosis, ExitCause, diagnose_exit, diagnose_spawn
from llmd.workers.history import History
from llmd.workers.life import Life, Tools
from llmd.workers.logring import LogRing, LogStream
from llmd.workers.mailbox import (
    Advanced,
    Answers,
    Drain,
    Exited,
    Failing,
    Mailbox,
    Message,
    Ready,
    Reset,
    Start,
    Stop,
    Suspect,
    Waiter,
)
from llmd.workers.probes import Readiness
from llmd.workers.reclaim import SlotWatcher
from llmd.workers.settings import WorkerSettings
from llmd.workers.upstream import Upstream

_W = WorkerState
SERVING = frozenset({_W.READY, _W.DRAINING})
_SETTLED = frozenset({_W.OFF, _W.FAILED})
_STDERR_LINES = 60
_URGE_S = 1.0
RESTART = "restart"
"""The start reason of a worker that its own task starts again."""


class Owner:
    """Everything that a worker is made of, and the task that changes it.

    Arguments are those of `Worker`, which is what the rest of llmd holds; only that and `run` touch
    what is here.

    Attributes:
        state, upstream, slots, context_tokens, log, spec: See `Worker`.
        inbox: Where it is asked.
        history: Starts, ends and crashes.
        watcher: Sees that cancelled requests free their slots.
        life: What belongs to its process; None without one.
        over: `run` has ended.
        moved: Set at the next move, and replaced then.
        since, reason, retry_at: When and why it moved to its state, and until when it stays.
        ready_at, load_s: When it last became ready, and what that load took; 0 = never.
    """

    def __init__(
        self,
        model: str,
        *,
        spec: Callable[[int], WorkerSpec],
        settings: WorkerSettings,
        on_change: Callable[[WorkerChanged], None],
        tools: Tools,
        on_reclaimed: Callable[[float], None] = lambda _seconds: None,
        on_progress: Callable[[float], None] = lambda _fraction: None,
        on_remark: Callable[[str], None] = lambda _text: None,
    ) -> None:
        self.model = model
        self.state = WorkerState.OFF
        self.upstream: Upstream | None = None
        self.log = LogRing()
        self.spec: WorkerSpec | None = None
        self.slots = 0
        self.context_tokens = 0
        self._make_spec = spec
        self._settings = settings
        self._tools = tools
        self._on_change = on_change
        self._on_progress = on_progress
        self._on_remark = on_remark
        self.inbox = Mailbox()
        self.history = History.of(settings)
        self.watcher = SlotWatcher(
            timeout_s=settings.reclaim_timeout_s,
            call_timeout_s=settings.check_timeout_s,
            on_reclaimed=on_reclaimed,
            on_overdue=self._remark,
            on_stuck=self._slot_stuck,
            hold=self._hold,
        )
        self.life: Life | None = None
        self._lives = 0
        self.over = False
        self._wanted_context = 0  # what the next start is asked for
        self._waiters: list[Waiter] = []
        self.moved = trio.Event()
        self.since = trio.current_time()
        self.reason = ""
        self.retry_at = self.ready_at = self.load_s = 0.0

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Own the worker until cancelled."""
        task_status.started()
        try:
            while True:
                reason = await self._rest()
                await self._live(reason)
        finally:
            self.over = True
            self._answer_waiters(StartFailed("llmd is shutting down", permanent=False))
            self._wake()

    async def _rest(self) -> str:
        """Without a process: return the reason of the next start once there is one."""
        while True:
            self._wake()
            match await self.inbox.get(self.retry_at or math.inf, life=0):
                case None if self.state is _W.BACKOFF:
                    return RESTART
                case None:
                    self._move(_W.OFF, reason="may be tried again")
                case Start() as start:
                    self._wanted_context = start.context_tokens
                    self._wait_for_ready(start.waiter)
                    if self.state is not _W.BACKOFF:
                        return start.reason
                case Stop() as stop if self.state is _W.BACKOFF:
                    self._move(_W.OFF, reason=stop.reason)
                case Reset():
                    self.history.budget.reset()
                    if self.state is _W.BACKOFF:
                        return RESTART
                    if self.state is _W.FAILED:
                        self._move(_W.OFF, reason="reset")
                case _:
                    pass  # nothing to drain, stop or check

    async def _live(self, reason: str) -> None:
        """One process, from its start to its end."""
        self.history.started(reason)
        self._lives += 1
        self._move(_W.STARTING)
        again: Start | None = None
        async with trio.open_nursery() as nursery:
            self.life = life = await self._spawn(nursery)
            if life is None:
                nursery.cancel_scope.cancel()
                return
            try:
                nursery.start_soon(life.watch_death)
                nursery.start_soon(life.watch_start)
                await self._attend(life)
            finally:
                again = life.again
                self._leave_service()
                await life.bury(self._tools.launcher)
                self.life = None
        if again is not None:
            self.inbox.post_first(again)

    async def _spawn(self, nursery: trio.Nursery) -> Life | None:
        """Start the process; None when that fails, which has been dealt with then."""
        started_at, first_line = trio.current_time(), self.log.sequence
        try:
            self.spec = spec = self._make_spec(self._wanted_context)
            child = await self._tools.launcher.start(spec, self.log, nursery)
        except OSError as error:
            self._fail(diagnose_spawn(error, self.spec.argv[0] if self.spec else self.model))
            return None
        except LlmdError as error:
            permanent = not isinstance(error, StartFailed) or error.permanent
            self._fail(Diagnosis(ExitCause.UNSTARTABLE, error.message, permanent=permanent))
            return None
        return Life(
            number=self._lives,
            spec=spec,
            child=child,
            control=self._tools.control(spec.socket_path),
            nursery=nursery,
            inbox=self.inbox,
            settings=self._settings,
            started_at=started_at,
            first_line=first_line,
            pid=child.pid,
        )

    async def _attend(self, life: Life) -> None:
        """With a process: handle what comes until it has ended."""
        while True:
            due = min(life.urge_at, life.kill_at)
            match await self.inbox.get(due, life.number):
                case None:
                    self._urge(life)
                case Exited(status=status):
                    self._ended(life, status)
                    return
                case Failing(diagnosis=diagnosis) if self.state is not _W.STOPPING:
                    self._fail(diagnosis)
                    life.child.kill()
                    await life.child.wait()
                    return
                case message:
                    self._handle(life, message)

    def _handle(self, life: Life, message: Message) -> None:
        match message:
            case Answers() if self.state is _W.STARTING:
                self._move(_W.LOADING)
            case Advanced(fraction=fraction) if self.state in (_W.STARTING, _W.LOADING):
                self._on_progress(fraction)
            case Ready(readiness=readiness) if self.state in (_W.STARTING, _W.LOADING):
                self._enter_service(life, readiness)
            case Drain() if self.state is _W.READY:
                self._move(_W.DRAINING)
            case Start() if self.state is _W.STOPPING:
                life.again = message
                self._wait_for_ready(message.waiter)
            case Start():
                if self.state is _W.DRAINING:
                    self._move(_W.READY)
                self._wait_for_ready(message.waiter)
            case Stop():
                self._begin_stop(life, message)
            case Suspect() if self.state in SERVING:
                life.nursery.start_soon(life.check, message.reason)
            case Reset():
                self.history.budget.reset()
            case _:
                pass  # too early, or too late, to mean anything

    @property
    def settled(self) -> bool:
        """It has no process, and nothing that it was asked is left to do."""
        return not self.life and self.state in _SETTLED and not self.inbox

    # --- moves ----------------------------------------------------------------------------

    def _move(
        self,
        state: WorkerState,
        *,
        reason: str = "",
        retry_at: float = 0.0,
        load_s: float = 0.0,
        permanent: bool = False,
    ) -> None:
        """Write the state, tell everybody, and settle what the move settles."""
        self.state = move(WORKER_MOVES, self.state, state)
        self.since = trio.current_time()
        self.reason, self.retry_at = reason, retry_at
        if state not in SERVING:
            self._leave_service()
        starts_again = self.life is not None and self.life.again is not None
        if state is _W.READY:
            self._answer_waiters(None)
        elif state is _W.FAILED or (state is _W.OFF and not starts_again):
            self._answer_waiters(StartFailed(reason or "it was stopped", permanent=permanent))
        self._wake()
        self._on_change(
            WorkerChanged(
                self.model,
                state,
                slots=self.slots,
                context_tokens=self.context_tokens,
                reason=reason,
                retry_at=retry_at,
                load_s=load_s,
                memory_bytes=self.memory_bytes(),
                permanent=permanent,
            )
        )

    def _enter_service(self, life: Life, readiness: Readiness) -> None:
        now = trio.current_time()
        life.pid, life.was_ready = readiness.pid, True
        self.slots, self.context_tokens = readiness.slots, readiness.context_tokens
        self.ready_at, self.load_s = now, now - life.started_at
        self.upstream = self._tools.upstream(life.spec.socket_path, readiness.pid)
        life.nursery.start_soon(life.watch_health)
        life.nursery.start_soon(self.watcher.run, life.control)
        self._move(_W.READY, load_s=self.load_s)

    def _leave_service(self) -> None:
        self.slots = self.context_tokens = 0
        self.watcher.forget()
        if self.upstream is not None:
            upstream, self.upstream = self.upstream, None
            upstream.close()

    def _begin_stop(self, life: Life, stop: Stop) -> None:
        life.again = None
        if self.state is not _W.STOPPING:
            now = trio.current_time()
            life.stop_reason = stop.reason
            life.urge_at = now + _URGE_S
            life.kill_at = now + (self._settings.stop_timeout_s or math.inf)
            self._move(_W.STOPPING)
            life.child.terminate()
        if stop.force:
            life.child.kill()

    def _urge(self, life: Life) -> None:
        """Press what does not end: llama-server can miss a SIGTERM, and obeys a second at once."""
        if trio.current_time() >= life.kill_at:
            self._remark(f"still there {self._settings.stop_timeout_s:g} s after SIGTERM")
            life.urge_at = life.kill_at = math.inf
            life.child.kill()
        else:
            life.urge_at = math.inf
            life.child.terminate()

    def _ended(self, life: Life, status: int) -> None:
        """Handle the death of the process, told to or not."""
        if self.state is _W.STOPPING:
            self.history.stopped(life.pid)
            self._move(_W.OFF, reason=life.stop_reason)
            return
        lines = self.log.tail(_STDERR_LINES, LogStream.STDERR, after=life.first_line)
        texts = [line.text for line in lines]
        self._fail(diagnose_exit(status, texts, was_ready=life.was_ready))

    def _fail(self, diagnosis: Diagnosis) -> None:
        """Handle an end that nobody asked for: wait and try again, or give up."""
        self._remark(diagnosis.reason)
        pid = self.life.pid if self.life else 0
        verdict = self.history.failed(pid, diagnosis, trio.current_time())
        if isinstance(verdict, GiveUp):
            until = verdict.until if math.isfinite(verdict.until) else 0.0
            self._move(
                _W.FAILED,
                reason=diagnosis.reason,
                retry_at=until,
                permanent=diagnosis.permanent,
            )
        elif self.state is _W.DRAINING:  # it was to go anyway
            self._move(_W.OFF, reason=diagnosis.reason)
        else:
            self._move(_W.BACKOFF, reason=diagnosis.reason, retry_at=verdict.at)

    def _slot_stuck(self, text: str) -> None:
        if self.life is not None:
            self.life.fail(Diagnosis(ExitCause.STUCK_SLOT, text))

    def _hold(self, still: bool) -> None:
        if self.life is not None:
            self.life.child.hold(still)

    # --- small things -----------------------------------------------------------------------

    def memory_bytes(self) -> int:
        """Return its resident memory now; 0 without a process."""
        return procfs.memory_bytes(self.life.pid) if self.life else 0

    def load_fraction(self) -> float | None:
        """Return how far its load is, 0 to 1, as it says; None when it does not load, or say."""
        loading = self.life is not None and self.state in (_W.STARTING, _W.LOADING)
        return self.life.child.load_fraction if self.life and loading else None

    def _remark(self, text: str) -> None:
        self.log.append(LogStream.LLMD, text)
        self._on_remark(text)

    def _wait_for_ready(self, waiter: Waiter | None) -> None:
        if waiter is not None and self.state is _W.READY:
            waiter.answer(None)
        elif waiter is not None:
            self._waiters.append(waiter)

    def _answer_waiters(self, error: StartFailed | None) -> None:
        waiters, self._waiters = self._waiters, []
        for waiter in waiters:
            waiter.answer(error)

    def _wake(self) -> None:
        self.moved.set()
        self.moved = trio.Event()
