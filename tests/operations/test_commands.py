"""The command line: every fault at once, exit codes as documented, nothing secret printed."""

import asyncio
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.harness import run_cli
from worker.desk.commands import LETTER_STATES
from worker.letter import LetterState
from worker.sandbox.postgres import PrivatePostgres
from worker.sandbox.stripe_control import SandboxControl


async def check(environment: dict[str, str], *words: str) -> subprocess.CompletedProcess[str]:
    return await asyncio.to_thread(run_cli, environment, "check", *words)


async def test_check_says_that_all_is_well(environment: dict[str, str]) -> None:
    done = await check(environment)

    assert done.returncode == 0, done.stdout
    assert [line[0] for line in done.stdout.splitlines()] == ["✓"] * 4
    assert "test mode" in done.stdout


async def test_check_tells_every_faulty_setting_at_once(environment: dict[str, str]) -> None:
    bad = {"AMQP_URL": "http://x", "STRIPE_API_KEY": "pk_test_1", "STRIPE_RATE_LIMIT": "0", "HTTP_PORT": "99999"}

    done = await check(environment | bad)

    assert done.returncode == 1
    for name in bad:
        assert f"settings: {name} " in done.stdout
    assert "pk_test_1" not in done.stdout


async def test_check_tells_every_part_that_is_away(environment: dict[str, str], tmp_path: Path) -> None:
    away = {
        "AMQP_URL": "amqp://user:hunter2@127.0.0.1:9/",
        "DATABASE_URL": f"sqlite:///{tmp_path}/no/such/folder/x.db",
        "STRIPE_API_BASE": "http://127.0.0.1:9",
    }

    done = await check(environment | away, "--json")

    findings = {finding["part"]: finding for finding in json.loads(done.stdout)}
    assert done.returncode == 1
    assert {part for part, finding in findings.items() if not finding["ok"]} == {"broker", "ledger", "stripe"}
    assert "AMQP_URL" in findings["broker"]["said"]
    assert "DATABASE_URL" in findings["ledger"]["said"]
    assert "STRIPE_API_BASE" in findings["stripe"]["said"]
    assert "hunter2" not in done.stdout + done.stderr
    assert done.stderr == ""


async def test_check_tells_a_key_that_stripe_refuses(environment: dict[str, str], stripe: SandboxControl) -> None:
    await stripe.change_settings(revoked_keys=[environment["STRIPE_API_KEY"]])

    done = await check(environment)

    assert done.returncode == 1
    assert "✗ stripe" in done.stdout
    assert environment["STRIPE_API_KEY"] not in done.stdout


async def test_check_changes_no_ledger(environment: dict[str, str], tmp_path: Path) -> None:
    await check(environment)

    assert not list(tmp_path.glob("payments.db*"))


async def test_a_ledger_on_postgresql_is_migrated_by_command_before_run(
    environment: dict[str, str], postgres: PrivatePostgres
) -> None:
    url = await postgres.create_database("migrated_by_command")
    settings = environment | {"DATABASE_URL": url, "MIGRATE_AT_START": ""}

    refused = await asyncio.to_thread(run_cli, settings, "run")
    before = await check(settings)
    migrated = await asyncio.to_thread(run_cli, settings, "migrate")
    after = await check(settings)

    assert refused.returncode == 2
    assert "payment-worker migrate" in refused.stderr
    assert before.returncode == 1
    assert "payment-worker migrate" in before.stdout
    assert migrated.returncode == 0, migrated.stderr
    assert after.returncode == 0, after.stdout


def test_run_without_settings_names_them_and_ends_with_2(environment: dict[str, str]) -> None:
    bare = {name: value for name, value in environment.items() if name not in ("AMQP_URL", "STRIPE_API_KEY")}

    done = run_cli(bare, "run")

    assert done.returncode == 2
    assert "AMQP_URL is not set" in done.stderr
    assert "STRIPE_API_KEY is not set" in done.stderr


@pytest.mark.parametrize(
    "words",
    [[], ["run"], ["check"], ["migrate"], ["demo"], ["sandbox"], ["dead-letters"], ["dead-letters", "list"]],
    ids=" ".join,
)
def test_every_command_has_help(words: list[str], environment: dict[str, str]) -> None:
    done = run_cli(environment, *words, "--help")

    assert done.returncode == 0
    assert done.stdout.startswith("usage: payment-worker")


def test_wrong_words_end_with_2(environment: dict[str, str]) -> None:
    assert run_cli(environment, "fly").returncode == 2
    assert run_cli(environment, "dead-letters", "list", "--limit", "0").returncode == 2


