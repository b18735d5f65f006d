"""What the Python peers read and tell, as a careful team would write it with pydantic, and the call to Stripe."""

from datetime import UTC, datetime
from decimal import Decimal
from typing import Annotated, Any, Literal

import stripe
from pydantic import BaseModel, Field, StringConstraints, field_validator

ZERO_DECIMAL = frozenset("bif clp djf gnf jpy kmf krw mga pyg rwf vnd vuv xaf xof xpf".split())


class OrderCreated(BaseModel):
    """An order; of its fields those that the call to Stripe needs."""

    order_id: Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9._:-]{1,64}$")]
    amount: Annotated[Decimal, Field(gt=0, max_digits=12)]
    currency: Annotated[str, StringConstraints(to_lower=True, pattern=r"^[A-Za-z]{3}$")] = "usd"
    customer_id: str | None = None

    @field_validator("amount")
    @classmethod
    def _finite(cls, value: Decimal) -> Decimal:
        if not value.is_finite():
            raise ValueError("must be a finite number")
        return value

    def amount_minor(self) -> int:
        """In Stripe's smallest unit. Raises ValueError for an amount that does not fit it exactly."""
        minor = self.amount if self.currency in ZERO_DECIMAL else self.amount * 100
        if minor != minor.to_integral_value():
            raise ValueError(f"{self.amount} {self.currency} has too many decimals")
        return int(minor)

    def params(self) -> Any:
        """Of the call that creates the PaymentIntent."""
        params: dict[str, Any] = {
            "amount": self.amount_minor(),
            "currency": self.currency,
            "metadata": {"order_id": self.order_id},
            "automatic_payment_methods": {"enabled": True},
        }
        return params | ({"customer": self.customer_id} if self.customer_id else {})

    def idempotency_key(self) -> str:
        return f"payments:{self.order_id}"


class IntentCreated(BaseModel):
    """`data` of the event."""

    order_id: str
    payment_id: str
    status: str
    amount_minor: int
    currency: str
    livemode: bool


class PaymentEvent(BaseModel):
    """The event, a CloudEvents envelope."""

    specversion: Literal["1.0"] = "1.0"
    type: Literal["payment.intent_created"] = "payment.intent_created"
    id: str
    source: str = "payments"
    subject: str
    time: datetime
    datacontenttype: Literal["application/json"] = "application/json"
    data: IntentCreated


def event_of(order: OrderCreated, intent: stripe.PaymentIntent) -> PaymentEvent:
    return PaymentEvent(
        id=f"{order.order_id}/payment/1",
        subject=order.order_id,
        time=datetime.now(UTC),
        data=IntentCreated(
            order_id=order.order_id,
            payment_id=intent.id,
            status=intent.status,
            amount_minor=intent.amount,
            currency=intent.currency,
            livemode=intent.livemode,
        ),
    )


def stripe_client(*, api_key: str, api_base: str, http_client: stripe.HTTPClient | None) -> stripe.StripeClient:
    """http_client: None takes the SDK's default, httpx where it is installed."""
    stripe.enable_telemetry = False
    return stripe.StripeClient(
        api_key,
        max_network_retries=0,
        http_client=http_client,
        base_addresses={"api": api_base, "connect": api_base, "files": api_base, "meter_events": api_base},
    )
