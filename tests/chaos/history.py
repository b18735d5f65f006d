"""What was seen of a run from outside, as the checker is given it. Nothing of the worker is in it."""

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

REFUND, CANCEL, CAPTURE = "refund.requested", "order.cancelled", "payment.capture_requested"


@dataclass(frozen=True, slots=True)
class Order:
    """An order as it was sent; `kind` is what must come of it, one of TYPES_OF_KIND."""

    amount_minor: int
    currency: str
    kind: str = "created"


@dataclass(frozen=True, slots=True)
class Command:
    """A request as it was sent, however often. kind: its type. amount_minor: None for all there is.

    name: the `request_id`, or the id of the message where it has none.
    """

    kind: str
    order_id: str
    name: str
    amount_minor: int | None = None
    refund_if_paid: bool = False


@dataclass(frozen=True, slots=True)
class Event:
    """A message as it came out of a subscriber's queue; a second copy is a second one of these."""

    routing_key: str | None
    message_id: str | None
    body: bytes


@dataclass(frozen=True, slots=True)
class Letter:
    """A dead letter. `content` is all of it that a person can see: headers and body.

    command: the name of the command that it was, if it was one.
    """

    order_id: str | None
    reason: str | None
    content: bytes = b""
    command: str | None = None


@dataclass(frozen=True, slots=True)
class History:
    """All that was seen of one run.

    requests, intents and refunds: as the sandbox's control surface tells them. faults_over: whether all was given time
    after the last fault, so that nothing is left to excuse a dead letter or something untold. keys_expire: whether keys
    grew past their life in this run.
    """

    orders: Mapping[str, Order]
    events: Sequence[Event]
    requests: Sequence[Mapping[str, Any]]
    intents: Sequence[Mapping[str, Any]]
    letters: Sequence[Letter]
    faults_over: bool
    keys_expire: bool = False
    commands: Sequence[Command] = ()
    refunds: Sequence[Mapping[str, Any]] = ()


@dataclass(frozen=True, slots=True)
class Told:
    """An event that could be read."""

    event: Event
    envelope: Mapping[str, Any]
    data: Mapping[str, Any]

    @property
    def event_id(self) -> str:
        return str(self.envelope.get("id"))

    @property
    def type(self) -> str:
        return str(self.envelope.get("type"))


def read(events: Sequence[Event]) -> tuple[dict[str, list[Told]], list[str]]:
    """The events of each order, and what cannot be read as an event at all."""
    told: dict[str, list[Told]] = defaultdict(list)
    unreadable = []
    for event in events:
        try:
            envelope = json.loads(event.body)
            told[str(envelope["data"]["order_id"])].append(Told(event, envelope, envelope["data"]))
        except (ValueError, KeyError, TypeError):
            unreadable.append(f"I5: event {event.message_id} cannot be read: {event.body[:80]!r}")
    return told, unreadable


def once(events: Sequence[Told]) -> list[Told]:
    """Each event once, in the order of its sequence."""
    distinct = {each.event_id: each for each in events}.values()
    return sorted(distinct, key=lambda each: int(each.data.get("sequence") or 0))


def order_of(intent: Mapping[str, Any]) -> str | None:
    """What an object of Stripe's names as its order."""
    return (intent.get("metadata") or {}).get("order_id")
