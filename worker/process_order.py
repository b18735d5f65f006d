"""The spine: one order event, from the queue to its outcome.

Each outside effect stands between two ledger transactions, never inside one. What a SIGKILL leaves behind:

    before the call is marked started   nothing, or an open payment    the redelivered order starts afresh
    from there to Stripe's answer       a started call, key frozen     the redelivered order asks again, same key
    from there to its record            the same                       the key brings the same answer again
    after the record                    a staged event                 the redelivered order, or the relay, tells it

Nothing is acknowledged before all of it is done, so the broker redelivers whatever was cut.
"""

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final, assert_never

import structlog
from tenacity import AsyncRetrying, retry_if_exception, stop_after_attempt, wait_random_exponential

from schemas import IncomingEvent, MessageError, OrderCreatedData
from worker.bus.delivery import Delivery
from worker.bus.outgoing import Outgoing
from worker.client_secret import ClientSecret
from worker.errors import (
    AccountRefused,
    AnswerMismatch,
    BusUnavailable,
    CallRefused,
    CallSystemic,
    CallTransient,
    CallUnknown,
    LedgerRefused,
    LedgerUnavailable,
    ParametersRefused,
    StaleMove,
)
from worker.ledger import moves
from worker.ledger.ledger import Ledger
from worker.outcome import DeadLetter, Done, GiveBack, Outcome, Retry
from worker.pace import Pace
from worker.payment import (
    CREATE_INTENT,
    Answer,
    Intent,
    Operation,
    Payment,
    PaymentEvent,
    answer_of_intent,
    answer_of_refusal,
    conflict_with,
    event_of,
    idempotency_key,
    intent_params,
)
from worker.publish_events import EventRelay
from worker.read_order import CardDataFound, order_id_of, read_order_message
from worker.reply_to_order import Replies
from worker.retry_policy import QUICK_TRIES, QUICK_WAIT_S, rung_after
from worker.stripe_gateway import StripeGateway
from worker.telemetry import Metrics

log: Final = structlog.get_logger()

# How often, and how long, a delivery looks whether the one that asks for the same order has its answer.
BUSY_LOOK_S: Final = 0.1
BUSY_PATIENCE_S: Final = 10
FIRST_ATTEMPT: Final = 1
# Ten times an order with everything in it.
LARGE_BODY_BYTES: Final = 16 * 1024


class OrderConflict(Exception):
    """The order id is taken by a payment of another amount, currency or payer."""


@dataclass(frozen=True, slots=True)
class Decided:
    """A payment with its outcome, the event that tells it, and the secret where Stripe has just sent it."""

    payment: Payment
    event: PaymentEvent
    secret: ClientSecret | None = None


