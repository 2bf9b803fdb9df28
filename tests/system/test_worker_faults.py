"""Workers that misbehave, on real processes: nothing is lost, nobody else is touched."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

import pytest
import trio
from worker_rig import JSON, Rig, alive, ask, busy, chat, pause, until_busy

from llmd.errors import BadWorkerResponse, StartFailed, WorkerDied
from llmd.workers.logring import LogStream

pytestmark = pytest.mark.system
HERE = Path(__file__).parent


@pytest.fixture
def fake(fake_engine, rig, demo_small):
    """Make a spec of the fake worker with switches from its environment."""

    def make(name="m", **env):
        return fake_engine.spec(demo_small, rig.socket(name), env=env)

    return make


def shell(spec, script):
    """Return `spec` started by a shell: `"$@"` in `script` is the worker's own command."""
    return replace(spec, argv=("/bin/sh", "-c", script, "sh", *spec.argv))


async def post(worker, text, **fields):
    """Send a streamed chat and return its response once it has begun."""
    body = chat(text, stream=True, **fields)
    response = await worker.upstream.request(b"POST", b"/v1/chat/completions", body, JSON)
    await response.head()
    return response


def descriptors():
    return len(list(Path("/proc/self/fd").iterdir()))


# --- starts --------------------------------------------------------------------------------


async def test_a_crash_at_load_is_tried_again_and_then_fails(rig, fake):
    rig.specs["m"] = fake(FAKE_CRASH="std::bad_function_call")
    with trio.fail_after(30), pytest.raises(StartFailed, match="bad_function_call") as failed:
        await rig.supervisor.ensure_ready("m")
    assert not failed.value.permanent
    assert rig.states("m").count("backoff") == 2
    assert rig.states("m")[-1] == "failed"
    assert rig.changes[-1].retry_at > trio.current_time()


async def test_a_few_crashes_are_got_over(rig, fake, tmp_path):
    (tmp_path / "crashes").write_text("2")
    with trio.fail_after(30):
        worker = await rig.ready("m", fake(FAKE_CRASHES=str(tmp_path / "crashes")))
    assert worker.statistics().crashes == 2
    assert worker.statistics().starts == {"test": 1, "restart": 2}


async def test_a_slow_load_is_shown_as_loading(rig, fake):
    with trio.fail_after(30):
        await rig.ready("m", fake(FAKE_LOAD_S="0.4"))
    assert rig.states("m") == ["starting", "loading", "ready"]


@pytest.mark.parametrize("switch", ["FAKE_NEVER_READY", "FAKE_NO_LISTEN"])
async def test_a_start_that_gets_nowhere_is_killed(rig, fake, switch):
    rig.configure(startup_timeout_s=0.4, restart_limit=1)
    rig.specs["m"] = fake(**{switch: "1"})
    with trio.fail_after(30), pytest.raises(StartFailed, match="without a sign of progress"):
        await rig.supervisor.ensure_ready("m")
    await rig.supervisor.worker("m").stopped()
    assert rig.supervisor.worker("m").statistics().exits == {"not_ready": 1}
    assert list(rig.runtime_dir.iterdir()) == []


async def test_a_load_that_gets_on_may_take_longer_than_the_timeout(rig, fake):
    rig.configure(startup_timeout_s=0.5)
    with trio.fail_after(30):
        worker = await rig.ready("m", fake(FAKE_LOAD_S="1.5", FAKE_LOAD_LOG="1"))
    assert worker.statistics().crashes == 0


async def test_a_start_that_was_paused_for_good_is_killed(rig, fake):
    rig.configure(startup_timeout_s=0.5, restart_limit=1, check_timeout_s=0.2)
    rig.specs["m"] = fake(FAKE_LOAD_S="30")
    with trio.fail_after(30):
        rig.supervisor.start("m")
        await rig.until("m", "loading")
        pid = rig.supervisor.worker("m").statistics().pid
        pause(pid)
        await rig.until("m", "failed")
        await rig.supervisor.worker("m").stopped()
    assert not alive(pid)


