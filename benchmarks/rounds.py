"""Paired rounds: the same load on the worker itself and through llmd, back to back.

Every other round runs them in reverse, so that a drift of the machine favours neither. Numbers
are computed for each round first; then the median of the rounds stands for all.
"""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.job import Generator, Job, Result, process_cpu_s
from benchmarks.stack import Address

SETTLE_S = 0.05
"""Between blocks: a server frees what the last block's connections held."""

FOREIGN_CPUS = 0.15
"""A round counts as undisturbed when other processes kept fewer CPUs busy than this."""

PATIENCE = 2
"""How many times as many rounds are run, at most, to get undisturbed ones."""


@dataclass(frozen=True)
class Spread:
    """The median of a few values, and their quartiles."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """Return the spread of one value or more."""
        if len(values) < 2:
            return cls(values[0], values[0], values[0])
        low, median, high = statistics.quantiles(values, n=4, method="inclusive")
        return cls(median, low, high)


@dataclass(frozen=True)
class Sides:
    """The two ways to one worker.

    Attributes:
        direct: The worker's own socket.
        llmd: llmd's; the worker's again in a null test.
        daemon_pid: 0 in a null test.
        worker_pid: The worker's process.
        relay_pid: What stands before the worker on `direct`, for measures that want that.
        prototype: Where a relay of a few dozen lines listens; None = it is not measured.
        prototype_pid: Its process.
    """

    direct: Address
    llmd: Address
    daemon_pid: int
    worker_pid: int
    relay_pid: int = 0
    prototype: Address | None = None
    prototype_pid: int = 0


@dataclass(frozen=True)
class Block:
    """One job's result and the CPU seconds that daemon and worker spent on it."""

    result: Result
    daemon_cpu_s: float
    worker_cpu_s: float


@dataclass(frozen=True)
class Bench:
    """What every measure needs.

    Attributes:
        generator: Runs the loads.
        sides: The two ways to a model's worker, which is loaded if it is not; by model name.
        rounds: How many, when the caller wants another number than the measure's own.
        quick: Fewer rounds and shorter blocks: to see that it works.
    """

    generator: Generator
    sides: Callable[[str], Sides]
    rounds: int = 0
    quick: bool = False

    def count(self, usual: int, quick: int) -> int:
        """Return a number of rounds."""
        return self.rounds or (quick if self.quick else usual)

    def pairs(self, sides: Sides, job: Callable[[Address], Job], rounds: int) -> Pairs:
        """Run a load on both sides, until there are `rounds` that nothing else disturbed.

        A round that shared the machine with other processes is run again, within limits: after
        `PATIENCE` times as many, the least disturbed ones are taken.
        """
        meter = _ForeignCpu(self.generator, sides)
        found: list[_Round] = []
        for number in range(rounds * (1 if self.quick else PATIENCE)):
            time.sleep(SETTLE_S)
            with meter:
                ways = [sides.direct, sides.llmd]
                if sides.prototype is not None:
                    ways.append(sides.prototype)
                blocks: list[Block | None] = [None, None, None]
                for way in range(len(ways)) if number % 2 == 0 else reversed(range(len(ways))):
                    blocks[way] = self._block(sides, job(ways[way]))
                    time.sleep(SETTLE_S)
            direct, llmd, prototype = blocks
            assert direct is not None
            assert llmd is not None
            found.append(_Round(meter.cpus, direct, llmd, prototype))
            if sum(each.foreign_cpu <= FOREIGN_CPUS for each in found) >= rounds:
                break
        kept = sorted(found, key=lambda each: each.foreign_cpu)[:rounds]
        return Pairs(
            [each.direct for each in kept],
            [each.llmd for each in kept],
            [each.prototype for each in kept if each.prototype is not None],
            statistics.mean(each.foreign_cpu for each in kept),
            repeated=len(found) - rounds,
            through_daemon=sides.daemon_pid != 0,
        )

    def _block(self, sides: Sides, job: Job) -> Block:
        daemon, worker = _cpu_s(sides.daemon_pid), _cpu_s(sides.worker_pid)
        result = self.generator.run(job)
        return Block(result, _cpu_s(sides.daemon_pid) - daemon, _cpu_s(sides.worker_pid) - worker)


