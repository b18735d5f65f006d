"""Whatever comes in is an order or a MessageError; whatever goes out can be read again."""

import json
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from hypothesis import example, given
from hypothesis import strategies as st
from pydantic import BaseModel

from schemas import (
    AmqpProperties,
    Failure,
    IncomingEvent,
    MessageError,
    OrderCreated,
    OrderCreatedData,
    PaymentFailed,
    PaymentFailedData,
    PaymentIntentCreated,
    PaymentIntentCreatedData,
    PaymentReply,
    read_order_created,
    to_major,
)
from schemas.money import CURRENCIES
from tests.properties.strategies import (
    COUNTED,
    MOST_MINOR,
    NAMES,
    ORDER_IDS,
    TEXT,
    UNICODE,
    exact_minor,
    in_any_case,
    or_none,
    tries,
)

FIELDS = [*OrderCreatedData.model_fields, "specversion", "id", "source", "type", "time", "data", "data_base64"]
MOMENTS = st.datetimes(datetime(1970, 1, 1), datetime(2100, 1, 1), timezones=st.just(UTC))  # noqa: DTZ001 - bounds
TRACEPARENTS = st.from_regex(r"[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}", fullmatch=True)
# An attribute of an event: 1 to 255 characters and no control ones.
ATTRIBUTES = st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1, max_size=40)
LINES = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\x00"), min_size=1, max_size=40)

JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(FIELDS) | st.text(), inner, max_size=4),
    max_leaves=8,
)


