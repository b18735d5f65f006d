"""The payment events: which there are, what each holds, and how a subscriber reads any of them."""

import json
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any, Final

import pytest
from hypothesis import given
from hypothesis import strategies as st
from jsonschema import Draft202012Validator

from schemas import EVENT_MODELS, MessageError, PaymentRefunded, PaymentSnapshot, read_payment_event, to_minor
from schemas.json_files import FOLDER

# Those that the first message of an order leads to; they say less of the payment, since nothing has moved.
FIRST: Final = ["payment.intent_created", "payment.failed"]
# {type: what it holds beside the snapshot}; a question mark: may be missing.
HOLDS: Final = {
    "payment.requires_action": "next_action?",
    "payment.processing": "",
    "payment.authorized": "capture_before?",
    "payment.authorization_expiring": "capture_before",
    "payment.succeeded": "",
    "payment.attempt_failed": "failure",
    "payment.canceled": "reason? request_id?",
    "payment.cancel_failed": "request_id? failure",
    "payment.captured": "request_id? captured captured_minor",
    "payment.capture_failed": "request_id failure",
    "payment.refunded": "refund fully_refunded",
    "payment.refund_failed": "refund failure_reason?",
    "refund.failed": "request_id failure amount_refundable amount_refundable_minor",
    "payment.dispute_opened": "dispute",
    "payment.dispute_closed": "dispute",
    "payment.settled": "fee fee_minor net net_minor settlement_currency balance_transaction_id exchange_rate?",
}
SNAPSHOT: Final = (
    "order_id payment_id? status? amount amount_minor currency livemode? sequence cause? amount_capturable "
    "amount_capturable_minor amount_received amount_received_minor amount_refunded amount_refunded_minor "
    "amount_disputed amount_disputed_minor"
)
# {object inside the data: what it holds}.
PARTS: Final = {
    ("payment.refunded", "refund"): "refund_id request_id? amount amount_minor status reason?",
    ("payment.dispute_opened", "dispute"): ("dispute_id amount amount_minor currency reason status evidence_due_by?"),
    ("payment.capture_failed", "failure"): "code message",
    ("payment.attempt_failed", "failure"): "category code? decline_code? message may_retry",
}


def example(kind: str, **data: Any) -> dict[str, Any]:
    event = json.loads((FOLDER / f"{kind.replace('.', '_')}.example.json").read_text(encoding="utf-8"))
    return {**event, "data": {**event["data"], **data}}


def told(event: Any) -> bytes:
    return json.dumps(event).encode()


def problems_of(event: Any) -> dict[str, str]:
    with pytest.raises(MessageError) as caught:
        read_payment_event(event if isinstance(event, bytes) else told(event))
    return dict(caught.value.problems)


def schema_faults(event: dict[str, Any]) -> list[str]:
    schema = json.loads((FOLDER / f"{event['type'].replace('.', '_')}.schema.json").read_text(encoding="utf-8"))
    return [error.json_path for error in Draft202012Validator(schema).iter_errors(event)]


def without(part: dict[str, Any], name: str) -> dict[str, Any]:
    return {other: value for other, value in part.items() if other != name}


def test_the_events_are_these() -> None:
    assert EVENT_MODELS.keys() == {*FIRST, *HOLDS}


@pytest.mark.parametrize("kind", [*FIRST, *HOLDS])
def test_the_example_is_read_as_the_model_of_its_type(kind: str) -> None:
    event = read_payment_event(told(example(kind)))
    assert type(event) is EVENT_MODELS[kind]
    assert event.type == kind
    assert event.subject == event.data.order_id
    assert event.id == f"{event.data.order_id}/payment/{event.data.sequence}"


@pytest.mark.parametrize("kind", HOLDS)
def test_an_event_holds_the_whole_payment_and_what_happened(kind: str) -> None:
    data = read_payment_event(told(example(kind))).data
    assert isinstance(data, PaymentSnapshot)
    assert {name if field.is_required() else f"{name}?" for name, field in type(data).model_fields.items()} == {
        *SNAPSHOT.split(),
        *HOLDS[kind].split(),
    }


@pytest.mark.parametrize("kind", HOLDS)
def test_a_field_that_must_be_there_is_named_where_it_is_missing(kind: str) -> None:
    whole = example(kind)
    for field in f"{SNAPSHOT} {HOLDS[kind]}".split():
        name = field.removesuffix("?")
        less = {**whole, "data": without(whole["data"], name)}
        if field == name:
            assert problems_of(less) == {f"data.{name}": "field required"}
            assert schema_faults(less) == ["$.data"], name
        else:
            assert getattr(read_payment_event(told(less)).data, name) is None
            assert schema_faults(less) == [], name


