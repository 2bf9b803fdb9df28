"""The measures: each is a paired load on both sides and one number that matters."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace

from benchmarks.client import request_bytes
from benchmarks.job import Job, Result, process_cpu_s
from benchmarks.relays import RelayProcess
from benchmarks.rounds import Bench, Pairs, Spread
from benchmarks.stack import KEY, SLOTS, SLOW, SMALL, Address, BenchmarkError, chat


@dataclass(frozen=True)
class Yardstick:
    """What else was measured in the same rounds, to tell what a target means on this machine.

    Attributes:
        name: What it is: the prototype's relay, or another thing that costs what the machine
            makes it cost.
        unit: Of the two numbers.
        here: What it took.
        reference: What it took where the targets were set; None = not known.
    """

    name: str
    unit: str
    here: Spread
    reference: float | None


@dataclass
class Outcome:
    """What one measure found.

    Attributes:
        name: As on the command line.
        title: For a person.
        unit: Of `direct` and `llmd`.
        direct: The worker itself; None where there is nothing to compare.
        llmd: Through llmd.
        value: The number that the target is about, in `value_unit`.
        target: What `value` should not exceed, or fall below where `at_least`; None = no target.
        remark: What a reader must know besides the title.
        notes: Other numbers of interest, named with their units.
        faults: Why the numbers are not to be trusted.
        foreign_cpu: CPUs that other processes kept busy meanwhile.
        repeated: Rounds that were run and not taken, since others disturbed them.
        yardstick: None = there is none.
    """

    name: str
    title: str
    unit: str
    direct: Spread | None
    llmd: Spread
    value: Spread
    value_unit: str
    target: float | None = None
    at_least: bool = False
    remark: str = ""
    notes: dict[str, float] = field(default_factory=dict)
    faults: list[str] = field(default_factory=list)
    foreign_cpu: float = 0.0
    repeated: int = 0
    yardstick: Yardstick | None = None

    @property
    def scaled_target(self) -> float | None:
        """The target in the yardstick's measure: as far from it here as where it was set.

        None where one of them is not known.
        """
        if self.target is None or self.yardstick is None or not self.yardstick.reference:
            return None
        return self.target * self.yardstick.here.median / self.yardstick.reference

    @property
    def met_by_yardstick(self) -> bool | None:
        """Whether `scaled_target` was met; None without one, or when the numbers mean nothing."""
        if self.scaled_target is None or self.faults:
            return None
        return self._meets(self.scaled_target)

    @property
    def met(self) -> bool | None:
        """Whether the target was met; None without one, or when the numbers mean nothing."""
        if self.target is None or self.faults:
            return None
        return self._meets(self.target)

    def _meets(self, target: float) -> bool:
        return self.value.median >= target if self.at_least else self.value.median <= target


def latency(bench: Bench) -> Outcome:
    """Measure one client, one token, not streamed: what llmd adds to the median latency."""
    pairs = bench.pairs(bench.sides(SMALL), _job(SMALL, 1, each=60, warmup=5), bench.count(21, 5))
    outcome = _added(
        pairs, lambda r: 1e3 * statistics.median(r.latency_s or [0.0]), 1, reference=1.15
    )
    outcome.name, outcome.title = "latency", "1 client, 1 token: latency"
    outcome.target = 1.2
    direct, llmd = pairs.each(lambda r: 1e3 * _quantile(r.latency_s, 0.95))
    outcome.notes["p95 direct ms"] = statistics.median(direct)
    outcome.notes["p95 llmd ms"] = statistics.median(llmd)
    outcome.notes |= pairs.cpu_notes("request", lambda r: r.all_requests)
    return outcome


def rate(bench: Bench) -> Outcome:
    """Measure eight clients, one token, not streamed: the share of the direct request rate."""
    job = _job(SMALL, 1, clients=8, warmup_s=0.2, window_s=0.8)
    pairs = bench.pairs(bench.sides(SMALL), job, bench.count(13, 3))
    outcome = _ratio(pairs, lambda r: r.requests / r.wall_s, 1, reference=52.0)
    outcome.name, outcome.title = "rate", "8 clients, 1 token: request rate"
    outcome.unit, outcome.target = "req/s", 50.0
    outcome.notes |= pairs.cpu_notes("request", lambda r: r.all_requests)
    return outcome


def long_streams(bench: Bench) -> Outcome:
    """Measure eight simultaneous streams of 2,000 tokens: the share of the direct token rate."""
    tokens = 500 if bench.quick else 2000
    pairs = bench.pairs(
        bench.sides(SMALL), _job(SMALL, tokens, stream=True, clients=8, each=1), bench.count(5, 2)
    )
    outcome = _ratio(pairs, lambda r: r.tokens / r.wall_s, tokens, reference=100.0)
    outcome.name, outcome.title = "long-streams", f"8 streams of {tokens} tokens: token rate"
    outcome.unit, outcome.target = "tok/s", 97.0
    _stream_notes(outcome, pairs)
    return outcome


def short_streams(bench: Bench) -> Outcome:
    """Measure eight clients with 200-token streams one after another: the share of the rate."""
    job = _job(SMALL, 200, stream=True, clients=8, warmup_s=0.4, window_s=1.5)
    pairs = bench.pairs(bench.sides(SMALL), job, bench.count(11, 3))
    outcome = _ratio(pairs, lambda r: r.events / r.wall_s, 200, reference=68.0)
    outcome.name, outcome.title = "short-streams", "8 clients, streams of 200: token rate"
    outcome.unit, outcome.target = "events/s", 75.0
    _stream_notes(outcome, pairs)
    return outcome


def first_token(bench: Bench) -> Outcome:
    """Measure what llmd adds to the time to the first token of a lone stream."""
    job = _job(SMALL, 16, stream=True, each=25, warmup=3)
    pairs = bench.pairs(bench.sides(SMALL), job, bench.count(21, 5))
    outcome = _added(
        pairs, lambda r: 1e3 * statistics.median(r.first_s or [0.0]), 16, reference=None
    )
    outcome.name, outcome.title = "first-token", "lone stream: first token"
    outcome.target = 2.0
    outcome.notes |= pairs.cpu_notes("request", lambda r: r.all_requests)
    return outcome


def single_events(bench: Bench) -> Outcome:
    """Measure the daemon's CPU for each event of a lone stream whose tokens come one at a time."""
    return _single_events(bench, clients=1)


