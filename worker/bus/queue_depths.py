"""How full the queues are and who consumes them, by looking alone: nothing is declared that is not there."""

import asyncio
from collections.abc import Iterable

from aio_pika.abc import AbstractChannel
from aio_pika.exceptions import ChannelNotFoundEntity

from worker.bus.connection import CONNECT_TIMEOUT_S, bus_errors, close, connect


async def queue_depths(url: str, names: Iterable[str]) -> dict[str, tuple[int, int] | None]:
    """Messages that lie ready, and consumers, of each queue; None for one that is not there.

    Raises BusUnavailable.
    """
    depths: dict[str, tuple[int, int] | None] = {}
    connection = await connect(url, role="looks at queues")
    try:
        with bus_errors():
            channel: AbstractChannel | None = None
            for name in names:
                async with asyncio.timeout(CONNECT_TIMEOUT_S):
                    channel = channel or await connection.channel(publisher_confirms=False)
                    try:
                        queue = await channel.declare_queue(name, passive=True)
                    except ChannelNotFoundEntity:  # the broker has closed the channel with it
                        depths[name], channel = None, None
                    else:
                        found = queue.declaration_result
                        depths[name] = (found.message_count or 0, found.consumer_count or 0)
    finally:
        await close(connection)
    return depths
