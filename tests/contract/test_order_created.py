"""`order.created`: each field's rule, and how a fault is told."""

import json
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas import AmqpProperties, MessageError, OrderCreatedData, read_order_created
from schemas.order_created import read_order, readable_order_id

LEAST: dict[str, Any] = {"order_id": "o-1", "amount": "99.99"}
ADDRESS = {"line1": "1 Main St", "city": "Springfield", "country": "US", "postal_code": "12345", "state": "OR"}


def problems_of(data: dict[str, Any]) -> dict[str, str]:
    with pytest.raises(MessageError) as caught:
        read_order(data)
    return dict(caught.value.problems)


def test_an_order_needs_an_id_and_an_amount_and_nothing_else() -> None:
    order = read_order(LEAST)
    assert (order.order_id, order.amount, order.currency, order.amount_minor) == ("o-1", Decimal("99.99"), "usd", 9999)
    assert (order.confirm, order.off_session, order.metadata) == (False, False, {})
    optional = set(OrderCreatedData.model_fields) - {*LEAST, "currency", "confirm", "off_session", "metadata"}
    assert {name: getattr(order, name) for name in optional} == dict.fromkeys(optional)
    assert problems_of({}) == {"order_id": "field required", "amount": "field required"}


def test_every_optional_field_is_read() -> None:
    data = {
        "currency": "EUR",
        "customer_id": "cus_123",
        "payment_method": "pm_123",
        "confirm": True,
        "off_session": True,
        "capture_method": "manual",
        "receipt_email": "jenny@example.com",
        "description": "Two pairs of shoes – brown",
        "statement_descriptor_suffix": "SHOES 2026",
        "metadata": {"basket": "b-1", "order_id": "o-1"},
        "shipping": {"name": "Jenny Rosen", "address": ADDRESS, "phone": "+1 555 0100", "carrier": "UPS"},
        "setup_future_usage": "off_session",
        "stripe_account": "acct_123",
    }
    assert set(OrderCreatedData.model_fields) == {*LEAST, *data}
    order = read_order({**LEAST, **data})
    assert order.currency == "eur"
    read = order.model_dump(exclude_none=True)
    assert {name: read[name] for name in data if name != "currency"} == {
        name: value for name, value in data.items() if name != "currency"
    }


@pytest.mark.parametrize("order_id", ["a", "7", "A-z_0.9:x", "-", "x" * 64, "0b8e5f2a-6c1d-4e0b-9a57-2f1f6d3c9e10"])
def test_an_order_id_has_up_to_64_plain_characters(order_id: str) -> None:
    assert read_order({**LEAST, "order_id": order_id}).order_id == order_id
    assert readable_order_id({"order_id": order_id}) == order_id


@pytest.mark.parametrize(
    "order_id",
    ["", "x" * 65, "x" * 5000, "ö", "о-1", "１", "o-1\n", "\no-1", "o 1", "o/1", "o\x001", "a,b", "#1", 5, None, True],
)
def test_any_other_order_id_is_refused(order_id: Any) -> None:
    assert problems_of({**LEAST, "order_id": order_id}).keys() == {"order_id"}
    assert readable_order_id({"order_id": order_id}) is None


