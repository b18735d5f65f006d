"""What the operators' desk costs with many open letters: whole commands, and the ledger's moves alone.

    python tests/benchmarks/desk.py [--ledger sqlite|postgresql] [--letters 100000] [--rounds 5] [--json]

The ledger is new and lies in a folder of its own: a file, or a private PostgreSQL. Letters of about 1 kB in thirty
groups and four currencies. Of the rounds the median is told: most of a command is the start of Python.
"""

import argparse
import asyncio
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).parents[2]))

from schemas import AmqpProperties
from tests.harness import clean_environment
from worker.ledger import letter_figures, letter_moves, letters, replays
from worker.ledger.acts import history
from worker.ledger.engine import open_engine
from worker.ledger.ledger import Ledger
from worker.ledger.letters import LetterFilter
from worker.ledger.migrate import migrate
from worker.letter import Landing, Letter, LetterState, Verdict, VerdictKind, cause_of, group_of
from worker.sandbox.postgres import PrivatePostgres

NOW = datetime.now(UTC)
CURRENCIES = ("usd", "eur", "gbp", "jpy")
OPEN = LetterFilter(states=(LetterState.OPEN,))
BATCH = 5000
LANDED = 5000
CONCURRENT = 50
WAVE = 200
DESK: dict[str, Any] = {"by": "bench", "now": NOW}

Figures = dict[str, float | str]


def letter(number: int, *, count: int) -> Letter:
    """One of a day's letters, the oldest first."""
    fields = ("amount", "currency", "customer_id", "metadata", "shipping", "order_id", "description", "confirm")
    faults = (
        *(("bad_message", f"{field}: '{number}' is not what the contract says") for field in fields),
        *(("conflict", f"{field}: was {number}.00, now {number + 1}.00") for field in fields),
        *(("retries_exhausted", f"server_error: 500 {field}_error (req_{number}x)") for field in fields),
        *(("mode_mismatch", f"order-{number} was asked for in Stripe's other mode: {field}") for field in fields[:6]),
    )
    reason, error = faults[number % 7 * number % len(faults)]
    cause, moment = cause_of(reason, error), NOW - timedelta(seconds=86_400 * (count - number) / count)
    order_id = f"order-{number}"
    body = {"order_id": order_id, "amount": f"{number % 500 + 1}", "currency": CURRENCIES[number % 4], "filler": ""}
    body["filler"] = "x" * (1000 - len(json.dumps(body)))
    return Letter(
        letter_id=f"dl_{number:020x}",
        state=LetterState.OPEN,
        reason=reason,
        error=error,
        group_id=group_of(cause),
        cause=cause,
        order_id=order_id,
        body=json.dumps(body).encode(),
        properties=AmqpProperties(message_id=f"m-{number}", content_type="application/json", headers={"shop": "a"}),
        attempts=3,
        landings=1,
        landing_id=f"{number:032x}",
        landed_at=moment,
        moved_at=moment,
        amount_minor=(number % 500 + 1) * (1 if CURRENCIES[number % 4] == "jpy" else 100),
        currency=CURRENCIES[number % 4],
        first_seen=moment - timedelta(minutes=3),
        history=(
            {"landing_id": f"{number:032x}", "at": moment.isoformat(), "reason": reason, "error": error}
            | {"attempts": 3, "first_seen": None, "failures": [f"{moment.isoformat()} {error}"] * 3},
        ),
    )


async def fill(ledger: Ledger, count: int) -> None:
    for start in range(0, count, BATCH):
        some = (letter(number, count=count) for number in range(start, min(start + BATCH, count)))
        await ledger.run(letter_moves.add_all, map(letters.row_of, some), vouched=True, why="benchmark", **DESK)


