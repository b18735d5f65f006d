"""Card numbers are found wherever they hide, masked, and nothing else is touched."""

import json
import time
from decimal import Decimal
from typing import Any
from uuid import UUID, uuid4

import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from worker.card_numbers import _CANDIDATE, _mask_run, find_card_field, mask_cards, mask_text

# Published test numbers: https://docs.stripe.com/testing#cards and other processors' like lists.
TEST_CARDS = {
    "visa": "4242424242424242",
    "visa debit": "4000056655665556",
    "visa of 19": "4000000000000000006",
    "mastercard": "5555555555554444",
    "mastercard 2-series": "2223003122003222",
    "mastercard prepaid": "5105105105105100",
    "american express": "378282246310005",
    "american express 34": "343434343434343",
    "discover": "6011111111111117",
    "discover 65": "6510000000000133",
    "diners": "3056930009020004",
    "diners of 14": "36227206271667",
    "diners 300": "30569309025904",
    "diners 38": "38520000023237",
    "jcb": "3566002020360505",
    "unionpay": "6200000000000005",
    "unionpay of 19": "6205500000000000004",
    "maestro": "6759649826438453",
    "maestro of 12": "501800000009",
    "maestro 6304": "6304000000000000",
}
CARDS = st.sampled_from(sorted(set(TEST_CARDS.values()) - {"3056930009020004"}))


def digits_of(text: str) -> str:
    return "".join(letter for letter in text if letter in "0123456789")


def grouped(number: str, separator: str) -> str:
    sizes = (4, 6, 5) if len(number) == 15 else (4, 4, 4, 4, 4)
    parts, start = [], 0
    for size in sizes:
        parts.append(number[start : start + size])
        start += size
    return separator.join(part for part in parts if part)


def starred(written: str) -> str:
    """Every digit but the last four as a star."""
    total, seen, out = len(digits_of(written)), 0, ""
    for letter in written:
        seen += letter.isdigit()
        out += "*" if letter.isdigit() and seen <= total - 4 else letter
    return out


@pytest.mark.parametrize("number", [n for name, n in TEST_CARDS.items() if name != "diners"], ids=str)
@pytest.mark.parametrize("separator", ["", " ", "-"])
def test_a_card_number_of_every_issuer_is_masked_to_its_last_four(number: str, separator: str) -> None:
    written = grouped(number, separator)
    masked = mask_text(f"pay with {written}, please")
    assert digits_of(masked) == number[-4:]
    assert masked == f"pay with {starred(written)}, please"


@pytest.mark.parametrize(
    "text",
    [
        "2026 4242 4242 4242 4242",
        "12 4242-4242-4242-4242",
        "4242 4242 4242 4242 123",
        "4242424242424242 12 2026 123",
        "5555 4242 4242 4242 4242 5555",
        "4000 0000 0000 4242 4242 4242 4242",
        "1 2 3 4 5 6 7 4242 4242 4242 4242 8 9 0",
        "1234 5678 9012 3456 7890 4242 4242 4242 4242",
        "exp 12/2026 4242 4242 4242 4242",
        "n\\n4242424242424242",
        "card:4242424242424242.",
        "paid by.4242424242424242",
        "pan4242424242424242x",
        "4242424242424242.00",
        "(12)4242424242424242",
    ],
)
def test_what_stands_beside_a_card_number_does_not_hide_it(text: str) -> None:
    masked = mask_text(text)
    assert "42424242" not in digits_of(masked)
    assert len(masked) == len(text)


def test_two_card_numbers_side_by_side_are_both_masked() -> None:
    assert mask_text("4242424242424242 5555555555554444") == "************4242 ************4444"
    assert mask_text("4242 4242 4242 4242 5555 5555 5555 4444") == "**** **** **** 4242 **** **** **** 4444"


