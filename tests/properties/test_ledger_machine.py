"""Workers that claim, fall silent, die, come back and answer, in any order, against a model of the ledger."""

import itertools
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import cache
from typing import Any

import pytest
import sqlalchemy as sa
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, initialize, invariant, multiple, rule
from sqlalchemy.engine import Connection, Engine

from schemas.order_created import read_order
from tests.ledger import alone
from tests.properties.strategies import PROFILE
from worker.errors import Refusal, StaleMove
from worker.ledger import moves
from worker.ledger.engine import open_engine
from worker.ledger.migrate import migrate
from worker.ledger.schema import EVENTS, METADATA, OPERATIONS, PAYMENTS, WORKERS
from worker.payment import (
    CREATE_INTENT,
    Answer,
    Intent,
    Operation,
    Payment,
    PaymentState,
    answer_of_intent,
    answer_of_refusal,
    event_of,
    may_move,
)

TTL_S = 4.0
HORIZON_S = 60.0
OPEN_STATES = ("started", "unknown")
ORDERS = st.sampled_from(["o-1", "o-1", "o-1", "o-2"])


@cache
def engine() -> Engine:
    """One ledger in memory for the whole module, migrated once."""
    engine = open_engine("sqlite://")
    migrate(engine)
    return engine


@pytest.fixture(scope="module", autouse=True)
def _closed_at_the_end() -> Iterator[None]:
    yield
    engine().dispose()


@dataclass
class Worker:
    """A process: what it knows beside the ledger is lost with it."""

    name: str
    seen_at: datetime | None
    live: set[str] = field(default_factory=set)


@dataclass(frozen=True)
class Held:
    """A claim that a delivery believes to have, with the payment as it read it. It may be wrong by now."""

    worker: Worker
    claim: str
    operation: Operation
    payment: Payment


@dataclass
class Call:
    """What the model knows of the newest attempt of an order."""

    attempt: int
    state: str
    first_asked_at: datetime
    params: dict[str, Any]
    holder: tuple[Worker, str] | None


