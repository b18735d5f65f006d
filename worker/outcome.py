"""The closed set of ways in which a delivery ends."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Done:
    """The outcome is in the ledger and told, or will be by the relay: acknowledge."""


@dataclass(frozen=True, slots=True)
class Retry:
    """Later, out of the way of the others. counts: as an attempt."""

    reason: str
    error: str
    delay_s: int
    counts: bool = True


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """A person must see it. `reason` is one word for grouping, `error` says what to mend."""

    reason: str
    error: str
    order_id: str | None = None


@dataclass(frozen=True, slots=True)
class GiveBack:
    """The fault is in the surroundings or we are stopping: back to the queue, and no attempt of the order's."""

    reason: str


Outcome = Done | Retry | DeadLetter | GiveBack
