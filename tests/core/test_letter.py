"""What a replay of a letter would do to the money, how letters are grouped, and how properties are kept."""

import json
from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime, timedelta, timezone
from itertools import combinations, product
from typing import Any, Final

import pytest

from schemas import AmqpProperties, MessageError, OrderCreatedData, read_order_created
from schemas.order_created import read_order
from worker.errors import AnswerMismatch
from worker.letter import (
    Letter,
    LetterState,
    Verdict,
    VerdictKind,
    cause_of,
    edited_letter_id,
    group_of,
    judge,
    judge_masked,
    properties_from_json,
    properties_to_json,
    told_count,
    told_value,
)
from worker.payment import CREATE_INTENT, Operation, OperationState, Payment, PaymentState, intent_params

NOW: Final = datetime(2026, 1, 31, 12, tzinfo=UTC)
HORIZON_S: Final = 82_800.0
SECOND: Final = timedelta(seconds=1)
TICK: Final = timedelta(microseconds=1)
HORIZON: Final = timedelta(seconds=HORIZON_S)
FIELDS: Final[Mapping[str, Any]] = {"order_id": "o-1", "amount": "99.99", "currency": "usd"}
SAFE, LOOK_FIRST = VerdictKind.SAFE, VerdictKind.LOOK_FIRST
NOTHING_TO_DO, BLOCKED = VerdictKind.NOTHING_TO_DO, VerdictKind.BLOCKED


def order(**fields: Any) -> OrderCreatedData:
    return read_order({**FIELDS, **fields})


def payment(**changed: Any) -> Payment:
    fresh = Payment("o-1", PaymentState.OPEN, 9999, "usd", None, None, None, None, None, 0)
    return replace(fresh, **changed)


def decided(state: PaymentState = PaymentState.INTENT_CREATED, **changed: Any) -> Payment:
    return payment(**{"state": state, "payment_id": "pi_1", "status": "succeeded", "sequence": 1, **changed})


def operation(*, age: timedelta = SECOND, params: Mapping[str, Any] | None = None, **changed: Any) -> Operation:
    asked = intent_params(order()) if params is None else params
    key = "payment-worker:o-1:create_intent:1"
    fresh = Operation("o-1", CREATE_INTENT, 1, key, asked, None, NOW - age, asks=(NOW - age,), livemode=False)
    return replace(fresh, **changed)


def verdict(
    read: OrderCreatedData | str,
    of: Payment | None,
    call: Operation | None,
    *,
    livemode: bool | None = False,
    imported: bool = False,
) -> Verdict:
    return judge(read, of, call, livemode=livemode, key_horizon_s=HORIZON_S, now=NOW, imported=imported)


# The verdict


def test_an_order_that_nothing_is_known_of_is_safe() -> None:
    assert verdict(order(), None, None) == Verdict(SAFE, "no call was begun")


def test_a_payment_whose_call_was_never_begun_is_safe() -> None:
    assert verdict(order(), payment(), None) == Verdict(SAFE, "no call was begun")


@pytest.mark.parametrize("of", [None, payment()])
def test_an_imported_letter_is_blocked_while_no_call_is_known_here(of: Payment | None) -> None:
    told = verdict(order(), of, None, imported=True)
    assert told.kind is BLOCKED
    assert "--vouch" in told.why


def test_an_imported_letter_is_judged_by_the_call_that_is_known_here() -> None:
    for of, call in ((payment(), operation()), (payment(), operation(age=2 * HORIZON)), (decided(), None)):
        assert verdict(order(), of, call, imported=True) == verdict(order(), of, call)


