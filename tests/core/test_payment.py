"""What a payment is, how it may move, and what is told of it."""

import dataclasses
import json
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
import sqlalchemy as sa
from hypothesis import given
from hypothesis import strategies as st

from schemas import OrderCreatedData, PaymentFailedData, PaymentIntentCreatedData
from schemas.order_created import read_order
from worker.errors import Refusal
from worker.ledger.schema import OPERATIONS, PAYMENTS
from worker.payment import (
    CREATE_INTENT,
    Answer,
    Intent,
    Operation,
    OperationState,
    Payment,
    PaymentEvent,
    PaymentState,
    answer_of_intent,
    answer_of_refusal,
    conflict_with,
    dead_letter_id,
    event_id,
    event_of,
    failure_of,
    idempotency_key,
    intent_params,
    may_move,
)

NOW = datetime(2026, 1, 31, 12, tzinfo=UTC)
OPEN = Payment("o-1", PaymentState.OPEN, 9999, "usd", None, None, None, None, None, 0, "e-1", "c-1")
INTENT = Intent("pi_1", "requires_payment_method", 9999, "usd", False, "o-1", "req_1")
DECLINE = Refusal(402, "card_declined", "insufficient_funds", None, "for developers", "pi_1", "requires_payment_method")
ORDER_IDS = st.from_regex(r"[A-Za-z0-9_.:-]{1,64}", fullmatch=True)


def order(**fields: Any) -> OrderCreatedData:
    return read_order({"order_id": "o-1", "amount": "99.99", **fields})


def tell(answer: Answer, *, source: str = "payment-worker", now: datetime = NOW) -> PaymentEvent:
    return event_of(answer, source=source, now=now)


# States


def test_a_payment_moves_from_open_to_its_outcome_and_nowhere_else() -> None:
    legal = {(before, after) for before in PaymentState for after in PaymentState if may_move(before, after)}
    assert legal == {
        (PaymentState.OPEN, PaymentState.INTENT_CREATED),
        (PaymentState.OPEN, PaymentState.FAILED),
    }


@pytest.mark.parametrize(("table", "states"), [(PAYMENTS, PaymentState), (OPERATIONS, OperationState)])
def test_sql_knows_the_same_states(table: sa.Table, states: type[PaymentState] | type[OperationState]) -> None:
    (check,) = (rule for rule in table.constraints if str(rule.name).endswith("_state"))
    assert isinstance(check, sa.CheckConstraint)
    listed = str(check.sqltext).removeprefix("state IN (").removesuffix(")").split(", ")
    assert listed == [f"'{state}'" for state in states]


@pytest.mark.parametrize("state", PaymentState)
def test_a_payment_is_decided_once_it_is_not_open(state: PaymentState) -> None:
    assert dataclasses.replace(OPEN, state=state).is_decided == (state != "open")


# Conflicts


@pytest.mark.parametrize(
    ("fields", "conflict"),
    [
        ({}, {}),
        ({"amount": "99.990"}, {}),
        ({"currency": "USD"}, {}),
        ({"description": "other", "metadata": {"a": "b"}, "receipt_email": "a@b.c"}, {}),
        ({"amount": "100.00"}, {"amount": ("99.99", "100.00")}),
        ({"currency": "eur"}, {"currency": ("usd", "eur")}),
        ({"amount": "9999", "currency": "jpy"}, {"amount": ("99.99", "9999"), "currency": ("usd", "jpy")}),
        ({"customer_id": "cus_2"}, {"customer_id": (None, "cus_2")}),
        ({"stripe_account": "acct_2"}, {"stripe_account": (None, "acct_2")}),
    ],
)
def test_a_copy_of_an_order_conflicts_in_what_was_agreed_alone(
    fields: dict[str, Any], conflict: dict[str, tuple[object, object]]
) -> None:
    assert conflict_with(OPEN, order(**fields)) == conflict


# Keys and parameters