def eight_single_events(bench: Bench) -> Outcome:
    """Measure the same with eight streams at once, so that the daemon is seldom asleep."""
    return _single_events(bench, clients=8)


def _single_events(bench: Bench, *, clients: int) -> Outcome:
    """Compare the CPU for each event with that of a relay that does nothing but move bytes.

    The slow model takes several milliseconds a token, so that nothing can be gathered into one
    read. Counted is what a process spends while all streams run, with whatever else it does.
    """
    tokens = 60 if bench.quick else 120
    sides = bench.sides(SLOW)
    assert isinstance(sides.direct, str)
    with RelayProcess("bare", sides.direct) as relay:
        sides = replace(sides, direct=relay.address, relay_pid=relay.pid)
        if not sides.daemon_pid:
            sides = replace(sides, llmd=relay.address)

        def job(address: Address) -> Job:
            made = _job(SLOW, tokens, stream=True, clients=clients, each=1)(address)
            pids = {relay.address: relay.pid, sides.prototype: sides.prototype_pid}
            return replace(made, clock_pid=pids.get(address, sides.daemon_pid))

        pairs = bench.pairs(sides, job, bench.count(5, 2))

    def cpu_us(result: Result) -> float:
        return 1e6 * result.clock_cpu_s / max(1, result.clock_events)

    bare, llmd = pairs.each(cpu_us)
    prototype = pairs.each_prototype(cpu_us)
    _, gap_ms = pairs.each(lambda r: 1e3 * r.clock_wall_s * clients / max(1, r.clock_events))
    reads = statistics.median(pairs.each(lambda r: r.clock_reads / max(1, r.clock_events))[1])
    faults = pairs.faults(tokens)
    # The last token, the finish reason and the end of a stream come together.
    if reads < 0.95:
        faults.append(f"events did not come singly: {reads:.2f} reads an event")
    outcome = Outcome(
        name="single-events" if clients == 1 else f"single-events-{clients}",
        title=f"events one by one, {clients} stream{'s' * (clients > 1)}: CPU",
        unit="us/event",
        direct=Spread.of(bare),
        llmd=Spread.of(llmd),
        value=Spread.of(llmd),
        value_unit="us/event",
        target=70.0,
        yardstick=_prototype("us/event", prototype, 86.0),
        faults=faults,
        foreign_cpu=pairs.foreign_cpu,
        repeated=pairs.repeated,
    )
    outcome.remark = "direct: through a relay that only moves bytes"
    ratios = [own / least for own, least in zip(llmd, bare, strict=True) if least]
    outcome.notes["times the bare relay"] = statistics.median(ratios or [0.0])
    outcome.notes["ms between events of a stream"] = statistics.median(gap_ms)
    outcome.notes["client reads/event"] = reads
    if sides.daemon_pid:
        outcome.notes["idle daemon CPU us/s"] = _idle_us_per_s(sides.daemon_pid)
    return outcome


