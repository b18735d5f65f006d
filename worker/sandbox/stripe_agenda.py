"""What is to happen by itself at a time of the sandbox clock: settlements, retries, holds that run out."""

import asyncio
import heapq
from collections.abc import Callable
from itertools import count

from worker.sandbox.stripe_store import SandboxClock


class Agenda:
    """Timers on the sandbox clock; moving that on brings them forward. Without a running loop they only wait."""

    def __init__(self, clock: SandboxClock) -> None:
        self._clock = clock
        self._entries: list[tuple[float, int, Callable[[], object]]] = []
        self._numbers = count()
        self._timer: asyncio.TimerHandle | None = None
        self._closed = False
        clock.when_moved(self._arm)

    def after(self, seconds: float, do: Callable[[], object]) -> None:
        """Entries due at the same time are done in the order they were made."""
        entry = (self._clock.now() + seconds, next(self._numbers), do)
        heapq.heappush(self._entries, entry)
        if self._entries[0] is entry:
            self._arm()

    def close(self) -> None:
        """Nothing more happens."""
        self._closed = True
        self._entries.clear()
        self._disarm()

    def _arm(self) -> None:
        self._disarm()
        if self._entries and not self._closed:
            try:
                loop = asyncio.get_running_loop()
            except RuntimeError:
                return
            self._timer = loop.call_later(max(0.0, self._entries[0][0] - self._clock.now()), self._do_what_is_due)

    def _disarm(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _do_what_is_due(self) -> None:
        now = self._clock.now()
        try:
            while self._entries and self._entries[0][0] <= now:
                heapq.heappop(self._entries)[2]()
        finally:
            self._arm()
