"""Dead letters: from the broker's queue into the ledger, where operators work on them.

Each is committed before it is acknowledged; while the ledger is away they wait in the queue.
"""

import asyncio
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from datetime import datetime
from typing import Final, Protocol

import structlog

from schemas.order_created import readable_order_id
from worker.bus.dead_letter_queue import Landed, read_landed
from worker.bus.delivery import Delivery, letter_id
from worker.bus.outgoing import masked_properties
from worker.bus.subscription import Subscription
from worker.card_numbers import mask_cards
from worker.errors import BusUnavailable, LedgerUnavailable
from worker.ledger import letters
from worker.ledger.ledger import Ledger
from worker.letter import Letter, LetterState, cause_of, group_of
from worker.read_order import order_id_of, order_in, value_in

log: Final = structlog.get_logger()

# Between tries, whether the broker or the ledger was away: each counts against the letters' delivery limit.
WAITS_S: Final = (0.5, 1, 2, 5, 15)
HELD_S: Final = 10
# At the end of a subscription, for letters that are on their way into the ledger.
FINISH_TIMEOUT_S: Final = 1


class Subscribe(Protocol):
    """Opens one life of the connection that takes letters."""

    def __call__(self, on_delivery: Callable[[Delivery], None]) -> AbstractAsyncContextManager[Subscription]:
        """Raises BusUnavailable and TopologyMismatch."""


class LetterIntake:
    """Takes dead letters in, for ever."""

    def __init__(self, *, subscribe: Subscribe, ledger: Ledger, clock: Callable[[], datetime]) -> None:
        self._subscribe = subscribe
        self._ledger = ledger
        self._clock = clock
        self._tasks: set[asyncio.Task[None]] = set()

    async def run(self) -> None:
        """For ever: subscribe, take in, and come back from whatever ends it. Raises TopologyMismatch."""
        tries, clock = 0, asyncio.get_running_loop().time
        while True:
            fault, began = asyncio.Event(), clock()
            try:
                async with self._subscribe(lambda delivery, fault=fault: self._take(delivery, fault)) as subscription:  # type: ignore[misc]
                    try:
                        await _until_over(subscription, fault)
                    finally:
                        await self._finish_begun()
            except BusUnavailable as error:
                log.info("letters.waiting", why=str(error))
            tries = 0 if clock() - began > HELD_S else tries + 1
            await asyncio.sleep(WAITS_S[min(tries, len(WAITS_S) - 1)])

    async def _finish_begun(self) -> None:
        """While they can still be acknowledged."""
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=FINISH_TIMEOUT_S)

    def _take(self, delivery: Delivery, fault: asyncio.Event) -> None:
        task = asyncio.create_task(self._land(delivery, fault))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _land(self, delivery: Delivery, fault: asyncio.Event) -> None:
        try:
            landed, now = read_landed(delivery), self._clock()
            # Beside the loop: a body made for it keeps the card search busy for seconds.
            letter = await asyncio.to_thread(letter_of, delivery, landed, now=now)
            other_id = letter_id(delivery.body, delivery.properties)
            kept = await self._ledger.run(letters.land, letter, landed.landing, other_id=other_id, now=now)
            await delivery.ack()
        except (BusUnavailable, LedgerUnavailable) as error:
            log.warning("letters.not_taken_in", error=str(error))
            fault.set()
        except Exception:  # LedgerRefused, or a fault of ours: it stays in the queue, and the others go on
            log.exception("letter.bug", letter_id=delivery.letter_id)
        else:
            log.info("letter.kept", letter_id=letter.letter_id, how=kept, reason=letter.reason)


def letter_of(delivery: Delivery, landed: Landed, *, now: datetime) -> Letter:
    """The letter that a message from the queue of dead letters is."""
    landing, order = landed.landing, order_in(delivery)
    amount_minor, currency = value_in(delivery, order)
    order_id = readable_order_id({"order_id": landed.order_id}) or order_id_of(delivery)
    cause = cause_of(landing.reason, landing.error.replace(order_id, "…") if order_id else landing.error)
    return Letter(
        letter_id=delivery.letter_id,
        state=LetterState.OPEN,
        reason=landing.reason,
        error=landing.error,
        group_id=group_of(cause),
        cause=cause,
        order_id=order_id,
        # What the worker landed it has masked; what the broker landed nobody has looked at.
        body=delivery.body if landed.is_ours else mask_cards(delivery.body),
        properties=delivery.properties if landed.is_ours else masked_properties(delivery.properties),
        attempts=landing.attempts,
        landings=1,
        landing_id=landing.landing_id,
        landed_at=landing.at or now,
        moved_at=now,
        amount_minor=amount_minor,
        currency=currency,
        first_seen=landing.first_seen,
        unreadable=delivery.unreadable,
    )


async def _until_over(subscription: Subscription, fault: asyncio.Event) -> None:
    """Until the subscription is lost, or a letter could not be kept. Raises BusUnavailable."""
    lost, failed = asyncio.create_task(subscription.lost()), asyncio.create_task(fault.wait())
    try:
        await asyncio.wait([lost, failed], return_when=asyncio.FIRST_COMPLETED)
        if lost.done():
            lost.result()
    finally:
        lost.cancel()
        failed.cancel()
