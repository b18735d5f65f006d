"""States, ids and what a customer is told."""

from collections.abc import Mapping
from typing import Any

from hypothesis import example, given
from hypothesis import strategies as st

from tests.properties.strategies import ORDER_IDS, TEXT, or_none, tries
from worker.errors import Refusal
from worker.payment import (
    CREATE_INTENT,
    PaymentState,
    dead_letter_id,
    event_id,
    failure_of,
    idempotency_key,
    may_move,
)

STATES = st.sampled_from(PaymentState)
NUMBERS = st.integers(1, 2**31 - 1)


@tries(200)
@given(st.lists(STATES, min_size=2, max_size=8))
def test_no_sequence_of_allowed_moves_comes_back_to_an_earlier_state(wanted: list[PaymentState]) -> None:
    state, seen = wanted[0], {wanted[0]}
    for after in wanted[1:]:
        if may_move(state, after):
            assert after not in seen
            state = after
            seen.add(state)


@given(STATES.filter(lambda state: state is not PaymentState.OPEN), STATES)
@tries(50)
def test_a_decided_payment_may_move_nowhere(decided: PaymentState, after: PaymentState) -> None:
    assert not may_move(decided, after)


def near(order_id: str) -> st.SearchStrategy[str]:
    """Ids made to be taken for each other: with the separators and the numbers of our own ids in them."""
    tails = [f":{CREATE_INTENT}:1", ":1", "1", "-1", ":", "."]
    return st.sampled_from([order_id, *(order_id[: 64 - len(tail)] + tail for tail in tails)])


PAIRS = st.one_of(
    st.tuples(ORDER_IDS, ORDER_IDS), ORDER_IDS.flatmap(lambda order_id: st.tuples(st.just(order_id), near(order_id)))
)


@tries(400)
@given(PAIRS, st.tuples(NUMBERS, NUMBERS) | st.tuples(st.integers(1, 12), st.integers(1, 12)))
@example(("o-1", "o-"), (2, 12))
def test_two_ids_are_the_same_only_for_the_same_order_and_number(
    orders: tuple[str, str], numbers: tuple[int, int]
) -> None:
    is_same = (orders[0], numbers[0]) == (orders[1], numbers[1])
    events = [event_id(order_id, number) for order_id, number in zip(orders, numbers, strict=True)]
    keys = [idempotency_key(order_id, CREATE_INTENT, number) for order_id, number in zip(orders, numbers, strict=True)]
    assert (events[0] == events[1]) is is_same
    assert (keys[0] == keys[1]) is is_same
    for made in (*events, *keys):
        assert made.isascii()
        assert made.isprintable()
        assert len(made) <= 255


IDENTITIES = st.dictionaries(
    TEXT,
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | TEXT | st.binary() | st.datetimes(),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
        max_leaves=6,
    ),
    max_size=4,
)


def turned_round(value: Any) -> Any:
    """The same with every table's entries in the opposite order."""
    if isinstance(value, Mapping):
        return {key: turned_round(inner) for key, inner in reversed(list(value.items()))}
    return [turned_round(inner) for inner in value] if isinstance(value, list) else value


@tries(300)
@given(st.binary(), st.binary(), IDENTITIES, IDENTITIES)
@example(b"ab", b"ac", {}, {})
def test_a_letters_id_does_not_depend_on_the_order_of_headers_and_is_of_one_body(
    body: bytes, other: bytes, identity: dict[str, Any], other_identity: dict[str, Any]
) -> None:
    letter = dead_letter_id(body, identity)
    assert letter == dead_letter_id(body, turned_round(identity))
    assert (letter == dead_letter_id(other, identity)) is (body == other)
    # What is cut off the one part and put to the other makes another letter.
    if body != other:
        assert letter != dead_letter_id(other, other_identity)


# Source: https://docs.stripe.com/declines/codes: not to be told to the customer in detail.
HIDDEN = ["fraudulent", "lost_card", "merchant_blacklist", "stolen_card"]
CODES = [
    "card_declined",
    "authentication_required",
    "expired_card",
    "incorrect_cvc",
    "incorrect_number",
    "insufficient_funds",
    "processing_error",
    "amount_too_small",
    "amount_too_large",
    "lost_card",
]
ADVICE = ["try_again_later", "confirm_card_data", "do_not_try_again"]


def refusals(decline_codes: st.SearchStrategy[str | None]) -> st.SearchStrategy[Refusal]:
    return st.builds(
        Refusal,
        http_status=st.sampled_from([400, 402, 404]),
        code=or_none(st.sampled_from(CODES) | TEXT),
        decline_code=decline_codes,
        advice_code=or_none(st.sampled_from(ADVICE) | TEXT),
        message=st.text(min_size=1).map(lambda text: f"stripe says: {text}"),
    )


@tries(300)
@given(refusals(st.sampled_from(HIDDEN)), st.sampled_from(["generic_decline", "no such decline"]))
def test_a_hidden_decline_is_told_as_any_other_one(refusal: Refusal, plain: str) -> None:
    told = failure_of(refusal)
    unremarkable = Refusal(refusal.http_status, "card_declined", plain, refusal.advice_code, "no")
    assert told.message == failure_of(unremarkable).message
    for word in ("lost", "stolen", "fraud", "blacklist"):
        assert word not in told.message.lower()


@tries(300)
@given(refusals(or_none(st.sampled_from([*HIDDEN, *CODES, "try_again_later"]) | TEXT)))
def test_stripes_own_text_never_reaches_a_customer_and_only_a_decline_may_be_tried_again(refusal: Refusal) -> None:
    told = failure_of(refusal)
    assert refusal.message not in told.message
    assert told.message.isascii()
    assert told.message.endswith(".")
    assert (told.category == "invalid_request") is (refusal.http_status != 402)
    if refusal.http_status != 402 or refusal.advice_code == "do_not_try_again":
        assert not told.may_retry
