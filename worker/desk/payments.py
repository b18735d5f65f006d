"""`payments show`: the life of one payment, from the first call to the last act."""

import argparse
import json
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any, Final

from worker.desk.letter_records import act_record, payment_record, record, told_act
from worker.desk.letters import open_ledger, verdict_of
from worker.desk.screen import ago, print_json, print_pairs, say, span
from worker.errors import ConfigurationError
from worker.ledger import figures, letters, replays
from worker.ledger.acts import Act, history
from worker.ledger.figures import Call, PaymentLife, StagedEvent
from worker.ledger.letters import LetterFilter
from worker.letter import Letter, Verdict, told_value
from worker.settings import Settings

# Of one order; each letter comes with its whole message.
MOST_LETTERS: Final = 100
MOST_ACTS: Final = 1000

Judged = Sequence[tuple[Letter, Verdict]]


async def show(settings: Settings, arguments: argparse.Namespace) -> None:
    """Everything that is kept of an order. Raises ConfigurationError for one that nothing is kept of."""
    order_id, now = arguments.order, datetime.now(UTC)
    chosen = LetterFilter(order_id=order_id)
    async with open_ledger(settings) as ledger:
        life = await ledger.run(figures.payment_life, order_id)
        found = await ledger.run(letters.find, chosen, limit=MOST_LETTERS)
        if life is None and not found:
            raise ConfigurationError(
                f"the ledger at {ledger.address} has nothing of the order {order_id!r}. Ids are told apart by case; "
                "see dead-letters list --state all --text with a piece of it, and payment-worker status for what "
                "still waits in a queue"
            )
        total = await ledger.run(letters.count, chosen)
        payment, operation = await ledger.run(replays.view_of_order, order_id)
        acts = await ledger.run(history, order_id=order_id, limit=MOST_ACTS)
    judged = [(letter, verdict_of(letter, payment, operation, settings=settings, now=now)) for letter in found]
    if arguments.json:
        print_json(_record(order_id, life, judged, acts, settings=settings, now=now))
        return
    _print_payment(order_id, life, now=now)
    for call in life.calls if life else ():
        _print_call(call, horizon_s=settings.stripe_key_horizon, now=now)
    for event in life.events if life else ():
        _print_event(event, now=now)
    _print_letters(judged, total=total, now=now)
    for act in acts:
        say(told_act(act))


def _print_payment(order_id: str, life: PaymentLife | None, *, now: datetime) -> None:
    if life is None:
        print_pairs({"order": order_id, "payment": "none: no call was begun"})
        return
    payment = life.payment
    print_pairs(
        {
            "order": order_id,
            "payment": f"{payment.payment_id or 'no id yet'} ({payment.state})",
            "value": told_value(payment.amount_minor, payment.currency),
            "status": payment.status or "–",
            "mode": _mode(payment.livemode),
            **({"account": payment.stripe_account} if payment.stripe_account else {}),
            "opened": _when(life.opened_at, now=now),
            "moved": _when(life.moved_at, now=now),
        }
    )


def _print_call(call: Call, *, horizon_s: float, now: datetime) -> None:
    side = "inside" if _is_inside(call, horizon_s=horizon_s, now=now) else "past"
    say()
    print_pairs(
        {
            "call": f"{call.kind}, attempt {call.attempt} ({call.state})",
            "key": call.idempotency_key,
            "key age": f"{ago(call.first_asked_at, now=now)}, {side} its horizon of {span(horizon_s)}",
            "asked": _times(call.asks, now=now),
            "mode": _mode(call.livemode),
            **({"asking now": call.claimed_by} if call.claimed_by else {}),
            **({"unknown because": call.unknown_because} if call.unknown_because else {}),
            **({"answered": _when(call.answered_at, now=now)} if call.answered_at else {}),
            **({"request": call.request_id} if call.request_id else {}),
            **({"evidence": json.dumps(call.evidence, ensure_ascii=False)} if call.evidence else {}),
        }
    )
    for failure in call.failures:
        say(f"  in vain {failure['at']}: {failure['reason']}: {failure['error']}")


def _print_event(event: StagedEvent, *, now: datetime) -> None:
    told = f"told {_when(event.published_at, now=now)}" if event.published_at else "not told yet"
    say()
    say(f"event {event.sequence}: {event.type} {event.event_id}, {told}; staged {_when(event.staged_at, now=now)}")


def _print_letters(judged: Judged, *, total: int, now: datetime) -> None:
    for letter, verdict in judged:
        say()
        say(f"letter {letter.letter_id} ({letter.state}), landed {_when(letter.landed_at, now=now)}")
        say(f"  {letter.reason}: {letter.error}")
        say(f"  a replay: {verdict.kind}: {verdict.why}")
    if total > len(judged):
        say(f"{len(judged)} of {total} letters shown; see dead-letters list --state all --order")
    say()


def _record(
    order_id: str, life: PaymentLife | None, judged: Judged, acts: Sequence[Act], *, settings: Settings, now: datetime
) -> dict[str, Any]:
    """The life for programs. Times are ISO 8601, null where not known; payment is empty where none was opened."""
    payment: dict[str, Any] = {}
    if life:
        payment = payment_record(life.payment) | {"opened_at": life.opened_at, "moved_at": life.moved_at}
    return {
        "order_id": order_id,
        "payment": payment,
        "calls": [
            _call_record(call, horizon_s=settings.stripe_key_horizon, now=now) for call in (life.calls if life else ())
        ],
        "events": [
            {
                "id": event.event_id,
                "type": event.type,
                "sequence": event.sequence,
                "staged_at": event.staged_at,
                "told_at": event.published_at,
            }
            for event in (life.events if life else ())
        ],
        "letters": [
            record(letter, now=now) | {"verdict": verdict.kind, "verdict_because": verdict.why}
            for letter, verdict in judged
        ],
        "acts": [act_record(act) for act in acts],
    }


def _call_record(call: Call, *, horizon_s: float, now: datetime) -> dict[str, Any]:
    return {
        "kind": call.kind,
        "attempt": call.attempt,
        "state": call.state,
        "idempotency_key": call.idempotency_key,
        "key_age_s": round((now - call.first_asked_at).total_seconds()),
        "inside_horizon": _is_inside(call, horizon_s=horizon_s, now=now),
        "livemode": call.livemode,
        "stripe_account": call.stripe_account,
        "asked": list(call.asks),
        "failures": list(call.failures),
        "unknown_because": call.unknown_because,
        "claimed_by": call.claimed_by,
        "answered_at": call.answered_at,
        "request_id": call.request_id,
        "evidence": call.evidence,
    }


def _is_inside(call: Call, *, horizon_s: float, now: datetime) -> bool:
    return (now - call.first_asked_at).total_seconds() <= horizon_s


def _mode(livemode: bool | None) -> str:
    return {True: "live: real money", False: "test", None: "not known"}[livemode]


def _times(moments: Sequence[datetime], *, now: datetime) -> str:
    first, last = _when(moments[0], now=now), _when(moments[-1], now=now)
    return f"{len(moments)} times, first {first}, last {last}" if len(moments) > 1 else first


def _when(moment: datetime, *, now: datetime) -> str:
    return f"{moment.isoformat(timespec='seconds')} ({ago(moment, now=now)} ago)"
