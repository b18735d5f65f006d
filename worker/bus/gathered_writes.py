"""Frames of one turn of the loop go to the socket together: a write costs more than all else about a small frame.

aiormq hands each frame to the socket by itself. A channel puts its frames into its `write_queue`; here something else
stands in that place, and passes on what was put in since the turn before as one. Their order is kept.
"""

import asyncio
from collections.abc import Callable
from functools import partial
from typing import Any, Final

from aiormq import Channel
from aiormq.abc import ChannelFrame

# aiormq's queue is short; its writer is at work, then, and the loop must come round to it.
FULL_WAIT_S: Final = 0.001


def gather_writes(channel: Channel) -> Channel:
    """The channel, its writes gathered from now on. To be called once for each."""
    channel.write_queue = GatheredWrites(channel.write_queue, is_over=lambda: channel.is_closed)  # type: ignore[assignment]
    return channel


class GatheredWrites:
    """Takes frames at once, whatever their number: those who wait for a confirm bound it, and prefetch does."""

    def __init__(self, queue: asyncio.Queue[ChannelFrame], *, is_over: Callable[[], bool]) -> None:
        self._onward = queue
        self._is_over = is_over
        self._gathered: list[ChannelFrame] = []

    async def put(self, item: ChannelFrame) -> None:
        """To the socket at the end of this turn."""
        self.put_nowait(item)

    def put_nowait(self, item: ChannelFrame) -> None:
        """The same."""
        if not self._gathered:
            asyncio.get_running_loop().call_soon(self._pass_on)
        self._gathered.append(item)

    def _pass_on(self) -> None:
        try:
            self._onward.put_nowait(_as_one(self._gathered))
        except asyncio.QueueFull:
            if not self._is_over():  # or nobody would ever make room
                asyncio.get_running_loop().call_later(FULL_WAIT_S, self._pass_on)
        else:
            self._gathered = []


def _as_one(frames: list[ChannelFrame]) -> ChannelFrame:
    """Who waits for one of them to be written is told once all are."""
    if len(frames) == 1:
        return frames[0]
    drained: asyncio.Future[Any] | None = None
    for frame in frames:
        if frame.should_drain:
            drained = drained or asyncio.get_running_loop().create_future()
            drained.add_done_callback(partial(_drain, frame))
    return ChannelFrame(payload=b"".join(frame.payload for frame in frames), should_close=False, drain_future=drained)


def _drain(frame: ChannelFrame, _: asyncio.Future[Any]) -> None:
    frame.drain()
