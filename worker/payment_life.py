"""What becomes of a payment after its intent was made, out of Stripe's events in whatever order they come. Pure.

The state is the same for every order of the same events, and so is the set of what is told: each telling is named by
the fact that it tells, not by the moment at which it became known. What happened is told even when it becomes known
late; the state that is told with it is the newest.
Source: https://docs.stripe.com/payments/paymentintents/lifecycle and https://docs.stripe.com/webhooks#event-ordering.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any, Final

from schemas import EVENT_MODELS, in_both_units
from worker.errors import Refusal
from worker.payment import Payment, PaymentEvent, failure_of
from worker.stripe_event import CHARGE, DISPUTE, DISPUTES_ENDED, PAYMENT_INTENT, REFUND, StripeEvent

# Where two snapshots are of the same second, the one that is further on is the newer.
_RANKS: Final = {
    "requires_payment_method": 0,
    "requires_confirmation": 1,
    "requires_action": 2,
    "processing": 3,
    "requires_capture": 4,
    "succeeded": 5,
    "canceled": 5,
}
_FINAL: Final = 5
# A refund that has failed once has failed for good, and one that is only pending is not money given back yet.
_REFUND_RANKS: Final = {"pending": 0, "requires_action": 0, "succeeded": 1, "failed": 2, "canceled": 2}
_LOST: Final = 2
# Made, or failed; any other status is on its way to one of these.
REFUNDS_DECIDED: Final = frozenset(status for status, rank in _REFUND_RANKS.items() if rank)
_DISPUTE_RANKS: Final = dict.fromkeys(DISPUTES_ENDED, 1)
# A dispute may begin as an inquiry, which takes no money, and go on after it was decided.
_STAGES: Final = {"warning": "inquiry", "appeal": "appeal"}
DISPUTES_OVER: Final = frozenset({"won", "warning_closed", "prevented"})


@dataclass(frozen=True, slots=True)
class Refund:
    """A refund at Stripe. request_id: of the command that asked for it, where one did."""

    refund_id: str
    amount_minor: int
    status: str
    created: datetime
    reason: str | None = None
    failure_reason: str | None = None
    request_id: str | None = None


@dataclass(frozen=True, slots=True)
class Dispute:
    """A dispute at Stripe. seen_at: of the event that said so."""

    dispute_id: str
    amount_minor: int
    currency: str
    status: str
    seen_at: datetime
    reason: str | None = None
    evidence_due_by: datetime | None = None

    @property
    def needs_response(self) -> bool:
        """Whether evidence is asked for, of a dispute, an inquiry or an appeal."""
        return self.status.endswith("needs_response")

    @property
    def takes_money(self) -> bool:
        """Whether the bank holds the money back, or has it."""
        return self.status not in DISPUTES_OVER and not self.status.startswith("warning_")


@dataclass(frozen=True, slots=True)
class Settlement:
    """What a charge came to: fee and net in minor units of the account's own currency."""

    balance_transaction_id: str
    fee_minor: int
    net_minor: int
    currency: str
    exchange_rate: str | None = None


@dataclass(frozen=True, slots=True)
class Life:
    """A payment and all that became of it. status_at: when Stripe said so, None for what the first answer said.

    capture_before: when an authorization expires.
    """

    payment: Payment
    status_at: datetime | None = None
    capturable_minor: int = 0
    received_minor: int = 0
    capture_before: datetime | None = None
    settlement: Settlement | None = None
    refunds: Mapping[str, Refund] = field(default_factory=dict)
    disputes: Mapping[str, Dispute] = field(default_factory=dict)

    @property
    def refunded_minor(self) -> int:
        """Given back, or on its way; one that has failed is not."""
        return sum(each.amount_minor for each in self.refunds.values() if _REFUND_RANKS.get(each.status, 0) < _LOST)

    @property
    def has_pending_refunds(self) -> bool:
        """Whether one has neither come to its end nor failed, as far as is known."""
        return any(_REFUND_RANKS.get(each.status, 0) == 0 for each in self.refunds.values())

    @property
    def disputed_minor(self) -> int:
        """Withheld or lost by disputes; nothing for one that is won, nor for a mere inquiry, which takes no money.

        One in another currency counts as all that came in, which it is at most.
        """
        taken = [each for each in self.disputes.values() if each.takes_money]
        currency = self.payment.currency
        return sum(each.amount_minor if each.currency == currency else self.received_minor for each in taken)


@dataclass(frozen=True, slots=True)
class Telling:
    """Something that happened, to be told once. key: names the fact among those of its payment. at: at Stripe.

    data: what the event says beside the state of the payment.
    """

    type: str
    key: str
    at: datetime
    data: Mapping[str, Any] = field(default_factory=dict)


