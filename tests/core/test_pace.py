"""The arithmetic of the shared rate."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker.pace import (
    BURST_S,
    FASTER_PER_S,
    MAX_AHEAD_S,
    MAX_AHEAD_TURNS,
    SLOWER,
    SLOWEST,
    per_second_now,
    slowed,
    take,
)


def test_turns_follow_each_other_at_the_rate() -> None:
    first, then = take(100.0, count=5, per_second=25, now=100.0)

    assert (first, then) == (100.0, 100.2)
    assert take(then, count=1, per_second=25, now=100.0) == (100.2, pytest.approx(100.24))


def test_after_a_pause_no_more_than_a_burst_goes_at_once() -> None:
    first, then = take(0.0, count=25, per_second=25, now=1000.0)

    assert first == 1000.0 - BURST_S
    assert then == pytest.approx(1001.0 - BURST_S)


def test_a_clock_that_was_put_back_stalls_nobody_for_as_long() -> None:
    first, _ = take(10_000.0, count=1, per_second=25, now=1000.0)

    assert first == 1000 + MAX_AHEAD_S + MAX_AHEAD_TURNS / 25


def test_a_refusal_slows_and_time_mends_it_up_to_the_limit() -> None:
    slower = slowed(25, limit=25)

    assert slower == 25 * SLOWER
    assert per_second_now(25, slowed_to=slower, slowed_at=10, now=12) == pytest.approx(slower + 2 * 25 * FASTER_PER_S)
    assert per_second_now(25, slowed_to=slower, slowed_at=10, now=1000) == 25
    assert per_second_now(25, slowed_to=None, slowed_at=None, now=1000) == 25


def test_many_refusals_never_bring_it_to_a_halt() -> None:
    rate = 25.0
    for _ in range(50):
        rate = slowed(rate, limit=25)

    assert rate == 25 * SLOWEST


@given(
    st.floats(0.1, 1000),
    st.lists(st.tuples(st.one_of(st.just(0.0), st.floats(0, 0.05), st.floats(0, 3)), st.integers(1, 5)), max_size=60),
)
def test_no_window_holds_more_turns_than_the_rate_and_the_burst(rate: float, arrivals: list[tuple[float, int]]) -> None:
    """Whoever leases them: each turn is used when it is due, or at once where it is due already."""
    now, next_at, turns = 1000.0, 0.0, list[float]()
    for pause, count in arrivals:
        now += pause
        first, next_at = take(next_at, count=count, per_second=rate, now=now)
        turns += [max(now, first + number / rate) for number in range(count)]
    turns.sort()
    for first_number, begin in enumerate(turns):
        for last_number in range(first_number, len(turns)):
            window_s = turns[last_number] - begin
            assert last_number - first_number <= (window_s + BURST_S) * rate + 1e-4
