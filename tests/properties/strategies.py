"""What the property tests draw from. The currencies are written down here a second time, on purpose."""

from decimal import Decimal
from fractions import Fraction
from typing import Any, Final

from hypothesis import settings
from hypothesis import strategies as st

# Every run draws the same, so that what is green here is green in CI.
settings.register_profile("properties", deadline=None, derandomize=True, database=None)
PROFILE: Final = settings.get_profile("properties")


def tries(count: int) -> settings:
    return settings(PROFILE, max_examples=count)


# Source: https://docs.stripe.com/currencies, read for these tests and not from schemas.money:
# (minor units in one major unit, every minor amount is a multiple of).
_ZERO_DECIMAL: Final = "bif clp djf gnf jpy kmf krw mga pyg rwf vnd vuv xaf xof xpf"
_THREE_DECIMAL: Final = "bhd jod kwd omr tnd"
_WHOLE_BUT_TWO_DECIMAL: Final = "isk ugx"
COUNTED: Final[dict[str, tuple[int, int]]] = (
    dict.fromkeys(_ZERO_DECIMAL.split(), (1, 1))
    | dict.fromkeys(_THREE_DECIMAL.split(), (1000, 10))
    | dict.fromkeys(_WHOLE_BUT_TWO_DECIMAL.split(), (100, 100))
)
MOST_MINOR: Final = 10**15


def exact_minor(amount: Decimal | Fraction | str, currency: str) -> int | None:
    """Stripe's minor units of an amount; None where the currency cannot hold it."""
    units, step = COUNTED.get(currency.lower(), (100, 1))
    minor = Fraction(amount) * units
    fits = minor.denominator == 1 and minor.numerator % step == 0 and 0 < minor <= MOST_MINOR
    return minor.numerator if fits else None


def in_any_case(words: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    return st.tuples(words, st.sampled_from([str.lower, str.upper, str.title])).map(lambda pair: pair[1](pair[0]))


def or_none(strategy: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.none() | strategy


# What UTF-8 can carry, which is all that a broker or a JSON body can bring.
UNICODE: Final = st.characters(exclude_categories=["Cs"])
TEXT: Final = st.text(UNICODE, max_size=40)
ORDER_IDS: Final = st.from_regex(r"[A-Za-z0-9_.:-]{1,64}", fullmatch=True)
NAMES: Final = st.from_regex(r"[A-Za-z0-9_-]{1,20}", fullmatch=True)
