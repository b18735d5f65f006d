"""Stripe's answers from plain JSON: what is kept of them, and what is none."""

import json
from datetime import UTC, datetime
from typing import Any

import pytest
from multidict import CIMultiDict

from worker.errors import CallUnknown, Refusal
from worker.payment import Intent
from worker.payment_life import Settlement
from worker.stripe_answer import (
    StripeAnswer,
    read_body,
    read_intent,
    read_page,
    read_secret,
    read_settlement,
)

INTENT: dict[str, Any] = {
    "id": "pi_1",
    "object": "payment_intent",
    "status": "requires_payment_method",
    "amount": 1250,
    "currency": "usd",
    "livemode": False,
    "metadata": {"order_id": "o-1", "tenant": "blue"},
    "client_secret": "pi_1_secret_x",
    "last_payment_error": None,
}
TRANSACTION: dict[str, Any] = {"id": "txn_1", "fee": 59, "net": -9, "currency": "eur", "exchange_rate": None}
DECLINE = {"code": "card_declined", "decline_code": "lost_card", "advice_code": "do_not_try_again", "message": "No."}
NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)


def test_an_intent_is_read() -> None:
    assert read_intent(INTENT, "req_1") == Intent("pi_1", INTENT["status"], 1250, "usd", False, "o-1", "req_1", None)


def test_an_intent_of_nobodys_has_no_order() -> None:
    assert read_intent(INTENT | {"metadata": {}}).order_id is None


@pytest.mark.parametrize("name", ["id", "status", "amount", "currency", "livemode", "metadata"])
@pytest.mark.parametrize("value", [None, [], {"a": 1}, 12.5, "12", 12, True])
def test_an_intent_with_a_field_of_another_kind_is_none(name: str, value: object) -> None:
    is_of_its_kind = type(value) is type(INTENT[name])
    if is_of_its_kind:
        assert read_intent(INTENT | {name: value})
    else:
        with pytest.raises(CallUnknown, match="no PaymentIntent") as strange:
            read_intent(INTENT | {name: value})
        assert strange.value.reason == "strange_answer"


@pytest.mark.parametrize("name", ["id", "status", "amount", "currency", "livemode", "metadata"])
def test_an_intent_without_a_field_is_none(name: str) -> None:
    with pytest.raises(CallUnknown):
        read_intent({key: value for key, value in INTENT.items() if key != name})


def test_what_a_confirmation_was_refused_with_is_as_the_call_would_have_told_it() -> None:
    error = DECLINE | {"message": "x" * 900}
    assert read_intent(INTENT | {"last_payment_error": error}).declined == Refusal(
        http_status=402,
        code="card_declined",
        decline_code="lost_card",
        advice_code="do_not_try_again",
        message="x" * 500,
        payment_id="pi_1",
        payment_status="requires_payment_method",
        livemode=False,
    )


def test_an_error_of_before_counts_no_more_once_the_intent_goes_on() -> None:
    assert read_intent(INTENT | {"last_payment_error": DECLINE, "status": "succeeded"}).declined is None


def test_the_secret_is_read_where_the_key_may_see_it() -> None:
    secret = read_secret(INTENT)
    assert secret is not None
    assert secret.reveal() == "pi_1_secret_x"
    assert read_secret(INTENT | {"client_secret": None}) is None
    assert read_secret({}) is None


@pytest.mark.parametrize(
    ("rate", "told"), [(None, None), (1, "1"), (0.92, "0.92"), (9.2e-05, "0.000092"), (1e22, "10000000000000000000000")]
)
def test_a_settlement_is_read_with_its_rate_in_plain_digits(rate: float | None, told: str | None) -> None:
    assert read_settlement(TRANSACTION | {"exchange_rate": rate}) == Settlement("txn_1", 59, -9, "eur", told)


@pytest.mark.parametrize(
    "change", [{"fee": "59"}, {"fee": True}, {"net": 1.5}, {"id": None}, {"exchange_rate": float("nan")}]
)
def test_what_is_no_balance_transaction(change: dict[str, Any]) -> None:
    with pytest.raises(CallUnknown, match="no balance transaction"):
        read_settlement(TRANSACTION | change)


def test_a_page_says_where_the_next_one_starts() -> None:
    page = [{"id": "a"}, {"id": "b"}]
    assert read_page({"data": page, "has_more": True}) == (page, "b")
    assert read_page({"data": page, "has_more": False}) == (page, None)
    assert read_page({"data": [], "has_more": True}) == ([], None)


@pytest.mark.parametrize("body", [{}, {"data": None}, {"data": {"id": "a"}}, {"data": [1]}, {"data": [{}]}])
def test_what_is_no_page(body: dict[str, Any]) -> None:
    with pytest.raises(CallUnknown, match="no list"):
        read_page(body)


def test_a_body_is_a_json_object_in_utf_8() -> None:
    assert read_body(json.dumps(INTENT, ensure_ascii=False).encode()) == INTENT
    assert read_body(b'{"description": "\\ud83d"}') == {"description": "\ud83d"}, "half a character, as Stripe keeps it"


@pytest.mark.parametrize(
    "body", [b"", b"null", b"[{}]", b'"{}"', b"{", b"\xef\xbb\xbf{}", b'{"a": "\xfc"}', b'{"a":' * 100_000]
)
def test_what_is_no_json_object_is_not_repeated(body: bytes) -> None:
    with pytest.raises(CallUnknown, match=r"^the answer is no JSON object$") as strange:
        read_body(body)
    assert strange.value.__context__ is None, "a JSONDecodeError holds the whole text"


@pytest.mark.parametrize(
    ("headers", "moment"),
    [
        ({"date": "Fri, 02 Jan 2026 10:00:00 GMT"}, datetime(2026, 1, 2, 10, tzinfo=UTC)),
        ({"Date": "Fri, 02 Jan 2026 10:00:00 -0000"}, datetime(2026, 1, 2, 10, tzinfo=UTC)),
        ({"Date": "yesterday"}, NOW),
        ({"Date": ""}, NOW),
        ({}, NOW),
    ],
)
def test_an_answer_is_of_stripes_own_time(headers: dict[str, str], moment: datetime) -> None:
    assert StripeAnswer(INTENT, CIMultiDict(headers)).said_at(NOW) == moment


def test_an_answer_knows_its_request_and_prints_nothing() -> None:
    answer = StripeAnswer(INTENT, CIMultiDict({"request-id": "req_1"}))
    assert answer.request_id == "req_1"
    assert "pi_1" not in repr(answer)
    assert StripeAnswer(INTENT, CIMultiDict()).request_id is None
