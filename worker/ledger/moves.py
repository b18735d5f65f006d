"""Every read and write of payments, calls, events and workers, one function each; the pace has turns.py.

They run inside one transaction and never call out. All take the connection first, and raise nothing of their own but
StaleMove.
"""

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy.engine import Connection, Row

from worker.errors import StaleMove
from worker.ledger.given import insert_into
from worker.ledger.schema import EVENTS, OPERATIONS, PAYMENTS, REQUESTS, WORKERS
from worker.payment import (
    CREATE_INTENT,
    Operation,
    OperationState,
    Payment,
    PaymentEvent,
    PaymentState,
    idempotency_key,
)
from worker.payment_command import CommandKind, RequestState

# Spelled out, or SQLite would not see that the index of open calls holds all that is asked for.
IS_OPEN: Final = OPERATIONS.c.state.in_(
    sa.bindparam("open", (OperationState.STARTED, OperationState.UNKNOWN), expanding=True, literal_execute=True)
)
_ENCODER: Final = json.JSONEncoder(separators=(",", ":"))
# Times and failures kept of one operation: more than its retries make of either.
MOST_KEPT: Final = 100


@dataclass(frozen=True, slots=True)
class Claimed:
    """The call is ours to make."""

    operation: Operation


@dataclass(frozen=True, slots=True)
class Busy:
    """Another delivery is asking right now."""

    claimed_by: str


@dataclass(frozen=True, slots=True)
class OtherMode:
    """It was asked with a key of Stripe's other mode, where ours would be taken for a new one."""


@dataclass(frozen=True, slots=True)
class CanceledBefore:
    """A cancel came before the order: Stripe is not to be asked."""


@dataclass(frozen=True, slots=True)
class Ended:
    """There is nothing to ask: somebody else has the answer already, or no other attempt may follow."""


def read_payment(conn: Connection, order_id: str) -> Payment | None:
    """The payment of an order, if it was ever opened."""
    row = conn.execute(_READ_PAYMENT, {"order_id": order_id}).first()
    return _payment(row) if row else None


def known_payment(conn: Connection, order_id: str) -> Payment:
    """The payment of an order that was opened, which is for ever."""
    return _payment(conn.execute(_READ_PAYMENT, {"order_id": order_id}).one())


