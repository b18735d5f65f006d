"""Dead letters in the ledger: how they land, are resolved and are found, one function each.

What operators do to them is in letter_moves.py and replays.py, figures are in letter_figures.py. They run inside one
transaction, as those of moves.py do. Each act is written down in the transaction that does it.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import datetime
from itertools import accumulate
from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy.engine import Connection, Row

from worker.ledger.acts import chunks, note
from worker.ledger.moves import insert_if_absent
from worker.ledger.schema import EVENTS, LETTERS, REPLAY_ITEMS
from worker.letter import ItemState, Landing, Letter, LetterState, properties_from_json, properties_to_json, told_count
from worker.payment import dead_letter_id

# Landings kept of one letter; each holds at most a budget's worth of failures.
MOST_KEPT: Final = 50
# Bodies held at once where many letters pass through: a broker may take messages of megabytes.
CHUNK_BYTES: Final = 4 * 1024 * 1024
WORKER: Final = "payment-worker"


@dataclass(frozen=True, slots=True)
class LetterFilter:
    """Which letters are meant: all conditions together, none of them for all. since: landed at or after.

    moved_at: by which one act is told from all others, as long as its letters have not moved again.
    text: a piece of the error or of the body, byte for byte.
    """

    ids: tuple[str, ...] = ()
    states: tuple[LetterState, ...] = ()
    reason: str | None = None
    order_id: str | None = None
    group_id: str | None = None
    since: datetime | None = None
    moved_at: datetime | None = None
    text: str | None = None

    @property
    def is_everything(self) -> bool:
        """Whether nothing but the state narrows it down."""
        return replace(self, states=()) == LetterFilter()


def land(conn: Connection, letter: Letter, landing: Landing, *, other_id: str, now: datetime) -> str:
    """Keep a message that became a dead letter; returns the word for it in the history, "known" for nothing new.

    letter: as it would be if it were new. The same message again is the same letter, open again, with one more entry
    in its history; a replay of it has failed then. The same arrival again changes nothing, nor does one of before.
    other_id: taken where another message has the letter's id, which it may have been given by anybody.
    """
    for letter_id in _ids_of(letter, other_id):
        letter = replace(letter, letter_id=letter_id)
        if insert_if_absent(conn, LETTERS, row_of(replace(letter, history=(_entry(landing, now),)))):
            note(conn, "landed", by=WORKER, letter_ids=[letter_id], why=letter.cause, now=now)
            return "landed"
        if body_of(conn, letter_id) == letter.body:
            break
    before = read(conn, letter.letter_id, lock=True)
    if before is None or landing.landing_id in (entry.get("landing_id") for entry in before.history):
        return "known"
    conn.execute(
        sa.update(LETTERS)
        .where(LETTERS.c.letter_id == letter.letter_id)
        .values(
            state=LetterState.OPEN,
            reason=letter.reason,
            error=letter.error,
            cause=letter.cause,
            group_id=letter.group_id,
            attempts=letter.attempts,
            landings=before.landings + 1,
            landing_id=landing.landing_id,
            landed_at=letter.landed_at,
            moved_at=now,
            history=_json([*before.history, _entry(landing, now)][-MOST_KEPT:]),
        )
    )
    _end_items(conn, letter.letter_id, ItemState.FAILED, said=letter.cause, now=now)
    act = "reopened" if before.state is not LetterState.OPEN else "landed again"
    note(conn, act, by=WORKER, letter_ids=[letter.letter_id], why=letter.cause, now=now)
    return act


def body_of(conn: Connection, letter_id: str) -> bytes | None:
    """The body of a letter that is kept, if it is."""
    return conn.scalar(sa.select(LETTERS.c.body).where(LETTERS.c.letter_id == letter_id))


def resolve(conn: Connection, letter_id: str, *, body: bytes, now: datetime) -> bool:
    """A replay has come to an outcome. False where the letter was not being replayed.

    body: of the message, which may name any letter: another one's outcome resolves nothing.
    """
    resolved = conn.execute(
        sa.update(LETTERS)
        .where(LETTERS.c.letter_id == letter_id, LETTERS.c.state == LetterState.REPLAYING, LETTERS.c.body == body)
        .values(state=LetterState.RESOLVED, moved_at=now)
    )
    if resolved.rowcount == 1:
        said = _how_told(conn, letter_id)
        _end_items(conn, letter_id, ItemState.RESOLVED, said=said, now=now)
        note(conn, "resolved", by=WORKER, letter_ids=[letter_id], why=said, now=now)
    return resolved.rowcount == 1


def _how_told(conn: Connection, letter_id: str) -> str:
    """That a letter's message is carried out, and whether somebody has heard of it."""
    order_id = sa.select(LETTERS.c.order_id).where(LETTERS.c.letter_id == letter_id).scalar_subquery()
    is_untold = (EVENTS.c.order_id == order_id) & EVENTS.c.published_at.is_(None)
    untold = conn.scalar(sa.select(sa.func.count()).select_from(EVENTS).where(is_untold))
    if not untold:
        return "carried out, and every event of its order is told"
    return f"carried out; {told_count(untold, 'event')} of its order still to be told at that moment"


