"""Deliveries: a supervised subscription, bounded concurrency, a pause when the surroundings fail, a drain on stop."""

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Final, Protocol

import structlog

from worker.bus.delivery import Delivery
from worker.bus.subscription import Subscription
from worker.errors import BusUnavailable, WorkerError
from worker.metrics import Metrics
from worker.outcome import DeadLetter, Done, GiveBack, Outcome

log: Final = structlog.get_logger()

# Between tries to get back to a broker, or to surroundings that failed: quick at first, then out of the way.
WAITS_S: Final = (0.2, 0.5, 1, 2)
# Between probes of what failed around us: back within moments of a short outage, few calls over a long one.
PROBE_WAITS_S: Final = (0.2, 0.5, 1, *[2] * 30, *[5] * 30, 15)
# The same where asking says that all is well and the next order finds it is not, such as a key that may read and not
# create: each round counts against the orders' delivery limit, and this makes a thousand rounds last most of a day.
FAULT_WAITS_S: Final = (0.2, 0.5, 2, 5, 15, 60)


class Subscribe(Protocol):
    """Opens one life of the consuming connection."""

    def __call__(self, on_delivery: Callable[[Delivery], None]) -> AbstractAsyncContextManager[Subscription]:
        """Raises BusUnavailable and TopologyMismatch."""


# Where nearly all of the last orders became dead letters the fault is rather ours: this many are looked at, and then
# one order alone is tried after each wait, until one succeeds.
CEILING_ORDERS: Final = 100
CEILING_WAIT_S: Final = 60

# A subscription that held this long was well: the next trouble is met quickly again.
HELD_S: Final = 10
# For what is cut, or had to end with its subscription, to settle its delivery.
CUT_TIMEOUT_S: Final = 1


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


class Ceiling:
    """The share of dead letters among the last orders. Once reached, one order at a time tries whether all is well.

    Replays are no such orders: letters that fail again stop no live ones, and one that succeeds proves nothing of them.
    """

    def __init__(self, share: float) -> None:
        self._share = share
        self._were_dead: deque[bool] = deque(maxlen=CEILING_ORDERS)
        self._one_by_one = asyncio.Lock()
        self._is_trying = False
        self.is_reached = False

    @property
    def why(self) -> str:
        """For health and the log."""
        return f"more than {self._share:.0%} of the last {len(self._were_dead)} orders became dead letters: look at why"

    def note(self, outcome: Outcome) -> None:
        """One order has ended."""
        if not isinstance(outcome, Done | DeadLetter):
            return
        is_dead = isinstance(outcome, DeadLetter)
        if self._is_trying:
            self.is_reached, self._is_trying = is_dead, is_dead
            if not is_dead:
                self._were_dead.clear()
            return
        self._were_dead.append(is_dead)
        is_full = len(self._were_dead) == CEILING_ORDERS
        self.is_reached = self.is_reached or (is_full and sum(self._were_dead) > self._share * CEILING_ORDERS)

    def try_one(self) -> None:
        """Long enough waited: the next order shows."""
        self.is_reached, self._is_trying = False, True

    @asynccontextmanager
    async def trial(self, over: asyncio.Event) -> AsyncIterator[None]:
        """Around each order: alone while one is tried. over: set when this subscription ends."""
        if not self._is_trying or over.is_set():
            yield
            return
        async with self._one_by_one:
            yield


async def _unless(stop: asyncio.Event, asking: Awaitable[None]) -> None:
    """Wait for the answer, but not while stopping. Raises what asking does."""
    asked, stopping = asyncio.ensure_future(asking), asyncio.create_task(stop.wait())
    await asyncio.wait([asked, stopping], return_when=asyncio.FIRST_COMPLETED)
    stopping.cancel()
    if asked.done():
        asked.result()
    else:
        asked.cancel()


@dataclass
class ConsumerState:
    """What health asks: whether we are subscribed, and why not."""

    subscribed: bool = False
    why_not: str = "not started"
    in_work: set[asyncio.Task[None]] = field(default_factory=set)