@pytest.mark.parametrize("separator", ["  ", "\u00a0", "\u2013", "\u2009", "\n", "\\n", "_", " - ", "\t"], ids=ascii)
def test_a_number_pasted_with_other_separators_is_masked(separator: str) -> None:
    separator = separator[:2] if separator == " - " else separator
    text = separator.join(["4242"] * 4)

    assert mask_text(text) == separator.join(["****"] * 3 + ["4242"])
    assert find_card_field({"field": text}) == "field"


@pytest.mark.parametrize(
    "text",
    [
        "+4915112345678",  # a mobile number with the length, the start and the check digit of a Visa card
        "+49 1511 2345678",
        "+44 20 7946 0958",
        "tel:+4915112345678",
        "+1 (555) 010-0199",
        "555-010-0199",
        "00 49 30 901820",
        "0b8e5f2a-6c1d-4e0b-9a57-2f1f6d3c9e10",
        "41111111-1111-4111-8111-111111111111",
        "order:41111111-1111-4111-8111-111111111111",
        "4111111111111111" + "a" * 16,
        "1767225600000",
        "1767225600000000",
        "1767225600000000000",
        "4242424242424241",
        "5555555555554445",
        "1234567890123452",  # passes Luhn, but nobody issues it
        "9999999999999995",
        "0.4242424242424242",
        "12.4242424242424242",
        "20244242424242424242420001",
        "424242424242424242424242",
        "order-20260131120000424242424242424242",
        "4242 4242 4242",
        "4242   4242   4242   4242",
        "4242.4242.4242.4242",
        "52.5200065986413432",
        "2026-01-31 12:00:00.123456",
        "192.168.100.100 10.0.0.1",
        "pi_3MtwBwLkdIwHu7ix28a3tqPa",
        "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
        "",
        "no digits at all",
    ],
)
def test_what_only_looks_like_a_card_number_is_left_alone(text: str) -> None:
    body = text.encode()
    assert mask_cards(body) is body
    assert mask_text(text) is text
    assert find_card_field({"field": text}) is None


@pytest.mark.parametrize("number", ["4915112345678", "4006381333931"], ids=["phone", "barcode"])
def test_thirteen_digits_are_no_card_though_they_pass_luhn(number: str) -> None:
    assert mask_text(number) == number


@pytest.mark.parametrize(
    ("body", "masked"),
    [
        (b'{"cvc":"123"}', b'{"cvc":"***"}'),
        (b'{"cvc" : 123}', b'{"cvc" : "***"}'),
        (b'{"CVV2":"1234","a":1}', b'{"CVV2":"***","a":1}'),
        (b'{"securityCode":"123"}', b'{"securityCode":"***"}'),
        (b'{"security_code":"123"}', b'{"security_code":"***"}'),
        (b'{"cardCvc":"123"}', b'{"cardCvc":"***"}'),
        (b'{"card_number":"4242"}', b'{"card_number":"***"}'),
        (b'{"card":{"number":"4242424242424242","cvv":"1"}}', b'{"card":{"number":"************4242","cvv":"***"}}'),
    ],
)
def test_a_security_code_is_blanked(body: bytes, masked: bytes) -> None:
    assert mask_cards(body) == masked
    assert mask_cards(masked) is masked
    assert find_card_field(json.loads(body)) is not None


@pytest.mark.parametrize("body", [b'{"cvc":""}', b'{"cvc":null}', b'{"cvc_check":"pass"}', b'{"note":"cvc 123"}'])
def test_a_field_without_a_security_code_in_it_is_left_alone(body: bytes) -> None:
    assert mask_cards(body) is body
    assert find_card_field(json.loads(body)) is None


@pytest.mark.parametrize(
    "escaped",
    [
        rb"\u0034242424242424242",
        rb"\u0034\u0032\u0034\u0032\u0034\u0032\u0034\u0032\u0034\u0032\u0034\u0032\u0034\u0032\u0034\u0032",
        rb"4242\u00204242\u002042424242",
        rb"4242\u002d4242\u002D4242-4242",
    ],
)
def test_digits_written_as_json_escapes_are_found(escaped: bytes) -> None:
    masked = mask_cards(b'{"note":"' + escaped + b'"}')
    assert digits_of(json.loads(masked)["note"]) == "4242"
    assert find_card_field(json.loads(b'{"note":"' + escaped + b'"}')) == "note"


