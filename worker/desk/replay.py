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
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from worker.app import bus_names
from worker.bus.outgoing import Outgoing
from worker.bus.publisher import Publisher
from worker.desk.letters import open_ledger, require_known, verdict_of
from worker.desk.screen import print_json, print_table, say
from worker.desk.words import chosen_letters, described, operator, require_narrow
from worker.errors import ConfigurationError
from worker.ledger import letters, replays
from worker.ledger.ledger import Ledger
from worker.ledger.replays import Replay
from worker.letter import ItemState, Letter, LetterState, Verdict, VerdictKind
from worker.payment import Operation, Payment
from worker.settings import Settings

# The first ones show whether the cause is gone; only then many go.
RAMP: Final = (1, 2, 5, 20, 50, 100, 200)
LOOK_S: Final = 0.1
# For what an interrupted replay left with the worker to come to its outcome, before it is published again.
RESUME_WAIT_S: Final = 5
PAGE: Final = 500
SHOWN: Final = 200


@dataclass(frozen=True, slots=True)
class Limits:
    """per_second: publications. stop_at: share of failures of a wave. patience_s: for the outcomes of a wave."""

    per_second: float
    stop_at: float
    patience_s: float


class Replayer:
    """Carries a replay out, wave by wave. tell: called with the replay as it stands."""

    def __init__(
        self,
        *,
        ledger: Ledger,
        outgoing: Outgoing,
        judge: replays.Judge,
        limits: Limits,
        by: str,
        stop: asyncio.Event,
        tell: Callable[[Replay], None],
    ) -> None:
        self._ledger = ledger
        self._outgoing = outgoing
        self._judge = judge
        self._limits = limits
        self._by = by
        self._stop = stop
        self._tell = tell

    async def run(self, replay_id: str) -> Replay:
        """Until all have an outcome, it stops itself, or it is stopped; then it may be resumed.

        One that has ended, here or at another desk, only has what it left with the worker finished.

        Raises BusUnavailable and LedgerUnavailable, after which it may be resumed too.
        """
        await self._finish_what_was_sent(replay_id)
        for size in self._ramp():
            before = await self._look(replay_id)
            if self._stop.is_set() or before.ended_at or before.counts.get(ItemState.SENT, 0):
                return before
            taken = await self._ledger.run(
                replays.take_wave, replay_id, size=size, judge=self._judge, by=self._by, now=datetime.now(UTC)
            )
            await self._publish(taken)
            after = await self._until_settled(replay_id, patience_s=self._limits.patience_s)
            if why := self._why_end(before, after):
                await self._ledger.run(replays.end_replay, replay_id, by=self._by, because=why, now=datetime.now(UTC))
                return await self._look(replay_id)
        raise AssertionError("the ramp has no end")

    async def _finish_what_was_sent(self, replay_id: str) -> None:
        if (await self._look(replay_id)).counts.get(ItemState.SENT, 0) == 0:
            return
        await self._until_settled(replay_id, patience_s=RESUME_WAIT_S)
        now = datetime.now(UTC)
        await self._publish(await self._ledger.run(replays.sent_items, replay_id, moved_before=now, limit=PAGE))
        await self._until_settled(replay_id, patience_s=self._limits.patience_s)

    async def _publish(self, taken: Sequence[Letter]) -> None:
        """All of them, even when stopping: they are taken."""
        clock = asyncio.get_running_loop().time
        start = clock()
        for number, letter in enumerate(taken):
            await asyncio.sleep(start + number / self._limits.per_second - clock())
            await self._outgoing.replay(letter)

    async def _until_settled(self, replay_id: str, *, patience_s: float) -> Replay:
        """Wait for the outcomes of what was sent, as long as they come."""
        clock = asyncio.get_running_loop().time
        quiet_since, left = clock(), -1
        while True:
            replay = await self._look(replay_id)
            sent = replay.counts.get(ItemState.SENT, 0)
            if sent != left:
                quiet_since, left = clock(), sent
            if sent == 0 or self._stop.is_set() or clock() - quiet_since > patience_s:
                return replay
            await asyncio.sleep(LOOK_S)

    async def _look(self, replay_id: str) -> Replay:
        replay = await self._ledger.run(replays.read_replay, replay_id)
        if replay is None:
            raise ConfigurationError(f"no replay {replay_id}")
        self._tell(replay)
        return replay

    def _why_end(self, before: Replay, after: Replay) -> str | None:
        failed = after.counts.get(ItemState.FAILED, 0) - before.counts.get(ItemState.FAILED, 0)
        resolved = after.counts.get(ItemState.RESOLVED, 0) - before.counts.get(ItemState.RESOLVED, 0)
        if failed > self._limits.stop_at * (failed + resolved):
            return f"stopped: {failed} of the last {failed + resolved} failed"
        if not after.counts.get(ItemState.SENT, 0) and not after.counts.get(ItemState.WAITING, 0):
            return "done"
        return None

    def _ramp(self) -> Iterator[int]:
        yield from RAMP
        while True:
            yield RAMP[-1]


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
    return _report(ended, as_json=arguments.json)


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
    await ledger.run(replays.make_replay, replay_id, chosen, by=operator(), selection=described(chosen), now=now)
    return replay_id


