"""The ledger's door: runs moves in transactions, shared by those that wait, and turns the database's faults into ours.

They run on threads; how the database is opened is in engine.py.
"""

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Any, Concatenate, Final, ParamSpec, Self, TypeVar

import sqlalchemy as sa
import structlog
from sqlalchemy.engine import Connection

from worker.errors import LedgerRefused, LedgerUnavailable
from worker.ledger.engine import POSTGRES_LANES, open_engine, told_address
from worker.ledger.given import by_driver

log: Final = structlog.get_logger()

P = ParamSpec("P")
T = TypeVar("T")
Row = TypeVar("Row")

# Moves that wait at the same moment share one transaction and its one fsync: no more than these.
BATCH: Final = 128
# After a batch of at least BUSY moves as many follow in a moment: worth waiting for, as PostgreSQL's own commit_delay
# waits. Source: https://www.postgresql.org/docs/current/runtime-config-wal.html#GUC-COMMIT-DELAY.
BUSY: Final = 8
GATHER_S: Final = 0.005
# What nobody waits for goes with others where there are any.
SOON_S: Final = 0.05
# Many wait for a group: where a row of it is locked they go on without each other, soon.
GROUP_LOCK_TIMEOUT_MS: Final = 300
ANSWER_TIMEOUT_S: Final = 20
CLOSE_TIMEOUT_S: Final = 1
# SQLite has whoever waits for the lock look every 0.1 s: https://www.sqlite.org/src/file/src/main.c, its busy callback.
GIVE_WAY_S: Final = 0.12


@dataclass(frozen=True, slots=True)
class _Waiting:
    """A move that waits for the next batch: of one caller, or of a group, with this caller's row.

    answer: None where nobody waits for it.
    """

    move: Callable[..., Any]
    answer: asyncio.Future[Any] | None
    is_grouped: bool = False
    row: Any = None

    def succeed(self, answer: object) -> None:
        """Committed. Where its delivery was cancelled meanwhile, the move stands all the same."""
        if self.answer and not self.answer.done():
            self.answer.set_result(answer)

    def fail(self, error: Exception) -> None:
        """Nothing is written, as far as is known."""
        if self.answer is None:
            log.warning("ledger.left_undone", move=self.move.__name__, error=str(error))
        elif not self.answer.done():
            self.answer.set_exception(error)


