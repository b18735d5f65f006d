import asyncio
from typing import Any

import aiohttp
import pytest
import stripe

from worker.sandbox.stripe_core import SandboxCore
from worker.sandbox.stripe_record import Row
from worker.sandbox.stripe_request import read_call

KEY = {"idempotency_key": "test:order-1:create:1"}
KEY_LIFE_S = 24 * 3600


async def test_the_same_request_is_answered_again_and_done_once(intents: Any, sandbox: Any, order: Any) -> None:
    first = await intents.create_async(order, KEY)
    again = await intents.create_async(order, KEY)

    assert again.last_response.body == first.last_response.body
    assert again.last_response.headers["Idempotent-Replayed"] == "true"
    assert "Idempotent-Replayed" not in first.last_response.headers
    assert first.last_response.headers["Idempotency-Key"] == KEY["idempotency_key"]
    assert first.last_response.request_id != again.last_response.request_id
    assert len(await sandbox.control.intents()) == 1


async def test_a_replay_shows_the_first_answer_even_after_the_object_changed(intents: Any, order: Any) -> None:
    first = await intents.create_async(order, KEY)
    await intents.cancel_async(first.id)
    again = await intents.create_async(order, KEY)
    assert (again.id, again.status) == (first.id, "requires_payment_method")


async def test_the_order_of_parameters_does_not_matter(raw: aiohttp.ClientSession, sandbox: Any) -> None:
    for body in ("amount=500&currency=usd", "currency=usd&amount=500"):
        async with raw.post("/v1/payment_intents", data=body, headers={"Idempotency-Key": "k"}) as answer:
            assert answer.status == 200
    assert len(await sandbox.control.intents()) == 1


@pytest.mark.parametrize(
    "change", [{"amount": 2000}, {"metadata": {"order_id": "order-2"}}, {"description": "more"}, {"amount": "x"}]
)
async def test_other_parameters_under_one_key_are_refused(
    intents: Any, sandbox: Any, order: Any, change: dict[str, Any]
) -> None:
    await intents.create_async(order, KEY)
    with pytest.raises(stripe.IdempotencyError) as refused:
        await intents.create_async({**order, **change}, KEY)
    assert refused.value.http_status == 400
    assert refused.value.error.code is None
    assert str(refused.value.user_message).startswith(
        "Keys for idempotent requests can only be used with the same parameters they were first used with."
    )
    assert len(await sandbox.control.intents()) == 1


async def test_another_endpoint_under_one_key_is_refused(intents: Any, order: Any) -> None:
    created = await intents.create_async(order, KEY)
    with pytest.raises(stripe.IdempotencyError, match="same endpoint"):
        await intents.cancel_async(created.id, {}, KEY)
    assert (await intents.retrieve_async(created.id)).status == "requires_payment_method"


async def test_a_key_in_flight_answers_409_and_nothing_is_kept_of_it(intents: Any, sandbox: Any, order: Any) -> None:
    await sandbox.control.add_fault("delay", delay_s=30)
    first = asyncio.create_task(intents.create_async(order, KEY))
    await sandbox.control.wait_for_rows(fault="delay")

    with pytest.raises(stripe.APIError) as busy:
        await intents.create_async(order, KEY)
    assert (busy.value.http_status, busy.value.error.code) == (409, "idempotency_key_in_use")

    await sandbox.control.release()
    created = await first
    again = await intents.create_async(order, KEY)
    assert again.last_response.headers["Idempotent-Replayed"] == "true"
    assert again.id == created.id
    assert len(await sandbox.control.intents()) == 1


async def test_a_declined_create_is_replayed(intents: Any, sandbox: Any, paid: Any) -> None:
    declined = {**paid, "payment_method": "pm_card_chargeDeclined"}
    bodies = []
    for _ in range(2):
        with pytest.raises(stripe.CardError) as refusal:
            await intents.create_async(declined, KEY)
        bodies.append(refusal.value.http_body)
    assert refusal.value.headers["Idempotent-Replayed"] == "true"
    assert bodies[0] == bodies[1]
    assert len(await sandbox.control.intents()) == 1


@pytest.mark.parametrize("with_object", [False, True])
async def test_a_500_is_kept_and_never_changes(intents: Any, sandbox: Any, order: Any, with_object: bool) -> None:
    await sandbox.control.add_fault("stored_500", with_object=with_object)
    for attempt in range(3):
        with pytest.raises(stripe.APIError) as failed:
            await intents.create_async(order, KEY)
        assert failed.value.http_status == 500
        assert failed.value.headers["Stripe-Should-Retry"] == "false"
        assert failed.value.headers.get("Idempotent-Replayed") == (None if attempt == 0 else "true")
    assert len(await sandbox.control.intents()) == with_object


