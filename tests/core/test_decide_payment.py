"""What becomes of a payment when others move it meanwhile; Stripe is scripted, the ledger is a real one."""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from schemas.order_created import read_order
from tests.ledger import alone
from worker.admission import FAILED_IN_A_ROW, Admission
from worker.client_secret import ClientSecret
from worker.decide_payment import Decided, PaymentDecider
from worker.errors import CallUnknown, LedgerUnavailable, SeveralIntents
from worker.find_evidence import Absent, Found
from worker.ledger import moves
from worker.ledger.ledger import Ledger
from worker.ledger.migrate import migrate
from worker.metrics import Metrics
from worker.payment import CREATE_INTENT, Intent, Operation, Payment, answer_of_intent, event_of

PARAMS = {"amount": 9999, "currency": "usd", "metadata": {"order_id": "o-1"}}


def intent(payment_id: str) -> Intent:
    return Intent(payment_id, "requires_payment_method", 9999, "usd", False, "o-1", "req_1")


class ScriptedStripe:
    """Gateway and evidence in one: answers as the test says."""

    livemode = False

    def __init__(self) -> None:
        self.create: Callable[[Operation], Awaitable[Intent]] | None = None
        self.looked = asyncio.Event()
        self.found = asyncio.Event()

    async def create_intent(self, operation: Operation) -> tuple[Intent, ClientSecret | None]:
        assert self.create
        return await self.create(operation), None

    async def look_for(self, _: Operation) -> Found | Absent:
        self.looked.set()
        await self.found.wait()
        return Found(intent("pi_1"), {"found_by": "a test"})


@pytest.fixture
async def ledger(tmp_path: Path) -> AsyncIterator[Ledger]:
    async with Ledger(f"sqlite:///{tmp_path}/payments.db") as ledger:
        migrate(ledger.engine)
        yield ledger


@pytest.fixture
async def admission(ledger: Ledger) -> Admission:
    return Admission(ledger=ledger, limit=1000, most_out=16, clock=time.time)


@pytest.fixture
async def stripe() -> ScriptedStripe:
    return ScriptedStripe()


def make_decider(
    ledger: Ledger,
    admission: Admission,
    stripe: ScriptedStripe,
    clock: Callable[[], datetime],
    worker_id: str = "w-1",
) -> PaymentDecider:
    scripted: Any = stripe
    return PaymentDecider(
        ledger=ledger,
        gateway=scripted,
        admission=admission,
        evidence=scripted,
        metrics=Metrics(),
        worker_id=worker_id,
        claim_ttl_s=4,
        key_horizon_s=3600,
        event_source="payment-worker",
        clock=clock,
    )


@pytest.fixture
async def decider(ledger: Ledger, admission: Admission, stripe: ScriptedStripe) -> PaymentDecider:
    return make_decider(ledger, admission, stripe, clock=lambda: datetime.now(UTC))


@pytest.fixture
async def payment(ledger: Ledger) -> Payment:
    now = datetime.now(UTC)
    await ledger.run(moves.sign_of_life, "w-1", now=now)
    order = read_order({"order_id": "o-1", "amount": "99.99"})
    return await ledger.run(alone.open_payment, order, cause=None, correlation_id=None, traceparent=None, now=now)


async def record_another(ledger: Ledger, payment: Payment, operation: Operation, payment_id: str) -> None:
    """What another worker does that has taken the call over meanwhile."""
    now = datetime.now(UTC)
    answer = answer_of_intent(payment, intent(payment_id))
    event = event_of(answer, source="payment-worker", now=now)
    await ledger.run(alone.record_answer, before=payment, answer=answer, operation=operation, event=event, now=now)


async def test_a_late_answer_that_tells_of_the_same_intent_is_as_good(
    ledger: Ledger, decider: PaymentDecider, stripe: ScriptedStripe, payment: Payment
) -> None:
    async def create(operation: Operation) -> Intent:
        await record_another(ledger, payment, operation, "pi_1")
        return intent("pi_1")

    stripe.create = create
    decided = await decider.decide(payment, PARAMS, live=True)
    assert decided.payment.payment_id == "pi_1"
    assert len(await ledger.run(moves.events_of, "o-1")) == 1


async def test_a_late_answer_that_tells_of_a_second_intent_is_shown_to_a_person(
    ledger: Ledger, decider: PaymentDecider, stripe: ScriptedStripe, payment: Payment
) -> None:
    async def create(operation: Operation) -> Intent:
        await record_another(ledger, payment, operation, "pi_1")
        return intent("pi_2")

    stripe.create = create
    with pytest.raises(SeveralIntents, match="o-1: pi_2 beside pi_1"):
        await decider.decide(payment, PARAMS, live=True)
    assert (await decider.look_up("o-1")).payment.payment_id == "pi_1"


