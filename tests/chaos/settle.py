"""Until all is done that was asked for, judged from outside; how much time the workers are given for it."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from typing import Any, Final

from tests.chaos.history import Command, History
from tests.chaos.life_rules import untold
from tests.chaos.shop import Shop
from worker.bus.connection import bus_errors
from worker.errors import BusUnavailable
from worker.sandbox.broker import PrivateBroker
from worker.sandbox.stripe_control import SandboxControl

# What failed waits for 1, 5 and 30 s after its first deliveries, and for 120 s after a rare fourth one.
DEADLINE_S: Final = 180


async def until_settled(
    broker: PrivateBroker, stripe: SandboxControl, shop: Shop, orders: set[str], commands: Sequence[Command]
) -> str | None:
    """Until every order has its outcome and every command its answer, the worker's queues are empty, and what happened
    at Stripe is told. None, or what is left when the time is up.
    """
    deadline = time.monotonic() + DEADLINE_S
    left = "nothing was seen"
    while time.monotonic() < deadline:
        with suppress(BusUnavailable), bus_errors():
            left = await _left(broker, stripe, shop, orders, commands)
            if not left:
                return None
        await asyncio.sleep(0.2)
    return left


async def _left(
    broker: PrivateBroker, stripe: SandboxControl, shop: Shop, orders: set[str], commands: Sequence[Command]
) -> str:
    """What is not done yet; the questions that are slow to answer come last."""
    await shop.look()
    missing, unanswered = shop.without_an_outcome(orders), shop.without_an_answer(commands)
    waiting = await shop.waiting()
    if missing or unanswered or waiting:
        names = ", ".join([*sorted(missing), *(each.name for each in unanswered)][:5])
        return f"{len(missing)} orders and {len(unanswered)} commands without an end ({names}), {waiting} messages wait"
    # What is in work is counted by the broker alone.
    if in_work := await _held(broker):
        return f"{in_work} messages in the worker's queues"
    try:
        await stripe.wait_for_deliveries(timeout_s=1)
    except TimeoutError as error:
        return str(error)
    seen = History({}, shop.events, [], await all_intents(stripe), [], True, refunds=await stripe.objects("refunds"))
    return "; ".join(list(untold(seen, shop.told()))[:5])


async def all_intents(stripe: SandboxControl) -> list[dict[str, Any]]:
    """Whatever their number."""
    return await all_pages(lambda rows: stripe.intents(skip=len(rows)))


async def all_pages(page: Callable[[list[dict[str, Any]]], Awaitable[list[dict[str, Any]]]]) -> list[dict[str, Any]]:
    """page: asks for what follows the rows that are there."""
    rows: list[dict[str, Any]] = []
    while more := await page(rows):
        rows += more
    return rows


async def _held(broker: PrivateBroker) -> int:
    """Messages ready or in work, in queues of the worker; the subscriber's are not."""
    listed = [line.split("\t") for line in (await broker.ctl("list_queues", "name", "messages")).splitlines()]
    return sum(int(count) for name, count in listed if ".worker." in name)
