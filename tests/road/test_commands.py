"""Cancel, capture and refund, asked for over the bus and carried out at the sandbox: once each, and answered."""

import asyncio
import json
from collections.abc import Callable
from typing import Any

import aio_pika
import pytest
import sqlalchemy as sa

from tests.harness import Shop, WorkerProcess, dead_letters, run_cli, until
from worker.ledger.engine import open_engine
from worker.ledger.schema import PAYMENTS
from worker.sandbox.stripe_control import SandboxControl

MakeWorker = Callable[..., WorkerProcess]
AUTHORIZED = {"amount": "12.50", "confirm": True, "payment_method": "pm_card_visa", "capture_method": "manual"}
PAID = {"amount": "12.50", "confirm": True, "payment_method": "pm_card_visa"}
OPEN = {"amount": "12.50"}


async def command(shop: Shop, kind: str, data: dict[str, Any], **properties: Any) -> None:
    """As another service publishes it: on the exchange of orders, the type as its routing key."""
    message = aio_pika.Message(json.dumps(data).encode(), type=kind, **{"message_id": "m-1", **properties})
    await shop.orders.publish(message, routing_key=kind)


async def made(shop: Shop, order_id: str, order: dict[str, Any]) -> dict[str, Any]:
    """The event of an order whose intent is made."""
    await shop.send({"order_id": order_id, **order})
    return (await told(shop, order_id, "payment.intent_created"))["data"]


async def told(shop: Shop, order_id: str, kind: str) -> dict[str, Any]:
    """The event of that type, which is told under one id however often."""

    def found() -> dict[str, Any] | None:
        return next((e for e in shop.events if e["type"] == kind and e["data"]["order_id"] == order_id), None)

    event: dict[str, Any] = await until(found, what=f"{kind} of {order_id}")
    return event


async def carried_out(stripe: SandboxControl, end: str) -> int:
    """How often Stripe has really done it; the same key at once, or again, is asked about the same deed."""
    rows = [row for row in await stripe.record(method="POST") if row["path"].endswith(end)]
    assert len({row["idempotency_key"] for row in rows}) <= 1
    return sum(row["status"] == 200 and not row["replayed"] for row in rows)


@pytest.fixture
async def worker(make_worker: MakeWorker, shop: Shop, ledger_url: str) -> WorkerProcess:
    await shop.subscribe("#")
    return await make_worker().until_subscribed()


async def test_a_cancel_is_done_once_however_often_it_is_asked_for(
    worker: WorkerProcess, shop: Shop, stripe: SandboxControl
) -> None:
    await made(shop, "order-1", OPEN)
    for number in range(5):
        await command(shop, "order.cancelled", {"order_id": "order-1", "request_id": "c-1"}, message_id=f"m-{number}")
    event = await told(shop, "order-1", "payment.canceled")
    assert (event["data"]["status"], event["data"]["sequence"]) == ("canceled", 2)
    await until(lambda: _settled(shop), what="the queue to be empty")
    assert await carried_out(stripe, "/cancel") == 1
    assert len({event["id"] for event in shop.events}) == 2


async def test_a_payment_that_is_paid_is_not_canceled_and_that_is_told(worker: WorkerProcess, shop: Shop) -> None:
    await made(shop, "order-1", PAID)
    await command(shop, "order.cancelled", {"order_id": "order-1", "request_id": "c-1"}, correlation_id="corr-7")
    event = await told(shop, "order-1", "payment.cancel_failed")
    assert event["data"]["failure"]["code"] == "already_paid"
    assert event["data"]["status"] == "succeeded"
    assert event["data"]["amount_received"] == "12.50"
    message = next(m for m in shop.messages if m.type == "payment.cancel_failed")
    assert message.correlation_id == "corr-7"


async def test_a_cancel_that_overtakes_its_order_is_remembered_and_stripe_is_never_asked(
    worker: WorkerProcess, shop: Shop, stripe: SandboxControl
) -> None:
    await command(shop, "order.cancelled", {"order_id": "order-1", "request_id": "c-1"})
    await until(lambda: worker.said("command.remembered"), what="it to be remembered")
    await shop.send({"order_id": "order-1", **OPEN})
    event = await told(shop, "order-1", "payment.canceled")
    assert (event["data"]["status"], event["data"].get("payment_id")) == ("canceled", None)
    await shop.send({"order_id": "order-1", **OPEN})
    await command(shop, "order.cancelled", {"order_id": "order-1", "request_id": "c-1"})
    await until(lambda: sum(e["type"] == "payment.canceled" for e in shop.events) >= 3, what="both to be told again")
    assert len({event["id"] for event in shop.events}) == 1
    assert await stripe.intents(order_id="order-1") == []


