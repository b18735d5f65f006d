"""The worker's neighbours in the demo, as other teams would write them: aio-pika and the models in `schemas`."""

import asyncio
import json
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any, Self
from uuid import uuid4

from aio_pika import DeliveryMode, ExchangeType, Message
from aio_pika.abc import AbstractChannel, AbstractConnection, AbstractExchange, AbstractIncomingMessage, AbstractQueue

from schemas import (
    AnyPaymentEvent,
    OrderCreated,
    OrderCreatedData,
    PaymentDisputeOpened,
    PaymentRefunded,
    PaymentReply,
    PaymentSettled,
    PaymentSucceeded,
    RefundRequested,
    RefundRequestedData,
    read_payment_event,
)
from worker.sandbox.demo_verdict import SeenEvent

CLOUDEVENTS_JSON = "application/cloudevents+json"
PUBLISH_TIMEOUT_S = 10
END_MARK = b"end of the demo"


class OrderService:
    """Emits `order.created` and `refund.requested`, and keeps the private replies it gets."""

    def __init__(self, exchange: AbstractExchange, reply_queue: str) -> None:
        self._exchange = exchange
        self._reply_queue = reply_queue
        self.replies: list[PaymentReply] = []

    @classmethod
    async def open(cls, connection: AbstractConnection, *, exchange: str) -> Self:
        # A returned message is an error here: an order that no queue takes must not vanish.
        channel = await connection.channel(on_return_raises=True)
        orders = await channel.declare_exchange(exchange, ExchangeType.TOPIC, durable=True)
        replies = await channel.declare_queue(exclusive=True)
        service = cls(orders, replies.name)
        await replies.consume(service._take_reply, no_ack=True)
        return service

    async def place(self, order: OrderCreatedData, *, wants_reply: bool = False) -> None:
        """Emit the order as a CloudEvent of its own; a second call is what a careless retry would send."""
        event = OrderCreated(
            id=str(uuid4()), source="demo-shop", subject=order.order_id, time=datetime.now(UTC), data=order
        )
        await self._emit_event(event, reply_to=self._reply_queue if wants_reply else None)

    async def ask_for_refund(self, refund: RefundRequestedData) -> None:
        """Emit the command; a second call is a careless retry again, and is told from a new wish by its request id."""
        await self._emit_event(
            RefundRequested(
                id=str(uuid4()), source="demo-shop", subject=refund.order_id, time=datetime.now(UTC), data=refund
            )
        )

    async def place_unchecked(self, data: dict[str, Any]) -> None:
        """What a script sends that does not use the models."""
        body = json.dumps(data).encode()
        await self._emit(body, "order.created", message_id=str(uuid4()), content_type="application/json")

    async def _emit_event(self, event: OrderCreated | RefundRequested, *, reply_to: str | None = None) -> None:
        body = event.model_dump_json(exclude_none=True).encode()
        await self._emit(body, event.type, message_id=event.id, content_type=CLOUDEVENTS_JSON, reply_to=reply_to)

    async def _emit(
        self, body: bytes, kind: str, *, message_id: str, content_type: str, reply_to: str | None = None
    ) -> None:
        message = Message(
            body,
            message_id=message_id,
            type=kind,
            content_type=content_type,
            delivery_mode=DeliveryMode.PERSISTENT,
            reply_to=reply_to,
        )
        await self._exchange.publish(message, kind, timeout=PUBLISH_TIMEOUT_S)

    async def _take_reply(self, message: AbstractIncomingMessage) -> None:
        self.replies.append(PaymentReply.model_validate_json(message.body))


class FulfilmentService:
    """Hears all payment events and keeps them; `on_event` gets each, and how many came before under its id."""

    def __init__(
        self, channel: AbstractChannel, queue: AbstractQueue, on_event: Callable[[SeenEvent, int], None]
    ) -> None:
        self._channel = channel
        self._queue = queue
        self._on_event = on_event
        self._ended = asyncio.Event()
        self.events: list[SeenEvent] = []

    @classmethod
    async def open(
        cls, connection: AbstractConnection, *, exchange: str, queue: str, on_event: Callable[[SeenEvent, int], None]
    ) -> Self:
        channel = await connection.channel()
        payments = await channel.declare_exchange(exchange, ExchangeType.TOPIC, durable=True)
        own = await channel.declare_queue(queue, durable=True)
        await own.bind(payments, "#")
        service = cls(channel, own, on_event)
        await own.consume(service._take)
        return service

    def heard(self, order_id: str, kind: str) -> list[SeenEvent]:
        """Of an order and a type, copies under one id included."""
        return [event for event in self.events if (event.order_id, event.type) == (order_id, kind)]

    def orders_heard_of(self) -> set[str]:
        return {event.order_id for event in self.events}

    async def hear_the_rest(self, *, timeout_s: float) -> None:
        """Return when all is heard that was in the queue before. Raises TimeoutError.

        A queue keeps its order (https://www.rabbitmq.com/docs/queues): once our own mark arrives, so has the rest.
        """
        await self._channel.default_exchange.publish(Message(END_MARK), self._queue.name, timeout=PUBLISH_TIMEOUT_S)
        async with asyncio.timeout(timeout_s):
            await self._ended.wait()

    async def _take(self, message: AbstractIncomingMessage) -> None:
        if message.body == END_MARK:
            self._ended.set()
        else:
            event = _read(message)
            before = sum(each.event_id == event.event_id for each in self.events)
            self.events.append(event)
            self._on_event(event, before)
        await message.ack()


def _read(message: AbstractIncomingMessage) -> SeenEvent:
    event = read_payment_event(message.body)
    return SeenEvent(
        event_id=event.id,
        type=event.type,
        order_id=event.data.order_id,
        payment_id=event.data.payment_id,
        status=event.data.status,
        amount_minor=event.data.amount_minor,
        currency=event.data.currency,
        body=message.body,
        amounts=_amounts(event),
    )


def _amounts(event: AnyPaymentEvent) -> dict[str, int]:
    """What the event says was moved, in minor units."""
    match event:
        case PaymentSucceeded():
            return {"received": event.data.amount_received_minor}
        case PaymentSettled():
            return {"fee": event.data.fee_minor, "net": event.data.net_minor}
        case PaymentRefunded():
            return {"refunded": event.data.refund.amount_minor}
        case PaymentDisputeOpened():
            return {"disputed": event.data.dispute.amount_minor}
    return {}
