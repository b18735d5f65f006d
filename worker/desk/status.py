"""`status`: one screen that says whether orders are taken, what waits, and what is at risk.

What cannot be reached is told in its place, and the rest is shown all the same.
"""

import argparse
import asyncio
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final

import aiohttp

from schemas import to_major
from worker.admission import CREATE
from worker.app import bus_names
from worker.bus.queue_depths import queue_depths
from worker.desk.letters import open_ledger, told_values
from worker.desk.screen import ago, print_json, print_pairs, print_table, say
from worker.errors import BusUnavailable, WorkerError
from worker.ledger import figures, letters, moves
from worker.ledger.figures import Calls, MoneyFigures
from worker.ledger.letters import LetterFigures, LetterFilter, LetterGroup
from worker.ledger.moves import Backlog
from worker.letter import LetterState
from worker.settings import Settings

# The worker answers from memory; one that does not is frozen, or is not the worker.
HTTP_TIMEOUT_S: Final = 2
TOP_GROUPS: Final = 5
CAUSE_CHARS: Final = 60
# The relay comes round every few seconds; an event older than this has no queue to go to.
UNTOLD_S: Final = 60
# Where a worker listens on every address, it is asked on this one.
_LOOPBACK: Final = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104 - it is looked up, not listened on

Depth = tuple[int, int] | None


@dataclass(frozen=True, slots=True)
class InLedger:
    """What the ledger tells. per_second: the rate of calls to Stripe that all workers keep to now."""

    workers_alive: int
    per_second: float
    letters: LetterFigures
    groups: Sequence[LetterGroup]
    money: MoneyFigures
    backlog: Backlog


@dataclass(frozen=True, slots=True)
class Seen:
    """What was found, each part with the reason in its place where it could not be reached.

    worker: {part: reason} of what is not well, as the worker at `address` says. queues: ready messages and consumers
    of each, None for one that is not there yet.
    """

    now: datetime
    address: str
    worker: Mapping[str, str] | str
    queues: Mapping[str, Depth] | str
    ledger: InLedger | str


async def show(settings: Settings, arguments: argparse.Namespace) -> int:
    """Look, print, and return 0 where all was seen and nothing needs a person, else 1."""
    now = datetime.now(UTC)
    ledger = await _look_at_ledger(settings, now=now)
    address = _address(settings)
    worker, queues = await asyncio.gather(_ask_worker(address), _look_at_queues(settings))
    seen = Seen(now, address or "", worker, queues, ledger)
    concerns = _concerns(seen, settings)
    if arguments.json:
        print_json(_record(seen, concerns, settings))
    else:
        _print(seen, concerns, settings)
    return 1 if concerns else 0


async def _look_at_ledger(settings: Settings, *, now: datetime) -> InLedger | str:
    limit = settings.stripe_rate_limit
    try:
        async with open_ledger(settings) as ledger:
            alive, per_second, of_letters, groups, money, backlog = await asyncio.gather(
                ledger.run(figures.workers_alive, now=now, within_s=settings.claim_ttl),
                ledger.run(figures.per_second_now, endpoint=CREATE, limit=limit, now=time.time()),
                ledger.run(letters.figures),
                ledger.run(letters.groups, LetterFilter(states=(LetterState.OPEN,))),
                ledger.run(figures.money_figures, now=now, key_horizon_s=settings.stripe_key_horizon),
                ledger.run(moves.backlog),
            )
    except WorkerError as error:
        return str(error)
    return InLedger(alive, per_second, of_letters, groups, money, backlog)


def _address(settings: Settings) -> str | None:
    """Where the worker tells of itself; None where its port cannot be known."""
    host = _LOOPBACK.get(settings.http_host, settings.http_host)
    return f"http://{f'[{host}]' if ':' in host else host}:{settings.http_port}" if settings.http_port else None


async def _ask_worker(address: str | None) -> Mapping[str, str] | str:
    """What is not well, {part: reason}, as the worker says itself; or why it could not be asked."""
    if address is None:
        return "the worker is not asked: HTTP_PORT is 0"
    try:
        timeout = aiohttp.ClientTimeout(total=HTTP_TIMEOUT_S)
        async with aiohttp.ClientSession(timeout=timeout) as session, session.get(f"{address}/readyz") as answer:
            said = await answer.json(content_type=None)
    except TimeoutError:
        return f"nothing answers at {address} within {HTTP_TIMEOUT_S} s"
    except (aiohttp.ClientError, OSError):
        return f"no worker answers at {address}"
    except ValueError:
        said = None
    if not isinstance(said, dict) or not isinstance(said.get("reasons"), dict):
        return f"what answers at {address} is no payment-worker"
    return {str(part): str(reason) for part, reason in said["reasons"].items()}


