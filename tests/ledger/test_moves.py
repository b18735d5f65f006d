"""What the ledger promises of payments, calls and events, the same on both engines."""

import asyncio
import json
from dataclasses import replace
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest
import sqlalchemy as sa

from tests.ledger import alone, steps
from tests.ledger.conftest import OpenLedger
from tests.ledger.steps import NOW, PARAMS, TTL_S, claim, event, intent_answer, later, open_payment, record, start_call
from worker.errors import LedgerRefused, StaleMove
from worker.ledger import moves
from worker.ledger.ledger import Ledger
from worker.ledger.schema import EVENTS, OPERATIONS, PAYMENTS, WORKERS
from worker.payment import Payment, PaymentState

OPENED = Payment(
    "o-1",
    PaymentState.OPEN,
    9999,
    "usd",
    None,
    None,
    None,
    None,
    None,
    0,
    cause="e-1",
    correlation_id="c-1",
    traceparent="00-trace",
)

# Payments


async def test_an_order_has_one_payment_however_often_it_is_opened(ledger: Ledger) -> None:
    first = await open_payment(ledger, customer_id="cus_1", stripe_account="acct_1")
    assert first == replace(OPENED, customer_id="cus_1", stripe_account="acct_1")
    again = await open_payment(ledger, amount="5.00", currency="eur")
    assert again == first == await ledger.run(moves.read_payment, "o-1")
    assert len(await steps.rows(ledger, PAYMENTS)) == 1


async def test_an_order_that_was_never_seen_has_no_payment(ledger: Ledger) -> None:
    assert await ledger.run(moves.read_payment, "o-1") is None
    assert await ledger.run(moves.events_of, "o-1") == []


async def test_two_workers_that_open_a_payment_at_once_have_the_same_one(open_ledger: OpenLedger) -> None:
    workers = [open_ledger() for _ in range(4)]
    opened = await asyncio.gather(
        *(open_payment(worker, amount=f"{number}.00") for number, worker in enumerate(workers * 8, start=1))
    )
    assert len(set(opened)) == 1
    assert len(await steps.rows(workers[0], PAYMENTS)) == 1


async def test_an_opened_payment_reads_back_as_it_is_after_it_was_decided(ledger: Ledger) -> None:
    await steps.decide(ledger)
    assert await open_payment(ledger) == intent_answer(OPENED).payment


async def test_who_asked_for_the_payment_first_is_kept_whoever_asks_again(ledger: Ledger) -> None:
    await open_payment(ledger)
    others = {"cause": "e-2", "correlation_id": "c-2", "traceparent": "00-other"}
    again = await ledger.run(alone.open_payment, steps.order(), **others, now=later(1))
    assert (again.cause, again.correlation_id, again.traceparent) == ("e-1", "c-1", "00-trace")


async def test_a_payment_that_was_asked_for_without_a_name_stays_so(ledger: Ledger) -> None:
    await ledger.run(alone.open_payment, steps.order(), **steps.UNNAMED, now=NOW)
    assert await open_payment(ledger) == replace(OPENED, **steps.UNNAMED)


async def test_an_amount_past_32_bits_is_kept(ledger: Ledger) -> None:
    assert (await open_payment(ledger, amount="9999999999.99")).amount_minor == 999_999_999_999
    assert (await ledger.run(moves.read_payment, "o-1")).amount_minor == 999_999_999_999  # type: ignore[union-attr]


# Calls


async def test_the_first_delivery_claims_the_call_with_its_key_and_parameters(ledger: Ledger) -> None:
    await open_payment(ledger)
    operation = await claim(ledger, stripe_account="acct_1")
    assert (operation.idempotency_key, operation.params) == ("payment-worker:o-1:create_intent:1", PARAMS)
    assert (operation.stripe_account, operation.first_asked_at, operation.attempt) == ("acct_1", NOW, 1)
    (row,) = await steps.rows(ledger, OPERATIONS)
    assert (row["state"], row["claimed_by"], row["claim"], row["asked"]) == ("started", "w-1", "w-1/1", 1)


async def test_a_call_cannot_be_started_for_an_order_that_is_not_in_the_ledger(ledger: Ledger) -> None:
    with pytest.raises(LedgerRefused, match=r"IntegrityError|ForeignKeyViolation"):
        await start_call(ledger)
    assert await steps.rows(ledger, OPERATIONS) == []


