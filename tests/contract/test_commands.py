"""The commands: which one a message is, each field's rule, and how a fault is told."""

import json
from collections.abc import Mapping
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from jsonschema import Draft202012Validator

from schemas import (
    COMMAND_TYPES,
    AmqpProperties,
    CaptureRequestedData,
    Command,
    IncomingEvent,
    MessageError,
    OrderCancelledData,
    RefundRequestedData,
    read_command,
    request_id_of,
)
from schemas.json_files import FOLDER

CANCEL, CAPTURE, REFUND = "order.cancelled", "payment.capture_requested", "refund.requested"
MODELS: Mapping[str, type[Command]] = {
    CANCEL: OrderCancelledData,
    CAPTURE: CaptureRequestedData,
    REFUND: RefundRequestedData,
}
LEAST: Mapping[str, dict[str, Any]] = {
    CANCEL: {"order_id": "o-1"},
    CAPTURE: {"order_id": "o-1", "request_id": "r-1"},
    REFUND: {"order_id": "o-1", "request_id": "r-1"},
}
WITH_AMOUNT = [CAPTURE, REFUND]


def read(kind: str, data: Mapping[str, Any]) -> Any:
    """The command in a plain body; loosely typed, since a test knows which one it wrote."""
    return read_command(json.dumps(data).encode(), AmqpProperties(type=kind))[1]


def problems_of(kind: str, data: Mapping[str, Any]) -> dict[str, str]:
    with pytest.raises(MessageError) as caught:
        read(kind, data)
    return dict(caught.value.problems)


def schema_faults(kind: str, data: Mapping[str, Any]) -> list[str]:
    name = kind.replace(".", "_")
    event = json.loads((FOLDER / f"{name}.example.json").read_text())
    validator = Draft202012Validator(json.loads((FOLDER / f"{name}.schema.json").read_text()))
    return [error.json_path for error in validator.iter_errors({**event, "data": dict(data)})]


def test_the_commands_are_these_three() -> None:
    assert MODELS.keys() == COMMAND_TYPES


@pytest.mark.parametrize("kind", MODELS)
def test_a_command_is_read_in_each_form(kind: str) -> None:
    structured = {"specversion": "1.0", "id": "e-1", "source": "shop", "type": kind, "data": LEAST[kind]}
    plain = json.dumps(LEAST[kind]).encode()
    forms = [
        read_command(json.dumps(structured).encode(), AmqpProperties()),
        read_command(plain, AmqpProperties(type=kind, message_id="e-1")),
        read_command(
            plain,
            AmqpProperties(
                headers={"cloudEvents:specversion": "1.0", "cloudEvents:type": kind, "cloudEvents:id": "e-1"}
            ),
        ),
    ]
    for event, command in forms:
        assert (event.type, event.id) == (kind, "e-1")
        assert command == MODELS[kind](**LEAST[kind])
        assert type(command) is MODELS[kind]


@pytest.mark.parametrize("kind", MODELS)
def test_the_example_is_the_command_of_its_type(kind: str) -> None:
    body = (FOLDER / f"{kind.replace('.', '_')}.example.json").read_bytes()
    event, command = read_command(body, AmqpProperties())
    assert event.type == kind
    assert type(command) is MODELS[kind]
    assert command.model_dump(exclude_none=True, mode="json") == event.data


@pytest.mark.parametrize(
    ("kind", "told"),
    [
        (None, "is missing"),
        ("", "is missing"),
        ("order.created", "is 'order.created'"),
        ("refund.failed", "is 'refund.failed'"),
        ("Refund.Requested", "is 'Refund.Requested'"),
        ("x" * 99, f"is '{'x' * 60}'"),
    ],
)
def test_a_message_that_is_no_command_is_refused_by_its_type(kind: str | None, told: str) -> None:
    with pytest.raises(MessageError) as caught:
        read_command(json.dumps(LEAST[REFUND]).encode(), AmqpProperties(type=kind))
    commands = "order.cancelled, payment.capture_requested, refund.requested"
    assert caught.value.problems == (("type", f"{told}; a command is one of {commands}"),)


def test_the_envelope_s_type_counts_before_the_property_s() -> None:
    structured = {"specversion": "1.0", "id": "e-1", "source": "shop", "type": CANCEL, "data": LEAST[REFUND]}
    _, command = read_command(json.dumps(structured).encode(), AmqpProperties(type=REFUND))
    assert type(command) is OrderCancelledData


