"""The life of one payment for programs. Times are ISO 8601, null where not known; payment is empty where none is."""

from typing import Any

from schemas import in_both_units
from worker.desk.letter_records import act_record, payment_record, record
from worker.desk.order_seen import OrderSeen
from worker.ledger.one_payment import Call, KeptRequest
from worker.payment_command import refundable_minor
from worker.payment_life import Dispute, Life, Refund


def life_record(seen: OrderSeen) -> dict[str, Any]:
    """All of it; amounts in major units and as `…_minor`."""
    found = seen.life
    payment: dict[str, Any] = {}
    if found:
        payment = payment_record(found.payment) | {
            "opened_at": found.opened_at,
            "moved_at": found.moved_at,
            **_money_record(found.life),
        }
    return {
        "order_id": seen.order_id,
        "payment": payment,
        "refunds": [_refund_record(each, found.payment.currency) for each in found.life.refunds.values()]
        if found
        else [],
        "disputes": [_dispute_record(each) for each in found.life.disputes.values()] if found else [],
        "requests": [_request_record(kept) for kept in seen.requests],
        "calls": [_call_record(call, seen) for call in seen.calls],
        "stripe_events": [
            {
                "id": waiting.event_id,
                "type": waiting.type,
                "state": waiting.state,
                "why": waiting.why,
                "received_at": waiting.received_at,
                "next_look_at": waiting.due_at,
                "looks": waiting.tries,
            }
            for waiting in (found.waiting if found else ())
        ],
        "events": [
            {
                "id": event.event_id,
                "type": event.type,
                "sequence": event.sequence,
                "staged_at": event.staged_at,
                "told_at": event.published_at,
            }
            for event in (found.events if found else ())
        ],
        "letters": [
            record(letter, now=seen.now) | {"verdict": verdict.kind, "verdict_because": verdict.why}
            for letter, verdict in seen.letters
        ],
        "acts": [act_record(act) for act in seen.acts],
    }


def _money_record(life: Life) -> dict[str, Any]:
    settlement = life.settlement
    return {
        "currency": life.payment.currency,
        **in_both_units(
            life.payment.currency,
            amount=life.payment.amount_minor,
            received=life.received_minor,
            refunded=life.refunded_minor,
            refundable=refundable_minor(life),
            disputed=life.disputed_minor,
            capturable=life.capturable_minor,
        ),
        "capture_before": life.capture_before,
        "settlement": settlement
        and {
            **in_both_units(settlement.currency, fee=settlement.fee_minor, net=settlement.net_minor),
            "currency": settlement.currency,
            "balance_transaction_id": settlement.balance_transaction_id,
            "exchange_rate": settlement.exchange_rate,
        },
    }


def _refund_record(refund: Refund, currency: str) -> dict[str, Any]:
    return {
        "id": refund.refund_id,
        **in_both_units(currency, amount=refund.amount_minor),
        "status": refund.status,
        "reason": refund.reason,
        "failure_reason": refund.failure_reason,
        "request_id": refund.request_id,
        "made_at": refund.created,
    }


def _dispute_record(dispute: Dispute) -> dict[str, Any]:
    return {
        "id": dispute.dispute_id,
        **in_both_units(dispute.currency, amount=dispute.amount_minor),
        "currency": dispute.currency,
        "status": dispute.status,
        "reason": dispute.reason,
        "evidence_due_by": dispute.evidence_due_by,
        "seen_at": dispute.seen_at,
    }


def _request_record(kept: KeptRequest) -> dict[str, Any]:
    request = kept.request
    return {
        "request_id": request.request_id,
        "kind": request.kind,
        "state": kept.state,
        "asked": dict(request.asked),
        "cause": request.cause,
        "made_at": kept.made_at,
        "moved_at": kept.moved_at,
        "answered_by": list(kept.told),
    }


def _call_record(call: Call, seen: OrderSeen) -> dict[str, Any]:
    currency = seen.life.payment.currency if seen.life else ""
    return {
        "kind": call.kind,
        "attempt": call.attempt,
        "state": call.state,
        "for_request": seen.request_of(call),
        **(in_both_units(currency, amount=call.amount_minor) if call.amount_minor is not None else {"amount": None}),
        "idempotency_key": call.idempotency_key,
        "key_age_s": round((seen.now - call.first_asked_at).total_seconds()),
        "inside_horizon": seen.is_inside_horizon(call),
        "livemode": call.livemode,
        "stripe_account": call.stripe_account,
        "asked": list(call.asks),
        "failures": list(call.failures),
        "unknown_because": call.unknown_because,
        "claimed_by": call.claimed_by,
        "answered_at": call.answered_at,
        "request_id": call.request_id,
        "evidence": call.evidence,
    }