@pytest.mark.parametrize(("amount", "captured"), [(None, "12.50"), ("5.00", "5.00")])
async def test_what_is_authorized_is_captured_whole_or_in_part(
    worker: WorkerProcess, shop: Shop, stripe: SandboxControl, amount: str | None, captured: str
) -> None:
    await made(shop, "order-1", AUTHORIZED)
    data = {"order_id": "order-1", "request_id": "cap-1", **({"amount": amount} if amount else {})}
    for number in range(3):
        await command(shop, "payment.capture_requested", data, message_id=f"m-{number}")
    event = await told(shop, "order-1", "payment.captured")
    assert (event["data"]["captured"], event["data"]["request_id"]) == (captured, "cap-1")
    assert (await told(shop, "order-1", "payment.succeeded"))["data"]["amount_received"] == captured
    await until(lambda: _settled(shop), what="the queue to be empty")
    assert await carried_out(stripe, "/capture") == 1


@pytest.mark.parametrize(
    ("order", "data", "code"),
    [
        (AUTHORIZED, {"amount": "12.51"}, "over_capture"),
        (AUTHORIZED, {"amount": "5.001"}, "wrong_amount"),
        (AUTHORIZED, {"amount": "5", "currency": "eur"}, "wrong_currency"),
        (PAID, {}, "already_captured"),
        (OPEN, {}, "nothing_to_capture"),
    ],
    ids=["too much", "not exact", "another currency", "paid", "open"],
)
async def test_a_capture_that_cannot_be_is_answered_with_the_reason(
    worker: WorkerProcess, shop: Shop, stripe: SandboxControl, order: dict[str, Any], data: dict[str, Any], code: str
) -> None:
    await made(shop, "order-1", order)
    await command(shop, "payment.capture_requested", {"order_id": "order-1", "request_id": "cap-1", **data})
    event = await told(shop, "order-1", "payment.capture_failed")
    assert event["data"]["failure"]["code"] == code
    assert await carried_out(stripe, "/capture") == 0


async def test_copies_of_an_order_and_of_its_cancel_at_once_charge_nobody(
    worker: WorkerProcess, make_worker: MakeWorker, shop: Shop, stripe: SandboxControl
) -> None:
    await make_worker().until_subscribed()
    orders = [f"order-{number}" for number in range(10)]
    for order_id in orders:
        await command(shop, "order.cancelled", {"order_id": order_id, "request_id": "c-1"}, message_id=order_id)
    await until(lambda: len(worker.said("command.remembered")) > 0, what="some to be remembered")
    await until(lambda: _settled(shop), what="the queue to be empty")
    cancels = [command(shop, "order.cancelled", {"order_id": order_id, "request_id": "c-1"}) for order_id in orders]
    copies = [shop.send({"order_id": order_id, **PAID}) for order_id in orders for _ in range(3)]
    await asyncio.gather(*copies, *cancels)
    for order_id in orders:
        await told(shop, order_id, "payment.canceled")
    await until(lambda: _settled(shop), what="the queue to be empty")
    assert await stripe.intents() == []
    assert len({event["id"] for event in shop.events}) == 10


async def test_a_cancel_while_its_order_waits_to_be_asked_for_counts(
    make_worker: MakeWorker, shop: Shop, stripe: SandboxControl, environment: dict[str, str]
) -> None:
    await shop.subscribe("#")
    worker = await make_worker(STRIPE_RATE_LIMIT="0.4", PREFETCH="4").until_subscribed()
    for number in range(3):
        await shop.send({"order_id": f"order-{number}", **PAID})
    await until(lambda: _paid(stripe, 1), what="the first to be asked for")
    for _ in range(2):
        await command(shop, "order.cancelled", {"order_id": "order-2", "request_id": "c-1"})
    event = await told(shop, "order-2", "payment.canceled")
    assert event["data"].get("payment_id") is None
    assert await stripe.intents(order_id="order-2") == []
    assert worker.is_running()