async def _unfinished_replay(ledger: Ledger, wanted: str) -> str:
    unfinished = await ledger.run(replays.unfinished)
    if wanted == "last" and unfinished:
        return unfinished[-1]
    if wanted in unfinished:
        return wanted
    known = ", ".join(unfinished) or "none"
    raise ConfigurationError(f"no replay {wanted} that could go on; interrupted are: {known}")


async def _dry_run(settings: Settings, arguments: argparse.Namespace) -> int:
    chosen, judge, judged = chosen_letters(arguments), _judge(settings), list[tuple[Letter, Verdict]]()
    require_narrow(chosen, has_all=arguments.all)
    async with open_ledger(settings) as ledger:
        await require_known(ledger, chosen, LetterState.OPEN)
        after = None
        while page := await ledger.run(letters.find_some, chosen, limit=PAGE, after=after):
            after = (page[-1].landed_at, page[-1].letter_id)
            for letter in page:
                payment, operation = await ledger.run(replays.view_of_order, letter.order_id)
                judged.append((letter, judge(letter, payment, operation)))
    if arguments.json:
        print_json(
            [
                {"id": letter.letter_id, "order_id": letter.order_id, "verdict": verdict.kind, "why": verdict.why}
                for letter, verdict in judged
            ]
        )
        return 0
    rows = [(letter.letter_id, letter.order_id or "–", verdict.kind, verdict.why) for letter, verdict in judged[:SHOWN]]
    print_table({"id": False, "order": True, "a replay": False, "because": True}, rows)
    if len(judged) > SHOWN:
        say(f"{SHOWN} of {len(judged)} shown; --json has all")
    counts = Counter(verdict.kind for _, verdict in judged)
    say(", ".join(f"{counts[kind]} {kind}" for kind in VerdictKind if counts[kind]) + ". Nothing was touched.")
    return 0


def _judge(settings: Settings) -> replays.Judge:
    def judge(letter: Letter, payment: Payment | None, operation: Operation | None) -> Verdict:
        return verdict_of(letter, payment, operation, settings=settings, now=datetime.now(UTC))

    return judge


def _report(replay: Replay, *, as_json: bool) -> int:
    """What became of it. 0 where every letter is resolved or was taken by somebody else."""
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
            }
        )
    else:
        say(f"{replay.replay_id}: {replay.ended_because or 'interrupted'} ({replay.selection})")
        print_table({"letters": False, "what": False}, [(number, state) for state, number in counts.items()])
        if replay.ended_because is None:
            if replay.counts.get(ItemState.SENT, 0):
                say("Some are with the worker and have no outcome yet: is one running? See payment-worker status.")
            say(f"Go on with: payment-worker dead-letters replay --resume {replay.replay_id}")
    is_done = replay.ended_because == "done"
    return 0 if is_done and not (replay.counts.keys() & {ItemState.FAILED, ItemState.BLOCKED}) else 1


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