class OrderProcessor:
    """Processes deliveries, many side by side. worker_id names this process in claims."""

    def __init__(
        self,
        *,
        ledger: Ledger,
        gateway: StripeGateway,
        outgoing: Outgoing,
        relay: EventRelay,
        replies: Replies,
        pace: Pace,
        metrics: Metrics,
        worker_id: str,
        claim_ttl_s: float,
        key_horizon_s: float,
        event_source: str,
        clock: Callable[[], datetime],
    ) -> None:
        self._ledger = ledger
        self._gateway = gateway
        self._outgoing = outgoing
        self._relay = relay
        self._replies = replies
        self._pace = pace
        self._metrics = metrics
        self._worker_id = worker_id
        self._claim_ttl_s = claim_ttl_s
        self._key_horizon = timedelta(seconds=key_horizon_s)
        self._event_source = event_source
        self._clock = clock
        self._claims = 0
        self._live_claims: set[str] = set()

    async def process(self, delivery: Delivery) -> Outcome:
        """From delivery to settled. Raises BusUnavailable where it could not be settled: the broker redelivers."""
        outcome: Outcome
        try:
            await self._carry_out(delivery)
            outcome = Done()
        except asyncio.CancelledError:
            await self._settle(delivery, GiveBack("stopping"))
            raise
        except Exception as error:  # noqa: BLE001 - every error becomes an outcome, in this one place
            outcome = _outcome_of(error, delivery)
        await self._settle(delivery, outcome)
        return outcome

    async def _carry_out(self, delivery: Delivery) -> None:
        event, order = await _read(delivery)
        structlog.contextvars.bind_contextvars(order_id=order.order_id)
        payment = await self._ledger.run(moves.open_payment, order, now=self._clock())
        if conflict := conflict_with(payment, order):
            raise OrderConflict("; ".join(f"{name}: was {was}, now {now}" for name, (was, now) in conflict.items()))
        if payment.is_decided:
            decided = await self._look_up(payment.order_id)
            log.info("order.told_again", event_id=decided.event.event_id)
        else:
            decided = await self._decide(payment, order, event, delivery)
        await self._relay.tell(decided.event)
        await self._replies.answer(delivery, decided.payment, decided.secret)

    async def _decide(
        self, payment: Payment, order: OrderCreatedData, event: IncomingEvent, delivery: Delivery
    ) -> Decided:
        """Mark the call started, ask, record. Another delivery of the same order may get there first."""
        await self._pace.turn()
        with self._new_claim() as claim:
            return await self._decide_under_claim(claim, payment, order, event, delivery)

    async def _decide_under_claim(
        self, claim: str, payment: Payment, order: OrderCreatedData, event: IncomingEvent, delivery: Delivery
    ) -> Decided:
        operation = await self._start_call(order, claim)
        if operation is None:
            return await self._look_up(payment.order_id)
        try:
            answer, secret = await self._ask(payment, operation)
            # A crash here leaves the call started; its key brings the same answer again.
            now = self._clock()
            outcome_event = event_of(
                answer,
                cause=event.id,
                correlation_id=delivery.properties.correlation_id,
                traceparent=event.traceparent,
                source=self._event_source,
                now=now,
            )
            await self._ledger.run(
                moves.record_answer, before=payment, answer=answer, operation=operation, event=outcome_event, now=now
            )
        except StaleMove:
            return await self._look_up(payment.order_id)
        except BaseException:
            # Nothing is recorded: whoever comes next need not wait for this claim to grow old.
            await asyncio.shield(self._ledger.run(moves.release_claim, operation, claim=claim))
            raise
        self._metrics.payments.labels(answer.payment.state, payment.currency).inc()
        log.info(
            outcome_event.type,
            payment_id=answer.payment.payment_id,
            status=answer.payment.status,
            code=answer.failure.code if answer.failure else None,
            request_id=answer.request_id,
        )
        return Decided(answer.payment, outcome_event, secret)

    async def _start_call(self, order: OrderCreatedData, claim: str) -> Operation | None:
        """Freeze the call and claim it, waiting our turn. None where another delivery has had the answer."""
        params = intent_params(order)
        self._gateway.check_params(params)
        for _ in range(int(BUSY_PATIENCE_S / BUSY_LOOK_S)):
            started = await self._ledger.run(
                moves.start_call,
                order_id=order.order_id,
                kind=CREATE_INTENT,
                attempt=FIRST_ATTEMPT,
                idempotency_key=idempotency_key(order.order_id, CREATE_INTENT, FIRST_ATTEMPT),
                params=params,
                stripe_account=order.stripe_account,
                worker_id=self._worker_id,
                claim=claim,
                live_claims=self._live_claims,
                now=self._clock(),
                claim_ttl_s=self._claim_ttl_s,
            )
            match started:
                case moves.Claimed(operation):
                    return operation
                case moves.Ended():
                    return None
                case moves.Busy():
                    await asyncio.sleep(BUSY_LOOK_S)
                case _:
                    assert_never(started)
        raise CallTransient("another delivery of this order has been asking for long", reason="busy")

    async def _ask(self, payment: Payment, operation: Operation) -> tuple[Answer, ClientSecret | None]:
        """What Stripe says makes of the payment. Raises what leaves it undecided."""
        try:
            intent, secret = await self._create_intent(operation)
        except CallRefused as refused:
            return answer_of_refusal(payment, refused.refusal), None
        return answer_of_intent(payment, intent), secret

    async def _create_intent(self, operation: Operation) -> tuple[Intent, ClientSecret | None]:
        """Ask with the key and the parameters frozen in the ledger; a few quick tries, in place."""
        tries = AsyncRetrying(
            stop=stop_after_attempt(QUICK_TRIES),
            wait=wait_random_exponential(multiplier=QUICK_WAIT_S, max=QUICK_WAIT_S * 4),
            retry=retry_if_exception(_is_worth_a_quick_try),
            reraise=True,
        )
        async for attempt in tries:
            with attempt:
                if self._clock() - operation.first_asked_at > self._key_horizon:
                    raise CallUnknown("the key is past its life", reason="key_expired", may_ask_again=False)
                return await self._gateway.create_intent(operation)
        raise AssertionError("tenacity ended without an answer or an error")

    async def _look_up(self, order_id: str) -> Decided:
        """The outcome as the ledger has it, with the event that told it first."""
        payment = await self._ledger.run(moves.read_payment, order_id)
        events = await self._ledger.run(moves.events_of, order_id)
        if payment is None or not events:
            raise CallTransient("the payment is not decided yet", reason="busy")
        return Decided(payment, events[-1])

    async def _settle(self, delivery: Delivery, outcome: Outcome) -> None:
        """The only place where a delivery ends. What is handed on is confirmed before it is acknowledged."""
        match outcome:
            case Done():
                await delivery.ack()
            case Retry(reason, error, delay_s):
                log.warning("order.retried", reason=reason, error=error, delay_s=delay_s, attempt=delivery.deliveries)
                await self._outgoing.retry(delivery, delay_s=delay_s)
                await delivery.ack()
            case DeadLetter(reason, error, order_id):
                log.warning("order.dead_lettered", reason=reason, error=error, letter_id=delivery.letter_id)
                await self._outgoing.dead_letter(
                    delivery, reason=reason, error=error, order_id=order_id, now=self._clock()
                )
                await self._replies.answer_dead_lettered(delivery, order_id)
                await delivery.ack()
            case GiveBack(reason):
                # Left unsettled: the consumer now closes this subscription, and all it holds goes back in order,
                # counted by the broker once. A nack would bring it again at once, and again, until the close.
                log.info("order.given_back", reason=reason)
            case _:
                assert_never(outcome)

    @contextmanager
    def _new_claim(self) -> Iterator[str]:
        """A claim counts only while its delivery is at work, even where the ledger could not be told of its end."""
        self._claims += 1
        claim = f"{self._worker_id}/{self._claims}"
        self._live_claims.add(claim)
        try:
            yield claim
        finally:
            self._live_claims.discard(claim)


