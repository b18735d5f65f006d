"""Histories for the checker's tests: what the bus and Stripe would show, and ways to change it."""

import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from tests.chaos.checker import CREATED
from tests.chaos.history import Event, History, Order

Bug = Callable[[History], History]

ORDERS = {
    "order-1": Order(1250, "usd"),
    "order-2": Order(500, "jpy"),
    "order-3": Order(999, "eur", "declined"),
    "order-4": Order(10, "usd", "any"),
}


def event(order_id: str, type_: str = CREATED, *, event_id: str | None = None, **data: Any) -> Event:
    order = ORDERS.get(order_id, Order(100, "usd"))
    told = {"payment_id": f"pi_{order_id}", "amount_minor": order.amount_minor, "currency": order.currency}
    envelope = {
        "id": event_id or f"{order_id}/payment/1",
        "type": type_,
        "subject": order_id,
        "data": {"order_id": order_id, "sequence": 1, **told, **data},
    }
    return Event(type_, str(envelope["id"]), json.dumps(envelope).encode())


def intent(order_id: str, **other: Any) -> dict[str, Any]:
    order = ORDERS.get(order_id, Order(100, "usd"))
    status = "requires_payment_method"
    made = {"id": f"pi_{order_id}", "status": status, "amount": order.amount_minor, "currency": order.currency}
    return {**made, "metadata": {"order_id": order_id}, **other}


def request(seq: int, order_id: str, attempt: int = 1, **other: Any) -> dict[str, Any]:
    key = f"payment-worker:{order_id}:create_intent:{attempt}"
    row = {"seq": seq, "method": "POST", "path": "/v1/payment_intents", "order_id": order_id, "status": 200}
    return {**row, "idempotency_key": key, **other}


def plus(history: History, **more: Any) -> History:
    """The history with one thing more in each list that is named."""
    return replace(history, **{name: [*getattr(history, name), thing] for name, thing in more.items()})


def without_event(history: History, order_id: str) -> History:
    return replace(history, events=[each for each in history.events if f'"{order_id}"'.encode() not in each.body])


def instead(history: History, order_id: str, *events: Event) -> History:
    kept = without_event(history, order_id)
    return replace(kept, events=[*kept.events, *events])


def with_intent(history: History, order_id: str, **other: Any) -> History:
    intents = [
        {**each, **other} if each["metadata"]["order_id"] == order_id and each["status"] != "canceled" else each
        for each in history.intents
    ]
    return replace(history, intents=intents)
