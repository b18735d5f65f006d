"""What became of a call is not known: evidence is looked for, kept, and one intent comes of it; never a guess."""

import asyncio
import json
from collections.abc import Callable
from typing import Any

import aiohttp
import sqlalchemy as sa

from tests.harness import Shop, WorkerProcess, dead_letters, until
from worker.ledger.engine import open_engine
from worker.sandbox.stripe_control import SandboxControl

MakeWorker = Callable[..., WorkerProcess]
ORDER: dict[str, Any] = {"order_id": "order-1", "amount": "12.50"}
DECLINED = ORDER | {"confirm": True, "payment_method": "pm_card_chargeDeclinedInsufficientFunds"}
FIRST_KEY = "payment-worker:order-1:create_intent:1"
SECOND_KEY = "payment-worker:order-1:create_intent:2"
WEEKS_S = 21 * 86_400.0


async def test_an_intent_behind_a_stored_error_is_found_and_adopted(
    ledger_url: str, make_worker: MakeWorker, shop: Shop, stripe: SandboxControl, environment: dict[str, str]
) -> None:
    """Search lags behind and does not have it; the listing does."""
    await shop.subscribe()
    await stripe.change_settings(search_lag_s=3600)
    await make_worker(DATABASE_URL=ledger_url).until_subscribed()
    await stripe.add_fault("stored_500", method="POST", times=1, with_object=True)

    await shop.send(ORDER)
    [event] = await shop.until_events(1)

    [intent] = await stripe.intents()
    assert (event["type"], event["data"]["payment_id"]) == ("payment.intent_created", intent["id"])
    assert {row["idempotency_key"] for row in await stripe.record(method="POST")} == {FIRST_KEY}
    [operation] = operations(ledger_url)
    evidence = json.loads(operation["evidence"])
    assert operation["state"] == "answered"
    assert (evidence["because"], evidence["payment_id"]) == ("stored_error", intent["id"])
    assert evidence["found_by"] == "listing, then fetched"
    assert await dead_letters(environment) == []


async def test_a_search_hit_is_a_hint_that_is_fetched_before_it_counts(
    make_worker: MakeWorker, shop: Shop, stripe: SandboxControl, sqlite_url: str
) -> None:
    await shop.subscribe()
    await stripe.change_settings(search_lag_s=0)
    await make_worker().until_subscribed()
    await stripe.add_fault("stored_500", method="POST", times=1, with_object=True)

    await shop.send(ORDER)
    await shop.until_events(1)

    [intent] = await stripe.intents()
    assert await stripe.record(method="GET", path=f"/v1/payment_intents/{intent['id']}")
    [operation] = operations(sqlite_url)
    assert json.loads(operation["evidence"])["found_by"] == "search, then fetched"


async def test_absence_is_proven_before_another_key_is_taken(
    ledger_url: str, make_worker: MakeWorker, shop: Shop, stripe: SandboxControl, environment: dict[str, str]
) -> None:
    await shop.subscribe()
    await make_worker(DATABASE_URL=ledger_url).until_subscribed()
    await stripe.add_fault("stored_500", method="POST", times=1, with_object=False)

    await shop.send(ORDER)
    await shop.until_events(1)

    keys = [row["idempotency_key"] for row in await stripe.record(method="POST")]
    assert keys[0] == FIRST_KEY
    assert keys[-1] == SECOND_KEY
    assert keys.count(SECOND_KEY) == 1
    assert len(await stripe.intents()) == 1
    first, second = operations(ledger_url)
    assert (first["state"], second["state"]) == ("absent", "answered")
    assert first["params"] == second["params"], "the same was asked for"
    assert json.loads(first["evidence"])["absent_from"], "where was looked is kept"
    assert json.loads(first["failures"]), "and so is what came before"
    assert await dead_letters(environment) == []


