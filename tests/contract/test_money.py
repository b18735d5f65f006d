"""Money: exact in Stripe's minor units, or refused. The amounts here are written by hand from Stripe's rules."""

from decimal import Decimal
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from schemas import AmountError, in_both_units, parse_amount, to_major, to_minor
from schemas.money import CURRENCIES, MAX_MINOR
from schemas.strict_json import decode_json

ZERO_DECIMAL = "BIF CLP DJF GNF JPY KMF KRW MGA PYG RWF VND VUV XAF XOF XPF".split()
THREE_DECIMAL = "BHD JOD KWD OMR TND".split()


@pytest.mark.parametrize(
    ("major", "currency", "minor"),
    [
        ("99.99", "usd", 9999),
        ("0.01", "usd", 1),
        ("0.5", "usd", 50),
        ("1999", "usd", 199900),
        ("007.50", "usd", 750),
        ("12.34", "eur", 1234),
        ("0.30", "gbp", 30),
        ("9999999999.99", "usd", 999999999999),
        # no minor unit at all
        ("500", "jpy", 500),
        ("50", "krw", 50),
        ("20000", "vnd", 20000),
        ("1000", "xof", 1000),
        ("990", "clp", 990),
        ("500.00", "jpy", 500),
        # two decimals for Stripe, though only whole ones exist
        ("5", "isk", 500),
        ("5.00", "isk", 500),
        ("3800", "ugx", 380000),
        # three decimals, of which the last is 0
        ("1.230", "kwd", 1230),
        ("1.23", "kwd", 1230),
        ("5", "bhd", 5000),
        ("0.01", "jod", 10),
        ("7.89", "omr", 7890),
        ("100", "tnd", 100000),
        # two decimals for a charge; only their payouts want whole units
        ("10.45", "huf", 1045),
        ("800.45", "twd", 80045),
        # two decimals like most, though ISO 4217 has another number for them, or used to
        ("1.05", "mad", 105),
        ("1234.56", "idr", 123456),
        ("3.25", "lbp", 325),
    ],
)
def test_an_amount_becomes_what_stripe_counts(major: str, currency: str, minor: int) -> None:
    assert to_minor(parse_amount(major), currency) == minor
    assert to_minor(parse_amount(major), currency.upper()) == minor


@pytest.mark.parametrize("currency", ZERO_DECIMAL)
def test_a_zero_decimal_currency_is_sent_as_it_is_and_has_no_fractions(currency: str) -> None:
    assert to_minor(Decimal(500), currency) == 500
    assert to_major(500, currency) == "500"
    with pytest.raises(AmountError, match="no decimals; it is never rounded"):
        to_minor(Decimal("500.5"), currency)


@pytest.mark.parametrize("currency", THREE_DECIMAL)
def test_a_three_decimal_currency_is_sent_times_a_thousand_and_ends_in_zero(currency: str) -> None:
    assert to_minor(Decimal("5.12"), currency) == 5120
    assert to_major(5120, currency) == "5.120"
    with pytest.raises(AmountError, match=r"in steps of 0\.010 only; it is never rounded"):
        to_minor(Decimal("5.124"), currency)
    with pytest.raises(AmountError, match="at most 3 decimals"):
        to_minor(Decimal("5.1240001"), currency)


@pytest.mark.parametrize("currency", ["ISK", "UGX"])
def test_isk_and_ugx_are_sent_times_a_hundred_and_have_no_fractions(currency: str) -> None:
    assert to_minor(Decimal(5), currency) == 500
    assert to_major(500, currency) == "5"
    for amount in ("5.5", "5.50", "0.01"):
        with pytest.raises(AmountError, match="in steps of 1 only; it is never rounded"):
            to_minor(Decimal(amount), currency)


def test_every_other_currency_has_two_decimals() -> None:
    for currency in CURRENCIES - {*ZERO_DECIMAL, *THREE_DECIMAL, "ISK", "UGX"}:
        assert to_minor(Decimal("1.23"), currency) == 123, currency
        assert to_major(120, currency) == "1.20", currency
        with pytest.raises(AmountError, match="at most 2 decimals; it is never rounded"):
            to_minor(Decimal("10.005"), currency)


@pytest.mark.parametrize("currency", ["usd ", "us", "USDX", "", "xxx", "btc", "ＵＳＤ", "u\u017fd", "usd\n", "840"])
def test_a_currency_that_stripe_does_not_take_is_refused(currency: str) -> None:
    with pytest.raises(AmountError, match="is not a currency Stripe takes; send an ISO 4217 code"):
        to_minor(Decimal(1), currency)


@pytest.mark.parametrize(
    "text",
    [
        "", " ", ".", ".5", "5.", "-1", "+1", "-0", " 1", "1 ", "1\n", "1_000", "1,000", "1.000,00", "1e2", "1E2",
        "0x10", "NaN", "Infinity", "-Infinity", "sNaN", "1.2.3", "$5", "5 usd", "٥", "１００", "1\u066b5", "²", "1\x00",
        "0", "0.00", "00000", "9" * 21, "0." + "1" * 21,
    ],
)  # fmt: skip
def test_a_string_that_is_not_plain_digits_above_zero_is_refused(text: str) -> None:
    with pytest.raises(AmountError):
        parse_amount(text)


