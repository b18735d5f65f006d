"""A SIGKILL at every line that a webhook or a command passes through: each has its effect once, and is told once."""

import asyncio
import json
import signal
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import aio_pika
import aiohttp
import pytest

from tests.crash.mortals import TRIES, Mortals, is_empty, named_after
from tests.harness import Shop, dead_letters, until
from tests.stripe_story import Story, signed
from worker.receive_webhooks import PATH
from worker.sandbox.private_server import free_ports
from worker.sandbox.stripe_control import SandboxControl

SECRET = "whsec_of_this_test"
OF_WEBHOOKS = ("receive_webhooks.py", "apply_stripe_events.py", "inbox.py", "lives.py")
OF_COMMANDS = ("carry_out_command.py", "requests.py", "lives.py")
PAID = {"amount": "12.50", "confirm": True, "payment_method": "pm_card_visa"}
AUTHORIZED = {**PAID, "capture_method": "manual"}
# To save time on the second engine: what is between two effects is tried on the first.
EVERY = {"sqlite": 1, "postgresql": 4}


class Stripe:
    """Delivers webhooks as Stripe does: again and again until they are taken."""

    def __init__(self, session: aiohttp.ClientSession, port: int) -> None:
        self._session = session
        self._url = f"http://127.0.0.1:{port}{PATH}"
        self.tasks: list[asyncio.Task[None]] = []

    def deliver(self, event: dict[str, Any]) -> None:
        self.tasks.append(asyncio.create_task(self._deliver(event)))

    async def _deliver(self, event: dict[str, Any]) -> None:
        body = json.dumps(event).encode()
        while True:
            with suppress(aiohttp.ClientError, OSError):
                header = {"Stripe-Signature": signed(body, SECRET, at=int(time.time()))}
                async with self._session.post(self._url, data=body, headers=header) as answer:
                    if answer.status == 200:
                        return
            await asyncio.sleep(0.05)


@pytest.fixture
def settings() -> dict[str, str]:
    return {"HTTP_PORT": str(free_ports(1)[0]), "STRIPE_WEBHOOK_SECRET": SECRET}


@pytest.fixture
async def webhooks(settings: dict[str, str]) -> AsyncIterator[Stripe]:
    async with aiohttp.ClientSession() as session:
        sender = Stripe(session, int(settings["HTTP_PORT"]))
        yield sender
        for task in sender.tasks:
            task.cancel()


async def test_a_webhook_killed_at_any_line_has_its_effect_once(
    mortals: Mortals,
    shop: Shop,
    webhooks: Stripe,
    settings: dict[str, str],
    environment: dict[str, str],
    ledger_url: str,
    tmp_path: Path,
) -> None:
    await shop.subscribe("#")
    await shop.declare_worker_queue()

    async def pay(order_id: str) -> None:
        await shop.send({"order_id": order_id, "amount": "12.50"})
        made = await until(lambda: event_of(shop, order_id, "payment.intent_created"), what="the intent")
        story = Story(order_id=order_id, payment_id=made["data"]["payment_id"])
        story.paid()
        story.refunded(f"re_{order_id}", 250, metadata={"order_id": order_id})
        for event in story.events[-2:]:
            webhooks.deliver(event)

    record = tmp_path / "lines.json"
    await mortals.start(order_id="first", record=str(record), traced=OF_WEBHOOKS, settings=settings)
    await pay("first")
    await until(lambda: event_of(shop, "first", "payment.refunded"), what="the refund to be told")
    assert await mortals.stop() == 0
    lines = json.loads(record.read_text())[:: EVERY[ledger_url.partition("+")[0].partition(":")[0]]]

    orders, survived = ["first"], []
    for place in lines:
        for number in range(TRIES):
            order_id = f"order-{named_after(place)}-{number}"
            orders.append(order_id)
            await mortals.start(die_at=place, order_id=order_id, traced=OF_WEBHOOKS, settings=settings)
            await pay(order_id)
            if await mortals.dies(unless=lambda: event_of(shop, order_id, "payment.refunded")):  # noqa: B023 - at once
                break
        else:
            survived.append(place)
    await mortals.start(settings=settings)
    await asyncio.wait_for(asyncio.gather(*webhooks.tasks), 30)
    types = ("payment.intent_created", "payment.succeeded", "payment.refunded")
    await until(lambda: all(event_of(shop, each, kind) for each in orders for kind in types), what="all to be told")
    assert await mortals.stop() == 0

    assert not survived, "every place was a death"
    assert len(lines) > 15
    assert Counter({event["id"]: event["type"] for event in shop.events}.values()) == dict.fromkeys(types, len(orders))
    last = {
        event["data"]["order_id"]: event["data"] for event in sorted(shop.events, key=lambda e: e["data"]["sequence"])
    }
    assert {(data["status"], data["amount_refunded"], data["sequence"]) for data in last.values()} == {
        ("succeeded", "2.50", 3)
    }
    assert await dead_letters(environment) == []


