"""What an order must have come to, judged from outside: by the bus, by Stripe's own record, by the dead letters.

Written from the README's promises, with nothing of the worker in it: a rule that shared code with the worker would
share its mistakes. Pure; each violation is a sentence that begins with the number of its rule.
"""

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from tests.chaos import life_rules
from tests.chaos.history import CANCEL, History, Letter, Told, order_of, read

CREATED, FAILED, CANCELED = "payment.intent_created", "payment.failed", "payment.canceled"
# "any": Stripe may refuse the order before an intent is made, and then a failure without an intent is right.
TYPES_OF_KIND = {"created": {CREATED}, "declined": {FAILED}, "any": {CREATED, FAILED}}
CREATE_PATH = "/v1/payment_intents"
SECRETS = (b"_secret_", b"sk_test_", b"sk_live_", b"rk_test_", b"rk_live_", b"whsec_")


def violations(history: History) -> list[str]:
    """Every promise that was not kept; empty when all were."""
    told, unreadable = read(history.events)
    outcomes = {order_id: outcomes_of(events) for order_id, events in told.items()}
    found = list(unreadable)
    for rule in (_intents, _outcomes, _agreement, _one_event):
        found += rule(history, outcomes)
    for rule in (_copies, *life_rules.RULES):
        found += rule(history, told)
    found += _keys(history)
    found += _secrets(history)
    return found


def outcomes_of(events: Sequence[Told]) -> list[Told]:
    """Those that tell the outcome of an order; a cancel that came before it is one too."""
    made = [each for each in events if each.type in (CREATED, FAILED)]
    return made or [each for each in events if _tells_canceled_before(each)]


def _tells_canceled_before(told: Told) -> bool:
    return told.type == CANCELED and told.data.get("payment_id") is None


def _tells_no_intent(told: Told) -> bool:
    return told.type == FAILED and told.data.get("payment_id") is None


def _asked_to_cancel(history: History) -> set[str]:
    return {command.order_id for command in history.commands if command.kind == CANCEL}


def _live(history: History) -> dict[str | None, list[Mapping[str, Any]]]:
    """The intents of each order, without those that were canceled though nobody asked for it over the bus."""
    canceled = _asked_to_cancel(history)
    live: dict[str | None, list[Mapping[str, Any]]] = defaultdict(list)
    for intent in history.intents:
        if intent["status"] != "canceled" or order_of(intent) in canceled:
            live[order_of(intent)].append(intent)
    return live


def _intents(history: History, told: Mapping[str, list[Told]]) -> Iterator[str]:
    """I1: one live intent for each order, of what was ordered; none that nobody ordered."""
    live = _live(history)
    for order_id in live.keys() - history.orders.keys():
        yield f"I1: {order_id}: an intent at Stripe for an order that nobody sent"
    for order_id, order in history.orders.items():
        intents = live.get(order_id, [])
        events = told.get(order_id, [])
        is_refused = order.kind == "any" and all(map(_tells_no_intent, events))
        may_be_none = is_refused or all(map(_tells_canceled_before, events))
        if len(intents) > 1 or not (intents or may_be_none):
            yield f"I1: {order_id}: {len(intents)} live intents at Stripe"
        for intent in intents:
            asked, got = (order.amount_minor, order.currency), (intent["amount"], intent["currency"])
            if asked != got:
                yield f"I1: {order_id}: {intent['id']} is over {got}, ordered was {asked}"


def _outcomes(history: History, told: Mapping[str, list[Told]]) -> Iterator[str]:
    """I2: an event or a dead letter, never both and never neither; no letter at all once the faults are over."""
    letters: dict[str | None, list[Letter]] = defaultdict(list)
    for letter in history.letters:
        if letter.command is None:
            letters[letter.order_id].append(letter)
    for order_id in history.orders:
        if not told.get(order_id) and order_id not in letters:
            yield f"I2: {order_id}: lost, neither an event nor a dead letter"
        if told.get(order_id) and order_id in letters:
            yield f"I2: {order_id}: both an event and a dead letter"
    for order_id, those in letters.items():
        reasons = sorted({str(letter.reason) for letter in those})
        if order_id not in history.orders:
            yield f"I2: {order_id}: a dead letter for an order that nobody sent ({', '.join(reasons)})"
        elif history.faults_over:
            yield f"I2: {order_id}: a dead letter although the faults are over ({', '.join(reasons)})"


