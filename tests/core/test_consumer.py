"""The lives of a subscription, with scripted parts: the real ones are in tests/road."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from types import SimpleNamespace
from typing import Any

from schemas import AmqpProperties
from tests.harness import until
from worker.bus.delivery import Delivery
from worker.consume import Consumer
from worker.errors import BusUnavailable, LedgerUnavailable
from worker.outcome import Done, GiveBack, Outcome
from worker.telemetry import Metrics


class Script:
    """A bus whose lives end on command, and a process whose ends are chosen by the test."""

    def __init__(self) -> None:
        self.lives: list[asyncio.Event] = []
        self.ended = 0
        self.deliver: Callable[[Delivery], None] = lambda _: None
        self.ends: dict[str, asyncio.Future[Outcome]] = {}
        self.recoveries = 0
        self.fault: LedgerUnavailable | None = None
        self.stop = asyncio.Event()
        self.consumer = Consumer(
            subscribe=self.subscribe,
            process=self.process,
            recovered=self.recovered,
            concurrency=4,
            drain_timeout_s=0.2,
            metrics=Metrics(),
        )

    @asynccontextmanager
    async def subscribe(self, on_delivery: Callable[[Delivery], None]) -> AsyncIterator[Any]:
        self.deliver, lost = on_delivery, asyncio.Event()
        self.lives.append(lost)

        async def stop_taking() -> None: ...

        try:
            yield SimpleNamespace(lost=lost.wait, stop_taking=stop_taking)
        finally:
            self.ended += 1

    async def process(self, delivery: Delivery) -> Outcome:
        return await self.ends.setdefault(delivery.body.decode(), asyncio.get_running_loop().create_future())

    async def recovered(self) -> None:
        self.recoveries += 1
        if self.fault:
            raise self.fault

    def send(self, name: str) -> asyncio.Future[Outcome]:
        message: Any = SimpleNamespace(delivery_tag=1)
        self.deliver(Delivery(name.encode(), AmqpProperties(), {}, 1, datetime.now(UTC), message))
        return self.ends.setdefault(name, asyncio.get_running_loop().create_future())

    async def until_lives(self, count: int) -> None:
        await until(lambda: len(self.lives) >= count, what=f"{count} lives of the subscription")

    async def end(self, running: asyncio.Task[None]) -> None:
        self.stop.set()
        await asyncio.wait_for(running, 10)


async def test_work_of_an_old_life_that_cannot_be_settled_does_not_end_the_new_one() -> None:
    script = Script()
    running = asyncio.create_task(script.consumer.run(script.stop))
    await script.until_lives(1)
    old = script.send("order-1")
    script.lives[0].set()
    await script.until_lives(2)

    old.set_exception(BusUnavailable("the connection was lost"))
    await until(lambda: not script.consumer.state.in_work, what="the old work to end")
    await asyncio.sleep(0)
    assert (len(script.lives), script.ended) == (2, 1)
    assert script.consumer.state.subscribed
    await script.end(running)
    assert len(script.lives) == 2


async def test_a_delivery_that_cannot_be_settled_ends_the_life_that_brought_it() -> None:
    script = Script()
    running = asyncio.create_task(script.consumer.run(script.stop))
    await script.until_lives(1)

    script.send("order-1").set_exception(RuntimeError("a bug while settling"))

    await script.until_lives(2)
    assert script.recoveries == 0, "nothing around us has failed"
    await script.end(running)


async def test_a_fault_of_the_surroundings_pauses_until_they_are_well_again() -> None:
    script = Script()
    script.fault = LedgerUnavailable("locked")
    running = asyncio.create_task(script.consumer.run(script.stop))
    await script.until_lives(1)

    script.send("order-1").set_result(GiveBack("LedgerUnavailable: locked"))
    await until(lambda: script.recoveries >= 2, what="the surroundings to be asked twice")
    assert len(script.lives) == 1, "no subscription while they are not well"
    assert (script.consumer.state.subscribed, script.consumer.state.why_not) == (False, "locked")

    script.fault = None
    await script.until_lives(2)
    await script.end(running)


async def test_work_that_does_not_end_in_time_is_cut_when_stopping() -> None:
    script = Script()
    running = asyncio.create_task(script.consumer.run(script.stop))
    await script.until_lives(1)
    done, hanging = script.send("order-1"), script.send("order-2")
    await asyncio.sleep(0)

    script.stop.set()
    done.set_result(Done())
    await asyncio.wait_for(running, 10)

    assert hanging.cancelled()
    assert not script.consumer.state.in_work


async def test_a_stop_during_the_wait_for_recovery_is_heard() -> None:
    script = Script()
    script.fault = LedgerUnavailable("locked")
    running = asyncio.create_task(script.consumer.run(script.stop))
    await script.until_lives(1)
    script.send("order-1").set_result(GiveBack("LedgerUnavailable: locked"))
    await until(lambda: script.recoveries >= 1, what="the pause")

    await script.end(running)
