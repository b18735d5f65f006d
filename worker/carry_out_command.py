"""Commands: cancel, capture, refund. Stripe is asked how the payment stands before anything is done to it.

Each outside effect stands between two ledger transactions, as in decide_payment.py. What a SIGKILL leaves behind:

    before the request is written down    nothing                      the next one starts afresh
    from there to the call's start        an open request              the next one looks and decides anew
    from there to Stripe's answer         a started call, key frozen   the next one looks: what is done shows, and what
                                                                       is not is asked again under the same key
    after the record                      staged events                the next one, or the relay, tells them
"""

import asyncio
from collections.abc import Callable, Sequence
from datetime import datetime, timedelta
from typing import Final

import structlog

from schemas import Command, IncomingEvent
from worker.bus.delivery import Delivery
from worker.errors import CallRefused, CallTransient, CallUnknown, ModeMismatch, Refusal, StaleMove, WorkerError
from worker.ledger import moves, requests
from worker.ledger.ledger import Ledger
from worker.payment import Operation, Payment, PaymentEvent
from worker.payment_command import AlreadySo, CommandKind, Reconsider, Refused, Request, RequestState, request_of
from worker.publish_events import EventRelay
from worker.stripe_event import PAYMENT_INTENT, REFUND, StripeEvent
from worker.stripe_gateway import StripeGateway

log: Final = structlog.get_logger()

WATCH_EVERY_S: Final = 5
WATCH_PAGE: Final = 20
# A cancel that comes too late becomes a refund: two turns, and one to spare.
MOST_TURNS: Final = 3


