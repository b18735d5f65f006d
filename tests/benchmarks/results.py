"""All that one run of the benchmark has found, and which bars it holds. Pure."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from tests.benchmarks.contenders import (
    BARE_FLOOR,
    FASTSTREAM,
    HANDWRITTEN,
    NODE_POSTGRESQL,
    WORKER_POSTGRESQL,
    WORKER_SQLITE,
    Contender,
)
from tests.benchmarks.drain import Drained, median
from tests.benchmarks.growth import Growth
from tests.benchmarks.latency import AddedLatency
from tests.benchmarks.rate_limit import AtTheLimit

# Processor time of an order, ours to theirs: the bar, and the aim beyond it.
CPU_RATIOS = (
    (WORKER_SQLITE, FASTSTREAM, 0.30, 0.25),
    (WORKER_SQLITE, HANDWRITTEN, 0.95, 0.75),
    (WORKER_SQLITE, BARE_FLOOR, 1.6, 1.2),
    (WORKER_POSTGRESQL, NODE_POSTGRESQL, 1.4, 1.0),
)
P50_MS, P99_MS = 5.0, 25.0
LIMIT_SHARE, REFUSED_SHARE = 0.97, 0.01
GROWTH = 1.10
START_S = 1.0
OURS = (WORKER_SQLITE, WORKER_POSTGRESQL)


@dataclass(slots=True)
class Results:
    """By contender's name. What was not measured is empty."""

    drain: Mapping[str, Sequence[Drained]] = field(default_factory=dict)
    latency: dict[str, AddedLatency] = field(default_factory=dict)
    rate_limit: dict[str, list[AtTheLimit]] = field(default_factory=dict)
    growth: dict[str, Growth] = field(default_factory=dict)
    memory_mib: dict[str, Sequence[float]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Bar:
    """A figure beside what it is held to: at most that, or at least that."""

    what: str
    figure: float
    bar: float
    unit: str = ""
    at_least: bool = False
    aim: float | None = None

    @property
    def is_held(self) -> bool:
        return self.figure >= self.bar if self.at_least else self.figure <= self.bar


def bars(results: Results) -> list[Bar]:
    """Every bar that this run can tell of."""
    return [
        *_cpu_ratios(results.drain),
        *_latencies(results.latency),
        *_limits(results.rate_limit),
        *_growths(results),
        *_starts(results),
    ]


def cpu_ratio(drain: Mapping[str, Sequence[Drained]], ours: Contender, theirs: Contender) -> float | None:
    """Of the medians of processor time; None where one of them was not measured."""
    if not (drain.get(ours.name) and drain.get(theirs.name)):
        return None
    return median(drain[ours.name]).cpu_us / median(drain[theirs.name]).cpu_us


def _cpu_ratios(drain: Mapping[str, Sequence[Drained]]) -> Iterator[Bar]:
    for ours, theirs, bar, aim in CPU_RATIOS:
        ratio = cpu_ratio(drain, ours, theirs)
        if ratio is not None:
            yield Bar(f"CPU of an order: {ours.name} / {theirs.name}", ratio, bar, aim=aim)


def _latencies(latency: Mapping[str, AddedLatency]) -> Iterator[Bar]:
    for name in _ours(latency):
        yield Bar(f"latency added, p50: {name}", latency[name].p50_ms, P50_MS, unit=" ms")
        yield Bar(f"latency added, p99: {name}", latency[name].p99_ms, P99_MS, unit=" ms")


def _limits(rate_limit: Mapping[str, Sequence[AtTheLimit]]) -> Iterator[Bar]:
    for name in _ours(rate_limit):
        for found in rate_limit[name]:
            who = f"{name}, {found.processes} at work"
            yield Bar(f"share of the rate limit: {who}", found.limit_share, LIMIT_SHARE, at_least=True)
            yield Bar(f"share answered 429: {who}", found.refused_share, REFUSED_SHARE)


def _growths(results: Results) -> Iterator[Bar]:
    for name in _ours(results.growth):
        growth = results.growth[name]
        what = f"CPU of an order, {growth.many:,} in the ledger / {growth.few:,}: {name}"
        yield Bar(what, growth.cost_ratio, GROWTH)
    for name in _ours(results.memory_mib):
        memory = results.memory_mib[name]
        yield Bar(f"memory after a backlog / after a tenth of it: {name}", memory[-1] / memory[0], GROWTH)


def _starts(results: Results) -> Iterator[Bar]:
    for name in _ours(results.drain):
        yield Bar(f"start to first event: {name}", median(results.drain[name]).first_event_s, START_S, " s")
    for name in _ours(results.growth):
        growth = results.growth[name]
        what = f"start to first event, {growth.many:,} in the ledger: {name}"
        yield Bar(what, median(growth.with_many).first_event_s, START_S, " s")


def _ours(measured: Mapping[str, object]) -> list[str]:
    return [each.name for each in OURS if measured.get(each.name)]
