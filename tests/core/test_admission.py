"""Whether a call may go to Stripe, and when; the ledger's leases are scripted."""

import asyncio
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import pytest

from worker.admission import FAILED_IN_A_ROW, LIVE_IN_A_ROW, WINDOW_IDLE_S, WINDOW_START, Admission, Window
from worker.errors import (
    AccountRefused,
    CallRefused,
    CallSystemic,
    CallTransient,
    CallUnknown,
    LedgerUnavailable,
    Refusal,
    Stopping,
    StripeAway,
    WorkerError,
)
from worker.ledger import turns


async def let_run() -> None:
    """Everything that can go on without time passing."""
    for _ in range(20):
        await asyncio.sleep(0)


# The window


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def window(most: int = 64, clock: Callable[[], float] | None = None) -> Window:
    return Window(most, clock=clock or Clock())


async def enter_all(window: Window) -> list[asyncio.Task[None]]:
    """Fill it, and have more wait than it can ever hold; returns who waits."""
    tasks = [asyncio.create_task(window.enter()) for _ in range(100)]
    await let_run()
    return [task for task in tasks if not task.done()]


async def cancel_all(tasks: list[asyncio.Task[None]]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


@pytest.mark.parametrize(("most", "start"), [(64, WINDOW_START), (3, 3), (1, 1)])
async def test_a_window_starts_small(most: int, start: int) -> None:
    small = window(most)
    waiting = await enter_all(small)
    assert (small.out, len(waiting)) == (start, 100 - start)
    await cancel_all(waiting)


async def test_a_full_window_grows_by_each_answer_up_to_the_most() -> None:
    full = window(12)
    waiting = await enter_all(full)
    for size in (9, 10, 11, 12, 12, 12):
        full.leave(answered=True)
        await let_run()
        assert (full.size, full.out) == (size, size)
    await cancel_all(waiting)


async def test_a_window_that_is_not_full_does_not_grow() -> None:
    roomy = window()
    for _ in range(50):
        for _ in range(WINDOW_START - 1):
            await roomy.enter()
        for _ in range(WINDOW_START - 1):
            roomy.leave(answered=True)
    assert (roomy.size, roomy.out) == (WINDOW_START, 0)


async def test_trouble_halves_a_window_and_leaves_some_of_it() -> None:
    troubled = window()
    waiting = await enter_all(troubled)
    for _ in range(12):
        troubled.leave(answered=True)
    assert troubled.size == 20
    sizes = []
    for _ in range(4):
        troubled.leave(answered=False)
        sizes.append(troubled.size)
    assert sizes == [10, 5, 4, 4]
    await cancel_all(waiting)


async def test_after_trouble_nobody_enters_until_there_is_room_in_what_is_left() -> None:
    troubled = window()
    waiting = await enter_all(troubled)
    troubled.leave(answered=False)
    for out in (6, 5, 4):
        await let_run()
        assert troubled.out == out + 1
        troubled.leave(answered=False)
    await let_run()
    assert (troubled.out, any(task.done() for task in waiting)) == (4, False)
    troubled.leave(answered=True)
    await let_run()
    assert (troubled.size, troubled.out, sum(task.done() for task in waiting)) == (5, 5, 2)
    await cancel_all(waiting)


async def test_a_window_of_one_stays_open_in_trouble() -> None:
    narrow = window(1)
    for _ in range(5):
        await narrow.enter()
        narrow.leave(answered=False)
    assert (narrow.size, narrow.out) == (1, 0)


async def test_a_window_that_was_idle_starts_small_again() -> None:
    clock = Clock()
    idle = window(clock=clock)
    waiting = await enter_all(idle)
    for _ in range(20):
        idle.leave(answered=True)
        await let_run()
    await cancel_all(waiting)
    while idle.out:
        idle.leave(answered=True)
    grown = idle.size
    assert grown > WINDOW_START + 10

    clock.now += WINDOW_IDLE_S
    await idle.enter()
    assert idle.size == grown
    clock.now += WINDOW_IDLE_S + 1
    await idle.enter()
    assert idle.size == grown, "one is out all the time"
    idle.leave(answered=True)
    idle.leave(answered=True)
    clock.now += WINDOW_IDLE_S + 1
    await idle.enter()
    assert idle.size == WINDOW_START


@pytest.mark.parametrize("when", ["before its place came", "as its place came"])
async def test_one_who_is_cancelled_while_it_waits_loses_no_place(when: str) -> None:
    narrow = window(1)
    await narrow.enter()
    cut, next_one = asyncio.create_task(narrow.enter()), asyncio.create_task(narrow.enter())
    await let_run()
    if when == "as its place came":
        narrow.leave(answered=True)
        cut.cancel()
    else:
        cut.cancel()
        await let_run()
        narrow.leave(answered=True)
    await asyncio.wait_for(next_one, 5)
    assert cut.cancelled()
    assert narrow.out == 1
    narrow.leave(answered=True)
    assert narrow.out == 0


async def test_who_comes_later_does_not_overtake_who_waits() -> None:
    narrow, entered = window(1), list[int]()

    async def one(number: int) -> None:
        await narrow.enter()
        entered.append(number)
        narrow.leave(answered=True)

    await narrow.enter()
    tasks = [asyncio.create_task(one(number)) for number in range(5)]
    await let_run()
    narrow.leave(answered=True)
    tasks.append(asyncio.create_task(one(5)))
    await asyncio.gather(*tasks)
    assert entered == [0, 1, 2, 3, 4, 5]


# Turns


class ScriptedLedger:
    """Leases whatever is asked for, at once, unless told to fail or to wait."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, dict[str, Any]]] = []
        self.fault: Exception | None = None
        self.open = asyncio.Event()
        self.open.set()

    async def run(self, move: Callable[..., Any], **arguments: Any) -> Any:
        self.asked.append((move.__name__, arguments))
        await self.open.wait()
        if self.fault:
            raise self.fault
        return 1.0 if move is turns.slow_down else turns.Lease(wait_s=0, gap_s=0, count=arguments["count"])


@pytest.fixture
async def ledger() -> ScriptedLedger:
    return ScriptedLedger()


@pytest.fixture
async def admission(ledger: ScriptedLedger) -> Admission:
    scripted: Any = ledger
    return Admission(ledger=scripted, limit=25, most_out=64, clock=lambda: 1000.0)


def wait_for_turns(admission: Admission, count: int, *, live: bool = True) -> list[asyncio.Task[None]]:
    return [asyncio.create_task(admission.turn(live=live)) for _ in range(count)]


async def test_live_orders_go_first_yet_one_turn_in_ten_is_a_retrys(admission: Admission) -> None:
    came: list[str] = []

    async def one(name: str, *, live: bool) -> None:
        await admission.turn(live=live)
        came.append(name)

    retries = [one("R", live=False) for _ in range(4)]
    await asyncio.wait_for(asyncio.gather(*retries, *(one("L", live=True) for _ in range(25))), 10)
    assert LIVE_IN_A_ROW == 9
    assert "".join(came) == "L" * 9 + "R" + "L" * 9 + "R" + "L" * 7 + "RR"


async def test_retries_have_all_the_turns_that_no_live_order_wants(admission: Admission) -> None:
    await asyncio.wait_for(asyncio.gather(*wait_for_turns(admission, 30, live=False)), 10)


async def test_no_more_turns_are_leased_than_orders_wait_or_a_fifth_of_a_second_holds(
    admission: Admission, ledger: ScriptedLedger
) -> None:
    await asyncio.gather(*wait_for_turns(admission, 12))
    assert [arguments["count"] for _, arguments in ledger.asked] == [5, 5, 2]
    assert {name for name, _ in ledger.asked} == {"lease_turns"}
    assert ledger.asked[0][1] == {"endpoint": "POST /v1/payment_intents", "count": 5, "limit": 25, "now": 1000.0}


async def test_a_ledger_that_cannot_lease_is_told_to_all_who_wait_and_asked_again_by_the_next(
    admission: Admission, ledger: ScriptedLedger
) -> None:
    ledger.fault = LedgerUnavailable("locked")
    ends = await asyncio.gather(*wait_for_turns(admission, 12), return_exceptions=True)
    assert [str(end) for end in ends if isinstance(end, LedgerUnavailable)] == ["no turns: locked"] * 12
    assert len(set(map(id, ends))) == 12, "an error raised in two tasks grows the trace of both"
    ledger.fault = None
    await asyncio.wait_for(admission.turn(live=True), 5)


async def test_an_order_that_is_cancelled_does_not_take_the_turn_of_the_next(
    admission: Admission, ledger: ScriptedLedger
) -> None:
    ledger.open.clear()
    cut, *others = wait_for_turns(admission, 4)
    await let_run()
    cut.cancel()
    await let_run()
    ledger.open.set()
    await asyncio.wait_for(asyncio.gather(*others), 5)
    assert cut.cancelled()


async def test_stopping_ends_those_who_wait_for_a_turn_and_those_who_come(
    admission: Admission, ledger: ScriptedLedger
) -> None:
    ledger.open.clear()
    waiting = [*wait_for_turns(admission, 3), *wait_for_turns(admission, 3, live=False)]
    await let_run()
    admission.stop()
    ends = await asyncio.wait_for(asyncio.gather(*waiting, return_exceptions=True), 5)
    assert [type(end) for end in ends] == [Stopping] * 6
    ledger.open.set()
    with pytest.raises(Stopping):
        await admission.turn(live=True)


# What is held of Stripe


def silence(reason: str = "server_error") -> CallUnknown:
    return CallUnknown("HTTP 500", reason=reason)


async def call(admission: Admission, error: WorkerError | None = None) -> None:
    """One order's call, which ends so."""
    async with admission.call():
        if error:
            raise error


async def fail(admission: Admission, error: WorkerError, times: int = 1) -> None:
    for _ in range(times):
        with pytest.raises(type(error)):
            await call(admission, error)


async def go_away(admission: Admission) -> None:
    while not admission.is_away:
        await fail(admission, silence())


SILENCES = [
    CallUnknown("HTTP 500", reason="server_error"),
    CallUnknown("cut off", reason="answer_lost"),
    CallUnknown("no PaymentIntent", reason="strange_answer"),
    CallTransient("no connection", reason="no_connection"),
]
ANSWERS = [
    CallTransient("HTTP 429", reason="rate_limited"),
    CallTransient("HTTP 429", reason="lock_timeout"),
    CallTransient("HTTP 409", reason="in_use"),
    CallTransient("HTTP 500", reason="try_again"),
    CallUnknown("HTTP 500", reason="stored_error", may_ask_again=False),
    CallUnknown("HTTP 400", reason="key_mismatch", may_ask_again=False),
    CallRefused(Refusal(402, "card_declined", None, None, "no")),
    AccountRefused("acct_1"),
]


def named(error: WorkerError) -> str:
    return getattr(error, "reason", type(error).__name__)


@pytest.mark.parametrize("error", SILENCES, ids=named)
async def test_six_silences_in_a_row_stop_all_calls(admission: Admission, error: WorkerError) -> None:
    assert FAILED_IN_A_ROW == 6
    await fail(admission, error, 5)
    assert (admission.is_away, admission.fault) == (False, None)
    await fail(admission, error)
    assert admission.is_away
    assert "the last 6 calls to Stripe brought no answer" in str(admission.fault)
    with pytest.raises(StripeAway, match="brought no answer"):
        await admission.turn(live=True)
    with pytest.raises(StripeAway):
        await call(admission)


@pytest.mark.parametrize("answer", [None, *ANSWERS], ids=lambda error: named(error) if error else "an intent")
async def test_any_answer_between_silences_starts_the_count_anew(
    admission: Admission, answer: WorkerError | None
) -> None:
    for _ in range(3):
        await fail(admission, silence(), 5)
        with suppress(WorkerError):
            await call(admission, answer)
    assert not admission.is_away


@pytest.mark.parametrize("error", ANSWERS, ids=named)
async def test_what_is_an_answer_never_stops_the_calls(admission: Admission, error: WorkerError) -> None:
    await fail(admission, error, 20)
    assert (admission.is_away, admission.fault) == (False, None)
    assert not admission.is_outage(error)
    await asyncio.wait_for(admission.turn(live=True), 5)


async def test_a_systemic_refusal_stops_all_calls_at_once(admission: Admission) -> None:
    await fail(admission, CallSystemic("the key is refused"))
    assert (admission.is_away, admission.fault) == (True, "the key is refused")
    with pytest.raises(StripeAway, match="the key is refused"):
        await admission.turn(live=True)


async def test_orders_that_have_their_turn_but_no_place_yet_are_stopped_too(admission: Admission) -> None:
    hold = asyncio.Event()

    async def silent() -> None:
        async with admission.call():
            await hold.wait()
            raise silence()

    out = [asyncio.create_task(silent()) for _ in range(WINDOW_START)]
    await let_run()
    late = [asyncio.create_task(call(admission)) for _ in range(5)]
    await let_run()
    hold.set()
    ends = await asyncio.wait_for(asyncio.gather(*late, return_exceptions=True), 5)
    assert [type(end) for end in ends] == [StripeAway] * 5
    assert [type(end) for end in await asyncio.gather(*out, return_exceptions=True)] == [CallUnknown] * WINDOW_START


async def test_only_a_refusal_for_the_rate_slows_all_workers_down(admission: Admission, ledger: ScriptedLedger) -> None:
    for error in ANSWERS:
        await fail(admission, error)
    assert ledger.asked == [("slow_down", {"endpoint": "POST /v1/payment_intents", "limit": 25, "now": 1000.0})]


async def test_what_fails_while_stripe_answers_is_no_outage(admission: Admission) -> None:
    error = silence()
    await fail(admission, error)
    assert not admission.is_outage(error)
    await go_away(admission)
    assert admission.is_outage(error)
    assert not admission.is_outage(CallSystemic("the key is refused"))
    assert not admission.is_outage(CallUnknown("HTTP 500", reason="stored_error", may_ask_again=False))


async def test_what_is_only_read_shows_that_stripe_is_away_and_not_that_it_is_well(admission: Admission) -> None:
    """Or commands, which read before they ask, would hide that nothing can be changed."""
    for _ in range(FAILED_IN_A_ROW):
        async with admission.call(is_read=True):
            pass
        await fail(admission, silence())
    assert admission.is_away
    admission.try_again()
    async with admission.call(is_read=True):
        pass
    with pytest.raises(CallUnknown):
        async with admission.call(is_read=True):
            raise silence()
    assert admission.is_away, "it was still being tried"


# The first order after an outage


async def try_again(admission: Admission) -> list[asyncio.Task[None]]:
    """After an outage a probe was answered and one order has its turn; returns the others, who wait for it."""
    await go_away(admission)
    admission.try_again()
    first, *others = wait_for_turns(admission, 4)
    await asyncio.wait_for(first, 5)
    await let_run()
    assert [task.done() for task in others] == [False] * 3
    return others


async def test_one_order_goes_ahead_and_its_success_lets_all_go(admission: Admission) -> None:
    others = await try_again(admission)
    assert (admission.is_away, admission.fault) == (False, None)
    await call(admission)
    await asyncio.wait_for(asyncio.gather(*others), 5)
    assert (admission.is_away, admission.fault) == (False, None)


@pytest.mark.parametrize("answer", ANSWERS, ids=named)
async def test_any_answer_to_the_one_that_tries_lets_all_go(admission: Admission, answer: WorkerError) -> None:
    others = await try_again(admission)
    await fail(admission, answer)
    await asyncio.wait_for(asyncio.gather(*others), 5)
    assert admission.fault is None


@pytest.mark.parametrize("error", SILENCES, ids=named)
async def test_the_failure_of_the_one_that_tries_keeps_stripe_away_and_is_its_own(
    admission: Admission, error: WorkerError
) -> None:
    others = await try_again(admission)
    await fail(admission, error)
    assert admission.is_away
    ends = await asyncio.wait_for(asyncio.gather(*others, return_exceptions=True), 5)
    assert [type(end) for end in ends] == [StripeAway] * 3
    assert not admission.is_outage(error)
    assert admission.is_outage(silence())


async def test_a_systemic_refusal_of_the_one_that_tries_keeps_stripe_away(admission: Admission) -> None:
    others = await try_again(admission)
    await fail(admission, CallSystemic("the key is refused"))
    ends = await asyncio.wait_for(asyncio.gather(*others, return_exceptions=True), 5)
    assert [type(end) for end in ends] == [StripeAway] * 3


async def test_after_a_trial_that_failed_the_next_one_is_as_alone(admission: Admission) -> None:
    others = await try_again(admission)
    await fail(admission, silence())
    await asyncio.gather(*others, return_exceptions=True)
    others = await try_again(admission)
    await call(admission)
    await asyncio.wait_for(asyncio.gather(*others), 5)


async def test_a_trial_that_came_to_no_call_lets_another_one_try(admission: Admission) -> None:
    others = await try_again(admission)
    for left in (2, 1, 0):
        admission.give_up_trial()
        await let_run()
        assert sum(not task.done() for task in others) == left, "one at a time"
    await call(admission)
    await asyncio.wait_for(asyncio.gather(*wait_for_turns(admission, 3)), 5)


async def test_a_trial_whose_call_is_cut_lets_another_one_try(admission: Admission) -> None:
    others = await try_again(admission)

    async def hang() -> None:
        async with admission.call():
            await asyncio.Event().wait()

    hanging = asyncio.create_task(hang())
    await let_run()
    hanging.cancel()
    await let_run()
    assert sum(not task.done() for task in others) == 2
    await call(admission)
    await asyncio.wait_for(asyncio.gather(*others), 5)


@pytest.mark.parametrize("how", ["the ledger is away", "it is cancelled"])
async def test_a_trial_that_does_not_even_get_its_turn_lets_another_one_try(
    admission: Admission, ledger: ScriptedLedger, how: str
) -> None:
    await go_away(admission)
    admission.try_again()
    ledger.open.clear()
    (first,) = wait_for_turns(admission, 1)
    await let_run()
    if how == "it is cancelled":
        first.cancel()
    else:
        ledger.fault = LedgerUnavailable("locked")
        ledger.open.set()
    assert isinstance(
        (await asyncio.gather(first, return_exceptions=True))[0], LedgerUnavailable | asyncio.CancelledError
    )
    ledger.fault = None
    ledger.open.set()
    await asyncio.wait_for(admission.turn(live=True), 5)


async def test_a_probe_that_is_answered_while_all_is_well_changes_nothing(admission: Admission) -> None:
    admission.try_again()
    assert admission.fault is None
    await asyncio.wait_for(asyncio.gather(*wait_for_turns(admission, 3)), 5)


async def test_stopping_ends_those_who_wait_for_the_one_that_tries(admission: Admission) -> None:
    others = await try_again(admission)
    admission.stop()
    ends = await asyncio.wait_for(asyncio.gather(*others, return_exceptions=True), 5)
    assert [type(end) for end in ends] == [Stopping] * 3


async def test_a_call_from_before_the_outage_that_fails_late_is_not_the_one_that_tries(admission: Admission) -> None:
    late_ends, trial_ends = asyncio.Event(), asyncio.Event()
    late_error, trial_error = silence(), silence()

    async def call_out(ends: asyncio.Event, error: WorkerError) -> None:
        async with admission.call():
            await ends.wait()
            raise error

    late = asyncio.create_task(call_out(late_ends, late_error))
    await let_run()
    others = await try_again(admission)
    trial = asyncio.create_task(call_out(trial_ends, trial_error))
    for ends in (late_ends, trial_ends):
        await let_run()
        ends.set()
    await asyncio.gather(late, trial, *others, return_exceptions=True)

    assert admission.is_away
    assert (admission.is_outage(late_error), admission.is_outage(trial_error)) == (True, False)
