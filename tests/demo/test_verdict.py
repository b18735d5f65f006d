"""The verdict must be able to fail: each way in which a worker could break its promise is told."""

from collections.abc import Callable
from dataclasses import replace

import pytest

from schemas import PaymentReply
from worker.sandbox.demo_story import mask_secret, place_orders
from worker.sandbox.demo_verdict import PlayedFact, SeenEvent, SeenIntent, Sighting, judge

ORDERS = place_orders("ab12")
BAD = "ab12-11"
PAID = "ab12-07"
PLAYED = [
    PlayedFact(PAID, "payment", "payment.succeeded", "usd", {"received": 125000}),
    PlayedFact(PAID, "settlement", "payment.settled", "usd"),
    PlayedFact(PAID, "refund", "payment.refunded", "usd", {"refunded": 25000}),
    PlayedFact(PAID, "dispute", "payment.dispute_opened", "usd", {"disputed": 100000}),
]
FACTS = {
    "payment": [{"received": 125000}],
    "settlement": [{"fee": 3655, "net": 121345}],
    "refund": [{"refunded": 25000}],
    "dispute": [{"disputed": 100000}],
}


def as_promised() -> Sighting:
    intents = [
        SeenIntent(f"pi_{order.order_id}", order.order_id, "succeeded", order.data.amount_minor, order.data.currency)
        for order in ORDERS
    ]
    events = [
        SeenEvent(
            f"{order.order_id}/payment/1",
            order.promises,
            order.order_id,
            f"pi_{order.order_id}",
            "succeeded",
            order.data.amount_minor,
            order.data.currency,
            b"{}",
        )
        for order in ORDERS
    ]
    lived = [
        SeenEvent(
            f"{PAID}/{fact.promises}",
            fact.promises,
            PAID,
            f"pi_{PAID}",
            "succeeded",
            125000,
            "usd",
            b"{}",
            FACTS[fact.what][0],
        )
        for fact in PLAYED
    ]
    call = {"idempotency_key": "key", "outcome": "dropped", "replayed": False}
    return Sighting(
        intents=intents,
        events=[*lived, lived[2], *events, events[1]],
        letters=[{"order_id": BAD, "reason": "bad_message"}],
        messages_left=0,
        stop_code=0,
        replies=[
            PaymentReply(order_id="ab12-06", payment_id="pi_ab12-06", status="x", client_secret="pi_ab12-06_secret_x")
        ],
        interrupted_calls=[call, {**call, "outcome": "answered", "replayed": True}],
        facts=FACTS,
    )


def outcome(seen: Sighting, number: int) -> SeenEvent:
    """Of the order of that number, counted from 0."""
    return seen.outcomes_of(ORDERS[number].order_id)[0]


def changed(seen: Sighting, event: SeenEvent, **changes: object) -> Sighting:
    """With the event, and all its copies, told otherwise."""
    return replace(seen, events=[replace(each, **changes) if each == event else each for each in seen.events])  # type: ignore[arg-type]


def without(seen: Sighting, kind: str) -> Sighting:
    return replace(seen, events=[event for event in seen.events if event.type != kind])


def later(seen: Sighting, kind: str) -> SeenEvent:
    return seen.events_of(PAID, kind)[0]


def test_what_was_promised_has_no_fault_and_a_copy_under_the_same_id_is_none() -> None:
    assert judge(ORDERS, BAD, as_promised(), PLAYED) == []
    assert as_promised().retold() == {("ab12-02", "payment.intent_created"): 2, (PAID, "payment.refunded"): 2}


def test_where_nothing_was_played_nothing_may_be_told_of_it() -> None:
    assert judge(ORDERS, BAD, as_promised()) == [
        f"{PAID}: {kind} is told, and nothing of the kind was done"
        for kind in ("payment.dispute_opened", "payment.refunded", "payment.settled", "payment.succeeded")
    ]


