"""What grows: the cost of an order with many in the ledger, and the memory of a process over many orders.

A ledger is filled by having the worker drain a thousand orders, then by copying what it wrote under other ids. Those
are spread over the whole index, as random order ids are.
"""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from tests.benchmarks.contenders import Contender
from tests.benchmarks.drain import Drained, drain, median
from tests.benchmarks.processes import resident_mib
from tests.benchmarks.stage import Stage
from worker.ledger.engine import open_engine
from worker.ledger.schema import EVENTS, OPERATIONS, PAYMENTS

DRAINED = 1000
ORDER_ID_LENGTH = 32  # of stage.new_order_id
NAMES = {PAYMENTS: ("payment_id",), OPERATIONS: ("idempotency_key",), EVENTS: ("event_id", "body")}


@dataclass(frozen=True, slots=True)
class Growth:
    """The medians with few and with many orders in the ledger at the beginning, and all rounds of both."""

    few: int
    many: int
    with_few: Sequence[Drained]
    with_many: Sequence[Drained]

    @property
    def cost_ratio(self) -> float:
        """Of the processor time for an order, with many to with few."""
        return median(self.with_many).cpu_us / median(self.with_few).cpu_us


async def cost_with_many(
    stage: Stage, contender: Contender, *, many: int, orders: int, rounds: int, told: Callable[[str], None]
) -> Growth:
    """Drains with DRAINED and with `many` orders in the ledger, in turns. `many`: a multiple of DRAINED."""
    ledgers = [await stage.new_ledger(contender) for _ in range(2)]
    for ledger_url in ledgers:
        await drain(stage, contender, orders=DRAINED, ledger_url=ledger_url)
    told(f"growth: filling a ledger with {many} orders")
    await asyncio.to_thread(multiply, str(ledgers[1]), many // DRAINED)
    rounds_of: tuple[list[Drained], list[Drained]] = ([], [])
    for number in range(rounds):
        for ledger_url, found, count in zip(ledgers, rounds_of, (DRAINED, many), strict=True):
            told(f"growth, round {number + 1} of {rounds}: {count} orders in the ledger")
            found.append(await drain(stage, contender, orders=orders, ledger_url=ledger_url))
    return Growth(DRAINED, many, *rounds_of)


def multiply(ledger_url: str, factor: int) -> None:
    """So many times the payments that the ledger has, each with its call and its event as the worker wrote them."""
    engine = open_engine(ledger_url)
    for number in range(1, factor):
        with engine.begin() as conn:
            _copy_all(conn, number)
    if engine.dialect.name == "postgresql":  # as its autovacuum does, after a while
        with engine.begin() as conn:
            conn.exec_driver_sql("ANALYZE")
    engine.dispose()


def _copy_all(conn: Connection, number: int) -> None:
    """One copy of the rows that are no copies: their ids turned by some places, and numbered."""
    for table, names in NAMES.items():
        old = table.c.order_id
        turn = number % ORDER_ID_LENGTH
        front, back = sa.func.substr(old, 1, turn, type_=sa.String), sa.func.substr(old, turn + 1, type_=sa.String)
        new = back + front + f"-{number}"
        copied: dict[str, sa.ColumnElement[Any]] = {column.name: column for column in table.columns}
        copied |= {"order_id": new} | {name: _renamed(table.c[name], old, new, number) for name in names}
        rows = sa.select(*copied.values()).select_from(table).where(sa.func.length(old) == ORDER_ID_LENGTH)
        conn.execute(sa.insert(table).from_select(list(copied), rows))


def _renamed(
    column: sa.Column[str], old: sa.ColumnElement[str], new: sa.ColumnElement[str], number: int
) -> sa.ColumnElement[str]:
    """A name that has the order's id in it, or else (Stripe's) a number behind it."""
    return column + f"-{number}" if column.name == "payment_id" else sa.func.replace(column, old, new)


async def memory_over(stage: Stage, contender: Contender, *, orders: int) -> list[float]:
    """Resident MiB of one process after each tenth of the orders that it drains."""
    found: list[float] = []
    async with stage.round() as round_:
        await round_.backlog(orders)
        async with round_.run(contender, ledger_url=await stage.new_ledger(contender)) as running:
            for tenth in range(1, 11):
                round_.events.at(orders * tenth // 10, lambda: found.append(resident_mib(running[0].pid)))
            await round_.events.until(orders, running)
    return found
