"""Headers and properties of any kind, round the retry queues as often as it takes."""

import json
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any, cast

import pytest
from aiormq.abc import DeliveredMessage
from hypothesis import assume, example, given
from hypothesis import strategies as st
from pamqp import decode, encode
from pamqp.commands import Basic
from pamqp.header import ContentHeader

from schemas import AmqpProperties
from tests.properties.strategies import TEXT, UNICODE, or_none, tries
from worker.bus.delivery import (
    LEFT_OUT,
    MAX_FAILURE_CHARS,
    MAX_HISTORY,
    Delivery,
    encodable,
    read_delivery,
    wrapped_headers,
)

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
NOW = datetime(2026, 1, 31, 12, tzinfo=UTC)
# pamqp takes a larger number of seconds for milliseconds.
LAST_SECOND = 2**32 - 1

WHOLE_SECONDS = st.integers(0, LAST_SECOND).map(lambda seconds: EPOCH + timedelta(seconds=seconds))
ANY_WIRE_TIME = st.integers(0, 253_402_300_799_000).map(lambda number: decode.timestamp(number.to_bytes(8))[1])
# Names that AMQP 0-9-1 allows: at most 128 bytes.
KEYS = st.text(UNICODE, max_size=20)
# All that pamqp's decoder gives for a name on the wire: a length byte, then UTF-8.
WIRE_KEYS = st.text(UNICODE, max_size=255).filter(lambda key: len(key.encode()) <= 255)


def tables(
    leaves: st.SearchStrategy[Any], keys: st.SearchStrategy[str] = KEYS, *, size: int = 4
) -> st.SearchStrategy[dict[str, Any]]:
    values = st.recursive(
        leaves, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(keys, inner, max_size=3), max_leaves=6
    )
    return st.dictionaries(keys, values, max_size=size)


# What comes back from AMQP as it went in.
CARRIABLE = st.none() | st.booleans() | st.integers(-(2**63), 2**63 - 1) | TEXT | WHOLE_SECONDS
# Everything that pamqp's decoder can give, and so everything that a header can be.
DECODED = (
    CARRIABLE
    | st.integers(0, 2**64 - 1)
    | st.floats()
    | st.decimals()
    | st.binary()
    | st.binary().map(bytearray)
    | ANY_WIRE_TIME
)


def over_the_wire(table: dict[str, Any]) -> dict[str, Any]:
    encoded = encode.by_type(cast("Any", table), "table")
    consumed, decoded = decode.by_type(encoded, "table")
    assert consumed == len(encoded)
    return cast("dict[str, Any]", decoded)


def read(properties: AmqpProperties, headers: dict[str, Any], *, now: datetime = NOW) -> Delivery:
    arrived = Basic.Properties(
        content_type=properties.content_type,
        content_encoding=properties.content_encoding,
        message_id=properties.message_id,
        correlation_id=properties.correlation_id,
        reply_to=properties.reply_to,
        message_type=properties.type,
        app_id=properties.app_id,
        timestamp=properties.timestamp,
        headers=headers,
    )
    message = DeliveredMessage(
        delivery=Basic.Deliver("consumer", 1),
        header=ContentHeader(properties=arrived, body_size=2),
        body=b"{}",
        channel=cast("Any", None),
    )
    return read_delivery(message, now=now, acknowledge=lambda _: None)


def handed_over(delivery: Delivery, *, failure: str | None = None) -> Delivery:
    """The delivery as it comes back from a retry queue, later, under a message id of ours."""
    timestamp = delivery.properties.timestamp
    if timestamp:
        timestamp = decode.timestamp(encode.timestamp(timestamp))[1]
    properties = replace(delivery.properties, message_id="ours", timestamp=timestamp)
    return read(properties, over_the_wire(wrapped_headers(delivery, failure=failure)), now=NOW + timedelta(hours=1))


# An empty short string is told from none on the wire, yet nobody means anything by it.
SHORT_STRINGS = or_none(st.text(UNICODE, min_size=1, max_size=60))


def properties_with(
    headers: st.SearchStrategy[dict[str, Any]], timestamps: st.SearchStrategy[datetime] = WHOLE_SECONDS
) -> st.SearchStrategy[AmqpProperties]:
    return st.builds(
        AmqpProperties,
        content_type=SHORT_STRINGS,
        content_encoding=SHORT_STRINGS,
        message_id=SHORT_STRINGS,
        correlation_id=SHORT_STRINGS,
        reply_to=SHORT_STRINGS,
        type=SHORT_STRINGS,
        app_id=SHORT_STRINGS,
        timestamp=or_none(timestamps),
        headers=headers,
    )


@tries(400)
@given(tables(DECODED, WIRE_KEYS))
def test_headers_of_every_kind_can_be_written_to_amqp_and_read_again(headers: dict[str, Any]) -> None:
    assert over_the_wire(encodable(headers)) is not None


@tries(300)
@given(tables(DECODED.filter(lambda value: not isinstance(value, datetime)) | WHOLE_SECONDS))
def test_encodable_headers_arrive_as_they_were_sent(headers: dict[str, Any]) -> None:
    sent = encodable(headers)
    assert over_the_wire(sent) == sent
    assert encodable(sent) == sent


@tries(200)
@given(tables(CARRIABLE))
def test_headers_that_amqp_can_carry_are_left_as_they_are(headers: dict[str, Any]) -> None:
    assert encodable(headers) == headers


