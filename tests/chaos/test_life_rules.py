"""The rules on commands and on a payment's life must be able to fail: each is told of a fault in a clean history."""

from dataclasses import replace
from typing import Any

import pytest

from tests.chaos import checker
from tests.chaos.checker import violations
from tests.chaos.histories import Bug, event, plus, request
from tests.chaos.history import CANCEL, CAPTURE, REFUND, Command, Event, History, Letter, Order
from tests.chaos.life_rules import (
    AUTHORIZED,
    CANCEL_FAILED,
    CANCELED,
    CAPTURE_FAILED,
    CAPTURED,
    REFUND_FAILED,
    REFUNDED,
    SUCCEEDED,
    untold,
)

ORDERS = {
    "paid": Order(1000, "usd"),
    "held": Order(900, "usd"),
    "open": Order(700, "usd"),
    "early": Order(600, "usd"),
}
COMMANDS = [
    Command(REFUND, "paid", "r-1", 300),
    Command(REFUND, "paid", "r-2", 300),
    Command(REFUND, "paid", "r-3", 500),
    Command(CANCEL, "paid", "c-1"),
    Command(CAPTURE, "held", "p-1", 500),
    Command(CAPTURE, "held", "p-2", 500),
    Command(CANCEL, "open", "c-2"),
    Command(CANCEL, "open", "c-3"),
    Command(CAPTURE, "open", "p-3"),
    Command(CANCEL, "early", "c-4"),
]


def told(
    order_id: str, type_: str, sequence: int, key: str = "", *, received: int = 0, refunded: int = 0, **data: Any
) -> Event:
    """An event of a payment's life."""
    order, amounts = ORDERS[order_id], {"amount_received_minor": received, "amount_refunded_minor": refunded}
    state = {"amount_minor": order.amount_minor, "currency": order.currency, "sequence": sequence, **amounts}
    return event(order_id, type_, event_id=f"{order_id}/{type_}/{key}", **state | data)


def outcome(order_id: str, status: str) -> Event:
    return told(order_id, checker.CREATED, 1, status=status)


def intent(order_id: str, status: str, **other: Any) -> dict[str, Any]:
    order = ORDERS[order_id]
    made = {"id": f"pi_{order_id}", "status": status, "amount": order.amount_minor, "currency": order.currency}
    return {**made, "metadata": {"order_id": order_id}, "amount_received": 0, **other}


def refund(name: str, number: int, **other: Any) -> dict[str, Any]:
    made = {"id": f"re_{number}", "payment_intent": "pi_paid", "amount": 300, "status": "succeeded"}
    return {**made, "metadata": {"order_id": "paid", "request_id": name}, **other}


def refunded(name: str, sequence: int, **other: Any) -> Event:
    number = sequence - 2
    said = {"refund_id": f"re_{number}", "request_id": name, "amount_minor": 300, "status": "succeeded"}
    amounts = {"received": 1000, "refunded": number * 300}
    return told("paid", REFUNDED, sequence, f"re_{number}", status="succeeded", refund=said | other, **amounts)


def failed(order_id: str, type_: str, sequence: int, name: str, code: str, **data: Any) -> Event:
    return told(order_id, type_, sequence, name, request_id=name, failure={"code": code}, **data)


def call(seq: int, order_id: str, end: str, **other: Any) -> dict[str, Any]:
    return request(seq, order_id, path=f"/v1/{end}", idempotency_key=f"key-{seq}", replayed=False, **other)


PAID = {"status": "succeeded", "received": 1000, "refunded": 600}
HELD = {"status": "succeeded", "received": 500}
OPEN = {"status": "canceled"}
HELD_FOR = {"order_id": "held", "capture_request_id": "p-1"}


