"""What becomes of a cancel, whoever asked for it. Goes out."""

from typing import Literal

from pydantic import Field

from schemas.command_answer import CommandFailure, ToldRequestId
from schemas.envelope import CloudEvent
from schemas.payment_snapshot import PaymentSnapshot


class PaymentCanceledData(PaymentSnapshot):
    """The payment, and why it ended."""

    reason: str | None = Field(
        default=None, description="Stripe's `cancellation_reason`; an open set.", examples=["requested_by_customer"]
    )
    request_id: ToldRequestId | None = Field(default=None)


class PaymentCanceled(CloudEvent[PaymentCanceledData]):
    """The payment has ended unpaid, or with only a part of it captured; what was held is released."""

    type: Literal["payment.canceled"] = "payment.canceled"


class PaymentCancelFailedData(PaymentSnapshot):
    """The payment, and why it goes on."""

    request_id: ToldRequestId | None = Field(default=None)
    failure: CommandFailure


class PaymentCancelFailed(CloudEvent[PaymentCancelFailedData]):
    """The answer to an `order.cancelled` that could not be carried out, for example because the order is paid."""

    type: Literal["payment.cancel_failed"] = "payment.cancel_failed"
