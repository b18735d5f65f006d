"""Ledger, broker and Stripe as they were last seen; signs of life, and the gauges that the ledger feeds."""

import asyncio
from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Final

import structlog

from worker.admission import Admission
from worker.bus.outgoing import Outgoing
from worker.errors import BusUnavailable, CallSystemic, LedgerUnavailable, WorkerError
from worker.ledger import moves
from worker.ledger.ledger import Ledger
from worker.stripe_gateway import StripeGateway
from worker.telemetry import Metrics

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
        metrics: Metrics,
        clock: Callable[[], datetime],
    ) -> None:
        self._ledger = ledger
        self._gateway = gateway
        self._admission = admission
        self._outgoing = outgoing
        self._worker_id = worker_id
        self._metrics = metrics
        self._clock = clock
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

        Asks for a Stripe that is away, too: with no order to be given back, nobody else would.
        """
        ticks = 0
        while True:
            try:
                await self._give_sign_of_life()
                if ticks % GAUGES_EVERY == 0:
                    await self._read_gauges()
                    if self._is_alone_with_a_fault():
                        await self._ask_stripe()
            except LedgerUnavailable as error:
                log.warning("ledger.away", error=str(error))
            except WorkerError as error:
                log.warning("stripe.still_away", error=str(error))
            except Exception:  # a fault of ours: told, and the next round goes on
                log.exception("watch.bug")
            ticks += 1
            await asyncio.sleep(every_s)

    def _is_alone_with_a_fault(self) -> bool:
        """Whether something is wrong with Stripe, and no consumer that pauses asks for it."""
        is_asked = asyncio.get_running_loop().time() - self._asked_at < QUIET_S
        return not is_asked and (self._admission.is_away or "stripe" in self.faults)

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
        await self._ledger.run(moves.forget_silent_workers, before=now - timedelta(hours=1))


def _age_s(moment: datetime | None, now: datetime) -> float:
    return max(0.0, (now - moment).total_seconds()) if moment else 0.0
