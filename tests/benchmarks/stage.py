"""What all measurements stand on: private servers, the sandbox, orders that wait, and who hears the events."""

import asyncio
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any, Self
from uuid import uuid4

from aio_pika.abc import AbstractIncomingMessage

from tests.benchmarks.contenders import Contender, LedgerKind
from tests.harness import Shop, clean_environment, new_names
from worker.sandbox.broker import PrivateBroker
from worker.sandbox.postgres import PrivatePostgres
from worker.sandbox.stripe_control import SandboxControl

PREFETCH = 64
NO_LIMIT = 100_000  # calls a second: the most that STRIPE_RATE_LIMIT takes
AT_ONCE = 200  # orders on their way to the broker
SILENCE_S = 60.0  # without an event: something is broken
LOOK_S = 0.02
STOP_S = 15.0
EVENT_TYPE = "payment.intent_created"


class Listener:
    """Hears the events of one round. `heard` has each order's first, and when it came (monotonic seconds)."""

    def __init__(self) -> None:
        self.heard: dict[str, float] = {}
        self._marks: dict[int, Callable[[], None]] = {}

    def at(self, count: int, act: Callable[[], None]) -> None:
        """Call `act` as soon as the events of so many orders have come."""
        self._marks[count] = act

    async def take(self, message: AbstractIncomingMessage) -> None:
        order_id = json.loads(message.body)["subject"]
        if order_id in self.heard:
            return
        self.heard[order_id] = time.monotonic()
        if act := self._marks.pop(len(self.heard), None):
            act()

    async def until(self, count: int, running: Sequence["Running"]) -> None:
        """Wait for the events of so many orders. Raises RuntimeError where one who runs ends, or all go mute."""
        had, silent_since = len(self.heard), time.monotonic()
        while len(self.heard) < count:
            for each in running:
                each.require_alive()
            if len(self.heard) > had:
                had, silent_since = len(self.heard), time.monotonic()
            elif time.monotonic() - silent_since > SILENCE_S:
                raise RuntimeError(f"{had} of {count} events, and silence since then\n{running[0].log_end()}")
            await asyncio.sleep(LOOK_S)


class Running:
    """A contender at work. `started` is the moment it was started at (monotonic seconds)."""

    def __init__(self, contender: Contender, environment: dict[str, str], log: Path) -> None:
        self._name = contender.name
        self._log = log
        with log.open("wb") as out:
            self.started = time.monotonic()
            self._process = subprocess.Popen(contender.command, env=environment, stdout=out, stderr=out)
        self.pid = self._process.pid

    def require_alive(self) -> None:
        """Raises RuntimeError with the end of its log."""
        if self._process.poll() is not None:
            raise RuntimeError(f"{self._name} has ended with {self._process.returncode}\n{self.log_end()}")

    def log_end(self) -> str:
        return "\n".join(self._log.read_text(errors="replace").splitlines()[-20:])

    def stop(self) -> None:
        self._process.terminate()
        try:
            self._process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


class Round:
    """A queue of its own with its subscriber: `send` orders, `run` contenders on them, look into `events`."""

    def __init__(self, stage: "Stage", shop: Shop, events: Listener) -> None:
        self._stage = stage
        self._shop = shop
        self.events = events

    async def send(self, order_id: str) -> None:
        """One order of 12.50 EUR, in the queue when this returns."""
        body = {"order_id": order_id, "amount": "12.50", "currency": "eur"}
        await self._shop.send(body, content_type="application/json")

    async def backlog(self, count: int) -> None:
        """So many new orders in the queue."""
        slots = asyncio.Semaphore(AT_ONCE)

        async def send_one() -> None:
            async with slots:
                await self.send(new_order_id())

        async with asyncio.TaskGroup() as group:
            for _ in range(count):
                group.create_task(send_one())

    @asynccontextmanager
    async def run(
        self, contender: Contender, *, ledger_url: str | None, count: int = 1, **settings: str
    ) -> AsyncIterator[Sequence[Running]]:
        """So many processes of a contender, for the time of the block. settings: more of the environment."""
        environment = clean_environment(
            AMQP_URL=self._stage.broker.amqp_url,
            STRIPE_API_KEY="sk_test_benchmark",
            STRIPE_API_BASE=self._stage.stripe_url,
            STRIPE_RATE_LIMIT=str(NO_LIMIT),
            MIGRATE_AT_START="true",
            HTTP_PORT="0",
            LOG_FORMAT="json",
            LOG_LEVEL="info",
            PREFETCH=str(PREFETCH),
            **self._shop.names,
        )
        if ledger_url:
            environment["DATABASE_URL"] = ledger_url
        running: list[Running] = []
        try:
            for _ in range(count):
                log = self._stage.folder / f"{uuid4().hex}.log"
                running.append(Running(contender, environment | settings, log))
            yield running
        finally:
            for each in running:
                await asyncio.to_thread(each.stop)


class Stage:
    """`async with Stage() as stage: …`; everything in it goes with it."""

    async def __aenter__(self) -> Self:
        async with AsyncExitStack() as stack:
            self.folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="benchmark-")))
            self.broker = await stack.enter_async_context(PrivateBroker())
            self.postgres = await stack.enter_async_context(PrivatePostgres())
            self.stripe_url = await stack.enter_async_context(_sandbox())
            self.stripe = await stack.enter_async_context(SandboxControl(self.stripe_url))
            self._stack = stack.pop_all()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._stack.aclose()

    async def new_ledger(self, contender: Contender) -> str | None:
        """The address of an empty one, of the contender's kind and in its words."""
        name = f"l{uuid4().hex[:12]}"
        if contender.ledger is LedgerKind.NONE:
            return None
        if contender.ledger is LedgerKind.SQLITE:
            return f"sqlite+aiosqlite:///{self.folder}/{name}.db"
        return (await self.postgres.create_database(name)).replace("postgresql+psycopg", "postgresql")

    @asynccontextmanager
    async def round(self, **stripe_settings: Any) -> AsyncIterator[Round]:
        """A new queue and a subscriber; Stripe has forgotten everything, and is set up so."""
        await self.stripe.reset()
        await self.stripe.change_settings(events=False, **stripe_settings)
        events = Listener()
        async with Shop(self.broker.amqp_url, new_names()) as shop:
            await shop.declare_worker_queue()
            heard = await shop.channel.declare_queue(exclusive=True)
            await heard.bind(shop.payments, EVENT_TYPE)
            await heard.consume(events.take, no_ack=True)
            yield Round(self, shop, events)

    async def require_one_intent_each(self, orders: int) -> None:
        """Raises RuntimeError where Stripe was not asked for one intent for each order: then no figure counts."""
        told = await self.stripe.stats()
        if told["orders"] != orders or told["orders_with_several_intents"]:
            raise RuntimeError(f"{orders} orders came to {told['intents']} intents of {told['orders']} orders")


def new_order_id() -> str:
    """Random, as most shops' are; the places of a ledger's index that they fall on are, too."""
    return uuid4().hex


@asynccontextmanager
async def _sandbox() -> AsyncIterator[str]:
    """A process of its own, as Stripe is; its address."""
    command = [sys.executable, "-m", "worker", "sandbox", "--port", "0"]
    process = subprocess.Popen(command, env=clean_environment(), stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout
        yield await asyncio.to_thread(address_told, process.stdout)
    finally:
        process.terminate()
        process.wait()


def address_told(said: Iterable[str]) -> str:
    """The address that the sandbox tells for a worker's shell."""
    line = next(line for line in said if "STRIPE_API_BASE=" in line)
    return line.split("STRIPE_API_BASE=")[1].split()[0]
