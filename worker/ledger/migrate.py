"""Brings a ledger's schema up to date with Alembic; the migrations ship in the package."""

import os
from pathlib import Path
from typing import Final

import sqlalchemy as sa
from sqlalchemy.engine import Engine

from worker.errors import ConfigurationError, LedgerUnavailable

# The newest file under migrations/versions; a test holds the two in step. Known here so that a start with nothing
# to do does not pay for importing Alembic.
HEAD: Final = "0006"

_FOLDER: Final = Path(__file__).parent / "migrations"
# Two workers started at once must not both migrate. Any constant does, if no other program here uses it.
_ADVISORY_LOCK: Final = 7_203_114_551


def current_revision(engine: Engine) -> str | None:
    """The revision a ledger is at; None for an empty database. Makes no file. Raises LedgerUnavailable."""
    if engine.dialect.name == "sqlite" and engine.url.database and not Path(engine.url.database).exists():
        folder = Path(engine.url.database).absolute().parent
        if not os.access(folder, os.W_OK):
            raise LedgerUnavailable(f"the folder {folder} is not there or cannot be written to")
        return None
    try:
        with engine.connect() as conn:
            if not sa.inspect(conn).has_table("alembic_version"):
                return None
            revision: str | None = conn.scalar(sa.text("SELECT version_num FROM alembic_version"))
            return revision
    except sa.exc.SQLAlchemyError as error:
        raise LedgerUnavailable(str(getattr(error, "orig", error)).strip().splitlines()[0]) from error


def migrate(engine: Engine) -> str:
    """Upgrade to HEAD, in one transaction; nothing happens where it is there already. Returns the revision.

    Raises ConfigurationError for a ledger that a newer version of this program has migrated, LedgerUnavailable.
    """
    if current_revision(engine) == HEAD:
        return HEAD
    from alembic import command, util  # noqa: PLC0415 - 0.15 s that an up-to-date start does not need
    from alembic.config import Config  # noqa: PLC0415

    config = Config()
    config.set_main_option("script_location", str(_FOLDER).replace("%", "%%"))
    try:
        with engine.begin() as conn:
            if conn.dialect.name == "postgresql":
                # An index of many rows takes its time. Locks have their limit still: a writer waits behind us for them.
                conn.execute(sa.text("SET LOCAL statement_timeout = 0"))
                conn.execute(sa.text("SELECT pg_advisory_xact_lock(:number)"), {"number": _ADVISORY_LOCK})
            config.attributes["connection"] = conn
            command.upgrade(config, HEAD)
    except util.CommandError as error:
        raise ConfigurationError(
            f"the ledger is at a revision this version does not know ({error}); run the newer payment-worker"
        ) from error
    except sa.exc.SQLAlchemyError as error:
        raise LedgerUnavailable(str(getattr(error, "orig", error)).strip().splitlines()[0]) from error
    return HEAD


def require_file(engine: Engine) -> None:
    """Raises ConfigurationError for a ledger on SQLite whose file is not there; nothing is made."""
    path = engine.url.database
    if engine.dialect.name == "sqlite" and path and not Path(path).exists():
        raise ConfigurationError(f"no ledger is at {Path(path).absolute()}: set DATABASE_URL as the worker has it")


def require_head(engine: Engine) -> None:
    """Raises ConfigurationError where the schema is not the one this version reads and writes."""
    revision = current_revision(engine)
    if revision and revision > HEAD:
        raise ConfigurationError(
            f"the ledger's schema is at {revision}, newer than {HEAD}: run the newer payment-worker"
        )
    if revision != HEAD:
        raise ConfigurationError(
            f"the ledger's schema is at {revision or 'nothing'}, this version needs {HEAD}: "
            "run 'payment-worker migrate', or set MIGRATE_AT_START=true"
        )
