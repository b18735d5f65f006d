"""What is asked of a payment that is under way, and what may be done about it. Pure."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Final

from schemas import (
    AmountError,
    CaptureRequestedData,
    Command,
    OrderCancelledData,
    RefundRequestedData,
    parse_amount,
    to_major,
    to_minor,
)
from worker.errors import Refusal
from worker.payment import Operation, Payment
from worker.payment_life import Life
from worker.stripe_event import CAPTURED_FOR, PAYMENT_INTENT, REFUND, StripeEvent


class CommandKind(StrEnum):
    """What is asked for, and the first part of the name of its calls."""

    CANCEL = "cancel"
    CAPTURE = "capture"
    REFUND = "refund"


class RequestState(StrEnum):
    """Where a request stands."""

    REMEMBERED = "remembered"  # a cancel that came before its order
    OPEN = "open"
    DONE = "done"
    REFUSED = "refused"


@dataclass(frozen=True, slots=True)
class Request:
    """A command as kept. asked: what it says, as JSON; amount in the major units as written, None for all.

    cause, correlation_id, traceparent: of the message that brought it.
    """

    order_id: str
    request_id: str
    kind: CommandKind
    asked: Mapping[str, Any]
    cause: str | None
    correlation_id: str | None
    traceparent: str | None


@dataclass(frozen=True, slots=True)
class Refused:
    """It is not done, and never will be under this request. code: one word for programs."""

    code: str
    message: str


@dataclass(frozen=True, slots=True)
class AlreadySo:
    """Nothing is to be asked of Stripe: it is as it was asked to be."""


@dataclass(frozen=True, slots=True)
class ToAsk:
    """Stripe is to be asked, with these parameters."""

    params: Mapping[str, Any]


# By an intent's status: why there is nothing to capture any more.
_CAPTURE_IS_LATE: Final = {"succeeded": "already_captured", "canceled": "canceled"}


def request_of(
    command: Command, *, event_id: str | None, correlation_id: str | None, traceparent: str | None
) -> Request:
    """The request that a command is."""
    match command:
        case OrderCancelledData():
            kind = CommandKind.CANCEL
            asked: dict[str, Any] = {"reason": command.reason, "refund_if_paid": command.refund_if_paid}
        case CaptureRequestedData():
            kind = CommandKind.CAPTURE
            asked = {"amount": _written(command.amount), "currency": command.currency}
        case RefundRequestedData():
            kind = CommandKind.REFUND
            asked = {"amount": _written(command.amount), "currency": command.currency, "reason": command.reason}
    # Only a cancel may have neither; the same words are the same cancel then.
    request_id = command.request_id or event_id or hashlib.sha256(str(sorted(asked.items())).encode()).hexdigest()[:32]
    return Request(command.order_id, request_id, kind, asked, event_id, correlation_id, traceparent)


@dataclass(frozen=True, slots=True)
class Reconsider:
    """What was asked cannot be done any more, and the request wants something else then. code: Stripe's."""

    code: str


def call_name(request: Request, asked: ToAsk) -> str:
    """What a call is kept under among those of its order: each request has its own, a cancel perhaps a refund too."""
    verb = CommandKind.REFUND if _gives_back(asked.params) else request.kind
    return f"{verb}.{_digest(request)}"


def is_call_of(kind: str, request: Request) -> bool:
    """Whether a call was made for the request."""
    return kind.partition(".")[2] == _digest(request)


def _digest(request: Request) -> str:
    return hashlib.sha256(request.request_id.encode()).hexdigest()[:24]


def _gives_back(params: Mapping[str, Any]) -> bool:
    return "payment_intent" in params


def is_done(request: Request, shown: Sequence[StripeEvent]) -> bool:
    """Whether Stripe shows what the request asked for, whoever had the answer."""
    intent = _shown_intent(shown)
    if request.kind is CommandKind.CAPTURE:
        return intent.get("status") == "succeeded" and intent.get("captured_for") == request.request_id
    if request.kind is CommandKind.CANCEL and intent.get("status") == "canceled":
        return True
    return any(each.family == REFUND and each.facts.get("request_id") == request.request_id for each in shown)


def after_refusal(
    request: Request, call: Operation, refusal: Refusal, shown: Sequence[StripeEvent]
) -> Refused | AlreadySo | Reconsider:
    """What Stripe's no comes to. shown: the payment after it, which may be as it is by somebody else's doing."""
    if is_done(request, shown):
        return AlreadySo()
    status = str(_shown_intent(shown).get("status"))
    if request.kind is CommandKind.CANCEL and status == "succeeded" and not _gives_back(call.params):
        if request.asked.get("refund_if_paid"):
            return Reconsider(refusal.code or "refused")
        return _already_paid()
    if request.kind is CommandKind.CAPTURE and status in _CAPTURE_IS_LATE:
        return _nothing_to_capture(status)
    return Refused(refusal.code or "refused", refusal.message or "Stripe has refused it")


