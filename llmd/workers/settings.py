"""How workers are started, watched and ended: `[worker]` in the units of the code."""

from __future__ import annotations

from dataclasses import dataclass

from llmd.config import schema
from llmd.core.backoff import BASE_DELAY_S, MAX_DELAY_S


@dataclass(frozen=True, slots=True)
class WorkerSettings:
    """Durations in seconds; 0 means no limit, or never, wherever a limit is meant.

    Attributes:
        startup_timeout_s: A start without any sign of progress for this long is given up.
        stop_timeout_s: From SIGTERM to SIGKILL; 0 = never SIGKILL.
        health_interval_s: Between two checks of a worker that serves.
        check_timeout_s: What a control call may take; a worker that does not answer /health for
            this long is hung.
        restart_limit: Crashes within the window that make a model `failed`.
        restart_window_s: How long a crash counts, and how long `failed` lasts at most.
        backoff_base_s: The wait after the first crash; it doubles with each further one.
        backoff_max_s: The longest wait.
        reclaim_timeout_s: A slot still busy this long after a cancel, on a worker where nothing
            else runs, has the worker restarted.
    """

    startup_timeout_s: float = 120.0
    stop_timeout_s: float = 10.0
    health_interval_s: float = 30.0
    check_timeout_s: float = 5.0
    restart_limit: int = 3
    restart_window_s: float = 300.0
    backoff_base_s: float = BASE_DELAY_S
    backoff_max_s: float = MAX_DELAY_S
    reclaim_timeout_s: float = 5.0

    @classmethod
    def of(cls, worker: schema.WorkerSettings) -> WorkerSettings:
        """Return the settings that `[worker]` asks for."""
        return cls(
            startup_timeout_s=worker.startup_timeout_sec,
            stop_timeout_s=worker.stop_timeout_sec,
            health_interval_s=worker.health_interval_sec,
            restart_limit=worker.restart_limit,
            restart_window_s=worker.restart_window_sec,
        )
