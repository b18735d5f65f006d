"""Reads for alarms and for the status, one function each; they change nothing.

They run inside one transaction, as those of moves.py do. Figures of letters are in letter_figures.py, those of refunds
and disputes in life_figures.py.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy.engine import Connection, Row

from worker import pace
from worker.ledger import moves, replays
from worker.ledger.replays import Replay
from worker.ledger.schema import LETTERS, OPERATIONS, PACE, PAYMENTS, WORKERS
from worker.letter import LetterState
from worker.payment import OperationState

# A key past this part of its horizon has hours left in which asking again still tells.
NEAR_HORIZON: Final = 0.75


@dataclass(frozen=True, slots=True)
class HeldUp:
    """Calls or letters that hold money up. value: minor units by currency.

    oldest: when the first of the calls was first asked, or since when the first of the letters has been where it is.
    """

    count: int = 0
    oldest: datetime | None = None
    value: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class MoneyFigures:
    """unknown: calls whose outcome asking again cannot tell. near_horizon: those it still tells, not for long.

    oldest_key: when the oldest key that is still asked with was first used, near its horizon or not.
    """

    unknown: HeldUp
    near_horizon: HeldUp
    oldest_key: datetime | None


def money_figures(conn: Connection, *, now: datetime, key_horizon_s: float) -> MoneyFigures:
    """Calls without an answer, by what can still be done about them."""
    first_asked = OPERATIONS.c.first_asked_at
    is_near = first_asked < now - timedelta(seconds=NEAR_HORIZON * key_horizon_s)
    rows = conn.execute(
        sa.select(
            OPERATIONS.c.state,
            PAYMENTS.c.currency,
            sa.func.count().label("number"),
            sa.func.min(first_asked).label("oldest"),
            sa.func.sum(PAYMENTS.c.amount_minor).label("value"),
            sa.func.sum(sa.case((is_near, 1), else_=0)).label("near_number"),
            sa.func.sum(sa.case((is_near, PAYMENTS.c.amount_minor), else_=0)).label("near_value"),
        )
        .join(PAYMENTS, PAYMENTS.c.order_id == OPERATIONS.c.order_id)
        .where(moves.IS_OPEN)
        .group_by(OPERATIONS.c.state, PAYMENTS.c.currency)
    ).all()
    unknown = [row for row in rows if row.state == OperationState.UNKNOWN]
    started = [row for row in rows if row.state == OperationState.STARTED]
    near = [row for row in started if row.near_number]
    return MoneyFigures(
        unknown=_held(unknown),
        near_horizon=HeldUp(
            sum(int(row.near_number) for row in near),
            _oldest(near),
            {row.currency: int(row.near_value) for row in near},
        ),
        oldest_key=_oldest(started),
    )


def lost_answers(conn: Connection, *, asked_before: datetime) -> HeldUp:
    """Calls that were last asked before and had no answer, which may still be had by asking again."""
    rows = conn.execute(
        sa.select(
            PAYMENTS.c.currency,
            sa.func.count().label("number"),
            sa.func.min(OPERATIONS.c.first_asked_at).label("oldest"),
            sa.func.sum(PAYMENTS.c.amount_minor).label("value"),
        )
        .join(PAYMENTS, PAYMENTS.c.order_id == OPERATIONS.c.order_id)
        .where(moves.IS_OPEN, OPERATIONS.c.state == OperationState.STARTED, OPERATIONS.c.last_asked_at < asked_before)
        .group_by(PAYMENTS.c.currency)
    ).all()
    return _held(rows)


def replaying_letters(conn: Connection, *, moved_before: datetime | None = None) -> HeldUp:
    """Letters that a replay has taken and that have no outcome yet. moved_before: those alone taken before."""
    asked = sa.select(
        LETTERS.c.currency,
        sa.func.count().label("number"),
        sa.func.min(LETTERS.c.moved_at).label("oldest"),
        sa.func.sum(LETTERS.c.amount_minor).label("value"),
    ).where(LETTERS.c.state == LetterState.REPLAYING)
    if moved_before:
        asked = asked.where(LETTERS.c.moved_at < moved_before)
    rows = conn.execute(asked.group_by(LETTERS.c.currency)).all()
    return _held(rows)


def quiet_replays(conn: Connection, *, moved_before: datetime) -> Sequence[Replay]:
    """Unfinished replays of which no letter has moved since, the oldest first: somebody has to go on with them."""
    found = replays.unfinished(conn, moved_before=moved_before)
    return [replay for replay_id in found if (replay := replays.read_replay(conn, replay_id))]


def workers_alive(conn: Connection, *, now: datetime, within_s: float) -> int:
    """How many workers gave a sign of life within so many seconds."""
    seen = WORKERS.c.seen_at > now - timedelta(seconds=within_s)
    return conn.scalar(sa.select(sa.func.count()).select_from(WORKERS).where(seen)) or 0


def per_second_now(conn: Connection, *, endpoint: str, limit: float, now: float) -> float:
    """The rate that all workers keep to; the limit where nothing has slowed them.

    now: seconds since the epoch; PostgreSQL's own clock is taken instead where there is one, as in turns.py.
    """
    clock: Any = sa.literal(now)
    if conn.dialect.name == "postgresql":
        clock = sa.extract("epoch", sa.func.clock_timestamp()).cast(sa.Double)
    asked = sa.select(PACE.c.slowed_to, PACE.c.slowed_at, clock.label("now")).where(PACE.c.endpoint == endpoint)
    row = conn.execute(asked).first()
    if row is None:
        return limit
    return pace.per_second_now(limit, slowed_to=row.slowed_to, slowed_at=row.slowed_at, now=row.now)


def _held(rows: Sequence[Row[Any]]) -> HeldUp:
    """Of rows by currency."""
    value = {row.currency: int(row.value) for row in rows if row.currency and row.value}
    return HeldUp(sum(int(row.number) for row in rows), _oldest(rows), value)


def _oldest(rows: Sequence[Row[Any]]) -> datetime | None:
    return min((row.oldest for row in rows), default=None)
