from typing import Any

import pytest
import stripe

from worker.sandbox.stripe_balance import fee_of
from worker.sandbox.stripe_control import SandboxError
from worker.sandbox.stripe_server import RunningSandbox

HOUR_S = 3600
DAY_S = 24 * HOUR_S


async def test_a_payment_makes_a_charge_with_its_own_copy_of_the_metadata(v1: Any, intents: Any, paid: Any) -> None:
    intent = await intents.create_async(paid)
    charge = await v1.charges.retrieve_async(intent.latest_charge)
    assert (charge.object, charge.payment_intent, charge.payment_method) == ("charge", intent.id, intent.payment_method)
    assert (charge.amount, charge.amount_captured, charge.amount_refunded, charge.currency) == (1999, 1999, 0, "usd")
    assert (charge.status, charge.paid, charge.captured, charge.refunded, charge.disputed) == (
        "succeeded",
        True,
        True,
        False,
        False,
    )
    assert (charge.balance_transaction, charge.failure_code, charge.livemode) == (None, None, False)
    assert charge.payment_method_details.card.last4 == "4242"
    await intents.update_async(intent.id, {"metadata": {"late": "1"}})
    assert (await v1.charges.retrieve_async(charge.id)).metadata.to_dict() == {"order_id": "order-1"}


async def test_each_attempt_has_a_charge_of_its_own(v1: Any, intents: Any, paid: Any) -> None:
    with pytest.raises(stripe.CardError) as declined:
        await intents.create_async({**paid, "payment_method": "pm_card_chargeDeclinedInsufficientFunds"})
    intent_id = declined.value.error.payment_intent.id
    failed = await v1.charges.retrieve_async(declined.value.error.payment_intent.latest_charge)
    assert (failed.status, failed.paid, failed.captured, failed.amount_captured) == ("failed", False, False, 0)
    assert (failed.failure_code, failed.outcome.reason) == ("card_declined", "insufficient_funds")
    done = await intents.confirm_async(intent_id, {"payment_method": "pm_card_visa"})
    assert done.latest_charge != failed.id
    both = await v1.charges.list_async({"payment_intent": intent_id})
    assert [charge.id for charge in both.data] == [done.latest_charge, failed.id]
    assert (await v1.charges.retrieve_async(failed.id)).status == "failed"


async def test_an_authenticated_attempt_after_a_declined_one_gets_a_new_charge(
    v1: Any, intents: Any, paid: Any, sandbox: RunningSandbox
) -> None:
    with pytest.raises(stripe.CardError) as declined:
        await intents.create_async({**paid, "payment_method": "pm_card_chargeDeclined"})
    before = declined.value.error.payment_intent
    await intents.confirm_async(before.id, {"payment_method": "pm_card_threeDSecure2Required"})
    done = await sandbox.control.act(before.id, "authenticate")
    assert done["latest_charge"] != before.latest_charge
    assert (await v1.charges.retrieve_async(done["latest_charge"])).status == "succeeded"


async def test_a_bank_debit_keeps_one_charge_from_pending_to_its_end(
    v1: Any, intents: Any, order: Any, sandbox: RunningSandbox
) -> None:
    debit = {**order, "confirm": True, "allowed_payment_method_types": ["us_bank_account"]}
    for deed, status in (("settle", "succeeded"), ("fail", "failed")):
        intent = await intents.create_async({**debit, "payment_method": "pm_usBankAccount_success"})
        assert (await v1.charges.retrieve_async(intent.latest_charge)).status == "pending"
        after = await sandbox.control.act(intent.id, deed)
        assert after["latest_charge"] == intent.latest_charge
        assert (await v1.charges.retrieve_async(intent.latest_charge)).status == status