@given(ORDER_IDS, st.integers(1, 10**9))
def test_an_idempotency_key_is_short_ascii_and_of_one_order_and_attempt(order_id: str, attempt: int) -> None:
    key = idempotency_key(order_id, CREATE_INTENT, attempt)
    assert key.isascii()
    assert key.isprintable()
    assert len(key) <= 255
    assert key == idempotency_key(order_id, CREATE_INTENT, attempt)
    assert key != idempotency_key(order_id, CREATE_INTENT, attempt + 1)
    assert key != idempotency_key(order_id, "cancel_intent", attempt)


@given(st.lists(st.tuples(ORDER_IDS, st.integers(1, 99)), unique=True, min_size=2, max_size=2))
def test_two_operations_never_share_a_key(operations: list[tuple[str, int]]) -> None:
    one, other = (idempotency_key(order_id, CREATE_INTENT, attempt) for order_id, attempt in operations)
    assert one != other


LEAST_PARAMS = {
    "amount": 9999,
    "currency": "usd",
    "metadata": {"order_id": "o-1"},
    "automatic_payment_methods": {"enabled": True},
}


@pytest.mark.parametrize(
    ("fields", "params"),
    [
        ({}, {}),
        ({"amount": "500", "currency": "JPY"}, {"amount": 500, "currency": "jpy"}),
        ({"customer_id": "cus_1"}, {"customer": "cus_1"}),
        ({"payment_method": "pm_1"}, {"payment_method": "pm_1"}),
        ({"capture_method": "manual"}, {"capture_method": "manual"}),
        ({"receipt_email": "a@b.c"}, {"receipt_email": "a@b.c"}),
        ({"description": "Shoes"}, {"description": "Shoes"}),
        ({"statement_descriptor_suffix": "SHOES"}, {"statement_descriptor_suffix": "SHOES"}),
        ({"setup_future_usage": "off_session"}, {"setup_future_usage": "off_session"}),
        ({"metadata": {"a": "b"}}, {"metadata": {"a": "b", "order_id": "o-1"}}),
        ({"metadata": {"order_id": "o-1"}}, {}),
        ({"stripe_account": "acct_1"}, {}),
        (
            {"shipping": {"name": "J", "address": {"line1": "1 Main St"}, "phone": None}},
            {"shipping": {"name": "J", "address": {"line1": "1 Main St"}}},
        ),
        (
            {"confirm": True, "payment_method": "pm_1"},
            {
                "confirm": True,
                "payment_method": "pm_1",
                "automatic_payment_methods": {"enabled": True, "allow_redirects": "never"},
            },
        ),
        (
            {"confirm": True, "payment_method": "pm_1", "off_session": True},
            {
                "confirm": True,
                "payment_method": "pm_1",
                "off_session": True,
                "automatic_payment_methods": {"enabled": True, "allow_redirects": "never"},
            },
        ),
    ],
)
def test_an_option_of_the_order_becomes_a_parameter_and_no_other_does(
    fields: dict[str, Any], params: dict[str, Any]
) -> None:
    assert intent_params(order(**fields)) == {**LEAST_PARAMS, **params}


def test_parameters_survive_being_frozen_as_json() -> None:
    params = intent_params(order(metadata={"ä": "ö"}, shipping={"name": "J", "address": {}}))
    assert json.loads(json.dumps(params)) == params


# Answers and failures


def test_an_intent_moves_the_payment_and_keeps_what_was_agreed() -> None:
    answer = answer_of_intent(OPEN, INTENT)
    assert answer.payment == Payment(
        "o-1",
        PaymentState.INTENT_CREATED,
        9999,
        "usd",
        None,
        None,
        "pi_1",
        "requires_payment_method",
        livemode=False,
        sequence=1,
        cause="e-1",
        correlation_id="c-1",
    )
    assert (answer.ends, answer.request_id, answer.failure) == (OperationState.ANSWERED, "req_1", None)
    assert may_move(OPEN.state, answer.payment.state)


def test_a_refusal_fails_the_payment_and_keeps_the_intent_that_was_made() -> None:
    answer = answer_of_refusal(OPEN, DECLINE)
    assert (answer.payment.state, answer.payment.payment_id, answer.payment.sequence) == ("failed", "pi_1", 1)
    assert answer.ends is OperationState.REFUSED
    assert answer.failure == failure_of(DECLINE)
    assert answer.evidence["message"] == "for developers"
    assert may_move(OPEN.state, answer.payment.state)


