"""The subscribers that the README shows, run as they are printed: what each has done in the end, told in any order."""

import asyncio
import re
import sys
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from decimal import Decimal
from pathlib import Path
from typing import Any

import aiohttp
from aio_pika.exceptions import ChannelNotFoundEntity

from tests.harness import Shop, WorkerProcess, run_cli, until
from worker.receive_webhooks import PATH
from worker.sandbox.private_server import free_ports
from worker.sandbox.stripe_control import SandboxControl

ROOT = Path(__file__).parents[2]
SECRET = "whsec_of_this_test"
PROGRAMS = ("fulfilment", "tax")
COPIES = 3  # of each story, side by side
FACTS = {
    "paid": ("succeeded",),
    "declined": ("attempt_failed",),
    "disputed": ("succeeded", "dispute_opened"),
    "won": ("succeeded", "dispute_opened", "dispute_closed"),
    "refunded": ("succeeded", "refunded"),
    "undone": ("succeeded", "refunded", "refund_failed"),
    "dashboard": ("succeeded", "refunded", "refund_failed"),
}


def printed(*, exchange: str, prefix: str) -> dict[str, str]:
    """The README's programs by their names; only the names on the broker are changed, to those of this test."""
    blocks = re.findall(r'```python\n("""(\w+\.py): .+?)```', (ROOT / "README.md").read_text(), re.DOTALL)
    programs = {name: text.replace('"payments"', repr(exchange)) for text, name in blocks}
    for name in PROGRAMS:
        programs[f"{name}.py"] = programs[f"{name}.py"].replace(f'"{name}"', repr(prefix + name))
    return programs


