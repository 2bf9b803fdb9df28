"""The records of workers: trusted in nothing that the process itself does not confirm."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

import msgspec
import pytest

from llmd.workers import orphans, procfs
from llmd.workers.orphans import WorkerRecord, record_path, remove_record, sweep, write_record


@pytest.fixture
def directory():
    with tempfile.TemporaryDirectory(prefix="llmd-") as path:
        yield Path(path)


@pytest.fixture
def victim(directory):
    """A process in a group of its own with a worker's command line, its socket path and pid."""
    path = directory / "w.sock"
    code = "import time; print(flush=True); time.sleep(600)"
    process = subprocess.Popen(
        [sys.executable, "-c", code, "--host", str(path)],
        start_new_session=True,
        stdout=subprocess.PIPE,
    )
    with process:
        # Popen is back while the kernel still puts the new program's arguments into place
        process.stdout.readline()
        yield path, process
        process.kill()


def record(path, process, **changes):
    """Write a record as a daemon that is dead now would have left it."""
    fields = {
        "model": "m",
        "pid": process.pid,
        "started": procfs.started_ticks(process.pid),
        "socket": str(path),
        "daemon_pid": 2**22 + 5,  # above any pid
        "daemon_started": 1,
        **changes,
    }
    record_path(path).write_bytes(msgspec.json.encode(WorkerRecord(**fields)))


def test_a_leftover_is_killed_and_its_traces_removed(directory, victim):
    path, process = victim
    with socket.socket(socket.AF_UNIX) as stale:
        stale.bind(str(path))
    record(path, process)
    (swept,) = sweep(directory)
    assert (swept.model, swept.pid, swept.killed) == ("m", process.pid, True)
    assert process.wait(5) == -signal.SIGKILL
    assert list(directory.iterdir()) == []


def test_another_process_with_that_pid_is_left_alone(directory, victim):
    path, process = victim
    record(path, process, started=procfs.started_ticks(process.pid) - 1)
    (swept,) = sweep(directory)
    assert not swept.killed
    assert process.poll() is None
    assert list(directory.iterdir()) == []


def test_a_process_that_does_not_name_the_socket_is_left_alone(directory, victim):
    path, process = victim
    other = directory / "other.sock"
    record(other, process)
    assert [entry.killed for entry in sweep(directory)] == [False]
    assert process.poll() is None


def test_the_worker_of_a_living_daemon_is_left_alone(directory, victim):
    path, process = victim
    living = {
        "daemon_pid": os.getppid(),
        "daemon_started": procfs.started_ticks(os.getppid()),
    }
    record(path, process, **living)
    (swept,) = sweep(directory)
    assert not swept.killed
    assert process.poll() is None
    assert record_path(path).exists()
    assert orphans.owned_by_another(path) == os.getppid()


def test_a_daemon_whose_pid_was_used_again_is_dead(directory, victim):
    path, process = victim
    record(path, process, daemon_pid=os.getppid(), daemon_started=1)
    assert orphans.owned_by_another(path) == 0
    assert [entry.killed for entry in sweep(directory)] == [True]


def test_our_own_record_is_no_other_daemons(directory, victim):
    path, process = victim
    write_record("m", process.pid, path)
    assert orphans.owned_by_another(path) == 0
    decoded = msgspec.json.decode(record_path(path).read_bytes(), type=WorkerRecord)
    assert decoded.pid == process.pid
    assert decoded.daemon_pid == os.getpid()
    assert record_path(path).stat().st_mode & 0o777 == 0o600
    remove_record(path)
    assert list(directory.iterdir()) == []


def test_a_process_that_is_gone_needs_no_record_and_is_no_leftover(directory, victim):
    path, process = victim
    record(path, process)
    process.kill()
    process.wait()
    assert [entry.killed for entry in sweep(directory)] == [False]
    write_record("m", process.pid, path)
    assert list(directory.iterdir()) == []


@pytest.mark.parametrize(
    "garbage",
    [
        b"",
        b"{",
        b"[]",
        b"\xff\xfe",
        b'{"model":"m","pid":1,"started":1,"socket":"x","daemon_pid":5,"daemon_started":1}',
        b'{"model":"m","pid":-9,"started":1,"socket":"x","daemon_pid":5,"daemon_started":1}',
        b"[" * 100_000,
        b'{"more":' + b"[" * 100_000,
    ],
)
def test_garbage_is_removed_and_hurts_nobody(directory, garbage):
    path = record_path(directory / "w.sock")
    path.write_bytes(garbage)
    (swept,) = sweep(directory)
    assert not swept.killed
    assert not path.exists()


def test_a_link_is_not_followed(directory, victim):
    path, process = victim
    elsewhere = directory / "elsewhere"
    elsewhere.mkdir()
    record(elsewhere / "w.sock", process)
    record_path(path).symlink_to(record_path(elsewhere / "w.sock"))
    assert [entry.killed for entry in sweep(directory)] == [False]
    assert process.poll() is None


def test_only_files_beside_the_record_are_removed(directory, victim):
    path, process = victim
    precious = directory / "sub" / "precious.sock"
    precious.parent.mkdir()
    precious.touch()
    record(path, process, socket=str(precious))
    sweep(directory)
    assert precious.exists()
    assert not record_path(path).exists()


def test_an_empty_or_missing_directory_is_nothing_to_sweep(directory):
    assert sweep(directory) == ()
    assert sweep(directory / "none") == ()


def test_vital_signs_of_ourselves():
    signs = procfs.vital_signs(os.getpid())
    assert signs.memory_bytes > 1 << 20
    assert signs.cpu_s > 0
    assert procfs.memory_bytes(os.getpid()) > 1 << 20


def test_vital_signs_of_nobody():
    assert procfs.vital_signs(2**22 + 5) == procfs.VitalSigns()
    assert procfs.memory_bytes(2**22 + 5) == 0
    assert procfs.started_ticks(2**22 + 5) is None
    assert procfs.command_line(2**22 + 5) == ()


def test_a_name_with_parentheses_does_not_confuse(directory):
    stat = directory / "7" / "stat"
    stat.parent.mkdir()
    stat.write_text("7 (a) b (c) R " + " ".join(str(n) for n in range(4, 53)))
    assert procfs.started_ticks(7, directory) == 22
    stat.write_text("7 (a) b (c) Z " + " ".join(str(n) for n in range(4, 53)))
    assert procfs.started_ticks(7, directory) is None
