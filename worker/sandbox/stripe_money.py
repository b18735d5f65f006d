"""Which amounts Stripe takes in which currency.

Sources: https://docs.stripe.com/currencies (zero-decimal list, special cases, minimum and maximum amounts) and the
reference of `amount` in https://docs.stripe.com/api/payment_intents/create. Deliberately a table of its own: were it
shared with the worker, one mistake would hide in both.
"""

from worker.sandbox.stripe_errors import invalid

_CURRENCIES = """
aed afn all amd ang aoa ars aud awg azn bam bbd bdt bgn bhd bif bmd bnd bob brl bsd bwp byn bzd cad cdf chf clp
cny cop crc cve czk djf dkk dop dzd egp etb eur fjd fkp gbp gel gip gmd gnf gtq gyd hkd hnl htg huf idr ils inr
isk jmd jod jpy kes kgs khr kmf krw kwd kyd kzt lak lbp lkr lrd lsl mad mdl mga mkd mmk mnt mop mur mvr mwk mxn
myr mzn nad ngn nio nok npr nzd omr pab pen pgk php pkr pln pyg qar ron rsd rub rwf sar sbd scr sek sgd shp sle
sos srd std szl thb tjs tnd top try ttd twd tzs uah ugx usd uyu uzs vnd vuv wst xaf xcd xof xpf yer zar zmw
"""
SUPPORTED = frozenset(_CURRENCIES.split())

# Sent in hundredths although they have none, so only whole hundreds exist (https://docs.stripe.com/currencies#special-cases).
HUNDREDS_ONLY = frozenset({"isk", "ugx"})
# Three decimals, of which the last must be 0.
TENS_ONLY = frozenset({"bhd", "jod", "kwd", "omr", "tnd"})

# The table of minimums, in minor units. It is Stripe's for the *settlement* currency; the sandbox settles in the
# currency of the charge. A currency not in the table has no published minimum.
MINIMUM = {
    "usd": 50, "aed": 200, "aud": 50, "brl": 50, "cad": 50, "chf": 50, "czk": 1500, "dkk": 250, "eur": 50, "gbp": 30,
    "hkd": 400, "huf": 17500, "inr": 50, "jpy": 50, "krw": 50, "mxn": 1000, "myr": 200, "nok": 300, "nzd": 50,
    "pln": 200, "ron": 200, "sek": 300, "sgd": 50, "thb": 1000,
}  # fmt: skip

# "Up to eight digits", and the three currencies for which the currencies page names another length.
MAXIMUM = 99_999_999
MAXIMUM_OF = {"idr": 999_999_999_999, "cop": 9_999_999_999, "inr": 999_999_999}


def check_unit(amount: int, currency: str) -> None:
    """Refuse an amount that does not exist in its currency: a mistake in the request itself. Raises ApiError."""
    step = 100 if currency in HUNDREDS_ONLY else 10 if currency in TENS_ONLY else 1
    if amount % step:
        raise invalid(
            f"Invalid amount: an amount in {currency} must be divisible by {step}.",
            code="parameter_invalid_integer",
            param="amount",
        )


def check_limits(amount: int, currency: str) -> None:
    """Refuse an amount too small or too large to be charged: Stripe's rule for the account. Raises ApiError."""
    least, most = MINIMUM.get(currency, 1), MAXIMUM_OF.get(currency, MAXIMUM)
    if amount < least:
        raise invalid(f"Amount must be at least {least} in {currency}.", code="amount_too_small", param="amount")
    if amount > most:
        raise invalid(f"Amount must be no more than {most} in {currency}.", code="amount_too_large", param="amount")
