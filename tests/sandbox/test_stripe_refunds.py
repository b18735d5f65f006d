from typing import Any

import pytest
import stripe

from worker.sandbox.stripe_control import SandboxError
from worker.sandbox.stripe_server import RunningSandbox

HOUR_S = 3600


@pytest.fixture
async def intent(intents: Any, paid: Any) -> Any:
    """A payment of 1999 that succeeded."""
    return await intents.create_async(paid)


async def types_about(sandbox: RunningSandbox, object_id: str) -> list[str]:
    return [event["type"] for event in await sandbox.control.events(object_id=object_id)]


async def test_parts_are_refunded_until_nothing_is_left(v1: Any, intent: Any, sandbox: RunningSandbox) -> None:
    first = await v1.refunds.create_async(
        {
            "payment_intent": intent.id,
            "amount": 500,
            "reason": "requested_by_customer",
            "metadata": {"refund_request_id": "r-1"},
        }
    )
    assert (first.object, first.amount, first.currency, first.status) == ("refund", 500, "usd", "succeeded")
    assert (first.charge, first.payment_intent) == (intent.latest_charge, intent.id)
    assert (first.reason, first.metadata.to_dict()) == ("requested_by_customer", {"refund_request_id": "r-1"})
    booked = await v1.balance_transactions.retrieve_async(first.balance_transaction)
    assert (booked.amount, booked.fee, booked.net, booked.type, booked.source) == (-500, 0, -500, "refund", first.id)
    charge = await v1.charges.retrieve_async(intent.latest_charge)
    assert (charge.amount_refunded, charge.refunded) == (500, False)

    rest = await v1.refunds.create_async({"charge": intent.latest_charge})
    assert rest.amount == 1499
    charge = await v1.charges.retrieve_async(intent.latest_charge)
    assert (charge.amount_refunded, charge.refunded, charge.status) == (1999, True, "succeeded")
    assert (await v1.payment_intents.retrieve_async(intent.id)).status == "succeeded"
    with pytest.raises(stripe.InvalidRequestError) as refused:
        await v1.refunds.create_async({"payment_intent": intent.id, "amount": 1})
    assert (refused.value.http_status, refused.value.code) == (400, "charge_already_refunded")

    assert await types_about(sandbox, rest.id) == ["refund.created"]
    assert await types_about(sandbox, intent.latest_charge) == [
        "charge.succeeded",
        "charge.refunded",
        "charge.refunded",
    ]


async def test_more_than_is_left_is_refused_and_changes_nothing(v1: Any, intent: Any) -> None:
    await v1.refunds.create_async({"payment_intent": intent.id, "amount": 1000})
    with pytest.raises(stripe.InvalidRequestError) as refused:
        await v1.refunds.create_async({"payment_intent": intent.id, "amount": 1000})
    assert (refused.value.code, refused.value.param) == ("amount_too_large", "amount")
    assert (await v1.charges.retrieve_async(intent.latest_charge)).amount_refunded == 1000


async def test_only_what_was_captured_can_be_refunded(v1: Any, intents: Any, paid: Any) -> None:
    held = await intents.create_async({**paid, "capture_method": "manual"})
    with pytest.raises(stripe.InvalidRequestError) as refused:
        await v1.refunds.create_async({"payment_intent": held.id})
    assert refused.value.code == "charge_not_refundable"
    await intents.capture_async(held.id, {"amount_to_capture": 700})
    assert (await v1.refunds.create_async({"payment_intent": held.id})).amount == 700
    assert (await v1.charges.retrieve_async(held.latest_charge)).refunded is True


async def test_what_never_succeeded_cannot_be_refunded(v1: Any, intents: Any, paid: Any, order: Any) -> None:
    unpaid = await intents.create_async(order)
    with pytest.raises(stripe.CardError) as declined:
        await intents.create_async({**paid, "payment_method": "pm_card_chargeDeclined"})
    for intent_id in (unpaid.id, declined.value.error.payment_intent.id):
        with pytest.raises(stripe.InvalidRequestError) as refused:
            await v1.refunds.create_async({"payment_intent": intent_id})
        assert refused.value.code == "charge_not_refundable"


