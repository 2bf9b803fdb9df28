"""The admin socket of daemons in processes of their own: killed, doubled, robbed of its file."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio

from llmd.client import Client, Unreachable

pytestmark = pytest.mark.system

ROOT = Path(__file__).parents[2]
FAKE_WORKER = ROOT / "tests" / "fakes" / "fake_worker.py"


class Box:
    """A config, and daemons that run on it."""

    def __init__(self, folder, model):
        self.socket = folder / "run" / "admin.sock"
        self.config = folder / "config.toml"
        self.config.write_text(
            f'[server]\nport = 0\n[llama]\nbinary = "{FAKE_WORKER}"\n'
            f'[[models]]\nname = "m"\npath = "{model}"\n'
        )
        self.env = {
            **{k: v for k, v in os.environ.items() if not k.startswith("LLMD_")},
            "PYTHONPATH": str(ROOT),
            "RUNTIME_DIRECTORY": str(self.socket.parent),
            "STATE_DIRECTORY": str(folder / "state"),
        }

    def start(self, nursery):
        argv = [sys.executable, "-m", "llmd", "serve", "--config", str(self.config)]
        return nursery.start(
            lambda task_status: trio.run_process(
                argv,
                env=self.env,
                stdin=subprocess.DEVNULL,
                capture_stdout=True,
                capture_stderr=True,
                check=False,
                task_status=task_status,
            )
        )

    async def until_served(self):
        """Ask until somebody answers; return the daemon's pid."""

        def ask():
            with Client(self.socket) as client:
                return client.hello().pid

        while True:
            try:
                return await trio.to_thread.run_sync(ask)
            except Unreachable:
                await trio.sleep(0.02)


@pytest.fixture
def box(runtime_dir, demo_small):
    return Box(runtime_dir, demo_small)


@asynccontextmanager
async def daemon(box):
    """Run a daemon until the block is left; then it is killed."""
    with trio.fail_after(60):
        async with trio.open_nursery() as nursery:
            process = await box.start(nursery)
            try:
                assert await box.until_served() == process.pid
                yield process
            finally:
                if process.returncode is None:
                    process.kill()
                await process.wait()


async def test_what_a_killed_daemon_left_is_reclaimed(box):
    async with daemon(box) as first:
        first.kill()
    assert box.socket.exists()
    with pytest.raises(Unreachable, match="nobody listens"):
        Client(box.socket)
    async with daemon(box) as second:
        second.send_signal(signal.SIGTERM)
        assert await second.wait() == 0
    assert not box.socket.exists()


async def test_a_second_daemon_is_told_and_the_first_goes_on(box):
    async with daemon(box) as first:
        for _ in range(2):
            argv = [sys.executable, "-m", "llmd", "serve", "--config", str(box.config)]
            second = await trio.run_process(
                argv, env=box.env, stdin=b"", capture_stderr=True, check=False
            )
            assert second.returncode == 1
            assert b"another llmd is running" in second.stderr
            assert await box.until_served() == first.pid
            box.socket.unlink()  # which does not let a second one in either
            assert await box.until_served() == first.pid  # it made its file anew


async def test_operators_watch_it_end(box):
    """The socket is closed last: who watches hears of the draining, and then of the end."""

    def watch(told):
        with Client(box.socket) as client:
            events = client.subscribe("workers")
            next(events)
            trio.from_thread.run_sync(told.set)
            return [event.daemon.state for event in events if event.daemon]

    async with daemon(box) as process:
        told, states = trio.Event(), []

        async def watching():
            states.extend(await trio.to_thread.run_sync(watch, told))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(watching)
            await told.wait()
            process.send_signal(signal.SIGTERM)
        assert await process.wait() == 0
    assert states[-1:] in ([], ["draining"])  # a daemon with nothing to do may be faster
