"""When a call is tried again."""

from hypothesis import given
from hypothesis import strategies as st

from worker.retry_policy import DEADLINE_S, MAX_DELIVERIES, RUNGS_S, TRIED_OFTEN, rung_after, wait_after
from worker.settings import Settings


def test_the_waits_grow_and_the_last_one_repeats() -> None:
    waits = [rung_after(deliveries, age_s=0) for deliveries in range(1, MAX_DELIVERIES)]
    assert waits == [1, 5, 30, 120] + [600] * 15


def test_the_budget_is_twenty_deliveries() -> None:
    assert rung_after(MAX_DELIVERIES - 1, age_s=0) == RUNGS_S[-1]
    assert rung_after(MAX_DELIVERIES, age_s=0) is None
    assert MAX_DELIVERIES == 20


@given(st.integers(1, 10**12))
def test_every_delivery_has_a_rung_or_is_the_last(deliveries: int) -> None:
    wait = rung_after(deliveries, age_s=0)
    assert (wait is None) == (deliveries >= MAX_DELIVERIES)
    assert wait is None or wait in RUNGS_S


def test_the_clock_ends_the_budget_too_but_not_for_who_hardly_had_a_try() -> None:
    """An outage of a day stops the deliveries and not the clock."""
    assert rung_after(TRIED_OFTEN, age_s=DEADLINE_S - 1) == 600
    assert rung_after(TRIED_OFTEN, age_s=DEADLINE_S) is None
    assert rung_after(TRIED_OFTEN - 1, age_s=4 * DEADLINE_S) == 600
    assert Settings.model_fields["stripe_key_horizon"].default > DEADLINE_S + RUNGS_S[-1]


def test_all_the_waits_together_end_inside_the_life_of_a_key() -> None:
    total = sum(rung_after(deliveries, age_s=0) or 0 for deliveries in range(1, MAX_DELIVERIES))
    assert total < 3 * 3600 < Settings.model_fields["stripe_key_horizon"].default


def test_what_waits_for_another_message_looks_again_within_five_seconds_for_five_minutes() -> None:
    assert [wait_after(tries, age_s=age_s) for tries, age_s in ((1, 0), (2, 1), (60, 299))] == [1, 5, 5]
    assert [wait_after(70, age_s=age_s) for age_s in (300, 3599, 3600, DEADLINE_S - 1)] == [30, 30, 120, 120]
    assert wait_after(2, age_s=-60) == 5, "clocks of two machines differ"


def test_what_waits_in_vain_ends_by_the_clock_but_not_where_it_hardly_had_a_try() -> None:
    assert wait_after(TRIED_OFTEN, age_s=DEADLINE_S) is None
    assert wait_after(TRIED_OFTEN - 1, age_s=4 * DEADLINE_S) == 120


def test_every_wait_has_a_queue_of_its_own() -> None:
    assert {wait_after(tries, age_s=age_s) for tries in (1, 2) for age_s in range(0, DEADLINE_S, 100)} <= set(RUNGS_S)