async def test_a_payment_made_while_its_cancel_is_under_way_is_given_back_where_it_says_so(
    make_worker: MakeWorker, shop: Shop, stripe: SandboxControl
) -> None:
    await shop.subscribe("#")
    worker = await make_worker(STRIPE_TIMEOUT="1").until_subscribed()
    payment = await made(shop, "order-1", OPEN)
    await stripe.add_fault("hang", path="*/cancel", times=1)
    await command(shop, "order.cancelled", {"order_id": "order-1", "request_id": "c-1", "refund_if_paid": True})
    await stripe.wait_for_rows(method="POST", path=f"/v1/payment_intents/{payment['payment_id']}/cancel")
    await stripe.act(payment["payment_id"], "pay", payment_method="pm_card_visa")
    event = await told(shop, "order-1", "payment.refunded")
    assert event["data"]["fully_refunded"]
    assert of_type(shop, "payment.cancel_failed") == []
    assert worker.is_running()


async def test_an_answer_carries_what_the_command_brought(worker: WorkerProcess, shop: Shop) -> None:
    await made(shop, "order-1", PAID)
    await command(
        shop, "refund.requested", {"order_id": "order-1", "request_id": "r-1"}, correlation_id="c-9", message_id="m-9"
    )
    event = await told(shop, "order-1", "payment.refunded")
    assert event["data"]["cause"] == "m-9"
    assert next(m for m in shop.messages if m.type == "payment.refunded").correlation_id == "c-9"


async def test_an_order_that_stripe_refused_has_nothing_to_cancel(worker: WorkerProcess, shop: Shop) -> None:
    await shop.send({"order_id": "order-1", "amount": "0.07"})
    await told(shop, "order-1", "payment.failed")
    await command(shop, "order.cancelled", {"order_id": "order-1", "request_id": "c-1"})
    event = await told(shop, "order-1", "payment.cancel_failed")
    assert event["data"]["failure"]["code"] == "nothing_to_cancel"


async def test_a_command_for_an_intent_that_stripe_does_not_know_waits_for_a_person(
    worker: WorkerProcess, shop: Shop, environment: dict[str, str]
) -> None:
    """Made with another account's key, or in a sandbox that is gone."""
    await made(shop, "order-1", PAID)
    engine = open_engine(environment["DATABASE_URL"])
    with engine.begin() as conn:
        conn.execute(sa.update(PAYMENTS).values(payment_id="pi_of_another_account"))
    engine.dispose()
    await command(shop, "refund.requested", {"order_id": "order-1", "request_id": "r-1"})
    [letter] = await until(lambda: dead_letters(environment), what="the letter")
    assert letter["reason"] == "intent_missing"
    assert "another account's key" in letter["error"]
    assert worker.said("order.bug") == []


async def test_a_key_without_the_right_to_refund_stops_no_orders(
    worker: WorkerProcess, shop: Shop, stripe: SandboxControl, environment: dict[str, str]
) -> None:
    await made(shop, "order-1", PAID)
    await stripe.change_settings(
        restricted_keys={environment["STRIPE_API_KEY"]: ["GET /v1/payment_intents*", "POST /v1/payment_intents*"]}
    )
    await command(shop, "refund.requested", {"order_id": "order-1", "request_id": "r-1"})
    [letter] = await until(lambda: dead_letters(environment), what="the letter")
    assert letter["reason"] == "right_missing"
    await made(shop, "order-2", PAID)
    assert worker.said("order.given_back") == []
    await stripe.change_settings(restricted_keys={})
    done = await asyncio.to_thread(run_cli, environment, "dead-letters", "replay", letter["id"], "--patience", "20")
    assert done.returncode == 0, done.stderr + done.stdout
    await told(shop, "order-1", "payment.refunded")


async def test_equal_partial_refunds_with_two_ids_are_two_and_with_one_id_one(
    worker: WorkerProcess, shop: Shop, stripe: SandboxControl
) -> None:
    await made(shop, "order-1", PAID)
    for number, request_id in enumerate(["r-1", "r-1", "r-2", "r-2", "r-1"]):
        data = {"order_id": "order-1", "request_id": request_id, "amount": "5.00", "reason": "duplicate"}
        await command(shop, "refund.requested", data, message_id=f"m-{number}")
    await until(lambda: len(of_type(shop, "payment.refunded")) == 2, what="both")
    await until(lambda: _settled(shop), what="the queue to be empty")
    refunds = [event["data"] for event in of_type(shop, "payment.refunded")]
    assert {(data["refund"]["request_id"], data["refund"]["amount"]) for data in refunds} == {
        ("r-1", "5.00"),
        ("r-2", "5.00"),
    }
    assert {data["amount_refunded"] for data in refunds} == {"5.00", "10.00"}
    intent = (await stripe.intents(order_id="order-1"))[0]["id"]
    assert len(await stripe.objects("refunds", intent_id=intent)) == 2