def _agreement(history: History, told: Mapping[str, list[Told]]) -> Iterator[str]:
    """I3: what the bus was told is what Stripe has, and the kind of outcome that the order asked for."""
    live, canceled = _live(history), _asked_to_cancel(history)
    for order_id, events in told.items():
        order = history.orders.get(order_id)
        if order is None:
            yield f"I3: {order_id}: an event for an order that nobody sent"
            continue
        intents = {intent["id"]: intent for intent in live.get(order_id, [])}
        for each in {each.event_id: each for each in events}.values():
            data, type_ = each.data, each.type
            may_be = TYPES_OF_KIND[order.kind] | ({CANCELED} if order_id in canceled else set())
            if type_ not in may_be:
                yield f"I3: {order_id}: told as {type_}, the order was one to be {order.kind}"
            payment_id = data.get("payment_id")
            if payment_id is None and type_ in (FAILED, CANCELED) and not intents:
                expected = (order.amount_minor, order.currency)
            elif payment_id in intents:
                expected = (intents[payment_id]["amount"], intents[payment_id]["currency"])
            else:
                yield f"I3: {order_id}: the event tells {payment_id}, Stripe has {', '.join(intents) or 'none'}"
                continue
            if expected != (got := (data.get("amount_minor"), data.get("currency"))):
                yield f"I3: {order_id}: the event is over {got}, at Stripe it is {expected}"


def _one_event(history: History, told: Mapping[str, list[Told]]) -> Iterator[str]:
    """I4: one outcome for each order, however often it is told."""
    for order_id in history.orders:
        events = told.get(order_id, [])
        if len(ids := sorted({each.event_id for each in events})) > 1:
            yield f"I4: {order_id}: {len(ids)} event ids ({', '.join(ids)})"
        if len(types := sorted({each.type for each in events})) > 1:
            yield f"I4: {order_id}: told both as {' and as '.join(types)}"


def _copies(history: History, told: Mapping[str, list[Told]]) -> Iterator[str]:
    """I5: copies are byte-equal, and what stands outside of the body is what stands in it."""
    bodies: dict[str, set[bytes]] = defaultdict(set)
    for order_id, events in told.items():
        for each in events:
            bodies[each.event_id].add(each.event.body)
            wanted = {
                "message_id": (each.event.message_id, each.envelope.get("id")),
                "routing key": (each.event.routing_key, each.envelope.get("type")),
                "subject": (each.envelope.get("subject"), order_id),
            }
            if each in outcomes_of(events):
                wanted["sequence"] = each.data.get("sequence"), 1
            for name, (got, expected) in wanted.items():
                if got != expected:
                    yield f"I5: {order_id}: the {name} is {got!r}, not {expected!r}"
    for event_id, contents in bodies.items():
        if len(contents) > 1:
            yield f"I5: event {event_id}: {len(contents)} different contents under one id"


def _keys(history: History) -> Iterator[str]:
    """I6: a key belongs to one order, and an order gets a new one only where the last can bring no answer any more."""
    orders_of: dict[str, set[str | None]] = defaultdict(set)
    keys_of: dict[str | None, list[str]] = defaultdict(list)
    spent: set[str] = set()  # keys under which a 500 is kept
    for row in sorted(history.requests, key=lambda row: int(row["seq"])):
        if row["method"] != "POST":
            continue
        key, order_id = row["idempotency_key"], row["order_id"]
        if key is None:
            yield f"I6: {order_id}: request {row['seq']} to {row['path']} without an idempotency key"
            continue
        orders_of[key].add(order_id)
        keys = keys_of[order_id]
        if row["path"] == CREATE_PATH and key not in keys:
            if keys and keys[-1] not in spent and not history.keys_expire:
                yield f"I6: {order_id}: the new key {key} although {keys[-1]} met no stored 500"
            keys.append(key)
        if row["status"] == 500:
            spent.add(key)
    for key, order_ids in orders_of.items():
        if len(order_ids) > 1:
            yield f"I6: key {key} was sent for {len(order_ids)} orders ({', '.join(sorted(map(str, order_ids)))})"


def _secrets(history: History) -> Iterator[str]:
    """I10: nothing that moves money is readable where events and letters are."""
    seen = [(f"event {event.message_id}", event.body) for event in history.events]
    seen += [(f"the dead letter of {letter.order_id}", letter.content) for letter in history.letters]
    for what, content in seen:
        for secret in SECRETS:
            if secret in content:
                yield f"I10: {secret.decode()} stands in {what}"
