"""What the sandbox keeps of its objects: each one as the JSON it was last answered as, with a small index.

Keeping bytes rather than dicts halves the memory of 100,000 orders (the idempotency layer and the events keep the
very same bytes) and makes it impossible for one answer to change another. The stores know nothing of Stripe's rules.
"""

import json
import secrets
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Generic, NamedTuple, TypeVar

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
    object_id: str
    scope: Scope
    position: int
    created: int
    body: bytes


@dataclass(slots=True, eq=False)
class KeptIntent(Kept):
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
        self._watchers: list[Callable[[], None]] = []

    def when_moved(self, call: Callable[[], None]) -> None:
        self._watchers.append(call)

    def now(self) -> float:
        return time.time() + self.offset_s

    def advance(self, seconds: float) -> float:
        """Only forward: a clock that went back would make creation order and key life contradict each other."""
        if seconds < 0:
            raise ValueError("the sandbox clock only moves forward")
        self.offset_s += seconds
        for call in self._watchers:
            call()
        return self.now()


def new_id(prefix: str) -> str:
    """An id in Stripe's shape; random, so that no run of the sandbox repeats an id that some ledger still holds."""
    return f"{prefix}_3{secrets.token_hex(12)}"


def as_json(value: Json) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode()


K = TypeVar("K", bound=Kept)


class Shelf(Generic[K]):
    """Objects of one kind: by id, and within an account and mode in the order they were made."""

    def __init__(self) -> None:
        self._by_id: dict[str, K] = {}
        self._by_scope: dict[Scope, list[K]] = {}
        self._dropped: Counter[Scope] = Counter()

    def get(self, scope: Scope, object_id: str) -> K | None:
        kept = self._by_id.get(object_id)
        return kept if kept is not None and kept.scope == scope else None

    def find(self, object_id: str) -> K | None:
        """Across accounts, for the control surface."""
        return self._by_id.get(object_id)

    def next_position(self, scope: Scope) -> int:
        return len(self._by_scope.get(scope, ())) + self._dropped[scope]

    def put(self, kept: K) -> None:
        """A new one, at the next position."""
        self._by_id[kept.object_id] = kept
        self._by_scope.setdefault(kept.scope, []).append(kept)

    def newest_first(self, scope: Scope, *, after: K | None = None) -> Iterator[K]:
        in_scope = self._by_scope.get(scope, [])
        start = len(in_scope) if after is None else after.position - self._dropped[scope]
        return (in_scope[index] for index in range(start - 1, -1, -1))

    def newer_than(self, scope: Scope, kept: K) -> Iterator[K]:
        """Oldest first."""
        in_scope = self._by_scope.get(scope, [])
        return (in_scope[index] for index in range(kept.position - self._dropped[scope] + 1, len(in_scope)))

    def drop_older_than(self, scope: Scope, moment: float) -> None:
        """Forget those made before; cheap while there are none."""
        in_scope = self._by_scope.get(scope)
        if not in_scope or in_scope[0].created >= moment:
            return
        old = next((index for index, kept in enumerate(in_scope) if kept.created >= moment), len(in_scope))
        for kept in in_scope[:old]:
            del self._by_id[kept.object_id]
        del in_scope[:old]
        self._dropped[scope] += old

    def everything(self) -> Iterator[K]:
        return iter(self._by_id.values())

    def __len__(self) -> int:
        return len(self._by_id)


class IntentStore(Shelf[KeptIntent]):
    def __init__(self, clock: SandboxClock) -> None:
        super().__init__()
        self._clock = clock
        self._by_order: dict[str, list[KeptIntent]] = {}
        self.by_status: Counter[str] = Counter()
        self.by_order: Counter[str] = Counter()

    def save(self, scope: Scope, intent: Json) -> bytes:
        """Keep the intent as it is now and return its JSON."""
        body = as_json(intent)
        kept = self._by_id.get(intent["id"])
        if kept is None:
            kept = KeptIntent(intent["id"], scope, self.next_position(scope), intent["created"], body)
            self.put(kept)
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

    def of_order(self, order_id: str) -> list[KeptIntent]:
        """Every intent that has, or once had, this metadata.order_id, in any account; oldest first."""
        return self._by_order.get(order_id, [])

    def _count(self, kept: KeptIntent, change: int) -> None:
        self.by_status[kept.latest.status] += change
        if kept.order_id is not None:
            self.by_order[kept.order_id] += change
