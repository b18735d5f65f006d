"""Stripe's events in the ledger: kept when they come in, and marked done in the transaction of their effect.

The functions run inside one transaction, as those of moves.py do.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection, Row

from worker.ledger.given import insert_given
from worker.ledger.moves import json_text
from worker.ledger.schema import PAYMENTS, STRIPE_EVENTS
from worker.stripe_event import InboxState, StripeEvent

# Spelled out, or SQLite would not see that the index of waiting events holds all that is asked for.
_IS_WAITING = STRIPE_EVENTS.c.state.in_(
    sa.bindparam("waiting", (InboxState.RECEIVED, InboxState.PARKED), expanding=True, literal_execute=True)
)


@dataclass(frozen=True, slots=True)
class Waiting:
    """An event that is not done with. tries: looks in vain so far."""

    event: StripeEvent
    received_at: datetime
    tries: int


@dataclass(frozen=True, slots=True)
class WaitingGroup:
    """Events that are not done with, for one reason. why: None for those that nobody has looked at.

    oldest: when the first of them came in. order_id: of one of them, where it is known. is_nameless: they name no
    order, and this ledger has no payment of theirs.
    """

    state: InboxState
    why: str | None
    is_nameless: bool
    count: int
    oldest: datetime
    order_id: str | None

    @property
    def is_strange(self) -> bool:
        """Whether they are somebody else's on the same account, as far as can be told."""
        return self.is_nameless and self.state is InboxState.PARKED


@dataclass(frozen=True, slots=True)
class WaitingOfPayment:
    """One event that is not done with. tries: looks in vain so far; due_at: when the next one is."""

    event_id: str
    type: str
    state: InboxState
    why: str | None
    received_at: datetime
    due_at: datetime
    tries: int


@dataclass(frozen=True, slots=True)
class Receipt:
    """An event that came in. set_aside: why it is none of ours, if it is not."""

    event: StripeEvent
    set_aside: str | None
    now: datetime


def receive(conn: Connection, receipts: Sequence[Receipt]) -> Sequence[bool]:
    """Keep events that came in, many at once: see Ledger.run_grouped. False for each that was here already."""
    first = {each.event.event_id: each for each in reversed(receipts)}
    rows = [_row(first[event_id]) for event_id in sorted(first)]
    kept = set(_keep(conn).execute(conn, rows))
    return [each.event.event_id in kept and each is first[each.event.event_id] for each in receipts]


_keep = insert_given(
    STRIPE_EVENTS, [column.name for column in STRIPE_EVENTS.columns], returning=STRIPE_EVENTS.c.event_id
)


def _row(receipt: Receipt) -> dict[str, Any]:
    event, now = receipt.event, receipt.now
    return {
        "event_id": event.event_id,
        "type": event.type,
        "created": event.created,
        "livemode": event.livemode,
        "account": event.account,
        "api_version": event.api_version,
        "family": event.family,
        "object_id": event.object_id,
        "payment_id": event.payment_id,
        "order_id": event.order_id,
        "idempotency_key": event.idempotency_key,
        "facts": json_text(event.facts),
        "state": InboxState.SET_ASIDE if receipt.set_aside else InboxState.RECEIVED,
        "why": receipt.set_aside,
        "received_at": now,
        "moved_at": now,
        "due_at": now,
        "tries": 0,
    }


def is_known(conn: Connection, event_id: str) -> bool:
    """Whether it came in before."""
    return (
        conn.execute(sa.select(STRIPE_EVENTS.c.event_id).where(STRIPE_EVENTS.c.event_id == event_id)).first()
        is not None
    )


def due(conn: Connection, *, now: datetime, limit: int) -> Sequence[Waiting]:
    """Events to be looked at now, the longest due first."""
    rows = conn.execute(
        sa.select(STRIPE_EVENTS)
        .where(_IS_WAITING, STRIPE_EVENTS.c.due_at <= now)
        .order_by(STRIPE_EVENTS.c.due_at, STRIPE_EVENTS.c.created, STRIPE_EVENTS.c.event_id)
        .limit(limit)
    )
    return [Waiting(_event(row), row.received_at, row.tries) for row in rows]


def is_waiting(conn: Connection, event_id: str) -> bool:
    """Whether nobody has done with it meanwhile; locked until this transaction ends."""
    return conn.scalar(_LOCK_EVENT, {"event_id": event_id}) in (InboxState.RECEIVED, InboxState.PARKED)