async def test_more_than_is_left_is_refused_here_with_what_is_left(
    worker: WorkerProcess, shop: Shop, stripe: SandboxControl
) -> None:
    await made(shop, "order-1", PAID)
    await command(shop, "refund.requested", {"order_id": "order-1", "request_id": "r-1", "amount": "10"})
    await told(shop, "order-1", "payment.refunded")
    await command(shop, "refund.requested", {"order_id": "order-1", "request_id": "r-2", "amount": "2.51"})
    refused = (await told(shop, "order-1", "refund.failed"))["data"]
    assert refused["failure"]["code"] == "over_refund"
    assert refused["amount_refundable"] == "2.50"
    await command(shop, "refund.requested", {"order_id": "order-1", "request_id": "r-3"})
    await until(lambda: len(of_type(shop, "payment.refunded")) == 2, what="the rest")
    last = max(of_type(shop, "payment.refunded"), key=lambda event: event["data"]["sequence"])["data"]
    assert (last["refund"]["amount"], last["fully_refunded"], last["amount_refunded"]) == ("2.50", True, "12.50")
    assert len([row for row in await stripe.record(method="POST") if row["path"] == "/v1/refunds"]) == 2


async def test_refunds_at_once_never_give_back_more_than_was_paid(
    worker: WorkerProcess, make_worker: MakeWorker, shop: Shop, stripe: SandboxControl
) -> None:
    await make_worker().until_subscribed()
    await made(shop, "order-1", PAID)
    await stripe.change_settings(latency_s=[0.05, 0.2])
    for number in range(10):
        data = {"order_id": "order-1", "request_id": f"r-{number}", "amount": "3.00"}
        await command(shop, "refund.requested", data, message_id=f"m-{number}")
    await until(lambda: len(of_type(shop, "refund.failed")) + len(of_type(shop, "payment.refunded")) == 10, what="all")
    assert len(of_type(shop, "payment.refunded")) == 4
    intent = (await stripe.intents(order_id="order-1"))[0]["id"]
    assert sum(refund["amount"] for refund in await stripe.objects("refunds", intent_id=intent)) == 1200


async def test_a_cancel_of_what_is_paid_gives_back_where_it_says_so(worker: WorkerProcess, shop: Shop) -> None:
    await made(shop, "order-1", PAID)
    await command(shop, "order.cancelled", {"order_id": "order-1", "request_id": "c-1", "refund_if_paid": True})
    event = await told(shop, "order-1", "payment.refunded")
    assert event["data"]["fully_refunded"]


async def test_what_the_bank_disputes_is_not_given_back(
    worker: WorkerProcess, shop: Shop, stripe: SandboxControl
) -> None:
    payment = await made(shop, "order-1", PAID)
    await stripe.act(payment["payment_id"], "dispute")
    await command(shop, "refund.requested", {"order_id": "order-1", "request_id": "r-1"})
    refused = (await told(shop, "order-1", "refund.failed"))["data"]
    assert refused["failure"]["code"] in ("disputed", "charge_disputed")


async def test_a_lost_answer_is_asked_for_again_and_nothing_is_done_twice(
    worker: WorkerProcess, shop: Shop, stripe: SandboxControl
) -> None:
    await made(shop, "order-1", AUTHORIZED)
    await stripe.add_fault("answer_lost", path="*/capture", times=2)
    await command(shop, "payment.capture_requested", {"order_id": "order-1", "request_id": "cap-1"})
    event = await told(shop, "order-1", "payment.captured")
    assert event["data"]["captured"] == "12.50"


