"""An order comes in, a PaymentIntent is made, an event goes out: once each, whatever is delivered how often."""

import random
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest

from schemas import PaymentFailed, PaymentIntentCreated
from tests.harness import Shop, WorkerProcess, dead_letters, until
from worker.sandbox.stripe_control import SandboxControl

MakeWorker = Callable[..., WorkerProcess]


def an_order(order_id: str, **fields: Any) -> dict[str, Any]:
    return {"order_id": order_id, "amount": "12.50", "currency": "eur", **fields}


async def test_each_of_300_orders_gets_one_intent_and_one_event(
    ledger_url: str, make_worker: MakeWorker, shop: Shop, stripe: SandboxControl
) -> None:
    await shop.subscribe()
    worker = await make_worker(DATABASE_URL=ledger_url).until_subscribed()
    orders = [an_order(f"order-{number}") for number in range(300)]

    await shop.send_all(orders)
    await shop.until_events(300)
    await until(lambda: _is_empty(shop), what="the queue to be empty")

    stats = await stripe.stats()
    assert stats["intents"] == 300
    assert stats["orders"] == 300
    assert not stats["orders_with_several_intents"]
    assert shop.events_per_order() == Counter({order["order_id"]: 1 for order in orders})
    assert len(shop.events) == 300
    assert await worker.stop() == 0


async def test_four_copies_of_60_orders_on_two_workers_make_60_intents_and_one_event_id_each(
    ledger_url: str, make_worker: MakeWorker, shop: Shop, stripe: SandboxControl
) -> None:
    await shop.subscribe()
    await shop.declare_worker_queue()
    copies = [an_order(f"order-{number}") for number in range(60)] * 4
    random.Random(7).shuffle(copies)
    await stripe.change_settings(latency_s=[0.01, 0.05])
    workers = [make_worker(DATABASE_URL=ledger_url, PREFETCH="16") for _ in range(2)]
    for worker in workers:
        await worker.until_subscribed()

    await shop.send_all(copies)
    await until(lambda: len(shop.events) >= 240, what="240 events told")
    await until(lambda: _is_empty(shop), what="the queue to be empty")

    stats = await stripe.stats()
    assert stats["intents"] == 60
    assert not stats["orders_with_several_intents"]
    assert stats["answers"].get("create 200", 0) == 60, "one asks, the other waits its turn"
    assert shop.events_per_order() == Counter({f"order-{number}": 1 for number in range(60)})
    by_id: dict[str, set[str]] = {}
    for message in shop.messages:
        by_id.setdefault(str(message.message_id), set()).add(message.body.decode())
    assert all(len(bodies) == 1 for bodies in by_id.values()), "the same outcome is told in the same bytes"


async def test_events_say_what_the_contract_says(make_worker: MakeWorker, shop: Shop) -> None:
    await shop.subscribe()
    await make_worker().until_subscribed()
    trace = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"

    await shop.send(
        {
            "specversion": "1.0",
            "id": "event-1",
            "source": "shop",
            "type": "order.created",
            "traceparent": trace,
            "data": an_order("order-1", amount="99.99", currency="USD"),
        },
        correlation_id="correlation-1",
        content_type="application/cloudevents+json",
    )
    [body] = await shop.until_events(1)

    message = shop.messages[0]
    event = PaymentIntentCreated.model_validate(body)
    assert (event.subject, event.source, event.traceparent) == ("order-1", "payment-worker", trace)
    assert event.data.payment_id.startswith("pi_")
    assert (event.data.amount, event.data.amount_minor, event.data.currency) == ("99.99", 9999, "usd")
    assert (event.data.livemode, event.data.sequence, event.data.cause) == (False, 1, "event-1")
    assert event.data.status == "requires_payment_method"
    assert message.message_id == event.id
    assert (message.type, message.routing_key) == ("payment.intent_created", "payment.intent_created")
    assert message.correlation_id == "correlation-1"
    assert message.headers["traceparent"] == trace
    assert message.content_type == "application/cloudevents+json"
    assert message.delivery_mode == 2


async def test_an_order_in_binary_form_is_read_from_headers_and_properties(make_worker: MakeWorker, shop: Shop) -> None:
    await shop.subscribe()
    await make_worker().until_subscribed()

    await shop.send(an_order("order-1"), headers={"cloudEvents:id": "event-1", "cloudEvents:type": "order.created"})
    await shop.send(an_order("order-2"), message_id="event-2", type="order.created", content_type="text/plain")
    events = await shop.until_events(2)

    assert {event["subject"]: event["data"]["cause"] for event in events} == {
        "order-1": "event-1",
        "order-2": "event-2",
    }


async def test_a_declined_card_fails_the_payment_at_once(
    make_worker: MakeWorker, shop: Shop, stripe: SandboxControl
) -> None:
    await shop.subscribe()
    await make_worker().until_subscribed()

    await shop.send(an_order("order-1", confirm=True, payment_method="pm_card_chargeDeclinedInsufficientFunds"))
    [body] = await shop.until_events(1)

    event = PaymentFailed.model_validate(body)
    assert event.data.failure.category == "declined"
    assert event.data.failure.code == "card_declined"
    assert event.data.failure.decline_code == "insufficient_funds"
    assert event.data.failure.message == "Your card has insufficient funds."
    assert event.data.payment_id is not None
    assert event.data.status == "requires_payment_method"
    record = await stripe.record(method="POST")
    assert len([row for row in record if row["method"] == "POST"]) == 1, "a decline is never asked again"


