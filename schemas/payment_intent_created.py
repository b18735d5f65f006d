"""`payment.intent_created`: Stripe has a PaymentIntent for the order. Goes out."""

from typing import Annotated, Final, Literal

from pydantic import BaseModel, ConfigDict, Field

from schemas.envelope import CloudEvent
from schemas.money import MajorUnits
from schemas.order_created import OrderId

TYPE: Final = "payment.intent_created"


class PaymentIntentCreatedData(BaseModel):
    """The payment as it is. The client secret is in no event: ask for a reply on the order instead."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    order_id: OrderId
    payment_id: Annotated[str, Field(description="Stripe's PaymentIntent id.", examples=["pi_123"])]
    status: Annotated[str, Field(description="Stripe's status; an open set.", examples=["requires_payment_method"])]
    amount: MajorUnits
    amount_minor: Annotated[int, Field(gt=0, description="Minor units as Stripe counts them.")]
    currency: Annotated[str, Field(pattern=r"^[a-z]{3}$")]
    livemode: bool
    sequence: Annotated[int, Field(gt=0, description="Grows per payment: drop one that is not above the last you saw.")]
    cause: str | None = Field(default=None, description="The id of the order event that led to this one.")


class PaymentIntentCreated(CloudEvent[PaymentIntentCreatedData]):
    """The event, structured."""

    type: Literal["payment.intent_created"] = "payment.intent_created"
