"""Reading what lies in the queue of dead letters, whoever put it there."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from uuid import uuid4

from worker.bus.delivery import LETTER_ID, Delivery, readable_time
from worker.bus.outgoing import ERROR, LAST_SEEN, ORDER_ID, REASON, UNREADABLE_FIELDS
from worker.letter import Landing


@dataclass(frozen=True, slots=True)
class Landed:
    """A dead letter as it arrived. order_id, unreadable: as the worker found them, if it was the worker that landed it.

    Anybody may write these headers: nothing rests on them that concerns money.
    """

    landing: Landing
    order_id: str | None
    unreadable: Mapping[str, str]


def read_landed(delivery: Delivery) -> Landed:
    """What a letter says of itself. Times are None for one that the broker landed, not the worker."""
    headers: Mapping[str, Any] = delivery.arrived.headers or {}
    is_ours = isinstance(headers.get(LETTER_ID), str) and isinstance(headers.get(REASON), str)
    reason = _text(headers.get(REASON)) or _text(headers.get("x-first-death-reason")) or "unknown"
    return Landed(
        landing=Landing(
            landing_id=_landing_id(delivery, headers),
            reason=reason[:60],
            error=_text(headers.get(ERROR)) or "the broker gave the message up before the worker could",
            attempts=delivery.deliveries - 1 if is_ours else 0,
            first_seen=delivery.first_seen if is_ours else None,
            at=readable_time(headers.get(LAST_SEEN)),
            failures=delivery.history,
        ),
        order_id=_text(headers.get(ORDER_ID)),
        unreadable=delivery.unreadable or _texts(headers.get(UNREADABLE_FIELDS)),
    )


def _landing_id(delivery: Delivery, headers: Mapping[str, Any]) -> str:
    """The same for an arrival that is seen again: by our own id of it, or by the broker's account of its deaths."""
    own_id, deaths = delivery.arrived.message_id, headers.get("x-death")
    if not own_id and not deaths:
        return uuid4().hex  # nothing tells two arrivals apart: better one entry too many than a letter not opened
    told = f"{own_id} {deaths!r}"
    return hashlib.sha256(told.encode("utf-8", "backslashreplace")).hexdigest()[:32]


def _text(value: object) -> str | None:
    """Anybody can put a message there, with headers of any kind; no ledger keeps a NUL or half a surrogate pair."""
    if not isinstance(value, str) or not value:
        return None
    return value.encode("utf-8", "backslashreplace").decode().replace("\x00", "\\x00")


def _texts(value: object) -> dict[str, str]:
    told = value.items() if isinstance(value, dict) else ()
    return {name: text for key, inner in told if (name := _text(key)) and (text := _text(inner))}
