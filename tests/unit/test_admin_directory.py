"""The place of the admin socket: who could exchange it, and who can reach it."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from llmd.admin.directory import examine, prepare
from llmd.admin.peercred import Rights
from llmd.admin.socketfile import SocketFile
from llmd.errors import ConfigError

ME = os.geteuid()
GROUP = 4242  # nobody's
OWNER = Rights(ME)
MEMBERS = Rights(ME, GROUP)
ALL = Rights(ME, None, read_all=True)

as_root = pytest.mark.skipif(ME != 0, reason="only root may give files away")


@pytest.fixture
def place():
    """A directory that everybody may pass, at a path short enough for a socket."""
    with tempfile.TemporaryDirectory(prefix="llmd-") as directory:
        place = Path(directory)
        place.chmod(0o755)
        yield place


def mode(path):
    return path.stat().st_mode & 0o7777


def test_a_directory_that_everybody_may_write_to_is_refused(place):
    place.chmod(0o777)
    with pytest.raises(ConfigError, match=r"everybody may write to .*run chmod o-w"):
        SocketFile(place / "admin.sock", OWNER).open()
    assert list(place.iterdir()) == []


def test_a_shared_directory_is_warned_of(place):
    place.chmod(0o1777)
    [warning] = examine(place / "admin.sock", OWNER, own=False)
    assert "while llmd is not running anyone could put another socket" in warning


def test_a_place_within_what_everybody_may_write_to_is_warned_of(place):
    place.chmod(0o777)
    inner = place / "own"
    inner.mkdir(mode=0o700)
    [warning] = examine(inner / "admin.sock", OWNER, own=True)
    assert f"everybody may write to {place}" in warning


@as_root
def test_a_directory_of_somebody_else_is_warned_of(place):
    os.chown(place, 4343, -1)
    [warning] = examine(place / "admin.sock", OWNER, own=False)
    assert "belongs to user 4343" in warning
    os.chown(place, ME, GROUP)
    place.chmod(0o775)
    [warning] = examine(place / "admin.sock", OWNER, own=False)
    assert f"group {GROUP} may write" in warning
    assert examine(place / "admin.sock", MEMBERS, own=False) == []


@as_root
@pytest.mark.parametrize(
    ("rights", "told"),
    [
        (MEMBERS, f"members of {GROUP} cannot reach"),
        (ALL, "other users cannot reach"),
        (OWNER, ""),
    ],
)
def test_those_who_may_use_it_and_cannot_reach_it_are_warned_of(place, rights, told):
    closed = place / "closed"
    closed.mkdir(mode=0o700)
    path = closed / "run" / "admin.sock"
    warnings = examine(path, rights, own=True)
    if not told:
        assert warnings == []
        return
    [warning] = warnings
    assert told in warning
    assert str(closed) in warning
    fix = warning.rpartition("let them pass: ")[2]
    assert os.system(fix) == 0
    assert examine(path, rights, own=True) == []


@as_root
@pytest.mark.parametrize(
    ("rights", "own", "left"),
    [
        (OWNER, True, 0o700),
        (MEMBERS, False, 0o700),  # somebody chose it: not ours to open
        (MEMBERS, True, 0o710),
        (ALL, True, 0o711),
        (Rights(ME, GROUP, read_all=True), True, 0o711),
    ],
)
def test_llmds_own_directory_is_opened_to_those_who_may_use_the_socket(place, rights, own, left):
    directory = place / "run"
    directory.mkdir(mode=0o700)
    file = SocketFile(directory / "admin.sock", rights, own_directory=own)
    file.open()
    assert mode(directory) == left
    assert bool(file.warnings) is (left == 0o700 and rights is not OWNER)
    file.close()


@as_root
@pytest.mark.parametrize(("rights", "made"), [(OWNER, 0o700), (MEMBERS, 0o710), (ALL, 0o711)])
def test_a_missing_directory_is_made_for_those_who_may_use_it(place, rights, made):
    directory = place / "a" / "run"
    prepare(directory, rights, own=False)
    assert mode(directory) == made


_AS_A_USER = """
import os, sys
from pathlib import Path
from llmd.admin.peercred import Rights
from llmd.admin.socketfile import SocketFile
if os.geteuid() == 0:
    os.setgroups([])
    os.setgid(65534)
    os.setuid(65534)
SocketFile(Path(sys.argv[1]), Rights(os.geteuid(), 4242)).open()
"""


def test_a_group_that_the_daemon_is_not_in_is_told(place):
    place.chmod(0o1777)  # where anybody may make a directory of his own
    done = subprocess.run(
        [sys.executable, "-c", _AS_A_USER, str(place / "run" / "admin.sock")],
        check=False,
        capture_output=True,
        text=True,
        timeout=60,
    )
    last = done.stderr.splitlines()[-1]
    assert "server.admin_group" in last
    assert last.endswith("llmd's own user must be a member of it")


def test_what_could_not_be_made_whole_leaves_nothing_behind(place, monkeypatch):
    def refuse(*_args):
        raise PermissionError(1, "Operation not permitted")

    file = SocketFile(place / "admin.sock", MEMBERS)
    monkeypatch.setattr(os, "chown", refuse)
    with pytest.raises(ConfigError, match="must be a member"):
        file.open()
    assert not (place / "admin.sock").exists()
