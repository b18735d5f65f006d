"""From nothing to the schema that this version reads and writes, on both engines."""

import subprocess
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from threading import Barrier
from typing import Any

import psycopg
import pytest
import sqlalchemy as sa
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy.engine import Engine

from tests.ledger import alone, letter_steps, steps
from worker.errors import ConfigurationError, LedgerUnavailable
from worker.ledger import engine as engine_module
from worker.ledger import letters, moves, replays
from worker.ledger.engine import open_engine
from worker.ledger.migrate import _ADVISORY_LOCK, HEAD, current_revision, migrate, require_head
from worker.ledger.schema import METADATA
from worker.payment import OperationState, Payment, PaymentState

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
        for table in reversed(METADATA.sorted_tables):
            conn.execute(sa.text(f"DROP TABLE {table.name}"))
        METADATA.create_all(conn)
    assert migrated == _checks(engine)
    assert {name for name, _ in migrated} == {
        "ck_payments_state",
        "ck_payments_amount",
        "ck_payments_intent_has_id",
        "ck_payments_decided_is_told",
        "ck_operations_state",
        "ck_operations_answered_has_time",
        "ck_letters_state",
        "ck_replay_items_state",
        "ck_requests_kind",
        "ck_requests_state",
        "ck_stripe_events_state",
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


@pytest.mark.parametrize("engine_name", ["postgresql"])
def test_a_migration_may_take_longer_than_a_statement_at_work(empty_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """An index of many rows; here another one's migration, which is waited for longer than a statement may take."""
    monkeypatch.setattr(engine_module, "STATEMENT_TIMEOUT_S", 1)
    engine = open_engine(empty_url)
    with psycopg.connect(empty_url.replace("+psycopg", "")) as other, ThreadPoolExecutor(1) as thread:
        other.execute("SELECT pg_advisory_xact_lock(%s)", (_ADVISORY_LOCK,))
        migrated = thread.submit(migrate, engine)
        assert not wait([migrated], timeout=1.5).done
        other.commit()
        assert migrated.result(30) == HEAD
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
        "from worker.ledger.engine import open_engine\n"
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


# Rows as version 0001 wrote them: SQLite keeps a time as text without a zone.
ROWS_OF_0001 = (
    "INSERT INTO payments VALUES "
    "('o-open', 'open', 9999, 'usd', 'cus_1', 'acct_1', NULL, NULL, NULL, 0,"
    " '2026-01-31 12:00:00.123456', '2026-01-31 12:00:00.123456'),"
    "('o-made', 'intent_created', 999999999999, 'jpy', NULL, NULL, 'pi_1', 'requires_payment_method', false, 1,"
    " '2026-01-31 12:00:01', '2026-01-31 12:00:02'),"
    "('o-failed', 'failed', 1, 'eur', NULL, NULL, 'pi_2', 'requires_payment_method', true, 1,"
    " '2026-01-31 12:00:01', '2026-01-31 12:00:02')",
    "INSERT INTO operations VALUES "
    "('o-open', 'create_intent', 1, 'payment-worker:o-open:create_intent:1', '{\"amount\":9999}', 'acct_1', 'started',"
    " 'w-1', 'w-1/7', '2026-01-31 12:00:00.123456', 3, NULL, NULL, NULL),"
    "('o-made', 'create_intent', 1, 'payment-worker:o-made:create_intent:1', '{}', NULL, 'answered',"
    " NULL, NULL, '2026-01-31 12:00:01', 1, '2026-01-31 12:00:02', 'req_1', '{\"payment_id\":\"pi_1\"}'),"
    "('o-failed', 'create_intent', 1, 'payment-worker:o-failed:create_intent:1', '{}', NULL, 'refused',"
    " NULL, NULL, '2026-01-31 12:00:01', 1, '2026-01-31 12:00:02', 'req_2', '{\"code\":\"card_declined\"}')",
    "INSERT INTO events VALUES "
    "('o-made/payment/1', 'o-made', 1, 'payment.intent_created', '{\"ä\":1}', 'c-1', '00-trace',"
    " '2026-01-31 12:00:02', NULL),"
    "('o-failed/payment/1', 'o-failed', 1, 'payment.failed', '{}', NULL, NULL,"
    " '2026-01-31 12:00:02', '2026-01-31 12:00:03')",
    "INSERT INTO workers VALUES ('w-1', '2026-01-31 12:00:00')",
)
ASKED_AT = datetime(2026, 1, 31, 12, 0, 0, 123456, tzinfo=UTC)


# And what 0002 added to them: a call that was asked twice, one whose outcome is unknown, one that came to nothing.
ROWS_OF_0002 = (
    "UPDATE payments SET cause = 'e-1', correlation_id = 'c-1', traceparent = '00-trace' WHERE order_id = 'o-open'",
    "UPDATE operations SET last_asked_at = '2026-01-31 12:00:30',"
    ' asks = \'["2026-01-31T12:00:00.123456+00:00","2026-01-31T12:00:30+00:00"]\','
    " failures = '[{\"reason\":\"server_error\"}]' WHERE order_id = 'o-open'",
    "INSERT INTO payments (order_id, state, amount_minor, currency, sequence, opened_at, moved_at) VALUES "
    "('o-unknown', 'open', 5, 'usd', 0, '2026-01-31 12:00:00', '2026-01-31 12:00:00'),"
    "('o-absent', 'open', 5, 'usd', 0, '2026-01-31 12:00:00', '2026-01-31 12:00:00')",
    "INSERT INTO operations (order_id, kind, attempt, idempotency_key, params, state, first_asked_at, last_asked_at,"
    " asked, asks, unknown_because, answered_at) VALUES "
    "('o-unknown', 'create_intent', 1, 'payment-worker:o-unknown:create_intent:1', '{}', 'unknown',"
    " '2026-01-31 12:00:00', '2026-01-31 12:00:00', 1, '[]', 'key_expired', NULL),"
    "('o-absent', 'create_intent', 1, 'payment-worker:o-absent:create_intent:1', '{\"amount\":5}', 'absent',"
    " '2026-01-31 12:00:00', '2026-01-31 12:00:00', 1, '[]', NULL, '2026-01-31 12:00:01')",
    "INSERT INTO pace VALUES ('POST /v1/payment_intents', 1769860800.5, 12.5, NULL)",
)


@pytest.fixture
def filled_at_0001(engine: Engine) -> Engine:
    _fill(engine, "0001", ROWS_OF_0001)
    return engine


@pytest.fixture
def filled_at_0002(filled_at_0001: Engine) -> Engine:
    _fill(filled_at_0001, "0002", ROWS_OF_0002)
    return filled_at_0001


def _fill(engine: Engine, revision: str, statements: Sequence[str]) -> None:
    config = Config()
    config.set_main_option("script_location", str(ROOT / "worker/ledger/migrations"))
    with engine.begin() as conn:
        config.attributes["connection"] = conn
        command.upgrade(config, revision)
        if engine.dialect.name == "postgresql":
            conn.exec_driver_sql("SET LOCAL TIME ZONE 'UTC'")
        for statement in statements:
            conn.exec_driver_sql(statement)


def _all_rows(engine: Engine, *more: str) -> dict[str, list[dict[str, Any]]]:
    """As the database has them, whatever the tables of this version are. more: tables beside those of 0001."""
    with engine.connect() as conn:
        return {
            name: [dict(row._mapping) for row in conn.exec_driver_sql(f"SELECT * FROM {name} ORDER BY 1")]
            for name in ("payments", "operations", "events", "workers", *more)
        }


def test_the_migration_from_0001_keeps_every_row(filled_at_0001: Engine) -> None:
    before = _all_rows(filled_at_0001)
    assert {name: len(rows) for name, rows in before.items()} == {
        "payments": 3,
        "operations": 3,
        "events": 2,
        "workers": 1,
    }
    assert migrate(filled_at_0001) == HEAD
    after = _all_rows(filled_at_0001)
    for name, rows in before.items():
        assert [{column: row[column] for column in rows[0]} for row in after[name]] == rows
    for row in after["operations"]:
        assert row["last_asked_at"] == row["first_asked_at"]
        assert (row["asks"], row["failures"], row["unknown_because"]) == ("[]", "[]", None)


def test_rows_of_0001_read_and_go_on_as_those_of_this_version(filled_at_0001: Engine) -> None:
    migrate(filled_at_0001)
    with filled_at_0001.begin() as conn:
        payment = moves.read_payment(conn, "o-open")
        assert payment == Payment("o-open", PaymentState.OPEN, 9999, "usd", "cus_1", "acct_1", None, None, None, 0)
        made = moves.read_payment(conn, "o-made")
        assert made is not None
        assert (made.state, made.payment_id, made.livemode, made.cause) == ("intent_created", "pi_1", False, None)
        (event,) = moves.events_of(conn, "o-made")
        assert (event.body, event.correlation_id, event.traceparent) == ('{"ä":1}', "c-1", "00-trace")

        (idle,) = moves.idle_operations(conn, before=steps.NOW + timedelta(seconds=1), limit=9)
        assert (idle.order_id, idle.state, idle.asks) == ("o-open", OperationState.STARTED, (ASKED_AT,))
        again = moves.start_call(conn, **steps.call_arguments("o-open", worker_id="w-2", now=steps.later(60)))
        assert again == moves.Claimed(replace(idle, asks=(ASKED_AT, steps.later(60))))
        assert idle.idempotency_key == "payment-worker:o-open:create_intent:1"
        assert idle.params == {"amount": 9999}
        for order_id in ("o-made", "o-failed"):
            assert moves.start_call(conn, **steps.call_arguments(order_id)) == moves.Ended()


def test_the_rules_of_the_tables_hold_for_rows_of_0001_too(filled_at_0001: Engine) -> None:
    migrate(filled_at_0001)
    for statement in (
        "UPDATE operations SET state = 'asked' WHERE order_id = 'o-open'",
        "UPDATE operations SET state = 'absent' WHERE order_id = 'o-open'",
        "UPDATE operations SET order_id = 'nobody' WHERE order_id = 'o-open'",
        "UPDATE operations SET idempotency_key = 'payment-worker:o-made:create_intent:1' WHERE order_id = 'o-open'",
    ):
        with pytest.raises(sa.exc.IntegrityError), filled_at_0001.begin() as conn:
            conn.exec_driver_sql(statement)
    with filled_at_0001.begin() as conn:
        conn.exec_driver_sql("UPDATE operations SET state = 'unknown' WHERE order_id = 'o-open'")


def test_the_migration_from_0002_keeps_every_row_and_brings_an_empty_desk(filled_at_0002: Engine) -> None:
    assert current_revision(filled_at_0002) == "0002"
    before = _all_rows(filled_at_0002, "pace")
    assert {name: len(rows) for name, rows in before.items()} == {
        "payments": 5,
        "operations": 5,
        "events": 2,
        "workers": 1,
        "pace": 1,
    }
    assert migrate(filled_at_0002) == HEAD
    after = _all_rows(filled_at_0002, "pace", "letters", "acts", "replays", "replay_items")
    for name in ("payments", "events", "workers", "pace"):
        assert after[name] == before[name]
    assert after["operations"] == [row | {"livemode": None} for row in before["operations"]]
    assert [after[name] for name in ("letters", "acts", "replays", "replay_items")] == [[], [], [], []]
    require_head(filled_at_0002)


@pytest.mark.parametrize("livemode", [True, False])
def test_calls_that_0002_began_go_on_whatever_the_mode_of_the_key(filled_at_0002: Engine, livemode: bool) -> None:
    """Which key they were asked with is not known; as before it is taken to be the one that the worker has."""
    migrate(filled_at_0002)

    def start(conn: sa.Connection, order_id: str) -> Any:
        arguments = steps.call_arguments(order_id, livemode=livemode, worker_id="w-2", claim="w-2/1")
        return moves.start_call(conn, **{**arguments, "now": steps.later(60), "params": {"amount": 7}})

    with filled_at_0002.begin() as conn:
        asks = (ASKED_AT, steps.later(30), steps.later(60))
        started = start(conn, "o-open")
        assert started.operation.asks == asks
        assert (started.operation.livemode, started.operation.params) == (None, {"amount": 9999})
        assert started.operation.idempotency_key == "payment-worker:o-open:create_intent:1"

        looked_for = start(conn, "o-unknown").operation
        assert (looked_for.state, looked_for.unknown_because) == (OperationState.UNKNOWN, "key_expired")
        assert looked_for.livemode is None

        anew = start(conn, "o-absent").operation
        assert (anew.attempt, anew.livemode, anew.params) == (2, livemode, {"amount": 5})

    with filled_at_0002.begin() as conn:
        other = steps.call_arguments("o-absent", livemode=not livemode, worker_id="w-3", claim="w-3/1")
        assert moves.start_call(conn, **other) == moves.OtherMode(), "what was begun since is of a mode"


def test_an_operation_of_0002_may_be_answered(filled_at_0002: Engine) -> None:
    migrate(filled_at_0002)
    with filled_at_0002.begin() as conn:
        payment = moves.read_payment(conn, "o-open")
        assert payment is not None
        assert (payment.cause, payment.correlation_id, payment.traceparent) == ("e-1", "c-1", "00-trace")
        (operation,) = moves.operations_of(conn, "o-open")
        answer = steps.intent_answer(payment)
        arguments = {"before": payment, "answer": answer, "operation": operation, "event": steps.event(answer)}
        alone.record_answer(conn, **arguments, now=steps.NOW)
        assert moves.read_payment(conn, "o-open") == answer.payment


def test_letters_of_a_migrated_ledger_are_kept_by_the_same_rules(filled_at_0002: Engine) -> None:
    migrate(filled_at_0002)
    arrived = letter_steps.letter(order_id="o-open")
    landing = letter_steps.landing_of(arrived)
    with filled_at_0002.begin() as conn:
        assert letters.land(conn, arrived, landing, other_id="x", now=steps.NOW) == "landed"
        assert replays.view_of_order(conn, "o-open")[1] is not None
    for statement in (
        "UPDATE letters SET state = 'lost'",
        "UPDATE letters SET edited_from = 'nobody'",
        "UPDATE acts SET why = 'because'",
    ):
        with pytest.raises(sa.exc.DBAPIError), filled_at_0002.begin() as conn:
            conn.exec_driver_sql(statement)
