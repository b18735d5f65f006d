"""`dead-letters replay`: letters back to the worker, a few at first, and the report of what became of them.

What a kill leaves behind: a frozen selection, letters taken and perhaps not published. `--resume` publishes those
again, which is harmless: the worker tells a decided order a second time under the same event id.
"""

import argparse
import asyncio
import contextlib
import secrets
import signal
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import Final

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from worker.app import bus_names
from worker.bus.outgoing import Outgoing
from worker.bus.publisher import Publisher
from worker.desk.letter_records import told_worth
from worker.desk.letters import MODE_NOT_CHECKED, open_ledger, require_known, verdict_of
from worker.desk.replayer import Limits, Replayer
from worker.desk.screen import print_json, print_table, say
from worker.desk.words import chosen_letters, described, operator, require_narrow
from worker.errors import ConfigurationError
from worker.ledger import letters, replays
from worker.ledger.ledger import Ledger
from worker.ledger.letter_figures import Worth
from worker.ledger.replays import LANDED_AGAIN, Replay
from worker.letter import ItemState, Letter, LetterState, Verdict, VerdictKind, told_count, without_varying
from worker.payment import Operation, Payment
from worker.settings import Settings

PAGE: Final = 500
SHOWN: Final = 200
# Reasons that a person reads of letters that were not replayed to an outcome; --json has all.
TOP_REASONS: Final = 5
TOLD_WITH_REASON: Final = (ItemState.FAILED, ItemState.BLOCKED, ItemState.SKIPPED)

Reasons = Mapping[ItemState, Mapping[str, int]]


async def replay(settings: Settings, arguments: argparse.Namespace) -> int:
    """Replay the chosen letters, resume a replay, or say what it would do."""
    if arguments.dry_run:
        return await _dry_run(settings, arguments)
    if not settings.has_broker:
        raise ConfigurationError("AMQP_URL is not set: a replay goes to the worker's queue")
    async with open_ledger(settings) as ledger:
        replay_id = await _chosen_replay(ledger, arguments)
        names = bus_names(settings)
        async with Publisher(settings.amqp_url.get_secret_value(), names) as publisher:
            with _stop_on_signals() as stop, _progress() as tell:
                replayer = Replayer(
                    ledger=ledger,
                    outgoing=Outgoing(publisher, names),
                    judge=_judge(settings),
                    limits=Limits(
                        per_second=arguments.share * settings.stripe_rate_limit,
                        stop_at=arguments.stop_at,
                        patience_s=arguments.patience,
                    ),
                    by=operator(),
                    stop=stop,
                    tell=tell,
                )
                ended = await replayer.run(replay_id)
        reasons = {state: await ledger.look(replays.reasons, replay_id, state) for state in TOLD_WITH_REASON}
        worths = await ledger.look(replays.worths, replay_id)
    return _report(ended, reasons, worths, mode_checked=settings.has_stripe_key, as_json=arguments.json)


async def _chosen_replay(ledger: Ledger, arguments: argparse.Namespace) -> str:
    """The replay to go on with, or a new one whose selection is frozen here."""
    chosen, now = chosen_letters(arguments), datetime.now(UTC)
    if arguments.resume:
        if not chosen.is_everything or arguments.all:
            raise ConfigurationError("--resume goes on with what was chosen then: choose nothing beside it")
        return await _unfinished_replay(ledger, arguments.resume)
    require_narrow(chosen, has_all=arguments.all)
    await require_known(ledger, chosen, LetterState.OPEN)
    replay_id = f"rp_{secrets.token_hex(4)}"
    await ledger.run_long(replays.make_replay, replay_id, chosen, by=operator(), selection=described(chosen), now=now)
    return replay_id


async def _unfinished_replay(ledger: Ledger, wanted: str) -> str:
    unfinished = await ledger.run(replays.unfinished)
    if wanted == "last" and unfinished:
        return unfinished[-1]
    if wanted in unfinished:
        return wanted
    if not unfinished:
        raise ConfigurationError("no replay is interrupted")
    raise ConfigurationError(f"no replay {wanted} that could go on; interrupted are: {', '.join(unfinished)}")


async def _dry_run(settings: Settings, arguments: argparse.Namespace) -> int:
    chosen, judge, judged = chosen_letters(arguments), _judge(settings), list[tuple[Letter, Verdict]]()
    require_narrow(chosen, has_all=arguments.all)
    async with open_ledger(settings) as ledger:
        await require_known(ledger, chosen, LetterState.OPEN)
        after = None
        while page := await ledger.look(letters.find_some, chosen, limit=PAGE, after=after):
            after = (page[-1].landed_at, page[-1].letter_id)
            for letter in page:
                payment, operation = await ledger.look(replays.view_of_order, letter.order_id)
                judged.append((letter, judge(letter, payment, operation)))
    if arguments.json:
        print_json(
            [
                {
                    "id": letter.letter_id,
                    "order_id": letter.order_id,
                    "verdict": verdict.kind,
                    "why": verdict.why,
                    "mode_checked": settings.has_stripe_key,
                }
                for letter, verdict in judged
            ]
        )
        return 0
    rows = [(letter.letter_id, letter.order_id or "–", verdict.kind, verdict.why) for letter, verdict in judged[:SHOWN]]
    print_table({"id": False, "order": True, "a replay": False, "because": True}, rows)
    if len(judged) > SHOWN:
        say(f"{SHOWN} of {len(judged)} shown; --json has all")
    say("; ".join(_told_kinds(judged)) + ". Nothing was touched.")
    if not settings.has_stripe_key:
        say(MODE_NOT_CHECKED)
    return 0


