"""What a payment is and how it may move. Pure: no clock, no I/O, no vendor."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from enum import StrEnum
from typing import Any, Final

from schemas import (
    Failure,
    OrderCreatedData,
    PaymentFailed,
    PaymentFailedData,
    PaymentIntentCreated,
    PaymentIntentCreatedData,
    to_major,
)
from worker.errors import Refusal

CREATE_INTENT: Final = "create_intent"


class PaymentState(StrEnum):
    """A fact about a payment; it never goes backwards."""

    OPEN = "open"  # nothing is known of Stripe yet
    INTENT_CREATED = "intent_created"
    FAILED = "failed"  # Stripe has said no, or a cancel came before it was asked


class OperationState(StrEnum):
    """A fact about one call to Stripe under one key."""

    STARTED = "started"  # Stripe may have been asked, and may be asked again under the same key
    UNKNOWN = "unknown"  # asking again cannot tell any more: left only on evidence
    ANSWERED = "answered"
    REFUSED = "refused"
    ABSENT = "absent"  # proven never to have come to anything: another attempt may follow, under another key


_MOVES: Final[dict[PaymentState, frozenset[PaymentState]]] = {
    PaymentState.OPEN: frozenset({PaymentState.INTENT_CREATED, PaymentState.FAILED}),
    PaymentState.INTENT_CREATED: frozenset(),
    PaymentState.FAILED: frozenset(),
}


def may_move(before: PaymentState, after: PaymentState) -> bool:
    """Whether a payment may go from one state to the other."""
    return after in _MOVES[before]


@dataclass(frozen=True, slots=True)
class Payment:
    """One order's payment as the ledger has it."""

    order_id: str
    state: PaymentState
    amount_minor: int
    currency: str
    customer_id: str | None
    stripe_account: str | None
    payment_id: str | None
    status: str | None
    livemode: bool | None
    sequence: int
    cause: str | None = None
    correlation_id: str | None = None
    traceparent: str | None = None

    @property
    def is_decided(self) -> bool:
        """Whether the outcome of the order is known, so that telling it again is all there is to do."""
        return self.state is not PaymentState.OPEN


@dataclass(frozen=True, slots=True)
class Operation:
    """One call to Stripe: its key and the exact parameters, frozen before it was first sent.

    asks: when it may have been asked, oldest first. unknown_because: why asking again cannot tell, where it cannot.
    livemode: of the key it was asked with; Stripe keeps the two modes' idempotency keys apart.
    """

    order_id: str
    kind: str
    attempt: int
    idempotency_key: str
    params: Mapping[str, Any]
    stripe_account: str | None
    first_asked_at: datetime
    state: OperationState = OperationState.STARTED
    asks: tuple[datetime, ...] = ()
    unknown_because: str | None = None
    livemode: bool | None = None


@dataclass(frozen=True, slots=True)
class Intent:
    """A PaymentIntent as Stripe answered it. It never holds the client secret.

    declined: what its last confirmation was refused with, while it waits for another payment method.
    """

    payment_id: str
    status: str
    amount_minor: int
    currency: str
    livemode: bool
    order_id: str | None
    request_id: str | None = None
    declined: Refusal | None = None


@dataclass(frozen=True, slots=True)
class PaymentEvent:
    """An event as it goes out: the body is fixed when the outcome is recorded and never made again."""

    event_id: str
    order_id: str
    sequence: int
    type: str
    body: str
    correlation_id: str | None
    traceparent: str | None


def conflict_with(payment: Payment, order: OrderCreatedData) -> dict[str, tuple[object, object]]:
    """What the order says otherwise than the payment opened under its id: {field: (ledger, order)}.

    Amount, currency, payer and account are what was agreed; anything else may differ between copies.
    """
    pairs: dict[str, tuple[object, object]] = {
        "amount": (
            to_major(payment.amount_minor, payment.currency),
            to_major(order.amount_minor, order.currency),
        ),
        "currency": (payment.currency, order.currency),
        "customer_id": (payment.customer_id, order.customer_id),
        "stripe_account": (payment.stripe_account, order.stripe_account),
    }
    return {name: pair for name, pair in pairs.items() if pair[0] != pair[1]}


def idempotency_key(order_id: str, kind: str, attempt: int) -> str:
    """The key Stripe knows the call by. Made of stable identity only; under 255 characters, no private data.

    Source: https://docs.stripe.com/api/idempotent_requests.
    """
    return f"payment-worker:{order_id}:{kind}:{attempt}"


def intent_params(order: OrderCreatedData) -> dict[str, Any]:
    """The parameters of the PaymentIntent that the order asks for, as `POST /v1/payment_intents` takes them."""
    params: dict[str, Any] = {
        "amount": order.amount_minor,
        "currency": order.currency,
        "metadata": {**order.metadata, "order_id": order.order_id},
        "automatic_payment_methods": {"enabled": True},
    }
    optional = {
        "customer": order.customer_id,
        "payment_method": order.payment_method,
        "capture_method": order.capture_method,
        "receipt_email": order.receipt_email,
        "description": order.description,
        "statement_descriptor_suffix": order.statement_descriptor_suffix,
        "setup_future_usage": order.setup_future_usage,
        "shipping": order.shipping.model_dump(exclude_none=True) if order.shipping else None,
    }
    params.update({name: value for name, value in optional.items() if value is not None})
    if order.confirm:
        # Nobody is here to follow a redirect: methods that need one are left out rather than refused by Stripe.
        params |= {"confirm": True, "automatic_payment_methods": {"enabled": True, "allow_redirects": "never"}}
    if order.off_session:
        params["off_session"] = True
    return params


