import asyncio
import json
from typing import Any
from urllib.parse import urlencode

import aiohttp
import pytest
import stripe
import stripe.params
from hypothesis import given, settings
from hypothesis import strategies as st
from stripe import RequestOptions
from stripe._encode import _api_encode

from worker.sandbox.stripe_core import SandboxCore
from worker.sandbox.stripe_gate import PLATFORM
from worker.sandbox.stripe_params import READERS
from worker.sandbox.stripe_record import Row
from worker.sandbox.stripe_request import read_call
from worker.sandbox.stripe_store import Scope

SDK_NAMES = {
    "create": stripe.params.PaymentIntentCreateParams,
    "update": stripe.params.PaymentIntentUpdateParams,
    "confirm": stripe.params.PaymentIntentConfirmParams,
    "capture": stripe.params.PaymentIntentCaptureParams,
    "cancel": stripe.params.PaymentIntentCancelParams,
    "retrieve": stripe.params.PaymentIntentRetrieveParams,
    "list": stripe.params.PaymentIntentListParams,
    "search": stripe.params.PaymentIntentSearchParams,
    "charges.retrieve": stripe.params.ChargeRetrieveParams,
    "refunds.create": stripe.params.RefundCreateParams,
    "refunds.update": stripe.params.RefundUpdateParams,
    "refunds.retrieve": stripe.params.RefundRetrieveParams,
    "refunds.list": stripe.params.RefundListParams,
    "disputes.retrieve": stripe.params.DisputeRetrieveParams,
    "disputes.list": stripe.params.DisputeListParams,
    "balance_transactions.retrieve": stripe.params.BalanceTransactionRetrieveParams,
    "events.retrieve": stripe.params.EventRetrieveParams,
    "events.list": stripe.params.EventListParams,
}


@pytest.mark.parametrize("operation", SDK_NAMES)
def test_every_parameter_of_the_sdk_is_known_and_no_other(operation: str) -> None:
    options = set(RequestOptions.__annotations__)
    assert set(READERS[operation]) == set(SDK_NAMES[operation].__annotations__) - options


async def test_all_of_creates_parameters_are_taken_and_told_back(intents: Any) -> None:
    told_back = {
        "amount": 5000,
        "currency": "eur",
        "application_fee_amount": 100,
        "capture_method": "manual",
        "confirmation_method": "automatic",
        "customer": "cus_123",
        "customer_account": "acct_9",
        "description": "Order 7",
        "hooks": {"inputs": {"tax": {"calculation": "taxcalc_1"}}},
        "metadata": {"order_id": "7", "0": "digits"},
        "on_behalf_of": "acct_8",
        "payment_details": {"order_reference": "7"},
        "payment_method_options": {"card": {"request_three_d_secure": "any"}},
        "receipt_email": "anna@example.com",
        "setup_future_usage": "off_session",
        "shipping": {"name": "Anna", "address": {"line1": "1 Road", "postal_code": "01234", "country": "DE"}},
        "statement_descriptor_suffix": "ORDER 7",
        "transfer_data": {"destination": "acct_7", "amount": 10},
        "transfer_group": "group-7",
        "allowed_payment_method_types": ["card", "sepa_debit"],
        "amount_details": {"line_items": [{"product_name": "Tea", "quantity": 2, "unit_cost": 2500}]},
    }
    others = {
        "confirm": True,
        "error_on_requires_action": False,
        "expand": ["latest_charge"],
        "mandate_data": {"customer_acceptance": {"type": "offline"}},
        "mandate": "mandate_1",
        "off_session": "recurring",
        "payment_method": "pm_card_visa",
        "radar_options": {"session": "rse_1"},
        "return_url": "https://shop.example/back",
        "use_stripe_sdk": True,
    }
    intent = (await intents.create_async({**told_back, **others})).to_dict()
    assert {name: intent[name] for name in told_back} == told_back
    assert intent["payment_method_types"] == ["card", "sepa_debit"]
    assert intent["latest_charge"]["object"] == "charge"


