from typing import Any

import pytest
import stripe

from worker.sandbox.stripe_server import RunningSandbox

HOLD = {"capture_method": "manual"}


async def test_create_answers_as_stripe_does(intents: Any, order: Any) -> None:
    intent = await intents.create_async(order)
    assert intent.object == "payment_intent"
    assert intent.id.startswith("pi_")
    assert intent.client_secret.startswith(f"{intent.id}_secret_")
    assert (intent.amount, intent.currency, intent.status) == (1999, "usd", "requires_payment_method")
    assert (intent.amount_received, intent.amount_capturable, intent.livemode) == (0, 0, False)
    assert (intent.latest_charge, intent.last_payment_error, intent.next_action) == (None, None, None)
    assert intent.capture_method == "automatic_async"
    assert intent.automatic_payment_methods.enabled is True
    assert intent.metadata["order_id"] == "order-1"


async def test_every_field_of_the_sdks_intent_that_stripe_always_sends_is_there(intents: Any, order: Any) -> None:
    intent = (await intents.create_async(order)).to_dict()
    sometimes = {"managed_payments", "payment_record", "presentment_details"}
    assert {name for name in stripe.PaymentIntent.__annotations__ if name.islower()} - sometimes <= (
        set(intent) | {"_inner_class_types", "_inner_class_dicts", "_field_encodings", "_field_remappings"}
    )


async def test_livemode_follows_the_key(make_client: Any, order: Any) -> None:
    for key, live in (("sk_live_a", True), ("rk_live_a", True), ("sk_test_a", False), ("rk_test_a", False)):
        assert (await make_client(key).v1.payment_intents.create_async(order)).livemode is live


async def test_a_test_card_does_not_exist_in_live_mode(make_client: Any, order: Any) -> None:
    live = make_client("sk_live_a").v1.payment_intents
    with pytest.raises(stripe.InvalidRequestError) as refused:
        await live.create_async({**order, "payment_method": "pm_card_visa"})
    assert refused.value.code == "resource_missing"


async def test_from_payment_method_to_success_step_by_step(intents: Any, order: Any) -> None:
    created = await intents.create_async({**order, "allowed_payment_method_types": ["card"]})
    with pytest.raises(stripe.InvalidRequestError) as nothing:
        await intents.confirm_async(created.id)
    assert nothing.value.code == "payment_intent_unexpected_state"
    with_card = await intents.update_async(created.id, {"payment_method": "pm_card_mastercard"})
    assert with_card.status == "requires_confirmation"
    done = await intents.confirm_async(created.id, {"expand": ["latest_charge"]})
    assert (done.status, done.amount_received, done.amount_capturable) == ("succeeded", 1999, 0)
    assert (done.latest_charge.payment_intent, done.latest_charge.paid) == (created.id, True)
    assert (await intents.retrieve_async(created.id)).latest_charge == done.latest_charge.id


async def test_the_answer_shows_a_payment_method_of_its_own_not_the_test_name(intents: Any, paid: Any) -> None:
    intent = await intents.create_async(paid)
    assert intent.payment_method.startswith("pm_")
    assert intent.payment_method != "pm_card_visa"
    reused = await intents.create_async({**paid, "payment_method": intent.payment_method})
    assert (reused.status, reused.payment_method) == ("succeeded", intent.payment_method)


async def test_manual_capture_holds_then_takes_a_part(intents: Any, paid: Any) -> None:
    held = await intents.create_async({**paid, **HOLD})
    assert (held.status, held.amount_capturable, held.amount_received) == ("requires_capture", 1999, 0)
    with pytest.raises(stripe.InvalidRequestError) as too_much:
        await intents.capture_async(held.id, {"amount_to_capture": 2000})
    assert too_much.value.code == "amount_too_large"
    taken = await intents.capture_async(held.id, {"amount_to_capture": 999, "metadata": {"part": "1"}})
    assert (taken.status, taken.amount, taken.amount_received, taken.amount_capturable) == ("succeeded", 1999, 999, 0)
    assert taken.metadata.to_dict() == {"order_id": "order-1", "part": "1"}
    with pytest.raises(stripe.InvalidRequestError) as twice:
        await intents.capture_async(held.id)
    assert twice.value.error.payment_intent.status == "succeeded"


async def test_capture_method_of_the_card_alone_holds_too(intents: Any, paid: Any) -> None:
    options = {"card": {"capture_method": "manual"}}
    assert (await intents.create_async({**paid, "payment_method_options": options})).status == "requires_capture"


async def test_cancel_is_final_and_says_so(intents: Any, paid: Any) -> None:
    held = await intents.create_async({**paid, **HOLD})
    canceled = await intents.cancel_async(held.id, {"cancellation_reason": "abandoned"})
    assert (canceled.status, canceled.cancellation_reason) == ("canceled", "abandoned")
    assert canceled.amount_capturable == 0
    assert canceled.canceled_at >= canceled.created
    for act in (intents.cancel_async, intents.confirm_async, intents.capture_async):
        with pytest.raises(stripe.InvalidRequestError) as refused:
            await act(held.id)
        assert (refused.value.http_status, refused.value.code) == (400, "payment_intent_unexpected_state")
        assert refused.value.error.payment_intent.id == held.id
        assert refused.value.error.payment_intent.status == "canceled"


