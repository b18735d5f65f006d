"""The moves that every order makes, each for many orders at once: see Ledger.run_grouped.

A group's move takes the connection and its rows, and has one answer for each row in their order. Where a row cannot be
moved it raises for all of them, and the ledger moves each alone: then the error is its own.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from schemas import OrderCreatedData
from worker.errors import StaleMove
from worker.ledger.given import insert_given, over_given
from worker.ledger.moves import IS_CANCEL_TO_COME, IS_OPEN, frozen_call, json_text, operation_row
from worker.ledger.schema import EVENTS, OPERATIONS, PAYMENTS, REQUESTS
from worker.ledger.turns import Wanted, look_at_turns, take_seen
from worker.payment import (
    CREATE_INTENT,
    Answer,
    Operation,
    Payment,
    PaymentEvent,
    PaymentState,
    may_move,
)


@dataclass(frozen=True, slots=True)
class Opening:
    """An order seen for the first time, as far as its delivery knows, and the call that it asks for.

    cause, correlation_id, traceparent: of the event that brings it; the first one's are told with the outcome.
    params: to be frozen. livemode: of our key. worker_id, claim: who is going to ask, as start_call has them.
    """

    order: OrderCreatedData
    cause: str | None
    correlation_id: str | None
    traceparent: str | None
    params: Mapping[str, Any]
    livemode: bool
    worker_id: str
    claim: str
    now: datetime


@dataclass(frozen=True, slots=True)
class Opened:
    """The order's payment, made now, and its call, claimed; None where a cancel came first: Stripe is not asked."""

    payment: Payment
    call: Operation | None


@dataclass(frozen=True, slots=True)
class OpenedInTurn(Opened):
    """With its turn, which is to be waited for where another worker was faster: for wait_s seconds."""

    wait_s: float


class NotDue:
    """No turn is due, and nothing is opened."""


@dataclass(frozen=True, slots=True)
class Recording:
    """What an answer makes of a payment. before: the payment as it was read; event: tells the outcome."""

    before: Payment
    answer: Answer
    operation: Operation
    event: PaymentEvent
    now: datetime


@dataclass(frozen=True, slots=True)
class Published:
    """The broker has confirmed an event, and some queue has it."""

    event_id: str
    now: datetime


def open_orders(conn: Connection, openings: Sequence[Opening]) -> Sequence[Opened | None]:
    """Open each order's payment, freeze its call and claim it; None for an order that was here before."""
    first = {opening.order.order_id: opening for opening in reversed(openings)}
    payments = {
        order_id: opened_payment(
            each.order, cause=each.cause, correlation_id=each.correlation_id, traceparent=each.traceparent
        )
        for order_id, each in first.items()
    }
    made = open_payments(conn, [(payments[each], first[each].now) for each in payments])
    canceled = set(_canceled_before(conn).execute(conn, [{"order_id": each} for each in made])) if made else ()
    calls = {each: first_call(first[each]) for each in made if each not in canceled}
    if calls:
        rows = [
            operation_row(call, worker_id=first[each].worker_id, claim=first[each].claim)
            for each, call in calls.items()
        ]
        _insert_operations(conn).execute(conn, rows)
    return [
        Opened(payments[order_id], calls.get(order_id)) if order_id in made and opening is first[order_id] else None
        for opening in openings
        for order_id in (opening.order.order_id,)
    ]


def open_in_turn(conn: Connection, asked: Sequence[tuple[Opening, Wanted]]) -> Sequence[OpenedInTurn | NotDue | None]:
    """As open_orders, each with a turn that is due and as many as are: what waits in line for one opens nothing.

    An order that was here before takes none.
    """
    seen = look_at_turns(conn, asked[-1][1])
    in_turn, in_line = asked[: seen.due], asked[seen.due :]
    opened = open_orders(conn, [opening for opening, _ in in_turn]) if in_turn else ()
    wait_s = take_seen(conn, seen, count=count) if (count := sum(map(bool, opened))) else 0.0
    return [
        *(OpenedInTurn(each.payment, each.call, wait_s) if each else None for each in opened),
        *(NotDue() for _ in in_line),
    ]


