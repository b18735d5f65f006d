"""What the demo plays on: a broker, a Stripe and a worker process; all that was started is ended with the block."""

import asyncio
import contextlib
import secrets
import time
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
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
from worker.sandbox.demo_worker import DemoFailed, WorkerProcess
from worker.sandbox.stripe_control import SandboxControl
from worker.sandbox.stripe_server import running_sandbox
from worker.settings import SETTING_NAMES, read_settings

STRIPE: Final = "https://api.stripe.com"
SANDBOX_KEY: Final = "sk_test_demo"
# The sandbox answers about as fast as Stripe does; slower than instantly, one can watch it.
LATENCY_S: Final = (0.1, 0.5)
CLOCK_SKEW_S: Final = 300  # between this machine and Stripe, when asking for what was created since
LETTERS_TIMEOUT_S: Final = 10.0
_FROM_OUTSIDE: Final = ("AMQP_URL", "AMQP_URL_FILE", "STRIPE_API_KEY", "STRIPE_API_KEY_FILE", "STRIPE_API_BASE")


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

    async def facts(self, payment_id: str) -> dict[str, list[dict[str, int]]]:
        """What the sandbox's record has of an intent's later life: the amounts of each thing in it, by what it is.

        In minor units. Nothing where it is the real Stripe: nobody has paid there.
        """
        if self.control is None:
            return {}
        charges = await self.control.objects("charges", intent_id=payment_id)
        refunds = await self.control.objects("refunds", intent_id=payment_id)
        disputes = await self.control.objects("disputes", intent_id=payment_id)
        booked = await self.control.objects("balance_transactions")
        paid = {charge["id"]: charge["amount_captured"] for charge in charges if charge["captured"]}
        return {
            "payment": [{"received": amount} for amount in paid.values()],
            "settlement": [{"fee": each["fee"], "net": each["net"]} for each in booked if each["source"] in paid],
            "refund": [{"refunded": refund["amount"]} for refund in refunds],
            "dispute": [{"disputed": dispute["amount"]} for dispute in disputes],
        }

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


@dataclass(frozen=True, slots=True)
class Stage:
    """Everything the story needs. `prefix` begins every name on a broker that is given; it is empty on our own.

    webhook_secret: what the worker checks Stripe's webhooks with; None where none can reach it.
    """

    amqp_url: str
    prefix: str
    names: BusNames
    fulfilment_queue: str
    stripe: StripeSide
    worker: WorkerProcess
    webhook_secret: str | None


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
        webhook_secret = f"whsec_{secrets.token_hex(16)}" if stripe.control else None
        given = {
            "AMQP_URL": amqp_url,
            "STRIPE_API_KEY": stripe.key,
            **({"STRIPE_API_BASE": stripe.base} if stripe.base else {}),
            **({"STRIPE_WEBHOOK_SECRET": webhook_secret} if webhook_secret else {}),
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
        yield Stage(amqp_url, prefix, names, fulfilment_queue, stripe, worker, webhook_secret)


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
