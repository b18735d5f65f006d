"""Hard cases of a payment's life, one by one; what holds for all of them is in tests/properties."""

from collections.abc import Sequence
from datetime import timedelta
from itertools import permutations
from typing import Any

import pytest

from tests.stripe_story import BEGAN, Story
from worker.payment import Payment, PaymentState
from worker.payment_life import Life, Settlement, Telling, apply, event_of_telling, state_of
from worker.stripe_event import StripeEvent, read_stripe_event, shown_intent

OPENED, CLOSED = "payment.dispute_opened", "payment.dispute_closed"


def new_life(currency: str = "usd", status: str = "requires_payment_method") -> Life:
    return Life(Payment("o-1", PaymentState.INTENT_CREATED, 1250, currency, None, None, "pi_1", status, False, 1))


def live(events: Sequence[dict[str, Any]], life: Life | None = None) -> tuple[Life, list[Telling]]:
    return follow([read_stripe_event(event) for event in events], life)


def follow(events: Sequence[StripeEvent], life: Life | None = None) -> tuple[Life, list[Telling]]:
    life, told = life or new_life(), []
    for event in events:
        life, tellings = apply(life, event)
        told += tellings
    return life, told


def facts(told: Sequence[Telling]) -> set[tuple[str, str]]:
    return {(each.type, each.key) for each in told}


def disputes(*steps: tuple[str, str], **changed: Any) -> Story:
    """A paid payment, and a dispute that is told so: (kind of event, status)."""
    story = Story()
    story.paid()
    dispute = story.disputed() | changed
    story.events.pop()
    for kind, status in steps:
        story.later(60)
        story.tell(f"charge.dispute.{kind}", dispute | {"status": status})
    return story


@pytest.mark.parametrize(
    ("steps", "disputed", "told"),
    [
        ([("created", "needs_response"), ("closed", "won")], 0, {(OPENED, "dp_1"), (CLOSED, "dp_1/won")}),
        ([("created", "needs_response"), ("closed", "lost")], 1250, {(OPENED, "dp_1"), (CLOSED, "dp_1/lost")}),
        (
            [("created", "warning_needs_response"), ("closed", "warning_closed")],
            0,
            {(OPENED, "dp_1/inquiry"), (CLOSED, "dp_1/warning_closed")},
        ),
        (
            [("created", "warning_needs_response"), ("updated", "warning_under_review"), ("updated", "needs_response")],
            1250,
            {(OPENED, "dp_1/inquiry"), (OPENED, "dp_1")},
        ),
        (
            [("created", "needs_response"), ("closed", "won"), ("updated", "appeal_under_review")],
            1250,
            {(OPENED, "dp_1"), (CLOSED, "dp_1/won"), (OPENED, "dp_1/appeal")},
        ),
        (
            [("created", "needs_response"), ("closed", "lost"), ("closed", "won")],
            0,
            {(OPENED, "dp_1"), (CLOSED, "dp_1/lost"), (CLOSED, "dp_1/won")},
        ),
        ([("created", "prevented")], 0, {(OPENED, "dp_1")}),
    ],
    ids=["won", "lost", "inquiry", "inquiry becomes a dispute", "won and appealed", "lost and won", "prevented"],
)
def test_each_turn_of_a_dispute_is_told_and_counted_in_any_order(
    steps: list[tuple[str, str]], disputed: int, told: set[tuple[str, str]]
) -> None:
    for events in permutations(disputes(*steps).events[-len(steps) :]):
        life, tellings = live(events)
        assert (life.disputed_minor, facts(tellings)) == (disputed, told)


def test_an_end_counts_more_than_what_else_is_of_its_second() -> None:
    story = disputes(("created", "needs_response"))
    for kind, status in (("closed", "won"), ("updated", "under_review")):
        story.tell(f"charge.dispute.{kind}", story.events[-1]["data"]["object"] | {"status": status})
    for events in permutations(story.events[-3:]):
        assert live(events)[0].disputed_minor == 0