@pytest.mark.parametrize(
    ("params", "code", "param"),
    [
        ({}, "parameter_missing", None),
        ({"charge": "ch_1", "payment_intent": "pi_1"}, "parameters_exclusive", "charge"),
        ({"charge": "ch_nowhere"}, "resource_missing", "charge"),
        ({"payment_intent": "pi_nowhere"}, "resource_missing", "payment_intent"),
        ({"payment_intent": "pi_1", "amount": 0}, "parameter_invalid_integer", "amount"),
        ({"payment_intent": "pi_1", "reason": "bored"}, None, "reason"),
        ({"payment_intent": "pi_1", "colour": "red"}, "parameter_unknown", "colour"),
        ({"payment_intent": "pi_1", "expand": ["customer"]}, None, "expand"),
    ],
)
async def test_a_request_that_makes_no_sense_is_refused(
    v1: Any, params: dict[str, Any], code: str | None, param: str | None
) -> None:
    with pytest.raises(stripe.InvalidRequestError) as refused:
        await v1.refunds.create_async(params)
    assert (refused.value.http_status, refused.value.code, refused.value.param) == (400, code, param)


async def test_a_refund_obeys_the_unit_of_its_currency(v1: Any, intents: Any, paid: Any) -> None:
    dinars = await intents.create_async({**paid, "amount": 5000, "currency": "kwd"})
    with pytest.raises(stripe.InvalidRequestError) as refused:
        await v1.refunds.create_async({"payment_intent": dinars.id, "amount": 1001})
    assert refused.value.param == "amount"


async def test_a_refund_is_idempotent_per_key(v1: Any, intent: Any, sandbox: RunningSandbox) -> None:
    part = {"payment_intent": intent.id, "amount": 500}
    first = await v1.refunds.create_async(part, {"idempotency_key": "k"})
    again = await v1.refunds.create_async(part, {"idempotency_key": "k"})
    assert (again.id, again.last_response.headers["Idempotent-Replayed"]) == (first.id, "true")
    with pytest.raises(stripe.IdempotencyError):
        await v1.refunds.create_async({**part, "amount": 501}, {"idempotency_key": "k"})
    assert (await v1.refunds.create_async(part, {"idempotency_key": "k2"})).id != first.id
    assert [one["amount"] for one in await sandbox.control.objects("refunds", intent_id=intent.id)] == [500, 500]


async def test_faults_and_record_know_refunds_by_their_order(v1: Any, intent: Any, sandbox: RunningSandbox) -> None:
    await sandbox.control.add_fault("stored_500", path="/v1/refunds", order_id="order-1", with_object=True)
    part = {"payment_intent": intent.id, "amount": 500, "metadata": {"refund_request_id": "r-1"}}
    for _ in range(2):
        with pytest.raises(stripe.APIError) as unknown:
            await v1.refunds.create_async(part, {"idempotency_key": "k"})
        assert unknown.value.http_status == 500
    made = (await v1.refunds.list_async({"payment_intent": intent.id})).data
    assert [refund.metadata["refund_request_id"] for refund in made] == ["r-1"]
    rows = await sandbox.control.record(operation="refunds.create")
    assert [(row["status"], row["replayed"], row["order_id"]) for row in rows] == [
        (500, False, "order-1"),
        (500, True, "order-1"),
    ]
    assert (await sandbox.control.stats())["refunds"] == 1

    await v1.refunds.retrieve_async(made[0].id)
    assert (await sandbox.control.record(operation="refunds.retrieve"))[0]["order_id"] == "order-1"


async def test_a_restricted_key_may_refund_only_if_told_so(make_client: Any, sandbox: RunningSandbox) -> None:
    await sandbox.control.change_settings(
        restricted_keys={"rk_test_payments": ["* /v1/payment_intents*"], "rk_test_all": ["* /v1/*"]}
    )
    with pytest.raises(stripe.PermissionError):
        await make_client("rk_test_payments").v1.refunds.list_async()
    assert (await make_client("rk_test_all").v1.refunds.list_async()).data == []


async def test_refunds_are_listed_by_payment_charge_and_time(
    v1: Any, intents: Any, paid: Any, intent: Any, sandbox: RunningSandbox
) -> None:
    other = await intents.create_async(paid)
    mine = []
    for amount in (100, 200, 300):
        mine.append(await v1.refunds.create_async({"payment_intent": intent.id, "amount": amount}))
        await sandbox.control.advance_clock(100)
    theirs = await v1.refunds.create_async({"payment_intent": other.id})

    async def ids(**where: Any) -> list[str]:
        page = await v1.refunds.list_async(where)
        assert page.url == "/v1/refunds"
        return [refund.id for refund in page.data]

    newest_first = [refund.id for refund in reversed(mine)]
    assert await ids() == [theirs.id, *newest_first]
    assert await ids(payment_intent=intent.id) == newest_first
    assert await ids(charge=other.latest_charge) == [theirs.id]
    assert await ids(created={"gt": mine[0].created, "lte": mine[2].created}) == newest_first[:2]
    assert await ids(payment_intent=intent.id, limit=1) == newest_first[:1]
    assert await ids(payment_intent=intent.id, limit=1, starting_after=newest_first[0]) == newest_first[1:2]
    assert await ids(payment_intent=intent.id, ending_before=newest_first[1]) == newest_first[:1]


