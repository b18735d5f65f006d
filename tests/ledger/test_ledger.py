"""The ledger's door: transactions shared and alone, a database that is locked, away or back."""

import asyncio
import sqlite3
from pathlib import Path

import pytest
import sqlalchemy as sa
from sqlalchemy.engine import Connection

from tests.harness import until
from tests.ledger.conftest import OpenLedger
from worker.errors import LedgerUnavailable, StaleMove
from worker.ledger import ledger as ledger_module
from worker.ledger.ledger import Ledger
from worker.ledger.migrate import migrate
from worker.ledger.schema import WORKERS
from worker.sandbox.postgres import PrivatePostgres


def add_worker(conn: Connection, number: int) -> int:
    conn.execute(sa.text("INSERT INTO workers VALUES (:id, '2026-01-01 00:00:00+00')"), {"id": f"worker-{number}"})
    return number


def add_and_fail(conn: Connection, number: int) -> None:
    add_worker(conn, number)
    raise StaleMove(f"of {number}")


def add_and_break(conn: Connection, number: int) -> None:
    add_worker(conn, number)
    conn.execute(sa.text("SELECT naught FROM nowhere WHERE secret = :secret"), {"secret": "hush-hush"})


def worker_ids(conn: Connection) -> set[str]:
    return set(conn.scalars(sa.select(WORKERS.c.worker_id)))


async def test_many_moves_at_once_all_happen_and_each_has_its_own_answer(ledger: Ledger) -> None:
    answers = await asyncio.gather(*(ledger.run(add_worker, number) for number in range(200)))

    assert answers == list(range(200))
    assert await ledger.run(worker_ids) == {f"worker-{number}" for number in range(200)}


async def test_a_move_that_fails_among_others_fails_alone_and_leaves_nothing(ledger: Ledger) -> None:
    moves = [add_and_fail if number in (7, 23) else add_worker for number in range(40)]
    answers = await asyncio.gather(
        *(ledger.run(move, number) for number, move in enumerate(moves)), return_exceptions=True
    )

    assert [number for number, answer in enumerate(answers) if isinstance(answer, StaleMove)] == [7, 23]
    assert str(answers[7]) == "of 7"
    assert await ledger.run(worker_ids) == {f"worker-{number}" for number in range(40) if number not in (7, 23)}


async def test_an_error_of_the_database_tells_no_values(ledger: Ledger) -> None:
    with pytest.raises(LedgerUnavailable) as told:
        await ledger.run(add_and_break, 1)

    assert "nowhere" in str(told.value)
    assert "hush-hush" not in str(told.value)
    assert await ledger.run(worker_ids) == set()


async def test_a_delivery_that_is_cancelled_while_it_waits_takes_no_other_with_it(ledger: Ledger) -> None:
    tasks = [asyncio.create_task(ledger.run(add_worker, number)) for number in range(20)]
    await asyncio.sleep(0)
    tasks[3].cancel()
    answers = await asyncio.gather(*tasks, return_exceptions=True)

    assert isinstance(answers[3], asyncio.CancelledError)
    assert [answer for answer in answers if isinstance(answer, int)] == [n for n in range(20) if n != 3]


async def test_closing_waits_for_what_was_begun(open_ledger: OpenLedger) -> None:
    ledger = open_ledger()
    begun = [asyncio.create_task(ledger.run(add_worker, number)) for number in range(20)]
    await asyncio.sleep(0)
    await ledger.__aexit__()
    assert await asyncio.gather(*begun) == list(range(20))


async def test_a_locked_sqlite_file_is_unavailable_and_then_well_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ledger_module, "LOCK_TIMEOUT_S", 0.1)
    path = tmp_path / "payments.db"
    async with Ledger(f"sqlite+aiosqlite:///{path}") as ledger:
        migrate(ledger.engine)
        other = sqlite3.connect(path, isolation_level=None)
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(LedgerUnavailable, match="locked"):
            await ledger.run(add_worker, 1)
        other.execute("ROLLBACK")
        other.close()

        assert await ledger.run(add_worker, 2) == 2


async def test_every_sqlite_commit_is_written_through_to_the_disk(tmp_path: Path) -> None:
    async with Ledger(f"sqlite:///{tmp_path}/payments.db") as ledger:
        pragmas = [await ledger.run(_pragma, name) for name in ("journal_mode", "synchronous", "foreign_keys")]

    assert pragmas == ["wal", 2, 1]


async def test_postgresql_away_is_unavailable_and_back_is_well() -> None:
    with PrivatePostgres() as postgres:
        async with Ledger(postgres.url) as ledger:
            migrate(ledger.engine)
            assert await ledger.run(add_worker, 1) == 1
            await postgres.stop()
            with pytest.raises(LedgerUnavailable):
                await ledger.run(add_worker, 2)
            await postgres.start()

            async def is_back() -> bool:
                try:
                    return await ledger.run(add_worker, 3) == 3
                except LedgerUnavailable:
                    return False

            await until(is_back, what="the ledger to be well again")
            assert await ledger.run(worker_ids) == {"worker-1", "worker-3"}


@pytest.mark.parametrize("url", ["not an address", "sqlite+aiosqlite"])
def test_an_address_that_cannot_be_read_is_told(url: str) -> None:
    with pytest.raises(LedgerUnavailable, match="cannot be read"):
        Ledger(url)


def _pragma(conn: Connection, name: str) -> object:
    return conn.scalar(sa.text(f"PRAGMA {name}"))
