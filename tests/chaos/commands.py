"""What is asked of a share of the orders once they are made, or a moment too early."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from random import Random
from typing import Any, Final

from tests.chaos.history import CANCEL, CAPTURE, REFUND, Command, Order

SHARE: Final = 0.5
DUPLICATED: Final = 0.3
NAMELESS: Final = 0.3
# Bursts between an order and what is asked of its payment; a cancel may even come before its order.
BURSTS_LATER: Final = (0, 1, 1, 1, 2, 2)
CANCELED_LATER: Final = (-1, -1, 0, 1, 2)


@dataclass(frozen=True, slots=True)
class Message:
    """A message of the order service. type: None for an order, which is known by its body."""

    message_id: str
    body: Mapping[str, Any]
    type: str | None = None


@dataclass(frozen=True, slots=True)
class Planned:
    """A command with its messages, and how many bursts after its order they come."""

    command: Command
    messages: tuple[Message, ...]
    bursts_later: int


def make_commands(dice: Random, orders: Mapping[str, tuple[Order, Mapping[str, Any]]]) -> list[Planned]:
    """For a share of the orders."""
    return [
        _plan(dice, command, order)
        for order_id, (order, body) in orders.items()
        if dice.random() < SHARE
        for command in _commands_for(dice, order_id, order, body)
    ]


def _commands_for(dice: Random, order_id: str, order: Order, body: Mapping[str, Any]) -> Iterator[Command]:
    whole, part, most = order.amount_minor, order.amount_minor // 3, order.amount_minor * 2 // 3
    choices: Sequence[Sequence[tuple[str, int | None]]]
    if order.kind != "created" or not body.get("confirm"):  # nothing is ever paid of it
        choices = [
            [(CANCEL, None)],
            [(CANCEL, None), (CANCEL, None)],
            [(CANCEL, None), (REFUND, None)],
            [(CAPTURE, None)],
        ]
    elif body.get("capture_method") == "manual":
        choices = [
            [(CAPTURE, None)],
            [(CAPTURE, part), (CAPTURE, part)],
            [(CAPTURE, most), (REFUND, part)],
            [(CAPTURE, whole + 1)],
            [(CANCEL, None)],
            [(CANCEL, None), (CAPTURE, None)],
        ]
    else:
        choices = [
            [(REFUND, part), (REFUND, part)],
            [(REFUND, most), (REFUND, most)],
            [(REFUND, None)],
            [(REFUND, part), (REFUND, None)],
            [(REFUND, whole + 1)],
            [(CANCEL, None)],
            [(CANCEL, None), (REFUND, part)],
        ]
    for number, (kind, amount_minor) in enumerate(dice.choice(choices), start=1):
        refund_if_paid = kind == CANCEL and dice.random() < 0.5
        yield Command(kind, order_id, f"{order_id}.{number}", amount_minor, refund_if_paid)


def _plan(dice: Random, command: Command, order: Order) -> Planned:
    body: dict[str, Any] = {"order_id": command.order_id}
    if command.kind != CANCEL or dice.random() >= NAMELESS:
        body["request_id"] = command.name
    if command.amount_minor is not None:
        body["amount"] = _major(command.amount_minor, order.currency)
    if command.refund_if_paid:
        body["refund_if_paid"] = True
    messages = [Message(command.name, body, command.kind)]
    if dice.random() < DUPLICATED:
        # Without a request id another message would be another request.
        other_id = f"{command.name}.again" if "request_id" in body else command.name
        messages.append(Message(dice.choice([command.name, other_id]), body, command.kind))
    bursts_later = dice.choice(CANCELED_LATER if command.kind == CANCEL else BURSTS_LATER)
    return Planned(command, tuple(messages), bursts_later)


def _major(minor: int, currency: str) -> str:
    return str(minor) if currency == "jpy" else f"{minor / 100:.2f}"
