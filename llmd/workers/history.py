"""What has happened to one worker so far, over all of its processes, and what follows from it."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from llmd.core.backoff import RestartBudget, Retry, Verdict
from llmd.workers.diagnosis import Diagnosis, ExitCause
from llmd.workers.settings import WorkerSettings

STOPPED = Diagnosis(ExitCause.STOPPED, "it was stopped")


@dataclass
class History:
    """Starts, ends and crashes; written by the worker's owner only.

    Attributes:
        budget: Which crashes count, and what they allow.
        starts: By reason.
        exits: By cause.
        crashes: Ends that nobody asked for.
        last_failure: Why it last failed; "" = never.
        ended_pid: The process that ended last; 0 = none has.
        end: How that was.
    """

    budget: RestartBudget
    starts: Counter[str] = field(default_factory=Counter)
    exits: Counter[str] = field(default_factory=Counter)
    crashes: int = 0
    last_failure: str = ""
    ended_pid: int = 0
    end: Diagnosis = STOPPED

    @classmethod
    def of(cls, settings: WorkerSettings) -> History:
        """Return one in which nothing has happened yet."""
        return cls(
            RestartBudget(
                limit=settings.restart_limit,
                window_s=settings.restart_window_s,
                base_s=settings.backoff_base_s,
                max_s=settings.backoff_max_s,
            )
        )

    def started(self, reason: str) -> None:
        """Note a start."""
        self.starts[reason] += 1

    def stopped(self, pid: int) -> None:
        """Note that process `pid` ended as it was told to."""
        self.exits[ExitCause.STOPPED.value] += 1
        self.ended_pid, self.end = pid, STOPPED

    def failed(self, pid: int, diagnosis: Diagnosis, now: float) -> Verdict:
        """Note an end that nobody asked for, and say when to try again, if at all.

        Args:
            pid: Of the process; 0 when none came to be.
            diagnosis: How it ended.
            now: Seconds.
        """
        self.exits[diagnosis.cause.value] += 1
        self.last_failure = diagnosis.reason
        self.ended_pid, self.end = pid, diagnosis
        if diagnosis.cause is ExitCause.STUCK_SLOT:
            return Retry(now)  # our own choice, so it costs no budget
        self.crashes += 1
        if diagnosis.permanent:
            return self.budget.refused(now)
        return self.budget.crashed(now)
