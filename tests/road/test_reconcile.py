"""What was missed is found and told, under the ids it would have had; what is not certain is left to a person."""

import asyncio
import json
from collections.abc import Callable
from dataclasses import asdict, replace
from datetime import UTC, datetime, timedelta
from typing import Any

import aiohttp
import sqlalchemy as sa

from tests.harness import Shop, WorkerProcess, on_terminal, run_cli, until
from tests.ledger import steps
from tests.road.test_commands import PAID
from tests.stripe_story import Story
from worker.app import build_gateway
from worker.ledger import inbox
from worker.ledger.ledger import Ledger
from worker.ledger.schema import DISPUTES
from worker.payment_life import Dispute
from worker.receive_webhooks import PATH
from worker.reconcile import Reconciler
from worker.sandbox.private_server import free_ports
from worker.sandbox.stripe_control import SandboxControl
from worker.settings import read_settings
from worker.stripe_event import read_stripe_event

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


async def paid_orders(shop: Shop, count: int) -> list[str]:
    """As many orders that were paid at once; the intents' ids, in their order."""
    await shop.send_all([{"order_id": f"order-{number}", **PAID} for number in range(count)])
    await shop.until_events(count)
    made = told(shop, "payment.intent_created")
    return [made[f"order-{number}"]["payment_id"] for number in range(count)]


async def refund(environment: dict[str, str], intent: str, amount: int) -> str:
    """As somebody does in Stripe's Dashboard; the refund's id."""
    headers = {"Authorization": f"Bearer {environment['STRIPE_API_KEY']}"}
    url, data = f"{environment['STRIPE_API_BASE']}/v1/refunds", {"payment_intent": intent, "amount": str(amount)}
    async with aiohttp.ClientSession() as http, http.post(url, data=data, headers=headers) as answer:
        made: dict[str, Any] = await answer.json()
        return str(made["id"])


def hours_from_now(hours: float) -> str:
    return (datetime.now(UTC) + timedelta(hours=hours)).isoformat()


async def test_disputes_and_refunds_of_old_payments_that_nobody_told_of_are_taken_in_under_their_own_ids(
    make_worker: MakeWorker, shop: Shop, stripe: SandboxControl, environment: dict[str, str], ledger_url: str
) -> None:
    await shop.subscribe("#")
    worker = await make_worker(STRIPE_WEBHOOK_SECRET=SECRET).until_subscribed()
    intents = await paid_orders(shop, 4)
    await stripe.advance_clock(2 * 3600)
    opened, lost = [(await stripe.act(intent, "dispute"))["id"] for intent in intents[:2]]
    await stripe.act(lost, "close_dispute", status="lost")
    given_back = await refund(environment, intents[2], 500)
    since = hours_from_now(1)

    code, findings = await reconcile(environment, "--since", since)
    assert (code, len(shop.events)) == (1, 4), "looking changes nothing"
    assert {(each["kind"], each["order_id"], each["amount"], each["what"]) for each in findings} == {
        ("dispute", "order-0", "12.50", f"{opened} is needs_response at Stripe, not known here"),
        ("dispute", "order-1", "12.50", f"{lost} is lost at Stripe, not known here"),
        ("refund", "order-2", "5.00", f"{given_back} is succeeded at Stripe, not known here"),
    }
    assert all(each["is_certain"] for each in findings)

    code, findings = await reconcile(environment, "--since", since, "--fix")
    assert (code, len(findings)) == (0, 3)
    ids = {
        *(f"order-{number}/payment/1" for number in range(4)),
        *(f"order-{number}/payment/succeeded" for number in range(3)),
        f"order-0/payment/dispute_opened/{opened}",
        f"order-1/payment/dispute_opened/{lost}",
        f"order-1/payment/dispute_closed/{lost}/lost",
        f"order-2/payment/refunded/{given_back}",
    }
    await until(lambda: {event["id"] for event in shop.events} == ids, what="all to be told")
    assert told(shop, "payment.dispute_opened")["order-0"]["amount_disputed"] == "12.50"
    assert told(shop, "payment.refunded")["order-2"]["amount_refunded"] == "5.00"
    assert await reconcile(environment, "--since", since) == (0, [])

    await stripe.act(opened, "close_dispute", status="won")
    code, [finding] = await reconcile(environment, "--since", hours_from_now(30), "--fix")
    assert (code, finding["what"]) == (0, f"{opened} is won at Stripe, needs_response here")
    ids.add(f"order-0/payment/dispute_closed/{opened}/won")
    await until(lambda: {event["id"] for event in shop.events} == ids, what="its end to be told")

    await stripe.add_webhook(f"{worker.http}{PATH}", secrets=[SECRET])
    late = [each["id"] for thing in (opened, lost, given_back) for each in await stripe.events(object_id=thing)]
    for event_id in late:
        await stripe.resend_event(event_id)
    await until(lambda: len(worker.said("inbox.applied")) == len(late), what="the late webhooks to be applied")
    assert {event["id"] for event in shop.events} == ids, "what comes late after all is told already"
    assert await reconcile(environment, "--since", since) == (0, [])


