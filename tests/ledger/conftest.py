"""The same suite on both engines: each test has a ledger of its own, empty."""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack
from itertools import count
from pathlib import Path

import psycopg
import pytest
from sqlalchemy.engine import Engine

from worker.ledger.engine import open_engine
from worker.ledger.ledger import Ledger
from worker.ledger.migrate import migrate
from worker.sandbox.postgres import PrivatePostgres

_numbers = count(1)

OpenLedger = Callable[[], Ledger]


@pytest.fixture(params=["sqlite", "postgresql"])
def engine_name(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


@pytest.fixture
def empty_url(engine_name: str, tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[str]:
    """The address of a new database without a schema."""
    if engine_name == "sqlite":
        yield f"sqlite+aiosqlite:///{tmp_path}/payments.db"
        return
    postgres: PrivatePostgres = request.getfixturevalue("postgres")
    name = f"ledger_{next(_numbers)}"
    yield asyncio.run(postgres.create_database(name))
    # Dropped, or the server would write a hundred of them to disk when it is stopped.
    with psycopg.connect(postgres.url.replace("+psycopg", ""), autocommit=True) as connection:
        connection.execute(f"DROP DATABASE {name} WITH (FORCE)".encode())


@pytest.fixture
def engine(empty_url: str) -> Iterator[Engine]:
    """On a database without a schema."""
    engine = open_engine(empty_url)
    yield engine
    engine.dispose()


@pytest.fixture
def url(empty_url: str, engine: Engine) -> str:
    """The address of a new ledger."""
    migrate(engine)
    engine.dispose()
    return empty_url


@pytest.fixture
async def open_ledger(url: str) -> AsyncIterator[OpenLedger]:
    """Opens the test's ledger, again if need be, as another worker would; all are closed at the end."""
    async with AsyncExitStack() as stack:
        opened: list[Ledger] = []

        def opens() -> Ledger:
            opened.append(Ledger(url))
            stack.push_async_exit(opened[-1])
            return opened[-1]

        yield opens


@pytest.fixture
def ledger(open_ledger: OpenLedger) -> Ledger:
    return open_ledger()