class Ledger:
    """Runs moves, each in a transaction: `await ledger.run(moves.read_payment, order_id)`.

    What waits at the same moment shares one transaction, all moves on SQLite and those of groups on PostgreSQL; if it
    fails, each is run alone. Nobody has an answer before the commit.
    """

    def __init__(self, url: str) -> None:
        self.engine = open_engine(url)
        self.address = told_address(url)
        self._is_sqlite = self.engine.dialect.name == "sqlite"
        lanes = 1 if self._is_sqlite else POSTGRES_LANES
        self._threads = ThreadPoolExecutor(lanes, thread_name_prefix="ledger")
        self._waiting: list[_Waiting] = []
        self._running: set[asyncio.Future[Any]] = set()
        self._writing: asyncio.Task[None] | None = None
        self._soon: asyncio.TimerHandle | None = None
        self._answer_timeout_s = None if self._is_sqlite else ANSWER_TIMEOUT_S
        # A group whose row is held goes on one by one, and may wait for it all together: half the lanes stay free.
        self._alone = asyncio.Semaphore(POSTGRES_LANES // 2)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        self._start_writing()
        # A server that is frozen answers no thread of ours, ever: then they are left behind.
        with suppress(TimeoutError):
            async with asyncio.timeout(None if self._is_sqlite else CLOSE_TIMEOUT_S):
                while unfinished := {*self._running, *([self._writing] if self._writing else [])}:
                    await asyncio.wait(unfinished)
        self._threads.shutdown(wait=False)
        if not self._running:
            self.engine.dispose()

    async def run(self, move: Callable[Concatenate[Connection, P], T], *args: P.args, **kwargs: P.kwargs) -> T:
        """The move's result, committed.

        Raises LedgerUnavailable where the database could not do it (a commit cut off may have happened),
        LedgerRefused where it refuses the row, and whatever the move raises (nothing is written then).
        """
        bound = partial(_bind, move, args, kwargs)
        if self._is_sqlite:
            answer: T = await self._in_batch(bound)
            return answer
        return await self._on_a_thread(self._commit_one, bound)

    async def run_grouped(self, move: Callable[[Connection, Sequence[Row]], Sequence[T]], row: Row) -> T:
        """A group's move, with the row of this caller: all that wait for the same move are moved by it at once.

        The move has one answer for each row, in their order, or raises and has written nothing: then each row is moved
        alone. Raises as run does.
        """
        answer: T = await self._in_batch(move, is_grouped=True, row=row)
        return answer

    def run_soon(self, move: Callable[[Connection, Sequence[Row]], Sequence[None]], row: Row) -> None:
        """A group's move that nobody waits for: done with the next batch, within SOON_S, and before the ledger closes.

        For what may be lost in a crash or an outage and is then done again, by others.
        """
        self._waiting.append(_Waiting(move, None, is_grouped=True, row=row))
        if self._writing is None and self._soon is None:
            self._soon = asyncio.get_running_loop().call_later(SOON_S, self._start_writing)

    async def run_long(self, move: Callable[Concatenate[Connection, P], T], *args: P.args, **kwargs: P.kwargs) -> T:
        """As run, in a transaction of its own, for a move of very many rows: only its statements have a time limit."""
        return await asyncio.to_thread(self._commit_one, partial(_bind, move, args, kwargs))

    async def look(self, move: Callable[Concatenate[Connection, P], T], *args: P.args, **kwargs: P.kwargs) -> T:
        """As run_long, for a move that writes nothing: on SQLite no writer waits for it."""
        return await asyncio.to_thread(self._commit_one, partial(_bind, move, args, kwargs), only_reads=True)

    async def give_way(self) -> None:
        """Between the transactions of long work: on SQLite they would follow on each other too closely for others."""
        if self._is_sqlite:
            await asyncio.sleep(GIVE_WAY_S)

    async def _in_batch(self, move: Callable[..., Any], *, is_grouped: bool = False, row: Any = None) -> Any:
        future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._waiting.append(_Waiting(move, future, is_grouped=is_grouped, row=row))
        self._start_writing()
        return await future

    def _start_writing(self) -> None:
        if self._soon:
            self._soon.cancel()
            self._soon = None
        if self._writing is None and self._waiting:
            self._writing = asyncio.create_task(self._write_waiting(), name="ledger-writer")

    async def _write_waiting(self) -> None:
        size = 0
        try:
            while self._waiting:
                if size >= BUSY and len(self._waiting) < BATCH:
                    await asyncio.sleep(GATHER_S)
                batch, self._waiting = self._waiting[:BATCH], self._waiting[BATCH:]
                size = len(batch)
                await self._write(batch)
        finally:
            self._writing = None

    async def _write(self, batch: Sequence[_Waiting]) -> None:
        """All in one transaction. A failure undoes all, so that none is half done; each alone shows whose it was."""
        try:
            answers = await self._on_a_thread(self._commit_one, partial(_move_all, batch=batch))
        except Exception as error:  # noqa: BLE001 - it goes to whoever asked
            if len(batch) == 1:
                batch[0].fail(error)
            elif _is_for_all(error):
                for waiting in batch:
                    waiting.fail(LedgerUnavailable(str(error)))
            elif self._is_sqlite:
                await self._write_one_by_one(batch)
            else:  # whoever is locked out waits alone, and the next batch goes on
                alone = asyncio.gather(*(self._write_alone(waiting) for waiting in batch))
                self._running.add(alone)
                alone.add_done_callback(self._running.discard)
        else:
            for waiting, answer in zip(batch, answers, strict=True):
                waiting.succeed(answer)

    async def _write_alone(self, waiting: _Waiting) -> None:
        async with self._alone:
            await self._write([waiting])

    async def _write_one_by_one(self, batch: Sequence[_Waiting]) -> None:
        for place, waiting in enumerate(batch):
            try:
                [answer] = await self._on_a_thread(self._commit_one, partial(_move_all, batch=[waiting]))
            except Exception as error:  # noqa: BLE001 - it goes to whoever asked
                waiting.fail(error)
                if _is_for_all(error):  # each would wait as long for the same
                    for other in batch[place + 1 :]:
                        other.fail(LedgerUnavailable(str(error)))
                    return
            else:
                waiting.succeed(answer)

    async def _on_a_thread(self, commit: Callable[[Any], T], what: object) -> T:
        """Raises LedgerUnavailable for a server that does not answer: one that is frozen closes no connection."""
        try:
            begun = self._threads.submit(commit, what)
        except RuntimeError:  # the threads take nothing any more
            raise LedgerUnavailable("the ledger is closed") from None
        running = asyncio.wrap_future(begun)
        self._running.add(running)
        running.add_done_callback(self._let_go)
        try:
            async with asyncio.timeout(self._answer_timeout_s):
                return await asyncio.shield(running)
        except TimeoutError:
            begun.cancel()  # where no thread has come to it: what was told as failed is not to be done later
            raise LedgerUnavailable(f"PostgreSQL has not answered within {self._answer_timeout_s} s") from None

    def _let_go(self, done: asyncio.Future[Any]) -> None:
        self._running.discard(done)
        if not done.cancelled():
            done.exception()  # whoever waited for it may be gone: then asyncio would complain that nobody looked

    def _commit_one(self, move: Callable[[Connection], T], *, only_reads: bool = False) -> T:
        engine = self.engine.execution_options(only_reads=True) if only_reads else self.engine
        try:
            with engine.begin() as conn:
                return move(conn)
        except sa.exc.SQLAlchemyError as error:
            if _is_of_the_row(error):
                raise LedgerRefused(_told(error)) from None  # PostgreSQL's text of it goes on with the whole row
            raise LedgerUnavailable(_told(error)) from error


def _bind(move: Callable[..., T], args: tuple[Any, ...], kwargs: dict[str, Any], conn: Connection) -> T:
    return move(conn, *args, **kwargs)


def _move_all(conn: Connection, batch: Sequence[_Waiting]) -> list[Any]:
    """Each one's answer. The moves of one moment have no order among them, so a group is moved at once."""
    if len(batch) > 1 and conn.dialect.name == "postgresql":
        by_driver(conn, f"SET LOCAL lock_timeout = {GROUP_LOCK_TIMEOUT_MS}")
    answers: list[Any] = [None] * len(batch)
    groups: dict[Callable[..., Any], list[int]] = {}
    for place, waiting in enumerate(batch):
        if waiting.is_grouped:
            groups.setdefault(waiting.move, []).append(place)
        else:
            answers[place] = waiting.move(conn)
    for move, places in groups.items():
        for place, answer in zip(places, move(conn, [batch[each].row for each in places]), strict=True):
            answers[place] = answer
    return answers


def _is_for_all(error: Exception) -> bool:
    """Locked, full, away; not where a row met somebody else's: a lock held or a deadlock, by PostgreSQL's codes."""
    cause = getattr(error.__cause__, "orig", None)
    return isinstance(error, LedgerUnavailable) and getattr(cause, "sqlstate", None) not in ("55P03", "40P01")


def _is_of_the_row(error: sa.exc.SQLAlchemyError) -> bool:
    """Whether the values are at fault: by a constraint, by what a column holds, or before they were sent at all."""
    if isinstance(error, sa.exc.DBAPIError):
        return isinstance(error, sa.exc.DataError | sa.exc.IntegrityError)
    return isinstance(error, sa.exc.StatementError)


def _told(error: sa.exc.SQLAlchemyError) -> str:
    """The database's own first line, without the statement's values: they hold private data."""
    cause = getattr(error, "orig", None) or error
    return f"{type(cause).__name__}: {str(cause).strip().splitlines()[0] if str(cause).strip() else 'no reason given'}"