async def _read(delivery: Delivery) -> tuple[IncomingEvent, OrderCreatedData]:
    """See read_order_message. A body made for it keeps the card search busy for a second: beside the loop, then."""
    if len(delivery.body) > LARGE_BODY_BYTES:
        return await asyncio.to_thread(read_order_message, delivery)
    return read_order_message(delivery)


def _is_worth_a_quick_try(error: BaseException) -> bool:
    """A dropped connection or a key in use may be over in a moment; a rate limit is not, and is not hurried."""
    if isinstance(error, CallTransient):
        return error.reason != "rate_limited"
    return isinstance(error, CallUnknown) and error.may_ask_again


# The message or its order is at fault, or a person must look: trying again would bring the same.
_DEAD_LETTERS: Final[dict[type[Exception], str]] = {
    MessageError: "bad_message",
    CardDataFound: "card_data",
    OrderConflict: "conflict",
    ParametersRefused: "bad_parameters",
    AnswerMismatch: "answer_mismatch",
    AccountRefused: "account_refused",
    LedgerRefused: "ledger_refused",
}


def _outcome_of(error: Exception, delivery: Delivery) -> Outcome:
    """How a delivery ends that was not carried out."""
    if letter := _DEAD_LETTERS.get(type(error)):
        return DeadLetter(letter, str(error), order_id_of(delivery))
    match error:
        case CallUnknown(may_ask_again=False):
            return DeadLetter("outcome_unknown", f"{error.reason}: {error}", order_id_of(delivery))
        case CallSystemic() | LedgerUnavailable() | BusUnavailable():
            return GiveBack(f"{type(error).__name__}: {error}")
        case CallTransient() | CallUnknown():
            reason = error.reason
        case _:
            log.error("order.bug", exc_info=error)
            reason = "bug"
    delay_s = rung_after(delivery.deliveries)
    if delay_s is None:
        return DeadLetter("retries_exhausted", f"{reason}: {error}", order_id_of(delivery))
    return Retry(reason, str(error), delay_s)
