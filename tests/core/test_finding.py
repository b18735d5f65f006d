"""Differences between ledger and Stripe as people read them, in the money's own units."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from tests.stripe_story import BEGAN, Story
from worker.finding import differences_of_object, differences_of_payment, told_money
from worker.payment import Payment, PaymentState
from worker.payment_life import Dispute, Life, Refund, apply
from worker.stripe_event import (
    DISPUTES_ENDED,
    StripeEvent,
    read_stripe_event,
    shown_dispute,
    shown_object,
    shown_payment,
)

PAYMENT = Payment("o-1", PaymentState.INTENT_CREATED, 1250, "usd", None, None, "pi_1", "requires_action", False, 1)
LATER = BEGAN + timedelta(hours=1)


def shown_refund(status: str, amount: int = 500) -> StripeEvent:
    refund = Story().refunded("re_1", amount, status)
    [event] = shown_object("refund", refund, now=LATER)
    return event


def test_what_has_moved_is_told_in_major_units_with_its_currency() -> None:
    story = Story()
    story.paid()
    intent = story.intent | {"created": int(BEGAN.timestamp()), "latest_charge": {"id": "ch_1", "amount_refunded": 500}}

    told = differences_of_payment(Life(PAYMENT), shown_payment(intent, now=LATER), [shown_refund("succeeded")])

    assert told == {
        "status": "status is succeeded at Stripe, requires_action here",
        "received": "received is 12.50 USD at Stripe, 0.00 USD here",
        "refunded": "refunded is 5.00 USD at Stripe, 0.00 USD here",
        "refund re_1": "refund re_1 is succeeded at Stripe, not known here",
    }


def test_a_refund_differs_by_its_status_and_its_amount() -> None:
    known = Refund("re_1", 500, "succeeded", BEGAN)
    assert differences_of_object(known, shown_refund("succeeded"), "usd") == {}
    assert list(differences_of_object(None, shown_refund("failed"), "usd").values()) == [
        "re_1 is failed at Stripe, not known here"
    ]
    assert list(differences_of_object(known, shown_refund("failed", 501), "usd").values()) == [
        "re_1 is failed at Stripe, succeeded here",
        "its amount is 5.01 USD at Stripe, 5.00 USD here",
    ]


def test_money_whose_exponent_is_not_known_is_told_in_minor_units() -> None:
    assert told_money(500, "jpy") == "500 JPY"
    assert told_money(500, "xyz") == "500 minor units of xyz"
    assert told_money(0, "") == "0 minor units of no currency"


@pytest.mark.parametrize("status", ["needs_response", "under_review", *sorted(DISPUTES_ENDED)])
def test_a_dispute_that_is_shown_tells_what_its_own_events_would_have_told(status: str) -> None:
    """Its opening at the time of that, its end where it has one; and the late events themselves tell nothing more."""
    story = Story()
    story.paid()
    began_as = "warning_needs_response" if status == "warning_closed" else "needs_response"  # so ends an inquiry
    dispute = story.disputed(status=began_as) | {"status": status}
    kind = "closed" if status in DISPUTES_ENDED else "updated"
    story.later(60)
    story.tell(f"charge.dispute.{kind}", dispute)
    life, told, ids = Life(PAYMENT), [], []
    for event in shown_dispute(dispute, now=LATER):
        life, tellings = apply(life, event)
        told += tellings
    shown = life
    for late in map(read_stripe_event, story.events[-2:]):
        life, tellings = apply(life, late)
        ids += [(each.type, each.key) for each in tellings]

    assert life == shown
    assert life.disputes["dp_1"] == replace(shown.disputes["dp_1"], status=status)
    assert [(each.type, each.key) for each in told] == ids
    assert told[0].at == datetime.fromtimestamp(dispute["created"], UTC)


def test_whether_evidence_is_asked_for() -> None:
    dispute = Dispute("du_1", 1250, "usd", "needs_response", BEGAN)
    asked = {"needs_response", "warning_needs_response", "appeal_needs_response"}
    others = {"under_review", "warning_under_review", "appeal_under_review", *DISPUTES_ENDED}
    assert {status for status in asked | others if replace(dispute, status=status).needs_response} == asked