@pytest.mark.parametrize("data", [None, [], "o-1", {}, {"order_id": ["o-1"]}])
def test_no_order_id_is_read_where_there_is_none(data: Any) -> None:
    assert readable_order_id(data) is None


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("amount", "10.005"),
        ("amount", 1.5),
        ("amount", None),
        ("amount", ""),
        ("currency", "usx"),
        ("currency", "us"),
        ("currency", ""),
        ("currency", None),
        ("currency", 840),
        ("customer_id", ""),
        ("customer_id", "cus/1"),
        ("customer_id", "x" * 256),
        ("customer_id", 5),
        ("payment_method", "pm 1"),
        ("payment_method", "pm_1\n"),
        ("payment_method", {"card": {}}),
        ("confirm", "true"),
        ("confirm", 1),
        ("confirm", None),
        ("off_session", "no"),
        ("capture_method", "later"),
        ("capture_method", "MANUAL"),
        ("receipt_email", "jenny"),
        ("receipt_email", "a b@example.com"),
        ("receipt_email", "a@b@c"),
        ("receipt_email", "a@b\n"),
        ("receipt_email", "x" * 65 + "@example.com"),
        ("description", ""),
        ("description", "x" * 1001),
        ("description", 5),
        ("statement_descriptor_suffix", ""),
        ("statement_descriptor_suffix", "12345"),
        ("statement_descriptor_suffix", "x" * 23),
        ("statement_descriptor_suffix", "a<b"),
        ("statement_descriptor_suffix", "a>b"),
        ("statement_descriptor_suffix", "a\\b"),
        ("statement_descriptor_suffix", "a'b"),
        ("statement_descriptor_suffix", 'a"b'),
        ("statement_descriptor_suffix", "a*b"),
        ("statement_descriptor_suffix", "café"),
        ("metadata", None),
        ("metadata", []),
        ("metadata", {"": "x"}),
        ("metadata", {"x" * 41: "x"}),
        ("metadata", {"a[b]": "x"}),
        ("metadata", {f"k{number}": "x" for number in range(49)}),
        ("setup_future_usage", "sometimes"),
        ("stripe_account", "1234"),
        ("stripe_account", "acct_"),
        ("stripe_account", "acct_1/x"),
        ("shipping", "here"),
    ],
)
def test_a_field_against_its_rule_is_named(field: str, value: Any) -> None:
    assert problems_of({**LEAST, field: value}).keys() == {field}


@pytest.mark.parametrize(
    ("data", "name"),
    [
        ({"metadata": {"a": 5}}, "metadata.a"),
        ({"metadata": {"a": None}}, "metadata.a"),
        ({"metadata": {"a": "x" * 501}}, "metadata.a"),
        ({"shipping": {"name": "J"}}, "shipping.address"),
        ({"shipping": {"address": {}}}, "shipping.name"),
        ({"shipping": {"name": "", "address": {}}}, "shipping.name"),
        ({"shipping": {"name": "J", "address": {"country": "USA"}}}, "shipping.address.country"),
        ({"shipping": {"name": "J", "address": {"country": "us"}}}, "shipping.address.country"),
        ({"shipping": {"name": "J", "address": {"line1": "x" * 256}}}, "shipping.address.line1"),
        ({"shipping": {"name": "J", "address": {"city": 5}}}, "shipping.address.city"),
        ({"shipping": {"name": "J", "address": {}, "phone": 15550100}}, "shipping.phone"),
    ],
)
def test_a_fault_inside_a_field_is_named_by_its_path(data: dict[str, Any], name: str) -> None:
    assert problems_of({**LEAST, **data}).keys() == {name}


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("receipt_email", "a\x00@example.com"),
        ("description", "a\x00b"),
        ("statement_descriptor_suffix", "a\x00b"),
        ("customer_id", "a\x00b"),
        ("payment_method", "a\x00b"),
        ("stripe_account", "acct_\x00"),
        ("currency", "us\x00"),
        ("capture_method", "manual\x00"),
        ("metadata", {"a": "x\x00"}),
        ("metadata", {"a\x00": "x"}),
        ("shipping", {"name": "J\x00", "address": {}}),
        ("shipping", {"name": "J", "address": {"city": "\x00"}}),
        ("shipping", {"name": "J", "address": {}, "tracking_number": "1\x00"}),
    ],
)
def test_a_nul_character_is_refused_anywhere(field: str, value: Any) -> None:
    (name,) = problems_of({**LEAST, field: value})
    assert name.split(".")[0] == field


def test_the_limits_themselves_are_taken() -> None:
    read_order(
        {
            **LEAST,
            "customer_id": "c" * 255,
            "description": "ä" * 1000,
            "statement_descriptor_suffix": "a" * 22,
            "metadata": {f"key-{number:036}": "x" * 500 for number in range(48)},
            "receipt_email": "x" * 64 + "@" + "y" * 255,
            "shipping": {"name": "n" * 255, "address": {}},
        }
    )


def test_all_problems_are_told_at_once() -> None:
    data = {"order_id": "?", "amount": "-1", "currency": "usx", "confirm": 1, "metadata": {"a": 5}}
    assert problems_of(data).keys() == {"order_id", "amount", "currency", "confirm", "metadata.a"}


def test_no_more_problems_are_told_than_a_person_reads() -> None:
    assert len(problems_of({**LEAST, "metadata": {f"k{number}": 5 for number in range(40)}})) == 10


