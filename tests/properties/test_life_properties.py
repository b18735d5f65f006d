"""Stripe's events in any order, some twice and some under two ids: one final state, one set of what is told."""

from collections.abc import Sequence
from dataclasses import replace
from datetime import timedelta
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from tests.properties.strategies import tries
from tests.stripe_story import Story
from worker.payment import Payment, PaymentState
from worker.payment_life import Life, apply
from worker.stripe_event import StripeEvent, read_stripe_event, shown_intent, shown_refund


@st.composite
def stories(draw: st.DrawFn) -> Story:
    """A whole life: tries that fail, an authorization, a payment or a cancel, refunds, a dispute."""
    story = Story()

    def pause() -> None:
        story.later(draw(st.integers(0, 3)))  # several within one second, as it happens

    for _ in range(draw(st.integers(0, 3))):
        pause()
        draw(st.sampled_from([story.declined, story.asked_for_action, story.processing]))()
    pause()
    if draw(st.booleans()):
        story.authorized()
        pause()
    if draw(st.integers(0, 3)) == 0:
        story.canceled()
        return story
    received = draw(st.integers(1, story.amount))
    story.paid(received)
    _refunds(draw, story, received)
    if draw(st.booleans()):
        pause()
        dispute = story.disputed()
        for kind, status in (("updated", "under_review"), ("closed", draw(st.sampled_from(["won", "lost"])))):
            pause()
            dispute |= {"status": status}
            story.tell(f"charge.dispute.{kind}", dispute)
    return story


def _refunds(draw: st.DrawFn, story: Story, left: int) -> None:
    for number in range(draw(st.integers(0, 3))):
        story.later(draw(st.integers(0, 3)))
        amount = draw(st.integers(1, max(1, left)))
        if amount > left:
            break
        left -= amount
        refund = story.refunded(f"re_{number}", amount, draw(st.sampled_from(["succeeded", "pending"])))
        if refund["status"] == "pending":
            story.later(draw(st.integers(0, 3)))
            refund |= {"status": "succeeded"}
            story.tell("refund.updated", refund)
        if draw(st.booleans()):
            story.later(draw(st.integers(0, 3)))
            refund |= {"status": "failed", "failure_reason": "lost_or_stolen_card"}
            story.tell("refund.failed", refund)
            left += amount


@st.composite
def shuffled(draw: st.DrawFn) -> tuple[Story, list[dict[str, Any]]]:
    story = draw(stories())
    again = draw(st.lists(st.sampled_from(story.events), max_size=4))
    other_ids = [event | {"id": event["id"] + "_again"} for event in draw(st.lists(st.sampled_from(story.events)))]
    return story, draw(st.permutations([*story.events, *again, *other_ids[:4]]))


@st.composite
def looked_at(draw: st.DrawFn) -> tuple[Story, list[StripeEvent]]:
    """Events in any order, and Stripe asked at some moment after all of it has happened."""
    story, events = draw(shuffled())
    told = [read_stripe_event(event) for event in events]
    refunds = {
        event["data"]["object"]["id"]: event["data"]["object"] for event in story.events if "refund" in event["type"]
    }
    now = story.now + timedelta(seconds=draw(st.integers(0, 100)))
    shown = [shown_intent(story.intent, now=now), *(shown_refund(refund, now=now) for refund in refunds.values())]
    place = draw(st.integers(0, len(told)))
    return story, [*told[:place], *shown, *told[place:]]


def live(events: Sequence[dict[str, Any]]) -> tuple[Life, set[tuple[str, str]]]:
    return follow([read_stripe_event(event) for event in events])


def follow(events: Sequence[StripeEvent]) -> tuple[Life, set[tuple[str, str]]]:
    payment = Payment(
        "o-1", PaymentState.INTENT_CREATED, 1250, "usd", None, None, "pi_1", "requires_payment_method", False, 1
    )
    life, told = Life(payment), set()
    for event in events:
        life, tellings = apply(life, event)
        told |= {(telling.type, telling.key) for telling in tellings}
    return life, told


@tries(400)
@given(shuffled())
def test_the_state_in_the_end_and_the_set_of_what_is_told_are_the_same_in_any_order(
    mixed: tuple[Story, list[dict[str, Any]]],
) -> None:
    story, events = mixed
    life, told = live(story.events)
    assert live(events) == (life, told)


@tries(300)
@given(looked_at())
def test_whoever_asks_stripe_meanwhile_learns_the_same_and_tells_the_same(
    mixed: tuple[Story, list[StripeEvent]],
) -> None:
    """So that what was missed is told under the ids that it would have had, and never a second time."""
    story, events = mixed
    life, told = live(story.events)
    after, told_after = follow(events)
    assert replace(after, status_at=None) == replace(life, status_at=None)
    assert told_after == told


@tries(200)
@given(stories())
def test_the_state_in_the_end_is_stripes(story: Story) -> None:
    life, told = live(story.events)
    if story.intent["status"] in ("succeeded", "canceled"):
        assert life.payment.status == story.intent["status"]
        assert ("payment.succeeded", "") in told or ("payment.canceled", "") in told
    assert life.received_minor == story.intent["amount_received"]
    assert life.refunded_minor <= life.received_minor
    assert life.capturable_minor == story.intent["amount_capturable"]


@tries(200)
@given(shuffled())
def test_nothing_in_what_is_kept_is_a_secret(mixed: tuple[Story, list[dict[str, Any]]]) -> None:
    assert "_secret_" not in repr([read_stripe_event(event) for event in mixed[1]])
