"""Who is measured: the worker with either ledger, and the peers in peers/, each as a command."""

import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import Path

NODE_WORKER = Path(__file__).parent / "peers" / "node_worker"


class LedgerKind(StrEnum):
    """Where a contender keeps what it did."""

    NONE = "none"
    SQLITE = "SQLite"
    POSTGRESQL = "PostgreSQL"


@dataclass(frozen=True, slots=True)
class Contender:
    """One who is measured. `command` is run in the project's root; its settings are in the environment.

    The name of one that keeps a ledger says which; the others keep nothing.
    """

    name: str
    command: Sequence[str]
    ledger: LedgerKind = LedgerKind.NONE
    processes: int = 1  # that share queue and ledger

    def times(self, processes: int) -> "Contender":
        """The same, with so many processes."""
        return replace(self, name=f"{self.name}, {processes} processes", processes=processes)


def _python(module: str, *words: str) -> Sequence[str]:
    return (sys.executable, "-m", f"tests.benchmarks.peers.{module}", *words)


_WORKER = (sys.executable, "-m", "worker", "run")
_NODE = ("node", str(NODE_WORKER / "worker.js"))

WORKER_SQLITE = Contender("worker, SQLite", _WORKER, LedgerKind.SQLITE)
WORKER_POSTGRESQL = Contender("worker, PostgreSQL", _WORKER, LedgerKind.POSTGRESQL)
BARE_FLOOR = Contender("bare floor", _python("bare_floor"))
HANDWRITTEN = Contender("hand-written", _python("handwritten"))
FASTSTREAM = Contender("FastStream", _python("faststream_worker"))
FASTSTREAM_AIOHTTP = Contender("FastStream, aiohttp", _python("faststream_worker", "--aiohttp"))
NODE = Contender("Node", _NODE)
NODE_POSTGRESQL = Contender("Node, PostgreSQL", _NODE, LedgerKind.POSTGRESQL)

ALL = (
    WORKER_SQLITE,
    WORKER_POSTGRESQL,
    BARE_FLOOR,
    HANDWRITTEN,
    FASTSTREAM,
    FASTSTREAM_AIOHTTP,
    NODE,
    NODE_POSTGRESQL,
)


def present() -> tuple[Sequence[Contender], str | None]:
    """Those that can run here, and a line about those that cannot."""
    if shutil.which("node") is None:
        why = "Node is not installed: its rows are left out"
    elif not (NODE_WORKER / "node_modules").is_dir():
        why = f"Node's packages are not installed: its rows are left out until `npm ci` was run in {NODE_WORKER}"
    else:
        return ALL, None
    return [each for each in ALL if each not in (NODE, NODE_POSTGRESQL)], why
