"""`status`: one screen that says whether orders are taken, what waits, and what is at risk.

What cannot be reached is told in its place, and the rest is shown all the same.
"""

import argparse
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from typing import Any, Final

from schemas import to_major
from worker.desk.letter_records import told_values
from worker.desk.look_at import REPLAYING_LONG_S, Depth, InLedger, Seen, look
from worker.desk.screen import ago, print_json, print_pairs, print_table, say, span
from worker.ledger.figures import HeldUp
from worker.ledger.replays import Replay
from worker.letter import ItemState, LetterState
from worker.settings import Settings

TOP_GROUPS: Final = 5
CAUSE_CHARS: Final = 60
# The relay comes round every few seconds; an event older than this has no queue to go to.
UNTOLD_S: Final = 60


async def show(settings: Settings, arguments: argparse.Namespace) -> int:
    """Look, print, and return 0 where all was seen and nothing needs a person, else 1."""
    seen = await look(settings)
    concerns = _concerns(seen, settings)
    if arguments.json:
        print_json(_record(seen, concerns, settings))
    else:
        _print(seen, concerns, settings)
    return 1 if concerns else 0


def _consumers(seen: Seen, queue: str) -> int | None:
    """None where the broker was not reached."""
    if isinstance(seen.queues, str):
        return None
    depth = seen.queues.get(queue)
    return depth[1] if depth else 0


def _subscription(seen: Seen, settings: Settings) -> tuple[bool | None, str]:
    """Whether orders are taken, None where nobody could tell; and how that is known, or why it is not so."""
    if not isinstance(seen.worker, str):
        why_not = seen.worker.reasons.get("subscription")
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
        told = [*seen.worker.reasons.items(), *seen.worker.concerns.items()]
        found += [f"the worker says: {part}: {sentence}" for part, sentence in told if part != "subscription"]
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
    if (held := ledger.replaying_long).count:
        told = _told(held, now=now)
        yield (
            f"letters replaying for more than {span(REPLAYING_LONG_S)} without an outcome: {told}: "
            "is a worker taking orders? See dead-letters list --state replaying"
        )
    for replay in ledger.quiet_replays:
        how_far = ", ".join(f"{number} {state}" for state, number in _counts(replay).items()) or "no letters"
        yield f"replay {replay.replay_id} stands still ({how_far}): go on with {_resume(replay)}"


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
    open_letters = HeldUp(of_letters.by_state.get(LetterState.OPEN, 0), of_letters.oldest_open, of_letters.value)
    slowed = ", slowed: Stripe refused calls for their rate" if ledger.per_second < limit else ""
    return {
        "workers": f"{ledger.workers_alive} alive",
        "pace": f"{round(ledger.per_second, 1):g} of {round(limit, 1):g} calls a second{slowed}",
        "open letters": _told(open_letters, now=seen.now),
        "replaying": _told(ledger.replaying, now=seen.now),
        "interrupted replays": ", ".join(replay.replay_id for replay in ledger.quiet_replays) or "0",
        "unknown outcomes": _told(ledger.money.unknown, now=seen.now),
        "keys near horizon": _told(ledger.money.near_horizon, now=seen.now),
        "untold events": _told(HeldUp(backlog.untold_events, backlog.oldest_untold), now=seen.now),
    }


def _told(held: HeldUp, *, now: datetime) -> str:
    """ "3, the oldest 2 h, 12.50 USD"."""
    if not held.count:
        return "0"
    return ", ".join(
        filter(None, (str(held.count), f"the oldest {ago(held.oldest, now=now)}", told_values(held.value)))
    )


def _record(seen: Seen, concerns: Sequence[str], settings: Settings) -> dict[str, Any]:
    """The status for programs. Ages are seconds, values major units by currency; null where not reached, with why."""
    subscribed, because = _subscription(seen, settings)
    says = None if isinstance(seen.worker, str) else seen.worker
    record: dict[str, Any] = {
        "at": seen.now,
        "needs_a_person": list(concerns),
        "subscribed": subscribed,
        "subscribed_because": because,
        "worker": {
            "address": seen.address or None,
            "reasons": says and says.reasons,
            "concerns": says and says.concerns,
        },
        "worker_fault": seen.worker if isinstance(seen.worker, str) else None,
        "queues": _queues_record(seen.queues),
        "queues_fault": seen.queues if isinstance(seen.queues, str) else None,
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
            "replaying": _held_record(ledger.replaying, now),
            "replaying_long": _held_record(ledger.replaying_long, now),
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
        "interrupted_replays": [
            {
                "replay_id": replay.replay_id,
                "selection": replay.selection,
                "by": replay.by,
                "made_at": replay.made_at,
                "ended_because": replay.ended_because,
                "letters": _counts(replay),
                "resume": _resume(replay),
            }
            for replay in ledger.quiet_replays
        ],
        "unknown_outcomes": _held_record(money.unknown, now),
        "keys_near_horizon": _held_record(money.near_horizon, now),
        "untold_events": {"count": backlog.untold_events, "oldest_s": _age_s(backlog.oldest_untold, now)},
    }


def _held_record(held: HeldUp, now: datetime) -> dict[str, Any]:
    return {"count": held.count, "oldest_s": _age_s(held.oldest, now), "value": _majors(held.value)}


def _counts(replay: Replay) -> dict[str, int]:
    return {str(state): number for state in ItemState if (number := replay.counts.get(state, 0))}


def _resume(replay: Replay) -> str:
    return f"payment-worker dead-letters replay --resume {replay.replay_id}"


def _majors(value: Mapping[str, int]) -> dict[str, str]:
    return {currency: to_major(minor, currency) for currency, minor in value.items()}


def _age_s(moment: datetime | None, now: datetime) -> float | None:
    return round((now - moment).total_seconds(), 1) if moment else None


def _count(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"


def _clipped(text: str) -> str:
    return text if len(text) <= CAUSE_CHARS else text[: CAUSE_CHARS - 1] + "…"