@pytest.mark.parametrize("of", [None, payment(), decided()])
def test_a_letter_that_cannot_be_read_is_blocked_whatever_is_known(of: Payment | None) -> None:
    assert verdict("amount: is missing", of, operation()) == Verdict(
        BLOCKED, "it would be refused again: amount: is missing; edit it, or discard it"
    )


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"amount": "99.98"}, "amount was 99.99, here 99.98"),
        ({"currency": "eur"}, "currency was usd, here eur"),
        ({"currency": "jpy", "amount": "9999"}, "amount was 99.99, here 9999; currency was usd, here jpy"),
        ({"customer_id": "cus_1"}, "customer_id was None, here cus_1"),
        ({"stripe_account": "acct_1"}, "stripe_account was None, here acct_1"),
        (
            {"amount": "1", "customer_id": "cus_1", "stripe_account": "acct_1"},
            "amount was 99.99, here 1.00; customer_id was None, here cus_1; stripe_account was None, here acct_1",
        ),
    ],
    ids=lambda value: "+".join(value) if isinstance(value, dict) else "",
)
@pytest.mark.parametrize("of", [payment(), decided(), decided(livemode=True)], ids=["open", "decided", "other mode"])
def test_an_order_id_that_is_taken_by_another_agreement_is_blocked(
    fields: dict[str, Any], told: str, of: Payment
) -> None:
    wanted = Verdict(BLOCKED, f"the order id is taken by another agreement: {told}")
    for call in (None, operation(), operation(state=OperationState.ABSENT)):
        assert verdict(order(**fields), of, call) == wanted


@pytest.mark.parametrize(
    "fields", [{"description": "x"}, {"metadata": {"a": "b"}}, {"receipt_email": "a@b"}, {"amount": "99.990"}]
)
def test_what_was_not_agreed_may_differ(fields: dict[str, Any]) -> None:
    assert verdict(order(**fields), payment(), None).kind is SAFE
    assert verdict(order(**fields), decided(), operation(state=OperationState.ANSWERED)).kind is NOTHING_TO_DO


@pytest.mark.parametrize(
    ("of", "told"),
    [
        (decided(), "it is decided: pi_1; told again"),
        (decided(PaymentState.FAILED), "it is decided: pi_1; told again"),
        (decided(PaymentState.FAILED, payment_id=None), "it is decided: failed; told again"),
        (decided(livemode=False), "it is decided: pi_1; told again"),
    ],
)
def test_of_a_decided_payment_there_is_nothing_to_do(of: Payment, told: str) -> None:
    ended = operation(state=OperationState.ANSWERED, age=10 * HORIZON, params={})
    assert verdict(order(), of, ended) == verdict(order(), of, None) == Verdict(NOTHING_TO_DO, told)


@pytest.mark.parametrize("is_live", [True, False])
@pytest.mark.parametrize(
    ("of", "call"),
    [
        (lambda mode: payment(), lambda mode: operation(livemode=mode)),
        (lambda mode: payment(), lambda mode: operation(livemode=mode, state=OperationState.UNKNOWN)),
        (lambda mode: payment(), lambda mode: operation(livemode=mode, state=OperationState.ABSENT)),
        (lambda mode: decided(livemode=mode), lambda mode: None),
        (lambda mode: decided(livemode=mode), lambda mode: operation(livemode=None, state=OperationState.ANSWERED)),
        (lambda mode: decided(livemode=None), lambda mode: operation(livemode=mode, state=OperationState.REFUSED)),
    ],
    ids=["started", "unknown", "absent", "decided", "decided, call of before", "refused"],
)
def test_a_call_of_the_other_mode_is_blocked(is_live: bool, of: Any, call: Any) -> None:
    told = f"its call was made in {'live' if is_live else 'test'} mode, and this worker's key is of the other"
    assert verdict(order(), of(is_live), call(is_live), livemode=not is_live) == Verdict(BLOCKED, told)
    assert verdict(order(), of(is_live), call(is_live), livemode=is_live).kind is not BLOCKED
    assert verdict(order(), of(is_live), call(is_live), livemode=None).kind is not BLOCKED


def test_a_call_of_before_modes_were_kept_goes_on() -> None:
    for livemode in (True, False, None):
        assert verdict(order(), payment(), operation(livemode=None), livemode=livemode).kind is SAFE


@pytest.mark.parametrize(
    ("age", "wanted", "told"),
    [
        (timedelta(0), SAFE, "its key is 0 min old and still brings the same answer"),
        (timedelta(seconds=59), SAFE, "its key is 0 min old and still brings the same answer"),
        (timedelta(minutes=59, seconds=59), SAFE, "its key is 59 min old and still brings the same answer"),
        (timedelta(minutes=61), SAFE, "its key is 1 h 01 min old and still brings the same answer"),
        (HORIZON - TICK, SAFE, "its key is 22 h 59 min old and still brings the same answer"),
        (HORIZON, SAFE, "its key is 23 h 00 min old and still brings the same answer"),
        (HORIZON + TICK, LOOK_FIRST, "its key is 23 h 00 min old, past its horizon"),
        (timedelta(days=3), LOOK_FIRST, "its key is 72 h 00 min old, past its horizon"),
    ],
)
def test_a_call_is_asked_again_as_long_as_its_key_tells(age: timedelta, wanted: VerdictKind, told: str) -> None:
    assert verdict(order(), payment(), operation(age=age)) == Verdict(wanted, told)
    # A key whose age is past its horizon is not saved by a difference, nor the other way round.
    differing = verdict(order(), payment(), operation(age=age, params={}))
    assert differing.kind is LOOK_FIRST


