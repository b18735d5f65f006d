"""The moves of groups: each row has its own answer, one that cannot be moved hinders no other, and none is early."""

import asyncio
import sqlite3
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import psycopg
import pytest
import sqlalchemy as sa

from tests.harness import until
from tests.ledger import steps
from tests.ledger.conftest import OpenLedger
from tests.ledger.steps import NOW, PARAMS, claim, event, intent_answer, later, open_payment, order
from worker.errors import LedgerUnavailable, StaleMove
from worker.ledger import moves, requests, turns
from worker.ledger.ledger import Ledger
from worker.ledger.order_moves import (
    NotDue,
    OpenedInTurn,
    Opening,
    Published,
    Recording,
    mark_published,
    open_in_turn,
    open_orders,
    record_answers,
)
from worker.ledger.schema import EVENTS, OPERATIONS, PACE, PAYMENTS
from worker.payment import OperationState, PaymentState
from worker.payment_command import CommandKind, Request


def opening(order_id: str = "o-1", **changed: Any) -> Opening:
    of_the_order = {name: changed.pop(name) for name in ("amount", "customer_id") if name in changed}
    arguments: dict[str, Any] = {
        "order": order(order_id, **of_the_order),
        "cause": "e-1",
        "correlation_id": None,
        "traceparent": None,
        "params": PARAMS,
        "livemode": False,
        "worker_id": "w-1",
        "claim": f"w-1/{order_id}",
        "now": NOW,
    }
    return Opening(**(arguments | changed))


async def open_all(ledger: Ledger, openings: Sequence[Opening]) -> list[Any]:
    """Many deliveries at one moment."""
    asked = (ledger.run_grouped(open_orders, each) for each in openings)
    return await asyncio.wait_for(asyncio.gather(*asked, return_exceptions=True), timeout=30)


async def test_no_more_orders_are_opened_than_turns_are_due(ledger: Ledger) -> None:
    wanted = turns.Wanted("POST /v1/payment_intents", 5, time.time())
    first = await ledger.run_grouped(open_in_turn, (opening("o-0"), wanted))
    assert isinstance(first, OpenedInTurn), "nobody has ever taken one"
    assert first.wait_s == 0
    await asyncio.sleep(0.4)  # then two are due: one at once, and one that was saved up

    names = ["o-1", "o-2", "o-1", "o-3"]
    answers = await asyncio.gather(
        *(ledger.run_grouped(open_in_turn, (opening(name), replace(wanted, now=time.time()))) for name in names)
    )
    assert [type(answer) for answer in answers] == [OpenedInTurn, OpenedInTurn, NotDue, NotDue]
    assert {row["order_id"] for row in await steps.rows(ledger, PAYMENTS)} == {"o-0", "o-1", "o-2"}
    assert (await steps.lease(ledger, wanted, 1)).wait_s > 0.1


async def test_an_order_that_was_here_before_takes_no_turn(ledger: Ledger) -> None:
    await ledger.run_grouped(open_orders, opening("o-1"))
    wanted = turns.Wanted("POST /v1/payment_intents", 5, time.time())
    await steps.lease(ledger, wanted, 1)
    (before,) = await steps.rows(ledger, PACE)
    await asyncio.sleep(0.4)
    assert await ledger.run_grouped(open_in_turn, (opening("o-1"), replace(wanted, now=time.time()))) is None
    assert await steps.rows(ledger, PACE) == [before]


async def test_an_order_is_opened_with_its_call_claimed(ledger: Ledger) -> None:
    opened = await ledger.run_grouped(open_orders, opening(customer_id="cus_1", claim="w-1/7", traceparent="00-trace"))
    assert opened
    assert opened.payment == await ledger.run(moves.read_payment, "o-1")
    assert [opened.call] == await ledger.run(moves.operations_of, "o-1")
    (call,) = await steps.rows(ledger, OPERATIONS)
    assert (call["claimed_by"], call["claim"], call["state"]) == ("w-1", "w-1/7", OperationState.STARTED)
    assert (call["first_asked_at"], call["last_asked_at"], call["asked"]) == (NOW, NOW, 1)
    await steps.is_alive(ledger)
    assert await steps.start_call(ledger, worker_id="w-2", claim="w-2/1") == moves.Busy("w-1")