async def test_a_call_of_a_living_worker_is_busy_for_every_other_delivery(ledger: Ledger) -> None:
    await open_payment(ledger)
    await steps.is_alive(ledger)
    await claim(ledger)
    for delivery in ({"claim": "w-1/2"}, {"worker_id": "w-2", "claim": "w-2/1"}):
        assert await start_call(ledger, now=later(TTL_S - 0.1), **delivery) == moves.Busy("w-1")
    (row,) = await steps.rows(ledger, OPERATIONS)
    assert (row["claim"], row["asked"]) == ("w-1/1", 1)


async def test_signs_of_life_keep_a_claim_for_as_long_as_the_call_takes(ledger: Ledger) -> None:
    await open_payment(ledger)
    await claim(ledger)
    for second in range(0, 60, 3):
        await steps.is_alive(ledger, after_s=second)
        assert await start_call(ledger, worker_id="w-2", claim="w-2/1", now=later(second + 1)) == moves.Busy("w-1")


async def test_a_call_of_a_worker_silent_for_too_long_is_taken_over(ledger: Ledger) -> None:
    await open_payment(ledger)
    await steps.is_alive(ledger)
    await claim(ledger)
    taken = await claim(ledger, worker_id="w-2", claim="w-2/1", now=later(TTL_S))
    assert taken.first_asked_at == NOW
    (row,) = await steps.rows(ledger, OPERATIONS)
    assert (row["claimed_by"], row["claim"], row["asked"]) == ("w-2", "w-2/1", 2)


@pytest.mark.parametrize("gone", ["never seen", "signed off", "forgotten"])
async def test_a_call_of_a_worker_that_is_not_there_is_taken_over_at_once(ledger: Ledger, gone: str) -> None:
    await open_payment(ledger)
    if gone != "never seen":
        await steps.is_alive(ledger)
    await claim(ledger)
    if gone == "signed off":
        await ledger.run(moves.sign_off, "w-1")
    if gone == "forgotten":
        await ledger.run(moves.forget_silent_workers, before=later(1))
    await claim(ledger, worker_id="w-2", claim="w-2/1")


async def test_every_time_that_a_call_is_taken_over_is_counted(open_ledger: OpenLedger) -> None:
    workers = [open_ledger() for _ in range(4)]
    await open_payment(workers[0])
    await claim(workers[0])
    for number in range(4):
        await steps.is_alive(workers[0], f"w-{number}", after_s=100)
    await workers[0].run(moves.sign_off, "w-1")
    started = await asyncio.gather(
        *(
            start_call(workers[number % 4], worker_id=f"x-{number % 4}", claim=f"x/{number}", now=later(100))
            for number in (0, 1, 2, 3)
        )
    )
    # x-… give no signs of life, so each may take it from the other, but never two the same claim
    (row,) = await steps.rows(workers[0], OPERATIONS)
    assert row["asked"] == 1 + sum(isinstance(one, moves.Claimed) for one in started)


async def test_only_one_of_many_living_workers_takes_over(open_ledger: OpenLedger) -> None:
    workers = [open_ledger() for _ in range(4)]
    for number in range(4):
        await steps.is_alive(workers[0], f"w-{number}")
    for order_id in (f"o-{number}" for number in range(30)):
        await open_payment(workers[0], order_id)
        await claim(workers[0], order_id, worker_id="w-dead", claim="w-dead/1")
        started = await asyncio.gather(
            *(
                start_call(workers[turn % 4], order_id, worker_id=f"w-{turn % 4}", claim=f"w-{turn % 4}/{turn}")
                for turn in range(16)
            )
        )
        assert sorted(type(one).__name__ for one in started) == ["Busy"] * 15 + ["Claimed"]


async def test_only_one_of_many_starts_a_call(open_ledger: OpenLedger) -> None:
    workers = [open_ledger() for _ in range(4)]
    await open_payment(workers[0])
    for number in range(4):
        await steps.is_alive(workers[0], f"w-{number}")
    started = await asyncio.gather(
        *(start_call(workers[number % 4], worker_id=f"w-{number % 4}", claim=f"c/{number}") for number in range(16))
    )
    assert sum(isinstance(one, moves.Claimed) for one in started) == 1
    (row,) = await steps.rows(workers[0], OPERATIONS)
    assert row["asked"] == 1