@dataclass(frozen=True)
class _Round:
    """A block of each side, and how many CPUs others kept busy meanwhile."""

    foreign_cpu: float
    direct: Block
    llmd: Block
    prototype: Block | None


@dataclass(frozen=True)
class Pairs:
    """The blocks of both sides, round by round.

    Attributes:
        direct: The worker itself.
        llmd: Through llmd.
        prototype: Through the prototype; empty where it is not measured.
        foreign_cpu: CPUs that other processes kept busy meanwhile.
        repeated: Rounds that were run and not taken, since others disturbed them.
        through_daemon: False in a null test.
    """

    direct: list[Block]
    llmd: list[Block]
    prototype: list[Block]
    foreign_cpu: float
    repeated: int
    through_daemon: bool

    def faults(self, tokens: int) -> list[str]:
        """Return what makes the numbers worthless; `tokens`: what each answer should have had."""
        found = []
        sides = {"direct": self.direct, "llmd": self.llmd, "prototype": self.prototype}
        for side, blocks in sides.items():
            errors: dict[str, int] = {}
            requests = told = 0
            for block in blocks:
                requests += block.result.requests
                told += block.result.tokens
                for what, count in block.result.errors.items():
                    errors[what] = errors.get(what, 0) + count
            found += [f"{side}: {count} x {what}" for what, count in sorted(errors.items())]
            if not all(block.result.requests for block in blocks):
                found.append(f"{side}: a block without a single complete answer")
            elif blocks and told != requests * tokens:
                found.append(f"{side}: {told / requests:.1f} tokens an answer, not {tokens}")
        return found

    def each(self, value: Callable[[Result], float]) -> tuple[list[float], list[float]]:
        """Return a value of every block, direct and llmd."""
        return (
            [value(block.result) for block in self.direct],
            [value(block.result) for block in self.llmd],
        )

    def each_prototype(self, value: Callable[[Result], float]) -> list[float]:
        """Return a value of every block through the prototype."""
        return [value(block.result) for block in self.prototype]

    def cpu_notes(self, what: str, count: Callable[[Result], int]) -> dict[str, float]:
        """Return the CPU for each of what `count` counts: of the daemon, and of the generator.

        The generator's is of the direct side: what the method itself costs.
        """
        notes = {}
        if self.through_daemon:
            spent_s = sum(block.daemon_cpu_s for block in self.llmd)
            counted = sum(count(block.result) for block in self.llmd)
            notes[f"daemon CPU us/{what}"] = 1e6 * spent_s / max(1, counted)
        spent_s = sum(block.result.generator_cpu_s for block in self.direct)
        counted = sum(count(block.result) for block in self.direct)
        notes[f"generator CPU us/{what}"] = 1e6 * spent_s / max(1, counted)
        return notes


def _cpu_s(pid: int) -> float:
    return process_cpu_s(pid) if pid else 0.0


class _ForeignCpu:
    """How many CPUs were busy with processes that are not the benchmark's; a context manager."""

    def __init__(self, generator: Generator, sides: Sides) -> None:
        pids = (generator.pid, sides.daemon_pid, sides.worker_pid)
        pids += (sides.relay_pid, sides.prototype_pid)
        self._pids = [pid for pid in pids if pid]
        self.cpus = 0.0

    def __enter__(self) -> _ForeignCpu:
        self._before, self._started = self._foreign_s(), time.perf_counter()
        return self

    def __exit__(self, *_: object) -> None:
        spent_s = self._foreign_s() - self._before
        self.cpus = max(0.0, spent_s / (time.perf_counter() - self._started))

    def _foreign_s(self) -> float:
        own_s = time.process_time() + sum(map(process_cpu_s, self._pids))
        with Path("/proc/stat").open(encoding="ascii") as file:
            user, nice, system, _, _, _, _, stolen = map(int, file.readline().split()[1:9])
        # Soft interrupts are left out: those of the loopback device are our own.
        busy = user + nice + system + stolen
        return busy / os.sysconf("SC_CLK_TCK") - own_s
