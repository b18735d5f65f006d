"""Refunds and disputes at Stripe against those in the ledger, one by one: each difference is a finding.

They come weeks after their payment, so that they are looked at by the day they were made themselves; and all that have
not come to an end are looked at, however old they are.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Sequence
from datetime import datetime
from typing import Final

from worker.errors import AccountRefused, CallRefused, RightMissing
from worker.finding import TAKEN_IN, Finding, differences_of_object, finding_of_type
from worker.ledger import life_figures, lives, moves
from worker.ledger.ledger import Ledger
from worker.payment import Payment
from worker.payment_life import Dispute, Life, Refund, apply
from worker.stripe_event import REFUND, StripeEvent
from worker.stripe_gateway import StripeGateway

# Behind live traffic: a share of Stripe's 25 reads a second.
READ_GAP_S: Final = 0.1


class ObjectComparer:
    """Looks at one family of objects at a time. take_in: has what Stripe shows of a payment taken in and told."""

    def __init__(
        self,
        *,
        ledger: Ledger,
        gateway: StripeGateway,
        take_in: Callable[[Payment, Sequence[StripeEvent]], Awaitable[None]],
        clock: Callable[[], datetime],
    ) -> None:
        self._ledger = ledger
        self._gateway = gateway
        self._take_in = take_in
        self._clock = clock

    async def run(
        self, family: str, *, since: datetime, compared: Collection[str], fix: bool
    ) -> AsyncIterator[Finding]:
        """The findings of refunds or disputes. compared: payments whose refunds were looked at already."""
        done = compared if family == REFUND else ()
        try:
            seen: set[str] = set()
            async for shown in self._listed(family, since=since):
                seen.add(str(shown[-1].object_id))
                payment_id = shown[-1].payment_id
                payment = await self._ledger.run(lives.find_payment, order_id=None, payment_id=payment_id)
                if payment is None or payment_id in done or await self._is_known(payment, shown[-1]):
                    continue
                if found := await self._look(payment, family, str(shown[-1].object_id), fix=fix):
                    yield found
            for order_id, object_id in await self._under_way(family):
                payment = await self._ledger.run(moves.read_payment, order_id)
                if payment is None or object_id in seen or payment.payment_id in done:
                    continue
                if payment.livemode != self._gateway.livemode:
                    continue
                if found := await self._look(payment, family, object_id, fix=fix):
                    yield found
        except RightMissing as error:
            yield finding_of_type(
                "not_compared", f"{family}s were not compared: {error}", "give the key the right to read them"
            )

    async def _listed(self, family: str, *, since: datetime) -> AsyncIterator[Sequence[StripeEvent]]:
        async for page in self._gateway.shown_objects(family, since=since):
            for shown in page:
                yield shown
            await asyncio.sleep(READ_GAP_S)

    async def _under_way(self, family: str) -> Sequence[tuple[str, str]]:
        """Order and id of those that have not come to an end, as far as the ledger knows."""
        if family == REFUND:
            refunds = await self._ledger.run(life_figures.pending_refunds)
            return [(each.order_id, each.refund.refund_id) for each in refunds]
        disputes = await self._ledger.run(life_figures.open_disputes)
        return [(each.order_id, each.dispute.dispute_id) for each in disputes]

    async def _is_known(self, payment: Payment, listed: StripeEvent) -> bool:
        """Whether the ledger has it as a list shows it."""
        life = await self._ledger.run(lives.read_life, payment.order_id)
        return not differences_of_object(_known(life, listed), listed, payment.currency)

    async def _look(self, payment: Payment, family: str, object_id: str, *, fix: bool) -> Finding | None:
        """As Stripe shows it alone: since a list was read, the ledger may have gone further."""
        await asyncio.sleep(READ_GAP_S)
        try:
            shown = await self._gateway.show_object(family, object_id, payment.stripe_account, now=self._clock())
        except (CallRefused, AccountRefused) as error:
            return Finding(
                kind=family,
                order_id=payment.order_id,
                payment_id=payment.payment_id,
                amount_minor=payment.amount_minor,
                currency=payment.currency,
                what=f"Stripe does not show {object_id}, which is open here: {error}",
                repair="a person must look: was it made with another account's key?",
                is_certain=False,
            )
        return await self._compare(payment, shown, fix=fix)

    async def _compare(self, payment: Payment, shown: Sequence[StripeEvent], *, fix: bool) -> Finding | None:
        life, newest = await self._ledger.run(lives.read_life, payment.order_id), shown[-1]
        differences = differences_of_object(_known(life, newest), newest, payment.currency)
        if life is None or not differences:
            return None
        if life.received_minor == 0:  # that it was paid was missed too
            shown = [*await self._gateway.show_payment(payment, with_refunds=False, now=self._clock()), *shown]
        after = life
        for event in shown:
            after, _ = apply(after, event)
        is_certain = not differences_of_object(_known(after, newest), newest, payment.currency)
        if fix and is_certain:
            await self._take_in(payment, shown)
        return Finding(
            kind=str(newest.family),
            order_id=payment.order_id,
            payment_id=payment.payment_id,
            amount_minor=newest.facts["amount"] or 0,
            currency=newest.facts["currency"] or payment.currency,
            what="; ".join(differences.values()),
            repair=TAKEN_IN if is_certain else "a person must look: what Stripe shows is not newer than what is here",
            is_certain=is_certain,
            is_repaired=fix and is_certain,
        )


def _known(life: Life | None, shown: StripeEvent) -> Refund | Dispute | None:
    """The refund or the dispute as the ledger has it."""
    if life is None:
        return None
    object_id = str(shown.object_id)
    return life.refunds.get(object_id) if shown.family == REFUND else life.disputes.get(object_id)