async def test_a_program_that_is_not_there_fails_at_once(rig, fake):
    rig.specs["m"] = replace(fake(), argv=("/no/such/llama-server",))
    with trio.fail_after(30), pytest.raises(StartFailed, match="/no/such/llama-server") as failed:
        await rig.supervisor.ensure_ready("m")
    assert failed.value.permanent


async def test_a_worker_that_lies_about_its_model_is_refused(rig, fake):
    rig.specs["m"] = fake(FAKE_PATH="/etc/\x1b[31mpasswd")
    with trio.fail_after(30), pytest.raises(StartFailed, match="serves '/etc/passwd'"):
        await rig.supervisor.ensure_ready("m")


async def test_a_stranger_that_listens_first_is_refused(rig, fake):
    """Our own child never listens; somebody else answers where it should."""
    rig.configure(restart_limit=1)
    stranger = await rig.ready("stranger", fake("s"))
    rig.specs["m"] = fake(FAKE_NO_LISTEN="1")
    with trio.fail_after(30):
        rig.supervisor.start("m")
        while not rig.supervisor.worker("m").statistics().pid:
            await trio.sleep(0.001)
        os.link(rig.socket("s"), rig.socket("m"))
        change = await rig.until("m", "failed")
    assert f"process {stranger.statistics().pid}" in change.reason
    assert "ready" not in rig.states("m")
    assert rig.supervisor.worker("m").statistics().exits == {"identity": 1}


async def test_a_wrapper_around_the_worker_is_accepted(rig, fake):
    """The listener is no child of ours but of its group; its memory is what counts."""
    with trio.fail_after(30):
        worker = await rig.ready("m", shell(fake(), '"$@"; exit $?'))
        assert (await ask(worker, chat("hello", max_tokens=1)))[0] == 200
        pid = worker.statistics().pid
        assert b"fake_worker" in Path(f"/proc/{pid}/cmdline").read_bytes()
        worker.stop()
        await worker.stopped()
        while alive(pid):  # its pipes are closed, its exit may take a moment more
            await trio.sleep(0.001)


async def test_another_daemon_in_the_same_directory_is_respected(rig, fake):
    with trio.fail_after(30):
        worker = await rig.ready("m", fake())
        code = OTHER_DAEMON.format(tests=str(HERE), directory=str(rig.runtime_dir))
        done = await trio.run_process(
            [sys.executable, "-c", code, *worker.spec.argv], capture_stdout=True
        )
        assert b"another llmd" in done.stdout
        assert (await ask(worker, chat("hello", max_tokens=1)))[0] == 200


OTHER_DAEMON = """
import os, sys
sys.path.insert(0, {tests!r})
import trio
from pathlib import Path
from worker_rig import Rig
from llmd.errors import StartFailed
from llmd.workers.command import ModelSource, WorkerSpec

async def main():
    rig = Rig(Path({directory!r}))
    async with trio.open_nursery() as nursery:
        await nursery.start(rig.run)
        path = rig.socket("m")
        spec = WorkerSpec("m", ModelSource(), tuple(sys.argv[1:]), dict(os.environ), path, 1, 1)
        try:
            worker = await rig.ready("m", spec)
        except StartFailed as failed:
            print(failed.message, flush=True)
        else:
            print("ready", worker.statistics().pid, flush=True)
            await trio.sleep_forever()
        await rig.close()

trio.run(main)
"""


# --- ends ----------------------------------------------------------------------------------


async def test_what_ignores_sigterm_is_killed(rig, fake):
    rig.configure(stop_timeout_s=0.3)
    with trio.fail_after(30):
        worker = await rig.ready("m", fake(FAKE_IGNORE_TERM="1"))
        pid = worker.statistics().pid
        worker.stop()
        await worker.stopped()
    assert not alive(pid)
    assert rig.states("m")[-1] == "off"


async def test_a_paused_worker_can_be_stopped(rig, fake):
    with trio.fail_after(30):
        worker = await rig.ready("m", fake())
        pause(worker.statistics().pid)
        worker.stop()
        await worker.stopped()
    assert worker.statistics().exits == {"stopped": 1}