async def test_stripes_newer_word_on_a_dispute_counts_and_what_it_does_not_have_is_left_to_a_person(
    make_worker: MakeWorker, shop: Shop, stripe: SandboxControl, environment: dict[str, str], ledger_url: str
) -> None:
    """A dispute that is lost here and open there, one that Stripe does not have, and one of another amount."""
    await shop.subscribe("#")
    await make_worker().until_subscribed()
    intents = await paid_orders(shop, 3)
    lost, smaller = [(await stripe.act(intent, "dispute"))["id"] for intent in intents[:2]]
    assert (await reconcile(environment, "--since", "1h", "--fix"))[0] == 0
    events = len(shop.events)
    async with Ledger(ledger_url) as ledger:
        of_id = DISPUTES.c.dispute_id
        # heard a while ago: of two words of one second the later one cannot be told
        await steps.execute(ledger, sa.update(DISPUTES).values(seen_at=datetime.now(UTC) - timedelta(minutes=5)))
        await steps.execute(ledger, sa.update(DISPUTES).where(of_id == lost).values(status="lost"))
        await steps.execute(ledger, sa.update(DISPUTES).where(of_id == smaller).values(amount_minor=250))
        strange = Dispute("du_none", 1250, "usd", "needs_response", datetime.now(UTC))
        await steps.execute(ledger, sa.insert(DISPUTES).values(order_id="order-2", **asdict(strange)))

    code, findings = await reconcile(environment, "--since", "1h", "--fix")

    assert code == 1
    by_order = {each["order_id"]: each for each in findings}
    assert by_order["order-0"]["what"] == f"{lost} is needs_response at Stripe, lost here"
    assert by_order["order-1"]["what"] == "its amount is 12.50 USD at Stripe, 2.50 USD here"
    assert by_order["order-2"]["what"].startswith("Stripe does not show du_none, which is open here: 404 ")
    assert {order: each["is_repaired"] for order, each in by_order.items()} == {
        "order-0": True,
        "order-1": True,
        "order-2": False,
    }
    assert len(shop.events) == events, "that they were opened is told already"


async def test_a_key_that_may_not_read_disputes_hides_nothing_else(
    make_worker: MakeWorker, shop: Shop, stripe: SandboxControl, environment: dict[str, str]
) -> None:
    await shop.subscribe("#")
    await make_worker().until_subscribed()
    await paid_orders(shop, 1)
    rights = ["* /v1/payment_intents*", "* /v1/refunds*", "GET /v1/events*"]
    await stripe.change_settings(restricted_keys={environment["STRIPE_API_KEY"]: rights})

    code, findings = await reconcile(environment, "--since", "1h", "--fix")

    assert (code, [each["kind"] for each in findings]) == (1, ["state", "not_compared"])
    assert "disputes were not compared" in findings[1]["what"]
    assert environment["STRIPE_API_KEY"] not in json.dumps(findings)


