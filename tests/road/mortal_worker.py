"""A worker that dies by SIGKILL at a line of its own code, on request. Run as a program; see `Mortals`.

It is a fork server: the imports are paid once, and each request {"die_at": "file.py:12", "order_id": "…"} forks a real
worker, traced, that kills itself the first time that line is about to run for that order. Without "die_at" it lives;
with "record" it writes the lines that ran, in their order, when it stops.
"""

import ast
import asyncio
import contextvars
import functools
import json
import os
import signal
import sys
import threading
import traceback
from pathlib import Path
from types import FrameType
from typing import Any

from worker import find_evidence
from worker.app import run_worker
from worker.settings import read_settings
from worker.telemetry import configure_logging

# What an order passes through, from the delivery to its settlement.
TRACED = (
    "process_order.py",
    "decide_payment.py",
    "find_evidence.py",
    "read_order.py",
    "publish_events.py",
    "reply_to_order.py",
    "moves.py",
    "outgoing.py",
    "publisher.py",
    "delivery.py",
    "stripe_gateway.py",
)

# Whichever order comes first opens the connection, so these lines belong to none.
NOT_OF_AN_ORDER = ("_open_channel",)

_body: contextvars.ContextVar[bytes] = contextvars.ContextVar("body", default=b"")


class Tracer:
    """Knows which order a line runs for: by the delivery of its task, or by the values at hand (ledger threads)."""

    def __init__(self, order_id: str, die_at: str | None) -> None:
        self._order_id = order_id
        self._die_at = die_at
        self.lines: dict[str, None] = {}

    def __call__(self, frame: FrameType, event: str, _: Any) -> Any:
        code = frame.f_code
        if event != "call" or "/worker/" not in code.co_filename or Path(code.co_filename).name not in TRACED:
            return None
        if code.co_name in NOT_OF_AN_ORDER:
            return None
        if code.co_name == "process":
            _body.set(frame.f_locals["delivery"].body)
        return self._on_line

    def _on_line(self, frame: FrameType, event: str, _: Any) -> Any:
        if event == "line":
            path = Path(frame.f_code.co_filename)
            line = f"{path.name}:{frame.f_lineno}"
            if self._die_at is None:
                if line not in self.lines and frame.f_lineno in statements(path) and self._is_of_order(frame):
                    self.lines[line] = None
            elif line == self._die_at and self._is_of_order(frame):
                os.kill(os.getpid(), signal.SIGKILL)
        return self._on_line

    def _is_of_order(self, frame: FrameType) -> bool:
        return self._order_id.encode() in _body.get() or self._order_id in repr(frame.f_locals)


@functools.cache
def statements(path: Path) -> frozenset[int]:
    """Where the statements of a file start: a call spread over ten lines is one place to die at, not ten."""
    return frozenset(node.lineno for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.stmt))


def live(request: dict[str, Any]) -> None:
    """One worker's life, in the forked child."""
    log = os.open(request["log"], os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.dup2(log, 1)
    os.dup2(log, 2)
    configure_logging(level="info", as_json=True)
    find_evidence.SETTLES_S = 0  # type: ignore[misc] - a life is short here, and no Stripe repairs anything
    tracer = Tracer(request.get("order_id", ""), request.get("die_at"))
    if request.get("order_id"):
        threading.settrace(tracer)
        sys.settrace(tracer)
    asyncio.run(run_worker(read_settings(os.environ | request.get("settings", {}))))
    sys.settrace(None)
    if "record" in request:
        Path(request["record"]).write_text(json.dumps(list(tracer.lines)))


def main() -> None:
    for line in sys.stdin:
        request = json.loads(line)
        pid = os.fork()
        if pid == 0:
            try:
                live(request)
            except BaseException:  # noqa: BLE001 - a fork must never return into the server's loop
                traceback.print_exc()
                os._exit(1)
            os._exit(0)
        print(json.dumps({"pid": pid}), flush=True)
        _, status = os.waitpid(pid, 0)
        print(json.dumps({"exit": os.waitstatus_to_exitcode(status)}), flush=True)


if __name__ == "__main__":
    main()
