"""The orders of a run, with what each must come to, and the bursts of messages that bring them."""

from collections.abc import Mapping, Sequence
from random import Random
from typing import Any, Final

from tests.chaos.commands import Message, Planned
from tests.chaos.history import Order

DUPLICATED: Final = 0.2


def make_orders(dice: Random, count: int) -> dict[str, tuple[Order, dict[str, Any]]]:
    """Orders with what they must come to: {order id: (expectation, message)}."""
    orders = {}
    for number in range(count):
        order_id = f"order-{number:05}"
        minor = dice.randrange(100, 500_000)
        currency, amount = dice.choice(
            [("usd", f"{minor / 100:.2f}"), ("eur", f"{minor / 100:.2f}"), ("jpy", f"{minor}")]
        )
        message: dict[str, Any] = {"order_id": order_id, "amount": amount, "currency": currency}
        kind = dice.choices(["created", "declined", "any"], [0.7, 0.2, 0.1])[0]
        match kind:
            case "created" if dice.random() < 0.7:
                message |= {"confirm": True, "payment_method": "pm_card_visa"}
                if dice.random() < 0.4:
                    message["capture_method"] = "manual"
            case "declined":
                message |= {"confirm": True, "payment_method": "pm_card_chargeDeclined"}
            case "any":  # below Stripe's minimum: refused without an intent
                minor, currency = 7, "usd"
                message |= {"amount": "0.07", "currency": "usd"}
        orders[order_id] = (Order(minor, currency, kind), message)
    return orders


def make_bursts(
    orders: Mapping[str, tuple[Order, Mapping[str, Any]]], commands: Sequence[Planned], count: int, dice: Random
) -> list[list[Message]]:
    """Messages, shuffled, some twice: one burst for each trouble, and a last one of what is asked late.

    An order's second message is either the same again or another one for the same order.
    """
    messages = [Message(f"message-{order_id}", body) for order_id, (_, body) in orders.items()]
    for message in list(messages):
        if dice.random() < DUPLICATED:
            message_id = dice.choice([message.message_id, f"{message.message_id}-again"])
            messages.append(Message(message_id, message.body))
    dice.shuffle(messages)
    count = max(1, count)
    bursts = [messages[number::count] for number in range(count)] + [[]]
    first: dict[str, int] = {}
    for number, burst in enumerate(bursts):
        for message in burst:
            first.setdefault(message.body["order_id"], number)
    for planned in commands:
        number = first[planned.command.order_id] + planned.bursts_later
        bursts[min(max(0, number), count)] += planned.messages
    for burst in bursts:
        dice.shuffle(burst)
    return bursts