async def measure(ledger: Ledger, environment: dict[str, str], *, count: int, rounds: int) -> dict[str, Figures]:
    last = letter(count - 1, count=count)
    found: dict[str, Figures] = {}
    for words in (
        ("list", "--limit", "20"),
        ("groups",),
        ("show", last.letter_id),
        ("list", "--text", last.order_id or ""),
        ("list", "--limit", "20", "--group", last.group_id),
        ("list", "--limit", "20", "--state", "all"),
        ("history", "--limit", "20"),
    ):
        told = " ".join(words).replace(last.letter_id, "ID").replace(last.group_id, "G")
        found[f"dead-letters {told}"] = await commands(environment, *words, rounds=rounds)
    for name, move, arguments in (
        ("find, 20", letters.find, {"chosen": OPEN, "limit": 20}),
        ("find, 20 of all states", letters.find, {"chosen": LetterFilter(), "limit": 20}),
        ("find, the last 20", letters.find, {"chosen": OPEN, "limit": 20, "after": _before_the_end(count)}),
        ("find, 20 of a group", letters.find, {"chosen": replace(OPEN, group_id=last.group_id), "limit": 20}),
        ("find, by text", letters.find, {"chosen": replace(OPEN, text=last.order_id), "limit": 1000}),
        ("find, by order", letters.find, {"chosen": replace(OPEN, order_id=last.order_id), "limit": 1000}),
        ("find, 1000", letters.find, {"chosen": OPEN, "limit": 1000}),
        ("count", letters.count, {"chosen": OPEN}),
        ("groups", letter_figures.groups, {"chosen": OPEN}),
        ("read", letters.read, {"letter_id": last.letter_id}),
        ("history of a letter", history, {"letter_id": last.letter_id, "limit": 1000}),
        ("figures", letter_figures.figures, {}),
    ):
        found[f"move: {name}"] = {"median_ms": await median_of(rounds, lambda m=move, a=arguments: ledger.run(m, **a))}
    found["dead-letters export"] = await export(environment, count)
    found["landing"] = await landing(ledger, count)
    found |= await writes(ledger, last.group_id)
    return found


def _before_the_end(count: int) -> tuple[datetime, str]:
    before = letter(count - 21, count=count)
    return before.landed_at, before.letter_id


async def median_of(rounds: int, act: Callable[[], Awaitable[object]]) -> float:
    """In milliseconds."""
    return statistics.median([await timed(act()) for _ in range(rounds)])


async def timed(acting: Awaitable[object]) -> float:
    began = time.perf_counter()
    await acting
    return 1000 * (time.perf_counter() - began)


@dataclass(frozen=True, slots=True)
class Ran:
    """A command that has ended: as one waits for it, the processor's time for it, and its memory at most."""

    wall_s: float
    cpu_s: float
    peak_mib: float
    errors: str


