"""The broker itself is away, killed, cut off, frozen, or closes our channel: consuming again within seconds."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import pytest

from tests.chaos.proxy import Proxy
from tests.harness import Shop, WorkerProcess, dead_letters, frozen, until
from worker.sandbox.broker import PrivateBroker
from worker.sandbox.stripe_control import SandboxControl

MakeWorker = Callable[..., WorkerProcess]
ORDER: dict[str, Any] = {"order_id": "order-1", "amount": "12.50"}


@pytest.fixture(scope="module")
def own_broker() -> Iterator[PrivateBroker]:
    """One that may be ill-treated without disturbing the rest of the suite."""
    with PrivateBroker() as broker:
        yield broker


@pytest.fixture
async def own_shop(own_broker: PrivateBroker, names: dict[str, str]) -> AsyncIterator[Shop]:
    async with Shop(own_broker.amqp_url, names) as shop:
        await shop.subscribe()
        yield shop


async def consumes_again(worker: WorkerProcess, times: int, *, within_s: float) -> None:
    await until(
        lambda: len(worker.said("consumer.subscribed")) >= times,
        what="the worker to consume again",
        deadline_s=within_s,
    )


async def test_a_broker_that_is_away_at_start_or_killed_later_is_waited_for(
    make_worker: MakeWorker, names: dict[str, str]
) -> None:
    with PrivateBroker() as broker:
        worker = await make_worker(AMQP_URL=broker.amqp_url).until_subscribed()
        broker.kill()
        await until(lambda: worker.said("consumer.waiting"), what="the line that says so")
        second = make_worker(AMQP_URL=broker.amqp_url)
        await until(lambda: second.said("consumer.waiting"), what="the second worker to wait from its start")

        await broker.start()
        await consumes_again(worker, 2, within_s=10)
        await consumes_again(second, 1, within_s=10)
        async with Shop(broker.amqp_url, names) as shop:
            await shop.subscribe()
            await shop.send(ORDER)
            await shop.until_events(1)
            assert await worker.stop() == 0
            assert await second.stop() == 0


async def test_a_network_that_is_parted_for_a_minute_is_come_back_from(
    make_worker: MakeWorker, own_broker: PrivateBroker, own_shop: Shop, stripe: SandboxControl
) -> None:
    """Half-open: no end hears of it but by its heartbeats, and what was in work meanwhile is told afterwards."""
    async with Proxy("127.0.0.1", own_broker.port) as proxy:
        url = f"amqp://guest:guest@127.0.0.1:{proxy.port}/"
        worker = await make_worker(AMQP_URL=url).until_subscribed()
        await stripe.change_settings(latency_s=[1, 1])
        await own_shop.send_all([{"order_id": f"order-{number}", "amount": "1.00"} for number in range(20)])
        await stripe.wait_for_rows(10, method="POST")

        proxy.pause()
        parted_at = time.monotonic()
        await until(lambda: worker.said("consumer.waiting"), what="the worker to notice", deadline_s=45)
        await asyncio.sleep(60 - (time.monotonic() - parted_at))  # the minute is what is tried
        proxy.resume()
        await consumes_again(worker, 2, within_s=10)
        await own_shop.until_events(20)

    assert own_shop.events_per_order() == {f"order-{number}": 1 for number in range(20)}
    assert (await stripe.stats())["intents"] == 20


async def test_a_channel_closed_by_a_precondition_is_opened_anew(
    make_worker: MakeWorker,
    own_broker: PrivateBroker,
    own_shop: Shop,
    stripe: SandboxControl,
    environment: dict[str, str],
) -> None:
    """RabbitMQ does so to a consumer that takes too long: https://www.rabbitmq.com/docs/consumers."""
    await own_broker.ctl("eval", "application:set_env(rabbit, channel_tick_interval, 500).")
    await own_broker.ctl("eval", "application:set_env(rabbit, consumer_timeout, 1000).")
    worker = await make_worker(AMQP_URL=own_broker.amqp_url).until_subscribed()
    try:
        await stripe.add_fault("delay", method="POST", times=1, delay_s=4)
        await own_shop.send(ORDER)
        await until(lambda: worker.said("consumer.waiting"), what="the channel to be closed")
        await consumes_again(worker, 2, within_s=5)
        await own_shop.until_events(1)
    finally:
        await own_broker.ctl("eval", "application:set_env(rabbit, consumer_timeout, 1800000).")

    assert (await stripe.stats())["intents"] == 1
    assert await dead_letters(environment | {"AMQP_URL": own_broker.amqp_url}) == []


async def test_a_broker_that_is_frozen_holds_up_no_stop(
    make_worker: MakeWorker, own_broker: PrivateBroker, own_shop: Shop
) -> None:
    worker = await make_worker(AMQP_URL=own_broker.amqp_url).until_subscribed()
    await own_shop.send(ORDER)
    await own_shop.until_events(1)
    with frozen(own_broker):
        await stops_in_time(worker)


async def test_a_broker_that_is_frozen_holds_up_no_stop_at_the_start(
    make_worker: MakeWorker, own_broker: PrivateBroker
) -> None:
    with frozen(own_broker):
        worker = make_worker(AMQP_URL=own_broker.amqp_url)
        await until(lambda: worker.said("worker.started"), what="the start")
        await stops_in_time(worker)


async def stops_in_time(worker: WorkerProcess) -> None:
    began = time.monotonic()
    assert await worker.stop() == 0
    assert time.monotonic() - began < 10, "what an orchestrator grants, with a margin"