async def test_a_hold_is_captured_in_part_or_runs_out_by_itself(
    v1: Any, intents: Any, paid: Any, sandbox: RunningSandbox
) -> None:
    hold = {**paid, "capture_method": "manual"}
    first, second, third = [await intents.create_async(hold) for _ in range(3)]
    off_session = await intents.create_async({**hold, "off_session": True})
    held = await v1.charges.retrieve_async(first.latest_charge)
    assert (held.captured, held.amount_captured, held.status) == (False, 0, "succeeded")
    assert held.payment_method_details.card.capture_before == held.created + 7 * DAY_S
    by_merchant = await v1.charges.retrieve_async(off_session.latest_charge)
    assert by_merchant.payment_method_details.card.capture_before == by_merchant.created + 4 * DAY_S + 18 * HOUR_S

    await intents.capture_async(first.id, {"amount_to_capture": 999})
    await intents.cancel_async(second.id)
    taken = await v1.charges.retrieve_async(first.latest_charge)
    assert (taken.captured, taken.amount_captured, taken.amount_refunded, taken.refunded) == (True, 999, 0, False)

    await sandbox.control.advance_clock(5 * DAY_S)
    assert (await intents.retrieve_async(off_session.id)).cancellation_reason == "expired"
    assert (await intents.retrieve_async(third.id)).status == "requires_capture"
    await sandbox.control.advance_clock(2 * DAY_S)
    assert (await intents.retrieve_async(third.id)).cancellation_reason == "expired"
    assert (await intents.retrieve_async(second.id)).cancellation_reason is None
    assert (await intents.retrieve_async(first.id)).status == "succeeded"
    expired = await sandbox.control.events(object_id=third.latest_charge)
    assert [event["type"] for event in expired] == ["charge.succeeded", "charge.expired"]


async def test_the_balance_transaction_comes_later(v1: Any, intents: Any, paid: Any, sandbox: RunningSandbox) -> None:
    intent = await intents.create_async(paid)
    await sandbox.control.advance_clock(HOUR_S - 60)
    assert (await v1.charges.retrieve_async(intent.latest_charge)).balance_transaction is None
    await sandbox.control.advance_clock(60)
    charge = await v1.charges.retrieve_async(intent.latest_charge)
    settled = await v1.balance_transactions.retrieve_async(charge.balance_transaction)
    assert (settled.amount, settled.fee, settled.net) == (1999, 88, 1911)
    assert (settled.currency, settled.exchange_rate, settled.source, settled.type) == ("usd", None, charge.id, "charge")
    assert sum(detail.amount for detail in settled.fee_details) == settled.fee
    told = (await v1.events.list_async({"type": "charge.updated"})).data
    assert [event.data.object.balance_transaction for event in told] == [settled.id]
    assert told[0].data.previous_attributes.to_dict() == {"balance_transaction": None}
    assert told[0].request.id is None


async def test_settlement_by_a_deed_comes_once_and_only_to_money_taken(
    intents: Any, paid: Any, sandbox: RunningSandbox
) -> None:
    intent = await intents.create_async(paid)
    charge = await sandbox.control.act(intent.id, "settle_balance")
    assert charge["balance_transaction"].startswith("txn_")
    with pytest.raises(SandboxError, match="not waiting"):
        await sandbox.control.act(charge["id"], "settle_balance")
    await sandbox.control.advance_clock(2 * HOUR_S)
    assert len(await sandbox.control.objects("balance_transactions")) == 1
    held = await intents.create_async({**paid, "capture_method": "manual"})
    with pytest.raises(SandboxError, match="not waiting"):
        await sandbox.control.act(held.id, "settle_balance")


async def test_synchronous_capture_has_its_balance_transaction_at_once_and_no_lag_is_none(
    v1: Any, intents: Any, paid: Any, sandbox: RunningSandbox
) -> None:
    together = {"expand": ["latest_charge.balance_transaction"]}
    at_once = await intents.create_async({**paid, **together, "capture_method": "automatic"})
    assert at_once.latest_charge.balance_transaction.net == 1911
    await sandbox.control.change_settings(settlement_lag_s=None)
    never = await intents.create_async(paid)
    await sandbox.control.advance_clock(2 * DAY_S)
    assert (await v1.charges.retrieve_async(never.latest_charge)).balance_transaction is None