def read(conn: Connection, letter_id: str, *, lock: bool = False) -> Letter | None:
    """One letter with all that it holds. lock: until this transaction ends."""
    asked = sa.select(LETTERS).where(LETTERS.c.letter_id == letter_id)
    row = conn.execute(_locked(asked) if lock else asked).first()
    return _letter(row) if row else None


def hold(conn: Connection, letter_ids: Sequence[str]) -> None:
    """Lock many letters until this transaction ends: in one order, or two who do so could wait for each other."""
    for some in chunks(sorted(letter_ids)):
        conn.execute(ids_in_order(LETTERS.c.letter_id.in_(some)))


def find(
    conn: Connection, chosen: LetterFilter, *, limit: int, after: tuple[datetime, str] | None = None
) -> Sequence[Letter]:
    """A page of letters, oldest landing first. after: landed_at and letter_id of the last one of the page before."""
    rows = conn.execute(_paged(sa.select(LETTERS).where(*conditions(conn, chosen)), limit=limit, after=after))
    return [_letter(row) for row in rows]


def find_heads(conn: Connection, chosen: LetterFilter, *, limit: int) -> Sequence[Letter]:
    """The first letters as of find, with empty bodies."""
    columns = [column for column in LETTERS.c if column is not LETTERS.c.body]
    asked = sa.select(*columns, sa.literal(b"", sa.LargeBinary()).label("body")).where(*conditions(conn, chosen))
    return [_letter(row) for row in conn.execute(_paged(asked, limit=limit, after=None))]


def find_some(
    conn: Connection, chosen: LetterFilter, *, limit: int, after: tuple[datetime, str] | None = None
) -> Sequence[Letter]:
    """A page as of find that ends before its bodies exceed CHUNK_BYTES, but after the first letter at the earliest."""
    asked = sa.select(LETTERS.c.size_bytes).where(*conditions(conn, chosen))
    sizes = conn.scalars(_paged(asked, limit=limit, after=after)).all()
    fitting = sum(total <= CHUNK_BYTES for total in accumulate(sizes))
    return find(conn, chosen, limit=max(1, fitting), after=after)


def count(conn: Connection, chosen: LetterFilter) -> int:
    """How many letters a filter means."""
    return conn.scalar(sa.select(sa.func.count()).select_from(LETTERS).where(*conditions(conn, chosen))) or 0


def ids_of(conn: Connection, chosen: LetterFilter) -> list[tuple[str, int]]:
    """Id and number of landings of each letter, oldest landing first."""
    asked = sa.select(LETTERS.c.letter_id, LETTERS.c.landings).where(*conditions(conn, chosen))
    return [(row[0], row[1]) for row in conn.execute(asked.order_by(LETTERS.c.landed_at, LETTERS.c.letter_id))]


def _end_items(conn: Connection, letter_id: str, state: ItemState, *, said: str, now: datetime) -> None:
    conn.execute(
        sa.update(REPLAY_ITEMS)
        .where(REPLAY_ITEMS.c.letter_id == letter_id, REPLAY_ITEMS.c.state == ItemState.SENT)
        .values(state=state, said=said, moved_at=now)
    )


