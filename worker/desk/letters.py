"""`dead-letters list, groups, show, history`, and what all commands of the desk share."""

import argparse
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import Final

from schemas import is_command, to_major
from worker.desk.letter_records import (
    act_record,
    full,
    operation_record,
    payment_record,
    record,
    told_act,
    told_moment,
    told_successors,
    told_values,
)
from worker.desk.screen import ago, print_body, print_json, print_pairs, print_table, say
from worker.desk.words import chosen_letters, described
from worker.errors import ConfigurationError
from worker.ledger import letter_figures, letters, replays
from worker.ledger.acts import history
from worker.ledger.edited_letters import successors
from worker.ledger.ledger import Ledger
from worker.ledger.letters import LetterFilter
from worker.ledger.migrate import require_file, require_head
from worker.letter import Letter, LetterState, Verdict, judge, judge_command, judge_masked, told_count, told_value
from worker.payment import Operation, Payment, conflict_with
from worker.read_order import command_in, order_in
from worker.settings import Settings

# Beside a verdict that was passed without the key.
MODE_NOT_CHECKED: Final = (
    "STRIPE_API_KEY is not set: whether the calls were made in the mode of the worker's key was not checked."
)


@asynccontextmanager
async def open_ledger(settings: Settings) -> AsyncIterator[Ledger]:
    """The ledger that the worker writes. Raises LedgerUnavailable; ConfigurationError for none or another version's."""
    async with Ledger(settings.database_url.get_secret_value()) as ledger:
        require_file(ledger.engine)
        require_head(ledger.engine)
        yield ledger


async def show_list(settings: Settings, arguments: argparse.Namespace) -> None:
    """The letters, oldest landing first."""
    chosen, now = chosen_letters(arguments), datetime.now(UTC)
    async with open_ledger(settings) as ledger:
        found = await ledger.run(letters.find_heads, chosen, limit=arguments.limit)
        total = len(found) if len(found) < arguments.limit else await ledger.run(letters.count, chosen)
    if arguments.json:
        print_json([record(letter, now=now) for letter in found])
        return
    if not found:
        say("No such letters.")
        return
    print_table(
        {"id": False, "order": True, "reason": False, "age": False, "value": False, "error": True},
        [
            (
                letter.letter_id,
                letter.order_id or "–",
                letter.reason if letter.state is LetterState.OPEN else f"{letter.reason} ({letter.state})",
                ago(letter.landed_at, now=now),
                told_value(letter.amount_minor, letter.currency) or "–",
                letter.error,
            )
            for letter in found
        ],
    )
    if total > len(found):
        say(f"{len(found)} of {total} shown; see --limit")


async def show_groups(settings: Settings, arguments: argparse.Namespace) -> None:
    """The letters by cause."""
    now = datetime.now(UTC)
    async with open_ledger(settings) as ledger:
        found = await ledger.run(letter_figures.groups, chosen_letters(arguments))
    if arguments.json:
        print_json(
            [
                {
                    "group": group.group_id,
                    "cause": group.cause,
                    "count": group.count,
                    "first": group.first,
                    "last": group.last,
                    "value": {currency: str(to_major(minor, currency)) for currency, minor in group.value.items()},
                }
                for group in found
            ]
        )
        return
    if not found:
        say("No such letters.")
        return
    print_table(
        {"group": False, "count": False, "first": False, "last": False, "value at risk": True, "cause": True},
        [
            (
                group.group_id,
                group.count,
                ago(group.first, now=now),
                ago(group.last, now=now),
                told_values(group.value) or "–",
                group.cause,
            )
            for group in found
        ],
    )


