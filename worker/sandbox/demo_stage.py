"""What the demo plays on: a broker, a Stripe and a worker process; all that was started is ended with the block."""

import asyncio
import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import aio_pika
import aiohttp
from aio_pika.abc import AbstractChannel, AbstractConnection
from aio_pika.exceptions import CONNECTION_EXCEPTIONS

from worker.app import bus_names
from worker.bus.topology import BusNames
from worker.errors import ConfigurationError
from worker.sandbox.broker import PrivateBroker
from worker.sandbox.demo_verdict import SeenIntent
from worker.sandbox.private_server import Warden, last_lines
from worker.sandbox.stripe_control import SandboxControl
from worker.sandbox.stripe_server import running_sandbox
from worker.settings import SETTING_NAMES, read_settings

STRIPE: Final = "https://api.stripe.com"
SANDBOX_KEY: Final = "sk_test_demo"
# The sandbox answers about as fast as Stripe does; slower than instantly, one can watch it.
LATENCY_S: Final = (0.1, 0.5)
CLOCK_SKEW_S: Final = 300  # between this machine and Stripe, when asking for what was created since
START_TIMEOUT_S: Final = 30.0
COMMAND_TIMEOUT_S: Final = 30.0
LETTERS_TIMEOUT_S: Final = 10.0
_FROM_OUTSIDE: Final = ("AMQP_URL", "AMQP_URL_FILE", "STRIPE_API_KEY", "STRIPE_API_KEY_FILE", "STRIPE_API_BASE")


class DemoFailed(Exception):
    """The demo cannot go on; the text says what was wrong."""


@dataclass(frozen=True, slots=True)
class Choice:
    """What is set from outside; None for what the demo brings along itself."""

    amqp_url: str | None
    stripe_key: str | None
    stripe_base: str | None


def read_choice(environment: Mapping[str, str]) -> Choice:
    """Which broker and Stripe to use. Raises ConfigurationError for a live key, and for what cannot be read."""
    given = {name: environment[name] for name in _FROM_OUTSIDE if environment.get(name)}
    settings = read_settings(given, needed=frozenset())
    has_key = "STRIPE_API_KEY" in given or "STRIPE_API_KEY_FILE" in given
    if has_key and settings.livemode:
        raise ConfigurationError(
            "STRIPE_API_KEY is a live key, and the demo never touches real money: "
            "set a test key (sk_test_… or rk_test_…), or none to use the sandbox"
        )
    return Choice(
        amqp_url=settings.amqp_url.get_secret_value() if {"AMQP_URL", "AMQP_URL_FILE"} & given.keys() else None,
        stripe_key=settings.stripe_api_key.get_secret_value() if has_key else None,
        stripe_base=settings.stripe_api_base if has_key else None,
    )


class StripeSide:
    """Stripe as seen past the worker; `control` only where it is the sandbox."""

    def __init__(self, *, key: str, base: str | None, control: SandboxControl | None) -> None:
        self.key = key
        self.base = base
        self.control = control
        self._since = int(time.time()) - CLOCK_SKEW_S

    async def intents(self, *, order_prefix: str) -> list[SeenIntent]:
        """Every intent of the demo's orders. Raises DemoFailed.

        The sandbox shows its record, all accounts and modes included; Stripe is asked for its list, which reads its
        own writes (https://docs.stripe.com/api/payment_intents/list).
        """
        found = await (self.control.intents() if self.control else self._listed())
        return [
            SeenIntent(one["id"], one["metadata"]["order_id"], one["status"], one["amount"], one["currency"])
            for one in found
            if one["metadata"].get("order_id", "").startswith(order_prefix)
        ]

    async def _listed(self) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = []
        query: dict[str, str | int] = {"created[gte]": self._since, "limit": 100}
        headers = {"Authorization": f"Bearer {self.key}"}
        async with aiohttp.ClientSession(headers=headers, timeout=aiohttp.ClientTimeout(total=20)) as session:
            while True:
                page = await _get_page(session, f"{self.base or STRIPE}/v1/payment_intents", query)
                found += page["data"]
                if not page["has_more"]:
                    return found
                query["starting_after"] = page["data"][-1]["id"]


