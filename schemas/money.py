"""Money as exact decimals, with Stripe's exponents rather than ISO 4217's.

Source: https://docs.stripe.com/currencies (zero-decimal and three-decimal currencies, special cases).
An amount that does not fit a currency exactly is refused, never rounded.
"""

import re
from dataclasses import dataclass
from decimal import MAX_EMAX, MAX_PREC, MIN_EMIN, Context, Decimal
from typing import Annotated, Final

from pydantic import BeforeValidator, Field, PlainSerializer, WithJsonSchema

ZERO_DECIMAL: Final = frozenset("BIF CLP DJF GNF JPY KMF KRW MGA PYG RWF VND VUV XAF XOF XPF".split())

# Stripe keeps these two as two-decimal for compatibility, though nobody pays with fractions of them:
# 5 ISK is sent as 500, and 550 is refused.
TWO_DECIMAL_WHOLE: Final = frozenset("ISK UGX".split())

# Sent times 1000. Stripe wants the last digit to be 0, so "1.234" KWD is refused and "1.230" is fine.
THREE_DECIMAL: Final = frozenset("BHD JOD KWD OMR TND".split())

# HUF and TWD are two-decimal for payments; only payouts want whole units.
TWO_DECIMAL: Final = frozenset(
    """AED AFN ALL AMD ANG AOA ARS AUD AWG AZN BAM BBD BDT BGN BMD BND BOB BRL BSD BWP BYN BZD CAD CDF CHF CNY COP
    CRC CVE CZK DKK DOP DZD EGP ETB EUR FJD FKP GBP GEL GIP GMD GTQ GYD HKD HNL HTG HUF IDR ILS INR JMD KES KGS
    KHR KYD KZT LAK LBP LKR LRD LSL MAD MDL MKD MMK MNT MOP MUR MVR MWK MXN MYR MZN NAD NGN NIO NOK NPR NZD PAB
    PEN PGK PHP PKR PLN QAR RON RSD RUB SAR SBD SCR SEK SGD SHP SLE SOS SRD STD SZL THB TJS TOP TRY TTD TWD TZS
    UAH USD UYU UZS WST XCD XCG YER ZAR ZMW""".split()
)

# No currency reaches it (Stripe stops at 12 digits), and every amount below it fits a 64-bit column.
MAX_MINOR: Final = 10**15

# The default context would round to 28 digits without a word, and parse_amount lets 40 through.
_EXACT: Final = Context(prec=MAX_PREC, Emax=MAX_EMAX, Emin=MIN_EMIN, traps=[])

_PLAIN_DIGITS: Final = re.compile(r"[0-9]{1,20}(\.[0-9]{1,20})?", re.ASCII)


class AmountError(ValueError):
    """An amount that is not exact money in its currency; the text says why and what to send instead."""


@dataclass(frozen=True, slots=True)
class CurrencyRule:
    """How Stripe counts one currency.

    exponent: decimal places between major and minor units. step: every minor amount is a multiple of it.
    """

    exponent: int
    step: int

    @property
    def shown_places(self) -> int:
        """Decimal places in the major-unit string: none where only whole units exist."""
        return 0 if self.step == 10**self.exponent else self.exponent


_RULES: Final[dict[str, CurrencyRule]] = {
    **dict.fromkeys(ZERO_DECIMAL, CurrencyRule(0, 1)),
    **dict.fromkeys(TWO_DECIMAL, CurrencyRule(2, 1)),
    **dict.fromkeys(TWO_DECIMAL_WHOLE, CurrencyRule(2, 100)),
    **dict.fromkeys(THREE_DECIMAL, CurrencyRule(3, 10)),
}

CURRENCIES: Final = frozenset(_RULES)


def currency_rule(currency: str) -> CurrencyRule:
    """The rule of an ISO 4217 code in any case. Raises AmountError for a code Stripe does not take."""
    rule = _RULES.get(currency.upper()) if currency.isascii() else None
    if rule is None:
        raise AmountError(f"{currency[:12]!r} is not a currency Stripe takes; send an ISO 4217 code such as 'usd'")
    return rule


