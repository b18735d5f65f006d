"""One AMQP handing-over of a message, and how a message is wrapped to be handed over again."""

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final

from aiormq.abc import DeliveredMessage
from pamqp.commands import Basic

from schemas import AmqpProperties
from worker.bus.readable_properties import ORIGINAL_HEADERS, UNREADABLE
from worker.payment import LETTER_ID as LETTER_ID_FORM
from worker.payment import dead_letter_id

# Our own headers. The broker's x-death and x-delivery-count mean other things in each of its versions.
DELIVERIES: Final = "payment-worker-deliveries"
FIRST_SEEN: Final = "payment-worker-first-seen"
HISTORY: Final = "payment-worker-history"
ORIGINAL_MESSAGE_ID: Final = "payment-worker-original-message-id"
LEFT_OUT: Final = "payment-worker-left-out"
# On a dead letter, and on its message while it is replayed.
LETTER_ID: Final = "payment-worker-letter-id"

# A content header must fit one frame (128 KiB by default), with room for ours.
MAX_HEADER_BYTES: Final = 48 * 1024
MAX_HEADER_NAME_BYTES: Final = 128
# Of each earlier failure; there are at most a budget's worth of them.
MAX_FAILURE_CHARS: Final = 300
MAX_HISTORY: Final = 20
# Anybody can write our header.
_LETTER_ID: Final = re.compile(LETTER_ID_FORM)
# A time outside of these is no time of a message: some ledgers and clocks cannot hold it.
FIRST_YEAR, LAST_YEAR = 1970, 2105


@dataclass(frozen=True, slots=True)
class Delivery:
    """A message in our hands until it is acknowledged, or its subscription closes and it goes back.

    tag: the broker's number for it on its channel. arrived: the properties with all that earlier rounds wrapped round.
    history: what each earlier delivery failed with, oldest first. replays: the letter that it is a replay of.
    """

    body: bytes
    properties: AmqpProperties
    unreadable: Mapping[str, str]
    deliveries: int
    first_seen: datetime
    tag: int
    arrived: Basic.Properties
    acknowledge: Callable[[int], None]
    history: tuple[str, ...] = ()
    replays: str | None = None

    @property
    def letter_id(self) -> str:
        """The id that this message has as a dead letter, however often it becomes one."""
        return self.replays or letter_id(self.body, self.properties)

    def ack(self) -> None:
        """Done with: the broker is told within moments, with others. A connection lost before brings it again.

        Raises BusUnavailable where it is lost already.
        """
        self.acknowledge(self.tag)


def read_delivery(message: DeliveredMessage, *, now: datetime, acknowledge: Callable[[int], None]) -> Delivery:
    """The message as its producer sent it; what earlier rounds wrapped round it is taken off again.

    acknowledge: takes the tag of what is done with.
    """
    arrived = message.header.properties
    headers: dict[str, Any] = dict(arrived.headers or {})
    unreadable = headers.pop(UNREADABLE, None)
    deliveries, first_seen = headers.pop(DELIVERIES, 0), readable_time(headers.pop(FIRST_SEEN, None))
    history, replays = headers.pop(HISTORY, None), _text(headers.pop(LETTER_ID, None))
    message_id = _text(arrived.message_id)
    if isinstance(headers.get(ORIGINAL_HEADERS), dict):
        message_id = _text(headers.get(ORIGINAL_MESSAGE_ID))
        headers = headers[ORIGINAL_HEADERS]
    properties = AmqpProperties(
        content_type=arrived.content_type,
        content_encoding=arrived.content_encoding,
        message_id=message_id,
        correlation_id=_text(arrived.correlation_id),
        reply_to=_text(arrived.reply_to),
        type=_text(arrived.message_type),
        app_id=_text(arrived.app_id),
        timestamp=arrived.timestamp,
        headers=headers,
    )
    return Delivery(
        body=message.body,
        properties=properties,
        unreadable=unreadable if isinstance(unreadable, dict) else {},
        deliveries=_counted(deliveries) + 1,
        first_seen=first_seen or now,
        tag=message.delivery_tag or 0,
        arrived=arrived,
        acknowledge=acknowledge,
        history=tuple(filter(None, map(_text, history))) if isinstance(history, list) else (),
        replays=replays if replays and _LETTER_ID.fullmatch(replays) else None,
    )


def wrapped_headers(delivery: Delivery, *, failure: str | None = None) -> dict[str, Any]:
    """Headers for handing the message over again: the original ones whole, in a table of their own.

    Kept apart because some act on the broker: CC would send copies elsewhere, and x-death is counted on by 3.10.
    """
    headers: dict[str, Any] = {
        DELIVERIES: delivery.deliveries,
        FIRST_SEEN: delivery.first_seen.isoformat(),
        ORIGINAL_HEADERS: encodable(delivery.properties.headers),
    }
    if delivery.replays:
        headers[LETTER_ID] = delivery.replays
    history = [*delivery.history, *([failure] if failure else [])]
    if history:
        headers[HISTORY] = [each[:MAX_FAILURE_CHARS] for each in history[-MAX_HISTORY:]]
    if delivery.properties.message_id:
        headers[ORIGINAL_MESSAGE_ID] = delivery.properties.message_id
    return headers


def encodable(headers: Mapping[str, Any]) -> dict[str, Any]:
    """The headers as AMQP can surely carry them: what it cannot becomes text, and too much is left out."""
    kept = {_name(key): _encodable(value) for key, value in headers.items()}
    size = len(json.dumps(kept, default=str))
    return kept if size <= MAX_HEADER_BYTES else {LEFT_OUT: f"headers of {size} bytes"}


def readable_time(value: object) -> datetime | None:
    """A time in ISO 8601 with its zone, as we write it into a header; None for anything else, which anybody may."""
    try:
        moment = datetime.fromisoformat(value) if isinstance(value, str) else None
        moment = moment.astimezone(UTC) if moment and moment.tzinfo else None
    except (ValueError, OverflowError):
        return None
    return moment if moment and FIRST_YEAR <= moment.year <= LAST_YEAR else None


def letter_id(body: bytes, properties: AmqpProperties) -> str:
    """See worker.payment.dead_letter_id. The broker's own headers are no part of a message's identity.

    Taken of the headers as they can be handed over, so that it is the same before and after a round.
    """
    timestamp = properties.timestamp
    identity = {
        "message_id": properties.message_id,
        "correlation_id": properties.correlation_id,
        "timestamp": timestamp.replace(microsecond=0) if timestamp else None,
        "headers": {key: value for key, value in encodable(properties.headers).items() if not key.startswith("x-")},
    }
    return dead_letter_id(body, identity)


def _counted(value: object) -> int:
    """A count as somebody may have written it into our header: believed within reason."""
    return min(value, 1_000_000) if isinstance(value, int) and value > 0 else 0


def _encodable(value: Any) -> Any:
    if isinstance(value, dict):
        return {_name(key): _encodable(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_encodable(inner) for inner in value]
    if isinstance(value, int) and not -(2**63) <= value < 2**63:
        return str(value)
    if isinstance(value, bytes | bytearray):
        return bytes(value).decode("utf-8", "replace")
    if value is None or isinstance(value, str | bool | int | datetime):
        return value.replace(microsecond=0) if isinstance(value, datetime) else value  # AMQP's have whole seconds
    # A float too becomes text: pamqp would write it with 32 bits, and another number, or none at all, would arrive.
    return str(value)


def _name(key: str) -> str:
    return key.encode()[:MAX_HEADER_NAME_BYTES].decode(errors="ignore")


def _text(value: object) -> str | None:
    return value if isinstance(value, str) and value else None
