"""What the demo promised, what was seen of it from outside, and whether the two agree. Pure."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from schemas import OrderCreatedData, PaymentReply

# Each order comes to one of these; everything else is of the payment's later life.
OUTCOMES: Final = frozenset({"payment.intent_created", "payment.failed"})


@dataclass(frozen=True, slots=True)
class PlacedOrder:
    """An order as it was sent, and the type of the one event that must come of it."""

    data: OrderCreatedData
    promises: str
    note: str = ""

    @property
    def order_id(self) -> str:
        return self.data.order_id


@dataclass(frozen=True, slots=True)
class PlayedFact:
    """Something that was made to happen once to a payment, and the type of the one event that must tell it.

    what: one word for it. amounts: {name: minor units}, as far as they are known beforehand.
    """

    order_id: str
    what: str
    promises: str
    currency: str
    amounts: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class SeenIntent:
    """A PaymentIntent as Stripe lists it."""

    payment_id: str
    order_id: str
    status: str
    amount_minor: int
    currency: str


@dataclass(frozen=True, slots=True)
class SeenEvent:
    """A payment event as it came out of the fulfilment service's queue; `body` is all of it.

    amounts: {name: minor units} of what has moved, for an event of a payment's later life.
    """

    event_id: str
    type: str
    order_id: str
    payment_id: str | None
    status: str | None
    amount_minor: int
    currency: str
    body: bytes
    amounts: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Sighting:
    """All that was seen once the worker had stopped. Nothing of it comes from the worker's ledger.

    letters: as `dead-letters list --json` tells them. messages_left: in the worker's queues, dead letters apart.
    stop_code: what the worker ended with on SIGTERM. replies: what the order service got in private.
    interrupted_calls: the sandbox's record of the calls for the order that the kill interrupted; None without sandbox.
    facts: the amounts of each thing in the sandbox's record of the payment whose later life was played, by what it is.
    """

    intents: Sequence[SeenIntent]
    events: Sequence[SeenEvent]
    letters: Sequence[Mapping[str, Any]]
    messages_left: int
    stop_code: int
    replies: Sequence[PaymentReply]
    interrupted_calls: Sequence[Mapping[str, Any]] | None
    facts: Mapping[str, Sequence[Mapping[str, int]]] = field(default_factory=dict)

    def intents_of(self, order_id: str) -> list[SeenIntent]:
        return [intent for intent in self.intents if intent.order_id == order_id]

    def events_of(self, order_id: str, *types: str) -> list[SeenEvent]:
        """One for each event id: a second copy under the same id is allowed, and dropped here. No types: of all."""
        found = {event.event_id: event for event in self.events if event.order_id == order_id}
        return [event for event in found.values() if not types or event.type in types]

    def outcomes_of(self, order_id: str) -> list[SeenEvent]:
        """What the order came to, one for each event id."""
        return self.events_of(order_id, *OUTCOMES)

    def retold(self) -> dict[tuple[str, str], int]:
        """{(order id, type): copies} where an event came more than once under its id."""
        copies = Counter((event.order_id, event.type, event.event_id) for event in self.events)
        return {(order_id, kind): count for (order_id, kind, _), count in copies.items() if count > 1}


def judge(
    orders: Sequence[PlacedOrder], bad_order_id: str, seen: Sighting, played: Sequence[PlayedFact] = ()
) -> list[str]:
    """Every promise that was not kept, each as a sentence; empty when all were."""
    faults = [fault for order in orders for fault in _faults_of(order, seen)]
    faults += [fault for fact in played for fault in _faults_of_fact(fact, seen)]
    faults += _told_in_vain(seen, played)
    known = {order.order_id for order in orders}
    for what, found in (("intent", seen.intents), ("event", seen.events)):
        strangers = sorted({each.order_id for each in found} - known)
        faults += [f"{order_id}: there is an {what} that nobody asked for" for order_id in strangers]
    bodies: dict[str, set[bytes]] = {}
    for event in seen.events:
        bodies.setdefault(event.event_id, set()).add(event.body)
    faults += [f"event {event_id} came with different contents" for event_id, each in bodies.items() if len(each) > 1]
    if any(b"_secret_" in event.body for event in seen.events):
        faults.append("a client secret is in an event")
    faults += _faults_of_replies(seen)
    if seen.interrupted_calls is not None and not was_asked_again(seen.interrupted_calls):
        faults.append("the kill did not come between Stripe's work and its answer: nothing was shown by it")
    letters = [(letter.get("order_id"), letter.get("reason")) for letter in seen.letters]
    if letters != [(bad_order_id, "bad_message")]:
        faults.append(f"{len(letters)} dead letters {letters}, promised was one: {bad_order_id}, bad_message")
    if seen.messages_left:
        faults.append(f"{seen.messages_left} messages are left in the worker's queues")
    if seen.stop_code != 0:
        faults.append(f"the worker ended with {seen.stop_code} when it was asked to stop")
    return faults


def was_asked_again(calls: Sequence[Mapping[str, Any]]) -> bool:
    """Whether the first answer was lost, and the repeat under the same key brought the stored one."""
    keys = {call["idempotency_key"] for call in calls}
    return len(calls) > 1 and len(keys) == 1 and calls[0]["outcome"] == "dropped" and calls[-1]["replayed"]


def _faults_of_replies(seen: Sighting) -> list[str]:
    if len(seen.replies) != 1:
        return [f"{len(seen.replies)} private replies, promised was one"]
    (reply,) = seen.replies
    own = {intent.payment_id for intent in seen.intents_of(reply.order_id or "")}
    # A client secret begins with its intent's id: https://docs.stripe.com/api/payment_intents/object.
    if reply.payment_id in own and (reply.client_secret or "").startswith(f"{reply.payment_id}_secret_"):
        return []
    return [f"{reply.order_id}: the private reply did not bring the client secret of the order's intent"]


def _faults_of(order: PlacedOrder, seen: Sighting) -> list[str]:
    order_id, asked = order.order_id, [order.data.amount_minor, order.data.currency]
    intents, events, outcomes = seen.intents_of(order_id), seen.events_of(order_id), seen.outcomes_of(order_id)
    faults = []
    if len(intents) != 1:
        faults.append(f"{order_id}: {len(intents)} intents at Stripe, promised was one")
    if len(outcomes) != 1:
        faults.append(f"{order_id}: {len(outcomes)} events, promised was one")
    amounts = [("intent", intent.amount_minor, intent.currency) for intent in intents]
    amounts += [("event", event.amount_minor, event.currency) for event in events]
    for what, *told in amounts:
        if told != asked:
            faults.append(f"{order_id}: the {what} is over {told} in minor units, asked was {asked}")
    payment_ids = {intent.payment_id for intent in intents}
    faults += [
        f"{order_id}: the event is {event.type}, promised was {order.promises}"
        for event in outcomes
        if event.type != order.promises
    ]
    faults += [
        f"{order_id}: the event names {event.payment_id}, which Stripe does not have for the order"
        for event in events
        if payment_ids and event.payment_id not in payment_ids
    ]
    return faults


def _faults_of_fact(fact: PlayedFact, seen: Sighting) -> list[str]:
    there, events = seen.facts.get(fact.what, ()), seen.events_of(fact.order_id, fact.promises)
    faults = []
    if len(there) != 1:
        faults.append(f"{fact.order_id}: {len(there)} {fact.what}s at Stripe, promised was one")
    faults += [
        f"{fact.order_id}: the {fact.what} at Stripe is {dict(amounts)} in minor units, asked was {dict(fact.amounts)}"
        for amounts in there
        if not fact.amounts.items() <= amounts.items()
    ]
    if len(events) != 1:
        faults.append(f"{fact.order_id}: {len(events)} of {fact.promises}, promised was one")
    faults += [
        f"{fact.order_id}: {fact.promises} tells {dict(event.amounts)} in minor units, which Stripe does not have"
        for event in events
        if there and event.amounts not in there
    ]
    return faults


def _told_in_vain(seen: Sighting, played: Sequence[PlayedFact]) -> list[str]:
    """What was told of payments' later lives although nobody had done it."""
    done = {(fact.order_id, fact.promises) for fact in played}
    told = {(event.order_id, event.type) for event in seen.events if event.type not in OUTCOMES}
    return [f"{order_id}: {kind} is told, and nothing of the kind was done" for order_id, kind in sorted(told - done)]