@dataclass(frozen=True, slots=True)
class Answer:
    """What Stripe's answer makes of a payment, ready to be recorded in one transaction."""

    payment: Payment
    ends: OperationState
    request_id: str | None
    evidence: Mapping[str, Any]
    failure: Failure | None = None


def answer_of_intent(payment: Payment, intent: Intent, *, found: Mapping[str, Any] | None = None) -> Answer:
    """Stripe has the intent. found: how it was found, where it was not answered."""
    after = replace(
        payment,
        state=PaymentState.INTENT_CREATED,
        payment_id=intent.payment_id,
        status=intent.status,
        livemode=intent.livemode,
        sequence=payment.sequence + 1,
    )
    evidence = {"payment_id": intent.payment_id, "status": intent.status, **(found or {})}
    return Answer(after, OperationState.ANSWERED, intent.request_id, evidence)


def answer_of_refusal(payment: Payment, refusal: Refusal, *, found: Mapping[str, Any] | None = None) -> Answer:
    """Stripe has said no; after a decline the intent exists all the same. found: as in answer_of_intent."""
    after = replace(
        payment,
        state=PaymentState.FAILED,
        payment_id=refusal.payment_id,
        status=refusal.payment_status,
        livemode=refusal.livemode,
        sequence=payment.sequence + 1,
    )
    evidence = {
        "http_status": refusal.http_status,
        "code": refusal.code,
        "decline_code": refusal.decline_code,
        "message": refusal.message,
        **(found or {}),
    }
    return Answer(after, OperationState.REFUSED, refusal.request_id, evidence, failure_of(refusal))


def event_of(answer: Answer, *, source: str, now: datetime) -> PaymentEvent:
    """The event that tells an answer. Its id is made of the order and the sequence alone."""
    payment = answer.payment
    known: dict[str, Any] = {
        "order_id": payment.order_id,
        "payment_id": payment.payment_id,
        "status": payment.status,
        "amount": to_major(payment.amount_minor, payment.currency),
        "amount_minor": payment.amount_minor,
        "currency": payment.currency,
        "livemode": payment.livemode,
        "sequence": payment.sequence,
        "cause": payment.cause,
    }
    envelope: dict[str, Any] = {
        "id": event_id(payment.order_id, payment.sequence),
        "source": source,
        "subject": payment.order_id,
        "time": now,
        "traceparent": payment.traceparent,
    }
    event: PaymentFailed | PaymentIntentCreated
    if answer.failure:
        event = PaymentFailed(**envelope, data=PaymentFailedData(**known, failure=answer.failure))
    else:
        event = PaymentIntentCreated(**envelope, data=PaymentIntentCreatedData(**known))
    return PaymentEvent(
        event_id=event.id,
        order_id=payment.order_id,
        sequence=payment.sequence,
        type=event.type,
        body=event.model_dump_json(exclude_none=True),
        correlation_id=payment.correlation_id,
        traceparent=payment.traceparent,
    )


def event_id(order_id: str, sequence: int) -> str:
    """The id of a payment's n-th event: the same outcome told again, by whom and when ever, has the same."""
    return f"{order_id}/payment/{sequence}"


# The card's issuer asks that these are not told to the person at the till: it may be the thief.
# Source: https://docs.stripe.com/declines/codes.
_HIDDEN_DECLINES: Final = frozenset(
    {"fraudulent", "lost_card", "stolen_card", "merchant_blacklist", "pickup_card", "restricted_card"}
)
_PASSING_DECLINES: Final = frozenset(
    {"approve_with_id", "issuer_not_available", "processing_error", "reenter_transaction", "try_again_later"}
)
_CUSTOMER_TEXTS: Final = {
    "amount_too_small": "The amount is below the minimum that can be paid in this currency.",
    "amount_too_large": "The amount is above the maximum that can be paid in this currency.",
    "authentication_required": "Your bank wants you to confirm this payment. Please come back and try again.",
    "expired_card": "Your card has expired.",
    "incorrect_cvc": "Your card's security code is incorrect.",
    "incorrect_number": "Your card number is incorrect.",
    "insufficient_funds": "Your card has insufficient funds.",
    "processing_error": "An error occurred while processing your card. Please try again in a little while.",
}


def failure_of(refusal: Refusal) -> Failure:
    """What an order service is told of Stripe's no; `message` is ours, since Stripe's is for developers."""
    is_decline = refusal.http_status == 402
    is_hidden = refusal.decline_code in _HIDDEN_DECLINES
    known = _CUSTOMER_TEXTS.get(refusal.decline_code or "") or _CUSTOMER_TEXTS.get(refusal.code or "")
    fallback = "Your card was declined." if is_decline else "The payment could not be started. Please contact the shop."
    needs_customer = "authentication_required" in (refusal.code, refusal.decline_code)
    passing = refusal.decline_code in _PASSING_DECLINES or refusal.code == "processing_error"
    return Failure(
        category=("authentication_required" if needs_customer else "declined") if is_decline else "invalid_request",
        code=refusal.code,
        decline_code=refusal.decline_code,
        message=fallback if is_hidden or known is None else known,
        may_retry=is_decline
        and refusal.advice_code != "do_not_try_again"
        and (passing or refusal.advice_code in ("try_again_later", "confirm_card_data")),
    )


# Of a dead letter; an import may bring ids of another making.
LETTER_ID: Final = r"dl_[A-Za-z0-9_.:-]{1,37}"


def dead_letter_id(body: bytes, identity: Mapping[str, Any]) -> str:
    """The same message that fails again is the same letter: the id is made of the message alone."""
    named = json.dumps(identity, sort_keys=True, default=str).encode()
    return "dl_" + hashlib.sha256(len(named).to_bytes(8) + named + body).hexdigest()[:20]
