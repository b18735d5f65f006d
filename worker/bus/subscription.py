"""One life of the consuming connection: from subscribed until it no longer is, told by the consumer tag itself."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import datetime
from typing import Final

from aio_pika.abc import AbstractChannel, AbstractIncomingMessage, AbstractQueue

from worker.bus.connection import CONNECT_TIMEOUT_S, bus_errors, open_channel
from worker.bus.delivery import Delivery, read_delivery
from worker.bus.topology import BusNames, declare_topology

# A consumer that the broker cancels only loses its tag: aiormq tells nobody, and nothing else would show it.
LOOK_S: Final = 0.25


class Subscription:
    """A live consumer. Handlers run apart from it, so that a lost connection cuts no work in the middle."""

    def __init__(self, channel: AbstractChannel, queue: AbstractQueue, tag: str) -> None:
        self._channel = channel
        self._queue = queue
        self._tag = tag

    async def is_alive(self) -> bool:
        """Whether the broker, as far as can be seen from here, still has us as a consumer."""
        if self._channel.is_closed:
            return False
        with bus_errors():
            async with asyncio.timeout(CONNECT_TIMEOUT_S):
                underlay = await self._channel.get_underlay_channel()
        consumers: dict[str, object] = getattr(underlay, "consumers", {})  # not in aiormq's abstract class
        return self._tag in consumers and not underlay.is_closed

    async def lost(self) -> None:
        """Returns when we are no longer subscribed. Raises BusUnavailable."""
        while await self.is_alive():  # noqa: ASYNC110 - there is no event to wait for: that is the trouble
            await asyncio.sleep(LOOK_S)

    async def stop_taking(self) -> None:
        """No new deliveries; those taken can still be settled. Raises BusUnavailable."""
        with bus_errors():
            async with asyncio.timeout(CONNECT_TIMEOUT_S):
                await self._queue.cancel(self._tag)


@asynccontextmanager
async def subscribe(
    url: str,
    names: BusNames,
    *,
    queue_name: str,
    prefetch: int,
    on_delivery: Callable[[Delivery], None],
    clock: Callable[[], datetime],
) -> AsyncIterator[Subscription]:
    """Connect, declare, consume a queue; leaving the block closes the connection, and what is unsettled goes back.

    prefetch: deliveries out at once. Raises BusUnavailable and TopologyMismatch.
    """

    async def receive(message: AbstractIncomingMessage) -> None:
        on_delivery(read_delivery(message, now=clock()))  # reads anything: see tests/road/test_hostile_messages.py

    async with open_channel(url, role=f"consumes {queue_name}", publishes=False) as channel:
        with bus_errors():
            async with asyncio.timeout(2 * CONNECT_TIMEOUT_S):
                await declare_topology(channel, names)
                await channel.set_qos(prefetch_count=prefetch)
                queue = await channel.get_queue(queue_name, ensure=False)
                tag = await queue.consume(receive)
        yield Subscription(channel, queue, tag)