@pytest.mark.parametrize("separator", ["", " ", "-", "\\u0020"])
@pytest.mark.parametrize("escaped", [False, True])
def test_a_card_number_of_the_fewest_digits_alone_in_a_body_is_masked(separator: str, escaped: bool) -> None:
    """Twelve: a body with eleven is passed over without a search."""
    number = next(f"5018000000{tail:02}" for tail in range(100) if mask_text(f"5018000000{tail:02}").startswith("*"))
    written = separator.join(f"\\u003{digit}" if escaped else digit for digit in number)
    assert mask_cards(written.encode()) == separator.replace("\\u0020", " ").join("*" * 8 + number[8:]).encode()
    assert mask_cards(written.encode()[:-6] if escaped else written.encode()[:-1]).count(b"*") == 0


def test_escapes_that_hide_nothing_are_kept_byte_for_byte() -> None:
    body = rb'{"note":"\u0031\u0020\u002d caf\u00e9"}'
    assert mask_cards(body) is body


@pytest.mark.parametrize("noise", [b"\xff\xfe", b"\x00", b"\x80abc", "é".encode("latin-1"), b"\xf0\x9f"])
def test_bytes_that_are_no_text_are_masked_all_the_same(noise: bytes) -> None:
    masked = mask_cards(noise + b"4242424242424242" + noise)
    assert masked == noise + b"************4242" + noise


def test_half_a_surrogate_pair_beside_a_number_does_not_break_the_masking() -> None:
    assert mask_text("\ud8004242424242424242\udfff") == "\ud800************4242\udfff"


@pytest.mark.parametrize(
    ("data", "path"),
    [
        ({"card": "4242424242424242"}, "card"),
        ({"card": 4242424242424242}, "card"),
        ({"card": Decimal(4242424242424242)}, "card"),
        ({"metadata": {"note": "use 4242 4242 4242 4242"}}, "metadata.note"),
        ({"a": [{"b": "x"}, {"b": ["4242-4242-4242-4242"]}]}, "a.1.b.0"),
        ({"metadata": {"4242424242424242": "x"}}, "metadata.************4242"),
        ({"card": {"cvc": "123"}}, "card.cvc"),
        ({"CVV": 123}, "CVV"),
        ({"order_id": "4242424242424242"}, "order_id"),
        ({"headers": {"x-card": b"4242424242424242"}}, "headers.x-card"),
    ],
)
def test_the_field_that_holds_card_data_is_named_and_never_shown(data: dict[str, Any], path: str) -> None:
    assert find_card_field(data) == path


@pytest.mark.parametrize(
    "data",
    [
        {},
        {"a": None, "b": True, "c": [], "d": {}, "e": ""},
        {"order_id": "o-1", "amount": Decimal("99.99"), "phone": "+4915112345678"},
        {"rate": Decimal("0.4242424242424242")},
        {"at": 1767225600000},
        {"cvc": None},
    ],
)
def test_an_order_without_card_data_has_no_such_field(data: dict[str, Any]) -> None:
    assert find_card_field(data) is None


def test_data_of_any_depth_is_looked_through() -> None:
    data: dict[str, Any] = {"x": "4242424242424242"}
    for _ in range(20_000):
        data = {"a": data}
    found = find_card_field(data)
    assert found is not None
    assert found.endswith(".x")