@pytest.mark.parametrize("age", [SECOND, 10 * HORIZON])
def test_an_unknown_outcome_is_looked_for(age: timedelta) -> None:
    call = operation(age=age, state=OperationState.UNKNOWN, unknown_because="key_expired", params={})
    told = "the outcome of its call is unknown (key_expired)"
    assert verdict(order(), payment(), call) == Verdict(LOOK_FIRST, told)


@pytest.mark.parametrize("age", [SECOND, 10 * HORIZON])
def test_a_call_that_came_to_nothing_may_be_made_anew(age: timedelta) -> None:
    call = operation(age=age, state=OperationState.ABSENT, attempt=3)
    told = "attempt 3 is proven to have come to nothing"
    assert verdict(order(), payment(), call) == Verdict(SAFE, told)


@pytest.mark.parametrize("state", [OperationState.STARTED, OperationState.ABSENT])
@pytest.mark.parametrize(
    ("fields", "names"),
    [
        ({"description": "x"}, "description"),
        ({"metadata": {"a": "b"}}, "metadata"),
        ({"payment_method": "pm_2", "confirm": True}, "automatic_payment_methods, confirm, payment_method"),
        ({"receipt_email": "a@b", "capture_method": "manual"}, "capture_method, receipt_email"),
    ],
    ids=["description", "metadata", "confirm", "two"],
)
def test_parameters_are_frozen_and_a_letter_with_others_is_told_so(
    state: OperationState, fields: dict[str, Any], names: str
) -> None:
    """A new attempt, too, is made with the parameters of the first: an edit of them would have no effect."""
    told = f"it was first asked with another {names}, and will be again"
    wanted = Verdict(LOOK_FIRST, told)
    assert verdict(order(**fields), payment(), operation(state=state)) == wanted
    of_others = operation(state=state, params=intent_params(order(**fields)))
    assert verdict(order(), payment(), of_others) == wanted
    assert verdict(order(**fields), payment(), of_others).kind is SAFE


def test_parameters_that_come_back_from_the_ledger_are_the_same() -> None:
    full = order(
        payment_method="pm_1",
        confirm=True,
        off_session=True,
        metadata={"ä": "ö"},
        shipping={"name": "x", "address": {"line1": "y"}},
        statement_descriptor_suffix="SHOP",
    )
    kept = json.loads(json.dumps(intent_params(full)))
    assert verdict(full, payment(), operation(params=kept)).kind is SAFE


READS = ("unreadable", "conflict", "other params", "same")
PAYMENTS = (None, PaymentState.OPEN, PaymentState.INTENT_CREATED, PaymentState.FAILED)
MODES = (None, False, True)
AGES = (timedelta(0), HORIZON, HORIZON + TICK)


def test_every_combination_is_judged_by_the_first_rule_that_is_met() -> None:
    """The rules a second time, each with all that it rests on and nothing else."""
    seen = set()
    for read, of, paid_in, call, asked_in, ours, age in product(
        READS, PAYMENTS, MODES, (None, *OperationState), MODES, MODES, AGES
    ):
        letter_order: OrderCreatedData | str = {
            "unreadable": "x: y",
            "conflict": order(amount="1.00"),
            "other params": order(description="other"),
            "same": order(),
        }[read]
        known = None if of is None else payment(state=of, livemode=paid_in)
        asked = None if call is None else operation(state=call, livemode=asked_in, age=age, unknown_because="x")
        is_other_mode = ours is not None and bool({paid_in if of else None, asked_in if call else None} & {not ours})
        rules = (
            (read == "unreadable", BLOCKED),
            (of is None, SAFE),
            (read == "conflict", BLOCKED),
            (is_other_mode, BLOCKED),
            (of is not PaymentState.OPEN, NOTHING_TO_DO),
            (call is None, SAFE),
            (call is OperationState.UNKNOWN, LOOK_FIRST),
            (call is not OperationState.ABSENT and age > HORIZON, LOOK_FIRST),
            (read == "other params", LOOK_FIRST),
            (True, SAFE),
        )
        (number, wanted) = next((number, kind) for number, (is_met, kind) in enumerate(rules) if is_met)
        found = verdict(letter_order, known, asked, livemode=ours)
        assert found.kind is wanted, (read, of, paid_in, call, asked_in, ours, age)
        assert found.why
        seen.add(number)
    assert seen == set(range(10)), "each rule decides somewhere"


