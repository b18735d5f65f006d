"""Servers that the whole suite shares: real ones, private, on loopback. A missing one is an error, never a skip.

And one worker's world for each test: names of its own on one broker, a fresh ledger, a fresh sandbox.
"""

import os
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from uuid import uuid4

import pytest
from hypothesis import settings

from tests import harness
from tests.fork_server import fork_python
from tests.harness import Shop, WorkerProcess, clean_environment, new_names
from worker.sandbox.broker import PrivateBroker
from worker.sandbox.postgres import PrivatePostgres
from worker.sandbox.stripe_control import SandboxControl
from worker.sandbox.stripe_server import RunningSandbox, running_sandbox
from worker.settings import SETTING_NAMES

# How long an example takes says how busy the machine is.
settings.register_profile("any-machine", deadline=None)
settings.load_profile("any-machine")

# A developer's shell must not leak into the tests.
for _name in SETTING_NAMES:
    os.environ.pop(_name, None)

# Most of what a command costs is the start of Python. Where that is under test, a fixture puts the real one back.
harness.start_python = fork_python


@pytest.fixture
def real_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Workers and commands start as a user starts them."""
    monkeypatch.setattr(harness, "start_python", harness.start_interpreter)


@pytest.fixture(scope="session")
def broker() -> Iterator[PrivateBroker]:
    with PrivateBroker() as broker:
        yield broker


@pytest.fixture(scope="session")
def postgres() -> Iterator[PrivatePostgres]:
    with PrivatePostgres() as postgres:
        yield postgres


@pytest.fixture
def names() -> dict[str, str]:
    return new_names()


@pytest.fixture
async def sandbox() -> AsyncIterator[RunningSandbox]:
    async with running_sandbox() as sandbox:
        yield sandbox


@pytest.fixture
async def stripe(sandbox: RunningSandbox) -> AsyncIterator[SandboxControl]:
    async with SandboxControl(sandbox.base_url) as control:
        yield control


@pytest.fixture
def sqlite_url(tmp_path: Path) -> str:
    return f"sqlite+aiosqlite:///{tmp_path}/payments.db"


@pytest.fixture(params=["sqlite", "postgresql"])
async def ledger_url(request: pytest.FixtureRequest, sqlite_url: str) -> str:
    """The ledger's address, once for each engine."""
    if request.param == "sqlite":
        return sqlite_url
    postgres = request.getfixturevalue("postgres")
    return str(await postgres.create_database(f"t{uuid4().hex[:12]}"))


@pytest.fixture
def environment(
    request: pytest.FixtureRequest,
    broker: PrivateBroker,
    names: dict[str, str],
    sandbox: RunningSandbox,
    sqlite_url: str,
) -> dict[str, str]:
    """The worker's settings, on SQLite, or on the engine of a test that asks for ledger_url."""
    return clean_environment(
        AMQP_URL=broker.amqp_url,
        STRIPE_API_KEY="sk_test_sandbox_key",
        STRIPE_API_BASE=sandbox.base_url,
        STRIPE_RATE_LIMIT="10000",
        DATABASE_URL=request.getfixturevalue("ledger_url") if "ledger_url" in request.fixturenames else sqlite_url,
        MIGRATE_AT_START="true",
        HTTP_PORT="0",
        LOG_FORMAT="json",
        LOG_LEVEL="debug",
        CLAIM_TTL="1",
        **names,
    )


@pytest.fixture
async def shop(broker: PrivateBroker, names: dict[str, str]) -> AsyncIterator[Shop]:
    async with Shop(broker.amqp_url, names) as shop:
        yield shop


@pytest.fixture
def make_worker(environment: dict[str, str], tmp_path: Path) -> Iterator[Callable[..., WorkerProcess]]:
    """Makes workers, and sees to it that none is left."""
    made: list[WorkerProcess] = []

    def make(command: tuple[str, ...] = ("-m", "worker", "run"), **settings: str) -> WorkerProcess:
        worker = WorkerProcess(environment | settings, tmp_path / f"worker-{len(made)}.log", command=command)
        made.append(worker)
        return worker.start()

    yield make
    for worker in made:
        if worker.is_running():
            worker.kill()
