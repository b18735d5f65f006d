"""Health over HTTP: alive while the process turns, ready only while it works, and the figures."""

from collections.abc import Callable

import aiohttp

from tests.harness import Shop, WorkerProcess, until
from worker.sandbox.broker import PrivateBroker
from worker.sandbox.stripe_control import SandboxControl

MakeWorker = Callable[..., WorkerProcess]


async def get(worker: WorkerProcess, path: str) -> tuple[int, str]:
    async with aiohttp.ClientSession() as session, session.get(worker.http + path) as answer:
        return answer.status, await answer.text()


async def test_a_worker_at_work_is_alive_and_ready(make_worker: MakeWorker) -> None:
    worker = await make_worker().until_subscribed()

    assert (await get(worker, "/livez"))[0] == 200
    assert await get(worker, "/readyz") == (200, '{"ready": true, "reasons": {}, "concerns": {}}')


async def test_a_worker_without_a_broker_is_alive_but_not_ready_and_says_why(make_worker: MakeWorker) -> None:
    worker = make_worker(AMQP_URL="amqp://127.0.0.1:9/")
    await until(lambda: worker.said("consumer.waiting"), what="the worker to wait")

    assert (await get(worker, "/livez"))[0] == 200
    status, body = await get(worker, "/readyz")
    assert status == 503
    assert '"subscription": "no connection to the broker at 127.0.0.1:9' in body


async def test_a_revoked_key_makes_the_worker_unready_until_it_is_good_again(
    make_worker: MakeWorker, shop: Shop, stripe: SandboxControl, environment: dict[str, str]
) -> None:
    await shop.subscribe()
    worker = await make_worker().until_subscribed()
    await stripe.change_settings(revoked_keys=[environment["STRIPE_API_KEY"]])
    await shop.send({"order_id": "order-1", "amount": "1.00"})
    await until(lambda: worker.said("consumer.paused"), what="the pause")

    status, body = await get(worker, "/readyz")
    assert status == 503
    assert "refuses our key" in body
    await stripe.change_settings(revoked_keys=[])
    await shop.until_events(1)
    assert (await get(worker, "/readyz"))[0] == 200


async def test_a_stripe_that_does_not_answer_makes_the_worker_unready_until_it_does(
    make_worker: MakeWorker, shop: Shop, stripe: SandboxControl
) -> None:
    await shop.subscribe()
    worker = await make_worker().until_subscribed()
    await stripe.add_fault("503", method="POST", times=None)
    await shop.send({"order_id": "order-1", "amount": "1.00"})

    async def unready() -> bool:
        status, body = await get(worker, "/readyz")
        return status == 503 and "calls to Stripe brought no answer" in body

    await until(unready, what="the worker to say so")
    await stripe.clear_faults()
    await shop.until_events(1)
    assert (await get(worker, "/readyz"))[0] == 200


async def test_the_metrics_count_what_somebody_on_call_asks_first(
    make_worker: MakeWorker, shop: Shop, broker: PrivateBroker
) -> None:
    await shop.subscribe()
    worker = await make_worker().until_subscribed()
    await shop.send({"order_id": "order-1", "amount": "1.00", "currency": "eur"})
    await shop.send({"order_id": "order-2", "amount": "0"})
    await shop.until_events(1)

    async def counted() -> str | None:
        text = (await get(worker, "/metrics"))[1]
        return text if 'outcome="DeadLetter"' in text and 'outcome="Done"' in text else None

    text = await until(counted, what="both outcomes to be counted")
    for line in (
        'payment_worker_orders_total{outcome="Done",reason=""} 1.0',
        'payment_worker_orders_total{outcome="DeadLetter",reason="bad_message"} 1.0',
        'payment_worker_payments_total{currency="eur",state="intent_created"} 1.0',
        'payment_worker_events_total{result="published",type="payment.intent_created"} 1.0',
        'payment_worker_stripe_seconds_count{call="create_intent",result="answered"} 1.0',
        "payment_worker_subscribed 1.0",
        "payment_worker_untold_events 0.0",
        "payment_worker_open_calls 0.0",
    ):
        assert line in text
