"""What an edit would do to each of its letters, before any is touched: for its checks, its dry run and its summary."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

from worker.desk.change_body import differences
from worker.desk.correct_letter import money_changes
from worker.desk.letter_records import told_worth
from worker.desk.screen import print_pairs, print_table, say
from worker.errors import ConfigurationError
from worker.ledger.letter_figures import Worth
from worker.ledger.letter_moves import Correct, LookAtOrder
from worker.letter import Letter, told_count, told_value

# Lines that a person reads; of more the number is told, and --json has all.
SHOWN: Final = 200
TOP: Final = 5
VALUE_CHARS: Final = 40


@dataclass(frozen=True, slots=True)
class Head:
    """What a person knows a letter by. Amount and currency are None where the message does not tell them."""

    letter_id: str
    group_id: str
    order_id: str | None
    amount_minor: int | None
    currency: str | None

    @property
    def told_value(self) -> str | None:
        """ "12.50 USD"."""
        return told_value(self.amount_minor, self.currency)


@dataclass(frozen=True, slots=True)
class Planned:
    """What an edit makes of one letter. after: None where it stays as it is; refused says why, if it must.

    changes: as of differences. money: whether they change what is paid. size_bytes: of both bodies.
    """

    before: Head
    after: Head | None
    changes: Mapping[str, tuple[str | None, str | None]]
    money: bool
    refused: str | None
    size_bytes: int


def plan(letter: Letter, look: LookAtOrder, *, correct: Correct) -> Planned:
    """What `correct` makes of a letter, or why it must not be edited."""
    try:
        made = correct(letter, look)
    except ConfigurationError as error:
        return Planned(_head(letter), None, {}, money=False, refused=str(error), size_bytes=len(letter.body))
    if made is None:
        return Planned(_head(letter), None, {}, money=False, refused=None, size_bytes=len(letter.body))
    after, _ = made
    return Planned(
        _head(letter),
        _head(after),
        differences(letter.body, after.body),
        money=bool(money_changes(letter.body, after.body)),
        refused=None,
        size_bytes=len(letter.body) + len(after.body),
    )


def refuse_shared(planned: Iterable[Planned]) -> list[Planned]:
    """The same, but that of letters that would be of one order only the first may be edited."""
    first: dict[str, str] = {}
    checked = []
    for each in planned:
        order_id = (each.after or each.before).order_id
        if each.refused is None and order_id is not None:
            other_id = first.setdefault(order_id, each.before.letter_id)
            if other_id != each.before.letter_id:
                why = f"order {order_id} is that of {other_id} too: the two would be one payment; discard one of them"
                checked.append(replace(each, after=None, changes={}, refused=why))
                continue
        checked.append(each)
    return checked


def record(each: Planned) -> dict[str, Any]:
    """What an edit would do to a letter, for programs. Values of changes are JSON texts, null for no field."""
    return {
        "id": each.before.letter_id,
        "order_id": each.before.order_id,
        "value": each.before.told_value,
        "refused": each.refused,
        "changes": each.changes,
        "after": each.after
        and {
            "id": each.after.letter_id,
            "order_id": each.after.order_id,
            "value": each.after.told_value,
            "group": each.after.group_id,
        },
    }


def print_plan(planned: Sequence[Planned]) -> None:
    """Each letter, a line, and the whole."""
    rows = [
        (
            each.before.letter_id,
            _told_orders(each),
            each.before.told_value or "–",
            (each.after.told_value if each.after else None) or "–",
            f"refused: {each.refused}" if each.refused else _told_changes([each]) or "stays as it is",
        )
        for each in planned[:SHOWN]
    ]
    print_table({"id": False, "order": True, "value": False, "after it": False, "what": True}, rows)
    if len(planned) > SHOWN:
        say(f"{SHOWN} of {len(planned)} shown; --json has all")
    say()
    print_summary(planned, would=True)


def print_summary(planned: Sequence[Planned], *, would: bool = False) -> None:
    """How many, of which orders, worth what before and after, and what changes. would: of a dry run."""
    made = [(each.before, each.after) for each in planned if each.after]
    orders = list(dict.fromkeys(after.order_id or "–" for _, after in made))
    groups = Counter(after.group_id for _, after in made)
    refused = sum(each.refused is not None for each in planned)
    same = len(planned) - len(made) - refused
    pairs = {
        "would be edited" if would else "edited": told_count(len(made), "letter"),
        "orders": f"{len(orders)}: {_some(orders)}" if orders else "",
        "before": told_worth(_worth(before for before, _ in made)) if made else "",
        "after": told_worth(_worth(after for _, after in made)) if made else "",
        "changes": _told_changes(planned),
        "groups": _some([f"{group_id} ({told_count(number, 'letter')})" for group_id, number in groups.items()]),
        "stay as they are": told_count(same, "letter") if same else "",
        "would be refused": f"{told_count(refused, 'letter')}, and with them all: none is edited" if refused else "",
    }
    print_pairs({name: told for name, told in pairs.items() if told})


def _head(letter: Letter) -> Head:
    return Head(letter.letter_id, letter.group_id, letter.order_id, letter.amount_minor, letter.currency)


def _worth(heads: Iterable[Head]) -> Worth:
    return Worth.of((head.amount_minor, head.currency) for head in heads)


def _told_orders(each: Planned) -> str:
    before, after = each.before.order_id or "–", each.after and each.after.order_id
    return f"{before} → {after}" if after and after != before else before


def _told_changes(planned: Sequence[Planned]) -> str:
    """'currency: "usx" → "usd" (3 letters)', the most frequent ones; of one letter without the number."""
    counts = Counter((path, *change) for each in planned for path, change in each.changes.items())
    return _some(
        [
            f"{path}: {_clipped(before)} → {_clipped(after)}"
            + (f" ({told_count(number, 'letter')})" if len(planned) > 1 else "")
            for (path, before, after), number in counts.most_common()
        ]
    )


def _some(told: Sequence[str]) -> str:
    return ", ".join(told[:TOP]) + (f" and {len(told) - TOP} more" if len(told) > TOP else "")


def _clipped(value: str | None) -> str:
    if value is None:
        return "–"
    return value if len(value) <= VALUE_CHARS else f"{value[: VALUE_CHARS - 1]}…"