@pytest.mark.parametrize(("kind", "part"), PARTS)
def test_a_part_holds_what_it_must(kind: str, part: str) -> None:
    whole = example(kind)["data"][part]
    names = [field.removesuffix("?") for field in PARTS[kind, part].split()]
    assert whole.keys() == set(names)
    for field in PARTS[kind, part].split():
        name = field.removesuffix("?")
        less = example(kind, **{part: without(whole, name)})
        if field == name:
            assert problems_of(less) == {f"data.{part}.{name}": "field required"}
            assert schema_faults(less) == [f"$.data.{part}"], name
        else:
            read_payment_event(told(less))
            assert schema_faults(less) == [], name


MOVED: Final = ("amount_capturable", "amount_received", "amount_refunded", "amount_disputed")


@pytest.mark.parametrize(
    ("kind", "field", "value"),
    [
        *((kind, f"{name}_minor", -1) for kind in HOLDS for name in MOVED),
        *((kind, name, "-0.01") for kind in HOLDS for name in ("amount", *MOVED)),
        *((kind, "amount_minor", 0) for kind in HOLDS),
        *((kind, "sequence", 0) for kind in HOLDS),
        *((kind, "order_id", "o/1") for kind in HOLDS),
        *((kind, "currency", "USD") for kind in HOLDS),
        ("payment.captured", "captured_minor", 0),
        ("payment.captured", "captured", "-1"),
        ("payment.captured", "request_id", ""),
        ("payment.capture_failed", "request_id", None),
        ("payment.canceled", "request_id", "x" * 256),
        ("payment.refunded", "fully_refunded", None),
        ("refund.failed", "amount_refundable_minor", -1),
        ("payment.settled", "fee_minor", -1),
        ("payment.settled", "fee", "-1"),
        ("payment.settled", "net", "1e2"),
        ("payment.settled", "settlement_currency", "EUR"),
        ("payment.settled", "balance_transaction_id", ""),
        ("payment.settled", "exchange_rate", "9.2e-05"),
        ("payment.settled", "exchange_rate", "-1"),
    ],
)
def test_a_value_past_its_limit_is_named_and_invalid_by_the_schema(kind: str, field: str, value: Any) -> None:
    beyond = example(kind, **{field: value})
    assert problems_of(beyond).keys() == {f"data.{field}"}
    assert schema_faults(beyond) == [f"$.data.{field}"]


@pytest.mark.parametrize(
    ("kind", "part", "field", "value"),
    [
        ("payment.refunded", "refund", "amount_minor", 0),
        ("payment.refunded", "refund", "refund_id", ""),
        ("payment.refund_failed", "refund", "status", ""),
        ("payment.dispute_opened", "dispute", "amount_minor", 0),
        ("payment.dispute_opened", "dispute", "currency", "usdc"),
        ("payment.dispute_closed", "dispute", "dispute_id", ""),
        ("payment.capture_failed", "failure", "code", ""),
        ("refund.failed", "failure", "message", ""),
        ("payment.cancel_failed", "failure", "message", None),
        ("payment.attempt_failed", "failure", "category", "other"),
    ],
)
def test_a_value_inside_a_part_is_named_by_its_path(kind: str, part: str, field: str, value: Any) -> None:
    beyond = example(kind, **{part: {**example(kind)["data"][part], field: value}})
    assert problems_of(beyond).keys() == {f"data.{part}.{field}"}
    assert schema_faults(beyond) == [f"$.data.{part}.{field}"]


@pytest.mark.parametrize("kind", ["payment.authorized", "payment.authorization_expiring"])
def test_a_time_is_told_with_its_zone(kind: str) -> None:
    event: Any = read_payment_event(told(example(kind, capture_before="2026-02-07T13:05:00+01:00")))
    assert event.data.capture_before == datetime(2026, 2, 7, 12, 5, tzinfo=UTC)
    assert problems_of(example(kind, capture_before="2026-02-07T12:05:00")).keys() == {"data.capture_before"}


def test_the_time_that_evidence_is_due_has_a_zone_too() -> None:
    dispute = example("payment.dispute_opened")["data"]["dispute"]
    due = {**dispute, "evidence_due_by": "2026-02-21T00:59:59+01:00"}
    event: Any = read_payment_event(told(example("payment.dispute_opened", dispute=due)))
    assert event.data.dispute.evidence_due_by == datetime(2026, 2, 20, 23, 59, 59, tzinfo=UTC)
    zoneless = example("payment.dispute_opened", dispute={**dispute, "evidence_due_by": "2026-02-20T23:59:59"})
    assert problems_of(zoneless).keys() == {"data.dispute.evidence_due_by"}


