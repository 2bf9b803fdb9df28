"""Workers without processes: a launcher, its children and their control calls, all by script.

For tests on the autojump clock, on which real processes and threads would lie. A `Script` says
how one process behaves from its start; the launcher hands out one after another and repeats the
last one for ever.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path

import trio

from llmd.errors import BadWorkerResponse, StartFailed, WorkerDied, WorkerStalled
from llmd.workers.command import ModelSource, WorkerSpec
from llmd.workers.control import Health, Props, Slot
from llmd.workers.life import Tools
from llmd.workers.logring import LogStream
from llmd.workers.procfs import VitalSigns


@dataclass
class Script:
    """How one process behaves; times are seconds since its start.

    Attributes:
        listen_s: When it answers at all.
        load_s: When it says that it is ready.
        exit_s: When it ends by itself, with `status` and `words` on stderr.
        stop_s: From SIGTERM to its end; inf = ignores it.
        deaf: So many SIGTERMs go unheard.
        lines_s: It logs a line each so many seconds while it loads; 0 = none.
        growth: Bytes of memory it gains a second while it loads.
        reports: It says how far its load is.
        spawn_error: Raised instead of starting.
        path: What /props names; None = what it was given.
        stranger: Another process answers on its socket.
        props_status: Other than 200: what /props answers.
    """

    listen_s: float = 0.01
    load_s: float = 0.1
    exit_s: float = math.inf
    status: int = 1
    words: tuple[str, ...] = ()
    stop_s: float = 0.05
    deaf: int = 0
    lines_s: float = 0.0
    growth: int = 0
    reports: bool = False
    spawn_error: Exception | None = None
    path: str | None = None
    stranger: bool = False
    props_status: int = 200


@dataclass
class FakeChild:
    """A process that is none. `busy` and `deferred` are what /slots and /metrics show."""

    pid: int
    script: Script
    spec: WorkerSpec
    log: object
    started: float = field(default_factory=trio.current_time)
    activity: int = 0
    status: int | None = None
    terminated: int = 0
    killed: bool = False
    silent: bool = False  # as after SIGSTOP
    slots_silent: bool = False  # as in a long batch
    cpu_share: float = 0.0
    busy: int = 0
    decoding: bool = True
    deferred: int = 0
    held: list = field(default_factory=list)  # when each hold began and ended
    heard_in_hold: int = 0  # slots that are free after the next one
    asked: list = field(default_factory=list)
    ended: trio.Event = field(default_factory=trio.Event)

    @property
    def age(self):
        return trio.current_time() - self.started

    @property
    def load_fraction(self):
        return min(1.0, self.age / self.script.load_s) if self.script.reports else None

    def die(self, status, words=()):
        if self.status is None:
            for word in words:
                self.log.append(LogStream.STDERR, word)
            self.status = status
            self.ended.set()

    async def life(self):
        script = self.script
        if script.lines_s:
            while self.age < script.load_s and self.status is None:
                await trio.sleep(script.lines_s)
                self.activity += 10
        if script.exit_s < math.inf:
            await trio.sleep(script.exit_s - self.age)
            self.die(script.status, script.words)

    async def wait(self):
        await self.ended.wait()
        return self.status

    def terminate(self):
        self.terminated += 1
        if self.script.stop_s < math.inf and self.terminated > self.script.deaf:
            self._nursery.start_soon(self._stop)

    async def _stop(self):
        await trio.sleep(self.script.stop_s)
        self.die(0)

    def kill(self):
        if self.status is None:
            self.killed = True
        self.die(-9)

    def hold(self, still):
        assert still == (len(self.held) % 2 == 0)
        self.held.append(trio.current_time())
        self.silent = still
        if not still:
            self.busy, self.heard_in_hold = self.busy - self.heard_in_hold, 0

    def vital_signs(self):
        loading_s = min(self.age, self.script.load_s)
        return VitalSigns(
            cpu_s=self.cpu_share * trio.current_time(),
            memory_bytes=int(self.script.growth * loading_s),
        )


class FakeControl:
    """The control calls to whatever runs behind a socket path."""

    def __init__(self, launcher, socket_path):
        self._launcher = launcher
        self._path = socket_path
        self.closed = False

    def pin(self, pid):
        pass

    def close(self):
        self.closed = True

    async def _child(self, timeout_s=1.0, *, slots=False):
        await trio.lowlevel.checkpoint()
        child = self._launcher.running.get(self._path)
        if child is None or child.status is not None or child.age < child.script.listen_s:
            raise WorkerDied("the worker cannot be reached: fake", answered=False)
        if child.silent or (slots and child.slots_silent):
            with trio.move_on_after(timeout_s):
                await child.ended.wait()
                raise WorkerDied("the worker went away: fake", answered=False)
            raise WorkerStalled(f"no answer within {timeout_s:g} s")
        return child

    async def peer_pid(self):
        child = await self._child()
        return 999_999_999 if child.script.stranger else child.pid

    async def health(self, timeout_s=1.0):
        child = await self._child(timeout_s)
        child.asked.append(("health", trio.current_time()))
        return Health.READY if child.age >= child.script.load_s else Health.LOADING

    async def props(self, timeout_s=1.0):
        child = await self._child(timeout_s)
        if child.script.props_status != 200:
            raise BadWorkerResponse(f"the worker answered {child.script.props_status}")
        path = child.spec.source.path if child.script.path is None else child.script.path
        return Props(total_slots=2, model_path=path)

    async def slots(self, timeout_s=1.0):
        child = await self._child(timeout_s, slots=True)
        child.asked.append(("slots", trio.current_time()))
        state = [{"n_decoded": 5 if child.decoding else 0}]
        return [
            Slot(id=number, is_processing=number < child.busy, next_token=state)
            for number in range(2)
        ]

    async def deferred(self, timeout_s=1.0):
        return (await self._child(timeout_s)).deferred


class FakeUpstream:
    def __init__(self, socket_path, pid):
        self.pid = pid
        self.closed = False

    def close(self):
        self.closed = True


class FakeLauncher:
    """Starts `FakeChild`ren by `scripts`: a list for each model, its last entry for ever."""

    def __init__(self, **scripts):
        self.scripts = {model: list(plan) for model, plan in scripts.items()}
        self.running = {}
        self.children = []
        self.forgotten = []
        self.sweeps = 0
        self.spawn_s = 0.0

    def tools(self):
        return Tools(
            launcher=self,
            control=lambda path: FakeControl(self, path),
            upstream=FakeUpstream,
        )

    async def start(self, spec, log, nursery):
        await trio.sleep(self.spawn_s)
        plan = self.scripts.get(spec.model, [Script()])
        script = plan.pop(0) if len(plan) > 1 else plan[0]
        if script.spawn_error is not None:
            raise script.spawn_error
        child = FakeChild(1000 + len(self.children), script, spec, log)
        child._nursery = nursery
        self.children.append(child)
        self.running[spec.socket_path] = child
        nursery.start_soon(child.life)
        return child

    async def forget(self, spec):
        self.forgotten.append(spec.socket_path)
        self.running.pop(spec.socket_path, None)

    async def sweep(self):
        self.sweeps += 1
        return ()


def spec(model, context_tokens=0):
    """Return a spec that names things and starts nothing."""
    return WorkerSpec(
        model=model,
        source=ModelSource(path=f"/models/{model}.gguf"),
        argv=("llama-server",),
        env={},
        socket_path=Path(f"/run/{model}.sock"),
        context_tokens=context_tokens or 1024,
        slots=2,
    )


__all__ = ["FakeLauncher", "Script", "StartFailed", "spec"]
