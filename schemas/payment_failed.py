"""`payment.failed`: Stripe has said no, and asking again would not help. Goes out."""

from typing import Annotated, Final, Literal

from pydantic import BaseModel, ConfigDict, Field

from schemas.envelope import CloudEvent
from schemas.money import MajorUnits
from schemas.order_created import OrderId

TYPE: Final = "payment.failed"

FailureCategory = Literal["declined", "authentication_required", "invalid_request"]


class Failure(BaseModel):
    """Why. `code` and `decline_code` are Stripe's own and not for a customer's eyes; `message` is."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    category: FailureCategory
    code: str | None = Field(default=None, examples=["card_declined"])
    decline_code: str | None = Field(default=None, examples=["insufficient_funds"])
    message: str = Field(description="Safe to show to the customer.")
    may_retry: bool = Field(description="Whether the same payment method may work later.")


class PaymentFailedData(BaseModel):
    """The payment as far as it is known. After a decline the intent exists and can be confirmed again."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    order_id: OrderId
    payment_id: str | None = Field(default=None, description="Stripe's PaymentIntent id, where one was made.")
    status: str | None = Field(default=None, description="Stripe's status of that intent.")
    amount: MajorUnits
    amount_minor: Annotated[int, Field(gt=0, description="Minor units as Stripe counts them.")]
    currency: Annotated[str, Field(pattern=r"^[a-z]{3}$")]
    livemode: bool | None = None
    sequence: Annotated[int, Field(gt=0, description="Grows per payment: drop one that is not above the last you saw.")]
    cause: str | None = Field(default=None, description="The id of the order event that led to this one.")
    failure: Failure


class PaymentFailed(CloudEvent[PaymentFailedData]):
    """The event, structured."""

    type: Literal["payment.failed"] = "payment.failed"
