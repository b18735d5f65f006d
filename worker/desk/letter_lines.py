"""A letter as a line of JSON, exactly as the ledger keeps it: what `dead-letters export` writes and `import` reads.

Body and properties are text in a line: a tool that rewrites JSON, numbers and all, leaves them as they are.
"""

import base64
import hashlib
import json
from dataclasses import fields
from datetime import UTC, datetime
from typing import Annotated, Any, Final, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    model_validator,
)

from schemas import AmqpProperties, MessageError
from schemas.envelope import FieldError
from schemas.money import CURRENCIES
from worker.bus.delivery import FIRST_YEAR, LAST_YEAR
from worker.bus.outgoing import masked_properties
from worker.card_numbers import mask_cards
from worker.letter import Letter, LetterState, cause_of, group_of, properties_from_json, properties_to_json
from worker.payment import LETTER_ID
from worker.read_order import order_in, told_order_id

# RabbitMQ takes no larger message by default since 4.0; one control character is six in JSON.
MOST_BODY_BYTES: Final = 16 * 1024 * 1024
MOST_LINE_BYTES: Final = 8 * MOST_BODY_BYTES
# AMQP's short strings, which all properties but the headers are.
MOST_PROPERTY_BYTES: Final = 255


def _keepable(value: str) -> str:
    if "\x00" in value:
        raise ValueError("has a NUL character, which no ledger can keep")
    return value


def _time(value: object) -> datetime:
    try:
        moment = datetime.fromisoformat(value) if isinstance(value, str) else None
        if moment and moment.tzinfo and FIRST_YEAR <= moment.astimezone(UTC).year <= LAST_YEAR:
            return moment.astimezone(UTC)
    except (ValueError, OverflowError):
        pass
    raise ValueError(
        f"is no ISO 8601 time with its zone, such as 2026-01-31T12:00:00+00:00, from {FIRST_YEAR} to {LAST_YEAR}"
    )


def _known_currency(value: str) -> str:
    if value.upper() not in CURRENCIES or value != value.lower():
        raise ValueError("is not a currency as the ledger keeps it, such as 'usd'")
    return value


def _time_text(value: str) -> str:
    _time(value)
    return value


LetterId = Annotated[str, Field(pattern=f"^{LETTER_ID}$")]
Time = Annotated[datetime, BeforeValidator(_time)]
TimeText = Annotated[str, AfterValidator(_time_text)]
Count = Annotated[int, Field(ge=0, lt=2**31)]
_KEPT: Final = AfterValidator(_keepable)


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class _Entry(_Part):
    """A landing, in the order and the types in which letters.land writes it: what the desk shows, it relies on."""

    landing_id: str
    reason: str
    error: str
    attempts: Count
    first_seen: TimeText | None
    at: TimeText
    failures: list[str]


class _Line(_Part):
    """A letter as export writes it; the bounds are those of the ledger's columns."""

    id: LetterId
    state: LetterState
    reason: Annotated[str, Field(max_length=60), _KEPT]
    error: Annotated[str, _KEPT]
    order_id: Annotated[str, Field(max_length=64), _KEPT] | None
    amount_minor: Annotated[int, Field(ge=-(2**63), lt=2**63)] | None
    currency: Annotated[str, AfterValidator(_known_currency)] | None
    attempts: Count
    landings: Annotated[Count, Field(ge=1)]
    landing_id: Annotated[str, Field(max_length=255), _KEPT]
    first_seen: Time | None
    landed_at: Time
    edited_from: LetterId | None
    properties: str
    unreadable: dict[str, Any]
    history: list[_Entry]
    body: str | None = None
    body_base64: str | None = None
    sha256: str

    @model_validator(mode="after")
    def _fields_agree(self) -> Self:
        if (self.body is None) == (self.body_base64 is None):
            raise FieldError("body", "give it, or body_base64 in its place")
        if (self.amount_minor is None) != (self.currency is None):
            raise FieldError("amount_minor", "give it and currency, or null for both")
        return self


def line_of(letter: Letter) -> str:
    """A letter as a line of JSON in ASCII: {"id", "state", …, "body" or "body_base64", "sha256"}."""
    properties = properties_to_json(letter.properties)
    return (
        json.dumps(
            {
                "id": letter.letter_id,
                "state": letter.state,
                "reason": letter.reason,
                "error": letter.error,
                "order_id": letter.order_id,
                "amount_minor": letter.amount_minor,
                "currency": letter.currency,
                "attempts": letter.attempts,
                "landings": letter.landings,
                "landing_id": letter.landing_id,
                "first_seen": letter.first_seen.isoformat() if letter.first_seen else None,
                "landed_at": letter.landed_at.isoformat(),
                "edited_from": letter.edited_from,
                "properties": properties,
                "unreadable": dict(letter.unreadable),
                "history": [dict(entry) for entry in letter.history],
                **_body_to_json(letter.body),
                "sha256": _sha256(letter.body, properties),
            }
        )
        + "\n"
    )


