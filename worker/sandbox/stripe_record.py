"""The record of every request as it was received and answered: what a test holds the worker to.

Rows are kept in a ring, so memory stays bounded over any number of requests; the counts are of all of them.
No row holds an API key, a client_secret or a body.
"""

import asyncio
import secrets
from collections import Counter, deque
from dataclasses import dataclass, field
from typing import Any

RING = 20_000


@dataclass(slots=True, eq=False)
class Row:
    """One request. `status` stays None when no status was sent: see `outcome`, one of open, answered, dropped."""

    seq: int
    at: float
    method: str
    path: str
    operation: str | None
    account: str | None
    idempotency_key: str | None
    order_id: str | None
    fault: str | None
    status: int | None = None
    code: str | None = None
    replayed: bool = False
    object_id: str | None = None
    outcome: str = "open"
    request_id: str = field(default_factory=lambda: f"req_{secrets.token_hex(7)}")

    def as_dict(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in COLUMNS}


COLUMNS = tuple(Row.__dataclass_fields__)
FILTERS = (
    "method",
    "path",
    "operation",
    "account",
    "idempotency_key",
    "order_id",
    "fault",
    "outcome",
    "status",
    "code",
    "object_id",
)


class Record:
    def __init__(self, ring: int = RING) -> None:
        self.rows: deque[Row] = deque(maxlen=ring)
        self.received = 0
        self.in_flight = 0
        self.max_in_flight = 0
        self.replayed = 0
        self.answers: Counter[str] = Counter()
        self._watches: list[_Watch] = []

    def open(self, row: Row) -> None:
        self.received += 1
        self.in_flight += 1
        self.max_in_flight = max(self.max_in_flight, self.in_flight)
        self.rows.append(row)
        self.changed(row)

    def close(self, row: Row, *, answered: bool) -> None:
        """`answered` is whether a whole answer was handed to the connection."""
        row.outcome = "answered" if answered else "dropped"
        self.in_flight -= 1
        self.replayed += row.replayed
        self.answers[f"{row.operation or 'none'} {row.status if answered else 'dropped'}"] += 1
        self.changed(row)

    def changed(self, row: Row) -> None:
        """Something of the row is worth being seen by those who wait."""
        for watch in self._watches:
            watch.look_at(row)

    def select(self, *, since: int = 0, limit: int | None = None, where: dict[str, str]) -> list[Row]:
        """Rows numbered after `since`, oldest first, whose columns read as `where` says."""
        rows: list[Row] = []
        for row in self.rows:
            if limit is not None and len(rows) >= limit:
                break
            if _fits(row, since, where):
                rows.append(row)
        return rows

    async def wait_for(self, want: int, *, since: int, where: dict[str, str], timeout_s: float) -> None:
        """Return when `want` rows are as described, or when the time has run out."""
        watch = _Watch(want, since, where)
        for row in self.rows:
            watch.look_at(row)
        self._watches.append(watch)
        try:
            async with asyncio.timeout(timeout_s):
                await watch.satisfied.wait()
        except TimeoutError:
            return
        finally:
            self._watches.remove(watch)


class _Watch:
    """Someone waiting for rows. It looks at a row only when that changes: cheap even in the middle of a benchmark."""

    def __init__(self, want: int, since: int, where: dict[str, str]) -> None:
        self._want = want
        self._since = since
        self._where = where
        self._fitting: set[int] = set()
        self.satisfied = asyncio.Event()

    def look_at(self, row: Row) -> None:
        if _fits(row, self._since, self._where):
            self._fitting.add(row.seq)
        else:
            self._fitting.discard(row.seq)
        if len(self._fitting) >= self._want:
            self.satisfied.set()


def _fits(row: Row, since: int, where: dict[str, str]) -> bool:
    return row.seq > since and all(_reads(getattr(row, name)) == text for name, text in where.items())


def _reads(value: Any) -> str:
    return "" if value is None else str(value)
