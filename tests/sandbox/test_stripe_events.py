import json
from typing import Any

import pytest
import stripe

from worker.sandbox.stripe_control import SandboxError
from worker.sandbox.stripe_gate import PLATFORM
from worker.sandbox.stripe_server import RunningSandbox, running_sandbox
from worker.sandbox.stripe_store import Scope

DAY_S = 24 * 3600
API_VERSION = "2026-10-28.endive"


async def types_of(sandbox: RunningSandbox) -> list[str]:
    """All that was told, oldest first."""
    return [event["type"] for event in await sandbox.control.events()]


async def test_an_event_holds_the_object_and_names_its_request(v1: Any, intents: Any, order: Any) -> None:
    created = await intents.create_async(order, {"idempotency_key": 'k-"1"'})
    (event,) = (await v1.events.list_async()).data
    assert (event.object, event.type) == ("event", "payment_intent.created")
    assert event.data.object.to_dict() == created.to_dict()
    assert (event.request.id, event.request.idempotency_key) == (created.last_response.request_id, 'k-"1"')
    assert (event.api_version, event.livemode, event.pending_webhooks) == (API_VERSION, False, 0)
    assert created.created <= event.created <= created.created + 60
    assert not {"account"} & set(event.to_dict())
    assert (await v1.events.retrieve_async(event.id)).to_dict() == event.to_dict()


async def test_a_replay_and_a_refusal_tell_nothing(intents: Any, order: Any, sandbox: RunningSandbox) -> None:
    for _ in range(2):
        await intents.create_async(order, {"idempotency_key": "k"})
    with pytest.raises(stripe.InvalidRequestError):
        await intents.create_async({**order, "amount": 1})
    descriptor = {"statement_descriptor": "SHOP", "payment_method": "pm_card_visa", "confirm": True}
    with pytest.raises(stripe.InvalidRequestError):
        await intents.create_async({**order, **descriptor, "return_url": "https://a.example"})
    assert await types_of(sandbox) == ["payment_intent.created"]


async def test_a_payment_is_told_from_creation_to_success(
    v1: Any, intents: Any, paid: Any, sandbox: RunningSandbox
) -> None:
    intent = await intents.create_async(paid)
    events = (await v1.events.list_async()).data[::-1]
    assert [event.type for event in events] == [
        "payment_intent.created",
        "charge.succeeded",
        "payment_intent.succeeded",
    ]
    created, charge, succeeded = [event.data.object for event in events]
    assert (created.status, created.latest_charge) == ("requires_confirmation", None)
    assert (charge.id, charge.metadata["order_id"]) == (intent.latest_charge, "order-1")
    assert succeeded.to_dict() == intent.to_dict()
    assert {event.request.id for event in events} == {intent.last_response.request_id}


async def test_every_turn_of_a_life_is_told(intents: Any, paid: Any, order: Any, sandbox: RunningSandbox) -> None:
    told: list[str] = []

    async def new() -> list[str]:
        everything = await types_of(sandbox)
        fresh = everything[len(told) :]
        told.extend(fresh)
        return fresh

    with pytest.raises(stripe.CardError) as declined:
        await intents.create_async({**paid, "payment_method": "pm_card_chargeDeclined"})
    assert await new() == ["payment_intent.created", "charge.failed", "payment_intent.payment_failed"]

    intent_id = declined.value.error.payment_intent.id
    await intents.update_async(intent_id, {"description": "not worth an event"})
    await intents.confirm_async(intent_id, {"payment_method": "pm_card_threeDSecure2Required"})
    assert await new() == ["payment_intent.requires_action"]
    await sandbox.control.act(intent_id, "fail_authentication")
    assert await new() == ["payment_intent.payment_failed"]
    await intents.cancel_async(intent_id)
    assert await new() == ["payment_intent.canceled"]

    held = await intents.create_async({**paid, "capture_method": "manual"})
    assert await new() == [
        "payment_intent.created",
        "charge.succeeded",
        "payment_intent.amount_capturable_updated",
    ]
    await intents.capture_async(held.id)
    assert await new() == ["charge.captured", "payment_intent.succeeded"]

    expiring = await intents.create_async({**paid, "capture_method": "manual"})
    await new()
    await sandbox.control.act(expiring.id, "expire")
    assert await new() == ["charge.expired", "payment_intent.canceled"]

    debit = {**order, "confirm": True, "allowed_payment_method_types": ["us_bank_account"]}
    moving = await intents.create_async({**debit, "payment_method": "pm_usBankAccount_success"})
    assert await new() == ["payment_intent.created", "charge.pending", "payment_intent.processing"]
    await sandbox.control.act(moving.id, "settle")
    assert await new() == ["charge.succeeded", "payment_intent.succeeded"]