async def _look_at_queues(settings: Settings) -> Mapping[str, Depth] | str:
    if not settings.has_broker:
        return "AMQP_URL is not set"
    names = bus_names(settings)
    retries = [names.retry_queue(delay_s) for delay_s in names.retry_delays_s]
    try:
        return await queue_depths(
            settings.amqp_url.get_secret_value(), [names.orders_queue, *retries, names.dead_letters_queue]
        )
    except BusUnavailable as error:
        return str(error)


def _consumers(seen: Seen, queue: str) -> int | None:
    """None where the broker was not reached."""
    if isinstance(seen.queues, str):
        return None
    depth = seen.queues.get(queue)
    return depth[1] if depth else 0


def _subscription(seen: Seen, settings: Settings) -> tuple[bool | None, str]:
    """Whether orders are taken, None where nobody could tell; and how that is known, or why it is not so."""
    if not isinstance(seen.worker, str):
        why_not = seen.worker.get("subscription")
        return why_not is None, why_not or f"the worker at {seen.address} says so"
    consumers = _consumers(seen, settings.orders_queue)
    if consumers is not None:
        return consumers > 0, f"the orders queue has {_count(consumers, 'consumer')}; {seen.worker}"
    if not isinstance(seen.ledger, str) and seen.ledger.workers_alive == 0:
        return False, f"the ledger knows of no worker that is alive; {seen.worker}; {seen.queues}"
    return None, f"{seen.worker}; {seen.queues}"


def _concerns(seen: Seen, settings: Settings) -> list[str]:
    """What needs a person, a sentence each."""
    subscribed, because = _subscription(seen, settings)
    found = [] if subscribed else [f"orders are not taken: {because}"]
    if subscribed is None:
        found = ["nobody could tell whether orders are taken: set AMQP_URL, or HTTP_HOST and HTTP_PORT of a worker"]
    if not isinstance(seen.worker, str):
        found += [f"the worker says: {part}: {why}" for part, why in seen.worker.items() if part != "subscription"]
    if isinstance(seen.queues, str):
        if settings.has_broker:
            found.append(f"the broker cannot be asked: {seen.queues}")
    else:
        left = seen.queues.get(settings.dead_letters_queue)
        if left and left[0] and not left[1]:
            found.append(f"{_count(left[0], 'dead letter')} in the broker's queue, and no worker takes them in")
    if isinstance(seen.ledger, str):
        return [*found, f"the ledger cannot be read: {seen.ledger}"]
    return [*found, *_concerns_in_ledger(seen.ledger, now=seen.now)]


def _concerns_in_ledger(ledger: InLedger, *, now: datetime) -> Iterator[str]:
    if number := ledger.money.unknown.count:
        yield f"{_count(number, 'call')} to Stripe with an unknown outcome"
    if number := ledger.money.near_horizon.count:
        yield f"{_count(number, 'key')} near the horizon: past it, asking again tells nothing"
    oldest_untold = ledger.backlog.oldest_untold
    if oldest_untold and (now - oldest_untold).total_seconds() > UNTOLD_S:
        yield f"{_count(ledger.backlog.untold_events, 'event')} untold: is a subscriber's queue missing?"
    if number := ledger.letters.by_state.get(LetterState.OPEN, 0):
        yield f"{_count(number, 'open letter')}: see dead-letters groups"


def _print(seen: Seen, concerns: Sequence[str], settings: Settings) -> None:
    subscribed, because = _subscription(seen, settings)
    word = {True: "yes", False: "no", None: "not known"}[subscribed]
    print_pairs({"orders taken": f"{word}: {because}", **_ledger_lines(seen, settings)})
    say()
    if isinstance(seen.queues, str):
        print_pairs({"queues": seen.queues})
    else:
        print_table(
            {"queue": True, "ready": False, "consumers": False},
            [(name, *(depth or ("not there yet", "–"))) for name, depth in seen.queues.items()],
        )
    if not isinstance(seen.ledger, str) and seen.ledger.groups:
        say()
        groups = seen.ledger.groups
        print_table(
            {"group": False, "count": False, "oldest": False, "at risk": True, "cause": True},
            [
                (
                    group.group_id,
                    group.count,
                    ago(group.first, now=seen.now),
                    told_values(group.value) or "–",
                    _clipped(group.cause),
                )
                for group in groups[:TOP_GROUPS]
            ],
        )
        if len(groups) > TOP_GROUPS:
            say(f"{TOP_GROUPS} of {len(groups)} groups shown; see dead-letters groups")
    say()
    if not concerns:
        say("Nothing needs a person.")
        return
    say("Needs a person:")
    for concern in concerns:
        say(f"- {concern}")