async def test_a_decline_behind_a_stored_error_is_told_as_the_failure_it_is(
    make_worker: MakeWorker, shop: Shop, stripe: SandboxControl
) -> None:
    await shop.subscribe()
    await make_worker().until_subscribed()
    await stripe.add_fault("stored_500", method="POST", times=1, with_object=True)

    await shop.send(DECLINED)
    [event] = await shop.until_events(1)

    assert event["type"] == "payment.failed"
    assert event["data"]["failure"]["decline_code"] == "insufficient_funds"
    assert len(await stripe.intents()) == 1


async def test_a_key_past_its_horizon_is_never_used_again(
    ledger_url: str, make_worker: MakeWorker, shop: Shop, stripe: SandboxControl, environment: dict[str, str]
) -> None:
    """Stripe would take it for a new one, and make a second intent."""
    await shop.subscribe()
    await make_worker(DATABASE_URL=ledger_url, STRIPE_KEY_HORIZON="1").until_subscribed()
    await stripe.change_settings(key_life_s=1)
    await stripe.add_fault("answer_lost", method="POST", times=3)

    await shop.send(ORDER)
    [event] = await shop.until_events(1)

    [intent] = await stripe.intents()
    assert event["data"]["payment_id"] == intent["id"]
    assert json.loads(operations(ledger_url)[0]["evidence"])["because"] == "key_expired"
    assert await dead_letters(environment) == []


async def test_a_key_that_somebody_used_otherwise_proves_nothing_absent(
    make_worker: MakeWorker, shop: Shop, stripe: SandboxControl, environment: dict[str, str], sqlite_url: str
) -> None:
    """A ledger that was put back to an older state has forgotten a call, and when it was made."""
    await shop.subscribe()
    async with aiohttp.ClientSession() as session:
        headers = {"Authorization": f"Bearer {environment['STRIPE_API_KEY']}", "Idempotency-Key": FIRST_KEY}
        used = {"amount": "1250", "currency": "usd"}
        await session.post(f"{environment['STRIPE_API_BASE']}/v1/payment_intents", headers=headers, data=used)
    worker = await make_worker().until_subscribed()

    await shop.send(ORDER)
    await until(lambda: len(worker.said("order.retried")) == 2, what="the order to wait twice")

    assert {line["reason"] for line in worker.said("order.retried")} == {"key_mismatch"}
    assert [operation["state"] for operation in operations(sqlite_url)] == ["unknown"]
    assert len(await stripe.intents()) == 1, "no other key was taken"


async def test_a_decided_order_replayed_after_weeks_is_only_told_again(
    ledger_url: str, make_worker: MakeWorker, shop: Shop, stripe: SandboxControl
) -> None:
    await shop.subscribe()
    await make_worker(DATABASE_URL=ledger_url).until_subscribed()
    await shop.send(ORDER)
    await shop.until_events(1)

    await stripe.advance_clock(WEEKS_S)
    await shop.send(ORDER)
    await until(lambda: len(shop.events) == 2, what="the event to be told again")

    assert shop.messages[0].body == shop.messages[1].body
    assert len(await stripe.record(method="POST")) == 1


async def test_an_undecided_order_replayed_after_weeks_finds_its_intent(
    ledger_url: str, make_worker: MakeWorker, shop: Shop, stripe: SandboxControl
) -> None:
    """The worker died while Stripe worked, the queue was purged, and somebody sends the order again three weeks on."""
    await shop.subscribe()
    await leave_a_call_behind(make_worker(DATABASE_URL=ledger_url), shop, stripe)
    await stripe.advance_clock(WEEKS_S)
    await asyncio.sleep(1.5)  # past the horizon by our clock too

    await make_worker(DATABASE_URL=ledger_url, STRIPE_KEY_HORIZON="1").until_subscribed()
    await shop.send(ORDER)
    [event] = await shop.until_events(1)

    [intent] = await stripe.intents()
    assert event["data"]["payment_id"] == intent["id"]
    assert len(await stripe.record(method="POST")) == 1


