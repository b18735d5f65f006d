"""Refunds and disputes that are under way or have failed, for the status and for reconcile; they change nothing.

The functions run inside one transaction, as those of moves.py do.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from worker.ledger.figures import HeldUp
from worker.ledger.lives import dispute_of, refund_of
from worker.ledger.schema import DISPUTES, PAYMENTS, REFUNDS
from worker.payment_life import REFUNDS_DECIDED, Dispute, Refund
from worker.stripe_event import DISPUTES_ENDED


@dataclass(frozen=True, slots=True)
class RefundOfOrder:
    """A refund, its order and the currency of the payment."""

    order_id: str
    refund: Refund
    currency: str


@dataclass(frozen=True, slots=True)
class DisputeOfOrder:
    """A dispute and its order."""

    order_id: str
    dispute: Dispute


def open_disputes(conn: Connection) -> Sequence[DisputeOfOrder]:
    """All that have not ended, the first evidence due in front."""
    rows = conn.execute(
        sa.select(DISPUTES)
        .where(DISPUTES.c.status.not_in(DISPUTES_ENDED))
        .order_by(DISPUTES.c.evidence_due_by.is_(None), DISPUTES.c.evidence_due_by, DISPUTES.c.dispute_id)
    )
    return [DisputeOfOrder(row.order_id, dispute_of(row)) for row in rows]


def pending_refunds(conn: Connection) -> Sequence[RefundOfOrder]:
    """All that have neither been made nor failed, oldest first."""
    return _refunds(conn, REFUNDS.c.status.not_in(REFUNDS_DECIDED))


def failed_refunds(conn: Connection, *, made_since: datetime) -> Sequence[RefundOfOrder]:
    """Those made since that have failed after Stripe had taken them, oldest first: the money is with us again."""
    return _refunds(conn, REFUNDS.c.status == "failed", REFUNDS.c.created >= made_since)


def held_by_refunds(refunds: Sequence[RefundOfOrder]) -> HeldUp:
    """Their number, the first one's age and their value."""
    oldest = refunds[0].refund.created if refunds else None
    return HeldUp(len(refunds), oldest, _summed((each.currency, each.refund.amount_minor) for each in refunds))


def held_by_disputes(disputes: Sequence[DisputeOfOrder]) -> HeldUp:
    """Their number and their value."""
    return HeldUp(len(disputes), None, _summed((each.dispute.currency, each.dispute.amount_minor) for each in disputes))


def _refunds(conn: Connection, *conditions: sa.ColumnElement[bool]) -> Sequence[RefundOfOrder]:
    rows = conn.execute(
        sa.select(REFUNDS, PAYMENTS.c.currency)
        .join(PAYMENTS, PAYMENTS.c.order_id == REFUNDS.c.order_id)
        .where(*conditions)
        .order_by(REFUNDS.c.created, REFUNDS.c.refund_id)
    )
    return [RefundOfOrder(row.order_id, refund_of(row), row.currency) for row in rows]


def _summed(amounts: Iterable[tuple[str, int]]) -> dict[str, int]:
    """Minor units by currency."""
    found: dict[str, int] = {}
    for currency, minor in amounts:
        found[currency] = found.get(currency, 0) + minor
    return found