def start_call(  # noqa: PLR0911 - one line for each state of the call, read as a table
    conn: Connection,
    *,
    order_id: str,
    kind: str,
    params: Mapping[str, Any],
    stripe_account: str | None,
    livemode: bool,
    worker_id: str,
    claim: str,
    live_claims: Collection[str],
    now: datetime,
    claim_ttl_s: float,
    key_horizon_s: float,
    anew: bool = True,
) -> Claimed | Busy | Ended | OtherMode | CanceledBefore:
    """Freeze the key and the parameters of a call, or find those frozen before, and claim the call.

    The newest attempt counts; where that is proven absent, the next one is started with the same parameters.
    claim: names one delivery of the worker. live_claims: those of this worker that are still at work. A claim of a
    worker silent for longer than claim_ttl_s is taken over, and so is one of our own that nobody works on any more:
    a ledger that was away kept it from being released. A key older than key_horizon_s makes the call unknown.
    anew: whether another attempt may follow one that is absent; where not, that is the end. livemode: of our key.
    """
    if over := _why_not_to_ask(conn, order_id):
        return over
    first = frozen_call(order_id, kind, 1, params, stripe_account, livemode=livemode, now=now)
    if _insert_operation(conn, first, worker_id=worker_id, claim=claim):
        return Claimed(first)
    row = conn.execute(
        sa.select(OPERATIONS, WORKERS.c.seen_at)
        .join(WORKERS, OPERATIONS.c.claimed_by == WORKERS.c.worker_id, isouter=True)
        .where(OPERATIONS.c.order_id == order_id, OPERATIONS.c.kind == kind)
        .order_by(OPERATIONS.c.attempt.desc())
        .limit(1)
    ).one()
    before = _operation(row)
    if before.livemode not in (None, livemode):
        return OtherMode()
    if before.state is OperationState.ABSENT and anew:
        after = frozen_call(
            order_id, kind, before.attempt + 1, before.params, before.stripe_account, livemode=livemode, now=now
        )
        made = _insert_operation(conn, after, worker_id=worker_id, claim=claim)
        return Claimed(after) if made else Busy("another delivery")
    if before.state not in (OperationState.STARTED, OperationState.UNKNOWN):
        return Ended()
    is_alive = row.seen_at and row.seen_at > now - timedelta(seconds=claim_ttl_s)
    if is_alive and (row.claimed_by != worker_id or row.claim in live_claims):
        return Busy(row.claimed_by)
    after = before
    if before.state is OperationState.STARTED:
        if now - before.first_asked_at > timedelta(seconds=key_horizon_s):
            after = replace(before, state=OperationState.UNKNOWN, unknown_because="key_expired")
        elif len(before.asks) >= MOST_KEPT:  # none may be forgotten: evidence is looked for at each of them
            after = replace(before, state=OperationState.UNKNOWN, unknown_because="asked_too_often")
        else:
            after = replace(before, asks=(*before.asks, now))
    taken = conn.execute(
        sa.update(OPERATIONS)
        .where(
            _operation_is(before),
            OPERATIONS.c.state == before.state,
            OPERATIONS.c.claim.is_not_distinct_from(row.claim),
            OPERATIONS.c.asked == row.asked,  # the same claim may have come and gone, and asked
        )
        .values(
            claimed_by=worker_id,
            claim=claim,
            state=after.state,
            unknown_because=after.unknown_because,
            asks=times_json(after.asks),
            asked=OPERATIONS.c.asked + 1,
            last_asked_at=now,
        )
    )
    return Claimed(after) if taken.rowcount == 1 else Busy("another delivery")


def _why_not_to_ask(conn: Connection, order_id: str) -> Ended | CanceledBefore | None:
    """Holds the payment, so that nobody ends it unasked beside a call."""
    if conn.scalar(_HOLD_PAYMENT, {"b_order_id": order_id}) not in (PaymentState.OPEN, None):
        return Ended()
    return CanceledBefore() if conn.execute(_CANCELED_BEFORE, {"b_order_id": order_id}).first() else None


def note_asking(conn: Connection, operation: Operation, *, claim: str, now: datetime) -> Operation:
    """The call is sent only now. Raises StaleMove where the claim is not ours any more."""
    asks = (*operation.asks, now)
    _change_open(conn, operation, claim=claim, values={"asks": times_json(asks), "last_asked_at": now})
    return replace(operation, asks=asks)


def release_claim(conn: Connection, order_id: str, *, claim: str, failure: Mapping[str, Any] | None = None) -> None:
    """Let another delivery ask; no answer was had. failure: what came instead, kept beside the operation."""
    is_ours = sa.and_(OPERATIONS.c.order_id == order_id, OPERATIONS.c.claim == claim)
    values: dict[str, Any] = {"claimed_by": None, "claim": None}
    if failure:
        kept = conn.scalar(sa.select(OPERATIONS.c.failures).where(is_ours))
        values["failures"] = json_text([*json.loads(kept or "[]"), failure][-MOST_KEPT:])
    conn.execute(sa.update(OPERATIONS).where(is_ours).values(values))


def mark_unknown(conn: Connection, operation: Operation, *, claim: str, because: str, now: datetime) -> Operation:
    """Asking again under this key cannot tell any more: that is known from `now` on, and was not before.

    Raises StaleMove where the claim is not ours.
    """
    after = replace(operation, state=OperationState.UNKNOWN, unknown_because=because, asks=(*operation.asks, now))
    values = {"state": after.state, "unknown_because": because, "asks": times_json(after.asks), "last_asked_at": now}
    _change_open(conn, operation, claim=claim, values=values)
    return after


