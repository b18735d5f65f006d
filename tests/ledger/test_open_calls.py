"""Calls whose outcome is not known, and what becomes of them; the same on both engines."""

import asyncio
import json
from collections.abc import Awaitable, Callable
from dataclasses import replace
from datetime import timedelta

import pytest
import sqlalchemy as sa

from tests.ledger import steps
from tests.ledger.conftest import OpenLedger
from tests.ledger.steps import HORIZON_S, NOW, PARAMS, claim, later, open_payment, record, start_call
from worker.errors import StaleMove
from worker.ledger import moves
from worker.ledger.ledger import Ledger
from worker.ledger.schema import EVENTS, OPERATIONS, PAYMENTS
from worker.payment import Operation, OperationState

EVIDENCE = {"absent_from": [["a", "b"]], "pages": 1}


async def mark_unknown(ledger: Ledger, operation: Operation, claim: str = "w-1/1", after_s: float = 3) -> Operation:
    now = later(after_s)
    return await ledger.run(moves.mark_unknown, operation, claim=claim, because="stored_error", now=now)


async def end_absent(ledger: Ledger, operation: Operation, claim: str = "w-1/1") -> None:
    await ledger.run(moves.end_absent, operation, claim=claim, evidence=EVIDENCE, now=later(60))


Move = Callable[[Ledger, Operation], Awaitable[object]]
MOVES = pytest.mark.parametrize("move", [mark_unknown, end_absent])

# Absence


async def test_an_absent_attempt_is_followed_by_the_next_one_with_another_key_and_the_same_parameters(
    ledger: Ledger,
) -> None:
    await open_payment(ledger)
    first = await claim(ledger, stripe_account="acct_1")
    await end_absent(ledger, await mark_unknown(ledger, first))

    other = {"params": {"amount": 1}, "stripe_account": "acct_2", "worker_id": "w-2", "claim": "w-2/1"}
    second = await claim(ledger, now=later(90), **other)

    assert first.idempotency_key == "payment-worker:o-1:create_intent:1"
    assert second.idempotency_key == "payment-worker:o-1:create_intent:2"
    assert (second.attempt, second.params, second.stripe_account) == (2, PARAMS, "acct_1")
    assert (second.state, second.first_asked_at, second.asks) == (OperationState.STARTED, later(90), (later(90),))
    assert second.unknown_because is None
    before, after = sorted(await steps.rows(ledger, OPERATIONS), key=lambda row: row["attempt"])
    assert (before["state"], before["answered_at"], before["claim"]) == ("absent", later(60), None)
    assert (before["unknown_because"], json.loads(before["evidence"])) == ("stored_error", EVIDENCE)
    assert (after["state"], after["claim"], after["asked"]) == ("started", "w-2/1", 1)


async def test_no_other_attempt_follows_for_one_who_may_not_start_anew(ledger: Ledger) -> None:
    """It may have waited while another one proved the absence."""
    await open_payment(ledger)
    await end_absent(ledger, await mark_unknown(ledger, await claim(ledger)))

    assert await start_call(ledger, now=later(90), worker_id="w-2", claim="w-2/1", anew=False) == moves.Ended()

    assert len(await steps.rows(ledger, OPERATIONS)) == 1


async def test_a_call_that_is_sent_late_is_sent_by_its_claimant_alone_and_its_time_is_kept(ledger: Ledger) -> None:
    await open_payment(ledger)
    operation = await claim(ledger)

    after = await ledger.run(moves.note_asking, operation, claim="w-1/1", now=later(20))
    with pytest.raises(StaleMove):
        await ledger.run(moves.note_asking, operation, claim="w-2/1", now=later(30))

    assert after.asks == (NOW, later(20))
    (row,) = await steps.rows(ledger, OPERATIONS)
    assert json.loads(row["asks"]) == [NOW.isoformat(), later(20).isoformat()]


async def test_the_newest_attempt_is_the_one_that_is_taken_over(ledger: Ledger) -> None:
    await open_payment(ledger)
    for attempt in (1, 2, 3):
        operation = await claim(ledger, now=later(attempt))
        assert operation.attempt == attempt
        await end_absent(ledger, operation)
    fourth = await claim(ledger, now=later(4))
    again = await claim(ledger, worker_id="w-2", claim="w-2/1", now=later(5))
    assert again == replace(fourth, asks=(later(4), later(5)))
    assert again.attempt == 4


async def test_only_one_of_many_starts_the_next_attempt(open_ledger: OpenLedger) -> None:
    workers = [open_ledger() for _ in range(4)]
    await steps.is_alive(workers[0])
    for order_id in (f"o-{number}" for number in range(10)):
        await open_payment(workers[0], order_id)
        await end_absent(workers[0], await claim(workers[0], order_id))
        started = await asyncio.gather(
            *(start_call(workers[turn % 4], order_id, claim=f"w-1/{turn}") for turn in range(16))
        )
        assert sorted(type(one).__name__ for one in started) == ["Busy"] * 15 + ["Claimed"]
    assert len(await steps.rows(workers[0], OPERATIONS)) == 20