def parse_amount(value: object) -> Decimal:
    """A decimal string in major units ("99.99"), an int, or a Decimal read from a JSON number's digits.

    Raises AmountError for anything else: floats and booleans, signs, spaces, underscores, exponents in a
    string, digits outside ASCII, zero.
    """
    if isinstance(value, str):
        if not _PLAIN_DIGITS.fullmatch(value):
            raise AmountError('write it in plain digits with at most one point, such as "99.99"')
        value = Decimal(value)
    elif isinstance(value, bool) or not isinstance(value, int | Decimal):
        raise AmountError(f'send it as a decimal string such as "99.99", not as {_json_name(value)}')
    amount = value if isinstance(value, Decimal) else Decimal(value)
    if not amount.is_finite():
        raise AmountError("it is not a finite number")
    if amount <= 0:
        raise AmountError("it must be more than zero")
    if amount.adjusted() > 15 or len(amount.as_tuple().digits) > 40 or amount.adjusted() < -20:
        raise AmountError("it is outside every currency's range")
    return amount


def to_minor(amount: Decimal, currency: str) -> int:
    """Minor units as Stripe wants them: 99.99 usd → 9999, 500 jpy → 500, 5 isk → 500, 1.230 kwd → 1230.

    Raises AmountError where the currency cannot hold the amount exactly.
    """
    rule = currency_rule(currency)
    minor = amount.scaleb(rule.exponent, _EXACT)
    if minor != minor.to_integral_value():
        places = "no decimals" if rule.shown_places == 0 else f"at most {rule.exponent} decimals"
        raise AmountError(f"{amount} does not fit {currency.upper()}, which has {places}; it is never rounded")
    if minor > MAX_MINOR:
        raise AmountError(f"{amount} {currency.upper()} is more than any payment Stripe takes")
    if int(minor) % rule.step:
        raise AmountError(
            f"{amount} does not fit {currency.upper()}: Stripe takes it in steps of "
            f"{to_major(rule.step, currency)} only; it is never rounded"
        )
    return int(minor)


def to_major(amount_minor: int, currency: str) -> str:
    """The decimal string of minor units: 9999 usd → "99.99", 380000 ugx → "3800", 1230 kwd → "1.230"."""
    rule = currency_rule(currency)
    return f"{Decimal(amount_minor).scaleb(-rule.exponent):.{rule.shown_places}f}"


def in_both_units(currency: str, **minor: int) -> dict[str, str | int]:
    """The fields of amounts as events tell them: ("usd", fee=320) → {"fee": "3.20", "fee_minor": 320}."""
    fields: dict[str, str | int] = {}
    for name, amount_minor in minor.items():
        fields |= {name: to_major(amount_minor, currency), f"{name}_minor": amount_minor}
    return fields


def _json_name(value: object) -> str:
    names = {bool: "a boolean", float: "a float", list: "an array", dict: "an object", type(None): "null"}
    return names.get(type(value), f"a {type(value).__name__}")


def _shown(amount: Decimal) -> str:
    return f"{amount:f}"


def _known_currency(value: object) -> object:
    if isinstance(value, str):
        currency_rule(value)
        return value.lower()
    return value


Amount = Annotated[
    Decimal,
    BeforeValidator(parse_amount),
    PlainSerializer(_shown, return_type=str),
    WithJsonSchema(
        {
            "description": "Major units, exact. A decimal string; a JSON number is read from its digits.",
            "anyOf": [
                {"type": "string", "pattern": r"^[0-9]{1,20}(\.[0-9]{1,20})?$"},
                {"type": "number", "exclusiveMinimum": 0},
            ],
            "examples": ["99.99"],
        }
    ),
]

Currency = Annotated[
    str,
    BeforeValidator(_known_currency),
    Field(description="ISO 4217, any case; one that Stripe takes.", examples=["usd"]),
]

MajorUnits = Annotated[
    str, Field(pattern=r"^[0-9]+(\.[0-9]+)?$", description="Major units, exact.", examples=["99.99"])
]
SignedMajorUnits = Annotated[str, Field(pattern=r"^-?[0-9]+(\.[0-9]+)?$", examples=["96.79"])]
MinorUnits = Annotated[int, Field(ge=0, description="Minor units as Stripe counts them.")]
PositiveMinorUnits = Annotated[int, Field(gt=0, description="Minor units as Stripe counts them.")]
CurrencyCode = Annotated[str, Field(pattern=r"^[a-z]{3}$")]
