"""What the desk's commands print: tables for people, JSON for programs, nothing that steers a terminal."""

import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from textwrap import wrap
from typing import Any, Final, NoReturn

from rich.console import Console
from rich.markup import escape
from rich.padding import Padding
from rich.table import Table

# Not on a terminal there is no width to fit, and a folded id could be neither copied nor grepped.
PIPED_WIDTH: Final = 200
# What a column that is folded needs to be read.
FOLDED_WIDTH: Final = 16
POINT: Final = "- "


class _PipedConsole(Console):
    def on_broken_pipe(self) -> NoReturn:
        """Leaves `… | head` to the command line, where rich would end with 1."""
        raise BrokenPipeError


def console() -> Console:
    """Standard output: colour and its own width on a terminal, plain and wide elsewhere."""
    return _PipedConsole(width=None if sys.stdout.isatty() else PIPED_WIDTH, highlight=False, emoji=False)


def print_json(value: object) -> None:
    """For programs, in ASCII: what a stranger wrote must not steer a terminal here either. Times are ISO 8601."""
    sys.stdout.write(json.dumps(value, indent=2, default=_plain) + "\n")


def print_table(headings: Mapping[str, bool], rows: Iterable[Sequence[object]]) -> None:
    """headings: each with whether it may be folded; ids may not, or they could not be copied.

    Where the terminal is too narrow for that, a row is a line of what may not be folded, and the rest below it.
    """
    told = [tuple(visible(str(cell)) for cell in row) for row in rows]
    screen = console()
    if screen.width < _least_width(headings, told):
        for row in told:
            kept = [cell for cell, may_fold in zip(row, headings.values(), strict=True) if not may_fold]
            screen.print(escape("  ".join(kept)), soft_wrap=True)
            for cell, (heading, may_fold) in zip(row, headings.items(), strict=True):
                if may_fold:
                    screen.print(Padding(escape(f"{heading}: {cell}"), (0, 0, 0, 2)))
        return
    table = Table(box=None, pad_edge=False, header_style="bold")
    for heading, may_fold in headings.items():
        table.add_column(heading, overflow="fold", no_wrap=not may_fold)
    for row in told:
        table.add_row(*map(escape, row))
    screen.print(table)


def _least_width(headings: Mapping[str, bool], rows: Sequence[Sequence[str]]) -> int:
    widths = [
        FOLDED_WIDTH if may_fold else max(map(len, (heading, *(row[number] for row in rows))))
        for number, (heading, may_fold) in enumerate(headings.items())
    ]
    return sum(widths) + 2 * len(widths)


def print_pairs(pairs: Mapping[str, object]) -> None:
    """Name and value, a line each."""
    console().print(_pairs(pairs))


def print_block(heading: str, pairs: Mapping[str, object]) -> None:
    """A line that is not folded, so that ids in it can be copied; below it names and values, further in."""
    screen = console()
    screen.print(escape(visible(heading)), style="bold", soft_wrap=True)
    screen.print(Padding(_pairs(pairs), (0, 0, 0, 2)))


def _pairs(pairs: Mapping[str, object]) -> Table:
    table = Table(box=None, pad_edge=False, show_header=False)
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in pairs.items():
        table.add_row(escape(name), escape(visible(str(value))))
    return table


def say(text: str = "") -> None:
    """A line; what a stranger wrote in it is escaped, and makes no second one."""
    console().print(escape(visible(text)), soft_wrap=True)


def say_point(text: str) -> None:
    """A point of a list; on a terminal that is too narrow it goes on at the next word, further in."""
    told = visible(text)
    screen = console()
    width = screen.width if sys.stdout.isatty() else len(told) + len(POINT)
    for line in wrap(
        told,
        width,
        initial_indent=POINT,
        subsequent_indent=" " * len(POINT),
        break_long_words=False,
        break_on_hyphens=False,
    ):
        screen.print(escape(line), soft_wrap=True)


def print_body(body: bytes) -> None:
    """A message's body, as many lines as it has; below it comes nothing of ours."""
    for line in body.decode("utf-8", "backslashreplace").split("\n"):
        say(line)


def visible(text: str) -> str:
    """Control characters spelled out: a message must not steer the terminal that shows it, nor forge a line."""
    return "".join(letter if letter.isprintable() else repr(letter)[1:-1] for letter in text)


def counted(number: int, what: str) -> str:
    """ "1 letter", "3 letters"."""
    return f"{number} {what}" if number == 1 else f"{number} {what}s"


def ago(moment: datetime | None, *, now: datetime) -> str:
    """Relative, as one reads it at night."""
    return span((now - moment).total_seconds()) if moment else "?"


def span(seconds: float) -> str:
    """A time in its largest unit."""
    for size, unit in ((86_400, "d"), (3_600, "h"), (60, "min")):
        if seconds >= size:
            return f"{seconds / size:.0f} {unit}"
    return f"{max(0, seconds):.0f} s"


def told_time(moment: datetime, *, now: datetime) -> str:
    """A time that has come, and how long ago."""
    return f"{moment.isoformat(timespec='seconds')} ({ago(moment, now=now)} ago)"


def told_due(moment: datetime, *, now: datetime) -> str:
    """A time by which something must be done, and how long that is; rounded down, since it is too late after that."""
    left_s = (moment - now).total_seconds()
    if left_s <= 0:
        return told_time(moment, now=now)
    hours = int(left_s // 3600)
    left = f"{hours // 24} d" if hours > 72 else f"{hours} h" if hours else f"{int(left_s // 60)} min"
    return f"{moment.isoformat(timespec='seconds')} (in {left})"


def _plain(value: object) -> Any:
    return value.isoformat() if isinstance(value, datetime) else str(value)
