"""A customer's bank takes a payment back, until it is decided whose the money is. Goes out.

Source: https://docs.stripe.com/disputes/how-disputes-work.
"""

from typing import Literal

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field

from schemas.envelope import CloudEvent
from schemas.money import CurrencyCode, MajorUnits, PositiveMinorUnits
from schemas.payment_snapshot import PaymentSnapshot


class Dispute(BaseModel):
    """One dispute; its currency may be another than the payment's."""

    model_config = ConfigDict(defer_build=True, frozen=True, extra="ignore")

    dispute_id: str = Field(min_length=1, description="Stripe's Dispute id.", examples=["du_123"])
    amount: MajorUnits
    amount_minor: PositiveMinorUnits
    currency: CurrencyCode
    reason: str = Field(min_length=1, description="Stripe's `reason`; an open set.", examples=["fraudulent"])
    status: str = Field(min_length=1, description="Stripe's status; an open set.", examples=["needs_response"])
    evidence_due_by: AwareDatetime | None = Field(
        default=None, description="When the last evidence is taken; none where none is wanted."
    )


class PaymentDisputeData(PaymentSnapshot):
    """The payment, and the dispute as it stands. A payment may have several."""

    dispute: Dispute


class PaymentDisputeOpened(CloudEvent[PaymentDisputeData]):
    """The customer disputes the payment at the bank."""

    type: Literal["payment.dispute_opened"] = "payment.dispute_opened"


class PaymentDisputeClosed(CloudEvent[PaymentDisputeData]):
    """The dispute is decided: its status says for whom."""

    type: Literal["payment.dispute_closed"] = "payment.dispute_closed"
