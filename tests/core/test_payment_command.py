"""What is asked of a payment, and what Stripe's no to it comes to."""

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

import pytest

from worker.errors import Refusal
from worker.payment import Operation, Payment, PaymentState
from worker.payment_command import (
    AlreadySo,
    CommandKind,
    Reconsider,
    Refused,
    Request,
    ToAsk,
    after_refusal,
    decide,
    refundable_minor,
)
from worker.payment_life import Life, Refund
from worker.stripe_event import CAPTURED_FOR, StripeEvent, shown_intent, shown_refund

NOW = datetime(2026, 1, 31, 12, tzinfo=UTC)
LATE = Refusal(400, "payment_intent_unexpected_state", None, None, "it has a status of succeeded")


def request(kind: CommandKind, **asked: Any) -> Request:
    return Request("o-1", "r-1", kind, {"amount": None, "currency": None, **asked}, None, None, None)


def call(**params: Any) -> Operation:
    return Operation("o-1", "any", 1, "key", params, None, NOW)


def shown(status: str, *refunded_for: str, captured_for: str | None = None) -> Sequence[StripeEvent]:
    intent = {"id": "pi_1", "status": status, "metadata": {CAPTURED_FOR: captured_for} if captured_for else {}}
    refunds = [{"id": f"re_{name}", "status": "succeeded", "metadata": {"request_id": name}} for name in refunded_for]
    return [shown_intent(intent, now=NOW), *(shown_refund(refund, now=NOW) for refund in refunds)]


def code_of(outcome: Any) -> str | None:
    return outcome.code if isinstance(outcome, Refused) else None


@pytest.mark.parametrize(
    ("status", "captured_for", "outcome"),
    [
        ("succeeded", "r-1", None),
        ("succeeded", "r-2", "already_captured"),
        ("succeeded", None, "already_captured"),
        ("canceled", None, "canceled"),
        ("requires_capture", None, "payment_intent_unexpected_state"),
    ],
)
def test_who_lost_a_capture_is_told_why_by_the_payment_as_it_stands(
    status: str, captured_for: str | None, outcome: str | None
) -> None:
    seen = shown(status, captured_for=captured_for)
    told = after_refusal(request(CommandKind.CAPTURE), call(amount_to_capture=5), LATE, seen)
    assert code_of(told) == outcome
    assert isinstance(told, AlreadySo) is (outcome is None)


def test_a_cancel_that_came_too_late_gives_back_where_it_says_so() -> None:
    cancel, generous = request(CommandKind.CANCEL), request(CommandKind.CANCEL, refund_if_paid=True)
    assert code_of(after_refusal(cancel, call(), LATE, shown("succeeded"))) == "already_paid"
    assert isinstance(after_refusal(generous, call(), LATE, shown("succeeded")), Reconsider)
    assert isinstance(after_refusal(cancel, call(), LATE, shown("canceled")), AlreadySo)


def test_a_refund_that_stripe_refuses_to_a_cancel_is_the_end_of_it() -> None:
    disputed = Refusal(400, "charge_disputed", None, None, "it was charged back")
    outcome = after_refusal(
        request(CommandKind.CANCEL, refund_if_paid=True), call(payment_intent="pi_1"), disputed, shown("succeeded")
    )
    assert outcome == Refused("charge_disputed", "it was charged back")


def test_a_refund_that_is_there_was_made_whatever_stripe_says_of_it() -> None:
    refused = Refusal(400, "charge_already_refunded", None, None, "no")
    asked = request(CommandKind.REFUND)
    assert isinstance(after_refusal(asked, call(payment_intent="pi_1"), refused, shown("succeeded", "r-1")), AlreadySo)
    assert (
        code_of(after_refusal(asked, call(payment_intent="pi_1"), refused, shown("succeeded", "r-2"))) == refused.code
    )


def life(currency: str = "usd", status: str = "succeeded", **fields: Any) -> Life:
    payment = Payment("o-1", PaymentState.INTENT_CREATED, 12_500, currency, None, None, "pi_1", status, False, 1)
    return Life(payment, **fields)


@pytest.mark.parametrize(
    ("currency", "amount", "minor"),
    [("jpy", "125", 125), ("isk", "125", 12_500), ("kwd", "1.250", 1250), ("usd", "12.5", 1250), ("jpy", "1.5", None)],
)
def test_amounts_are_counted_as_stripe_counts_the_payments_currency(
    currency: str, amount: str, minor: int | None
) -> None:
    paid = life(currency, received_minor=12_500)
    held = life(currency, status="requires_capture", capturable_minor=12_500)
    refund = decide(request(CommandKind.REFUND, amount=amount), paid)
    capture = decide(request(CommandKind.CAPTURE, amount=amount), held)
    if minor is None:
        assert (code_of(refund), code_of(capture)) == ("wrong_amount", "wrong_amount")
        return
    assert isinstance(refund, ToAsk)
    assert isinstance(capture, ToAsk)
    assert (refund.params["amount"], capture.params["amount_to_capture"]) == (minor, minor)


def test_a_refund_that_failed_can_be_given_back_again() -> None:
    refunds = {
        name: Refund(name, 4000, status, NOW) for name, status in (("a", "failed"), ("b", "canceled"), ("c", "pending"))
    }
    assert refundable_minor(life(received_minor=10_000, refunds=refunds), promised_minor=1000) == 5000
