"""The corrected letter that an edit puts in the place of one, and what forbids it.

What a payment was agreed on is locked where a call of it may have reached Stripe, and needs a reason elsewhere.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from typing import Any, Final

from schemas import AmountError, OrderCreatedData, parse_amount
from schemas.order_created import readable_order_id
from worker.desk.change_body import Change
from worker.desk.screen import ago, visible
from worker.errors import ConfigurationError
from worker.ledger.letter_moves import LookAtOrder, OrderView
from worker.letter import CARD_DATA, Letter, cause_of, edited_letter_id, group_of
from worker.payment import OperationState
from worker.read_order import data_of, order_in

MONEY: Final = ("order_id", "amount", "currency")
EDITED: Final = "edited: "
# What is left of card data; see card_numbers.py.
MASK: Final = b"***"


def corrected(
    letter: Letter, look: LookAtOrder, *, change: Change, why: str | None, now: datetime
) -> tuple[Letter, str] | None:
    """The letter that takes the place of one, and the words for the history. Raises ConfigurationError.

    look: at what the ledger has of an order. why: None where it is not asked for. The properties stay, but for those
    that could not be read. None for a letter that an edit has made, and this one leaves as it is: the same words may
    have made it before.
    """
    try:
        return _corrected(letter, look, change=change, why=why, now=now)
    except ConfigurationError as error:
        raise ConfigurationError(visible(str(error)).replace("\n", "\\n")) from None


def _corrected(
    letter: Letter, look: LookAtOrder, *, change: Change, why: str | None, now: datetime
) -> tuple[Letter, str] | None:
    body = change.make(letter.body)
    if body == letter.body and not letter.unreadable:
        if letter.edited_from:
            return None
        raise ConfigurationError("the edit changes nothing of it")
    if letter.reason == CARD_DATA and MASK in body:
        raise ConfigurationError(
            f"it still holds what was masked ({MASK.decode()}): set that field too, or take it out"
        )
    after = _with_body(letter, body, now=now)
    order = order_in(after)
    if isinstance(order, str):
        raise ConfigurationError(f"what it became would be refused: {order}")
    after = replace(after, order_id=order.order_id, amount_minor=order.amount_minor, currency=order.currency)
    changes = money_changes(letter.body, body)
    if changes:
        _require_unlocked(letter, order, look, changes, now=now)
    if changes and why == "":
        raise ConfigurationError(f"it changes what is paid ({', '.join(changes)}): say --why")
    money = f"now {order.order_id}, {order.amount} {order.currency}" if changes else ""
    return after, "; ".join(filter(None, (change.told, money, why)))


def money_changes(before: bytes, after: bytes) -> list[str]:
    """Which of the fields that say what is paid differ in an order's body; 12.1 and "12.10" do not."""
    was, now_is = data_of(before) or {}, data_of(after) or {}
    return [name for name in MONEY if _meant(name, was) != _meant(name, now_is)]


def _with_body(letter: Letter, body: bytes, *, now: datetime) -> Letter:
    edited_id = edited_letter_id(letter, body)
    error = EDITED + letter.error.removeprefix(EDITED)
    cause = cause_of(letter.reason, error)
    return replace(
        letter,
        letter_id=edited_id,
        error=error,
        cause=cause,
        group_id=group_of(cause),
        body=body,
        attempts=0,
        landings=1,
        landing_id=f"edit:{edited_id}",
        landed_at=now,
        moved_at=now,
        edited_from=letter.letter_id,
        unreadable={},
    )


def _require_unlocked(
    letter: Letter, order: OrderCreatedData, look: LookAtOrder, changes: Sequence[str], *, now: datetime
) -> None:
    """Raises ConfigurationError where Stripe may know of the order, under the id that it had or that it gets.

    And where the id that it gets is another letter's: replayed, the two would be one payment.
    """
    before = tuple(filter(None, (letter.order_id, readable_order_id(data_of(letter.body)))))
    for order_id in dict.fromkeys((*before, order.order_id)):
        if because := _why_locked(order_id, look(order_id), now=now):
            raise ConfigurationError(
                f"{' and '.join(changes)} {'is' if len(changes) == 1 else 'are'} locked: {because}; "
                "replay the letter as it is; where that is blocked discard it, and have it sent with a new order id"
            )
    others = () if order.order_id in before else look(order.order_id).letter_ids
    if others:
        raise ConfigurationError(
            f"order {order.order_id} has a letter of its own, {others[0]}: the two would be one payment; "
            "give this one another order id, or discard one of them"
        )


def _why_locked(order_id: str, view: OrderView, *, now: datetime) -> str | None:
    calls = [operation for operation in view.operations if operation.state is not OperationState.ABSENT]
    if calls:
        call = calls[-1]
        so_far = "" if call.state is OperationState.STARTED else f", {call.state}"
        age = ago(call.first_asked_at, now=now)
        return f"a call for {order_id} may have reached Stripe (started {age} ago{so_far})"
    if view.payment and view.payment.is_decided:
        return f"{order_id} is decided ({view.payment.payment_id or view.payment.state})"
    return None


def _meant(name: str, data: Mapping[str, Any]) -> tuple[bool, Any]:
    """A value to be compared, and whether it could be understood."""
    value = data.get(name, "usd" if name == "currency" else None)
    if name == "amount":
        try:
            return True, parse_amount(value)
        except AmountError:
            return False, value
    return isinstance(value, str), value.lower() if name == "currency" and isinstance(value, str) else value
