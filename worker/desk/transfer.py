"""`dead-letters export` and `import`: letters as JSON lines, exactly as the ledger keeps them.

Body and properties are text in a line: a tool that rewrites JSON, numbers and all, leaves them as they are.
"""

import argparse
import base64
import hashlib
import json
import shutil
import sys
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import fields, replace
from datetime import UTC, datetime
from itertools import count
from pathlib import Path
from typing import IO, Annotated, Any, Final, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    model_validator,
)

from schemas import AmqpProperties, MessageError
from schemas.envelope import FieldError
from schemas.money import CURRENCIES
from worker.bus.outgoing import masked_properties
from worker.card_numbers import mask_cards
from worker.desk.letters import open_ledger
from worker.desk.screen import say, visible
from worker.desk.words import chosen_letters, operator
from worker.errors import ConfigurationError
from worker.ledger import letters
from worker.ledger.ledger import Ledger
from worker.ledger.letters import LetterFilter
from worker.letter import Letter, LetterState, cause_of, group_of, properties_from_json, properties_to_json
from worker.settings import Settings

PAGE: Final = 200
# RabbitMQ takes no larger message by default since 4.0; one control character is six in JSON.
MOST_BODY_BYTES: Final = 16 * 1024 * 1024
MOST_LINE_BYTES: Final = 8 * MOST_BODY_BYTES


def _keepable(value: str) -> str:
    if "\x00" in value:
        raise ValueError("has a NUL character, which no ledger can keep")
    return value


def _time(value: object) -> datetime:
    try:
        moment = datetime.fromisoformat(value) if isinstance(value, str) else None
        if moment and moment.tzinfo:
            return moment.astimezone(UTC)
    except (ValueError, OverflowError):
        pass
    raise ValueError("is no ISO 8601 time with its zone, such as 2026-01-31T12:00:00+00:00")


def _known_currency(value: str) -> str:
    if value.upper() not in CURRENCIES or value != value.lower():
        raise ValueError("is not a currency as the ledger keeps it, such as 'usd'")
    return value


def _time_text(value: str) -> str:
    _time(value)
    return value


LetterId = Annotated[str, Field(pattern=r"^dl_[A-Za-z0-9_.:-]{1,37}$")]
Time = Annotated[datetime, BeforeValidator(_time)]
TimeText = Annotated[str, AfterValidator(_time_text)]
Count = Annotated[int, Field(ge=0, lt=2**31)]
_KEPT: Final = AfterValidator(_keepable)


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class _Entry(_Part):
    """A landing, in the order and the types in which letters.land writes it: what the desk shows, it relies on."""

    landing_id: str
    reason: str
    error: str
    attempts: Count
    first_seen: TimeText | None
    at: TimeText
    failures: list[str]


class _Line(_Part):
    """A letter as export writes it; the bounds are those of the ledger's columns."""

    id: LetterId
    state: LetterState
    reason: Annotated[str, Field(max_length=60), _KEPT]
    error: Annotated[str, _KEPT]
    order_id: Annotated[str, Field(max_length=64), _KEPT] | None
    amount_minor: Annotated[int, Field(ge=-(2**63), lt=2**63)] | None
    currency: Annotated[str, AfterValidator(_known_currency)] | None
    attempts: Count
    landings: Annotated[Count, Field(ge=1)]
    landing_id: Annotated[str, Field(max_length=255), _KEPT]
    first_seen: Time | None
    landed_at: Time
    edited_from: LetterId | None
    properties: str
    unreadable: dict[str, Any]
    history: list[_Entry]
    body: str | None = None
    body_base64: str | None = None
    sha256: str

    @model_validator(mode="after")
    def _fields_agree(self) -> Self:
        if (self.body is None) == (self.body_base64 is None):
            raise FieldError("body", "give it, or body_base64 in its place")
        if (self.amount_minor is None) != (self.currency is None):
            raise FieldError("amount_minor", "give it and currency, or null for both")
        return self


async def export(settings: Settings, arguments: argparse.Namespace) -> None:
    """The chosen letters to standard output, a line each, oldest landing first, a page at a time.

    A letter comes after the one it was edited from, where both are chosen, whichever landed last.
    """
    chosen = chosen_letters(arguments)
    async with open_ledger(settings) as ledger:
        async for letter in _each(ledger, chosen):
            sys.stdout.write(line_of(letter))


