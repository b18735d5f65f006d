"""What needs a person, out of what `status` has seen; and whether orders are taken."""

from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Final

from worker.desk.letter_records import told_values
from worker.desk.look_at import REPLAYING_LONG_S, InLedger, Seen
from worker.desk.screen import ago, counted, span, told_due
from worker.ledger.figures import HeldUp
from worker.ledger.life_figures import DisputeOfOrder
from worker.ledger.replays import Replay
from worker.letter import ItemState, LetterState, told_value
from worker.payment_life import Dispute
from worker.settings import Settings

# The relay comes round every few seconds; an event older than this has no queue to go to.
UNTOLD_S: Final = 60
# A worker that is well has done with a Stripe event within a second, or within seconds of its order's outcome.
WAITING_S: Final = 60
# To gather evidence takes people of the shop a day or two.
EVIDENCE_DUE: Final = timedelta(hours=72)
TOP_DISPUTES: Final = 5


def consumers_of(seen: Seen, queue: str) -> int | None:
    """None where the broker was not reached."""
    if isinstance(seen.queues, str):
        return None
    depth = seen.queues.get(queue)
    return depth[1] if depth else 0


def subscription(seen: Seen, settings: Settings) -> tuple[bool | None, str]:
    """Whether orders are taken, None where nobody could tell; and how that is known, or why it is not so."""
    if not isinstance(seen.worker, str):
        why_not = seen.worker.reasons.get("subscription")
        return why_not is None, why_not or f"the worker at {seen.address} says so"
    consumers = consumers_of(seen, settings.orders_queue)
    if consumers is not None:
        return consumers > 0, f"the orders queue has {counted(consumers, 'consumer')}; {seen.worker}"
    if not isinstance(seen.ledger, str) and seen.ledger.workers_alive == 0:
        return False, f"the ledger knows of no worker that is alive; {seen.worker}; {seen.queues}"
    return None, f"{seen.worker}; {seen.queues}"


def concerns(seen: Seen, settings: Settings) -> list[str]:
    """What needs a person, a sentence each."""
    subscribed, because = subscription(seen, settings)
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
            found.append(f"{counted(left[0], 'dead letter')} in the broker's queue, and no worker takes them in")
    if isinstance(seen.ledger, str):
        return [*found, f"the ledger cannot be read: {seen.ledger}"]
    consumers = consumers_of(seen, settings.orders_queue)
    if (subscribed or consumers) and seen.ledger.workers_alive == 0:
        taken = f"the orders queue has {counted(consumers, 'consumer')}" if consumers else "a worker takes orders"
        found.append(
            f"{taken}, and no worker of the ledger at {seen.ledger_address} is alive: "
            "another ledger? Set DATABASE_URL as the worker has it"
        )
    return [*found, *_in_ledger(seen.ledger, now=seen.now)]


def _in_ledger(ledger: InLedger, *, now: datetime) -> Iterator[str]:
    yield from _of_calls(ledger, now=now)
    yield from _of_disputes(ledger, now=now)
    if number := ledger.letters.by_state.get(LetterState.OPEN, 0):
        yield f"{counted(number, 'open letter')}: see dead-letters groups"
    if (held := ledger.replaying_long).count:
        told = told_held(held, now=now)
        yield (
            f"letters replaying for more than {span(REPLAYING_LONG_S)} without an outcome: {told}: "
            "is a worker taking orders? See dead-letters list --state replaying"
        )
    for replay in ledger.quiet_replays:
        how_far = ", ".join(f"{number} {state}" for state, number in counts_of(replay).items()) or "no letters"
        yield f"replay {replay.replay_id} stands still ({how_far}): go on with {resume_command(replay)}"


def _of_calls(ledger: InLedger, *, now: datetime) -> Iterator[str]:
    """Of what is asked of Stripe, told by Stripe, and told by us."""
    if number := ledger.money.unknown.count:
        yield f"{counted(number, 'call')} to Stripe with an unknown outcome"
    if number := ledger.money.near_horizon.count:
        yield f"{counted(number, 'key')} near the horizon: past it, asking again tells nothing"
    oldest_untold = ledger.backlog.oldest_untold
    if oldest_untold and (now - oldest_untold).total_seconds() > UNTOLD_S:
        yield f"{counted(ledger.backlog.untold_events, 'event')} untold: is a subscriber's queue missing?"
    for group in ledger.waiting:
        if not group.is_strange and (now - group.oldest).total_seconds() > WAITING_S:
            of_order = f"{'of' if group.count == 1 else 'one of'} order {group.order_id}"
            such_as = f", {of_order}" if group.order_id else ""
            yield (
                f"{counted(group.count, 'Stripe event')} waiting ({group.state}), the oldest for "
                f"{ago(group.oldest, now=now)}{such_as}: {group.why or 'no worker has looked at it'}"
            )


def _of_disputes(ledger: InLedger, *, now: datetime) -> Iterator[str]:
    soon = [each for each in ledger.disputes if is_due_soon(each.dispute, now=now)]
    for each in soon[:TOP_DISPUTES]:
        dispute, value = each.dispute, told_value(each.dispute.amount_minor, each.dispute.currency)
        due = told_due(dispute.evidence_due_by, now=now) if dispute.evidence_due_by else ""
        yield (
            f"dispute {dispute.dispute_id} of order {each.order_id}, {value}: evidence due {due}; "
            "answer in Stripe's Dashboard"
        )
    if len(soon) > TOP_DISPUTES:
        within = span(EVIDENCE_DUE.total_seconds())
        yield f"{counted(len(soon) - TOP_DISPUTES, 'more dispute')} with evidence due within {within}"


def is_due_soon(dispute: Dispute, *, now: datetime) -> bool:
    """Whether evidence is wanted within EVIDENCE_DUE, or was before now."""
    due_by = dispute.evidence_due_by
    return dispute.needs_response and due_by is not None and due_by - now < EVIDENCE_DUE


def next_due(disputes: Sequence[DisputeOfOrder]) -> DisputeOfOrder | None:
    """The one whose evidence is wanted first; disputes: in the order of that."""
    return next((each for each in disputes if each.dispute.needs_response and each.dispute.evidence_due_by), None)


def told_held(held: HeldUp, *, now: datetime) -> str:
    """ "3, the oldest 2 h, 12.50 USD"."""
    if not held.count:
        return "0"
    return ", ".join(
        filter(None, (str(held.count), f"the oldest {ago(held.oldest, now=now)}", told_values(held.value)))
    )


def counts_of(replay: Replay) -> Mapping[str, int]:
    """How many letters of a replay are in each state, of those that have any."""
    return {str(state): number for state in ItemState if (number := replay.counts.get(state, 0))}


def resume_command(replay: Replay) -> str:
    """What goes on with a replay."""
    return f"payment-worker dead-letters replay --resume {replay.replay_id}"