class LedgerMachine(RuleBasedStateMachine):
    workers = Bundle("workers")
    claims = Bundle("claims")

    def __init__(self) -> None:
        super().__init__()
        self.now = datetime(2026, 1, 31, 12, tzinfo=UTC)
        self.numbers = itertools.count(1)
        self.calls: dict[str, Call] = {}
        self.outcomes: dict[str, str] = {}
        self.before: dict[str, dict[Any, dict[str, Any]]] = {}
        with self.transaction() as conn:
            for table in reversed(METADATA.sorted_tables):
                conn.execute(table.delete())

    @contextmanager
    def transaction(self) -> Iterator[Connection]:
        with engine().begin() as conn:
            yield conn

    # Workers

    @initialize(target=workers)
    def two_workers_start(self) -> Any:
        return multiple(self.a_worker_starts(), self.a_worker_starts())

    @rule(target=workers)
    def a_worker_starts(self) -> Worker:
        worker = Worker(f"w-{next(self.numbers)}", self.now)
        self.a_worker_gives_a_sign_of_life(worker)
        return worker

    @rule(worker=workers)
    def a_worker_gives_a_sign_of_life(self, worker: Worker) -> None:
        with self.transaction() as conn:
            moves.sign_of_life(conn, worker.name, now=self.now)
        worker.seen_at = self.now

    @rule(worker=workers)
    def a_worker_loses_all_its_deliveries_at_once(self, worker: Worker) -> None:
        worker.live.clear()

    @rule(worker=consumes(workers))
    def a_worker_is_killed(self, worker: Worker) -> None:
        """It does nothing any more, but what it sent may still be answered: see the claims."""
        worker.live.clear()

    @rule(worker=workers)
    def a_worker_signs_off(self, worker: Worker) -> None:
        with self.transaction() as conn:
            moves.sign_off(conn, worker.name)
        worker.seen_at = None

    @rule()
    def silent_workers_are_forgotten(self) -> None:
        with self.transaction() as conn:
            moves.forget_silent_workers(conn, before=self.now - timedelta(seconds=TTL_S))

    @rule(seconds=st.sampled_from([1, 3, 4, 5, 61]))
    def time_passes(self, seconds: float) -> None:
        self.now += timedelta(seconds=seconds)

    # Deliveries

    @rule(target=claims, worker=workers, order_id=ORDERS, note=st.integers(0, 9))
    def a_delivery_asks_for_the_call(self, worker: Worker, order_id: str, note: int) -> Any:
        claim = f"{worker.name}/{next(self.numbers)}"
        worker.live.add(claim)
        payment = self.opened(order_id)
        started = self.started(worker, claim, order_id, {"note": note}, live_claims=worker.live)
        expected = self.expected_of(worker, order_id, {"note": note})
        if expected is None:
            assert isinstance(started, moves.Ended if self.has_ended(order_id) else moves.Busy)
            worker.live.discard(claim)
            return multiple()
        assert isinstance(started, moves.Claimed)
        if (call := self.calls.get(order_id)) and call.holder:
            assert not self.is_live(*call.holder), "two deliveries are asking at once"
        operation = started.operation
        assert (operation.attempt, operation.state, operation.params, operation.first_asked_at) == (
            expected.attempt,
            expected.state,
            expected.params,
            expected.first_asked_at,
        )
        expected.holder = (worker, claim)
        self.calls[order_id] = expected
        return Held(worker, claim, operation, payment)

    @rule(target=claims, held=claims, worker=workers, is_the_same=st.booleans(), note=st.integers(0, 9))
    def the_same_order_comes_again(self, held: Held, worker: Worker, is_the_same: bool, note: int) -> Any:
        asks = self.a_delivery_asks_for_the_call
        return asks(held.worker if is_the_same else worker, held.operation.order_id, note)

    def opened(self, order_id: str) -> Payment:
        order = read_order({"order_id": order_id, "amount": "99.99"})
        with self.transaction() as conn:
            return alone.open_payment(conn, order, cause="e", correlation_id=None, traceparent=None, now=self.now)

    def started(
        self, worker: Worker, claim: str, order_id: str, params: dict[str, Any], *, live_claims: Collection[str]
    ) -> moves.Claimed | moves.Busy | moves.Ended:
        with self.transaction() as conn:
            return moves.start_call(
                conn,
                order_id=order_id,
                kind=CREATE_INTENT,
                params=params,
                livemode=False,
                stripe_account=None,
                worker_id=worker.name,
                claim=claim,
                live_claims=live_claims,
                now=self.now,
                claim_ttl_s=TTL_S,
                key_horizon_s=HORIZON_S,
            )

    def has_ended(self, order_id: str) -> bool:
        return order_id in self.outcomes

    def is_silent(self, worker: Worker) -> bool:
        return worker.seen_at is None or self.now - worker.seen_at >= timedelta(seconds=TTL_S)

    def is_live(self, worker: Worker, claim: str) -> bool:
        """Whether a delivery is at work under this claim, as one who sees into every process would say."""
        return claim in worker.live and not self.is_silent(worker)

    def expected_of(self, worker: Worker, order_id: str, params: dict[str, Any]) -> Call | None:
        """The call as it must be claimed now; None where it must not be."""
        call = self.calls.get(order_id)
        if call is None:
            return Call(1, "started", self.now, params, None)
        if self.has_ended(order_id):
            return None
        if call.state == "absent":
            return Call(call.attempt + 1, "started", self.now, call.params, None)
        if call.holder and self.is_held_against(worker, call.holder):
            return None
        is_old = self.now - call.first_asked_at > timedelta(seconds=HORIZON_S)
        state = "unknown" if is_old or call.state == "unknown" else "started"
        return Call(call.attempt, state, call.first_asked_at, call.params, None)

    def is_held_against(self, worker: Worker, holder: tuple[Worker, str]) -> bool:
        """Another worker cannot know which deliveries of the holder are still at work: its signs of life count."""
        other, claim = holder
        return not self.is_silent(other) and (other is not worker or claim in worker.live)

    @rule(held=claims)
    def a_delivery_ends_without_telling_the_ledger(self, held: Held) -> None:
        held.worker.live.discard(held.claim)

    @rule(held=claims, has_failure=st.booleans())
    def a_delivery_gives_its_claim_back(self, held: Held, has_failure: bool) -> None:
        with self.transaction() as conn:
            moves.release_claim(
                conn, held.operation.order_id, claim=held.claim, failure={"reason": "x"} if has_failure else None
            )
        call = self.calls[held.operation.order_id]
        if self.is_still_held(held):
            call.holder = None
        held.worker.live.discard(held.claim)

    def is_still_held(self, held: Held) -> bool:
        call = self.calls[held.operation.order_id]
        return (
            call.attempt == held.operation.attempt
            and call.state in OPEN_STATES
            and call.holder == (held.worker, held.claim)
        )

    @rule(held=claims)
    def a_delivery_finds_that_asking_again_cannot_tell(self, held: Held) -> None:
        def mark(conn: Connection) -> None:
            moves.mark_unknown(conn, held.operation, claim=held.claim, because="x", now=self.now)

        if self.is_allowed(held, mark):
            self.calls[held.operation.order_id].state = "unknown"

    @rule(held=claims)
    def a_delivery_proves_that_stripe_has_nothing(self, held: Held) -> None:
        def end(conn: Connection) -> None:
            moves.end_absent(conn, held.operation, claim=held.claim, evidence={"looked": True}, now=self.now)

        if self.is_allowed(held, end):
            call = self.calls[held.operation.order_id]
            call.state, call.holder = "absent", None

    def is_allowed(self, held: Held, act: Any) -> bool:
        """Whether the ledger let it happen, which must be so exactly where the claim is still this delivery's."""
        is_expected = self.is_still_held(held)
        try:
            with self.transaction() as conn:
                act(conn)
        except StaleMove:
            assert not is_expected
            return False
        assert is_expected
        return True

    @rule(held=claims, is_refused=st.booleans())
    def a_delivery_records_stripes_answer(self, held: Held, is_refused: bool) -> None:
        """Even one whose claim was taken over meanwhile: the answer under that key is the same one."""
        order_id = held.operation.order_id
        answer = self.answer(held, is_refused=is_refused)
        event = event_of(answer, source="payment-worker", now=self.now)
        call = self.calls[order_id]
        is_first = not self.has_ended(order_id)
        is_expected = is_first and call.attempt == held.operation.attempt and call.state in OPEN_STATES
        try:
            with self.transaction() as conn:
                alone.record_answer(
                    conn, before=held.payment, answer=answer, operation=held.operation, event=event, now=self.now
                )
        except StaleMove:
            assert not is_expected
        else:
            assert is_expected
            self.outcomes[order_id] = event.body
            call.state, call.holder = str(answer.ends), None

    def answer(self, held: Held, *, is_refused: bool) -> Answer:
        payment_id = f"pi_{held.operation.order_id}_{held.operation.attempt}"
        if is_refused:
            no = Refusal(402, "card_declined", None, None, "no", payment_id, "requires_payment_method", False)
            return answer_of_refusal(held.payment, no)
        return answer_of_intent(
            held.payment,
            Intent(payment_id, "requires_payment_method", 9999, "usd", False, held.operation.order_id, "req"),
        )

    # What holds whatever happened

    @invariant()
    def nothing_is_recorded_twice_and_nothing_goes_backwards(self) -> None:
        now = {table.name: self.rows(table) for table in (PAYMENTS, OPERATIONS, EVENTS, WORKERS)}
        self.check_payments(now)
        self.check_operations(now)
        assert {row["order_id"]: row["body"] for row in now["events"].values()} == self.outcomes
        assert len(now["events"]) == len(self.outcomes)
        self.before = now

    def rows(self, table: sa.Table) -> dict[Any, dict[str, Any]]:
        keys = [column.name for column in table.primary_key.columns]
        with self.transaction() as conn:
            found = [dict(row._mapping) for row in conn.execute(sa.select(table))]
        return {tuple(row[key] for key in keys): row for row in found}

    def check_payments(self, now: dict[str, dict[Any, dict[str, Any]]]) -> None:
        for key, row in now["payments"].items():
            was = self.before.get("payments", {}).get(key)
            assert (row["state"] != "open") is (row["order_id"] in self.outcomes)
            if was is None or was == row:
                continue
            assert row["sequence"] > was["sequence"]
            assert may_move(PaymentState(was["state"]), PaymentState(row["state"]))
        assert now["payments"].keys() >= self.before.get("payments", {}).keys()

    def check_operations(self, now: dict[str, dict[Any, dict[str, Any]]]) -> None:
        operations = now["operations"]
        for key, was in self.before.get("operations", {}).items():
            row = operations[key]
            if was["state"] not in OPEN_STATES:
                assert row == was, "an ended call was touched again"
            if was["state"] == "unknown":
                assert row["state"] != "started"
            for frozen in ("idempotency_key", "params", "stripe_account", "first_asked_at"):
                assert row[frozen] == was[frozen]
            assert row["asked"] >= was["asked"]
        for order_id, call in self.calls.items():
            attempts = sorted((row for row in operations.values() if row["order_id"] == order_id), key=_attempt)
            assert [row["attempt"] for row in attempts] == list(range(1, call.attempt + 1))
            assert all(row["state"] == "absent" for row in attempts[:-1])
            assert len({row["idempotency_key"] for row in attempts}) == len(attempts)
            newest = attempts[-1]
            assert newest["state"] == call.state
            assert (newest["state"] in ("answered", "refused")) is (order_id in self.outcomes)
            holder = (call.holder[0].name, call.holder[1]) if call.holder else (None, None)
            assert (newest["claimed_by"], newest["claim"]) == holder

    @invariant()
    def a_call_that_nobody_works_on_is_found_by_the_resolver(self) -> None:
        with self.transaction() as conn:
            idle = moves.idle_operations(conn, before=self.now + timedelta(seconds=1), limit=10)
        is_open = {order_id for order_id, call in self.calls.items() if call.state in OPEN_STATES}
        assert {operation.order_id for operation in idle} == is_open


def _attempt(row: dict[str, Any]) -> int:
    attempt: int = row["attempt"]
    return attempt


TestLedgerMachine = LedgerMachine.TestCase
TestLedgerMachine.settings = settings(
    PROFILE, max_examples=120, stateful_step_count=40, suppress_health_check=[HealthCheck.too_slow]
)
