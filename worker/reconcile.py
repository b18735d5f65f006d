"""Ledger against Stripe against what was told: each difference is a finding, with the money it touches.

What is certain is repaired by taking in what Stripe shows, as its events would have been: the same state, the same
event ids. The rest is left to a person.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import asdict
from datetime import datetime, timedelta
from typing import Any, Final

import structlog

from worker.compare_objects import READ_GAP_S, ObjectComparer
from worker.errors import CallRefused, WorkerError
from worker.finding import TAKEN_IN, Finding, differences_of_payment, finding_of, finding_of_type, told_money
from worker.ledger import inbox, lives
from worker.ledger.inbox import WaitingGroup
from worker.ledger.ledger import Ledger
from worker.payment import Payment
from worker.payment_life import Life
from worker.publish_events import EventRelay
from worker.stripe_event import DISPUTE, REFUND, InboxState, ShownPayment, StripeEvent
from worker.stripe_gateway import StripeGateway

log: Final = structlog.get_logger()

PAGE: Final = 200
# An intent younger than this may be of a call that is still on its way.
YOUNG: Final = timedelta(minutes=2)
# Looks of the background overlap: what was young in one is looked at in the next.
OVERLAP: Final = timedelta(hours=1)
# A worker that is well has done with a Stripe event by then.
APPLIED_WITHIN_S: Final = 3


class Reconciler:
    """Looks through a time, and repairs where it is told to."""

    def __init__(
        self,
        *,
        ledger: Ledger,
        gateway: StripeGateway,
        relay: EventRelay | None,
        event_source: str,
        clock: Callable[[], datetime],
    ) -> None:
        self._ledger = ledger
        self._gateway = gateway
        self._relay = relay
        self._event_source = event_source
        self._clock = clock
        self._objects = ObjectComparer(ledger=ledger, gateway=gateway, take_in=self._take_in, clock=clock)

    async def run(self, *, since: datetime, fix: bool) -> Sequence[Finding]:
        """All findings of the time since. Raises what asking Stripe does, and LedgerUnavailable."""
        began = self._clock()
        findings = [each async for each in self._undelivered(since=since, fix=fix)]
        seen: set[str] = set()
        async for shown in self._listed(since=since):
            seen.add(shown.payment_id)
            findings += await self._compare(shown, fix=fix)
        findings += [each async for each in self._missing(since=since, seen=seen, fix=fix)]
        for family in (REFUND, DISPUTE):
            findings += [each async for each in self._objects.run(family, since=since, compared=seen, fix=fix)]
        findings += await self._ledger.run(untold, before=self._clock() - YOUNG)
        findings += await self._waiting(began=began)
        return findings

    async def watch(self, *, every_s: float) -> None:
        """For ever: repair what is certain of the time since the last look, and a while before."""
        since = self._clock() - timedelta(seconds=every_s)
        while True:
            await asyncio.sleep(every_s)
            try:
                began = self._clock()
                for finding in await self.run(since=since - OVERLAP, fix=True):
                    tell = log.info if finding.is_repaired else log.error
                    tell("reconcile.finding", **asdict(finding))
                since = began
            except WorkerError as error:
                log.warning("reconcile.waits", error=str(error))
            except Exception:  # a fault of ours: told, and the next round goes on
                log.exception("reconcile.bug")

    async def _undelivered(self, *, since: datetime, fix: bool) -> AsyncIterator[Finding]:
        """Stripe's events that its webhooks could not deliver."""
        async for event in self._gateway.undelivered_events(since=since):
            await asyncio.sleep(0)
            if event.family is None or event.livemode != self._gateway.livemode:
                continue
            if await self._ledger.run(inbox.is_known, event.event_id):
                continue
            if fix:
                await self._ledger.run_grouped(inbox.receive, inbox.Receipt(event, None, self._clock()))
            payment = await self._ledger.run(lives.find_payment, order_id=event.order_id, payment_id=event.payment_id)
            amount_minor, currency = event.facts.get("amount"), event.facts.get("currency")
            if payment and not (amount_minor and currency):
                amount_minor, currency = payment.amount_minor, payment.currency
            yield Finding(
                kind="undelivered_event",
                order_id=payment.order_id if payment else event.order_id,
                payment_id=event.payment_id,
                amount_minor=amount_minor or 0,
                currency=currency or "",
                what=f"{event.type} ({event.event_id}) was not delivered",
                repair="it is taken in, as if it had been",
                is_certain=True,
                is_repaired=fix,
            )

    async def _listed(self, *, since: datetime) -> AsyncIterator[ShownPayment]:
        async for page in self._gateway.shown_payments(since=since):
            for shown in page:
                yield shown
            await asyncio.sleep(READ_GAP_S)

    async def _compare(self, shown: ShownPayment, *, fix: bool) -> list[Finding]:
        payment = await self._ledger.run(lives.find_payment, order_id=shown.order_id, payment_id=shown.payment_id)
        if payment is None or payment.payment_id != shown.payment_id:
            return self._stray(shown, payment, now=self._clock())
        life = await self._ledger.run(lives.read_life, payment.order_id)
        if life is None:
            return []
        if (shown.amount_minor, shown.currency) != (payment.amount_minor, payment.currency):
            agreed = told_money(payment.amount_minor, payment.currency)
            what = f"is of {told_money(shown.amount_minor, shown.currency)}, and {agreed} was agreed"
            return [
                finding_of("amount", shown, payment, what, "a person must look: cancel or refund it", certain=False)
            ]
        refunds = await self._refunds_of(life, shown, payment)
        differences = differences_of_payment(life, shown, refunds)
        if not differences:
            return []
        if fix:
            await self._take_in(payment, [*shown.events, *refunds])
        what = "; ".join(differences.values())
        return [finding_of("state", shown, payment, what, TAKEN_IN, certain=True, done=fix)]

    async def _take_in(self, payment: Payment, events: Sequence[StripeEvent]) -> None:
        told = await self._ledger.run(
            lives.take_in_shown, payment.order_id, events, source=self._event_source, now=self._clock()
        )
        if self._relay:
            for event in told:
                await self._relay.tell(event)

    async def _refunds_of(self, life: Life, shown: ShownPayment, payment: Payment) -> Sequence[StripeEvent]:
        """As Stripe lists them, where their sum differs or one was not at its end."""
        if shown.refunded_minor == life.refunded_minor and not life.has_pending_refunds:
            return []
        _, *refunds = await self._gateway.show_payment(payment, with_refunds=True, now=self._clock())
        return refunds

    def _stray(self, shown: ShownPayment, payment: Payment | None, *, now: datetime) -> list[Finding]:
        """An intent that is no payment's of this ledger."""
        if shown.status == "canceled":
            return []
        if shown.order_id is None or (payment is None and now - shown.created < YOUNG):
            return []  # somebody else's on the same account, or on its way
        if payment is not None and not payment.is_decided:
            return []  # its call has no answer yet: the resolver's
        beside = f"beside {payment.payment_id}" if payment else "which this ledger does not know"
        what = f"names the order {shown.order_id}, {beside}; it is {shown.status}"
        repair = "cancel it at Stripe" if shown.received_minor == 0 else "a person must look: somebody has paid it"
        return [finding_of("intent_without_order", shown, payment, what, repair, certain=False)]

    async def _missing(self, *, since: datetime, seen: set[str], fix: bool) -> AsyncIterator[Finding]:
        """Payments whose intent was not listed."""
        after: str | None = None
        while page := await self._ledger.run(lives.payments_since, since=since, limit=PAGE, after=after):
            after = page[-1].order_id
            for payment in page:
                if payment.payment_id is None or payment.payment_id in seen:
                    continue
                if payment.livemode != self._gateway.livemode:
                    continue
                if shown := await self._shown(payment):  # of a connected account, which our list is not of
                    for finding in await self._compare(shown, fix=fix):
                        yield finding
                    continue
                yield Finding(
                    kind="order_without_intent",
                    order_id=payment.order_id,
                    payment_id=payment.payment_id,
                    amount_minor=payment.amount_minor,
                    currency=payment.currency,
                    what="Stripe knows no such intent",
                    repair="a person must look: was it made with another account's key?",
                    is_certain=False,
                )

    async def _waiting(self, *, began: datetime) -> list[Finding]:
        """Stripe's events that had come in when the look began, and that no worker has done with since."""
        groups = await self._ledger.run(inbox.waiting_groups, received_before=began)
        if groups:
            await asyncio.sleep(max(0.0, APPLIED_WITHIN_S - (self._clock() - began).total_seconds()))
            groups = await self._ledger.run(inbox.waiting_groups, received_before=began)
        return [_waiting_finding(group) for group in groups if not group.is_strange]

    async def _shown(self, payment: Payment) -> ShownPayment | None:
        await asyncio.sleep(READ_GAP_S)
        try:
            return await self._gateway.shown_payment(payment)
        except CallRefused:
            return None


def untold(conn: Any, *, before: datetime) -> list[Finding]:
    """Events that no queue has, a finding for each type."""
    return [
        finding_of_type(
            "untold_event",
            f"{number} {kind} told to nobody, the oldest of {oldest.isoformat(timespec='seconds')}",
            "bind a queue to it: the worker tells them then",
        )
        for kind, number, oldest in lives.untold_by_type(conn, before=before)
    ]


def _waiting_finding(group: WaitingGroup) -> Finding:
    is_one = group.count == 1
    since = group.oldest.isoformat(timespec="seconds")
    told = [f"{group.count} Stripe {'event still waits' if is_one else 'events still wait'}, since {since}"]
    if group.order_id and not is_one:
        told.append(f"one of order {group.order_id}")
    if group.state is InboxState.RECEIVED:
        why, repair = "no worker has applied it", "is a worker of this ledger running? See inbox.waits in its log"
    else:
        why, repair = str(group.why), "the worker tries it again by itself; see the README, On call"
    return finding_of_type(
        "waiting_event", f"{', '.join(told)}: {why}", repair, order_id=group.order_id if is_one else None
    )