async def test_the_answer_to_the_next_attempt_decides_the_payment(ledger: Ledger) -> None:
    payment = await open_payment(ledger)
    await end_absent(ledger, await claim(ledger))
    told = await record(ledger, payment, await claim(ledger))
    assert await ledger.run(moves.events_of, "o-1") == [told]
    assert await start_call(ledger) == moves.Ended()
    assert [row["state"] for row in await steps.rows(ledger, OPERATIONS)] == ["absent", "answered"]


# The life of a key


async def test_a_key_is_trusted_up_to_its_horizon(ledger: Ledger) -> None:
    await open_payment(ledger)
    await claim(ledger)
    again = await claim(ledger, worker_id="w-2", claim="w-2/1", now=later(HORIZON_S))
    assert (again.state, again.asks) == (OperationState.STARTED, (NOW, later(HORIZON_S)))


async def test_a_key_past_its_horizon_makes_a_started_call_unknown(ledger: Ledger) -> None:
    await open_payment(ledger)
    first = await claim(ledger)
    await ledger.run(moves.release_claim, first.order_id, claim="w-1/1")

    late = await claim(ledger, claim="w-1/2", now=later(HORIZON_S + 1))

    assert late == replace(first, state=OperationState.UNKNOWN, unknown_because="key_expired")
    (row,) = await steps.rows(ledger, OPERATIONS)
    assert (row["state"], row["unknown_because"], row["claim"]) == ("unknown", "key_expired", "w-1/2")
    assert (row["first_asked_at"], row["last_asked_at"]) == (NOW, later(HORIZON_S + 1))


@pytest.mark.parametrize("why", ["key_expired", "stored_error"])
async def test_an_unknown_call_is_never_handed_out_as_started_again(ledger: Ledger, why: str) -> None:
    await open_payment(ledger)
    operation = await claim(ledger)
    if why == "stored_error":
        await mark_unknown(ledger, operation)
        await ledger.run(moves.release_claim, operation.order_id, claim="w-1/1")
    for number, seconds in ((2, HORIZON_S + 1), (3, HORIZON_S + 2), (4, 1)):
        late = await claim(ledger, claim=f"w-1/{number}", now=later(seconds), key_horizon_s=HORIZON_S)
        assert (late.state, late.unknown_because, late.attempt) == (OperationState.UNKNOWN, why, 1)
        told = () if why == "key_expired" else (later(3),)
        assert late.asks == (NOW, *told), "nobody has asked since"


async def test_an_unknown_call_of_a_living_worker_is_busy_all_the_same(ledger: Ledger) -> None:
    await open_payment(ledger)
    await steps.is_alive(ledger)
    await mark_unknown(ledger, await claim(ledger))
    assert await start_call(ledger, worker_id="w-2", claim="w-2/1") == moves.Busy("w-1")


async def test_an_unknown_call_is_answered_on_evidence(ledger: Ledger) -> None:
    payment = await open_payment(ledger)
    unknown = await mark_unknown(ledger, await claim(ledger))
    assert (unknown.state, unknown.unknown_because) == (OperationState.UNKNOWN, "stored_error")
    await record(ledger, payment, unknown)
    assert await start_call(ledger) == moves.Ended()


# Whose call it is


@MOVES
async def test_one_whose_claim_was_taken_over_changes_nothing(ledger: Ledger, move: Move) -> None:
    await open_payment(ledger)
    operation = await claim(ledger)
    await claim(ledger, worker_id="w-2", claim="w-2/1")
    before = await steps.rows(ledger, OPERATIONS)
    with pytest.raises(StaleMove, match="o-1: another delivery has the call"):
        await move(ledger, operation)
    assert await steps.rows(ledger, OPERATIONS) == before


@MOVES
async def test_one_who_has_released_its_claim_changes_nothing(ledger: Ledger, move: Move) -> None:
    await open_payment(ledger)
    operation = await claim(ledger)
    await ledger.run(moves.release_claim, operation.order_id, claim="w-1/1")
    before = await steps.rows(ledger, OPERATIONS)
    with pytest.raises(StaleMove):
        await move(ledger, operation)
    assert await steps.rows(ledger, OPERATIONS) == before


@MOVES
@pytest.mark.parametrize("end", ["answered", "absent"])
async def test_an_ended_call_neither_becomes_unknown_nor_ends_again(ledger: Ledger, move: Move, end: str) -> None:
    payment = await open_payment(ledger)
    operation = await claim(ledger)
    await (record(ledger, payment, operation) if end == "answered" else end_absent(ledger, operation))
    before = await steps.rows(ledger, OPERATIONS)
    with pytest.raises(StaleMove):
        await move(ledger, operation)
    assert await steps.rows(ledger, OPERATIONS) == before