async def test_what_nobody_comes_back_for_is_carried_out_in_the_background(
    make_worker: MakeWorker, shop: Shop, stripe: SandboxControl
) -> None:
    await shop.subscribe("#")
    worker = await make_worker(RESOLVE_AFTER="1").until_subscribed()
    await made(shop, "order-1", PAID)
    await stripe.add_fault("hang", path="/v1/refunds", method="POST", times=1)
    await command(shop, "refund.requested", {"order_id": "order-1", "request_id": "r-1"})
    await stripe.wait_for_rows(method="POST", path="/v1/refunds")
    worker.kill()
    await until(lambda: _waits(shop), what="the message to come back")
    await shop.purge_orders()
    await make_worker(RESOLVE_AFTER="1").until_subscribed()
    event = await told(shop, "order-1", "payment.refunded")
    assert event["data"]["refund"]["request_id"] == "r-1"


@pytest.mark.parametrize("is_done", [True, False])
@pytest.mark.parametrize(
    ("kind", "path", "order", "answer"),
    [
        ("order.cancelled", "*/cancel", OPEN, "payment.canceled"),
        ("payment.capture_requested", "*/capture", AUTHORIZED, "payment.captured"),
        ("refund.requested", "/v1/refunds", PAID, "payment.refunded"),
    ],
)
async def test_an_error_that_stripe_keeps_is_looked_behind_and_then_asked_under_another_key(
    worker: WorkerProcess,
    shop: Shop,
    stripe: SandboxControl,
    kind: str,
    path: str,
    order: dict[str, Any],
    answer: str,
    is_done: bool,
) -> None:
    payment = await made(shop, "order-1", order)
    await stripe.add_fault("stored_500", method="POST", path=path, with_object=is_done, times=1)
    await command(shop, kind, {"order_id": "order-1", "request_id": "r-1"})
    await told(shop, "order-1", answer)
    assert len(await stripe.objects("refunds", intent_id=payment["payment_id"])) == (kind == "refund.requested")


async def test_a_request_id_means_one_thing(worker: WorkerProcess, shop: Shop, environment: dict[str, str]) -> None:
    await made(shop, "order-1", AUTHORIZED)
    await command(shop, "payment.capture_requested", {"order_id": "order-1", "request_id": "r-1", "amount": "5.00"})
    await told(shop, "order-1", "payment.captured")
    await command(shop, "payment.capture_requested", {"order_id": "order-1", "request_id": "r-1", "amount": "6.00"})
    [letter] = await until(lambda: dead_letters(environment), what="the letter")
    assert letter["reason"] == "conflict"
    assert "5.00" in letter["error"]
    assert letter["order_id"] == "order-1"


async def test_a_command_that_cannot_be_read_is_a_dead_letter(
    worker: WorkerProcess, shop: Shop, environment: dict[str, str]
) -> None:
    await command(shop, "refund.requested", {"order_id": "order-1"})
    [letter] = await until(lambda: dead_letters(environment), what="the letter")
    assert (letter["reason"], letter["order_id"]) == ("bad_message", "order-1")
    assert "request_id" in letter["error"]


async def _paid(stripe: SandboxControl, count: int) -> bool:
    return len(await stripe.intents()) >= count


async def _waits(shop: Shop) -> bool:
    return await shop.ready_count(shop.names["ORDERS_QUEUE"]) == 1


def of_type(shop: Shop, kind: str) -> list[dict[str, Any]]:
    """The events of a type, each id once."""
    return list({event["id"]: event for event in shop.events if event["type"] == kind}.values())


async def _settled(shop: Shop) -> bool:
    await asyncio.sleep(0.1)
    return await shop.ready_count(shop.names["ORDERS_QUEUE"]) == 0


async def test_a_letter_of_a_command_is_replayed_once_what_was_missing_is_there(
    worker: WorkerProcess, shop: Shop, environment: dict[str, str]
) -> None:
    await made(shop, "order-1", AUTHORIZED)
    data = {"order_id": "order-1", "request_id": "r-1", "amount": "5.00"}
    await command(shop, "payment.capture_requested", data | {"amount": "6.00"})
    await told(shop, "order-1", "payment.captured")
    await command(shop, "payment.capture_requested", data)  # another request under the same id
    [letter] = await until(lambda: dead_letters(environment), what="the letter")
    dry = await asyncio.to_thread(run_cli, environment, "dead-letters", "replay", "--all", "--dry-run", "--json")
    assert "look first" in dry.stdout
    done = await asyncio.to_thread(run_cli, environment, "dead-letters", "replay", letter["id"], "--patience", "20")
    assert done.returncode == 1, "it conflicts again, and captures nothing"
    assert len(of_type(shop, "payment.captured")) == 1