def clean() -> History:
    """Two equal refunds and a third that was too much; a capture that was second; cancels: late, twice, too early."""
    return History(
        orders=ORDERS,
        commands=COMMANDS,
        events=[
            outcome("paid", "succeeded"),
            told("paid", SUCCEEDED, 2, status="succeeded", received=1000),
            refunded("r-1", 3),
            refunded("r-2", 4),
            failed("paid", REFUND_FAILED, 5, "r-3", "over_refund", **PAID),
            failed("paid", CANCEL_FAILED, 6, "c-1", "already_paid", **PAID),
            outcome("held", "requires_capture"),
            told("held", AUTHORIZED, 2, "ch_1", status="requires_capture"),
            told("held", SUCCEEDED, 3, **HELD),
            told("held", CAPTURED, 4, "p-1", request_id="p-1", captured_minor=500, **HELD),
            failed("held", CAPTURE_FAILED, 5, "p-2", "already_captured", **HELD),
            outcome("open", "requires_payment_method"),
            told("open", CANCELED, 2, **OPEN),
            failed("open", CAPTURE_FAILED, 3, "p-3", "canceled", **OPEN),
            told("early", CANCELED, 1, status="canceled", payment_id=None),
            refunded("r-1", 3),
        ],
        requests=[
            call(1, "paid", "refunds"),
            call(2, "paid", "refunds", status=None),
            call(3, "held", "payment_intents/pi_held/capture"),
            call(4, "held", "payment_intents/pi_held/capture", status=400),
            call(5, "open", "payment_intents/pi_open/cancel", status=500),
            call(6, "open", "payment_intents/pi_open/cancel"),
        ],
        intents=[
            intent("paid", "succeeded", amount_received=1000),
            intent("held", "succeeded", amount_received=500, capture_method="manual", metadata=HELD_FOR),
            intent("open", "canceled"),
        ],
        refunds=[refund("r-1", 1), refund("r-2", 2)],
        letters=[],
        faults_over=True,
    )


def without(history: History, event_id: str) -> History:
    kept = [each for each in history.events if f'"{event_id}"'.encode() not in each.body]
    assert len(kept) < len(history.events)
    return replace(history, events=kept)


def instead(history: History, event_id: str, other: Event) -> History:
    return plus(without(history, event_id), events=other)


def unasked(history: History, name: str) -> History:
    return replace(history, commands=[each for each in history.commands if each.name != name])


def with_intent(history: History, order_id: str, **other: Any) -> History:
    changed = [each | other if each["id"] == f"pi_{order_id}" else each for each in history.intents]
    return replace(history, intents=changed)


def test_a_clean_history_breaks_nothing() -> None:
    assert violations(clean()) == []


def test_while_faults_last_a_dead_letter_is_an_answer() -> None:
    history = without(clean(), "paid/payment.cancel_failed/c-1")
    history = plus(history, letters=Letter("paid", "retries_exhausted", command="c-1"))

    assert violations(replace(history, faults_over=False)) == []


def test_an_error_that_stripe_keeps_is_a_reason_for_another_key_whoever_was_told_of_it() -> None:
    path = "payment_intents/pi_open/cancel"
    lost, replayed = call(9, "open", path, status=None), call(10, "open", path, status=500) | {"replayed": True}
    another = call(11, "open", path)
    history = plus(plus(clean(), requests=lost), requests=replayed | {"idempotency_key": lost["idempotency_key"]})

    assert violations(plus(history, requests=another)) == []
    assert violations(plus(plus(clean(), requests=lost), requests=another)) == [
        "I13: open: 4 keys for /cancel, there is reason for 3"
    ]


def test_what_stripe_shows_and_nobody_has_told_is_what_a_run_waits_for() -> None:
    history = without(clean(), "held/payment.succeeded/")

    assert list(untold(history, checker.read(history.events)[0])) == [
        "held: pi_held is succeeded, and payment.succeeded was not told"
    ]


