"""What is measured: llmd as a user would run it, on models written for the occasion.

Everything lives in one temporary directory: config, state, sockets, models and byte code.
"""

from __future__ import annotations

import json
import os
import shlex
import shutil
import signal
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.client import Answer, BadAnswer, request_bytes
from llmd.models import demo

ROOT = Path(__file__).resolve().parent.parent
KEY = "sk-benchmark-0123456789abcdef"
SMALL = demo.SMALL.name
SLOW = "bench-slow"
SLOTS = 8
CONTEXT_TOKENS = 4096
START_LIMIT_S = 60.0

Address = str | tuple[str, int]


class BenchmarkError(Exception):
    """The benchmark cannot go on; the message says why, for a person."""


@dataclass(frozen=True)
class Settings:
    """What may be chosen on the command line about the processes.

    Attributes:
        engine: Path of what acts as llama-server.
        threads: Threads of the small model's worker; 0 = the engine's choice.
        slow_layers: Size of the slow model; more layers make a token take longer.
        chat_template: For both models, as llama-server names it; "" = their own.
    """

    engine: Path
    threads: int
    slow_layers: int
    chat_template: str


def choose_engine(wanted: str, directory: Path) -> tuple[Path, str]:
    """Return the program to run as llama-server, and its name for the report.

    Args:
        wanted: `auto`, `embedded` or a path.
        directory: Where a wrapper for the embedded engine may be written.

    Raises:
        BenchmarkError: There is no such program.
    """
    found = wanted
    if wanted == "auto":
        found = os.environ.get("TEST_LLAMA_SERVER") or shutil.which("llama-server") or ""
    if found and wanted != "embedded":
        path = Path(found).absolute()
        if not os.access(path, os.X_OK):
            raise BenchmarkError(f"{path} cannot be run")
        return path, "llama-server"
    # A program in its own right, so that llmd and a null test start it in the same way.
    wrapper = directory / "llama-server"
    python = shlex.quote(sys.executable)
    wrapper.write_text(
        f'#!/bin/sh\nPYTHONPATH={shlex.quote(str(ROOT))} exec {python} -m llmd engine "$@"\n'
    )
    wrapper.chmod(0o755)
    return wrapper, "embedded"


def write_models(directory: Path, *, slow_layers: int) -> dict[str, Path]:
    """Write the demo models, and one whose tokens take several milliseconds each."""
    # Deep rather than wide: the time goes into calls and not into weights, so that a token does
    # not push the daemon's memory out of the caches as a model of that speed otherwise would.
    slow = demo.Shape(
        SLOW, CONTEXT_TOKENS, width=64, layers=slow_layers, feed_forward=32, heads=1, kv_heads=1
    )
    small, _ = demo.write_demo_models(directory)
    return {SMALL: small, SLOW: demo.write_model(directory, slow)}


def model_flags(model: str, settings: Settings) -> tuple[int, int]:
    """Return the slots and threads of a model."""
    # With one thread the slow model stays slow, and leaves the other cores to who measures.
    return (SLOTS, 1) if model == SLOW else (SLOTS, settings.threads)


def environment(directory: Path) -> dict[str, str]:
    """Return the environment of what is measured: nothing of the caller's llmd settings.

    Byte code is cached in the directory: without it each start would compile everything.
    """
    foreign = ("LLMD_", "LLAMA_", "STATE_DIRECTORY", "RUNTIME_DIRECTORY", "NOTIFY_", "LISTEN_")
    kept = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(foreign) and name != "PYTHONDONTWRITEBYTECODE"
    }
    return kept | {
        "PYTHONPATH": str(ROOT),
        "PYTHONPYCACHEPREFIX": str(directory / "pycache"),
        "XDG_RUNTIME_DIR": str(directory / "run"),
        "XDG_STATE_HOME": str(directory / "state"),
    }


def config_toml(models: Mapping[str, Path], settings: Settings, port: int) -> str:
    """Return a config with everything on that a request passes through, and limits never met."""
    text = f"""
[server]
port = {port}
metrics_open = true

[llama]
binary = {json.dumps(str(settings.engine))}

[worker]
max_loaded = {len(models)}

[rate_limit]
requests_per_minute = 100000000
estimated_tokens_per_minute = 1000000000000

[[api_keys]]
name = "benchmark"
key = "{KEY}"
role = "user"
"""
    for name, path in models.items():
        slots, threads = model_flags(name, settings)
        text += f"""
[[models]]
name = "{name}"
path = {json.dumps(str(path))}
context_size = {CONTEXT_TOKENS}
parallel = {slots}
threads = {threads}
chat_template = {json.dumps(settings.chat_template)}
"""
    return text


def ask(
    address: Address,
    path: str,
    body: dict[str, Any] | None = None,
    *,
    key: str = "",
    timeout_s: float,
) -> Answer:
    """Send one request on a connection of its own and return the whole answer.

    Raises:
        OSError: Nobody listens, or the connection broke, or the time is over.
    """
    if isinstance(address, str):
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    else:
        sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    with sock:
        sock.settimeout(timeout_s)
        sock.connect(address)
        sock.sendall(request_bytes(path, body, key=key))
        answer = Answer()
        while not answer.complete:
            data = sock.recv(65536)
            if data:
                answer.feed(data)
            elif not answer.feed_eof():
                raise OSError("the connection ended before the answer did")
        return answer