@pytest.mark.parametrize(("amount", "fee"), [(50, 31), (100, 33), (1000, 59), (1999, 88), (99_999_999, 2_900_030)])
def test_the_fee_is_rounded_to_the_nearest_minor_unit(amount: int, fee: int) -> None:
    assert fee_of(amount) == fee


async def test_expansion_shows_the_object_in_place_of_its_id(
    v1: Any, intents: Any, paid: Any, order: Any, sandbox: RunningSandbox
) -> None:
    intent = await intents.create_async(paid)
    unpaid = await intents.create_async({**order, "expand": ["latest_charge.balance_transaction"]})
    assert unpaid.latest_charge is None
    await sandbox.control.act(intent.id, "settle_balance")
    paths = ["latest_charge", "latest_charge.balance_transaction"]
    shown = await intents.retrieve_async(intent.id, {"expand": paths})
    assert shown.latest_charge.to_dict()["balance_transaction"]["fee"] == 88
    listed = await intents.list_async({"expand": ["data.latest_charge"]})
    assert [one.latest_charge and one.latest_charge.status for one in listed.data] == [None, "succeeded"]
    charge = await v1.charges.retrieve_async(intent.latest_charge, {"expand": ["payment_intent.latest_charge"]})
    assert charge.payment_intent.latest_charge.id == charge.id
    assert (await intents.retrieve_async(intent.id)).latest_charge == charge.id


@pytest.mark.parametrize("path", ["customer", "latest_charge.customer", "", "data.latest_charge", "latest_charge."])
async def test_what_cannot_be_expanded_is_refused(intents: Any, order: Any, path: str) -> None:
    with pytest.raises(stripe.InvalidRequestError) as refused:
        await intents.create_async({**order, "expand": [path]})
    assert refused.value.param == "expand"


@pytest.mark.parametrize("resource", ["charges", "refunds", "disputes", "balance_transactions", "events"])
async def test_an_object_that_is_not_there_is_a_404(v1: Any, resource: str) -> None:
    with pytest.raises(stripe.InvalidRequestError) as missing:
        await getattr(v1, resource).retrieve_async("nowhere")
    assert (missing.value.http_status, missing.value.code) == (404, "resource_missing")


async def test_objects_belong_to_their_account_and_mode(make_client: Any, intents: Any, paid: Any) -> None:
    intent = await intents.create_async(paid)
    for other in (make_client(stripe_account="acct_other"), make_client("sk_live_abc")):
        with pytest.raises(stripe.InvalidRequestError) as missing:
            await other.v1.charges.retrieve_async(intent.latest_charge)
        assert missing.value.code == "resource_missing"
        assert (await other.v1.charges.list_async()).data == []


async def test_every_field_of_the_sdks_objects_that_stripe_always_sends_is_there(
    v1: Any, intents: Any, paid: Any, sandbox: RunningSandbox
) -> None:
    intent = await intents.create_async(paid)
    await sandbox.control.act(intent.id, "settle_balance")
    refund = await v1.refunds.create_async({"payment_intent": intent.id, "amount": 1})
    dispute = await sandbox.control.act(intent.id, "dispute")
    charge = await v1.charges.retrieve_async(intent.latest_charge)
    shown: dict[type, Any] = {
        stripe.Charge: charge,
        stripe.Refund: refund,
        stripe.Dispute: await v1.disputes.retrieve_async(dispute["id"]),
        stripe.BalanceTransaction: await v1.balance_transactions.retrieve_async(charge.balance_transaction),
    }
    # Only sent when expanded, for some payment methods, or to some accounts.
    sometimes = {
        "refunds", "authorization_code", "presentment_details", "transfer", "description", "level3",
        "instructions_email", "network_reason_code", "intended_submission_method",
    }  # fmt: skip
    for kind, one in shown.items():
        fields = {name for name in kind.__annotations__ if name.islower() and not name.startswith("_")}
        assert fields - sometimes <= set(one.to_dict()), kind
