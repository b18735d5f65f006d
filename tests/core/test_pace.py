"""Turns are handed out first come, first served, and never faster than the rate."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker.pace import BURST_S, Pace


class Clock:
    def __init__(self, now: float = 0.0) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now


def test_turns_are_a_gap_apart() -> None:
    clock = Clock(1000.0)
    pace = Pace(4, clock=clock)
    assert [pace.reserve() for _ in range(4)] == [0.0, 0.25, 0.5, 0.75]
    clock.now += 0.5
    assert pace.reserve() == 0.5


def test_after_a_pause_a_fifth_of_a_second_of_turns_go_at_once_however_long_it_was() -> None:
    clock = Clock()
    pace = Pace(10, clock=clock)
    clock.now += 3600
    assert [round(pace.reserve(), 6) for _ in range(5)] == [0, 0, 0, 0.1, 0.2]


def test_a_rate_below_one_a_second_is_kept() -> None:
    pace = Pace(0.5, clock=Clock())
    assert [pace.reserve() for _ in range(3)] == [0.0, 2.0, 4.0]


@given(
    st.floats(0.1, 1000),
    st.floats(0, 1e6),
    st.lists(st.one_of(st.just(0.0), st.floats(0, 0.05), st.floats(0, 3)), min_size=1, max_size=120),
)
def test_no_window_holds_more_turns_than_the_rate_and_the_burst(
    rate: float, start: float, arrivals: list[float]
) -> None:
    clock = Clock(start)
    pace = Pace(rate, clock=clock)
    turns = []
    for pause in arrivals:
        clock.now += pause
        turns.append(clock.now + pace.reserve())
    for first, begin in enumerate(turns):
        for last in range(first, len(turns)):
            window_s = turns[last] - begin
            assert last - first <= (window_s + BURST_S) * rate + 1e-4
    assert all(earlier <= later + 1e-9 for earlier, later in pairwise(turns))


@given(st.floats(0.1, 1000), st.integers(1, 200))
def test_turns_are_not_handed_out_slower_than_the_rate(rate: float, count: int) -> None:
    pace = Pace(rate, clock=Clock())
    waits = [pace.reserve() for _ in range(count)]
    assert waits[-1] == pytest.approx((count - 1) / rate)


async def test_a_turn_that_is_free_is_had_without_waiting() -> None:
    await Pace(1, clock=Clock()).turn()


async def test_a_turn_that_is_not_free_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    waited: list[float] = []

    async def sleep(seconds: float) -> None:
        waited.append(seconds)

    monkeypatch.setattr("worker.pace.asyncio.sleep", sleep)
    pace = Pace(4, clock=Clock())
    for _ in range(3):
        await pace.turn()
    assert waited == [0.25, 0.5]
