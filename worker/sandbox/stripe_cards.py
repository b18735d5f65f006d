"""Stripe's test payment methods, by name, and what a confirmation with each of them leads to.

Source: https://docs.stripe.com/testing (tab "PaymentMethods"; refunds and disputes too),
https://docs.stripe.com/declines/codes, and https://docs.stripe.com/payments/ach-direct-debit for the bank accounts.
Names are accepted with and without `visa_`, as the page has spelt them both ways. The `advice_code` of each test card
is not published: those here are plausible.
"""

from dataclasses import dataclass, replace


@dataclass(frozen=True, slots=True)
class Decline:
    code: str
    decline_code: str | None
    advice_code: str | None
    message: str


# What becomes of a refund: done at once, done later, or done at once and undone later.
SUCCEEDS, PENDING, FAILS_LATER = "succeeds", "pending", "fails_later"


@dataclass(frozen=True, slots=True)
class Dispute:
    reason: str
    inquiry: bool = False


@dataclass(frozen=True, slots=True)
class Method:
    """One test payment method. `decline` answers the charge, after authentication where the bank asks for one;
    `refund` and `dispute` are what comes after a charge that succeeded.
    """

    kind: str = "card"  # card | us_bank_account | redirect
    brand: str = "visa"
    last4: str = "4242"
    decline: Decline | None = None
    asks_on_session: bool = False
    asks_off_session: bool = False
    refund: str = SUCCEEDS
    dispute: Dispute | None = None


DECLINED = Decline("card_declined", "generic_decline", "try_again_later", "Your card was declined.")
AUTHENTICATION_REQUIRED = Decline(
    "authentication_required",
    "authentication_required",
    None,
    "Your card was declined. This transaction requires authentication.",
)
INSUFFICIENT_FUNDS = Decline(
    "card_declined", "insufficient_funds", "try_again_later", "Your card has insufficient funds."
)
_DECLINES = {
    "": (DECLINED, "0002"),
    "InsufficientFunds": (INSUFFICIENT_FUNDS, "9995"),
    "LostCard": (replace(DECLINED, decline_code="lost_card", advice_code="do_not_try_again"), "9987"),
    "StolenCard": (replace(DECLINED, decline_code="stolen_card", advice_code="do_not_try_again"), "9979"),
    "Fraudulent": (replace(DECLINED, decline_code="fraudulent", advice_code="do_not_try_again"), "0019"),
    "VelocityLimitExceeded": (replace(DECLINED, decline_code="card_velocity_exceeded"), "6975"),
    "ExpiredCard": (Decline("expired_card", None, "confirm_card_data", "Your card has expired."), "0069"),
    "IncorrectCvc": (
        Decline("incorrect_cvc", None, "confirm_card_data", "Your card's security code is incorrect."),
        "0127",
    ),
    "ProcessingError": (
        Decline(
            "processing_error",
            None,
            "try_again_later",
            "An error occurred while processing your card. Try again in a little bit.",
        ),
        "0119",
    ),
}
_BRANDS = {
    "visa": ("visa", "4242"),
    "visa_debit": ("visa", "5556"),
    "mastercard": ("mastercard", "4444"),
    "mastercard_debit": ("mastercard", "8210"),
    "mastercard_prepaid": ("mastercard", "5100"),
    "amex": ("amex", "0005"),
    "discover": ("discover", "1117"),
    "diners": ("diners", "0004"),
    "jcb": ("jcb", "0505"),
    "unionpay": ("unionpay", "0005"),
}
_ASKING = {
    "authenticationRequired": Method(last4="3184", asks_on_session=True, asks_off_session=True),
    "authenticationRequiredOnSetup": Method(last4="3155", asks_on_session=True, asks_off_session=True),
    "authenticationRequiredSetupForOffSession": Method(last4="0446", asks_on_session=True),
    "authenticationRequiredChargeDeclinedInsufficientFunds": Method(
        last4="3178", asks_on_session=True, decline=INSUFFICIENT_FUNDS
    ),
    "threeDSecure2Required": Method(last4="3220", asks_on_session=True, asks_off_session=True),
    "threeDSecureRequired": Method(last4="3063", asks_on_session=True, asks_off_session=True),
    "threeDSecureRequiredChargeDeclined": Method(
        last4="1629", asks_on_session=True, asks_off_session=True, decline=DECLINED
    ),
    "threeDSecureOptional": Method(last4="3055"),
}
_AFTERMATHS = {
    "createDispute": Method(last4="0259", dispute=Dispute("fraudulent")),
    "createDisputeProductNotReceived": Method(last4="2685", dispute=Dispute("product_not_received")),
    "createDisputeInquiry": Method(last4="1976", dispute=Dispute("product_not_received", inquiry=True)),
    "pendingRefund": Method(last4="7726", refund=PENDING),
    "refundFail": Method(last4="5126", refund=FAILS_LATER),
}
_COUNTRIES = (
    "us br ca mx at be bg hr cy cz dk ee fi fr de gi gr hu ie it lv li lt lu mt nl no pl pt ro si sk es se ch gb "
    "au hk in jp my nz sg"
)

SAVED_CARD = Method()
REDIRECT = Method(kind="redirect")
BANK_ACCOUNT = Method(kind="us_bank_account", last4="6789", refund=PENDING)
_BANK_FAILURE = Decline("payment_intent_payment_attempt_failed", None, None, "The bank refused the debit.")


def _table() -> dict[str, Method]:
    table = {f"pm_card_{name}": Method(brand=brand, last4=last4) for name, (brand, last4) in _BRANDS.items()}
    table |= {f"pm_card_{country}": Method() for country in _COUNTRIES.split()}
    for suffix, (decline, last4) in _DECLINES.items():
        for infix in ("", "visa_"):
            table[f"pm_card_{infix}chargeDeclined{suffix}"] = Method(last4=last4, decline=decline)
    table["pm_card_chargeCustomerFail"] = Method(last4="0341", decline=DECLINED)
    table["pm_card_radarBlock"] = table["pm_card_chargeDeclinedFraudulent"]
    table |= {f"pm_card_{name}": method for name, method in (_ASKING | _AFTERMATHS).items()}
    table["pm_usBankAccount_success"] = BANK_ACCOUNT
    for name in ("insufficientFunds", "accountClosed", "noAccount", "debitNotAuthorized"):
        table[f"pm_usBankAccount_{name}"] = replace(BANK_ACCOUNT, decline=_BANK_FAILURE)
    return table


TEST_METHODS = _table()
