"""Whether a call may go to Stripe, and when: the rate that all workers share, how many may be out, whether it answers.

Three bounds, each for a trouble of its own. The rate keeps us under Stripe's limiter; turns are leased from the ledger,
live orders before retries. The window bounds what a sudden outage can waste. The belief stops all calls once several
in a row brought no answer, or our key was refused; a probe then finds the recovery, and one order tries it.
"""

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from enum import Enum
from typing import Final

import structlog

from worker.errors import (
    AccountRefused,
    AnswerMismatch,
    CallRefused,
    CallSystemic,
    CallTransient,
    CallUnknown,
    LedgerUnavailable,
    Stopping,
    StripeAway,
    WorkerError,
)
from worker.ledger import turns
from worker.ledger.ledger import Ledger

log: Final = structlog.get_logger()

CREATE: Final = "POST /v1/payment_intents"
# A lease is for those who wait now, and for no more than this: what is leased and not used is lost to all.
LEASE_S: Final = 0.2
# Of ten turns one goes to a retry even while live orders wait, or a backlog would starve them past their keys' life.
LIVE_IN_A_ROW: Final = 9
# One order's quick tries and a little more: chance alone does not do it.
FAILED_IN_A_ROW: Final = 6
WINDOW_START: Final = 8
WINDOW_IDLE_S: Final = 10.0