def command(environment: dict[str, str], *words: str) -> Ran:
    """Run `payment-worker dead-letters …`; the figures are the kernel's (wait4(2))."""
    began = time.perf_counter()
    process = subprocess.Popen(
        [sys.executable, "-m", "worker", "dead-letters", *words],
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stderr
    errors = process.stderr.read()
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    wall_s = time.perf_counter() - began
    return Ran(wall_s, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024, errors if process.returncode else "")


async def commands(environment: dict[str, str], *words: str, rounds: int) -> Figures:
    ran = [await asyncio.to_thread(command, environment, *words) for _ in range(rounds)]
    if ran[0].errors:
        return {"told": ran[0].errors.strip().splitlines()[-1]}
    return {
        "median_ms": 1000 * statistics.median(each.wall_s for each in ran),
        "cpu_ms": 1000 * statistics.median(each.cpu_s for each in ran),
    }


async def export(environment: dict[str, str], count: int) -> Figures:
    """Letters a second and the peak of its memory."""
    ran = await asyncio.to_thread(command, environment, "export")
    if ran.errors:  # a checkout without it
        return {"told": ran.errors.strip().splitlines()[-1]}
    return {"per_second": count / ran.wall_s, "peak_mib": ran.peak_mib}


async def landing(ledger: Ledger, count: int) -> Figures:
    """New letters beside those that are there, as many at once as the worker takes in."""
    slots = asyncio.Semaphore(CONCURRENT)

    async def one(number: int) -> None:
        made = letter(number, count=count)
        told = Landing(made.landing_id, made.reason, made.error, 3, made.first_seen, made.landed_at, ("a", "b"))
        async with slots:
            await ledger.run(letters.land, made, told, other_id="dl_other", now=NOW)

    took_ms = await timed(asyncio.gather(*(one(count + number) for number in range(LANDED))))
    return {"per_second": 1000 * LANDED / took_ms}


async def writes(ledger: Ledger, group_id: str) -> dict[str, Figures]:
    """Moves of many letters, each once."""

    def judge(*_: object) -> Verdict:
        return Verdict(VerdictKind.SAFE, "no call was begun")

    found: dict[str, Figures] = {}
    for name, move, arguments in (
        ("make_replay of all", replays.make_replay, {"replay_id": "rp_1", "chosen": OPEN, "selection": "all"}),
        ("read_replay", replays.read_replay, {"replay_id": "rp_1"}),
        (f"take_wave of {WAVE}", replays.take_wave, {"replay_id": "rp_1", "size": WAVE, "judge": judge}),
        ("discard of a group", letter_moves.discard, {"chosen": LetterFilter(group_id=group_id), "why": "x"}),
        ("discard of all", letter_moves.discard, {"chosen": OPEN, "why": "x"}),
        ("restore of all", letter_moves.restore, {"chosen": LetterFilter(), "why": "x"}),
    ):
        given = arguments if move is replays.read_replay else arguments | DESK
        try:
            found[f"move: {name}"] = {"median_ms": await timed(ledger.run(move, **given))}
        except Exception as error:  # noqa: BLE001 - a figure too
            found[f"move: {name}"] = {"told": f"{type(error).__name__}: {error}"}
    return found


@asynccontextmanager
async def a_ledger(kind: str) -> AsyncIterator[str]:
    """The address of an empty one."""
    if kind == "sqlite":
        with tempfile.TemporaryDirectory() as folder:
            yield f"sqlite+aiosqlite:///{folder}/payments.db"
        return
    with PrivatePostgres() as postgres:
        yield await postgres.create_database("desk")


async def run(kind: str, count: int, rounds: int) -> dict[str, Figures]:
    async with a_ledger(kind) as url:
        engine = open_engine(url)
        migrate(engine)
        engine.dispose()
        async with Ledger(url) as ledger:
            await fill(ledger, count)
            if kind == "postgresql":
                await asyncio.to_thread(vacuum, ledger)
            return await measure(ledger, clean_environment(DATABASE_URL=url), count=count, rounds=rounds)


def vacuum(ledger: Ledger) -> None:
    """As autovacuum does within a minute: before it, sums are read from the table instead of the index."""
    with ledger.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as conn:
        conn.exec_driver_sql("VACUUM (ANALYZE)")


def lines(results: dict[str, Figures]) -> Iterator[tuple[str, str]]:
    for name, figures in results.items():
        told = {
            "median_ms": "{:.1f} ms",
            "cpu_ms": "{:.0f} ms of processor",
            "per_second": "{:.0f} letters/s",
            "peak_mib": "{:.0f} MiB at most",
            "told": "{}",
        }
        yield name, ", ".join(told[key].format(value) for key, value in figures.items())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ledger", choices=["sqlite", "postgresql"], default="sqlite")
    parser.add_argument("--letters", type=int, default=100_000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    results = asyncio.run(run(arguments.ledger, arguments.letters, arguments.rounds))
    if arguments.json:
        print(json.dumps(results))
        return
    table = Table(box=None, header_style="bold", title=f"{arguments.letters} open letters, {arguments.ledger}")
    table.add_column("")
    table.add_column("", justify="right")
    for line in lines(results):
        table.add_row(*line)
    Console().print(table)


if __name__ == "__main__":
    main()
