"""From nothing to the schema that this version reads and writes, on both engines."""

import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier

import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy.engine import Engine

from worker.errors import ConfigurationError, LedgerUnavailable
from worker.ledger.ledger import open_engine
from worker.ledger.migrate import HEAD, current_revision, migrate, require_head
from worker.ledger.schema import METADATA

ROOT = Path(__file__).parents[2]


def test_an_empty_database_becomes_a_ledger(engine: Engine) -> None:
    assert current_revision(engine) is None
    assert migrate(engine) == HEAD
    assert current_revision(engine) == HEAD
    assert set(sa.inspect(engine).get_table_names()) == {"alembic_version", *METADATA.tables}
    require_head(engine)


def test_migrating_twice_changes_nothing(engine: Engine) -> None:
    migrate(engine)
    with engine.begin() as conn:
        conn.execute(sa.text("INSERT INTO workers VALUES ('w-1', '2026-01-31 12:00:00')"))
    assert migrate(engine) == HEAD
    with engine.connect() as conn:
        assert conn.scalar(sa.text("SELECT worker_id FROM workers")) == "w-1"


def test_the_migrated_schema_is_that_of_the_tables(engine: Engine) -> None:
    migrate(engine)
    with engine.connect() as conn:
        context = MigrationContext.configure(conn, opts={"compare_type": True, "compare_server_default": True})
        assert compare_metadata(context, METADATA) == []


@pytest.mark.parametrize("change", ["column", "index", "unique", "table"])
def test_a_difference_between_the_two_would_be_seen(engine: Engine, change: str) -> None:
    migrate(engine)
    statement = {
        "column": "ALTER TABLE payments ADD COLUMN extra INTEGER",
        "index": "DROP INDEX ix_events_untold",
        "unique": "CREATE UNIQUE INDEX more ON events (staged_at)",
        "table": "CREATE TABLE more (n INTEGER)",
    }[change]
    with engine.begin() as conn:
        conn.execute(sa.text(statement))
    with engine.connect() as conn:
        assert compare_metadata(MigrationContext.configure(conn), METADATA) != []


def test_every_rule_of_the_tables_is_in_the_migrated_schema_under_its_name(engine: Engine) -> None:
    """Alembic compares no CHECKs: here the migrated ones are held against those that the tables would make."""
    migrate(engine)
    migrated = _checks(engine)
    with engine.begin() as conn:
        conn.execute(sa.text("DROP TABLE workers"))
        for name in ("events", "operations", "payments"):
            conn.execute(sa.text(f"DROP TABLE {name}"))
        METADATA.create_all(conn)
    assert migrated == _checks(engine)
    assert {name for name, _ in migrated} == {
        "ck_payments_state",
        "ck_payments_amount",
        "ck_payments_intent_has_id",
        "ck_payments_decided_is_told",
        "ck_operations_state",
        "ck_operations_answered_has_time",
    }


def _checks(engine: Engine) -> list[tuple[str | None, str]]:
    inspector = sa.inspect(engine)
    return sorted(
        (check["name"], " ".join(check["sqltext"].split()))
        for table in METADATA.tables
        for check in inspector.get_check_constraints(table)
    )


def test_head_is_the_newest_migration() -> None:
    config = Config()
    config.set_main_option("script_location", str(ROOT / "worker/ledger/migrations"))
    script = ScriptDirectory.from_config(config)
    assert script.get_heads() == [HEAD]
    newest = max(path.name for path in (ROOT / "worker/ledger/migrations/versions").glob("v[0-9]*.py"))
    assert newest.startswith(f"v{HEAD}_")


def test_of_two_that_migrate_at_once_one_waits_and_both_succeed(empty_url: str) -> None:
    count = 4
    together = Barrier(count)
    engines = [open_engine(empty_url) for _ in range(count)]

    def one(engine: Engine) -> str:
        together.wait(30)
        return migrate(engine)

    with ThreadPoolExecutor(count) as threads:
        assert list(threads.map(one, engines)) == [HEAD] * count
    require_head(engines[0])
    for engine in engines:
        engine.dispose()


@pytest.mark.parametrize("act", [migrate, require_head])
def test_a_ledger_from_the_future_is_told_with_the_mend(engine: Engine, act: Callable[[Engine], object]) -> None:
    migrate(engine)
    with engine.begin() as conn:
        conn.execute(sa.text("UPDATE alembic_version SET version_num = '9999'"))
    with pytest.raises(ConfigurationError, match=r"9999.*(run the newer payment-worker|run 'payment-worker migrate')"):
        act(engine)
    assert current_revision(engine) == "9999"


def test_a_ledger_that_was_not_migrated_is_told_with_the_mend(engine: Engine) -> None:
    with pytest.raises(ConfigurationError, match=f"is at nothing, this version needs {HEAD}: run 'payment-worker mig"):
        require_head(engine)


def test_a_migration_that_fails_leaves_nothing(engine: Engine) -> None:
    with engine.begin() as conn:
        conn.execute(sa.text("CREATE TABLE events (n INTEGER)"))
    with pytest.raises(LedgerUnavailable, match="already exists"):
        migrate(engine)
    assert sa.inspect(engine).get_table_names() == ["events"]
    assert current_revision(engine) is None


def test_a_database_that_is_away_is_unavailable_to_the_migration() -> None:
    engine = open_engine("postgresql://u:hunter2@127.0.0.1:1/d")
    for act in (current_revision, migrate, require_head):
        with pytest.raises(LedgerUnavailable) as caught:
            act(engine)
        assert "hunter2" not in str(caught.value)


def test_a_start_with_nothing_to_migrate_does_not_import_alembic(url: str) -> None:
    program = (
        "import sys\n"
        "from worker.ledger.ledger import open_engine\n"
        "from worker.ledger.migrate import migrate, require_head\n"
        "engine = open_engine(sys.argv[1])\n"
        "print(migrate(engine))\n"
        "require_head(engine)\n"
        "engine.dispose()\n"
        "print('alembic' in sys.modules)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, url], cwd=ROOT, capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout.split() == [HEAD, "False"]


def test_a_folder_with_a_percent_sign_in_its_name_can_hold_a_ledger(tmp_path: Path) -> None:
    (tmp_path / "100%").mkdir()
    engine = open_engine(f"sqlite:///{tmp_path}/100%/payments.db")
    assert migrate(engine) == HEAD
    engine.dispose()
