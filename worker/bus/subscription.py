"""One life of the consuming connection: from subscribed until it no longer is, told by the consumer tag itself."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import datetime
from typing import Final

from aiormq.abc import DeliveredMessage
from aiormq.channel import Channel

from worker.bus.acknowledge import Acknowledger
from worker.bus.connection import CONNECT_TIMEOUT_S, beneath, bus_errors, open_channel
from worker.bus.delivery import Delivery, read_delivery
from worker.bus.topology import BusNames, declare_topology

# A consumer that the broker cancels only loses its tag: aiormq tells nobody, and nothing else would show it.
LOOK_S: Final = 0.25


class Subscription:
    """A live consumer. Handlers run apart from it, so that a lost connection cuts no work in the middle."""

    def __init__(self, channel: Channel, tag: str) -> None:
        self._channel = channel
        self._tag = tag

    def is_alive(self) -> bool:
        """Whether the broker, as far as can be seen from here, still has us as a consumer."""
        return self._tag in self._channel.consumers and not self._channel.is_closed

    async def lost(self) -> None:
        """Returns when we are no longer subscribed."""
        while self.is_alive():  # noqa: ASYNC110 - there is no event to wait for: that is the trouble
            await asyncio.sleep(LOOK_S)

    async def stop_taking(self) -> None:
        """No new deliveries; those taken can still be settled. Raises BusUnavailable."""
        with bus_errors():
            async with asyncio.timeout(CONNECT_TIMEOUT_S):
                await self._channel.basic_cancel(self._tag)


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

    What was acknowledged is told before.
    prefetch: deliveries out at once. Raises BusUnavailable and TopologyMismatch.
    """

    async with open_channel(url, role=f"consumes {queue_name}", publishes=False) as channel:
        with bus_errors():
            async with asyncio.timeout(2 * CONNECT_TIMEOUT_S):
                await declare_topology(channel, names)
                await channel.set_qos(prefetch_count=prefetch)
                underlay = await beneath(channel)
                acknowledger = Acknowledger(underlay)

                async def receive(message: DeliveredMessage) -> None:
                    # Reads anything: see tests/road/test_hostile_messages.py.
                    on_delivery(read_delivery(message, now=clock(), acknowledge=acknowledger.ack))

                consuming = await underlay.basic_consume(queue_name, receive)
        try:
            yield Subscription(underlay, consuming.consumer_tag or "")
        finally:
            await acknowledger.finish()
