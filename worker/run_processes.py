"""Several workers on one machine, each a process of its own, as replicas are: they share the queue, the ledger and so
the pace. All or none: where one ends by itself the others are stopped, for whoever supervises us to start all anew.
"""

import gc
import os
import random
import signal
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from types import FrameType
from typing import Final

import structlog

from worker.errors import ConfigurationError
from worker.settings import Settings

SIGNALS: Final = (signal.SIGTERM, signal.SIGINT)
MOST_PORT: Final = 65_535
FAULT: Final = 1
# A process that a signal ended is told by this and the signal's number, as shells do it.
KILLED: Final = 128

log: Final = structlog.get_logger()


def settings_of(settings: Settings, number: int) -> Settings:
    """Of the process with this number, from 0: each has an HTTP port of its own. Raises ConfigurationError."""
    port = settings.http_port + number if settings.http_port else 0
    if port > MOST_PORT:
        raise ConfigurationError(f"HTTP_PORT: {settings.http_port} leaves no port for process {number + 1}")
    return settings.model_copy(update={"http_port": port})


def run_processes(count: int, run: Callable[[int], int]) -> int:
    """Fork that many processes, have each run, pass signals on to them; returns 0 where all of them did.

    run: with the process's number; returns its exit code. Nothing may be running in this process yet.
    """
    gc.freeze()  # what is imported is shared: no collection touches, and so copies, its pages
    ours, theirs = os.pipe()
    pids: set[int] = set()
    for number in range(count):
        sys.stdout.flush()
        sys.stderr.flush()
        if pid := os.fork():
            pids.add(pid)
        else:
            os.close(theirs)
            _end_with_parent(ours)
            os._exit(_run_child(run, number))
    os.close(ours)
    is_stopping = False

    def stop(number: int, _: FrameType | None = None) -> None:
        nonlocal is_stopping
        is_stopping = True
        for pid in pids:
            with suppress(ProcessLookupError):
                os.kill(pid, number)

    before = {each: signal.signal(each, stop) for each in SIGNALS}
    code = 0
    try:
        while pids:
            pid, status = os.wait()
            pids.discard(pid)
            ended = os.waitstatus_to_exitcode(status)
            code = code or (ended if ended >= 0 else KILLED - ended)
            if not is_stopping:  # a second signal would cut the others off
                by = {"signal": signal.Signals(-ended).name} if ended < 0 else {"code": ended}
                log.error("process.ended", pid=pid, **by, then="the others are stopped")
                stop(signal.SIGTERM)
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)
        os.close(theirs)
    return code


def _run_child(run: Callable[[int], int], number: int) -> int:
    random.seed()
    try:
        return run(number)
    except SystemExit as error:
        return error.code if isinstance(error.code, int) else FAULT
    finally:
        sys.stdout.flush()
        sys.stderr.flush()


def _end_with_parent(ours: int) -> None:
    """A group of our own, so that a terminal's Ctrl-C comes once, from the parent; and no life after it."""
    os.setpgid(0, 0)

    def wait_for_end() -> None:
        os.read(ours, 1)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=wait_for_end, name="parent", daemon=True).start()