def test_the_desk_of_a_ledger_that_is_away_not_there_or_of_another_version_says_so(
    environment: dict[str, str], tmp_path: Path
) -> None:
    """It needs no broker and no key."""
    bare = {name: value for name, value in environment.items() if name not in ("AMQP_URL", "STRIPE_API_KEY")}
    (tmp_path / "older.db").touch()
    away = run_cli(bare | {"DATABASE_URL": "postgresql://127.0.0.1:9/payments"}, "dead-letters", "list")
    older = run_cli(bare | {"DATABASE_URL": f"sqlite:///{tmp_path}/older.db"}, "dead-letters", "list")

    assert (away.returncode, older.returncode) == (1, 2)
    [line] = away.stderr.splitlines()
    assert "port 9 failed" in line
    [line] = older.stderr.splitlines()
    assert "payment-worker migrate" in line
    for words in (("dead-letters", "list"), ("payments", "show", "order-1")):
        missing = run_cli(bare, *words)
        assert (missing.returncode, missing.stderr) == (
            2,
            f"payment-worker: no ledger is at {tmp_path}/payments.db: set DATABASE_URL as the worker has it\n",
        )
    assert not list(tmp_path.glob("payments.db*"))


def test_a_port_that_is_taken_is_told_in_one_sentence(environment: dict[str, str], broker_port: int) -> None:
    done = run_cli(environment | {"HTTP_PORT": str(broker_port)}, "run")

    assert done.returncode == 2
    assert f"HTTP_PORT {broker_port} on 127.0.0.1 cannot be listened on" in done.stderr


@pytest.mark.parametrize("words", [("--port", "99999"), ("--host", "nowhere.invalid")], ids=["port", "host"])
def test_a_sandbox_that_cannot_listen_says_so_in_one_sentence(
    words: tuple[str, str], environment: dict[str, str]
) -> None:
    done = run_cli(environment, "sandbox", *words)

    assert done.returncode == 2
    [line] = done.stderr.splitlines()
    assert line.startswith("payment-worker: cannot listen on ")


async def test_what_the_sandbox_says_at_its_start_can_be_copied_into_the_environment(
    environment: dict[str, str],
) -> None:
    """Down to the key, which is read as a test key."""
    sandbox = await asyncio.create_subprocess_exec(
        sys.executable,
        *("-m", "worker", "sandbox", "--port", "0"),
        env=environment,
        stdout=asyncio.subprocess.PIPE,
    )
    try:
        assert sandbox.stdout
        async with asyncio.timeout(30):
            lines = [(await sandbox.stdout.readline()).decode() for _ in range(2)]
        words = lines[1].split()
        assert words[0] == "export"
        done = await check(environment | dict(word.split("=", 1) for word in words[1:]), "--json")
    finally:
        sandbox.terminate()
        await sandbox.wait()

    assert [name.partition("=")[0] for name in words[1:]] == ["STRIPE_API_BASE", "STRIPE_API_KEY"]
    findings = {finding["part"]: finding for finding in json.loads(done.stdout)}
    assert done.returncode == 0, done.stdout
    assert findings["stripe"]["said"] == f"{words[1].partition('=')[2]} takes the key, test mode"


@pytest.fixture
def broker_port(environment: dict[str, str]) -> int:
    return int(environment["AMQP_URL"].rpartition(":")[2].strip("/"))


def test_the_reader_of_our_output_may_leave_early(environment: dict[str, str]) -> None:
    assert run_cli(environment, "migrate").returncode == 0
    listing = subprocess.Popen(
        [sys.executable, "-m", "worker", "dead-letters", "list"],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert listing.stdout
    assert listing.stderr
    listing.stdout.close()
    told = listing.stderr.read()
    listing.stderr.close()

    assert listing.wait(30) == 0, told
    assert b"Traceback" not in told


def test_importing_the_worker_touches_no_environment() -> None:
    program = "import os, worker.cli, worker.app, worker.settings; print(sorted(os.environ) == before)"
    done = subprocess.run(
        [sys.executable, "-c", f"import os; before = sorted(os.environ); {program}"],
        capture_output=True,
        text=True,
        check=True,
        env=dict(os.environ),
    )

    assert done.stdout.strip() == "True"


def test_words_for_a_letters_state_are_those_that_there_are() -> None:
    assert [*LETTER_STATES] == [*LetterState]


def test_words_alone_need_no_library() -> None:
    """Whoever asks for help, or has mistyped, is answered at once."""
    heavy = {"pydantic", "sqlalchemy", "aiohttp", "stripe", "structlog", "rich"}
    told = "import sys, worker.cli; print(*{name.partition('.')[0] for name in sys.modules})"
    loaded = subprocess.run([sys.executable, "-c", told], capture_output=True, text=True, check=True).stdout.split()
    assert not heavy.intersection(loaded)
