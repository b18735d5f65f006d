"""The turns to call Stripe, which all workers take from one row; the arithmetic is in worker/pace.py.

`now` is in seconds since the epoch; PostgreSQL's own clock is taken instead where there is one, being the same for all.
"""

import math
from dataclasses import dataclass
from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy.engine import Connection, Row

from worker import pace
from worker.ledger.given import over_given
from worker.ledger.moves import insert_if_absent
from worker.ledger.schema import PACE

# Of a turn: what the times of our days lose as floats.
ROUNDING: Final = 0.01


@dataclass(frozen=True, slots=True)
class Lease:
    """Turns to call: the first one wait_s seconds from now (negative: some are due already), then gap_s apart."""

    wait_s: float
    gap_s: float
    count: int


@dataclass(frozen=True, slots=True)
class Wanted:
    """A turn to call an endpoint, which all workers together call at most `limit` times a second."""

    endpoint: str
    limit: float
    now: float


@dataclass(frozen=True, slots=True)
class Seen:
    """The row as it was seen, and what it says now."""

    wanted: Wanted
    next_at: float
    per_second: float
    now: float

    @property
    def due(self) -> int:
        """How many turns may be taken without waiting."""
        first_at, _ = pace.take(self.next_at, count=1, per_second=self.per_second, now=self.now)
        return max(0, 1 + math.floor((self.now - first_at) * self.per_second + ROUNDING))


def lease_turns(conn: Connection, *, endpoint: str, count: int, limit: float, now: float) -> Lease:
    """Take the next `count` turns of an endpoint, for all workers together at most `limit` a second."""
    row, per_second = _pace_row(conn, endpoint, limit=limit, now=now)
    first_at, next_at = pace.take(row.next_at, count=count, per_second=per_second, now=row.now)
    conn.execute(_TAKE, {"b_endpoint": endpoint, "b_next_at": next_at})
    return Lease(wait_s=first_at - row.now, gap_s=1 / per_second, count=count)


def look_at_turns(conn: Connection, wanted: Wanted) -> Seen:
    """Nothing is locked: no worker waits for what is done before take_seen."""
    rows = _look(conn).fetch(conn, [{"endpoint": wanted.endpoint, "now": wanted.now}])
    next_at, slowed_to, slowed_at, now = rows[0] if rows else (0.0, None, None, wanted.now)  # nobody has taken one yet
    per_second = pace.per_second_now(wanted.limit, slowed_to=slowed_to, slowed_at=slowed_at, now=now)
    return Seen(wanted, next_at, per_second, now)


def take_seen(conn: Connection, seen: Seen, *, count: int) -> float:
    """Take `count` turns of those that were due; returns for how many seconds the last of them has to wait all the
    same, because another worker has taken some meanwhile.
    """
    wanted, half_a_turn = seen.wanted, 0.5 / seen.per_second
    _, next_at = pace.take(seen.next_at, count=count, per_second=seen.per_second, now=seen.now)
    row = {
        "endpoint": wanted.endpoint,
        "after": seen.next_at - half_a_turn,
        "before": seen.next_at + half_a_turn,
        "next_at": next_at,
    }
    if _take_seen(conn).fetch(conn, [row]):
        return 0.0
    lease = lease_turns(conn, endpoint=wanted.endpoint, count=count, limit=wanted.limit, now=wanted.now)
    return max(0.0, lease.wait_s + (count - 1) * lease.gap_s)


def slow_down(conn: Connection, *, endpoint: str, limit: float, now: float) -> float:
    """Stripe has refused a call for its rate; returns what all workers now keep to, in calls a second.

    Refusals of the same moment count once.
    """
    row, per_second = _pace_row(conn, endpoint, limit=limit, now=now)
    if row.slowed_at is not None and abs(row.now - row.slowed_at) < pace.SLOW_DOWN_EVERY_S:
        return per_second
    slower = pace.slowed(per_second, limit=limit)
    conn.execute(sa.update(PACE).where(PACE.c.endpoint == endpoint).values(slowed_to=slower, slowed_at=row.now))
    return slower


def _pace_row(conn: Connection, endpoint: str, *, limit: float, now: float) -> tuple[Row[Any], float]:
    """An endpoint's row, locked, with the time that all workers share as its `now`, and the rate of this moment."""
    asked, at = _ASKED[conn.dialect.name], {"b_endpoint": endpoint, "b_now": now}
    row = conn.execute(asked, at).first()
    if row is None:
        insert_if_absent(conn, PACE, {"endpoint": endpoint, "next_at": 0.0})
        row = conn.execute(asked, at).one()
    return row, pace.per_second_now(limit, slowed_to=row.slowed_to, slowed_at=row.slowed_at, now=row.now)


def _asked(clock: Any) -> sa.Select[Any]:
    return sa.select(PACE, clock.label("now")).where(PACE.c.endpoint == sa.bindparam("b_endpoint")).with_for_update()


# Built once: SQLAlchemy then compiles each a single time and only binds values.
_ASKED: Final = {
    "sqlite": _asked(sa.bindparam("b_now", type_=sa.Double)),
    "postgresql": _asked(sa.extract("epoch", sa.func.clock_timestamp()).cast(sa.Double)),
}
_TAKE: Final = (
    sa.update(PACE).where(PACE.c.endpoint == sa.bindparam("b_endpoint")).values(next_at=sa.bindparam("b_next_at"))
)

_COLUMNS: Final = {name: sa.Column(name, sa.Double) for name in ("now", "after", "before")}


def _looked(dialect: str, rows: sa.FromClause) -> sa.Executable:
    clock = rows.c.now if dialect == "sqlite" else sa.extract("epoch", sa.func.clock_timestamp()).cast(sa.Double)
    chosen = sa.select(PACE.c.next_at, PACE.c.slowed_to, PACE.c.slowed_at, clock)
    return chosen.where(PACE.c.endpoint == rows.c.endpoint)


def _taken(_: str, rows: sa.FromClause) -> sa.Executable:
    return (
        sa.update(PACE)
        .where(PACE.c.endpoint == rows.c.endpoint, PACE.c.next_at.between(rows.c.after, rows.c.before))
        .values(next_at=rows.c.next_at)
        .returning(PACE.c.endpoint)
    )


_look = over_given([PACE.c.endpoint, _COLUMNS["now"]], _looked)
_take_seen = over_given([PACE.c.endpoint, _COLUMNS["after"], _COLUMNS["before"], PACE.c.next_at], _taken)