async def test_an_attempt_that_has_ended_absent_cannot_be_answered(ledger: Ledger) -> None:
    payment = await open_payment(ledger)
    first = await claim(ledger)
    await end_absent(ledger, first)
    second = await claim(ledger)
    before = await steps.rows(ledger, PAYMENTS), await steps.rows(ledger, OPERATIONS)
    with pytest.raises(StaleMove, match="o-1 has ended its call already"):
        await record(ledger, payment, first)
    assert (await steps.rows(ledger, PAYMENTS), await steps.rows(ledger, OPERATIONS)) == before
    assert await steps.rows(ledger, EVENTS) == []
    await record(ledger, payment, second)


# What is kept


async def test_what_came_instead_of_an_answer_is_kept_beside_the_call(ledger: Ledger) -> None:
    await open_payment(ledger)
    failures = [{"at": f"t-{number}", "reason": "server_error", "error": "ä"} for number in range(3)]
    for number, failure in enumerate(failures):
        operation = await claim(ledger, claim=f"w-1/{number}", now=later(number))
        await ledger.run(moves.release_claim, operation.order_id, claim=f"w-1/{number}", failure=failure)
    (row,) = await steps.rows(ledger, OPERATIONS)
    assert json.loads(row["failures"]) == failures
    assert (row["claim"], row["asked"], row["last_asked_at"]) == (None, 3, later(2))
    assert (await claim(ledger, now=later(3))).asks == (NOW, later(1), later(2), later(3))


async def test_a_failure_of_one_whose_claim_was_taken_over_is_not_kept(ledger: Ledger) -> None:
    await open_payment(ledger)
    operation = await claim(ledger)
    await claim(ledger, worker_id="w-2", claim="w-2/1")
    before = await steps.rows(ledger, OPERATIONS)
    await ledger.run(moves.release_claim, operation.order_id, claim="w-1/1", failure={"reason": "server_error"})
    assert await steps.rows(ledger, OPERATIONS) == before


async def test_what_is_kept_of_one_call_is_bounded(ledger: Ledger) -> None:
    await open_payment(ledger)
    rounds = moves.MOST_KEPT + 5

    def ask_often(conn: sa.Connection) -> None:
        for number in range(rounds):
            started = moves.start_call(conn, **steps.call_arguments(now=later(number)))
            assert isinstance(started, moves.Claimed)
            moves.release_claim(conn, started.operation.order_id, claim="w-1/1", failure={"number": number})

    await ledger.run(ask_often)
    (row,) = await steps.rows(ledger, OPERATIONS)
    failures, asks = json.loads(row["failures"]), json.loads(row["asks"])
    assert (len(failures), failures[-1]) == (moves.MOST_KEPT, {"number": rounds - 1})
    assert asks == [later(number).isoformat() for number in range(moves.MOST_KEPT)]
    assert (row["state"], row["unknown_because"]) == ("unknown", "asked_too_often"), "no time of asking is forgotten"
    assert row["asked"] == rounds


# What nobody comes back for


async def test_idle_calls_are_those_that_are_open_and_untouched_longest_first(ledger: Ledger) -> None:
    asked_at = {"newer": 20, "oldest": 5, "unknown": 10, "answered": 1, "absent": 2, "just-now": 30, "on-time": 25}
    payments = {order_id: await open_payment(ledger, order_id) for order_id in asked_at}
    operations = {order_id: await claim(ledger, order_id, now=later(second)) for order_id, second in asked_at.items()}
    await mark_unknown(ledger, operations["unknown"], after_s=10)
    await record(ledger, payments["answered"], operations["answered"])
    await end_absent(ledger, operations["absent"])

    idle = await ledger.run(moves.idle_operations, before=later(25), limit=10)
    assert [one.order_id for one in idle] == ["oldest", "unknown", "newer"]
    assert [one.state for one in idle] == [OperationState.STARTED, OperationState.UNKNOWN, OperationState.STARTED]
    assert idle[0] == operations["oldest"]
    page = await ledger.run(moves.idle_operations, before=later(25), limit=2)
    assert page == idle[:2]


async def test_a_call_that_was_taken_up_again_is_not_idle(ledger: Ledger) -> None:
    await open_payment(ledger)
    await claim(ledger)
    await claim(ledger, worker_id="w-2", claim="w-2/1", now=later(100))
    assert await ledger.run(moves.idle_operations, before=later(100), limit=10) == []
    late = NOW + timedelta(days=2)
    await claim(ledger, worker_id="w-2", claim="w-2/2", now=late)
    assert await ledger.run(moves.idle_operations, before=late, limit=10) == []
    (idle,) = await ledger.run(moves.idle_operations, before=late + timedelta(seconds=1), limit=10)
    assert idle.state is OperationState.UNKNOWN