async def take_in(settings: Settings, arguments: argparse.Namespace) -> None:
    """Every letter of a file, in one transaction; the whole file is read for faults before.

    Raises ConfigurationError that names the first faulty line.
    """
    now = datetime.now(UTC)
    where = "standard input" if arguments.file == "-" else arguments.file
    # An interrupt closes the file, and by that ends a transaction that is under way.
    with _opened(arguments.file) as file:
        async with open_ledger(settings) as ledger:
            if not await _check(ledger, file, now=now):
                raise ConfigurationError(f"{where} holds no letters")
            file.seek(0)
            found = (letter for _, letter in _letters_of(file, now=now))
            why = arguments.why or f"from {where}"
            added, known = await ledger.run_long(letters.add_all, found, by=operator(), why=why, now=now)
    say(f"{added} letters imported, {known} were here already.")


async def _each(ledger: Ledger, chosen: LetterFilter) -> AsyncIterator[Letter]:
    """Each letter once: one that lands again meanwhile would come a second time."""
    written: set[str] = set()
    after = None
    while page := await ledger.run(letters.find_some, chosen, limit=PAGE, after=after):
        for letter in page:
            for each in await _lineage(ledger, letter, chosen, written):
                if each.letter_id not in written:
                    written.add(each.letter_id)
                    yield each
        after = page[-1].landed_at, page[-1].letter_id


async def _lineage(ledger: Ledger, letter: Letter, chosen: LetterFilter, written: set[str]) -> list[Letter]:
    """A letter, and before it those that it was edited from, as far as they are chosen and still to be written."""
    line = [letter]
    while line[0].edited_from and line[0].edited_from not in written:
        found = await ledger.run(letters.find, replace(chosen, ids=(line[0].edited_from,)), limit=1)
        if not found:
            break
        line.insert(0, found[0])
    return line


def line_of(letter: Letter) -> str:
    """A letter as a line of JSON in ASCII: {"id", "state", …, "body" or "body_base64", "sha256"}."""
    properties = properties_to_json(letter.properties)
    return (
        json.dumps(
            {
                "id": letter.letter_id,
                "state": letter.state,
                "reason": letter.reason,
                "error": letter.error,
                "order_id": letter.order_id,
                "amount_minor": letter.amount_minor,
                "currency": letter.currency,
                "attempts": letter.attempts,
                "landings": letter.landings,
                "landing_id": letter.landing_id,
                "first_seen": letter.first_seen.isoformat() if letter.first_seen else None,
                "landed_at": letter.landed_at.isoformat(),
                "edited_from": letter.edited_from,
                "properties": properties,
                "unreadable": dict(letter.unreadable),
                "history": [dict(entry) for entry in letter.history],
                **_body_to_json(letter.body),
                "sha256": _sha256(letter.body, properties),
            }
        )
        + "\n"
    )


def letter_of(line: bytes, *, now: datetime) -> Letter:
    """The letter of a line. Raises ValueError that says what is wrong with it, and what to do."""
    try:
        read = _Line.model_validate_json(line, strict=True)
    except ValidationError as error:
        fault = error.errors(include_input=False, include_url=False)[0]
        if fault["type"] in ("json_invalid", "model_type"):
            raise ValueError(f"{fault['msg']}; a line holds one letter as export writes it") from None
        raise MessageError.of(error) from None
    body, properties = _body_in(read), _properties_in(read.properties)
    if read.sha256 != _sha256(body, read.properties):
        raise ValueError(
            "the body differs from its sha256, or the properties do: it was edited by hand; import the original and "
            "use `dead-letters edit`"
        )
    if mask_cards(body) is not body or masked_properties(properties) != properties:
        raise ValueError("it holds card numbers, which no ledger keeps; export wrote them masked")
    cause = cause_of(read.reason, read.error)
    return Letter(
        letter_id=read.id,
        # A replay of it would be another ledger's.
        state=LetterState.OPEN if read.state is LetterState.REPLAYING else read.state,
        reason=read.reason,
        error=read.error,
        group_id=group_of(cause),
        cause=cause,
        order_id=read.order_id,
        body=body,
        properties=properties,
        attempts=read.attempts,
        landings=read.landings,
        landing_id=read.landing_id,
        landed_at=read.landed_at,
        moved_at=now,
        amount_minor=read.amount_minor,
        currency=read.currency,
        first_seen=read.first_seen,
        edited_from=read.edited_from,
        unreadable=read.unreadable,
        history=[entry.model_dump() for entry in read.history],
    )