async def test_an_amount_too_small_fails_the_payment_with_stripes_code(
    make_worker: MakeWorker, shop: Shop, stripe: SandboxControl
) -> None:
    await shop.subscribe()
    await make_worker().until_subscribed()

    await shop.send(an_order("order-1", amount="0.10", currency="usd"))
    [body] = await shop.until_events(1)

    event = PaymentFailed.model_validate(body)
    assert (event.data.failure.category, event.data.failure.code) == ("invalid_request", "amount_too_small")
    assert event.data.failure.may_retry is False
    assert event.data.payment_id is None
    assert len(await stripe.record(method="POST")) == 1


async def test_a_redelivered_order_that_failed_tells_the_same_event_and_asks_nothing(
    ledger_url: str, make_worker: MakeWorker, shop: Shop, stripe: SandboxControl
) -> None:
    await shop.subscribe()
    await make_worker(DATABASE_URL=ledger_url).until_subscribed()
    order = an_order("order-1", confirm=True, payment_method="pm_card_chargeDeclined")

    await shop.send(order)
    await shop.until_events(1)
    await shop.send(order)
    await until(lambda: len(shop.events) == 2, what="the event told again")

    assert shop.messages[0].body == shop.messages[1].body
    assert len(await stripe.record(method="POST")) == 1


@pytest.mark.parametrize(
    "change",
    [{"amount": "12.51"}, {"currency": "usd"}, {"customer_id": "cus_other"}],
    ids=["amount", "currency", "payer"],
)
async def test_the_same_order_with_another_agreement_is_a_conflict_and_charges_nothing(
    change: dict[str, str], make_worker: MakeWorker, shop: Shop, stripe: SandboxControl, environment: dict[str, str]
) -> None:
    await shop.subscribe()
    await make_worker().until_subscribed()
    await shop.send(an_order("order-1"))
    await shop.until_events(1)

    await shop.send(an_order("order-1", **change))
    [letter] = await until(lambda: dead_letters(environment), what="the conflict's dead letter")

    assert (letter["reason"], letter["order_id"]) == ("conflict", "order-1")
    [(field, said)] = change.items()
    assert f"{field}: was " in letter["error"]
    assert f"now {said}" in letter["error"]
    assert (await stripe.stats())["intents"] == 1


async def test_14_currencies_come_out_exact(make_worker: MakeWorker, shop: Shop, stripe: SandboxControl) -> None:
    """Minor amounts as Stripe's page on currencies has them, written by hand."""
    expected = {
        "usd": ("99.99", 9999),
        "eur": ("0.50", 50),
        "gbp": ("12", 1200),
        "jpy": ("500", 500),
        "krw": ("15000", 15000),
        "vnd": ("250000", 250000),
        "xof": ("6550", 6550),
        "clp": ("9990", 9990),
        "isk": ("5000", 500000),
        "ugx": ("3800", 380000),
        "kwd": ("1.230", 1230),
        "bhd": ("10.5", 10500),
        "huf": ("1999.50", 199950),
        "twd": ("300.00", 30000),
    }
    await shop.subscribe()
    await make_worker().until_subscribed()

    await shop.send_all(
        [
            {"order_id": f"order-{currency}", "amount": amount, "currency": currency.upper()}
            for currency, (amount, _) in expected.items()
        ]
    )
    events = await shop.until_events(len(expected))

    told = {event["data"]["currency"]: event["data"]["amount_minor"] for event in events}
    at_stripe = {intent["currency"]: intent["amount"] for intent in await stripe.intents()}
    assert told == at_stripe == {currency: minor for currency, (_, minor) in expected.items()}


async def test_a_json_number_is_read_from_its_digits(
    make_worker: MakeWorker, shop: Shop, stripe: SandboxControl
) -> None:
    """1.15 is 1.149999… as a float."""
    await shop.subscribe()
    await make_worker().until_subscribed()

    await shop.send(b'{"order_id": "order-1", "amount": 1.15}')
    await shop.send(b'{"order_id": "order-2", "amount": 4611686018.43}')
    events = await shop.until_events(2)

    assert {event["subject"]: event["data"]["amount_minor"] for event in events}["order-1"] == 115
    assert {event["subject"]: event["data"].get("amount_minor") for event in events}["order-2"] == 461168601843


async def test_every_field_of_the_order_reaches_stripe(
    make_worker: MakeWorker, shop: Shop, stripe: SandboxControl
) -> None:
    await shop.subscribe()
    await make_worker().until_subscribed()

    await shop.send(
        an_order(
            "order-1",
            description="Two boxes of tea",
            receipt_email="ada@example.com",
            statement_descriptor_suffix="TEA",
            capture_method="manual",
            setup_future_usage="off_session",
            metadata={"basket": "b-7"},
            shipping={"name": "Ada", "address": {"line1": "1 Main St", "country": "DE"}},
        )
    )
    await shop.until_events(1)
    [intent] = await stripe.intents()

    assert intent["description"] == "Two boxes of tea"
    assert intent["receipt_email"] == "ada@example.com"
    assert intent["statement_descriptor_suffix"] == "TEA"
    assert intent["capture_method"] == "manual"
    assert intent["setup_future_usage"] == "off_session"
    assert intent["metadata"] == {"basket": "b-7", "order_id": "order-1"}
    assert intent["shipping"]["address"]["line1"] == "1 Main St"


async def _is_empty(shop: Shop) -> bool:
    return await shop.ready_count(shop.names["ORDERS_QUEUE"]) == 0
