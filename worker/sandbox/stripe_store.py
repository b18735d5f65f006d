"""What the sandbox keeps of PaymentIntents: each one as the JSON it was last answered as, with a small index.

Keeping bytes rather than dicts halves the memory of 100,000 orders (the idempotency layer keeps the very same bytes)
and makes it impossible for one answer to change another. The store knows nothing of Stripe's rules.
"""

import json
import secrets
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

Json = dict[str, Any]


class Scope(NamedTuple):
    """Where an object or key lives: the account it belongs to, and live or test mode. Nothing is shared across."""

    account: str
    livemode: bool


class Version(NamedTuple):
    """The searchable part of an intent as it was from `since` on."""

    since: float
    status: str
    metadata: dict[str, str]
    customer: str | None
    currency: str


@dataclass(slots=True, eq=False)
class Kept:
    intent_id: str
    scope: Scope
    position: int
    created: int
    body: bytes
    versions: list[Version] = field(default_factory=list)

    @property
    def latest(self) -> Version:
        return self.versions[-1]

    @property
    def order_id(self) -> str | None:
        return self.latest.metadata.get("order_id")


class SandboxClock:
    """The wall clock plus what tests moved it on by."""

    def __init__(self) -> None:
        self.offset_s = 0.0

    def now(self) -> float:
        return time.time() + self.offset_s

    def advance(self, seconds: float) -> float:
        """Only forward: a clock that went back would make creation order and key life contradict each other."""
        if seconds < 0:
            raise ValueError("the sandbox clock only moves forward")
        self.offset_s += seconds
        return self.now()


def new_id(prefix: str) -> str:
    """An id in Stripe's shape; random, so that no run of the sandbox repeats an id that some ledger still holds."""
    return f"{prefix}_3{secrets.token_hex(12)}"


def as_json(value: Json) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode()


class IntentStore:
    def __init__(self, clock: SandboxClock) -> None:
        self._clock = clock
        self._by_scope: dict[Scope, list[Kept]] = {}
        self._by_id: dict[str, Kept] = {}
        self._by_order: dict[str, list[Kept]] = {}
        self.by_status: Counter[str] = Counter()
        self.by_order: Counter[str] = Counter()

    def get(self, scope: Scope, intent_id: str) -> Kept | None:
        kept = self._by_id.get(intent_id)
        return kept if kept is not None and kept.scope == scope else None

    def find(self, intent_id: str) -> Kept | None:
        """Across accounts, for the control surface."""
        return self._by_id.get(intent_id)

    def save(self, scope: Scope, intent: Json) -> bytes:
        """Keep the intent as it is now and return its JSON."""
        body = as_json(intent)
        kept = self._by_id.get(intent["id"])
        if kept is None:
            in_scope = self._by_scope.setdefault(scope, [])
            kept = Kept(intent["id"], scope, len(in_scope), intent["created"], body)
            in_scope.append(kept)
            self._by_id[intent["id"]] = kept
        if kept.versions:
            self._count(kept, -1)
        kept.body = body
        kept.versions.append(
            Version(
                self._clock.now(),
                intent["status"],
                dict(intent["metadata"]),
                intent["customer"],
                intent["currency"],
            )
        )
        self._count(kept, 1)
        order_id = kept.order_id
        if order_id is not None:
            of_order = self._by_order.setdefault(order_id, [])
            if kept not in of_order:
                of_order.append(kept)
        return body

    def newest_first(self, scope: Scope, *, after: Kept | None = None) -> Iterator[Kept]:
        in_scope = self._by_scope.get(scope, [])
        start = len(in_scope) if after is None else after.position
        return (in_scope[position] for position in range(start - 1, -1, -1))

    def newer_than(self, scope: Scope, kept: Kept) -> Iterator[Kept]:
        """Oldest first."""
        in_scope = self._by_scope.get(scope, [])
        return (in_scope[position] for position in range(kept.position + 1, len(in_scope)))

    def of_order(self, order_id: str) -> list[Kept]:
        """Every intent that has, or once had, this metadata.order_id, in any account; oldest first."""
        return self._by_order.get(order_id, [])

    def everything(self) -> Iterator[Kept]:
        return iter(self._by_id.values())

    def __len__(self) -> int:
        return len(self._by_id)

    def _count(self, kept: Kept, change: int) -> None:
        self.by_status[kept.latest.status] += change
        if kept.order_id is not None:
            self.by_order[kept.order_id] += change
