"""A delivery → the order in it, or the reason why there is none."""

from schemas import IncomingEvent, MessageError, OrderCreatedData, read_order_created
from schemas.envelope import MAX_BODY_BYTES
from schemas.order_created import readable_order_id
from schemas.strict_json import JsonError, decode_json
from worker.bus.delivery import Delivery
from worker.card_numbers import find_card_field, mask_cards, mask_text

# The order id is looked for in what was refused, too; but nobody decodes megabytes for it.
MAX_LOOKED_AT_BYTES = 1024 * 1024


class CardDataFound(Exception):
    """The message holds card data, which has no place on the queue."""


def read_order_message(delivery: Delivery) -> tuple[IncomingEvent, OrderCreatedData]:
    """The event and its order. Raises MessageError naming the fields, and CardDataFound naming the field."""
    if delivery.unreadable:
        raise MessageError(*(_clip(name, f"cannot be decoded: {why}") for name, why in delivery.unreadable.items()))
    if len(delivery.body) <= MAX_BODY_BYTES:  # a larger one is refused below, unread
        _refuse_card_data(delivery)
    return read_order_created(delivery.body, delivery.properties)


def order_id_of(delivery: Delivery) -> str | None:
    """The order id of a message that was refused, where it can be read; never one that is a card number."""
    if len(delivery.body) > MAX_LOOKED_AT_BYTES:
        return None
    try:
        value = decode_json(delivery.body)
    except JsonError:
        return None
    if not isinstance(value, dict):
        return None
    data = value.get("data") if "specversion" in value else value
    order_id = readable_order_id(data)
    return order_id if order_id and mask_text(order_id) == order_id else None


def _refuse_card_data(delivery: Delivery) -> None:
    """Looks at all of the message, the fields that nobody reads included: they would be kept with the others."""
    properties = delivery.properties
    named = {
        "message_id": properties.message_id,
        "correlation_id": properties.correlation_id,
        "type": properties.type,
        "app_id": properties.app_id,
        "reply_to": properties.reply_to,
        "content_type": properties.content_type,
        "content_encoding": properties.content_encoding,
        "headers": properties.headers,
    }
    field = find_card_field({name: value for name, value in named.items() if value})
    if field is None and mask_cards(delivery.body) is not delivery.body:
        try:
            value = decode_json(delivery.body)
        except JsonError:
            value = None
        field = (find_card_field(value) if isinstance(value, dict) else None) or "body"
    if field is not None:
        raise CardDataFound(f"{field}: holds card data; send a payment_method id instead")


def _clip(name: str, problem: str) -> tuple[str, str]:
    return name[:40], problem[:200]
