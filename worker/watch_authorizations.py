"""Authorizations that end soon, told in time to capture them.

Source: https://docs.stripe.com/payments/place-a-hold-on-a-payment-method#authorization-validity.
"""

import asyncio
from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Final

import structlog

from worker.errors import BusUnavailable, LedgerUnavailable
from worker.ledger import lives
from worker.ledger.ledger import Ledger
from worker.publish_events import EventRelay

log: Final = structlog.get_logger()

# A working day to act in.
WARN: Final = timedelta(hours=24)
LOOK_EVERY_S: Final = 30
PAGE: Final = 100


class AuthorizationWatch:
    """Tells each once."""

    def __init__(self, *, ledger: Ledger, relay: EventRelay, event_source: str, clock: Callable[[], datetime]) -> None:
        self._ledger = ledger
        self._relay = relay
        self._event_source = event_source
        self._clock = clock

    async def run(self) -> None:
        """For ever."""
        while True:
            try:
                await self.run_once()
            except (BusUnavailable, LedgerUnavailable) as error:
                log.warning("authorizations.wait", error=str(error))
            except Exception:  # a fault of ours: told, and the next round goes on
                log.exception("authorizations.bug")
            await asyncio.sleep(LOOK_EVERY_S)

    async def run_once(self) -> int:
        """Tell of a page of them; returns how many were told. Raises BusUnavailable, LedgerUnavailable."""
        now, told = self._clock(), 0
        for order_id in await self._ledger.run(lives.expiring, until=now + WARN, limit=PAGE):
            for event in await self._ledger.run(lives.tell_expiring, order_id, source=self._event_source, now=now):
                await self._relay.tell(event)
                told += 1
        return told
