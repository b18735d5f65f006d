"""What became of payments, in the ledger: one function each, inside one transaction, as in moves.py."""

import json
from collections.abc import Sequence
from dataclasses import asdict, replace
from datetime import datetime
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection, Row

from worker.ledger import inbox, moves
from worker.ledger.moves import insert_or_update
from worker.ledger.order_moves import stage_events
from worker.ledger.schema import DISPUTES, EVENTS, LIVES, PAYMENTS, REFUNDS
from worker.payment import Payment, PaymentEvent
from worker.payment_command import CommandKind, Request
from worker.payment_life import Dispute, Life, Refund, Settlement, Telling, apply, event_of_telling, telling_id
from worker.stripe_event import InboxState, StripeEvent


def find_payment(conn: Connection, *, order_id: str | None, payment_id: str | None) -> Payment | None:
    """The payment that an object of Stripe's belongs to, by its own id or else by its order's."""
    of_order = moves.read_payment(conn, order_id) if order_id else None
    if payment_id is None or (of_order and of_order.payment_id == payment_id):
        return of_order
    found = conn.scalar(_ORDER_OF_PAYMENT, {"payment_id": payment_id})
    return moves.read_payment(conn, found) if found else of_order


def find_payments(conn: Connection, events: Sequence[StripeEvent]) -> Sequence[Payment | None]:
    """The payment of each event, in their order."""
    return [find_payment(conn, order_id=event.order_id, payment_id=event.payment_id) for event in events]


def read_life(conn: Connection, order_id: str, *, lock: bool = False) -> Life | None:
    """A payment and what became of it. lock: until this transaction ends, so that nobody else tells of it."""
    if lock:
        conn.execute(_LOCK_PAYMENT, {"order_id": order_id})
    payment = moves.read_payment(conn, order_id)
    if payment is None:
        return None
    row = conn.execute(_READ_LIFE, {"order_id": order_id}).first()
    refunds = conn.execute(_READ_REFUNDS, {"order_id": order_id})
    disputes = conn.execute(_READ_DISPUTES, {"order_id": order_id})
    return Life(
        payment=payment,
        refunds={each.refund_id: refund_of(each) for each in refunds},
        disputes={each.dispute_id: dispute_of(each) for each in disputes},
        **_facts(row),
    )


def apply_event(
    conn: Connection,
    event: StripeEvent,
    order_id: str,
    *,
    shown: Sequence[StripeEvent] = (),
    settlement: Settlement | None,
    source: str,
    now: datetime,
) -> Sequence[PaymentEvent]:
    """The event's effect, what it tells, and its end in the inbox, all or nothing; returns what is newly told.

    shown: what Stripe shows beside it, where the event alone does not tell enough; taken in before it. Somebody else
    may have applied it meanwhile: then nothing is written.
    """
    if not inbox.is_waiting(conn, event.event_id):
        return []
    before = read_life(conn, order_id, lock=True)
    if before is None:
        return []
    _, told = take_in(conn, before, [*shown, event], settlement=settlement, source=source, now=now)
    inbox.settle(conn, event.event_id, InboxState.APPLIED, why=None, now=now)
    return told


def take_in(
    conn: Connection,
    before: Life,
    events: Sequence[StripeEvent],
    *,
    settlement: Settlement | None = None,
    answers: Request | None = None,
    source: str,
    now: datetime,
) -> tuple[Life, Sequence[PaymentEvent]]:
    """The effect of events, or of what Stripe shows when it is asked; the life after it and what is newly told.

    before: as read and locked in this transaction. answers: the request that led to them.
    """
    life, staged = before, []
    for event in events:
        after, tellings = apply(life, event, settlement=settlement)
        _save(conn, life, after)
        cause, correlation_id = event.event_id, None
        if answers:
            cause, correlation_id = answers.cause or cause, answers.correlation_id
            tellings = [_with_request(each, answers) for each in tellings]
        life, told = tell(conn, after, tellings, cause=cause, source=source, now=now, correlation_id=correlation_id)
        staged += told
    if life.payment != before.payment:
        save_status(conn, life, now=now)
    return life, staged


def _with_request(telling: Telling, request: Request) -> Telling:
    """A cancel says who asked for it; a refund has that from Stripe."""
    if telling.type != "payment.canceled" or request.kind is not CommandKind.CANCEL:
        return telling
    return replace(telling, data={**telling.data, "request_id": request.request_id})


def take_in_shown(
    conn: Connection, order_id: str, events: Sequence[StripeEvent], *, source: str, now: datetime
) -> Sequence[PaymentEvent]:
    """The effect of what Stripe shows of a payment; what is newly told."""
    life = read_life(conn, order_id, lock=True)
    return take_in(conn, life, events, source=source, now=now)[1] if life else []


def payments_since(conn: Connection, *, since: datetime, limit: int, after: str | None) -> Sequence[Payment]:
    """A page of the payments opened since, by order id."""
    asked = sa.select(PAYMENTS.c.order_id).where(PAYMENTS.c.opened_at >= since)
    if after:
        asked = asked.where(PAYMENTS.c.order_id > after)
    ids = conn.scalars(asked.order_by(PAYMENTS.c.order_id).limit(limit)).all()
    return [payment for order_id in ids if (payment := moves.read_payment(conn, order_id))]


def untold_by_type(conn: Connection, *, before: datetime) -> Sequence[tuple[str, int, datetime]]:
    """Type, number and oldest of the events that no queue has."""
    rows = conn.execute(
        sa.select(EVENTS.c.type, sa.func.count(), sa.func.min(EVENTS.c.staged_at))
        .where(EVENTS.c.published_at.is_(None), EVENTS.c.staged_at < before)
        .group_by(EVENTS.c.type)
        .order_by(EVENTS.c.type)
    )
    return [(row[0], row[1], row[2]) for row in rows]