async def test_what_succeeded_can_be_neither_canceled_nor_confirmed_again(intents: Any, paid: Any) -> None:
    done = await intents.create_async(paid)
    for act in (intents.cancel_async, intents.confirm_async):
        with pytest.raises(stripe.InvalidRequestError) as refused:
            await act(done.id)
        assert refused.value.error.payment_intent.status == "succeeded"
    assert (await intents.retrieve_async(done.id)).amount_received == 1999


async def test_update_merges_metadata_and_unsets(intents: Any, order: Any) -> None:
    created = await intents.create_async({**order, "receipt_email": "a@example.com"})
    change = {"metadata": {"a": "1", "order_id": "order-2"}, "receipt_email": "", "amount": 2500}
    changed = await intents.update_async(created.id, change)
    assert (changed.metadata.to_dict(), changed.receipt_email) == ({"a": "1", "order_id": "order-2"}, None)
    assert changed.amount == 2500
    removed = await intents.update_async(created.id, {"metadata": {"a": ""}})
    assert removed.metadata.to_dict() == {"order_id": "order-2"}
    cleared = await intents.update_async(created.id, {"metadata": ""})
    assert cleared.metadata.to_dict() == {}


async def test_metadata_merged_past_its_limit_is_refused(intents: Any, order: Any) -> None:
    created = await intents.create_async({**order, "metadata": {f"k{n}": "v" for n in range(50)}})
    with pytest.raises(stripe.InvalidRequestError, match="50"):
        await intents.update_async(created.id, {"metadata": {"one more": "v"}})
    assert (await intents.update_async(created.id, {"metadata": {"k0": "w"}})).metadata["k0"] == "w"


async def test_a_finished_payment_may_be_described_but_not_changed(intents: Any, paid: Any) -> None:
    done = await intents.create_async(paid)
    assert (await intents.update_async(done.id, {"description": "late"})).description == "late"
    for change in ({"amount": 5}, {"currency": "eur"}, {"payment_method": "pm_card_visa"}):
        with pytest.raises(stripe.InvalidRequestError) as refused:
            await intents.update_async(done.id, change)
        assert refused.value.code == "payment_intent_unexpected_state"
    assert (await intents.retrieve_async(done.id)).amount == 1999


async def test_an_updated_amount_obeys_the_limits_of_its_currency(intents: Any, order: Any) -> None:
    created = await intents.create_async(order)
    for change, code in (
        ({"amount": 49}, "amount_too_small"),
        ({"currency": "isk"}, "parameter_invalid_integer"),
        ({"currency": "czk", "amount": 1499}, "amount_too_small"),
    ):
        with pytest.raises(stripe.InvalidRequestError) as refused:
            await intents.update_async(created.id, change)
        assert refused.value.code == code
    assert (await intents.retrieve_async(created.id)).amount == 1999


@pytest.mark.parametrize("act", ["retrieve_async", "update_async", "confirm_async", "capture_async", "cancel_async"])
async def test_an_intent_that_is_not_there_is_a_404(intents: Any, act: str) -> None:
    with pytest.raises(stripe.InvalidRequestError) as missing:
        await getattr(intents, act)("pi_nowhere")
    assert (missing.value.http_status, missing.value.code) == (404, "resource_missing")
    assert missing.value.param == "intent"


async def test_a_bank_debit_is_processing_until_the_bank_settles(
    intents: Any, order: Any, sandbox: RunningSandbox
) -> None:
    debit = {**order, "confirm": True, "allowed_payment_method_types": ["us_bank_account"]}
    settled = await intents.create_async({**debit, "payment_method": "pm_usBankAccount_success"})
    assert (settled.status, settled.amount_received) == ("processing", 0)
    await sandbox.control.act(settled.id, "settle")
    assert (await intents.retrieve_async(settled.id)).status == "succeeded"

    bounced = await intents.create_async({**debit, "payment_method": "pm_usBankAccount_insufficientFunds"})
    await sandbox.control.act(bounced.id, "settle")
    after = await intents.retrieve_async(bounced.id)
    assert (after.status, after.last_payment_error.code) == (
        "requires_payment_method",
        "payment_intent_payment_attempt_failed",
    )


async def test_a_hold_that_runs_out_is_canceled_as_expired(intents: Any, paid: Any, sandbox: RunningSandbox) -> None:
    held = await intents.create_async({**paid, **HOLD})
    await sandbox.control.act(held.id, "expire")
    after = await intents.retrieve_async(held.id)
    assert (after.status, after.cancellation_reason, after.amount_capturable) == ("canceled", "expired", 0)


async def test_time_of_creation_follows_the_sandbox_clock(intents: Any, order: Any, sandbox: RunningSandbox) -> None:
    before = await intents.create_async(order)
    await sandbox.control.advance_clock(86_400)
    after = await intents.create_async(order)
    assert 86_400 <= after.created - before.created <= 86_460