def test_a_body_made_to_be_slow_is_masked_in_time() -> None:
    started = time.process_time()
    for unit in (b"4 ", b"41 ", b"4", b"4-4 ", b'"cvc":', b"\\u0034", b"0.", b"0123abcd-"):
        mask_cards(unit * (64 * 1024 // len(unit)))
    assert time.process_time() - started < 20  # it takes one second; a quadratic way would take many minutes


_around = st.text(st.characters(codec="utf-8", exclude_characters="0123456789+."), max_size=12)
_numbers_around = st.lists(st.integers(0, 99_999).map(str), max_size=4).map(" ".join)


@given(CARDS, st.sampled_from(["", " ", "-"]), _around, _around, _numbers_around, _numbers_around)
@example("4242424242424242", " ", "", "", "2026", "")
@example("4242424242424242", " ", "", "", "4000 0000 0000", "")
def test_no_card_number_survives_whatever_stands_around_it(
    number: str, separator: str, before: str, after: str, left: str, right: str
) -> None:
    written = grouped(number, separator)
    masked = mask_text(f"{before}{left} {written} {right}{after}")
    assert written not in masked
    assert number not in digits_of(masked)


@given(CARDS, st.binary(max_size=12), st.binary(max_size=12))
def test_no_card_number_survives_between_any_bytes(number: str, before: bytes, after: bytes) -> None:
    assume(before[-1:] not in (*(b"%d" % digit for digit in range(10)), b"+", b".", b" ", b"-"))
    assume(after[:1] not in (*(b"%d" % digit for digit in range(10)), b" ", b"-"))
    body = before + number.encode() + after
    assert number.encode() not in mask_cards(body)


@given(st.text(st.sampled_from("0123456789 -+.,x*"), max_size=80) | st.text())
@example("4242 4242 4242 4242 0000 0000 0000 0000")
def test_masking_what_is_masked_changes_nothing(text: str) -> None:
    masked = mask_text(text)
    assert len(masked) == len(text)
    assert mask_text(masked) is masked
    assert find_card_field({"x": masked}) is None


@given(st.binary().filter(lambda body: not any(48 <= byte <= 57 for byte in body)))
def test_bytes_without_digits_come_back_as_the_very_same_object(body: bytes) -> None:
    assume(b'"' not in body)
    assert mask_cards(body) is body


@given(st.uuids())
def test_a_uuid_is_never_a_card_number(uuid: UUID) -> None:
    assert mask_text(str(uuid)) == str(uuid)
    assert mask_text(uuid.hex) == uuid.hex


@given(st.text("0123456789", min_size=12, max_size=12), st.sampled_from("89ab"))
def test_a_uuid_of_digits_alone_is_never_a_card_number(tail: str, variant: str) -> None:
    text = f"{tail[:8]}-{tail[8:]}-4{tail[:3]}-{variant}{tail[3:6]}-{tail}"
    assert mask_text(text) is text
    assert find_card_field({"id": f"order:{text}", "other": str(uuid4())}) is None


def searched_in_full(body: bytes) -> bytes:
    """What mask_cards does about numbers, without the quick looks that mostly spare it."""
    while (masked := _CANDIDATE.sub(_mask_run, body)) != body:
        body = masked
    return body


BETWEEN = ["", " ", "  ", "-", " - ", "---", ".", "a", "Z", "_", "\\n", "\n", "\xa0", "\u2009\u2009", ":", "0.", "9"]
PIECES = (
    st.builds(grouped, CARDS, st.sampled_from(BETWEEN))
    | st.from_regex(r"[0-9]{1,20}", fullmatch=True)
    | st.uuids().map(str)
    | st.from_regex(r"[0-9a-f]{8,33}", fullmatch=True)
    | st.sampled_from(BETWEEN)
)


@settings(max_examples=1500)
@given(st.lists(PIECES, max_size=12).map("".join))
@example("4242-4242-4242-4242")
@example("1234567890124242424242424242")
@example("c21d34ef-1111-4222-8333-123456789012 4242424242424242")
@example("0.4242424242424242")
def test_a_quick_look_misses_no_number(text: str) -> None:
    assert mask_cards(text.encode()) == searched_in_full(text.encode())
