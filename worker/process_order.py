"""The spine: one order event, from the queue to its outcome. What decides the payment is in decide_payment.py.

Nothing is acknowledged before all of it is done, so the broker redelivers whatever a crash has cut.
"""

import asyncio
from collections.abc import Callable
from dataclasses import replace
from datetime import datetime
from typing import Final, assert_never

import structlog

from schemas import IncomingEvent, MessageError, OrderCreatedData, is_command
from worker.admission import Admission
from worker.bus.delivery import Delivery
from worker.bus.outgoing import Outgoing
from worker.carry_out_command import CommandDoer
from worker.decide_payment import Order, PaymentDecider
from worker.errors import (
    AccountRefused,
    AnswerMismatch,
    BusUnavailable,
    CallSystemic,
    CallTransient,
    CallUnknown,
    IntentMissing,
    LedgerRefused,
    LedgerUnavailable,
    ModeMismatch,
    OrderConflict,
    ParametersRefused,
    RightMissing,
    SeveralIntents,
    SoonOver,
    Stopping,
    StripeAway,
)
from worker.ledger import letters, requests
from worker.ledger.ledger import Ledger
from worker.outcome import DeadLetter, Done, GiveBack, Outcome, Retry
from worker.publish_events import EventRelay
from worker.read_order import CardDataFound, order_id_of, read_command_message, read_order_message
from worker.reply_to_order import Replies
from worker.retry_policy import rung_after, wait_after

log: Final = structlog.get_logger()

# Ten times an order with everything in it.
LARGE_BODY_BYTES: Final = 16 * 1024


class OrderProcessor:
    """Processes deliveries, many side by side."""

    def __init__(
        self,
        *,
        ledger: Ledger,
        decider: PaymentDecider,
        admission: Admission,
        outgoing: Outgoing,
        relay: EventRelay,
        replies: Replies,
        commands: CommandDoer,
        clock: Callable[[], datetime],
    ) -> None:
        self._ledger = ledger
        self._decider = decider
        self._admission = admission
        self._outgoing = outgoing
        self._relay = relay
        self._replies = replies
        self._commands = commands
        self._clock = clock

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
            outcome = self._outcome_of(error, delivery)
        await self._settle(delivery, outcome)
        return outcome

    async def _carry_out(self, delivery: Delivery) -> None:
        if is_command(delivery.body, delivery.properties):
            command_event, command = read_command_message(delivery)
            structlog.contextvars.bind_contextvars(order_id=command.order_id)
            await self._commands.carry_out(command_event, command, delivery)
            return
        event, order = await _read(delivery)
        structlog.contextvars.bind_contextvars(order_id=order.order_id)
        decided = await self._decider.decide_order(
            Order(order, event.id, delivery.properties.correlation_id, event.traceparent),
            live=delivery.deliveries == 1 and not delivery.replays,
        )
        await self._relay.tell(decided.event)
        await self._replies.answer(delivery, decided.payment, decided.secret)

    async def _settle(self, delivery: Delivery, outcome: Outcome) -> None:
        """The only place where a delivery ends. What is handed on is confirmed before it is acknowledged."""
        match outcome:
            case Done():
                if delivery.replays:
                    await self._ledger.run(letters.resolve, delivery.replays, body=delivery.body, now=self._clock())
                delivery.ack()
            case Retry(reason, error, delay_s, counts):
                log.warning("order.retried", reason=reason, error=error, delay_s=delay_s, attempt=delivery.deliveries)
                failure = f"{self._clock().isoformat()} {reason}: {error}"
                counted = delivery if counts else replace(delivery, deliveries=delivery.deliveries - 1)
                await self._outgoing.retry(counted, delay_s=delay_s, failure=failure)
                delivery.ack()
            case DeadLetter(reason, error, order_id):
                log.warning("order.dead_lettered", reason=reason, error=error, letter_id=delivery.letter_id)
                await self._outgoing.dead_letter(
                    delivery, reason=reason, error=error, order_id=order_id, now=self._clock()
                )
                await self._replies.answer_dead_lettered(delivery, order_id)
                delivery.ack()
            case GiveBack(reason):
                # Left unsettled: the consumer now closes this subscription, and all it holds goes back in order,
                # counted by the broker once. A nack would bring it again at once, and again, until the close.
                log.info("order.given_back", reason=reason)
            case _:
                assert_never(outcome)

    def _outcome_of(self, error: Exception, delivery: Delivery) -> Outcome:
        """How a delivery ends that was not carried out."""
        if letter := _DEAD_LETTERS.get(type(error)):
            return DeadLetter(letter, str(error), order_id_of(delivery))
        if self._admission.is_outage(error):
            return GiveBack(f"StripeAway: {error}")
        match error:
            case CallSystemic() | StripeAway() | LedgerUnavailable() | BusUnavailable() | Stopping():
                return GiveBack(f"{type(error).__name__}: {error}")
            case CallTransient() | CallUnknown():
                reason = error.reason
            case _:
                log.error("order.bug", exc_info=error)
                reason = "bug"
        age_s, waits = (self._clock() - delivery.first_seen).total_seconds(), isinstance(error, SoonOver)
        tries = len(delivery.history) + 1
        delay_s = wait_after(tries, age_s=age_s) if waits else rung_after(delivery.deliveries, age_s=age_s)
        if delay_s is None:
            return DeadLetter("retries_exhausted", f"{reason}: {error}", order_id_of(delivery))
        return Retry(reason, str(error), delay_s, counts=not waits)


async def _read(delivery: Delivery) -> tuple[IncomingEvent, OrderCreatedData]:
    """See read_order_message. A body made for it keeps the card search busy for a second: beside the loop, then."""
    if len(delivery.body) > LARGE_BODY_BYTES:
        return await asyncio.to_thread(read_order_message, delivery)
    return read_order_message(delivery)


# The message or its order is at fault, or a person must look: trying again would bring the same.
_DEAD_LETTERS: Final[dict[type[Exception], str]] = {
    MessageError: "bad_message",
    CardDataFound: "card_data",
    OrderConflict: "conflict",
    requests.OtherRequest: "conflict",
    ParametersRefused: "bad_parameters",
    AnswerMismatch: "answer_mismatch",
    SeveralIntents: "several_intents",
    ModeMismatch: "mode_mismatch",
    AccountRefused: "account_refused",
    RightMissing: "right_missing",
    IntentMissing: "intent_missing",
    LedgerRefused: "ledger_refused",
}
