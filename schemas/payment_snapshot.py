"""What every payment event says of the payment itself.

`type` and CloudEvents `time` say what happened, and when at Stripe; `data` says how the payment stands now, so that an
event told late misleads nobody who compares `sequence`.
"""

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

from schemas.money import CurrencyCode, MajorUnits, MinorUnits, PositiveMinorUnits
from schemas.order_created import OrderId


class PaymentSummary(BaseModel):
    """The payment as far as it is known."""

    model_config = ConfigDict(defer_build=True, frozen=True, extra="ignore")

    order_id: OrderId
    payment_id: str | None = Field(default=None, description="Stripe's PaymentIntent id, where one was made.")
    status: str | None = Field(default=None, description="Stripe's status of that intent.")
    amount: MajorUnits
    amount_minor: PositiveMinorUnits
    currency: CurrencyCode
    livemode: bool | None = None
    sequence: Annotated[int, Field(gt=0, description="Grows per payment: drop one that is not above the last you saw.")]
    cause: str | None = Field(
        default=None, description="The id of the order event, the command or Stripe's event that led to this one."
    )


class PaymentSnapshot(PaymentSummary):
    """The payment as it stands when the event is told, with all that has moved so far.

    A status is Stripe's, or `canceled` where the order was cancelled before Stripe was asked.
    """

    amount_capturable: MajorUnits = Field(description="Authorized and not captured yet.")
    amount_capturable_minor: MinorUnits
    amount_received: MajorUnits = Field(description="Captured, before refunds, disputes and fees.")
    amount_received_minor: MinorUnits
    amount_refunded: MajorUnits = Field(description="Of what was received: given back, or on its way back.")
    amount_refunded_minor: MinorUnits
    amount_disputed: MajorUnits = Field(description="Of what was received: in disputes that are open or lost.")
    amount_disputed_minor: MinorUnits
