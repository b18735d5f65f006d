"""Stripe's events → what this worker keeps of them. Pure.

Of an object only what a payment's life needs is kept: no client secret, no card, nobody's name or address.
Sources: https://docs.stripe.com/api/events/object and https://docs.stripe.com/api/events/types.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any, Final

from worker.card_numbers import mask_text

PAYMENT_INTENT, CHARGE, REFUND, DISPUTE = "payment_intent", "charge", "refund", "dispute"
FAMILIES: Final = frozenset({PAYMENT_INTENT, CHARGE, REFUND, DISPUTE})
MOST_TEXT: Final = 500
# In an intent's metadata: the request that it was captured for.
CAPTURED_FOR: Final = "capture_request_id"
# Nothing follows any more. Source: https://docs.stripe.com/api/disputes/object, its status.
DISPUTES_ENDED: Final = frozenset({"won", "lost", "warning_closed", "prevented"})


class InboxState(StrEnum):
    """What became of an event that came in."""

    RECEIVED = "received"
    PARKED = "parked"  # of a payment that is not known, or not decided, yet
    APPLIED = "applied"
    SET_ASIDE = "set_aside"  # none of ours, with the reason


@dataclass(frozen=True, slots=True)
class StripeEvent:
    """An event of Stripe's.

    family: the kind of object it is about, None for one that concerns no payment. order_id, payment_id: as the object
    says. facts: what is kept of the object; times in it are seconds since the epoch.
    """

    event_id: str
    type: str
    created: datetime
    livemode: bool
    account: str | None
    api_version: str | None
    family: str | None
    object_id: str | None
    payment_id: str | None
    order_id: str | None
    idempotency_key: str | None
    facts: Mapping[str, Any] = field(default_factory=dict)


def read_stripe_event(value: object) -> StripeEvent:
    """Raises ValueError naming what is wrong: it was signed, but is no snapshot event."""
    if not isinstance(value, Mapping) or value.get("object") != "event":
        raise ValueError("it is no snapshot event; thin events need a destination of their own")
    event_id, kind, created = _id(value.get("id")), _id(value.get("type")), _moment(value.get("created"))
    if event_id is None or kind is None or created is None:
        raise ValueError("id, type and created are needed")
    data, request = _table(value.get("data")), _table(value.get("request"))
    thing = _table(data.get("object"))
    family = thing.get("object") if thing.get("object") in FAMILIES else None
    return StripeEvent(
        event_id=event_id,
        type=kind,
        created=created,
        livemode=value.get("livemode") is True,
        account=_id(value.get("account")),
        api_version=_id(value.get("api_version")),
        family=family,
        object_id=_id(thing.get("id")),
        payment_id=_id(thing.get("id")) if family == PAYMENT_INTENT else _id_of(thing.get("payment_intent")),
        order_id=_id(_table(thing.get("metadata")).get("order_id")),
        idempotency_key=_id(request.get("idempotency_key")),
        facts=FACTS[family](thing) if family else {},
    )


def intent_facts(intent: Mapping[str, Any]) -> dict[str, Any]:
    """Of a PaymentIntent. error: what its last attempt failed with, if it did. captured_for: whose capture it was."""
    error = _table(intent.get("last_payment_error"))
    return {
        "status": _text(intent.get("status")),
        "amount": _count(intent.get("amount")),
        "currency": _text(intent.get("currency")),
        "amount_capturable": _count(intent.get("amount_capturable")),
        "amount_received": _count(intent.get("amount_received")),
        "charge": _id_of(intent.get("latest_charge")),
        "cancellation_reason": _text(intent.get("cancellation_reason")),
        "captured_for": _id(_table(intent.get("metadata")).get(CAPTURED_FOR)),
        "next_action": _text(_table(intent.get("next_action")).get("type")),
        "error": {name: _text(error.get(name)) for name in ("code", "decline_code", "advice_code", "message", "charge")}
        if error
        else None,
    }


def charge_facts(charge: Mapping[str, Any]) -> dict[str, Any]:
    """Of a charge. balance_transaction: its id, once Stripe knows what it costs."""
    card = _table(_table(charge.get("payment_method_details")).get("card"))
    return {
        "status": _text(charge.get("status")),
        "captured": charge.get("captured") is True,
        "capture_before": _count(card.get("capture_before")),
        "balance_transaction": _id_of(charge.get("balance_transaction")),
    }


def refund_facts(refund: Mapping[str, Any]) -> dict[str, Any]:
    """Of a refund. request_id: of the command that asked for it."""
    return {
        "status": _text(refund.get("status")),
        "amount": _count(refund.get("amount")),
        "currency": _text(refund.get("currency")),
        "created": _count(refund.get("created")),
        "charge": _id_of(refund.get("charge")),
        "reason": _text(refund.get("reason")),
        "failure_reason": _text(refund.get("failure_reason")),
        "request_id": _id(_table(refund.get("metadata")).get("request_id")),
    }


def dispute_facts(dispute: Mapping[str, Any]) -> dict[str, Any]:
    """Of a dispute. evidence_due_by: seconds since the epoch, None where no evidence is asked for."""
    return {
        "status": _text(dispute.get("status")),
        "amount": _count(dispute.get("amount")),
        "currency": _text(dispute.get("currency")),
        "created": _count(dispute.get("created")),
        "charge": _id_of(dispute.get("charge")),
        "reason": _text(dispute.get("reason")),
        "evidence_due_by": _count(_table(dispute.get("evidence_details")).get("due_by")) or None,
    }


FACTS: Final[Mapping[str, Callable[[Mapping[str, Any]], dict[str, Any]]]] = {
    PAYMENT_INTENT: intent_facts,
    CHARGE: charge_facts,
    REFUND: refund_facts,
    DISPUTE: dispute_facts,
}


# What an intent's status shows to have happened, where that is named by a fact and not by a moment.
_SHOWN: Final = {
    "succeeded": "payment_intent.succeeded",
    "canceled": "payment_intent.canceled",
    "requires_capture": "payment_intent.amount_capturable_updated",
}


def shown_intent(intent: Mapping[str, Any], *, now: datetime) -> StripeEvent:
    """An intent as Stripe shows it when it is asked, as the event that would have told it. now: by Stripe's clock."""
    return _shown(_SHOWN.get(str(intent.get("status")), "payment_intent.shown"), PAYMENT_INTENT, intent, now=now)


