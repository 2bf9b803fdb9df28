"""What the driver asks of the load generator, and what it gets back."""

from __future__ import annotations

import base64
import json
import os
import subprocess
import sys
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Job:
    """One load.

    Attributes:
        address: A path for a Unix socket, or `[host, port]` for TCP.
        request: The bytes that every client sends, again and again.
        clients: Connections, each with one request at a time.
        each: Requests per client; 0 = until `window_s` is over.
        warmup: Requests that each client sends first and that are not measured (with `each`).
        warmup_s: Load before the window opens (without `each`).
        window_s: Length of the window in which requests and events are counted (without `each`).
        clock_pid: Process whose CPU time is read when all clients' streams have begun, and when
            the first of them has ended; 0 = none. Needs `each` = 1 and no warm-up.
        deadline_s: A job that takes longer is given up.
    """

    address: str | tuple[str, int]
    request: bytes
    clients: int = 1
    each: int = 0
    warmup: int = 0
    warmup_s: float = 0.0
    window_s: float = 0.0
    clock_pid: int = 0
    deadline_s: float = 120.0

    def encode(self) -> bytes:
        """Return the job as a line."""
        fields = asdict(self) | {"request": base64.b64encode(self.request).decode()}
        return json.dumps(fields).encode() + b"\n"

    @classmethod
    def decode(cls, line: bytes) -> Job:
        """Return the job of a line."""
        fields: dict[str, Any] = json.loads(line)
        fields["request"] = base64.b64decode(fields["request"])
        if isinstance(fields["address"], list):
            fields["address"] = tuple(fields["address"])
        return cls(**fields)


@dataclass
class Result:
    """What a job saw. Times in seconds; all but `all_*` is of the measured part only.

    Attributes:
        wall_s: From the first send to the last answer, or the window.
        requests: Answers completed.
        events: Stream events received.
        reads: Receives that brought bytes of a stream.
        tokens: Completion tokens as the answers themselves tell.
        latency_s: Of each answer: from the send to the last byte.
        first_s: Of each stream: from the send to the first event with text.
        reconnects: Connections opened after the first of each client.
        all_requests: Answers completed, those of the warm-up and outside the window included.
        all_events: Stream events likewise.
        errors: Statuses that were not 200, with their counts, and broken connections as `0`.
        generator_cpu_s: What this process itself used.
        clock_cpu_s: CPU of `clock_pid` while all streams ran.
        clock_events: Events that came meanwhile, on all of them.
        clock_reads: Reads that brought them.
        clock_wall_s: How long that was.
    """

    wall_s: float = 0.0
    requests: int = 0
    events: int = 0
    reads: int = 0
    tokens: int = 0
    latency_s: list[float] = field(default_factory=list)
    first_s: list[float] = field(default_factory=list)
    reconnects: int = 0
    all_requests: int = 0
    all_events: int = 0
    errors: dict[str, int] = field(default_factory=dict)
    generator_cpu_s: float = 0.0
    clock_cpu_s: float = 0.0
    clock_events: int = 0
    clock_reads: int = 0
    clock_wall_s: float = 0.0


def process_cpu_s(pid: int) -> float:
    """Return the CPU time of all threads of a process, in ns resolution.

    This is the kernel's per-process CPU clock (see clock_getcpuclockid(3)); /proc/PID/stat counts
    in ticks of 10 ms, and /proc/PID/schedstat has only the first thread.
    """
    return time.clock_gettime((~pid << 3) | 2)


class Generator:
    """The driver's handle on a generator process; a context manager that ends it."""

    def __init__(self) -> None:
        root = Path(__file__).resolve().parent.parent
        environment = {**os.environ, "PYTHONPATH": str(root)}
        self._process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.generator"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            cwd=root,
            env=environment,
        )

    @property
    def pid(self) -> int:
        """The process's id."""
        return self._process.pid

    def run(self, job: Job) -> Result:
        """Run one job.

        Raises:
            RuntimeError: The job failed; the message says how.
        """
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(job.encode())
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"the load generator ended with {self._process.wait()}")
        answer = json.loads(line)
        if "failure" in answer:
            raise RuntimeError(answer["failure"])
        return Result(**answer)

    def __enter__(self) -> Generator:
        return self

    def __exit__(self, *_: object) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.wait()
        self._process.stdout.close()