def refusal(status: int, code: str | None, decline_code: str | None = None, advice: str | None = None) -> Refusal:
    return Refusal(status, code, decline_code, advice, "stripe's own text for developers")


DECLINED = "Your card was declined."
CANNOT = "The payment could not be started. Please contact the shop."


@pytest.mark.parametrize(
    ("said", "category", "message", "may_retry"),
    [
        (refusal(402, "card_declined", "generic_decline"), "declined", DECLINED, False),
        (refusal(402, "card_declined"), "declined", DECLINED, False),
        (refusal(402, None), "declined", DECLINED, False),
        (refusal(402, "card_declined", "not_yet_invented"), "declined", DECLINED, False),
        (refusal(402, "card_declined", "insufficient_funds"), "declined", "Your card has insufficient funds.", False),
        (
            refusal(402, "card_declined", "insufficient_funds", "try_again_later"),
            "declined",
            "Your card has insufficient funds.",
            True,
        ),
        (refusal(402, "expired_card"), "declined", "Your card has expired.", False),
        (
            refusal(402, "incorrect_cvc", "incorrect_cvc", "confirm_card_data"),
            "declined",
            "Your card's security code is incorrect.",
            True,
        ),
        (refusal(402, "card_declined", "issuer_not_available"), "declined", DECLINED, True),
        (refusal(402, "card_declined", "try_again_later"), "declined", DECLINED, True),
        (refusal(402, "card_declined", "try_again_later", "do_not_try_again"), "declined", DECLINED, False),
        (
            refusal(402, "processing_error"),
            "declined",
            "An error occurred while processing your card. Please try again in a little while.",
            True,
        ),
        (
            refusal(402, "authentication_required", "authentication_required"),
            "authentication_required",
            "Your bank wants you to confirm this payment. Please come back and try again.",
            False,
        ),
        (
            refusal(402, "card_declined", "authentication_required"),
            "authentication_required",
            "Your bank wants you to confirm this payment. Please come back and try again.",
            False,
        ),
        (
            refusal(400, "amount_too_small"),
            "invalid_request",
            "The amount is below the minimum that can be paid in this currency.",
            False,
        ),
        (
            refusal(400, "amount_too_large"),
            "invalid_request",
            "The amount is above the maximum that can be paid in this currency.",
            False,
        ),
        (refusal(400, "parameter_unknown"), "invalid_request", CANNOT, False),
        (refusal(404, "resource_missing"), "invalid_request", CANNOT, False),
        (refusal(400, None), "invalid_request", CANNOT, False),
        (refusal(400, "x", None, "try_again_later"), "invalid_request", CANNOT, False),
    ],
)
def test_stripes_no_is_told_by_category_with_words_of_our_own(
    said: Refusal, category: str, message: str, may_retry: bool
) -> None:
    failure = failure_of(said)
    assert (failure.category, failure.message, failure.may_retry) == (category, message, may_retry)
    assert (failure.code, failure.decline_code) == (said.code, said.decline_code)


@pytest.mark.parametrize(
    "decline_code", ["fraudulent", "lost_card", "stolen_card", "merchant_blacklist", "pickup_card", "restricted_card"]
)
@pytest.mark.parametrize("code", ["card_declined", "expired_card", None])
def test_a_suspicion_is_not_told_to_the_person_at_the_till(decline_code: str, code: str | None) -> None:
    failure = failure_of(refusal(402, code, decline_code))
    assert failure.message == DECLINED
    assert failure.may_retry is False


@given(st.integers(400, 499), *[st.none() | st.text(max_size=20)] * 3)
def test_stripes_text_for_developers_never_reaches_the_customer(
    status: int, code: str | None, decline_code: str | None, advice: str | None
) -> None:
    said = refusal(status, code, decline_code, advice)
    assert said.message not in failure_of(said).model_dump_json()


# Events


@pytest.mark.parametrize("answer", [answer_of_intent(OPEN, INTENT), answer_of_refusal(OPEN, DECLINE)])
def test_the_same_outcome_is_the_same_event_byte_for_byte(answer: Answer) -> None:
    assert tell(answer) == tell(answer)
    assert tell(answer).event_id == "o-1/payment/1" == event_id("o-1", 1)


