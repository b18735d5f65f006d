"""The lives of a subscription, with scripted parts: the real ones are in tests/road."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from types import SimpleNamespace
from typing import Any

import pytest
from pamqp.commands import Basic

from schemas import AmqpProperties
from tests.harness import until
from worker.bus.delivery import Delivery
from worker.consume import CEILING_ORDERS, Ceiling, Consumer
from worker.errors import BusUnavailable, LedgerUnavailable
from worker.metrics import Metrics
from worker.outcome import DeadLetter, Done, GiveBack, Outcome, Retry


class Script:
    """A bus whose lives end on command, and a process whose ends are chosen by the test."""

    def __init__(self) -> None:
        self.lives: list[asyncio.Event] = []
        self.ended = 0
        self.started: list[str] = []
        self.deliver: Callable[[Delivery], None] = lambda _: None
        self.ends: dict[str, asyncio.Future[Outcome]] = {}
        self.recoveries = 0
        self.fault: LedgerUnavailable | None = None
        self.stop = asyncio.Event()
        self.consumer = Consumer(
            subscribe=self.subscribe,
            process=self.process,
            recovered=self.recovered,
            begin_nothing=lambda: None,
            concurrency=4,
            ceiling=0.9,
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
        self.started.append(delivery.body.decode())
        return await self.ends.setdefault(delivery.body.decode(), asyncio.get_running_loop().create_future())

    async def recovered(self) -> None:
        self.recoveries += 1
        if self.fault:
            raise self.fault

    def send(self, name: str, *, replays: str | None = None) -> asyncio.Future[Outcome]:
        self.deliver(
            Delivery(
                body=name.encode(),
                properties=AmqpProperties(),
                unreadable={},
                deliveries=1,
                first_seen=datetime.now(UTC),
                tag=len(self.started) + 1,
                arrived=Basic.Properties(),
                acknowledge=lambda _: None,
                replays=replays,
            )
        )
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


# The ceiling

DEAD = DeadLetter("bad_message", "no order_id")
WHY = "more than 90% of the last 100 orders became dead letters: look at why"


async def work_off(script: Script, *outcomes: Outcome, replays: str | None = None) -> None:
    for number, outcome in enumerate(outcomes):
        script.send(f"{len(script.ends)}/{number}", replays=replays).set_result(outcome)
    await until(lambda: not script.consumer.state.in_work, what="the orders to end")


@pytest.fixture
def brief_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("worker.consume.WAITS_S", (0,))
    monkeypatch.setattr("worker.consume.CEILING_WAIT_S", 0.05)


async def let_run() -> None:
    """All that is ready to run has run."""
    for _ in range(20):
        await asyncio.sleep(0)


async def until_stopped(script: Script) -> None:
    await until(lambda: script.ended == len(script.lives), what="consumption to stop")


async def test_91_dead_letters_of_100_orders_stop_consumption_with_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("worker.consume.WAITS_S", (0,))
    monkeypatch.setattr("worker.consume.CEILING_WAIT_S", 60)
    script = Script()
    running = asyncio.create_task(script.consumer.run(script.stop))
    await script.until_lives(1)

    await work_off(script, *[Done()] * 9, *[DEAD] * 90)
    await let_run()
    assert (script.ended, script.consumer.state.subscribed) == (0, True)
    await work_off(script, DEAD)

    await until_stopped(script)
    await let_run()
    assert (script.consumer.state.subscribed, script.consumer.state.why_not) == (False, WHY)
    assert (len(script.lives), script.recoveries) == (1, 0), "it is not the surroundings that are asked"
    await script.end(running)
    assert len(script.lives) == 1


async def test_90_dead_letters_of_100_orders_stop_nothing() -> None:
    script = Script()
    running = asyncio.create_task(script.consumer.run(script.stop))
    await script.until_lives(1)
    await work_off(script, *[DEAD] * 90, *[Done()] * 10, *[DEAD] * 90)
    await let_run()
    assert (script.ended, script.consumer.state.subscribed) == (0, True)
    await script.end(running)


@pytest.mark.usefixtures("brief_waits")
async def test_after_the_wait_one_order_alone_is_tried_and_a_success_opens_again() -> None:
    script = Script()
    running = asyncio.create_task(script.consumer.run(script.stop))
    await script.until_lives(1)
    await work_off(script, *[DEAD] * 100)
    await script.until_lives(2)
    known = len(script.ends)

    trials = [script.send(f"trial-{number}") for number in range(3)]
    await let_run()
    assert sum(name.startswith("trial-") for name in script.started) == 1
    trials[0].set_result(Done())
    for trial in trials[1:]:
        trial.set_result(DEAD)
    await until(lambda: not script.consumer.state.in_work, what="the orders to end")
    assert len(script.ends) == known + 3

    await work_off(script, *[DEAD] * 90)
    assert (len(script.lives), script.consumer.state.subscribed) == (2, True), "those before count no more"
    await script.end(running)


@pytest.mark.usefixtures("brief_waits")
async def test_a_dead_letter_that_is_tried_stops_consumption_again() -> None:
    script = Script()
    running = asyncio.create_task(script.consumer.run(script.stop))
    await script.until_lives(1)
    await work_off(script, *[DEAD] * 100)
    for life in (2, 3, 4):
        await script.until_lives(life)
        trials = [script.send(f"trial-{life}-{number}") for number in range(3)]
        trials[0].set_result(DEAD)
        await script.until_lives(life + 1)
        await until(lambda: not script.consumer.state.in_work, what="the others to go back")
    assert [name for name in script.started if name.startswith("trial-")] == ["trial-2-0", "trial-3-0", "trial-4-0"]
    await work_off(script, Done())
    assert script.consumer.state.subscribed
    await script.end(running)


async def test_replays_are_not_counted_whether_they_fail_or_succeed() -> None:
    script = Script()
    running = asyncio.create_task(script.consumer.run(script.stop))
    await script.until_lives(1)

    await work_off(script, *[Done()] * 9, *[DEAD] * 90)
    await work_off(script, *[DEAD] * 150, replays="dl_1")
    await let_run()
    assert (script.ended, script.consumer.state.subscribed) == (0, True), "hopeless letters stop no live orders"

    await work_off(script, *[Done()] * 150, replays="dl_1")
    await work_off(script, DEAD)
    await until_stopped(script)
    assert script.consumer.state.why_not == WHY, "letters that succeed hide no fault of the live orders"
    await script.end(running)


@pytest.mark.usefixtures("brief_waits")
async def test_a_replay_is_no_trial() -> None:
    script = Script()
    running = asyncio.create_task(script.consumer.run(script.stop))
    await script.until_lives(1)
    await work_off(script, *[DEAD] * 100)
    await script.until_lives(2)

    await work_off(script, DEAD, replays="dl_1")
    await let_run()
    assert len(script.lives) == 2, "one that fails is no reason to wait again"
    await work_off(script, Done(), replays="dl_1")
    await work_off(script, DEAD)
    await script.until_lives(3)
    await work_off(script, Done())
    assert script.consumer.state.subscribed
    await script.end(running)


@pytest.mark.parametrize("outcome", [Retry("busy", "later", 1), GiveBack("stopping")])
def test_what_has_not_ended_is_not_counted(outcome: Outcome) -> None:
    ceiling = Ceiling(0.9)
    for _ in range(CEILING_ORDERS - 1):
        ceiling.note(DEAD)
    ceiling.note(outcome)
    assert not ceiling.is_reached
    ceiling.note(DEAD)
    assert ceiling.is_reached
    ceiling.try_one()
    ceiling.note(outcome)
    assert not ceiling.is_reached
    ceiling.note(DEAD)
    assert ceiling.is_reached, "the trial was not over before"


def test_a_ceiling_of_one_is_never_reached() -> None:
    ceiling = Ceiling(1)
    for _ in range(1000):
        ceiling.note(DEAD)
    assert not ceiling.is_reached
