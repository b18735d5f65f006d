"""Ledger, broker and Stripe as they were last seen; signs of life, and the gauges that the ledger feeds."""

import asyncio
from collections.abc import Callable, Mapping
from datetime import datetime, timedelta
from typing import Final

import structlog
from prometheus_client import Gauge

from schemas import to_major
from worker.admission import Admission
from worker.bus.outgoing import Outgoing
from worker.errors import BusUnavailable, CallSystemic, LedgerUnavailable, WorkerError
from worker.ledger import figures, inbox, letter_figures, moves
from worker.ledger.ledger import Ledger
from worker.letter import LetterState
from worker.metrics import Metrics
from worker.stripe_event import InboxState
from worker.stripe_gateway import StripeGateway

log: Final = structlog.get_logger()

# Gauges need no second's precision, and each reading counts the untold events.
GAUGES_EVERY: Final = 10
# The longest wait between two probes of a consumer that pauses: one that asks is not asked beside.
QUIET_S: Final = 20


class Surroundings:
    """Watches what the worker stands on. `faults` names what is not well: {part: reason}."""

    def __init__(
        self,
        *,
        ledger: Ledger,
        gateway: StripeGateway,
        admission: Admission,
        outgoing: Outgoing,
        worker_id: str,
        key_horizon_s: float,
        metrics: Metrics,
        clock: Callable[[], datetime],
    ) -> None:
        self._ledger = ledger
        self._gateway = gateway
        self._admission = admission
        self._outgoing = outgoing
        self._worker_id = worker_id
        self._key_horizon_s = key_horizon_s
        self._metrics = metrics
        self._clock = clock
        self._currencies: dict[Gauge, set[str]] = {}
        self._asking: asyncio.Task[None] | None = None
        self._asked_at = -float("inf")
        self.faults: dict[str, str] = {}

    async def ask(self) -> None:
        """Whether all are well. Raises LedgerUnavailable, BusUnavailable, and what asking Stripe does."""
        self._asked_at = asyncio.get_running_loop().time()
        await self._give_sign_of_life()
        try:
            await self._outgoing.probe()
            self.faults.pop("broker", None)
        except BusUnavailable as error:
            self.faults["broker"] = f"it takes no messages: {error}"
            raise
        await self._ask_stripe()

    async def watch(self, *, every_s: float) -> None:
        """For ever: give signs of life, so that our claims stay ours, and read the gauges.

        Asks for Stripe at the start, and while it is away: with no order to be given back, nobody else would.
        """
        ticks = 0
        try:
            while True:
                if ticks % GAUGES_EVERY == 0 and (ticks == 0 or self._is_alone_with_a_fault()):
                    self._begin_asking_stripe()
                try:
                    await self._give_sign_of_life()
                    if ticks % GAUGES_EVERY == 0:
                        await self._read_gauges()
                except LedgerUnavailable as error:
                    log.warning("ledger.away", error=str(error))
                except Exception:  # a fault of ours: told, and the next round goes on
                    log.exception("watch.bug")
                ticks += 1
                await asyncio.sleep(every_s)
        finally:
            if self._asking:
                self._asking.cancel()
                await asyncio.gather(self._asking, return_exceptions=True)

    def _is_alone_with_a_fault(self) -> bool:
        """Whether something is wrong with Stripe, and no consumer that pauses asks for it."""
        is_asked = asyncio.get_running_loop().time() - self._asked_at < QUIET_S
        return not is_asked and (self._admission.is_away or "stripe" in self.faults)

    def _begin_asking_stripe(self) -> None:
        """Beside the watch: a Stripe that hangs must cost no sign of life."""
        if self._asking is None or self._asking.done():
            self._asking = asyncio.create_task(self._ask_stripe_and_tell(), name="asks-stripe")

    async def _ask_stripe_and_tell(self) -> None:
        try:
            await self._ask_stripe()
        except WorkerError as error:
            log.warning("stripe.still_away", error=str(error))
        except Exception:  # a fault of ours: told, and asked again
            log.exception("watch.bug")

    async def _ask_stripe(self) -> None:
        try:
            await self._gateway.probe()
            self.faults.pop("stripe", None)
            self._admission.try_again()
        except WorkerError as error:
            self.faults["stripe"] = str(error)
            if self._admission.is_away or isinstance(error, CallSystemic):
                raise
            # Not known to be an outage: orders meet the same trouble one by one, and tell.
            log.warning("stripe.troubled", error=str(error))

    async def _give_sign_of_life(self) -> None:
        try:
            await self._ledger.run(moves.sign_of_life, self._worker_id, now=self._clock())
            self.faults.pop("ledger", None)
        except LedgerUnavailable as error:
            self.faults["ledger"] = str(error)
            raise

    async def _read_gauges(self) -> None:
        now = self._clock()
        backlog = await self._ledger.run(moves.backlog)
        self._metrics.untold_events.set(backlog.untold_events)
        self._metrics.oldest_untold_seconds.set(_age_s(backlog.oldest_untold, now))
        self._metrics.open_calls.set(backlog.open_calls)
        self._metrics.oldest_open_call_seconds.set(_age_s(backlog.oldest_open_call, now))
        money = await self._ledger.run(figures.money_figures, now=now, key_horizon_s=self._key_horizon_s)
        self._metrics.unknown_outcomes.set(money.unknown.count)
        self._metrics.keys_near_horizon.set(money.near_horizon.count)
        self._metrics.oldest_key_seconds.set(_age_s(money.oldest_key, now))
        self._set_value(self._metrics.unknown_outcomes_value, money.unknown.value)
        waiting = await self._ledger.run(inbox.counts)
        for each in (InboxState.RECEIVED, InboxState.PARKED):
            self._metrics.waiting_stripe_events.labels(each).set(waiting.get(each, 0))
        landed = await self._ledger.run(letter_figures.figures)
        for state in LetterState:
            self._metrics.letters.labels(state).set(landed.by_state.get(state, 0))
        self._metrics.oldest_open_letter_seconds.set(_age_s(landed.oldest_open, now))
        self._set_value(self._metrics.open_letters_value, landed.value)
        replaying = await self._ledger.run(figures.replaying_letters)
        self._metrics.oldest_replaying_letter_seconds.set(_age_s(replaying.oldest, now))
        self._set_value(self._metrics.replaying_letters_value, replaying.value)
        await self._ledger.run(moves.forget_silent_workers, before=now - timedelta(hours=1))

    def _set_value(self, gauge: Gauge, value: Mapping[str, int]) -> None:
        """A currency of which nothing is left goes to zero rather than stay as it was."""
        known = self._currencies.setdefault(gauge, set())
        known.update(value)
        for currency in known:
            gauge.labels(currency).set(float(to_major(value.get(currency, 0), currency)))


def _age_s(moment: datetime | None, now: datetime) -> float:
    return max(0.0, (now - moment).total_seconds()) if moment else 0.0
