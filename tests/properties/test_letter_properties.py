"""Letters of any kind: their properties come back, their causes stay short, and no verdict calls safe what is not."""

import json
import re
from dataclasses import replace
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

from hypothesis import assume, example, given
from hypothesis import strategies as st

from schemas import AmqpProperties, OrderCreatedData
from schemas.order_created import read_order
from tests.properties.strategies import ORDER_IDS, TEXT, or_none, tries
from worker.bus.delivery import encodable
from worker.letter import (
    Verdict,
    VerdictKind,
    cause_of,
    group_of,
    judge,
    properties_from_json,
    properties_to_json,
)
from worker.payment import Operation, OperationState, Payment, PaymentState, conflict_with, intent_params

NOW = datetime(2026, 1, 31, 12, tzinfo=UTC)

# Properties. Half a surrogate pair is Python's own, as it reads bytes that are no text: a whole one there would be
# read back as the one character that it is.
HALVES = st.characters(categories=["Cs"], max_codepoint=0xDBFF)
ANY_TEXT = st.text(st.characters(exclude_categories=["Cs"]) | HALVES, max_size=20)
MARKS = st.sampled_from(["$time", "$bytes", "$table", "$", "time"])
# pamqp's are all of UTC; a moment is kept with whatever distance from it has been written.
ZONES = st.just(UTC) | st.integers(-1439, 1439).map(lambda minutes: timezone(timedelta(minutes=minutes)))
MOMENTS = st.datetimes(timezones=ZONES)
PLAIN_LEAVES = (
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64)
    | st.floats(allow_nan=False)
    | st.binary(max_size=20)
    | MOMENTS
)


def tables(text: st.SearchStrategy[str]) -> st.SearchStrategy[dict[str, Any]]:
    values = st.recursive(
        PLAIN_LEAVES | text,
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(text | MARKS, inner, max_size=3),
        max_leaves=10,
    )
    return st.dictionaries(text | MARKS, values, max_size=5)


PROPERTIES = st.builds(
    AmqpProperties,
    content_type=or_none(ANY_TEXT),
    content_encoding=or_none(ANY_TEXT),
    message_id=or_none(ANY_TEXT),
    correlation_id=or_none(ANY_TEXT),
    reply_to=or_none(ANY_TEXT),
    type=or_none(ANY_TEXT),
    app_id=or_none(ANY_TEXT),
    timestamp=or_none(MOMENTS),
    headers=tables(ANY_TEXT),
)


def kinds(value: Any) -> Any:
    """The same with the type of everything beside it: True is no 1 here, and 1 no 1.0."""
    if isinstance(value, dict):
        return {name: kinds(inner) for name, inner in value.items()}
    if isinstance(value, list):
        return [kinds(inner) for inner in value]
    return type(value), value.utcoffset() if isinstance(value, datetime) else None, value


@tries(500)
@given(PROPERTIES)
@example(AmqpProperties(headers={"$time": "x"}))
@example(AmqpProperties(headers={"a": [{"$table": {"$bytes": b"\x00"}}]}))
@example(AmqpProperties(headers={"\x00": "\x00\ud800", "deep": {"a": {"b": {"c": {"d": [[[[{}]]]]}}}}}))
def test_properties_that_were_written_down_come_back_as_they_were(properties: AmqpProperties) -> None:
    text = properties_to_json(properties)
    back = properties_from_json(text)
    assert back == properties
    assert kinds(back.headers) == kinds(properties.headers)
    # What a ledger of either kind keeps in a column of text.
    assert text.isascii()
    assert text.isprintable()
    assert properties_to_json(back) == text


@tries(200)
@given(tables(TEXT))
def test_headers_are_handed_over_from_the_ledger_as_from_the_queue(headers: dict[str, Any]) -> None:
    kept = properties_from_json(properties_to_json(AmqpProperties(headers=headers)))
    assert encodable(kept.headers) == encodable(headers)


NAMES_IN_JSON = MARKS | st.sampled_from(["headers", "timestamp", "type"]) | st.text()
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES_IN_JSON, inner, max_size=4),
    max_leaves=8,
)