class WorkerProcess:
    """`payment-worker run` as a process of its own, and other commands beside it under the same settings."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        self._warden = Warden(None, prefix="payment-worker-demo-")
        root = str(Path(__file__).parents[2])
        search = os.pathsep.join(filter(None, (root, environment.get("PYTHONPATH"))))
        ledger = f"sqlite+aiosqlite:///{self._warden.folder}/payments.db"
        self._environment = {**environment, "PYTHONPATH": search, "DATABASE_URL": ledger}
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        assert self._process is not None, "start it first"
        return self._process.pid

    async def start(self) -> None:
        """Return when it takes orders. Raises DemoFailed."""
        already = self._warden.output.stat().st_size if self._warden.output.exists() else 0
        command = [sys.executable, "-m", "worker", "run"]
        self._process = self._warden.spawn(command, ends_by="KILL", env=self._environment)
        try:
            async with asyncio.timeout(START_TIMEOUT_S), aiohttp.ClientSession() as session:
                while not await self._is_ready(session, already):
                    self.must_be_alive()
                    await asyncio.sleep(0.05)
        except TimeoutError:
            raise DemoFailed(f"the worker was not ready within {START_TIMEOUT_S:.0f} s") from None

    def must_be_alive(self) -> None:
        """Raises DemoFailed where it has ended without being asked to."""
        if self._process is None or self._process.poll() is None:
            return
        code = self._process.returncode
        raise DemoFailed(f"the worker ended by itself with {code}; it said last:\n{last_lines(self._warden.output, 5)}")

    async def kill(self) -> None:
        """SIGKILL: it is gone when this returns, and had no chance to finish anything."""
        assert self._process is not None, "start it first"
        await asyncio.to_thread(self._warden.end, self._process, signal.SIGKILL)
        self._process = None

    async def stop(self) -> int:
        """SIGTERM; returns its exit code, once it has finished what it had begun."""
        assert self._process is not None, "start it first"
        process, self._process = self._process, None
        await asyncio.to_thread(self._warden.end, process, signal.SIGTERM)
        return process.returncode

    async def run_json(self, *words: str) -> Any:
        """What another command of the worker prints as JSON. Raises DemoFailed."""
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "worker", *words, "--json", env=self._environment, stdout=-1, stderr=-1
        )
        try:
            async with asyncio.timeout(COMMAND_TIMEOUT_S):
                said, complained = await process.communicate()
        except TimeoutError:
            raise DemoFailed(f"`payment-worker {' '.join(words)}` took more than {COMMAND_TIMEOUT_S:.0f} s") from None
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
        if process.returncode != 0:
            raise DemoFailed(
                f"`payment-worker {' '.join(words)}` failed: {complained.decode(errors='replace').strip()}"
            )
        return json.loads(said)

    def keep_log(self) -> Path | None:
        """A copy of the worker's log that outlives the demo, where there is any log."""
        if not self._warden.output.exists():
            return None
        with tempfile.NamedTemporaryFile(prefix="payment-worker-demo-", suffix=".log", delete=False) as copy:
            copy.write(self._warden.output.read_bytes())
        return Path(copy.name)

    async def close(self) -> None:
        """Kill it where it still runs, and remove its ledger and log."""
        await asyncio.shield(asyncio.to_thread(self._warden.close))

    async def _is_ready(self, session: aiohttp.ClientSession, already: int) -> bool:
        address = _address_in(self._warden.output.read_bytes()[already:])
        if address is None:
            return False
        with contextlib.suppress(aiohttp.ClientError):
            async with session.get(f"{address}/readyz") as answer:
                return answer.status == 200
        return False


@dataclass(frozen=True, slots=True)
class Stage:
    """Everything the story needs. `prefix` begins every name on a broker that is given; it is empty on our own."""

    amqp_url: str
    prefix: str
    names: BusNames
    fulfilment_queue: str
    stripe: StripeSide
    worker: WorkerProcess


