"""How a replay is carried out: wave by wave, a few letters at first, until all have an outcome or too many fail."""

import asyncio
import struct
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final

from worker.bus.outgoing import Outgoing
from worker.desk.screen import visible
from worker.errors import ConfigurationError
from worker.ledger import replays
from worker.ledger.ledger import Ledger
from worker.ledger.replays import Replay
from worker.letter import ItemState, Letter

# The first ones show whether the cause is gone; only then many go.
RAMP: Final = (1, 2, 5, 20, 50, 100, 200)
LOOK_S: Final = 0.1
# For what an interrupted replay left with the worker to come to its outcome, before it is published again.
RESUME_WAIT_S: Final = 5
# Letters sent again at once.
PAGE: Final = 500
# What AMQP cannot carry, such as a content type of more than 255 bytes.
UNSENDABLE: Final = (TypeError, ValueError, OverflowError, struct.error)
MAX_WHY_CHARS: Final = 200


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
        before = await self._look(replay_id)
        after = await self._finish_what_was_sent(before)
        for size in self._ramp():
            if not after.ended_at and (why := self._why_end(before, after)):
                await self._ledger.run(replays.end_replay, replay_id, by=self._by, because=why, now=datetime.now(UTC))
                return await self._look(replay_id)
            if self._stop.is_set() or after.ended_at or after.counts.get(ItemState.SENT, 0):
                return after
            before = after
            taken = await self._ledger.run(
                replays.take_wave, replay_id, size=size, judge=self._judge, by=self._by, now=datetime.now(UTC)
            )
            await self._publish(replay_id, taken)
            after = await self._until_settled(replay_id, patience_s=self._limits.patience_s)
        raise AssertionError("the ramp has no end")

    async def _finish_what_was_sent(self, replay: Replay) -> Replay:
        """What an earlier run has left with the worker; how it fares counts as a wave does."""
        if replay.counts.get(ItemState.SENT, 0) == 0:
            return replay
        await self._until_settled(replay.replay_id, patience_s=RESUME_WAIT_S)
        sent = await self._ledger.run(replays.sent_items, replay.replay_id, moved_before=datetime.now(UTC), limit=PAGE)
        await self._publish(replay.replay_id, sent)
        return await self._until_settled(replay.replay_id, patience_s=self._limits.patience_s)

    async def _publish(self, replay_id: str, taken: Sequence[Letter]) -> None:
        """All of them, even when stopping: they are taken. One that cannot be sent is given back; the others go on."""
        clock = asyncio.get_running_loop().time
        start = clock()
        for number, letter in enumerate(taken):
            await asyncio.sleep(start + number / self._limits.per_second - clock())
            try:
                await self._outgoing.replay(letter)
            except UNSENDABLE as error:
                why = f"its message cannot be published: {visible(str(error))}"[:MAX_WHY_CHARS]
                await self._ledger.run(
                    replays.take_back, replay_id, letter.letter_id, by=self._by, why=why, now=datetime.now(UTC)
                )

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
        replay = await self._ledger.look(replays.read_replay, replay_id)
        if replay is None:
            raise ConfigurationError(f"no replay {replay_id}")
        self._tell(replay)
        return replay

    def _why_end(self, before: Replay, after: Replay) -> str | None:
        failed = after.counts.get(ItemState.FAILED, 0) - before.counts.get(ItemState.FAILED, 0)
        resolved = after.counts.get(ItemState.RESOLVED, 0) - before.counts.get(ItemState.RESOLVED, 0)
        if failed > self._limits.stop_at * (failed + resolved):
            return f"stopped: {failed} of the last {failed + resolved} failed"
        if after.counts.get(ItemState.SENT, 0) or after.counts.get(ItemState.WAITING, 0):
            return None
        is_all_blocked = ItemState.BLOCKED in after.counts and after.counts.keys() <= {
            ItemState.BLOCKED,
            ItemState.SKIPPED,
        }
        return "nothing was replayed" if is_all_blocked else "done"

    def _ramp(self) -> Iterator[int]:
        yield from RAMP
        while True:
            yield RAMP[-1]
