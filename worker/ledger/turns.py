"""The turns to call Stripe, which all workers take from one row; the arithmetic is in worker/pace.py."""

from dataclasses import dataclass
from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy.engine import Connection, Row

from worker import pace
from worker.ledger.moves import insert_if_absent
from worker.ledger.schema import PACE


@dataclass(frozen=True, slots=True)
class Lease:
    """Turns to call: the first one wait_s seconds from now (negative: some are due already), then gap_s apart."""

    wait_s: float
    gap_s: float
    count: int


def lease_turns(conn: Connection, *, endpoint: str, count: int, limit: float, now: float) -> Lease:
    """Take the next `count` turns of an endpoint, for all workers together at most `limit` a second.

    now: seconds since the epoch; PostgreSQL's own clock is taken instead where there is one, being the same for all.
    """
    row, now = _pace_row(conn, endpoint, now=now)
    per_second = pace.per_second_now(limit, slowed_to=row.slowed_to, slowed_at=row.slowed_at, now=now)
    first_at, next_at = pace.take(row.next_at, count=count, per_second=per_second, now=now)
    conn.execute(_TAKE, {"b_endpoint": endpoint, "b_next_at": next_at})
    return Lease(wait_s=first_at - now, gap_s=1 / per_second, count=count)


def slow_down(conn: Connection, *, endpoint: str, limit: float, now: float) -> float:
    """Stripe has refused a call for its rate; returns what all workers now keep to, in calls a second.

    Refusals of the same moment count once.
    """
    row, now = _pace_row(conn, endpoint, now=now)
    per_second = pace.per_second_now(limit, slowed_to=row.slowed_to, slowed_at=row.slowed_at, now=now)
    if row.slowed_at is not None and now - row.slowed_at < pace.SLOW_DOWN_EVERY_S:
        return per_second
    slower = pace.slowed(per_second, limit=limit)
    conn.execute(sa.update(PACE).where(PACE.c.endpoint == endpoint).values(slowed_to=slower, slowed_at=now))
    return slower


def _pace_row(conn: Connection, endpoint: str, *, now: float) -> tuple[Row[Any], float]:
    """An endpoint's row, locked, and the time that all workers share."""
    asked, at = _ASKED[conn.dialect.name], {"b_endpoint": endpoint, "b_now": now}
    row = conn.execute(asked, at).first()
    if row is None:
        insert_if_absent(conn, PACE, {"endpoint": endpoint, "next_at": 0.0})
        row = conn.execute(asked, at).one()
    return row, row.now


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
