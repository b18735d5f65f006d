"""The other teams of a run: an order service that does not give up, a subscriber whose queue survives the broker."""

import asyncio
import json
from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import Any, Final, Self

import aio_pika
import sqlalchemy as sa
from aio_pika.abc import AbstractChannel, AbstractConnection, AbstractIncomingMessage

from schemas import COMMAND_TYPES
from tests.chaos.checker import outcomes_of
from tests.chaos.commands import Message
from tests.chaos.history import Command, Event, Letter, Told, read
from tests.chaos.life_rules import answers
from tests.harness import QUORUM
from worker.bus.connection import bus_errors, close, connect
from worker.bus.topology import BusNames, declare_topology
from worker.errors import BusUnavailable
from worker.ledger.engine import open_engine
from worker.retry_policy import RUNGS_S

CONFIRM_TIMEOUT_S: Final = 5


class Shop:
    """Sends orders; what the subscriber got is in `events`, what an operator would see in `letters`."""

    def __init__(self, amqp_url: str, names: dict[str, str], *, ledger_url: str) -> None:
        self._url = amqp_url
        self._ledger_url = ledger_url
        self._opening = asyncio.Lock()
        self._connection: AbstractConnection | None = None
        self._channel: AbstractChannel | None = None
        fields = {key.lower(): value for key, value in names.items()}
        self._names = BusNames(
            orders_routing_key="order.created",
            retry_delays_s=RUNGS_S,
            command_routing_keys=tuple(sorted(COMMAND_TYPES)),
            **fields,
        )
        self._tap = f"{self._names.payments_exchange}.tap"
        self.sent = 0
        self.events: list[Event] = []
        self.letters: list[Letter] = []

    async def __aenter__(self) -> Self:
        channel = await self._open()
        await declare_topology(channel, self._names)
        tap = await channel.declare_queue(self._tap, durable=True, arguments=QUORUM)
        await tap.bind(self._names.payments_exchange, "#")
        return self

    async def __aexit__(self, *_: object) -> None:
        await close(self._connection)

    async def send(self, message: Message) -> None:
        """Returns once the broker has confirmed it, however often that has to be tried."""
        sent = aio_pika.Message(
            json.dumps(message.body).encode(),
            message_id=message.message_id,
            type=message.type,
            delivery_mode=aio_pika.DeliveryMode.PERSISTENT,
        )
        while True:
            try:
                channel = await self._open()
                with bus_errors():
                    async with asyncio.timeout(CONFIRM_TIMEOUT_S):
                        orders = await channel.get_exchange(self._names.orders_exchange, ensure=False)
                        await orders.publish(sent, message.type or self._names.orders_routing_key, mandatory=True)
            except BusUnavailable:
                await self._drop()
                await asyncio.sleep(0.2)
            else:
                self.sent += 1
                return

    async def look(self) -> None:
        """Take what events and dead letters there are."""
        await self._empty(self._tap, self._take_event)
        with suppress(sa.exc.SQLAlchemyError):  # the database is being restarted; the last look is after that
            self.letters = await asyncio.to_thread(_letters_in, self._ledger_url)

    async def waiting(self) -> int:
        """Messages that lie ready in the worker's own queues."""
        channel = await self._open()
        counts = []
        for queue in self._names.own_queues():
            declared = await channel.declare_queue(queue, passive=True)
            counts.append(declared.declaration_result.message_count or 0)
        return sum(counts)

    def told(self) -> dict[str, list[Told]]:
        """The events of each order."""
        return read(self.events)[0]

    def without_an_outcome(self, orders: Iterable[str]) -> set[str]:
        """Of the orders, those that have come to nothing yet."""
        told, dead = self.told(), {letter.order_id for letter in self.letters if letter.command is None}
        return {each for each in orders if each not in dead and not outcomes_of(told.get(each, []))}

    def without_an_answer(self, commands: Iterable[Command]) -> list[Command]:
        """Of the commands, those that nothing has answered yet."""
        told, dead = self.told(), {(letter.order_id, letter.command) for letter in self.letters}
        return [
            each
            for each in commands
            if (each.order_id, each.name) not in dead and not answers(each, told.get(each.order_id, []))
        ]

    async def _open(self) -> AbstractChannel:
        """Raises BusUnavailable."""
        async with self._opening:
            if self._channel is None or self._channel.is_closed:
                await close(self._connection)
                self._connection = await connect(self._url, role="tests")
                with bus_errors():
                    async with asyncio.timeout(CONFIRM_TIMEOUT_S):
                        self._channel = await self._connection.channel(on_return_raises=True)
            return self._channel

    async def _drop(self) -> None:
        """Only a new channel tells the confirms apart."""
        async with self._opening:
            connection, self._connection, self._channel = self._connection, None, None
            await close(connection)

    async def _empty(self, name: str, take: Callable[[AbstractIncomingMessage], None]) -> None:
        channel = await self._open()
        queue = await channel.get_queue(name, ensure=False)
        while message := await queue.get(no_ack=True, fail=False):
            take(message)

    def _take_event(self, message: AbstractIncomingMessage) -> None:
        self.events.append(Event(message.routing_key, message.message_id, message.body))


def _letters_in(ledger_url: str) -> list[Letter]:
    """Dead letters, as they lie in the ledger for operators."""
    engine = open_engine(ledger_url)
    try:
        with engine.connect() as conn:
            rows = conn.execute(sa.text("SELECT * FROM letters")).mappings().all()
    finally:
        engine.dispose()
    return [_letter(dict(row)) for row in rows]


def _letter(row: dict[str, Any]) -> Letter:
    command = None
    with suppress(ValueError, KeyError, TypeError):
        properties = json.loads(row["properties"])
        if properties.get("type") in COMMAND_TYPES:
            command = json.loads(row["body"]).get("request_id") or properties.get("message_id")
    return Letter(row["order_id"], row["reason"], repr(row).encode(), command)
