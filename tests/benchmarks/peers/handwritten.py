"""The worker that a careful team writes by hand: aio-pika, stripe on aiohttp, pydantic, structlog; nothing kept.

It validates, uses an idempotency key, publishes persistent and confirmed, acknowledges last, and logs one line for each
order. It has no ledger: a crash between Stripe and the publish is left to the redelivery and to Stripe's key, which is
good for a day.
"""

import asyncio
import logging
import os
import signal

import aio_pika
import stripe
import structlog
from aio_pika.abc import AbstractIncomingMessage
from pydantic import ValidationError

from tests.benchmarks.peers.order_messages import OrderCreated, event_of, stripe_client

log = structlog.get_logger()


async def main() -> None:
    environment = os.environ
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            structlog.processors.JSONRenderer(),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(logging.INFO),
        cache_logger_on_first_use=True,
    )
    client = stripe_client(
        api_key=environment["STRIPE_API_KEY"],
        api_base=environment["STRIPE_API_BASE"],
        http_client=stripe.AIOHTTPClient(),
    )
    connection = await aio_pika.connect_robust(environment["AMQP_URL"])
    async with connection:
        channel = await connection.channel(publisher_confirms=True, on_return_raises=True)
        await channel.set_qos(prefetch_count=int(environment["PREFETCH"]))
        payments = await channel.get_exchange(environment["PAYMENTS_EXCHANGE"])
        queue = await channel.get_queue(environment["ORDERS_QUEUE"])

        async def pay(message: AbstractIncomingMessage) -> None:
            order = OrderCreated.model_validate_json(message.body)
            structlog.contextvars.bind_contextvars(order_id=order.order_id)
            intent = await client.v1.payment_intents.create_async(
                order.params(),
                {"idempotency_key": order.idempotency_key()},
            )
            event = event_of(order, intent)
            await payments.publish(
                aio_pika.Message(
                    event.model_dump_json().encode(),
                    delivery_mode=aio_pika.DeliveryMode.PERSISTENT,
                    content_type="application/cloudevents+json",
                    message_id=event.id,
                    correlation_id=message.correlation_id,
                    type=event.type,
                ),
                routing_key=event.type,
            )
            log.info("payment.intent_created", payment_id=intent.id, status=intent.status)

        async def work(message: AbstractIncomingMessage) -> None:
            try:
                await pay(message)
            except (ValidationError, ValueError, stripe.InvalidRequestError):
                log.exception("order.refused")
                await message.reject(requeue=False)
            except Exception:
                log.exception("order.failed")
                await message.nack(requeue=True)
            else:
                await message.ack()

        await queue.consume(work)
        stopped = asyncio.Event()
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stopped.set)
        await stopped.wait()


if __name__ == "__main__":
    asyncio.run(main())