@tries(20)
@given(st.integers(1, 200), st.integers(100, 2_000), st.sampled_from(["a", "ä", "\U0001f600", "\x01"]))
def test_headers_too_large_for_a_frame_are_left_out_and_named(count: int, length: int, letter: str) -> None:
    headers = {f"key-{number}": letter * length for number in range(count)}
    sent = encodable(headers)
    assert sent == headers or sent.keys() == {LEFT_OUT}
    assert len(encode.by_type(cast("Any", sent), "table")) < 100 * 1024
    if len(json.dumps(headers)) < 32 * 1024:
        assert sent == headers


@tries(200)
@given(properties_with(tables(CARRIABLE)), st.integers(1, 6))
def test_a_message_comes_back_from_every_round_as_its_producer_sent_it(original: AmqpProperties, rounds: int) -> None:
    delivery = first = read(original, dict(original.headers))
    assert first.properties == original
    for number in range(1, rounds + 1):
        delivery = handed_over(delivery)
        assert delivery.properties == original
        assert delivery.deliveries == first.deliveries + number
        assert delivery.first_seen == NOW
        assert delivery.letter_id == first.letter_id


@tries(200)
@given(properties_with(tables(DECODED.filter(lambda value: not isinstance(value, datetime)))), st.integers(2, 5))
def test_what_amqp_cannot_carry_becomes_text_once_and_stays_the_same_text(
    original: AmqpProperties, rounds: int
) -> None:
    delivery = read(original, dict(original.headers))
    for _ in range(rounds):
        delivery = handed_over(delivery)
        assert delivery.properties == replace(original, headers=encodable(original.headers))


FAILURES = or_none(st.text(UNICODE, max_size=400))


@tries(150)
@given(st.lists(FAILURES, min_size=1, max_size=60))
@example([f"failure {number}" for number in range(60)])
def test_what_went_wrong_is_carried_along_oldest_first_and_no_more_than_the_last_of_it(
    failures: list[str | None],
) -> None:
    delivery = read(AmqpProperties(), {})
    for failure in failures:
        delivery = handed_over(delivery, failure=failure)
    told = [failure[:MAX_FAILURE_CHARS] for failure in failures if failure]
    assert list(delivery.history) == told[-MAX_HISTORY:]
    assert delivery.properties == AmqpProperties()
    assert delivery.deliveries == len(failures) + 1


OUR_NAMES = st.sampled_from(
    [
        "payment-worker-deliveries",
        "payment-worker-first-seen",
        "payment-worker-history",
        "payment-worker-original-message-id",
        "payment-worker-original-headers",
        "payment-worker-unreadable",
        "payment-worker-left-out",
    ]
)


@tries(300)
@given(properties_with(tables(DECODED, OUR_NAMES | KEYS, size=6)))
def test_forged_headers_of_ours_raise_nothing_and_still_count_up(original: AmqpProperties) -> None:
    delivery = read(original, dict(original.headers))
    assume(delivery.deliveries < 1_000_000)
    assert delivery.deliveries >= 1
    assert delivery.first_seen.tzinfo is UTC
    assert handed_over(delivery).deliveries == delivery.deliveries + 1


@tries(60)
@given(st.one_of(st.integers(), st.booleans(), st.floats(), TEXT, st.none(), st.lists(st.integers(), max_size=2)))
def test_a_count_that_somebody_wrote_is_believed_within_reason(written: Any) -> None:
    delivery = read(AmqpProperties(), {"payment-worker-deliveries": written})
    assert 1 <= delivery.deliveries <= 1_000_001


@pytest.mark.parametrize(
    "headers",
    [
        {"ratio": 1.5},
        {"raw": b"\xff"},
        {"raw": bytearray(b"abc")},
        {"k" * 200: "long"},
        {"ä" * 100: "long in bytes"},
        {"big": 2**64 - 1},
        {"large": "x" * 70_000},
    ],
    ids=lambda headers: next(iter(headers))[:8],
)
def test_a_letter_has_the_same_id_before_and_after_a_retry(headers: dict[str, Any]) -> None:
    delivery = read(AmqpProperties(), headers)
    assert handed_over(delivery).letter_id == delivery.letter_id


@pytest.mark.parametrize("wire", [1_769_860_800, 1_769_860_800_123], ids=["seconds", "milliseconds"])
def test_a_timestamp_is_the_same_second_after_a_retry_and_the_letter_the_same(wire: int) -> None:
    """A producer may send milliseconds, which pamqp reads; it writes whole seconds, as AMQP 0-9-1 has them."""
    stamp = decode.timestamp(wire.to_bytes(8))[1]
    delivery = read(AmqpProperties(timestamp=stamp), {"sent": stamp})
    after = handed_over(delivery)
    assert after.properties.timestamp == stamp.replace(microsecond=0)
    assert after.letter_id == delivery.letter_id


FRAME_BYTES = 128 * 1024


def test_wrapped_headers_always_fit_a_frame_with_room_for_the_other_properties() -> None:
    forged = {
        "payment-worker-original-headers": {"k": [""] * 16_000},
        "payment-worker-history": ["\U0001f600" * 250] * 49,
    }
    assert len(encode.by_type(cast("Any", forged), "table")) < FRAME_BYTES - 100, "or the broker would not bring it"
    sent = wrapped_headers(read(AmqpProperties(), forged), failure="x" * 300)
    # A dead letter adds the error (1000 characters), the reason and the times; the properties are short strings.
    assert len(encode.by_type(cast("Any", sent), "table")) < FRAME_BYTES - 4_000