async def test_deliveries_that_start_a_call_at_the_same_instant_are_all_answered(open_ledger: OpenLedger) -> None:
    """PostgreSQL looks for the conflict in the one index that it is told of, and may trip over the other."""
    workers = [open_ledger() for _ in range(4)]
    await steps.is_alive(workers[0])
    for number in range(40):
        await open_payment(workers[0], f"o-{number}")
        started = await asyncio.gather(
            *(start_call(workers[turn % 4], f"o-{number}", claim=f"w-1/{turn}") for turn in range(16))
        )
        assert sorted(type(one).__name__ for one in started) == ["Busy"] * 15 + ["Claimed"]


@pytest.mark.parametrize("how", ["released", "silent"])
async def test_parameters_are_frozen_at_first_use_even_if_asked_with_others(ledger: Ledger, how: str) -> None:
    await open_payment(ledger)
    first = await claim(ledger, stripe_account="acct_1")
    if how == "released":
        await ledger.run(moves.release_claim, first.order_id, claim="w-1/1")
    again = await claim(
        ledger,
        params={"amount": 1},
        stripe_account="acct_2",
        worker_id="w-2",
        claim="w-2/1",
        now=later(1000),
    )
    assert again == replace(first, asks=(NOW, later(1000)))


async def test_a_released_call_is_free_at_once(ledger: Ledger) -> None:
    await open_payment(ledger)
    await steps.is_alive(ledger)
    operation = await claim(ledger)
    await ledger.run(moves.release_claim, operation.order_id, claim="w-1/1")
    await claim(ledger, worker_id="w-2", claim="w-2/1")


async def test_a_claim_of_our_own_that_nobody_works_on_any_more_is_free(ledger: Ledger) -> None:
    """The ledger was away when its delivery ended, and could not be told."""
    await steps.is_alive(ledger)
    await open_payment(ledger)
    await start_call(ledger, claim="w-1/1")

    other = {"worker_id": "w-2", "claim": "w-2/1", "live_claims": {"w-2/1"}}
    assert isinstance(await start_call(ledger, **other), moves.Busy), "only its own worker can know"
    at_work = {"claim": "w-1/2", "live_claims": {"w-1/1", "w-1/2"}}
    assert isinstance(await start_call(ledger, **at_work), moves.Busy)
    assert isinstance(await start_call(ledger, claim="w-1/2", live_claims={"w-1/2"}), moves.Claimed)


async def test_a_claim_that_was_taken_over_is_not_released_by_who_had_it(ledger: Ledger) -> None:
    await open_payment(ledger)
    operation = await claim(ledger)
    await claim(ledger, worker_id="w-2", claim="w-2/1")
    await steps.is_alive(ledger, "w-2")
    await ledger.run(moves.release_claim, operation.order_id, claim="w-1/1")
    assert await start_call(ledger, worker_id="w-3", claim="w-3/1") == moves.Busy("w-2")


@pytest.mark.parametrize("answer", [intent_answer, steps.refusal_answer])
async def test_an_answered_call_is_ended_for_ever(ledger: Ledger, answer: Any) -> None:
    payment = await open_payment(ledger)
    await record(ledger, payment, await claim(ledger), answer(payment))
    assert await start_call(ledger, worker_id="w-2", claim="w-2/1", now=later(10**8)) == moves.Ended()


# Answers


async def test_an_answer_is_recorded_with_its_evidence_and_its_event(ledger: Ledger) -> None:
    payment = await open_payment(ledger)
    told = await record(ledger, payment, await claim(ledger), now=later(1))
    assert await ledger.run(moves.read_payment, "o-1") == intent_answer(payment).payment
    (operation,) = await steps.rows(ledger, OPERATIONS)
    assert (operation["state"], operation["claimed_by"], operation["claim"]) == ("answered", None, None)
    assert (operation["answered_at"], operation["request_id"]) == (later(1), "req_1")
    assert json.loads(operation["evidence"]) == {"payment_id": "pi_o-1", "status": "requires_payment_method"}
    assert await ledger.run(moves.events_of, "o-1") == [told]


