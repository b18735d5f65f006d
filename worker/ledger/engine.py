"""Opens the ledger's database: drivers, time limits, what each connection is told first.

Moves run on threads with SQLAlchemy's plain drivers: measured on this project's own moves, a statement through
aiosqlite costs four times the processor time of the same statement on a thread (it hops threads for each one).
So `sqlite+aiosqlite://` and `postgresql+asyncpg://` addresses are taken and served by pysqlite and psycopg.
"""

import math
import time
from pathlib import Path
from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy.engine import Connection, Engine
from sqlalchemy.pool import ConnectionPoolEntry

from worker.errors import LedgerUnavailable
from worker.ledger.given import by_driver

# As many transactions as a handful of cores can turn over; more would only queue inside PostgreSQL.
POSTGRES_LANES: Final = 8
# A writer in another process holds the lock for milliseconds; five seconds of it is a fault worth telling.
LOCK_TIMEOUT_S: Final = 5
# A worker frozen in a transaction holds its rows no longer: above the patience of those who wait for one.
FROZEN_TIMEOUT_S: Final = 8
STATEMENT_TIMEOUT_S: Final = 15
# What is written to one page by many commits is copied back once: 32 MiB of log instead of SQLite's own 4.
WAL_PAGES: Final = 8000
RESTED_S: Final = 0.5
WAL_TRY_S: Final = 0.02
# libpq takes them behind the question mark too: https://www.postgresql.org/docs/current/libpq-connect.html.
_SECRET_PARAMETERS: Final = ("password", "sslpassword")


def told_address(url: str) -> str:
    """Where a ledger is, as people may see it. A path is told whole: in another folder it is another ledger.

    Raises LedgerUnavailable for an address it cannot read.
    """
    address = _read_address(url)
    if address.get_backend_name() == "sqlite":
        return str(Path(address.database or ":memory:").absolute())
    return address.difference_update_query(_SECRET_PARAMETERS).render_as_string(hide_password=True)


def _read_address(url: str) -> sa.URL:
    try:
        return sa.make_url(url)
    except (sa.exc.ArgumentError, ValueError):  # the second one for a port that is no number
        raise LedgerUnavailable("the ledger's address cannot be read") from None


def open_engine(url: str) -> Engine:
    """An engine on the drivers this project ships. Raises LedgerUnavailable for an address it cannot read."""
    address = _read_address(url)
    if address.get_backend_name() == "sqlite":
        engine = sa.create_engine(
            address.set(drivername="sqlite+pysqlite"),
            hide_parameters=True,
            connect_args={"timeout": LOCK_TIMEOUT_S, "check_same_thread": False},
        )
        sa.event.listen(engine, "connect", _prepare_sqlite)
        sa.event.listen(engine, "begin", _begin)
        return engine
    engine = sa.create_engine(
        address.set(drivername="postgresql+psycopg"),
        hide_parameters=True,
        pool_size=POSTGRES_LANES,
        max_overflow=0,
        isolation_level="READ COMMITTED",  # which a server may have another default for: moves rely on it
        use_native_hstore=False,  # none is kept here: one question and one module less for each command
        connect_args={
            "connect_timeout": 5,
            "tcp_user_timeout": STATEMENT_TIMEOUT_S * 1000,  # what was sent into the void is given up
            "keepalives_idle": 10,
            "keepalives_interval": 5,
            "keepalives_count": 2,
            "application_name": "payment-worker",
            "options": f"-c statement_timeout={STATEMENT_TIMEOUT_S * 1000} -c lock_timeout={LOCK_TIMEOUT_S * 1000}"
            f" -c idle_in_transaction_session_timeout={FROZEN_TIMEOUT_S * 1000}"
            " -c timezone=UTC",  # a time near year 1 has no counterpart west of it
        },
    )
    sa.event.listen(engine, "checkin", _note_use)
    sa.event.listen(engine, "checkout", _try_after_rest)
    return engine


def _note_use(_: Any, record: ConnectionPoolEntry) -> None:
    record.info["used_at"] = time.monotonic()


def _try_after_rest(connection: Any, record: ConnectionPoolEntry, _: Any) -> None:
    """A connection that has rested may be dead; asking each time would cost as a move does. The pool has others."""
    if time.monotonic() - record.info.get("used_at", math.inf) < RESTED_S:
        return
    try:
        connection.execute("SELECT 1")
        connection.rollback()
    except connection.Error as error:
        raise sa.exc.DisconnectionError(str(error)) from error


def _prepare_sqlite(connection: Any, _: ConnectionPoolEntry) -> None:
    """WAL, and an fsync for every commit: what is recorded as asked must outlive a power cut.

    Source: https://www.sqlite.org/pragma.html#pragma_synchronous.
    """
    connection.isolation_level = None  # we say BEGIN ourselves: Python's own comes too late and without a lock
    _switch_to_wal(connection)
    for pragma in (
        "synchronous=FULL",
        "foreign_keys=ON",
        f"wal_autocheckpoint={WAL_PAGES}",
    ):
        connection.execute(f"PRAGMA {pragma}")


def _switch_to_wal(connection: Any) -> None:
    """Once in a file's life. The lock for it is not waited for by SQLite itself, and two may start at once."""
    deadline = time.monotonic() + LOCK_TIMEOUT_S
    while True:
        try:
            connection.execute("PRAGMA journal_mode=WAL")
        except connection.OperationalError as error:
            if "locked" not in str(error) or time.monotonic() > deadline:
                raise
            time.sleep(WAL_TRY_S)
        else:
            return


def _begin(conn: Connection) -> None:
    """Take the write lock at once, if at all: a transaction that upgrades later is refused without waiting."""
    by_driver(conn, "BEGIN" if conn.get_execution_options().get("only_reads") else "BEGIN IMMEDIATE")
