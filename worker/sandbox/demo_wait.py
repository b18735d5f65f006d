"""Waiting in the demo: a bar moves on a terminal, and a worker that has died is noticed at once."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Final

from worker.sandbox.demo_screen import Screen
from worker.sandbox.demo_worker import DemoFailed, WorkerProcess

WAIT_S: Final = 25.0  # for what takes a second or two, and some more after the kill
LOOK_EVERY_S: Final = 0.05


async def wait_for_count(
    what: str, count: Callable[[], Awaitable[int]], total: int, *, screen: Screen, worker: WorkerProcess
) -> None:
    """Until `count` reaches the total. Raises DemoFailed after WAIT_S, or where the worker has died."""
    deadline = time.monotonic() + WAIT_S
    with screen.waiting(what, total) as show:
        while (done := await count()) < total:
            worker.must_be_alive()
            if time.monotonic() > deadline:
                raise DemoFailed(f"{what}: only {done} of {total} within {WAIT_S:.0f} s")
            show(done)
            await asyncio.sleep(LOOK_EVERY_S)