@asynccontextmanager
async def running(program: Path, environment: dict[str, str]) -> AsyncIterator[list[str]]:
    """A program while the block lasts; yields the lines that it has printed so far."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, str(program), env=environment | {"PYTHONPATH": str(ROOT)}, stdout=asyncio.subprocess.PIPE
    )
    lines: list[str] = []

    async def read() -> None:
        assert process.stdout
        async for line in process.stdout:
            lines.append(line.decode().strip())  # noqa: PERF401 - each as it comes

    reading = asyncio.create_task(read())
    try:
        yield lines
        assert process.returncode is None, "it has ended by itself"
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()
        await reading


async def test_fulfilment_and_tax_do_what_is_due_once_whatever_comes_twice_and_in_whatever_order(
    make_worker: Callable[..., WorkerProcess],
    shop: Shop,
    stripe: SandboxControl,
    environment: dict[str, str],
    tmp_path: Path,
) -> None:
    prefix, [port] = f"{environment['ORDERS_QUEUE']}.", free_ports(1)
    for name, text in printed(exchange=environment["PAYMENTS_EXCHANGE"], prefix=prefix).items():
        (tmp_path / name).write_text(text)
    await stripe.change_settings(webhook_duplicates=0.5, webhook_shuffle=5, webhook_delay_s=[0, 1], event_twins=0.3)
    await stripe.add_webhook(f"http://127.0.0.1:{port}{PATH}", secrets=[SECRET])
    await shop.subscribe("#")
    await make_worker(STRIPE_WEBHOOK_SECRET=SECRET, HTTP_PORT=str(port)).until_subscribed()
    async with AsyncExitStack() as stack:
        fulfilment, tax = [
            await stack.enter_async_context(running(tmp_path / f"{name}.py", environment)) for name in PROGRAMS
        ]
        for name in PROGRAMS:
            stack.push_async_callback(shop.channel.queue_delete, prefix + name)
            await until(lambda name=name: _is_listened_to(shop, prefix + name), what=f"{name} to listen")  # type: ignore[misc]
        intents = await _made(shop)
        await _live(stripe, shop, intents, environment)
        await _until_told_to_both(shop, stripe, fulfilment, tax, last="sentinel-1")

        deliveries = Counter(attempt["event"] for attempt in await stripe.deliveries())
        assert max(deliveries.values()) > 1, "Stripe has told some of it twice"
        assert any(_facts_told(shop, order) != FACTS[order.partition("-")[0]] for order in intents), "and out of order"
        assert _decided(fulfilment) == {
            **_each("paid", "ship"),
            **_each("declined", "hold"),
            **_each("disputed", "hold"),
            **_each("won", "ship"),
            **_each("refunded", "hold"),
            **_each("undone", "ship"),
            **_each("dashboard", "ship"),
            "sentinel-1": "ship",
        }
        assert _booked(tax) == {
            **_each("paid", Decimal("12.50")),
            **_each("disputed", Decimal("12.50")),
            **_each("won", Decimal("12.50")),
            **_each("refunded", Decimal("0.00")),
            **_each("undone", Decimal("12.50")),
            **_each("dashboard", Decimal("12.50")),
            "sentinel-1": Decimal("12.50"),
        }
        assert [fulfilment.count(f"ship paid-{copy}") for copy in range(COPIES)] == [1] * COPIES
        assert len(tax) == len(set(tax)), "nothing is booked twice"

        before = [*fulfilment], [*tax]
        for name in PROGRAMS:
            done = await asyncio.to_thread(run_cli, environment, "retell", "--to", prefix + name, "--since", "1h")
            assert done.returncode == 0, done.stderr
        await _until_told_to_both(shop, stripe, fulfilment, tax, last="sentinel-2")
        done_since = fulfilment[len(before[0]) :], tax[len(before[1]) :]
        assert done_since == (["ship sentinel-2"], ["book sentinel-2 sentinel-2 12.50 usd"]), "the past changes nothing"


async def _made(shop: Shop) -> dict[str, str]:
    """{order: intent}, a few orders of each story."""
    orders = [f"{story}-{copy}" for story in FACTS for copy in range(COPIES)]
    await shop.send_all([{"order_id": order, "amount": "12.50"} for order in orders])
    await shop.until_events(len(orders))
    return {event["data"]["order_id"]: event["data"]["payment_id"] for event in shop.events}


async def _live(stripe: SandboxControl, shop: Shop, intents: dict[str, str], environment: dict[str, str]) -> None:
    """What customers, banks and the shop do with the payments; nothing waits for a webhook."""

    async def one(order: str, intent: str) -> None:
        story = order.partition("-")[0]
        if story == "declined":
            await stripe.act(intent, "pay", payment_method="pm_card_chargeDeclined")
            return
        await stripe.act(intent, "pay")
        if story in ("disputed", "won"):
            await stripe.act(intent, "dispute")
        if story == "won":
            await stripe.act(intent, "close_dispute", status="won")
        if story in ("refunded", "undone"):
            request = {"order_id": order, "request_id": f"refund-{order}"}
            await shop.send(request, type="refund.requested")
            await until(lambda: stripe.objects("refunds", intent_id=intent), what=f"the refund of {order}")
        if story == "dashboard":  # somebody gives the money back at Stripe, and its failure may be heard of first
            url = environment["STRIPE_API_BASE"] + "/v1/refunds"
            key = {"Authorization": f"Bearer {environment['STRIPE_API_KEY']}"}
            async with (
                aiohttp.ClientSession(headers=key) as http,
                http.post(url, data={"payment_intent": intent}) as answer,
            ):
                assert answer.status == 200
        if story in ("undone", "dashboard"):
            await stripe.act(intent, "fail_refund", failure_reason="expired_or_canceled_card")

    await asyncio.gather(*(one(order, intent) for order, intent in intents.items()))


async def _until_told_to_both(
    shop: Shop, stripe: SandboxControl, fulfilment: list[str], tax: list[str], *, last: str
) -> None:
    """Stripe has delivered all, its effect was told, and both have come to an order that was paid after it."""
    await stripe.wait_for_deliveries()
    wanted = {f"{story}-{copy}/payment/{fact}" for story in FACTS for fact in FACTS[story] for copy in range(COPIES)}
    await until(lambda: wanted <= {_without_object(event["id"]) for event in shop.events}, what="all to be told")
    await shop.send({"order_id": last, "amount": "12.50", "confirm": True, "payment_method": "pm_card_visa"})
    await until(lambda: f"ship {last}" in fulfilment, what=f"fulfilment to come to {last}")
    await until(lambda: f"book {last} {last} 12.50 usd" in tax, what=f"tax to come to {last}")


async def _is_listened_to(shop: Shop, queue: str) -> bool:
    channel = await shop.connection.channel()
    try:
        declared = await channel.declare_queue(queue, passive=True)
    except ChannelNotFoundEntity:
        return False
    await channel.close()
    return bool(declared.declaration_result.consumer_count)


def _facts_told(shop: Shop, order: str) -> tuple[str, ...]:
    """Those of an order that its story is about, as they came."""
    told = dict.fromkeys(event["id"].split("/")[2] for event in shop.events if event["subject"] == order)
    return tuple(fact for fact in told if fact in FACTS[order.partition("-")[0]])


def _without_object(event_id: str) -> str:
    """The fact, without the id of the refund or dispute that it is about."""
    return "/".join(event_id.split("/")[:3])


def _each(story: str, value: Any) -> dict[str, Any]:
    return {f"{story}-{copy}": value for copy in range(COPIES)}


def _decided(lines: Sequence[str]) -> dict[str, str]:
    """{order: what fulfilment decided last}."""
    return {order: decision for decision, order in (line.split() for line in lines)}


def _booked(lines: Sequence[str]) -> dict[str, Decimal]:
    """{order: the sum of its lines in the books}, each line as it was written last."""
    books: dict[tuple[str, str], Decimal] = {}
    for line in lines:
        _, order, name, amount, currency = line.split()
        assert currency == "usd"
        books[order, name] = Decimal(amount)
    return {order: sum((amount for (of, _), amount in books.items() if of == order), Decimal()) for order, _ in books}
