"""When a failed delivery comes again, and that it ends."""

from hypothesis import given
from hypothesis import strategies as st

from tests.properties.strategies import tries
from worker.retry_policy import DEADLINE_S, MAX_DELIVERIES, RUNGS_S, TRIED_OFTEN, rung_after

DELIVERIES = st.integers(1, 2 * MAX_DELIVERIES) | st.integers(1, 2_000_000)
# Below zero too: clocks of two machines differ, and anybody may have written the time of the first delivery.
AGES = st.floats(-1e9, 2 * DEADLINE_S) | st.floats(allow_nan=False)


@tries(300)
@given(DELIVERIES, DELIVERIES, AGES, AGES)
def test_a_later_delivery_never_waits_less_and_never_has_more_budget(
    one: int, other: int, age: float, age2: float
) -> None:
    earlier = rung_after(min(one, other), age_s=min(age, age2))
    later = rung_after(max(one, other), age_s=max(age, age2))
    assert later is None or (earlier is not None and earlier <= later)


@tries(200)
@given(DELIVERIES, AGES)
def test_every_wait_has_a_queue_of_its_own(deliveries: int, age_s: float) -> None:
    assert rung_after(deliveries, age_s=age_s) in (*RUNGS_S, None)


@tries(200)
@given(DELIVERIES, AGES)
def test_the_budget_is_spent_by_the_count_or_by_the_clock_and_by_nothing_else(deliveries: int, age_s: float) -> None:
    is_spent = deliveries >= MAX_DELIVERIES or (age_s >= DEADLINE_S and deliveries >= TRIED_OFTEN)
    assert (rung_after(deliveries, age_s=age_s) is None) is is_spent


@tries(150)
@given(st.lists(st.floats(0, 30_000), min_size=MAX_DELIVERIES, max_size=MAX_DELIVERIES), st.floats(-1e6, 1e6))
def test_an_order_that_always_fails_ends_within_its_budget(took_s: list[float], clock_skew_s: float) -> None:
    age_s, waited, deliveries = clock_skew_s, [], 1
    while (wait := rung_after(deliveries, age_s=age_s)) is not None:
        waited.append(wait)
        age_s += took_s[deliveries - 1] + wait
        deliveries += 1
    assert deliveries <= MAX_DELIVERIES
    assert waited == sorted(waited)
    assert sum(waited) < DEADLINE_S
