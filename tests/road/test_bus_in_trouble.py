"""Queues and connections are other than expected, deleted, full, cut: explained, kept, come back from."""

import asyncio
from collections.abc import Callable
from datetime import timedelta
from typing import Any

from structlog.testing import capture_logs

from tests.harness import Shop, WorkerProcess, dead_letters, new_names, run_cli, until
from tests.ledger import steps
from worker.app import bus_names
from worker.bus.outgoing import Outgoing
from worker.bus.publisher import Publisher
from worker.ledger.ledger import Ledger
from worker.ledger.migrate import migrate
from worker.metrics import Metrics
from worker.publish_events import EventRelay
from worker.sandbox.broker import PrivateBroker
from worker.sandbox.stripe_control import SandboxControl
from worker.settings import read_settings

MakeWorker = Callable[..., WorkerProcess]
ORDER: dict[str, Any] = {"order_id": "order-1", "amount": "12.50"}


async def test_a_queue_with_other_arguments_is_explained_and_ends_the_start(
    make_worker: MakeWorker, shop: Shop, names: dict[str, str]
) -> None:
    await shop.channel.declare_queue(names["ORDERS_QUEUE"], durable=True)

    worker = make_worker()

    assert await worker.exit_code() == 2
    told = worker.log.read_text()
    assert f"queue '{names['ORDERS_QUEUE']}' exists, but otherwise than this worker needs it" in told
    assert "x-queue-type" in told
    assert "delete the queue, or give this worker another name for it" in told
    assert "Traceback" not in told


async def test_a_queue_deleted_under_the_consumer_is_declared_again_and_consumed(
    make_worker: MakeWorker, shop: Shop, names: dict[str, str]
) -> None:
    await shop.subscribe()
    worker = await make_worker().until_subscribed()

    await shop.channel.queue_delete(names["ORDERS_QUEUE"])
    await until(lambda: len(worker.said("consumer.subscribed")) == 2, what="a new subscription", deadline_s=5)
    await shop.send(ORDER)
    await shop.until_events(1)


async def test_an_event_that_no_queue_takes_is_kept_and_told_when_one_is_bound(
    ledger_url: str, make_worker: MakeWorker, shop: Shop
) -> None:
    worker = await make_worker(DATABASE_URL=ledger_url).until_subscribed()

    await shop.send_all([{"order_id": f"order-{number}", "amount": "1.00"} for number in range(10)])
    await until(lambda: len(worker.said("event.unroutable")) >= 10, what="the lines that say so")
    await until(lambda: worker.said("relay.nobody_takes"), what="the relay to come round")
    assert len(worker.said("event.unroutable")) == 10
    await shop.subscribe()
    await shop.until_events(10, deadline_s=10)

    assert len(shop.events) == 10


async def test_an_event_that_nobody_takes_is_logged_once_and_then_all_of_them_once_a_minute(
    make_worker: MakeWorker, shop: Shop, environment: dict[str, str]
) -> None:
    async with (
        Ledger(environment["DATABASE_URL"]) as ledger,
        Publisher(environment["AMQP_URL"], bus_names(read_settings(environment))) as publisher,
    ):
        migrate(ledger.engine)
        await shop.declare_worker_queue()
        clock = [steps.later(60)]
        relay = EventRelay(
            ledger=ledger,
            outgoing=Outgoing(publisher, bus_names(read_settings(environment))),
            metrics=Metrics(),
            clock=lambda: clock[0],
        )
        events = [await steps.decide(ledger, f"o-{number}") for number in range(3)]
        with capture_logs() as lines:
            assert not await relay.tell(events[0])
            for _ in range(5):
                assert await relay.run_once() == 0
                clock[0] += timedelta(seconds=20)
        await shop.subscribe()
        assert await relay.run_once() == 3

    assert [line["event_id"] for line in lines if line["event"] == "event.unroutable"] == [e.event_id for e in events]
    told = [line for line in lines if line["event"] == "relay.nobody_takes"]
    assert [(line["events"], line["payments"], line["types"]) for line in told] == [
        (3, 3, ["payment.intent_created"])
    ] * 2


async def test_events_untold_when_the_worker_was_killed_are_told_by_the_next(
    make_worker: MakeWorker, shop: Shop
) -> None:
    worker = await make_worker().until_subscribed()
    await shop.send(ORDER)
    await until(lambda: worker.said("event.unroutable"), what="the event to be kept")
    worker.kill()
    await shop.subscribe()

    await make_worker().until_subscribed()
    await shop.until_events(1)


async def test_the_retry_queues_hand_back_to_the_worker_alone(
    make_worker: MakeWorker, shop: Shop, stripe: SandboxControl, names: dict[str, str]
) -> None:
    """Others listen on the orders exchange; a retried order must not look like a new one to them."""
    neighbour = await shop.channel.declare_queue(exclusive=True)
    await neighbour.bind(shop.orders, "order.#")
    await shop.subscribe()
    worker = await make_worker().until_subscribed()
    await stripe.add_fault("503", method="POST", times=4)

    await shop.send(ORDER, headers={"CC": [f"{names['ORDERS_QUEUE']}.copy"]})
    await shop.until_events(1)

    assert worker.said("order.retried")
    assert await shop.ready_count(neighbour.name) == 1


async def test_two_workers_with_names_of_their_own_share_nothing_but_the_broker(
    make_worker: MakeWorker, broker: PrivateBroker, shop: Shop
) -> None:
    other_names = new_names()
    async with Shop(broker.amqp_url, other_names) as other:
        await shop.subscribe()
        await other.subscribe()
        await make_worker().until_subscribed()
        await make_worker(**other_names).until_subscribed()

        await shop.send(ORDER)
        await other.send(ORDER | {"order_id": "order-2"})
        await shop.until_events(1)
        await other.until_events(1)

        assert [event["subject"] for event in shop.events + other.events] == ["order-1", "order-2"]


