"""A payment's life in the ledger: one state and one set of events whatever the order, and nothing half done."""

import asyncio
import random
from collections import Counter
from typing import Any

import pytest

from tests.ledger.conftest import OpenLedger
from tests.ledger.steps import NOW, decide, later, rows
from tests.stripe_story import Story
from worker.ledger import inbox, lives
from worker.ledger.ledger import Ledger
from worker.ledger.schema import EVENTS, LIVES, PAYMENTS, REFUNDS, STRIPE_EVENTS
from worker.payment import PaymentState
from worker.stripe_event import InboxState, read_stripe_event

SOURCE = "payment-worker"


async def decided(ledger: Ledger, order_id: str, payment_id: str) -> None:
    """A payment whose intent is made, its event aside."""

    def put_in(conn: Any) -> None:
        conn.execute(
            PAYMENTS.insert().values(
                order_id=order_id,
                state=PaymentState.INTENT_CREATED,
                amount_minor=1250,
                currency="usd",
                payment_id=payment_id,
                status="requires_payment_method",
                livemode=False,
                sequence=1,
                opened_at=NOW,
                moved_at=NOW,
            )
        )

    await ledger.run(put_in)


async def bring(ledger: Ledger, event: dict[str, Any], order_id: str) -> list[str]:
    """As the receiver and the applier do; the ids of what is newly told."""
    read = read_stripe_event(event)
    await ledger.run_grouped(inbox.receive, inbox.Receipt(read, None, NOW))
    told = await ledger.run(lives.apply_event, read, order_id, settlement=None, source=SOURCE, now=later(1))
    return [each.event_id for each in told]


def story_of(order_id: str, dice: random.Random) -> Story:
    story = Story(order_id=order_id, payment_id=f"pi_{order_id}")
    for _ in range(dice.randrange(3)):
        dice.choice([story.declined, story.asked_for_action, story.processing])()
        story.later(dice.randrange(3))
    story.paid()
    for number in range(dice.randrange(3)):
        story.later(dice.randrange(2))
        refund = story.refunded(f"re_{order_id}_{number}", 100)
        if dice.random() < 0.5:
            story.tell("refund.failed", refund | {"status": "failed", "failure_reason": "unknown"})
    return story


async def what_is_kept(ledger: Ledger) -> list[list[dict[str, Any]]]:
    """All of the payments, and what was told of them."""
    return [await rows(ledger, table) for table in (PAYMENTS, LIVES, REFUNDS, EVENTS)]


async def test_in_any_order_with_duplicates_the_ledger_comes_to_the_same(open_ledger: OpenLedger) -> None:
    ledger, dice = open_ledger(), random.Random(3)
    for number in range(25):
        story = story_of(f"a-{number}", random.Random(number))
        mixed = story_of(f"b-{number}", random.Random(number))
        for each in (story, mixed):
            await decided(ledger, each.order_id, each.payment_id)
        for event in story.events:
            await bring(ledger, event, story.order_id)
        events = [*mixed.events, *dice.choices(mixed.events, k=3)]
        events += [event | {"id": event["id"] + "_again"} for event in dice.choices(mixed.events, k=2)]
        dice.shuffle(events)
        for event in events:
            await bring(ledger, event, mixed.order_id)
    kept = [row["event_id"] for row in await rows(ledger, EVENTS)]
    facts = [event_id.rpartition("/")[0] if "requires_action" in event_id else event_id for event_id in kept]
    assert Counter(each.replace("a-", "b-") for each in facts if each.startswith("a-")) == Counter(
        each for each in facts if each.startswith("b-")
    ), "but for digests of what has no name"
    payments = {row["order_id"]: row for row in await rows(ledger, PAYMENTS)}
    for number in range(25):
        one, other = payments[f"a-{number}"], payments[f"b-{number}"]
        assert (one["status"], one["sequence"]) == (other["status"], other["sequence"])
        lives_of = [await ledger.run(lives.read_life, f"{prefix}-{number}") for prefix in ("a", "b")]
        sums = [(life.received_minor, life.refunded_minor, life.capturable_minor) for life in lives_of if life]
        assert sums[0] == sums[1]
    assert {row["state"] for row in await rows(ledger, STRIPE_EVENTS)} == {InboxState.APPLIED}


