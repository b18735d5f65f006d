"""What a channel writes in one turn of the loop goes on as one, in its order."""

import asyncio
from typing import Any

from aiormq.abc import ChannelFrame

from tests.harness import until
from worker.bus.gathered_writes import GatheredWrites


def frame(payload: bytes, drained: asyncio.Future[None] | None = None) -> ChannelFrame:
    return ChannelFrame(payload=payload, should_close=False, drain_future=drained)


async def test_frames_of_one_turn_go_as_one_and_those_of_the_next_as_another() -> None:
    onward: asyncio.Queue[ChannelFrame] = asyncio.Queue(10)
    gathered = GatheredWrites(onward, is_over=lambda: False)

    await gathered.put(frame(b"a"))
    gathered.put_nowait(frame(b"b"))
    await gathered.put(frame(b"c"))
    assert (await onward.get()).payload == b"abc"
    await gathered.put(frame(b"d"))
    assert (await onward.get()).payload == b"d"
    assert onward.empty()


async def test_frames_wait_for_room_in_the_queue_beyond_and_keep_their_order() -> None:
    onward: asyncio.Queue[ChannelFrame] = asyncio.Queue(1)
    onward.put_nowait(frame(b"another channel's"))
    gathered = GatheredWrites(onward, is_over=lambda: False)

    await gathered.put(frame(b"a"))
    for _ in range(3):
        await asyncio.sleep(0)
    await gathered.put(frame(b"b"))
    assert (await onward.get()).payload == b"another channel's"
    assert (await asyncio.wait_for(onward.get(), 5)).payload == b"ab"


async def test_all_who_wait_for_their_frame_to_be_written_are_told() -> None:
    onward: asyncio.Queue[ChannelFrame] = asyncio.Queue(10)
    gathered = GatheredWrites(onward, is_over=lambda: False)
    one, other = (asyncio.get_running_loop().create_future() for _ in range(2))

    await gathered.put(frame(b"a", one))
    await gathered.put(frame(b"b"))
    await gathered.put(frame(b"c", other))
    together = await onward.get()
    assert together.payload == b"abc"
    assert together.should_drain
    await asyncio.sleep(0)
    assert not one.done()
    assert not other.done()

    together.drain()
    await asyncio.wait_for(asyncio.gather(one, other), 5)


async def test_a_channel_that_is_over_waits_for_no_room() -> None:
    onward: asyncio.Queue[ChannelFrame] = asyncio.Queue(1)
    onward.put_nowait(frame(b"never written"))
    is_over = False
    gathered = GatheredWrites(onward, is_over=lambda: is_over)

    await gathered.put(frame(b"a"))
    await asyncio.sleep(0)
    assert has_timers()
    is_over = True
    await until(lambda: not has_timers(), what="nobody to wait for room")


def has_timers() -> bool:
    loop: Any = asyncio.get_running_loop()
    return any(not timer.cancelled() for timer in loop._scheduled)