def end_absent(
    conn: Connection, operation: Operation, *, claim: str, evidence: Mapping[str, Any], now: datetime
) -> None:
    """Stripe was shown to have nothing of this call. Raises StaleMove where the claim is not ours."""
    values = {
        "state": OperationState.ABSENT,
        "answered_at": now,
        "evidence": json_text(evidence),
        "claimed_by": None,
        "claim": None,
    }
    _change_open(conn, operation, claim=claim, values=values)


def idle_operations(conn: Connection, *, before: datetime, limit: int) -> Sequence[Operation]:
    """Calls whose outcome is not known and which nobody has worked on since `before`, longest first."""
    rows = conn.execute(
        sa.select(OPERATIONS)
        .where(
            IS_OPEN,
            OPERATIONS.c.kind == CREATE_INTENT,
            OPERATIONS.c.last_asked_at < before,
        )
        .order_by(OPERATIONS.c.last_asked_at)
        .limit(limit)
    )
    return [_operation(row) for row in rows]


def operations_of(conn: Connection, order_id: str) -> Sequence[Operation]:
    """The calls made for an order, in their order."""
    rows = conn.execute(
        sa.select(OPERATIONS)
        .where(OPERATIONS.c.order_id == order_id)
        .order_by(OPERATIONS.c.first_asked_at, OPERATIONS.c.attempt)
    )
    return [_operation(row) for row in rows]


def events_of(conn: Connection, order_id: str) -> Sequence[PaymentEvent]:
    """The events of a payment in their order."""
    rows = conn.execute(sa.select(EVENTS).where(EVENTS.c.order_id == order_id).order_by(EVENTS.c.sequence))
    return [_event(row) for row in rows]


def untold_events(
    conn: Connection, *, staged_before: datetime, limit: int, after: tuple[datetime, str, int] | None = None
) -> tuple[Sequence[PaymentEvent], tuple[datetime, str, int] | None]:
    """A page of the events that no queue has yet, oldest first, and where the next page starts.

    after: where this page starts. Paged so that those which nobody takes do not hide the ones behind them.
    """
    place = (EVENTS.c.staged_at, EVENTS.c.order_id, EVENTS.c.sequence)
    asked = sa.select(EVENTS).where(EVENTS.c.published_at.is_(None), EVENTS.c.staged_at <= staged_before)
    if after:
        start = (sa.literal(value, column.type) for value, column in zip(after, place, strict=True))
        asked = asked.where(sa.tuple_(*place) > sa.tuple_(*start))
    rows = conn.execute(asked.order_by(*place).limit(limit)).all()
    last = rows[-1] if rows else None
    return [_event(row) for row in rows], (last.staged_at, last.order_id, last.sequence) if last else None


def past_events(
    conn: Connection, *, since: datetime, types: Collection[str], limit: int, after: tuple[datetime, str, int] | None
) -> tuple[Sequence[PaymentEvent], tuple[datetime, str, int] | None]:
    """A page of the events staged since, told or not, each payment's in their order; and where the next page starts.

    types: all of them where none is named.
    """
    place = (EVENTS.c.staged_at, EVENTS.c.order_id, EVENTS.c.sequence)
    asked = sa.select(EVENTS).where(EVENTS.c.staged_at >= since)
    if types:
        asked = asked.where(EVENTS.c.type.in_(types))
    if after:
        start = (sa.literal(value, column.type) for value, column in zip(after, place, strict=True))
        asked = asked.where(sa.tuple_(*place) > sa.tuple_(*start))
    rows = conn.execute(asked.order_by(*place).limit(limit)).all()
    last = rows[-1] if rows else None
    return [_event(row) for row in rows], (last.staged_at, last.order_id, last.sequence) if last else None