async def test_a_row_is_written_as_if_it_were_alone(ledger: Ledger) -> None:
    """Times, numbers, nulls and text are those that SQLAlchemy itself would have written and reads again."""
    now = later(0.000001).replace(second=7)
    params = {"amount": 999_999_999_999, "description": 'Jenny "Rosen" \\ \' ä 🙂 \u2028 %s :a $1', "metadata": {}}
    await ledger.run_grouped(open_orders, opening(amount="9999999999.99", params=params, now=now))
    operation = (await ledger.run(moves.operations_of, "o-1"))[0]
    payment = await ledger.run(moves.known_payment, "o-1")
    assert operation.params == params
    assert payment.amount_minor == 999_999_999_999
    answer = intent_answer(payment)
    told = replace(event(answer), body='{"a":"\\u0000 ä 🙂 \\\\ \\""}')
    await ledger.run_grouped(record_answers, Recording(payment, answer, operation, told, now))

    def once_more(conn: sa.Connection) -> None:
        of_a_row = {name: getattr(told, name) for name in ("order_id", "type", "body", "correlation_id", "traceparent")}
        conn.execute(sa.insert(EVENTS).values(event_id="alone", sequence=2, staged_at=now, **of_a_row))

    await ledger.run(once_more)
    grouped, alone = await ledger.run(_raw_events)
    assert grouped == alone
    (row,) = await steps.rows(ledger, PAYMENTS)
    assert (row["moved_at"], row["livemode"], row["state"]) == (now, False, PaymentState.INTENT_CREATED)
    (call,) = await steps.rows(ledger, OPERATIONS)
    assert (call["answered_at"], call["request_id"], call["claim"], call["asked"]) == (now, "req_1", None, 1)


def _raw_events(conn: sa.Connection) -> list[tuple[Any, ...]]:
    """As the database itself has them, without SQLAlchemy's types."""
    columns = "order_id, type, body, correlation_id, traceparent, staged_at, published_at"
    return [tuple(row) for row in conn.exec_driver_sql(f"SELECT {columns} FROM events ORDER BY sequence")]


async def test_of_many_deliveries_of_one_order_one_opens_it(ledger: Ledger) -> None:
    opened = await open_all(ledger, [opening(f"o-{number % 3}", claim=f"w-1/{number}") for number in range(60)])
    assert sorted(each.payment.order_id for each in opened if each) == ["o-0", "o-1", "o-2"]
    assert {row["claim"] for row in await steps.rows(ledger, OPERATIONS)} == {"w-1/0", "w-1/1", "w-1/2"}
    known, new = await open_all(ledger, [opening("o-0"), opening("o-3")])
    assert known is None
    assert new.payment.order_id == "o-3"


async def test_workers_that_open_the_same_orders_in_other_orders_do_not_lock_each_other_out(
    open_ledger: OpenLedger,
) -> None:
    names = [f"o-{number}" for number in range(40)]
    workers = [open_ledger() for _ in range(4)]
    asked = [
        open_all(worker, [opening(name, worker_id=f"w-{turn}") for name in names[turn * 10 :] + names[: turn * 10]])
        for turn, worker in enumerate(workers)
    ]
    answers = [answer for answers in await asyncio.gather(*asked) for answer in answers]
    assert sum(bool(answer) for answer in answers) == 40
    assert not [answer for answer in answers if isinstance(answer, BaseException)]


async def test_an_order_whose_cancel_came_first_is_opened_without_a_call(ledger: Ledger) -> None:
    cancel = Request("o-1", "c-1", CommandKind.CANCEL, {"reason": None, "refund_if_paid": False}, "m-1", None, None)
    await ledger.run(requests.keep, cancel, now=NOW)
    canceled, other = await open_all(ledger, [opening("o-1"), opening("o-2")])
    assert canceled.call is None
    assert canceled.payment.state is PaymentState.OPEN
    assert other.call.order_id == "o-2"
    assert isinstance(await steps.start_call(ledger, "o-1"), moves.CanceledBefore)


