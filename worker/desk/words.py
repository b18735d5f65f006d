"""What the words that choose letters mean, the same for every command."""

import argparse
import getpass
import socket

from worker.desk.letter_records import told_moment
from worker.errors import ConfigurationError
from worker.ledger.letters import LetterFilter
from worker.letter import LetterState


def chosen_letters(arguments: argparse.Namespace, *, default: LetterState | None = LetterState.OPEN) -> LetterFilter:
    """The letters that the words mean. default: the state where none is named."""
    state = getattr(arguments, "state", None)
    if state == "all" or (state is None and default is None):
        states: tuple[LetterState, ...] = ()
    else:
        states = (LetterState(state) if state else default or LetterState.OPEN,)
    return LetterFilter(
        ids=tuple(dict.fromkeys(getattr(arguments, "ids", ()))),
        states=states,
        reason=arguments.reason,
        order_id=arguments.order,
        group_id=arguments.group,
        since=arguments.since,
        moved_at=arguments.at,
        text=arguments.text,
    )


def require_narrow(chosen: LetterFilter, *, has_all: bool) -> None:
    """Raises ConfigurationError for a choice of everything that does not say so, or that contradicts itself."""
    if chosen.is_everything and not has_all:
        raise ConfigurationError("this would take every letter: choose some by id or by a filter, or say --all")
    if has_all and not chosen.is_everything:
        raise ConfigurationError("--all and a choice at once: say one of them")


def described(chosen: LetterFilter) -> str:
    """The choice in words, for the history."""
    told = [
        f"{name} {value}"
        for name, value in (
            ("reason", chosen.reason),
            ("order", chosen.order_id),
            ("group", chosen.group_id),
            ("since", chosen.since.isoformat() if chosen.since else None),
            ("at", told_moment(chosen.moved_at) if chosen.moved_at else None),
            ("text", repr(chosen.text) if chosen.text else None),
        )
        if value
    ]
    if chosen.ids:
        told.append(f"{len(chosen.ids)} by id")
    return ", ".join(told) or "all"


def operator() -> str:
    """Who is at the desk: the name and the machine, as the system has them."""
    try:
        name = getpass.getuser()
    except (KeyError, OSError):  # no such user in a container
        name = "?"
    return f"{name}@{socket.gethostname()}"[:100]
