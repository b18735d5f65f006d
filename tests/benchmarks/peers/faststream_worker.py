"""The same worker on FastStream, as its documentation writes it: a subscriber, a publish, its own two log lines.

    python -m tests.benchmarks.peers.faststream_worker [--aiohttp]

Stripe is asked by the SDK's default client, httpx, or with --aiohttp by its AIOHTTPClient.
"""

import asyncio
import os
import sys

import stripe
from faststream import AckPolicy, FastStream
from faststream.rabbit import Channel, ExchangeType, RabbitBroker, RabbitExchange, RabbitQueue

from tests.benchmarks.peers.order_messages import OrderCreated, event_of, stripe_client


async def main() -> None:
    environment = os.environ
    client = stripe_client(
        api_key=environment["STRIPE_API_KEY"],
        api_base=environment["STRIPE_API_BASE"],
        http_client=stripe.AIOHTTPClient() if "--aiohttp" in sys.argv else None,
    )
    broker = RabbitBroker(
        environment["AMQP_URL"],
        default_channel=Channel(prefetch_count=int(environment["PREFETCH"]), on_return_raises=True),
    )
    payments = RabbitExchange(environment["PAYMENTS_EXCHANGE"], type=ExchangeType.TOPIC, durable=True)

    @broker.subscriber(RabbitQueue(environment["ORDERS_QUEUE"], declare=False), ack_policy=AckPolicy.NACK_ON_ERROR)
    async def pay(order: OrderCreated) -> None:
        intent = await client.v1.payment_intents.create_async(
            order.params(),
            {"idempotency_key": order.idempotency_key()},
        )
        event = event_of(order, intent)
        await broker.publish(
            event,
            exchange=payments,
            routing_key=event.type,
            persist=True,
            mandatory=True,
            message_id=event.id,
            message_type=event.type,
        )

    await FastStream(broker).run()


if __name__ == "__main__":
    asyncio.run(main())