class Consumer:
    """Consumes until told to stop.

    process: carries a delivery from start to settled. recovered: asks whether the surroundings are well again after
    a delivery had to be given back; raises WorkerError while they are not. begin_nothing: called when stopping, so that
    what waits to begin does not. ceiling: share of dead letters above which consumption stops.
    """

    def __init__(
        self,
        *,
        subscribe: Subscribe,
        process: Callable[[Delivery], Awaitable[Outcome]],
        recovered: Callable[[], Awaitable[None]],
        begin_nothing: Callable[[], None],
        concurrency: int,
        ceiling: float,
        drain_timeout_s: float,
        metrics: Metrics,
    ) -> None:
        self._subscribe = subscribe
        self._process = process
        self._recovered = recovered
        self._begin_nothing = begin_nothing
        self._slots = asyncio.Semaphore(concurrency)
        self._ceiling = Ceiling(ceiling)
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
                        self._begin_nothing()
                        # Side by side: a broker that does not answer must not eat the time for what was begun.
                        await asyncio.gather(self._stop_taking(subscription), self._drain())
                        return
            except BusUnavailable as error:
                why = str(error)
            self._note(subscribed=False, why_not=why)
            log.warning("consumer.waiting", why=why)
            tries = 0 if asyncio.get_running_loop().time() - began > HELD_S else tries + 1
            await self._wait(tries, stop, FAULT_WAITS_S if life.is_ours else WAITS_S)
            if life.is_ours:
                await self._wait_for_recovery(stop)
            if self._ceiling.is_reached:
                await self._wait_under_ceiling(stop)
        self._begin_nothing()
        await self._drain()

    async def _until_over(self, subscription: Subscription, life: Life, stop: asyncio.Event) -> str:
        """Waits for the stop signal, the end of the subscription or a fault around us; says which."""
        lost = asyncio.create_task(subscription.lost())
        stopping = asyncio.create_task(stop.wait())
        fault = asyncio.create_task(life.fault.wait())
        try:
            await asyncio.wait([lost, stopping, fault], return_when=asyncio.FIRST_COMPLETED)
            if fault.done():
                # Who can still settle does: above all the order that tried Stripe first, or it would be first again.
                if self.state.in_work:
                    await asyncio.wait(self.state.in_work, timeout=CUT_TIMEOUT_S)
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
        structlog.contextvars.bind_contextvars(message_id=delivery.properties.message_id, delivery_tag=delivery.tag)
        started = asyncio.get_running_loop().time()
        async with self._slots, self._ceiling.trial(life.fault):
            if life.fault.is_set():
                return  # it has gone back with the others
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
        if delivery.replays is None:  # a replay shows what an operator tries, not how the live orders fare
            self._ceiling.note(outcome)
        if self._ceiling.is_reached:
            life.end(self._ceiling.why, is_ours=False)
        self._metrics.orders.labels(name, reason).inc()
        self._metrics.order_seconds.observe(asyncio.get_running_loop().time() - started)

    async def _stop_taking(self, subscription: Subscription) -> None:
        with suppress(BusUnavailable):  # then it sends nothing either
            await subscription.stop_taking()

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
            await asyncio.wait(late, timeout=CUT_TIMEOUT_S)

    async def _wait_for_recovery(self, stop: asyncio.Event) -> None:
        tries = 0
        while not stop.is_set():
            try:
                await _unless(stop, self._recovered())
            except WorkerError as error:
                self._note(subscribed=False, why_not=str(error))
                log.warning("consumer.paused", why=str(error))
                await self._wait(tries, stop, PROBE_WAITS_S)
                tries += 1
            else:
                return

    async def _wait_under_ceiling(self, stop: asyncio.Event) -> None:
        self._note(subscribed=False, why_not=self._ceiling.why)
        log.error("consumer.ceiling", why=self._ceiling.why)
        await self._wait(0, stop, (CEILING_WAIT_S,))
        self._ceiling.try_one()

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
