"""`dead-letters discard` and `restore`: letters closed for a reason, and open again."""

import argparse
from datetime import UTC, datetime

from worker.desk.letter_records import told_moment, told_worth
from worker.desk.letters import open_ledger, require_known
from worker.desk.screen import say
from worker.desk.words import chosen_letters, described, operator, require_narrow
from worker.errors import ConfigurationError
from worker.ledger import letter_moves
from worker.ledger.letter_figures import Worth
from worker.letter import LetterState, told_count
from worker.settings import Settings


async def discard(settings: Settings, arguments: argparse.Namespace) -> None:
    """Close open letters for a reason, all of them or none."""
    chosen, now = chosen_letters(arguments), datetime.now(UTC)
    require_narrow(chosen, has_all=arguments.all)
    async with open_ledger(settings) as ledger:
        await require_known(ledger, chosen, LetterState.OPEN)
        moved = await ledger.run_long(letter_moves.discard, chosen, by=operator(), why=arguments.why, now=now)
    say(_told(moved, "discarded", described(chosen)))
    say(f"Undo: payment-worker dead-letters restore --at {told_moment(now)}")


async def restore(settings: Settings, arguments: argparse.Namespace) -> None:
    """Open discarded letters again, or put edited ones back in their places, all of them or none."""
    chosen, now = chosen_letters(arguments, default=LetterState.DISCARDED), datetime.now(UTC)
    require_narrow(chosen, has_all=arguments.all)
    async with open_ledger(settings) as ledger:
        await require_known(ledger, chosen, LetterState.DISCARDED, or_edited=True)
        try:
            done = await ledger.run_long(letter_moves.restore, chosen, by=operator(), why=arguments.why, now=now)
        except ConfigurationError as error:
            raise ConfigurationError(f"{error}; nothing was done") from None
    undone = f"{told_count(done.left, 'letter')} left discarded: made by an edit that was undone; say that edit again"
    if not done.discarded.count and not done.edited.count:
        meant = undone if done.left else "no discarded letters are meant"
        raise ConfigurationError(f"{meant} (by: {described(chosen)}); nothing was done")
    if done.discarded.count:
        say(_told(done.discarded, "restored", described(chosen)))
        say(f"Undo: payment-worker dead-letters discard --at {told_moment(now)} --why …")
    if done.edited.count:
        say(_told(done.edited, "back as before the edit", described(chosen)))
        say("What they were edited into is discarded. To have that again, say the same edit again.")
    if done.left:
        say(f"{undone}.")


def _told(moved: Worth, what: str, selection: str) -> str:
    return f"{told_count(moved.count, 'letter')} {what} ({selection}): {told_worth(moved)}."
