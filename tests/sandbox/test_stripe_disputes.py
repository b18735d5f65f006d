from typing import Any

import pytest
import stripe

from worker.sandbox.stripe_control import SandboxError
from worker.sandbox.stripe_server import RunningSandbox


@pytest.fixture
async def intent(intents: Any, paid: Any) -> Any:
    """A payment of 1999 that succeeded."""
    return await intents.create_async(paid)


async def types_about(sandbox: RunningSandbox, object_id: str) -> list[str]:
    names = [event["type"] for event in await sandbox.control.events(object_id=object_id)]
    return [name.removeprefix("charge.dispute.") for name in names]


async def test_a_dispute_takes_the_money_and_forbids_refunds_until_it_is_won(
    v1: Any, intent: Any, sandbox: RunningSandbox
) -> None:
    opened = await sandbox.control.act(intent.id, "dispute", reason="product_not_received")
    dispute = await v1.disputes.retrieve_async(opened["id"])
    assert (dispute.status, dispute.reason, dispute.amount) == ("needs_response", "product_not_received", 1999)
    assert (dispute.charge, dispute.payment_intent) == (intent.latest_charge, intent.id)
    assert dispute.evidence_details.due_by > dispute.created
    assert [(one.amount, one.fee, one.net) for one in dispute.balance_transactions] == [(-1999, 1500, -3499)]
    assert (await v1.charges.retrieve_async(intent.latest_charge)).disputed is True
    with pytest.raises(stripe.InvalidRequestError) as refused:
        await v1.refunds.create_async({"payment_intent": intent.id})
    assert refused.value.code == "charge_disputed"

    await sandbox.control.act(intent.id, "update_dispute", status="under_review")
    await sandbox.control.act(intent.id, "close_dispute", status="won")
    won = await v1.disputes.retrieve_async(dispute.id)
    assert (won.status, sum(one.amount for one in won.balance_transactions)) == ("won", 0)
    assert await types_about(sandbox, dispute.id) == [
        "created",
        "funds_withdrawn",
        "updated",
        "closed",
        "funds_reinstated",
    ]
    assert (await v1.refunds.create_async({"payment_intent": intent.id})).status == "succeeded"


async def test_a_lost_dispute_gives_nothing_back(v1: Any, intent: Any, sandbox: RunningSandbox) -> None:
    dispute = await sandbox.control.act(intent.latest_charge, "dispute", amount=500)
    await sandbox.control.act(dispute["id"], "close_dispute", status="lost")
    lost = await v1.disputes.retrieve_async(dispute["id"])
    assert (lost.status, [one.amount for one in lost.balance_transactions]) == ("lost", [-500])
    assert await types_about(sandbox, lost.id) == ["created", "funds_withdrawn", "closed"]
    with pytest.raises(stripe.InvalidRequestError) as refused:
        await v1.refunds.create_async({"payment_intent": intent.id})
    assert refused.value.code == "charge_disputed"


async def test_an_inquiry_takes_nothing_unless_it_becomes_a_dispute(
    v1: Any, intents: Any, paid: Any, intent: Any, sandbox: RunningSandbox
) -> None:
    asked = await sandbox.control.act(intent.id, "dispute", inquiry=True)
    assert (asked["status"], asked["balance_transactions"]) == ("warning_needs_response", [])
    assert (await v1.refunds.create_async({"payment_intent": intent.id, "amount": 1})).status == "succeeded"
    closed = await sandbox.control.act(asked["id"], "close_dispute", status="warning_closed")
    assert closed["status"] == "warning_closed"
    assert await types_about(sandbox, asked["id"]) == ["created", "closed"]

    other = await intents.create_async(paid)
    asked = await sandbox.control.act(other.id, "dispute", inquiry=True)
    risen = await sandbox.control.act(other.id, "update_dispute", status="needs_response")
    assert (risen["is_charge_refundable"], risen["balance_transactions"][0]["amount"]) == (False, -1999)
    assert await types_about(sandbox, asked["id"]) == ["created", "updated", "funds_withdrawn"]