def expiring(conn: Connection, *, until: datetime, limit: int) -> Sequence[str]:
    """Orders whose authorization ends before `until`, and was not told to."""
    told = sa.exists().where(EVENTS.c.order_id == LIVES.c.order_id, EVENTS.c.type == "payment.authorization_expiring")
    return conn.scalars(
        sa.select(LIVES.c.order_id)
        .join(PAYMENTS, PAYMENTS.c.order_id == LIVES.c.order_id)
        .where(PAYMENTS.c.status == "requires_capture", LIVES.c.capture_before < until, ~told)
        .order_by(LIVES.c.capture_before)
        .limit(limit)
    ).all()


def tell_expiring(conn: Connection, order_id: str, *, source: str, now: datetime) -> Sequence[PaymentEvent]:
    """Tell that an authorization ends soon, once."""
    life = read_life(conn, order_id, lock=True)
    if life is None or life.capture_before is None or life.payment.status != "requires_capture":
        return []
    telling = Telling("payment.authorization_expiring", "", now, {"capture_before": life.capture_before})
    life, told = tell(conn, life, [telling], cause=None, source=source, now=now)
    save_status(conn, life, now=now)
    return told


def tell(
    conn: Connection,
    life: Life,
    tellings: Sequence[Telling],
    *,
    cause: str | None,
    source: str,
    now: datetime,
    correlation_id: str | None = None,
) -> tuple[Life, list[PaymentEvent]]:
    """Stage the events of facts that were not told before; the life after it, further in its sequence."""
    staged = []
    for telling in tellings:
        event_id = telling_id(life.payment.order_id, telling)
        if conn.scalar(_IS_TOLD, {"event_id": event_id}) is None:
            life, event = event_of_telling(life, telling, cause=cause, source=source, correlation_id=correlation_id)
            stage_events(conn, [(event, now)])
            staged.append(event)
    return life, staged


def save_status(conn: Connection, life: Life, *, now: datetime, **more: object) -> None:
    """Of the payment: its status, and how far its sequence is. more: other columns."""
    payment = life.payment
    conn.execute(
        _SAVE_STATUS.values(more) if more else _SAVE_STATUS,
        {
            "b_order_id": payment.order_id,
            "b_status": payment.status,
            "b_sequence": payment.sequence,
            "b_moved_at": now,
        },
    )


def _save(conn: Connection, before: Life, after: Life) -> None:
    order_id = after.payment.order_id
    row = _row(after)
    if row != _row(before):
        insert_or_update(conn, LIVES, row)
    for refund_id, refund in after.refunds.items():
        if before.refunds.get(refund_id) != refund:
            insert_or_update(conn, REFUNDS, {"order_id": order_id, **asdict(refund)})
    for dispute_id, dispute in after.disputes.items():
        if before.disputes.get(dispute_id) != dispute:
            insert_or_update(conn, DISPUTES, {"order_id": order_id, **asdict(dispute)})


def _row(life: Life) -> dict[str, Any]:
    """Of a payment that nothing became of yet there is none, and none is missed."""
    return {
        "order_id": life.payment.order_id,
        "status_at": life.status_at,
        "capturable_minor": life.capturable_minor,
        "received_minor": life.received_minor,
        "capture_before": life.capture_before,
        "settlement": json.dumps(asdict(life.settlement)) if life.settlement else None,
    }


def _facts(row: Row[Any] | None) -> dict[str, Any]:
    if row is None:
        return {}
    return {
        "status_at": row.status_at,
        "capturable_minor": row.capturable_minor,
        "received_minor": row.received_minor,
        "capture_before": row.capture_before,
        "settlement": Settlement(**json.loads(row.settlement)) if row.settlement else None,
    }


def refund_of(row: Row[Any]) -> Refund:
    """Of a row with the columns of REFUNDS."""
    return Refund(
        refund_id=row.refund_id,
        amount_minor=row.amount_minor,
        status=row.status,
        created=row.created,
        reason=row.reason,
        failure_reason=row.failure_reason,
        request_id=row.request_id,
    )


def dispute_of(row: Row[Any]) -> Dispute:
    """Of a row with the columns of DISPUTES."""
    return Dispute(
        dispute_id=row.dispute_id,
        amount_minor=row.amount_minor,
        currency=row.currency,
        status=row.status,
        seen_at=row.seen_at,
        reason=row.reason,
        evidence_due_by=row.evidence_due_by,
    )


# Built once, as those of moves.py.
_ORDER_ID: sa.BindParameter[str] = sa.bindparam("order_id")
_ORDER_OF_PAYMENT = sa.select(PAYMENTS.c.order_id).where(PAYMENTS.c.payment_id == sa.bindparam("payment_id"))
_LOCK_PAYMENT = sa.select(PAYMENTS.c.order_id).where(PAYMENTS.c.order_id == _ORDER_ID).with_for_update()
_READ_LIFE = sa.select(LIVES).where(LIVES.c.order_id == _ORDER_ID)
_READ_REFUNDS = sa.select(REFUNDS).where(REFUNDS.c.order_id == _ORDER_ID).order_by(REFUNDS.c.created)
_READ_DISPUTES = sa.select(DISPUTES).where(DISPUTES.c.order_id == _ORDER_ID)
_IS_TOLD = sa.select(EVENTS.c.event_id).where(EVENTS.c.event_id == sa.bindparam("event_id"))
_SAVE_STATUS = (
    sa.update(PAYMENTS)
    .where(PAYMENTS.c.order_id == sa.bindparam("b_order_id"))
    .values({name: sa.bindparam(f"b_{name}") for name in ("status", "sequence", "moved_at")})
)
