"""The checker must be able to fail: each way to break a promise, planted in a clean history, is told by its rule."""

import ast
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import pytest

from tests.chaos import checker, history, life_rules
from tests.chaos.checker import violations
from tests.chaos.histories import (
    ORDERS,
    Bug,
    event,
    instead,
    intent,
    plus,
    request,
    with_intent,
    without_event,
)
from tests.chaos.history import Event, History, Letter


def clean() -> History:
    """A copy of an event, a lost answer and a new key after a stored 500: none of them breaks a promise."""
    rows = [
        request(1, "order-1", status=None),
        request(2, "order-2", status=500),
        request(3, "order-1"),
        request(4, "order-3", status=402),
        request(5, "order-2", 2),
        request(6, "order-4", status=400),
        {"seq": 7, "method": "GET", "path": "/v1/payment_intents", "order_id": None, "status": 200},
    ]
    return History(
        orders=ORDERS,
        events=[
            event("order-1"),
            event("order-2"),
            event("order-3", checker.FAILED),
            event("order-4", checker.FAILED, payment_id=None),
            event("order-1"),
        ],
        requests=rows,
        intents=[intent("order-1"), intent("order-2"), intent("order-3")],
        letters=[],
        faults_over=True,
    )


def test_a_clean_history_breaks_nothing() -> None:
    assert violations(clean()) == []


def test_while_faults_last_a_dead_letter_is_an_outcome() -> None:
    history = without_event(clean(), "order-1")
    history = replace(history, letters=[Letter("order-1", "outcome_unknown")], faults_over=False)

    assert violations(history) == []


def test_a_key_past_its_life_is_a_reason_for_a_new_one() -> None:
    history = plus(clean(), requests=request(9, "order-1", 2))

    assert violations(replace(history, keys_expire=True)) == []


