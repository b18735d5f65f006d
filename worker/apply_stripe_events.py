"""Stripe's events, kept in the ledger → their effect on payments, and what is told of it.

Each is applied in one transaction with its end in the inbox. One whose payment is not known, or not decided, is parked:
Stripe may tell of an intent before our own call has returned.
"""

import asyncio
from collections.abc import Callable, Sequence
from datetime import datetime, timedelta
from typing import Final

import structlog

from worker.errors import BusUnavailable, LedgerUnavailable, WorkerError
from worker.ledger import inbox, lives
from worker.ledger.inbox import Waiting
from worker.ledger.ledger import Ledger
from worker.metrics import Metrics
from worker.payment import Payment, PaymentEvent
from worker.payment_life import Settlement
from worker.publish_events import EventRelay
from worker.stripe_event import CHARGE, PAYMENT_INTENT, REFUND, InboxState, StripeEvent
from worker.stripe_gateway import API_VERSION, StripeGateway

log: Final = structlog.get_logger()

PAGE: Final = 100
# Few, so that what comes in meanwhile finds the ledger free: Stripe waits for our answer, and for nothing of this.
SIDE_BY_SIDE: Final = 4
# What is not woken, such as what another process received, is found within this.
LOOK_EVERY_S: Final = 1
# Between looks at a parked event; and after this it is nobody's of this ledger.
PARK_WAITS_S: Final = (1, 2, 5, 15, 60, 300, 900)
PARK_FOR: Final = timedelta(days=3)


