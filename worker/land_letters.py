"""Dead letters: from the broker's queue into the ledger, where operators work on them.

Each is committed before it is acknowledged; while the ledger is away they wait in the queue.
"""

import asyncio
from collections.abc import Callable, Mapping
from contextlib import AbstractAsyncContextManager
from datetime import datetime, timedelta
from functools import partial
from typing import Any, Final, Protocol

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
from worker.metrics import Metrics
from worker.read_order import order_in, told_order_id, value_in

log: Final = structlog.get_logger()

# Between tries, whether the broker or the ledger was away: each counts against the letters' delivery limit.
WAITS_S: Final = (0.5, 1, 2, 5, 15)
HELD_S: Final = 10
# For letters that could not be kept: so long they stay out while the others go on, and then all go back to be tried
# again. They must not stay for good, or enough of them would use up all that may be out at once.
RETRY_AFTER_S: Final = (0.5, 1, 2, 5, 15, 60)
# One that was not seen for longer than the longest round has been kept by another worker, or is gone.
SEEN_WITHIN_S: Final = 180
# At the end of a subscription, for letters that are on their way into the ledger.
FINISH_TIMEOUT_S: Final = 1

# Set when one life of the subscription has to end: whether only for letters to be tried again.
Over = asyncio.Future[bool]


class Subscribe(Protocol):
    """Opens one life of the connection that takes letters."""

    def __call__(self, on_delivery: Callable[[Delivery], None]) -> AbstractAsyncContextManager[Subscription]:
        """Raises BusUnavailable and TopologyMismatch."""


class LetterIntake:
    """Takes dead letters in, for ever."""

    def __init__(
        self, *, subscribe: Subscribe, ledger: Ledger, metrics: Metrics, clock: Callable[[], datetime]
    ) -> None:
        self._subscribe = subscribe
        self._ledger = ledger
        self._clock = clock
        self._tasks: set[asyncio.Task[None]] = set()
        self._could_not_keep: dict[str, datetime] = {}
        self._rounds = 0
        metrics.held_letters.set_function(lambda: len(self._held()))

    def concerns(self) -> Mapping[str, str]:
        """What needs a person, {part: sentence}; empty when all is well."""
        if not (held := self._held()):
            return {}
        told = f"{len(held)} in the broker's queue could not be kept, such as {min(held)}; see letter.bug in the log"
        return {"dead letters": told}

    async def run(self) -> None:
        """For ever: subscribe, take in, and come back from whatever ends it. Raises TopologyMismatch."""
        tries, loop = 0, asyncio.get_running_loop()
        while True:
            over, is_retry, began = loop.create_future(), False, loop.time()
            try:
                async with self._subscribe(partial(self._take, over)) as subscription:
                    try:
                        is_retry = await _until_over(subscription, over)
                    finally:
                        await self._finish_begun()
            except BusUnavailable as error:
                log.info("letters.waiting", why=str(error))
            self._rounds += 1
            tries = 0 if is_retry or loop.time() - began > HELD_S else tries + 1
            await asyncio.sleep(WAITS_S[min(tries, len(WAITS_S) - 1)])

    async def _finish_begun(self) -> None:
        """While they can still be acknowledged."""
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=FINISH_TIMEOUT_S)

    def _take(self, over: Over, delivery: Delivery) -> None:
        task = asyncio.create_task(self._land(delivery, over))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _land(self, delivery: Delivery, over: Over) -> None:
        try:
            landed, now = read_landed(delivery), self._clock()
            # Beside the loop: a body made for it keeps the card search busy for seconds.
            letter = await asyncio.to_thread(letter_of, delivery, landed, now=now)
            other_id = letter_id(delivery.body, delivery.properties)
            kept = await self._ledger.run(letters.land, letter, landed.landing, other_id=other_id, now=now)
            delivery.ack()
        except (BusUnavailable, LedgerUnavailable) as error:
            log.warning("letters.not_taken_in", error=str(error))
            _end(over, is_retry=False)
        except Exception:  # LedgerRefused, or a fault of ours: it stays in the queue, and the others go on
            log.exception("letter.bug", letter_id=delivery.letter_id)
            self._hold(delivery.letter_id, over)
        else:
            self._could_not_keep.pop(delivery.letter_id, None)
            log.info("letter.kept", letter_id=letter.letter_id, how=kept, reason=letter.reason)

    def _hold(self, letter_id: str, over: Over) -> None:
        """It stays out for a while, longer with each round in which something could not be kept."""
        held = self._held()
        self._rounds = self._rounds if held else 0
        self._could_not_keep = held | {letter_id: self._clock()}
        after_s = RETRY_AFTER_S[min(self._rounds, len(RETRY_AFTER_S) - 1)]
        asyncio.get_running_loop().call_later(after_s, partial(_end, over, is_retry=True))

    def _held(self) -> dict[str, datetime]:
        """Letters that could not be kept, and when that was tried last."""
        since = self._clock() - timedelta(seconds=SEEN_WITHIN_S)
        return {letter_id: at for letter_id, at in self._could_not_keep.items() if at > since}


def letter_of(delivery: Delivery, landed: Landed, *, now: datetime) -> Letter:
    """The letter that a message from the queue of dead letters is."""
    landing, order = landed.landing, order_in(delivery)
    amount_minor, currency = value_in(delivery, order)
    # As the body says it, which a replay would act on; a header only where the body cannot be read.
    order_id = told_order_id(delivery, order) or readable_order_id({"order_id": landed.order_id})
    cause = cause_of(landing.reason, landing.error.replace(order_id, "…") if order_id else landing.error)
    return Letter(
        letter_id=delivery.letter_id,
        state=LetterState.OPEN,
        reason=landing.reason,
        error=landing.error,
        group_id=group_of(cause),
        cause=cause,
        order_id=order_id,
        # What the worker landed it has masked; whether it was the worker, only headers say.
        body=mask_cards(delivery.body),
        properties=masked_properties(delivery.properties),
        attempts=landing.attempts,
        landings=1,
        landing_id=landing.landing_id,
        landed_at=landing.at or now,
        moved_at=now,
        amount_minor=amount_minor,
        currency=currency,
        first_seen=landing.first_seen,
        unreadable=landed.unreadable,
    )


def _end(over: Over, *, is_retry: bool) -> None:
    """Have the subscription closed; what it holds goes back. The first reason counts."""
    if not over.done():
        over.set_result(is_retry)


async def _until_over(subscription: Subscription, over: Over) -> bool:
    """Until the subscription is lost or ended; returns whether letters are to be tried again. Raises BusUnavailable."""
    lost = asyncio.create_task(subscription.lost())
    either: tuple[asyncio.Future[Any], ...] = (lost, over)
    try:
        await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
        if lost.done():
            lost.result()
        return over.done() and over.result()
    finally:
        lost.cancel()