def _told_kinds(judged: Sequence[tuple[Letter, Verdict]]) -> Iterator[str]:
    """ "3 safe (37.50 USD)"."""
    for kind in VerdictKind:
        worth = Worth.of((letter.amount_minor, letter.currency) for letter, verdict in judged if verdict.kind is kind)
        if worth.count:
            yield f"{worth.count} {kind} ({told_worth(worth)})"


def _judge(settings: Settings) -> replays.Judge:
    def judge(letter: Letter, payment: Payment | None, operation: Operation | None) -> Verdict:
        return verdict_of(letter, payment, operation, settings=settings, now=datetime.now(UTC))

    return judge


def _report(
    replay: Replay, reasons: Reasons, worths: Mapping[ItemState, Worth], *, mode_checked: bool, as_json: bool
) -> int:
    """What became of it. 0 where it is done, and every letter is resolved or was dealt with by somebody else.

    reasons: how many letters were not replayed to an outcome, by the reason.
    """
    counts = {str(state): number for state in ItemState if (number := replay.counts.get(state, 0))}
    if as_json:
        print_json(
            {
                "replay_id": replay.replay_id,
                "selection": replay.selection,
                "by": replay.by,
                "made_at": replay.made_at,
                "ended_because": replay.ended_because,
                "letters": counts,
                **{str(state): reasons[state] for state in TOLD_WITH_REASON},
                "mode_checked": mode_checked,
            }
        )
    else:
        say(f"{replay.replay_id}: {replay.ended_because or 'interrupted'} ({replay.selection})")
        rows = [(worths[state].count, state, told_worth(worths[state])) for state in ItemState if state in worths]
        print_table({"letters": False, "what": False, "value": True}, rows)
        for line in _told_reasons(reasons):
            say(line)
        if not mode_checked:
            say(MODE_NOT_CHECKED)
        if reasons[ItemState.BLOCKED]:
            say("Those that are blocked stay open: edit them where `show` says so, or discard them.")
        if LANDED_AGAIN in reasons[ItemState.SKIPPED]:
            say("Look at those that have landed again, and replay them anew.")
        if replay.ended_because is None:
            if replay.counts.get(ItemState.SENT, 0):
                say("Some are with the worker and have no outcome yet: is one running? See payment-worker status.")
            say(f"Go on with: payment-worker dead-letters replay --resume {replay.replay_id}")
    is_done = replay.ended_because == "done"
    is_left = LANDED_AGAIN in reasons[ItemState.SKIPPED] or replay.counts.keys() & {ItemState.FAILED, ItemState.BLOCKED}
    return 0 if is_done and not is_left else 1


def _told_reasons(reasons: Reasons) -> Iterator[str]:
    """ "3 blocked: why", the most frequent first; reasons that differ in nothing but an order's own values are one."""
    for state, told in reasons.items():
        alike: dict[str, list[str]] = {}
        for why in told:
            alike.setdefault(without_varying(why), []).append(why)
        counts = Counter(
            {whys[0] if len(whys) == 1 else key: sum(map(told.__getitem__, whys)) for key, whys in alike.items()}
        )
        for why, number in counts.most_common(TOP_REASONS):
            yield f"{number} {state}: {why}"
        if others := sum(counts.values()) - sum(number for _, number in counts.most_common(TOP_REASONS)):
            yield f"{told_count(others, 'other')} {state}; see --json, or dead-letters show of one"


@contextlib.contextmanager
def _stop_on_signals() -> Iterator[asyncio.Event]:
    """SIGINT and SIGTERM end it after the letter in hand; what was taken is published first."""
    stop, loop = asyncio.Event(), asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop.set)
    try:
        yield stop
    finally:
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.remove_signal_handler(number)


@contextlib.contextmanager
def _progress() -> Iterator[Callable[[Replay], None]]:
    """A bar on a terminal, nothing elsewhere."""
    if not sys.stderr.isatty():
        yield lambda _: None
        return
    columns = (TextColumn("replaying"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("replay", total=None)

        def tell(replay: Replay) -> None:
            waiting = replay.counts.get(ItemState.WAITING, 0) + replay.counts.get(ItemState.SENT, 0)
            bar.update(task, total=replay.total, completed=replay.total - waiting)

        yield tell
