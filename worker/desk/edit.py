"""`dead-letters edit`: a corrected letter in the place of one, or of each of some.

None is touched where one of them must not be; a letter and its correction change places in one transaction, and many
letters in many: see edit.

What a payment was agreed on is locked where a call of it may have reached Stripe, and needs a reason elsewhere.
"""

import argparse
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from operator import itemgetter
from typing import Any, Final

from schemas import AmountError, OrderCreatedData, parse_amount
from schemas.order_created import readable_order_id
from worker.desk.change_body import Change, change_of
from worker.desk.letters import open_ledger, require_known
from worker.desk.screen import ago, print_json, say, visible
from worker.desk.words import chosen_letters, described, operator, require_narrow
from worker.errors import ConfigurationError, LedgerUnavailable, StaleMove, WorkerError
from worker.ledger import letter_moves, letters
from worker.ledger.ledger import Ledger
from worker.ledger.letter_moves import Correct, LookAtOrder
from worker.ledger.letters import LetterFilter
from worker.letter import Letter, LetterState, cause_of, edited_letter_id, group_of
from worker.payment import Operation, OperationState, Payment
from worker.read_order import data_of, order_in
from worker.settings import Settings

# Letters of one transaction.
CHUNK: Final = 200
# Pairs of ids that a person reads; of more only the number is told.
SHOWN: Final = 20
MONEY: Final = ("order_id", "amount", "currency")
EDITED: Final = "edited: "
UNCHANGED: Final = "the edit changes nothing of it"


async def edit(settings: Settings, arguments: argparse.Namespace) -> None:
    """Correct the chosen letters. Raises ConfigurationError for what must not be, and nothing is done then.

    All are looked at before the first is written. Then they are written a chunk at a time, in transactions that look
    again and are short: a worker on the same ledger waits for none of them long. Where that ends early, it raises
    StaleMove or LedgerUnavailable that says how many were edited before; the same words again go on with the rest.
    """
    chosen, now = chosen_letters(arguments), datetime.now(UTC)
    require_narrow(chosen, has_all=arguments.all)
    change = change_of(arguments)
    correct = partial(corrected, change=change, why=(arguments.why or "").strip(), now=now)
    async with open_ledger(settings) as ledger:
        chosen = await _without_done(ledger, chosen, change)
        await require_known(ledger, chosen, LetterState.OPEN)
        letter_ids = [letter_id for letter_id, _ in await ledger.look(letters.ids_of, chosen)]
        if arguments.body is not None and len(letter_ids) != 1:
            raise ConfigurationError(
                f"--body is the body of one letter, and {len(letter_ids)} are meant by: {described(chosen)}"
            )
        to_edit = await _checked(ledger, letter_ids, correct)
        edited, end = await _write(ledger, to_edit, correct, now=now)
    _report(edited, as_json=arguments.json)
    if end:
        raise end


async def _without_done(ledger: Ledger, chosen: LetterFilter, change: Change) -> LetterFilter:
    """Without letters named by their ids that this very edit has closed before, unless no others are named."""
    done = set()
    for letter_id in chosen.ids:
        letter = await ledger.look(letters.read, letter_id)
        if letter is not None and letter.state is LetterState.RESOLVED:
            with suppress(ConfigurationError):
                made = LetterFilter(ids=(edited_letter_id(letter, change.make(letter.body)),))
                if await ledger.look(letters.count, made):
                    done.add(letter_id)
    left = tuple(letter_id for letter_id in chosen.ids if letter_id not in done)
    return replace(chosen, ids=left) if left else chosen


async def _checked(ledger: Ledger, letter_ids: Sequence[str], correct: Correct) -> list[tuple[str, int]]:
    """Those that are to be edited, with the bytes that this moves. Raises what forbids it for any of them."""
    found: list[tuple[str, int]] = []
    try:
        for start in range(0, len(letter_ids), CHUNK):
            found += await ledger.look(letter_moves.check_edits, letter_ids[start : start + CHUNK], correct=correct)
    except (ConfigurationError, StaleMove) as error:
        raise type(error)(f"{error}; nothing was done") from None
    if not found:
        raise ConfigurationError(f"{letter_ids[0]}: {UNCHANGED}; nothing was done")
    return found


