"""What an order service asks of a payment that exists: `order.cancelled`, `payment.capture_requested` and
`refund.requested`. Come in.
"""

from collections.abc import Mapping
from typing import Annotated, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from schemas.envelope import (
    AmqpProperties,
    CloudEvent,
    FieldError,
    IncomingEvent,
    MessageError,
    claimed_type,
    read_event,
)
from schemas.money import Amount, AmountError, Currency, to_minor
from schemas.order_created import PLAIN_ID, OrderId

RequestId = Annotated[
    str,
    Field(
        pattern=PLAIN_ID,
        description="1 to 64 characters of A-Z a-z 0-9 - _ . : that name one request: sent again, it asks nothing new.",
        examples=["refund-7"],
    ),
]


class _Command(BaseModel):
    # As for an order: unknown fields are ignored, and 1 is no "1".
    model_config = ConfigDict(defer_build=True, frozen=True, extra="ignore", strict=True)

    order_id: OrderId


class OrderCancelledData(_Command):
    """The order is not wanted any more: its payment is to be canceled, or refunded where that is asked."""

    request_id: RequestId | None = Field(default=None, description="The id of the event stands in where it is missing.")
    reason: Literal["duplicate", "fraudulent", "requested_by_customer", "abandoned"] | None = None
    refund_if_paid: bool = Field(default=False, description="Refund all of it where it is too late to cancel.")


class _AmountCommand(_Command):
    request_id: RequestId
    amount: Amount | None = Field(default=None, description="Major units, exact; all there is where it is missing.")
    currency: Currency | None = Field(
        default=None, description="ISO 4217, any case; must be the payment's, which it is where it is missing."
    )

    @model_validator(mode="after")
    def _amount_fits_its_currency(self) -> "_AmountCommand":
        if self.amount is not None and self.currency is not None:
            try:
                to_minor(self.amount, self.currency)
            except AmountError as error:
                raise FieldError("amount", str(error)) from None
        return self

    def amount_minor_in(self, payment_currency: str) -> int | None:
        """Minor units of the payment's currency, which only the ledger knows; None: all there is.

        Raises MessageError naming `currency` where the command is in another, `amount` where it does not fit.
        """
        if self.currency not in (None, payment_currency):
            raise MessageError(("currency", f"is {self.currency!r}, and the payment is in {payment_currency!r}"))
        if self.amount is None:
            return None
        try:
            return to_minor(self.amount, payment_currency)
        except AmountError as error:
            raise MessageError(("amount", str(error))) from None


class CaptureRequestedData(_AmountCommand):
    """An authorized payment is to be captured, in whole or in part; Stripe releases what is left."""


class RefundRequestedData(_AmountCommand):
    """A payment is to be refunded, in whole or in part."""

    reason: Literal["duplicate", "fraudulent", "requested_by_customer"] | None = None


Command = OrderCancelledData | CaptureRequestedData | RefundRequestedData


class OrderCancelled(CloudEvent[OrderCancelledData]):
    """The order is not wanted any more. In the binary form the body is `data` alone, and the type goes beside it."""

    type: Literal["order.cancelled"] = "order.cancelled"


class CaptureRequested(CloudEvent[CaptureRequestedData]):
    """Take the authorized money. In the binary form the body is `data` alone, and the type goes beside it."""

    type: Literal["payment.capture_requested"] = "payment.capture_requested"


class RefundRequested(CloudEvent[RefundRequestedData]):
    """Give money back. In the binary form the body is `data` alone, and the type goes beside it."""

    type: Literal["refund.requested"] = "refund.requested"


_DATA: Final[Mapping[str, type[Command]]] = {
    "order.cancelled": OrderCancelledData,
    "payment.capture_requested": CaptureRequestedData,
    "refund.requested": RefundRequestedData,
}

COMMAND_TYPES: Final = frozenset(_DATA)


def is_command(body: bytes, properties: AmqpProperties) -> bool:
    """Whether a message says that it is one of these; what does not is read as an order. Never raises."""
    return claimed_type(body, properties) in COMMAND_TYPES


def read_command(body: bytes, properties: AmqpProperties) -> tuple[IncomingEvent, Command]:
    """The event and the command in it, whatever its form on the wire; its type says which command it is.

    Raises MessageError naming every field that is wrong, `type` where it is none of COMMAND_TYPES.
    """
    event = read_event(body, properties, data_key="order_id")
    model = _DATA.get(event.type or "")
    if model is None:
        told = f"is {event.type[:60]!r}" if event.type else "is missing"
        raise MessageError(("type", f"{told}; a command is one of {', '.join(sorted(COMMAND_TYPES))}"))
    try:
        return event, model.model_validate(event.data)
    except ValidationError as error:
        raise MessageError.of(error) from None


def request_id_of(event: IncomingEvent, command: Command) -> str | None:
    """What tells a request from the next: its own id or the event's. Only a cancel may have neither."""
    return command.request_id or event.id
