"""Calls that nobody comes back for → their outcome. What an order's own deliveries leave open is settled here.

A crash, a purged queue, a discarded dead letter may leave a call whose outcome is not known. While its key lives it is
asked again as before; after that evidence is looked for.
"""

import asyncio
from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Final

import structlog

from worker.decide_payment import PaymentDecider
from worker.errors import CallSystemic, LedgerUnavailable, Stopping, StripeAway, WorkerError
from worker.ledger import moves
from worker.ledger.ledger import Ledger
from worker.payment import Operation
from worker.publish_events import EventRelay

log: Final = structlog.get_logger()

RESOLVE_EVERY_S: Final = 5
# At a time: behind live orders, and no burst of its own after an outage.
RESOLVE_PAGE: Final = 20


class Resolver:
    """Settles what has been idle for longer than after_s, which is longer than any retry of the order itself waits."""

    def __init__(
        self,
        *,
        ledger: Ledger,
        decider: PaymentDecider,
        relay: EventRelay,
        after_s: float,
        key_horizon_s: float,
        clock: Callable[[], datetime],
    ) -> None:
        self._ledger = ledger
        self._decider = decider
        self._relay = relay
        self._after = timedelta(seconds=after_s)
        self._key_horizon = timedelta(seconds=key_horizon_s)
        self._clock = clock

    async def run_once(self) -> int:
        """Work on a page of idle calls; returns how many were settled. Raises LedgerUnavailable."""
        idle = await self._ledger.run(moves.idle_operations, before=self._clock() - self._after, limit=RESOLVE_PAGE)
        return sum([await self._settle(operation) for operation in idle])

    async def run(self) -> None:
        """For ever."""
        while True:
            await asyncio.sleep(RESOLVE_EVERY_S)
            try:
                await self._decider.release_left()
                await self.run_once()
            except WorkerError as error:
                log.warning("resolver.waits", error=str(error))
            except Exception:  # a fault of ours: told, and the next round goes on
                log.exception("resolver.bug")

    async def _settle(self, operation: Operation) -> bool:
        payment = await self._ledger.run(moves.read_payment, operation.order_id)
        if payment is None or payment.is_decided:
            return False
        with structlog.contextvars.bound_contextvars(order_id=operation.order_id):
            # Nobody expects a charge days later that nobody asked for again: then absence is recorded, no more.
            anew = self._clock() - operation.first_asked_at < self._key_horizon
            try:
                decided = await self._decider.decide(payment, operation.params, live=False, anew=anew)
            except (StripeAway, CallSystemic, LedgerUnavailable, Stopping):
                raise
            except WorkerError as error:
                # The claim has renewed its time: it comes again when it has been idle as long once more.
                log.warning("resolver.undecided", reason=type(error).__name__, error=str(error))
                return False
        log.info("resolver.decided", event_id=decided.event.event_id)
        await self._relay.tell(decided.event)
        return True