def _shown_intent(shown: Sequence[StripeEvent]) -> Mapping[str, Any]:
    return next((each.facts for each in shown if each.family == PAYMENT_INTENT), {})


def decide(request: Request, life: Life, *, promised_minor: int = 0) -> ToAsk | AlreadySo | Refused:
    """What is to be done. promised_minor: of other refunds that were asked of Stripe and are not known there yet."""
    match request.kind:
        case CommandKind.CANCEL:
            return _decide_cancel(request, life, promised_minor)
        case CommandKind.CAPTURE:
            return _decide_capture(request, life)
        case CommandKind.REFUND:
            return _decide_refund(request, life, promised_minor)


def refundable_minor(life: Life, promised_minor: int = 0) -> int:
    """What can still be given back: all that was paid, without what was, or may have been, given back."""
    given = sum(each.amount_minor for each in life.refunds.values() if each.status not in ("failed", "canceled"))
    return max(0, life.received_minor - given - promised_minor)


def _decide_cancel(request: Request, life: Life, promised_minor: int) -> ToAsk | AlreadySo | Refused:
    payment = life.payment
    if payment.status == "canceled":
        return AlreadySo()
    if payment.payment_id is None:
        return Refused("nothing_to_cancel", "no intent was made: the order has failed")
    if payment.status == "succeeded":
        if request.asked.get("refund_if_paid"):
            return _ask_refund(request, life, None, promised_minor)
        return _already_paid()
    reason = request.asked.get("reason")
    return ToAsk({"cancellation_reason": reason} if reason else {})


def _decide_capture(request: Request, life: Life) -> ToAsk | AlreadySo | Refused:
    payment = life.payment
    if payment.status != "requires_capture":
        return _nothing_to_capture(str(payment.status or payment.state))
    asked = _asked_minor(request, payment)
    if isinstance(asked, Refused):
        return asked
    if asked is not None and asked > life.capturable_minor:
        left = to_major(life.capturable_minor, payment.currency)
        return Refused("over_capture", f"more than the {left} {payment.currency.upper()} that are authorized")
    # Names whose capture it was: where the answer is lost, nothing else would tell two of the same amount apart.
    named = {"metadata": {CAPTURED_FOR: request.request_id}}
    return ToAsk(named | ({"amount_to_capture": asked} if asked is not None else {}))


def _nothing_to_capture(status: str) -> Refused:
    code = _CAPTURE_IS_LATE.get(status, "nothing_to_capture")
    return Refused(code, f"there is no authorization to capture: the payment is {status}")


def _already_paid() -> Refused:
    return Refused("already_paid", "the payment has succeeded; ask for a refund to give it back")


def _decide_refund(request: Request, life: Life, promised_minor: int) -> ToAsk | AlreadySo | Refused:
    asked = _asked_minor(request, life.payment)
    return asked if isinstance(asked, Refused) else _ask_refund(request, life, asked, promised_minor)


def _ask_refund(request: Request, life: Life, asked: int | None, promised_minor: int) -> ToAsk | AlreadySo | Refused:
    payment, left = life.payment, refundable_minor(life, promised_minor)
    if any(refund.request_id == request.request_id for refund in life.refunds.values()):
        return AlreadySo()
    if payment.payment_id is None or life.received_minor == 0:
        return Refused("nothing_paid", f"nothing was paid: the payment is {payment.status or payment.state}")
    if left == 0 or (asked is not None and asked > left):
        told = f"{to_major(left, payment.currency)} {payment.currency.upper()}"
        return Refused("over_refund", f"more than is left to give back, which is {told}")
    reason = request.asked.get("reason")
    return ToAsk(
        {
            "payment_intent": payment.payment_id,
            "amount": left if asked is None else asked,
            "metadata": {"order_id": payment.order_id, "request_id": request.request_id},
            **({"reason": reason} if reason and reason != "abandoned" else {}),
        }
    )


def _asked_minor(request: Request, payment: Payment) -> int | Refused | None:
    """None for all of it."""
    currency, amount = request.asked.get("currency"), request.asked.get("amount")
    if currency and currency != payment.currency:
        return Refused("wrong_currency", f"the payment is in {payment.currency.upper()}")
    if amount is None:
        return None
    try:
        return to_minor(parse_amount(amount), payment.currency)
    except AmountError as error:
        return Refused("wrong_amount", str(error))


def _written(amount: Any) -> str | None:
    return None if amount is None else f"{amount:f}"
