"""What becomes of orders whose ledger is held up by somebody's open transaction; Stripe is scripted."""

import asyncio
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any

import psycopg
import pytest

from schemas.order_created import read_order
from tests.core.test_decide_payment import ScriptedStripe, go_away, make_decider
from tests.ledger.conftest import OpenLedger
from tests.ledger.steps import NOW
from worker.admission import Admission
from worker.decide_payment import Order, PaymentDecider
from worker.errors import LedgerUnavailable
from worker.ledger import moves
from worker.ledger.ledger import Ledger
from worker.ledger.order_moves import open_payments, opened_payment
from worker.payment import Intent, Operation

LIMIT = 10


def order(order_id: str) -> Order:
    return Order(read_order({"order_id": order_id, "amount": "99.99"}), "e-1", None, None)


class Answering(ScriptedStripe):
    """Answers each order with an intent of its own, and keeps when it was asked."""

    def __init__(self) -> None:
        super().__init__()
        self.asked_at: list[float] = []
        self.create = self._create

    def check_params(self, _: object) -> None:
        """All are good."""

    async def _create(self, operation: Operation) -> Intent:
        self.asked_at.append(time.monotonic())
        order_id = operation.order_id
        return Intent(f"pi_{order_id}", "requires_payment_method", 9999, "usd", False, order_id, "req_1")


@pytest.fixture
def make(open_ledger: OpenLedger) -> Callable[..., tuple[PaymentDecider, Ledger, Admission, Answering]]:
    def make_one(worker_id: str = "w-1", limit: float = 1000) -> tuple[PaymentDecider, Ledger, Admission, Answering]:
        ledger, stripe = open_ledger(), Answering()
        admission = Admission(ledger=ledger, limit=limit, most_out=100, clock=time.time)
        decider = make_decider(ledger, admission, stripe, lambda: datetime.now(UTC), worker_id=worker_id)
        return decider, ledger, admission, stripe

    return make_one


@contextmanager
def held(url: str, order_id: str) -> Iterator[None]:
    """Somebody else is about to open the order, and does not after all."""
    with psycopg.connect(url.replace("+psycopg", "")) as psql:
        psql.execute(
            "INSERT INTO payments (order_id, state, amount_minor, currency, sequence, opened_at, moved_at)"
            " VALUES (%s, 'open', 1, 'usd', 0, now(), now())",
            (order_id,),
        )
        yield
        psql.rollback()


@pytest.mark.parametrize("engine_name", ["postgresql"])
async def test_beside_an_order_that_is_held_the_others_go_on_at_their_rate(make: Any, url: str) -> None:
    decider, ledger, _, stripe = make(limit=LIMIT)
    await ledger.run(moves.sign_of_life, "w-1", now=datetime.now(UTC))
    started = time.monotonic()
    with held(url, "held"):
        waiting = asyncio.create_task(decider.decide_order(order("held"), live=True))
        await asyncio.gather(*(decider.decide_order(order(f"o-{number}"), live=True) for number in range(40)))
        assert not waiting.done() or isinstance(waiting.exception(), LedgerUnavailable)
    await asyncio.gather(waiting, return_exceptions=True)
    at = stripe.asked_at
    assert max(sum(begin <= each < begin + 1 for each in at) for begin in at) <= 2 * LIMIT
    assert at[0] - started < 3


@pytest.mark.parametrize("engine_name", ["postgresql"])
async def test_an_opening_that_was_told_as_failed_and_happened_is_no_claim_for_long(make: Any, url: str) -> None:
    decider, ledger, _, _ = make()
    other, others_ledger, _, _ = make("w-2")
    ledger._answer_timeout_s = 0.5
    for worker_id in ("w-1", "w-2"):
        await others_ledger.run(moves.sign_of_life, worker_id, now=datetime.now(UTC))
    with held(url, "o-1"), pytest.raises(LedgerUnavailable):
        await decider.decide_order(order("o-1"), live=True)
    while await others_ledger.run(moves.read_payment, "o-1") is None:
        await asyncio.sleep(0.02)
    await decider.release_left()
    decided = await asyncio.wait_for(other.decide_order(order("o-1"), live=False), 3)
    assert decided.payment.payment_id == "pi_o-1"


async def test_a_call_claimed_by_a_commit_that_was_cut_off_is_no_claim_for_long(
    make: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    decider, ledger, _, _ = make()
    other, others_ledger, _, _ = make("w-2")
    for worker_id in ("w-1", "w-2"):
        await others_ledger.run(moves.sign_of_life, worker_id, now=datetime.now(UTC))
    await decider.decide_order(order("o-0"), live=True)
    await others_ledger.run(
        open_payments, [(opened_payment(order("o-1").data, cause=None, correlation_id=None, traceparent=None), NOW)]
    )
    run = ledger.run

    async def cut_off(move: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        answer = await run(move, *args, **kwargs)
        if move is moves.start_call:
            raise LedgerUnavailable("the server closed the connection during the commit")
        return answer

    monkeypatch.setattr(ledger, "run", cut_off)
    with pytest.raises(LedgerUnavailable):
        await decider.decide_order(order("o-1"), live=False)
    await decider.release_left()
    decided = await asyncio.wait_for(other.decide_order(order("o-1"), live=False), 3)
    assert decided.payment.payment_id == "pi_o-1"


@pytest.mark.parametrize("engine_name", ["postgresql"])
async def test_a_turn_to_be_waited_for_is_not_used_early_where_the_ledger_was_slow(make: Any, url: str) -> None:
    """Another worker takes turns while ours are on their way, and holds the row for as long as five of them."""
    made = [make(f"w-{number}", LIMIT) for number in range(4)]
    for number, (_, ledger, _, _) in enumerate(made):
        await ledger.run(moves.sign_of_life, f"w-{number}", now=datetime.now(UTC))
    await made[0][0].decide_order(order("first"), live=True)
    await asyncio.sleep(0.5)
    with psycopg.connect(url.replace("+psycopg", "")) as psql:
        psql.execute("UPDATE pace SET next_at = extract(epoch FROM clock_timestamp()) + 0.6")
        asked = [
            asyncio.create_task(decider.decide_order(order(f"o-{number}"), live=True))
            for number, (decider, *_) in enumerate(made)
        ]
        await asyncio.sleep(0.5)
        psql.commit()
    await asyncio.gather(*asked)
    asked_at = sorted(at for *_, stripe in made for at in stripe.asked_at)[1:]
    assert asked_at[-1] - asked_at[0] > 0.8 * (len(made) - 1) / LIMIT


async def test_a_copy_of_a_decided_order_needs_no_stripe(make: Any) -> None:
    decider, _, admission, _ = make()
    first = await decider.decide_order(order("o-1"), live=True)
    await go_away(admission)
    assert (await decider.decide_order(order("o-1"), live=False)).event == first.event
    assert (await decider.decide_order(order("o-1"), live=True)).event == first.event