def test_a_body_that_is_no_event_is_refused_before_its_type_is_looked_at() -> None:
    with pytest.raises(MessageError, match=r"^body: is JSON but not an object$"):
        read_command(b"[]", AmqpProperties(type=REFUND))
    with pytest.raises(MessageError, match=r"^order_id: is missing"):
        read_command(b"{}", AmqpProperties(type=REFUND))


def test_a_cancel_needs_an_order_and_no_more() -> None:
    cancel = read(CANCEL, LEAST[CANCEL])
    assert cancel.model_dump() == {"order_id": "o-1", "request_id": None, "reason": None, "refund_if_paid": False}


@pytest.mark.parametrize("kind", WITH_AMOUNT)
def test_a_capture_and_a_refund_need_a_request_id_and_take_all_there_is(kind: str) -> None:
    assert problems_of(kind, {"order_id": "o-1"}) == {"request_id": "field required"}
    command = read(kind, LEAST[kind])
    assert (command.request_id, command.amount, command.currency) == ("r-1", None, None)
    assert command.amount_minor_in("jpy") is None


@pytest.mark.parametrize("reason", ["duplicate", "fraudulent", "requested_by_customer"])
def test_a_reason_is_one_of_stripe_s(reason: str) -> None:
    assert read(CANCEL, {**LEAST[CANCEL], "reason": reason}).reason == reason
    assert read(REFUND, {**LEAST[REFUND], "reason": reason}).reason == reason


def test_an_order_may_be_abandoned_and_a_refund_may_not() -> None:
    assert read(CANCEL, {**LEAST[CANCEL], "reason": "abandoned"}).reason == "abandoned"
    assert problems_of(REFUND, {**LEAST[REFUND], "reason": "abandoned"}).keys() == {"reason"}


@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize("request_id", ["a", "7", "A-z_0.9:x", "x" * 64])
def test_a_request_id_has_up_to_64_plain_characters(kind: str, request_id: str) -> None:
    assert read(kind, {**LEAST[kind], "request_id": request_id}).request_id == request_id
    assert schema_faults(kind, {**LEAST[kind], "request_id": request_id}) == []


@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize("field", ["order_id", "request_id"])
@pytest.mark.parametrize("value", ["", "x" * 65, "ö", "r-1\n", "r 1", "r/1", "r\x001", 5, True, ["r"]])
def test_any_other_id_is_refused(kind: str, field: str, value: Any) -> None:
    assert problems_of(kind, {**LEAST[kind], field: value}).keys() == {field}


@pytest.mark.parametrize(
    ("kind", "field", "value"),
    [
        (CANCEL, "order_id", "o/1"),
        (CANCEL, "request_id", ""),
        (CANCEL, "reason", "changed_mind"),
        (CANCEL, "reason", ""),
        (CANCEL, "refund_if_paid", "yes"),
        (CANCEL, "refund_if_paid", 1),
        (CANCEL, "refund_if_paid", None),
        (REFUND, "reason", "Duplicate"),
        *((kind, "request_id", None) for kind in WITH_AMOUNT),
        *((kind, "amount", amount) for kind in WITH_AMOUNT for amount in ("-1", "1e2", "", "1,50", -1, 0, True, [])),
        *((kind, "currency", 840) for kind in WITH_AMOUNT),
    ],
)
def test_a_field_against_its_rule_is_named_and_invalid_by_the_schema(kind: str, field: str, value: Any) -> None:
    data = {**LEAST[kind], field: value}
    assert problems_of(kind, data).keys() == {field}
    assert schema_faults(kind, data) == [f"$.data.{field}"]


@pytest.mark.parametrize("kind", WITH_AMOUNT)
@pytest.mark.parametrize(
    ("data", "name"),
    [
        ({"amount": "0.00"}, "amount"),
        ({"amount": "9" * 17}, "amount"),
        ({"currency": "usx"}, "currency"),
        ({"currency": ""}, "currency"),
        ({"amount": "10.005", "currency": "usd"}, "amount"),
        ({"amount": "500.5", "currency": "JPY"}, "amount"),
        ({"amount": "99999999999999", "currency": "usd"}, "amount"),
    ],
)
def test_money_that_is_none_is_refused(kind: str, data: dict[str, Any], name: str) -> None:
    assert problems_of(kind, {**LEAST[kind], **data}).keys() == {name}


