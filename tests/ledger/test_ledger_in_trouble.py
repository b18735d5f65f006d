"""How the ledger's door behaves when many come at once, and when the database cannot."""

import asyncio
import os
import signal
import sqlite3
import threading
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psycopg
import psycopg.sql
import pytest
import sqlalchemy as sa

from tests.harness import until
from tests.ledger import alone, steps
from tests.ledger.conftest import OpenLedger
from tests.ledger.steps import NOW, claim, open_payment, record
from tests.ledger.test_order_moves import opening
from worker.errors import LedgerRefused, LedgerUnavailable, StaleMove
from worker.ledger import engine as engine_module
from worker.ledger import ledger as ledger_module
from worker.ledger import moves, turns
from worker.ledger.engine import open_engine
from worker.ledger.ledger import Ledger
from worker.ledger.migrate import migrate
from worker.ledger.order_moves import NotDue, OpenedInTurn, open_in_turn
from worker.ledger.schema import EVENTS, OPERATIONS, PAYMENTS
from worker.sandbox.postgres import PrivatePostgres

# Both engines


async def test_64_orders_at_once_are_all_decided(ledger: Ledger) -> None:
    told = await asyncio.gather(*(steps.decide(ledger, f"o-{number}") for number in range(64)))
    assert {row["order_id"] for row in await steps.rows(ledger, PAYMENTS)} == {f"o-{number}" for number in range(64)}
    assert {row["event_id"] for row in await steps.rows(ledger, EVENTS)} == {one.event_id for one in told}


async def test_64_deliveries_of_one_order_at_once_record_one_outcome(open_ledger: OpenLedger) -> None:
    workers = [open_ledger() for _ in range(4)]
    for number in range(4):
        await steps.is_alive(workers[number], f"w-{number}")

    async def deliver(number: int) -> bool:
        ledger = workers[number % 4]
        payment = await open_payment(ledger)
        if payment.is_decided:
            return False
        started = await steps.start_call(ledger, worker_id=f"w-{number % 4}", claim=f"c/{number}")
        if not isinstance(started, moves.Claimed):
            return False
        await record(ledger, payment, started.operation)
        return True

    assert sum(await asyncio.gather(*(deliver(number) for number in range(64)))) == 1
    assert len(await steps.rows(workers[0], EVENTS)) == 1


async def test_a_move_that_fails_among_many_fails_alone(ledger: Ledger) -> None:
    decided = await open_payment(ledger, "decided")
    operation = await claim(ledger, "decided")
    await record(ledger, decided, operation)

    def breaks(_: sa.Connection) -> None:
        raise KeyError("a bug in a move")

    def writes_and_breaks(conn: sa.Connection) -> None:
        alone.open_payment(conn, steps.order("undone"), **steps.UNNAMED, now=NOW)
        raise ZeroDivisionError

    ends = await asyncio.wait_for(
        asyncio.gather(
            open_payment(ledger, "o-1"),
            ledger.run(breaks),
            open_payment(ledger, "o-2"),
            record(ledger, decided, operation),
            steps.start_call(ledger, "nobody"),
            ledger.run(writes_and_breaks),
            open_payment(ledger, "o-3"),
            return_exceptions=True,
        ),
        timeout=30,
    )
    assert [type(end).__name__ for end in ends] == [
        "Payment",
        "KeyError",
        "Payment",
        "StaleMove",
        "LedgerRefused",
        "ZeroDivisionError",
        "Payment",
    ]
    assert {row["order_id"] for row in await steps.rows(ledger, PAYMENTS)} == {"decided", "o-1", "o-2", "o-3"}


async def test_a_delivery_that_is_cancelled_does_not_disturb_the_others(ledger: Ledger) -> None:
    cut = asyncio.create_task(open_payment(ledger, "cut"))
    others = [asyncio.create_task(open_payment(ledger, f"o-{number}")) for number in range(8)]
    await asyncio.sleep(0)  # lets all of them begin to wait
    cut.cancel()
    assert len(await asyncio.wait_for(asyncio.gather(*others), timeout=30)) == 8
    with pytest.raises(asyncio.CancelledError):
        await cut


