"""The drain: orders wait in the queue, a contender starts and works them off as fast as it can.

Processor time and orders a second are of the steady part: from the tenth of the events to nine tenths of them. Start
and end are not in it, and as many orders are under way at both of its ends.
"""

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

from tests.benchmarks.contenders import Contender
from tests.benchmarks.processes import peak_mib, processor_seconds
from tests.benchmarks.stage import Stage

STEADY_FROM, STEADY_TO = 0.1, 0.9


@dataclass(frozen=True, slots=True)
class Drained:
    """One round, or the medians of several. cpu_us: of the contender's processes for each order, in microseconds."""

    orders_per_s: float
    cpu_us: float
    peak_mib: float
    first_event_s: float  # from the start of the process to the first event heard


async def drain(stage: Stage, contender: Contender, *, orders: int, ledger_url: str | None = None) -> Drained:
    """One round. ledger_url: of a ledger that is there already, where it is not to be a new one."""
    ledger_url = ledger_url or await stage.new_ledger(contender)
    first, last = int(orders * STEADY_FROM), int(orders * STEADY_TO)
    spent_s: dict[int, float] = {}
    at_s: dict[int, float] = {}
    async with stage.round() as round_:
        await round_.backlog(orders)
        async with round_.run(contender, ledger_url=ledger_url, count=contender.processes) as running:

            def mark(count: int) -> None:
                at_s[count], spent_s[count] = time.monotonic(), sum(processor_seconds(each.pid) for each in running)

            for count in (first, last):
                round_.events.at(count, partial(mark, count))
            await round_.events.until(orders, running)
            peak = sum(peak_mib(each.pid) for each in running)
            first_event_s = next(iter(round_.events.heard.values())) - running[0].started
        await stage.require_one_intent_each(orders)
    return Drained(
        orders_per_s=(last - first) / (at_s[last] - at_s[first]),
        cpu_us=(spent_s[last] - spent_s[first]) / (last - first) * 1e6,
        peak_mib=peak,
        first_event_s=first_event_s,
    )


async def drain_in_turns(
    stage: Stage, contenders: Sequence[Contender], *, orders: int, rounds: int, told: Callable[[str], None]
) -> dict[str, list[Drained]]:
    """Rounds of all contenders by name, interleaved, so that what the machine does meanwhile meets all alike."""
    drained: dict[str, list[Drained]] = {each.name: [] for each in contenders}
    for number in range(rounds):
        for contender in contenders:
            told(f"drain, round {number + 1} of {rounds}: {contender.name}")
            drained[contender.name].append(await drain(stage, contender, orders=orders))
    return drained


def median(rounds: Sequence[Drained]) -> Drained:
    """Of each figure for itself."""
    return Drained(
        orders_per_s=statistics.median(each.orders_per_s for each in rounds),
        cpu_us=statistics.median(each.cpu_us for each in rounds),
        peak_mib=statistics.median(each.peak_mib for each in rounds),
        first_event_s=statistics.median(each.first_event_s for each in rounds),
    )