async def test_events_are_listed_by_type_time_and_page(
    v1: Any, intents: Any, paid: Any, sandbox: RunningSandbox
) -> None:
    for _ in range(3):
        await intents.create_async(paid)
        await sandbox.control.advance_clock(100)
    newest_first = (await v1.events.list_async({"limit": 100})).data
    assert len(newest_first) == 9

    async def ids(**where: Any) -> list[str]:
        return [event.id for event in (await v1.events.list_async({"limit": 100, **where})).data]

    def of(*types: str) -> list[str]:
        return [event.id for event in newest_first if event.type in types]

    assert await ids(type="charge.succeeded") == of("charge.succeeded")
    assert await ids(type="payment_intent.*") == of("payment_intent.created", "payment_intent.succeeded")
    assert await ids(types=["charge.succeeded", "payment_intent.created"]) == of(
        "charge.succeeded", "payment_intent.created"
    )
    everything = [event.id for event in newest_first]
    assert await ids(created={"gte": newest_first[3].created}) == everything[:6]
    assert await ids(starting_after=everything[6]) == everything[7:]
    assert await ids(ending_before=everything[4], limit=2) == everything[2:4]
    assert await ids(delivery_success=False) == []
    assert await ids(delivery_success=True) == everything
    pages = (await v1.events.list_async({"limit": 2})).auto_paging_iter()
    assert [event.id async for event in pages] == everything
    with pytest.raises(stripe.InvalidRequestError) as refused:
        await ids(type="charge.*", types=["charge.failed"])
    assert refused.value.code == "parameters_exclusive"


async def test_events_are_kept_for_thirty_days(v1: Any, intents: Any, order: Any, sandbox: RunningSandbox) -> None:
    await intents.create_async(order)
    (old,) = (await v1.events.list_async()).data
    await sandbox.control.advance_clock(29 * DAY_S)
    await intents.create_async(order)
    young, kept = (await v1.events.list_async()).data
    assert kept.id == old.id
    await sandbox.control.advance_clock(1.1 * DAY_S)
    assert [event.id for event in (await v1.events.list_async()).data] == [young.id]
    with pytest.raises(stripe.InvalidRequestError) as gone:
        await v1.events.retrieve_async(old.id)
    assert gone.value.code == "resource_missing"
    last = await intents.create_async(order)
    newer = (await v1.events.list_async({"ending_before": young.id})).data
    assert [event.data.object.id for event in newer] == [last.id]
    assert [event.id for event in (await v1.events.list_async({"starting_after": newer[0].id})).data] == [young.id]


async def test_events_belong_to_their_account_and_mode(make_client: Any, intents: Any, order: Any) -> None:
    await intents.create_async(order)
    theirs = make_client(stripe_account="acct_other").v1
    made = await theirs.payment_intents.create_async(order)
    (event,) = (await theirs.events.list_async()).data
    assert (event.account, event.data.object.id) == ("acct_other", made.id)
    live = make_client("sk_live_abc").v1
    await live.payment_intents.create_async(order)
    assert [event.livemode for event in (await live.events.list_async()).data] == [True]


async def test_one_change_may_be_told_by_two_events(v1: Any, intents: Any, order: Any, sandbox: RunningSandbox) -> None:
    await sandbox.control.change_settings(event_twins=1.0)
    created = await intents.create_async(order)
    first, second = (await v1.events.list_async()).data
    assert first.id != second.id
    assert (first.type, first.data.object.id) == (second.type, second.data.object.id)
    assert first.data.object.id == created.id


async def test_events_can_be_switched_off_and_their_version_set(order: Any) -> None:
    async with running_sandbox(events=False) as sandbox:
        core, given = sandbox.sandbox, dict(order)
        scope = Scope(PLATFORM, False)
        core.world.intents.create(scope, given)
        assert await sandbox.control.events() == []
        await sandbox.control.change_settings(events=True, api_version="2025-01-01.old")
        core.world.intents.create(scope, given)
        (event,) = core.world.events.everything()
        assert json.loads(event.render(core.settings.api_version))["api_version"] == "2025-01-01.old"


async def test_what_the_control_surface_shows_of_events_holds_no_secret(
    intents: Any, order: Any, sandbox: RunningSandbox
) -> None:
    created = await intents.create_async(order, {"idempotency_key": "k"})
    (event,) = await sandbox.control.events(object_id=created.id)
    assert event["request"] == {"request_id": created.last_response.request_id, "idempotency_key": "k"}
    assert created.client_secret not in json.dumps(event)
    assert await sandbox.control.events(object_id="pi_nowhere") == []


async def test_the_customer_pays_without_a_request_of_the_merchant(
    v1: Any, intents: Any, order: Any, sandbox: RunningSandbox
) -> None:
    created = await intents.create_async(order)
    declined = await sandbox.control.act(created.id, "pay", payment_method="pm_card_chargeDeclined")
    assert declined["status"] == "requires_payment_method"
    assert declined["last_payment_error"]["code"] == "card_declined"
    asked = await sandbox.control.act(created.id, "pay", payment_method="pm_card_threeDSecure2Required")
    assert asked["status"] == "requires_action"
    assert "client_secret" not in asked
    assert (await sandbox.control.act(created.id, "authenticate"))["status"] == "succeeded"
    assert (await intents.retrieve_async(created.id)).amount_received == 1999
    (told,) = (await v1.events.list_async({"type": "charge.failed"})).data
    assert told.request.id.startswith("req_")
    assert told.request.idempotency_key is None
    assert [row["operation"] for row in await sandbox.control.record()] == ["create", "retrieve", "events.list"]


async def test_the_customer_cannot_pay_what_is_over_or_with_what_is_not(
    intents: Any, paid: Any, order: Any, sandbox: RunningSandbox
) -> None:
    done = await intents.create_async(paid)
    unpaid = await intents.create_async(order)
    for intent_id, method, word in (
        (done.id, "pm_card_visa", "succeeded"),
        (unpaid.id, "pm_nowhere", "No such PaymentMethod"),
        ("pi_nowhere", "pm_card_visa", "no intent"),
    ):
        with pytest.raises(SandboxError, match=word):
            await sandbox.control.act(intent_id, "pay", payment_method=method)
