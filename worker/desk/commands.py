"""The desk's words on the command line. What runs is imported only when it is called: `--help` and `run` start fast."""

import argparse
import asyncio
import re
from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta
from functools import partial
from importlib import import_module
from typing import Any, Final

from worker.card_numbers import mask_text

# Of LetterState, whose module takes a tenth of a second to import.
LETTER_STATES: Final = ("open", "replaying", "resolved", "discarded")
_SPAN: Final = re.compile(r"(\d{1,6})\s*(s|min|m|h|d|w)")
_UNITS_S: Final = {"s": 1, "m": 60, "min": 60, "h": 3600, "d": 86_400, "w": 604_800}


def add_desk(commands: Any, command: Callable[[argparse.Namespace], int]) -> None:
    """All commands of the desk. command: what each of them calls; see run_at_desk."""
    add = partial(_add, command=command)
    desk = commands.add_parser("dead-letters", help="what could not be processed, why, and what to do about it")
    actions = desk.add_subparsers(required=True, metavar="ACTION")

    listing = add(actions, "list", "letters:show_list", "show the letters, oldest first")
    add_filters(listing)
    listing.add_argument("--limit", type=positive, default=1000, metavar="N", help="at most N letters (default 1000)")

    groups = add(actions, "groups", "letters:show_groups", "show the letters by cause, with the value at risk")
    add_filters(groups)

    show = add(actions, "show", "letters:show_one", "show all of one letter, and what a replay of it would do")
    show.add_argument("id", metavar="ID")

    history = add(actions, "history", "letters:show_history", "show who did what, when and why")
    history.add_argument("id", nargs="?", metavar="ID", help="of one letter")
    history.add_argument("--order", metavar="ORDER", help="of the letters of this order")
    history.add_argument("--since", type=moment, metavar="TIME", help="since: 90min, 24h, 7d, or an ISO 8601 time")
    history.add_argument("--limit", type=positive, default=1000, metavar="N", help="the last N acts (default 1000)")

    discard = add(actions, "discard", "discard:discard", "close letters for a reason", has_json=False)
    _add_choice(discard)
    discard.add_argument("--why", type=plain_text, required=True, help="the reason, kept in the history")

    restore = add(
        actions, "restore", "discard:restore", "open discarded letters again, or undo an edit", has_json=False
    )
    _add_choice(restore)
    restore.add_argument("--why", type=plain_text, help="the reason, kept in the history")

    replay = add(actions, "replay", "replay:replay", "have the worker try letters again, a few at first")
    _add_choice(replay)
    replay.add_argument("--dry-run", action="store_true", help="say what it would do to each, and touch nothing")
    replay.add_argument("--resume", metavar="REPLAY", help="go on with one that was interrupted; 'last' for the newest")
    replay.add_argument(
        "--share", type=_share, default=0.5, metavar="0.5", help="of STRIPE_RATE_LIMIT, at most (default 0.5)"
    )
    replay.add_argument(
        "--stop-at",
        type=_share,
        default=0.2,
        metavar="0.2",
        help="stop where more than this share of a wave has failed (default 0.2)",
    )
    replay.add_argument(
        "--patience", type=positive, default=60, metavar="S", help="seconds to wait for a wave (default 60)"
    )

    export = add(actions, "export", "transfer:export", "write letters to standard output", has_json=False)
    add_filters(export)

    importing = add(actions, "import", "transfer:take_in", "read letters from a file, all or none", has_json=False)
    importing.add_argument("file", metavar="FILE", help="as export wrote it; - for standard input")
    importing.add_argument("--why", type=plain_text, help="the reason, kept in the history")
    importing.add_argument(
        "--vouch",
        action="store_true",
        help="no call to Stripe was begun for these orders elsewhere: let them be replayed (needs --why)",
    )

    edit = add(actions, "edit", "edit:edit", "put a corrected letter in the place of one, or of each of some")
    _add_choice(edit)
    edit.add_argument("--body", metavar="FILE", help="the whole corrected body of one letter; - for standard input")
    edit.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="FIELD=VALUE",
        help="a field of the order: text, or JSON after := as in confirm:=true; FIELD= alone takes it out",
    )
    edit.add_argument("--dry-run", action="store_true", help="say what it would do to each, and touch nothing")
    edit.add_argument("--why", type=plain_text, help="the reason, kept in the history")

    _add_views(commands, add)


