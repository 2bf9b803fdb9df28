"""A supervisor for tests: specs by name, and every move recorded and waited for."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import trio

from llmd.workers.settings import WorkerSettings
from llmd.workers.supervisor import Supervisor

QUICK = WorkerSettings(
    startup_timeout_s=20,
    stop_timeout_s=5,
    health_interval_s=0,
    check_timeout_s=1,
    restart_limit=3,
    restart_window_s=300,
    backoff_base_s=0.01,
    reclaim_timeout_s=2,
)


class Rig:
    """Set `settings` and `specs[name]` first, then start what is wanted."""

    def __init__(self, runtime_dir):
        self.runtime_dir = runtime_dir
        self.settings = QUICK
        self.specs = {}
        self.changes = []
        self.reclaimed = []
        self.progress = []
        self._changed = trio.Event()
        self.supervisor = None
        self._scope = trio.CancelScope()
        self._closed = trio.Event()

    def socket(self, name="w"):
        return self.runtime_dir / f"{name}.sock"

    def configure(self, **settings):
        """Replace settings; only before anything has started."""
        self.settings = WorkerSettings(**{**_fields(QUICK), **settings})
        self.supervisor._settings = self.settings

    async def run(self, *, task_status):
        self.supervisor = Supervisor(
            specs=lambda model, _context: self.specs[model],
            settings=self.settings,
            on_change=self._note,
            runtime_dir=self.runtime_dir,
            on_reclaimed=lambda model, seconds: self.reclaimed.append((model, seconds)),
            on_progress=lambda _model, fraction: self.progress.append(fraction),
        )
        with self._scope:
            await self.supervisor.run(task_status=task_status)
        self._closed.set()

    async def close(self):
        self._scope.cancel()
        with trio.fail_after(20):
            await self._closed.wait()

    def _note(self, change):
        self.changes.append(change)
        self._changed.set()
        self._changed = trio.Event()

    def states(self, model):
        return [change.state.value for change in self.changes if change.model == model]

    async def until(self, model, state, after=0):
        """Wait until `model` moves to `state`, later than the first `after` moves of all."""
        while True:
            for change in self.changes[after:]:
                if change.model == model and change.state.value == state:
                    return change
            await self._changed.wait()

    async def ready(self, name, spec):
        """Start `spec` under `name` and return its worker once it is ready."""
        self.specs[name] = spec
        return await self.supervisor.ensure_ready(name, reason="test")


def _fields(settings):
    return {name: getattr(settings, name) for name in settings.__slots__}


def chat(text, **fields):
    """Return the body of a chat completion."""
    request = {"messages": [{"role": "user", "content": text}], **fields}
    return json.dumps(request).encode()


async def ask(worker, body, path=b"/v1/chat/completions"):
    """Send a request to a worker and return (status, body)."""
    response = await worker.upstream.request(b"POST", path, body, JSON)
    try:
        return await response.head(), await response.read(1 << 20)
    finally:
        response.close()


JSON = ((b"Content-Type", b"application/json"),)


async def busy(worker):
    """Return how many slots of a worker are busy, as it says itself."""
    slots = await worker._owner.life.control.slots()
    return sum(slot.is_processing for slot in slots)


async def until_busy(worker, count):
    while await busy(worker) != count:
        await trio.sleep(0.005)


def process_state(pid):
    """Return the state letter of a process; "" when there is none."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2][:1]
    except (FileNotFoundError, ProcessLookupError):
        return ""


def alive(pid):
    """Whether a process runs, zombies not counted."""
    return process_state(pid) not in ("", "Z", "X")


def pause(pid):
    """Stop a process; back once every thread of it stands still, which a busy box delays."""
    os.kill(pid, signal.SIGSTOP)
    for task in Path(f"/proc/{pid}/task").iterdir():
        while process_state(f"{pid}/task/{task.name}") not in ("T", ""):
            os.sched_yield()


def resume(pid):
    os.kill(pid, signal.SIGCONT)