class StripeEventApplier:
    """Works on the inbox."""

    def __init__(
        self,
        *,
        ledger: Ledger,
        gateway: StripeGateway,
        relay: EventRelay,
        metrics: Metrics,
        event_source: str,
        clock: Callable[[], datetime],
    ) -> None:
        self._ledger = ledger
        self._gateway = gateway
        self._relay = relay
        self._metrics = metrics
        self._event_source = event_source
        self._clock = clock
        self._woken = asyncio.Event()

    def wake(self) -> None:
        """Something came in."""
        self._woken.set()

    async def run(self) -> None:
        """For ever: work on what is due, look again."""
        while True:
            self._woken.clear()
            try:
                found = await self.run_once()
            except WorkerError as error:
                log.warning("inbox.waits", error=str(error))
                found = 0
            except Exception:  # a fault of ours: told, and the next round goes on
                log.exception("inbox.bug")
                found = 0
            if found < PAGE:
                try:
                    async with asyncio.timeout(LOOK_EVERY_S):
                        await self._woken.wait()
                except TimeoutError:
                    pass

    async def run_once(self) -> int:
        """A page of what is due; returns how many were looked at. Raises LedgerUnavailable."""
        page = await self._ledger.run(inbox.due, now=self._clock(), limit=PAGE)
        payments = await self._payments_of(page)
        slots = asyncio.Semaphore(SIDE_BY_SIDE)

        async def one(waiting: Waiting, payment: Payment | None) -> None:
            async with slots:
                await self._look_at(waiting, payment)

        await asyncio.gather(*map(one, page, payments))
        return len(page)

    async def _payments_of(self, page: Sequence[Waiting]) -> Sequence[Payment | None]:
        """The payment of each, found in one transaction; None where it is to be looked for alone."""
        try:
            return await self._ledger.run(lives.find_payments, [waiting.event for waiting in page])
        except LedgerUnavailable:
            raise
        except Exception:  # a fault of ours with one of them, which must not stop the others
            log.exception("inbox.bug")
            return [None] * len(page)

    async def _look_at(self, waiting: Waiting, payment: Payment | None) -> None:
        event = waiting.event
        with structlog.contextvars.bound_contextvars(stripe_event=event.event_id, type=event.type):
            try:
                told = await self._apply(waiting, payment)
            except LedgerUnavailable:
                raise
            except WorkerError as error:  # Stripe could not be asked: later
                log.warning("inbox.later", error=str(error))
                await self._park(waiting, f"{type(error).__name__}: {error}")
                return
            except Exception:  # a fault of ours: told, and tried again, the others go on
                log.exception("inbox.bug")
                await self._park(waiting, "a fault of ours; see inbox.bug in the log")
                return
        for each in told:
            await self._tell(each)

    async def _tell(self, event: PaymentEvent) -> None:
        """What cannot be told now the relay tells later."""
        try:
            await self._relay.tell(event)
        except BusUnavailable as error:
            log.warning("event.waits", event_id=event.event_id, error=str(error))

    async def _apply(self, waiting: Waiting, payment: Payment | None) -> list[PaymentEvent]:
        event = waiting.event
        if payment is None:
            payment = await self._ledger.run(lives.find_payment, order_id=event.order_id, payment_id=event.payment_id)
        if why := _why_foreign(event, payment):
            await self._ledger.run(inbox.settle, event.event_id, InboxState.SET_ASIDE, why=why, now=self._clock())
            self._metrics.stripe_events.labels(event.type, "set_aside").inc()
            return []
        if payment is None or not payment.is_decided:
            await self._park(waiting, "its payment is not known" if payment is None else "its payment is not decided")
            return []
        told = await self._ledger.run(
            lives.apply_event,
            event,
            payment.order_id,
            shown=await self._shown(event, payment),
            settlement=await self._settlement(event, payment),
            source=self._event_source,
            now=self._clock(),
        )
        self._metrics.stripe_events.labels(event.type, "applied").inc()
        log.info("inbox.applied", order_id=payment.order_id, told=[each.event_id for each in told])
        return list(told)

    async def _shown(self, event: StripeEvent, payment: Payment) -> Sequence[StripeEvent]:
        """What Stripe is to be asked beside: an object that another version of its API wrote, a payment given back
        before it was heard that it was paid.
        """
        if (
            event.object_id
            and event.api_version not in (None, API_VERSION)
            and event.family in (PAYMENT_INTENT, REFUND)
        ):
            return [await self._gateway.show(event, payment.stripe_account, now=self._clock())]
        if event.family == REFUND:
            life = await self._ledger.run(lives.read_life, payment.order_id)
            if life and life.received_minor == 0:
                return await self._gateway.show_payment(payment, with_refunds=False, now=self._clock())
        return []

    async def _settlement(self, event: StripeEvent, payment: Payment) -> Settlement | None:
        """What the charge came to, where Stripe knows it by now."""
        transaction = event.facts.get("balance_transaction") if event.family == CHARGE else None
        if not transaction:
            return None
        return await self._gateway.fetch_settlement(str(transaction), payment.stripe_account)

    async def _park(self, waiting: Waiting, why: str) -> None:
        now = self._clock()
        if now - waiting.received_at > PARK_FOR:
            await self._ledger.run(
                inbox.settle, waiting.event.event_id, InboxState.SET_ASIDE, why=f"given up: {why}", now=now
            )
            log.error("inbox.given_up", stripe_event=waiting.event.event_id, why=why)
            return
        log.info("inbox.parked", why=why)
        wait_s = PARK_WAITS_S[min(waiting.tries, len(PARK_WAITS_S) - 1)]
        await self._ledger.run(
            inbox.park, waiting.event.event_id, why=why, until=now + timedelta(seconds=wait_s), now=now
        )


def _why_foreign(event: StripeEvent, payment: Payment | None) -> str | None:
    """Why an event is none of ours, where that is certain."""
    if payment is None:
        is_strange = event.family == PAYMENT_INTENT and event.order_id is None
        return "its intent names no order: somebody else's on the same account" if is_strange else None
    if payment.is_decided and event.payment_id != payment.payment_id:
        return f"of another intent than {payment.payment_id or 'none'}, which is this order's"
    if event.account and event.account != payment.stripe_account:
        return f"of account {event.account}, and the payment is of {payment.stripe_account or 'our own'}"
    return None