async def _check(ledger: Ledger, file: IO[bytes], *, now: datetime) -> int:
    """How many letters there are, all of them fit to be kept. Raises ConfigurationError naming the line."""
    seen: set[str] = set()
    for number, letter in _letters_of(file, now=now):
        origin = letter.edited_from
        if letter.letter_id in seen:
            raise _fault(number, f"letter {letter.letter_id} is on an earlier line too; leave one of them out")
        if origin and origin not in seen and not await ledger.run(letters.count, LetterFilter(ids=(origin,))):
            raise _fault(
                number,
                f"it was edited from {origin}, which is neither in this ledger nor on an earlier line: "
                "import that letter too (export it with --state all)",
            )
        seen.add(letter.letter_id)
    return len(seen)


def _letters_of(file: IO[bytes], *, now: datetime) -> Iterator[tuple[int, Letter]]:
    """The letters with their lines' numbers; empty lines are passed over. Raises ConfigurationError."""
    for number in count(1):
        line = file.readline(MOST_LINE_BYTES + 1)
        if not line:
            return
        if len(line) > MOST_LINE_BYTES:
            raise _fault(number, f"it is longer than {MOST_LINE_BYTES} bytes; no letter is")
        if not line.strip():
            continue
        try:
            letter = letter_of(line, now=now)
        except ValueError as error:
            raise _fault(number, str(error)) from None
        yield number, letter


def _fault(number: int, what: str) -> ConfigurationError:
    told = visible(what).replace("\n", "\\n")
    return ConfigurationError(f"line {number}: {told}; nothing was imported")


@contextmanager
def _opened(name: str) -> Iterator[IO[bytes]]:
    """A file that can be read twice: what cannot is copied first. Raises ConfigurationError."""
    with ExitStack() as stack:
        try:
            file = sys.stdin.buffer if name == "-" else stack.enter_context(Path(name).open("rb"))
            if name == "-" or not file.seekable():
                source, file = file, stack.enter_context(tempfile.TemporaryFile())
                shutil.copyfileobj(source, file)
                file.seek(0)
        except OSError as error:
            raise ConfigurationError(f"{name} cannot be read: {error.strerror}") from None
        yield file


def _body_to_json(body: bytes) -> dict[str, str]:
    try:
        return {"body": body.decode()}
    except UnicodeDecodeError:
        return {"body_base64": base64.b64encode(body).decode()}


def _sha256(body: bytes, properties: str) -> str:
    """Of both, the body's length before it, so that nothing can pass from one to the other."""
    digest = hashlib.sha256(len(body).to_bytes(8))
    digest.update(body)
    digest.update(properties.encode("utf-8", "surrogatepass"))
    return digest.hexdigest()


def _body_in(read: "_Line") -> bytes:
    try:
        body = base64.b64decode(read.body_base64 or "", validate=True) if read.body is None else read.body.encode()
    except ValueError:
        raise ValueError("body_base64: is not base64") from None
    if len(body) > MOST_BODY_BYTES:
        raise ValueError(f"the body has {len(body)} bytes; at most {MOST_BODY_BYTES} are taken")
    return body


def _properties_in(text: str) -> AmqpProperties:
    try:
        properties = properties_from_json(text)
    except (ValueError, RecursionError):
        raise ValueError("properties: cannot be read; give them as export wrote them") from None
    *texts, stamp, headers = (getattr(properties, each.name) for each in fields(properties))
    is_well = (
        all(each is None or isinstance(each, str) for each in texts)
        and (stamp is None or (isinstance(stamp, datetime) and stamp.tzinfo is not None))
        and isinstance(headers, dict)
    )
    if not is_well or properties_to_json(properties) != text:
        raise ValueError("properties: are not as export writes them")
    return properties
