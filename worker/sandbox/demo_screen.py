"""How the demo reads: colours and a moving bar on a terminal, plain lines anywhere else."""

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from io import TextIOWrapper
from pathlib import Path
from typing import Final

from rich.console import Console
from rich.padding import Padding
from rich.progress import BarColumn, Progress, ProgressColumn, SpinnerColumn, TextColumn
from rich.table import Table
from rich.text import Text

from schemas import to_major
from worker.sandbox.demo_verdict import PlacedOrder, PlayedFact, SeenEvent, Sighting

INDENT: Final = 3
MAX_WIDTH: Final = 100  # longer lines are harder to read
WHOLE_IDS_FROM: Final = 100  # columns that the table takes with uncut intent ids
STYLES: Final = {
    "succeeded": "green",
    "payment.intent_created": "green",
    "payment.failed": "yellow",
    "payment.succeeded": "green",
    "payment.settled": "green",
    "payment.refunded": "yellow",
    "payment.dispute_opened": "yellow",
}


class Screen:
    """Writes to standard output. No text given to it is read as markup."""

    def __init__(self) -> None:
        if isinstance(sys.stdout, TextIOWrapper):
            sys.stdout.reconfigure(errors="replace")  # an arrow that a terminal cannot show must not end the demo
        self._console = Console(highlight=False, markup=False, emoji=False)
        self._step = 0

    # What is dim is the telling; what is not is what really happened.

    def title(self, name: str, what: str) -> None:
        self.space()
        self._line("", Text.assemble((name, "bold"), (f"   {what}", "dim")), indent=0)

    def step(self, heading: str, sentences: str) -> None:
        """A numbered part of the story, and what it shows."""
        self._step += 1
        self.space()
        self._line((f"{self._step}  ", "bold cyan"), Text(heading, "bold"), indent=0)
        self.say(sentences)
        self.space()

    def say(self, sentences: str) -> None:
        self._line("", Text(sentences, "dim"))

    def space(self) -> None:
        self._console.print()

    def fact(self, name: str, value: str) -> None:
        self._line((f"{name:<14}", "cyan"), Text(value))

    def done(self, text: str) -> None:
        self._line(("✓ ", "green"), Text(text))

    def killed(self, text: str) -> None:
        self._line(("✗ ", "bold red"), Text(text, "bold"))

    def sent(self, order_id: str, amount: str, currency: str, note: str = "") -> None:
        self._line(("→ ", "blue"), Text.assemble(f"{order_id}  {amount:>8} {currency.upper()}", (f"  {note}", "dim")))

    def happened(self, text: str) -> None:
        """What somebody outside did, past the bus."""
        self._line(("• ", "blue"), Text(text))

    def heard(self, event: SeenEvent, before: int) -> None:
        """before: how many came under the same id already."""
        kind = (f"{event.type:<22}", STYLES.get(event.type, ""))
        told = _told(event.amounts, event.currency) or event.status or ""
        again = ("  again" if before else "", "dim")
        self._line(("← ", "magenta"), Text.assemble(f"{event.order_id}  ", kind, f"  {told}", again))

    def table(self, orders: Sequence[PlacedOrder], seen: Sighting) -> None:
        """One row for each order: what Stripe has of it, and what the bus has said."""
        table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold cyan")
        for heading in ("order", "amount", "status at Stripe", "intent id", "intents", "events"):
            is_number = heading in ("amount", "intents", "events")
            table.add_column(heading, justify="right" if is_number else "left", overflow="fold")
        for order in orders:
            intents, events = seen.intents_of(order.order_id), seen.outcomes_of(order.order_id)
            table.add_row(
                order.order_id,
                f"{order.data.amount:f} {order.data.currency.upper()}",
                Text("\n").join(Text(intent.status, STYLES.get(intent.status, "")) for intent in intents),
                "\n".join(self._short(intent.payment_id) for intent in intents),
                _count(len(intents)),
                _counted(events),
            )
        self._console.print(Padding(table, (0, 0, 0, INDENT), expand=False))

    def later_table(self, played: Sequence[PlayedFact], seen: Sighting) -> None:
        """One row for each thing that happened to a payment later: what Stripe has of it, and what the bus has said."""
        table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold cyan")
        for heading in ("order", "afterwards", "amounts at Stripe", "times", "events"):
            is_number = heading in ("times", "events")
            table.add_column(heading, justify="right" if is_number else "left", overflow="fold")
        for fact in played:
            there = seen.facts.get(fact.what, [])
            table.add_row(
                fact.order_id,
                fact.what,
                "\n".join(_told(amounts, fact.currency) for amounts in there),
                _count(len(there)),
                _counted(seen.events_of(fact.order_id, fact.promises)),
            )
        self._console.print(Padding(table, (0, 0, 0, INDENT), expand=False))

    def verdict(self, sentences: Sequence[str]) -> None:
        self.space()
        for sentence in sentences:
            self._line(("✓  ", "bold green"), Text(sentence, "bold green"), indent=0)

    def stopped(self) -> None:
        self.space()
        self._line("", Text("Stopped. What the demo had started is ended and removed."))

    def wrong(self, faults: Sequence[str], log: Path | None = None) -> None:
        """What was not as promised, and where the worker's log is."""
        self.space()
        self._line(("✗  ", "bold red"), Text("This did not come out as promised:", "bold red"), indent=0)
        for fault in faults:
            self._line("- ", Text(fault, "red"))
        if log:
            self._line("", Text("The worker's log is kept:"))
            self._console.print(Text(f"{' ' * INDENT}{log}"), soft_wrap=True)  # unbroken, so that it can be copied

    def next_steps(self, commands: Sequence[tuple[str, str]]) -> None:
        self.space()
        self._line("", Text("What to try next", "bold"))
        for command, what in commands:
            self._line(("$ ", "dim"), Text(command, "cyan"))
            self._line("    ", Text(what, "dim"))

    @contextmanager
    def waiting(self, what: str, total: int | None = None) -> Iterator[Callable[[int], None]]:
        """A moving bar while the block lasts, on a terminal only; the block tells it how many are done."""
        columns: list[ProgressColumn] = [
            TextColumn(" "),
            SpinnerColumn(),
            BarColumn(24),
            TextColumn("{task.description}", style="dim"),
        ]
        if total is not None:
            columns.insert(3, TextColumn("{task.completed}/{task.total}"))
        with Progress(*columns, console=self._console, transient=True, disable=not self._console.is_terminal) as bar:
            task = bar.add_task(what, total=total)
            yield lambda done: bar.update(task, completed=done)

    def _short(self, payment_id: str) -> str:
        return payment_id if self._console.width >= WHOLE_IDS_FROM else f"{payment_id[:3]}…{payment_id[-6:]}"

    def _line(self, mark: str | tuple[str, str], text: Text, *, indent: int = INDENT) -> None:
        """Wrapped between words; what does not fit on the mark's line goes on under the text, not under the mark."""
        lead = Text(" " * indent).append(*([mark] if isinstance(mark, str) else mark))
        width = min(self._console.width, MAX_WIDTH) - lead.cell_len
        for line in text.wrap(self._console, width):
            line.rstrip()
            self._console.print(lead + line, soft_wrap=True)
            lead = Text(" " * lead.cell_len)


def _told(amounts: Mapping[str, int], currency: str) -> str:
    """Minor units as a person reads them: "fee 36.55, net 1213.45 USD"."""
    told = ", ".join(f"{name} {to_major(amount, currency)}" for name, amount in amounts.items())
    return f"{told} {currency.upper()}" if told else ""


def _counted(events: Sequence[SeenEvent]) -> Text:
    types = [
        Text(event.type.removeprefix("payment.").removeprefix("intent_"), STYLES.get(event.type, ""))
        for event in events
    ]
    return Text.assemble(_count(len(events)), " ", Text("/").join(types))


def _count(number: int) -> Text:
    return Text(str(number), "green" if number == 1 else "bold red")
