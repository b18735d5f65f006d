"""Letters in figures: by cause for the desk, and what alarms are made of."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Self

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from worker.ledger.acts import chunks
from worker.ledger.letters import LetterFilter, conditions
from worker.ledger.schema import LETTERS
from worker.letter import LetterState


@dataclass(frozen=True, slots=True)
class Worth:
    """How many letters, and their value: minor units by currency. unreadable: how many do not tell theirs."""

    count: int = 0
    value: Mapping[str, int] = field(default_factory=dict)
    unreadable: int = 0

    @classmethod
    def of(cls, values: Iterable[tuple[int | None, str | None]]) -> Self:
        """values: amount in minor units and currency of each letter."""
        count, unreadable, value = 0, 0, Counter[str]()
        for amount_minor, currency in values:
            count += 1
            if amount_minor is None or currency is None:
                unreadable += 1
            else:
                value[currency] += amount_minor
        return cls(count, dict(value), unreadable)

    def __add__(self, other: "Worth") -> "Worth":
        value = Counter(self.value)
        value.update(other.value)
        return Worth(self.count + other.count, dict(value), self.unreadable + other.unreadable)


def worth_of(conn: Connection, letter_ids: Sequence[str]) -> Worth:
    """Of the letters with these ids."""
    worth = Worth()
    for some in chunks(letter_ids):
        asked = sa.select(LETTERS.c.amount_minor, LETTERS.c.currency).where(LETTERS.c.letter_id.in_(some))
        worth += Worth.of((row[0], row[1]) for row in conn.execute(asked))
    return worth


@dataclass(frozen=True, slots=True)
class LetterGroup:
    """Letters of one cause. value: minor units by currency, of those that tell it."""

    group_id: str
    cause: str
    count: int
    first: datetime
    last: datetime
    value: dict[str, int]


def groups(conn: Connection, chosen: LetterFilter) -> Sequence[LetterGroup]:
    """The letters by cause, the largest group first."""
    columns = (LETTERS.c.group_id, LETTERS.c.cause, LETTERS.c.currency)
    rows = conn.execute(
        sa.select(
            *columns,
            sa.func.count(),
            sa.func.min(LETTERS.c.landed_at),
            sa.func.max(LETTERS.c.landed_at),
            sa.func.sum(LETTERS.c.amount_minor),
        )
        .where(*conditions(conn, chosen))
        .group_by(*columns)
    )
    found: dict[str, LetterGroup] = {}
    for group_id, cause, currency, number, first, last, value in rows:
        known = found.get(group_id) or LetterGroup(group_id, cause, 0, first, last, {})
        worth = known.value | ({currency: int(value)} if currency and value else {})
        found[group_id] = LetterGroup(
            group_id, cause, known.count + number, min(known.first, first), max(known.last, last), worth
        )
    return sorted(found.values(), key=lambda group: (-group.count, group.group_id))


@dataclass(frozen=True, slots=True)
class LetterFigures:
    """What alarms are made of. value: minor units by currency, of open letters that tell it."""

    by_state: dict[str, int]
    oldest_open: datetime | None
    value: dict[str, int]


def figures(conn: Connection) -> LetterFigures:
    """Counts and values, for the gauges and the status."""
    counts = conn.execute(sa.select(LETTERS.c.state, sa.func.count()).group_by(LETTERS.c.state))
    by_state: dict[str, int] = dict(counts.all())
    is_open = LETTERS.c.state == LetterState.OPEN
    oldest = conn.scalar(sa.select(sa.func.min(LETTERS.c.landed_at)).where(is_open))
    worth = conn.execute(
        sa.select(LETTERS.c.currency, sa.func.sum(LETTERS.c.amount_minor))
        .where(is_open, LETTERS.c.currency.is_not(None))
        .group_by(LETTERS.c.currency)
    )
    return LetterFigures(by_state, oldest, {currency: int(value) for currency, value in worth})
