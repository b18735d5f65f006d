import asyncio
from itertools import pairwise
from typing import Any

import pytest
import stripe

from tests.sandbox.conftest import SECRET, Receiver
from worker.sandbox.stripe_control import SandboxError
from worker.sandbox.stripe_gate import PLATFORM
from worker.sandbox.stripe_post import signature
from worker.sandbox.stripe_server import RunningSandbox, running_sandbox
from worker.sandbox.stripe_store import Scope

NEXT_SECRET = "whsec_second"


def verify(receiver: Receiver, secret: str, number: int = -1) -> None:
    body, header = receiver.bodies[number], receiver.headers[number]["Stripe-Signature"]
    stripe.WebhookSignature.verify_header(body.decode(), header, secret, tolerance=300)


async def test_an_event_is_posted_and_signed_as_stripe_does(
    v1: Any, intents: Any, order: Any, sandbox: RunningSandbox, receiver: Receiver, endpoint: str
) -> None:
    created = await intents.create_async(order, {"idempotency_key": "k"})
    assert await sandbox.control.wait_for_deliveries() == {"outstanding": 0, "delivered": 1}
    event = stripe.Webhook.construct_event(receiver.bodies[0], receiver.headers[0]["Stripe-Signature"], SECRET)
    assert (event.type, event.data.object.to_dict()) == ("payment_intent.created", created.to_dict())
    assert (event.request.idempotency_key, event.pending_webhooks) == ("k", 1)
    assert receiver.headers[0]["Content-Type"] == "application/json; charset=utf-8"
    with pytest.raises(stripe.SignatureVerificationError):
        verify(receiver, NEXT_SECRET)
    kept = await v1.events.retrieve_async(event.id)
    assert (kept.pending_webhooks, kept.created) == (0, event.created)
    (attempt,) = await sandbox.control.deliveries()
    assert (attempt["event"], attempt["object"], attempt["endpoint"]) == (event.id, created.id, endpoint)
    assert (attempt["number"], attempt["status"]) == (1, 200)


async def test_while_a_secret_is_rolled_both_sign(
    intents: Any, order: Any, sandbox: RunningSandbox, receiver: Receiver, endpoint: str
) -> None:
    await sandbox.control.change_webhook(endpoint, secrets=[SECRET, NEXT_SECRET])
    await intents.create_async(order)
    await sandbox.control.wait_for_deliveries()
    verify(receiver, SECRET)
    verify(receiver, NEXT_SECRET)
    await sandbox.control.change_webhook(endpoint, secrets=[NEXT_SECRET])
    await intents.create_async(order)
    await sandbox.control.wait_for_deliveries()
    verify(receiver, NEXT_SECRET)
    with pytest.raises(stripe.SignatureVerificationError):
        verify(receiver, SECRET)


def test_the_signature_is_the_sdks_own() -> None:
    theirs = stripe.WebhookSignature.generate_signature_header('{"a":"€"}', SECRET, timestamp=1_700_000_000)
    assert signature('{"a":"€"}'.encode(), [SECRET], 1_700_000_000) == theirs


async def test_an_endpoint_gets_what_it_asked_for(
    make_client: Any, intents: Any, paid: Any, sandbox: RunningSandbox, receiver: Receiver
) -> None:
    await sandbox.control.add_webhook(
        receiver.url, [SECRET], enabled_events=["charge.*"], account="acct_a", livemode=True, api_version="2025-01-01.x"
    )
    await intents.create_async(paid)
    live = {**paid, "payment_method": "pm_1saved"}
    for account in ("acct_a", "acct_b"):
        await make_client("sk_live_a", stripe_account=account).v1.payment_intents.create_async(live)
    await sandbox.control.wait_for_deliveries()
    (event,) = receiver.events
    told = (event["type"], event["account"], event["livemode"], event["api_version"])
    assert told == ("charge.succeeded", "acct_a", True, "2025-01-01.x")


@pytest.mark.parametrize("status", [500, 404, 302])
async def test_what_is_not_taken_is_posted_again_with_growing_pauses(
    v1: Any,
    intents: Any,
    order: Any,
    sandbox: RunningSandbox,
    receiver: Receiver,
    endpoint: str,
    status: int,
) -> None:
    receiver.statuses = [status, status, status]
    await sandbox.control.change_settings(webhook_retry_s=0.02)
    await intents.create_async(order)
    stats = await sandbox.control.wait_for_deliveries()
    assert stats == {"outstanding": 0, "failed_attempts": 3, "delivered": 1}
    attempts = await sandbox.control.deliveries()
    assert [attempt["status"] for attempt in attempts] == [status, status, status, 200]
    pauses = [later["at"] - sooner["at"] for sooner, later in pairwise(attempts)]
    assert pauses[0] >= 0.02
    assert pauses[1] >= 0.04
    assert pauses[2] >= 0.08
    assert len(set(receiver.bodies)) == 1
    verify(receiver, SECRET)
    assert (await v1.events.list_async({"delivery_success": False})).data == []


