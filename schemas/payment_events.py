"""Every payment event, for a subscriber who reads them all with one call."""

from collections.abc import Mapping
from typing import Final, TypeAlias, get_args

from pydantic import ValidationError

from schemas.cancels import PaymentCanceled, PaymentCancelFailed
from schemas.captures import PaymentCaptured, PaymentCaptureFailed
from schemas.disputes import PaymentDisputeClosed, PaymentDisputeOpened
from schemas.envelope import MessageError, read_json_object
from schemas.payment_failed import PaymentFailed
from schemas.payment_intent_created import PaymentIntentCreated
from schemas.payment_life import (
    PaymentAttemptFailed,
    PaymentAuthorizationExpiring,
    PaymentAuthorized,
    PaymentProcessing,
    PaymentRequiresAction,
    PaymentSettled,
    PaymentSucceeded,
)
from schemas.refunds import PaymentRefunded, PaymentRefundFailed, RefundFailed

AnyPaymentEvent: TypeAlias = (
    PaymentIntentCreated
    | PaymentFailed
    | PaymentRequiresAction
    | PaymentProcessing
    | PaymentAuthorized
    | PaymentAuthorizationExpiring
    | PaymentSucceeded
    | PaymentAttemptFailed
    | PaymentSettled
    | PaymentCanceled
    | PaymentCancelFailed
    | PaymentCaptured
    | PaymentCaptureFailed
    | PaymentRefunded
    | PaymentRefundFailed
    | RefundFailed
    | PaymentDisputeOpened
    | PaymentDisputeClosed
)

EVENT_MODELS: Final[Mapping[str, type[AnyPaymentEvent]]] = {
    model.model_fields["type"].default: model for model in get_args(AnyPaymentEvent)
}


def read_payment_event(body: bytes) -> AnyPaymentEvent:
    """A structured payment event as the model of its type; the union lets a subscriber `match` on it.

    Raises MessageError naming every field that is wrong, `type` where it is none of EVENT_MODELS.
    """
    kind = read_json_object(body).get("type")
    model = EVENT_MODELS.get(kind) if isinstance(kind, str) else None
    if model is None:
        told = f"is {kind[:60]!r}" if isinstance(kind, str) else "is missing or no string"
        raise MessageError(("type", f"{told}; this contract has no such payment event"))
    try:
        # From the text, not from the decoded value: a Decimal such as 1e999999999 takes an age to become an int.
        return model.model_validate_json(body)
    except ValidationError as error:
        raise MessageError.of(error) from None