class Window:
    """How many calls may be out at once: it grows by each answer while it is full, and halves on trouble.

    As TCP does it (RFC 5681), since the question is the same: how much to send to one who may have stopped answering.
    """

    def __init__(self, most: int, *, clock: Callable[[], float]) -> None:
        self._most = most
        self._start = min(WINDOW_START, most)
        self._clock = clock
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._used_at = clock()
        self.size = self._start
        self.out = 0

    async def enter(self) -> None:
        """Wait until one more may go out."""
        if self.out == 0 and self._clock() - self._used_at > WINDOW_IDLE_S:
            self.size = self._start
        self._used_at = self._clock()
        if self.out < self.size and not self._waiting:
            self.out += 1
            return
        place: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append(place)
        try:
            await place
        except asyncio.CancelledError:
            if place.done() and not place.cancelled():
                self._leave()
            raise

    def leave(self, *, answered: bool | None) -> None:
        """One is back; None: it was never sent, which tells nothing."""
        if answered is False:
            self.size = max(1, self._start // 2, self.size // 2)
        elif answered and self.out >= self.size:
            self.size = min(self._most, self.size + 1)
        self._leave()

    def _leave(self) -> None:
        self.out -= 1
        while self._waiting and self.out < self.size:
            place = self._waiting.popleft()
            if not place.done():
                self.out += 1
                place.set_result(None)


class Belief(Enum):
    """What we hold of Stripe."""

    WELL = "well"
    AWAY = "away"  # no call is made
    TRYING = "trying"  # a probe was answered; one order goes ahead of the others


class Admission:
    """Every call that changes something at Stripe goes through here: its turn, then `async with call(): …`."""

    def __init__(self, *, ledger: Ledger, limit: float, most_out: int, clock: Callable[[], float]) -> None:
        self._ledger = ledger
        self._limit = limit
        self._window = Window(most_out, clock=asyncio.get_running_loop().time)
        self._clock = clock
        self._live: deque[asyncio.Future[None]] = deque()
        self._retries: deque[asyncio.Future[None]] = deque()
        self._live_in_a_row = 0
        self._dispensing: asyncio.Task[None] | None = None
        self._failed_in_a_row = 0
        self._belief = Belief.WELL
        self._why = ""
        self._trial_out = False
        self._trial_over = asyncio.Event()
        self._trial_error: BaseException | None = None
        # Counts the recoveries: what began before the last one is not what tries whether Stripe is back.
        self._round = 0
        self._stopping = False

    @property
    def fault(self) -> str | None:
        """Why Stripe is not asked, if it is not."""
        return self._why if self.is_away else None

    @property
    def is_away(self) -> bool:
        """Whether no call is made."""
        return self._belief is Belief.AWAY

    def is_outage(self, error: BaseException) -> bool:
        """Whether an order that failed so failed with all the others, and is to be given back uncounted.

        The one that tried first after an outage is not: if the fault is its own, it must not keep the others waiting.
        """
        no_answer = isinstance(error, CallTransient | CallUnknown) and _is_no_answer(error)
        return self.is_away and no_answer and error is not self._trial_error

    def stop(self) -> None:
        """Who waits for a turn has begun nothing, and need not."""
        self._stopping = True
        self._trial_over.set()
        for place in (*self._live, *self._retries):
            if not place.done():
                place.set_exception(Stopping("stopping"))

    def try_again(self) -> None:
        """A probe was answered: the next order may try."""
        if self._belief is Belief.AWAY:
            self._belief, self._trial_out, self._trial_error = Belief.TRYING, False, None
            self._failed_in_a_row = 0
            self._round += 1

    async def turn(self, *, live: bool) -> int:
        """Wait for a turn at the shared rate. A turn taken and not used is lost, which only slows.

        live: an order that comes for the first time, which goes before retries. Returns what give_up_trial wants.
        Raises StripeAway, Stopping and LedgerUnavailable.
        """
        is_trial = await self._until_believed_well()
        try:
            await self._take_turn(live=live)
        except BaseException:
            if is_trial:
                self._end_trial()
            raise
        return self._round

    def turn_at_once(self) -> tuple[turns.Wanted, int] | None:
        """For a turn that the ledger gives with something else: what it wants to know, and what give_up_trial wants.

        None where others wait for a turn, or Stripe is not known to be well: then `turn` it is.
        """
        if self._stopping or self._belief is not Belief.WELL or self._dispensing:
            return None
        return turns.Wanted(CREATE, self._limit, self._clock()), self._round

    def pass_on_turn(self) -> None:
        """A turn was taken, and nothing is to be asked: whoever waits longest has it."""
        if place := self._next():
            place.set_result(None)

    async def _take_turn(self, *, live: bool) -> None:
        place: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        (self._live if live else self._retries).append(place)
        if self._dispensing is None:
            self._dispensing = asyncio.create_task(self._dispense(), name="turns")
        await place
        self._refuse_if_away()

    @asynccontextmanager
    async def call(self, *, is_read: bool = False) -> AsyncIterator[None]:
        """Around the call itself: waits until it may go out, and learns from its end. Raises StripeAway.

        is_read: it only reads. Where Stripe does not answer it, it does not answer others; its answer shows nothing,
        since Stripe may be read while it takes no calls that change something.
        """
        await self._window.enter()
        answered: bool | None = None
        began_in = self._round
        try:
            self._refuse_if_away()
            yield
            answered = True
            self._note_answer(is_read=is_read)
        except (CallTransient, CallUnknown) as error:
            if error.reason == "key_expired":  # it was never sent
                self.give_up_trial(began_in)
                raise
            answered = not _is_no_answer(error)
            if answered:
                self._note_answer(is_read=is_read)
            else:
                self._note_silence(error, began_in)
            if isinstance(error, CallTransient) and error.reason == "rate_limited":
                await self._slow_down()
            raise
        except CallSystemic as error:
            answered = False
            self._go_away(str(error))
            raise
        except (CallRefused, AccountRefused, AnswerMismatch):  # an answer, if not the one that was hoped for
            answered = True
            self._note_answer(is_read=is_read)
            raise
        except BaseException:  # it came to no answer, and the others must not wait for it
            self.give_up_trial(began_in)
            raise
        finally:
            self._window.leave(answered=answered)

    async def _until_believed_well(self) -> bool:
        """Whether this is the one that tries."""
        while True:
            self._refuse_if_away()
            if self._belief is Belief.WELL:
                return False
            if not self._trial_out:
                self._trial_out = True
                return True
            await self._trial_over.wait()

    def _refuse_if_away(self) -> None:
        if self._stopping:
            raise Stopping("stopping")
        if self._belief is Belief.AWAY:
            raise StripeAway(self._why)

    def give_up_trial(self, turn: int | None = None) -> None:
        """The order that was to try Stripe came to no call: another one may. turn: its turn, maybe an old one."""
        if turn in (None, self._round):
            self._end_trial()

    def _end_trial(self) -> None:
        if not self._trial_out:
            return
        self._trial_out = False
        over, self._trial_over = self._trial_over, asyncio.Event()
        over.set()

    def _note_answer(self, *, is_read: bool) -> None:
        if is_read:
            return
        self._failed_in_a_row = 0
        if self._belief is Belief.TRYING:
            self._belief = Belief.WELL
            log.info("stripe.back")
        self._end_trial()

    def _note_silence(self, error: WorkerError, began_in: int) -> None:
        if self._belief is Belief.TRYING and began_in != self._round:
            return  # from before the outage, and only late: it tells nothing new
        self._failed_in_a_row += 1
        if self._belief is Belief.TRYING:
            self._trial_error = error
            self._go_away(f"an order that tried Stripe again had no answer ({error})")
        elif self._failed_in_a_row >= FAILED_IN_A_ROW:
            self._go_away(f"the last {self._failed_in_a_row} calls to Stripe brought no answer ({error})")

    def _go_away(self, why: str) -> None:
        if self._belief is not Belief.AWAY:
            log.warning("stripe.away", why=why)
        self._belief, self._why = Belief.AWAY, why
        self._end_trial()

    async def _slow_down(self) -> None:
        try:
            per_second = await self._ledger.run(turns.slow_down, endpoint=CREATE, limit=self._limit, now=self._clock())
        except LedgerUnavailable as error:  # the order has its own answer to tell
            log.warning("stripe.not_slowed", error=str(error))
        else:
            log.warning("stripe.slowed", per_second=round(per_second, 1))

    async def _dispense(self) -> None:
        """Lease turns for those who wait, and hand them out; until nobody waits."""
        try:
            while waiting := len(self._live) + len(self._retries):
                count = min(waiting, max(1, int(self._limit * LEASE_S)))
                lease = await self._ledger.run(
                    turns.lease_turns, endpoint=CREATE, count=count, limit=self._limit, now=self._clock()
                )
                await self._hand_out(lease)
        except Exception as error:  # noqa: BLE001 - it goes to all that wait, to each its own
            for place in (*self._live, *self._retries):
                if not place.done():
                    place.set_exception(LedgerUnavailable(f"no turns: {error}"))
            self._live.clear()
            self._retries.clear()
        finally:
            self._dispensing = None

    async def _hand_out(self, lease: turns.Lease) -> None:
        clock = asyncio.get_running_loop().time
        first_at = clock() + lease.wait_s
        for number in range(lease.count):
            wait_s = first_at + number * lease.gap_s - clock()
            if wait_s > 0:
                await asyncio.sleep(wait_s)
            place = self._next()
            if place is None:
                return
            place.set_result(None)

    def _next(self) -> asyncio.Future[None] | None:
        while self._live or self._retries:
            is_live = bool(self._live) and (self._live_in_a_row < LIVE_IN_A_ROW or not self._retries)
            place = (self._live if is_live else self._retries).popleft()
            if not place.done():
                self._live_in_a_row = self._live_in_a_row + 1 if is_live else 0
                return place
        return None


def _is_no_answer(error: CallTransient | CallUnknown) -> bool:
    """Whether it looks like an outage: nothing came, or a server's error that is not a stored one."""
    return error.reason in ("no_connection", "answer_lost", "server_error", "strange_answer")