MEASURES: dict[str, Callable[[Bench], Outcome]] = {
    "latency": latency,
    "rate": rate,
    "first-token": first_token,
    "short-streams": short_streams,
    "long-streams": long_streams,
    "single-events": single_events,
    "single-events-8": eight_single_events,
}
"""The paired measures in the order in which they run."""


def _job(
    model: str,
    max_tokens: int,
    *,
    stream: bool = False,
    clients: int = 1,
    each: int = 0,
    warmup: int = 0,
    warmup_s: float = 0.0,
    window_s: float = 0.0,
) -> Callable[[Address], Job]:
    """Return what makes the same job for either side; both get the same bytes, key included."""
    if clients > SLOTS:
        raise BenchmarkError(f"{clients} clients on {SLOTS} slots measure the queue, not the way")
    body = chat(model, max_tokens, stream=stream)
    request = request_bytes("/v1/chat/completions", body, key=KEY)

    def make(address: Address) -> Job:
        return Job(address, request, clients, each, warmup, warmup_s, window_s)

    return make


def _ratio(
    pairs: Pairs, value: Callable[[Result], float], tokens: int, *, reference: float | None
) -> Outcome:
    direct, llmd = pairs.each(value)
    prototype = pairs.each_prototype(value)

    def compared(others: list[float]) -> list[float]:
        return [100 * b / a if a else 0.0 for a, b in zip(direct, others, strict=True)]

    return Outcome(
        name="",
        title="",
        unit="",
        direct=Spread.of(direct),
        llmd=Spread.of(llmd),
        value=Spread.of(compared(llmd)),
        value_unit="%",
        yardstick=_prototype("%", compared(prototype) if prototype else [], reference),
        at_least=True,
        faults=pairs.faults(tokens),
        foreign_cpu=pairs.foreign_cpu,
        repeated=pairs.repeated,
    )


def _added(
    pairs: Pairs, value: Callable[[Result], float], tokens: int, *, reference: float | None
) -> Outcome:
    direct, llmd = pairs.each(value)
    prototype = pairs.each_prototype(value)

    def compared(others: list[float]) -> list[float]:
        return [b - a for a, b in zip(direct, others, strict=True)]

    return Outcome(
        name="",
        title="",
        unit="ms",
        direct=Spread.of(direct),
        llmd=Spread.of(llmd),
        value=Spread.of(compared(llmd)),
        value_unit="ms more",
        yardstick=_prototype("ms more", compared(prototype) if prototype else [], reference),
        faults=pairs.faults(tokens),
        foreign_cpu=pairs.foreign_cpu,
        repeated=pairs.repeated,
    )


def _prototype(unit: str, values: list[float], reference: float | None) -> Yardstick | None:
    return Yardstick("prototype", unit, Spread.of(values), reference) if values else None


def _stream_notes(outcome: Outcome, pairs: Pairs) -> None:
    direct, llmd = pairs.each(lambda r: r.reads / max(1, r.events))
    outcome.notes["reads/event direct"] = statistics.median(direct)
    outcome.notes["reads/event llmd"] = statistics.median(llmd)
    outcome.notes |= pairs.cpu_notes("event", lambda r: r.all_events)


def _quantile(values: list[float], share: float) -> float:
    if not values:
        return 0.0
    return sorted(values)[min(len(values) - 1, int(share * len(values)))]


def _idle_us_per_s(pid: int) -> float:
    """Return the CPU that a process uses while nobody asks it for anything."""
    before, started = process_cpu_s(pid), time.perf_counter()
    time.sleep(2)
    return 1e6 * (process_cpu_s(pid) - before) / (time.perf_counter() - started)
