"""The steps of one order through the ledger, each with what it needs by default."""

import time
from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import sqlalchemy as sa

from schemas import OrderCreatedData
from schemas.order_created import read_order
from tests.ledger import alone
from worker.errors import Refusal
from worker.ledger import moves, turns
from worker.ledger.ledger import Ledger
from worker.payment import (
    CREATE_INTENT,
    Answer,
    Intent,
    Operation,
    Payment,
    PaymentEvent,
    answer_of_intent,
    answer_of_refusal,
    event_of,
)


class _EveryClaim(frozenset[str]):
    """Each delivery of the worker is still at work."""

    def __contains__(self, _: object) -> bool:
        return True


EVERY_CLAIM = _EveryClaim()
NOW = datetime(2026, 1, 31, 12, tzinfo=UTC)
TTL_S = 4.0
HORIZON_S = 82_800.0
# An order that came without any of these.
UNNAMED: Mapping[str, None] = {"cause": None, "correlation_id": None, "traceparent": None}
PARAMS: Mapping[str, Any] = {"amount": 9999, "currency": "usd", "metadata": {"order_id": "o-1", "ä": "ö"}}
DECLINE = Refusal(402, "card_declined", "insufficient_funds", None, "no", "pi_1", "requires_payment_method", False)


def order(order_id: str = "o-1", **fields: Any) -> OrderCreatedData:
    return read_order({"order_id": order_id, "amount": "99.99", **fields})


async def open_payment(ledger: Ledger, order_id: str = "o-1", **fields: Any) -> Payment:
    return await ledger.run(
        alone.open_payment,
        order(order_id, **fields),
        cause="e-1",
        correlation_id="c-1",
        traceparent="00-trace",
        now=NOW,
    )


def call_arguments(order_id: str = "o-1", **changed: Any) -> dict[str, Any]:
    return {
        "order_id": order_id,
        "kind": CREATE_INTENT,
        "params": PARAMS,
        "stripe_account": None,
        "livemode": False,
        "worker_id": "w-1",
        "claim": "w-1/1",
        "live_claims": EVERY_CLAIM,
        "now": NOW,
        "claim_ttl_s": TTL_S,
        "key_horizon_s": HORIZON_S,
        **changed,
    }


async def start_call(ledger: Ledger, order_id: str = "o-1", **changed: Any) -> moves.Claimed | moves.Busy | moves.Ended:
    return await ledger.run(moves.start_call, **call_arguments(order_id, **changed))


async def claim(ledger: Ledger, order_id: str = "o-1", **changed: Any) -> Operation:
    started = await start_call(ledger, order_id, **changed)
    assert isinstance(started, moves.Claimed)
    return started.operation


async def is_alive(ledger: Ledger, worker_id: str = "w-1", *, after_s: float = 0) -> None:
    await ledger.run(moves.sign_of_life, worker_id, now=later(after_s))


def later(seconds: float) -> datetime:
    return NOW + timedelta(seconds=seconds)


def intent_answer(payment: Payment, payment_id: str | None = None) -> Answer:
    payment_id = payment_id or f"pi_{payment.order_id}"
    return answer_of_intent(
        payment, Intent(payment_id, "requires_payment_method", 9999, "usd", False, payment.order_id, "req_1")
    )


def refusal_answer(payment: Payment) -> Answer:
    return answer_of_refusal(payment, replace(DECLINE, payment_id=f"pi_{payment.order_id}"))


def event(answer: Answer, **changed: Any) -> PaymentEvent:
    arguments: dict[str, Any] = {
        "source": "payment-worker",
        "now": NOW,
    }
    return event_of(answer, **{**arguments, **changed})


async def record(
    ledger: Ledger,
    before: Payment,
    operation: Operation,
    answer: Answer | None = None,
    told: PaymentEvent | None = None,
    now: datetime = NOW,
) -> PaymentEvent:
    answer = answer or intent_answer(before)
    told = told or event(answer, now=now)
    await ledger.run(alone.record_answer, before=before, answer=answer, operation=operation, event=told, now=now)
    return told


async def decide(ledger: Ledger, order_id: str = "o-1", now: datetime = NOW) -> PaymentEvent:
    """An order all the way to its recorded intent."""
    payment = await open_payment(ledger, order_id)
    return await record(ledger, payment, await claim(ledger, order_id), now=now)


async def rows(ledger: Ledger, table: sa.Table) -> list[dict[str, Any]]:
    """Everything that is in a table."""

    def read(conn: sa.Connection) -> list[dict[str, Any]]:
        return [dict(row._mapping) for row in conn.execute(sa.select(table))]

    return await ledger.run(read)


async def execute(ledger: Ledger, statement: sa.Executable) -> None:
    """Something the worker itself never does."""

    def act(conn: sa.Connection) -> None:
        conn.execute(statement)

    await ledger.run(act)


async def lease(ledger: Ledger, wanted: turns.Wanted, count: int) -> turns.Lease:
    return await ledger.run(
        turns.lease_turns, endpoint=wanted.endpoint, count=count, limit=wanted.limit, now=time.time()
    )
