"""How fast Stripe may be called. Pure: times are seconds, rates are calls a second.

Stripe allows 25 calls a second on each endpoint unless it has raised that for the account, and says with a 429 when
that was too many. Source: https://docs.stripe.com/rate-limits.
"""

from typing import Final

# Calls that may go at once after a pause, in seconds of the rate: the first second has so much more than the limit.
BURST_S: Final = 0.2
# Nobody leases further ahead; more is a clock that was put back.
MAX_AHEAD_S: Final = 60.0
MAX_AHEAD_TURNS: Final = 1000
# After a 429: this much slower at once, no slower than this part of the limit, and back at this part each second.
SLOWER: Final = 0.7
SLOWEST: Final = 0.1
FASTER_PER_S: Final = 0.05
# Calls of the same moment are refused together; they tell one thing.
SLOW_DOWN_EVERY_S: Final = 1.0


def take(next_at: float, *, count: int, per_second: float, now: float) -> tuple[float, float]:
    """When the first of `count` turns is, and when the turn after the last."""
    first_at = max(min(next_at, now + MAX_AHEAD_S + MAX_AHEAD_TURNS / per_second), now - BURST_S)
    return first_at, first_at + count / per_second


def per_second_now(limit: float, *, slowed_to: float | None, slowed_at: float | None, now: float) -> float:
    """The rate to keep to: back up from where it was slowed to, in a straight line, to the limit.

    A refusal that lies ahead was seen by a clock that was put back since, and tells nothing of now.
    """
    if slowed_to is None or slowed_at is None or slowed_at > now + SLOW_DOWN_EVERY_S:
        return limit
    return min(limit, slowed_to + limit * FASTER_PER_S * max(0.0, now - slowed_at))


def slowed(per_second: float, *, limit: float) -> float:
    """The rate after one more refusal."""
    return max(limit * SLOWEST, per_second * SLOWER)
