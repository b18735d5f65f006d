import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import psycopg
import pytest

from worker.sandbox import postgres as postgres_module
from worker.sandbox.postgres import PrivatePostgres
from worker.sandbox.private_server import ServerError, wait_until

Processes = Callable[[Path], dict[int, str]]


@pytest.fixture(scope="module")
def postgres() -> Iterator[PrivatePostgres]:
    with PrivatePostgres() as running:
        yield running


def ask(url: str, *statements: str) -> object:
    """Run the statements, each committed, and return the first column of the last one's first row, if any."""
    with psycopg.connect(url.replace("+psycopg", ""), autocommit=True) as connection:
        for statement in statements:
            cursor = connection.execute(statement.encode())
        row = cursor.fetchone() if cursor.description else None
        return row and row[0]


async def test_databases_are_apart(postgres: PrivatePostgres) -> None:
    one, other = await postgres.create_database("one"), await postgres.create_database("the-other")
    ask(one, "CREATE TABLE here (n int)")
    assert ask(one, "SELECT to_regclass('here')::text") == "here"
    assert ask(other, "SELECT to_regclass('here')::text") is None
    with pytest.raises(ServerError, match=r"createdb one failed: .*already exists"):
        await postgres.create_database("one")


async def test_it_listens_on_loopback_only(
    postgres: PrivatePostgres, listening_addresses: Callable[[Path], set[str]], loopback: set[str]
) -> None:
    assert "0100007F" in listening_addresses(postgres.folder) <= loopback


async def test_another_user_of_the_machine_is_kept_out(postgres: PrivatePostgres) -> None:
    with pytest.raises(psycopg.OperationalError, match="no password supplied"):
        psycopg.connect(host="127.0.0.1", port=postgres.port, user="postgres", passfile="/dev/null")


async def test_it_is_durable_unless_told_otherwise(postgres: PrivatePostgres) -> None:
    assert ask(postgres.url, "SHOW fsync") == "on"
    async with PrivatePostgres(durable=False) as fast:
        assert ask(fast.url, "SHOW fsync") == "off"
    assert not fast.folder.exists()


async def test_a_killed_server_keeps_what_it_committed(postgres: PrivatePostgres, processes_in: Processes) -> None:
    url = await postgres.create_database("killed")
    ask(url, "CREATE TABLE kept (n int)", "INSERT INTO kept VALUES (7)")
    with psycopg.connect(url.replace("+psycopg", "")) as open_connection:
        open_connection.execute("INSERT INTO kept VALUES (8)")
        postgres.kill()
        assert processes_in(postgres.folder) == {}
        with pytest.raises(psycopg.OperationalError):
            open_connection.execute("SELECT 1")
    await postgres.start()
    assert ask(url, "SELECT sum(n)::int FROM kept") == 7


async def test_a_restart_cuts_clients_off_and_keeps_the_address(postgres: PrivatePostgres) -> None:
    address, pid = postgres.url, postgres.pid
    with psycopg.connect(address.replace("+psycopg", "")) as open_connection:
        open_connection.execute("SELECT 1")
        await postgres.restart()
        with pytest.raises(psycopg.OperationalError):
            open_connection.execute("SELECT 1")
    assert postgres.url == address
    assert postgres.pid != pid
    assert ask(address, "SELECT 1") == 1


async def test_the_end_leaves_no_process(processes_in: Processes) -> None:
    async with PrivatePostgres() as postgres:
        assert "postgres" in processes_in(postgres.folder).values()
    assert processes_in(postgres.folder) == {}
    assert not postgres.folder.exists()


def test_nothing_outlives_a_killed_owner(processes_in: Processes) -> None:
    program = (
        "import time\n"
        "from worker.sandbox.postgres import PrivatePostgres\n"
        "with PrivatePostgres() as postgres:\n"
        "    print(postgres.folder, flush=True)\n"
        "    time.sleep(60)\n"
    )
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True) as owner:
        assert owner.stdout is not None
        folder = Path(owner.stdout.readline().strip())
        assert "postgres" in processes_in(folder).values()
        owner.send_signal(signal.SIGKILL)
    wait_until(
        lambda: not folder.exists() and not processes_in(folder),
        timeout_s=20,
        otherwise=lambda: f"left behind: {processes_in(folder)}, {folder}",
    )


def test_a_missing_server_is_said_in_one_sentence(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(postgres_module, "_DEBIAN_VERSIONS", tmp_path)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ServerError, match=r"^initdb was not found: .*apt-get install postgresql`$"):
        PrivatePostgres()