@pytest.mark.parametrize(
    ("value", "told"),
    [
        (0.1, "not as a float"),
        (99.99, "not as a float"),
        (float("nan"), "not as a float"),
        (float("inf"), "not as a float"),
        (True, "not as a bool"),
        (False, "not as a bool"),
        (None, "not as null"),
        ([], "not as an array"),
        ({}, "not as an object"),
        (b"1", "not as a bytes"),
        (0, "more than zero"),
        (-5, "more than zero"),
        (Decimal("-0.01"), "more than zero"),
        (Decimal("NaN"), "not a finite number"),
        (Decimal("sNaN"), "not a finite number"),
        (Decimal("-Infinity"), "not a finite number"),
        (Decimal("1e400"), "outside every currency's range"),
        (Decimal("1e-400"), "outside every currency's range"),
        (10**4000, "outside every currency's range"),
        (Decimal("1." + "0" * 60), "outside every currency's range"),
    ],
)
def test_what_is_no_exact_positive_number_is_refused(value: Any, told: str) -> None:
    with pytest.raises(AmountError, match=told):
        parse_amount(value)


@pytest.mark.parametrize(
    ("digits", "currency", "minor"),
    [(b"99.99", "usd", 9999), (b"0.1", "usd", 10), (b"1e2", "usd", 10000), (b"500", "jpy", 500), (b"4.35", "eur", 435)],
)
def test_a_json_number_is_read_from_its_digits(digits: bytes, currency: str, minor: int) -> None:
    assert to_minor(parse_amount(decode_json(digits)), currency) == minor


@pytest.mark.parametrize(
    "amount",
    [
        "123456789.00000000000000000001",
        "9999999999999.99999999999999999999",
        "0.01000000000000000001",
        "1234567890123.12345678901234567890",
    ],
)
def test_no_digit_is_rounded_away_however_far_behind_the_point(amount: str) -> None:
    with pytest.raises(AmountError, match="at most 2 decimals; it is never rounded"):
        to_minor(parse_amount(amount), "usd")


def test_an_amount_past_any_payment_is_refused() -> None:
    assert to_minor(Decimal(MAX_MINOR), "jpy") == MAX_MINOR
    for amount in (Decimal(MAX_MINOR + 1), Decimal("1e400"), Decimal("Infinity")):
        with pytest.raises(AmountError, match="more than any payment Stripe takes"):
            to_minor(amount, "jpy")


def _multiples_of_the_step(currency: str) -> st.SearchStrategy[tuple[str, int]]:
    step = 100 if currency in ("ISK", "UGX") else 10 if currency in THREE_DECIMAL else 1
    return st.tuples(st.just(currency), st.integers(1, MAX_MINOR // step).map(lambda count: count * step))


@given(st.sampled_from(sorted(CURRENCIES)).flatmap(_multiples_of_the_step))
def test_minor_units_survive_the_way_through_the_major_string(money: tuple[str, int]) -> None:
    currency, minor = money
    assert to_minor(parse_amount(to_major(minor, currency)), currency) == minor


@given(st.sampled_from(sorted(CURRENCIES)), st.from_regex(r"[0-9]{1,14}(\.[0-9]{1,4})?", fullmatch=True))
def test_an_amount_is_kept_in_value_or_refused(currency: str, text: str) -> None:
    try:
        amount = parse_amount(text)
        minor = to_minor(amount, currency)
    except AmountError:
        return
    assert isinstance(minor, int)
    assert Decimal(to_major(minor, currency)) == amount == Decimal(text)


@given(st.text() | st.text("0123456789.+-eE_, \u0660\uff10", max_size=45), st.sampled_from(sorted(CURRENCIES)))
@example("1" * 20 + "." + "1" * 20, "USD")
def test_any_string_is_exact_money_or_an_amount_error(text: str, currency: str) -> None:
    try:
        amount = parse_amount(text)
        minor = to_minor(amount, currency)
    except AmountError as error:
        assert str(error)
    else:
        assert text.isascii()
        assert 0 < minor <= MAX_MINOR
        assert Decimal(to_major(minor, currency)) == Decimal(text)


@given(st.decimals() | st.integers() | st.floats() | st.booleans() | st.none() | st.binary())
def test_any_value_is_a_positive_finite_decimal_or_an_amount_error(value: Any) -> None:
    try:
        amount = parse_amount(value)
    except AmountError:
        return
    assert type(value) in (int, Decimal)
    assert amount == value > 0


@given(st.decimals(min_value=Decimal("1e-20"), max_value=Decimal("9e15"), allow_nan=False))
def test_any_decimal_has_exact_minor_units_or_is_refused(amount: Decimal) -> None:
    try:
        minor = to_minor(amount, "usd")
    except AmountError:
        return
    # compared as fractions, which know no precision to round to
    assert amount.as_integer_ratio()[0] * 100 == minor * amount.as_integer_ratio()[1]


def test_amounts_are_told_in_both_units_under_their_names() -> None:
    assert in_both_units("usd", fee=320, net=-5) == {"fee": "3.20", "fee_minor": 320, "net": "-0.05", "net_minor": -5}
    assert in_both_units("JPY", amount=500) == {"amount": "500", "amount_minor": 500}
    assert in_both_units("kwd", amount=0) == {"amount": "0.000", "amount_minor": 0}
