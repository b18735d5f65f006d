"""The moves of groups, each for one order alone, in a transaction at hand."""

from datetime import datetime

from sqlalchemy.engine import Connection

from schemas import OrderCreatedData
from worker.ledger import moves, order_moves
from worker.payment import Answer, Operation, Payment, PaymentEvent


def open_payment(
    conn: Connection,
    order: OrderCreatedData,
    *,
    cause: str | None,
    correlation_id: str | None,
    traceparent: str | None,
    now: datetime,
) -> Payment:
    """The order's payment, without its call."""
    payment = order_moves.opened_payment(order, cause=cause, correlation_id=correlation_id, traceparent=traceparent)
    made = order_moves.open_payments(conn, [(payment, now)])
    return payment if made else moves.read_payment(conn, order.order_id) or payment


def record_answer(
    conn: Connection, *, before: Payment, answer: Answer, operation: Operation, event: PaymentEvent, now: datetime
) -> None:
    order_moves.record_answers(conn, [order_moves.Recording(before, answer, operation, event, now)])


def stage_event(conn: Connection, event: PaymentEvent, *, now: datetime) -> None:
    order_moves.stage_events(conn, [(event, now)])


def mark_published(conn: Connection, event_id: str, *, now: datetime) -> None:
    order_moves.mark_published(conn, [order_moves.Published(event_id, now)])
