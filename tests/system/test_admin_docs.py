"""The page for operators does what it says: its Python runs, its commands and methods are there."""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path

import pytest
import trio
from daemon_rig import running

from llmd.admin.asking import Asking, asks
from llmd.admin.grammar import build_parser, commands_of
from llmd.client import Client

pytestmark = pytest.mark.system

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "admin.md").read_text(encoding="utf-8")
PYTHON = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)


async def test_its_python_runs(runtime_dir, fake_engine, demo_models):
    async with running(runtime_dir, fake_engine, [demo_models / "demo-small.gguf"]) as llmd:
        env = {**os.environ, "LLMD_SOCKET": str(llmd.daemon.admin.path), "PYTHONPATH": str(ROOT)}
        for code in PYTHON:
            done = await trio.run_process(
                [sys.executable, "-c", code], env=env, capture_stdout=True, capture_stderr=True
            )
            assert done.stderr == b""
        assert b"demo-small ready" in done.stdout


def test_it_names_every_command_and_every_method():
    assert len(PYTHON) == 2
    for name in commands_of(build_parser()):
        assert re.search(rf"llmctl [a-z|]*\b{name}\b", PAGE), name
    methods = {name for name, value in vars(Asking).items() if isinstance(value, asks)}
    told = set(re.findall(r"`(\w+)`", PAGE.partition("| method |")[2].partition("\n\n")[0]))
    assert methods | {"subscribe", "follow"} == told
    assert all(hasattr(Client, name) for name in told)