async def test_a_row_that_the_ledger_refuses_hinders_no_other(ledger: Ledger) -> None:
    naive = opening("naive", now=NOW.replace(tzinfo=None))
    long_claim = opening("long", cause="c" * 256) if ledger.engine.dialect.name == "postgresql" else naive
    ends = await open_all(ledger, [opening("o-1"), naive, opening("o-2"), long_claim, opening("o-3")])
    assert [type(end).__name__ for end in ends] == ["Opened", "LedgerRefused", "Opened", "LedgerRefused", "Opened"]
    assert {row["order_id"] for row in await steps.rows(ledger, PAYMENTS)} == {"o-1", "o-2", "o-3"}
    assert "c" * 20 not in str(ends[3])


async def test_a_stale_answer_among_many_is_stale_alone(ledger: Ledger) -> None:
    payments = {name: await open_payment(ledger, name) for name in ("o-1", "o-2", "o-3", "o-4")}
    calls = {name: await claim(ledger, name) for name in payments}
    await steps.record(ledger, payments["o-2"], calls["o-2"])
    recordings = []
    for name in ("o-1", "o-2", "o-3", "o-3", "o-4"):  # the third one twice at once
        answer = intent_answer(payments[name])
        recordings.append(Recording(payments[name], answer, calls[name], event(answer), later(1)))
    asked = (ledger.run_grouped(record_answers, each) for each in recordings)
    ends = await asyncio.gather(*asked, return_exceptions=True)
    *others, last = [type(end) for end in ends]
    twice = others[2:]  # side by side on PostgreSQL: which of the two is first is not said
    assert [*others[:2], last] == [type(None), StaleMove, type(None)]
    assert sorted(twice, key=str) == [type(None), StaleMove]
    assert str(ends[1]) == "o-2 has moved meanwhile"
    assert len(await steps.rows(ledger, EVENTS)) == 4


async def test_what_is_published_is_marked_once(ledger: Ledger) -> None:
    told = [await steps.decide(ledger, f"o-{number}") for number in range(3)]
    marks = [Published(each.event_id, later(number)) for number, each in enumerate(told)]
    await asyncio.gather(*(ledger.run_grouped(mark_published, each) for each in [*marks, Published("none", NOW)]))
    await ledger.run_grouped(mark_published, Published(told[0].event_id, later(99)))
    assert [row["published_at"] for row in await steps.rows(ledger, EVENTS)] == [later(0), later(1), later(2)]


async def test_who_has_an_answer_has_it_in_the_ledger(url: str, open_ledger: OpenLedger) -> None:
    """Looked at from another connection at the moment of the answer: group commit acknowledges nothing early."""
    ledger, other = open_ledger(), open_ledger()
    missing = []

    async def order_then_look(number: int) -> None:
        assert await ledger.run_grouped(open_orders, opening(f"o-{number}"))
        with other.engine.connect() as conn:
            found = conn.scalar(sa.select(OPERATIONS.c.order_id).where(OPERATIONS.c.order_id == f"o-{number}"))
        if found is None:
            missing.append(number)

    for wave in range(4):
        await asyncio.gather(*(order_then_look(number) for number in range(wave * 50, wave * 50 + 50)))
    assert missing == []


async def test_a_commit_that_fails_answers_nobody(ledger: Ledger) -> None:
    def fail(_: sa.Connection) -> None:
        raise sa.exc.OperationalError("COMMIT", None, sqlite3.OperationalError("disk I/O error"))

    sa.event.listen(ledger.engine, "commit", fail)
    ends = await open_all(ledger, [opening(f"o-{number}") for number in range(20)])
    sa.event.remove(ledger.engine, "commit", fail)
    assert {type(end) for end in ends} == {LedgerUnavailable}
    assert await steps.rows(ledger, PAYMENTS) == []
    assert all(await open_all(ledger, [opening(f"o-{number}") for number in range(20)]))


@pytest.mark.parametrize("times", range(3))
async def test_what_a_killed_process_said_it_has_is_there(url: str, ledger: Ledger, times: int) -> None:
    program = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "tests.ledger.opens_orders", url, stdout=asyncio.subprocess.PIPE
    )
    assert program.stdout
    said = [(await asyncio.wait_for(program.stdout.readline(), 30)).decode().strip() for _ in range(100 + 37 * times)]
    program.kill()
    said += (await program.stdout.read()).decode().split("\n")[:-1]
    await program.wait()
    assert {row["order_id"] for row in await steps.rows(ledger, OPERATIONS)} >= set(said)
    assert len(said) >= 100