def _add_views(commands: Any, add: Any) -> None:
    """What looks at payments, not at letters."""
    payments = commands.add_parser("payments", help="the life of a payment")
    views = payments.add_subparsers(required=True, metavar="ACTION")
    life = add(views, "show", "payments:show", "calls, keys with their age, evidence, events and letters of an order")
    life.add_argument("order", metavar="ORDER")

    reconciling = add(commands, "reconcile", "reconcile:reconcile", "hold ledger, Stripe and what was told together")
    reconciling.add_argument(
        "--since", type=moment, default="48h", metavar="TIME", help="since: 90min, 24h, 7d, or ISO 8601 (default 48h)"
    )
    reconciling.add_argument("--fix", action="store_true", help="repair what is certain, and tell what was missed")

    telling = add(commands, "retell", "retell:retell", "tell past events again, to one queue alone", has_json=False)
    telling.add_argument("--to", required=True, metavar="QUEUE", help="the subscriber's queue; it must exist")
    telling.add_argument(
        "--since", type=moment, required=True, metavar="TIME", help="since: 90min, 24h, 7d, or an ISO 8601 time"
    )
    telling.add_argument(
        "--type", action="append", default=[], metavar="TYPE", help="only these, such as payment.succeeded"
    )

    add(commands, "status", "status:show", "one screen: is it taking orders, what waits, what is at risk")


def add_filters(parser: argparse.ArgumentParser, *, with_state: bool = True) -> None:
    """--reason, --order, --group, --since, --text and --state."""
    parser.add_argument("--reason", help="those with this reason, such as bad_message")
    parser.add_argument("--order", metavar="ORDER", help="those of this order")
    parser.add_argument("--group", metavar="G", help="those of one group; see dead-letters groups")
    parser.add_argument("--since", type=moment, metavar="TIME", help="landed since: 90min, 24h, 7d, or ISO 8601")
    parser.add_argument("--at", type=moment, metavar="TIME", help="those that one act has moved, which tells when")
    parser.add_argument("--text", metavar="TEXT", help="those with this text in the error or the body")
    if with_state:
        parser.add_argument(
            "--state",
            choices=[*LETTER_STATES, "all"],
            help="open (the default), replaying, resolved, discarded, or all",
        )


def moment(text: str) -> datetime:
    """A time: so long ago (90min, 24h, 7d), or ISO 8601; without a zone it is UTC."""
    if span := _SPAN.fullmatch(text.strip()):
        return datetime.now(UTC) - timedelta(seconds=int(span[1]) * _UNITS_S[span[2]])
    try:
        found = datetime.fromisoformat(text)
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"{text!r} is neither a span such as 90min, 24h or 7d nor an ISO 8601 time"
        ) from None
    return found.replace(tzinfo=UTC) if found.tzinfo is None else found.astimezone(UTC)


def plain_text(text: str) -> str:
    """Text that a ledger may keep: no half surrogates, as a shell passes bytes that are not UTF-8; no card number."""
    return mask_text(text.encode("utf-8", "backslashreplace").decode())


def positive(text: str) -> int:
    """A whole number from 1."""
    number = int(text) if text.isascii() and text.isdigit() else 0
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 1")
    return number


def _share(text: str) -> float:
    try:
        share = float(text)
    except ValueError:
        share = -1.0
    if not 0 < share <= 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a share: above 0, at most 1")
    return share


def run_at_desk(arguments: argparse.Namespace, environment: Mapping[str, str]) -> int:
    """Run the command that the words name; returns its exit code."""
    from worker.logs import configure_logging  # noqa: PLC0415
    from worker.settings import read_settings  # noqa: PLC0415

    module, function = arguments.runs.split(":")
    act = getattr(import_module(f"worker.desk.{module}"), function)
    configure_logging(level="error", as_json=False)
    settings = read_settings(environment, needed=frozenset({"DATABASE_URL"}))
    code: int | None = asyncio.run(act(settings, arguments))
    return code or 0


def _add(
    actions: Any,
    name: str,
    runs: str,
    tells: str,
    *,
    command: Callable[[argparse.Namespace], int],
    has_json: bool = True,
) -> argparse.ArgumentParser:
    """runs: module and function under worker.desk. It takes the settings and the words, and returns an exit code."""
    parser: argparse.ArgumentParser = actions.add_parser(name, help=tells, description=tells[0].upper() + tells[1:])
    if has_json:
        parser.add_argument("--json", action="store_true", help="for programs")
    parser.set_defaults(command=command, runs=runs)
    return parser


def _add_choice(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("ids", nargs="*", metavar="ID", help="letters, by their ids")
    add_filters(parser, with_state=False)
    parser.add_argument("--all", action="store_true", help="every one there is")
