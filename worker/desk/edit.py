"""`dead-letters edit`: a corrected letter in the place of one, or of each of some; all of them or none.

What a payment was agreed on is locked where a call of it may have reached Stripe, and needs a reason elsewhere.
"""

import argparse
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any, Final

from schemas import AmountError, OrderCreatedData, parse_amount
from schemas.envelope import MAX_BODY_BYTES
from schemas.order_created import readable_order_id
from schemas.strict_json import MAX_DEPTH, JsonError, decode_json
from worker.desk.letters import open_ledger, require_known
from worker.desk.screen import ago, print_json, say, visible
from worker.desk.words import chosen_letters, described, operator, require_narrow
from worker.errors import ConfigurationError
from worker.ledger import letters
from worker.ledger.letters import LookAtOrder
from worker.letter import Letter, LetterState, cause_of, edited_letter_id, group_of
from worker.payment import Operation, OperationState, Payment
from worker.read_order import data_of, order_in
from worker.settings import Settings

# Pairs of ids that a person reads; of more only the number is told.
SHOWN: Final = 20
MONEY: Final = ("order_id", "amount", "currency")
EDITED: Final = "edited: "


@dataclass(frozen=True, slots=True)
class Change:
    """What an edit does to a body, and in words. make: raises ConfigurationError for a body it cannot be done to."""

    make: Callable[[bytes], bytes]
    told: str


async def edit(settings: Settings, arguments: argparse.Namespace) -> None:
    """Correct the chosen letters. Raises ConfigurationError for what must not be, and nothing is done then."""
    chosen, now = chosen_letters(arguments), datetime.now(UTC)
    require_narrow(chosen, has_all=arguments.all)
    change = _change(arguments)
    correct = partial(corrected, change=change, why=(arguments.why or "").strip(), now=now)
    async with open_ledger(settings) as ledger:
        await require_known(ledger, chosen, LetterState.OPEN)
        letter_ids = [letter_id for letter_id, _ in await ledger.run(letters.ids_of, chosen)]
        if arguments.body is not None and len(letter_ids) != 1:
            raise ConfigurationError(
                f"--body is the body of one letter, and {len(letter_ids)} are meant by: {described(chosen)}"
            )
        edited = await ledger.run_long(letters.edit_all, letter_ids, correct=correct, by=operator(), now=now)
    if arguments.json:
        print_json([{"old": old, "new": new} for old, new in edited])
        return
    if len(edited) <= SHOWN:
        for old, new in edited:
            say(f"{old} → {new}")
    if len(edited) > 1:
        say(f"{len(edited)} letters edited.")


def corrected(letter: Letter, look: LookAtOrder, *, change: Change, why: str, now: datetime) -> tuple[Letter, str]:
    """The letter that takes the place of one, and the words for the history. Raises ConfigurationError.

    look: at the payment of an order and its calls. The properties stay, but for those that could not be read.
    """
    try:
        return _corrected(letter, look, change=change, why=why, now=now)
    except ConfigurationError as error:
        told = visible(str(error)).replace("\n", "\\n")
        raise ConfigurationError(f"{letter.letter_id}: {told}; nothing was done") from None


def _corrected(letter: Letter, look: LookAtOrder, *, change: Change, why: str, now: datetime) -> tuple[Letter, str]:
    body = change.make(letter.body)
    if body == letter.body and not letter.unreadable:
        raise ConfigurationError("the edit changes nothing of it")
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


def set_fields(body: bytes, fields: Mapping[tuple[str, ...], Any]) -> bytes:
    """The body with other fields in its order; all else in it stays as it is written, numbers by their digits.

    fields: path → value as read_json gives it, or REMOVED. Where nothing changes, the body itself comes back.
    Raises ConfigurationError.
    """
    try:
        value = read_json(body)
    except JsonError as error:
        raise ConfigurationError(f"its body {error}; give the whole body with --body FILE") from None
    data = value.get("data") if isinstance(value, dict) and "specversion" in value else value
    if not isinstance(data, dict):
        raise ConfigurationError("its body holds no JSON object of order data; give the whole body with --body FILE")
    before = written(value)
    for path, new in fields.items():
        _set(data, path, new)
    after = written(value)
    return body if after == before else after.encode()


@dataclass(frozen=True, slots=True)
class Number:
    """A number of JSON, as it was written."""

    digits: str


REMOVED: Final = object()
_AS_WRITTEN: Final = json.JSONDecoder(parse_float=Number, parse_int=Number)


def read_json(text: bytes) -> Any:
    """As decode_json, but every number is a Number. Raises JsonError."""
    decode_json(text)
    return _AS_WRITTEN.decode(text.decode())


def written(value: Any) -> str:
    """What read_json has read, as JSON. Recursion is bounded by what that takes."""
    if isinstance(value, Number):
        return value.digits
    if isinstance(value, dict):
        return "{" + ",".join(f"{written(name)}:{written(inner)}" for name, inner in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ",".join(map(written, value)) + "]"
    return json.dumps(value, ensure_ascii=False)


def _set(data: dict[str, Any], path: tuple[str, ...], new: Any) -> None:
    *parents, last = path
    for depth, name in enumerate(parents, start=1):
        if name not in data and new is REMOVED:
            return
        inner = data.setdefault(name, {})
        if not isinstance(inner, dict):
            raise ConfigurationError(f"{'.'.join(path[:depth])} is no object, so that it has no {path[depth]}")
        data = inner
    if new is REMOVED:
        data.pop(last, None)
    else:
        data[last] = new


def _change(arguments: argparse.Namespace) -> Change:
    """Raises ConfigurationError for words that make none."""
    if bool(arguments.set) == (arguments.body is not None):
        raise ConfigurationError("say what to change: --set FIELD=VALUE, or --body FILE, and not both")
    if arguments.body is not None:
        new = _read_body(arguments.body)
        return Change(lambda _: new, "a whole body")
    fields = dict(map(_field, arguments.set))
    names = ", ".join(dict.fromkeys(".".join(path) for path in fields))
    return Change(partial(set_fields, fields=fields), f"set {names}")


def _field(text: str) -> tuple[tuple[str, ...], Any]:
    name, sign, value = text.partition("=")
    path = tuple(name.removesuffix(":").split("."))
    if not sign or not all(path) or len(path) > MAX_DEPTH:
        raise ConfigurationError(
            f"--set {text!r}: write FIELD=TEXT, FIELD:=JSON, or FIELD= to take it out; a dot leads into an object"
        )
    try:
        text.encode()
        return path, read_json(value.encode()) if name.endswith(":") else value or REMOVED
    except UnicodeEncodeError:
        raise ConfigurationError(f"--set {text!r}: is not UTF-8 text") from None
    except JsonError as error:
        raise ConfigurationError(f"--set {text!r}: after := comes JSON, and this {error}") from None


def _read_body(name: str) -> bytes:
    try:
        with nullcontext(sys.stdin.buffer) if name == "-" else Path(name).open("rb") as file:
            body = file.read(MAX_BODY_BYTES + 1)
    except OSError as error:
        raise ConfigurationError(f"{name} cannot be read: {error.strerror}") from None
    if len(body) > MAX_BODY_BYTES:
        raise ConfigurationError(f"{name} is larger than {MAX_BODY_BYTES} bytes, which no order is taken of")
    return body


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