def shown_refund(refund: Mapping[str, Any], *, now: datetime) -> StripeEvent:
    """A refund as Stripe shows it when it is asked, as the event that would have told it. now: by Stripe's clock."""
    return _shown("refund.updated", REFUND, refund, now=now)


def shown_dispute(dispute: Mapping[str, Any], *, now: datetime) -> Sequence[StripeEvent]:
    """A dispute as Stripe shows it when it is asked, as the events that would have told it: its opening, its state."""
    opened_at = _moment(dispute.get("created")) or now
    has_ended = dispute.get("status") in DISPUTES_ENDED
    return [
        _shown("charge.dispute.created", DISPUTE, dispute, now=opened_at),
        _shown("charge.dispute.closed" if has_ended else "charge.dispute.updated", DISPUTE, dispute, now=now),
    ]


def shown_object(family: str, thing: Mapping[str, Any], *, now: datetime) -> Sequence[StripeEvent]:
    """An intent, a refund or a dispute as Stripe shows it, as the events that would have told it, the newest last."""
    if family == DISPUTE:
        return shown_dispute(thing, now=now)
    return [(shown_intent if family == PAYMENT_INTENT else shown_refund)(thing, now=now)]


@dataclass(frozen=True, slots=True)
class ShownPayment:
    """An intent as a list shows it. events: what it shows to have happened."""

    payment_id: str
    order_id: str | None
    created: datetime
    status: str
    amount_minor: int
    currency: str
    capturable_minor: int
    received_minor: int
    refunded_minor: int
    events: Sequence[StripeEvent]


def shown_payment(intent: Mapping[str, Any], *, now: datetime) -> ShownPayment:
    """An intent of a list, its charge expanded. now: by Stripe's clock."""
    shown = shown_intent(intent, now=now)
    charge = intent.get("latest_charge")
    return ShownPayment(
        payment_id=str(shown.payment_id),
        order_id=shown.order_id,
        created=datetime.fromtimestamp(int(intent["created"]), UTC),
        status=str(shown.facts["status"]),
        amount_minor=int(shown.facts["amount"]),
        currency=str(shown.facts["currency"]),
        capturable_minor=int(shown.facts["amount_capturable"] or 0),
        received_minor=int(shown.facts["amount_received"] or 0),
        refunded_minor=int(charge.get("amount_refunded") or 0) if isinstance(charge, Mapping) else 0,
        events=[shown],
    )


def _shown(kind: str, family: str, thing: Mapping[str, Any], *, now: datetime) -> StripeEvent:
    return StripeEvent(
        event_id=str(thing.get("id")),
        type=kind,
        created=now.replace(microsecond=0),
        livemode=thing.get("livemode") is True,
        account=None,
        api_version=None,
        family=family,
        object_id=_id(thing.get("id")),
        payment_id=_id(thing.get("id")) if family == PAYMENT_INTENT else _id_of(thing.get("payment_intent")),
        order_id=_id(_table(thing.get("metadata")).get("order_id")),
        idempotency_key=None,
        facts=FACTS[family](thing),
    )


def _table(value: object) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _text(value: object) -> str | None:
    return mask_text(value.replace("\x00", ""))[:MOST_TEXT] if isinstance(value, str) else None


def _is_id(value: object) -> bool:
    return isinstance(value, str) and 0 < len(value) <= 255 and value.isprintable()


def _id(value: object) -> str | None:
    return str(value) if _is_id(value) else None


def _id_of(value: object) -> str | None:
    """Of an object that stands there by its id, or whole."""
    return _id(value.get("id") if isinstance(value, Mapping) else value)


def _count(value: object) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and abs(value) < 2**62 else None


def _moment(value: object) -> datetime | None:
    seconds = _count(value)
    return datetime.fromtimestamp(seconds, UTC) if seconds and 0 < seconds < 2**32 else None
