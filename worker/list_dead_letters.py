"""`payment-worker dead-letters list`: for people a table, for programs JSON."""

import sys
from collections.abc import Sequence
from datetime import datetime
from typing import Any, NoReturn

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from worker.app import bus_names, now_utc
from worker.bus.dead_letter_queue import DeadLetterRow, browse_dead_letters
from worker.settings import Settings


async def read_dead_letters(settings: Settings, *, limit: int) -> tuple[list[DeadLetterRow], int, datetime]:
    """The letters, how many lie there in all, and the moment of looking. Raises BusUnavailable."""
    now = now_utc()
    rows, total = await browse_dead_letters(
        settings.amqp_url.get_secret_value(), bus_names(settings), limit=limit, now=now
    )
    return rows, total, now


def as_records(rows: Sequence[DeadLetterRow], *, now: datetime) -> list[dict[str, Any]]:
    """One object for each letter. `age_s` counts from its landing; times are ISO 8601, null where not known."""
    return [
        {
            "id": row.id,
            "order_id": row.order_id,
            "event_id": row.event_id,
            "reason": row.reason,
            "error": row.error,
            "attempts": row.attempts,
            "first_seen": row.first_seen.isoformat() if row.first_seen else None,
            "last_seen": row.last_seen.isoformat() if row.last_seen else None,
            "age_s": round((now - row.last_seen).total_seconds(), 1) if row.last_seen else None,
            "size_bytes": row.size_bytes,
            "history": list(row.history),
        }
        for row in rows
    ]


def print_table(rows: Sequence[DeadLetterRow], *, total: int, now: datetime) -> None:
    """The letters as a person reads them. What a stranger wrote is escaped."""
    # Not on a terminal there is no width to fit, and a folded id could be neither copied nor grepped.
    console = _PipedConsole(width=None if sys.stdout.isatty() else 200)
    if not rows:
        console.print("No dead letters.")
        return
    table = Table(box=None, pad_edge=False, header_style="bold")
    for heading in ("id", "order", "reason", "age", "attempts", "error"):
        table.add_column(heading, overflow="fold", no_wrap=heading in ("id", "reason", "age"))
    for row in rows:
        age = _ago((now - row.last_seen).total_seconds()) if row.last_seen else "?"
        cells = (row.id, row.order_id or "–", row.reason, age, str(row.attempts), row.error)
        table.add_row(*(escape(_visible(cell)) for cell in cells))
    console.print(table)
    if total > len(rows):
        console.print(f"{len(rows)} of {total} shown; see --limit")


class _PipedConsole(Console):
    def on_broken_pipe(self) -> NoReturn:
        """Leaves `… | head` to the command line, where rich would end with 1."""
        raise BrokenPipeError


def _visible(text: str) -> str:
    """Control characters spelled out: a message must not steer the terminal that shows it."""
    return "".join(letter if letter.isprintable() else repr(letter)[1:-1] for letter in text)


def _ago(seconds: float) -> str:
    for size, unit in ((86_400, "d"), (3_600, "h"), (60, "min")):
        if seconds >= size:
            return f"{seconds / size:.0f} {unit}"
    return f"{max(0, seconds):.0f} s"
