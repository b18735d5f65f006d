"""Getting to the outcome of a payment: claim its call, ask Stripe or look for evidence, record. Told by whoever asked.

Used by the spine for an order that comes, and by the resolver for what nobody comes back for. Each outside effect
stands between two ledger transactions, never inside one. What a SIGKILL leaves behind:

    before the call is marked started   nothing, or an open payment    the next one starts afresh
    from there to Stripe's answer       a started call, key frozen     the next one asks again, same key
    from there to its record            the same                       the key brings the same answer again
    once the key cannot tell any more   an unknown call                the next one looks for evidence
    after absence was recorded          an absent call                 the next one starts another attempt, new key
    after the record                    a staged event                 the next one, or the relay, tells it
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any, Final, TypeVar, assert_never

import structlog
from tenacity import AsyncRetrying, retry_if_exception, stop_after_attempt, wait_random_exponential

from schemas import OrderCreatedData
from worker.admission import Admission
from worker.client_secret import ClientSecret
from worker.errors import (
    CallRefused,
    CallTransient,
    CallUnknown,
    LedgerUnavailable,
    ModeMismatch,
    OrderConflict,
    SeveralIntents,
    StaleMove,
    StripeAway,
    WorkerError,
)
from worker.find_evidence import SENT_WITHIN_S, Absent, EvidenceFinder, Found
from worker.ledger import moves, requests
from worker.ledger.ledger import Ledger
from worker.ledger.order_moves import (
    NotDue,
    Opened,
    OpenedInTurn,
    Opening,
    Recording,
    open_in_turn,
    open_orders,
    record_answers,
)
from worker.metrics import Metrics
from worker.payment import (
    CREATE_INTENT,
    Answer,
    Intent,
    Operation,
    OperationState,
    Payment,
    PaymentEvent,
    answer_of_intent,
    answer_of_refusal,
    conflict_with,
    event_of,
    intent_params,
)
from worker.retry_policy import QUICK_TRIES, QUICK_WAIT_S
from worker.stripe_gateway import StripeGateway

log: Final = structlog.get_logger()

Answered = TypeVar("Answered")

# How often, and how long, one looks whether the other that asks for the same order has its answer.
BUSY_LOOK_S: Final = 0.1
BUSY_PATIENCE_S: Final = 10
# A turn not used by then is taken anew: the rate is one of this moment.
TURN_GOOD_S: Final = 1


@dataclass(frozen=True, slots=True)
class Decided:
    """A payment with its outcome, the event that tells it, and the secret where Stripe has just sent it."""

    payment: Payment
    event: PaymentEvent
    secret: ClientSecret | None = None


@dataclass(frozen=True, slots=True)
class Order:
    """What an order event says. cause, correlation_id, traceparent: of the event, told with the outcome."""

    data: OrderCreatedData
    cause: str | None
    correlation_id: str | None
    traceparent: str | None


@dataclass(slots=True)
class Hold:
    """What one delivery holds while it works on a call: its claim, and a turn once it has one, maybe that which tries.

    turned_at: when that is, by the loop's clock. call: as the ledger has it now, with its askings; there once it
    is claimed.
    """

    claim: str
    turn: int | None = None
    turned_at: float = 0
    call: Operation = field(init=False, repr=False)


class PaymentDecider:
    """Decides payments, many side by side. worker_id names this process in claims."""

    def __init__(
        self,
        *,
        ledger: Ledger,
        gateway: StripeGateway,
        admission: Admission,
        evidence: EvidenceFinder,
        metrics: Metrics,
        worker_id: str,
        claim_ttl_s: float,
        key_horizon_s: float,
        event_source: str,
        clock: Callable[[], datetime],
    ) -> None:
        self._ledger = ledger
        self._gateway = gateway
        self._admission = admission
        self._evidence = evidence
        self._metrics = metrics
        self._worker_id = worker_id
        self._claim_ttl_s = claim_ttl_s
        self._key_horizon_s = key_horizon_s
        self._event_source = event_source
        self._clock = clock
        self._claims = 0
        self._live_claims: set[str] = set()
        self._unreleased: list[tuple[str, str, Mapping[str, Any]]] = []

    async def decide_order(self, order: Order, *, live: bool) -> Decided:
        """The outcome of an order, recorded. live: it comes for the first time, as far as its delivery knows.

        Raises as decide does, OrderConflict and ParametersRefused.
        """
        params = intent_params(order.data)
        self._gateway.check_params(params)
        payment = None if live else await self._ledger.run(moves.read_payment, order.data.order_id)
        if payment is None:
            try:
                async with self._claiming() as hold:
                    if opened := await self._open_in_turn(order, params, hold, live=live):
                        return await self._decide(opened.payment, params, hold, anew=True, begun=opened.call)
            except StripeAway:  # which a copy of an order that is decided need not wait for
                payment = await self._ledger.run(moves.read_payment, order.data.order_id)
                if payment is None or not payment.is_decided:
                    raise
            if payment is None:
                payment = await self._ledger.run(moves.known_payment, order.data.order_id)
        return await self._decide_known(payment, order, params)

    async def _decide_known(self, payment: Payment, order: Order, params: Mapping[str, Any]) -> Decided:
        if payment.livemode not in (None, self._gateway.livemode):
            raise ModeMismatch(f"{payment.order_id} was decided in Stripe's other mode: {payment.payment_id}")
        if conflict := conflict_with(payment, order.data):
            raise OrderConflict("; ".join(f"{name}: was {was}, now {now}" for name, (was, now) in conflict.items()))
        if not payment.is_decided:
            return await self.decide(payment, params, live=False)
        decided = await self.look_up(payment.order_id)
        log.info("order.told_again", event_id=decided.event.event_id)
        return decided

    async def decide(self, payment: Payment, params: Mapping[str, Any], *, live: bool, anew: bool = True) -> Decided:
        """The payment with its outcome, recorded. Another one may get there first, which is as good.

        params: what Stripe is asked for, where it was not asked before. live: see Admission.turn. anew: whether another
        attempt may follow one that is proven absent. Raises what leaves it undecided: CallTransient, CallUnknown,
        CallSystemic, StripeAway, LedgerUnavailable and others of errors.py.
        """
        async with self._claiming() as hold:
            await self._wait_turn(hold, live=live)
            return await self._decide(payment, params, hold, anew=anew)

    async def _decide(
        self,
        payment: Payment,
        params: Mapping[str, Any],
        hold: Hold,
        *,
        anew: bool,
        begun: Operation | None = None,
    ) -> Decided:
        """begun: the call, where it is claimed already."""
        while call := begun or await self._claim_call(payment, params, hold, anew=anew):
            hold.call, begun = call, None
            if decided := await self._under_claim(payment, hold):
                return decided
        return await self.look_up(payment.order_id)

    async def _open_in_turn(self, order: Order, params: Mapping[str, Any], hold: Hold, *, live: bool) -> Opened | None:
        """Open a payment once it is its turn: in one move where one is due, which is most of the time."""
        opening = Opening(
            order=order.data,
            cause=order.cause,
            correlation_id=order.correlation_id,
            traceparent=order.traceparent,
            params=params,
            livemode=self._gateway.livemode,
            worker_id=self._worker_id,
            claim=hold.claim,
            now=self._clock(),
        )
        if free := self._admission.turn_at_once():
            wanted, hold.turn = free
            hold.turned_at = asyncio.get_running_loop().time()
            in_turn = await self._await_claim(
                opening.order.order_id, hold, self._ledger.run_grouped(open_in_turn, (opening, wanted))
            )
            if isinstance(in_turn, OpenedInTurn) and in_turn.wait_s:  # counted by the ledger from the move's end
                hold.turned_at = asyncio.get_running_loop().time() + in_turn.wait_s
            if not isinstance(in_turn, NotDue):
                return in_turn
        await self._wait_turn(hold, live=live)
        opening = replace(opening, now=self._clock())
        opened = await self._await_claim(opening.order.order_id, hold, self._ledger.run_grouped(open_orders, opening))
        if opened is None:
            self._admission.pass_on_turn()
        return opened

    async def _await_claim(self, order_id: str, hold: Hold, asked: Awaitable[Answered]) -> Answered:
        """asked: a move that claims a call of the order's."""
        try:
            return await asked
        except LedgerUnavailable as away:  # it may have happened all the same, and then nobody works on it
            self._unreleased.append((order_id, hold.claim, self._failure_of(away)))
            raise

    async def look_up(self, order_id: str) -> Decided:
        """The outcome as the ledger has it, with the event that told it first. Raises CallTransient for none."""
        payment = await self._ledger.run(moves.read_payment, order_id)
        events = await self._ledger.run(moves.events_of, order_id)
        if payment is None or not events:
            raise CallTransient("the payment is not decided yet", reason="busy")
        return Decided(payment, events[0])

    async def _claim_call(
        self, payment: Payment, params: Mapping[str, Any], hold: Hold, *, anew: bool
    ) -> Operation | None:
        """Freeze the call and claim it; while another one asks, wait for that. None where that has had the answer."""
        for _ in range(int(BUSY_PATIENCE_S / BUSY_LOOK_S)):
            started = await self._await_claim(
                payment.order_id,
                hold,
                self._ledger.run(
                    moves.start_call,
                    order_id=payment.order_id,
                    kind=CREATE_INTENT,
                    params=params,
                    stripe_account=payment.stripe_account,
                    livemode=self._gateway.livemode,
                    worker_id=self._worker_id,
                    claim=hold.claim,
                    live_claims=self._live_claims,
                    now=self._clock(),
                    claim_ttl_s=self._claim_ttl_s,
                    key_horizon_s=self._key_horizon_s,
                    anew=anew,
                ),
            )
            match started:
                case moves.Claimed(operation):
                    return operation
                case moves.Ended():
                    return None
                case moves.CanceledBefore():
                    with suppress(StaleMove):
                        await self._cancel_unasked(payment)
                        return None
                    await asyncio.sleep(BUSY_LOOK_S)
                case moves.OtherMode():
                    raise ModeMismatch(f"{payment.order_id} was asked for in Stripe's other mode")
                case moves.Busy():
                    self._admission.give_up_trial(hold.turn)
                    await asyncio.sleep(BUSY_LOOK_S)
                case _:
                    assert_never(started)
        raise CallTransient("another delivery of this order has been asking for long", reason="busy")

    async def _cancel_unasked(self, payment: Payment) -> None:
        event = await self._ledger.run(
            requests.cancel_unasked,
            payment.order_id,
            livemode=self._gateway.livemode,
            source=self._event_source,
            now=self._clock(),
        )
        log.info("payment.canceled_before", event_id=event.event_id)

    async def _under_claim(self, payment: Payment, hold: Hold) -> Decided | None:
        """The outcome; None where this attempt is proven to have come to nothing, and the next may start."""
        try:
            if hold.call.state is OperationState.STARTED:
                try:
                    answer, secret = await self._ask(payment, hold)
                    # A crash here leaves the call started; its key brings the same answer again.
                    return await self._record(payment, hold.call, answer, secret)
                except CallUnknown as unknown:
                    if unknown.may_ask_again:
                        raise
                    hold.call = await self._ledger.run(
                        moves.mark_unknown, hold.call, claim=hold.claim, because=unknown.reason, now=self._clock()
                    )
            return await self._settle_unknown(payment, hold)
        except StaleMove:
            return await self.look_up(payment.order_id)
        except BaseException as error:
            # Nothing is recorded: whoever comes next need not wait for this claim to grow old.
            await asyncio.shield(self._release(hold.call, hold.claim, error))
            raise

    async def _settle_unknown(self, payment: Payment, hold: Hold) -> Decided | None:
        operation = hold.call
        self._admission.give_up_trial(hold.turn)  # looking takes long, and tells little of whether Stripe creates
        match await self._evidence.look_for(operation):
            case Found(intent, evidence):
                log.warning("payment.adopted", payment_id=intent.payment_id, **evidence)
                refusal = intent.declined if operation.params.get("confirm") else None
                answer = (
                    answer_of_refusal(payment, refusal, found=evidence)
                    if refusal
                    else answer_of_intent(payment, intent, found=evidence)
                )
                return await self._record(payment, operation, answer, None)
            case Absent(evidence):
                log.warning("payment.absent", attempt=operation.attempt, **evidence)
                await self._ledger.run(
                    moves.end_absent, operation, claim=hold.claim, evidence=evidence, now=self._clock()
                )
                return None

    async def _ask(self, payment: Payment, hold: Hold) -> tuple[Answer, ClientSecret | None]:
        """What Stripe says makes of the payment. Raises what leaves it undecided."""
        try:
            intent, secret = await self._create_intent(hold)
        except CallRefused as refused:
            return answer_of_refusal(payment, refused.refusal), None
        return answer_of_intent(payment, intent), secret

    async def _create_intent(self, hold: Hold) -> tuple[Intent, ClientSecret | None]:
        """Ask with the key and the parameters frozen in the ledger; a few quick tries, in place."""
        since_s = asyncio.get_running_loop().time() - hold.turned_at
        if since_s < 0:
            await asyncio.sleep(-since_s)
        elif since_s > TURN_GOOD_S:  # all who waited for the ledger would go at once
            await self._wait_turn(hold, live=False)
        try:
            return await self._send(hold)
        except (CallTransient, CallUnknown) as error:
            return await self._send_again(hold, error)

    async def _send(self, hold: Hold) -> tuple[Intent, ClientSecret | None]:
        async with self._admission.call():
            hold.call = await self._still_ours_to_send(hold.call, hold.claim)
            return await self._gateway.create_intent(hold.call)

    async def _send_again(self, hold: Hold, error: WorkerError) -> tuple[Intent, ClientSecret | None]:
        """error: what the first try came to; it is raised where no other one may help."""
        tries = AsyncRetrying(
            stop=stop_after_attempt(QUICK_TRIES),
            wait=wait_random_exponential(multiplier=QUICK_WAIT_S, max=QUICK_WAIT_S * 4),
            retry=retry_if_exception(lambda error: _is_worth_a_quick_try(error) and not self._admission.is_away),
            reraise=True,
        )
        async for attempt in tries:
            with attempt:
                if attempt.retry_state.attempt_number == 1:
                    raise error  # that try is over
                try:
                    hold.turn = await self._admission.turn(live=False)
                except StripeAway:
                    raise error from None  # what this order was told itself
                try:
                    return await self._send(hold)
                except (CallTransient, CallUnknown) as again:
                    error = again
                    raise
        raise AssertionError("tenacity ended without an answer or an error")

    async def _still_ours_to_send(self, call: Operation, claim: str) -> Operation:
        """Right before sending: the key must still be good, and the ledger must have the time of this asking.

        Evidence is looked for around those times; a process may have been frozen, or have waited long for its turn.
        Raises CallUnknown for a key past its horizon, StaleMove where another one has taken the call over meanwhile.
        """
        now = self._clock()
        if (now - call.first_asked_at).total_seconds() > self._key_horizon_s:
            raise CallUnknown("the key is past its life", reason="key_expired", may_ask_again=False)
        if (now - call.asks[-1]).total_seconds() > SENT_WITHIN_S:
            return await self._ledger.run(moves.note_asking, call, claim=claim, now=now)
        return call

    async def _record(self, payment: Payment, call: Operation, answer: Answer, secret: ClientSecret | None) -> Decided:
        now = self._clock()
        event = event_of(answer, source=self._event_source, now=now)
        try:
            await self._ledger.run_grouped(record_answers, Recording(payment, answer, call, event, now))
        except StaleMove:
            decided = await self.look_up(payment.order_id)
            _hold_against(decided.payment, answer.payment)
            return decided
        self._metrics.payments.labels(answer.payment.state, payment.currency).inc()
        log.info(
            event.type,
            payment_id=answer.payment.payment_id,
            status=answer.payment.status,
            code=answer.failure.code if answer.failure else None,
            request_id=answer.request_id,
        )
        return Decided(answer.payment, event, secret)

    async def _release(self, operation: Operation, claim: str, error: BaseException) -> None:
        failure = self._failure_of(error)
        try:
            await self._ledger.run(moves.release_claim, operation.order_id, claim=claim, failure=failure)
        except LedgerUnavailable as away:  # we may take it over all the same; others see us alive, and would wait
            log.warning("claim.not_released", error=str(away))
            self._unreleased.append((operation.order_id, claim, failure))

    def _failure_of(self, error: BaseException) -> Mapping[str, Any]:
        return {
            "at": self._clock().isoformat(),
            "reason": getattr(error, "reason", type(error).__name__),
            "error": str(error)[:300],
        }

    async def release_left(self) -> None:
        """Release the claims that the ledger could not be told of at their end. Raises LedgerUnavailable."""
        while self._unreleased:
            order_id, claim, failure = self._unreleased[0]
            await self._ledger.run(moves.release_claim, order_id, claim=claim, failure=failure)
            del self._unreleased[0]

    async def _wait_turn(self, hold: Hold, *, live: bool) -> None:
        hold.turn = await self._admission.turn(live=live)
        hold.turned_at = asyncio.get_running_loop().time()

    @asynccontextmanager
    async def _claiming(self) -> AsyncIterator[Hold]:
        """A claim counts only while its delivery is at work, even where the ledger could not be told of its end."""
        self._claims += 1
        hold = Hold(f"{self._worker_id}/{self._claims}")
        self._live_claims.add(hold.claim)
        try:
            yield hold
        finally:
            self._live_claims.discard(hold.claim)
            if hold.turn is not None:
                self._admission.give_up_trial(hold.turn)


def _hold_against(decided: Payment, late: Payment) -> None:
    """An answer that came after another one was recorded tells of the same intent. Raises SeveralIntents."""
    if late.payment_id and late.payment_id != decided.payment_id:
        raise SeveralIntents(f"{late.order_id}: {late.payment_id} beside {decided.payment_id or decided.state}")


def _is_worth_a_quick_try(error: BaseException) -> bool:
    """A dropped connection or a key in use may be over in a moment; a rate limit is not, and is not hurried."""
    if isinstance(error, CallTransient):
        return error.reason != "rate_limited"
    return isinstance(error, CallUnknown) and error.may_ask_again
