"""What alarms and the status are made of, and the life of one payment; the same on both engines."""

import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from tests.ledger import alone, letter_steps, steps
from tests.ledger.steps import HORIZON_S, NOW, claim, decide, later, open_payment, record, refusal_answer
from worker.ledger import figures, moves, one_payment, turns
from worker.ledger.figures import HeldUp, MoneyFigures
from worker.ledger.ledger import Ledger
from worker.ledger.migrate import migrate
from worker.ledger.schema import EVENTS, PACE
from worker.pace import FASTER_PER_S, SLOWER
from worker.payment import Operation, OperationState, PaymentState

NEAR_S = 0.75 * HORIZON_S
EVIDENCE = {"absent_from": [["a", "b"]], "pages": 1}
ENDPOINT = "POST /v1/payment_intents"
LIMIT = 100.0


async def money(ledger: Ledger, *, after_s: float = 0) -> MoneyFigures:
    return await ledger.run(figures.money_figures, now=later(after_s), key_horizon_s=HORIZON_S)


async def started(ledger: Ledger, order_id: str, *, after_s: float = 0, **order: Any) -> Operation:
    """An order whose call is under way."""
    await open_payment(ledger, order_id, **order)
    return await claim(ledger, order_id, claim=f"w-1/{order_id}", now=later(after_s))


async def unknown(ledger: Ledger, order_id: str, *, after_s: float = 0, **order: Any) -> Operation:
    """An order whose call has an unknown outcome."""
    operation = await started(ledger, order_id, after_s=after_s, **order)
    return await ledger.run(
        moves.mark_unknown,
        operation,
        claim=f"w-1/{order_id}",
        because="stored_error",
        now=later(after_s + 3),
    )


async def absent(ledger: Ledger, order_id: str, *, after_s: float = 0) -> None:
    operation = await unknown(ledger, order_id, after_s=after_s)
    await ledger.run(moves.end_absent, operation, claim=f"w-1/{order_id}", evidence=EVIDENCE, now=later(after_s + 60))


# Money


async def test_nothing_is_held_up_in_an_empty_ledger_or_by_calls_that_have_ended(ledger: Ledger) -> None:
    nothing = MoneyFigures(unknown=HeldUp(), near_horizon=HeldUp(), oldest_key=None)
    assert await money(ledger) == nothing

    await decide(ledger, "o-1")
    await absent(ledger, "o-2")
    refused = await open_payment(ledger, "o-3")
    await record(ledger, refused, await claim(ledger, "o-3"), refusal_answer(refused))

    assert await money(ledger, after_s=HORIZON_S) == nothing


async def test_unknown_outcomes_are_counted_dated_and_summed_by_currency(ledger: Ledger) -> None:
    await unknown(ledger, "o-1", after_s=10, amount="12.50")
    await unknown(ledger, "o-2", after_s=5, amount="0.50")
    await unknown(ledger, "o-3", after_s=20, amount="500", currency="jpy")
    await started(ledger, "o-4", after_s=1)

    found = await money(ledger, after_s=30)

    assert found.unknown == HeldUp(3, later(5), {"usd": 1300, "jpy": 500})
    assert found.near_horizon == HeldUp()
    assert found.oldest_key == later(1)


async def test_a_key_is_near_its_horizon_once_it_is_older_than_three_quarters_of_it(ledger: Ledger) -> None:
    await started(ledger, "o-1", amount="12.50")
    await started(ledger, "o-2", after_s=100, amount="7.00")
    await started(ledger, "o-3", after_s=50, amount="5.00", currency="eur")
    await unknown(ledger, "o-4", after_s=-1000)

    assert (await money(ledger, after_s=NEAR_S)).near_horizon == HeldUp()
    assert (await money(ledger, after_s=NEAR_S + 1)).near_horizon == HeldUp(1, NOW, {"usd": 1250})
    assert (await money(ledger, after_s=NEAR_S + 51)).near_horizon == HeldUp(2, NOW, {"usd": 1250, "eur": 500})
    everything = await money(ledger, after_s=2 * HORIZON_S)
    assert everything.near_horizon == HeldUp(3, NOW, {"usd": 1950, "eur": 500})
    assert everything.oldest_key == NOW
    assert everything.unknown.count == 1


