"""Ledgers on both engines for the desk's functions, and a second one to carry letters to."""

import asyncio
from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

import psycopg
import pytest

from tests.ledger.conftest import empty_url, engine, engine_name, ledger, open_ledger, url  # noqa: F401
from worker.ledger.ledger import open_engine
from worker.ledger.migrate import migrate
from worker.sandbox.postgres import PrivatePostgres


@pytest.fixture
def other_url(engine_name: str, tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[str]:  # noqa: F811
    """The address of a second ledger, empty, on the same engine."""
    if engine_name == "sqlite":
        yield _migrated(f"sqlite+aiosqlite:///{tmp_path}/other.db")
        return
    postgres: PrivatePostgres = request.getfixturevalue("postgres")
    name = f"other_{uuid4().hex[:12]}"
    yield _migrated(asyncio.run(postgres.create_database(name)))
    with psycopg.connect(postgres.url.replace("+psycopg", ""), autocommit=True) as connection:
        connection.execute(f"DROP DATABASE {name} WITH (FORCE)".encode())


def _migrated(address: str) -> str:
    opened = open_engine(address)
    migrate(opened)
    opened.dispose()
    return address