async def test_stripe_events_that_no_worker_is_done_with_are_no_agreement(
    make_worker: MakeWorker, shop: Shop, environment: dict[str, str], ledger_url: str
) -> None:
    await shop.subscribe("#")
    worker = await make_worker().until_subscribed()
    await orders_made(shop, 1)
    assert await worker.stop() == 0
    story = Story(order_id="order-0", payment_id=told(shop, "payment.intent_created")["order-0"]["payment_id"])
    story.asked_for_action()
    first, second = map(read_stripe_event, story.events)
    strange = replace(read_stripe_event(Story(payment_id="pi_2").events[0]), order_id=None)
    now = datetime.now(UTC)
    async with Ledger(ledger_url) as ledger:
        await ledger.run_grouped(inbox.receive, inbox.Receipt(strange, None, now))
        await ledger.run(inbox.park, strange.event_id, why="its payment is not known", until=now, now=now)
        assert await reconcile(environment, "--since", "1h") == (0, []), "that one is somebody else's"
        for event in (first, second):
            await ledger.run_grouped(inbox.receive, inbox.Receipt(event, None, now))
        await ledger.run(inbox.park, second.event_id, why="its payment is not decided", until=now, now=now)

    code, findings = await reconcile(environment, "--since", "1h", "--fix")
    assert (code, [each["kind"] for each in findings]) == (1, ["waiting_event"] * 2)
    assert [each["order_id"] for each in findings] == ["order-0"] * 2
    since = now.isoformat(timespec="seconds")
    assert {each["what"] for each in findings} == {
        f"1 Stripe event still waits, since {since}: no worker has applied it",
        f"1 Stripe event still waits, since {since}: its payment is not decided",
    }
    shown = await asyncio.to_thread(run_cli, environment, "reconcile", "--since", "1h")
    assert (shown.returncode, "agree" in shown.stdout) == (1, False)

    await make_worker().until_subscribed()
    await until(lambda: told(shop, "payment.requires_action"), what="them to be applied")
    _, findings = await reconcile(environment, "--since", "1h")
    assert {each["kind"] for each in findings} <= {"state"}, "the story is not the sandbox's own, but none waits"


async def test_a_finding_is_a_block_that_names_its_order_and_fits_eighty_columns(
    make_worker: MakeWorker, shop: Shop, stripe: SandboxControl, environment: dict[str, str]
) -> None:
    """Stripe's dispute names no order: it is found by its payment."""
    await shop.subscribe("#")
    [port] = free_ports(1)
    await stripe.change_settings(webhook_tries=1)
    await stripe.add_webhook(f"http://127.0.0.1:{port}{PATH}", secrets=[SECRET])
    await make_worker().until_subscribed()
    [intent] = await paid_orders(shop, 1)
    dispute_id = (await stripe.act(intent, "dispute"))["id"]
    await stripe.wait_for_deliveries()

    _, findings = await reconcile(environment, "--since", "1h")
    [undelivered] = [each for each in findings if "charge.dispute.created" in each["what"]]
    assert (undelivered["order_id"], undelivered["amount"], undelivered["currency"]) == ("order-0", "12.50", "usd")

    for columns in (80, 60):
        code, shown = await asyncio.to_thread(on_terminal, environment, ["reconcile", "--since", "1h"], columns=columns)
        lines = [line.rstrip() for line in shown.replace("\r", "").splitlines()]
        block = lines[lines.index(f"dispute: order order-0, {intent}") :]
        assert code == 1
        assert max(len(line) for line in lines if not line.endswith(intent)) <= columns
        assert block[1].split() == ["money", "12.50", "USD"]
        assert dispute_id in block[2]
        assert "1250" not in shown
        assert "12.50 USD at Stripe, 0.00 USD" in " ".join(" ".join(lines).split())
        assert lines[-1].endswith(f"; --fix repairs {len(findings)} of them.")


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
