"""Fixtures of the tests that start real processes on a real clock."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest
from worker_rig import Rig


@pytest.fixture
def runtime_dir():
    """A short private directory: the path of a Unix socket has at most 107 bytes."""
    with tempfile.TemporaryDirectory(prefix="llmd-") as directory:
        yield Path(directory)


@pytest.fixture
async def rig(runtime_dir, nursery):
    """A supervisor that runs, over any specs; whatever happens, its workers end with the test."""
    rig = Rig(runtime_dir)
    await nursery.start(rig.run)
    yield rig
    await rig.close()
