"""What becomes of a capture, whoever asked for it. Goes out."""

from typing import Literal

from pydantic import Field

from schemas.command_answer import CommandFailure, ToldRequestId
from schemas.envelope import CloudEvent
from schemas.money import MajorUnits, PositiveMinorUnits
from schemas.payment_snapshot import PaymentSnapshot


class PaymentCapturedData(PaymentSnapshot):
    """The payment, and what this capture took of it."""

    request_id: ToldRequestId | None = Field(default=None)
    captured: MajorUnits = Field(description="What this capture took; Stripe releases the rest.")
    captured_minor: PositiveMinorUnits


class PaymentCaptured(CloudEvent[PaymentCapturedData]):
    """Money that was authorized has been taken."""

    type: Literal["payment.captured"] = "payment.captured"


class PaymentCaptureFailedData(PaymentSnapshot):
    """The payment, and why nothing was taken."""

    request_id: ToldRequestId
    failure: CommandFailure


class PaymentCaptureFailed(CloudEvent[PaymentCaptureFailedData]):
    """The answer to a `payment.capture_requested` that could not be carried out."""

    type: Literal["payment.capture_failed"] = "payment.capture_failed"