@pytest.mark.parametrize(
    ("card", "reason", "status"),
    [
        ("pm_card_createDispute", "fraudulent", "needs_response"),
        ("pm_card_createDisputeProductNotReceived", "product_not_received", "needs_response"),
        ("pm_card_createDisputeInquiry", "product_not_received", "warning_needs_response"),
    ],
)
@pytest.mark.parametrize("capture_method", ["automatic_async", "manual"])
async def test_a_card_bound_to_dispute_does_so_after_the_payment(
    v1: Any, intents: Any, paid: Any, card: str, reason: str, status: str, capture_method: str
) -> None:
    made = await intents.create_async({**paid, "payment_method": card, "capture_method": capture_method})
    if capture_method == "manual":
        assert (await v1.disputes.list_async()).data == []
        await intents.capture_async(made.id)
    (dispute,) = (await v1.disputes.list_async({"payment_intent": made.id})).data
    assert (dispute.reason, dispute.status, dispute.amount) == (reason, status, 1999)
    (told,) = (await v1.events.list_async({"type": "charge.dispute.created"})).data
    assert (told.data.object.id, told.request.id) == (dispute.id, None)


async def test_disputes_are_listed_by_payment(
    v1: Any, intents: Any, paid: Any, intent: Any, sandbox: RunningSandbox
) -> None:
    other = await intents.create_async(paid)
    first = await sandbox.control.act(intent.id, "dispute", amount=1)
    second = await sandbox.control.act(other.id, "dispute")
    third = await sandbox.control.act(intent.id, "dispute", amount=2)
    everything = await v1.disputes.list_async()
    assert [dispute.id for dispute in everything.data] == [third["id"], second["id"], first["id"]]
    of_one = await v1.disputes.list_async({"payment_intent": intent.id, "expand": ["data.charge"]})
    assert [dispute.charge.id for dispute in of_one.data] == [intent.latest_charge] * 2
    assert [dispute.id for dispute in (await v1.disputes.list_async({"charge": other.latest_charge})).data] == [
        second["id"]
    ]


@pytest.mark.parametrize(
    ("deed", "details", "word"),
    [
        ("dispute", {"amount": 2000}, "does not fit"),
        ("dispute", {"amount": 0}, "does not fit"),
        ("dispute", {"colour": "red"}, "colour"),
        ("close_dispute", {"status": "won"}, "has no disputes"),
        ("fail_refund", {}, "has no refunds"),
        ("settle_refund", {}, "has no refunds"),
        ("expire", {"when": "now"}, "when"),
        ("vanish", {}, "unknown deed"),
    ],
)
async def test_a_deed_that_does_not_fit_is_refused(
    intent: Any, sandbox: RunningSandbox, deed: str, details: dict[str, Any], word: str
) -> None:
    with pytest.raises(SandboxError, match=word):
        await sandbox.control.act(intent.id, deed, **details)


async def test_a_dispute_ends_once_and_as_it_can(intent: Any, sandbox: RunningSandbox) -> None:
    dispute = (await sandbox.control.act(intent.id, "dispute"))["id"]
    for status in ("warning_closed", "prevented"):
        with pytest.raises(SandboxError, match="cannot end"):
            await sandbox.control.act(dispute, "close_dispute", status=status)
    await sandbox.control.act(dispute, "close_dispute", status="lost")
    with pytest.raises(SandboxError, match="cannot end"):
        await sandbox.control.act(dispute, "close_dispute", status="won")
    with pytest.raises(SandboxError, match="cannot be moved"):
        await sandbox.control.act(dispute, "update_dispute", status="under_review")


async def test_money_not_taken_cannot_be_disputed(intents: Any, paid: Any, sandbox: RunningSandbox) -> None:
    held = await intents.create_async({**paid, "capture_method": "manual"})
    with pytest.raises(SandboxError, match="does not fit"):
        await sandbox.control.act(held.id, "dispute")