async def test_the_order_that_tries_stripe_first_lets_another_try_while_it_looks_for_evidence(
    ledger: Ledger, decider: PaymentDecider, admission: Admission, stripe: ScriptedStripe, payment: Payment
) -> None:
    await leave_unknown(ledger)
    await go_away(admission)
    admission.try_again()

    deciding = asyncio.create_task(decider.decide(payment, PARAMS, live=True))
    await stripe.looked.wait()
    await asyncio.wait_for(admission.turn(live=True), 5)
    stripe.found.set()
    assert (await deciding).payment.payment_id == "pi_1"


async def test_the_order_that_tries_stripe_first_lets_another_try_while_its_call_is_another_ones(
    ledger: Ledger, decider: PaymentDecider, admission: Admission, stripe: ScriptedStripe, payment: Payment
) -> None:
    out, answer = asyncio.Event(), asyncio.Event()

    async def create(_: Operation) -> Intent:
        out.set()
        await answer.wait()
        return intent("pi_1")

    stripe.create = create
    first = asyncio.create_task(decider.decide(payment, PARAMS, live=True))
    await out.wait()
    await go_away(admission)
    admission.try_again()

    copy: asyncio.Task[Decided] = asyncio.create_task(decider.decide(payment, PARAMS, live=True))
    await asyncio.sleep(0)
    await asyncio.wait_for(admission.turn(live=True), 5)
    answer.set()
    assert (await first).payment == (await copy).payment


async def test_a_claim_that_a_ledger_away_kept_is_released_once_it_is_back(
    ledger: Ledger,
    decider: PaymentDecider,
    stripe: ScriptedStripe,
    payment: Payment,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """We are alive, so that another worker would wait for us, and for ever."""

    async def fail_while_the_ledger_goes_away(_: Operation) -> Intent:
        monkeypatch.setattr(ledger, "run", away)
        raise CallUnknown("cut off", reason="answer_lost")

    async def away(*_: Any, **__: Any) -> None:
        raise LedgerUnavailable("it is being restarted")

    stripe.create = fail_while_the_ledger_goes_away
    with pytest.raises(LedgerUnavailable):
        await decider.decide(payment, PARAMS, live=True)
    monkeypatch.undo()

    async def claim_by_another() -> Any:
        return await ledger.run(
            moves.start_call,
            order_id="o-1",
            kind=CREATE_INTENT,
            params=PARAMS,
            stripe_account=None,
            livemode=False,
            worker_id="w-2",
            claim="w-2/1",
            live_claims=(),
            now=datetime.now(UTC),
            claim_ttl_s=60,
            key_horizon_s=3600,
        )

    assert isinstance(await claim_by_another(), moves.Busy)
    await decider.release_left()
    assert isinstance(await claim_by_another(), moves.Claimed)


async def leave_unknown(ledger: Ledger) -> None:
    started = await ledger.run(
        moves.start_call,
        order_id="o-1",
        kind=CREATE_INTENT,
        params=PARAMS,
        stripe_account=None,
        livemode=False,
        worker_id="w-0",
        claim="w-0/1",
        live_claims=(),
        now=datetime.now(UTC),
        claim_ttl_s=4,
        key_horizon_s=3600,
    )
    assert isinstance(started, moves.Claimed)
    arguments: dict[str, Any] = {"claim": "w-0/1", "because": "stored_error", "now": datetime.now(UTC)}
    operation = await ledger.run(moves.mark_unknown, started.operation, **arguments)
    await ledger.run(moves.release_claim, operation.order_id, claim="w-0/1")


async def go_away(admission: Admission) -> None:
    for _ in range(FAILED_IN_A_ROW):
        with pytest.raises(CallUnknown):
            async with admission.call():
                raise CallUnknown("gone", reason="answer_lost")
    assert admission.is_away


async def test_evidence_is_looked_for_at_each_time_that_it_may_have_been_asked(
    ledger: Ledger, admission: Admission, stripe: ScriptedStripe, payment: Payment
) -> None:
    """The turn came late, so that the asking was noted anew; then the key could not tell any more."""
    at = [datetime.now(UTC) + timedelta(seconds=seconds) for seconds in (0, 11, 60, 61, 62)]
    times = iter(at)
    decider = make_decider(ledger, admission, stripe, clock=lambda: next(times))

    async def create(_: Operation) -> Intent:
        raise CallUnknown("stored", reason="stored_error", may_ask_again=False)

    stripe.create = create
    stripe.found.set()
    decided = await decider.decide(payment, PARAMS, live=True)
    (operation,) = await ledger.run(moves.operations_of, "o-1")
    assert decided.payment.payment_id == "pi_1"
    assert operation.asks == tuple(at[:3])
