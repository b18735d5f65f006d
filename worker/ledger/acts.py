"""The history of what was done to letters and replays: who, when and why. Lines are added, never changed.

They are written in the transaction that does what they tell.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from worker.ledger.schema import ACTS, LETTERS

# Rows of one statement: SQLite takes 32,766 values, PostgreSQL 65,535.
CHUNK: Final = 500


@dataclass(frozen=True, slots=True)
class Act:
    """One line of the history."""

    act_id: int
    at: datetime
    by: str
    act: str
    letter_id: str | None
    replay_id: str | None
    why: str | None


def note(
    conn: Connection,
    act: str,
    *,
    by: str,
    letter_ids: Sequence[str],
    why: str | None,
    now: datetime,
    replay_id: str | None = None,
) -> None:
    """Write down what was done, a line for each letter."""
    for some in chunks(letter_ids):
        line = {"at": now, "by": by, "act": act, "replay_id": replay_id, "why": why}
        conn.execute(sa.insert(ACTS), [line | {"letter_id": letter_id} for letter_id in some])


def note_replay(conn: Connection, act: str, replay_id: str, *, by: str, why: str, now: datetime) -> None:
    """Write down what was done to a replay as a whole."""
    conn.execute(sa.insert(ACTS).values(at=now, by=by, act=act, replay_id=replay_id, why=why))


def history(
    conn: Connection,
    *,
    letter_id: str | None = None,
    order_id: str | None = None,
    since: datetime | None = None,
    limit: int,
) -> Sequence[Act]:
    """The last acts, oldest first."""
    asked = sa.select(ACTS).order_by(ACTS.c.act_id.desc()).limit(limit)
    if letter_id:
        asked = asked.where(ACTS.c.letter_id == letter_id)
    if order_id:
        asked = asked.where(ACTS.c.letter_id.in_(sa.select(LETTERS.c.letter_id).where(LETTERS.c.order_id == order_id)))
    if since:
        asked = asked.where(ACTS.c.at >= since)
    return [Act(**row._mapping) for row in conn.execute(asked)][::-1]


def chunks(letter_ids: Sequence[str]) -> Iterator[Sequence[str]]:
    """As many ids at a time as one statement takes."""
    for start in range(0, len(letter_ids), CHUNK):
        yield letter_ids[start : start + CHUNK]