async def test_helpers_of_a_worker_do_not_survive_it(rig, fake, tmp_path):
    note = tmp_path / "helper"
    script = f'sleep 600 & echo $! > {shlex.quote(str(note))}; exec "$@"'
    with trio.fail_after(30):
        worker = await rig.ready("m", shell(fake(), script))
        helper = int(note.read_text())
        assert alive(helper)
        os.kill(worker.statistics().pid, signal.SIGKILL)
        await rig.until("m", "backoff")
        while alive(helper):
            await trio.sleep(0.005)


async def test_a_stranger_that_holds_the_pipes_does_not_hide_a_death(rig, fake, tmp_path):
    """A helper in a session of its own outlives the group and keeps stderr open."""
    note = tmp_path / "helper"
    script = f'setsid sleep 600 & echo $! > {shlex.quote(str(note))}; exec "$@"'
    with trio.fail_after(30):
        worker = await rig.ready("m", shell(fake(), script))
        try:
            os.kill(worker.statistics().pid, signal.SIGKILL)
            await rig.until("m", "backoff")
            await rig.until("m", "ready", len(rig.changes) - 1)
        finally:
            os.kill(int(note.read_text()), signal.SIGKILL)


async def test_a_worker_that_talks_too_much_is_not_stalled_by_it(rig, fake):
    with trio.fail_after(30):
        worker = await rig.ready("m", fake(FAKE_CHATTER="3000000"))
        await worker.log.newer(59_999)  # the last of it may still be in the pipe
    assert len(worker.log.since(0)) <= 1000
    assert {line.stream for line in worker.log.since(0)} >= {LogStream.STDERR}


async def test_cancelling_the_supervisor_at_any_moment_leaves_no_process(fake_engine, demo_small):
    """From the first checkpoint of a start to well after it is ready."""
    seen = set()
    for steps in (*range(0, 40, 3), *range(40, 400, 60)):
        with trio.fail_after(30):
            seen |= await _cancelled_after(steps, fake_engine, demo_small)
    assert {"starting", "ready"} <= seen


async def _cancelled_after(steps, engine, model):
    with tempfile.TemporaryDirectory(prefix="llmd-") as directory:
        rig = Rig(Path(directory))
        rig.specs["m"] = engine.spec(model, rig.socket())
        async with trio.open_nursery() as nursery:
            await nursery.start(rig.run)
            rig.supervisor.start("m")
            for _ in range(steps):
                await trio.sleep(0.0005)
            worker = rig.supervisor.worker("m")
            await rig.close()
        assert worker.statistics().pid == 0
        assert list(Path(directory).iterdir()) == []
        return set(rig.states("m"))


# --- while it serves -----------------------------------------------------------------------


async def test_a_request_that_kills_its_worker_kills_no_other(rig, fake):
    with trio.fail_after(30):
        first = await rig.ready("a", fake("a"))
        second = await rig.ready("b", fake("b"))
        with pytest.raises(WorkerDied):
            await ask(first, chat("[[crash]]"))
        change = await rig.until("a", "backoff")
        assert (await ask(second, chat("hello", max_tokens=1)))[0] == 200
        await rig.until("a", "ready", len(rig.changes) - 1)
    assert "SIGABRT" in change.reason
    assert "GGML_ASSERT" in change.reason
    assert second.statistics().crashes == 0


async def test_a_request_that_kills_every_worker_it_meets_makes_the_model_fail(rig, fake):
    with trio.fail_after(30):
        worker = await rig.ready("m", fake())
        for state in ("backoff", "backoff", "failed"):
            await worker.ensure_ready()
            seen = len(rig.changes)
            with pytest.raises(WorkerDied):
                await ask(worker, chat("[[crash]]"))
            await rig.until("m", state, seen)
    assert worker.statistics().crashes == 3


async def test_a_worker_that_hangs_breaks_what_waits_and_is_replaced(rig, fake):
    rig.configure(check_timeout_s=0.3)
    broken = []
    with trio.fail_after(30):
        worker = await rig.ready("m", fake())

        async def wait():
            with pytest.raises(WorkerDied):
                await ask(worker, chat("[[hang]]"))
            broken.append(True)
            await worker.ensure_ready()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(wait)
            while not broken:
                await trio.sleep(0.05)
                worker.suspect("no byte")
        assert (await ask(worker, chat("hello", max_tokens=1)))[0] == 200
    assert worker.statistics().exits == {"hung": 1}


