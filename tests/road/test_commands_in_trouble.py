"""Commands that have to wait, that meet each other, and that meet a Stripe in trouble."""

import asyncio
from collections.abc import Callable
from datetime import datetime
from typing import Any

import psycopg
import pytest

from tests.harness import Shop, WorkerProcess, dead_letters, until
from tests.road.test_commands import AUTHORIZED, OPEN, PAID, command, made, of_type, told
from worker.sandbox.stripe_control import SandboxControl

MakeWorker = Callable[..., WorkerProcess]
CAPTURE, CANCEL, REFUND = "payment.capture_requested", "order.cancelled", "refund.requested"
COUNT = 20


@pytest.fixture
async def worker(make_worker: MakeWorker, shop: Shop) -> WorkerProcess:
    await shop.subscribe("#")
    return await make_worker().until_subscribed()


def retries(worker: WorkerProcess) -> list[tuple[str, int, int]]:
    """Reason, wait and number of the attempt."""
    return [(line["reason"], line["delay_s"], line["attempt"]) for line in worker.said("order.retried")]


def rounds(worker: WorkerProcess) -> int:
    """How often the worker has found that Stripe does not answer, and waited."""
    return len(worker.said("consumer.waiting")) + len(worker.said("consumer.paused"))


async def all_paid(shop: Shop) -> None:
    await shop.send_all([{"order_id": f"order-{number}", **PAID} for number in range(COUNT)])
    await until(lambda: len(of_type(shop, "payment.intent_created")) == COUNT, what="all to be paid")


async def give_all_back(shop: Shop) -> None:
    for number in range(COUNT):
        await command(shop, REFUND, {"order_id": f"order-{number}", "request_id": "r-1"}, message_id=f"m-{number}")


async def until_given_back(shop: Shop) -> None:
    await until(lambda: len(of_type(shop, "payment.refunded")) == COUNT, what="all to be given back")


# What is soon over


async def test_a_command_that_overtakes_its_order_looks_for_it_every_few_seconds(
    worker: WorkerProcess, shop: Shop
) -> None:
    await command(shop, CAPTURE, {"order_id": "order-1", "request_id": "cap-1"})
    await until(lambda: len(retries(worker)) == 3, what="it to have waited")
    await made(shop, "order-1", AUTHORIZED)
    await told(shop, "order-1", "payment.captured")

    assert retries(worker) == [("no_payment", 1, 1), ("no_payment", 5, 1), ("no_payment", 5, 1)]


async def test_a_command_a_moment_before_its_order_leaves_the_process_no_more(
    worker: WorkerProcess, shop: Shop
) -> None:
    await command(shop, CAPTURE, {"order_id": "order-1", "request_id": "cap-1"})
    await made(shop, "order-1", AUTHORIZED)
    await told(shop, "order-1", "payment.captured")

    assert retries(worker) == []


@pytest.mark.parametrize("kind", ["409", "lock_timeout"])
async def test_another_call_of_the_payment_is_waited_for_shortly_and_costs_no_attempt(
    kind: str, worker: WorkerProcess, shop: Shop, stripe: SandboxControl
) -> None:
    await made(shop, "order-1", OPEN)
    await stripe.add_fault(kind, path="*/cancel", times=5)
    await command(shop, CANCEL, {"order_id": "order-1", "request_id": "c-1"})
    await told(shop, "order-1", "payment.canceled")

    reason = {"409": "in_use"}.get(kind, kind)
    assert retries(worker) == [(reason, 1, 1), (reason, 5, 1)]
    rows = [row for row in await stripe.record(method="POST") if row["path"].endswith("/cancel")]
    assert (len(rows), len({row["idempotency_key"] for row in rows})) == (6, 1)


# Two of them for one payment


async def test_of_two_captures_at_once_one_is_told_that_the_other_was_first(
    worker: WorkerProcess, shop: Shop, stripe: SandboxControl
) -> None:
    await made(shop, "order-1", AUTHORIZED)
    await stripe.change_settings(latency_s=0.5)
    for name in ("cap-1", "cap-2"):
        await command(shop, CAPTURE, {"order_id": "order-1", "request_id": name}, message_id=name)
    await told(shop, "order-1", "payment.captured")
    lost = (await told(shop, "order-1", "payment.capture_failed"))["data"]

    assert lost["failure"]["code"] == "already_captured"
    assert await stripe.record(method="POST", code="payment_intent_unexpected_state"), "both were asked for"


