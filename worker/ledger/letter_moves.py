"""What operators do to letters: discard, restore, edit, import; one function each. Replays have replays.py.

They run inside one transaction, as those of letters.py do. Each act is written down in the transaction that does it.
"""

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from typing import Any, TypeVar

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.engine import Connection

from worker.errors import StaleMove
from worker.ledger import moves
from worker.ledger.acts import CHUNK, chunks, note
from worker.ledger.letters import CHUNK_BYTES, LetterFilter, conditions, hold, ids_in_order, read, row_of
from worker.ledger.moves import insert_if_absent
from worker.ledger.schema import LETTERS
from worker.letter import Letter, LetterState
from worker.payment import Operation, Payment

T = TypeVar("T")


def discard(conn: Connection, chosen: LetterFilter, *, by: str, why: str, now: datetime) -> int:
    """Close open letters for good reason; returns how many."""
    return _move(conn, chosen, LetterState.OPEN, LetterState.DISCARDED, "discarded", by=by, why=why, now=now)


def restore(conn: Connection, chosen: LetterFilter, *, by: str, why: str | None, now: datetime) -> int:
    """Open discarded letters again; returns how many."""
    return _move(conn, chosen, LetterState.DISCARDED, LetterState.OPEN, "restored", by=by, why=why, now=now)


def replace_by_edited(conn: Connection, old_id: str, edited: Letter, *, by: str, why: str, now: datetime) -> None:
    """Close an open letter and keep the edited one in its place. Raises StaleMove where it is not open any more."""
    closed = conn.execute(
        sa.update(LETTERS)
        .where(LETTERS.c.letter_id == old_id, LETTERS.c.state == LetterState.OPEN)
        .values(state=LetterState.RESOLVED, moved_at=now)
    )
    if closed.rowcount != 1 or not insert_if_absent(conn, LETTERS, row_of(edited)):
        raise StaleMove(f"{old_id} is not open any more, or was edited so before")
    note(conn, "edited", by=by, letter_ids=[old_id], why=f"into {edited.letter_id}: {why}", now=now)
    note(conn, "made by edit", by=by, letter_ids=[edited.letter_id], why=f"from {old_id}: {why}", now=now)


# What an edit makes of a letter: the corrected one, and the words for the history; None where it is so already. It
# raises what forbids the edit, and is handed a look at an order: its payment and its calls, the oldest first.
LookAtOrder = Callable[[str], tuple[Payment | None, Sequence[Operation]]]
Correct = Callable[[Letter, LookAtOrder], tuple[Letter, str] | None]


def check_edits(conn: Connection, letter_ids: Sequence[str], *, correct: Correct) -> list[tuple[str, int]]:
    """Whether each may be edited; returns those that would be, with the bytes of both bodies. Writes nothing.

    Raises as edit_all does.
    """
    return [
        (old.letter_id, len(old.body) + len(corrected.body))
        for old, corrected, _ in _corrected(conn, letter_ids, correct)
    ]


def edit_all(
    conn: Connection, letter_ids: Sequence[str], *, correct: Correct, by: str, now: datetime
) -> list[tuple[str, str]]:
    """Put a corrected letter in the place of each, all or none; returns old and new ids.

    What forbids an edit is looked at in the transaction that makes it. Raises StaleMove where one is not open any
    more, and whatever `correct` raises.
    """
    hold(conn, letter_ids)
    edited = []
    for old, corrected, why in _corrected(conn, letter_ids, correct):
        replace_by_edited(conn, old.letter_id, corrected, by=by, why=why, now=now)
        edited.append((old.letter_id, corrected.letter_id))
    return edited


def _corrected(conn: Connection, letter_ids: Sequence[str], correct: Correct) -> Iterator[tuple[Letter, Letter, str]]:
    def look(order_id: str) -> tuple[Payment | None, Sequence[Operation]]:
        return moves.read_payment(conn, order_id), moves.operations_of(conn, order_id)

    for letter_id in letter_ids:
        letter = read(conn, letter_id)
        if letter is None or letter.state is not LetterState.OPEN:
            raise StaleMove(f"{letter_id} is not open any more")
        if made := correct(letter, look):
            yield letter, *made


def add_all(
    conn: Connection, rows: Iterable[Mapping[str, Any]], *, vouched: bool, by: str, why: str, now: datetime
) -> tuple[int, int]:
    """Keep letters that come from elsewhere, all or none; returns how many were new, and how many were here.

    rows: as of row_of, taken as they come, a chunk at a time; what one was edited from comes before it, or is here.
    vouched: no call was begun for them elsewhere; those that were imported before are freed then.
    """
    insert = (sqlite if conn.dialect.name == "sqlite" else postgresql).insert(LETTERS)
    insert_absent = insert.on_conflict_do_nothing().returning(LETTERS.c.letter_id)
    added, known = 0, 0
    for some in batches(rows, most=CHUNK, size_of=lambda row: int(row["size_bytes"])):
        new = [str(letter_id) for letter_id in conn.scalars(insert_absent, some)]
        note(conn, "imported", by=by, letter_ids=new, why=why, now=now)
        here = {str(row["letter_id"]) for row in some}.difference(new)
        if vouched:
            note(conn, "vouched for", by=by, letter_ids=[*new, *_vouch(conn, here)], why=why, now=now)
        added += len(new)
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
    chosen: LetterFilter,
    before: LetterState,
    after: LetterState,
    act: str,
    *,
    by: str,
    why: str | None,
    now: datetime,
) -> int:
    """All at once: those that are locked here are those that move, and are written down."""
    held = ids_in_order(*conditions(conn, replace(chosen, states=(before,))))
    letter_ids = [str(letter_id) for letter_id in conn.scalars(held)]
    for some in chunks(letter_ids):
        conn.execute(sa.update(LETTERS).where(LETTERS.c.letter_id.in_(some)).values(state=after, moved_at=now))
    note(conn, act, by=by, letter_ids=letter_ids, why=why, now=now)
    return len(letter_ids)


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