def test_a_letter_that_held_card_data_is_blocked_until_it_is_edited() -> None:
    """What is masked is not what was sent: nobody agreed to an order of stars."""
    told = judge_masked(letter(reason="card_data"))
    assert told
    assert told.kind is BLOCKED
    assert "tell its producer, and discard it, or edit it" in told.why
    assert judge_masked(letter(reason="card_data", edited_from="dl_0")) is None
    assert judge_masked(letter(reason="bad_message")) is None


# Groups


def refused(body: bytes | dict[str, Any], **properties: Any) -> str:
    """What the worker says of a message that is no order."""
    written = body if isinstance(body, bytes) else json.dumps(body).encode()
    with pytest.raises(MessageError) as caught:
        read_order_created(written, AmqpProperties(**properties))
    return str(caught.value)


ULID, OTHER_ULID = "01ARZ3NDEKTSV4RRFFQ69G5FAV", "01BX5ZZKBKACTAV9WEVGEMMVRZ"
UUIDS = ("0b8e5f2a-6c1d-4e0b-9a57-2f1f6d3c9e10", "deadbeef-cafe-4bad-afee-ffffffffffff")
ORDER_IDS = ("1001", "o-1", "order-1002", "ORD-2026:77", "a_b-3", ULID, OTHER_ULID, *UUIDS, "V1StGXR8_Z5jdHi6B-myT")

SAME_FAULT: dict[str, list[str]] = {
    "amount does not fit": [refused({**FIELDS, "amount": amount}) for amount in ("1.234", "99.999", "1000000.001")],
    "currency": [refused({**FIELDS, "currency": name}) for name in ("xxx", "doge", "it's", 'a"b', "zz1")],
    "size": [refused(b" " * size) for size in (262_145, 1_000_000)],
    "description": [refused({**FIELDS, "description": "x" * size}) for size in (1001, 5000)],
    "twice": [refused(b'{"order_id": 1, "%s": 1, "%s": 2}' % (key, key)) for key in (b"a", b"order_id ", b"'")],
    "utf-8": [refused(b"\xff"), refused(b'{"a": "\xff')],
    "json": [refused(b"{1}"), refused(b'{"a": 1, 2}')],
    "type": [refused(dict(FIELDS), type=name) for name in ("order.updated", "it's", "v2")],
    "encoding": [refused(dict(FIELDS), content_encoding=name) for name in ("gzip", "br", "x-1")],
    "metadata": [refused({**FIELDS, "metadata": {key: ""}}) for key in ("k" * 41, "a[b]", "['x']")],
    "request": [
        f"server_error: {status} api_error ({request})"
        for status, request in ((500, "req_Ab1"), (503, "req_zzzzzzzzzz"), (502, "req_a_b"))
    ],
    "mode": [f"{order_id} was asked for in Stripe's other mode" for order_id in ORDER_IDS],
    "mode, decided": [f"{order_id} was decided in Stripe's other mode: pi_{order_id[:2]}" for order_id in ORDER_IDS],
    "late": [f"{order_id}: pi_{order_id[-2:]} beside pi_abc" for order_id in ORDER_IDS],
    "two": ["o-1: pi_a, pi_b", "order-2: pi_3Abc, pi_X"],
    "answer": [
        str(AnswerMismatch({"amount": (9999, 1), "order_id": ("o-1", "x")}, payment_id="pi_abc")),
        str(AnswerMismatch({"amount": (5, 10**12), "order_id": ("abc", "it's")}, payment_id="pi_Zyx_w")),
    ],
    "conflict": ["amount: was 99.99, now 1.00", "amount: was 5, now 1000000.001"],
    "payer": ["customer_id: was cus_abc, now cus_X1", "customer_id: was cus_a_b, now cus_def"],
    "account": [f"stripe_account acct_{name}: 403 account_invalid (req_{name})" for name in ("abc", "1Ab", "X")],
    "time": ["not before 2026-01-31T12:00:00.123456+00:00", "not before 1999-12-31T23:59:59Z", "not before 12:30"],
    "apostrophe": [f"the shop's {name!r} is not the payer's" for name in ("abc", "it's", "x y")],
    "address": ["no route to 10.0.0.1:5432", "no route to 192.168.1.77:5671"],
}