def apply(life: Life, event: StripeEvent, *, settlement: Settlement | None = None) -> tuple[Life, Sequence[Telling]]:
    """The life after an event, and what it tells. settlement: of the balance transaction that a charge names.

    The same event again, or an older one, changes nothing; what it tells is told under the same keys.
    """
    if event.family == PAYMENT_INTENT:
        return _after_intent(life, event), list(_told_by_intent(life, event))
    if event.family == CHARGE:
        return _after_charge(life, event, settlement)
    if event.family == REFUND and event.object_id:
        return _after_refund(life, event, event.object_id)
    if event.family == DISPUTE and event.object_id:
        return _after_dispute(life, event, event.object_id)
    return life, ()


def state_of(life: Life) -> dict[str, Any]:
    """The state that every event carries, but for its sequence."""
    payment, currency = life.payment, life.payment.currency
    amounts = {
        "amount": payment.amount_minor,
        "amount_capturable": life.capturable_minor,
        "amount_received": life.received_minor,
        "amount_refunded": life.refunded_minor,
        "amount_disputed": life.disputed_minor,
    }
    return {
        "order_id": payment.order_id,
        "payment_id": payment.payment_id,
        "status": payment.status,
        "currency": currency,
        "livemode": payment.livemode,
        **in_both_units(currency, **amounts),
    }


def telling_id(order_id: str, telling: Telling) -> str:
    """The id of the event that tells a fact: made of the fact alone, whoever comes to know of it, and when."""
    name = telling.type.partition(".")[2]
    return "/".join(filter(None, (order_id, telling.type.partition(".")[0], name, telling.key)))


def event_of_telling(
    life: Life, telling: Telling, *, cause: str | None, source: str, correlation_id: str | None = None
) -> tuple[Life, PaymentEvent]:
    """The event that tells a fact, with the state as it is now; and the life after it, one further in its sequence.

    correlation_id: of the command that it answers; the order's where it answers none.
    """
    payment = replace(life.payment, sequence=life.payment.sequence + 1)
    life = replace(life, payment=payment)
    event = EVENT_MODELS[telling.type].model_validate(
        {
            "id": telling_id(payment.order_id, telling),
            "source": source,
            "subject": payment.order_id,
            "time": telling.at,
            "traceparent": payment.traceparent,
            "data": {**state_of(life), "sequence": payment.sequence, "cause": cause, **telling.data},
        }
    )
    told = PaymentEvent(
        event_id=event.id,
        order_id=payment.order_id,
        sequence=payment.sequence,
        type=event.type,
        body=event.model_dump_json(exclude_none=True),
        correlation_id=correlation_id or payment.correlation_id,
        traceparent=payment.traceparent,
    )
    return life, told


def _after_intent(life: Life, event: StripeEvent) -> Life:
    facts, status = event.facts, str(event.facts.get("status"))
    received = max(life.received_minor, facts.get("amount_received") or 0)
    life = replace(life, received_minor=received)
    # What the intent was made as, our own call was answered.
    if event.type == "payment_intent.created" or not _is_newer(life, event.created, status):
        return life
    return replace(
        life,
        payment=replace(life.payment, status=status),
        status_at=event.created,
        capturable_minor=facts.get("amount_capturable") or 0,
    )


def _is_newer(life: Life, at: datetime, status: str) -> bool:
    before = _RANKS.get(life.payment.status or "", 0)
    if before == _FINAL:
        return False
    if life.status_at is None or _RANKS.get(status, 0) == _FINAL:
        return True
    return (at, _RANKS.get(status, 0)) > (life.status_at, before)


def _told_by_intent(life: Life, event: StripeEvent) -> Iterator[Telling]:
    facts, at = event.facts, event.created
    match event.type:
        case "payment_intent.requires_action":
            data = {"next_action": facts.get("next_action")}
            yield Telling("payment.requires_action", _digest(event), at, data)
        case "payment_intent.processing":
            yield Telling("payment.processing", str(facts.get("charge") or _digest(event)), at)
        case "payment_intent.amount_capturable_updated" if facts.get("status") == "requires_capture":
            data = {"capture_before": life.capture_before}
            yield Telling("payment.authorized", str(facts.get("charge") or _digest(event)), at, data)
        case "payment_intent.succeeded":
            yield Telling("payment.succeeded", "", at)
        case "payment_intent.payment_failed":
            error = facts.get("error") or {}
            data = {"failure": failure_of(_refusal_of(event)).model_dump()}
            yield Telling("payment.attempt_failed", str(error.get("charge") or _digest(event)), at, data)
        case "payment_intent.canceled":
            yield Telling("payment.canceled", "", at, {"reason": facts.get("cancellation_reason")})


def _after_charge(life: Life, event: StripeEvent, settlement: Settlement | None) -> tuple[Life, Sequence[Telling]]:
    before = event.facts.get("capture_before")
    if before is not None and event.facts.get("status") == "succeeded":
        expires_at = datetime.fromtimestamp(before, UTC)
        life = replace(life, capture_before=max(life.capture_before or expires_at, expires_at))
    if settlement is None:
        return life, ()
    currency = settlement.currency
    data = {
        **in_both_units(currency, fee=settlement.fee_minor, net=settlement.net_minor),
        "settlement_currency": currency,
        "balance_transaction_id": settlement.balance_transaction_id,
        "exchange_rate": settlement.exchange_rate,
    }
    told = Telling("payment.settled", settlement.balance_transaction_id, event.created, data)
    return replace(life, settlement=life.settlement or settlement), [told]


