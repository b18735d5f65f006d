"""`status`: one screen that says whether orders are taken, what waits, and what is at risk.

What cannot be reached is told in its place, and the rest is shown all the same.
"""

import argparse
from collections.abc import Sequence
from datetime import datetime
from typing import Final

from worker.desk.concerns import concerns, next_due, subscription, told_held
from worker.desk.letter_records import told_values
from worker.desk.look_at import FAILED_REFUNDS_FOR, InLedger, Seen, look
from worker.desk.screen import ago, print_json, print_pairs, print_table, say, say_point, span, told_due
from worker.desk.status_record import status_record
from worker.ledger.figures import HeldUp
from worker.ledger.inbox import WaitingGroup
from worker.ledger.life_figures import held_by_disputes, held_by_refunds
from worker.letter import LetterState
from worker.settings import Settings
from worker.stripe_event import InboxState

TOP_GROUPS: Final = 5
CAUSE_CHARS: Final = 60


async def show(settings: Settings, arguments: argparse.Namespace) -> int:
    """Look, print, and return 0 where all was seen and nothing needs a person, else 1."""
    seen = await look(settings)
    needs_a_person = concerns(seen, settings)
    if arguments.json:
        print_json(status_record(seen, needs_a_person, settings, top_groups=TOP_GROUPS))
    else:
        _print(seen, needs_a_person, settings)
    return 1 if needs_a_person else 0


def _print(seen: Seen, needs_a_person: Sequence[str], settings: Settings) -> None:
    subscribed, because = subscription(seen, settings)
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
    if not needs_a_person:
        say("Nothing needs a person.")
        return
    say("Needs a person:")
    for concern in needs_a_person:
        say_point(concern)


def _ledger_lines(seen: Seen, settings: Settings) -> dict[str, str]:
    if isinstance(seen.ledger, str):
        return {"ledger": f"cannot be read: {seen.ledger}", "ledger address": seen.ledger_address}
    ledger, limit, now = seen.ledger, settings.stripe_rate_limit, seen.now
    of_letters, backlog = ledger.letters, ledger.backlog
    open_letters = HeldUp(of_letters.by_state.get(LetterState.OPEN, 0), of_letters.oldest_open, of_letters.value)
    slowed = ", slowed: Stripe refused calls for their rate" if ledger.per_second < limit else ""
    return {
        "ledger": seen.ledger_address,
        "workers": f"{ledger.workers_alive} alive",
        "pace": f"{round(ledger.per_second, 1):g} of {round(limit, 1):g} calls a second{slowed}",
        "open letters": told_held(open_letters, now=now),
        "replaying": told_held(ledger.replaying, now=now),
        "interrupted replays": ", ".join(replay.replay_id for replay in ledger.quiet_replays) or "0",
        "lost answers": told_held(ledger.lost_answers, now=now),
        "unknown outcomes": told_held(ledger.money.unknown, now=now),
        "keys near horizon": told_held(ledger.money.near_horizon, now=now),
        "Stripe events waiting": _told_waiting(ledger.waiting, now=now),
        "open disputes": _told_disputes(ledger, now=now),
        "pending refunds": told_held(held_by_refunds(ledger.pending_refunds), now=now),
        "failed refunds": _told_failed(ledger, now=now),
        "untold events": told_held(HeldUp(backlog.untold_events, backlog.oldest_untold), now=now),
    }


def _told_waiting(groups: Sequence[WaitingGroup], *, now: datetime) -> str:
    """ "3, the oldest 5 min: 1 received, 2 parked"; those of somebody else told apart."""
    if not groups:
        return "0"
    ours = [group for group in groups if not group.is_strange]
    by_state = [
        f"{number} {told}"
        for told, number in (
            ("received", sum(group.count for group in ours if group.state is InboxState.RECEIVED)),
            ("parked", sum(group.count for group in ours if group.state is InboxState.PARKED)),
            ("of no payment here", sum(group.count for group in groups if group.is_strange)),
        )
        if number
    ]
    count, oldest = sum(group.count for group in groups), min(group.oldest for group in groups)
    return f"{count}, the oldest {ago(oldest, now=now)}: {', '.join(by_state)}"


def _told_disputes(ledger: InLedger, *, now: datetime) -> str:
    held, due = held_by_disputes(ledger.disputes), next_due(ledger.disputes)
    told = [str(held.count), *filter(None, (told_values(held.value),))]
    if due and due.dispute.evidence_due_by:
        told.append(f"evidence of order {due.order_id} due {told_due(due.dispute.evidence_due_by, now=now)}")
    return ", ".join(told)


def _told_failed(ledger: InLedger, *, now: datetime) -> str:
    if not ledger.failed_refunds:
        return "0"
    held, newest = held_by_refunds(ledger.failed_refunds), ledger.failed_refunds[-1]
    return (
        f"{held.count} of the last {span(FAILED_REFUNDS_FOR.total_seconds())}, {told_values(held.value)}, the newest "
        f"{newest.refund.refund_id} of order {newest.order_id}, made {ago(newest.refund.created, now=now)} ago"
    )


def _clipped(text: str) -> str:
    return text if len(text) <= CAUSE_CHARS else text[: CAUSE_CHARS - 1] + "…"