def letter_of(line: bytes, *, now: datetime) -> Letter:
    """The letter of a line. Raises ValueError that says what is wrong with it, and what to do."""
    try:
        read = _Line.model_validate_json(line, strict=True)
    except ValidationError as error:
        fault = error.errors(include_input=False, include_url=False)[0]
        if fault["type"] in ("json_invalid", "model_type"):
            raise ValueError(f"{fault['msg']}; a line holds one letter as export writes it") from None
        raise MessageError.of(error) from None
    body, properties = _body_in(read), _properties_in(read.properties)
    if read.sha256 != _sha256(body, read.properties):
        raise ValueError(
            "the body differs from its sha256, or the properties do: it was edited by hand; import the original and "
            "use `dead-letters edit`"
        )
    if mask_cards(body) is not body or masked_properties(properties) != properties:
        raise ValueError("it holds card numbers, which no ledger keeps; export wrote them masked")
    cause = cause_of(read.reason, read.error)
    letter = Letter(
        letter_id=read.id,
        # A replay of it would be another ledger's.
        state=LetterState.OPEN if read.state is LetterState.REPLAYING else read.state,
        reason=read.reason,
        error=read.error,
        group_id=group_of(cause),
        cause=cause,
        order_id=read.order_id,
        body=body,
        properties=properties,
        attempts=read.attempts,
        landings=read.landings,
        landing_id=read.landing_id,
        landed_at=read.landed_at,
        moved_at=now,
        amount_minor=read.amount_minor,
        currency=read.currency,
        first_seen=read.first_seen,
        edited_from=read.edited_from,
        unreadable=read.unreadable,
        history=[entry.model_dump() for entry in read.history],
    )
    _require_told(letter)
    return letter


def _require_told(letter: Letter) -> None:
    """Raises ValueError where the letter is said to be of another order, or of other money, than its body says."""
    order = order_in(letter)
    told = told_order_id(letter, order)
    if told is not None and told != letter.order_id:
        raise ValueError(f"order_id: is {letter.order_id!r}, and the body says {told!r}")
    if not isinstance(order, str) and (order.amount_minor, order.currency) != (letter.amount_minor, letter.currency):
        raise ValueError(f"amount_minor and currency: the body says {order.amount_minor} {order.currency}")


def _body_to_json(body: bytes) -> dict[str, str]:
    try:
        return {"body": body.decode()}
    except UnicodeDecodeError:
        return {"body_base64": base64.b64encode(body).decode()}


def _sha256(body: bytes, properties: str) -> str:
    """Of both, the body's length before it, so that nothing can pass from one to the other."""
    digest = hashlib.sha256(len(body).to_bytes(8))
    digest.update(body)
    digest.update(properties.encode("utf-8", "surrogatepass"))
    return digest.hexdigest()


def _body_in(read: "_Line") -> bytes:
    try:
        body = base64.b64decode(read.body_base64 or "", validate=True) if read.body is None else read.body.encode()
    except ValueError:
        raise ValueError("body_base64: is not base64") from None
    if len(body) > MOST_BODY_BYTES:
        raise ValueError(f"the body has {len(body)} bytes; at most {MOST_BODY_BYTES} are taken")
    return body


def _properties_in(text: str) -> AmqpProperties:
    try:
        properties = properties_from_json(text)
    except (ValueError, RecursionError):
        raise ValueError("properties: cannot be read; give them as export wrote them") from None
    *texts, stamp, headers = (getattr(properties, each.name) for each in fields(properties))
    is_well = (
        all(each is None or isinstance(each, str) for each in texts)
        and (stamp is None or (isinstance(stamp, datetime) and stamp.tzinfo is not None))
        and isinstance(headers, dict)
    )
    if not is_well or properties_to_json(properties) != text:
        raise ValueError("properties: are not as export writes them")
    if any(each and len(each.encode("utf-8", "surrogatepass")) > MOST_PROPERTY_BYTES for each in texts):
        raise ValueError(f"properties: one is longer than the {MOST_PROPERTY_BYTES} bytes that AMQP carries")
    if stamp and not FIRST_YEAR <= stamp.astimezone(UTC).year <= LAST_YEAR:
        raise ValueError(f"properties: timestamp: AMQP carries times from {FIRST_YEAR} to {LAST_YEAR}")
    return properties