def open_payments(conn: Connection, payments: Sequence[tuple[Payment, datetime]]) -> set[str]:
    """Insert payments, with the time of it, where the order has none; the ids of those that are new."""
    rows = [
        {
            "order_id": payment.order_id,
            "state": payment.state,
            "amount_minor": payment.amount_minor,
            "currency": payment.currency,
            "customer_id": payment.customer_id,
            "stripe_account": payment.stripe_account,
            "sequence": payment.sequence,
            "cause": payment.cause,
            "correlation_id": payment.correlation_id,
            "traceparent": payment.traceparent,
            "opened_at": now,
            "moved_at": now,
        }
        # in one order for all workers, or two groups that share orders would wait for each other
        for payment, now in sorted(payments, key=lambda each: each[0].order_id)
    ]
    return set(_insert_payments(conn).execute(conn, rows))


def record_answers(conn: Connection, recordings: Sequence[Recording]) -> Sequence[None]:
    """The payment's move, the operation's end and the event, all or nothing.

    Raises StaleMove where a payment has moved since `before` was read, or may not move so.
    """
    for each in recordings:
        if not may_move(each.before.state, each.answer.payment.state):
            raise StaleMove(f"{each.before.order_id}: {each.before.state} may not become {each.answer.payment.state}")
    in_order = sorted(recordings, key=lambda each: each.before.order_id)
    moved = _move_payments(conn).execute(conn, [_moved_row(each) for each in in_order])
    _require_all(moved, in_order, "has moved meanwhile")
    ended = _end_operations(conn).execute(conn, [_ended_row(each) for each in in_order])
    _require_all(ended, in_order, "has ended its call already")
    stage_events(conn, [(each.event, each.now) for each in in_order])
    return [None] * len(recordings)


def stage_events(conn: Connection, events: Sequence[tuple[PaymentEvent, datetime]]) -> None:
    """Keep events to be told, with the time of it."""
    rows = [
        {
            "event_id": event.event_id,
            "order_id": event.order_id,
            "sequence": event.sequence,
            "type": event.type,
            "body": event.body,
            "correlation_id": event.correlation_id,
            "traceparent": event.traceparent,
            "staged_at": now,
        }
        for event, now in events
    ]
    _insert_events(conn).execute(conn, rows)


def mark_published(conn: Connection, published: Sequence[Published]) -> Sequence[None]:
    """Some queue has the events. The first time counts."""
    rows = [{"event_id": each.event_id, "published_at": each.now} for each in published]
    _mark_published(conn).execute(conn, rows)
    return [None] * len(published)


def opened_payment(
    order: OrderCreatedData, *, cause: str | None, correlation_id: str | None, traceparent: str | None
) -> Payment:
    """The payment of an order that has just been seen."""
    return Payment(
        order_id=order.order_id,
        state=PaymentState.OPEN,
        amount_minor=order.amount_minor,
        currency=order.currency,
        customer_id=order.customer_id,
        stripe_account=order.stripe_account,
        payment_id=None,
        status=None,
        livemode=None,
        sequence=0,
        cause=cause,
        correlation_id=correlation_id,
        traceparent=traceparent,
    )


def first_call(opening: Opening) -> Operation:
    """The call that an opening freezes."""
    order = opening.order
    return frozen_call(
        order.order_id,
        CREATE_INTENT,
        1,
        opening.params,
        order.stripe_account,
        livemode=opening.livemode,
        now=opening.now,
    )


def _moved_row(recording: Recording) -> dict[str, Any]:
    after = recording.answer.payment
    return {
        "order_id": recording.before.order_id,
        "was": recording.before.sequence,
        "state": after.state,
        "payment_id": after.payment_id,
        "status": after.status,
        "livemode": after.livemode,
        "sequence": after.sequence,
        "moved_at": recording.now,
    }