async def test_what_nobody_comes_back_for_is_settled_in_the_background(
    ledger_url: str, make_worker: MakeWorker, shop: Shop, stripe: SandboxControl
) -> None:
    await shop.subscribe()
    await leave_a_call_behind(make_worker(DATABASE_URL=ledger_url), shop, stripe)

    worker = await make_worker(DATABASE_URL=ledger_url, RESOLVE_AFTER="1").until_subscribed()
    [event] = await shop.until_events(1)

    [intent] = await stripe.intents()
    assert (event["data"]["payment_id"], event["data"]["cause"]) == (intent["id"], "message-1")
    assert worker.said("resolver.decided")
    rows = await stripe.record(method="POST")
    assert [row["replayed"] for row in rows] == [False, True], "asked again under the same key"


async def test_a_stripe_that_only_the_background_meets_is_asked_for_until_it_is_back(
    make_worker: MakeWorker, shop: Shop, stripe: SandboxControl
) -> None:
    """With no order to be given back, no consumer looks for the recovery."""
    await shop.subscribe()
    for number in range(2):  # three quick tries each are enough to hold Stripe for away
        await leave_a_call_behind(make_worker(), shop, stripe, order_id=f"order-{number}")
    await stripe.add_fault("503", times=1_000_000)

    worker = await make_worker(RESOLVE_AFTER="1").until_subscribed()
    await until(lambda: worker.said("stripe.still_away"), what="a probe")
    await stripe.clear_faults()
    await shop.until_events(2)

    assert len(worker.said("consumer.subscribed")) == 1


async def test_the_background_charges_nobody_anew_once_the_key_is_past_its_horizon(
    make_worker: MakeWorker, shop: Shop, stripe: SandboxControl, sqlite_url: str
) -> None:
    """It records that nothing came of it; who wants the charge after all sends the order again."""
    await shop.subscribe()
    worker = await make_worker().until_subscribed()
    await stripe.add_fault("hang", method="POST", times=1)
    await shop.send(ORDER)
    await stripe.wait_for_rows(1, method="POST")
    worker.kill()
    await shop.lose_the_order()
    await stripe.clear_faults()

    quick = {"STRIPE_KEY_HORIZON": "1", "RESOLVE_AFTER": "1", "STRIPE_TIMEOUT": "0.5"}
    await make_worker(**quick).until_subscribed()
    await until(lambda: operations(sqlite_url)[0]["state"] == "absent", what="the absence")
    assert await stripe.intents() == []
    await shop.send(ORDER)
    await shop.until_events(1)

    assert len(await stripe.intents()) == 1


async def test_a_dead_letter_tells_each_failure_that_led_to_it(
    make_worker: MakeWorker, shop: Shop, stripe: SandboxControl, environment: dict[str, str]
) -> None:
    await shop.subscribe()
    await make_worker().until_subscribed()
    await stripe.add_fault("lock_timeout", method="POST", times=6)

    await shop.send(ORDER, headers={"payment-worker-deliveries": 2})
    waiting = await until(lambda: shop.take(f"{shop.names['RETRY_QUEUE_PREFIX']}.30s"), what="the order to wait")
    headers = waiting.headers | {"payment-worker-deliveries": 19}
    await shop.send(waiting.body, headers=headers)
    [letter] = await until(lambda: dead_letters(environment), what="the dead letter")

    assert (letter["reason"], letter["attempts"]) == ("retries_exhausted", 20)
    assert "lock_timeout" in letter["error"]
    [failure] = letter["history"]
    assert "lock_timeout" in failure


async def leave_a_call_behind(
    worker: WorkerProcess, shop: Shop, stripe: SandboxControl, *, order_id: str = "order-1"
) -> None:
    """A call that Stripe has carried out, of which only the ledger knows that it was begun."""
    await worker.until_subscribed()
    await stripe.add_fault("hang_after_work", method="POST", times=1)
    await shop.send(ORDER | {"order_id": order_id}, message_id="message-1")
    await until(lambda: stripe.intents(order_id=order_id), what="the intent")
    worker.kill()
    await shop.lose_the_order()


def operations(ledger_url: str) -> list[dict[str, Any]]:
    engine = open_engine(ledger_url)
    with engine.connect() as conn:
        rows = conn.execute(sa.text("SELECT * FROM operations ORDER BY order_id, attempt"))
        found = [dict(row._mapping) for row in rows]
    engine.dispose()
    return found
