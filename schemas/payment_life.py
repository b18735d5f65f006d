"""From the first attempt to the money in the account, as Stripe tells it. Goes out.

Statuses and what they mean: https://docs.stripe.com/payments/paymentintents/lifecycle.
"""

from typing import Annotated, Literal

from pydantic import AwareDatetime, Field

from schemas.envelope import CloudEvent
from schemas.money import CurrencyCode, MajorUnits, MinorUnits, SignedMajorUnits
from schemas.payment_failed import Failure
from schemas.payment_snapshot import PaymentSnapshot

_CAPTURE_BEFORE = "When the authorization ends; what is not captured by then goes back to the customer."


class PaymentRequiresActionData(PaymentSnapshot):
    """The payment, and what its customer must do."""

    next_action: str | None = Field(
        default=None, description="Stripe's `next_action.type`; an open set.", examples=["use_stripe_sdk"]
    )


class PaymentRequiresAction(CloudEvent[PaymentRequiresActionData]):
    """The customer must do something before the payment can go on, such as confirm it with the bank."""

    type: Literal["payment.requires_action"] = "payment.requires_action"


class PaymentProcessing(CloudEvent[PaymentSnapshot]):
    """The payment is under way at the bank, which may take days; nothing is to be done."""

    type: Literal["payment.processing"] = "payment.processing"


class PaymentAuthorizedData(PaymentSnapshot):
    """The payment, and how long its money is held."""

    capture_before: AwareDatetime | None = Field(default=None, description=_CAPTURE_BEFORE)


class PaymentAuthorized(CloudEvent[PaymentAuthorizedData]):
    """The money is held on the customer's card and waits to be captured."""

    type: Literal["payment.authorized"] = "payment.authorized"


class PaymentAuthorizationExpiringData(PaymentSnapshot):
    """The payment, and when its authorization ends."""

    capture_before: AwareDatetime = Field(description=_CAPTURE_BEFORE)


class PaymentAuthorizationExpiring(CloudEvent[PaymentAuthorizationExpiringData]):
    """The authorization ends soon: capture it, or let it go."""

    type: Literal["payment.authorization_expiring"] = "payment.authorization_expiring"


class PaymentSucceeded(CloudEvent[PaymentSnapshot]):
    """The customer has paid."""

    type: Literal["payment.succeeded"] = "payment.succeeded"


class PaymentAttemptFailedData(PaymentSnapshot):
    """The payment, which can still be paid, and why this attempt failed."""

    failure: Failure


class PaymentAttemptFailed(CloudEvent[PaymentAttemptFailedData]):
    """One attempt to pay has failed. Not final: the customer may try again with the same payment."""

    type: Literal["payment.attempt_failed"] = "payment.attempt_failed"


class PaymentSettledData(PaymentSnapshot):
    """The payment, and what of it arrives in the balance, which may be in another currency.

    Fee and net together are what was captured, in `settlement_currency`.
    Source: https://docs.stripe.com/api/balance_transactions/object.
    """

    fee: MajorUnits = Field(description="What Stripe keeps, in the settlement currency.")
    fee_minor: MinorUnits
    net: SignedMajorUnits = Field(description="What arrives, in the settlement currency; below zero where fees eat it.")
    net_minor: int = Field(description="Minor units as Stripe counts them; may be below zero.")
    settlement_currency: CurrencyCode
    balance_transaction_id: str = Field(min_length=1, examples=["txn_123"])
    exchange_rate: Annotated[str, Field(pattern=r"^[0-9]+(\.[0-9]+)?$")] | None = Field(
        default=None,
        description="Units of the settlement currency for one of the payment's; none where they are the same.",
        examples=["0.91734"],
    )


class PaymentSettled(CloudEvent[PaymentSettledData]):
    """Stripe has booked the payment in the balance: its fee and what is left are known."""

    type: Literal["payment.settled"] = "payment.settled"