async def test_the_next_attempt_counts_and_the_absent_one_before_it_does_not(ledger: Ledger) -> None:
    await absent(ledger, "o-1")
    await claim(ledger, "o-1", now=later(90))

    found = await money(ledger, after_s=90 + NEAR_S + 1)

    assert found.near_horizon == HeldUp(1, later(90), {"usd": 9999})


@pytest.fixture
async def on_sqlite(tmp_path: Path) -> AsyncIterator[Ledger]:
    async with Ledger(f"sqlite:///{tmp_path}/plan.db") as ledger:
        migrate(ledger.engine)
        yield ledger


async def test_sqlite_counts_open_calls_without_reading_those_that_have_ended(on_sqlite: Ledger) -> None:
    """The gauges come round for ever, and the ledger forgets nothing."""
    asked: list[tuple[str, Any]] = []
    sa.event.listen(on_sqlite.engine, "before_cursor_execute", lambda *it: asked.append((it[2], it[3])))
    await money(on_sqlite)
    [(statement, values)] = [it for it in asked if "operations" in it[0]]

    def plan(conn: sa.Connection) -> str:
        return " ".join(row[3] for row in conn.exec_driver_sql(f"EXPLAIN QUERY PLAN {statement}", values))

    assert "ix_operations_open" in await on_sqlite.run(plan)


# Replays


async def test_letters_being_replayed_are_counted_dated_from_their_taking_and_summed_by_currency(
    ledger: Ledger,
) -> None:
    assert await ledger.run(figures.replaying_letters) == HeldUp()
    for letter_id, money in (
        ("dl_1", {"amount_minor": 1250, "currency": "usd"}),
        ("dl_2", {"amount_minor": 50, "currency": "usd"}),
        ("dl_3", {"amount_minor": 500, "currency": "jpy"}),
        ("dl_4", {"amount_minor": None, "currency": None}),
        ("dl_5", {"amount_minor": 9900, "currency": "eur"}),
        ("dl_6", {"amount_minor": 7700, "currency": "eur"}),
    ):
        await letter_steps.land(ledger, letter_steps.letter(letter_id, landing_id=letter_id, **money))
    for number, letter_id in enumerate(("dl_1", "dl_2", "dl_3", "dl_4", "dl_5")):
        await letter_steps.make_replay(ledger, f"rp_{number}", letter_id)
        await letter_steps.take(ledger, f"rp_{number}", after_s=300 + number)
    await letter_steps.resolve(ledger, "dl_5")

    found = await ledger.run(figures.replaying_letters)
    old = await ledger.run(figures.replaying_letters, moved_before=later(302))

    assert found == HeldUp(4, later(300), {"usd": 1300, "jpy": 500})
    assert old == HeldUp(2, later(300), {"usd": 1300})


async def test_quiet_replays_tell_how_far_they_are(ledger: Ledger) -> None:
    ids = await letter_steps.land_many(ledger, 3)
    await letter_steps.make_replay(ledger)
    await letter_steps.take(ledger, size=2, after_s=300)
    await letter_steps.resolve(ledger, ids[0], after_s=310)

    [quiet] = await ledger.run(figures.quiet_replays, moved_before=later(311))

    assert (quiet.replay_id, quiet.by) == ("rp_1", letter_steps.OPERATOR)
    assert quiet.counts == {"resolved": 1, "sent": 1, "waiting": 1}
    assert await ledger.run(figures.quiet_replays, moved_before=later(310)) == []


# Workers and pace


async def test_workers_are_alive_that_gave_a_sign_of_life_lately(ledger: Ledger) -> None:
    async def alive(after_s: float) -> int:
        return await ledger.run(figures.workers_alive, now=later(after_s), within_s=4)

    assert await alive(0) == 0
    await steps.is_alive(ledger, "w-1")
    await steps.is_alive(ledger, "w-2", after_s=3)

    assert [await alive(3.9), await alive(4), await alive(7)] == [2, 1, 0]


async def per_second(ledger: Ledger) -> float:
    return await ledger.run(figures.per_second_now, endpoint=ENDPOINT, limit=LIMIT, now=time.time())


