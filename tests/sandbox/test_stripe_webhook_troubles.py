import asyncio
from collections import Counter
from typing import Any

import pytest

from tests.sandbox.conftest import SECRET, Receiver
from worker.sandbox.stripe_gate import PLATFORM
from worker.sandbox.stripe_server import RunningSandbox, running_sandbox
from worker.sandbox.stripe_store import Scope


async def test_deliveries_wait_while_paused(
    intents: Any, order: Any, sandbox: RunningSandbox, receiver: Receiver, endpoint: str
) -> None:
    await sandbox.control.change_settings(webhook_paused=True)
    await intents.create_async(order)
    with pytest.raises(TimeoutError):
        await sandbox.control.wait_for_deliveries(timeout_s=0.1)
    assert receiver.bodies == []
    await sandbox.control.change_settings(webhook_paused=False)
    await sandbox.control.wait_for_deliveries()
    assert receiver.types == ["payment_intent.created"]


async def test_every_event_may_come_twice_with_the_same_id(
    intents: Any, paid: Any, sandbox: RunningSandbox, receiver: Receiver, endpoint: str
) -> None:
    await sandbox.control.change_settings(webhook_duplicates=1.0)
    await intents.create_async(paid)
    await sandbox.control.wait_for_deliveries()
    counted = Counter(event["id"] for event in receiver.events)
    assert sorted(counted.values()) == [2, 2, 2]


async def test_two_events_of_one_change_are_both_delivered(
    intents: Any, order: Any, sandbox: RunningSandbox, receiver: Receiver, endpoint: str
) -> None:
    await sandbox.control.change_settings(event_twins=1.0)
    await intents.create_async(order)
    await sandbox.control.wait_for_deliveries()
    first, second = receiver.events
    assert first["id"] != second["id"]
    assert first["data"] == second["data"]


async def test_one_at_a_time_keeps_the_order_and_a_window_breaks_it_the_same_way_each_time(
    paid: Any, receiver: Receiver
) -> None:
    async def told(**settings: Any) -> list[int]:
        """The order of arrival, as places in the order of telling; the window is not full at the end."""
        receiver.bodies.clear()
        async with running_sandbox(seed=7, webhook_concurrency=1, **settings) as sandbox:
            await sandbox.control.add_webhook(receiver.url, [SECRET])
            for _ in range(7):
                sandbox.sandbox.world.intents.create(Scope(PLATFORM, False), paid)
            await sandbox.control.wait_for_deliveries()
            places = {event["id"]: place for place, event in enumerate(await sandbox.control.events())}
        return [places[event["id"]] for event in receiver.events]

    assert await told() == list(range(21))
    shuffled = await told(webhook_shuffle=9)
    assert shuffled != list(range(21))
    assert sorted(shuffled[:9]) == list(range(9))
    assert sorted(shuffled) == list(range(21))
    assert await told(webhook_shuffle=9) == shuffled


async def test_delays_reorder_within_their_range(
    intents: Any, paid: Any, sandbox: RunningSandbox, receiver: Receiver, endpoint: str
) -> None:
    await sandbox.control.change_settings(webhook_delay_s=[1000, 2000])
    await intents.create_async(paid)
    await sandbox.control.advance_clock(999)
    with pytest.raises(TimeoutError):
        await sandbox.control.wait_for_deliveries(timeout_s=0.1)
    assert receiver.bodies == []
    await sandbox.control.advance_clock(1001)
    await sandbox.control.wait_for_deliveries()
    assert len(receiver.bodies) == 3


async def test_deliveries_under_way_are_bounded(paid: Any, intents: Any, sandbox: RunningSandbox) -> None:
    open_now, most = 0, 0
    opened, release = asyncio.Semaphore(0), asyncio.Event()

    async def hold(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal open_now, most
        open_now += 1
        most = max(most, open_now)
        opened.release()
        await reader.readuntil(b"\r\n\r\n")
        await release.wait()
        open_now -= 1
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
        writer.close()

    server = await asyncio.start_server(hold, "127.0.0.1", 0)
    async with server:
        await sandbox.control.change_settings(webhook_concurrency=4)
        await sandbox.control.add_webhook(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/", [SECRET])
        for _ in range(4):
            await intents.create_async(paid)
        async with asyncio.timeout(10):
            for _ in range(4):
                await opened.acquire()
        release.set()
        assert (await sandbox.control.wait_for_deliveries())["delivered"] == 12
    assert most == 4
