"""`payment.intent_created`: Stripe has a PaymentIntent for the order. Goes out."""

from typing import Annotated, Literal

from pydantic import Field

from schemas.envelope import CloudEvent
from schemas.payment_snapshot import PaymentSummary


class PaymentIntentCreatedData(PaymentSummary):
    """The payment as it is. The client secret is in no event: ask for a reply on the order instead."""

    payment_id: Annotated[str, Field(description="Stripe's PaymentIntent id.", examples=["pi_123"])]
    status: Annotated[str, Field(description="Stripe's status; an open set.", examples=["requires_payment_method"])]
    livemode: bool


class PaymentIntentCreated(CloudEvent[PaymentIntentCreatedData]):
    """Stripe has a PaymentIntent for the order."""

    type: Literal["payment.intent_created"] = "payment.intent_created"
