"""What becomes of a refund, whoever asked for it. Goes out.

Source: https://docs.stripe.com/refunds; a refund that Stripe took may fail weeks later.
"""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from schemas.command_answer import CommandFailure, ToldRequestId
from schemas.envelope import CloudEvent
from schemas.money import MajorUnits, MinorUnits, PositiveMinorUnits
from schemas.payment_snapshot import PaymentSnapshot


class Refund(BaseModel):
    """One refund, in the payment's currency."""

    model_config = ConfigDict(defer_build=True, frozen=True, extra="ignore")

    refund_id: str = Field(min_length=1, description="Stripe's Refund id.", examples=["re_123"])
    request_id: ToldRequestId | None = Field(default=None)
    amount: MajorUnits
    amount_minor: PositiveMinorUnits
    status: str = Field(min_length=1, description="Stripe's status; an open set.", examples=["succeeded"])
    reason: str | None = Field(
        default=None, description="Stripe's `reason`; an open set.", examples=["requested_by_customer"]
    )


class PaymentRefundedData(PaymentSnapshot):
    """The payment, and the refund that was made."""

    refund: Refund
    fully_refunded: bool = Field(description="Whether all that was received has been refunded.")


class PaymentRefunded(CloudEvent[PaymentRefundedData]):
    """Stripe gives money back to the customer. It may fail yet: see `payment.refund_failed`."""

    type: Literal["payment.refunded"] = "payment.refunded"


class PaymentRefundFailedData(PaymentSnapshot):
    """The payment, and the refund that failed; `amount_refunded` no longer counts it."""

    refund: Refund
    failure_reason: str | None = Field(
        default=None, description="Stripe's `failure_reason`; an open set.", examples=["expired_or_canceled_card"]
    )


class PaymentRefundFailed(CloudEvent[PaymentRefundFailedData]):
    """A refund that Stripe took has failed later: the customer's bank did not take the money."""

    type: Literal["payment.refund_failed"] = "payment.refund_failed"


class RefundFailedData(PaymentSnapshot):
    """The payment, why nothing was refunded, and how much could be."""

    request_id: ToldRequestId
    failure: CommandFailure
    amount_refundable: MajorUnits = Field(description="What is left to refund.")
    amount_refundable_minor: MinorUnits


class RefundFailed(CloudEvent[RefundFailedData]):
    """The answer to a `refund.requested` that was refused: no refund was made."""

    type: Literal["refund.failed"] = "refund.failed"
