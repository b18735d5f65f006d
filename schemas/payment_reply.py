"""The private answer to an order event that set `reply_to`. The only message that holds the client secret."""

from pydantic import BaseModel, ConfigDict, Field

from schemas.order_created import OrderId


class PaymentReply(BaseModel):
    """The private answer to an order event that set `reply_to`: a plain object, no CloudEvent."""

    model_config = ConfigDict(defer_build=True, frozen=True, extra="ignore")

    order_id: OrderId | None = Field(description="None where the order could not be read.")
    payment_id: str | None
    status: str = Field(
        description="Stripe's status; `failed` (see `payment.failed`); or `dead_lettered`: a person must look."
    )
    client_secret: str | None = Field(description="For the customer's browser alone. Never log or store it.")