@pytest.mark.parametrize(
    ("params", "code", "param"),
    [
        ({"amount": 500, "currency": "usd", "colour": "red"}, "parameter_unknown", "colour"),
        (
            {"amount": 500, "currency": "usd", "payment_method_types": ["card"]},
            "payment_method_types_no_longer_supported",
            "payment_method_types",
        ),
        ({"currency": "usd"}, "parameter_missing", "amount"),
        ({"amount": 500}, "parameter_missing", "currency"),
        ({"amount": "10.5", "currency": "usd"}, "parameter_invalid_integer", "amount"),
        ({"amount": 1e3, "currency": "usd"}, "parameter_invalid_integer", "amount"),
        ({"amount": True, "currency": "usd"}, "parameter_invalid_integer", "amount"),
        ({"amount": -5, "currency": "usd"}, "parameter_invalid_integer", "amount"),
        ({"amount": "", "currency": "usd"}, "parameter_invalid_empty", "amount"),
        ({"amount": 500, "currency": "usd", "customer": ""}, "parameter_invalid_empty", "customer"),
        ({"amount": 500, "currency": "usd", "customer": "anna"}, "resource_missing", "customer"),
        ({"amount": 500, "currency": "USD"}, None, "currency"),
        ({"amount": 500, "currency": "zzz"}, None, "currency"),
        ({"amount": 49, "currency": "usd"}, "amount_too_small", "amount"),
        ({"amount": 29, "currency": "gbp"}, "amount_too_small", "amount"),
        ({"amount": 49, "currency": "jpy"}, "amount_too_small", "amount"),
        ({"amount": 17400, "currency": "huf"}, "amount_too_small", "amount"),
        ({"amount": 100_000_000, "currency": "usd"}, "amount_too_large", "amount"),
        ({"amount": 550, "currency": "isk"}, "parameter_invalid_integer", "amount"),
        ({"amount": 380_050, "currency": "ugx"}, "parameter_invalid_integer", "amount"),
        ({"amount": 1231, "currency": "kwd"}, "parameter_invalid_integer", "amount"),
        ({"amount": 500, "currency": "usd", "confirm": True}, "parameter_missing", "payment_method"),
        (
            {"amount": 500, "currency": "usd", "confirm": True, "payment_method": "pm_card_visa"},
            None,
            "return_url",
        ),
        ({"amount": 500, "currency": "usd", "confirm": "yes"}, None, "confirm"),
        ({"amount": 500, "currency": "usd", "off_session": True}, None, "off_session"),
        ({"amount": 500, "currency": "usd", "return_url": "https://a.example"}, None, "return_url"),
        ({"amount": 500, "currency": "usd", "error_on_requires_action": True}, None, "error_on_requires_action"),
        ({"amount": 500, "currency": "usd", "capture_method": "later"}, None, "capture_method"),
        ({"amount": 500, "currency": "usd", "receipt_email": "anna"}, "email_invalid", "receipt_email"),
        (
            {"amount": 500, "currency": "usd", "statement_descriptor_suffix": "1234"},
            None,
            "statement_descriptor_suffix",
        ),
        ({"amount": 500, "currency": "usd", "statement_descriptor_suffix": "A*"}, None, "statement_descriptor_suffix"),
        ({"amount": 500, "currency": "usd", "metadata": {"k" * 41: "v"}}, None, f"metadata[{'k' * 41}]"),
        ({"amount": 500, "currency": "usd", "metadata": {"k": "v" * 501}}, None, "metadata[k]"),
        ({"amount": 500, "currency": "usd", "metadata": {f"k{n}": "v" for n in range(51)}}, None, "metadata"),
        ({"amount": 500, "currency": "usd", "metadata": {"k": {"deep": "v"}}}, None, "metadata[k]"),
        ({"amount": 500, "currency": "usd", "shipping": {"name": "A"}}, "parameter_missing", "shipping[address]"),
        (
            {"amount": 500, "currency": "usd", "shipping": {"name": "A", "address": {}, "zip": "1"}},
            "parameter_unknown",
            "shipping[zip]",
        ),
        (
            {
                "amount": 500,
                "currency": "usd",
                "allowed_payment_method_types": ["card"],
                "automatic_payment_methods": {"enabled": True},
            },
            "parameters_exclusive",
            "automatic_payment_methods",
        ),
        ({"amount": 500, "currency": "usd", "payment_method": "pm_nowhere"}, "resource_missing", "payment_method"),
        ({"amount": 500, "currency": "usd", "expand": ["customer"]}, None, "expand"),
    ],
)
async def test_create_refuses(
    intents: Any, sandbox: Any, params: dict[str, Any], code: str | None, param: str | None
) -> None:
    if params.get("shipping", {}).get("address") == {}:
        params["shipping"]["address"] = {"line1": "1 Road"}
    with pytest.raises(stripe.InvalidRequestError) as refused:
        await intents.create_async(params)
    assert (refused.value.http_status, refused.value.code, refused.value.param) == (400, code, param)
    assert refused.value.error.type == "invalid_request_error"
    assert await sandbox.control.intents() == []


@pytest.mark.parametrize(
    ("amount", "currency"),
    [(50, "usd"), (30, "gbp"), (50, "jpy"), (500, "isk"), (380_000, "ugx"), (1230, "kwd"), (99_999_999, "usd")],
)
async def test_create_takes_the_least_and_the_most(intents: Any, amount: int, currency: str) -> None:
    intent = await intents.create_async({"amount": amount, "currency": currency})
    assert (intent.amount, intent.currency) == (amount, currency)