async def test_of_many_that_apply_at_once_each_fact_is_told_once(open_ledger: OpenLedger) -> None:
    ledgers = [open_ledger() for _ in range(4)]
    story = story_of("o-1", random.Random(5))
    await decided(ledgers[0], "o-1", story.payment_id)
    work = [(ledger, event) for event in story.events for ledger in ledgers]
    random.Random(6).shuffle(work)
    told = await asyncio.gather(*(bring(ledger, event, "o-1") for ledger, event in work))
    ids = [event_id for each in told for event_id in each]
    kept = await rows(ledgers[0], EVENTS)
    assert sorted(ids) == sorted(row["event_id"] for row in kept)
    assert sorted(row["sequence"] for row in kept) == list(range(2, 2 + len(ids)))


async def test_an_event_that_is_done_with_is_not_applied_again(open_ledger: OpenLedger) -> None:
    ledger, story = open_ledger(), Story()
    story.paid()
    await decided(ledger, "o-1", "pi_1")
    assert await bring(ledger, story.events[-1], "o-1") == ["o-1/payment/succeeded"]
    before = await what_is_kept(ledger)
    assert await bring(ledger, story.events[-1], "o-1") == []
    assert await what_is_kept(ledger) == before


async def test_what_fails_late_leaves_neither_effect_nor_end(
    open_ledger: OpenLedger, monkeypatch: pytest.MonkeyPatch
) -> None:
    ledger, story = open_ledger(), Story()
    story.paid()
    await decided(ledger, "o-1", "pi_1")
    before = await what_is_kept(ledger)

    def fail(*_: Any, **__: Any) -> None:
        raise ValueError("cut off")

    monkeypatch.setattr(inbox, "settle", fail)
    with pytest.raises(ValueError, match="cut off"):
        await bring(ledger, story.events[-1], "o-1")
    assert await what_is_kept(ledger) == before
    assert [row["state"] for row in await rows(ledger, STRIPE_EVENTS)] == [InboxState.RECEIVED]


async def test_a_payment_is_found_by_its_intent_and_else_by_its_order(open_ledger: OpenLedger) -> None:
    ledger = open_ledger()
    await decided(ledger, "o-1", "pi_1")
    for order_id, payment_id, found in (
        (None, "pi_1", "o-1"),
        ("o-1", None, "o-1"),
        ("o-1", "pi_2", "o-1"),
        ("o-2", "pi_1", "o-1"),
        (None, "pi_2", None),
        ("o-2", "pi_2", None),
    ):
        payment = await ledger.run(lives.find_payment, order_id=order_id, payment_id=payment_id)
        assert (payment.order_id if payment else None) == found


async def test_an_authorization_that_ends_soon_is_told_once(open_ledger: OpenLedger) -> None:
    ledger, story = open_ledger(), Story()
    story.authorized()
    await decided(ledger, "o-1", "pi_1")
    for event in story.events:
        await bring(ledger, event, "o-1")
    day = 86_400
    assert await ledger.run(lives.expiring, until=later(6 * day), limit=10) == []
    assert await ledger.run(lives.expiring, until=later(8 * day), limit=10) == ["o-1"]
    [told] = await ledger.run(lives.tell_expiring, "o-1", source=SOURCE, now=later(6.5 * day))
    assert (told.type, told.event_id) == ("payment.authorization_expiring", "o-1/payment/authorization_expiring")
    assert await ledger.run(lives.expiring, until=later(8 * day), limit=10) == []
    assert await ledger.run(lives.tell_expiring, "o-1", source=SOURCE, now=later(6.5 * day)) == []


async def test_a_clock_of_ours_that_is_ahead_hides_nothing_that_stripe_tells(open_ledger: OpenLedger) -> None:
    ledger, story = open_ledger(), Story(payment_id="pi_o-1", amount=9999)
    await decide(ledger, "o-1", now=later(60))
    story.later(1)
    story.asked_for_action()
    story.later(1)
    story.processing()
    for event, status in zip(story.events, ("requires_payment_method", "requires_action", "processing"), strict=True):
        await bring(ledger, event, "o-1")
        life = await ledger.run(lives.read_life, "o-1")
        assert life
        assert life.payment.status == status
