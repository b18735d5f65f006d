"""Connections to the broker, with its errors as ours."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Final, cast

import aio_pika
from aio_pika.abc import AbstractChannel, AbstractConnection
from aio_pika.exceptions import (
    CONNECTION_EXCEPTIONS,
    AuthenticationError,
    ChannelPreconditionFailed,
    ProbableAuthenticationError,
)
from aiormq.channel import Channel
from yarl import URL

from worker.bus.readable_properties import tolerate_unreadable_properties
from worker.errors import BusUnavailable

CONNECT_TIMEOUT_S: Final = 5
# A frozen broker is noticed after two missed beats; the server's own default of 60 s would be two minutes.
HEARTBEAT_S: Final = 10
CLOSE_TIMEOUT_S: Final = 1


async def connect(url: str, *, role: str) -> AbstractConnection:
    """A plain connection, which does not mend itself: whoever holds it notices the end and makes a new one.

    role: shown at the broker beside the connection. Raises BusUnavailable.
    """
    tolerate_unreadable_properties()
    address = URL(url)
    if "heartbeat" not in address.query:
        address = address.update_query(heartbeat=str(HEARTBEAT_S))
    connection = aio_pika.Connection(address, client_properties={"connection_name": f"payment-worker {role}"})
    try:
        with bus_errors():
            async with asyncio.timeout(CONNECT_TIMEOUT_S):
                await connection.connect()
    except BusUnavailable as error:
        await close(connection)  # or its destructor tries to, later
        if isinstance(error.__cause__, AuthenticationError | ProbableAuthenticationError):
            raise BusUnavailable(f"the broker at {address.host} refuses the user or the password") from error.__cause__
        raise BusUnavailable(
            f"no connection to the broker at {address.host}:{address.port or 5672} ({error})"
        ) from error
    return connection


async def close(connection: AbstractConnection | None) -> None:
    """Close, and leave at once what does not answer."""
    if connection is None:
        return
    with suppress(BusUnavailable), bus_errors():
        async with asyncio.timeout(CLOSE_TIMEOUT_S):
            await connection.close()


class bus_errors:  # noqa: N801 - a context manager, named as one
    """Turns what aio-pika raises into BusUnavailable; a precondition failure is left for the topology to explain.

    A lost connection surfaces as CancelledError too: only `task.cancelling()` tells it from a real cancellation.
    """

    def __enter__(self) -> None:
        task = asyncio.current_task()
        self._cancelling = task.cancelling() if task else 0

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: object) -> None:
        if isinstance(error, ChannelPreconditionFailed) or error is None:
            return
        if isinstance(error, TimeoutError):
            raise BusUnavailable("the broker did not answer in time") from error
        if isinstance(error, asyncio.CancelledError):
            task = asyncio.current_task()
            if task and task.cancelling() > self._cancelling:
                return
            raise BusUnavailable("the connection was lost") from error
        # aiormq ends waiting publishes with a bare Exception where it knows no reason.
        if isinstance(error, CONNECTION_EXCEPTIONS) or type(error) is Exception:
            raise BusUnavailable(str(error)[:200] or type(error).__name__) from error


async def beneath(channel: AbstractChannel) -> Channel:
    """aiormq's channel under aio-pika's: for each message, where the upper one's care would cost as much again."""
    return cast("Channel", await channel.get_underlay_channel())


@asynccontextmanager
async def open_channel(url: str, *, role: str, publishes: bool) -> AsyncIterator[AbstractChannel]:
    """A channel on a connection of its own, for as long as the block lasts. Raises BusUnavailable."""
    connection = await connect(url, role=role)
    try:
        with bus_errors():
            async with asyncio.timeout(CONNECT_TIMEOUT_S):
                channel = await connection.channel(publisher_confirms=publishes, on_return_raises=publishes)
        yield channel
    finally:
        await close(connection)