async def test_a_refusal_is_recorded_with_what_stripe_said(ledger: Ledger) -> None:
    payment = await open_payment(ledger)
    answer = steps.refusal_answer(payment)
    await record(ledger, payment, await claim(ledger), answer)
    after = await ledger.run(moves.read_payment, "o-1")
    assert after == answer.payment
    assert after.state is PaymentState.FAILED
    (operation,) = await steps.rows(ledger, OPERATIONS)
    assert operation["state"] == "refused"
    assert json.loads(operation["evidence"])["decline_code"] == "insufficient_funds"


async def test_a_failure_in_the_last_statement_leaves_nothing(ledger: Ledger) -> None:
    payment = await open_payment(ledger)
    operation = await claim(ledger)
    before = await steps.rows(ledger, PAYMENTS), await steps.rows(ledger, OPERATIONS)
    other = await steps.decide(ledger, "o-2")
    taken = replace(event(intent_answer(payment)), event_id=other.event_id)
    with pytest.raises(LedgerRefused, match=r"IntegrityError|UniqueViolation"):
        await record(ledger, payment, operation, told=taken)
    payments = [row for row in await steps.rows(ledger, PAYMENTS) if row["order_id"] == "o-1"]
    operations = [row for row in await steps.rows(ledger, OPERATIONS) if row["order_id"] == "o-1"]
    assert (payments, operations) == before
    assert await ledger.run(moves.events_of, "o-1") == []
    await record(ledger, payment, operation)


async def test_an_answer_to_a_payment_that_has_moved_meanwhile_is_stale(ledger: Ledger) -> None:
    payment = await open_payment(ledger)
    operation = await claim(ledger)
    first = await record(ledger, payment, operation)
    with pytest.raises(StaleMove, match="o-1 has moved meanwhile"):
        await record(ledger, payment, operation, steps.refusal_answer(payment))
    assert await ledger.run(moves.read_payment, "o-1") == intent_answer(payment).payment
    assert await ledger.run(moves.events_of, "o-1") == [first]
    (row,) = await steps.rows(ledger, OPERATIONS)
    assert row["state"] == "answered"


async def test_a_decided_payment_does_not_move_again(ledger: Ledger) -> None:
    payment = await open_payment(ledger)
    operation = await claim(ledger)
    await record(ledger, payment, operation)
    decided = await ledger.run(moves.read_payment, "o-1")
    assert decided is not None
    with pytest.raises(StaleMove, match="intent_created may not become failed"):
        await record(ledger, decided, operation, steps.refusal_answer(decided))
    assert len(await steps.rows(ledger, EVENTS)) == 1


async def test_of_many_answers_at_once_one_is_recorded(open_ledger: OpenLedger) -> None:
    workers = [open_ledger() for _ in range(4)]
    payment = await open_payment(workers[0])
    operation = await claim(workers[0])
    ends = await asyncio.gather(
        *(record(workers[number % 4], payment, operation) for number in range(12)), return_exceptions=True
    )
    assert sum(isinstance(end, StaleMove) for end in ends) == 11
    assert len(await steps.rows(workers[0], EVENTS)) == 1


# Events


async def test_an_event_comes_back_byte_for_byte(ledger: Ledger) -> None:
    payment = await open_payment(ledger)
    told = replace(event(intent_answer(payment)), body='{"ä": "😀 \\u0000"}', correlation_id=None, traceparent=None)
    await record(ledger, payment, await claim(ledger), told=told)
    assert await ledger.run(moves.events_of, "o-1") == [told]


async def test_the_events_of_a_payment_come_in_their_order(ledger: Ledger) -> None:
    first = await steps.decide(ledger)
    for sequence in (3, 2):
        values = {"event_id": f"e-{sequence}", "sequence": sequence, "type": "t", "body": "{}", "order_id": "o-1"}
        await steps.execute(ledger, sa.insert(EVENTS).values(**values, staged_at=NOW - timedelta(days=1)))
    await steps.decide(ledger, "o-2")
    events = await ledger.run(moves.events_of, "o-1")
    assert [one.event_id for one in events] == [first.event_id, "e-2", "e-3"]