@contextlib.asynccontextmanager
async def open_stage(choice: Choice, environment: Mapping[str, str], *, run_id: str) -> AsyncIterator[Stage]:
    """Start what is not given, but the worker. Raises ServerError where RabbitMQ cannot be started.

    On a broker that is given every name starts with `demo-<run_id>.` and is deleted at the end.
    """
    async with contextlib.AsyncExitStack() as stack:
        inherited = {name: value for name, value in environment.items() if name not in SETTING_NAMES}
        amqp_url = choice.amqp_url
        prefix = f"demo-{run_id}." if amqp_url else ""
        if amqp_url is None:
            amqp_url = (await stack.enter_async_context(PrivateBroker())).amqp_url
        if choice.stripe_key is None:
            sandbox = await stack.enter_async_context(running_sandbox(latency_s=LATENCY_S))
            stripe = StripeSide(key=SANDBOX_KEY, base=sandbox.base_url, control=sandbox.control)
        else:
            stripe = StripeSide(key=choice.stripe_key, base=choice.stripe_base, control=None)
        given = {
            "AMQP_URL": amqp_url,
            "STRIPE_API_KEY": stripe.key,
            **({"STRIPE_API_BASE": stripe.base} if stripe.base else {}),
            **_names_with(prefix),
            "HTTP_PORT": "0",
            "LOG_FORMAT": "json",
            "CLAIM_TTL": "1",  # a second after its last sign of life, a killed worker's calls are taken over
        }
        names, fulfilment_queue = bus_names(read_settings(given)), f"{prefix}fulfilment.payments"
        if choice.amqp_url:
            stack.push_async_callback(_delete, amqp_url, names, fulfilment_queue)
        worker = WorkerProcess(inherited | given)
        stack.push_async_callback(worker.close)
        yield Stage(amqp_url, prefix, names, fulfilment_queue, stripe, worker)


async def connect(amqp_url: str) -> AbstractConnection:
    """Raises DemoFailed, without the address, which may hold a password."""
    try:
        return await aio_pika.connect(amqp_url, timeout=10)
    except (*CONNECTION_EXCEPTIONS, TimeoutError, OSError) as error:
        raise DemoFailed(f"there is no connection to the broker of AMQP_URL ({type(error).__name__})") from error


async def count_messages(connection: AbstractConnection, names: BusNames) -> int:
    """How many lie in the worker's own queues, dead letters apart."""
    async with connection.channel() as channel:
        queues = [
            await channel.declare_queue(name, passive=True)
            for name in sorted(names.own_queues() - {names.dead_letters_queue})
        ]
    return sum(queue.declaration_result.message_count or 0 for queue in queues)


async def letters_are_taken_in(connection: AbstractConnection, names: BusNames) -> None:
    """Wait until no dead letter lies in the queue any more. Raises TimeoutError."""
    async with connection.channel() as channel, asyncio.timeout(LETTERS_TIMEOUT_S):
        while await _ready(channel, names.dead_letters_queue):  # noqa: ASYNC110 - the broker sends no event
            await asyncio.sleep(0.05)


async def _ready(channel: AbstractChannel, queue: str) -> int:
    declared = await channel.declare_queue(queue, passive=True)
    return declared.declaration_result.message_count or 0


async def _get_page(session: aiohttp.ClientSession, url: str, query: Mapping[str, str | int]) -> dict[str, Any]:
    try:
        async with session.get(url, params=query) as answer:
            if answer.status != 200:
                raise DemoFailed(f"Stripe answered {answer.status} when asked for its list of intents")
            page: dict[str, Any] = await answer.json()
            return page
    except (aiohttp.ClientError, TimeoutError) as error:
        raise DemoFailed(f"Stripe could not be asked for its list of intents ({type(error).__name__})") from error


def _names_with(prefix: str) -> dict[str, str]:
    """The names on the broker as settings; without a prefix they stay the worker's defaults."""
    if not prefix:
        return {}
    return {
        "ORDERS_EXCHANGE": f"{prefix}orders",
        "ORDERS_QUEUE": f"{prefix}payment-worker.orders",
        "RETRY_QUEUE_PREFIX": f"{prefix}payment-worker.retry",
        "DEAD_LETTERS_QUEUE": f"{prefix}payment-worker.dead-letters",
        "PAYMENTS_EXCHANGE": f"{prefix}payments",
    }


async def _delete(amqp_url: str, names: BusNames, fulfilment_queue: str) -> None:
    with contextlib.suppress(DemoFailed):  # a broker that is gone; the story has told so
        async with await connect(amqp_url) as connection, connection.channel() as channel:
            for queue in sorted({*names.own_queues(), fulfilment_queue}):
                await channel.queue_delete(queue)
            for exchange in (names.orders_exchange, names.payments_exchange):
                await channel.exchange_delete(exchange)


def _address_in(log: bytes) -> str | None:
    """Where the worker's health is served, from its own first words."""
    for line in log.splitlines():
        with contextlib.suppress(ValueError):
            said = json.loads(line)
            if isinstance(said, dict) and said.get("event") == "worker.started":
                return str(said["http"])
    return None
