"""`payment.failed`: Stripe has said no, and asking again would not help. Goes out."""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from schemas.envelope import CloudEvent
from schemas.payment_snapshot import PaymentSummary

FailureCategory = Literal["declined", "authentication_required", "invalid_request"]


class Failure(BaseModel):
    """Why. `code` and `decline_code` are Stripe's own and not for a customer's eyes; `message` is."""

    model_config = ConfigDict(defer_build=True, frozen=True, extra="ignore")

    category: FailureCategory
    code: str | None = Field(default=None, examples=["card_declined"])
    decline_code: str | None = Field(default=None, examples=["insufficient_funds"])
    message: str = Field(description="Safe to show to the customer.")
    may_retry: bool = Field(description="Whether the same payment method may work later.")


class PaymentFailedData(PaymentSummary):
    """The payment as far as it is known. After a decline the intent exists and can be confirmed again."""

    failure: Failure


class PaymentFailed(CloudEvent[PaymentFailedData]):
    """Stripe has said no, and asking again would not help."""

    type: Literal["payment.failed"] = "payment.failed"