def _after_refund(life: Life, event: StripeEvent, refund_id: str) -> tuple[Life, Sequence[Telling]]:
    facts, status = event.facts, str(event.facts.get("status"))
    known = life.refunds.get(refund_id)
    refund = known or Refund(refund_id, facts.get("amount") or 0, status, _moment(facts.get("created"), event))
    if known is None or _REFUND_RANKS.get(status, 0) > _REFUND_RANKS.get(known.status, 0):
        refund = replace(refund, status=status)
    refund = replace(
        refund,
        reason=refund.reason or facts.get("reason"),
        failure_reason=refund.failure_reason or facts.get("failure_reason"),
        request_id=refund.request_id or facts.get("request_id"),
    )
    life = replace(life, refunds={**life.refunds, refund_id: refund})
    told = {"refund": _told_refund(refund, life.payment.currency)}
    if status == "succeeded":
        given = sum(each.amount_minor for each in life.refunds.values() if each.status == "succeeded")
        is_full = 0 < life.received_minor <= given
        return life, [Telling("payment.refunded", refund_id, event.created, told | {"fully_refunded": is_full})]
    if status in ("failed", "canceled"):
        why = refund.failure_reason or status
        return life, [Telling("payment.refund_failed", refund_id, event.created, told | {"failure_reason": why})]
    return life, ()


def _after_dispute(life: Life, event: StripeEvent, dispute_id: str) -> tuple[Life, Sequence[Telling]]:
    facts, status = event.facts, str(event.facts.get("status"))
    known = life.disputes.get(dispute_id)
    dispute = known or Dispute(
        dispute_id, facts.get("amount") or 0, str(facts.get("currency") or ""), status, event.created
    )
    if known is None or _place(status, event.created) > _place(known.status, known.seen_at):
        due = facts.get("evidence_due_by")
        dispute = replace(
            dispute,
            amount_minor=facts.get("amount") or dispute.amount_minor,
            currency=str(facts.get("currency") or dispute.currency),
            status=status,
            seen_at=event.created,
            reason=facts.get("reason"),
            evidence_due_by=datetime.fromtimestamp(due, UTC) if due else None,
        )
    life = replace(life, disputes={**life.disputes, dispute_id: dispute})
    fact = _fact_of_dispute(event.type, status)
    if fact is None:
        return life, ()
    kind, suffix = fact
    data = {
        "dispute_id": dispute_id,
        **in_both_units(dispute.currency, amount=dispute.amount_minor),
        "currency": dispute.currency,
        "reason": dispute.reason,
        "status": dispute.status,
        "evidence_due_by": dispute.evidence_due_by,
    }
    return life, [Telling(kind, "/".join(filter(None, (dispute_id, suffix))), event.created, {"dispute": data})]


def _fact_of_dispute(type_: str, status: str) -> tuple[str, str] | None:
    """What an event tells, and what names the fact beside the dispute: each stage opens once, and may end anew.

    The status is the one that the event shows. An inquiry that becomes a dispute is told by an update alone.
    """
    stage = _STAGES.get(status.partition("_")[0], "")
    match type_:
        case "charge.dispute.created":
            return "payment.dispute_opened", stage
        case "charge.dispute.updated" if status not in _DISPUTE_RANKS:
            return "payment.dispute_opened", stage
        case "charge.dispute.closed":
            return "payment.dispute_closed", status
    return None


def _place(status: str, at: datetime) -> tuple[datetime, int, str]:
    """Of a dispute's snapshot: the greatest is the newest. An end counts more than what else is of its second."""
    return at, _DISPUTE_RANKS.get(status, 0), status


def _told_refund(refund: Refund, currency: str) -> dict[str, Any]:
    return {
        "refund_id": refund.refund_id,
        "request_id": refund.request_id,
        **in_both_units(currency, amount=refund.amount_minor),
        "status": refund.status,
        "reason": refund.reason,
    }


def _refusal_of(event: StripeEvent) -> Refusal:
    error = event.facts.get("error") or {}
    return Refusal(
        http_status=402,
        code=error.get("code"),
        decline_code=error.get("decline_code"),
        advice_code=error.get("advice_code"),
        message=error.get("message") or "",
        payment_id=event.payment_id,
        payment_status=event.facts.get("status"),
        livemode=event.livemode,
    )


def _moment(seconds: int | None, event: StripeEvent) -> datetime:
    return datetime.fromtimestamp(seconds, UTC) if seconds else event.created


def _digest(event: StripeEvent) -> str:
    """The same for two events of one change, which Stripe sometimes sends under two ids."""
    told = json.dumps([event.type, int(event.created.timestamp()), event.facts], sort_keys=True)
    return hashlib.sha256(told.encode()).hexdigest()[:16]
