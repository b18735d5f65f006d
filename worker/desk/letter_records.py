"""Letters, payments, calls and lines of the history as the desk tells them: records for programs, words for people."""

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from worker.ledger.acts import Act
from worker.ledger.edited_letters import Successor
from worker.ledger.letter_figures import Worth
from worker.letter import Letter, told_value
from worker.payment import Operation, Payment


def record(letter: Letter, *, now: datetime) -> dict[str, Any]:
    """A letter for programs. `age_s` counts from its landing; times are ISO 8601, null where not known."""
    return {
        "id": letter.letter_id,
        "state": letter.state,
        "order_id": letter.order_id,
        "event_id": letter.properties.message_id,
        "reason": letter.reason,
        "error": letter.error,
        "group": letter.group_id,
        "value": told_value(letter.amount_minor, letter.currency),
        "attempts": letter.attempts,
        "landings": letter.landings,
        "first_seen": letter.first_seen.isoformat() if letter.first_seen else None,
        "last_seen": letter.landed_at.isoformat(),
        "age_s": round((now - letter.landed_at).total_seconds(), 1),
        "size_bytes": letter.size_bytes,
        "edited_from": letter.edited_from,
        "history": [failure for entry in letter.history for failure in entry["failures"]],
    }


def full(letter: Letter) -> dict[str, Any]:
    """What only the single letter shows."""
    shown = ("content_type", "correlation_id", "reply_to", "type", "app_id", "timestamp", "headers")
    properties = {name: value for name in shown if (value := getattr(letter.properties, name))}
    return {
        "properties": properties,
        "body": letter.body.decode("utf-8", "backslashreplace"),
        "landed": [dict(entry) for entry in letter.history],
    }


def payment_record(payment: Payment | None) -> dict[str, Any]:
    """A payment for programs."""
    if payment is None:
        return {}
    return {
        "order_id": payment.order_id,
        "state": payment.state,
        "value": told_value(payment.amount_minor, payment.currency),
        "customer_id": payment.customer_id,
        "stripe_account": payment.stripe_account,
        "payment_id": payment.payment_id,
        "status": payment.status,
        "livemode": payment.livemode,
        "sequence": payment.sequence,
    }


def operation_record(operation: Operation | None, *, now: datetime) -> dict[str, Any]:
    """A call to Stripe for programs; key_age_s counts from the key's first use."""
    if operation is None:
        return {}
    return {
        "kind": operation.kind,
        "attempt": operation.attempt,
        "state": operation.state,
        "idempotency_key": operation.idempotency_key,
        "key_age_s": round((now - operation.first_asked_at).total_seconds()),
        "livemode": operation.livemode,
        "unknown_because": operation.unknown_because,
        "asked": [moment.isoformat() for moment in operation.asks],
        "params": dict(operation.params),
    }


def act_record(act: Act) -> dict[str, Any]:
    """A line of the history for programs."""
    return {
        "at": act.at.isoformat(),
        "by": act.by,
        "act": act.act,
        "letter_id": act.letter_id,
        "replay_id": act.replay_id,
        "why": act.why,
    }


def told_act(act: Act) -> str:
    """A line of the history as a person reads it."""
    return f"{act.at.isoformat(timespec='seconds')} {act.by} {act.act}{f': {act.why}' if act.why else ''}"


def told_values(value: Mapping[str, int]) -> str:
    """Minor units by currency, as a person reads them."""
    return ", ".join(filter(None, (told_value(minor, currency) for currency, minor in sorted(value.items()))))


def told_worth(worth: Worth) -> str:
    """ "37.50 USD, 4.00 EUR, 2 of unreadable value"."""
    if not worth.value:
        return "value unreadable"
    return told_values(worth.value) + (f", {worth.unreadable} of unreadable value" if worth.unreadable else "")


def told_successors(made: Sequence[Successor]) -> str:
    """ "dl_2 (open)", of letters that a letter was edited into."""
    return ", ".join(f"{each.letter_id} ({each.state})" for each in made)


def told_moment(moment: datetime) -> str:
    """Exactly, as --at takes it."""
    return f"{moment.astimezone(UTC):%Y-%m-%dT%H:%M:%S.%fZ}"
