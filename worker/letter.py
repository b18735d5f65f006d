"""What a dead letter is in the ledger, how letters are grouped, and what a replay of one would do. Pure."""

import base64
import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Any, Final

from schemas import AmqpProperties, Command, OrderCancelledData, OrderCreatedData, to_major
from worker.payment import Operation, OperationState, Payment, conflict_with, dead_letter_id, intent_params


class LetterState(StrEnum):
    """Where an operator's work on a letter stands. Resolved and discarded are final until somebody undoes them."""

    OPEN = "open"
    REPLAYING = "replaying"  # its message is with the worker
    RESOLVED = "resolved"  # replayed to an outcome, or replaced by an edited one
    DISCARDED = "discarded"


class ItemState(StrEnum):
    """What became of a letter in one replay."""

    WAITING = "waiting"
    SENT = "sent"  # its message is with the worker, or is to be sent again: the outcome is not known yet
    RESOLVED = "resolved"
    FAILED = "failed"  # it is a dead letter again
    BLOCKED = "blocked"  # by its verdict, at the moment of sending
    SKIPPED = "skipped"  # somebody else has taken it, or it has landed again since it was chosen


@dataclass(frozen=True, slots=True)
class Landing:
    """One time that a message became a dead letter.

    landing_id: the same when this one arrival is seen again. at: when it landed, None where the broker landed it.
    failures: what its earlier deliveries failed with, oldest first.
    """

    landing_id: str
    reason: str
    error: str
    attempts: int
    first_seen: datetime | None
    at: datetime | None
    failures: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Letter:
    """A dead letter as kept. amount_minor, currency: the value at risk, where the message tells it.

    size_bytes: of the body, which a list does without.
    history: its landings, oldest first, as JSON objects. landings: how many there were, this ledger's own count.
    imported: from a ledger whose calls to Stripe are not known here, and nobody has vouched that there were none.
    """

    letter_id: str
    state: LetterState
    reason: str
    error: str
    group_id: str
    cause: str
    order_id: str | None
    body: bytes
    properties: AmqpProperties
    attempts: int
    landings: int
    landing_id: str
    landed_at: datetime
    moved_at: datetime
    amount_minor: int | None = None
    currency: str | None = None
    first_seen: datetime | None = None
    edited_from: str | None = None
    size_bytes: int | None = field(default=None, compare=False)
    unreadable: Mapping[str, str] = field(default_factory=dict)
    history: Sequence[Mapping[str, Any]] = ()
    imported: bool = False


_VARYING: Final = re.compile(
    r"""(?<![^\W_])(?:pi|cus|acct|pm|req|dl|ch)_[\w-]+          # ids of Stripe and of ours
      | (?<!\w)'[^']*'(?!\w) | "[^"]*"                         # values as quoted, between no apostrophes
      | (?<![\w-])(?:[^\W\d]|-)*\d[\w-]*(?:[.,:+]\d[\w-]*)*    # numbers, times, words with a digit: ids, hashes""",
    re.VERBOSE,
)


def cause_of(reason: str, error: str) -> str:
    """What letters of one group share: the reason and the error without what varies from order to order."""
    return f"{reason}: {without_varying(error)}"[:200]


def without_varying(text: str) -> str:
    """A sentence without the ids, values and numbers that differ from order to order."""
    return _VARYING.sub("…", text)


def group_of(cause: str) -> str:
    """A short name for the group of a cause."""
    return "g_" + hashlib.sha256(cause.encode()).hexdigest()[:8]


class VerdictKind(StrEnum):
    """What a replay would do to the money."""

    SAFE = "safe"
    LOOK_FIRST = "look first"  # the worker looks for evidence before it creates anything
    NOTHING_TO_DO = "nothing to do"  # the event would be told again
    BLOCKED = "blocked"


@dataclass(frozen=True, slots=True)
class Verdict:
    """why: one sentence for the operator."""

    kind: VerdictKind
    why: str


CARD_DATA: Final = "card_data"
_MASKED: Final = Verdict(
    VerdictKind.BLOCKED,
    "it held card data, which is masked here, so that it is not what was sent; tell its producer, and discard it, or "
    "edit it to what was meant",
)


def judge_masked(letter: Letter) -> Verdict | None:
    """What a replay of a letter that held card data would do, until it is edited; None for any other letter."""
    return _MASKED if letter.reason == CARD_DATA and letter.edited_from is None else None


def judge(
    order: OrderCreatedData | str,
    payment: Payment | None,
    operation: Operation | None,
    *,
    livemode: bool | None,
    key_horizon_s: float,
    now: datetime,
    imported: bool = False,
) -> Verdict:
    """What a replay would do.

    order: as read from the letter, or why it cannot be read. operation: the newest call for that order. livemode: of
    the key that the worker has, None where that is not known here. imported: as in Letter.
    """
    if isinstance(order, str):
        return Verdict(VerdictKind.BLOCKED, f"it would be refused again: {order}; edit it, or discard it")
    if why := _why_blocked(order, payment, operation, livemode=livemode, imported=imported):
        return Verdict(VerdictKind.BLOCKED, why)
    if payment is None:
        return Verdict(VerdictKind.SAFE, "no call was begun")
    if payment.is_decided:
        return Verdict(VerdictKind.NOTHING_TO_DO, f"it is decided: {payment.payment_id or payment.state}; told again")
    return _judge_call(order, operation, key_horizon_s=key_horizon_s, now=now)