class CommandDoer:
    """Carries commands out, many side by side."""

    def __init__(
        self,
        *,
        ledger: Ledger,
        gateway: StripeGateway,
        relay: EventRelay,
        key_horizon_s: float,
        event_source: str,
        clock: Callable[[], datetime],
    ) -> None:
        self._ledger = ledger
        self._gateway = gateway
        self._relay = relay
        self._key_horizon_s = key_horizon_s
        self._event_source = event_source
        self._clock = clock

    async def carry_out(self, event: IncomingEvent, command: Command, delivery: Delivery) -> None:
        """From the command to what answers it. Raises what leaves it undone, and OtherRequest."""
        request = request_of(
            command,
            event_id=event.id,
            correlation_id=delivery.properties.correlation_id,
            traceparent=event.traceparent,
        )
        kept = await self._ledger.run(requests.keep, request, now=self._clock())
        if kept.state is RequestState.REMEMBERED and kept.payment is None:
            # The order may have come meanwhile, and have been opened without having seen this.
            kept = await self._ledger.run(requests.keep, request, now=self._clock())
            if kept.payment is None:
                log.info("command.remembered", request_id=request.request_id)
                return
        payment = kept.payment
        if payment is None:
            raise CallTransient(f"no payment of order {request.order_id} is known", reason="no_payment")
        if payment.livemode not in (None, self._gateway.livemode):
            raise ModeMismatch(f"{payment.order_id} is of Stripe's other mode: {payment.payment_id}")
        if kept.state in (RequestState.DONE, RequestState.REFUSED):
            await self._tell(kept.told)
            return
        if not payment.is_decided:
            raise CallTransient(f"order {request.order_id} is not decided yet", reason="busy")
        await self._tell(await self._do(request, payment))

    async def watch(self, *, after_s: float) -> None:
        """For ever: carry out what nobody comes back for, such as requests whose messages were purged."""
        while True:
            await asyncio.sleep(WATCH_EVERY_S)
            try:
                now = self._clock()
                before = now - timedelta(seconds=after_s)
                for request in await self._ledger.run(requests.idle, before=before, limit=WATCH_PAGE):
                    await self._ledger.run(requests.touch, request, now=now)
                    payment = await self._ledger.run(moves.read_payment, request.order_id)
                    if payment and payment.is_decided and payment.livemode in (None, self._gateway.livemode):
                        await self._tell(await self._do(request, payment))
            except WorkerError as error:
                log.warning("commands.wait", error=str(error))
            except Exception:  # a fault of ours: told, and the next round goes on
                log.exception("commands.bug")

    async def _do(self, request: Request, payment: Payment) -> Sequence[PaymentEvent]:
        """Raises CallTransient where it is not done, or not known to be, and is to be tried again."""
        told: list[PaymentEvent] = []
        for _ in range(MOST_TURNS):
            outcome, events = await self._take_a_turn(request, payment)
            told += events
            if not isinstance(outcome, Reconsider):
                return told
        raise CallTransient("the payment changes faster than it can be asked about", reason="busy")

    async def _take_a_turn(
        self, request: Request, payment: Payment
    ) -> tuple[Refused | AlreadySo | Reconsider | None, Sequence[PaymentEvent]]:
        """Look, decide, ask. None where nothing had to be asked."""
        shown = await self._show(request, payment)
        try:
            operation, told = await self._ledger.run(
                requests.begin,
                request,
                shown,
                livemode=self._gateway.livemode,
                key_horizon_s=self._key_horizon_s,
                source=self._event_source,
                now=self._clock(),
            )
        except StaleMove as stale:
            raise CallTransient(str(stale), reason="outcome_unknown") from None
        if operation is None:
            return None, told
        outcome, shown = await self._ask(request, payment, operation)
        ended = await self._ledger.run(
            requests.finish, request, outcome, shown, source=self._event_source, now=self._clock()
        )
        return outcome, [*told, *ended]

    async def _show(self, request: Request, payment: Payment) -> Sequence[StripeEvent]:
        """Stripe's own view; nothing where no intent was made."""
        if payment.payment_id is None:
            return []
        gives_back = request.kind is CommandKind.REFUND or bool(request.asked.get("refund_if_paid"))
        return await self._gateway.show_payment(payment, with_refunds=gives_back, now=self._clock())

    async def _ask(
        self, request: Request, payment: Payment, operation: Operation
    ) -> tuple[Refused | AlreadySo | Reconsider, Sequence[StripeEvent]]:
        """Stripe's answer, and what it shows. Raises what leaves it unknown: it shows when the command comes again."""
        try:
            done = await self._gateway.change_payment(operation, payment, now=self._clock())
        except CallRefused as refused:
            return await self._refused(request, payment, refused.refusal)
        except CallUnknown as unknown:
            if (
                not unknown.may_ask_again
            ):  # the key brings this for ever: what it came to shows, and then another may do
                await self._ledger.run(requests.note_unknown, operation, because=unknown.reason, now=self._clock())
            raise
        log.info("command.done", request_id=request.request_id, kind=request.kind, object_id=done.object_id)
        return AlreadySo(), [done]

    async def _refused(
        self, request: Request, payment: Payment, refusal: Refusal
    ) -> tuple[Refused | AlreadySo | Reconsider, Sequence[StripeEvent]]:
        """Stripe says no: perhaps because it was done before, which it shows."""
        shown = await self._show(request, payment)
        status = next((each.facts.get("status") for each in shown if each.family == PAYMENT_INTENT), None)
        is_there = any(each.family == REFUND and each.facts["request_id"] == request.request_id for each in shown)
        if is_there or (request.kind is CommandKind.CANCEL and status == "canceled"):
            return AlreadySo(), shown
        if request.kind is CommandKind.CANCEL and status == "succeeded" and request.asked.get("refund_if_paid"):
            return Reconsider(refusal.code or "refused"), shown
        code = "already_paid" if request.kind is CommandKind.CANCEL and status == "succeeded" else refusal.code
        return Refused(code or "refused", refusal.message or "Stripe has refused it"), shown

    async def _tell(self, events: Sequence[PaymentEvent]) -> None:
        for event in events:
            await self._relay.tell(event)