BUGS: dict[str, tuple[Bug, str]] = {
    "a command without an answer": (
        lambda clean: without(clean, "paid/payment.cancel_failed/c-1"),
        "I11: paid: order.cancelled c-1: no answer",
    ),
    "two answers": (
        lambda clean: plus(clean, events=failed("paid", REFUND_FAILED, 7, "r-1", "over_refund", **PAID)),
        "I11: paid: refund.requested r-1: several answers (paid/payment.refunded/re_1, paid/refund.failed/r-1)",
    ),
    "an answer and a dead letter": (
        lambda clean: plus(clean, letters=Letter("held", "bug", command="p-1")),
        "I11: held: payment.capture_requested p-1: several answers (held/payment.captured/p-1, a dead letter)",
    ),
    "a command dead after the faults": (
        lambda clean: plus(
            without(clean, "paid/payment.cancel_failed/c-1"), letters=Letter("paid", "bug", command="c-1")
        ),
        "I11: paid: order.cancelled c-1: a dead letter although the faults are over",
    ),
    "an answer to nobody": (
        lambda clean: unasked(clean, "r-3"),
        "I11: paid: paid/refund.failed/r-3 answers r-3, which nobody asked",
    ),
    "a refund that nobody asked for": (
        lambda clean: plus(clean, refunds=refund("r-9", 9, amount=1)),
        "I12: paid: refund re_9 was not asked for (r-9)",
    ),
    "a refund for a cancel that does not ask for one": (
        lambda clean: plus(clean, refunds=refund("c-1", 9, amount=1)),
        "I12: paid: refund re_9 was not asked for (c-1)",
    ),
    "a refund of another amount": (
        lambda clean: replace(clean, refunds=[refund("r-1", 1, amount=30), refund("r-2", 2)]),
        "I12: paid: refund re_1 is of 30, asked was 300",
    ),
    "a request refunded twice": (
        lambda clean: plus(clean, refunds=refund("r-1", 9)),
        "I12: paid: 2 refunds for r-1",
    ),
    "more refunded than paid": (
        lambda clean: with_intent(clean, "paid", amount_received=500),
        "I12: paid: 600 refunded of 500 paid",
    ),
    "a cancel that nobody asked for": (
        lambda clean: with_intent(clean, "held", status="canceled"),
        "I13: held: pi_held is canceled, which nobody asked",
    ),
    "a capture that nobody asked for": (
        lambda clean: with_intent(clean, "paid", capture_method="manual"),
        "I13: paid: pi_paid is captured, which nobody asked",
    ),
    "a call that nobody asked for": (
        lambda clean: plus(clean, requests=call(9, "early", "payment_intents/pi_early/capture", status=404)),
        "I13: early: POST /capture, which nobody asked",
    ),
    "a new key without a reason": (
        lambda clean: plus(clean, requests=call(9, "held", "payment_intents/pi_held/capture", status=400)),
        "I13: held: 3 keys for /capture, there is reason for 2",
    ),
    "a second capture": (
        lambda clean: plus(clean, requests=call(9, "held", "payment_intents/pi_held/capture")),
        "I13: held: captured 2 times",
    ),
    "told as paid, and it is not": (
        lambda clean: with_intent(clean, "paid", status="requires_payment_method", amount_received=0),
        "I14: paid: paid/payment.succeeded/ contradicts Stripe: it is requires_payment_method, 0 received",
    ),
    "told as canceled, and it is not": (
        lambda clean: with_intent(clean, "open", status="requires_payment_method"),
        "I14: open: open/payment.canceled/ contradicts Stripe: it is requires_payment_method",
    ),
    "canceled before its order, and asked of Stripe": (
        lambda clean: plus(clean, intents=intent("early", "canceled")),
        "I14: early: early/payment.canceled/ contradicts Stripe: canceled before its order, and there is pi_early",
    ),
    "told as authorized, and it is not": (
        lambda clean: plus(clean, events=told("paid", AUTHORIZED, 7, "ch_2", **PAID)),
        "I14: paid: paid/payment.authorized/ch_2 contradicts Stripe: nothing is authorized without being captured",
    ),
    "a capture over another amount": (
        lambda clean: with_intent(clean, "held", amount_received=900),
        "I14: held: held/payment.captured/p-1 contradicts Stripe: it is succeeded, 900 received",
    ),
    "a capture of more than was asked": (
        lambda clean: replace(
            clean, commands=[replace(each, amount_minor=400) if each.name == "p-1" else each for each in COMMANDS]
        ),
        "I14: held: held/payment.captured/p-1 contradicts Stripe: 500 received, asked was 400",
    ),
    "a capture told to who did not get it": (
        lambda clean: with_intent(clean, "held", metadata=HELD_FOR | {"capture_request_id": "p-2"}),
        "I14: held: held/payment.captured/p-1 contradicts Stripe: it was captured for p-2",
    ),
    "a loser that is not told why": (
        lambda clean: instead(
            clean,
            "held/payment.capture_failed/p-2",
            failed("held", CAPTURE_FAILED, 5, "p-2", "payment_intent_unexpected_state", **HELD),
        ),
        "I14: held: held/payment.capture_failed/p-2 contradicts Stripe: "
        "payment_intent_unexpected_state, and it is succeeded",
    ),
    "a capture refused for no reason": (
        lambda clean: with_intent(clean, "open", status="requires_capture", capture_method="manual"),
        "I14: open: open/payment.capture_failed/p-3 contradicts Stripe: canceled, and it is requires_capture",
    ),
    "a cancel refused, and it is canceled": (
        lambda clean: with_intent(clean, "paid", status="canceled"),
        "I14: paid: paid/payment.cancel_failed/c-1 contradicts Stripe: already_paid, and it is canceled",
    ),
    "a refund refused though there is enough": (
        lambda clean: replace(clean, refunds=[refund("r-1", 1)]),
        "I14: paid: paid/refund.failed/r-3 contradicts Stripe: over_refund, and 700 are left",
    ),
    "a refund told that is not there": (
        lambda clean: replace(clean, refunds=[refund("r-1", 1)]),
        "I14: paid: paid/payment.refunded/re_2 contradicts Stripe: there is no refund re_2 of it",
    ),
    "a refund told over another amount": (
        lambda clean: instead(clean, "paid/payment.refunded/re_2", refunded("r-2", 4, amount_minor=3)),
        "I14: paid: paid/payment.refunded/re_2 contradicts Stripe: "
        "told (3, 'succeeded', 'r-2'), it is (300, 'succeeded', 'r-2')",
    ),
    "an attempt that never was": (
        lambda clean: plus(clean, events=told("open", "payment.attempt_failed", 4, "x", **OPEN)),
        "I14: open: open/payment.attempt_failed/x contradicts Stripe: no attempt has failed",
    ),
    "a dispute that never was": (
        lambda clean: plus(clean, events=told("paid", "payment.dispute_opened", 7, "x", **PAID)),
        "I14: paid: paid/payment.dispute_opened/x contradicts Stripe: nothing of the kind has happened",
    ),
    "an amount that goes back": (
        lambda clean: plus(clean, events=told("paid", "payment.settled", 7, "x", **PAID | {"refunded": 300})),
        "I14: paid: paid/payment.settled/x tells (1000, 300) received and refunded, (1000, 600) was told before",
    ),
    "a last word that is not how it stands": (
        lambda clean: plus(clean, events=told("open", "payment.settled", 4, "x", status="processing")),
        "I14: open: last told is status processing, at Stripe it is canceled",
    ),
    "paid and never told": (
        lambda clean: without(clean, "held/payment.succeeded/"),
        "I15: held: pi_held is succeeded, and payment.succeeded was not told",
    ),
    "a refund never told": (
        lambda clean: without(clean, "paid/payment.refunded/re_2"),
        "I15: paid: refund re_2 was not told",
    ),
    "a sequence twice": (
        lambda clean: plus(clean, events=told("open", "payment.settled", 3, "x", **OPEN)),
        "I16: open: the same sequence for two events (1, 2, 3, 3)",
    ),
    "a sequence left out": (
        lambda clean: plus(clean, events=told("open", "payment.settled", 5, "x", **OPEN)),
        "I16: open: a sequence is left out (1, 2, 3, 5)",
    ),
    "canceled twice": (
        lambda clean: plus(clean, events=told("open", CANCELED, 4, "x", **OPEN)),
        "I16: open: payment.canceled under 2 event ids",
    ),
    "an early cancel and an outcome": (
        lambda clean: plus(clean, events=outcome("early", "requires_payment_method")),
        "I3: early: the event tells pi_early, Stripe has none",
    ),
    "canceled before its order, and nobody asked": (
        lambda clean: unasked(clean, "c-4"),
        "I3: early: told as payment.canceled, the order was one to be created",
    ),
}


@pytest.mark.parametrize(("plant", "told"), BUGS.values(), ids=BUGS.keys())
def test_a_planted_bug_is_told(plant: Bug, told: str) -> None:
    assert told in violations(plant(clean()))