async def test_what_rabbitmq_itself_gives_up_is_listed_with_its_reason(
    make_worker: MakeWorker, shop: Shop, environment: dict[str, str]
) -> None:
    await shop.declare_worker_queue()
    await shop.send(ORDER)
    queue = await shop.channel.get_queue(environment["ORDERS_QUEUE"])
    message = await queue.get()
    await message.reject(requeue=False)
    await make_worker().until_subscribed()

    [letter] = await until(lambda: dead_letters(environment), what="the letter")

    assert letter["reason"] == "rejected"
    assert letter["first_seen"] is None


async def test_card_numbers_in_what_rabbitmq_itself_gives_up_are_masked(
    make_worker: MakeWorker, shop: Shop, environment: dict[str, str]
) -> None:
    """Nobody has looked at such a message before it lands."""
    card = "4242424242424242"
    await shop.declare_worker_queue()
    await shop.send(ORDER | {"card": card}, correlation_id=card, headers={"pan": card})
    queue = await shop.channel.get_queue(environment["ORDERS_QUEUE"])
    message = await queue.get()
    await message.reject(requeue=False)
    await make_worker().until_subscribed()

    await until(lambda: dead_letters(environment), what="the letter")

    shown = await asyncio.to_thread(run_cli, environment, "dead-letters", "export")
    assert "************4242" in shown.stdout
    assert card not in shown.stdout


async def test_sigterm_under_load_finishes_what_was_begun_and_leaves_the_rest(
    ledger_url: str, make_worker: MakeWorker, shop: Shop, stripe: SandboxControl, environment: dict[str, str]
) -> None:
    await shop.subscribe()
    await stripe.change_settings(latency_s=[0.05, 0.2])
    worker = await make_worker(DATABASE_URL=ledger_url, PREFETCH="8").until_subscribed()
    await shop.send_all([{"order_id": f"order-{number}", "amount": "1.00"} for number in range(100)])
    await shop.until_events(10)

    started = asyncio.get_running_loop().time()
    assert await worker.stop() == 0
    assert asyncio.get_running_loop().time() - started < 10
    begun = {row["order_id"] for row in await stripe.record(method="POST")}
    assert {event["subject"] for event in shop.events} >= begun - {None}, "every order that reached Stripe was told"
    assert len(begun) < 100

    await make_worker(DATABASE_URL=ledger_url).until_subscribed()
    await shop.until_events(100)
    assert (await stripe.stats())["intents"] == 100
    assert await dead_letters(environment) == []


async def test_a_second_signal_ends_the_process_at_once(
    make_worker: MakeWorker, shop: Shop, stripe: SandboxControl
) -> None:
    worker = await make_worker(DRAIN_TIMEOUT="60").until_subscribed()
    await stripe.add_fault("hang", method="POST", times=1)
    await shop.send(ORDER)
    await stripe.wait_for_rows(1, method="POST")

    worker.process.terminate()
    await until(lambda: worker.said("consumer.draining"), what="the drain")
    worker.process.terminate()

    assert await worker.exit_code(5) < 0


async def test_a_lost_connection_is_made_anew_once_though_work_on_the_old_one_goes_on(
    make_worker: MakeWorker, shop: Shop, stripe: SandboxControl, broker: PrivateBroker
) -> None:
    """What was in work cannot acknowledge any more, which is no reason to give up the new connection too."""
    await shop.subscribe()
    await stripe.change_settings(latency_s=[0.3, 1.5])
    worker = await make_worker(PREFETCH="16").until_subscribed()
    await shop.send_all([{"order_id": f"order-{number}", "amount": "1.00"} for number in range(64)])
    await stripe.wait_for_rows(16, method="POST")

    for line in (await broker.ctl("list_connections", "pid", "client_properties")).splitlines():
        if f"payment-worker consumes {shop.names['ORDERS_QUEUE']}" in line:
            await broker.ctl("close_connection", line.split()[0], "a test")
    await shop.until_events(64)
    await until(lambda: _is_empty(shop), what="the queue to be empty")

    assert len(worker.said("consumer.subscribed")) == 2
    assert (await stripe.stats())["intents"] == 64
    assert set(shop.events_per_order().values()) == {1}


async def test_a_subscriber_whose_queue_is_full_stops_nobody_else(
    make_worker: MakeWorker, shop: Shop, stripe: SandboxControl
) -> None:
    """It refuses what it cannot hold; that event waits in the ledger, and is told when there is room."""
    full = await shop.channel.declare_queue(
        exclusive=True, arguments={"x-max-length": 1, "x-overflow": "reject-publish"}
    )
    await full.bind(shop.payments, "payment.failed")
    await shop.subscribe("payment.intent_created")
    worker = await make_worker().until_subscribed()

    for number in range(5):
        await shop.send({"order_id": f"order-failed-{number}", "amount": "0.01"})
        await shop.send({"order_id": f"order-{number}", "amount": "1.00"})
    await shop.until_events(5)
    await until(lambda: _is_empty(shop), what="the queue to be empty")
    assert len(worker.said("consumer.subscribed")) == 1
    assert len(worker.said("event.unroutable")) >= 4

    seen = set()

    async def make_room() -> bool:
        while message := await full.get(no_ack=True, fail=False):
            seen.add(message.message_id)
        return len(seen) == 5

    await until(make_room, what="all five to come in their turn")


async def _is_empty(shop: Shop) -> bool:
    return await shop.ready_count(shop.names["ORDERS_QUEUE"]) == 0
