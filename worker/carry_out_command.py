"""Commands: cancel, capture, refund. Stripe is asked how the payment stands before anything is done to it.

Each outside effect stands between two ledger transactions, as in decide_payment.py. What a SIGKILL leaves behind:

    before the request is written down    nothing                      the next one starts afresh
    from there to the call's start        an open request              the next one looks and decides anew
    from there to Stripe's answer         a started call, key frozen   the next one looks: what is done shows, and what
                                                                       is not is asked again under the same key
    after the record                      staged events                the next one, or the relay, tells them
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from datetime import datetime, timedelta
from typing import Final

import structlog

from schemas import Command, IncomingEvent
from worker.admission import Admission
from worker.bus.delivery import Delivery
from worker.errors import (
    CallRefused,
    CallSystemic,
    CallTransient,
    CallUnknown,
    IntentMissing,
    LedgerUnavailable,
    ModeMismatch,
    SoonOver,
    StaleMove,
    Stopping,
    StripeAway,
    WorkerError,
)
from worker.ledger import moves, requests
from worker.ledger.ledger import Ledger
from worker.payment import Operation, Payment, PaymentEvent
from worker.payment_command import (
    AlreadySo,
    CommandKind,
    Reconsider,
    Refused,
    Request,
    RequestState,
    after_refusal,
    request_of,
)
from worker.publish_events import EventRelay
from worker.stripe_event import StripeEvent
from worker.stripe_gateway import StripeGateway

log: Final = structlog.get_logger()

WATCH_EVERY_S: Final = 5
WATCH_PAGE: Final = 20
# A cancel that comes too late becomes a refund: two turns, and one to spare.
MOST_TURNS: Final = 3
# In place, where it is the first time that it does not succeed.
QUICK_WAITS_S: Final = (0.2, 0.5, 1)
# Another message is at work, or comes any moment: its order's, another command's, a copy of this one.
SOON_OVER: Final = frozenset({"no_payment", "busy", "in_use", "lock_timeout"})
MAY_BE_OVER: Final = SOON_OVER | {"no_connection", "answer_lost", "server_error", "strange_answer", "try_again"}


class CommandDoer:
    """Carries commands out, many side by side."""

    def __init__(
        self,
        *,
        ledger: Ledger,
        gateway: StripeGateway,
        admission: Admission,
        relay: EventRelay,
        key_horizon_s: float,
        event_source: str,
        clock: Callable[[], datetime],
    ) -> None:
        self._ledger = ledger
        self._gateway = gateway
        self._admission = admission
        self._relay = relay
        self._key_horizon_s = key_horizon_s
        self._event_source = event_source
        self._clock = clock

    async def carry_out(self, event: IncomingEvent, command: Command, delivery: Delivery) -> None:
        """From the command to what answers it.

        Raises what leaves it undone, SoonOver where another message has to end first, and OtherRequest.
        """
        request = request_of(
            command,
            event_id=event.id,
            correlation_id=delivery.properties.correlation_id,
            traceparent=event.traceparent,
        )
        live = delivery.deliveries == 1 and not delivery.history and not delivery.replays
        waits_s = iter(QUICK_WAITS_S if live else ())
        while True:
            try:
                told = await self._try(request, live=live)
                break
            except (CallTransient, CallUnknown) as error:
                wait_s = next(waits_s, None)
                if wait_s is None and error.reason in SOON_OVER:
                    raise SoonOver(str(error), reason=error.reason) from error
                if wait_s is None or error.reason not in MAY_BE_OVER or self._admission.is_away:
                    raise
            await asyncio.sleep(wait_s)
        await self._tell(told)

    async def _try(self, request: Request, *, live: bool) -> Sequence[PaymentEvent]:
        """What answers the request. Raises what leaves it undone."""
        kept = await self._ledger.run(requests.keep, request, now=self._clock())
        if kept.state is RequestState.REMEMBERED and kept.payment is None:
            # The order may have come meanwhile, and have been opened without having seen this.
            kept = await self._ledger.run(requests.keep_after_opening, request, now=self._clock())
            if kept.payment is None:
                log.info("command.remembered", request_id=request.request_id)
                return []
        payment = kept.payment
        if payment is None:
            raise CallTransient(f"no payment of order {request.order_id} is known", reason="no_payment")
        if payment.livemode not in (None, self._gateway.livemode):
            raise ModeMismatch(f"{payment.order_id} is of Stripe's other mode: {payment.payment_id}")
        if kept.state in (RequestState.DONE, RequestState.REFUSED):
            return kept.told
        if not payment.is_decided:
            raise CallTransient(f"order {request.order_id} is not decided yet", reason="busy")
        return await self._do(request, payment, live=live)

    async def watch(self, *, after_s: float) -> None:
        """For ever: carry out what nobody comes back for, such as requests whose messages were purged."""
        while True:
            await asyncio.sleep(WATCH_EVERY_S)
            try:
                before = self._clock() - timedelta(seconds=after_s)
                for request in await self._ledger.run(requests.idle, before=before, limit=WATCH_PAGE):
                    await self._come_back_for(request)
            except WorkerError as error:
                log.warning("commands.wait", error=str(error))
            except Exception:  # a fault of ours: told, and the next round goes on
                log.exception("commands.bug")

    async def _come_back_for(self, request: Request) -> None:
        await self._ledger.run(requests.touch, request, now=self._clock())
        payment = await self._ledger.run(moves.read_payment, request.order_id)
        if payment is None or not payment.is_decided or payment.livemode not in (None, self._gateway.livemode):
            return
        try:
            await self._tell(await self._do(request, payment, live=False))
        except (StripeAway, CallSystemic, LedgerUnavailable, Stopping):
            raise
        except WorkerError as error:  # its own trouble, which must not keep the others waiting
            log.warning("command.undone", request_id=request.request_id, error=str(error))

    async def _do(self, request: Request, payment: Payment, *, live: bool) -> Sequence[PaymentEvent]:
        """Raises CallTransient where it is not done, or not known to be, and is to be tried again."""
        told: list[PaymentEvent] = []
        for _ in range(MOST_TURNS):
            async with self._turn(payment, live=live):
                outcome, events = await self._look_and_ask(request, payment)
            told += events
            if not isinstance(outcome, Reconsider):
                return told
        raise CallTransient("the payment changes faster than it can be asked about", reason="busy")

    @asynccontextmanager
    async def _turn(self, payment: Payment, *, live: bool) -> AsyncIterator[None]:
        """One for what is read and what is asked, where there is an intent at all. Raises what Admission.turn does."""
        if payment.payment_id is None:
            yield
            return
        turn = await self._admission.turn(live=live)
        try:
            yield
        finally:
            self._admission.give_up_trial(turn)

    async def _look_and_ask(
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
        except requests.AnotherRefund as another:
            raise CallTransient(str(another), reason="busy") from None
        except StaleMove as stale:
            raise CallTransient(str(stale), reason="outcome_unknown") from None
        if operation is None:
            return None, told
        outcome, shown, asked_as = await self._ask(request, payment, operation)
        ended = await self._ledger.run(
            requests.finish, request, outcome, shown, asked_as=asked_as, source=self._event_source, now=self._clock()
        )
        return outcome, [*told, *ended]

    async def _show(self, request: Request, payment: Payment) -> Sequence[StripeEvent]:
        """Stripe's own view; nothing where no intent was made. Raises IntentMissing."""
        if payment.payment_id is None:
            return []
        gives_back = request.kind is CommandKind.REFUND or bool(request.asked.get("refund_if_paid"))
        try:
            async with self._admission.call(is_read=True):
                return await self._gateway.show_payment(payment, with_refunds=gives_back, now=self._clock())
        except CallRefused as refused:
            if refused.refusal.code != "resource_missing":
                raise
            raise IntentMissing(f"{refused}; was it made with another account's key?") from refused

    async def _ask(
        self, request: Request, payment: Payment, operation: Operation
    ) -> tuple[Refused | AlreadySo | Reconsider, Sequence[StripeEvent], str | None]:
        """Stripe's answer, what it shows, and Stripe's id of the request.

        Raises what leaves it unknown: it shows when the command comes again.
        """
        try:
            async with self._admission.call():
                self._require_life(operation)
                done, asked_as = await self._gateway.change_payment(operation, payment, now=self._clock())
        except CallRefused as refused:  # perhaps because it was done before, which shows
            shown, refusal = await self._show(request, payment), refused.refusal
            return after_refusal(request, operation, refusal, shown), shown, refusal.request_id
        except CallUnknown as unknown:
            if not unknown.may_ask_again:  # the key brings this for ever; what it came to shows, then another may do
                await self._ledger.run(requests.note_unknown, operation, because=unknown.reason, now=self._clock())
            raise
        log.info("command.done", request_id=request.request_id, kind=request.kind, object_id=done.object_id)
        return AlreadySo(), [done], asked_as

    def _require_life(self, operation: Operation) -> None:
        """Right before sending: a process may have been frozen, or have waited long. Raises CallUnknown."""
        if (self._clock() - operation.first_asked_at).total_seconds() > self._key_horizon_s:
            raise CallUnknown("the key is past its life", reason="key_expired", may_ask_again=False)

    async def _tell(self, events: Sequence[PaymentEvent]) -> None:
        for event in events:
            await self._relay.tell(event)
