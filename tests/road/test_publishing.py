"""Many messages in flight at once on one channel: each publish ends as its own message does."""

import asyncio
from collections.abc import AsyncIterator

import pytest

from tests.chaos.proxy import Proxy
from tests.harness import Shop
from worker.app import bus_names
from worker.bus.publisher import Publisher
from worker.errors import BusUnavailable, Unroutable
from worker.sandbox.broker import PrivateBroker
from worker.settings import read_settings


async def publish(publisher: Publisher, queue: str, message_id: str) -> None:
    await publisher.publish(b"{}", exchange="", routing_key=queue, message_id=message_id, headers={})


@pytest.fixture
async def proxy(broker: PrivateBroker) -> AsyncIterator[Proxy]:
    async with Proxy("127.0.0.1", broker.port) as proxy:
        yield proxy


@pytest.fixture
async def publisher(proxy: Proxy, environment: dict[str, str]) -> AsyncIterator[Publisher]:
    url = f"amqp://guest:guest@127.0.0.1:{proxy.port}/"
    async with Publisher(url, bus_names(read_settings(environment))) as publisher:
        yield publisher


@pytest.fixture
def orders_queue(environment: dict[str, str]) -> str:
    return environment["ORDERS_QUEUE"]


async def test_each_of_300_in_flight_is_told_whether_a_queue_took_it(
    publisher: Publisher, shop: Shop, orders_queue: str
) -> None:
    queues = [f"{orders_queue}.nowhere" if number % 3 == 0 else orders_queue for number in range(300)]
    ends = await asyncio.gather(
        *(publish(publisher, queue, f"m-{number}") for number, queue in enumerate(queues)), return_exceptions=True
    )

    assert [type(end) for end in ends] == [type(None) if queue == orders_queue else Unroutable for queue in queues]
    assert await shop.ready_count(orders_queue) == 200


async def test_messages_with_one_id_are_told_apart(publisher: Publisher, shop: Shop, orders_queue: str) -> None:
    """aiormq would credit a return to whichever of them came last."""
    queues = [orders_queue, f"{orders_queue}.nowhere"] * 20
    ends = await asyncio.gather(*(publish(publisher, queue, "the same") for queue in queues), return_exceptions=True)

    assert [type(end) for end in ends] == [type(None), Unroutable] * 20
    assert await shop.ready_count(orders_queue) == 20


async def test_all_that_are_in_flight_when_the_connection_is_cut_are_unknown_at_once(
    publisher: Publisher, proxy: Proxy, shop: Shop, orders_queue: str
) -> None:
    await publish(publisher, orders_queue, "first")
    proxy.pause()
    in_flight = [asyncio.create_task(publish(publisher, orders_queue, f"m-{number}")) for number in range(50)]
    waiting = asyncio.gather(*in_flight, return_exceptions=True)
    await asyncio.sleep(0.1)  # for their frames to be on the way
    assert not any(task.done() for task in in_flight)

    proxy.cut()
    proxy.resume()
    ends = await asyncio.wait_for(waiting, 5)
    assert [type(end) for end in ends] == [BusUnavailable] * 50
    await publish(publisher, orders_queue, "after")
    assert await shop.ready_count(orders_queue) == 2


async def test_what_cannot_be_written_fails_alone(publisher: Publisher, shop: Shop, orders_queue: str) -> None:
    others = [asyncio.create_task(publish(publisher, orders_queue, f"m-{number}")) for number in range(10)]
    with pytest.raises(ValueError, match="Routing key too long"):
        await publish(publisher, "x" * 256, "too long a key")
    with pytest.raises((TypeError, ValueError)):
        await publisher.publish(b"{}", exchange="", routing_key=orders_queue, message_id="m", headers={"no": object()})
    await asyncio.gather(*others)

    await publish(publisher, orders_queue, "after")
    assert await shop.ready_count(orders_queue) == 11