def _ended_row(recording: Recording) -> dict[str, Any]:
    return {
        "order_id": recording.operation.order_id,
        "kind": recording.operation.kind,
        "attempt": recording.operation.attempt,
        "state": recording.answer.ends,
        "answered_at": recording.now,
        "request_id": recording.answer.request_id,
        "evidence": json_text(recording.answer.evidence),
    }


def _require_all(done: Iterable[str], recordings: Sequence[Recording], why: str) -> None:
    """Two answers of one payment in one group count as one: the group is given up, and the second one is stale."""
    orders = sorted(done)
    if orders != [each.before.order_id for each in recordings]:
        missing = next((each.before.order_id for each in recordings if each.before.order_id not in orders), "an order")
        raise StaleMove(f"{missing} {why}")


# Built once for each dialect: SQLAlchemy then compiles each a single time, and only the rows are bound on the road.
_PAYMENT: Final = (
    "order_id", "state", "amount_minor", "currency", "customer_id", "stripe_account", "sequence", "cause",
    "correlation_id", "traceparent", "opened_at", "moved_at",
)  # fmt: skip
_OPERATION: Final = (
    "order_id", "kind", "attempt", "idempotency_key", "params", "stripe_account", "livemode", "state", "claimed_by",
    "claim", "first_asked_at", "last_asked_at", "asked", "asks",
)  # fmt: skip
_EVENT: Final = (
    "event_id", "order_id", "sequence", "type", "body", "correlation_id", "traceparent", "staged_at",
)  # fmt: skip
_MOVED: Final = ("state", "payment_id", "status", "livemode", "sequence", "moved_at")
_ENDED: Final = ("state", "answered_at", "request_id", "evidence")


_WAS: Final = sa.Column("was", sa.Integer)
_CALL: Final = ("order_id", "kind", "attempt")


def _canceled(_: str, rows: sa.FromClause) -> sa.Executable:
    """Of orders that no call was begun for."""
    return sa.select(REQUESTS.c.order_id).where(REQUESTS.c.order_id == rows.c.order_id, IS_CANCEL_TO_COME)


def _moved(_: str, rows: sa.FromClause) -> sa.Executable:
    return (
        sa.update(PAYMENTS)
        .where(PAYMENTS.c.order_id == rows.c.order_id, PAYMENTS.c.sequence == rows.c.was)
        .values({name: rows.c[name] for name in _MOVED})
        .returning(PAYMENTS.c.order_id)
    )


def _ended(_: str, rows: sa.FromClause) -> sa.Executable:
    return (
        sa.update(OPERATIONS)
        .where(*(OPERATIONS.c[name] == rows.c[name] for name in _CALL), IS_OPEN)
        .values({name: rows.c[name] for name in _ENDED} | {"claimed_by": sa.null(), "claim": sa.null()})
        .returning(OPERATIONS.c.order_id)
    )


def _marked(_: str, rows: sa.FromClause) -> sa.Executable:
    return (
        sa.update(EVENTS)
        .where(EVENTS.c.event_id == rows.c.event_id, EVENTS.c.published_at.is_(None))
        .values(published_at=rows.c.published_at)
    )


_insert_payments = insert_given(PAYMENTS, _PAYMENT, returning=PAYMENTS.c.order_id)
_insert_operations = insert_given(OPERATIONS, _OPERATION)
_insert_events = insert_given(EVENTS, _EVENT)
_canceled_before = over_given([REQUESTS.c.order_id], _canceled)
_move_payments = over_given([PAYMENTS.c.order_id, _WAS, *(PAYMENTS.c[name] for name in _MOVED)], _moved)
_end_operations = over_given((OPERATIONS.c[name] for name in (*_CALL, *_ENDED)), _ended)
_mark_published = over_given([EVENTS.c.event_id, EVENTS.c.published_at], _marked)
