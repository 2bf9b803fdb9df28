"""The load generator: a process of its own that runs one job at a time on raw sockets and epoll.

Jobs come as JSON lines on stdin and results go as JSON lines to stdout, so that nothing of the
driver (statistics, printing) costs time while a load runs. The garbage collector is off: a job
allocates little and the process lives for one benchmark.
"""

from __future__ import annotations

import gc
import json
import select
import socket
import sys
import time
from collections import deque
from dataclasses import asdict
from typing import Any

from benchmarks.client import Answer, BadAnswer
from benchmarks.job import Job, Result, process_cpu_s

RECEIVE_BYTES = 262144
RETRY_LIMIT = 2


def connect(address: str | tuple[str, int]) -> socket.socket:
    """Return a connected, non-blocking socket."""
    if isinstance(address, str):
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        sock.connect(address)
    else:
        sock = socket.create_connection(address, timeout=10)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.setblocking(False)
    return sock


class _Client:
    """One connection and the answer that it waits for."""

    __slots__ = (
        "answer",
        "busy",
        "finished",
        "first_at",
        "retries",
        "sent_at",
        "sock",
    )

    def __init__(self) -> None:
        self.sock: socket.socket | None = None
        self.answer = Answer()
        self.busy = False
        self.sent_at = 0.0
        self.first_at = 0.0
        self.finished = 0
        self.retries = 0