async def _write(
    ledger: Ledger, to_edit: Sequence[tuple[str, int]], correct: Correct, *, now: datetime
) -> tuple[list[tuple[str, str]], WorkerError | None]:
    """Old and new ids of those that were edited, and what ended it before all were."""
    edited: list[tuple[str, str]] = []
    try:
        for some in letter_moves.batches(to_edit, most=CHUNK, size_of=itemgetter(1)):
            if edited:
                await ledger.give_way()
            ids = [letter_id for letter_id, _ in some]
            edited += await ledger.run(letter_moves.edit_all, ids, correct=correct, by=operator(), now=now)
    except (ConfigurationError, StaleMove, LedgerUnavailable) as error:
        if not edited and not isinstance(error, LedgerUnavailable):
            raise type(error)(f"{error}; nothing was done") from None
        kind = LedgerUnavailable if isinstance(error, LedgerUnavailable) else StaleMove
        told = f"{len(edited)} of {len(to_edit)} letters were edited before"
        return edited, kind(f"{error}; {told}: say the same again to go on with the rest")
    return edited, None


def _report(edited: Sequence[tuple[str, str]], *, as_json: bool) -> None:
    if as_json:
        print_json([{"old": old, "new": new} for old, new in edited])
        return
    if len(edited) <= SHOWN:
        for old, new in edited:
            say(f"{old} → {new}")
    if len(edited) > 1:
        say(f"{len(edited)} letters edited.")


def corrected(
    letter: Letter, look: LookAtOrder, *, change: Change, why: str, now: datetime
) -> tuple[Letter, str] | None:
    """The letter that takes the place of one, and the words for the history. Raises ConfigurationError.

    look: at the payment of an order and its calls. The properties stay, but for those that could not be read. None for
    a letter that an edit has made, and this one leaves as it is: the same words may have made it before.
    """
    try:
        return _corrected(letter, look, change=change, why=why, now=now)
    except ConfigurationError as error:
        told = visible(str(error)).replace("\n", "\\n")
        raise ConfigurationError(f"{letter.letter_id}: {told}") from None


def _corrected(
    letter: Letter, look: LookAtOrder, *, change: Change, why: str, now: datetime
) -> tuple[Letter, str] | None:
    body = change.make(letter.body)
    if body == letter.body and not letter.unreadable:
        if letter.edited_from:
            return None
        raise ConfigurationError(UNCHANGED)
    after = _with_body(letter, body, now=now)
    order = order_in(after)
    if isinstance(order, str):
        raise ConfigurationError(f"what it became would be refused: {order}")
    after = replace(after, order_id=order.order_id, amount_minor=order.amount_minor, currency=order.currency)
    changes = money_changes(data_of(letter.body) or {}, data_of(body) or {})
    if changes:
        _require_unlocked(letter, order, look, changes, now=now)
    if changes and not why:
        raise ConfigurationError(f"it changes what is paid ({', '.join(changes)}): say --why")
    money = f"now {order.order_id}, {order.amount} {order.currency}" if changes else ""
    return after, "; ".join(filter(None, (change.told, money, why)))


def money_changes(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[str]:
    """Which of the fields that say what is paid differ in an order's data; 12.1 and "12.10" do not."""
    return [name for name in MONEY if _meant(name, before) != _meant(name, after)]


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
    """Raises ConfigurationError where Stripe may know of the order, under the id that it had or that it gets."""
    told = readable_order_id(data_of(letter.body))
    for order_id in dict.fromkeys(filter(None, (letter.order_id, told, order.order_id))):
        if because := _why_locked(order_id, *look(order_id), now=now):
            raise ConfigurationError(
                f"{' and '.join(changes)} {'is' if len(changes) == 1 else 'are'} locked: {because}; "
                "replay the letter as it is, or discard it"
            )


def _why_locked(
    order_id: str, payment: Payment | None, operations: Sequence[Operation], *, now: datetime
) -> str | None:
    calls = [operation for operation in operations if operation.state is not OperationState.ABSENT]
    if calls:
        call = calls[-1]
        so_far = "" if call.state is OperationState.STARTED else f", {call.state}"
        age = ago(call.first_asked_at, now=now)
        return f"a call for {order_id} may have reached Stripe (started {age} ago{so_far})"
    if payment and payment.is_decided:
        return f"{order_id} is decided ({payment.payment_id or payment.state})"
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