async def show_one(settings: Settings, arguments: argparse.Namespace) -> None:
    """Everything of one letter, the ledger's view of its order beside it, and what a replay would do."""
    now = datetime.now(UTC)
    async with open_ledger(settings) as ledger:
        letter = await ledger.run(letters.read, arguments.id)
        if letter is None:
            raise ConfigurationError(f"no letter {arguments.id}; see dead-letters list --state all")
        payment, operation = await ledger.run(replays.view_of_order, letter.order_id)
        acts = await ledger.run(history, letter_id=letter.letter_id, limit=1000)
        made = await ledger.look(successors, LetterFilter(ids=(letter.letter_id,)))
    verdict = verdict_of(letter, payment, operation, settings=settings, now=now)
    differences = conflict_of(letter, payment)
    if arguments.json:
        print_json(
            record(letter, now=now)
            | full(letter)
            | {
                "verdict": verdict.kind,
                "verdict_because": verdict.why,
                "mode_checked": settings.has_stripe_key,
                "payment": payment_record(payment),
                "operation": operation_record(operation, now=now),
                "conflict": differences,
                "edited_into": [{"id": each.letter_id, "state": each.state} for each in made],
                "acts": [act_record(act) for act in acts],
            }
        )
        return
    print_pairs(
        {
            "letter": f"{letter.letter_id} ({letter.state})",
            "order": letter.order_id or "cannot be read",
            **({"message id": letter.properties.message_id} if letter.properties.message_id else {}),
            "value": told_value(letter.amount_minor, letter.currency) or "cannot be read",
            "reason": letter.reason,
            "error": letter.error,
            "group": letter.group_id,
            "landed": f"{ago(letter.landed_at, now=now)} ago, {letter.landed_at.isoformat()}, "
            f"{told_count(letter.landings, 'time')}",
            **({"edited from": letter.edited_from} if letter.edited_from else {}),
            **({"edited into": told_successors(made)} if made else {}),
            # one that is resolved is not replayed
            **({} if letter.state is LetterState.RESOLVED else {"a replay": f"{verdict.kind}: {verdict.why}"}),
        }
    )
    if not settings.has_stripe_key:
        say(MODE_NOT_CHECKED)
    say()
    if payment:
        print_pairs({f"payment {name}": value for name, value in payment_record(payment).items() if value is not None})
    else:
        say("The ledger has no payment of this order.")
    if operation:
        told = operation_record(operation, now=now)
        print_pairs({f"call {name}": value for name, value in told.items() if value is not None})
    if differences:
        print_table(
            {"field": False, "agreed": True, "in this letter": True},
            [(name, was, now_is) for name, (was, now_is) in differences.items()],
        )
    say()
    for entry in letter.history:
        say(f"landed {entry['at']}: {entry['reason']}: {entry['error']} ({told_count(entry['attempts'], 'attempt')})")
        for failure in entry["failures"]:
            say(f"  earlier: {failure}")
    for act in acts:
        say(told_act(act))
    say()
    say(f"properties: {full(letter)['properties']}")
    print_body(letter.body)


async def show_history(settings: Settings, arguments: argparse.Namespace) -> None:
    """Who did what, when and why."""
    async with open_ledger(settings) as ledger:
        acts = await ledger.run(
            history,
            letter_id=arguments.id,
            order_id=arguments.order,
            since=arguments.since,
            limit=arguments.limit,
        )
    if arguments.json:
        print_json([act_record(act) for act in acts])
        return
    print_table(
        {"when": False, "who": False, "act": False, "of": False, "why": True},
        [
            (
                told_moment(act.at),
                act.by,
                act.act,
                " ".join(filter(None, (act.letter_id, act.replay_id))),
                act.why or "",
            )
            for act in acts
        ],
    )


async def require_known(ledger: Ledger, chosen: LetterFilter, state: LetterState, *, or_edited: bool = False) -> None:
    """Raises ConfigurationError for ids that are unknown or of letters in another state, and where nothing is meant.

    or_edited: letters that an edit has closed are meant too.
    """
    for letter_id in chosen.ids:
        letter = await ledger.run(letters.read, letter_id)
        if letter is None:
            raise ConfigurationError(f"no letter {letter_id}; nothing was done")
        if letter.state is state:
            continue
        made = await ledger.look(successors, LetterFilter(ids=(letter_id,), states=(LetterState.RESOLVED,)))
        if made and or_edited:
            continue
        told = f": it was edited into {told_successors(made)}" if made else ""
        raise ConfigurationError(f"letter {letter_id} is {letter.state}, not {state}{told}; nothing was done")
    if not or_edited and await ledger.run(letters.count, chosen) == 0:
        raise ConfigurationError(f"no {state} letters are meant by: {described(chosen)}")


def verdict_of(
    letter: Letter, payment: Payment | None, operation: Operation | None, *, settings: Settings, now: datetime
) -> Verdict:
    """What a replay of a letter would do with the worker as it is set; see MODE_NOT_CHECKED."""
    if masked := judge_masked(letter):
        return masked
    livemode = settings.livemode if settings.has_stripe_key else None
    if is_command(letter.body, letter.properties):
        return judge_command(command_in(letter), payment, livemode=livemode)
    return judge(
        order_in(letter),
        payment,
        operation,
        livemode=livemode,
        key_horizon_s=settings.stripe_key_horizon,
        now=now,
        imported=letter.imported,
    )


def conflict_of(letter: Letter, payment: Payment | None) -> dict[str, tuple[object, object]]:
    """Where the letter differs from what was agreed first: {field: (agreed, in the letter)}."""
    order = order_in(letter)
    return conflict_with(payment, order) if payment and not isinstance(order, str) else {}