def listener_pid(address: str) -> int:
    """Return the process that listens on a Unix socket."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
        sock.connect(address)
        credentials = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
    pid: int = struct.unpack("3i", credentials)[0]
    return pid


def chat(model: str, max_tokens: int, *, stream: bool = False) -> dict[str, Any]:
    """Return the body of a chat completion."""
    content = "Tell me about the river, please."
    body: dict[str, Any] = {
        "model": model,
        "messages": [{"role": "user", "content": content}],
        "max_tokens": max_tokens,
    }
    return body | {"stream": True} if stream else body


class Process:
    """A program of the benchmark's own, its log in a file; a context manager that stops it."""

    def __init__(self, argv: list[str], env: Mapping[str, str], log: Path) -> None:
        self.log = log
        self.started_at = time.perf_counter()
        with log.open("ab") as output:
            self._process = subprocess.Popen(
                argv,
                env=dict(env),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                cwd=log.parent,
            )
        self.pid = self._process.pid

    def check(self) -> None:
        """Raise BenchmarkError when the process has ended."""
        if self._process.poll() is not None:
            last = "\n".join(self.log.read_text(errors="replace").splitlines()[-15:])
            raise BenchmarkError(f"{self.log.stem} ended with {self._process.returncode}:\n{last}")

    def wait_for(self, address: Address, path: str) -> float:
        """Wait until a GET answers 200; return the seconds since the process was started.

        Raises:
            BenchmarkError: It ended, or was not ready in time.
        """
        while time.perf_counter() - self.started_at < START_LIMIT_S:
            with suppress(OSError, BadAnswer):
                if ask(address, path, timeout_s=5).status == 200:
                    return time.perf_counter() - self.started_at
            self.check()
            time.sleep(0.005)
        raise BenchmarkError(f"{self.log.stem} is not ready after {START_LIMIT_S:.0f} s")

    def resident_bytes(self) -> int:
        """Return VmRSS."""
        for line in Path(f"/proc/{self.pid}/status").read_text().splitlines():
            if line.startswith("VmRSS:"):
                return int(line.split()[1]) * 1024
        raise BenchmarkError(f"no VmRSS of {self.pid}")

    def __enter__(self) -> Process:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.send_signal(signal.SIGTERM)
        try:
            self._process.wait(40)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


def start_worker(directory: Path, model: str, path: Path, settings: Settings) -> Process:
    """Start an engine without llmd, for a null test; it listens on `socket_of` the model."""
    slots, threads = model_flags(model, settings)
    argv = [str(settings.engine), "-m", str(path), "--host", socket_of(directory, model)]
    argv += ["--alias", model, "-np", str(slots), "-c", str(CONTEXT_TOKENS * slots)]
    if settings.chat_template:
        argv += ["--chat-template", settings.chat_template]
    if threads:
        argv += ["-t", str(threads)]
    return Process(argv, environment(directory), directory / f"{model}.log")


def socket_of(directory: Path, model: str) -> str:
    """Return where a worker of `start_worker` listens."""
    return str(directory / f"{model}.sock")


def start_daemon(directory: Path) -> Process:
    """Start `llmd serve` on the config in the directory."""
    argv = [sys.executable, "-m", "llmd", "serve", "--config", str(directory / "config.toml")]
    return Process(argv, environment(directory), directory / "llmd.log")


def free_port() -> int:
    """Return a TCP port on loopback that nobody listens on now."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port: int = sock.getsockname()[1]
        return port


def find_worker(directory: Path, model: str) -> str:
    """Return the Unix socket of the worker that serves a model, below the runtime directory.

    Raises:
        BenchmarkError: No socket there answers for the model.
    """
    for path in sorted((directory / "run").rglob("*.sock")):
        with suppress(OSError, BadAnswer):
            answer = ask(str(path), "/v1/models", timeout_s=2)
            if answer.status == 200 and f'"{model}"'.encode() in answer.tail:
                return str(path)
    raise BenchmarkError(f"no worker's socket below {directory / 'run'} answers for {model}")


def load(daemon: Process, address: Address, model: str) -> None:
    """Have llmd load a model by asking for a token.

    Raises:
        BenchmarkError: It refused; the message is its own.
    """
    answer = ask(address, "/v1/chat/completions", chat(model, 1), key=KEY, timeout_s=START_LIMIT_S)
    if answer.status != 200:
        raise BenchmarkError(
            f"llmd answered {answer.status}: {answer.tail.decode(errors='replace')}"
        )
    daemon.check()


def missing_features(address: Address) -> list[str]:
    """Return what should be on in llmd, by the config that it was given, but shows no sign."""
    path, body = "/v1/chat/completions", chat(SMALL, 1)
    missing = []
    if ask(address, path, body, timeout_s=START_LIMIT_S).status != 401:
        missing.append("authentication: a request without a key is not answered 401")
    answer = ask(address, path, body, key=KEY, timeout_s=START_LIMIT_S)
    if b"\r\nx-ratelimit-limit-requests:" not in answer.head:
        missing.append("rate limiting: an answer has no x-ratelimit-limit-requests")
    for what, where in (
        ("registry", "/requests"),
        ("queue", "/queue/metrics"),
        ("metrics", "/metrics"),
    ):
        status = ask(address, where, key=KEY, timeout_s=START_LIMIT_S).status
        if status != 200:
            missing.append(f"{what}: {where} answers {status}")
    return missing