class Load:
    """Runs one job; made for it and thrown away."""

    def __init__(self, job: Job) -> None:
        self.job = job
        self.result = Result()
        self._poll = select.epoll()
        self._clients: dict[int, _Client] = {}
        self._idle: deque[_Client] = deque()
        self._opens_at = 0.0
        self._closes_at = 0.0
        self._reads = 0
        self._running_streams = 0
        self._clock_start: tuple[float, float, int, int] | None = None

    def run(self) -> Result:
        """Run the job to its end.

        Raises:
            OSError: The address does not accept connections.
            TimeoutError: The job took longer than its deadline.
        """
        job = self.job
        if job.each and job.warmup:
            self._phase(job.warmup)
            warmup = self.result
            self.result = Result(
                all_requests=warmup.all_requests,
                all_events=warmup.all_events,
                errors=warmup.errors,
            )
        cpu_before_s = time.process_time()
        started = time.perf_counter()
        if job.each:
            self._phase(job.each)
            self.result.wall_s = time.perf_counter() - started
        else:
            self._opens_at = started + job.warmup_s
            self._closes_at = self._opens_at + job.window_s
            self._phase(0)
            self.result.wall_s = job.window_s
        self.result.generator_cpu_s = time.process_time() - cpu_before_s
        return self.result

    def close(self) -> None:
        """Close all connections."""
        for client in [*self._clients.values(), *self._idle]:
            if client.sock is not None:
                client.sock.close()
        self._poll.close()

    def _phase(self, each: int) -> None:
        """Let every client finish `each` requests; 0 = until the window is over."""
        job = self.job
        running = 0
        for _ in range(job.clients):
            client = self._idle.popleft() if self._idle else _Client()
            client.finished = 0
            self._send(client)
            running += 1
        give_up_at = time.perf_counter() + job.deadline_s
        while running:
            ready = self._poll.poll(1.0)
            for fd, _ in ready:
                client = self._clients[fd]
                if not client.busy:
                    # Its server closed a kept-alive connection that has nothing left to do.
                    self._drop(client)
                    continue
                if not self._receive(client):
                    continue
                client.finished += 1
                more = client.finished < each if each else client.sent_at < self._closes_at
                if more and (each or time.perf_counter() < self._closes_at):
                    self._send(client)
                else:
                    running -= 1
                    client.busy = False
                    self._idle.append(client)
            if not ready and time.perf_counter() > give_up_at:
                raise TimeoutError(f"no end after {job.deadline_s} s")

    def _send(self, client: _Client) -> None:
        client.busy = True
        client.answer = Answer()
        client.first_at = 0.0
        client.sent_at = time.perf_counter()
        if client.sock is not None:
            try:
                self._send_on(client.sock)
            except OSError:
                self._drop(client)
            else:
                return
        if client.finished or client.retries:
            self.result.reconnects += 1
        client.sock = connect(self.job.address)
        self._clients[client.sock.fileno()] = client
        self._poll.register(client.sock, select.EPOLLIN)
        self._send_on(client.sock)

    def _send_on(self, sock: socket.socket) -> None:
        if sock.send(self.job.request) != len(self.job.request):
            raise OSError("the request is larger than a socket's buffer")

    def _drop(self, client: _Client) -> None:
        if client.sock is not None:
            del self._clients[client.sock.fileno()]
            self._poll.unregister(client.sock)
            client.sock.close()
            client.sock = None

    def _receive(self, client: _Client) -> bool:
        """Take what came for a client; return True when its answer is complete."""
        answer = client.answer
        assert client.sock is not None
        try:
            data = client.sock.recv(RECEIVE_BYTES)
        except BlockingIOError:
            return False
        except OSError:
            data = b""
        if not data:
            return self._ended(client)
        events_before = answer.events
        try:
            complete = answer.feed(data)
        except BadAnswer as error:
            self._error(f"bad answer: {error}")
            self._drop(client)
            return True
        if answer.events != events_before:
            self._events(client, answer, answer.events - events_before)
        if complete:
            self._complete(client, answer)
        return complete

    def _events(self, client: _Client, answer: Answer, new: int) -> None:
        """Count stream events, and the reads that brought them."""
        now = time.perf_counter()
        self._reads += 1
        self.result.all_events += new
        if self._counted(now):
            self.result.reads += 1
            self.result.events += new
        if not client.first_at and answer.has_content:
            client.first_at = now
            self._running_streams += 1
            if self._running_streams == self.job.clients and self.job.clock_pid:
                cpu_s = process_cpu_s(self.job.clock_pid)
                self._clock_start = (cpu_s, now, self.result.all_events, self._reads)

    def _complete(self, client: _Client, answer: Answer) -> None:
        now = time.perf_counter()
        client.retries = 0
        result = self.result
        result.all_requests += 1
        if answer.status != 200:
            self._error(str(answer.status))
        elif self._counted(now):
            result.requests += 1
            result.tokens += answer.tokens()
            result.latency_s.append(now - client.sent_at)
            if client.first_at:
                result.first_s.append(client.first_at - client.sent_at)
        if self._clock_start is not None:
            self._stop_clock(now, *self._clock_start)
        if answer.closes:
            self._drop(client)

    def _stop_clock(self, now: float, cpu_s: float, at: float, events: int, reads: int) -> None:
        self._clock_start = None
        result = self.result
        result.clock_cpu_s = process_cpu_s(self.job.clock_pid) - cpu_s
        result.clock_events = result.all_events - events
        result.clock_reads = self._reads - reads
        result.clock_wall_s = now - at

    def _counted(self, now: float) -> bool:
        return not self._closes_at or self._opens_at <= now < self._closes_at

    def _ended(self, client: _Client) -> bool:
        """Take the end of a connection; a kept-alive one that was closed is opened again."""
        answer = client.answer
        self._drop(client)
        if answer.feed_eof():
            self._complete(client, answer)
            return True
        if answer.status == 0 and client.retries < RETRY_LIMIT:
            client.retries += 1
            sent_at = client.sent_at
            self._send(client)
            client.sent_at = sent_at
            return False
        self._error("0")
        client.retries = 0
        return True

    def _error(self, what: str) -> None:
        self.result.errors[what] = self.result.errors.get(what, 0) + 1


def serve() -> None:
    """Run jobs from stdin until it ends."""
    gc.disable()
    for line in sys.stdin.buffer:
        load = Load(Job.decode(line))
        try:
            answer: dict[str, Any] = asdict(load.run())
        except (OSError, TimeoutError) as error:
            answer = {"failure": f"{type(error).__name__}: {error}"}
        finally:
            load.close()
        sys.stdout.buffer.write(json.dumps(answer).encode() + b"\n")
        sys.stdout.buffer.flush()


if __name__ == "__main__":
    serve()
