"""What is asked of a run, what came of it, and how that is shown and kept."""

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from tests.chaos.history import History


@dataclass(frozen=True, slots=True)
class Options:
    """What is asked of one run.

    freezes: workers stopped for longer than their claims live. stored: whether Stripe also keeps a 500 under some keys.
    fault_factor: how much likelier than usual Stripe's faults are.
    """

    seed: int = 1
    orders: int = 400
    workers: int = 2
    kills: int = 20
    freezes: int = 2
    broker_kills: int = 1
    database_restarts: int = 0
    cuts: int = 0
    ledger: str = "sqlite"
    stored: bool = True
    fault_factor: float = 1.0


@dataclass(slots=True)
class Report:
    """What came of one run.

    deaths: workers that ended by themselves. cut_off: calls whose caller was gone when Stripe had done the work.
    webhooks: attempts to deliver one. folder: logs and evidence, if kept.
    """

    seed: int
    options: Options
    seconds: float = 0.0
    kills: int = 0
    deaths: int = 0
    sent: int = 0
    requests: int = 0
    cut_off: int = 0
    webhooks: int = 0
    faults: Counter[str] = field(default_factory=Counter)
    history: History | None = None
    violations: list[str] = field(default_factory=list)
    folder: Path | None = None

    def row(self) -> dict[str, object]:
        """The summary table's row."""
        events = self.history.events if self.history else ()
        distinct = len({event.message_id for event in events})
        return {
            "seed": self.seed,
            "ledger": self.options.ledger,
            "orders": self.options.orders,
            "sent": self.sent,
            "kills": self.kills,
            "freezes": self.options.freezes,
            "broker": self.options.broker_kills,
            "database": self.options.database_restarts,
            "cuts": self.options.cuts,
            "deaths": self.deaths,
            "seconds": f"{self.seconds:.0f}",
            "requests": self.requests,
            "cut off": self.cut_off,
            "faults": self.faults.total(),
            "commands": len(self.history.commands) if self.history else 0,
            "intents": len(self.history.intents) if self.history else 0,
            "refunds": len(self.history.refunds) if self.history else 0,
            "webhooks": self.webhooks,
            "events": distinct,
            "duplicates": len(events) - distinct,
            "letters": len(self.history.letters) if self.history else 0,
            "violations": len(self.violations),
        }


def keep_evidence(folder: Path, history: History) -> None:
    """Beside the workers' logs, what Stripe and the bus saw."""
    told = [{"message_id": event.message_id, "body": event.body.decode()} for event in history.events]
    letters = [
        {"order_id": each.order_id, "reason": each.reason, "content": str(each.content)} for each in history.letters
    ]
    seen = {
        "requests": history.requests,
        "intents": history.intents,
        "refunds": history.refunds,
        "commands": [asdict(command) for command in history.commands],
        "events": told,
        "letters": letters,
    }
    for name, rows in seen.items():
        (folder / f"{name}.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))


def print_table(reports: Sequence[Report]) -> None:
    rows = [report.row() for report in reports]
    widths = {name: max(len(name), *(len(str(row[name])) for row in rows)) for name in rows[0]}
    print("  ".join(name.rjust(width) for name, width in widths.items()))
    for row in rows:
        print("  ".join(str(row[name]).rjust(width) for name, width in widths.items()))