async def test_neither_an_error_nor_its_traceback_shows_the_values(ledger: Ledger) -> None:
    """PostgreSQL's own text of a row that it refuses goes on with the whole row."""
    await steps.decide(ledger)
    await open_payment(ledger, "o-2")
    event = {"event_id": "e", "order_id": "o-1", "sequence": 9, "type": "t", "body": "Jenny Rosen", "staged_at": NOW}
    private = {"description": "Jenny Rosen, 1 Main St"}
    ends = await asyncio.gather(
        steps.start_call(ledger, "Jenny", params=private),
        steps.execute(ledger, sa.insert(EVENTS).values({**event, "event_id": "o-1/payment/1"})),
        steps.execute(ledger, sa.insert(EVENTS).values({**event, "order_id": "Jenny"})),
        steps.execute(ledger, sa.insert(EVENTS).values({**event, "type": None})),
        steps.execute(ledger, sa.insert(EVENTS).values({**event, "staged_at": NOW.replace(tzinfo=None)})),
        steps.execute(ledger, sa.update(PAYMENTS).values(amount_minor=-1, customer_id="Jenny")),
        return_exceptions=True,
    )
    for end in ends:
        assert isinstance(end, LedgerRefused), end
        assert str(end)
        assert "\n" not in str(end)
        assert "Jenny" not in "".join(traceback.format_exception(end))


@pytest.mark.parametrize("address", ["", "nothing", "postgresql://u:hunter2@h:port/d", "://", "sqlite"])
def test_an_address_that_cannot_be_read_is_told_without_showing_it(address: str) -> None:
    with pytest.raises(LedgerUnavailable, match=r"^the ledger's address cannot be read$"):
        open_engine(address)


@pytest.mark.parametrize("scheme", ["postgresql", "postgres", "postgresql+asyncpg", "postgresql+psycopg"])
def test_every_spelling_of_postgresql_is_served_by_the_driver_we_ship(scheme: str) -> None:
    engine = open_engine(f"{scheme}://u:p@127.0.0.1:1/d")
    assert (engine.dialect.name, engine.dialect.driver) == ("postgresql", "psycopg")


# SQLite


@pytest.fixture
def sqlite_file(tmp_path: Path) -> Path:
    engine = open_engine(f"sqlite:///{tmp_path}/payments.db")
    migrate(engine)
    engine.dispose()
    return tmp_path / "payments.db"


@contextmanager
def locked(file: Path) -> Iterator[None]:
    """Another program holds the write lock."""
    connection = sqlite3.connect(file, isolation_level=None)
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield
    finally:
        connection.rollback()
        connection.close()


@pytest.fixture
def brief_lock_timeout(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine_module, "LOCK_TIMEOUT_S", 0.2)


@pytest.mark.usefixtures("brief_lock_timeout")
async def test_a_locked_sqlite_file_is_unavailable_and_recovers(sqlite_file: Path) -> None:
    async with Ledger(f"sqlite:///{sqlite_file}") as ledger:
        with locked(sqlite_file), pytest.raises(LedgerUnavailable, match="database is locked"):
            await open_payment(ledger)
        assert (await open_payment(ledger)).order_id == "o-1"


@pytest.mark.usefixtures("brief_lock_timeout")
async def test_many_who_wait_for_a_locked_sqlite_file_wait_once_and_not_in_turn(sqlite_file: Path) -> None:
    async with Ledger(f"sqlite:///{sqlite_file}") as ledger:
        await steps.rows(ledger, PAYMENTS)
        with locked(sqlite_file):
            started = time.monotonic()
            waiting = asyncio.gather(
                *(open_payment(ledger, f"o-{number}") for number in range(100)), return_exceptions=True
            )
            ends = await asyncio.wait_for(waiting, timeout=60)
            took_s = time.monotonic() - started
        assert all(isinstance(end, LedgerUnavailable) for end in ends)
        assert len({id(end) for end in ends}) == 100  # a traceback of its own for each
        assert took_s < 100 * 0.2 / 2
        await asyncio.gather(*(open_payment(ledger, f"o-{number}") for number in range(100)))
        assert len(await steps.rows(ledger, PAYMENTS)) == 100


@pytest.mark.parametrize("is_new", [True, False])
async def test_a_lock_that_ends_in_time_is_only_waited_for(is_new: bool, tmp_path: Path, sqlite_file: Path) -> None:
    """A new file's first lock, for the switch to WAL, is one that SQLite does not wait for by itself."""
    file = tmp_path / "new.db" if is_new else sqlite_file
    begun, end = threading.Event(), threading.Event()

    def hold() -> None:
        with locked(file):
            begun.set()
            end.wait(30)

    def answer(conn: sa.Connection) -> int:
        return int(conn.exec_driver_sql("SELECT 42").scalar_one())

    holder = threading.Thread(target=hold)
    async with Ledger(f"sqlite:///{file}") as ledger:
        holder.start()
        begun.wait(30)
        waiting = asyncio.create_task(ledger.run(answer))
        done, _ = await asyncio.wait([waiting], timeout=0.3)
        assert not done
        end.set()
        assert await waiting == 42
        holder.join()


