"""What operators do to letters: discard, restore, edit, import; one function each. Replays have replays.py.

They run inside one transaction, as those of letters.py do. Each act is written down in the transaction that does it.
"""

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from functools import partial
from typing import Any, Final, TypeVar

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from schemas import is_command
from worker.errors import ConfigurationError, StaleMove
from worker.ledger import moves
from worker.ledger.acts import CHUNK, chunks, note
from worker.ledger.edited_letters import EDITED, MADE, UNDONE, is_undone, successors
from worker.ledger.given import insert_into
from worker.ledger.letter_figures import Worth, worth_of
from worker.ledger.letters import (
    CHUNK_BYTES,
    LetterFilter,
    conditions,
    count,
    find,
    hold,
    ids_in_order,
    ids_of,
    read,
    row_of,
)
from worker.ledger.moves import insert_if_absent
from worker.ledger.schema import LETTERS
from worker.letter import Letter, LetterState, told_count
from worker.payment import Operation, Payment

T = TypeVar("T")

# Letters that are looked at with an order; one order rarely has two.
MOST_OF_AN_ORDER: Final = 20


def discard(conn: Connection, chosen: LetterFilter, *, by: str, why: str, now: datetime) -> Worth:
    """Close open letters for good reason; returns how many, and their value."""
    meant = ids_in_order(*conditions(conn, replace(chosen, states=(LetterState.OPEN,))))
    return _move(conn, list(conn.scalars(meant)), LetterState.DISCARDED, "discarded", by=by, why=why, now=now)


@dataclass(frozen=True, slots=True)
class Restored:
    """What is open again: letters that were discarded, and letters that were edited.

    left: how many stay discarded, because the edit that made them was undone.
    """

    discarded: Worth
    edited: Worth
    left: int


def restore(conn: Connection, chosen: LetterFilter, *, by: str, why: str | None, now: datetime) -> Restored:
    """Open discarded letters again, and edited ones where they are chosen by their ids or by the moment of the edit.

    What such a one was edited into is discarded. Raises ConfigurationError where that has had an effect, and for the
    id of a letter whose edit was undone.
    """
    edited = Worth()
    if chosen.ids or chosen.moved_at:
        edited = _undo_edits(conn, replace(chosen, states=(LetterState.RESOLVED,)), by=by, why=why, now=now)
    discarded = replace(chosen, states=(LetterState.DISCARDED,))
    meant = ids_in_order(*conditions(conn, discarded), ~is_undone())
    moved = _move(conn, list(conn.scalars(meant)), LetterState.OPEN, "restored", by=by, why=why, now=now)
    left = count(conn, discarded)
    if left and chosen.ids:
        letter_id, _ = ids_of(conn, discarded)[0]
        raise ConfigurationError(f"{letter_id} was made by an edit that was undone: say that edit again instead")
    return Restored(moved, edited, left)


def _undo_edits(conn: Connection, chosen: LetterFilter, *, by: str, why: str | None, now: datetime) -> Worth:
    seen = successors(conn, chosen, closed_by_edit=True)
    hold(conn, [letter_id for each in seen for letter_id in (each.edited_from, each.letter_id)])
    made = successors(conn, chosen, closed_by_edit=True)  # as they are, now that nobody else moves them
    if standing := [each for each in made if each.effect]:
        first, others = standing[0], len(standing) - 1
        more = f"; {told_count(others, 'other')} cannot be undone either" if others else ""
        raise ConfigurationError(f"{first.edited_from} was edited into {first.letter_id}, which {first.effect}{more}")
    told: dict[str, Any] = {"by": by, "why": why, "now": now}
    _move(conn, [each.letter_id for each in made], LetterState.DISCARDED, UNDONE, **told)
    origins = list(dict.fromkeys(each.edited_from for each in made))
    return _move(conn, origins, LetterState.OPEN, "restored", **told)


def replace_by_edited(conn: Connection, old_id: str, edited: Letter, *, by: str, why: str, now: datetime) -> None:
    """Close an open letter and keep the edited one in its place. Raises StaleMove where it is not open any more."""
    closed = conn.execute(
        sa.update(LETTERS)
        .where(LETTERS.c.letter_id == old_id, LETTERS.c.state == LetterState.OPEN)
        .values(state=LetterState.RESOLVED, moved_at=now)
    )
    is_there = closed.rowcount == 1 and (insert_if_absent(conn, LETTERS, row_of(edited)) or _again(conn, edited))
    if not is_there:
        raise StaleMove(f"{old_id} is not open any more, or was edited so before")
    note(conn, EDITED, by=by, letter_ids=[old_id], why=f"into {edited.letter_id}: {why}", now=now)
    note(conn, MADE, by=by, letter_ids=[edited.letter_id], why=f"from {old_id}: {why}", now=now)


def _again(conn: Connection, edited: Letter) -> bool:
    """The same edit after it was undone: the letter that it made then is open again."""
    opened = conn.execute(
        sa.update(LETTERS)
        .where(LETTERS.c.letter_id == edited.letter_id, LETTERS.c.state == LetterState.DISCARDED)
        .where(LETTERS.c.edited_from == edited.edited_from)
        .values(state=LetterState.OPEN, landed_at=edited.landed_at, moved_at=edited.moved_at)
    )
    return opened.rowcount == 1


