"""Staged events → bus. An event is told when the broker has confirmed it and some queue has it; until then it stays.

The spine tells an event as soon as it is recorded. What a crash, a lost broker or a missing subscriber left behind
is told by the relay, in the order of each payment.
"""

import asyncio
from collections import Counter
from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Final

import structlog

from worker.bus.outgoing import Outgoing
from worker.errors import BusUnavailable, LedgerUnavailable, Unroutable
from worker.ledger import moves
from worker.ledger.ledger import Ledger
from worker.ledger.order_moves import Published, mark_published
from worker.metrics import Metrics
from worker.payment import PaymentEvent

log: Final = structlog.get_logger()

# Younger ones are still in the hands of the delivery that staged them.
UNTOLD_AFTER_S: Final = 5
RELAY_EVERY_S: Final = 2
RELAY_PAGE: Final = 200
# A type that nobody is bound to, or whose subscriber is full, is not tried with every event of a long backlog.
REFUSALS_OF_A_TYPE: Final = 20
# While nobody takes events, each is told of in the log once, and all of them together no more often than this.
SUMMARY_EVERY: Final = timedelta(minutes=1)
# Events known to have been told of, at a hundred bytes each; past that the summary alone tells of new ones.
MOST_NOTED: Final = 10_000


class EventRelay:
    """Tells events, and goes on telling those that were not heard."""

    def __init__(self, *, ledger: Ledger, outgoing: Outgoing, metrics: Metrics, clock: Callable[[], datetime]) -> None:
        self._ledger = ledger
        self._outgoing = outgoing
        self._metrics = metrics
        self._clock = clock
        self._noted: dict[str, datetime] = {}  # untold events that the log has told of, and when
        self._summed_up_at: datetime | None = None

    async def tell(self, event: PaymentEvent) -> bool:
        """Publish, and mark it soon; False where no queue takes it yet, and it stays in the ledger.

        A crash between the two tells it a second time under the same id. Raises BusUnavailable.
        """
        try:
            await self._outgoing.event(event)
        except Unroutable as error:
            self._metrics.events.labels(event.type, "unroutable").inc()
            self._note(event, error)
            return False
        self._noted.pop(event.event_id, None)
        self._ledger.run_soon(mark_published, Published(event.event_id, self._clock()))
        self._metrics.events.labels(event.type, "published").inc()
        return True

    async def run_once(self) -> int:
        """Tell all that waits, page by page; returns how many were told. Raises BusUnavailable, LedgerUnavailable."""
        before = self._clock() - timedelta(seconds=UNTOLD_AFTER_S)
        told, waiting, after = 0, 0, None
        still_noted: set[str] = set()
        held: set[str] = set()  # a payment whose earlier event was not heard: its later ones wait behind it
        refused: Counter[str] = Counter()
        while True:
            page, after = await self._ledger.run(
                moves.untold_events, staged_before=before, limit=RELAY_PAGE, after=after
            )
            if after is None:
                break
            for event in page:
                if event.event_id in self._noted:
                    still_noted.add(event.event_id)
                if event.order_id in held or refused[event.type] >= REFUSALS_OF_A_TYPE:
                    held.add(event.order_id)
                elif await self.tell(event):
                    told += 1
                else:
                    held.add(event.order_id)
                    refused[event.type] += 1
                waiting += event.order_id in held
        # Another worker may have told the rest.
        self._noted = {name: at for name, at in self._noted.items() if name in still_noted or at > before}
        if waiting:
            self._sum_up(events=waiting, payments=len(held), types=sorted(refused))
        return told

    def _note(self, event: PaymentEvent, error: Unroutable) -> None:
        if event.event_id not in self._noted and len(self._noted) < MOST_NOTED:
            self._noted[event.event_id] = self._clock()
            log.warning("event.unroutable", event_id=event.event_id, error=str(error), kept="in the ledger")

    def _sum_up(self, **counts: object) -> None:
        now = self._clock()
        if self._summed_up_at is None or now - self._summed_up_at >= SUMMARY_EVERY:
            self._summed_up_at = now
            log.error("relay.nobody_takes", **counts, kept="in the ledger")

    async def run(self) -> None:
        """For ever: tell what waits, look again."""
        while True:
            await asyncio.sleep(RELAY_EVERY_S)
            try:
                await self.run_once()
            except (BusUnavailable, LedgerUnavailable) as error:
                log.warning("relay.waits", error=str(error))
            except Exception:  # a fault of ours: told, and the next round goes on
                log.exception("relay.bug")
