"""Each `[worker]` key that concerns a process reaches it."""

from __future__ import annotations

from llmd.config.schema import WorkerSettings as WorkerConfig
from llmd.workers.settings import WorkerSettings


def test_the_config_is_carried_over():
    config = WorkerConfig(
        startup_timeout_sec=1,
        stop_timeout_sec=2,
        health_interval_sec=3,
        restart_limit=4,
        restart_window_sec=5,
    )
    assert WorkerSettings.of(config) == WorkerSettings(
        startup_timeout_s=1,
        stop_timeout_s=2,
        health_interval_s=3,
        restart_limit=4,
        restart_window_s=5,
    )


def test_the_defaults_agree():
    assert WorkerSettings.of(WorkerConfig()) == WorkerSettings()
