"""The verdict must be able to fail: each way in which a worker could break its promise is told."""

from collections.abc import Callable
from dataclasses import replace

import pytest

from schemas import PaymentReply
from worker.sandbox.demo_story import mask_secret, place_orders
from worker.sandbox.demo_verdict import SeenEvent, SeenIntent, Sighting, judge

ORDERS = place_orders("ab12")
BAD = "ab12-11"


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
    call = {"idempotency_key": "key", "outcome": "dropped", "replayed": False}
    return Sighting(
        intents=intents,
        events=[*events, events[1]],
        letters=[{"order_id": BAD, "reason": "bad_message"}],
        messages_left=0,
        stop_code=0,
        replies=[
            PaymentReply(order_id="ab12-06", payment_id="pi_ab12-06", status="x", client_secret="pi_ab12-06_secret_x")
        ],
        interrupted_calls=[call, {**call, "outcome": "answered", "replayed": True}],
    )


def test_what_was_promised_has_no_fault_and_a_copy_under_the_same_id_is_none() -> None:
    assert judge(ORDERS, BAD, as_promised()) == []
    assert as_promised().retold() == {"ab12-02": 2}


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
    "a missing event": (lambda seen: replace(seen, events=seen.events[:-2]), "ab12-10: 0 events, promised was one"),
    "a second event": (
        lambda seen: replace(seen, events=[*seen.events, replace(seen.events[0], event_id="other")]),
        "ab12-01: 2 events, promised was one",
    ),
    "another content under one id": (
        lambda seen: replace(seen, events=[*seen.events, replace(seen.events[0], body=b"other")]),
        "event ab12-01/payment/1 came with different contents",
    ),
    "another amount": (
        lambda seen: replace(seen, intents=[replace(seen.intents[0], amount_minor=9998), *seen.intents[1:]]),
        "ab12-01: the intent is over [9998, 'usd'] in minor units, asked was [9999, 'usd']",
    ),
    "another type": (
        lambda seen: replace(
            seen, events=[replace(seen.events[0], type="payment.failed"), *seen.events[2:], seen.events[1]]
        ),
        "ab12-01: the event is payment.failed, promised was payment.intent_created",
    ),
    "another intent in the event": (
        lambda seen: replace(seen, events=[replace(seen.events[0], payment_id="pi_other"), *seen.events[1:]]),
        "ab12-01: the event names pi_other, which Stripe does not have for the order",
    ),
    "an intent for the bad message": (
        lambda seen: replace(seen, intents=[*seen.intents, replace(seen.intents[0], order_id=BAD)]),
        "ab12-11: there is an intent that nobody asked for",
    ),
    "a secret on the bus": (
        lambda seen: replace(
            seen, events=[replace(seen.events[0], body=b"pi_1_secret_2"), *seen.events[2:], seen.events[1]]
        ),
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
}


@pytest.mark.parametrize("name", LIES)
def test_each_broken_promise_is_told_and_nothing_else(name: str) -> None:
    lie, told = LIES[name]
    assert judge(ORDERS, BAD, lie(as_promised())) == [told]


def test_a_secret_is_shown_masked() -> None:
    assert mask_secret("pi_3abcdefghijk_secret_uvwxyz") == "pi_3abcd…_secret_********"
    assert mask_secret(None) == mask_secret("strange") == "none"