def settle(conn: Connection, event_id: str, state: InboxState, *, why: str | None, now: datetime) -> None:
    """Done with: applied, or set aside."""
    conn.execute(_SETTLE, {"b_event_id": event_id, "state": state, "why": why, "moved_at": now})


def park(conn: Connection, event_id: str, *, why: str, until: datetime, now: datetime) -> None:
    """Look at it again later."""
    conn.execute(
        sa.update(STRIPE_EVENTS)
        .where(STRIPE_EVENTS.c.event_id == event_id, _IS_WAITING)
        .values(state=InboxState.PARKED, why=why, moved_at=now, due_at=until, tries=STRIPE_EVENTS.c.tries + 1)
    )


def counts(conn: Connection) -> Mapping[str, int]:
    """How many there are in each state, of those that are not done with."""
    rows = conn.execute(
        sa.select(STRIPE_EVENTS.c.state, sa.func.count()).where(_IS_WAITING).group_by(STRIPE_EVENTS.c.state)
    )
    return {str(state): int(number) for state, number in rows}


def waiting_groups(conn: Connection, *, received_before: datetime) -> Sequence[WaitingGroup]:
    """The events that came in before and are not done with, by state and reason, those that wait longest first."""
    is_nameless = sa.and_(STRIPE_EVENTS.c.order_id.is_(None), PAYMENTS.c.order_id.is_(None))
    oldest = sa.func.min(STRIPE_EVENTS.c.received_at)
    rows = conn.execute(
        sa.select(
            STRIPE_EVENTS.c.state,
            STRIPE_EVENTS.c.why,
            is_nameless.label("is_nameless"),
            sa.func.count().label("number"),
            oldest.label("oldest"),
            sa.func.min(sa.func.coalesce(PAYMENTS.c.order_id, STRIPE_EVENTS.c.order_id)).label("order_id"),
        )
        .join(PAYMENTS, PAYMENTS.c.payment_id == STRIPE_EVENTS.c.payment_id, isouter=True)
        .where(_IS_WAITING, STRIPE_EVENTS.c.received_at < received_before)
        .group_by(STRIPE_EVENTS.c.state, STRIPE_EVENTS.c.why, is_nameless)
        .order_by(oldest)
    )
    return [
        WaitingGroup(InboxState(row.state), row.why, bool(row.is_nameless), row.number, row.oldest, row.order_id)
        for row in rows
    ]


def waiting_of(conn: Connection, *, order_id: str, payment_id: str | None) -> Sequence[WaitingOfPayment]:
    """The events of one payment that are not done with, oldest first."""
    names = (
        STRIPE_EVENTS.c.event_id,
        STRIPE_EVENTS.c.type,
        STRIPE_EVENTS.c.state,
        STRIPE_EVENTS.c.why,
        STRIPE_EVENTS.c.received_at,
        STRIPE_EVENTS.c.due_at,
        STRIPE_EVENTS.c.tries,
    )
    is_of_it = STRIPE_EVENTS.c.order_id == order_id
    if payment_id:
        is_of_it = sa.or_(is_of_it, STRIPE_EVENTS.c.payment_id == payment_id)
    rows = conn.execute(
        sa.select(*names).where(_IS_WAITING, is_of_it).order_by(STRIPE_EVENTS.c.created, STRIPE_EVENTS.c.event_id)
    )
    return [WaitingOfPayment(**(row._asdict() | {"state": InboxState(row.state)})) for row in rows]


def _event(row: Row[Any]) -> StripeEvent:
    return StripeEvent(
        event_id=row.event_id,
        type=row.type,
        created=row.created,
        livemode=row.livemode,
        account=row.account,
        api_version=row.api_version,
        family=row.family,
        object_id=row.object_id,
        payment_id=row.payment_id,
        order_id=row.order_id,
        idempotency_key=row.idempotency_key,
        facts=json.loads(row.facts),
    )


# Built once, as those of moves.py.
_LOCK_EVENT = (
    sa.select(STRIPE_EVENTS.c.state).where(STRIPE_EVENTS.c.event_id == sa.bindparam("event_id")).with_for_update()
)
_SETTLE = (
    sa.update(STRIPE_EVENTS)
    .where(STRIPE_EVENTS.c.event_id == sa.bindparam("b_event_id"))
    .values({name: sa.bindparam(name) for name in ("state", "why", "moved_at")})
)
