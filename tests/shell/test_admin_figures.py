"""Figures of the box and of its workers that only the admin socket tells."""

from __future__ import annotations

import pytest
import trio
from admin_rig import admin
from test_admin_commands import running

from llmd.workers import procfs
from llmd.workers.procfs import memory_used_bytes


@pytest.fixture
async def desk(demo_models, autojump_clock):
    async with admin(demo_models) as found:
        yield found


async def test_the_context_fills_with_what_runs(desk):
    peer = desk.peer()
    await peer.ask(type="switch", id=1, model="demo-small", wait=True)
    [idle] = (await peer.ask(type="status", id=2))["result"]["workers"]
    await running(desk)
    [busy] = (await peer.ask(type="status", id=3))["result"]["workers"]
    assert idle["kv_used"] == 0
    assert 0 <= busy["kv_used"] <= 1
    assert busy["context_tokens"] > 0
    await peer.ask(type="cancel", id=4, all=True)


async def test_a_plan_has_what_status_says_beside_what_is_planned_for(desk, monkeypatch):
    monkeypatch.setattr(procfs, "memory_bytes", lambda _pid: 46 << 20)
    peer = desk.peer()
    await peer.ask(type="switch", id=1, model="demo-small", wait=True)
    status = (await peer.ask(type="status", id=2))["result"]
    [worker] = status["workers"]
    plan = (await peer.ask(type="switch", id=3, model="demo-large", dry_run=True))["result"]
    [goes] = plan["evict"]
    assert goes["now_bytes"] == worker["memory_bytes"] > 0
    assert plan["now_bytes"] == status["totals"]["memory_held_bytes"]
    assert goes["memory_bytes"] == worker["estimate_bytes"] == plan["held_bytes"]


async def test_a_worker_has_a_rate_in_the_first_second_of_its_work(desk):
    peer = desk.peer()
    await running(desk)
    record = desk.rig.registry.record("r-1")
    record.first_byte(trio.current_time() - 0.5)
    record.events = 30
    [worker] = (await peer.ask(type="status", id=1))["result"]["workers"]
    assert 40 <= worker["tokens_per_s"] <= 60
    await peer.ask(type="cancel", id=2, all=True)


async def test_the_memory_of_the_box_is_told(desk):
    totals = (await desk.peer().ask(type="status", id=1))["result"]["totals"]
    assert totals["memory_used_bytes"] > 0


def test_memory_in_use_leaves_out_what_can_be_had_back(tmp_path):
    (tmp_path / "meminfo").write_text("MemTotal: 1000 kB\nMemFree: 1 kB\nMemAvailable: 600 kB\n")
    assert memory_used_bytes(tmp_path) == 400 * 1024
    assert memory_used_bytes(tmp_path / "none") == 0