async def test_of_two_captures_that_met_an_error_which_stripe_keeps_one_has_taken_the_money(
    worker: WorkerProcess, shop: Shop, stripe: SandboxControl
) -> None:
    payment = await made(shop, "order-1", AUTHORIZED)
    await stripe.change_settings(latency_s=0.5)
    for with_object in (True, False):
        await stripe.add_fault("stored_500", path="*/capture", with_object=with_object, times=1)
    for name in ("cap-1", "cap-2"):
        await command(shop, CAPTURE, {"order_id": "order-1", "request_id": name, "amount": "12.50"}, message_id=name)
    won = (await told(shop, "order-1", "payment.captured"))["data"]
    lost = (await told(shop, "order-1", "payment.capture_failed"))["data"]

    [intent] = await stripe.intents(order_id="order-1")
    assert intent["id"] == payment["payment_id"]
    assert {won["request_id"], lost["request_id"]} == {"cap-1", "cap-2"}
    assert won["request_id"] == intent["metadata"]["capture_request_id"]
    assert lost["failure"]["code"] == "already_captured"
    assert len(of_type(shop, "payment.captured")) == 1


async def test_a_cancel_that_may_give_back_says_why_stripe_does_not(
    worker: WorkerProcess, shop: Shop, stripe: SandboxControl
) -> None:
    payment = await made(shop, "order-1", PAID)
    await stripe.act(payment["payment_id"], "dispute")
    await command(shop, CANCEL, {"order_id": "order-1", "request_id": "c-1", "refund_if_paid": True})

    assert (await told(shop, "order-1", "payment.cancel_failed"))["data"]["failure"]["code"] == "charge_disputed"


# Stripe in trouble


@pytest.mark.parametrize(
    ("kind", "where"),
    [("refuse", {}), ("503", {}), ("503", {"path": "/v1/refunds", "method": "POST"}), ("revoked", {})],
    ids=["refused", "503", "503 of what changes something", "revoked"],
)
async def test_an_outage_holds_commands_as_it_holds_orders(
    kind: str,
    where: dict[str, str],
    worker: WorkerProcess,
    shop: Shop,
    stripe: SandboxControl,
    environment: dict[str, str],
) -> None:
    await all_paid(shop)
    before = len(await stripe.record())
    if kind == "revoked":
        await stripe.change_settings(revoked_keys=[environment["STRIPE_API_KEY"]])
    else:
        await stripe.add_fault(kind, times=1_000_000, **where)
    await give_all_back(shop)
    await until(lambda: rounds(worker) >= 3, what="some rounds of the outage")
    wasted = len(await stripe.record()) - before
    await stripe.change_settings(revoked_keys=[])
    await stripe.clear_faults()
    await until_given_back(shop)

    assert worker.said("stripe.away")
    assert wasted < 4 * COUNT
    assert {attempt for _, _, attempt in retries(worker)} <= {1, 2}
    assert await dead_letters(environment) == []
    assert len(await stripe.objects("refunds")) == COUNT


async def test_commands_keep_to_the_shared_rate(
    worker: WorkerProcess, make_worker: MakeWorker, shop: Shop, stripe: SandboxControl
) -> None:
    await all_paid(shop)
    assert await worker.stop() == 0
    await stripe.change_settings(rate_limit=10)
    await make_worker(STRIPE_RATE_LIMIT="10").until_subscribed()
    await give_all_back(shop)
    await until_given_back(shop)

    rows = await stripe.record(method="POST", path="/v1/refunds")
    assert len(rows) == COUNT, "none was refused"
    assert rows[-1]["at"] - rows[0]["at"] > 0.8 * COUNT / 10


async def test_what_is_shown_is_told_by_stripes_own_clock(
    worker: WorkerProcess, shop: Shop, stripe: SandboxControl
) -> None:
    await made(shop, "order-1", OPEN)
    now = await stripe.advance_clock(3600)
    await command(shop, CANCEL, {"order_id": "order-1", "request_id": "c-1"})
    event: dict[str, Any] = await told(shop, "order-1", "payment.canceled")

    assert now - 1 <= datetime.fromisoformat(event["time"]).timestamp() < now + 60


@pytest.mark.parametrize("ledger_url", ["postgresql"], indirect=True)
async def test_a_cancel_beside_the_opening_of_its_order_is_carried_out(
    make_worker: MakeWorker, shop: Shop, ledger_url: str
) -> None:
    """While an index is built, the order's payment is half open: not to be seen, and past the look for a cancel."""
    await shop.subscribe("#")
    await make_worker().until_subscribed()
    with psycopg.connect(ledger_url.replace("+psycopg", "")) as psql:
        psql.execute("LOCK TABLE operations IN SHARE MODE")  # as CREATE INDEX takes it
        await shop.send({"order_id": "order-1", **PAID})
        await asyncio.sleep(0.5)
        await command(shop, CANCEL, {"order_id": "order-1", "request_id": "c-1", "refund_if_paid": True})
        await asyncio.sleep(1)
        psql.rollback()
    await told(shop, "order-1", "payment.intent_created")
    assert (await told(shop, "order-1", "payment.refunded"))["data"]["amount_refunded"] == "12.50"
