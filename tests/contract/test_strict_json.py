"""JSON as money needs it."""

from decimal import Decimal
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from schemas.strict_json import MAX_DEPTH, JsonError, decode_json


@pytest.mark.parametrize("constant", [b"NaN", b"Infinity", b"-Infinity", b'{"amount": NaN}', b"[Infinity]"])
def test_numbers_that_json_does_not_have_are_refused(constant: bytes) -> None:
    with pytest.raises(JsonError, match="which is not JSON"):
        decode_json(constant)


@pytest.mark.parametrize(
    "body",
    [
        b'{"amount":"1","amount":"2"}',
        b'{"a":{"amount":"1","amount":"1"}}',
        b'[{"b":1},{"amount":1,"x":0,"amount":2}]',
        b'{"amount":1,"\\u0061mount":2}',
    ],
)
def test_a_key_told_twice_is_refused_wherever_it_is(body: bytes) -> None:
    with pytest.raises(JsonError, match="has the key 'amount' twice"):
        decode_json(body)


def test_the_same_key_in_two_objects_is_fine() -> None:
    assert decode_json(b'{"a":{"id":"1"},"id":"2"}') == {"a": {"id": "1"}, "id": "2"}


@pytest.mark.parametrize("opening", [b"[", b'{"a":'])
@pytest.mark.parametrize("is_closed", [True, False])
def test_fifty_thousand_levels_are_refused_and_nothing_breaks(opening: bytes, is_closed: bool) -> None:
    closing = {b"[": b"]", b'{"a":': b"}"}[opening]
    body = opening * 50_000 + b"1" + (closing * 50_000 if is_closed else b"")
    with pytest.raises(JsonError, match=f"is nested deeper than {MAX_DEPTH} levels"):
        decode_json(body)


@pytest.mark.parametrize(("opening", "closing"), [(b"[", b"]"), (b'{"a":', b"}")])
def test_the_depth_limit_is_where_it_says(opening: bytes, closing: bytes) -> None:
    decode_json(opening * MAX_DEPTH + b"1" + closing * MAX_DEPTH)
    with pytest.raises(JsonError, match=f"is nested deeper than {MAX_DEPTH} levels"):
        decode_json(opening * (MAX_DEPTH + 1) + b"1" + closing * (MAX_DEPTH + 1))


def test_brackets_in_strings_and_siblings_are_no_depth() -> None:
    assert decode_json(b'{"a":"' + b"[" * 500 + b'"}') == {"a": "[" * 500}
    assert decode_json(b"[" + b"[]," * 500 + b"[]]") == [[]] * 501


@pytest.mark.parametrize(
    ("body", "told"),
    [
        (b"", "is empty"),
        (b"\xef\xbb\xbf{}", "starts with a byte order mark"),
        (b'{"a":"\xff"}', r"is not UTF-8 \(byte 6\)"),
        (b'"\xed\xa0\x80"', "is not UTF-8"),
        (b"\xff\xfe{\x00}\x00", "is not UTF-8"),
        (b"{} x", "Extra data at character 3"),
        (b"{}{}", "Extra data"),
        (b'{"a":1,}', "is not JSON"),
        (b"{'a':1}", "is not JSON"),
        (b"[1,]", "is not JSON"),
        (b'{"a":1} // why', "Extra data"),
        (b'"\x01"', "Invalid control character"),
        (b'"a\nb"', "Invalid control character"),
        (b"01", "Extra data"),
        (b"+1", "is not JSON"),
        (b".5", "is not JSON"),
        (b"1_000", "Extra data"),
        (b"True", "is not JSON"),
        (b"\x00", "is not JSON"),
        ("٥".encode(), "is not JSON"),
        (b"\xc2\xa0{}", "is not JSON"),
        (b"1e99999999999999999999", "out of any range"),
    ],
)
def test_what_is_not_json_is_refused_and_says_where(body: bytes, told: str) -> None:
    with pytest.raises(JsonError, match=told):
        decode_json(body)


@pytest.mark.parametrize(
    "body", [rb'"\ud800"', rb'{"a":["\uDFFF"]}', rb'{"\ud83d":1}', rb'"\ud83d \ude00"', rb'"\ude00\ud83d"']
)
def test_half_a_surrogate_pair_is_refused(body: bytes) -> None:
    with pytest.raises(JsonError, match="half a surrogate pair"):
        decode_json(body)


def test_a_whole_surrogate_pair_is_a_character() -> None:
    assert decode_json(rb'{"\ud83d\ude00":"\uD83D\uDE00"}') == {"😀": "😀"}
    assert decode_json(rb'"\\ud800"') == r"\ud800"


@pytest.mark.parametrize("digits", ["0.1", "99.99", "1", "-0", "1e2", "1E-7", "0.10", "123456789012345678901234567890"])
def test_a_number_is_kept_by_its_digits(digits: str) -> None:
    value = decode_json(digits.encode())
    assert isinstance(value, Decimal)
    assert value.as_tuple() == Decimal(digits).as_tuple()


def test_a_number_of_many_thousand_digits_is_read_and_not_computed_with() -> None:
    assert decode_json(b"7" * 100_000).adjusted() == 99_999


def test_the_other_values_are_pythons_own() -> None:
    assert decode_json(b' {"a": [true, false, null, "\xc3\xa9"]}\r\n') == {"a": [True, False, None, "é"]}


@given(st.binary() | st.text().map(str.encode) | st.text('[]{}",:\\ud8e01.- ', max_size=60).map(str.encode))
@example(rb'{"a":"\ud800"}')
def test_any_bytes_decode_or_raise_a_json_error(body: bytes) -> None:
    try:
        value = decode_json(body)
    except JsonError as error:
        str(error).encode()
    else:
        _check(value)


def _check(value: Any) -> None:
    """Nothing but what was promised, all of it writable again."""
    assert type(value) in (dict, list, str, bool, type(None), Decimal)
    if isinstance(value, str):
        value.encode()
    for inner in value.items() if isinstance(value, dict) else value if isinstance(value, list) else ():
        for part in inner if isinstance(inner, tuple) else (inner,):
            _check(part)
