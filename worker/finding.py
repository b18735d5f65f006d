"""A difference between ledger, Stripe and what was told, and the words it is told in. Pure."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from schemas import AmountError
from worker.letter import told_value
from worker.payment import Payment
from worker.payment_life import Dispute, Life, Refund
from worker.stripe_event import ShownPayment, StripeEvent

TAKEN_IN = "what Stripe shows is taken in and told"


@dataclass(frozen=True, slots=True)
class Finding:
    """A difference. amount_minor: the money that it touches. is_certain: whether a repair follows from it alone."""

    kind: str
    order_id: str | None
    payment_id: str | None
    amount_minor: int
    currency: str
    what: str
    repair: str
    is_certain: bool
    is_repaired: bool = False


def told_money(amount_minor: int, currency: str) -> str:
    """As a person reads it: "12.50 USD"; in minor units for a currency whose exponent is not known here."""
    try:
        return str(told_value(amount_minor, currency))
    except AmountError:
        return f"{amount_minor} minor units of {currency or 'no currency'}"


def finding_of(
    kind: str,
    shown: ShownPayment,
    payment: Payment | None,
    what: str,
    repair: str,
    *,
    certain: bool,
    done: bool = False,
) -> Finding:
    """Of an intent that Stripe has listed."""
    return Finding(
        kind=kind,
        order_id=payment.order_id if payment else shown.order_id,
        payment_id=shown.payment_id,
        amount_minor=shown.amount_minor,
        currency=shown.currency,
        what=what,
        repair=repair,
        is_certain=certain,
        is_repaired=done,
    )


def finding_of_type(kind: str, what: str, repair: str, *, order_id: str | None = None) -> Finding:
    """Of no payment in particular; left to a person."""
    return Finding(
        kind=kind,
        order_id=order_id,
        payment_id=None,
        amount_minor=0,
        currency="",
        what=what,
        repair=repair,
        is_certain=False,
    )


def differences_of_payment(life: Life, shown: ShownPayment, refunds: Sequence[StripeEvent]) -> Mapping[str, str]:
    """{what: how it differs} of what has moved."""

    def money(minor: int) -> str:
        return told_money(minor, shown.currency)

    pairs: dict[str, tuple[str | None, str]] = {
        "status": (life.payment.status, shown.status),
        "received": (money(life.received_minor), money(shown.received_minor)),
        "capturable": (money(life.capturable_minor), money(shown.capturable_minor)),
        "refunded": (money(life.refunded_minor), money(shown.refunded_minor)),
    }
    for each in refunds:
        known = life.refunds.get(str(each.object_id))
        pairs[f"refund {each.object_id}"] = (known.status if known else None, str(each.facts["status"]))
    return _told(pairs)


def differences_of_object(known: Refund | Dispute | None, shown: StripeEvent, currency: str) -> Mapping[str, str]:
    """The same of one refund or dispute. currency: of the payment, where the ledger keeps none of its own."""
    theirs = (str(shown.facts["status"]), told_money(shown.facts["amount"] or 0, shown.facts["currency"] or currency))
    if known is None:
        return _told({str(shown.object_id): (None, theirs[0])})
    ours = told_money(known.amount_minor, known.currency if isinstance(known, Dispute) else currency)
    return _told({str(shown.object_id): (known.status, theirs[0]), "its amount": (ours, theirs[1])})


def _told(pairs: Mapping[str, tuple[str | None, str]]) -> Mapping[str, str]:
    return {
        name: f"{name} is {theirs} at Stripe, {ours or 'not known'} here"
        for name, (ours, theirs) in pairs.items()
        if ours != theirs
    }
