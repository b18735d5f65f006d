"""The status for programs: ages are seconds, values major units by currency; null where not reached, with why."""

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from schemas import to_major
from worker.desk.concerns import counts_of, is_due_soon, next_due, resume_command, subscription
from worker.desk.look_at import Depth, InLedger, Seen
from worker.ledger.figures import HeldUp
from worker.ledger.life_figures import DisputeOfOrder, RefundOfOrder, held_by_disputes, held_by_refunds
from worker.letter import LetterState
from worker.settings import Settings


def status_record(seen: Seen, needs_a_person: Sequence[str], settings: Settings, *, top_groups: int) -> dict[str, Any]:
    """All of it; top_groups: the largest groups of letters, so many."""
    subscribed, because = subscription(seen, settings)
    says = None if isinstance(seen.worker, str) else seen.worker
    record: dict[str, Any] = {
        "at": seen.now,
        "needs_a_person": list(needs_a_person),
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
        "ledger_address": seen.ledger_address,
        "ledger": None,
        "ledger_fault": seen.ledger if isinstance(seen.ledger, str) else None,
    }
    if not isinstance(seen.ledger, str):
        limit = settings.stripe_rate_limit
        record["ledger"] = _ledger_record(seen.ledger, limit=limit, now=seen.now, top_groups=top_groups)
    return record


def _queues_record(queues: Mapping[str, Depth] | str) -> dict[str, dict[str, int] | None] | None:
    if isinstance(queues, str):
        return None
    return {name: depth and {"ready": depth[0], "consumers": depth[1]} for name, depth in queues.items()}


def _ledger_record(ledger: InLedger, *, limit: float, now: datetime, top_groups: int) -> dict[str, Any]:
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
                for group in ledger.groups[:top_groups]
            ],
        },
        "interrupted_replays": [
            {
                "replay_id": replay.replay_id,
                "selection": replay.selection,
                "by": replay.by,
                "made_at": replay.made_at,
                "ended_because": replay.ended_because,
                "letters": counts_of(replay),
                "resume": resume_command(replay),
            }
            for replay in ledger.quiet_replays
        ],
        "unknown_outcomes": _held_record(money.unknown, now),
        "lost_answers": _held_record(ledger.lost_answers, now),
        "keys_near_horizon": _held_record(money.near_horizon, now),
        "untold_events": {"count": backlog.untold_events, "oldest_s": _age_s(backlog.oldest_untold, now)},
        "stripe_events": [
            {
                "state": group.state,
                "why": group.why,
                "count": group.count,
                "oldest_s": _age_s(group.oldest, now),
                "order_id": group.order_id,
                "strange": group.is_strange,
            }
            for group in ledger.waiting
        ],
        "disputes": _disputes_record(ledger.disputes, now=now),
        "refunds": {
            "pending": _refunds_record(ledger.pending_refunds, now),
            "failed": _refunds_record(ledger.failed_refunds, now),
        },
    }


def _refunds_record(refunds: Sequence[RefundOfOrder], now: datetime) -> dict[str, Any]:
    newest = refunds[-1] if refunds else None
    return _held_record(held_by_refunds(refunds), now) | {
        "newest": newest and {"refund_id": newest.refund.refund_id, "order_id": newest.order_id}
    }


def _disputes_record(disputes: Sequence[DisputeOfOrder], *, now: datetime) -> dict[str, Any]:
    due = next_due(disputes)
    return {
        "open": len(disputes),
        "value": _majors(held_by_disputes(disputes).value),
        "due_soon": sum(is_due_soon(each.dispute, now=now) for each in disputes),
        "next_due": due
        and {
            "dispute_id": due.dispute.dispute_id,
            "order_id": due.order_id,
            "evidence_due_by": due.dispute.evidence_due_by,
        },
    }


def _held_record(held: HeldUp, now: datetime) -> dict[str, Any]:
    return {"count": held.count, "oldest_s": _age_s(held.oldest, now), "value": _majors(held.value)}


def _majors(value: Mapping[str, int]) -> dict[str, str]:
    return {currency: to_major(minor, currency) for currency, minor in value.items()}


def _age_s(moment: datetime | None, now: datetime) -> float | None:
    return round((now - moment).total_seconds(), 1) if moment else None