@pytest.mark.parametrize("kind", WITH_AMOUNT)
@pytest.mark.parametrize("amount", [b'"10.50"', b"10.50", b"1050e-2"])
def test_the_amount_is_kept_as_exact_major_units(kind: str, amount: bytes) -> None:
    body = b'{"order_id":"o-1","request_id":"r-1","amount":' + amount + b"}"
    _, command = read_command(body, AmqpProperties(type=kind))
    assert isinstance(command, CaptureRequestedData | RefundRequestedData)
    assert command.amount == Decimal("10.50")
    assert command.amount_minor_in("usd") == 1050
    assert command.amount_minor_in("kwd") == 10500


@pytest.mark.parametrize("kind", WITH_AMOUNT)
def test_an_amount_that_the_payment_s_currency_cannot_hold_is_named(kind: str) -> None:
    command = read(kind, {**LEAST[kind], "amount": "10.50"})
    with pytest.raises(MessageError, match=r"^amount: 10\.50 does not fit JPY, which has no decimals"):
        command.amount_minor_in("jpy")


@pytest.mark.parametrize("kind", WITH_AMOUNT)
@pytest.mark.parametrize(("amount", "minor"), [(None, None), ("500", 500)])
def test_a_currency_is_read_in_any_case_and_must_be_the_payment_s(
    kind: str, amount: str | None, minor: int | None
) -> None:
    command = read(kind, {**LEAST[kind], "amount": amount, "currency": "JPY"})
    assert command.currency == "jpy"
    assert command.amount_minor_in("jpy") == minor
    with pytest.raises(MessageError, match=r"^currency: is 'jpy', and the payment is in 'usd'$"):
        command.amount_minor_in("usd")


def test_the_event_id_stands_in_for_a_cancel_s_request_id() -> None:
    event = IncomingEvent(CANCEL, "e-1", None, None, None, {})
    nameless = IncomingEvent(CANCEL, None, None, None, None, {})
    assert request_id_of(event, OrderCancelledData(order_id="o-1", request_id="c-1")) == "c-1"
    assert request_id_of(event, OrderCancelledData(order_id="o-1")) == "e-1"
    assert request_id_of(nameless, OrderCancelledData(order_id="o-1")) is None


@pytest.mark.parametrize("kind", MODELS)
def test_unknown_fields_are_ignored(kind: str) -> None:
    data = {**LEAST[kind], "loyalty": {"tier": 3}}
    assert read(kind, data) == read(kind, LEAST[kind])
    assert schema_faults(kind, data) == []


@pytest.mark.parametrize("kind", MODELS)
def test_null_is_as_if_an_optional_field_were_missing(kind: str) -> None:
    optional = {name for name, field in MODELS[kind].model_fields.items() if field.default is None}
    assert {"amount", "currency"} <= optional or kind == CANCEL
    data = {**LEAST[kind], **dict.fromkeys(optional)}
    assert read(kind, data) == read(kind, LEAST[kind])
    assert schema_faults(kind, data) == []


def test_all_problems_are_told_at_once() -> None:
    data = {"order_id": "?", "request_id": "?", "amount": "-1", "currency": "usx", "reason": "?"}
    assert problems_of(REFUND, data).keys() == data.keys()


def test_a_private_value_is_in_no_problem() -> None:
    with pytest.raises(MessageError) as caught:
        read(REFUND, {"order_id": "private 1", "request_id": "private 2", "reason": "private 3"})
    assert len(caught.value.problems) == 3
    assert "private" not in str(caught.value)


_fields = st.sampled_from(sorted({name for model in MODELS.values() for name in model.model_fields}))
_values = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=30)
    | st.sampled_from(["99.99", "jpy", "o-1", "duplicate"])
    | st.lists(st.none(), max_size=1)
)


@given(st.sampled_from(sorted(MODELS)), st.dictionaries(_fields, _values), st.sampled_from(["usd", "jpy", "kwd"]))
def test_any_data_is_a_command_or_a_message_error(kind: str, data: dict[str, Any], currency: str) -> None:
    try:
        command = read(kind, {**LEAST[kind], **data})
        minor = command.amount_minor_in(currency) if kind in WITH_AMOUNT else None
    except MessageError as error:
        assert error.problems
        str(error).encode()
    else:
        assert minor is None or minor > 0
        assert MODELS[kind].model_validate_json(command.model_dump_json()) == command
