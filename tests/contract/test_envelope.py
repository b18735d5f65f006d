"""The CloudEvents envelope in its two AMQP forms, and what is taken for it."""

import json
from dataclasses import replace
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas import AmqpProperties, IncomingEvent, MessageError, read_event
from schemas.envelope import MAX_BODY_BYTES

TRACE = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
OTHER_TRACE = TRACE.replace("4bf9", "aaaa")
STRUCTURED: dict[str, Any] = {
    "specversion": "1.0",
    "id": "e-1",
    "source": "shop",
    "type": "order.created",
    "data": {"order_id": "o-1"},
}


def read(body: object, properties: AmqpProperties | None = None) -> IncomingEvent:
    encoded = body if isinstance(body, bytes) else json.dumps(body).encode()
    return read_event(encoded, properties or AmqpProperties(), data_key="order_id")


def problems_of(body: object, properties: AmqpProperties | None = None) -> dict[str, str]:
    with pytest.raises(MessageError) as caught:
        read(body, properties)
    assert all(f"{name}: {problem}" in str(caught.value) for name, problem in caught.value.problems)
    return dict(caught.value.problems)


def test_a_structured_event_is_read_from_its_body() -> None:
    event = read({**STRUCTURED, "time": "2026-01-31T12:00:00Z", "traceparent": TRACE, "partitionkey": "ignored"})
    assert event == IncomingEvent(
        type="order.created",
        id="e-1",
        source="shop",
        time="2026-01-31T12:00:00Z",
        traceparent=TRACE,
        data={"order_id": "o-1"},
    )


@pytest.mark.parametrize("content_type", ["application/json", "application/octet-stream", "text/plain", "", None])
def test_a_structured_event_is_known_by_its_body_whatever_the_content_type(content_type: str | None) -> None:
    assert read(STRUCTURED, AmqpProperties(content_type=content_type, type="other", message_id="m")).id == "e-1"


def test_a_structured_event_takes_the_trace_of_the_headers_where_it_has_none() -> None:
    headers = {"traceparent": OTHER_TRACE}
    assert read(STRUCTURED, AmqpProperties(headers=headers)).traceparent == OTHER_TRACE
    assert read({**STRUCTURED, "traceparent": TRACE}, AmqpProperties(headers=headers)).traceparent == TRACE


@pytest.mark.parametrize("prefix", ["cloudEvents:", "cloudEvents_"])
def test_a_binary_event_has_its_attributes_in_the_headers(prefix: str) -> None:
    attributes = {
        "specversion": "1.0",
        "id": "e-2",
        "type": "order.created",
        "source": "shop",
        "time": "2026-01-31T12:00:00Z",
        "traceparent": TRACE,
    }
    headers = {prefix + name: value for name, value in attributes.items()}
    properties = AmqpProperties(
        message_id="m-1", type="amqp", app_id="app", timestamp=datetime(2020, 1, 1, tzinfo=UTC), headers=headers
    )
    event = read({"order_id": "o-1", "amount": "1"}, properties)
    assert (event.id, event.type, event.source) == ("e-2", "order.created", "shop")
    assert (event.time, event.traceparent) == ("2026-01-31T12:00:00Z", TRACE)
    assert set(event.data) == {"order_id", "amount"}


def test_a_binary_event_without_the_data_key_is_one_all_the_same() -> None:
    assert read({"x": 1}, AmqpProperties(headers={"cloudEvents:specversion": "1.0"})).data.keys() == {"x"}


def test_a_binary_event_falls_back_on_the_amqp_properties() -> None:
    properties = AmqpProperties(
        message_id="m-1",
        type="order.created",
        app_id="shop",
        timestamp=datetime(2026, 1, 31, 13, tzinfo=timezone(timedelta(hours=1))),
        headers={"traceparent": TRACE},
    )
    event = read({"order_id": "o-1"}, properties)
    assert (event.id, event.type, event.source) == ("m-1", "order.created", "shop")
    assert (event.time, event.traceparent) == ("2026-01-31T12:00:00+00:00", TRACE)


@pytest.mark.parametrize("value", ["", 7, None, b"x", ["a"]])
def test_a_header_that_is_no_text_is_as_if_it_were_missing(value: Any) -> None:
    names = ("id", "type", "source", "time", "traceparent")
    headers = {f"cloudEvents:{name}": value for name in names} | {"traceparent": value}
    event = read({"order_id": "o-1"}, AmqpProperties(message_id="m-1", headers=headers))
    assert (event.id, event.type, event.source, event.time, event.traceparent) == ("m-1", None, None, None, None)


@pytest.mark.parametrize("content_type", [None, "", "application/json", "text/plain", "application/cloudevents+json"])
def test_a_plain_object_with_an_order_id_is_data_whatever_its_content_type(content_type: str | None) -> None:
    event = read({"order_id": "o-1"}, AmqpProperties(content_type=content_type))
    assert event == IncomingEvent(None, None, None, None, None, {"order_id": "o-1"})


def test_a_plain_object_without_an_order_id_is_nothing_we_know() -> None:
    assert problems_of({"orderId": "o-1"}) == {
        "order_id": "is missing; send a CloudEvents envelope or an object that has it"
    }


@pytest.mark.parametrize("version", ["0.3", "1.1", "", 1, None, 1.0])
def test_another_specversion_is_refused(version: Any) -> None:
    assert problems_of({**STRUCTURED, "specversion": version}) == {"specversion": "must be '1.0'"}


def test_another_specversion_in_the_headers_is_refused() -> None:
    properties = AmqpProperties(headers={"cloudEvents:specversion": "0.3"})
    assert problems_of({"order_id": "o-1"}, properties) == {"cloudEvents:specversion": "must be '1.0'"}


