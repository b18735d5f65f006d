from typing import Any

import pytest
import stripe

from worker.sandbox.stripe_server import RunningSandbox

BACK = {"return_url": "https://shop.example/back"}


@pytest.mark.parametrize(
    ("method", "code", "decline_code"),
    [
        ("pm_card_chargeDeclined", "card_declined", "generic_decline"),
        ("pm_card_visa_chargeDeclined", "card_declined", "generic_decline"),
        ("pm_card_chargeDeclinedInsufficientFunds", "card_declined", "insufficient_funds"),
        ("pm_card_visa_chargeDeclinedInsufficientFunds", "card_declined", "insufficient_funds"),
        ("pm_card_visa_chargeDeclinedLostCard", "card_declined", "lost_card"),
        ("pm_card_visa_chargeDeclinedStolenCard", "card_declined", "stolen_card"),
        ("pm_card_visa_chargeDeclinedVelocityLimitExceeded", "card_declined", "card_velocity_exceeded"),
        ("pm_card_chargeDeclinedExpiredCard", "expired_card", None),
        ("pm_card_chargeDeclinedIncorrectCvc", "incorrect_cvc", None),
        ("pm_card_chargeDeclinedProcessingError", "processing_error", None),
        ("pm_card_chargeCustomerFail", "card_declined", "generic_decline"),
    ],
)
async def test_a_declined_create_is_a_402_and_the_intent_exists(
    intents: Any, paid: Any, method: str, code: str, decline_code: str | None
) -> None:
    with pytest.raises(stripe.CardError) as declined:
        await intents.create_async({**paid, "payment_method": method})
    error = declined.value.error
    assert (declined.value.http_status, error.type) == (402, "card_error")
    assert (declined.value.code, error.decline_code) == (code, decline_code)
    assert error.message
    assert error.charge.startswith("ch_")
    assert error.advice_code
    assert error.payment_method.object == "payment_method"

    kept = await intents.retrieve_async(error.payment_intent.id)
    assert kept.to_dict() == error.payment_intent.to_dict()
    assert (kept.status, kept.payment_method, kept.amount_received) == ("requires_payment_method", None, 0)
    assert kept.latest_charge == error.charge
    assert kept.last_payment_error.code == code
    assert kept.metadata["order_id"] == "order-1"


@pytest.mark.parametrize("method", ["pm_card_visa", "pm_card_mastercard", "pm_card_amex", "pm_card_de", "pm_1Saved"])
async def test_a_good_card_succeeds(intents: Any, paid: Any, method: str) -> None:
    assert (await intents.create_async({**paid, "payment_method": method})).status == "succeeded"


async def test_after_a_decline_another_card_pays_the_same_intent(intents: Any, paid: Any) -> None:
    with pytest.raises(stripe.CardError) as declined:
        await intents.create_async({**paid, "payment_method": "pm_card_chargeDeclined"})
    intent_id = declined.value.error.payment_intent.id
    done = await intents.confirm_async(intent_id, {"payment_method": "pm_card_visa"})
    assert (done.id, done.status, done.last_payment_error) == (intent_id, "succeeded", None)
    assert done.latest_charge != declined.value.error.charge


async def test_a_later_update_clears_the_last_error(intents: Any, paid: Any) -> None:
    with pytest.raises(stripe.CardError) as declined:
        await intents.create_async({**paid, "payment_method": "pm_card_chargeDeclined"})
    updated = await intents.update_async(declined.value.error.payment_intent.id, {"description": "again"})
    assert updated.last_payment_error is None


@pytest.mark.parametrize("method", ["pm_card_threeDSecure2Required", "pm_card_authenticationRequired"])
async def test_authentication_is_asked_of_a_customer_who_is_there(
    intents: Any, paid: Any, method: str, sandbox: RunningSandbox
) -> None:
    asked = await intents.create_async({**paid, **BACK, "payment_method": method})
    assert (asked.status, asked.amount_received) == ("requires_action", 0)
    assert asked.next_action.type == "redirect_to_url"
    assert asked.next_action.redirect_to_url.return_url == BACK["return_url"]
    await sandbox.control.act(asked.id, "authenticate")
    done = await intents.retrieve_async(asked.id)
    assert (done.status, done.next_action, done.amount_received) == ("succeeded", None, 1999)


async def test_without_return_url_the_action_is_for_stripe_js(intents: Any, paid: Any) -> None:
    asked = await intents.create_async({**paid, "payment_method": "pm_card_threeDSecure2Required"})
    assert asked.next_action.type == "use_stripe_sdk"


@pytest.mark.parametrize("method", ["pm_card_threeDSecure2Required", "pm_card_authenticationRequired"])
@pytest.mark.parametrize("off_session", [True, "recurring"])
async def test_authentication_cannot_be_asked_of_one_who_is_away(
    intents: Any, paid: Any, method: str, off_session: Any
) -> None:
    with pytest.raises(stripe.CardError) as declined:
        await intents.create_async({**paid, "payment_method": method, "off_session": off_session})
    assert (declined.value.code, declined.value.error.decline_code) == (
        "authentication_required",
        "authentication_required",
    )
    assert declined.value.error.payment_intent.status == "requires_payment_method"


async def test_a_card_set_up_for_it_pays_off_session(intents: Any, paid: Any) -> None:
    card = {**paid, "payment_method": "pm_card_authenticationRequiredSetupForOffSession"}
    assert (await intents.create_async({**card, "off_session": True})).status == "succeeded"
    assert (await intents.create_async(card)).status == "requires_action"


async def test_failed_authentication_leads_back_to_a_new_payment_method(
    intents: Any, paid: Any, sandbox: RunningSandbox
) -> None:
    asked = await intents.create_async({**paid, "payment_method": "pm_card_threeDSecure2Required"})
    await sandbox.control.act(asked.id, "fail_authentication")
    after = await intents.retrieve_async(asked.id)
    assert after.status == "requires_payment_method"
    assert after.last_payment_error.code == "payment_intent_authentication_failure"


async def test_a_card_may_be_declined_after_authentication(intents: Any, paid: Any, sandbox: RunningSandbox) -> None:
    card = "pm_card_authenticationRequiredChargeDeclinedInsufficientFunds"
    asked = await intents.create_async({**paid, "payment_method": card})
    await sandbox.control.act(asked.id, "authenticate")
    after = await intents.retrieve_async(asked.id)
    assert after.last_payment_error.decline_code == "insufficient_funds"


async def test_error_on_requires_action_fails_instead_of_asking(intents: Any, paid: Any) -> None:
    asking = {**paid, "payment_method": "pm_card_threeDSecure2Required", "error_on_requires_action": True}
    with pytest.raises(stripe.CardError) as refused:
        await intents.create_async(asking)
    assert refused.value.code == "payment_intent_action_required"
    assert refused.value.error.payment_intent.status == "requires_payment_method"


async def test_a_statement_descriptor_on_a_card_is_an_error(intents: Any, paid: Any) -> None:
    with pytest.raises(stripe.InvalidRequestError, match="statement_descriptor_suffix"):
        await intents.create_async({**paid, "statement_descriptor": "MY SHOP"})


async def test_inline_payment_method_data_pays_with_a_test_token(intents: Any, paid: Any) -> None:
    inline = {name: value for name, value in paid.items() if name != "payment_method"}
    for token, status in (("tok_visa", "succeeded"), ("tok_threeDSecure2Required", "requires_action")):
        data = {"type": "card", "card": {"token": token}}
        assert (await intents.create_async({**inline, "payment_method_data": data})).status == status