@st.composite
def orders(draw: st.DrawFn) -> dict[str, Any]:
    """A valid order as its producer writes it."""
    currency = draw(in_any_case(st.sampled_from(sorted(CURRENCIES))))
    _, step = COUNTED.get(currency.lower(), (100, 1))
    amount = to_major(step * draw(st.integers(1, MOST_MINOR // step)), currency)
    order_id = draw(ORDER_IDS)
    parts: dict[str, st.SearchStrategy[Any]] = {
        "customer_id": NAMES,
        "payment_method": NAMES,
        "capture_method": st.sampled_from(["automatic", "automatic_async", "manual"]),
        "receipt_email": st.just("jenny.rosen@example.com"),
        "description": LINES,
        "statement_descriptor_suffix": st.from_regex(r"[ !#-&()+-;=?-Z\[\]-~]{0,21}[a-z]", fullmatch=True),
        "metadata": st.dictionaries(LINES.filter(lambda key: not set("[]") & set(key)), LINES, max_size=3),
        "shipping": st.fixed_dictionaries(
            {"name": LINES, "address": st.fixed_dictionaries({}, optional={"city": LINES, "country": st.just("DE")})},
            optional={"phone": LINES},
        ),
        "setup_future_usage": st.sampled_from(["on_session", "off_session"]),
        "stripe_account": st.from_regex(r"acct_[A-Za-z0-9]{1,20}", fullmatch=True),
        "a field of tomorrow": JSON_VALUES.filter(
            lambda value: "NaN" not in (text := json.dumps(value)) and "Inf" not in text
        ),
    }
    order: dict[str, Any] = draw(st.fixed_dictionaries({}, optional=parts))
    if order.get("metadata") and "order_id" in order["metadata"]:
        order["metadata"]["order_id"] = order_id
    if "payment_method" in order:
        order["confirm"] = draw(st.booleans())
        order["off_session"] = order["confirm"] and draw(st.booleans())
    return order | {"order_id": order_id, "amount": amount, "currency": currency}


ORDERS = orders()
HEADER_VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.decimals()
    | st.binary()
    | st.binary().map(bytearray)
    | MOMENTS
    | TEXT
    | TRACEPARENTS
    | st.just("1.0"),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=4,
)
HEADER_NAMES = TEXT | st.builds(
    lambda prefix, name: prefix + name,
    st.sampled_from(["cloudEvents:", "cloudEvents_", ""]),
    st.sampled_from(["specversion", "id", "source", "type", "time", "traceparent"]),
)
SHORT_STRINGS = or_none(st.text(UNICODE, max_size=255))
PROPERTIES = st.builds(
    AmqpProperties,
    content_type=SHORT_STRINGS,
    content_encoding=st.sampled_from([None, "", "utf-8", "UTF-8", "gzip"]) | SHORT_STRINGS,
    message_id=SHORT_STRINGS,
    correlation_id=SHORT_STRINGS,
    reply_to=SHORT_STRINGS,
    type=st.just("order.created") | SHORT_STRINGS,
    app_id=SHORT_STRINGS,
    timestamp=or_none(MOMENTS),
    headers=st.dictionaries(HEADER_NAMES, HEADER_VALUES, max_size=4),
)


def as_bytes(value: object, *, is_ascii: bool = True) -> bytes:
    # A body may hold half a surrogate pair as an escape alone: as UTF-8 it is no text.
    return json.dumps(value, ensure_ascii=is_ascii).encode("utf-8", "replace")


def broken(body: bytes, place: int, instead: bytes) -> bytes:
    place %= len(body)
    return body[:place] + instead + body[place + 1 :]


VALID_BODIES = ORDERS.map(as_bytes) | ORDERS.map(
    lambda order: as_bytes({"specversion": "1.0", "id": "e", "source": "s", "type": "order.created", "data": order})
)
BODIES = (
    st.binary(max_size=200)
    | JSON_VALUES.map(as_bytes)
    | st.dictionaries(st.sampled_from(FIELDS), JSON_VALUES).map(as_bytes)
    | st.tuples(ORDERS, st.sampled_from(FIELDS), JSON_VALUES).map(
        lambda drawn: as_bytes(drawn[0] | {drawn[1]: drawn[2]})
    )
    | VALID_BODIES
    | st.builds(broken, VALID_BODIES, st.integers(0), st.binary(max_size=3))
)
NO_PROPERTIES = AmqpProperties()


@tries(700)
@given(BODIES, PROPERTIES)
@example(b"[" * 100_000, NO_PROPERTIES)
@example(
    b'{"specversion":"1.0","id":5,"source":"s","type":"order.created","data":{"order_id":"o","amount":1}}',
    NO_PROPERTIES,
)
@example(b'{"order_id":' * 5_000, NO_PROPERTIES)
@example(b'{"order_id":"o-1","amount":1e99999999999999999999}', NO_PROPERTIES)
@example(b'{"order_id":"o-1","amount":1e-999999999999999999}', NO_PROPERTIES)
@example(b'{"order_id":"o-1","amount":' + b"9" * 100_000 + b"}", NO_PROPERTIES)
@example(b'{"order_id":"o-1","amount":1,"capture_method":1e999999999999999999}', NO_PROPERTIES)
@example(b'{"order_id":"\\ud800","amount":1}', NO_PROPERTIES)
def test_any_bytes_with_any_properties_are_an_order_or_a_message_error(body: bytes, properties: AmqpProperties) -> None:
    try:
        event, order = read_order_created(body, properties)
    except MessageError as error:
        assert error.problems
        assert all(isinstance(part, str) and part for problem in error.problems for part in problem)
        as_written = str(error).encode()  # it goes into a header and a log line
        assert as_written
    else:
        assert event.type in (None, "order.created")
        for attribute in (event.id, event.source, event.time, event.traceparent):
            assert attribute is None or (isinstance(attribute, str) and attribute)
        assert order.amount_minor == exact_minor(order.amount, order.currency)
        order.model_dump_json().encode()  # the ledger can keep every text of it


def in_every_form(
    order: Mapping[str, Any], envelope: Mapping[str, str], prefix: str, *, is_ascii: bool
) -> list[tuple[IncomingEvent, OrderCreatedData]]:
    """The order read from a structured event, from a binary one with headers, with properties, and from plain JSON."""
    body = as_bytes(order, is_ascii=is_ascii)
    return [
        read_order_created(as_bytes({**envelope, "data": order}, is_ascii=is_ascii), AmqpProperties()),
        read_order_created(body, AmqpProperties(headers={prefix + name: value for name, value in envelope.items()})),
        read_order_created(
            body, AmqpProperties(message_id=envelope["id"], app_id=envelope["source"], type=envelope["type"])
        ),
        read_order_created(body, AmqpProperties()),
    ]


@tries(250)
@given(
    ORDERS,
    st.fixed_dictionaries(
        {"specversion": st.just("1.0"), "id": ATTRIBUTES, "source": ATTRIBUTES, "type": st.just("order.created")},
        optional={"traceparent": TRACEPARENTS, "time": st.just("2026-01-31T12:00:00Z")},
    ),
    st.sampled_from(["cloudEvents:", "cloudEvents_"]),
    st.booleans(),
)
def test_a_valid_order_is_the_same_order_in_every_form(
    order: dict[str, Any], envelope: dict[str, str], prefix: str, is_ascii: bool
) -> None:
    (structured, first), (in_headers, second), (in_properties, third), (plain, fourth) = in_every_form(
        order, envelope, prefix, is_ascii=is_ascii
    )
    assert first == second == third == fourth
    told = first.model_dump(exclude_unset=True, exclude={"amount"})
    sent = {name: value for name, value in order.items() if name in OrderCreatedData.model_fields and name != "amount"}
    assert told == sent | {"currency": order["currency"].lower()}
    assert first.amount_minor == exact_minor(order["amount"], order["currency"])
    assert in_headers == structured
    assert (in_properties.id, in_properties.source) == (structured.id, structured.source)
    assert plain.id is None


@tries(150)
@given(ORDERS)
def test_an_amount_as_a_json_number_is_the_amount_of_its_digits(order: dict[str, Any]) -> None:
    digits = order["amount"]
    body = as_bytes(order | {"amount": "the digits"}).replace(b'"the digits"', digits.encode())
    assert read_order_created(body, AmqpProperties())[1] == read_order_created(as_bytes(order), AmqpProperties())[1]


@tries(150)
@given(ORDERS)
def test_our_own_model_of_the_order_event_reads_back_what_it_writes(order: dict[str, Any]) -> None:
    _, data = read_order_created(as_bytes(order), AmqpProperties())
    event = OrderCreated(id="e-1", source="shop", data=data)
    _, again = read_order_created(event.model_dump_json(exclude_none=True).encode(), AmqpProperties())
    assert again == data


# What goes out

FAILURES = st.builds(
    Failure,
    category=st.sampled_from(["declined", "authentication_required", "invalid_request"]),
    code=or_none(TEXT),
    decline_code=or_none(TEXT),
    message=TEXT,
    may_retry=st.booleans(),
)


@st.composite
def payments(draw: st.DrawFn) -> dict[str, Any]:
    currency = draw(st.sampled_from(sorted(CURRENCIES))).lower()
    minor = draw(st.integers(1, MOST_MINOR))
    return {
        "order_id": draw(ORDER_IDS),
        "payment_id": draw(TEXT),
        "status": draw(TEXT),
        "amount": to_major(minor, currency),
        "amount_minor": minor,
        "currency": currency,
        "livemode": draw(st.booleans()),
        "sequence": draw(st.integers(1, 2**31 - 1)),
        "cause": draw(or_none(TEXT)),
    }


ENVELOPES = st.fixed_dictionaries(
    {"id": ATTRIBUTES, "source": ATTRIBUTES},
    optional={"subject": or_none(TEXT), "time": or_none(MOMENTS), "traceparent": or_none(TRACEPARENTS)},
)


def assert_reads_back(message: BaseModel, *, exclude_none: bool = True) -> None:
    assert type(message).model_validate_json(message.model_dump_json(exclude_none=exclude_none)) == message


@tries(150)
@given(ENVELOPES, payments())
def test_a_created_intent_reads_back_as_it_was_told(envelope: dict[str, Any], payment: dict[str, Any]) -> None:
    assert_reads_back(PaymentIntentCreated(**envelope, data=PaymentIntentCreatedData(**payment)))


@tries(150)
@given(ENVELOPES, payments(), FAILURES, st.booleans())
def test_a_failed_payment_reads_back_as_it_was_told(
    envelope: dict[str, Any], payment: dict[str, Any], failure: Failure, is_without_intent: bool
) -> None:
    if is_without_intent:
        payment |= {"payment_id": None, "status": None, "livemode": None}
    assert_reads_back(PaymentFailed(**envelope, data=PaymentFailedData(**payment, failure=failure)))


@tries(100)
@given(
    st.builds(
        PaymentReply, order_id=or_none(ORDER_IDS), payment_id=or_none(TEXT), status=TEXT, client_secret=or_none(TEXT)
    )
)
def test_a_reply_reads_back_as_it_was_told(reply: PaymentReply) -> None:
    # Its nulls are written out, as worker.bus.outgoing does.
    assert_reads_back(reply, exclude_none=False)