def test_a_dispute_is_of_the_amount_that_was_told_last() -> None:
    story = disputes(("created", "needs_response"))
    story.later(60)
    dispute = story.events[-1]["data"]["object"]
    story.tell("charge.dispute.updated", dispute | {"amount": 500})
    for events in permutations(story.events[-2:]):
        assert live(events)[0].disputed_minor == 500


def test_a_dispute_in_another_currency_counts_as_all_that_came_in() -> None:
    story = disputes(("created", "needs_response"), amount=187_500, currency="jpy")
    life, told = live(story.events)
    assert life.disputed_minor == 1250
    assert (told[-1].data["dispute"]["amount"], told[-1].data["dispute"]["currency"]) == ("187500", "jpy")


@pytest.mark.parametrize("late", ["payment_intent.amount_capturable_updated", "payment_intent.succeeded"])
def test_a_part_that_was_captured_is_all_that_came_in_and_nothing_is_held_any_more(late: str) -> None:
    story = Story()
    story.authorized()
    story.paid(500)
    events = sorted(story.events, key=lambda event: event["type"] == late)
    life, _ = live(events)
    assert (life.payment.status, life.received_minor, life.capturable_minor) == ("succeeded", 500, 0)


def test_what_was_held_and_released_is_not_held_any_more() -> None:
    story = Story()
    story.authorized()
    story.canceled("expired")
    for events in (story.events, story.events[::-1]):
        life, _ = live(events)
        assert (life.payment.status, life.received_minor, life.capturable_minor) == ("canceled", 0, 0)


def test_a_refund_that_fails_after_weeks_is_money_that_came_back() -> None:
    story = Story()
    story.paid()
    refund = story.refunded("re_1", 1250)
    story.later(30 * 86_400)
    story.tell("refund.failed", refund | {"status": "failed", "failure_reason": "lost_or_stolen_card"})
    for events in (story.events, [*story.events[:-2], *story.events[:-3:-1]]):
        life, told = live(events)
        assert (life.refunded_minor, life.received_minor) == (0, 1250)
        assert {("payment.refunded", "re_1"), ("payment.refund_failed", "re_1")} <= facts(told)


@pytest.mark.parametrize("ahead_s", [0, 60, -60])
def test_whatever_our_own_clock_says_the_first_that_stripe_tells_is_newer_than_our_own_answer(ahead_s: int) -> None:
    """What was answered to us has no time of Stripe's; what it shows when it is asked has."""
    story = Story(now=BEGAN + timedelta(seconds=ahead_s))
    story.authorized()
    held, _ = follow([shown_intent(story.intent, now=story.now)], new_life(status="requires_capture"))
    failed, _ = live([_of(story, "requires_payment_method")], new_life(status="requires_action"))
    assert held.capturable_minor == 1250
    assert failed.payment.status == "requires_payment_method"


def _of(story: Story, status: str) -> dict[str, Any]:
    story.change("payment_intent.payment_failed", status)
    return story.events[-1]


@pytest.mark.parametrize(
    ("currency", "told"),
    [("jpy", "1250"), ("isk", "12"), ("ugx", "12"), ("kwd", "1.250"), ("usd", "12.50")],
)
def test_amounts_are_told_as_stripe_counts_their_currency(currency: str, told: str) -> None:
    minor = 1200 if currency in ("isk", "ugx") else 1250
    story = Story(amount=minor, currency=currency)
    story.paid()
    story.refunded("re_1", minor)
    life, tellings = live(story.events, new_life(currency))
    _, event = event_of_telling(life, tellings[-1], cause=None, source="payment-worker")
    state = state_of(life)
    assert (state["amount_received"], state["amount_refunded"], state["amount_refunded_minor"]) == (told, told, minor)
    assert f'"amount":"{told}"' in event.body


def test_fee_and_net_are_told_in_the_currency_of_the_account() -> None:
    story = Story(currency="jpy")
    charge = read_stripe_event(story.events[0] | {"type": "charge.updated", "data": {"object": story.charge("ch_1")}})
    _, [told] = apply(new_life("jpy"), charge, settlement=Settlement("txn_1", 320, -10, "kwd"))
    assert (told.data["fee"], told.data["net"], told.data["settlement_currency"]) == ("0.320", "-0.010", "kwd")
