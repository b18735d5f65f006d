"""What the worker says on the bus: events, private replies, retries, dead letters."""

import asyncio
import struct
from contextlib import suppress
from dataclasses import replace
from datetime import datetime
from typing import Any, Final
from uuid import uuid4

from schemas import AmqpProperties, PaymentReply
from worker.bus.delivery import LEFT_OUT, LETTER_ID, ORIGINAL_MESSAGE_ID, Delivery, encodable, wrapped_headers
from worker.bus.publisher import Publisher
from worker.bus.readable_properties import ORIGINAL_HEADERS
from worker.bus.topology import BusNames
from worker.card_numbers import mask_cards, mask_text
from worker.client_secret import ClientSecret
from worker.errors import Unroutable
from worker.letter import Letter
from worker.payment import PaymentEvent

CLOUDEVENTS_JSON: Final = "application/cloudevents+json"

# Headers of a dead letter, beside those of every wrapped message.
REASON: Final = "payment-worker-reason"
ERROR: Final = "payment-worker-error"
ORDER_ID: Final = "payment-worker-order-id"
LAST_SEEN: Final = "payment-worker-last-seen"
UNREADABLE_FIELDS: Final = "payment-worker-unreadable-properties"

# What the broker writes into a message that it has moved; it would count on from there.
_BROKERS: Final = ("x-death", "x-first-death-", "x-last-death-", "x-delivery-count", "x-acquired-count")

# A body made for it takes seconds for each megabyte; beside the loop it holds up nobody else.
MASKED_IN_PLACE_BYTES: Final = 64 * 1024