def judge_command(command: Command | str, payment: Payment | None, *, livemode: bool | None) -> Verdict:
    """What a replay of a command's letter would do. command: as read from it, or why it cannot be read."""
    if isinstance(command, str):
        return Verdict(VerdictKind.BLOCKED, f"it would be refused again: {command}; discard it, and send a right one")
    if payment is None and isinstance(command, OrderCancelledData):
        return Verdict(VerdictKind.SAFE, "its order is not known: it is remembered until it comes")
    if payment is None:
        return Verdict(VerdictKind.BLOCKED, f"no payment of order {command.order_id} is known")
    if livemode is not None and payment.livemode not in (None, livemode):
        return Verdict(VerdictKind.BLOCKED, "its payment is of Stripe's other mode")
    return Verdict(
        VerdictKind.LOOK_FIRST, "Stripe is asked how the payment stands; what was done under its request id counts"
    )


def _why_blocked(
    order: OrderCreatedData,
    payment: Payment | None,
    operation: Operation | None,
    *,
    livemode: bool | None,
    imported: bool,
) -> str | None:
    if imported and operation is None and not (payment and payment.is_decided):
        return (
            "it was imported, and no call is known here: the ledger it comes from may have begun one; replay it there, "
            "or import it again with --vouch if you know that there was none"
        )
    if payment is None:
        return None
    if conflict := conflict_with(payment, order):
        told = "; ".join(f"{name} was {was}, here {now_is}" for name, (was, now_is) in conflict.items())
        return f"the order id is taken by another agreement: {told}"
    if payment.status == "canceled":
        return (
            f"its payment is canceled ({payment.payment_id or 'before it was asked for'}): nobody can pay it any more"
        )
    modes = {payment.livemode, operation.livemode if operation else None} - {None, livemode}
    if modes and livemode is not None:
        return f"its call was made in {'live' if True in modes else 'test'} mode, and this worker's key is of the other"
    return None


def _judge_call(
    order: OrderCreatedData, operation: Operation | None, *, key_horizon_s: float, now: datetime
) -> Verdict:
    if operation is None:
        return Verdict(VerdictKind.SAFE, "no call was begun")
    if operation.state is OperationState.UNKNOWN:
        return Verdict(VerdictKind.LOOK_FIRST, f"the outcome of its call is unknown ({operation.unknown_because})")
    age, is_absent = now - operation.first_asked_at, operation.state is OperationState.ABSENT
    if age > timedelta(seconds=key_horizon_s) and not is_absent:
        return Verdict(VerdictKind.LOOK_FIRST, f"its key is {_hours(age)} old, past its horizon")
    params = intent_params(order)
    if differing := sorted(
        name for name in params.keys() | operation.params.keys() if params.get(name) != operation.params.get(name)
    ):
        return Verdict(
            VerdictKind.LOOK_FIRST, f"it was first asked with another {', '.join(differing)}, and will be again"
        )
    if is_absent:
        return Verdict(VerdictKind.SAFE, f"attempt {operation.attempt} is proven to have come to nothing")
    return Verdict(VerdictKind.SAFE, f"its key is {_hours(age)} old and still brings the same answer")


def _hours(age: timedelta) -> str:
    hours, minutes = divmod(int(age.total_seconds()) // 60, 60)
    return f"{hours} h {minutes:02} min" if hours else f"{minutes} min"


def told_value(amount_minor: int | None, currency: str | None) -> str | None:
    """As a person reads it: "12.50 USD"."""
    if amount_minor is None or currency is None:
        return None
    return f"{to_major(amount_minor, currency)} {currency.upper()}"


def told_count(number: int, what: str) -> str:
    """ "1 letter", "2 letters"."""
    return f"{number} {what}" if number == 1 else f"{number} {what}s"


def edited_letter_id(letter: Letter, body: bytes) -> str:
    """The id of the letter that an edit makes of another: the same edit of the same letter is the same letter."""
    return dead_letter_id(body, {"edited_from": letter.letter_id, "landings": letter.landings})


def properties_to_json(properties: AmqpProperties) -> str:
    """The AMQP properties as text; times, bytes and the like in headers are marked, so that they come back as such."""
    told = {each.name: _to_json(getattr(properties, each.name)) for each in fields(properties)}
    return json.dumps(told, separators=(",", ":"))


def properties_from_json(text: str) -> AmqpProperties:
    """Raises ValueError for what properties_to_json does not write."""
    try:
        return AmqpProperties(**{name: _from_json(each) for name, each in json.loads(text).items()})
    except (TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"properties: {error}") from None


_TIME, _BYTES, _TABLE = "$time", "$bytes", "$table"


def _to_json(value: Any) -> Any:
    if isinstance(value, Mapping):
        table = {str(name): _to_json(inner) for name, inner in value.items()}
        return {_TABLE: table} if len(table) == 1 and table.keys() <= {_TIME, _BYTES, _TABLE} else table
    if isinstance(value, list | tuple):
        return [_to_json(inner) for inner in value]
    if isinstance(value, datetime):
        return {_TIME: value.isoformat()}
    if isinstance(value, bytes | bytearray):
        return {_BYTES: base64.b64encode(value).decode()}
    return value if value is None or isinstance(value, str | bool | int | float) else str(value)


def _from_json(value: Any) -> Any:
    if isinstance(value, list):
        return [_from_json(inner) for inner in value]
    if not isinstance(value, dict):
        return value
    if value.keys() == {_TIME}:
        return datetime.fromisoformat(value[_TIME])
    if value.keys() == {_BYTES}:
        return base64.b64decode(value[_BYTES], validate=True)
    if value.keys() == {_TABLE}:  # a producer's own, that looks like one of ours
        value = value[_TABLE]
    return {name: _from_json(inner) for name, inner in value.items()}