def test_an_events_id_depends_on_the_order_and_the_sequence_alone() -> None:
    answer = answer_of_intent(OPEN, INTENT)
    unnamed = dataclasses.replace(OPEN, cause=None, correlation_id=None, traceparent="t")
    other = tell(answer_of_intent(unnamed, INTENT), source="s", now=NOW + timedelta(days=1))
    assert other.event_id == tell(answer).event_id
    later = dataclasses.replace(answer, payment=dataclasses.replace(answer.payment, sequence=2))
    assert tell(later).event_id != tell(answer).event_id


@given(ORDER_IDS, st.integers(1, 2**31 - 1))
def test_an_events_id_fits_an_amqp_short_string_and_the_ledger(order_id: str, sequence: int) -> None:
    assert len(event_id(order_id, sequence).encode()) <= 255


def test_an_event_of_an_intent_tells_what_the_contract_says() -> None:
    event = tell(answer_of_intent(dataclasses.replace(OPEN, traceparent="00-trace"), INTENT))
    assert (event.type, event.order_id, event.sequence) == ("payment.intent_created", "o-1", 1)
    assert (event.correlation_id, event.traceparent) == ("c-1", "00-trace")
    assert json.loads(event.body) == {
        "specversion": "1.0",
        "id": "o-1/payment/1",
        "source": "payment-worker",
        "type": "payment.intent_created",
        "subject": "o-1",
        "time": "2026-01-31T12:00:00Z",
        "datacontenttype": "application/json",
        "traceparent": "00-trace",
        "data": {
            "order_id": "o-1",
            "payment_id": "pi_1",
            "status": "requires_payment_method",
            "amount": "99.99",
            "amount_minor": 9999,
            "currency": "usd",
            "livemode": False,
            "sequence": 1,
            "cause": "e-1",
        },
    }


def test_an_event_of_a_failure_tells_what_is_known_and_why() -> None:
    unnamed = dataclasses.replace(OPEN, cause=None)
    event = tell(answer_of_refusal(unnamed, refusal(400, "amount_too_small")))
    assert event.type == "payment.failed"
    assert json.loads(event.body)["data"] == {
        "order_id": "o-1",
        "amount": "99.99",
        "amount_minor": 9999,
        "currency": "usd",
        "sequence": 1,
        "failure": {
            "category": "invalid_request",
            "code": "amount_too_small",
            "message": "The amount is below the minimum that can be paid in this currency.",
            "may_retry": False,
        },
    }


@pytest.mark.parametrize("kind", [Payment, Operation, Intent, Answer, PaymentEvent, Refusal])
def test_nothing_that_is_kept_has_a_place_for_the_client_secret(kind: type[Any]) -> None:
    assert [field.name for field in dataclasses.fields(kind) if "secret" in field.name] == []
    assert kind.__slots__  # so that none can be hung on


@pytest.mark.parametrize("kind", [PaymentIntentCreatedData, PaymentFailedData])
def test_no_event_has_a_place_for_the_client_secret(
    kind: type[PaymentIntentCreatedData] | type[PaymentFailedData],
) -> None:
    known = {"order_id": "o-1", "payment_id": "pi_1", "status": "x", "amount": "1", "amount_minor": 100}
    known |= {"currency": "usd", "livemode": False, "sequence": 1, "failure": failure_of(DECLINE)}
    data = kind.model_validate({**known, "client_secret": "pi_1_secret_x"})
    assert "secret" not in data.model_dump_json()


# Dead letters


@given(st.binary(), st.dictionaries(st.text(), st.text()), st.binary(), st.dictionaries(st.text(), st.text()))
def test_a_letters_id_is_made_of_the_message_and_of_nothing_else(
    body: bytes, identity: dict[str, str], other_body: bytes, other_identity: dict[str, str]
) -> None:
    letter = dead_letter_id(body, identity)
    assert letter == dead_letter_id(body, dict(reversed(identity.items())))
    assert (letter == dead_letter_id(other_body, other_identity)) == ((body, identity) == (other_body, other_identity))
    assert len(letter) == 23
