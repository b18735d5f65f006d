"""`make bench`: what an order costs with this worker and with others, on this machine, in one run.

    python -m tests.benchmarks.bench [--full] [--only drain latency …] [--rounds 5] …

Private servers, a sandbox for Stripe and the contenders share the machine. Processor time counts the contender's own
processes alone, so it is the figure to compare; orders a second are bounded by the sandbox and the broker too. The
ratios of one run travel between machines, the figures do not. Leaves build/bench.json and build/bench.png.
"""

import argparse
import asyncio
from collections.abc import Awaitable, Callable, Collection, Mapping
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rich.console import Console

from tests.benchmarks.contenders import HANDWRITTEN, WORKER_POSTGRESQL, WORKER_SQLITE, present
from tests.benchmarks.drain import drain_in_turns
from tests.benchmarks.growth import DRAINED, cost_with_many, memory_over
from tests.benchmarks.latency import ORDERS_PER_S, STRIPE_S, added_latency
from tests.benchmarks.rate_limit import LIMIT_PER_S, drain_at_limit
from tests.benchmarks.report import draw, show, write_json
from tests.benchmarks.results import OURS, Results
from tests.benchmarks.stage import Stage
from tests.benchmarks.surroundings import machine, versions

BUILD = Path("build")
LOG_COLUMNS = 120  # where nobody's terminal has a width
AT_THE_LIMIT = ((WORKER_SQLITE, 1), (WORKER_POSTGRESQL, 1), (WORKER_POSTGRESQL, 4))


@dataclass(frozen=True, slots=True)
class Sizes:
    """How many rounds, and how many orders in each part.

    ledger_orders: that lie in a ledger already. processes: of the worker, measured beside the single one if more.
    """

    rounds: int = 3
    orders: int = 3000
    latency_orders: int = 500
    limited_orders: int = 2500
    ledger_orders: int = 200_000
    growth_orders: int = 1000
    memory_orders: int = 10_000
    processes: int = 1


QUICK = Sizes()
FULL = Sizes(
    rounds=5, orders=8000, latency_orders=2500, limited_orders=10_000, growth_orders=4000, memory_orders=200_000
)


@dataclass(frozen=True, slots=True)
class Run:
    """What each part works with; it adds to the results. told: takes a line about what is measured now."""

    stage: Stage
    sizes: Sizes
    told: Callable[[str], None]
    results: Results


async def measure_drain(run: Run) -> None:
    contenders, _ = present()
    more = [each.times(run.sizes.processes) for each in OURS] if run.sizes.processes > 1 else []
    run.results.drain = await drain_in_turns(
        run.stage, [*contenders, *more], orders=run.sizes.orders, rounds=run.sizes.rounds, told=run.told
    )


async def measure_latency(run: Run) -> None:
    for contender in (*OURS, HANDWRITTEN):
        run.told(f"latency at {ORDERS_PER_S} orders/s, Stripe takes {STRIPE_S} s: {contender.name}")
        found = await added_latency(run.stage, contender, orders=run.sizes.latency_orders)
        run.results.latency[contender.name] = found


async def measure_rate_limit(run: Run) -> None:
    for contender, processes in AT_THE_LIMIT:
        run.told(f"at {LIMIT_PER_S} orders/s, the rate limit: {contender.name}, {processes} at work")
        found = await drain_at_limit(run.stage, contender, orders=run.sizes.limited_orders, processes=processes)
        run.results.rate_limit.setdefault(contender.name, []).append(found)


async def measure_growth(run: Run) -> None:
    sizes = run.sizes
    for contender in OURS:
        run.results.growth[contender.name] = await cost_with_many(
            run.stage,
            contender,
            many=sizes.ledger_orders,
            orders=sizes.growth_orders,
            rounds=sizes.rounds,
            told=run.told,
        )


async def measure_memory(run: Run) -> None:
    contender, orders = WORKER_SQLITE, run.sizes.memory_orders
    run.told(f"memory over {orders:,} orders: {contender.name}")
    run.results.memory_mib[contender.name] = await memory_over(run.stage, contender, orders=orders)


PARTS: Mapping[str, Callable[[Run], Awaitable[None]]] = {
    "drain": measure_drain,
    "latency": measure_latency,
    "rate-limit": measure_rate_limit,
    "growth": measure_growth,
    "memory": measure_memory,
}


async def measure(
    parts: Collection[str], sizes: Sizes, *, told: Callable[[str], None]
) -> tuple[Results, dict[str, Any]]:
    """The figures, and what they were taken on."""
    surroundings = {"made_at": datetime.now(UTC).isoformat(timespec="seconds"), "machine": machine()}
    told("starting RabbitMQ, PostgreSQL and the sandbox")
    async with Stage() as stage:
        run = Run(stage, sizes, told, Results())
        surroundings |= {"sizes": asdict(sizes), "versions": await versions(stage)}
        for name, part in PARTS.items():
            if name in parts:
                await part(run)
    return run.results, surroundings


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=list(PARTS), default=list(PARTS), help="parts; by default all")
    parser.add_argument("--full", action="store_true", help="the sizes of a run that counts: some 25 minutes")
    for name in Sizes.__dataclass_fields__:
        told = f"by default {getattr(QUICK, name)}, with --full {getattr(FULL, name)}"
        parser.add_argument(f"--{name.replace('_', '-')}", type=int, help=told)
    arguments = parser.parse_args()
    given = {name: value for name in Sizes.__dataclass_fields__ if (value := getattr(arguments, name)) is not None}
    sizes = replace(FULL if arguments.full else QUICK, **given)
    if sizes.ledger_orders % DRAINED:
        parser.error(f"--ledger-orders must be a multiple of {DRAINED}")

    console = Console()
    if not console.is_terminal:
        console = Console(width=LOG_COLUMNS)
    if absent := present()[1]:
        console.print(absent)
    with console.status("") as status:
        say = status.update if console.is_terminal else console.print
        results, surroundings = asyncio.run(measure(arguments.only, sizes, told=say))
    show(console, results)
    BUILD.mkdir(exist_ok=True)
    write_json(BUILD / "bench.json", results, surroundings)
    console.print(f"The raw figures are in {BUILD}/bench.json.")
    if results.drain:
        draw(BUILD / "bench.png", results.drain, caption=_caption(surroundings, sizes))
        console.print(f"A chart of the drain is in {BUILD}/bench.png.")


def _caption(surroundings: Mapping[str, Any], sizes: Sizes) -> str:
    on = surroundings["machine"]
    return (
        f"medians of {sizes.rounds} rounds of {sizes.orders:,} orders; {on['cores']} × {on['processor']}, "
        f"shared with RabbitMQ, PostgreSQL, the sandbox and the load; {surroundings['made_at'][:10]}"
    )


if __name__ == "__main__":
    main()
