"""All that the ledger has of one order, but for its letters; nothing here changes it.

The functions run inside one transaction, as those of moves.py do.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection, Row

from worker.ledger import inbox, lives, requests
from worker.ledger.inbox import WaitingOfPayment
from worker.ledger.schema import EVENTS, OPERATIONS, PAYMENTS, REQUESTS
from worker.payment import OperationState, Payment
from worker.payment_command import Request, RequestState
from worker.payment_life import Life


@dataclass(frozen=True, slots=True)
class Call:
    """All that is kept of one call, but for its parameters, which hold private data.

    amount_minor: what it asks for, in the payment's currency; None where it names no amount. asks: when it may have
    been asked, oldest first. failures: what came instead of an answer, as JSON objects with at, reason and error.
    claimed_by: the worker that asks right now. request_id: Stripe's, of the answer. evidence: what its end rests on.
    """

    kind: str
    attempt: int
    state: OperationState
    amount_minor: int | None
    idempotency_key: str
    stripe_account: str | None
    livemode: bool | None
    first_asked_at: datetime
    asks: Sequence[datetime]
    failures: Sequence[Mapping[str, Any]]
    unknown_because: str | None
    claimed_by: str | None
    answered_at: datetime | None
    request_id: str | None
    evidence: Mapping[str, Any] | None


@dataclass(frozen=True, slots=True)
class StagedEvent:
    """An event. published_at: None while no queue has it."""

    event_id: str
    type: str
    sequence: int
    staged_at: datetime
    published_at: datetime | None


@dataclass(frozen=True, slots=True)
class KeptRequest:
    """What a command asked for, and where that stands. told: ids of the events that answer it."""

    request: Request
    state: RequestState
    told: Sequence[str]
    made_at: datetime
    moved_at: datetime


@dataclass(frozen=True, slots=True)
class PaymentLife:
    """A payment and what became of it, its calls and its events, both in their order; Stripe's events that wait."""

    life: Life
    opened_at: datetime
    moved_at: datetime
    calls: Sequence[Call]
    events: Sequence[StagedEvent]
    waiting: Sequence[WaitingOfPayment]

    @property
    def payment(self) -> Payment:
        """As the ledger has it."""
        return self.life.payment


def payment_life(conn: Connection, order_id: str) -> PaymentLife | None:
    """The life of an order's payment; None where none was opened."""
    life = lives.read_life(conn, order_id)
    if life is None:
        return None
    times = conn.execute(
        sa.select(PAYMENTS.c.opened_at, PAYMENTS.c.moved_at).where(PAYMENTS.c.order_id == order_id)
    ).one()
    calls = conn.execute(
        sa.select(OPERATIONS)
        .where(OPERATIONS.c.order_id == order_id)
        .order_by(OPERATIONS.c.first_asked_at, OPERATIONS.c.attempt)
    )
    events = conn.execute(
        sa.select(EVENTS.c.event_id, EVENTS.c.type, EVENTS.c.sequence, EVENTS.c.staged_at, EVENTS.c.published_at)
        .where(EVENTS.c.order_id == order_id)
        .order_by(EVENTS.c.sequence)
    )
    return PaymentLife(
        life=life,
        opened_at=times.opened_at,
        moved_at=times.moved_at,
        calls=[_call(row) for row in calls],
        events=[StagedEvent(**row._mapping) for row in events],
        waiting=inbox.waiting_of(conn, order_id=order_id, payment_id=life.payment.payment_id),
    )


def requests_of(conn: Connection, order_id: str) -> Sequence[KeptRequest]:
    """What was asked of an order's payment, oldest first. A cancel may be here before its order is."""
    rows = conn.execute(
        sa.select(REQUESTS).where(REQUESTS.c.order_id == order_id).order_by(REQUESTS.c.made_at, REQUESTS.c.request_id)
    )
    return [
        KeptRequest(
            request=requests.request_in(row),
            state=RequestState(row.state),
            told=json.loads(row.told),
            made_at=row.made_at,
            moved_at=row.moved_at,
        )
        for row in rows
    ]


def _call(row: Row[Any]) -> Call:
    params = json.loads(row.params)
    return Call(
        kind=row.kind,
        attempt=row.attempt,
        state=OperationState(row.state),
        amount_minor=params.get("amount", params.get("amount_to_capture")),
        idempotency_key=row.idempotency_key,
        stripe_account=row.stripe_account,
        livemode=row.livemode,
        first_asked_at=row.first_asked_at,
        asks=tuple(map(datetime.fromisoformat, json.loads(row.asks))) or (row.first_asked_at,),
        failures=json.loads(row.failures),
        unknown_because=row.unknown_because,
        claimed_by=row.claimed_by,
        answered_at=row.answered_at,
        request_id=row.request_id,
        evidence=json.loads(row.evidence) if row.evidence else None,
    )
