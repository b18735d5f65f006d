"""Scripted trouble: which requests meet which fault, how often.

A fault stands for something seen between a merchant and Stripe; which part of the request was carried out is the
whole point, so each kind says it.
"""

from collections import Counter
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from random import Random
from typing import Any

# Nothing is carried out, nothing is kept under the key.
BEFORE_WORK = {
    "refuse": "the connection is reset",
    "hang": "no answer until released or the client goes; never carried out",
    "503": "a proxy's HTML page with status 503",
    "429": "the limiter's refusal, with Stripe-Rate-Limited-Reason",
    "lock_timeout": "429 lock_timeout, without a limiter's reason",
    "409": "409 idempotency_key_in_use",
}
# Carried out as usual and kept; it is the answer that suffers.
AFTER_WORK = {
    "answer_lost": "the connection is reset instead of an answer",
    "hang_after_work": "no answer until released or the client goes",
    "half_body": "the headers and half of the body, then the connection is reset",
}
# Fires only where an endpoint is about to execute, so a replay never uses it up.
AT_WORK = {"stored_500": "500, kept under the key; with_object says whether the work was done before it"}
# Carried out, but only delay_s later or when released, whether or not the client is still there.
DELAY = "delay"
KINDS = frozenset({*BEFORE_WORK, *AFTER_WORK, *AT_WORK, DELAY})


@dataclass(frozen=True, slots=True)
class Seen:
    """What a fault can be matched on."""

    method: str
    path: str
    idempotency_key: str | None
    order_id: str | None


@dataclass(slots=True)
class Fault:
    """One entry of the plan. Patterns are shell globs (`*`, `?`), matched with regard to case; None matches all.

    `times` is how often it fires at most, None for no end. `probability` is the chance that a matching request meets
    it, thrown with dice of its own seed, so that the same requests in the same order meet the same faults.
    """

    kind: str
    method: str | None = None
    path: str | None = None
    idempotency_key: str | None = None
    order_id: str | None = None
    times: int | None = 1
    probability: float = 1.0
    seed: int = 0
    with_object: bool = False
    delay_s: float = 0.0
    fired: int = 0
    dice: Random = field(init=False, repr=False)

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"unknown fault kind {self.kind!r}: one of {', '.join(sorted(KINDS))}")
        if not 0 < self.probability <= 1:
            raise ValueError("probability must be above 0 and at most 1")
        if self.times is not None and self.times < 1:
            raise ValueError("times must be at least 1, or null for no end")
        if (self.delay_s > 0) != (self.kind == DELAY):
            raise ValueError("delay_s belongs to the kind delay, and must be positive there")
        self.dice = Random(self.seed)  # noqa: S311 - repeatable dice, not a secret

    def meets(self, seen: Seen) -> bool:
        """Whether it fires for this request; counts it if so."""
        if self.times is not None and self.fired >= self.times:
            return False
        if not (
            (self.method is None or self.method == seen.method)
            and _fits(self.path, seen.path)
            and _fits(self.idempotency_key, seen.idempotency_key)
            and _fits(self.order_id, seen.order_id)
        ):
            return False
        if self.probability < 1 and self.dice.random() >= self.probability:
            return False
        self.fired += 1
        return True

    def describe(self) -> dict[str, Any]:
        names = ("method", "path", "idempotency_key", "order_id", "times", "probability", "seed", "with_object")
        shown = {name: getattr(self, name) for name in names}
        return {"kind": self.kind, **shown, "delay_s": self.delay_s, "fired": self.fired}


class FaultPlan:
    """Faults in the order they were added; of those that match, the first one fires."""

    def __init__(self) -> None:
        self.faults: list[Fault] = []
        self.fired: Counter[str] = Counter()

    def add(self, given: dict[str, Any]) -> Fault:
        """Raises ValueError with a sentence for whoever wrote the plan."""
        unknown = given.keys() - FIELDS
        if unknown:
            raise ValueError(f"unknown fields {sorted(unknown)}: a fault has {sorted(FIELDS)}")
        if "kind" not in given:
            raise ValueError(f"a fault needs a kind: one of {', '.join(sorted(KINDS))}")
        # A chance without a count is meant to go on; a bare fault is meant to happen once.
        endless = {"times": None} if "probability" in given and "times" not in given else {}
        try:
            fault = Fault(**{**endless, **given})
        except TypeError as error:
            raise ValueError(f"a field of the fault has the wrong type: {error}") from error
        self.faults.append(fault)
        return fault

    def at_arrival(self, seen: Seen) -> Fault | None:
        return self._first(seen, at_work=False)

    def at_work(self, seen: Seen) -> Fault | None:
        return self._first(seen, at_work=True)

    def clear(self) -> None:
        self.faults.clear()

    def _first(self, seen: Seen, *, at_work: bool) -> Fault | None:
        for fault in self.faults:
            if (fault.kind in AT_WORK) == at_work and fault.meets(seen):
                self.fired[fault.kind] += 1
                return fault
        return None


FIELDS = frozenset(
    {
        "kind", "method", "path", "idempotency_key", "order_id", "times", "probability", "seed", "with_object",
        "delay_s",
    }
)  # fmt: skip


def _fits(glob: str | None, value: str | None) -> bool:
    return glob is None or (value is not None and fnmatchcase(value, glob))