async def test_the_routine_check_finds_a_hang_by_itself(rig, fake):
    rig.configure(check_timeout_s=0.2, health_interval_s=0.1)
    with trio.fail_after(30):
        worker = await rig.ready("m", fake())
        pause(worker.statistics().pid)
        await rig.until("m", "backoff")
        await rig.until("m", "ready", len(rig.changes) - 1)


async def test_garbage_is_an_error_of_that_request_only(rig, fake):
    with trio.fail_after(30):
        worker = await rig.ready("m", fake())
        with pytest.raises(BadWorkerResponse):
            await ask(worker, chat("[[garbage]]"))
        assert (await ask(worker, chat("hello", max_tokens=1)))[0] == 200


async def test_a_slot_that_stays_busy_after_a_cancel_costs_the_worker_if_nothing_else_runs(
    rig, fake
):
    rig.configure(reclaim_timeout_s=0.5)
    with trio.fail_after(30):
        worker = await rig.ready("m", fake())
        response = await post(worker, "[[sticky]] [[token 1]]")
        response.close()
        worker.reclaim(lambda: 0, "client_gone")
        change = await rig.until("m", "backoff")
        await rig.until("m", "ready", len(rig.changes) - 1)
        assert await busy(worker) == 0
    assert "slot not reclaimed" in change.reason
    assert worker.statistics().exits == {"stuck_slot": 1}
    assert worker.statistics().crashes_counted == 0
    assert rig.reclaimed == []


async def test_a_slot_that_stays_busy_waits_for_who_still_runs(rig, fake):
    rig.configure(reclaim_timeout_s=0.3)
    leases = [2]
    with trio.fail_after(30):
        worker = await rig.ready("m", fake())
        stuck = await post(worker, "[[sticky]] [[token 1]]")
        other = await post(worker, "[[token 0.02]]", max_tokens=60)
        stuck.close()
        leases[0] = 1
        worker.reclaim(lambda: leases[0], "client_gone")
        body = await other.read(1 << 20)
        assert b"[DONE]" in body
        assert worker.state.value == "ready"
        assert worker.statistics().reclaims.pending == 1
        leases[0] = 0
        await rig.until("m", "backoff")


async def test_a_hundred_vanishing_clients_leave_no_slot_and_no_descriptor(rig, fake):
    with trio.fail_after(60):
        worker = await rig.ready("m", fake())
        await until_busy(worker, 0)
        before = descriptors()
        for _ in range(100):
            response = await post(worker, "[[token 0.01]]", max_tokens=50)
            response.close()
            worker.reclaim(lambda: 0, "client_gone")
        while len(rig.reclaimed) < 100:
            await trio.sleep(0.01)
        await until_busy(worker, 0)
        assert descriptors() <= before
    assert worker.statistics().reclaims.reclaimed == 100
    assert worker.statistics().crashes == 0


# --- after the daemon's own death ----------------------------------------------------------


async def test_workers_of_a_killed_daemon_are_swept_by_the_next(
    runtime_dir, fake_engine, demo_small
):
    spec = fake_engine.spec(demo_small, runtime_dir / "m.sock")
    code = OTHER_DAEMON.format(tests=str(HERE), directory=str(runtime_dir))
    with trio.fail_after(60):
        daemon = await trio.lowlevel.open_process(
            [sys.executable, "-c", code, *spec.argv], stdout=subprocess.PIPE
        )
        said = b""
        while b"\n" not in said:
            said += await daemon.stdout.receive_some()
        pid = int(said.split()[1])
        daemon.kill()
        await daemon.wait()
        await daemon.stdout.aclose()
        assert alive(pid)
        rig = Rig(runtime_dir)
        async with trio.open_nursery() as nursery:
            await nursery.start(rig.run)
            assert not alive(pid)
            assert list(runtime_dir.iterdir()) == []
            await rig.ready("m", spec)
            await rig.close()