async def test_metadata_of_a_refund_can_be_added(v1: Any, intent: Any, sandbox: RunningSandbox) -> None:
    refund = await v1.refunds.create_async({"payment_intent": intent.id, "metadata": {"a": "1"}})
    changed = await v1.refunds.update_async(refund.id, {"metadata": {"b": "2"}})
    assert changed.metadata.to_dict() == {"a": "1", "b": "2"}
    assert await types_about(sandbox, refund.id) == ["refund.created", "refund.updated"]


async def test_a_pending_refund_settles_by_itself_or_by_a_deed(
    v1: Any, intents: Any, paid: Any, sandbox: RunningSandbox
) -> None:
    intent = await intents.create_async({**paid, "payment_method": "pm_card_pendingRefund"})
    first, second = [
        await v1.refunds.create_async({"payment_intent": intent.id, "amount": amount}) for amount in (100, 200)
    ]
    assert (first.status, first.pending_reason) == ("pending", "processing")
    assert (await v1.charges.retrieve_async(intent.latest_charge)).amount_refunded == 300
    settled = await sandbox.control.act(first.id, "settle_refund")
    assert (settled["status"], settled["pending_reason"]) == ("succeeded", None)
    with pytest.raises(SandboxError, match="cannot be settled"):
        await sandbox.control.act(first.id, "settle_refund")
    await sandbox.control.advance_clock(HOUR_S)
    assert (await v1.refunds.retrieve_async(second.id)).status == "succeeded"
    assert await types_about(sandbox, first.id) == ["refund.created", "refund.updated"]
    assert await types_about(sandbox, second.id) == ["refund.created", "refund.updated"]


async def test_a_refund_that_fails_later_gives_the_money_back(
    v1: Any, intents: Any, paid: Any, sandbox: RunningSandbox
) -> None:
    intent = await intents.create_async({**paid, "payment_method": "pm_card_refundFail"})
    refund = await v1.refunds.create_async({"payment_intent": intent.id})
    assert refund.status == "succeeded"
    await sandbox.control.advance_clock(HOUR_S)
    failed = await v1.refunds.retrieve_async(refund.id, {"expand": ["failure_balance_transaction"]})
    assert (failed.status, failed.failure_reason) == ("failed", "lost_or_stolen_card")
    assert failed.failure_balance_transaction.amount == 1999
    charge = await v1.charges.retrieve_async(intent.latest_charge)
    assert (charge.amount_refunded, charge.refunded) == (0, False)
    assert await types_about(sandbox, refund.id) == ["refund.created", "refund.updated", "refund.failed"]
    again = await v1.refunds.create_async({"payment_intent": intent.id})
    assert again.amount == 1999


async def test_any_refund_can_be_made_to_fail_once(v1: Any, intent: Any, sandbox: RunningSandbox) -> None:
    refund = await v1.refunds.create_async({"payment_intent": intent.id, "amount": 500})
    failed = await sandbox.control.act(intent.id, "fail_refund", failure_reason="declined")
    assert (failed["id"], failed["failure_reason"]) == (refund.id, "declined")
    for details in ({}, {"failure_reason": "whim"}):
        with pytest.raises(SandboxError, match="cannot fail"):
            await sandbox.control.act(refund.id, "fail_refund", **details)


async def test_a_bank_refund_is_pending_first(v1: Any, intents: Any, order: Any, sandbox: RunningSandbox) -> None:
    debit = {**order, "confirm": True, "allowed_payment_method_types": ["us_bank_account"]}
    intent = await intents.create_async({**debit, "payment_method": "pm_usBankAccount_success"})
    await sandbox.control.act(intent.id, "settle")
    refund = await v1.refunds.create_async({"payment_intent": intent.id})
    assert (refund.status, refund.destination_details.type) == ("pending", "us_bank_account")
