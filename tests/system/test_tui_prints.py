"""What llmtui prints without a screen: into any locale, and where nothing can be written."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.system


def run(*words, stdout=subprocess.PIPE, **env):
    return subprocess.run(
        [sys.executable, "-m", "llmtui.app", "--demo", *words],
        stdout=stdout, stderr=subprocess.PIPE, stdin=subprocess.DEVNULL, timeout=60, check=False,
        env={**os.environ, **env},
    )  # fmt: skip


@pytest.mark.parametrize("words", [("--once",), ("--once", "--json"), ("--keys",)])
def test_a_locale_of_ascii_alone_is_enough(words):
    done = run(
        *words, LC_ALL="C", PYTHONUTF8="0", PYTHONCOERCECLOCALE="0", PYTHONIOENCODING="ascii"
    )
    assert (done.returncode, done.stderr) == (0, b"")
    assert done.stdout.isascii()


@pytest.mark.parametrize("words", [("--once",), ("--once", "--json"), ("--keys",)])
def test_a_full_disk_is_said_in_a_line(words):
    with Path("/dev/full").open("wb") as full:
        done = run(*words, stdout=full)
    assert done.returncode == 1
    assert done.stderr == b"llmtui: cannot write: No space left on device\n"


def test_a_picture_that_cannot_be_written_is_said_in_a_line(tmp_path):
    file = tmp_path / "missing" / "x.svg"
    done = run("--svg", str(file), "--size", "60x20")
    assert done.returncode == 1
    assert done.stderr.decode() == f"llmtui: cannot write {file}: No such file or directory\n"
