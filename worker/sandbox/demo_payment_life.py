"""The part of the demo that is about a payment's later life: paid, settled, refunded in part, disputed."""

from typing import Final

from schemas import OrderCreatedData, RefundRequestedData, to_major, to_minor
from worker.receive_webhooks import PATH
from worker.sandbox.demo_screen import Screen
from worker.sandbox.demo_services import FulfilmentService, OrderService
from worker.sandbox.demo_stage import Stage
from worker.sandbox.demo_verdict import PlayedFact
from worker.sandbox.demo_wait import WAIT_S, wait_for_count
from worker.sandbox.demo_worker import DemoFailed
from worker.sandbox.stripe_control import SandboxControl

REFUNDED: Final = "250.00"


async def play_life(
    order: OrderCreatedData,
    stage: Stage,
    screen: Screen,
    *,
    control: SandboxControl,
    shop: OrderService,
    fulfilment: FulfilmentService,
) -> list[PlayedFact]:
    """Be the customer, the bank and the shop of an order whose intent is made; what was made to happen, in order.

    Raises DemoFailed and SandboxError, and TimeoutError where the worker does not take what Stripe delivers.
    """
    assert stage.webhook_secret is not None, "the sandbox has a webhook secret"
    order_id, currency = order.order_id, order.currency
    refund = RefundRequestedData.model_validate(
        {"order_id": order_id, "request_id": f"{order_id}.refund-1", "amount": REFUNDED, "currency": currency}
    )
    refunded = to_minor(refund.amount or order.amount, currency)
    disputed = order.amount_minor - refunded
    played: list[PlayedFact] = []

    async def hear_of(what: str, kind: str, **amounts: int) -> None:
        played.append(PlayedFact(order_id, what, kind, currency, amounts))
        await hear(kind, 1)

    async def hear(kind: str, count: int) -> None:
        async def heard() -> int:
            return len(fulfilment.heard(order_id, kind))

        await wait_for_count(f"until {kind} is heard", heard, count, screen=screen, worker=stage.worker)

    async def ask_for_refund(note: str) -> None:
        screen.sent(order_id, REFUNDED, currency, note)
        await shop.ask_for_refund(refund)

    screen.step(
        "The payment lives on",
        "Customers and their banks act (•), and Stripe tells the worker by signed webhooks; the order service asks for "
        "a refund over the bus (→). The fulfilment service hears of all of it (←).",
    )
    endpoint = stage.worker.http + PATH
    await control.add_webhook(endpoint, [stage.webhook_secret])
    screen.fact("Webhooks", f"to {endpoint}")
    screen.space()
    payment_id = next((event.payment_id for event in fulfilment.heard(order_id, "payment.intent_created")), None)
    if payment_id is None:
        raise DemoFailed(f"{order_id} has no intent that could be paid")

    screen.happened(f"The customer pays {order_id}.")
    await control.act(payment_id, "pay")
    await hear_of("payment", "payment.succeeded", received=order.amount_minor)

    screen.happened("Stripe books it in the shop's balance.")
    await control.act(payment_id, "settle_balance")
    await hear_of("settlement", "payment.settled")

    await ask_for_refund("refund.requested")
    await hear_of("refund", "payment.refunded", refunded=refunded)
    answers = len(fulfilment.heard(order_id, "payment.refunded"))
    await ask_for_refund("the same request again")
    await hear("payment.refunded", answers + 1)

    screen.happened(f"The customer's bank disputes the rest: {to_major(disputed, currency)} {currency.upper()}.")
    await control.act(payment_id, "dispute", amount=disputed)
    await hear_of("dispute", "payment.dispute_opened", disputed=disputed)

    await control.wait_for_deliveries(timeout_s=WAIT_S)
    refunds = await control.objects("refunds", intent_id=payment_id)
    screen.space()
    screen.done(f"The refund of {order_id} was asked for twice, and Stripe has made {len(refunds)}.")
    return played
