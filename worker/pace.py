"""Keeps calls to Stripe under a rate. Source: https://docs.stripe.com/rate-limits (25 a second for each endpoint)."""

import asyncio
from collections.abc import Callable
from typing import Final

# Calls that may go at once after a pause. Stripe counts by the second; a fifth of one leaves room for its window.
BURST_S: Final = 0.2


class Pace:
    """Hands out turns, first come first served, at most `per_second` a second."""

    def __init__(self, per_second: float, *, clock: Callable[[], float]) -> None:
        self._gap_s = 1 / per_second
        self._clock = clock
        self._next = clock()

    def reserve(self) -> float:
        """Take the next turn; returns the seconds to wait for it."""
        now = self._clock()
        self._next = max(self._next, now - BURST_S) + self._gap_s
        return max(0.0, self._next - self._gap_s - now)

    async def turn(self) -> None:
        """Wait for a turn. A turn taken and not used is lost, which only slows."""
        wait_s = self.reserve()
        if wait_s > 0:
            await asyncio.sleep(wait_s)
