"""The rate that all workers keep to together; the same on both engines. PostgreSQL takes a clock of its own."""

import asyncio
import time
from itertools import pairwise

import pytest
import sqlalchemy as sa

from tests.ledger import steps
from tests.ledger.conftest import OpenLedger
from worker.errors import LedgerUnavailable
from worker.ledger import turns
from worker.ledger.ledger import Ledger
from worker.ledger.schema import PACE
from worker.pace import BURST_S, FASTER_PER_S, SLOWER

LIMIT = 100.0
ENDPOINT = "POST /v1/payment_intents"


async def lease(ledger: Ledger, count: int = 1, *, limit: float = LIMIT, endpoint: str = ENDPOINT) -> turns.Lease:
    return await ledger.run(turns.lease_turns, endpoint=endpoint, count=count, limit=limit, now=time.time())


async def slow_down(ledger: Ledger) -> float:
    return await ledger.run(turns.slow_down, endpoint=ENDPOINT, limit=LIMIT, now=time.time())


async def let_pass(ledger: Ledger, seconds: float) -> None:
    """As if the last refusal had been so much earlier."""
    await steps.execute(ledger, sa.update(PACE).values(slowed_at=PACE.c.slowed_at - seconds))


def leased_times(conn: sa.Connection, count: int) -> tuple[float, float]:
    """A lease as the times of its first turn and of the one after its last."""
    taken = turns.lease_turns(conn, endpoint=ENDPOINT, count=count, limit=LIMIT, now=time.time())
    end = conn.execute(sa.select(PACE.c.next_at)).scalar_one()
    return end - count * taken.gap_s, end


async def test_the_leases_of_two_workers_never_overlap_and_come_at_the_rate(open_ledger: OpenLedger) -> None:
    workers = [open_ledger(), open_ledger()]
    counts = [number % 5 + 1 for number in range(60)]
    leases = await asyncio.gather(
        *(workers[number % 2].run(leased_times, count) for number, count in enumerate(counts))
    )
    times = sorted(leases)
    assert all(end <= start + 1e-5 for (_, end), (start, _) in pairwise(times))
    assert times[-1][1] - times[0][0] >= sum(counts) / LIMIT - 1e-3
    assert len(await steps.rows(workers[0], PACE)) == 1


def seen_then_taken(conn: sa.Connection, *, by_others: int) -> tuple[int, float]:
    wanted = turns.Wanted(ENDPOINT, LIMIT, time.time())
    seen = turns.look_at_turns(conn, wanted)
    assert seen
    if by_others:
        turns.lease_turns(conn, endpoint=ENDPOINT, count=by_others, limit=LIMIT, now=wanted.now)
    return seen.due, turns.take_seen(conn, seen, count=3)


async def test_turns_that_were_seen_are_taken_unless_another_worker_was_faster(ledger: Ledger) -> None:
    await lease(ledger)
    await asyncio.sleep(2 * BURST_S)
    due, wait_s = await ledger.run(seen_then_taken, by_others=0)
    assert (due, wait_s) == (1 + BURST_S * LIMIT, 0)
    assert (await lease(ledger)).wait_s == pytest.approx(3 / LIMIT - BURST_S, abs=0.05)
    await asyncio.sleep(2 * BURST_S)
    due, wait_s = await ledger.run(seen_then_taken, by_others=30)
    assert due == 1 + BURST_S * LIMIT
    assert wait_s == pytest.approx((30 + 3 - 1) / LIMIT - BURST_S, abs=0.05)


async def test_the_next_lease_waits_until_the_one_before_is_used_up(ledger: Ledger) -> None:
    first = await lease(ledger, 5, limit=1)
    assert (first.wait_s, first.gap_s, first.count) == (pytest.approx(-BURST_S, abs=1e-3), 1, 5)
    second = await lease(ledger, 1, limit=1)
    assert second.wait_s == pytest.approx(5 - BURST_S, abs=0.5)
    third = await lease(ledger, 1, limit=1)
    assert third.wait_s == pytest.approx(6 - BURST_S, abs=0.5)


async def test_each_endpoint_has_turns_of_its_own(ledger: Ledger) -> None:
    await lease(ledger, 50, limit=1)
    other = await lease(ledger, 1, limit=1, endpoint="GET /v1/payment_intents")
    assert other.wait_s < 0


async def test_refusals_of_one_moment_count_once_and_all_workers_go_slower(open_ledger: OpenLedger) -> None:
    workers = [open_ledger(), open_ledger()]
    before = await lease(workers[0])
    assert before.gap_s == pytest.approx(1 / LIMIT)

    told = await asyncio.gather(*(slow_down(workers[number % 2]) for number in range(8)))

    slowed, at_most = LIMIT * SLOWER, LIMIT * (SLOWER + FASTER_PER_S)
    assert all(slowed - 1e-6 <= per_second <= at_most for per_second in told)
    for worker in workers:
        assert slowed - 1e-6 <= 1 / (await lease(worker)).gap_s <= LIMIT * (SLOWER + 4 * FASTER_PER_S)


async def test_a_refusal_of_a_later_moment_slows_further(ledger: Ledger) -> None:
    assert await slow_down(ledger) == pytest.approx(LIMIT * SLOWER)
    await let_pass(ledger, 1)
    further = await slow_down(ledger)
    assert further == pytest.approx((LIMIT * SLOWER + LIMIT * FASTER_PER_S) * SLOWER, abs=3)
    assert 1 / (await lease(ledger)).gap_s == pytest.approx(further, abs=3)


async def test_without_more_refusals_the_rate_comes_back_to_the_limit(ledger: Ledger) -> None:
    await slow_down(ledger)
    await let_pass(ledger, 3600)
    assert (await lease(ledger)).gap_s == pytest.approx(1 / LIMIT)


@pytest.mark.parametrize("engine_name", ["postgresql"])
async def test_a_worker_frozen_in_the_middle_of_a_lease_stops_the_others_only_for_seconds(ledger: Ledger) -> None:
    """It holds the row of all. SQLite cannot end it: there a frozen worker holds the whole file."""
    await lease(ledger)
    with ledger.engine.connect() as frozen:
        turns.lease_turns(frozen, endpoint=ENDPOINT, count=1, limit=LIMIT, now=time.time())

        with pytest.raises(LedgerUnavailable):
            await lease(ledger)
        await lease(ledger)

        with pytest.raises(sa.exc.DBAPIError):
            frozen.execute(sa.select(PACE))
        frozen.invalidate()


async def test_a_clock_that_was_put_back_neither_keeps_the_rate_slow_nor_hides_the_next_refusal(ledger: Ledger) -> None:
    await slow_down(ledger)
    await steps.execute(ledger, sa.update(PACE).values(slowed_at=PACE.c.slowed_at + 3600))
    assert 1 / (await lease(ledger)).gap_s == pytest.approx(LIMIT)
    assert await slow_down(ledger) == pytest.approx(LIMIT * SLOWER)
    assert 1 / (await lease(ledger)).gap_s < LIMIT
