"""The contract: every message that crosses the edges, as pydantic models and as JSON Schema files.

Imports nothing of the worker, so that a downstream service can use it alone.
"""

from schemas.envelope import AmqpProperties, CloudEvent, IncomingEvent, MessageError, read_event
from schemas.money import AmountError, parse_amount, to_major, to_minor
from schemas.order_created import OrderCreated, OrderCreatedData, read_order_created
from schemas.payment_failed import Failure, PaymentFailed, PaymentFailedData
from schemas.payment_intent_created import PaymentIntentCreated, PaymentIntentCreatedData
from schemas.payment_reply import PaymentReply

__all__ = [
    "AmountError",
    "AmqpProperties",
    "CloudEvent",
    "Failure",
    "IncomingEvent",
    "MessageError",
    "OrderCreated",
    "OrderCreatedData",
    "PaymentFailed",
    "PaymentFailedData",
    "PaymentIntentCreated",
    "PaymentIntentCreatedData",
    "PaymentReply",
    "parse_amount",
    "read_event",
    "read_order_created",
    "to_major",
    "to_minor",
]
