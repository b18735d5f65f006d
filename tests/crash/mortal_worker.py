"""A worker that dies by SIGKILL at a line of its own code, on request. Run as a program; see `Mortals`.

Its argument is a JSON object. {"die_at": "file.py:12", "order_id": "…"} has it be a real worker, traced, that kills
itself the first time that line is about to run for that order. "freeze_at" has it stop by SIGSTOP instead, once.
Without either it lives; with "record" it writes the lines that ran, in their order, when it stops. "settings" are its
own; "constants" replace those of its modules: {"publish_events.RELAY_EVERY_S": 0.1}.
"traced" names other files than those of the spine. "argv" has it be a command of the operators' desk instead of a
worker: then every line is its own.
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
import time
from importlib import import_module
from pathlib import Path
from types import FrameType
from typing import Any

import worker
from worker.app import run_worker
from worker.cli import main as main_of_the_desk
from worker.logs import configure_logging
from worker.settings import read_settings

# What an order passes through, from the delivery to its settlement.
TRACED = (
    "process_order.py",
    "decide_payment.py",
    "find_evidence.py",
    "resolve_unknown.py",
    "read_order.py",
    "publish_events.py",
    "reply_to_order.py",
    "moves.py",
    "order_moves.py",
    "outgoing.py",
    "publisher.py",
    "delivery.py",
    "stripe_gateway.py",
    "stripe_wire.py",
    "stripe_answer.py",
)

# What a command at the desk passes through.
TRACED_AT_THE_DESK = (
    "replay.py",
    "replayer.py",
    "edit.py",
    "discard.py",
    "transfer.py",
    "letters.py",
    "letter_moves.py",
    "replays.py",
    "outgoing.py",
)

# Whichever order comes first opens the connection, so these lines belong to none.
NOT_OF_AN_ORDER = ("_open_channel",)

HOME = Path(worker.__file__).parent
# A life is short here, and no Stripe repairs anything by itself.
CONSTANTS = {"find_evidence.SETTLES_S": 0}
# Between two looks at what the ledger's threads do; what was handed to one has begun by then.
LOOK_S = 0.05

_body: contextvars.ContextVar[bytes] = contextvars.ContextVar("body", default=b"")


class Tracer:
    """Knows which order a line runs for: by the delivery of its task, or by the values at hand (ledger threads)."""

    def __init__(
        self, order_id: str, *, die_at: str | None, freeze_at: str | None, traced: tuple[str, ...] = TRACED
    ) -> None:
        self._order_id = order_id
        self._traced = traced
        self._files = {str(path): str(path.relative_to(HOME)) for path in HOME.rglob("*.py") if path.name in traced}
        self._die_at = die_at
        self._freeze_at = freeze_at
        self._records = die_at is None and freeze_at is None
        self.lines: dict[str, None] = {}

    def __call__(self, frame: FrameType, event: str, _: Any) -> Any:
        """Asked for every call that Python makes: most of what a traced life costs."""
        code = frame.f_code
        if code.co_filename not in self._files or code.co_name in NOT_OF_AN_ORDER:
            return None
        if code.co_name == "process":
            _body.set(frame.f_locals["delivery"].body)
        return self._on_line

    def _on_line(self, frame: FrameType, event: str, _: Any) -> Any:
        if event == "line":
            path = frame.f_code.co_filename
            line = f"{self._files[path]}:{frame.f_lineno}"
            if line == self._die_at and self._is_of_order(frame):
                os.kill(os.getpid(), signal.SIGKILL)
            if line == self._freeze_at and self._is_of_order(frame):
                self._freeze_at = None
                wait_for_quiet()
                os.kill(os.getpid(), signal.SIGSTOP)
            is_new = self._records and line not in self.lines and frame.f_lineno in statements(path)
            if is_new and self._is_of_order(frame):
                self.lines[line] = None
        return self._on_line

    def _is_of_order(self, frame: FrameType) -> bool:
        at_the_desk = self._traced is TRACED_AT_THE_DESK
        return at_the_desk or self._order_id.encode() in _body.get() or self._order_id in repr(frame.f_locals)


def wait_for_quiet() -> None:
    """Let what is in a ledger's thread end: a transaction that is frozen holds up everybody else."""
    time.sleep(LOOK_S)
    while any(map(is_in_ledger, sys._current_frames().values())):
        time.sleep(LOOK_S)


def is_in_ledger(frame: FrameType | None) -> bool:
    """Whether a thread runs something of it, however far down; the loop's own, which asks, does not."""
    while frame and not frame.f_code.co_filename.startswith(str(HOME / "ledger")):
        frame = frame.f_back
    return frame is not None


@functools.cache
def statements(path: str) -> frozenset[int]:
    """Where the statements of a file start: a call spread over ten lines is one place to die at, not ten."""
    return frozenset(node.lineno for node in ast.walk(ast.parse(Path(path).read_text())) if isinstance(node, ast.stmt))


def live(request: dict[str, Any]) -> int:
    """One worker's life; its exit code."""
    configure_logging(level="info", as_json=True)
    for name, value in (CONSTANTS | request.get("constants", {})).items():
        module, _, constant = name.rpartition(".")
        setattr(import_module(f"worker.{module}"), constant, value)
    tracer = Tracer(
        request.get("order_id", ""),
        die_at=request.get("die_at"),
        freeze_at=request.get("freeze_at"),
        traced=TRACED_AT_THE_DESK if "argv" in request else tuple(request.get("traced", TRACED)),
    )
    # A command that is only to come to its end is left alone: tracing costs more than what it does.
    if "order_id" in request or request.keys() & {"die_at", "record"}:
        threading.settrace(tracer)
        sys.settrace(tracer)
    code = 0
    if "argv" in request:
        code = main_of_the_desk(request["argv"])
    else:
        asyncio.run(run_worker(read_settings(os.environ | request.get("settings", {}))))
    sys.settrace(None)
    if "record" in request:
        Path(request["record"]).write_text(json.dumps(list(tracer.lines)))
    return code


if __name__ == "__main__":
    sys.exit(live(json.loads(sys.argv[1])))
