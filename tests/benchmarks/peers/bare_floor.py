"""The bare floor: what the three exchanges cost in Python with nothing round them. No worker to run for money.

aiormq and aiohttp, JSON and a form; no SDK, no validation, no ledger, no logs, and any error ends it.
"""

import asyncio
import json
import os
from urllib.parse import urlencode

import aiohttp
import aiormq
from aiormq.abc import DeliveredMessage

EVENT_TYPE = "payment.intent_created"
PERSISTENT = aiormq.spec.Basic.Properties(delivery_mode=2)


async def main() -> None:
    environment = os.environ
    prefetch, exchange = int(environment["PREFETCH"]), environment["PAYMENTS_EXCHANGE"]
    create = f"{environment['STRIPE_API_BASE']}/v1/payment_intents"
    connection = await aiormq.connect(environment["AMQP_URL"])
    channel = await connection.channel()
    await channel.basic_qos(prefetch_count=prefetch)
    async with aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=prefetch),
        headers={
            "Authorization": f"Bearer {environment['STRIPE_API_KEY']}",
            "Content-Type": "application/x-www-form-urlencoded",
        },
    ) as session:

        async def work(message: DeliveredMessage) -> None:
            order = json.loads(message.body)
            order_id = order["order_id"]
            form = {
                "amount": int(order["amount"].replace(".", "")),
                "currency": order["currency"],
                "metadata[order_id]": order_id,
                "automatic_payment_methods[enabled]": "true",
            }
            async with session.post(create, data=urlencode(form), headers={"Idempotency-Key": order_id}) as answer:
                answer.raise_for_status()
                intent = await answer.json()
            event = {
                "type": EVENT_TYPE,
                "id": f"{order_id}/payment/1",
                "subject": order_id,
                "data": {"order_id": order_id, "payment_id": intent["id"], "status": intent["status"]},
            }
            body = json.dumps(event).encode()
            await channel.basic_publish(body, exchange=exchange, routing_key=EVENT_TYPE, properties=PERSISTENT)
            assert message.delivery_tag is not None
            await channel.basic_ack(message.delivery_tag)

        await channel.basic_consume(environment["ORDERS_QUEUE"], work)
        await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(main())