async def test_untold_events_come_oldest_first_up_to_a_time_and_a_number(ledger: Ledger) -> None:
    for order_id, second in (("o-1", 3), ("o-2", 1), ("o-3", 2), ("o-4", 9)):
        await steps.decide(ledger, order_id, now=later(second))

    async def untold(limit: int = 10) -> list[str]:
        events, _ = await ledger.run(moves.untold_events, staged_before=later(3), limit=limit)
        return [one.order_id for one in events]

    assert await untold() == ["o-2", "o-3", "o-1"]
    assert await untold(2) == ["o-2", "o-3"]
    await ledger.run(alone.mark_published, "o-3/payment/1", now=later(4))
    assert await untold() == ["o-2", "o-1"]


async def test_untold_events_come_page_by_page_each_once_even_if_staged_at_the_same_moment(ledger: Ledger) -> None:
    for number in range(7):
        await steps.decide(ledger, f"o-{number}", now=later(number // 4))
    pages, after = [], None
    while True:
        events, after = await ledger.run(moves.untold_events, staged_before=later(9), limit=3, after=after)
        if after is None:
            break
        pages.append([one.order_id for one in events])

    assert pages == [["o-0", "o-1", "o-2"], ["o-3", "o-4", "o-5"], ["o-6"]]


async def test_the_first_time_that_an_event_was_published_counts(ledger: Ledger) -> None:
    told = await steps.decide(ledger)
    for second in (1, 2):
        await ledger.run(alone.mark_published, told.event_id, now=later(second))
    (row,) = await steps.rows(ledger, EVENTS)
    assert row["published_at"] == later(1)


async def test_marking_an_event_that_is_not_there_does_nothing(ledger: Ledger) -> None:
    await ledger.run(alone.mark_published, "nothing", now=NOW)
    assert await steps.rows(ledger, EVENTS) == []


# Workers and what waits


async def test_signs_of_life_of_long_ago_are_forgotten(ledger: Ledger) -> None:
    for worker_id, second in (("w-1", 0), ("w-2", 10), ("w-1", 20), ("w-3", 5)):
        await steps.is_alive(ledger, worker_id, after_s=second)
    await ledger.run(moves.forget_silent_workers, before=later(10))
    assert {row["worker_id"]: row["seen_at"] for row in await steps.rows(ledger, WORKERS)} == {
        "w-1": later(20),
        "w-2": later(10),
    }


async def test_the_backlog_counts_what_waits_and_since_when(ledger: Ledger) -> None:
    assert await ledger.run(moves.backlog) == moves.Backlog(0, None, 0, None)
    await steps.decide(ledger, "o-1", now=later(5))
    told = await steps.decide(ledger, "o-2", now=later(3))
    await open_payment(ledger, "o-3")
    await claim(ledger, "o-3", now=later(7))
    assert await ledger.run(moves.backlog) == moves.Backlog(2, later(3), 1, later(7))
    await ledger.run(alone.mark_published, told.event_id, now=later(8))
    assert await ledger.run(moves.backlog) == moves.Backlog(1, later(5), 1, later(7))


# What the tables themselves refuse and keep

PAYMENT_ROW = {"state": "open", "amount_minor": 1, "currency": "usd", "sequence": 0, "opened_at": NOW, "moved_at": NOW}
OPERATION_ROW = {"order_id": "o-1", "kind": "k", "attempt": 1, "idempotency_key": "k", "params": "{}"}
OPERATION_ROW |= {"state": "started", "first_asked_at": NOW, "asked": 1}
EVENT_ROW = {"event_id": "e", "order_id": "o-1", "sequence": 1, "type": "t", "body": "{}", "staged_at": NOW}


@pytest.mark.parametrize(
    ("table", "row", "rule"),
    [
        (PAYMENTS, {"order_id": "x", "state": "paid", "sequence": 1}, "ck_payments_state"),
        (PAYMENTS, {"order_id": "x", "amount_minor": 0}, "ck_payments_amount"),
        (PAYMENTS, {"order_id": "x", "amount_minor": -1}, "ck_payments_amount"),
        (PAYMENTS, {"order_id": "x", "state": "intent_created", "sequence": 1}, "ck_payments_intent_has_id"),
        (PAYMENTS, {"order_id": "x", "sequence": 1}, "ck_payments_decided_is_told"),
        (PAYMENTS, {"order_id": "x", "state": "failed"}, "ck_payments_decided_is_told"),
        (PAYMENTS, {"order_id": "o-1"}, "pk_payments|payments.order_id"),
        (
            PAYMENTS,
            {"order_id": "x", "state": "failed", "sequence": 1, "payment_id": "pi_o-1"},
            "uq_payments_payment_id|payments.payment_id",
        ),
        (OPERATIONS, {"state": "asked", "answered_at": NOW}, "ck_operations_state"),
        (OPERATIONS, {"state": "answered"}, "ck_operations_answered_has_time"),
        (OPERATIONS, {"state": "absent"}, "ck_operations_answered_has_time"),
        (OPERATIONS, {"answered_at": NOW}, "ck_operations_answered_has_time"),
        (OPERATIONS, {"state": "unknown", "answered_at": NOW}, "ck_operations_answered_has_time"),
        (
            OPERATIONS,
            {"idempotency_key": "payment-worker:o-1:create_intent:1"},
            "uq_operations_idempotency_key|operations.idempotency_key",
        ),
        (OPERATIONS, {"kind": "create_intent"}, "pk_operations|operations.order_id"),
        (OPERATIONS, {"order_id": "nobody"}, "FOREIGN KEY|fk_operations_order_id"),
        (EVENTS, {"sequence": 1}, "uq_events_order_id_sequence|events.order_id, events.sequence"),
        (EVENTS, {"event_id": "o-1/payment/1", "sequence": 2}, "pk_events|events.event_id"),
        (EVENTS, {"order_id": "nobody"}, "FOREIGN KEY|fk_events_order_id"),
    ],
)
async def test_an_impossible_row_is_refused_by_the_tables(
    ledger: Ledger, table: sa.Table, row: dict[str, Any], rule: str
) -> None:
    await steps.decide(ledger)
    usual: dict[str, Any] = {"payments": PAYMENT_ROW, "operations": OPERATION_ROW, "events": EVENT_ROW}[table.name]
    before = await steps.rows(ledger, table)
    with pytest.raises(LedgerRefused, match=rf"\b({rule})\b"):
        await steps.execute(ledger, sa.insert(table).values(**{**usual, **row}))
    assert await steps.rows(ledger, table) == before


@pytest.mark.parametrize(
    ("table", "row"),
    [
        (PAYMENTS, {**PAYMENT_ROW, "order_id": "x"}),
        (OPERATIONS, OPERATION_ROW),
        (OPERATIONS, {**OPERATION_ROW, "state": "unknown"}),
        (OPERATIONS, {**OPERATION_ROW, "state": "absent", "answered_at": NOW}),
        (EVENTS, {**EVENT_ROW, "sequence": 2}),
    ],
)
async def test_the_row_beside_the_impossible_ones_is_possible(
    ledger: Ledger, table: sa.Table, row: dict[str, Any]
) -> None:
    await steps.decide(ledger)
    await steps.execute(ledger, sa.insert(table).values(**row))
    assert len(await steps.rows(ledger, table)) == 2


async def test_a_naive_time_is_refused(ledger: Ledger) -> None:
    with pytest.raises(LedgerRefused, match="a naive time reached the ledger"):
        await ledger.run(alone.open_payment, steps.order(), **steps.UNNAMED, now=datetime(2026, 1, 31))  # noqa: DTZ001 - the point
    assert await steps.rows(ledger, PAYMENTS) == []


async def test_a_time_comes_back_aware_and_in_utc_whatever_its_zone_was(ledger: Ledger) -> None:
    tokyo = datetime(2026, 1, 31, 21, 0, 0, 123456, tzinfo=timezone(timedelta(hours=9)))
    await ledger.run(alone.open_payment, steps.order(), **steps.UNNAMED, now=tokyo)
    (row,) = await steps.rows(ledger, PAYMENTS)
    assert row["opened_at"] == tokyo
    assert row["opened_at"].tzinfo is UTC
    assert row["opened_at"].isoformat() == "2026-01-31T12:00:00.123456+00:00"