class Outgoing:
    """Each method returns once the broker has confirmed; all raise BusUnavailable and Unroutable."""

    def __init__(self, publisher: Publisher, names: BusNames) -> None:
        self._publisher = publisher
        self._names = names

    async def event(self, event: PaymentEvent) -> None:
        """Tell an event, byte for byte as it was staged."""
        await self._publish_event(event, exchange=self._names.payments_exchange, routing_key=event.type)

    async def event_to(self, queue: str, event: PaymentEvent) -> None:
        """The same to one queue alone, for a subscriber that comes late."""
        await self._publish_event(event, exchange="", routing_key=queue)

    async def _publish_event(self, event: PaymentEvent, *, exchange: str, routing_key: str) -> None:
        await self._publisher.publish(
            event.body.encode(),
            exchange=exchange,
            routing_key=routing_key,
            message_id=event.event_id,
            type=event.type,
            content_type=CLOUDEVENTS_JSON,
            correlation_id=event.correlation_id,
            headers={"traceparent": event.traceparent} if event.traceparent else {},
        )

    def may_reply_to(self, queue: str) -> bool:
        """Whether a reply, which holds a secret, may go to that queue: never to one that operators list."""
        return queue not in self._names.own_queues()

    async def reply(
        self,
        *,
        to: str,
        correlation_id: str | None,
        order_id: str | None,
        payment_id: str | None,
        status: str,
        client_secret: ClientSecret | None,
    ) -> None:
        """The private answer; the one place where the secret is written out."""
        answer = PaymentReply(
            order_id=order_id,
            payment_id=payment_id,
            status=status,
            client_secret=client_secret.reveal() if client_secret else None,
        )
        await self._publisher.publish(
            answer.model_dump_json().encode(),
            exchange="",
            routing_key=to,
            message_id=uuid4().hex,
            correlation_id=correlation_id,
            headers={},
            is_private=True,
        )

    async def retry(self, delivery: Delivery, *, delay_s: int, failure: str) -> None:
        """The same message again after delay_s, to the worker's queue alone; it carries what went wrong along."""
        queue = self._names.retry_queue(delay_s)
        headers = wrapped_headers(delivery, failure=mask_text(failure))
        await self._hand_over(queue, delivery.body, delivery.properties, headers)

    async def replay(self, letter: Letter) -> None:
        """A dead letter's message to the worker's queue alone: as its producer sent it, as if for the first time.

        It carries the letter's id, so that the letter is resolved by its outcome.
        """
        own = {name: value for name, value in letter.properties.headers.items() if not name.startswith(_BROKERS)}
        headers: dict[str, Any] = {LETTER_ID: letter.letter_id, ORIGINAL_HEADERS: encodable(own)}
        if letter.properties.message_id:
            headers[ORIGINAL_MESSAGE_ID] = letter.properties.message_id
        await self._hand_over(self._names.orders_queue, letter.body, letter.properties, headers)

    async def probe(self) -> None:
        """Whether the broker takes messages: it must say that no queue takes this one.

        A broker short of memory or disk blocks publishers without a word, each connection after its first message: so
        it is asked twice. Raises BusUnavailable.
        """
        for _ in range(2):
            with suppress(Unroutable):
                await self._publisher.publish(
                    b"",
                    exchange="",
                    routing_key=f"{self._names.orders_queue}.probe",
                    message_id=uuid4().hex,
                    headers={},
                )

    async def dead_letter(
        self, delivery: Delivery, *, reason: str, error: str, order_id: str | None, now: datetime
    ) -> None:
        """Land the message where operators look: body untouched but for card numbers, the cause in the headers."""
        headers = _masked(wrapped_headers(delivery)) | {
            LETTER_ID: delivery.letter_id,
            REASON: reason,
            ERROR: mask_text(error)[:1000],
            LAST_SEEN: now.isoformat(),
        }
        if order_id:
            headers[ORDER_ID] = order_id
        if delivery.unreadable:
            headers[UNREADABLE_FIELDS] = encodable(delivery.unreadable)
        properties = masked_properties(delivery.properties)
        is_large = len(delivery.body) > MASKED_IN_PLACE_BYTES
        body = await asyncio.to_thread(mask_cards, delivery.body) if is_large else mask_cards(delivery.body)
        await self._hand_over(self._names.dead_letters_queue, body, properties, headers)

    async def _hand_over(self, queue: str, body: bytes, properties: AmqpProperties, headers: dict[str, Any]) -> None:
        """Publish to a queue of our own. Headers that cannot be written again are left out rather than fought with."""
        try:
            await self._publish_as(queue, body, properties, headers)
        except (ValueError, TypeError, OverflowError, struct.error) as error:
            left_out = {LEFT_OUT: f"headers that AMQP cannot carry again: {error}"[:200]}
            await self._publish_as(queue, body, properties, {**headers, ORIGINAL_HEADERS: left_out})

    async def _publish_as(self, queue: str, body: bytes, properties: AmqpProperties, headers: dict[str, Any]) -> None:
        await self._publisher.publish(
            body,
            exchange="",
            routing_key=queue,
            message_id=uuid4().hex,
            headers=headers,
            content_type=properties.content_type,
            content_encoding=properties.content_encoding,
            correlation_id=properties.correlation_id,
            reply_to=properties.reply_to,
            type=properties.type,
            app_id=properties.app_id,
            timestamp=properties.timestamp,
        )


def masked_properties(properties: AmqpProperties) -> AmqpProperties:
    """The properties without card numbers."""
    texts = (
        "content_type",
        "content_encoding",
        "message_id",
        "correlation_id",
        "reply_to",
        "type",
        "app_id",
        "headers",
    )
    return replace(properties, **{name: _masked(getattr(properties, name)) for name in texts})


def _masked(value: Any) -> Any:
    """Card numbers masked in every string of a header table; it is at most a few levels deep."""
    if isinstance(value, str):
        return mask_text(value)
    if isinstance(value, dict):
        return {mask_text(key): _masked(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_masked(inner) for inner in value]
    if isinstance(value, int) and not isinstance(value, bool):
        digits = mask_text(str(value))
        return value if digits == str(value) else digits
    return value
