"""The delay we add: from just before an order is published to its event's arrival at a subscriber, less Stripe's time.

The broker's share is in it, which is why a worker without a ledger is measured beside ours. Orders come at random
moments (a Poisson process of the given mean rate, always the same one), as those of a shop do.
"""

import asyncio
import random
import statistics
import time
from dataclasses import dataclass

from tests.benchmarks.contenders import Contender
from tests.benchmarks.stage import Stage, new_order_id
from tests.benchmarks.stripe_tap import tapped

ORDERS_PER_S = 25
STRIPE_S = 0.3
WARM_UP_ORDERS = 25  # they open the connections to Stripe, and are not counted
SEED = 25


@dataclass(frozen=True, slots=True)
class AddedLatency:
    """In milliseconds, over so many orders."""

    orders: int
    p50_ms: float
    p99_ms: float
    worst_ms: float


async def added_latency(stage: Stage, contender: Contender, *, orders: int) -> AddedLatency:
    """Measured over `orders` orders; at least a hundred, or there is no hundredth part."""
    dice = random.Random(SEED)
    sent_at: dict[str, float] = {}
    async with (
        stage.round(latency_s=STRIPE_S) as round_,
        tapped(stage.stripe_url) as (tap, stripe_url),
    ):
        await round_.backlog(1)
        ledger_url = await stage.new_ledger(contender)
        async with round_.run(contender, ledger_url=ledger_url, STRIPE_API_BASE=stripe_url) as running:
            await round_.events.until(1, running)  # it is at work

            async def order() -> None:
                order_id = new_order_id()
                sent_at[order_id] = time.monotonic()
                await round_.send(order_id)

            due = time.monotonic()
            async with asyncio.TaskGroup() as group:
                for _ in range(WARM_UP_ORDERS + orders):
                    due += dice.expovariate(ORDERS_PER_S)
                    await asyncio.sleep(due - time.monotonic())
                    group.create_task(order())
            await round_.events.until(1 + WARM_UP_ORDERS + orders, running)
    counted = list(sent_at)[WARM_UP_ORDERS:]
    heard = round_.events.heard
    added_ms = [1000 * (heard[each] - sent_at[each] - tap.stripe_s[each]) for each in counted]
    percentiles = statistics.quantiles(added_ms, n=100, method="inclusive")
    return AddedLatency(len(added_ms), percentiles[49], percentiles[98], max(added_ms))