@pytest.mark.parametrize("errors", SAME_FAULT.values(), ids=SAME_FAULT)
def test_letters_of_one_fault_are_of_one_group(errors: list[str]) -> None:
    assert len(errors) == len(set(errors)) > 1
    assert len({cause_of("bad_message", error) for error in errors}) == 1, errors


DIFFERENT_FAULTS = [
    *(errors[0] for errors in SAME_FAULT.values()),
    refused(b""),
    refused(b"[]"),
    refused({"x": 1}),
    refused({"specversion": "1.0"}),
    refused({**FIELDS, "amount": "0"}),
    refused({**FIELDS, "amount": "12,50"}),
    refused({**FIELDS, "amount": True}),
    refused({**FIELDS, "amount": None}),
    refused({**FIELDS, "amount": "1.5", "currency": "jpy"}),
    refused({**FIELDS, "currency": 5}),
    refused({**FIELDS, "order_id": "a b"}),
    refused({**FIELDS, "order_id": 5}),
    refused({**FIELDS, "customer_id": "a b"}),
    refused({**FIELDS, "confirm": True}),
    refused({**FIELDS, "confirm": "yes"}),
    refused({**FIELDS, "off_session": True}),
    refused({**FIELDS, "capture_method": "later"}),
    refused({**FIELDS, "metadata": {"order_id": "x"}}),
    refused({**FIELDS, "shipping": {"name": "x"}}),
    refused({**FIELDS, "shipping": {"address": {}}}),
    refused({**FIELDS, "amount": "0", "currency": "xxx"}),
    "rate_limited: 429 rate_limit (req_1) endpoint-rate",
    "in_use: 409 idempotency_key_in_use (req_1)",
    "no_connection: no connection to Stripe",
    "answer_lost: the connection broke before the answer",
    "server_error: 500 api_error (no request id)",
    "metadata.branch_a: too long",
    "metadata.branch_b: too long",
    "the shop's name is empty, the payer's is well",
    "the shop's card is stale, the payer's is well",
    "currency: was usd, now eur",
    "customer_id: was None, now cus_1",
]


def test_letters_of_different_faults_are_of_different_groups() -> None:
    assert len(DIFFERENT_FAULTS) > 50
    for one, other in combinations(DIFFERENT_FAULTS, 2):
        assert cause_of("bad_message", one) != cause_of("bad_message", other), (one, other)
    groups = {group_of(cause_of("bad_message", error)) for error in DIFFERENT_FAULTS}
    assert len(groups) == len(DIFFERENT_FAULTS)


def test_the_same_error_for_another_reason_is_of_another_group() -> None:
    assert cause_of("conflict", "x") != cause_of("bad_message", "x")


def test_a_cause_is_what_a_person_reads() -> None:
    told = "customer_id: was cus_1, now cus_2; amount: 'x' is 99.99 of pi_3"
    assert cause_of("conflict", told) == "conflict: customer_id: was …, now …; amount: … is … of …"
    assert cause_of("r" * 60, "x y" * 200) == ("r" * 60 + ": " + "x y" * 200)[:200]


def test_a_group_has_a_short_name_for_ever() -> None:
    """It is written in tickets and in the history."""
    assert group_of("bad_message: amount: is missing") == "g_4e73e69e"


# Values and ids


@pytest.mark.parametrize(
    ("minor", "currency", "told"),
    [
        (1250, "usd", "12.50 USD"),
        (500, "jpy", "500 JPY"),
        (1230, "kwd", "1.230 KWD"),
        (0, "usd", "0.00 USD"),
        (None, "usd", None),
        (1250, None, None),
        (None, None, None),
    ],
)
def test_a_value_is_told_as_a_person_reads_it(minor: int | None, currency: str | None, told: str | None) -> None:
    assert told_value(minor, currency) == told


