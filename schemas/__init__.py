"""The contract: every message that crosses the edges, as pydantic models and as JSON Schema files.

`type` and CloudEvents `time` of a payment event say what happened, and when at Stripe; `data` says how the payment
stands now, so that an event told late misleads nobody who compares `sequence`.

Imports nothing of the worker, so that a downstream service can use it alone.
"""

from schemas.cancels import PaymentCanceled, PaymentCanceledData, PaymentCancelFailed, PaymentCancelFailedData
from schemas.captures import PaymentCaptured, PaymentCapturedData, PaymentCaptureFailed, PaymentCaptureFailedData
from schemas.command_answer import CommandFailure
from schemas.commands import (
    COMMAND_TYPES,
    CaptureRequested,
    CaptureRequestedData,
    Command,
    OrderCancelled,
    OrderCancelledData,
    RefundRequested,
    RefundRequestedData,
    is_command,
    read_command,
    request_id_of,
)
from schemas.disputes import Dispute, PaymentDisputeClosed, PaymentDisputeData, PaymentDisputeOpened
from schemas.envelope import AmqpProperties, CloudEvent, IncomingEvent, MessageError, read_event
from schemas.money import AmountError, in_both_units, parse_amount, to_major, to_minor
from schemas.order_created import OrderCreated, OrderCreatedData, read_order_created
from schemas.payment_events import EVENT_MODELS, AnyPaymentEvent, read_payment_event
from schemas.payment_failed import Failure, PaymentFailed, PaymentFailedData
from schemas.payment_intent_created import PaymentIntentCreated, PaymentIntentCreatedData
from schemas.payment_life import (
    PaymentAttemptFailed,
    PaymentAttemptFailedData,
    PaymentAuthorizationExpiring,
    PaymentAuthorizationExpiringData,
    PaymentAuthorized,
    PaymentAuthorizedData,
    PaymentProcessing,
    PaymentRequiresAction,
    PaymentRequiresActionData,
    PaymentSettled,
    PaymentSettledData,
    PaymentSucceeded,
)
from schemas.payment_reply import PaymentReply
from schemas.payment_snapshot import PaymentSnapshot, PaymentSummary
from schemas.refunds import (
    PaymentRefunded,
    PaymentRefundedData,
    PaymentRefundFailed,
    PaymentRefundFailedData,
    Refund,
    RefundFailed,
    RefundFailedData,
)

__all__ = [
    "COMMAND_TYPES",
    "EVENT_MODELS",
    "AmountError",
    "AmqpProperties",
    "AnyPaymentEvent",
    "CaptureRequested",
    "CaptureRequestedData",
    "CloudEvent",
    "Command",
    "CommandFailure",
    "Dispute",
    "Failure",
    "IncomingEvent",
    "MessageError",
    "OrderCancelled",
    "OrderCancelledData",
    "OrderCreated",
    "OrderCreatedData",
    "PaymentAttemptFailed",
    "PaymentAttemptFailedData",
    "PaymentAuthorizationExpiring",
    "PaymentAuthorizationExpiringData",
    "PaymentAuthorized",
    "PaymentAuthorizedData",
    "PaymentCancelFailed",
    "PaymentCancelFailedData",
    "PaymentCanceled",
    "PaymentCanceledData",
    "PaymentCaptureFailed",
    "PaymentCaptureFailedData",
    "PaymentCaptured",
    "PaymentCapturedData",
    "PaymentDisputeClosed",
    "PaymentDisputeData",
    "PaymentDisputeOpened",
    "PaymentFailed",
    "PaymentFailedData",
    "PaymentIntentCreated",
    "PaymentIntentCreatedData",
    "PaymentProcessing",
    "PaymentRefundFailed",
    "PaymentRefundFailedData",
    "PaymentRefunded",
    "PaymentRefundedData",
    "PaymentReply",
    "PaymentRequiresAction",
    "PaymentRequiresActionData",
    "PaymentSettled",
    "PaymentSettledData",
    "PaymentSnapshot",
    "PaymentSucceeded",
    "PaymentSummary",
    "Refund",
    "RefundFailed",
    "RefundFailedData",
    "RefundRequested",
    "RefundRequestedData",
    "in_both_units",
    "is_command",
    "parse_amount",
    "read_command",
    "read_event",
    "read_order_created",
    "read_payment_event",
    "request_id_of",
    "to_major",
    "to_minor",
]
