"""The worker that one writes in an afternoon, as the peer to measure against: aio-pika, the SDK, and nothing kept.

No ledger, no claims, no conflict check, no dead letters with a cause; a crash between Stripe and the publish loses the
event. It has the idempotency key, the confirms and the same number of orders in work, so that the difference is the
price of the promises.
"""

import asyncio
import json
import os
from decimal import Decimal

import aio_pika
import stripe


async def main() -> None:
    base = os.environ["STRIPE_API_BASE"]
    stripe.enable_telemetry = False
    client = stripe.StripeClient(
        os.environ["STRIPE_API_KEY"],
        max_network_retries=0,
        http_client=stripe.AIOHTTPClient(),
        base_addresses={"api": base, "connect": base, "files": base, "meter_events": base},
    )
    connection = await aio_pika.connect_robust(os.environ["AMQP_URL"])
    channel = await connection.channel()
    await channel.set_qos(prefetch_count=int(os.environ["PREFETCH"]))
    orders = await channel.declare_exchange(os.environ["ORDERS_EXCHANGE"], "topic", durable=True)
    payments = await channel.declare_exchange(os.environ["PAYMENTS_EXCHANGE"], "topic", durable=True)
    queue = await channel.declare_queue(os.environ["ORDERS_QUEUE"], durable=True, arguments={"x-queue-type": "quorum"})
    await queue.bind(orders, "order.created")

    async def work(message: aio_pika.abc.AbstractIncomingMessage) -> None:
        order = json.loads(message.body)
        intent = await client.v1.payment_intents.create_async(
            {
                "amount": int(Decimal(order["amount"]) * 100),
                "currency": order["currency"],
                "metadata": {"order_id": order["order_id"]},
                "automatic_payment_methods": {"enabled": True},
            },
            {"idempotency_key": order["order_id"]},
        )
        event = {"order_id": order["order_id"], "payment_id": intent.id, "status": intent.status}
        body = json.dumps({"subject": order["order_id"], "id": order["order_id"], "data": event}).encode()
        await payments.publish(
            aio_pika.Message(body, delivery_mode=aio_pika.DeliveryMode.PERSISTENT), "payment.intent_created"
        )
        await message.ack()

    await queue.consume(work)
    await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(main())
