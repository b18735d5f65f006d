"""Acknowledgements of one consuming channel, many in a frame: a frame for each costs more than all else about them."""

import asyncio
from contextlib import suppress
from typing import Final

from aiormq.abc import ChannelFrame
from aiormq.channel import Channel
from pamqp.commands import Basic

from worker.bus.connection import CLOSE_TIMEOUT_S, bus_errors
from worker.errors import BusUnavailable

# For others to be done too. Under load no longer than a turn of the loop, and no order waits for it.
TOGETHER_S: Final = 0.001


class SettledTags:
    """Which deliveries of a channel are settled, and the fewest frames that say so. Pure.

    Tags count up from 1 on each channel (AMQP 0-9-1, 1.8.3.13 basic.ack). `multiple` takes every tag up to its own, so
    it is only used where all of them are settled: what was not noted is never covered, whether it is known here or not.
    """

    def __init__(self) -> None:
        self._through = 0  # up to here all are settled, and the broker was told
        self._ahead: set[int] = set()  # settled and told beyond it
        self._noted: set[int] = set()  # settled, and not told yet

    def note(self, tag: int) -> None:
        """Settled. To note one twice is harmless; the broker, told twice, would close the channel."""
        if tag > self._through and tag not in self._ahead:
            self._noted.add(tag)

    def take(self) -> list[Basic.Ack]:
        """The frames for all that was noted since the last time; they must be sent."""
        noted, self._noted = self._noted, set()
        last, tag = 0, self._through + 1
        while tag in noted or tag in self._ahead:
            if tag in noted:
                last = tag  # not beyond: the broker knows no tag any more that it was told of
            self._ahead.discard(tag)
            tag += 1
        self._through = tag - 1
        beyond = sorted(tag for tag in noted if tag > self._through)
        self._ahead.update(beyond)
        is_several = len(noted) - len(beyond) > 1
        frames = [Basic.Ack(last, multiple=is_several)] if last else []
        return frames + [Basic.Ack(tag) for tag in beyond]


class Acknowledger:
    """Sends what is settled on a channel, all of one moment together; nobody waits for it."""

    def __init__(self, channel: Channel) -> None:
        self._channel = channel
        self._tags = SettledTags()
        self._due: asyncio.TimerHandle | None = None

    def ack(self, tag: int) -> None:
        """On its way within moments, unless the connection is lost. Raises BusUnavailable: it already is."""
        if self._channel.is_closed:
            raise BusUnavailable("the connection was lost")
        self._tags.note(tag)
        self._send_soon()

    async def finish(self) -> None:
        """All that was acknowledged is on the wire, or the connection is lost; to be awaited before it is closed."""
        if self._due:
            self._due.cancel()
        with suppress(BusUnavailable), bus_errors():
            async with asyncio.timeout(CLOSE_TIMEOUT_S):
                if not self._channel.is_closed:
                    # Frames go out in their order: once this one has, those before it have too, be it empty.
                    written = self._channel.create_future()
                    await self._channel.connection.write_queue.put(self._frame(written))
                    await written

    def _send_soon(self) -> None:
        if self._due is None:
            self._due = asyncio.get_running_loop().call_later(TOGETHER_S, self._send)

    def _send(self) -> None:
        self._due = None
        if self._channel.is_closed:
            return
        queue = self._channel.connection.write_queue
        if queue.full():  # the broker reads slowly; meanwhile there will be more to send together
            self._send_soon()
        else:
            queue.put_nowait(self._frame())

    def _frame(self, written: asyncio.Future[None] | None = None) -> ChannelFrame:
        return ChannelFrame.marshall(self._channel.number, self._tags.take(), written)
