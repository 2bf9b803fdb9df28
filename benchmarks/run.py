"""One command that measures what llmd costs: `uv run python -m benchmarks`.

It starts llmd on loopback with everything on that a request passes through, and drives the same
load at llmd and at llama-server's own socket, in turns. See README.md beside this file.
"""

from __future__ import annotations

import argparse
import json
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import cache
from pathlib import Path

if __name__ == "__main__":
    # `python benchmarks/run.py` has only benchmarks/ on its path.
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks import admin, report, stack, tui
from benchmarks.job import Generator
from benchmarks.measures import MEASURES, Outcome
from benchmarks.relays import RelayProcess
from benchmarks.rounds import Bench, Sides, Spread
from benchmarks.stack import Address, BenchmarkError, Process, Settings

START = "start"
NAMES = (START, *MEASURES, admin.NAME, tui.NAME)


def main(arguments: list[str] | None = None) -> int:
    """Run the benchmarks; return 0, or 1 when they could not run or the numbers are invalid."""
    options = _parser().parse_args(arguments)
    # What was started has to be stopped on SIGTERM as well.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    names = [name for given in options.only for name in given.split(",")] or list(NAMES)
    unknown = sorted(set(names) - set(NAMES))
    if unknown:
        print(f"no measure {', '.join(unknown)}; there are {', '.join(NAMES)}", file=sys.stderr)
        return 2
    outcomes: list[Outcome] = []
    about = report.machine() | {"null": options.null}
    try:
        with tempfile.TemporaryDirectory(prefix="llmd-bench-") as name:
            engine, engine_name = stack.choose_engine(options.engine, Path(name))
            settings = Settings(engine, options.threads, options.slow_layers, options.chat_template)
            about |= {
                "engine": engine_name,
                "threads": options.threads,
                "chat_template": options.chat_template or "own",
            }
            print(", ".join(f"{key} {value}" for key, value in about.items()))
            print(report.heading(null=options.null), flush=True)
            for outcome in _run(Path(name), settings, names, options):
                outcomes.append(outcome)
                print(report.row(outcome), flush=True)
    except (BenchmarkError, RuntimeError, OSError) as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    finally:
        if options.json:
            found = report.as_json(outcomes, about)
            options.json.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    return 1 if any(outcome.faults for outcome in outcomes) else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument(
        "--engine",
        default="auto",
        metavar="auto|embedded|PATH",
        help="auto: $TEST_LLAMA_SERVER, else llama-server on PATH, else the embedded engine",
    )
    parser.add_argument(
        "--only", action="append", default=[], metavar="NAME", help=f"of {', '.join(NAMES)}"
    )
    parser.add_argument("--rounds", type=int, default=0, help="of each measure")
    parser.add_argument("--quick", action="store_true", help="short and rough: does it work at all")
    parser.add_argument(
        "--null",
        action="store_true",
        help="the worker against itself, without llmd: what the method itself is off by",
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write all numbers there")
    parser.add_argument(
        "--threads",
        type=int,
        default=1,
        help="of the small model's worker; 0 = the engine's choice (default: 1, the fastest)",
    )
    parser.add_argument(
        "--chat-template",
        default="chatml",
        help='of both models; "" = their own, which cost the worker more (default: chatml)',
    )
    parser.add_argument(
        "--slow-layers",
        type=int,
        default=300,
        help="depth of the model for single-events, at most 512: more where tokens come too fast",
    )
    return parser


def _run(
    directory: Path, settings: Settings, names: list[str], options: argparse.Namespace
) -> Iterator[Outcome]:
    """Run the measures that were asked for, each as it comes."""
    models = stack.write_models(directory / "models", slow_layers=settings.slow_layers)
    paired = [name for name in MEASURES if name in names]
    port = stack.free_port()
    (directory / "config.toml").write_text(stack.config_toml(models, settings, port))
    (directory / "config.toml").chmod(0o600)
    address = ("127.0.0.1", port)
    if START in names and not options.null:
        yield from _start(directory, address, options.rounds or (2 if options.quick else 5))
    if paired:
        yield from _paired(directory, models, settings, paired, options, address)
    if admin.NAME in names and not options.null:
        yield from admin.measure(directory, address, rounds=options.rounds, quick=options.quick)
    if tui.NAME in names and not options.null:
        yield from tui.measure(directory / tui.NAME, rounds=options.rounds, quick=options.quick)


def _paired(
    directory: Path,
    models: dict[str, Path],
    settings: Settings,
    names: list[str],
    options: argparse.Namespace,
    address: Address,
) -> Iterator[Outcome]:
    """Run the measures that compare llmd with the worker itself."""
    with ExitStack() as running:
        generator = running.enter_context(Generator())
        if options.null:
            sides = _null_sides(directory, models, settings, running)
        else:
            daemon = running.enter_context(stack.start_daemon(directory))
            daemon.wait_for(address, "/live")
            sides = _daemon_sides(daemon, address, directory, running)
            for missing in stack.missing_features(address):
                print(f"NOT ON: {missing}", file=sys.stderr)
        bench = Bench(generator, sides, options.rounds, options.quick)
        for name in names:
            outcome = MEASURES[name](bench)
            if options.null:
                outcome.target = None
            yield outcome
        if not options.null:
            yield _loaded_memory(daemon)


def _null_sides(
    directory: Path, models: dict[str, Path], settings: Settings, running: ExitStack
) -> Callable[[str], Sides]:
    @cache
    def sides(model: str) -> Sides:
        worker = stack.start_worker(directory, model, models[model], settings)
        running.enter_context(worker)
        socket = stack.socket_of(directory, model)
        worker.wait_for(socket, "/health")
        return Sides(socket, socket, 0, worker.pid)

    return sides


def _daemon_sides(
    daemon: Process, address: Address, directory: Path, running: ExitStack
) -> Callable[[str], Sides]:
    @cache
    def sides(model: str) -> Sides:
        stack.load(daemon, address, model)
        socket = stack.find_worker(directory, model)
        relay = running.enter_context(RelayProcess("prototype", socket))
        return Sides(
            socket,
            address,
            daemon.pid,
            stack.listener_pid(socket),
            prototype=relay.address,
            prototype_pid=relay.pid,
        )

    return sides


def _start(directory: Path, address: Address, rounds: int) -> Iterator[Outcome]:
    """Start llmd again and again: how soon it takes requests and how big it is, without a model."""
    with _started(directory, address) as (cold_s, _):
        pass
    ready, live, resident = [], [], []
    for _ in range(rounds):
        with _started(directory, address) as (live_s, daemon):
            live.append(live_s)
            ready.append(daemon.wait_for(address, "/ready"))
            time.sleep(0.5)  # what it does just after it is ready belongs to its size
            resident.append(daemon.resident_bytes())
    seconds = Spread.of(ready)
    outcome = Outcome(START, "start until ready", "s", None, seconds, seconds, "s", 1.0)
    outcome.notes["until /live s"] = Spread.of(live).median
    outcome.notes["first start, compiling all byte code s"] = cold_s
    yield outcome
    size = Spread.of([each / 1e6 for each in resident])
    yield Outcome("memory", "memory after the start", "MB", None, size, size, "MB", 80.0)


def _loaded_memory(daemon: Process) -> Outcome:
    size = Spread.of([daemon.resident_bytes() / 1e6])
    return Outcome("memory-loaded", "memory after the load", "MB", None, size, size, "MB")


@contextmanager
def _started(directory: Path, address: Address) -> Iterator[tuple[float, Process]]:
    with stack.start_daemon(directory) as daemon:
        yield daemon.wait_for(address, "/live"), daemon


if __name__ == "__main__":
    sys.exit(main())