def _ledger_lines(seen: Seen, settings: Settings) -> dict[str, str]:
    if isinstance(seen.ledger, str):
        return {"ledger": f"cannot be read: {seen.ledger}"}
    ledger, limit = seen.ledger, settings.stripe_rate_limit
    of_letters, backlog = ledger.letters, ledger.backlog
    open_letters = Calls(of_letters.by_state.get(LetterState.OPEN, 0), of_letters.oldest_open, of_letters.value)
    slowed = ", slowed: Stripe refused calls for their rate" if ledger.per_second < limit else ""
    return {
        "workers": f"{ledger.workers_alive} alive",
        "pace": f"{round(ledger.per_second, 1):g} of {round(limit, 1):g} calls a second{slowed}",
        "open letters": _told(open_letters, now=seen.now),
        "replaying": str(of_letters.by_state.get(LetterState.REPLAYING, 0)),
        "unknown outcomes": _told(ledger.money.unknown, now=seen.now),
        "keys near horizon": _told(ledger.money.near_horizon, now=seen.now),
        "untold events": _told(Calls(backlog.untold_events, backlog.oldest_untold), now=seen.now),
    }


def _told(held: Calls, *, now: datetime) -> str:
    """ "3, the oldest 2 h, 12.50 USD"."""
    if not held.count:
        return "0"
    return ", ".join(
        filter(None, (str(held.count), f"the oldest {ago(held.oldest, now=now)}", told_values(held.value)))
    )


def _record(seen: Seen, concerns: Sequence[str], settings: Settings) -> dict[str, Any]:
    """The status for programs. Ages are seconds, values major units by currency; null where not reached, with why."""
    subscribed, because = _subscription(seen, settings)
    is_told, is_reached = not isinstance(seen.worker, str), not isinstance(seen.queues, str)
    record: dict[str, Any] = {
        "at": seen.now,
        "needs_a_person": list(concerns),
        "subscribed": subscribed,
        "subscribed_because": because,
        "worker": {"address": seen.address or None, "reasons": seen.worker if is_told else None},
        "worker_fault": None if is_told else seen.worker,
        "queues": _queues_record(seen.queues),
        "queues_fault": None if is_reached else seen.queues,
        "ledger": None,
        "ledger_fault": seen.ledger if isinstance(seen.ledger, str) else None,
    }
    if not isinstance(seen.ledger, str):
        record["ledger"] = _ledger_record(seen.ledger, limit=settings.stripe_rate_limit, now=seen.now)
    return record


def _queues_record(queues: Mapping[str, Depth] | str) -> dict[str, dict[str, int] | None] | None:
    if isinstance(queues, str):
        return None
    return {name: depth and {"ready": depth[0], "consumers": depth[1]} for name, depth in queues.items()}


def _ledger_record(ledger: InLedger, *, limit: float, now: datetime) -> dict[str, Any]:
    money, backlog, of_letters = ledger.money, ledger.backlog, ledger.letters
    return {
        "workers_alive": ledger.workers_alive,
        "pace": {"per_second": round(ledger.per_second, 3), "limit": limit, "slowed": ledger.per_second < limit},
        "letters": {
            "by_state": {str(state): of_letters.by_state.get(state, 0) for state in LetterState},
            "oldest_open_s": _age_s(of_letters.oldest_open, now),
            "value": _majors(of_letters.value),
            "groups": [
                {
                    "group": group.group_id,
                    "cause": group.cause,
                    "count": group.count,
                    "oldest_s": _age_s(group.first, now),
                    "value": _majors(group.value),
                }
                for group in ledger.groups[:TOP_GROUPS]
            ],
        },
        "unknown_outcomes": _calls_record(money.unknown, now),
        "keys_near_horizon": _calls_record(money.near_horizon, now),
        "untold_events": {"count": backlog.untold_events, "oldest_s": _age_s(backlog.oldest_untold, now)},
    }


def _calls_record(calls: Calls, now: datetime) -> dict[str, Any]:
    return {"count": calls.count, "oldest_s": _age_s(calls.oldest, now), "value": _majors(calls.value)}


def _majors(value: Mapping[str, int]) -> dict[str, str]:
    return {currency: to_major(minor, currency) for currency, minor in value.items()}


def _age_s(moment: datetime | None, now: datetime) -> float | None:
    return round((now - moment).total_seconds(), 1) if moment else None


def _count(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"


def _clipped(text: str) -> str:
    return text if len(text) <= CAUSE_CHARS else text[: CAUSE_CHARS - 1] + "…"