async def test_retries_follow_the_sandbox_clock_for_three_days_and_then_end(
    v1: Any, intents: Any, order: Any, sandbox: RunningSandbox, receiver: Receiver, endpoint: str
) -> None:
    receiver.statuses = [503] * 100
    await intents.create_async(order)
    with pytest.raises(TimeoutError, match="1 deliveries"):
        await sandbox.control.wait_for_deliveries(timeout_s=0.2)
    pause_s, waited_s = 60.0, 0.0
    for tries in range(1, 13):
        await _until_tried(sandbox, tries)
        await sandbox.control.advance_clock(pause_s)
        waited_s += pause_s
        pause_s *= 2
    assert 2 * 86_400 < waited_s < 3 * 86_400
    stats = await sandbox.control.wait_for_deliveries()
    assert stats == {"outstanding": 0, "failed_attempts": 13, "given_up": 1}
    (failed,) = (await v1.events.list_async({"delivery_success": False})).data
    assert failed.pending_webhooks == 1
    assert (await v1.events.list_async({"delivery_success": True})).data == []

    receiver.statuses = []
    await sandbox.control.resend_event(failed.id)
    await sandbox.control.wait_for_deliveries()
    assert (await v1.events.retrieve_async(failed.id)).pending_webhooks == 0


async def test_an_endpoint_that_is_away_or_silent_is_tried_again(
    intents: Any, order: Any, sandbox: RunningSandbox, unused_tcp_port: int
) -> None:
    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        writer.close()

    server = await asyncio.start_server(silent, "127.0.0.1", 0)
    async with server:
        port = server.sockets[0].getsockname()[1]
        await sandbox.control.add_webhook(f"http://127.0.0.1:{port}/hook", [SECRET])
        await sandbox.control.add_webhook(f"http://127.0.0.1:{unused_tcp_port}/hook", [SECRET])
        await sandbox.control.change_settings(webhook_retry_s=0, webhook_tries=2, webhook_timeout_s=0.05)
        await intents.create_async(order)
        stats = await sandbox.control.wait_for_deliveries()
    assert stats == {"outstanding": 0, "failed_attempts": 4, "given_up": 2}
    assert {attempt["status"] for attempt in await sandbox.control.deliveries()} == {None}


async def test_endpoints_are_listed_without_secrets_and_can_be_removed(
    intents: Any, order: Any, sandbox: RunningSandbox, receiver: Receiver, endpoint: str
) -> None:
    (shown,) = await sandbox.control.webhooks()
    assert (shown["endpoint_id"], shown["url"], shown["enabled_events"]) == (endpoint, receiver.url, ["*"])
    assert SECRET not in str(shown)
    receiver.statuses = [500]
    await intents.create_async(order)
    await _until_tried(sandbox, 1)
    await sandbox.control.remove_webhook(endpoint)
    await sandbox.control.advance_clock(60)
    await sandbox.control.wait_for_deliveries()
    await intents.create_async(order)
    assert len(receiver.bodies) == 1
    assert await sandbox.control.webhooks() == []


async def test_endpoints_and_deliveries_end_with_a_reset(
    intents: Any, order: Any, sandbox: RunningSandbox, receiver: Receiver, endpoint: str
) -> None:
    await sandbox.control.change_settings(webhook_paused=True)
    await intents.create_async(order)
    await sandbox.control.reset()
    await intents.create_async(order)
    assert await sandbox.control.wait_for_deliveries() == {"outstanding": 0}
    assert (receiver.bodies, await sandbox.control.deliveries()) == ([], [])


async def test_a_sandbox_that_stops_leaves_no_delivery_behind(paid: Any) -> None:
    reached = asyncio.Event()

    async def hold(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        reached.set()
        await reader.read()
        writer.close()

    before = asyncio.all_tasks()
    server = await asyncio.start_server(hold, "127.0.0.1", 0)
    async with server:
        async with running_sandbox(webhook_concurrency=1) as sandbox:
            url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/"
            await sandbox.control.add_webhook(url, [SECRET])
            sandbox.sandbox.world.intents.create(Scope(PLATFORM, False), paid)
            await asyncio.wait_for(reached.wait(), 10)
        assert not [task for task in asyncio.all_tasks() - before if "Webhooks" in repr(task)]


@pytest.mark.parametrize(
    ("url", "secrets", "details", "word"),
    [
        ("ftp://shop.example", [SECRET], {}, "url"),
        ("http://shop.example", [], {}, "secret"),
        ("http://shop.example", ["a", "b", "c"], {}, "secret"),
        ("http://shop.example", "ab", {}, "secret"),
        ("http://shop.example", [SECRET], {"colour": "red"}, "colour"),
    ],
)
async def test_an_endpoint_that_makes_no_sense_is_refused(
    sandbox: RunningSandbox, url: str, secrets: Any, details: dict[str, Any], word: str
) -> None:
    with pytest.raises(SandboxError, match=word):
        await sandbox.control.add_webhook(url, secrets, **details)


async def test_what_is_not_there_cannot_be_changed_or_resent(sandbox: RunningSandbox, endpoint: str) -> None:
    with pytest.raises(SandboxError, match="no endpoint"):
        await sandbox.control.remove_webhook("we_nowhere")
    with pytest.raises(SandboxError, match="no endpoint"):
        await sandbox.control.change_webhook("we_nowhere", secrets=[SECRET])
    with pytest.raises(SandboxError, match="no event"):
        await sandbox.control.resend_event("evt_nowhere")


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("event_twins", 1.5),
        ("webhook_duplicates", -1),
        ("webhook_shuffle", 0),
        ("webhook_concurrency", 1.5),
        ("webhook_paused", 1),
        ("webhook_delay_s", [2, 1]),
        ("settlement_lag_s", -1),
        ("api_version", 7),
    ],
)
async def test_a_setting_of_no_use_is_refused(sandbox: RunningSandbox, setting: str, value: Any) -> None:
    with pytest.raises(SandboxError, match=setting):
        await sandbox.control.change_settings(**{setting: value})


async def _until_tried(sandbox: RunningSandbox, times: int) -> None:
    async with asyncio.timeout(10):
        while len(await sandbox.control.deliveries()) < times:
            await asyncio.sleep(0.005)
