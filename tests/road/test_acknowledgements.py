"""Acknowledgements go out in groups: none of an unsettled delivery, none held up by a slow one, none left behind."""

import asyncio
import random
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from datetime import UTC, datetime
from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest

from tests.harness import Shop, until
from worker.app import bus_names
from worker.bus.acknowledge import Acknowledger
from worker.bus.delivery import Delivery
from worker.bus.subscription import Subscription, subscribe
from worker.errors import BusUnavailable
from worker.sandbox.broker import PrivateBroker
from worker.settings import read_settings

Subscribe = Callable[..., AbstractAsyncContextManager[Subscription]]


@pytest.fixture
async def consume(environment: dict[str, str], names: dict[str, str], shop: Shop) -> Subscribe:
    await shop.declare_worker_queue()
    return partial(
        subscribe,
        environment["AMQP_URL"],
        bus_names(read_settings(environment)),
        queue_name=names["ORDERS_QUEUE"],
        clock=lambda: datetime.now(UTC),
    )


async def send(shop: Shop, count: int) -> set[bytes]:
    await shop.send_all([{"number": number} for number in range(count)])
    return {b'{"number": %d}' % number for number in range(count)}


async def kept(broker: PrivateBroker, shop: Shop) -> int:
    """Messages that the broker has in the queue, those out included; as it counts every few seconds."""
    rows = (await broker.ctl("list_queues", "name", "messages")).splitlines()
    return next(int(row.split()[1]) for row in rows if row.split()[0] == shop.names["ORDERS_QUEUE"])


async def brought_again(consume: Subscribe, shop: Shop) -> list[bytes]:
    """All that the queue still holds: what went back comes before what is new."""
    again: list[Delivery] = []
    await shop.send({"number": "last"})
    async with consume(prefetch=200, on_delivery=again.append):
        await until(lambda: again and again[-1].body == b'{"number": "last"}', what="the last of them")
        for delivery in again:
            delivery.ack()
    return sorted(delivery.body for delivery in again[:-1])


async def test_what_was_not_settled_comes_back_from_a_lost_connection_and_nothing_else(
    consume: Subscribe, shop: Shop, broker: PrivateBroker
) -> None:
    chance = random.Random(1)
    sent, taken = await send(shop, 120), list[Delivery]()
    async with consume(prefetch=120, on_delivery=taken.append) as subscription:
        await until(lambda: len(taken) == 120, what="all deliveries")
        chance.shuffle(taken)
        settled, unsettled = taken[:90], taken[90:]
        for delivery in settled:
            delivery.ack()
            if chance.random() < 0.2:
                await asyncio.sleep(0.002)

        async def only_unsettled_are_left() -> bool:
            return await kept(broker, shop) == len(unsettled)

        await until(only_unsettled_are_left, what="the broker to hear of them")
        for line in (await broker.ctl("list_connections", "pid", "client_properties")).splitlines():
            if f"payment-worker consumes {shop.names['ORDERS_QUEUE']}" in line:
                await broker.ctl("close_connection", line.split()[0], "a test")
        await asyncio.wait_for(subscription.lost(), 10)
        with pytest.raises(BusUnavailable):
            unsettled[0].ack()

    assert {delivery.body for delivery in taken} == sent
    assert await brought_again(consume, shop) == sorted(delivery.body for delivery in unsettled)


async def test_a_slow_one_does_not_hold_up_the_acknowledgements_of_the_others(consume: Subscribe, shop: Shop) -> None:
    """Or the broker, which lets no more than the prefetch out, would bring no more."""
    sent, taken = await send(shop, 60), list[Delivery]()

    def take(delivery: Delivery) -> None:
        taken.append(delivery)
        if delivery is not taken[0]:
            delivery.ack()

    async with consume(prefetch=3, on_delivery=take):
        await until(lambda: len(taken) == 60, what="all the others", deadline_s=10)
    assert {delivery.body for delivery in taken} == sent


async def test_the_last_acknowledgements_are_sent_before_the_connection_is_closed(
    consume: Subscribe, shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("worker.bus.acknowledge.TOGETHER_S", 3600)
    taken: list[Delivery] = []
    await send(shop, 30)
    async with consume(prefetch=30, on_delivery=taken.append) as subscription:
        await until(lambda: len(taken) == 30, what="all deliveries")
        await subscription.stop_taking()
        for delivery in taken[1:]:
            delivery.ack()

    assert await brought_again(consume, shop) == [taken[0].body]


async def test_what_cannot_be_sent_now_is_sent_when_the_connection_takes_frames_again() -> None:
    queue: asyncio.Queue[Any] = asyncio.Queue(1)
    queue.put_nowait("in the way")
    channel: Any = SimpleNamespace(number=1, is_closed=False, connection=SimpleNamespace(write_queue=queue))
    acknowledger = Acknowledger(channel)
    for tag in (1, 2, 3):
        acknowledger.ack(tag)
        await asyncio.sleep(0.01)

    assert queue.get_nowait() == "in the way"
    frame = await asyncio.wait_for(queue.get(), 10)

    assert frame.payload.hex() == "010001" + "0000000d" + "003c0050" + "0000000000000003" + "01" + "ce"
    await asyncio.sleep(0.01)
    assert queue.empty()
