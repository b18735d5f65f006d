"""The life of one payment for people: what it came to, and then each thing that it is made of."""

import json
from collections.abc import Sequence
from datetime import datetime

from worker.desk.letter_records import told_act
from worker.desk.order_seen import OrderSeen
from worker.desk.screen import ago, counted, print_block, print_pairs, say, span, told_due, told_time
from worker.ledger.inbox import WaitingOfPayment
from worker.ledger.one_payment import Call, KeptRequest, PaymentLife, StagedEvent
from worker.letter import told_value
from worker.payment_command import refundable_minor
from worker.payment_life import Dispute, Life, Refund


def print_page(seen: OrderSeen) -> None:
    """All of it, at most as wide as the terminal."""
    life, now = seen.life, seen.now
    if life is None:
        print_pairs({"order": seen.order_id, "payment": "none: no call was begun"})
    else:
        _print_payment(life, now=now)
        for refund in life.life.refunds.values():
            _print_refund(refund, currency=life.payment.currency, now=now)
        for dispute in life.life.disputes.values():
            _print_dispute(dispute, now=now)
    for kept in seen.requests:
        _print_request(kept, now=now)
    for call in seen.calls:
        _print_call(call, seen)
    for waiting in life.waiting if life else ():
        _print_waiting(waiting, now=now)
    for event in life.events if life else ():
        _print_event(event, now=now)
    _print_letters(seen)
    for act in seen.acts:
        say(told_act(act))


def _print_payment(found: PaymentLife, *, now: datetime) -> None:
    payment = found.payment
    print_pairs(
        {
            "order": payment.order_id,
            "payment": f"{payment.payment_id or 'no id yet'} ({payment.state})",
            "value": told_value(payment.amount_minor, payment.currency),
            "status": payment.status or "–",
            "mode": _mode(payment.livemode),
            **({"account": payment.stripe_account} if payment.stripe_account else {}),
            "opened": told_time(found.opened_at, now=now),
            "moved": told_time(found.moved_at, now=now),
            **(_money(found.life, now=now) if payment.payment_id else {}),
        }
    )


def _money(life: Life, *, now: datetime) -> dict[str, str | None]:
    """What the payment came to so far. Fee and net are in the currency of the account."""
    currency, settlement = life.payment.currency, life.settlement
    withheld = "; Stripe refuses refunds of what is disputed" if life.disputed_minor else ""
    told = {
        "received": told_value(life.received_minor, currency),
        "refunded": told_value(life.refunded_minor, currency),
        "refundable": f"{told_value(refundable_minor(life), currency)}{withheld}",
        "disputed": told_value(life.disputed_minor, currency),
    }
    if life.payment.status == "requires_capture":
        told["capturable"] = told_value(life.capturable_minor, currency)
        told["capture before"] = told_due(life.capture_before, now=now) if life.capture_before else "not known"
    if settlement:
        rate = f", at {settlement.exchange_rate}" if settlement.exchange_rate else ""
        told["fee"] = told_value(settlement.fee_minor, settlement.currency)
        told["net"] = f"{told_value(settlement.net_minor, settlement.currency)}{rate}"
    return told


def _print_refund(refund: Refund, *, currency: str, now: datetime) -> None:
    say()
    print_block(
        f"refund {refund.refund_id}: {told_value(refund.amount_minor, currency)}, {refund.status}",
        {
            "made": told_time(refund.created, now=now),
            **({"reason": refund.reason} if refund.reason else {}),
            **({"failed because": refund.failure_reason} if refund.failure_reason else {}),
            **({"request": refund.request_id} if refund.request_id else {}),
        },
    )


def _print_dispute(dispute: Dispute, *, now: datetime) -> None:
    due_by = dispute.evidence_due_by
    say()
    print_block(
        f"dispute {dispute.dispute_id}: {told_value(dispute.amount_minor, dispute.currency)}, {dispute.status}",
        {
            "reason": dispute.reason or "–",
            "evidence due": told_due(due_by, now=now) if due_by else "none is asked for",
            "as of": told_time(dispute.seen_at, now=now),
        },
    )


def _print_request(kept: KeptRequest, *, now: datetime) -> None:
    request = kept.request
    asked = ", ".join(f"{name} {value}" for name, value in request.asked.items() if value not in (None, False))
    say()
    print_block(
        f"request {request.request_id}: {request.kind}, {kept.state}",
        {
            "asks for": asked or "all of it",
            "made": told_time(kept.made_at, now=now),
            "moved": told_time(kept.moved_at, now=now),
            "answered by": ", ".join(kept.told) or "nothing yet",
        },
    )


def _print_call(call: Call, seen: OrderSeen) -> None:
    now, request_id = seen.now, seen.request_of(call)
    side = "inside" if seen.is_inside_horizon(call) else "past"
    currency = seen.life.payment.currency if seen.life else None
    verb = call.kind.partition(".")[0]
    say()
    print_pairs(
        {
            "call": f"{verb}, attempt {call.attempt} ({call.state})",
            **({"for request": request_id} if request_id else {}),
            **({"amount": told_value(call.amount_minor, currency)} if call.amount_minor is not None else {}),
            "key": call.idempotency_key,
            "key age": f"{ago(call.first_asked_at, now=now)}, {side} its horizon of {span(seen.key_horizon_s)}",
            "asked": _times(call.asks, now=now),
            "mode": _mode(call.livemode),
            **({"asking now": call.claimed_by} if call.claimed_by else {}),
            **({"unknown because": call.unknown_because} if call.unknown_because else {}),
            **({"answered": told_time(call.answered_at, now=now)} if call.answered_at else {}),
            **({"Stripe request": call.request_id} if call.request_id else {}),
            **({"evidence": json.dumps(call.evidence, ensure_ascii=False)} if call.evidence else {}),
        }
    )
    for failure in call.failures:
        say(f"  in vain {failure['at']}: {failure['reason']}: {failure['error']}")


def _print_waiting(waiting: WaitingOfPayment, *, now: datetime) -> None:
    say()
    print_block(
        f"Stripe event {waiting.event_id}: {waiting.type}, {waiting.state}",
        {
            **({"because": waiting.why} if waiting.why else {}),
            "came in": told_time(waiting.received_at, now=now),
            "looked at": f"{counted(waiting.tries, 'time')}, next {told_due(waiting.due_at, now=now)}",
        },
    )


def _print_event(event: StagedEvent, *, now: datetime) -> None:
    say()
    print_block(
        f"event {event.sequence}: {event.type} {event.event_id}",
        {
            "staged": told_time(event.staged_at, now=now),
            "told": told_time(event.published_at, now=now) if event.published_at else "not yet",
        },
    )


def _print_letters(seen: OrderSeen) -> None:
    for letter, verdict in seen.letters:
        say()
        print_block(
            f"letter {letter.letter_id} ({letter.state})",
            {
                "landed": told_time(letter.landed_at, now=seen.now),
                "because": f"{letter.reason}: {letter.error}",
                "a replay": f"{verdict.kind}: {verdict.why}",
            },
        )
    if seen.letters_total > len(seen.letters):
        say(f"{len(seen.letters)} of {seen.letters_total} letters shown; see dead-letters list --state all --order")
    say()


def _mode(livemode: bool | None) -> str:
    return {True: "live: real money", False: "test", None: "not known"}[livemode]


def _times(moments: Sequence[datetime], *, now: datetime) -> str:
    first, last = told_time(moments[0], now=now), told_time(moments[-1], now=now)
    return f"{len(moments)} times, first {first}, last {last}" if len(moments) > 1 else first