@pytest.mark.parametrize("data", [None, "x", [1], 5])
def test_data_that_is_no_object_is_refused(data: Any) -> None:
    assert problems_of({**STRUCTURED, "data": data}) == {"data": "must be a JSON object"}


def test_data_in_base64_is_refused_by_its_name() -> None:
    body = {name: value for name, value in STRUCTURED.items() if name != "data"}
    assert problems_of(body) == {"data": "must be a JSON object"}
    assert problems_of({**body, "data_base64": "e30="}) == {"data": "must be a JSON object; data_base64 is not read"}


def test_every_fault_of_an_envelope_is_told_at_once() -> None:
    body = {"specversion": "2", "id": "", "source": 5, "data": []}
    assert problems_of(body).keys() == {"specversion", "id", "source", "type", "data"}


@pytest.mark.parametrize("name", ["id", "source", "type"])
def test_an_attribute_that_cannot_be_carried_on_is_refused_in_both_forms(name: str) -> None:
    header = f"cloudEvents:{name}"
    in_amqp = {"id": "message_id", "source": "app_id", "type": "type"}[name]
    for value, told in (("x" * 256, "is longer than 255 characters"), ("a\x00b", "contains a control character")):
        assert problems_of({**STRUCTURED, name: value}) == {name: told}
        assert problems_of({"order_id": "o-1"}, AmqpProperties(headers={header: value})) == {name: told}
        assert problems_of({"order_id": "o-1"}, replace(AmqpProperties(), **{in_amqp: value})) == {name: told}
    longest = "é" * 255
    assert getattr(read({**STRUCTURED, name: longest}), name) == longest


@pytest.mark.parametrize("body", [STRUCTURED, {"order_id": "o-1"}])
def test_a_correlation_id_that_no_ledger_can_keep_is_refused(body: dict[str, Any]) -> None:
    assert problems_of(body, AmqpProperties(correlation_id="a\x00b")).keys() == {"correlation_id"}


@pytest.mark.parametrize("trace", ["x", TRACE + "\n", TRACE.upper(), TRACE + "-" + "0" * 300, "00-\x00", "x" * 5000])
def test_a_traceparent_that_is_none_is_ignored_and_the_order_is_taken(trace: str) -> None:
    assert read({**STRUCTURED, "traceparent": trace}).traceparent is None
    for header in ("traceparent", "cloudEvents:traceparent"):
        assert read({"order_id": "o-1"}, AmqpProperties(headers={header: trace})).traceparent is None


def test_a_body_is_taken_up_to_the_limit_and_not_beyond() -> None:
    start = b'{"order_id":"o-1","x":"'
    fitting = start + b"x" * (MAX_BODY_BYTES - len(start) - 2) + b'"}'
    assert len(fitting) == MAX_BODY_BYTES == 262_144
    assert read(fitting).data["order_id"] == "o-1"
    assert problems_of(fitting + b" ") == {"body": "is 262145 bytes; at most 262144 are taken"}


@pytest.mark.parametrize("encoding", ["gzip", "deflate", "br", "aes128gcm", "utf-16", "x" * 5000])
def test_an_encoded_body_is_refused_by_its_encoding(encoding: str) -> None:
    problems = problems_of(STRUCTURED, AmqpProperties(content_encoding=encoding))
    assert problems == {"content_encoding": f"is {encoding[:40]!r}; send the body plain"}


@pytest.mark.parametrize("encoding", [None, "", "utf-8", "UTF-8", "identity"])
def test_a_body_that_says_it_is_plain_is_taken(encoding: str | None) -> None:
    assert read(STRUCTURED, AmqpProperties(content_encoding=encoding)).id == "e-1"


@pytest.mark.parametrize("body", [b"", b"[]", b"null", b'"order_id"', b"5", b"<xml/>", b"\xff", b"\x80\x04K\x01."])
def test_a_body_that_is_no_json_object_is_refused(body: bytes) -> None:
    assert problems_of(body).keys() == {"body"}


_bodies = (
    st.binary()
    | st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
        lambda inner: (
            st.lists(inner, max_size=4)
            | st.dictionaries(
                st.sampled_from(["specversion", "id", "source", "type", "time", "traceparent", "data", "order_id"])
                | st.text(max_size=8),
                inner,
                max_size=8,
            )
        ),
        max_leaves=12,
    ).map(lambda value: json.dumps(value).encode())
    | st.dictionaries(
        st.sampled_from(list(STRUCTURED)), st.sampled_from(["", "1.0", "x", 5, None, {"order_id": 1}])
    ).map(lambda changed: json.dumps({**STRUCTURED, **changed}).encode())
)
# what an AMQP 0-9-1 header table can hold, as decoded
_header_values = st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary() | st.just({"a": [1]})
_short_texts = st.none() | st.text(max_size=60)
_properties = st.builds(
    AmqpProperties,
    content_type=_short_texts,
    content_encoding=st.sampled_from([None, "utf-8", "gzip"]) | _short_texts,
    message_id=_short_texts,
    correlation_id=_short_texts,
    reply_to=_short_texts,
    type=_short_texts,
    app_id=_short_texts,
    timestamp=st.none() | st.datetimes(timezones=st.just(UTC)),
    headers=st.dictionaries(
        st.sampled_from(["cloudEvents:specversion", "cloudEvents_id", "cloudEvents:type", "traceparent"]) | st.text(),
        _header_values,
    ),
)


@given(_bodies, _properties)
def test_any_message_is_an_event_or_a_message_error(body: bytes, properties: AmqpProperties) -> None:
    try:
        event = read_event(body, properties, data_key="order_id")
    except MessageError as error:
        assert error.problems
        str(error).encode()
    else:
        assert isinstance(event.data, dict)
        for value in (event.type, event.id, event.source, event.time, event.traceparent):
            assert value is None or value