@tries(300)
@given(st.dictionaries(NAMES_IN_JSON, JSON).map(json.dumps) | JSON.map(json.dumps) | st.text())
@example('{"headers": {"$time": 1}}')
def test_what_is_read_as_properties_is_properties_or_a_value_error(text: str) -> None:
    try:
        read = properties_from_json(text)
    except ValueError:
        return
    assert isinstance(read, AmqpProperties)


# Causes

WORDS = st.sampled_from("a amount customer_id metadata.a its can't isn't Stripe's the USD is".split())
IDS = st.from_regex(r"(pi|cus|acct|pm|req|dl|ch)_[A-Za-z0-9]{1,24}", fullmatch=True)
NUMBERS = st.integers(0, 10**20).map(str) | st.decimals(0, 10**9, places=2).map(str)
TIMES = st.datetimes().map(datetime.isoformat) | st.datetimes(timezones=st.just(UTC)).map(datetime.isoformat)
QUOTED = st.text(st.characters(exclude_characters="'\"\\", categories=["L", "N", "P", "Z"]), max_size=12).map(repr)
HASHES = st.binary(min_size=10, max_size=20).map(bytes.hex).filter(
    lambda text: re.search(r"\d", text)
) | st.uuids().map(str)
VARYING = IDS | NUMBERS | TIMES | QUOTED | HASHES


@tries(300)
@given(st.text(max_size=60), st.text(max_size=400))
@example("x" * 300, "")
@example("r", "'" * 999)
@example("r", "\"'" * 500 + "1-" * 500)
def test_a_cause_is_short_and_the_same_every_time(reason: str, error: str) -> None:
    cause = cause_of(reason, error)
    assert len(cause) <= 200
    assert cause == cause_of(reason, error)
    assert cause.startswith(f"{reason}: "[:200])
    assert not re.search(r"\d", cause[len(reason) + 2 :]), "numbers vary"
    assert re.fullmatch(r"g_[0-9a-f]{8}", group_of(cause))
    # Once more changes nothing: what is left does not vary.
    assert cause_of("", cause[len(reason) + 2 :])[2:] == cause[len(reason) + 2 :] or '"' in error or "'" in error


@tries(400)
@given(st.lists(st.tuples(WORDS, VARYING, VARYING), min_size=1, max_size=8), st.sampled_from([" ", ": ", " (", ", "]))
def test_errors_that_differ_only_in_what_varies_are_of_one_group(parts: list[tuple[str, str, str]], joint: str) -> None:
    one = "; ".join(f"{word}{joint}{value} end" for word, value, _ in parts)
    other = "; ".join(f"{word}{joint}{value} end" for word, _, value in parts)
    assert cause_of("r", one) == cause_of("r", other)


@tries(200)
@given(st.lists(WORDS, min_size=1, max_size=8), st.lists(WORDS, min_size=1, max_size=8), VARYING)
def test_errors_of_other_words_are_of_other_groups(one: list[str], other: list[str], value: str) -> None:
    causes = {cause_of("r", f"{' '.join(words)}: {value}") for words in (one, other)}
    assert len(causes) == (1 if one == other else 2)


