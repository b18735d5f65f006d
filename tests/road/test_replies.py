"""The order service that asks for an answer gets it, privately; nobody else does."""

from collections.abc import Callable
from typing import Any

from aio_pika.abc import AbstractIncomingMessage

from schemas import PaymentReply
from tests.harness import Shop, WorkerProcess, dead_letters, until
from worker.sandbox.stripe_control import SandboxControl

MakeWorker = Callable[..., WorkerProcess]
ORDER: dict[str, Any] = {"order_id": "order-1", "amount": "12.50"}


async def test_a_reply_holds_the_client_secret_of_the_intent(make_worker: MakeWorker, shop: Shop) -> None:
    await shop.subscribe()
    await make_worker().until_subscribed()

    await shop.send(ORDER, reply_to=await shop.await_replies(), correlation_id="request-7")
    await until(lambda: shop.replies, what="the reply")

    [(correlation_id, body)] = shop.replies
    reply = PaymentReply.model_validate(body)
    assert correlation_id == "request-7"
    assert set(body) == {"order_id", "payment_id", "status", "client_secret"}
    assert (reply.order_id, reply.status) == ("order-1", "requires_payment_method")
    assert str(reply.client_secret).startswith(f"{reply.payment_id}_secret_")


async def test_a_redelivered_order_gets_the_same_secret_fetched_again(
    make_worker: MakeWorker, shop: Shop, stripe: SandboxControl
) -> None:
    await make_worker().until_subscribed()
    [probe] = await stripe.wait_for_rows(1)
    reply_to = await shop.await_replies()

    await shop.send(ORDER, reply_to=reply_to)
    await until(lambda: len(shop.replies) == 1, what="the first reply")
    await shop.send(ORDER, reply_to=reply_to)
    await until(lambda: len(shop.replies) == 2, what="the second reply")

    assert shop.replies[0][1] == shop.replies[1][1]
    assert [row["method"] for row in await stripe.record(since=probe["seq"])] == ["POST", "GET"]


async def test_a_failed_payment_is_answered_as_failed(make_worker: MakeWorker, shop: Shop) -> None:
    await make_worker().until_subscribed()

    await shop.send(
        ORDER | {"confirm": True, "payment_method": "pm_card_chargeDeclined"}, reply_to=await shop.await_replies()
    )
    await until(lambda: shop.replies, what="the reply")

    assert shop.replies[0][1]["status"] == "failed"
    assert shop.replies[0][1]["payment_id"].startswith("pi_")


async def test_a_dead_lettered_order_is_answered_too(make_worker: MakeWorker, shop: Shop) -> None:
    await make_worker().until_subscribed()

    await shop.send(ORDER | {"amount": "0"}, reply_to=await shop.await_replies())
    await until(lambda: shop.replies, what="the reply")

    assert shop.replies[0][1] == {
        "order_id": "order-1",
        "payment_id": None,
        "status": "dead_lettered",
        "client_secret": None,
    }


async def test_a_direct_reply_to_is_answered_without_a_word_of_nobody_waiting(
    make_worker: MakeWorker, shop: Shop
) -> None:
    """RabbitMQ returns mandatory messages to it as unroutable even where they arrive."""
    worker = await make_worker().until_subscribed()
    direct = await shop.channel.get_queue("amq.rabbitmq.reply-to", ensure=False)
    answers: list[bytes] = []

    async def take(message: AbstractIncomingMessage) -> None:
        answers.append(message.body)

    await direct.consume(take, no_ack=True)
    await shop.send(ORDER, reply_to="amq.rabbitmq.reply-to")
    await until(lambda: answers, what="the reply")

    assert b"_secret_" in answers[0]
    assert not worker.said("reply.nobody_waits")


async def test_a_secret_that_stripe_refuses_to_tell_again_leaves_the_order_done(
    make_worker: MakeWorker, shop: Shop, stripe: SandboxControl, environment: dict[str, str]
) -> None:
    await shop.subscribe()
    worker = await make_worker().until_subscribed()
    await shop.send(ORDER)
    await shop.until_events(1)
    await stripe.reset()

    await shop.send(ORDER, reply_to=await shop.await_replies())
    await until(lambda: shop.replies, what="the reply")

    assert shop.replies[0][1]["payment_id"] is not None
    assert shop.replies[0][1]["client_secret"] is None
    assert worker.said("reply.without_secret")
    assert await dead_letters(environment) == []


async def test_nobody_waiting_for_the_reply_stops_nothing(make_worker: MakeWorker, shop: Shop) -> None:
    await shop.subscribe()
    worker = await make_worker().until_subscribed()

    await shop.send(ORDER, reply_to="gone-long-ago")
    await shop.until_events(1)
    await until(lambda: worker.said("reply.nobody_waits"), what="the line that says so")


async def test_no_reply_goes_to_a_queue_that_operators_list(
    make_worker: MakeWorker, shop: Shop, environment: dict[str, str]
) -> None:
    await shop.subscribe()
    await make_worker().until_subscribed()

    for queue in ("ORDERS_QUEUE", "DEAD_LETTERS_QUEUE"):
        await shop.send(ORDER | {"order_id": queue}, reply_to=environment[queue])
    await shop.send(ORDER | {"order_id": "last"})
    await shop.until_events(3)

    assert await shop.ready_count(environment["DEAD_LETTERS_QUEUE"]) == 0