def sign_of_life(conn: Connection, worker_id: str, *, now: datetime) -> None:
    """This worker's claims stay its own."""
    seen = insert_into(conn.dialect.name, WORKERS).values(worker_id=worker_id, seen_at=now)
    conn.execute(seen.on_conflict_do_update(index_elements=["worker_id"], set_={"seen_at": now}))


def sign_off(conn: Connection, worker_id: str) -> None:
    """This worker is gone, and its claims with it."""
    conn.execute(sa.delete(WORKERS).where(WORKERS.c.worker_id == worker_id))


def forget_silent_workers(conn: Connection, *, before: datetime) -> None:
    """Drop the signs of life of workers that were killed; no claim of theirs counts any more."""
    conn.execute(sa.delete(WORKERS).where(WORKERS.c.seen_at < before))


@dataclass(frozen=True, slots=True)
class Backlog:
    """What is open in the ledger, for the gauges."""

    untold_events: int
    oldest_untold: datetime | None
    open_calls: int
    oldest_open_call: datetime | None


def backlog(conn: Connection) -> Backlog:
    """Counts what waits: events not told, calls without an answer."""
    events = conn.execute(
        sa.select(sa.func.count(), sa.func.min(EVENTS.c.staged_at)).where(EVENTS.c.published_at.is_(None))
    ).one()
    calls = conn.execute(sa.select(sa.func.count(), sa.func.min(OPERATIONS.c.first_asked_at)).where(IS_OPEN)).one()
    return Backlog(events[0], events[1], calls[0], calls[1])


def insert_if_absent(conn: Connection, table: sa.Table, row: Mapping[str, Any]) -> bool:
    """Whether the row was not there, and is now.

    No index is named: told of one, PostgreSQL fails where another insert of the same instant is first seen in a
    second one. Source: https://www.postgresql.org/docs/current/sql-insert.html#SQL-ON-CONFLICT.
    """
    made = conn.execute(
        insert_into(conn.dialect.name, table).on_conflict_do_nothing().returning(*table.primary_key.columns), row
    )
    return made.first() is not None


def account_of(conn: Connection, order_id: str) -> str | None:
    """The connected account that a payment is of."""
    return conn.scalar(sa.select(PAYMENTS.c.stripe_account).where(PAYMENTS.c.order_id == order_id))


def freeze_call(
    conn: Connection,
    *,
    order_id: str,
    kind: str,
    attempt: int,
    params: Mapping[str, Any],
    stripe_account: str | None,
    livemode: bool,
    now: datetime,
) -> Operation:
    """Key and parameters of a call that nobody need claim: whoever asks, asks the same. Those frozen first count."""
    operation = frozen_call(order_id, kind, attempt, params, stripe_account, livemode=livemode, now=now)
    _insert_operation(conn, operation, worker_id=None, claim=None)
    return operation


def insert_or_update(conn: Connection, table: sa.Table, row: Mapping[str, Any]) -> None:
    """The row as it is now, whether it was there or not."""
    insert = insert_into(conn.dialect.name, table)
    keys = [column.name for column in table.primary_key.columns]
    changed = {name: insert.excluded[name] for name in row if name not in keys}
    conn.execute(insert.on_conflict_do_update(index_elements=keys, set_=changed), row)


def operation_row(operation: Operation, *, worker_id: str | None, claim: str | None) -> dict[str, Any]:
    """The row of a call that has just been started."""
    return {
        "order_id": operation.order_id,
        "kind": operation.kind,
        "attempt": operation.attempt,
        "idempotency_key": operation.idempotency_key,
        "params": json_text(operation.params),
        "stripe_account": operation.stripe_account,
        "livemode": operation.livemode,
        "state": OperationState.STARTED,
        "claimed_by": worker_id,
        "claim": claim,
        "first_asked_at": operation.first_asked_at,
        "last_asked_at": operation.first_asked_at,
        "asked": 1,
        "asks": times_json(operation.asks),
    }