@pytest.mark.usefixtures("brief_lock_timeout")
async def test_a_new_sqlite_file_that_stays_locked_is_unavailable(tmp_path: Path) -> None:
    async with Ledger(f"sqlite:///{tmp_path}/new.db") as ledger:
        with locked(tmp_path / "new.db"), pytest.raises(LedgerUnavailable, match="database is locked"):
            await open_payment(ledger)


async def test_a_sqlite_ledger_outlives_a_power_cut_by_its_settings(sqlite_file: Path) -> None:
    async with Ledger(f"sqlite:///{sqlite_file}") as ledger:

        def read(conn: sa.Connection) -> list[Any]:
            return [conn.exec_driver_sql(f"PRAGMA {name}").scalar() for name in ("journal_mode", "synchronous")]

        assert await ledger.run(read) == ["wal", 2]  # 2 is FULL: an fsync for every commit


async def test_a_sqlite_file_that_cannot_be_opened_is_unavailable(tmp_path: Path) -> None:
    async with Ledger(f"sqlite:///{tmp_path}/no/such/folder/payments.db") as ledger:
        with pytest.raises(LedgerUnavailable, match="unable to open database file"):
            await open_payment(ledger)


async def test_a_file_that_is_no_sqlite_database_is_unavailable(tmp_path: Path) -> None:
    (tmp_path / "payments.db").write_bytes(b"something else altogether " * 100)
    async with Ledger(f"sqlite:///{tmp_path}/payments.db") as ledger:
        with pytest.raises(LedgerUnavailable, match="file is not a database"):
            await open_payment(ledger)


async def test_nobody_waits_for_ever_on_a_ledger_that_is_closed(sqlite_file: Path) -> None:
    async with Ledger(f"sqlite:///{sqlite_file}") as ledger:
        await open_payment(ledger)
    with pytest.raises(LedgerUnavailable, match="the ledger is closed"):
        await asyncio.wait_for(open_payment(ledger), timeout=10)


async def test_moves_that_wait_when_the_ledger_is_closed_are_done_first(sqlite_file: Path) -> None:
    async with Ledger(f"sqlite:///{sqlite_file}") as ledger:
        waiting = [asyncio.create_task(open_payment(ledger, f"o-{number}")) for number in range(20)]
        await asyncio.sleep(0)  # lets all of them begin to wait
    assert len(await asyncio.gather(*waiting)) == 20


# PostgreSQL


async def test_postgresql_that_is_stopped_is_unavailable_and_works_again_once_started(
    postgres: PrivatePostgres,
) -> None:
    url = await postgres.create_database("stopped_and_started")
    engine = open_engine(url)
    migrate(engine)
    engine.dispose()
    async with Ledger(url) as ledger:
        payment = await open_payment(ledger)
        try:
            await postgres.stop()
            for _ in range(2):
                with pytest.raises(LedgerUnavailable, match=r"AdminShutdown|OperationalError"):
                    await claim(ledger)
        finally:
            await postgres.start()
        # the connections of the pool are dead ones; the first move already gets a new one
        await record(ledger, payment, await claim(ledger))
        assert len(await steps.rows(ledger, EVENTS)) == 1


async def test_postgresql_that_stops_in_the_middle_of_a_move_undoes_it(postgres: PrivatePostgres) -> None:
    url = await postgres.create_database("stopped_in_the_middle")
    engine = open_engine(url)
    migrate(engine)
    engine.dispose()
    inside, stopped = threading.Event(), threading.Event()

    def halts(conn: sa.Connection) -> None:
        alone.open_payment(conn, steps.order("half"), **steps.UNNAMED, now=NOW)
        inside.set()
        stopped.wait(60)
        alone.open_payment(conn, steps.order("other-half"), **steps.UNNAMED, now=NOW)

    async with Ledger(url) as ledger:
        running = asyncio.create_task(ledger.run(halts))
        await asyncio.to_thread(inside.wait, 60)
        try:
            await postgres.stop()
            stopped.set()
            with pytest.raises(LedgerUnavailable):
                await running
        finally:
            stopped.set()
            await postgres.start()
        assert await steps.rows(ledger, PAYMENTS) == []


async def test_a_password_that_postgresql_refuses_is_not_shown(postgres: PrivatePostgres) -> None:
    url = sa.make_url(postgres.url).set(password="hunter2")
    async with Ledger(url.render_as_string(hide_password=False)) as ledger:
        with pytest.raises(LedgerUnavailable) as caught:
            await open_payment(ledger)
    assert "password authentication failed" in str(caught.value)
    assert "hunter2" not in f"{caught.value} {caught.value.__cause__}"


