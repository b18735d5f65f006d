"""What letters were edited into, and whether an edit can be undone. Nothing here writes."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from worker.ledger.letters import LetterFilter, conditions
from worker.ledger.schema import ACTS, LETTERS, REPLAY_ITEMS
from worker.letter import ItemState, LetterState

# Acts of the history.
EDITED: Final = "edited"
MADE: Final = "made by edit"
UNDONE: Final = "edit undone"
# In a replay that has handed the letter to the worker, whatever came of that.
_SENT: Final = (ItemState.SENT, ItemState.RESOLVED, ItemState.FAILED)


@dataclass(frozen=True, slots=True)
class Successor:
    """A letter that an edit made, and the one it was made of. was_sent: a replay has handed it to the worker."""

    letter_id: str
    edited_from: str
    state: LetterState
    was_sent: bool

    @property
    def effect(self) -> str | None:
        """What it has had of an effect, so that its edit cannot be undone; None for one that was never replayed."""
        if self.state is LetterState.REPLAYING:
            return "is with the worker: wait for its outcome"
        if self.was_sent:
            return f"was replayed and is {self.state}: see to that one"
        if self.state is LetterState.RESOLVED:
            return "was edited itself: restore that one first"
        return None


def successors(conn: Connection, chosen: LetterFilter, *, closed_by_edit: bool = False) -> Sequence[Successor]:
    """What the chosen letters were edited into, in the order of making: several where one landed or was edited again.

    closed_by_edit: of those alone that an edit has closed, and no replay since.
    """
    new = LETTERS.alias("successor")
    was_sent = sa.exists().where(REPLAY_ITEMS.c.letter_id == new.c.letter_id, REPLAY_ITEMS.c.state.in_(_SENT))
    of = sa.select(LETTERS.c.letter_id).where(*conditions(conn, chosen))
    if closed_by_edit:  # in a ledger that a letter was imported into, no act tells what closed it
        of = of.where(sa.func.coalesce(_last_act(EDITED, "resolved"), EDITED) == EDITED)
    rows = conn.execute(
        sa.select(new.c.letter_id, new.c.edited_from, new.c.state, ((new.c.landings > 1) | was_sent).label("was_sent"))
        .where(new.c.edited_from.in_(of))
        .order_by(new.c.landed_at, new.c.letter_id)
    )
    return [Successor(row.letter_id, row.edited_from, LetterState(row.state), bool(row.was_sent)) for row in rows]


def is_undone() -> sa.ColumnElement[bool]:
    """Of a letter that an edit made which was undone: what it was made of is in its place again."""
    return sa.func.coalesce(_last_act(UNDONE, MADE, "discarded"), "") == UNDONE


def _last_act(*among: str) -> sa.ScalarSelect[str]:
    """The last one of these acts that was done to a letter."""
    asked = sa.select(ACTS.c.act).where(ACTS.c.letter_id == LETTERS.c.letter_id, ACTS.c.act.in_(among))
    return asked.order_by(ACTS.c.act_id.desc()).limit(1).correlate(LETTERS).scalar_subquery()
