"""A message → the order in it, or the reason why there is none."""

import re
from collections.abc import Mapping
from decimal import Decimal
from typing import Any, Protocol

from schemas import (
    AmqpProperties,
    Command,
    IncomingEvent,
    MessageError,
    OrderCreatedData,
    is_command,
    read_command,
    read_order_created,
    to_minor,
)
from schemas.envelope import MAX_BODY_BYTES
from schemas.order_created import readable_order_id
from schemas.strict_json import JsonError, decode_json
from worker.card_numbers import find_card_field, mask_cards, mask_text

# The order id is looked for in what was refused, too; but nobody decodes megabytes for it.
MAX_LOOKED_AT_BYTES = 1024 * 1024
_PLAIN_AMOUNT = re.compile(r"[0-9]{1,12}(?:\.[0-9]{1,3})?")


class Message(Protocol):
    """A delivery, or a letter. unreadable: properties that could not be decoded, with the reason."""

    @property
    def body(self) -> bytes: ...

    @property
    def properties(self) -> AmqpProperties: ...

    @property
    def unreadable(self) -> Mapping[str, str]: ...


class CardDataFound(Exception):
    """The message holds card data, which has no place on the queue."""


def read_order_message(delivery: Message) -> tuple[IncomingEvent, OrderCreatedData]:
    """The event and its order. Raises MessageError naming the fields, and CardDataFound naming the field."""
    _refuse_unreadable(delivery)
    return read_order_created(delivery.body, delivery.properties)


def read_command_message(delivery: Message) -> tuple[IncomingEvent, Command]:
    """The event and its command. Raises as read_order_message."""
    _refuse_unreadable(delivery)
    return read_command(delivery.body, delivery.properties)


def command_in(message: Message) -> Command | str:
    """The command of a message that says it is one, or why it cannot be read."""
    try:
        return read_command_message(message)[1]
    except (MessageError, CardDataFound) as error:
        return str(error)


def order_in(message: Message) -> OrderCreatedData | str:
    """The order of a message, or why it cannot be read."""
    try:
        return read_order_message(message)[1]
    except (MessageError, CardDataFound) as error:
        return str(error)


def order_id_of(message: Message) -> str | None:
    """The order id of a message that was refused, where it can be read; never one that is a card number."""
    order_id = readable_order_id(data_of(message.body))
    return order_id if order_id and mask_text(order_id) == order_id else None


def told_order_id(message: Message, order: OrderCreatedData | str) -> str | None:
    """The order id that a message names, whether its order could be read or not. order: as of order_in."""
    return order_id_of(message) if isinstance(order, str) else order.order_id


def value_in(message: Message, order: OrderCreatedData | str) -> tuple[int | None, str | None]:
    """Amount in minor units and currency of a message; where it was refused, as far as they are plain all the same."""
    if not isinstance(order, str):
        return order.amount_minor, order.currency
    if is_command(message.body, message.properties):  # its currency is its payment's
        return None, None
    data = data_of(message.body) or {}
    amount, currency = str(data.get("amount")), str(data.get("currency", "usd")).lower()
    if not _PLAIN_AMOUNT.fullmatch(amount):  # one with an exponent would be counted out digit by digit
        return None, None
    try:
        return to_minor(Decimal(amount), currency), currency
    except ValueError:
        return None, None


def data_of(body: bytes) -> dict[str, Any] | None:
    """The order's own JSON object in a body of either form, if there is one."""
    if len(body) > MAX_LOOKED_AT_BYTES:
        return None
    try:
        value = decode_json(body)
    except JsonError:
        return None
    data = value.get("data") if isinstance(value, dict) and "specversion" in value else value
    return data if isinstance(data, dict) else None


def _refuse_unreadable(delivery: Message) -> None:
    if delivery.unreadable:
        raise MessageError(*(_clip(name, f"cannot be decoded: {why}") for name, why in delivery.unreadable.items()))
    if len(delivery.body) <= MAX_BODY_BYTES:  # a larger one is refused by its reader, unread
        _refuse_card_data(delivery)


def _refuse_card_data(delivery: Message) -> None:
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