@dataclass(frozen=True, slots=True)
class OrderView:
    """What the ledger has of an order. operations: its calls, the oldest first.

    letter_ids: letters of it that are open or replaying, those of commands apart.
    """

    payment: Payment | None
    operations: Sequence[Operation]
    letter_ids: Sequence[str]


LookAtOrder = Callable[[str], OrderView]
# What an edit makes of a letter: the corrected one, and the words for the history; None where it is so already. It
# raises what forbids the edit.
Correct = Callable[[Letter, LookAtOrder], tuple[Letter, str] | None]


def check_edits(conn: Connection, letter_ids: Sequence[str], *, plan: Callable[[Letter, LookAtOrder], T]) -> list[T]:
    """What `plan` says of each. Writes nothing. Raises StaleMove where one is not open any more."""
    return [plan(letter, partial(_view_of, conn)) for letter in _open_letters(conn, letter_ids)]


def edit_all(
    conn: Connection, letter_ids: Sequence[str], *, correct: Correct, by: str, now: datetime
) -> list[tuple[str, str]]:
    """Put a corrected letter in the place of each, all or none; returns old and new ids.

    What forbids an edit is looked at in the transaction that makes it. Raises StaleMove where one is not open any
    more, and whatever `correct` raises.
    """
    hold(conn, letter_ids)
    edited = []
    for old in _open_letters(conn, letter_ids):
        if made := correct(old, partial(_view_of, conn)):
            corrected, why = made
            replace_by_edited(conn, old.letter_id, corrected, by=by, why=why, now=now)
            edited.append((old.letter_id, corrected.letter_id))
    return edited


def _open_letters(conn: Connection, letter_ids: Sequence[str]) -> Iterator[Letter]:
    for letter_id in letter_ids:
        letter = read(conn, letter_id)
        if letter is None or letter.state is not LetterState.OPEN:
            raise StaleMove(f"{letter_id} is not open any more")
        yield letter


def _view_of(conn: Connection, order_id: str) -> OrderView:
    alive = LetterFilter(states=(LetterState.OPEN, LetterState.REPLAYING), order_id=order_id)
    of_orders = [
        letter.letter_id
        for letter in find(conn, alive, limit=MOST_OF_AN_ORDER)
        if not is_command(letter.body, letter.properties)
    ]
    return OrderView(moves.read_payment(conn, order_id), moves.operations_of(conn, order_id), of_orders)


def add_all(
    conn: Connection, rows: Iterable[Mapping[str, Any]], *, vouched: bool, by: str, why: str, now: datetime
) -> tuple[Worth, int]:
    """Keep letters that come from elsewhere, all or none; returns those that were new, and how many were here.

    rows: as of row_of, taken as they come, a chunk at a time; what one was edited from comes before it, or is here.
    vouched: no call was begun for them elsewhere; those that were imported before are freed then.
    """
    insert_absent = insert_into(conn.dialect.name, LETTERS).on_conflict_do_nothing().returning(LETTERS.c.letter_id)
    added, known = Worth(), 0
    for some in batches(rows, most=CHUNK, size_of=lambda row: int(row["size_bytes"])):
        new = [str(letter_id) for letter_id in conn.scalars(insert_absent, some)]
        note(conn, "imported", by=by, letter_ids=new, why=why, now=now)
        here = {str(row["letter_id"]) for row in some}.difference(new)
        if vouched:
            note(conn, "vouched for", by=by, letter_ids=[*new, *_vouch(conn, here)], why=why, now=now)
        added += worth_of(conn, new)
        known += len(here)
    return added, known


def _vouch(conn: Connection, letter_ids: Collection[str]) -> list[str]:
    """Free those that were imported; their ids, in order."""
    imported = LETTERS.c.letter_id.in_(letter_ids) & LETTERS.c.imported
    freed = [str(letter_id) for letter_id in conn.scalars(ids_in_order(imported))]
    conn.execute(sa.update(LETTERS).where(LETTERS.c.letter_id.in_(freed)).values(imported=False))
    return freed


def _move(
    conn: Connection,
    letter_ids: Sequence[str],
    after: LetterState,
    act: str,
    *,
    by: str,
    why: str | None,
    now: datetime,
) -> Worth:
    """Letters that are locked by this transaction."""
    for some in chunks(letter_ids):
        conn.execute(sa.update(LETTERS).where(LETTERS.c.letter_id.in_(some)).values(state=after, moved_at=now))
    note(conn, act, by=by, letter_ids=letter_ids, why=why, now=now)
    return worth_of(conn, letter_ids)


def batches(items: Iterable[T], *, most: int, size_of: Callable[[T], int]) -> Iterator[Sequence[T]]:
    """At most so many at a time, and no more once their bytes reach CHUNK_BYTES."""
    some: list[T] = []
    size = 0
    for item in items:
        some.append(item)
        size += size_of(item)
        if len(some) == most or size >= CHUNK_BYTES:
            yield some
            some, size = [], 0
    if some:
        yield some
