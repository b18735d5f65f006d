"""Requests in the ledger: one end each, by what Stripe shows, however many deliveries work on one side by side."""

import asyncio
import json
import time
from collections.abc import Sequence
from datetime import datetime
from typing import Any

import pytest
from sqlalchemy.engine import Connection

from tests.ledger.conftest import OpenLedger
from tests.ledger.steps import HORIZON_S, NOW, call_arguments, later, open_payment, rows
from tests.ledger.test_lives import SOURCE, bring, decided
from tests.ledger.test_order_moves import opening
from tests.stripe_story import Story
from worker.errors import StaleMove
from worker.ledger import moves, requests
from worker.ledger.ledger import Ledger
from worker.ledger.order_moves import Opened, Opening, open_orders
from worker.ledger.schema import OPERATIONS, PAYMENTS
from worker.payment import Operation, PaymentEvent
from worker.payment_command import AlreadySo, CommandKind, Refused, Request, RequestState
from worker.stripe_event import CAPTURED_FOR, StripeEvent, shown_intent, shown_refund


def request(kind: CommandKind, request_id: str, amount: str | None = None) -> Request:
    asked: dict[str, Any] = {"amount": amount, "currency": None}
    if kind is CommandKind.CANCEL:
        asked = {"reason": None, "refund_if_paid": False}
    return Request("o-1", request_id, kind, asked, "m-1", None, None)


def intent(status: str, received: int = 0, **metadata: str) -> StripeEvent:
    shown: dict[str, Any] = {"id": "pi_1", "object": "payment_intent", "status": status, "amount": 1250}
    held = 1250 - received if status == "requires_capture" else 0
    return shown_intent(shown | {"amount_capturable": held, "amount_received": received, "metadata": metadata}, now=NOW)


def refund(request_id: str, amount: int, status: str = "succeeded") -> StripeEvent:
    shown = {"id": f"re_{request_id}", "object": "refund", "status": status, "amount": amount, "currency": "usd"}
    return shown_refund(shown | {"payment_intent": "pi_1", "metadata": {"request_id": request_id}}, now=NOW)


PAID = intent("succeeded", 1250)
HELD = intent("requires_capture")


async def begin(
    ledger: Ledger, asked: Request, *seen: StripeEvent, now: datetime = NOW
) -> tuple[Operation | None, list[PaymentEvent]]:
    await ledger.run(requests.keep, asked, now=now)
    operation, told = await ledger.run(
        requests.begin, asked, seen, livemode=False, key_horizon_s=HORIZON_S, source=SOURCE, now=now
    )
    return operation, list(told)


async def finish(ledger: Ledger, asked: Request, outcome: Refused | AlreadySo, *seen: StripeEvent) -> dict[str, Any]:
    """What the answer says; the one of the answer's own type."""
    told = await ledger.run(requests.finish, asked, outcome, seen, source=SOURCE, now=NOW)
    return answer(told)


def answer(told: Any) -> dict[str, Any]:
    data: dict[str, Any] = json.loads(told[-1].body)["data"]
    return data


async def test_what_is_left_to_refund_is_without_what_is_on_its_way(open_ledger: OpenLedger) -> None:
    ledger = open_ledger()
    await decided(ledger, "o-1", "pi_1")
    await begin(ledger, request(CommandKind.REFUND, "r-1", "5.00"), PAID)  # its answer is still to come
    await begin(ledger, request(CommandKind.REFUND, "r-2", "20.00"), PAID)
    operation, told = await begin(ledger, request(CommandKind.REFUND, "r-3", "13.00"), PAID)

    assert operation is None
    assert (answer(told)["failure"]["code"], answer(told)["amount_refundable"]) == ("over_refund", "7.50")


async def test_what_stripe_refuses_leaves_what_others_have_not_asked_for(open_ledger: OpenLedger) -> None:
    ledger, late = open_ledger(), request(CommandKind.REFUND, "r-2", "2.00")
    await decided(ledger, "o-1", "pi_1")
    await begin(ledger, request(CommandKind.REFUND, "r-1", "5.00"), PAID)
    await begin(ledger, late, PAID)
    told = await finish(ledger, late, Refused("charge_not_refundable", "no"))

    assert told["amount_refundable"] == "7.50", "its own call came to nothing"


async def test_what_a_bank_withholds_is_not_left_to_refund(open_ledger: OpenLedger) -> None:
    ledger, story, late = open_ledger(), Story(), request(CommandKind.REFUND, "r-1")
    story.paid()
    story.disputed()
    await decided(ledger, "o-1", "pi_1")
    for event in story.events:
        await bring(ledger, event, "o-1")
    await begin(ledger, late, PAID)
    told = await finish(ledger, late, Refused("charge_disputed", "no"))

    assert (told["amount_disputed"], told["amount_refundable"]) == ("12.50", "0.00")


async def test_a_refund_waits_for_another_that_may_leave_enough_or_not(open_ledger: OpenLedger) -> None:
    ledger, second = open_ledger(), request(CommandKind.REFUND, "r-2", "10.00")
    await decided(ledger, "o-1", "pi_1")
    first, _ = await begin(ledger, request(CommandKind.REFUND, "r-1", "10.00"), PAID)
    with pytest.raises(requests.AnotherRefund):
        await begin(ledger, second, PAID)
    _, told = await begin(ledger, second, PAID, refund("r-1", 1000))

    assert first
    assert (answer(told)["failure"]["code"], answer(told)["amount_refundable"]) == ("over_refund", "2.50")