async def test_metadata_at_its_limits_is_taken(intents: Any, order: Any) -> None:
    metadata = {f"{n:0>40}": "v" * 500 for n in range(50)}
    assert (await intents.create_async({**order, "metadata": metadata})).metadata.to_dict() == metadata


@pytest.mark.parametrize("source", [{"off_session": True}, {}])
async def test_a_card_is_confirmed_without_return_url_only_if_nothing_can_redirect(
    intents: Any, order: Any, source: dict[str, Any]
) -> None:
    confirmed = {**order, **source, "confirm": True, "payment_method": "pm_card_visa"}
    with pytest.raises(stripe.InvalidRequestError, match="return_url"):
        await intents.create_async(confirmed)
    for way_out in (
        {"automatic_payment_methods": {"enabled": True, "allow_redirects": "never"}},
        {"allowed_payment_method_types": ["card"]},
        {"return_url": "https://shop.example/back"},
    ):
        assert (await intents.create_async({**confirmed, **way_out})).status == "succeeded"


async def test_an_intent_that_may_redirect_is_not_confirmed_without_return_url(intents: Any, order: Any) -> None:
    created = await intents.create_async({**order, "payment_method": "pm_card_visa"})
    with pytest.raises(stripe.InvalidRequestError) as refused:
        await intents.confirm_async(created.id)
    assert refused.value.param == "return_url"
    assert (await intents.retrieve_async(created.id)).status == "requires_confirmation"
    assert (await intents.confirm_async(created.id, {"return_url": "https://a.example"})).status == "succeeded"


async def test_raw_card_numbers_are_refused(intents: Any, order: Any) -> None:
    data = {"type": "card", "card": {"number": "4242424242424242"}}
    with pytest.raises(stripe.InvalidRequestError, match="unsafe"):
        await intents.create_async({**order, "payment_method_data": data})


@pytest.mark.parametrize("body", [b"a[b=x", b"amount=1&amount[x]=2", b"\xff\xfe"])
async def test_a_body_that_is_no_form_is_a_400(raw: aiohttp.ClientSession, body: bytes) -> None:
    async with raw.post("/v1/payment_intents", data=body) as answer:
        assert answer.status == 400
        assert (await answer.json())["error"]["type"] == "invalid_request_error"


JUNK = st.recursive(
    st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=3), inner, max_size=2),
)


@settings(deadline=None)  # starts an event loop for each example
@given(st.sampled_from(sorted(READERS)), st.data())
def test_no_parameters_are_too_strange_for_a_proper_answer(operation: str, data: st.DataObject) -> None:
    sound = {"amount": "500", "currency": "usd", "confirm": "true", "payment_method": "pm_card_visa", "limit": "3"}
    sound |= {"return_url": "https://a.example", "query": "status:'succeeded'"}
    given_names = data.draw(st.sets(st.sampled_from(sorted(READERS[operation])), max_size=6))
    params = {name: sound.get(name, "") if data.draw(st.booleans()) else data.draw(JUNK) for name in given_names}
    resource, _, action = operation.rpartition(".")
    collection, object_id = f"/v1/{resource or 'payment_intents'}", "pi_1" if not resource else "x_1"
    method, path = {
        "create": ("POST", collection),
        "list": ("GET", collection),
        "search": ("GET", f"{collection}/search"),
        "retrieve": ("GET", f"{collection}/{object_id}"),
        "update": ("POST", f"{collection}/{object_id}"),
    }.get(action, ("POST", f"{collection}/pi_1/{action}"))
    core = SandboxCore()
    _keep_intent(core, "pi_1", held=operation == "capture")
    text = urlencode(list(_api_encode(params)))
    query, form = (text, b"") if method == "GET" else ("", text.encode())
    call = read_call(method, path, query, {"Authorization": "Bearer sk_test_a", "Idempotency-Key": "k"}, form)
    row = Row(1, 0.0, method, path, operation, None, "k", None, None)
    answer = asyncio.run(core.answer(call, core.seen(call), row, None))
    body = json.loads(answer.body)
    if object_id in path and resource:  # nothing but intents was made
        assert (answer.status, body["error"]["type"]) in {
            (400, "invalid_request_error"),
            (404, "invalid_request_error"),
        }
    else:
        assert answer.status in {200, 400, 402}


def _keep_intent(core: SandboxCore, intent_id: str, *, held: bool) -> None:
    scope = Scope(PLATFORM, False)
    params = {"amount": 500, "currency": "usd", "payment_method": "pm_card_visa"}
    hold = {"confirm": True, "capture_method": "manual"} if held else {}
    _, body = core.world.intents.create(scope, params | hold)
    core.world.store.save(scope, {**json.loads(body), "id": intent_id})