def test_a_net_may_be_below_zero() -> None:
    loss = example("payment.settled", net="-0.21", net_minor=-21)
    event: Any = read_payment_event(told(loss))
    assert (event.data.net, event.data.net_minor) == ("-0.21", -21)
    assert schema_faults(loss) == []


@pytest.mark.parametrize("kind", [*FIRST, *HOLDS])
def test_the_amounts_of_an_example_are_the_same_in_both_units(kind: str) -> None:
    def compare(part: dict[str, Any], currency: str) -> int:
        compared = 0
        for name, minor in part.items():
            if isinstance(minor, dict):
                compared += compare(minor, minor.get("currency", currency))
            elif name.endswith("_minor"):
                owner = "settlement_currency" if name in ("fee_minor", "net_minor") else "currency"
                major = Decimal(part[name.removesuffix("_minor")])
                assert to_minor(major, part.get(owner, currency)) == minor, name
                compared += 1
        return compared

    data = example(kind)["data"]
    assert compare(data, data["currency"]) >= (1 if kind in FIRST else 5)


@pytest.mark.parametrize("kind", [*FIRST, *HOLDS])
def test_unknown_fields_are_ignored_at_every_level(kind: str) -> None:
    plain = example(kind)
    grown = json.loads(told(plain), object_hook=lambda part: {**part, "new": {"a": [1]}})
    assert grown != plain
    assert read_payment_event(told(grown)) == read_payment_event(told(plain))
    assert schema_faults(grown) == []


@pytest.mark.parametrize(
    ("kind", "problem"),
    [
        ("payment.eaten", "is 'payment.eaten'; this contract has no such payment event"),
        ("order.created", "is 'order.created'; this contract has no such payment event"),
        ("x" * 99, f"is '{'x' * 60}'; this contract has no such payment event"),
        ("", "is ''; this contract has no such payment event"),
        (None, "is missing or no string; this contract has no such payment event"),
        (["payment.failed"], "is missing or no string; this contract has no such payment event"),
    ],
)
def test_an_event_of_an_unknown_type_is_refused_by_its_type(kind: Any, problem: str) -> None:
    assert problems_of({**example("payment.failed"), "type": kind}) == {"type": problem}


@pytest.mark.parametrize(
    "body", [b"", b"[]", b"nonsense", b"\xff", b'{"type": NaN}', b'{"type":"a","type":"b"}', b" " * 262145]
)
def test_a_body_that_is_no_json_object_is_refused(body: bytes) -> None:
    assert problems_of(body).keys() == {"body"}


@pytest.mark.parametrize("digits", [b"1e999999999", b"-1e999999999", b"1e-999999999", b"1.5"])
def test_a_number_past_any_range_is_refused_at_once(digits: bytes) -> None:
    body = told(example("payment.succeeded")).replace(b'"sequence": 2', b'"sequence": ' + digits)
    assert digits in body
    assert problems_of(body).keys() == {"data.sequence"}


def test_the_envelope_is_judged_too() -> None:
    event = example("payment.succeeded")
    assert problems_of({**event, "specversion": "0.3", "id": ""}).keys() == {"specversion", "id"}
    assert problems_of({**event, "data": None}).keys() == {"data"}
    assert problems_of(without(event, "source")).keys() == {"source"}


def test_a_private_value_is_in_no_problem() -> None:
    with pytest.raises(MessageError) as caught:
        read_payment_event(told(example("payment.canceled", order_id="private 1", reason=["private 2"])))
    assert len(caught.value.problems) == 2
    assert "private" not in str(caught.value)


def test_a_subscriber_may_match_on_the_event() -> None:
    match read_payment_event(told(example("payment.refunded"))):
        case PaymentRefunded(data=data):
            assert (data.refund.amount, data.fully_refunded, data.amount_refunded_minor) == ("20.00", False, 2000)
        case other:
            pytest.fail(f"read as {other.type}")


_values = st.none() | st.booleans() | st.integers() | st.text(max_size=20) | st.lists(st.none(), max_size=1)


@given(st.data())
def test_any_event_is_read_or_refused_with_a_message_error(data: st.DataObject) -> None:
    kind = data.draw(st.sampled_from([*FIRST, *HOLDS]))
    fields = st.sampled_from(sorted(example(kind)["data"]))
    event = example(kind, **data.draw(st.dictionaries(fields, _values, max_size=3)))
    try:
        read = read_payment_event(told(event))
    except MessageError as error:
        assert error.problems
        str(error).encode()
    else:
        assert read_payment_event(read.model_dump_json(exclude_none=True).encode()) == read
