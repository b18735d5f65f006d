"""Money against a second computation in fractions."""

from decimal import Decimal
from fractions import Fraction

from hypothesis import example, given
from hypothesis import strategies as st

from schemas import AmountError, parse_amount, to_major, to_minor
from schemas.money import CURRENCIES, currency_rule
from tests.properties.strategies import COUNTED, MOST_MINOR, exact_minor, in_any_case, tries

CODES = in_any_case(st.sampled_from(sorted(CURRENCIES)))
DIGITS = st.from_regex(r"[0-9]{1,20}(\.[0-9]{1,20})?", fullmatch=True) | st.from_regex(
    r"[1-9][0-9]{0,11}(\.[0-9]{0,2}[1-9]?0{0,6})?", fullmatch=True
).map(lambda digits: digits.removesuffix("."))
ALMOST_DIGITS = st.text("0123456789.,-+ _eE٣１\x00\n", max_size=12)
ANY_NUMBER = (
    st.decimals()
    | st.integers()
    | st.integers(10**14, 10**50)
    | st.integers(-(10**6), 10**6).map(lambda exponent: Decimal((0, (1,), exponent)))
)
ANYTHING = (
    ANY_NUMBER
    | DIGITS
    | ALMOST_DIGITS
    | st.text()
    | st.floats()
    | st.booleans()
    | st.none()
    | st.binary()
    | st.lists(st.integers())
    | st.dictionaries(st.text(), st.integers())
)


def accepted(value: object, currency: str) -> int | None:
    """Minor units, or None where the module's own error refused it. Any other error is the test's failure."""
    try:
        return to_minor(parse_amount(value), currency)
    except AmountError:
        return None


def test_every_currency_is_counted_as_stripe_counts_it() -> None:
    assert COUNTED.keys() <= {code.lower() for code in CURRENCIES}
    for code in CURRENCIES:
        rule = currency_rule(code)
        assert (10**rule.exponent, rule.step) == COUNTED.get(code.lower(), (100, 1)), code


@tries(400)
@given(CODES, st.integers(1, MOST_MINOR))
@example("isk", 550)
@example("kwd", 1234)
@example("usd", MOST_MINOR)
def test_minor_units_written_out_and_read_again_are_the_same(currency: str, minor: int) -> None:
    _, step = COUNTED.get(currency.lower(), (100, 1))
    minor = max(step, minor - minor % step)
    written = to_major(minor, currency)
    assert accepted(written, currency) == minor
    assert exact_minor(written, currency) == minor


@tries(600)
@given(DIGITS, CODES)
@example("1.234", "KWD")
@example("5.50", "ISK")
@example("0.00000000000000000001", "USD")
@example("123456789012.34000000000000000001", "USD")
@example("99999999999999999999.99999999999999999999", "USD")
@example("9999999999999.99000000000000000000", "USD")
def test_plain_digits_are_taken_exactly_or_refused_and_nothing_that_fits_is_refused(digits: str, currency: str) -> None:
    assert accepted(digits, currency) == exact_minor(digits, currency)


@tries(600)
@given(ANY_NUMBER, CODES)
@example(Decimal("sNaN"), "usd")
@example(Decimal("-0"), "usd")
@example(Decimal("1E+999999999999999999"), "usd")
@example(Decimal("1E-999999999999999999"), "usd")
@example(10**5000, "jpy")
def test_a_number_is_taken_exactly_or_refused(number: Decimal | int, currency: str) -> None:
    minor = accepted(number, currency)
    if minor is not None:
        assert minor == exact_minor(Decimal(number), currency)
        assert Fraction(to_major(minor, currency)) == Fraction(number)


@tries(600)
@given(ANYTHING, CODES | st.text(max_size=5))
@example("1" * 10_000, "usd")
@example("1\n", "usd")
@example("1", "ﬁm")
@example("1", "usd\n")
def test_anything_at_all_is_taken_or_refused_by_the_modules_own_error(value: object, currency: str) -> None:
    minor = accepted(value, currency)
    if minor is not None:
        assert currency.upper() in CURRENCIES
        assert not isinstance(value, float | bool)
        assert 0 < minor <= MOST_MINOR