Lie = Callable[[Sighting], Sighting]
LIES: dict[str, tuple[Lie, str]] = {
    "a second intent": (
        lambda seen: replace(seen, intents=[*seen.intents, replace(seen.intents[2], payment_id="pi_other")]),
        "ab12-03: 2 intents at Stripe, promised was one",
    ),
    "a missing intent": (
        lambda seen: replace(seen, intents=seen.intents[1:]),
        "ab12-01: 0 intents at Stripe, promised was one",
    ),
    "a missing event": (
        lambda seen: replace(seen, events=[event for event in seen.events if event.order_id != "ab12-10"]),
        "ab12-10: 0 events, promised was one",
    ),
    "a second event": (
        lambda seen: replace(seen, events=[*seen.events, replace(outcome(seen, 0), event_id="other")]),
        "ab12-01: 2 events, promised was one",
    ),
    "another content under one id": (
        lambda seen: replace(seen, events=[*seen.events, replace(outcome(seen, 0), body=b"other")]),
        "event ab12-01/payment/1 came with different contents",
    ),
    "another amount": (
        lambda seen: replace(seen, intents=[replace(seen.intents[0], amount_minor=9998), *seen.intents[1:]]),
        "ab12-01: the intent is over [9998, 'usd'] in minor units, asked was [9999, 'usd']",
    ),
    "another type": (
        lambda seen: changed(seen, outcome(seen, 0), type="payment.failed"),
        "ab12-01: the event is payment.failed, promised was payment.intent_created",
    ),
    "another intent in the event": (
        lambda seen: changed(seen, outcome(seen, 0), payment_id="pi_other"),
        "ab12-01: the event names pi_other, which Stripe does not have for the order",
    ),
    "an intent for the bad message": (
        lambda seen: replace(seen, intents=[*seen.intents, replace(seen.intents[0], order_id=BAD)]),
        "ab12-11: there is an intent that nobody asked for",
    ),
    "a secret on the bus": (
        lambda seen: changed(seen, outcome(seen, 0), body=b"pi_1_secret_2"),
        "a client secret is in an event",
    ),
    "no dead letter": (
        lambda seen: replace(seen, letters=[]),
        "0 dead letters [], promised was one: ab12-11, bad_message",
    ),
    "a message left": (lambda seen: replace(seen, messages_left=1), "1 messages are left in the worker's queues"),
    "a crash at the stop": (
        lambda seen: replace(seen, stop_code=-9),
        "the worker ended with -9 when it was asked to stop",
    ),
    "no reply": (lambda seen: replace(seen, replies=[]), "0 private replies, promised was one"),
    "somebody else's secret": (
        lambda seen: replace(seen, replies=[seen.replies[0].model_copy(update={"client_secret": "pi_other_secret_x"})]),
        "ab12-06: the private reply did not bring the client secret of the order's intent",
    ),
    "a kill beside the point": (
        lambda seen: replace(seen, interrupted_calls=(seen.interrupted_calls or [])[1:]),
        "the kill did not come between Stripe's work and its answer: nothing was shown by it",
    ),
    "a payment that nobody hears of": (
        lambda seen: without(seen, "payment.succeeded"),
        "ab12-07: 0 of payment.succeeded, promised was one",
    ),
    "another amount received": (
        lambda seen: changed(seen, later(seen, "payment.succeeded"), amounts={"received": 124999}),
        "ab12-07: payment.succeeded tells {'received': 124999} in minor units, which Stripe does not have",
    ),
    "another amount of the payment later": (
        lambda seen: changed(seen, later(seen, "payment.succeeded"), amount_minor=124999),
        "ab12-07: the event is over [124999, 'usd'] in minor units, asked was [125000, 'usd']",
    ),
    "another intent later": (
        lambda seen: changed(seen, later(seen, "payment.refunded"), payment_id="pi_other"),
        "ab12-07: the event names pi_other, which Stripe does not have for the order",
    ),
    "another fee": (
        lambda seen: changed(seen, later(seen, "payment.settled"), amounts={"fee": 0, "net": 125000}),
        "ab12-07: payment.settled tells {'fee': 0, 'net': 125000} in minor units, which Stripe does not have",
    ),
    "a refund made twice": (
        lambda seen: replace(seen, facts={**FACTS, "refund": FACTS["refund"] * 2}),
        "ab12-07: 2 refunds at Stripe, promised was one",
    ),
    "a refund told twice": (
        lambda seen: replace(seen, events=[*seen.events, replace(later(seen, "payment.refunded"), event_id="other")]),
        "ab12-07: 2 of payment.refunded, promised was one",
    ),
    "more refunded than was asked, and told so": (
        lambda seen: changed(
            replace(seen, facts={**FACTS, "refund": [{"refunded": 125000}]}),
            later(seen, "payment.refunded"),
            amounts={"refunded": 125000},
        ),
        "ab12-07: the refund at Stripe is {'refunded': 125000} in minor units, asked was {'refunded': 25000}",
    ),
    "a dispute told as another amount": (
        lambda seen: changed(seen, later(seen, "payment.dispute_opened"), amounts={"disputed": 125000}),
        "ab12-07: payment.dispute_opened tells {'disputed': 125000} in minor units, which Stripe does not have",
    ),
    "a refund of an order of which none was asked": (
        lambda seen: replace(
            seen, events=[*seen.events, replace(outcome(seen, 0), event_id="other", type="payment.refunded")]
        ),
        "ab12-01: payment.refunded is told, and nothing of the kind was done",
    ),
}


@pytest.mark.parametrize("name", LIES)
def test_each_broken_promise_is_told_and_nothing_else(name: str) -> None:
    lie, told = LIES[name]
    assert judge(ORDERS, BAD, lie(as_promised()), PLAYED) == [told]


def test_a_secret_is_shown_masked() -> None:
    assert mask_secret("pi_3abcdefghijk_secret_uvwxyz") == "pi_3abcd…_secret_********"
    assert mask_secret(None) == mask_secret("strange") == "none"
