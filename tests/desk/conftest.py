"""Ledgers on both engines for the desk's functions, and a second one to carry letters to."""

import asyncio
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from uuid import uuid4

import psycopg
import pytest
import sqlalchemy as sa

from tests.ledger.conftest import engine_name, ledger, open_ledger  # noqa: F401
from worker.ledger.engine import open_engine
from worker.ledger.migrate import migrate
from worker.sandbox.postgres import PrivatePostgres


@pytest.fixture(scope="session")
def sqlite_template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A ledger without letters, to be copied: that is quicker than to migrate each."""
    path = tmp_path_factory.mktemp("template") / "payments.db"
    _migrate(f"sqlite+aiosqlite:///{path}")
    return path


@pytest.fixture(scope="session")
def postgres_template(postgres: PrivatePostgres) -> str:
    """The same on PostgreSQL: the name of its database."""
    name = "template_of_the_desk"
    _migrate(asyncio.run(postgres.create_database(name)))
    return name


@pytest.fixture
def url(engine_name: str, tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[str]:  # noqa: F811
    """The address of a new ledger."""
    with _copied(engine_name, tmp_path / "payments.db", request) as address:
        yield address


@pytest.fixture
def other_url(engine_name: str, tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[str]:  # noqa: F811
    """The address of a second ledger, empty, on the same engine."""
    with _copied(engine_name, tmp_path / "other.db", request) as address:
        yield address


@contextmanager
def _copied(engine_name: str, path: Path, request: pytest.FixtureRequest) -> Iterator[str]:  # noqa: F811
    if engine_name == "sqlite":
        shutil.copy(request.getfixturevalue("sqlite_template"), path)
        yield f"sqlite+aiosqlite:///{path}"
        return
    postgres: PrivatePostgres = request.getfixturevalue("postgres")
    template, name = request.getfixturevalue("postgres_template"), f"desk_{uuid4().hex[:12]}"
    with psycopg.connect(postgres.url.replace("+psycopg", ""), autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name} TEMPLATE {template}".encode())
        yield sa.make_url(postgres.url).set(database=name).render_as_string(hide_password=False)
        connection.execute(f"DROP DATABASE {name} WITH (FORCE)".encode())


def _migrate(address: str) -> None:
    opened = open_engine(address)
    migrate(opened)
    opened.dispose()
