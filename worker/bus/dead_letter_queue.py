"""Looking at the dead letters where they lie, without taking any."""

import asyncio
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final

from aio_pika.abc import AbstractChannel, AbstractIncomingMessage
from aio_pika.exceptions import ChannelNotFoundEntity

from worker.bus.connection import CONNECT_TIMEOUT_S, bus_errors, open_channel
from worker.bus.delivery import Delivery, read_delivery
from worker.bus.outgoing import ERROR, LAST_SEEN, LETTER_ID, ORDER_ID, REASON
from worker.bus.topology import BusNames
from worker.errors import BusUnavailable

GET_TIMEOUT_S: Final = 10
GIVEN_BACK_TIMEOUT_S: Final = 2
# About ten seconds of looking.
MAX_LOOKED_AT: Final = 10_000
# What the broker landed has no time of ours: first, since it is the rarest.
_UNKNOWN: Final = datetime.min.replace(tzinfo=UTC)


@dataclass(frozen=True, slots=True)
class DeadLetterRow:
    """What one letter says of itself. Times are None for a letter that the broker landed, not the worker.

    history: what each earlier delivery failed with, oldest first.
    """

    id: str
    order_id: str | None
    reason: str
    error: str
    attempts: int
    first_seen: datetime | None
    last_seen: datetime | None
    size_bytes: int
    event_id: str | None
    history: tuple[str, ...] = ()


async def browse_dead_letters(
    url: str, names: BusNames, *, limit: int, now: datetime
) -> tuple[list[DeadLetterRow], int]:
    """The oldest `limit` letters and how many there are in all. Every one stays in the queue.

    They are fetched unacknowledged and given back together. A quorum queue gives back in no certain order, so all of
    them (up to MAX_LOOKED_AT) are looked at and put in the order of their landing here. Raises BusUnavailable.
    """
    rows: list[DeadLetterRow] = []
    last: AbstractIncomingMessage | None = None
    async with open_channel(url, role="looks at dead letters", publishes=False) as channel:
        try:
            with bus_errors():
                async with asyncio.timeout(CONNECT_TIMEOUT_S):
                    queue = await channel.declare_queue(names.dead_letters_queue, passive=True)
        except BusUnavailable as error:
            if isinstance(error.__cause__, ChannelNotFoundEntity):
                return [], 0  # no worker has ever started on this broker
            raise
        total = queue.declaration_result.message_count or 0
        while len(rows) < min(MAX_LOOKED_AT, total):
            with bus_errors():
                async with asyncio.timeout(GET_TIMEOUT_S):
                    message = await queue.get(no_ack=False, fail=False)
            if message is None:
                break
            rows.append(_row(message, now=now))
            last = message
        if last:
            await _give_back(channel, names, last, count=len(rows))
    rows.sort(key=lambda row: row.last_seen or _UNKNOWN)
    return rows[:limit], total


async def _give_back(channel: AbstractChannel, names: BusNames, last: AbstractIncomingMessage, *, count: int) -> None:
    """Give all back up to the last one, and see them there: who looks again at once must find every one.

    Said rather than left to the closing connection: RabbitMQ 4.3 does not count a nack against the delivery limit.
    A quorum queue takes it in its own time, so it is looked for; somebody else may have taken some meanwhile.
    """
    with bus_errors():
        await last.nack(multiple=True, requeue=True)
        with suppress(TimeoutError):
            async with asyncio.timeout(GIVEN_BACK_TIMEOUT_S):
                while await _ready_count(channel, names) < count:  # noqa: ASYNC110 - the broker sends no event
                    await asyncio.sleep(0.01)


async def _ready_count(channel: AbstractChannel, names: BusNames) -> int:
    queue = await channel.declare_queue(names.dead_letters_queue, passive=True)
    return queue.declaration_result.message_count or 0


def _row(message: AbstractIncomingMessage, *, now: datetime) -> DeadLetterRow:
    headers: Mapping[str, Any] = message.headers
    delivery: Delivery = read_delivery(message, now=now)
    landed_by_worker = isinstance(headers.get(LETTER_ID), str)
    reason = _text(headers.get(REASON)) or _text(headers.get("x-first-death-reason")) or "unknown"
    return DeadLetterRow(
        id=str(headers[LETTER_ID]) if landed_by_worker else delivery.letter_id,
        order_id=_text(headers.get(ORDER_ID)),
        reason=reason,
        error=_text(headers.get(ERROR)) or "the broker gave the message up before the worker could",
        attempts=delivery.deliveries - 1 if landed_by_worker else 0,
        first_seen=delivery.first_seen if landed_by_worker else None,
        last_seen=_time(headers.get(LAST_SEEN)),
        size_bytes=message.body_size,
        event_id=delivery.properties.message_id,
        history=delivery.history,
    )


def _text(value: object) -> str | None:
    """Anybody can put a message there, with headers of any kind."""
    return value if isinstance(value, str) and value else None


def _time(value: object) -> datetime | None:
    try:
        return datetime.fromisoformat(value).astimezone(UTC) if isinstance(value, str) else None
    except (ValueError, OverflowError):
        return None