async def test_the_pace_is_the_limit_until_refusals_slow_it_and_comes_back(ledger: Ledger) -> None:
    assert await per_second(ledger) == LIMIT
    assert await steps.rows(ledger, PACE) == [], "looking makes no row"

    await ledger.run(turns.slow_down, endpoint=ENDPOINT, limit=LIMIT, now=time.time())
    assert await per_second(ledger) == pytest.approx(SLOWER * LIMIT, abs=0.5 * FASTER_PER_S * LIMIT)
    await steps.execute(ledger, sa.update(PACE).values(slowed_at=PACE.c.slowed_at - 3))
    assert await per_second(ledger) == pytest.approx(
        (SLOWER + 3 * FASTER_PER_S) * LIMIT, abs=0.5 * FASTER_PER_S * LIMIT
    )
    await steps.execute(ledger, sa.update(PACE).values(slowed_at=PACE.c.slowed_at - 10))
    assert await per_second(ledger) == LIMIT


# A life


async def test_an_order_that_was_never_opened_has_no_life(ledger: Ledger) -> None:
    await decide(ledger, "o-1")

    assert await ledger.run(one_payment.payment_life, "o-2") is None


async def test_a_life_holds_every_attempt_with_what_it_met_and_rests_on(ledger: Ledger) -> None:
    await open_payment(ledger)
    first = await claim(ledger)
    failure = {"at": "2026-01-31T12:00:01+00:00", "reason": "server_error", "error": "503"}
    await ledger.run(moves.release_claim, first.order_id, claim="w-1/1", failure=failure)
    again = await claim(ledger, claim="w-1/2", now=later(30))
    lost = await ledger.run(moves.mark_unknown, again, claim="w-1/2", because="stored_error", now=later(33))
    await ledger.run(moves.end_absent, lost, claim="w-1/2", evidence=EVIDENCE, now=later(60))
    second = await claim(ledger, claim="w-1/3", now=later(90))

    life = await ledger.run(one_payment.payment_life, "o-1")

    assert life is not None
    before, after = life.calls
    assert (before.attempt, before.state, before.idempotency_key) == (1, OperationState.ABSENT, first.idempotency_key)
    assert (list(before.asks), before.first_asked_at) == ([NOW, later(30), later(33)], NOW)
    assert (list(before.failures), before.unknown_because) == ([failure], "stored_error")
    assert (before.evidence, before.answered_at, before.claimed_by) == (EVIDENCE, later(60), None)
    assert (after.attempt, after.state, after.idempotency_key) == (2, OperationState.STARTED, second.idempotency_key)
    assert (list(after.asks), list(after.failures), after.evidence, after.claimed_by) == ([later(90)], [], None, "w-1")
    assert (after.livemode, after.request_id, after.answered_at) == (False, None, None)
    assert (life.payment.state, life.opened_at, life.moved_at) == (PaymentState.OPEN, NOW, NOW)
    assert life.events == []


async def test_a_life_ends_with_the_answer_and_the_event_told_or_not(ledger: Ledger) -> None:
    event = await decide(ledger, "o-1", now=later(5))
    await decide(ledger, "o-2")
    # No payment has two events yet; where one will, they come in their order.
    another = {"event_id": "e-0", "order_id": "o-1", "sequence": 0, "type": "t", "body": "{}", "staged_at": later(9)}
    await steps.execute(ledger, sa.insert(EVENTS).values(another))

    life = await ledger.run(one_payment.payment_life, "o-1")
    await ledger.run(alone.mark_published, event.event_id, now=later(9))
    told = await ledger.run(one_payment.payment_life, "o-1")

    assert life is not None
    assert told is not None
    [call], [zeroth, staged], [_, published] = life.calls, life.events, told.events
    assert (zeroth.event_id, zeroth.staged_at) == ("e-0", later(9))
    assert (call.state, call.request_id, call.answered_at) == (OperationState.ANSWERED, "req_1", later(5))
    assert call.evidence == {"payment_id": "pi_o-1", "status": "requires_payment_method"}
    assert (life.payment.payment_id, life.opened_at, life.moved_at) == ("pi_o-1", NOW, later(5))
    assert (staged.event_id, staged.type, staged.sequence) == (event.event_id, "payment.intent_created", 1)
    assert (staged.staged_at, staged.published_at) == (later(5), None)
    assert (published.event_id, published.published_at) == (event.event_id, later(9))
