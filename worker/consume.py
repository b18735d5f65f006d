"""Deliveries: a supervised subscription, bounded concurrency, a pause when the surroundings fail, a drain on stop."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from functools import partial
from typing import Final, Protocol

import structlog

from worker.bus.delivery import Delivery
from worker.bus.subscription import Subscription
from worker.errors import BusUnavailable, WorkerError
from worker.outcome import GiveBack, Outcome
from worker.telemetry import Metrics

log: Final = structlog.get_logger()

# Between tries to get back to a broker, or to surroundings that failed: quick at first, then out of the way.
WAITS_S: Final = (0.2, 0.5, 1, 2, 5)
# The same where asking says that all is well and the next order finds it is not, such as a key that may read and not
# create: each round counts against the orders' delivery limit, and this makes a thousand rounds last most of a day.
FAULT_WAITS_S: Final = (0.2, 0.5, 2, 5, 15, 60)


class Subscribe(Protocol):
    """Opens one life of the consuming connection."""

    def __call__(self, on_delivery: Callable[[Delivery], None]) -> AbstractAsyncContextManager[Subscription]:
        """Raises BusUnavailable and TopologyMismatch."""


# A subscription that held this long was well: the next trouble is met quickly again.
HELD_S: Final = 10


class Life:
    """One life of the subscription. Work begun in one may end in the next, and then must not end that too."""

    def __init__(self) -> None:
        self.fault = asyncio.Event()
        self.why = ""
        self.is_ours = False  # whether the surroundings failed, rather than the connection

    def end(self, why: str, *, is_ours: bool) -> None:
        """Have the subscription closed; what it holds goes back. The first reason counts."""
        if not self.fault.is_set():
            self.why, self.is_ours = why, is_ours
            self.fault.set()


@dataclass
class ConsumerState:
    """What health asks: whether we are subscribed, and why not."""

    subscribed: bool = False
    why_not: str = "not started"
    in_work: set[asyncio.Task[None]] = field(default_factory=set)


class Consumer:
    """Consumes until told to stop.

    process: carries a delivery from start to settled. recovered: asks whether the surroundings are well again after
    a delivery had to be given back; raises WorkerError while they are not.
    """

    def __init__(
        self,
        *,
        subscribe: Subscribe,
        process: Callable[[Delivery], Awaitable[Outcome]],
        recovered: Callable[[], Awaitable[None]],
        concurrency: int,
        drain_timeout_s: float,
        metrics: Metrics,
    ) -> None:
        self._subscribe = subscribe
        self._process = process
        self._recovered = recovered
        self._slots = asyncio.Semaphore(concurrency)
        self._drain_timeout_s = drain_timeout_s
        self._metrics = metrics
        self.state = ConsumerState()

    async def run(self, stop: asyncio.Event) -> None:
        """Returns after `stop` is set and the begun work is finished or given back. Raises TopologyMismatch."""
        tries = 0
        while not stop.is_set():
            life, began = Life(), asyncio.get_running_loop().time()
            try:
                async with self._subscribe(partial(self._take, life)) as subscription:
                    self._note(subscribed=True)
                    why = await self._until_over(subscription, life, stop)
                    if stop.is_set():
                        await subscription.stop_taking()
                        await self._drain()
                        return
            except BusUnavailable as error:
                why = str(error)
            self._note(subscribed=False, why_not=why)
            log.warning("consumer.waiting", why=why)
            tries = 0 if asyncio.get_running_loop().time() - began > HELD_S else tries + 1
            await self._wait(tries, stop, FAULT_WAITS_S if life.is_ours else WAITS_S)
            if life.is_ours:
                await self._wait_for_recovery(stop)
        await self._drain()

    async def _until_over(self, subscription: Subscription, life: Life, stop: asyncio.Event) -> str:
        """Waits for the stop signal, the end of the subscription or a fault around us; says which."""
        lost = asyncio.create_task(subscription.lost())
        stopping = asyncio.create_task(stop.wait())
        fault = asyncio.create_task(life.fault.wait())
        try:
            await asyncio.wait([lost, stopping, fault], return_when=asyncio.FIRST_COMPLETED)
            if fault.done():
                return life.why
            if lost.done():
                lost.result()
                return "the broker no longer has us as a consumer"
            return "stopping"
        finally:
            for task in (lost, stopping, fault):
                task.cancel()

    def _take(self, life: Life, delivery: Delivery) -> None:
        """A task of its own: it outlives the connection, whose loss would cut the work in the middle."""
        task = asyncio.create_task(self._work(delivery, life))
        self.state.in_work.add(task)
        task.add_done_callback(self.state.in_work.discard)

    async def _work(self, delivery: Delivery, life: Life) -> None:
        structlog.contextvars.bind_contextvars(
            message_id=delivery.properties.message_id, delivery_tag=delivery.message.delivery_tag
        )
        started = asyncio.get_running_loop().time()
        async with self._slots:
            with self._metrics.in_work.track_inprogress():
                try:
                    outcome = await self._process(delivery)
                except Exception as error:  # noqa: BLE001 - whatever it is, an unsettled delivery must not be kept
                    # It comes again by itself once this connection is gone.
                    life.end(f"a delivery could not be settled: {error}", is_ours=False)
                    return
        name, reason = type(outcome).__name__, getattr(outcome, "reason", "")
        if isinstance(outcome, GiveBack):
            life.end(outcome.reason, is_ours=True)
            reason = outcome.reason.partition(":")[0]
        self._metrics.orders.labels(name, reason).inc()
        self._metrics.order_seconds.observe(asyncio.get_running_loop().time() - started)

    async def _drain(self) -> None:
        """Let the begun work end; what is not done in time is cut, and gives its delivery back."""
        if not self.state.in_work:
            return
        log.info("consumer.draining", in_work=len(self.state.in_work))
        _, late = await asyncio.wait(self.state.in_work, timeout=self._drain_timeout_s)
        for task in late:
            task.cancel()
        if late:
            log.warning("consumer.cut", count=len(late))
            await asyncio.wait(late, timeout=5)

    async def _wait_for_recovery(self, stop: asyncio.Event) -> None:
        tries = 0
        while not stop.is_set():
            try:
                await self._recovered()
            except WorkerError as error:
                self._note(subscribed=False, why_not=str(error))
                log.warning("consumer.paused", why=str(error))
                await self._wait(tries, stop, WAITS_S)
                tries += 1
            else:
                return

    async def _wait(self, tries: int, stop: asyncio.Event, waits_s: Sequence[float]) -> None:
        try:
            async with asyncio.timeout(waits_s[min(tries, len(waits_s) - 1)]):
                await stop.wait()
        except TimeoutError:
            pass

    def _note(self, *, subscribed: bool, why_not: str = "") -> None:
        self.state.subscribed, self.state.why_not = subscribed, why_not
        self._metrics.subscribed.set(subscribed)
        if subscribed:
            log.info("consumer.subscribed")