def test_a_number_and_its_noun_agree() -> None:
    assert [told_count(number, "letter") for number in (0, 1, 2)] == ["0 letters", "1 letter", "2 letters"]


def letter(**changed: Any) -> Letter:
    fields: dict[str, Any] = {"letter_id": "dl_1", "state": LetterState.OPEN, "reason": "r", "error": "e"}
    fields |= {"group_id": "g", "cause": "c", "order_id": "o-1", "body": b"{}", "properties": AmqpProperties()}
    fields |= {"attempts": 0, "landings": 1, "landing_id": "a-1", "landed_at": NOW, "moved_at": NOW}
    return Letter(**(fields | changed))


def test_the_same_edit_of_the_same_letter_is_the_same_letter_and_no_other_is() -> None:
    made = edited_letter_id(letter(), b"new")
    assert made == edited_letter_id(letter(state=LetterState.DISCARDED, error="x", moved_at=NOW + SECOND), b"new")
    others = [
        edited_letter_id(letter(), b"newer"),
        edited_letter_id(letter(letter_id="dl_2"), b"new"),
        edited_letter_id(letter(landings=2), b"new"),
    ]
    assert len({"dl_1", made, *others}) == 5
    assert {len(each) for each in (made, *others)} == {23}


# Properties

PROPERTIES = AmqpProperties(
    content_type="application/json",
    content_encoding="utf-8",
    message_id="m-1",
    correlation_id="c\x00ä\U0001f600",
    reply_to="amq.gen-1",
    type="order.created",
    app_id="shop",
    timestamp=datetime(2026, 1, 31, 12, 0, 0, 123456, tzinfo=timezone(timedelta(hours=2))),
    headers={
        "text": "\x00 \u2028 ' \" \\",
        "number": -(2**63),
        "large": 2**64,
        "real": 0.1,
        "yes": True,
        "none": None,
        "bytes": b"\x00\xff",
        "time": datetime(1970, 1, 1, tzinfo=UTC),
        "list": [1, [b"", datetime(9999, 12, 31, tzinfo=UTC)], {}],
        "table": {"a": {"b": {"c": [None]}}},
        "": "",
    },
)


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"$time": "2026-01-31"},
        {"$bytes": "AA=="},
        {"$table": {}},
        {"a": {"$time": "no time"}},
        {"a": [{"$bytes": "?"}, {"$table": {"$table": {"$time": 5}}}]},
        {"a": {"$time": "x", "$bytes": "y"}},
        {"a": {"$time": datetime(2026, 1, 31, tzinfo=UTC)}},
        {"$table": {"$bytes": b"\x00"}},
    ],
)
def test_headers_that_look_like_our_own_marks_come_back_as_they_were(headers: dict[str, Any]) -> None:
    """Anybody can send them: one that could not be read again would take the whole list of letters down."""
    properties = AmqpProperties(headers=headers)
    assert properties_from_json(properties_to_json(properties)) == properties


def test_properties_come_back_as_they_were() -> None:
    text = properties_to_json(PROPERTIES)
    assert text.isascii()
    assert "\x00" not in text
    back = properties_from_json(text)
    assert back == PROPERTIES
    assert back.headers["yes"] is True
    assert type(back.headers["number"]) is int
    assert properties_from_json(properties_to_json(AmqpProperties())) == AmqpProperties()


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "5",
        "null",
        "[]",
        '{"surprise": 1}',
        '{"headers": {"a": {"$time": "no time"}}}',
        '{"headers": {"a": {"$time": 5}}}',
        '{"headers": {"a": {"$bytes": "?"}}}',
        '{"headers": {"a": {"$bytes": 5}}}',
        '{"headers": {"a": {"$table": 5}}}',
        '{"headers": {"a": {"$table": []}}}',
        '{"headers": ' + "[" * 100_000,
        '{"headers": ' + "[" * 900 + "]" * 900 + "}",
    ],
    ids=lambda text: text[:40],
)
def test_what_is_no_record_of_properties_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r".+"):
        properties_from_json(text)
