"""`order.created`: an order service asks for a payment. Comes in."""

import re
from collections.abc import Mapping
from typing import Annotated, Any, Final, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    model_validator,
)

from schemas.envelope import AmqpProperties, CloudEvent, FieldError, IncomingEvent, MessageError, read_event
from schemas.money import Amount, AmountError, Currency, to_minor

TYPE: Final = "order.created"

PLAIN_ID: Final = r"^[A-Za-z0-9_.:-]{1,64}$"


def _plain_text(value: str) -> str:
    if "\x00" in value:
        raise ValueError("contains a NUL character, which no ledger can keep")
    if not value.isprintable() and any("\ud800" <= letter <= "\udfff" for letter in value):
        raise ValueError("contains half a surrogate pair, which is not Unicode text")
    return value


def _has_a_letter(value: str) -> str:
    if not any(letter.isalpha() for letter in value):
        raise ValueError("needs at least one letter")
    return value


def _few_and_small(value: dict[str, str]) -> dict[str, str]:
    if len(value) > 48:
        raise ValueError("has more than 48 entries; Stripe keeps 50, and the order and its capture are named by two")
    for key in value:
        if not 1 <= len(key) <= 40 or "[" in key or "]" in key:
            raise ValueError(f"has the key {key[:50]!r}; keys have 1 to 40 characters and no square brackets")
    return value


Text = Annotated[str, AfterValidator(_plain_text)]
Line = Annotated[Text, Field(min_length=1, max_length=255)]
OrderId = Annotated[
    str,
    Field(
        pattern=PLAIN_ID,
        description="1 to 64 characters of A-Z a-z 0-9 - _ . :",
        examples=["order-1001"],
    ),
]
DescriptorSuffix = Annotated[
    str,
    # printable ASCII without < > \ ' " *, as Stripe wants it on a card statement
    Field(pattern=r"^[ !#-&()+-;=?-\[\]-~]{1,22}$"),
    AfterValidator(_has_a_letter),
]
Metadata = Annotated[
    dict[Text, Annotated[Text, Field(max_length=500)]],
    AfterValidator(_few_and_small),
    Field(description="Copied to Stripe. `order_id` is set by the worker."),
]


class _Part(BaseModel):
    # Unknown fields are ignored, so that producers can move first; strict, so that 1 is no "1".
    model_config = ConfigDict(defer_build=True, frozen=True, extra="ignore", strict=True)


class Address(_Part):
    """A postal address as Stripe spells it."""

    city: Line | None = None
    country: Annotated[str, Field(pattern=r"^[A-Z]{2}$")] | None = None
    line1: Line | None = None
    line2: Line | None = None
    postal_code: Line | None = None
    state: Line | None = None


class Shipping(_Part):
    """Where the goods go, and to whom."""

    name: Line
    address: Address
    carrier: Line | None = None
    phone: Line | None = None
    tracking_number: Line | None = None


class OrderCreatedData(_Part):
    """What the worker reads of an order. Card data has no place here and is refused."""

    order_id: OrderId
    amount: Amount
    currency: Currency = "usd"
    customer_id: Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]{1,255}$", examples=["cus_123"])] | None = None
    payment_method: Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]{1,255}$", examples=["pm_123"])] | None = None
    confirm: bool = Field(default=False, description="Charge at once; needs `payment_method`.")
    off_session: bool = Field(default=False, description="The customer is away; needs `confirm`.")
    capture_method: Literal["automatic", "automatic_async", "manual"] | None = None
    receipt_email: (
        Annotated[str, Field(pattern=r"^[^@\s]{1,64}@[^@\s]{1,255}$"), AfterValidator(_plain_text)] | None
    ) = None
    description: Annotated[Text, Field(min_length=1, max_length=1000)] | None = None
    statement_descriptor_suffix: DescriptorSuffix | None = None
    metadata: Metadata = Field(default_factory=dict)
    shipping: Shipping | None = None
    setup_future_usage: Literal["on_session", "off_session"] | None = None
    stripe_account: Annotated[str, Field(pattern=r"^acct_[A-Za-z0-9]{1,250}$")] | None = None

    @model_validator(mode="after")
    def _fields_agree(self) -> "OrderCreatedData":
        if self.confirm and self.payment_method is None:
            raise FieldError("payment_method", "is missing, and confirm is true: say what to charge")
        if self.off_session and not self.confirm:
            raise FieldError("confirm", "must be true where off_session is: nobody is there to confirm later")
        if self.metadata.get("order_id", self.order_id) != self.order_id:
            raise FieldError("metadata.order_id", "differs from order_id; leave it out, the worker sets it")
        try:
            to_minor(self.amount, self.currency)
        except AmountError as error:
            raise FieldError("amount", str(error)) from None
        return self

    @property
    def amount_minor(self) -> int:
        """Minor units as Stripe counts them."""
        return to_minor(self.amount, self.currency)


class OrderCreated(CloudEvent[OrderCreatedData]):
    """An order service asks for a payment. In the binary form the body is `data` alone."""

    type: Literal["order.created"] = "order.created"


def read_order_created(body: bytes, properties: AmqpProperties) -> tuple[IncomingEvent, OrderCreatedData]:
    """The event and the order in it, whatever its form on the wire.

    Raises MessageError naming every field that is wrong.
    """
    event = read_event(body, properties, data_key="order_id")
    if event.type not in (None, TYPE):
        raise MessageError(("type", f"is {event.type[:60]!r}; this queue takes {TYPE!r}"))
    return event, read_order(event.data)


def read_order(data: Mapping[str, Any]) -> OrderCreatedData:
    """The order in an event's `data`. Raises MessageError naming every field that is wrong."""
    try:
        return OrderCreatedData.model_validate(data)
    except ValidationError as error:
        raise MessageError.of(error) from None


def readable_order_id(data: object) -> str | None:
    """The order id in something that was refused, where it can be read as one."""
    value = data.get("order_id") if isinstance(data, Mapping) else None
    return value if isinstance(value, str) and re.fullmatch(PLAIN_ID, value) else None
