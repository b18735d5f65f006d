"""Publishing: persistent, mandatory, confirmed; an unroutable message is an error, a lost confirm is unknown."""

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from datetime import datetime
from typing import Any, Final, Self

from aio_pika import DeliveryMode
from aio_pika.abc import AbstractConnection
from aiormq.channel import Channel
from aiormq.exceptions import DeliveryError
from pamqp.commands import Basic

from worker.bus.connection import CONNECT_TIMEOUT_S, beneath, bus_errors, close, connect
from worker.bus.gathered_writes import gather_writes
from worker.bus.topology import BusNames, declare_topology
from worker.errors import BusUnavailable, Unroutable

CONFIRM_TIMEOUT_S: Final = 10
# A reply is for a service that waits now; it holds a secret and must not lie about.
REPLY_TTL_S: Final = 60


class Publisher:
    """One publishing connection, made when first needed and made again after a loss.

    Separate from the consuming one: a blocked or broken publish then stops no acknowledgement.
    """

    def __init__(self, url: str, names: BusNames) -> None:
        self._url = url
        self._names = names
        self._connection: AbstractConnection | None = None
        self._channel: Channel | None = None
        self._opening = asyncio.Lock()
        self._in_flight: dict[str, tuple[asyncio.Lock, int]] = {}

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await close(self._connection)

    async def publish(
        self,
        body: bytes,
        *,
        exchange: str,
        routing_key: str,
        message_id: str,
        headers: Mapping[str, Any],
        content_type: str | None = "application/json",
        content_encoding: str | None = None,
        correlation_id: str | None = None,
        reply_to: str | None = None,
        type: str | None = None,  # noqa: A002 - AMQP's name
        app_id: str | None = None,
        timestamp: datetime | None = None,
        is_private: bool = False,
    ) -> None:
        """Returns once the broker has it in a queue.

        is_private: not written to disk where the queue allows, and gone after REPLY_TTL_S.
        Raises Unroutable (no queue takes it) and BusUnavailable (unknown: it may have arrived).
        """
        properties = Basic.Properties(
            message_id=message_id,
            headers=dict(headers),
            content_type=content_type,
            content_encoding=content_encoding,
            correlation_id=correlation_id,
            reply_to=reply_to,
            message_type=type,
            app_id=app_id,
            timestamp=timestamp,
            delivery_mode=DeliveryMode.NOT_PERSISTENT if is_private else DeliveryMode.PERSISTENT,
            expiration=str(REPLY_TTL_S * 1000) if is_private else None,
        )
        # RabbitMQ returns what goes to a direct reply-to as unroutable even where it arrives.
        is_direct = routing_key.startswith("amq.rabbitmq.reply-to.")
        async with self._alone(message_id):
            channel = await self._open_channel()
            try:
                with bus_errors():
                    # Returns with the confirm; `wait` would have it wait for the socket before that.
                    await channel.basic_publish(
                        body,
                        exchange=exchange,
                        routing_key=routing_key,
                        properties=properties,
                        mandatory=not is_direct,
                        timeout=CONFIRM_TIMEOUT_S,
                        wait=False,
                    )
            except BusUnavailable as error:
                if isinstance(error.__cause__, DeliveryError):  # returned, or refused by a queue that is full
                    raise Unroutable(
                        f"no queue takes {routing_key!r} from {exchange or 'the default exchange'!r}"
                    ) from None
                # Whatever is still in flight there is unknown; a new channel cannot mix its confirms up with it.
                await self._drop(channel)
                raise

    async def _open_channel(self) -> Channel:
        if self._channel is not None and not self._channel.is_closed:
            return self._channel
        async with self._opening:
            if self._channel is None or self._channel.is_closed:
                await close(self._connection)
                self._connection = self._channel = None
                connection = await connect(self._url, role="publishes")
                try:
                    with bus_errors():
                        async with asyncio.timeout(CONNECT_TIMEOUT_S):
                            channel = await connection.channel(publisher_confirms=True, on_return_raises=True)
                            await declare_topology(channel, self._names)
                            underlay = gather_writes(await beneath(channel))
                except BaseException:
                    await close(connection)
                    raise
                self._connection, self._channel = connection, underlay
            return self._channel

    async def _drop(self, channel: Channel) -> None:
        if self._channel is channel:
            connection, self._connection, self._channel = self._connection, None, None
            await close(connection)

    @asynccontextmanager
    async def _alone(self, message_id: str) -> AsyncIterator[None]:
        """Never two in flight under one id: aiormq finds the publish that was returned by its message id."""
        lock, users = self._in_flight.get(message_id, (asyncio.Lock(), 0))
        self._in_flight[message_id] = (lock, users + 1)
        try:
            async with lock:
                yield
        finally:
            _, users = self._in_flight.pop(message_id)
            if users > 1:
                self._in_flight[message_id] = (lock, users - 1)