@tries(5)
@given(st.sampled_from(["'", '"', "a", "a-", "1", "1.", "pi_", "' ", "\\'", "x1 ", "_", "-", "[0] "]))
def test_an_error_made_to_be_slow_is_not(piece: str) -> None:
    """A header of a foreign letter may be as large as a frame. Squared, this would take minutes."""
    began = datetime.now(UTC)
    cause_of("r", piece * (128 * 1024 // len(piece)))
    cause_of("r", f"x{piece}" * (128 * 1024 // len(f"x{piece}")))
    assert datetime.now(UTC) - began < timedelta(seconds=2)


# Verdicts

FIELDS = st.fixed_dictionaries(
    {
        "order_id": ORDER_IDS,
        "amount": st.sampled_from(["1", "2", "5000"]),
        "currency": st.sampled_from(["usd", "eur", "jpy", "isk"]),
    },
    optional={
        "customer_id": st.sampled_from(["cus_1", "cus_2"]),
        "stripe_account": st.sampled_from(["acct_1", "acct_2"]),
        "description": st.sampled_from(["a", "b"]),
        "payment_method": st.sampled_from(["pm_1", "pm_2"]),
        "metadata": st.dictionaries(st.sampled_from("ab"), st.text("xy", max_size=2), max_size=2),
    },
)
ORDERS = FIELDS.map(read_order)
MODES = st.sampled_from([None, True, False])
AGES = st.timedeltas(timedelta(0), timedelta(days=3)) | st.sampled_from([timedelta(hours=23), timedelta(hours=-1)])


@st.composite
def payments_of(draw: st.DrawFn, order: OrderCreatedData) -> Payment:
    """Of the order as it is, or as it was in another copy."""
    agreed = draw(st.just(order) | ORDERS)
    state = draw(st.sampled_from(PaymentState))
    is_decided = state is not PaymentState.OPEN
    return Payment(
        order_id=order.order_id,
        state=state,
        amount_minor=agreed.amount_minor,
        currency=agreed.currency,
        customer_id=agreed.customer_id,
        stripe_account=agreed.stripe_account,
        payment_id=draw(or_none(st.just("pi_1"))) if is_decided else None,
        status=draw(or_none(st.just("succeeded"))),
        livemode=draw(MODES) if is_decided else None,
        sequence=int(is_decided),
    )


@st.composite
def operations_of(draw: st.DrawFn, order: OrderCreatedData) -> Operation:
    asked_at = NOW - draw(AGES)
    state = draw(st.sampled_from(OperationState))
    return Operation(
        order_id=order.order_id,
        kind="create_intent",
        attempt=draw(st.integers(1, 9)),
        idempotency_key="k",
        params=intent_params(draw(st.just(order) | ORDERS)),
        stripe_account=None,
        first_asked_at=asked_at,
        state=state,
        asks=(asked_at,),
        unknown_because="key_expired" if state is OperationState.UNKNOWN else None,
        livemode=draw(MODES),
    )


KNOWN = ORDERS.flatmap(
    lambda order: st.tuples(st.just(order), or_none(payments_of(order)), or_none(operations_of(order)))
)


@tries(600)
@given(KNOWN, st.booleans(), MODES, st.integers(1, 86_400))
def test_no_verdict_calls_safe_what_is_decided_taken_or_of_the_other_mode(
    known: tuple[OrderCreatedData, Payment | None, Operation | None],
    is_readable: bool,
    livemode: bool | None,
    horizon_s: int,
) -> None:
    order, payment, operation = known
    read = order if is_readable else "amount: is missing"
    told = judge(read, payment, operation, livemode=livemode, key_horizon_s=horizon_s, now=NOW)
    assert isinstance(told, Verdict)
    assert told.why
    assert "\n" not in told.why
    if not is_readable:
        assert told.kind is VerdictKind.BLOCKED
        return
    if payment is None:
        assert told.kind is VerdictKind.SAFE
        return
    kinds_of_call = {payment.livemode, operation.livemode if operation else None} - {None}
    is_other_mode = livemode is not None and bool(kinds_of_call - {livemode})
    if conflict_with(payment, order) or is_other_mode:
        assert told.kind is VerdictKind.BLOCKED
    elif payment.is_decided:
        assert told.kind is VerdictKind.NOTHING_TO_DO
    else:
        assert told.kind in (VerdictKind.SAFE, VerdictKind.LOOK_FIRST)
    if told.kind is VerdictKind.SAFE and operation and operation.state is not OperationState.ABSENT:
        assert operation.state is not OperationState.UNKNOWN
        assert NOW - operation.first_asked_at <= timedelta(seconds=horizon_s)
        assert operation.params == intent_params(order)


@tries(300)
@given(KNOWN, MODES)
def test_a_verdict_grows_no_safer_with_the_age_of_the_key(
    known: tuple[OrderCreatedData, Payment | None, Operation | None], livemode: bool | None
) -> None:
    order, payment, operation = known
    assume(operation is not None)
    assert operation is not None
    older = replace(operation, first_asked_at=operation.first_asked_at - timedelta(days=1))
    young, old = (
        judge(order, payment, call, livemode=livemode, key_horizon_s=80_000, now=NOW).kind
        for call in (operation, older)
    )
    assert old is young or (young, old) == (VerdictKind.SAFE, VerdictKind.LOOK_FIRST)
