"""`dead-letters export` and `import`: letters as lines of JSON, out of a ledger and into another."""

import argparse
import pickle
import shutil
import sys
import tempfile
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from itertools import count
from pathlib import Path
from typing import IO, Any, Final

from worker.desk.letter_lines import MOST_LINE_BYTES, letter_of, line_of
from worker.desk.letter_records import told_moment, told_worth
from worker.desk.letters import open_ledger
from worker.desk.screen import say, visible
from worker.desk.words import chosen_letters, operator
from worker.errors import ConfigurationError
from worker.ledger import letter_moves, letters
from worker.ledger.ledger import Ledger
from worker.ledger.letters import LetterFilter
from worker.letter import Letter, told_count
from worker.settings import Settings

PAGE: Final = 200


async def export(settings: Settings, arguments: argparse.Namespace) -> None:
    """The chosen letters to standard output, a line each, oldest landing first, a page at a time.

    A letter comes after the one it was edited from, where both are chosen, whichever landed last.
    """
    chosen = chosen_letters(arguments)
    async with open_ledger(settings) as ledger:
        async for letter in _each(ledger, chosen):
            sys.stdout.write(line_of(letter))


async def take_in(settings: Settings, arguments: argparse.Namespace) -> None:
    """Every letter of a file, in one transaction; the whole file is read for faults before, and only then written.

    What calls were made for them elsewhere is not known here: a replay of one is blocked unless the operator vouches.
    Raises ConfigurationError that names the first faulty line.
    """
    now = datetime.now(UTC)
    where = "standard input" if arguments.file == "-" else arguments.file
    if arguments.vouch and not (arguments.why or "").strip():
        raise ConfigurationError("--vouch says that no call was begun for these orders elsewhere: say --why you know")
    # An interrupt closes the files, and by that ends a transaction that is under way.
    with _opened(arguments.file) as file, tempfile.TemporaryFile() as ready:
        async with open_ledger(settings) as ledger:
            found = _checked(ledger, file, now=now)
            if not await _write_rows(ready, found, imported=not arguments.vouch):
                raise ConfigurationError(f"{where} holds no letters")
            ready.seek(0)
            added, known = await ledger.run_long(
                letter_moves.add_all,
                _read_rows(ready),
                vouched=arguments.vouch,
                by=operator(),
                why=arguments.why or f"from {where}",
                now=now,
            )
    worth = f": {told_worth(added)}" if added.count else ""
    say(f"{told_count(added.count, 'letter')} imported{worth}; {known} {'was' if known == 1 else 'were'} here already.")
    if added.count:
        say(f"Undo: payment-worker dead-letters discard --at {told_moment(now)} --why …")
    if added.count and not arguments.vouch:
        say("A replay of them is blocked where no call is known here: replay them in their own ledger, or see --vouch.")


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


async def _checked(ledger: Ledger, file: IO[bytes], *, now: datetime) -> AsyncIterator[Letter]:
    """The letters of a file, each fit to be kept. Raises ConfigurationError naming the line."""
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
        yield letter


async def _write_rows(file: IO[bytes], found: AsyncIterator[Letter], *, imported: bool) -> int:
    """As they will be kept; returns how many. What takes time is done here, where nobody waits for the ledger."""
    number = 0
    async for letter in found:
        pickle.dump(letters.row_of(replace(letter, imported=imported)), file)
        number += 1
    return number


def _read_rows(file: IO[bytes]) -> Iterator[Mapping[str, Any]]:
    while file.peek(1):  # type: ignore[attr-defined]
        yield pickle.load(file)  # noqa: S301 - a file of ours that has no name


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
    return ConfigurationError(f"line {number}: {visible(what)}; nothing was imported")


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