def conditions(conn: Connection, chosen: LetterFilter) -> Iterator[sa.ColumnElement[bool]]:
    """What the letters that are meant have in common, for a statement's WHERE."""
    if chosen.ids:
        yield LETTERS.c.letter_id.in_(chosen.ids)
    # Named in any case, so that the index that starts with it serves.
    yield LETTERS.c.state.in_(chosen.states or tuple(LetterState))
    for column, wanted in (
        (LETTERS.c.reason, chosen.reason),
        (LETTERS.c.order_id, chosen.order_id),
        (LETTERS.c.group_id, chosen.group_id),
    ):
        if wanted is not None:
            yield column == wanted
    if chosen.since:
        yield LETTERS.c.landed_at >= chosen.since
    if chosen.moved_at:
        yield LETTERS.c.moved_at == chosen.moved_at
    if chosen.text:
        piece = sa.literal(chosen.text.encode("utf-8", "surrogateescape"), sa.LargeBinary())
        if conn.dialect.name == "sqlite":
            texts = (LETTERS.c.body, sa.cast(LETTERS.c.error, sa.LargeBinary))
            yield sa.or_(*(sa.func.instr(text, piece) > 0 for text in texts))
        else:
            columns = (LETTERS.c.body, sa.func.convert_to(LETTERS.c.error, "UTF8"))
            yield sa.or_(*(sa.func.position(piece.op("IN")(column)) > 0 for column in columns))


def _ids_of(letter: Letter, other_id: str) -> Iterator[str]:
    """Its own is the first that no other message has, now and ever after: what is kept keeps its body."""
    yield letter.letter_id
    while True:
        yield other_id
        other_id = dead_letter_id(letter.body, {"beside": other_id})


def ids_in_order(*conditions: sa.ColumnElement[bool]) -> sa.Select[tuple[str]]:
    """Of the letters that are meant, which are locked in that order."""
    return _locked(sa.select(LETTERS.c.letter_id).where(*conditions).order_by(LETTERS.c.letter_id))


def _locked(asked: sa.Select[Any]) -> sa.Select[Any]:
    """As an update locks rows: a replay that is being made refers to them meanwhile, and neither waits."""
    return asked.with_for_update(key_share=True)


def _paged(asked: sa.Select[Any], *, limit: int, after: tuple[datetime, str] | None) -> sa.Select[Any]:
    if after:
        moment, letter_id = sa.literal(after[0], LETTERS.c.landed_at.type), sa.literal(after[1])
        asked = asked.where(sa.tuple_(LETTERS.c.landed_at, LETTERS.c.letter_id) > sa.tuple_(moment, letter_id))
    return asked.order_by(LETTERS.c.landed_at, LETTERS.c.letter_id).limit(limit)


def _entry(landing: Landing, now: datetime) -> dict[str, Any]:
    entry = asdict(landing)
    entry |= {"at": (landing.at or now).isoformat(), "failures": list(landing.failures)}
    entry["first_seen"] = landing.first_seen.isoformat() if landing.first_seen else None
    return entry


def row_of(letter: Letter) -> dict[str, Any]:
    """A letter as the table holds it, all of plain types."""
    return {
        "letter_id": letter.letter_id,
        "state": letter.state,
        "reason": letter.reason,
        "error": letter.error,
        "cause": letter.cause,
        "group_id": letter.group_id,
        "order_id": letter.order_id,
        "amount_minor": letter.amount_minor,
        "currency": letter.currency,
        "body": letter.body,
        "size_bytes": len(letter.body),
        "properties": properties_to_json(letter.properties),
        "unreadable": _json({name: str(why) for name, why in letter.unreadable.items()}),
        "attempts": letter.attempts,
        "landings": letter.landings,
        "landing_id": letter.landing_id,
        "first_seen": letter.first_seen,
        "landed_at": letter.landed_at,
        "moved_at": letter.moved_at,
        "edited_from": letter.edited_from,
        "history": _json(list(letter.history)),
        "imported": letter.imported,
    }


def _letter(row: Row[Any]) -> Letter:
    return Letter(
        letter_id=row.letter_id,
        state=LetterState(row.state),
        reason=row.reason,
        error=row.error,
        group_id=row.group_id,
        cause=row.cause,
        order_id=row.order_id,
        body=bytes(row.body),
        properties=properties_from_json(row.properties),
        attempts=row.attempts,
        landings=row.landings,
        landing_id=row.landing_id,
        landed_at=row.landed_at,
        moved_at=row.moved_at,
        amount_minor=row.amount_minor,
        currency=row.currency,
        first_seen=row.first_seen,
        edited_from=row.edited_from,
        size_bytes=row.size_bytes,
        unreadable=json.loads(row.unreadable),
        history=json.loads(row.history),
        imported=row.imported,
    )


def _json(value: Any) -> str:
    return json.dumps(value, separators=(",", ":"))