def frozen_call(
    order_id: str,
    kind: str,
    attempt: int,
    params: Mapping[str, Any],
    stripe_account: str | None,
    *,
    livemode: bool,
    now: datetime,
) -> Operation:
    """A call with its key, begun now."""
    key = idempotency_key(order_id, kind, attempt)
    return Operation(order_id, kind, attempt, key, params, stripe_account, now, asks=(now,), livemode=livemode)


def _insert_operation(conn: Connection, operation: Operation, *, worker_id: str | None, claim: str | None) -> bool:
    return insert_if_absent(conn, OPERATIONS, operation_row(operation, worker_id=worker_id, claim=claim))


def _change_open(conn: Connection, operation: Operation, *, claim: str, values: Mapping[str, Any]) -> None:
    changed = conn.execute(
        sa.update(OPERATIONS)
        .where(
            _operation_is(operation),
            OPERATIONS.c.claim == claim,
            OPERATIONS.c.state.in_((OperationState.STARTED, OperationState.UNKNOWN)),
        )
        .values(values)
    )
    if changed.rowcount != 1:
        raise StaleMove(f"{operation.order_id}: another delivery has the call")


def _operation_is(operation: Operation) -> sa.ColumnElement[bool]:
    return sa.and_(
        OPERATIONS.c.order_id == operation.order_id,
        OPERATIONS.c.kind == operation.kind,
        OPERATIONS.c.attempt == operation.attempt,
    )


def _operation(row: Row[Any]) -> Operation:
    return Operation(
        order_id=row.order_id,
        kind=row.kind,
        attempt=row.attempt,
        idempotency_key=row.idempotency_key,
        params=json.loads(row.params),
        stripe_account=row.stripe_account,
        first_asked_at=row.first_asked_at,
        state=OperationState(row.state),
        asks=tuple(map(datetime.fromisoformat, json.loads(row.asks))) or (row.first_asked_at,),
        unknown_because=row.unknown_because,
        livemode=row.livemode,
    )


def json_text(value: Any) -> str:
    """A value as the ledger's columns of JSON hold it."""
    return _ENCODER.encode(value)


def times_json(times: Sequence[datetime]) -> str:
    return json_text([moment.isoformat() for moment in times])


def _payment(row: Row[Any]) -> Payment:
    return Payment(
        order_id=row.order_id,
        state=PaymentState(row.state),
        amount_minor=row.amount_minor,
        currency=row.currency,
        customer_id=row.customer_id,
        stripe_account=row.stripe_account,
        payment_id=row.payment_id,
        status=row.status,
        livemode=row.livemode,
        sequence=row.sequence,
        cause=row.cause,
        correlation_id=row.correlation_id,
        traceparent=row.traceparent,
    )


def _event(row: Row[Any]) -> PaymentEvent:
    return PaymentEvent(
        event_id=row.event_id,
        order_id=row.order_id,
        sequence=row.sequence,
        type=row.type,
        body=row.body,
        correlation_id=row.correlation_id,
        traceparent=row.traceparent,
    )


# Built once: SQLAlchemy then compiles each a single time and only binds values on the road.
_READ_PAYMENT = sa.select(PAYMENTS).where(PAYMENTS.c.order_id == sa.bindparam("order_id"))
_HOLD_PAYMENT = (
    sa.select(PAYMENTS.c.state)
    .where(PAYMENTS.c.order_id == sa.bindparam("b_order_id"))
    .with_for_update(read=True, key_share=True)
)
# A cancel counts as long as no call was begun; once one was, it is Stripe that cancels.
IS_CANCEL_TO_COME: Final = sa.and_(
    REQUESTS.c.kind == CommandKind.CANCEL, REQUESTS.c.state.in_((RequestState.REMEMBERED, RequestState.OPEN))
)
_CANCELED_BEFORE = sa.select(REQUESTS.c.request_id).where(
    REQUESTS.c.order_id == sa.bindparam("b_order_id"),
    IS_CANCEL_TO_COME,
    ~sa.exists().where(OPERATIONS.c.order_id == sa.bindparam("b_order_id")),
)