@pytest.mark.parametrize("winner", ["cap-1", "cap-2"])
async def test_of_two_captures_of_one_amount_the_intent_names_the_one_that_took_the_money(
    open_ledger: OpenLedger, winner: str
) -> None:
    """Both met an error that Stripe keeps, so that no key tells any more whose it was."""
    ledger, told = open_ledger(), {}
    captures = [request(CommandKind.CAPTURE, name, "12.50") for name in ("cap-1", "cap-2")]
    await decided(ledger, "o-1", "pi_1")
    for each in captures:
        operation, _ = await begin(ledger, each, HELD)
        assert operation
        assert operation.params["metadata"] == {CAPTURED_FOR: each.request_id}
        await ledger.run(requests.note_unknown, operation, because="stored_error", now=NOW)
    for each in captures:
        seen = intent("succeeded", 1250, **{CAPTURED_FOR: winner})
        operation, events = await begin(ledger, each, seen, now=later(60))
        assert operation is None
        told[each.request_id] = (events[-1].type, answer(events).get("failure", {}).get("code"))

    loser = "cap-2" if winner == "cap-1" else "cap-1"
    assert told == {winner: ("payment.captured", None), loser: ("payment.capture_failed", "already_captured")}


async def test_a_capture_whose_answer_was_lost_is_known_by_the_intent(open_ledger: OpenLedger) -> None:
    ledger, capture = open_ledger(), request(CommandKind.CAPTURE, "cap-1")
    await decided(ledger, "o-1", "pi_1")
    await begin(ledger, capture, HELD)
    operation, told = await begin(ledger, capture, intent("succeeded", 1250, **{CAPTURED_FOR: "cap-1"}))

    assert operation is None
    assert {each.type for each in told} == {"payment.succeeded", "payment.captured"}
    assert {row["state"] for row in await rows(ledger, OPERATIONS)} == {"answered"}


async def test_a_refund_that_shows_nothing_past_its_keys_life_is_asked_under_another_key(
    open_ledger: OpenLedger,
) -> None:
    ledger, asked, late = open_ledger(), request(CommandKind.REFUND, "r-1"), HORIZON_S + 1
    await decided(ledger, "o-1", "pi_1")
    first, _ = await begin(ledger, asked, PAID)
    again, _ = await begin(ledger, asked, PAID, now=later(late - 10))
    with pytest.raises(StaleMove):
        await begin(ledger, asked, PAID, now=later(late))
    other, _ = await begin(ledger, asked, PAID, now=later(late + 600))

    assert first
    assert again
    assert other
    assert first.idempotency_key == again.idempotency_key != other.idempotency_key


async def test_a_delivery_that_looks_late_gives_no_second_answer(open_ledger: OpenLedger) -> None:
    ledger, capture = open_ledger(), request(CommandKind.CAPTURE, "cap-1")
    done = intent("succeeded", 1250, **{CAPTURED_FOR: "cap-1"})
    await decided(ledger, "o-1", "pi_1")
    await begin(ledger, capture, HELD)
    ended = await ledger.run(requests.finish, capture, AlreadySo(), [done], source=SOURCE, now=NOW)
    operation, told = await begin(ledger, capture, done)

    assert {each.type for each in ended} == {"payment.succeeded", "payment.captured"}
    assert (operation, told) == (None, [])


async def test_a_payment_canceled_before_its_order_is_never_asked_for(open_ledger: OpenLedger) -> None:
    ledger = open_ledger()
    await ledger.run(requests.keep, request(CommandKind.CANCEL, "c-1"), now=NOW)
    await open_payment(ledger)  # by two deliveries of the order; the first one finds the cancel
    await ledger.run(requests.cancel_unasked, "o-1", livemode=False, source=SOURCE, now=NOW)

    assert isinstance(await ledger.run(moves.start_call, **call_arguments()), moves.Ended)


async def test_of_a_cancel_and_the_opening_of_its_order_one_sees_the_other(open_ledger: OpenLedger) -> None:
    """The opening has looked for a cancel, finds none, and takes long to commit."""
    worker, other = open_ledger(), open_ledger()
    cancel = request(CommandKind.CANCEL, "c-1")

    def open_slowly(conn: Connection, openings: Sequence[Opening]) -> Sequence[Opened | None]:
        opened = open_orders(conn, openings)
        time.sleep(0.5)
        return opened

    opens = asyncio.create_task(worker.run_grouped(open_slowly, opening("o-1")))
    await asyncio.sleep(0.2)
    kept = await other.run(requests.keep, cancel, now=NOW)
    if kept.payment is None:
        kept = await other.run(requests.keep_after_opening, cancel, now=NOW)
    opened = await opens
    assert opened
    assert opened.call is None or kept.payment is not None


async def test_waiting_for_an_opening_opens_nothing(open_ledger: OpenLedger) -> None:
    ledger = open_ledger()
    kept = await ledger.run(requests.keep_after_opening, request(CommandKind.CANCEL, "c-1"), now=NOW)
    assert (kept.state, kept.payment) == (RequestState.REMEMBERED, None)
    assert await rows(ledger, PAYMENTS) == []
