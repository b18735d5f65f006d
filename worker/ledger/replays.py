"""Replays in the ledger: a frozen selection, the taking of its letters one wave at a time, the report."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Final

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from worker.ledger import letters, moves
from worker.ledger.acts import note, note_replay
from worker.ledger.letter_figures import Worth
from worker.ledger.letters import LetterFilter
from worker.ledger.schema import LETTERS, REPLAY_ITEMS, REPLAYS
from worker.letter import ItemState, Letter, LetterState, Verdict, VerdictKind, told_count
from worker.payment import CREATE_INTENT, Operation, Payment

# Why a letter was passed over that nobody else has dealt with: what it failed with now is not what was looked at.
LANDED_AGAIN: Final = "it has landed again since it was chosen"

Judge = Callable[[Letter, Payment | None, Operation | None], Verdict]


@dataclass(frozen=True, slots=True)
class Replay:
    """A replay and how far it is. counts: by state of its letters. ended_because: None while it may go on."""

    replay_id: str
    made_at: datetime
    by: str
    selection: str
    ended_at: datetime | None
    ended_because: str | None
    counts: Mapping[ItemState, int]

    @property
    def total(self) -> int:
        """How many letters were chosen."""
        return sum(self.counts.values())


def make_replay(
    conn: Connection, replay_id: str, chosen: LetterFilter, *, by: str, selection: str, now: datetime
) -> int:
    """Freeze a selection of open letters; returns how many. What lands later is not in it.

    One statement, whose rows never come here: a selection may be of hundreds of thousands.
    """
    conn.execute(sa.insert(REPLAYS).values(replay_id=replay_id, made_at=now, by=by, selection=selection))
    values = {
        REPLAY_ITEMS.c.replay_id: replay_id,
        REPLAY_ITEMS.c.position: sa.func.row_number().over(order_by=(LETTERS.c.landed_at, LETTERS.c.letter_id)) - 1,
        REPLAY_ITEMS.c.letter_id: LETTERS.c.letter_id,
        REPLAY_ITEMS.c.landings: LETTERS.c.landings,
        REPLAY_ITEMS.c.state: ItemState.WAITING,
        REPLAY_ITEMS.c.moved_at: now,
    }
    found = sa.select(*(sa.literal(v, c.type) if not isinstance(v, sa.ColumnElement) else v for c, v in values.items()))
    meant = letters.conditions(conn, replace(chosen, states=(LetterState.OPEN,)))
    frozen = conn.execute(
        sa.insert(REPLAY_ITEMS).from_select(list(values), found.where(*meant)),
        execution_options={"preserve_rowcount": True},
    )
    why = f"{told_count(frozen.rowcount, 'letter')}: {selection}"
    note_replay(conn, "replay made", replay_id, by=by, why=why, now=now)
    return frozen.rowcount


def take_wave(conn: Connection, replay_id: str, *, size: int, judge: Judge, by: str, now: datetime) -> Sequence[Letter]:
    """The next letters of a replay, theirs and nobody else's from here on; those to be published.

    The verdict is passed again here, at the moment of sending: a blocked one stays as it is.
    """
    # Locked: of two that carry out the same replay, each takes letters of its own.
    goes_on = sa.select(REPLAYS.c.replay_id).where(REPLAYS.c.replay_id == replay_id, REPLAYS.c.ended_at.is_(None))
    if conn.execute(goes_on.with_for_update(key_share=True)).first() is None:
        return []
    items = conn.execute(
        sa.select(REPLAY_ITEMS)
        .where(REPLAY_ITEMS.c.replay_id == replay_id, REPLAY_ITEMS.c.state == ItemState.WAITING)
        .order_by(REPLAY_ITEMS.c.position)
        .limit(size)
    ).all()
    letters.hold(conn, [item.letter_id for item in items])
    taken = []
    for item in items:
        state, said, letter = _take(conn, item.letter_id, item.landings, judge=judge, now=now)
        conn.execute(
            sa.update(REPLAY_ITEMS)
            .where(REPLAY_ITEMS.c.replay_id == replay_id, REPLAY_ITEMS.c.position == item.position)
            .values(state=state, said=said, moved_at=now)
        )
        if letter:
            note(conn, "replayed", by=by, letter_ids=[item.letter_id], replay_id=replay_id, why=said, now=now)
            taken.append(letter)
    return taken


def sent_items(conn: Connection, replay_id: str, *, moved_before: datetime, limit: int) -> Sequence[Letter]:
    """Letters of a replay that were taken and have no outcome yet: perhaps never published."""
    rows = conn.execute(
        sa.select(REPLAY_ITEMS.c.letter_id)
        .where(
            REPLAY_ITEMS.c.replay_id == replay_id,
            REPLAY_ITEMS.c.state == ItemState.SENT,
            REPLAY_ITEMS.c.moved_at < moved_before,
        )
        .order_by(REPLAY_ITEMS.c.position)
        .limit(limit)
    )
    return [letter for row in rows if (letter := letters.read(conn, row.letter_id))]


def take_back(conn: Connection, replay_id: str, letter_id: str, *, by: str, why: str, now: datetime) -> bool:
    """A letter that was taken and cannot be sent: open again, blocked in its replay. False where it is out no more.

    why: for the history and the report.
    """
    opened = conn.execute(
        sa.update(LETTERS)
        .where(LETTERS.c.letter_id == letter_id, LETTERS.c.state == LetterState.REPLAYING)
        .values(state=LetterState.OPEN, moved_at=now)
    )
    if opened.rowcount == 1:
        conn.execute(
            sa.update(REPLAY_ITEMS)
            .where(
                REPLAY_ITEMS.c.replay_id == replay_id,
                REPLAY_ITEMS.c.letter_id == letter_id,
                REPLAY_ITEMS.c.state == ItemState.SENT,
            )
            .values(state=ItemState.BLOCKED, said=why, moved_at=now)
        )
        note(conn, "not sent", by=by, letter_ids=[letter_id], replay_id=replay_id, why=why, now=now)
    return opened.rowcount == 1


def reasons(conn: Connection, replay_id: str, state: ItemState) -> Mapping[str, int]:
    """How many letters of a replay are in a state, by the reason, the most frequent one first."""
    number = sa.func.count().label("number")
    counts = conn.execute(
        sa.select(REPLAY_ITEMS.c.said, number)
        .where(REPLAY_ITEMS.c.replay_id == replay_id, REPLAY_ITEMS.c.state == state)
        .group_by(REPLAY_ITEMS.c.said)
        .order_by(number.desc(), REPLAY_ITEMS.c.said)
    )
    return dict(counts.all())


def worths(conn: Connection, replay_id: str) -> Mapping[ItemState, Worth]:
    """The letters of a replay and their value, by what became of them."""
    rows = conn.execute(
        sa.select(REPLAY_ITEMS.c.state, LETTERS.c.currency, sa.func.count(), sa.func.sum(LETTERS.c.amount_minor))
        .join(LETTERS, LETTERS.c.letter_id == REPLAY_ITEMS.c.letter_id)
        .where(REPLAY_ITEMS.c.replay_id == replay_id)
        .group_by(REPLAY_ITEMS.c.state, LETTERS.c.currency)
    )
    found: dict[ItemState, Worth] = {}
    for state, currency, number, value in rows:
        worth = Worth(number, {currency: int(value)}) if currency else Worth(number, unreadable=number)
        found[ItemState(state)] = found.get(ItemState(state), Worth()) + worth
    return found


def read_replay(conn: Connection, replay_id: str) -> Replay | None:
    """A replay, if there is one of that id."""
    row = conn.execute(sa.select(REPLAYS).where(REPLAYS.c.replay_id == replay_id)).first()
    if row is None:
        return None
    counts = conn.execute(
        sa.select(REPLAY_ITEMS.c.state, sa.func.count())
        .where(REPLAY_ITEMS.c.replay_id == replay_id)
        .group_by(REPLAY_ITEMS.c.state)
    )
    by_state = {ItemState(state): number for state, number in counts}
    return Replay(row.replay_id, row.made_at, row.by, row.selection, row.ended_at, row.ended_because, by_state)


def unfinished(conn: Connection, *, moved_before: datetime | None = None) -> Sequence[str]:
    """Replays that were interrupted, are under way, or ended while letters were out: the oldest first.

    moved_before: those alone of which no letter has moved since.
    """
    is_of_it = REPLAY_ITEMS.c.replay_id == REPLAYS.c.replay_id
    is_out = sa.exists().where(is_of_it, REPLAY_ITEMS.c.state == ItemState.SENT)
    asked = sa.select(REPLAYS.c.replay_id).where(REPLAYS.c.ended_at.is_(None) | is_out).order_by(REPLAYS.c.made_at)
    if moved_before:
        has_moved = sa.exists().where(is_of_it, REPLAY_ITEMS.c.moved_at >= moved_before)
        asked = asked.where(REPLAYS.c.made_at < moved_before, ~has_moved)
    return [row.replay_id for row in conn.execute(asked)]


def end_replay(conn: Connection, replay_id: str, *, by: str, because: str, now: datetime) -> None:
    """Nothing more is taken by it. The first reason counts."""
    ended = conn.execute(
        sa.update(REPLAYS)
        .where(REPLAYS.c.replay_id == replay_id, REPLAYS.c.ended_at.is_(None))
        .values(ended_at=now, ended_because=because)
    )
    if ended.rowcount == 1:
        note_replay(conn, "replay ended", replay_id, by=by, why=because, now=now)


def view_of_order(conn: Connection, order_id: str | None) -> tuple[Payment | None, Operation | None]:
    """The payment of an order and its newest call, as the verdict needs them."""
    payment = moves.read_payment(conn, order_id) if order_id else None
    operations = moves.operations_of(conn, order_id) if order_id and payment else ()
    creations = [operation for operation in operations if operation.kind == CREATE_INTENT]
    return payment, creations[-1] if creations else None


def _take(
    conn: Connection, letter_id: str, landings: int, *, judge: Judge, now: datetime
) -> tuple[ItemState, str, Letter | None]:
    letter = letters.read(conn, letter_id, lock=True)
    if letter is None or letter.state is not LetterState.OPEN:
        return ItemState.SKIPPED, f"it is {letter.state if letter else 'gone'}, and was open when it was chosen", None
    if letter.landings != landings:
        return ItemState.SKIPPED, LANDED_AGAIN, None
    verdict = judge(letter, *view_of_order(conn, letter.order_id))
    if verdict.kind is VerdictKind.BLOCKED:
        return ItemState.BLOCKED, verdict.why, None
    conn.execute(
        sa.update(LETTERS).where(LETTERS.c.letter_id == letter_id).values(state=LetterState.REPLAYING, moved_at=now)
    )
    return ItemState.SENT, f"{verdict.kind}: {verdict.why}", letter