@pytest.mark.parametrize("kind", ["payment.capture_requested", "order.cancelled", "refund.requested"])
async def test_a_command_killed_at_any_line_is_carried_out_once(
    mortals: Mortals,
    shop: Shop,
    stripe: SandboxControl,
    settings: dict[str, str],
    environment: dict[str, str],
    ledger_url: str,
    tmp_path: Path,
    kind: str,
) -> None:
    await shop.subscribe("#")
    await shop.declare_worker_queue()
    answer, end = {
        "payment.capture_requested": ("payment.captured", "/capture"),
        "order.cancelled": ("payment.canceled", "/cancel"),
        "refund.requested": ("payment.refunded", "/refunds"),
    }[kind]
    order = PAID if kind == "refund.requested" else AUTHORIZED

    async def ask(order_id: str) -> None:
        await shop.send({"order_id": order_id, **order})
        await until(lambda: event_of(shop, order_id, "payment.intent_created"), what="the intent")
        body = json.dumps({"order_id": order_id, "request_id": f"r-{order_id}"[:64]}).encode()
        message = aio_pika.Message(body, type=kind, message_id=order_id, delivery_mode=2)
        await shop.orders.publish(message, routing_key=kind)

    record = tmp_path / "lines.json"
    await mortals.start(order_id="first", record=str(record), traced=OF_COMMANDS, settings=settings)
    await ask("first")
    await until(lambda: event_of(shop, "first", answer), what="the answer")
    await until(lambda: is_empty(shop), what="the queue to be empty")
    assert await mortals.stop() == 0
    lines = json.loads(record.read_text())[:: EVERY[ledger_url.partition("+")[0].partition(":")[0]]]

    orders, survived = ["first"], []
    for place in lines:
        order_id = f"o-{named_after(place)}"
        orders.append(order_id)
        await mortals.start(die_at=place, order_id=order_id, traced=OF_COMMANDS, settings=settings)
        await ask(order_id)
        if await mortals.death() != -signal.SIGKILL:
            survived.append(place)
    await mortals.start(settings=settings)
    await until(lambda: all(event_of(shop, each, answer) for each in orders), what="all to be answered")
    await until(lambda: is_empty(shop), what="the queue to be empty")
    assert await mortals.stop() == 0

    assert not survived, "every place was a death"
    assert len(lines) > 15
    done = [row for row in await stripe.record(method="POST", limit=100_000) if row["path"].endswith(end)]
    executed = Counter(row["idempotency_key"] for row in done if row["status"] == 200 and not row["replayed"])
    assert set(executed.values()) == {1}
    assert len(executed) == len(orders)
    told = Counter((event["data"]["order_id"], event["type"], event["id"]) for event in shop.events)
    assert Counter(order for order, type_, _ in told if type_ == answer) == dict.fromkeys(orders, 1)
    assert await dead_letters(environment) == []


def event_of(shop: Shop, order_id: str, kind: str) -> dict[str, Any] | None:
    return next((e for e in shop.events if e["type"] == kind and e["data"]["order_id"] == order_id), None)
