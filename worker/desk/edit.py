"""`dead-letters edit`: a corrected letter in the place of one, or of each of some.

None is touched where one of them must not be; a letter and its correction change places in one transaction, and many
letters in many: see edit. What is corrected, and what forbids it, is in correct_letter.py.
"""

import argparse
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from operator import attrgetter
from typing import Final

from worker.desk.change_body import Change, change_of
from worker.desk.correct_letter import corrected
from worker.desk.edit_plan import Planned, plan, print_plan, print_summary, record, refuse_shared
from worker.desk.letter_records import told_moment
from worker.desk.letters import open_ledger, require_known
from worker.desk.screen import print_json, say
from worker.desk.words import chosen_letters, described, operator, require_narrow
from worker.errors import ConfigurationError, LedgerUnavailable, StaleMove, WorkerError
from worker.ledger import letter_moves, letters
from worker.ledger.ledger import Ledger
from worker.ledger.letter_moves import Correct, LookAtOrder
from worker.ledger.letters import LetterFilter
from worker.letter import Letter, LetterState, edited_letter_id, told_count
from worker.settings import Settings

# Letters of one transaction.
CHUNK: Final = 200
# Pairs of ids that a person reads; of more only the number is told.
SHOWN: Final = 20


async def edit(settings: Settings, arguments: argparse.Namespace) -> int:
    """Correct the chosen letters, or say what that would do. Raises ConfigurationError for what must not be.

    All are looked at before the first is written. Then they are written a chunk at a time, in transactions that look
    again and are short: a worker on the same ledger waits for none of them long. Where that ends early, it raises
    StaleMove or LedgerUnavailable that says how many were edited before; the same words again go on with the rest.
    A dry run returns 1 where the edit would be refused.
    """
    chosen, now = chosen_letters(arguments), datetime.now(UTC)
    require_narrow(chosen, has_all=arguments.all)
    change, why = change_of(arguments), (arguments.why or "").strip()
    correct = partial(corrected, change=change, why=None if arguments.dry_run else why, now=now)
    async with open_ledger(settings) as ledger:
        chosen = await _without_done(ledger, chosen, change)
        await require_known(ledger, chosen, LetterState.OPEN)
        letter_ids = [letter_id for letter_id, _ in await ledger.look(letters.ids_of, chosen)]
        if change.of_one and len(letter_ids) != 1:
            raise ConfigurationError(
                f"{change.of_one} is for one letter: two would be one order after it; "
                f"{len(letter_ids)} are meant by: {described(chosen)}; nothing was done"
            )
        planned = await _plan(ledger, letter_ids, correct)
        if arguments.dry_run:
            return _tell_plan(planned, has_why=bool(why), as_json=arguments.json)
        _require_allowed(planned)
        edited, end = await _write(ledger, [each for each in planned if each.after], correct, now=now)
        done = {old for old, _ in edited}
        made = [each for each in planned if each.before.letter_id in done]
        selection = await _selection(ledger, made, now=now)
    _report(made, selection, as_json=arguments.json, now=now)
    if end:
        raise end
    return 0


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


async def _plan(ledger: Ledger, letter_ids: Sequence[str], correct: Correct) -> list[Planned]:
    """What the edit makes of each. Raises StaleMove."""
    found: list[Planned] = []
    try:
        for start in range(0, len(letter_ids), CHUNK):
            some = letter_ids[start : start + CHUNK]
            found += await ledger.look(letter_moves.check_edits, some, plan=partial(plan, correct=correct))
    except StaleMove as error:
        raise StaleMove(f"{error}; nothing was done") from None
    return refuse_shared(found)


def _require_allowed(planned: Sequence[Planned]) -> None:
    """Raises ConfigurationError where one of them must not be edited, or none would be."""
    refused = [each for each in planned if each.refused]
    if refused:
        more = f"; {told_count(len(refused) - 1, 'other')} would be refused too, see --dry-run" if refused[1:] else ""
        raise ConfigurationError(f"{refused[0].before.letter_id}: {refused[0].refused}{more}; nothing was done")
    if not any(each.after for each in planned):
        raise ConfigurationError(f"{planned[0].before.letter_id}: the edit changes nothing of it; nothing was done")


def _tell_plan(planned: Sequence[Planned], *, has_why: bool, as_json: bool) -> int:
    """A dry run's report, and its exit code."""
    if as_json:
        print_json([record(each) for each in planned])
    else:
        print_plan(planned)
        if not has_why and any(each.money for each in planned):
            say("It changes what is paid: the edit itself wants a reason, --why.")
        say("Nothing was touched.")
    return 1 if any(each.refused for each in planned) else 0


async def _write(
    ledger: Ledger, to_edit: Sequence[Planned], correct: Correct, *, now: datetime
) -> tuple[list[tuple[str, str]], WorkerError | None]:
    """Old and new ids of those that were edited, and what ended it before all were."""
    edited: list[tuple[str, str]] = []
    named = partial(_named, correct=correct)
    try:
        for some in letter_moves.batches(to_edit, most=CHUNK, size_of=attrgetter("size_bytes")):
            if edited:
                await ledger.give_way()
            ids = [each.before.letter_id for each in some]
            edited += await ledger.run(letter_moves.edit_all, ids, correct=named, by=operator(), now=now)
    except (ConfigurationError, StaleMove, LedgerUnavailable) as error:
        if not edited and not isinstance(error, LedgerUnavailable):
            raise type(error)(f"{error}; nothing was done") from None
        kind = LedgerUnavailable if isinstance(error, LedgerUnavailable) else StaleMove
        told = f"{len(edited)} of {told_count(len(to_edit), 'letter')} were edited before"
        return edited, kind(f"{error}; {told}: say the same again to go on with the rest")
    return edited, None


def _named(letter: Letter, look: LookAtOrder, *, correct: Correct) -> tuple[Letter, str] | None:
    """As correct, but a refusal names the letter."""
    try:
        return correct(letter, look)
    except ConfigurationError as error:
        raise ConfigurationError(f"{letter.letter_id}: {error}") from None


async def _selection(ledger: Ledger, made: Sequence[Planned], *, now: datetime) -> str:
    """Words that choose just the letters that were made: their group, or else the moment at which they were."""
    groups = sorted({each.after.group_id for each in made if each.after})
    group_id = groups[0] if len(groups) == 1 else None
    number = await ledger.look(letters.count, LetterFilter(states=(LetterState.OPEN,), group_id=group_id))
    return f"--group {group_id}" if group_id and number == len(made) else f"--at {told_moment(now)}"


def _report(made: Sequence[Planned], selection: str, *, as_json: bool, now: datetime) -> None:
    pairs = [(each.before.letter_id, each.after) for each in made if each.after]
    if as_json:
        print_json([{"old": old, "new": new.letter_id, "group": new.group_id} for old, new in pairs])
        return
    if not pairs:
        return
    if len(pairs) <= SHOWN:
        for old, new in pairs:
            say(f"{old} → {new.letter_id}")
        say()
    print_summary(made)
    say("See what a replay would do, then replay:")
    say(f"  payment-worker dead-letters replay {selection} --dry-run")
    say(f"  payment-worker dead-letters replay {selection}")
    say("Undo, as long as none of them was replayed:")
    say(f"  payment-worker dead-letters restore --at {told_moment(now)}")
