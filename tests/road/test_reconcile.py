"""What was missed is found and told, under the ids it would have had; what is not certain is left to a person."""

import asyncio
import json
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

from tests.harness import Shop, WorkerProcess, run_cli, until
from worker.app import build_gateway
from worker.ledger.ledger import Ledger
from worker.receive_webhooks import PATH
from worker.reconcile import Reconciler
from worker.sandbox.private_server import free_ports
from worker.sandbox.stripe_control import SandboxControl
from worker.settings import read_settings

SECRET = "whsec_of_this_test"
MakeWorker = Callable[..., WorkerProcess]


async def reconcile(environment: dict[str, str], *words: str) -> tuple[int, list[dict[str, Any]]]:
    done = await asyncio.to_thread(run_cli, environment, "reconcile", "--json", *words)
    assert done.returncode in (0, 1), done.stderr
    return done.returncode, json.loads(done.stdout)


async def orders_made(shop: Shop, count: int) -> list[str]:
    """As many orders with their intents; the intents' ids."""
    await shop.send_all([{"order_id": f"order-{number}", "amount": "12.50"} for number in range(count)])
    await shop.until_events(count)
    return [event["data"]["payment_id"] for event in shop.events]


def told(shop: Shop, kind: str) -> dict[str, dict[str, Any]]:
    return {event["data"]["order_id"]: event["data"] for event in shop.events if event["type"] == kind}


async def test_webhooks_lost_for_long_are_made_up_for_and_fulfilment_is_complete(
    make_worker: MakeWorker, shop: Shop, stripe: SandboxControl, environment: dict[str, str], ledger_url: str
) -> None:
    await shop.subscribe("#")
    [port] = free_ports(1)
    await stripe.change_settings(webhook_tries=2, webhook_retry_s=0.05)
    await stripe.add_webhook(f"http://127.0.0.1:{port}{PATH}", secrets=[SECRET])
    worker = await make_worker().until_subscribed()  # its receiver is off, and the sandbox knocks in vain
    intents = await orders_made(shop, 10)
    for intent in intents:
        await stripe.act(intent, "pay", payment_method="pm_card_visa")
    await stripe.wait_for_deliveries()

    code, findings = await reconcile(environment, "--since", "1h")
    assert code == 1
    assert {finding["kind"] for finding in findings} >= {"undelivered_event", "state"}
    assert sum(finding["kind"] == "state" for finding in findings) == 10
    assert all(finding["is_certain"] for finding in findings)
    assert told(shop, "payment.succeeded") == {}, "looking changes nothing"

    code, findings = await reconcile(environment, "--since", "1h", "--fix")
    assert (code, all(finding["is_repaired"] for finding in findings)) == (0, True)
    await until(lambda: len(told(shop, "payment.succeeded")) == 10, what="all to be told")
    assert {data["status"] for data in told(shop, "payment.succeeded").values()} == {"succeeded"}
    ids = {event["id"] for event in shop.events}
    assert "order-0/payment/succeeded" in ids
    await until(lambda: len(worker.said("inbox.applied")) >= 10, what="the events to be worked on")
    assert {event["id"] for event in shop.events} == ids, "the same facts are told under the same ids"

    assert await reconcile(environment, "--since", "1h") == (0, [])


async def test_the_background_makes_up_for_lost_webhooks_by_itself(
    make_worker: MakeWorker, shop: Shop, stripe: SandboxControl
) -> None:
    await shop.subscribe("#")
    await make_worker(RECONCILE_EVERY="1").until_subscribed()
    for intent in await orders_made(shop, 3):
        await stripe.act(intent, "pay", payment_method="pm_card_visa")
    await until(lambda: len(told(shop, "payment.succeeded")) == 3, what="all to be told")


async def test_what_is_not_certain_is_left_to_a_person(
    make_worker: MakeWorker, shop: Shop, stripe: SandboxControl, environment: dict[str, str]
) -> None:
    await shop.subscribe("#")
    await make_worker().until_subscribed()
    await orders_made(shop, 1)
    other = environment | {"DATABASE_URL": environment["DATABASE_URL"] + ".other"}
    assert (await asyncio.to_thread(run_cli, other, "migrate")).returncode == 0

    code, findings = await reconcile(other, "--since", "1h", "--fix")
    assert (code, findings) == (0, []), "it may be of a call that is on its way"
    settings = read_settings(other)
    async with Ledger(other["DATABASE_URL"]) as ledger, build_gateway(settings) as gateway:
        reconciler = Reconciler(
            ledger=ledger,
            gateway=gateway,
            relay=None,
            event_source="payment-worker",
            clock=lambda: datetime.now(UTC) + timedelta(minutes=5),
        )
        [finding] = await reconciler.run(since=datetime.now(UTC) - timedelta(hours=1), fix=True)
    assert (finding.kind, finding.order_id, finding.amount_minor) == ("intent_without_order", "order-0", 1250)
    assert not finding.is_repaired
    assert len(shop.events) == 1


async def test_the_past_is_told_again_to_one_queue_alone(
    make_worker: MakeWorker, shop: Shop, environment: dict[str, str]
) -> None:
    await shop.subscribe("#")
    await make_worker().until_subscribed()
    await orders_made(shop, 30)
    queue = await shop.channel.declare_queue(f"late-{environment['ORDERS_QUEUE']}", durable=True)

    done = await asyncio.to_thread(run_cli, environment, "retell", "--to", queue.name, "--since", "1h")
    assert (done.returncode, done.stdout) == (0, f"30 events told to {queue.name}.\n")
    messages = [await queue.get(no_ack=True) for _ in range(30)]
    assert {message.message_id for message in messages} == {event["id"] for event in shop.events}
    assert {message.body for message in messages} == {message.body for message in shop.messages}
    assert len(shop.messages) == 30, "nobody else hears of it"

    none = await asyncio.to_thread(
        run_cli, environment, "retell", "--to", queue.name, "--since", "1h", "--type", "payment.failed"
    )
    assert none.stdout == f"0 events told to {queue.name}.\n"
    away = await asyncio.to_thread(run_cli, environment, "retell", "--to", "nowhere", "--since", "1h")
    assert (away.returncode, "no queue nowhere" in away.stderr) == (2, True)
    ours = await asyncio.to_thread(run_cli, environment, "retell", "--to", environment["ORDERS_QUEUE"], "--since", "1h")
    assert (ours.returncode, "own queue" in ours.stderr) == (2, True)
    await queue.delete()