BUGS: dict[str, tuple[Bug, str]] = {
    "a double intent": (
        lambda clean: plus(clean, intents=intent("order-1", id="pi_other")),
        "I1: order-1: 2 live intents at Stripe",
    ),
    "an intent for an unknown order": (
        lambda clean: plus(clean, intents=intent("order-9")),
        "I1: order-9: an intent at Stripe for an order that nobody sent",
    ),
    "an intent without an order": (
        lambda clean: plus(clean, intents=intent("order-1", id="pi_other", metadata={})),
        "I1: None: an intent at Stripe for an order that nobody sent",
    ),
    "a wrong amount": (
        lambda clean: with_intent(clean, "order-1", amount=125),
        "I1: order-1: pi_order-1 is over (125, 'usd'), ordered was (1250, 'usd')",
    ),
    "a wrong currency": (
        lambda clean: with_intent(clean, "order-2", currency="usd"),
        "I1: order-2: pi_order-2 is over (500, 'usd'), ordered was (500, 'jpy')",
    ),
    "an event without an intent": (
        lambda clean: replace(clean, intents=[each for each in clean.intents if each["id"] != "pi_order-2"]),
        "I1: order-2: 0 live intents at Stripe",
    ),
    "an event over a canceled intent": (
        lambda clean: with_intent(clean, "order-2", status="canceled"),
        "I3: order-2: the event tells pi_order-2, Stripe has none",
    ),
    "a lost order": (
        lambda clean: without_event(clean, "order-2"),
        "I2: order-2: lost, neither an event nor a dead letter",
    ),
    "a dead letter and an event": (
        lambda clean: plus(clean, letters=Letter("order-2", "bug")),
        "I2: order-2: both an event and a dead letter",
    ),
    "a dead letter after the faults": (
        lambda clean: plus(without_event(clean, "order-2"), letters=Letter("order-2", "outcome_unknown")),
        "I2: order-2: a dead letter although the faults are over (outcome_unknown)",
    ),
    "a dead letter of nobody": (
        lambda clean: plus(clean, letters=Letter(None, "bad_message")),
        "I2: None: a dead letter for an order that nobody sent (bad_message)",
    ),
    "an event that tells another intent": (
        lambda clean: instead(clean, "order-2", event("order-2", payment_id="pi_order-1")),
        "I3: order-2: the event tells pi_order-1, Stripe has pi_order-2",
    ),
    "an event over another amount": (
        lambda clean: instead(clean, "order-2", event("order-2", amount_minor=50000)),
        "I3: order-2: the event is over (50000, 'jpy'), at Stripe it is (500, 'jpy')",
    ),
    "a refusal over another currency": (
        lambda clean: instead(clean, "order-4", event("order-4", checker.FAILED, payment_id=None, currency="eur")),
        "I3: order-4: the event is over (10, 'eur'), at Stripe it is (10, 'usd')",
    ),
    "a failure although Stripe has the intent": (
        lambda clean: instead(clean, "order-3", event("order-3", checker.FAILED, payment_id=None)),
        "I3: order-3: the event tells None, Stripe has pi_order-3",
    ),
    "a decline told as a success": (
        lambda clean: instead(clean, "order-3", event("order-3")),
        f"I3: order-3: told as {checker.CREATED}, the order was one to be declined",
    ),
    "an event for an unknown order": (
        lambda clean: plus(clean, events=event("order-9")),
        "I3: order-9: an event for an order that nobody sent",
    ),
    "two event ids": (
        lambda clean: plus(clean, events=event("order-1", event_id="other")),
        "I4: order-1: 2 event ids (order-1/payment/1, other)",
    ),
    "failed and created both told": (
        lambda clean: plus(clean, events=event("order-1", checker.FAILED)),
        f"I4: order-1: told both as {checker.FAILED} and as {checker.CREATED}",
    ),
    "changed event bytes": (
        lambda clean: plus(clean, events=event("order-1", more=1)),
        "I5: event order-1/payment/1: 2 different contents under one id",
    ),
    "a body that is no event": (
        lambda clean: plus(clean, events=Event(checker.CREATED, "m", b'{"data": []}')),
        "I5: event m cannot be read: b'{\"data\": []}'",
    ),
    "another message id": (
        lambda clean: instead(clean, "order-1", replace(event("order-1"), message_id="m")),
        "I5: order-1: the message_id is 'm', not 'order-1/payment/1'",
    ),
    "another routing key": (
        lambda clean: instead(clean, "order-1", replace(event("order-1"), routing_key=checker.FAILED)),
        f"I5: order-1: the routing key is '{checker.FAILED}', not '{checker.CREATED}'",
    ),
    "a second sequence": (
        lambda clean: instead(clean, "order-1", event("order-1", sequence=2)),
        "I5: order-1: the sequence is 2, not 1",
    ),
    "a key reused for another order": (
        lambda clean: plus(
            clean, requests=request(9, "order-3", idempotency_key=request(1, "order-1")["idempotency_key"])
        ),
        "I6: key payment-worker:order-1:create_intent:1 was sent for 2 orders (order-1, order-3)",
    ),
    "a new key without a reason": (
        lambda clean: plus(clean, requests=request(9, "order-1", 2)),
        "I6: order-1: the new key payment-worker:order-1:create_intent:2 although "
        "payment-worker:order-1:create_intent:1 met no stored 500",
    ),
    "a third key after one stored error": (
        lambda clean: plus(clean, requests=request(9, "order-2", 3)),
        "I6: order-2: the new key payment-worker:order-2:create_intent:3 although "
        "payment-worker:order-2:create_intent:2 met no stored 500",
    ),
    "a request without a key": (
        lambda clean: plus(clean, requests=request(9, "order-1", idempotency_key=None)),
        "I6: order-1: request 9 to /v1/payment_intents without an idempotency key",
    ),
    "a client secret in an event": (
        lambda clean: instead(clean, "order-1", event("order-1", client_secret="pi_1_secret_2")),
        "I10: _secret_ stands in event order-1/payment/1",
    ),
    "an API key in a dead letter": (
        lambda clean: plus(clean, letters=Letter("order-1", "bug", b"Bearer sk_live_1")),
        "I10: sk_live_ stands in the dead letter of order-1",
    ),
}


@pytest.mark.parametrize(("plant", "told"), BUGS.values(), ids=BUGS.keys())
def test_a_planted_bug_is_told(plant: Bug, told: str) -> None:
    assert told in violations(plant(clean()))


@pytest.mark.parametrize("module", [checker, history, life_rules], ids=lambda module: module.__name__)
def test_the_checker_needs_nothing_but_the_standard_library(module: ModuleType) -> None:
    tree = ast.parse(Path(str(module.__file__)).read_text())
    imported = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    imported |= {node.module or "." for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    own = {"tests.chaos", "tests.chaos.history"}

    assert {name.partition(".")[0] for name in imported - own} <= sys.stdlib_module_names