@pytest.mark.parametrize(
    ("wrong", "kept"),
    [
        ({"amount": "ten"}, False),
        ({"currency": "xxx"}, False),
        ({"colour": "red"}, False),
        ({"confirm": True}, False),
        ({"amount": 49}, True),
        ({"payment_method": "pm_nowhere"}, True),
    ],
)
async def test_only_what_the_endpoint_itself_refuses_is_kept(
    intents: Any, order: Any, wrong: dict[str, Any], kept: bool
) -> None:
    with pytest.raises(stripe.InvalidRequestError) as refused:
        await intents.create_async({**order, **wrong}, KEY)
    assert "Idempotent-Replayed" not in refused.value.headers
    if kept:
        with pytest.raises(stripe.InvalidRequestError) as again:
            await intents.create_async({**order, **wrong}, KEY)
        assert again.value.headers["Idempotent-Replayed"] == "true"
        with pytest.raises(stripe.IdempotencyError):
            await intents.create_async(order, KEY)
    else:
        assert (await intents.create_async(order, KEY)).amount == 1999


async def test_a_key_may_be_used_again_after_401_and_429(make_client: Any, sandbox: Any, order: Any) -> None:
    revoked = make_client("sk_test_old").v1.payment_intents
    await sandbox.control.change_settings(revoked_keys=["sk_test_old"])
    with pytest.raises(stripe.AuthenticationError):
        await revoked.create_async(order, KEY)
    await sandbox.control.add_fault("429")
    intents = make_client().v1.payment_intents
    with pytest.raises(stripe.RateLimitError):
        await intents.create_async(order, KEY)
    assert "Idempotent-Replayed" not in (await intents.create_async(order, KEY)).last_response.headers


async def test_a_key_older_than_its_life_starts_a_new_request(intents: Any, sandbox: Any, order: Any) -> None:
    first = await intents.create_async(order, KEY)
    await sandbox.control.advance_clock(KEY_LIFE_S - 60)
    assert (await intents.create_async(order, KEY)).id == first.id

    await sandbox.control.advance_clock(61)
    second = await intents.create_async(order, KEY)
    assert second.id != first.id
    assert "Idempotent-Replayed" not in second.last_response.headers
    assert (await sandbox.control.stats())["orders_with_several_intents"] == {"order-1": 2}


async def test_the_life_of_a_key_can_be_set(intents: Any, sandbox: Any, order: Any) -> None:
    await sandbox.control.change_settings(key_life_s=10)
    first = await intents.create_async(order, KEY)
    await sandbox.control.advance_clock(10)
    assert (await intents.create_async({**order, "amount": 2000}, KEY)).id != first.id


async def test_accounts_and_modes_share_neither_keys_nor_objects(make_client: Any, order: Any) -> None:
    platform = make_client().v1.payment_intents
    others = [
        make_client(stripe_account="acct_connected").v1.payment_intents,
        make_client("sk_live_abc").v1.payment_intents,
    ]
    mine = await platform.create_async(order, KEY)
    for other in others:
        theirs = await other.create_async({**order, "amount": 777}, KEY)
        assert theirs.id != mine.id
        with pytest.raises(stripe.InvalidRequestError) as unseen:
            await other.retrieve_async(mine.id)
        assert unseen.value.code == "resource_missing"
        assert [intent.id for intent in (await other.list_async()).data] == [theirs.id]
    rolled = make_client("rk_test_new").v1.payment_intents
    assert (await rolled.create_async(order, KEY)).id == mine.id


async def test_keys_have_no_effect_on_get(intents: Any, raw: aiohttp.ClientSession, order: Any) -> None:
    created = await intents.create_async(order)
    for path in (f"/v1/payment_intents/{created.id}", "/v1/payment_intents"):
        async with raw.get(path, headers={"Idempotency-Key": "k"}) as answer:
            assert answer.status == 200
            assert "Idempotency-Key" not in answer.headers


async def test_a_key_too_long_is_refused(intents: Any, order: Any) -> None:
    with pytest.raises(stripe.InvalidRequestError, match="255"):
        await intents.create_async(order, {"idempotency_key": "k" * 256})
    assert await intents.create_async(order, {"idempotency_key": "k" * 255})


async def test_many_at_once_under_one_key_make_one_object(intents: Any, sandbox: Any, order: Any) -> None:
    await sandbox.control.change_settings(latency_s=[0.0, 0.02])
    outcomes = await asyncio.gather(*(intents.create_async(order, KEY) for _ in range(40)), return_exceptions=True)
    made = {outcome.id for outcome in outcomes if isinstance(outcome, stripe.PaymentIntent)}
    busy = [outcome for outcome in outcomes if isinstance(outcome, stripe.APIError)]
    assert len(made) == 1
    assert {failure.http_status for failure in busy} <= {409}
    assert len(await sandbox.control.intents()) == 1


async def test_a_request_cut_off_before_its_work_leaves_the_key_free(order: Any) -> None:
    core = SandboxCore(latency_s=60)
    headers = {"Authorization": "Bearer sk_test_a", "Idempotency-Key": "k"}
    call = read_call("POST", "/v1/payment_intents", "", headers, b"amount=500&currency=usd")

    def row() -> Row:
        return Row(1, 0.0, "POST", call.path, "create", None, "k", None, None)

    with pytest.raises(TimeoutError):
        await asyncio.wait_for(core.answer(call, core.seen(call), row(), None), 0.01)
    core.change_settings(latency_s=0)
    answer = await core.answer(call, core.seen(call), row(), None)
    assert (answer.status, len(core.world.store)) == (200, 1)