@pytest.mark.parametrize(
    ("data", "name", "told"),
    [
        ({"confirm": True}, "payment_method", "is missing, and confirm is true"),
        ({"off_session": True}, "confirm", "must be true where off_session is"),
        ({"metadata": {"order_id": "o-2"}}, "metadata.order_id", "differs from order_id"),
        ({"amount": "500.5", "currency": "JPY"}, "amount", "does not fit JPY, which has no decimals"),
        ({"amount": "10.005"}, "amount", "does not fit USD, which has at most 2 decimals"),
        ({"amount": "1.234", "currency": "kwd"}, "amount", r"does not fit KWD: Stripe takes it in steps of 0\.010"),
        ({"amount": "5.5", "currency": "isk"}, "amount", "does not fit ISK: Stripe takes it in steps of 1 only"),
        ({"amount": "99999999999999"}, "amount", "more than any payment Stripe takes"),
    ],
)
def test_fields_that_disagree_name_one_of_them(data: dict[str, Any], name: str, told: str) -> None:
    with pytest.raises(MessageError, match=f"^{name}: .*{told}"):
        read_order({**LEAST, **data})


def test_a_private_value_is_in_no_problem() -> None:
    private = {
        "customer_id": "private 1",
        "receipt_email": "private 2",
        "description": "private 3" * 200,
        "shipping": {"name": 5, "address": {"city": "private 4" * 40}},
    }
    with pytest.raises(MessageError) as caught:
        read_order({**LEAST, **private})
    assert len(caught.value.problems) == 5
    assert "private" not in str(caught.value)


def test_unknown_fields_are_ignored_at_every_level() -> None:
    data = {**LEAST, "loyalty": {"tier": 3}, "shipping": {"name": "J", "address": {"planet": "Earth"}, "drone": True}}
    assert "loyalty" not in read_order(data).model_dump()


def test_null_is_as_if_the_field_were_missing() -> None:
    fields = ("customer_id", "payment_method", "capture_method", "receipt_email", "description", "shipping")
    assert read_order({**LEAST, **dict.fromkeys(fields)}) == read_order(LEAST)


@pytest.mark.parametrize(
    ("amount", "minor"), [(b'"99.99"', 9999), (b"99.99", 9999), (b"0.1", 10), (b"100", 10000), (b"1e2", 10000)]
)
def test_the_amount_on_the_wire_is_a_string_or_a_number_read_from_its_digits(amount: bytes, minor: int) -> None:
    _, order = read_order_created(b'{"order_id":"o-1","amount":' + amount + b"}", AmqpProperties())
    assert order.amount_minor == minor


@pytest.mark.parametrize("amount", [b"1e400", b"-1", b"0", b"0.00", b"true", b"null", b'"1e2"', b'"+1"', b'"1_000"'])
def test_another_amount_on_the_wire_is_refused(amount: bytes) -> None:
    with pytest.raises(MessageError, match=r"^amount: "):
        read_order_created(b'{"order_id":"o-1","amount":' + amount + b"}", AmqpProperties())


@pytest.mark.parametrize("kind", [None, "order.created"])
def test_an_order_event_has_our_type_or_none(kind: str | None) -> None:
    event, order = read_order_created(json.dumps(LEAST).encode(), AmqpProperties(type=kind))
    assert (event.type, order.order_id) == (kind, "o-1")


def test_an_event_of_another_type_is_refused() -> None:
    with pytest.raises(MessageError, match=r"^type: is 'order.cancelled'; this queue takes 'order.created'$"):
        read_order_created(json.dumps(LEAST).encode(), AmqpProperties(type="order.cancelled"))


_fields = st.sampled_from(sorted(OrderCreatedData.model_fields))
_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=30) | st.sampled_from(["99.99", "jpy", "o-1", "pm_1"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)


@given(st.dictionaries(_fields, _values))
def test_any_data_is_an_order_or_a_message_error(data: dict[str, Any]) -> None:
    body = json.dumps({**LEAST, **data}).encode()
    try:
        _, order = read_order_created(body, AmqpProperties())
    except MessageError as error:
        assert error.problems
        str(error).encode()
    else:
        assert order.amount_minor > 0
        order.model_dump_json()