async def test_what_nobody_waits_for_is_done_before_the_ledger_closes(open_ledger: OpenLedger, url: str) -> None:
    told = [await steps.decide(open_ledger(), f"o-{number}") for number in range(3)]
    async with Ledger(url) as ledger:
        for number, each in enumerate(told):
            ledger.run_soon(mark_published, Published(each.event_id, later(number)))
    rows = await steps.rows(open_ledger(), EVENTS)
    assert [row["published_at"] for row in rows] == [later(0), later(1), later(2)]


async def test_what_nobody_waits_for_is_done_by_itself(ledger: Ledger) -> None:
    told = await steps.decide(ledger)
    ledger.run_soon(mark_published, Published(told.event_id, NOW))

    def published_at(conn: sa.Connection) -> Any:
        return conn.scalar(sa.select(EVENTS.c.published_at))

    await until(lambda: ledger.look(published_at), what="the mark")  # no batch of others takes it along


async def test_what_nobody_waits_for_and_fails_is_told_to_the_log_and_stops_nobody(
    ledger: Ledger, capsys: pytest.CaptureFixture[str]
) -> None:
    await open_payment(ledger)

    def breaks(_: sa.Connection, rows: Sequence[int]) -> Sequence[None]:
        raise KeyError(len(rows))

    ledger.run_soon(breaks, 1)
    assert (await ledger.run_grouped(open_orders, opening("o-2"))) is not None
    assert "left_undone" in capsys.readouterr().out
    assert (await ledger.run(moves.read_payment, "o-1")) is not None


@pytest.mark.parametrize("engine_name", ["sqlite"])
async def test_a_lock_in_the_middle_of_row_by_row_is_waited_for_once(ledger: Ledger, tmp_path: Path) -> None:
    """A row is refused, so that each is tried alone; another process takes the lock as soon as it can."""
    other = sqlite3.connect(tmp_path / "payments.db", isolation_level=None, check_same_thread=False, timeout=30)

    def refuse_and_lock(conn: sa.Connection, openings: Sequence[Opening]) -> Sequence[Any]:
        if openings[0].order.order_id != "refused":
            return open_orders(conn, openings)
        if len(openings) == 1:  # its turn to be tried alone: as soon as it is undone the lock is the other's
            conn.rollback()
            other.execute("BEGIN IMMEDIATE")
        raise ValueError("refused")

    names = ["refused", *(f"o-{number}" for number in range(40))]
    asked = (ledger.run_grouped(refuse_and_lock, opening(name)) for name in names)
    started = time.monotonic()
    ends = await asyncio.gather(*asked, return_exceptions=True)
    other.execute("ROLLBACK")
    other.close()
    assert [type(end) for end in ends] == [ValueError, *[LedgerUnavailable] * 40]
    assert time.monotonic() - started < 15, "each waited for it anew"


@pytest.mark.parametrize("engine_name", ["postgresql"])
async def test_who_is_locked_out_holds_up_nobody_else(open_ledger: OpenLedger, url: str) -> None:
    ledger = open_ledger()
    with psycopg.connect(url.replace("+psycopg", "")) as psql:
        for number in range(4):
            psql.execute(
                "INSERT INTO payments (order_id, state, amount_minor, currency, sequence, opened_at, moved_at)"
                " VALUES (%s, 'open', 1, 'usd', 0, now(), now())",
                (f"locked-{number}",),
            )
        locked = [asyncio.create_task(ledger.run_grouped(open_orders, opening(f"locked-{each}"))) for each in range(4)]
        await asyncio.sleep(0)
        others = await asyncio.wait_for(open_all(ledger, [opening(f"o-{number}") for number in range(60)]), 4)
        later = await asyncio.wait_for(open_all(ledger, [opening(f"later-{number}") for number in range(60)]), 4)
        assert all(others)
        assert all(later)
        assert not any(each.done() for each in locked)
        psql.rollback()
    assert all(await asyncio.gather(*locked))


async def test_a_closed_ledger_says_so(url: str) -> None:
    async with Ledger(url) as ledger:
        pass
    for asked in (ledger.run(moves.read_payment, "o-1"), ledger.run_grouped(open_orders, opening())):
        with pytest.raises(LedgerUnavailable, match="closed"):
            await asked
