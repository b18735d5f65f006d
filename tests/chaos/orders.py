"""The orders of a run, with what each must come to, and the bursts of messages that bring them."""

from random import Random
from typing import Any, Final

from tests.chaos.checker import Order

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
            case "created" if dice.random() < 0.5:
                message |= {"confirm": True, "payment_method": "pm_card_visa"}
            case "declined":
                message |= {"confirm": True, "payment_method": "pm_card_chargeDeclined"}
            case "any":  # below Stripe's minimum: refused without an intent
                minor, currency = 7, "usd"
                message |= {"amount": "0.07", "currency": "usd"}
        orders[order_id] = (Order(minor, currency, kind), message)
    return orders


def make_bursts(
    orders: dict[str, tuple[Order, dict[str, Any]]], count: int, dice: Random
) -> list[list[tuple[str, dict[str, Any]]]]:
    """Messages as (message id, body), shuffled, some twice, in one burst for each trouble.

    A second one is either the same message again or another message for the same order.
    """
    messages = [(f"message-{order_id}", body) for order_id, (_, body) in orders.items()]
    for message_id, body in list(messages):
        if dice.random() < DUPLICATED:
            messages.append((dice.choice([message_id, f"{message_id}-again"]), body))
    dice.shuffle(messages)
    count = max(1, count)
    return [messages[number::count] for number in range(count)]