async def test_a_row_that_another_connection_holds_is_not_waited_for_for_ever(
    postgres: PrivatePostgres, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine_module, "LOCK_TIMEOUT_S", 1)
    url = await postgres.create_database("held_row")
    engine = open_engine(url)
    migrate(engine)
    async with Ledger(url) as ledger:
        payment = await open_payment(ledger)
        operation = await claim(ledger)
        with engine.begin() as conn:
            conn.execute(sa.select(PAYMENTS).with_for_update())
            with pytest.raises(LedgerUnavailable, match="lock timeout"):
                await record(ledger, payment, operation)
        await record(ledger, payment, operation)
        with pytest.raises(StaleMove):
            await record(ledger, payment, operation)
    engine.dispose()


async def test_a_postgresql_that_is_frozen_is_told_and_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """It closes no connection and answers nothing: only a clock of our own notices."""
    monkeypatch.setattr(ledger_module, "ANSWER_TIMEOUT_S", 0.5)
    with PrivatePostgres() as postgres:
        async with Ledger(postgres.url) as ledger:
            migrate(ledger.engine)
            await open_payment(ledger, "o-1")
            frozen = [postgres.pid, *children_of(postgres.pid)]
            for pid in frozen:
                os.kill(pid, signal.SIGSTOP)
            try:
                with pytest.raises(LedgerUnavailable, match="has not answered within"):
                    await open_payment(ledger, "o-2")
            finally:
                for pid in frozen:
                    os.kill(pid, signal.SIGCONT)
            monkeypatch.setattr(ledger_module, "ANSWER_TIMEOUT_S", 20)
            assert (await open_payment(ledger, "o-3")).order_id == "o-3"


@pytest.mark.parametrize("engine_name", ["postgresql"])
async def test_beside_openings_that_wait_for_one_row_the_rest_of_the_ledger_goes_on(
    open_ledger: OpenLedger, url: str
) -> None:
    """A worker was frozen while it had the row of the turns; above all no sign of life must wait for it."""
    ledger = open_ledger()
    wanted = turns.Wanted("create", 1000, time.time())
    await steps.lease(ledger, wanted, 1)
    await asyncio.sleep(0.1)
    with psycopg.connect(url.replace("+psycopg", "")) as frozen:
        frozen.execute("SELECT * FROM pace FOR UPDATE")
        openings = [
            asyncio.create_task(ledger.run_grouped(open_in_turn, (opening(f"o-{number}"), wanted)))
            for number in range(32)
        ]
        await asyncio.sleep(2 * ledger_module.GROUP_LOCK_TIMEOUT_MS / 1000)
        async with asyncio.timeout(2):
            await ledger.run(moves.sign_of_life, "w-1", now=NOW)
        assert not any(task.done() for task in openings)
        frozen.rollback()
    assert all(isinstance(each, OpenedInTurn | NotDue) for each in await asyncio.gather(*openings))


@pytest.mark.parametrize("engine_name", ["postgresql"])
async def test_a_move_told_as_failed_before_it_began_is_not_done_later(
    open_ledger: OpenLedger, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    ledger, other = open_ledger(), open_ledger()
    await open_payment(ledger, "o-1")
    with psycopg.connect(url.replace("+psycopg", "")) as psql:
        psql.execute("LOCK TABLE workers")
        lanes = [
            asyncio.create_task(ledger.run(moves.sign_of_life, "w-1", now=NOW))
            for _ in range(engine_module.POSTGRES_LANES)
        ]
        locked_out = "SELECT count(*) FROM pg_locks WHERE relation = 'workers'::regclass AND NOT granted"
        await until(lambda: psql.execute(locked_out).fetchone() == (len(lanes),), what="every lane to wait")
        monkeypatch.setattr(ledger, "_answer_timeout_s", 0.5)
        with pytest.raises(LedgerUnavailable):
            await claim(ledger, "o-1")
        psql.rollback()
    await asyncio.gather(*lanes, return_exceptions=True)
    monkeypatch.setattr(ledger, "_answer_timeout_s", 20)
    await asyncio.gather(*(ledger.run(moves.read_payment, "o-1") for _ in lanes))  # whatever was left is done by now
    assert await steps.rows(other, OPERATIONS) == []


@pytest.mark.parametrize("engine_name", ["postgresql"])
async def test_a_database_with_another_isolation_by_default_is_told_ours(open_ledger: OpenLedger, url: str) -> None:
    with psycopg.connect(url.replace("+psycopg", ""), autocommit=True) as psql:
        [name] = psql.execute("SELECT current_database()").fetchone() or [""]
        psql.execute(
            psycopg.sql.SQL("ALTER DATABASE {} SET default_transaction_isolation = 'serializable'").format(
                psycopg.sql.Identifier(name)
            )
        )
    isolation = await open_ledger().run(lambda conn: conn.scalar(sa.text("SHOW transaction_isolation")))
    assert isolation == "read committed"


def children_of(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
