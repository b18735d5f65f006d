"""What one worker takes to store and answer Stripe's webhooks while orders flow; run by hand.

    python tests/benchmarks/webhooks.py [--ledger sqlite|postgresql|both] [--rate 500] [--seconds 20] [--orders 25]

Private broker, sandbox (no latency), one worker, and a sender in a process of its own that waits for nobody: each
answer is timed from the moment for which its webhook was planned. The events are the sandbox's own, of payments that
this worker made: declined, asked for authentication, paid, settled, seven events each. They are written with
indentation, as Stripe writes them, some 4 kB. The first seconds, in which everything is done for the first time, are
sent and not counted. Afterwards the inbox is worked off, and that is timed too.
"""

import argparse
import asyncio
import contextlib
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Iterator, Sequence
from pathlib import Path
from typing import Any, Final

import aiohttp
from aio_pika.abc import AbstractIncomingMessage
from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).parents[2]))

from tests.benchmarks.processes import processor_seconds
from tests.benchmarks.stage import address_told
from tests.harness import Shop, WorkerProcess, clean_environment, new_names, until
from tests.stripe_story import signed
from worker.receive_webhooks import PATH
from worker.sandbox.broker import PrivateBroker
from worker.sandbox.postgres import PrivatePostgres
from worker.sandbox.stripe_control import SandboxControl

KEY: Final = "sk_test_benchmark"
SECRET: Final = "whsec_of_this_benchmark"
EVENTS_OF_A_PAYMENT: Final = 7
# Events of one payment are so many payments apart: some 0.3 s at 500/s.
APART: Final = 20
CONNECTIONS: Final = 64
# The worker is asked for its figures no more often, since that takes its time too.
LOOK_EVERY_S: Final = 0.25
LEAD_S: Final = 1.0
WARM_UP_S: Final = 2.0
# What a shop tells of an order; Stripe tells it again with each of its events.
ORDER: Final = {
    "amount": "12.50",
    "currency": "eur",
    "description": "Order of one red bicycle bell, two spokes and a pair of grips",
    "receipt_email": "customer@example.com",
    "shipping": {
        "name": "Jane Doe",
        "phone": "+4930123456",
        "address": {"line1": "Unter den Linden 1", "city": "Berlin", "postal_code": "10117", "country": "DE"},
    },
    "metadata": {f"shop_field_{number}": f"a value of the shop's own, {number:016x}" for number in range(20)},
}

Figures = dict[str, float]


async def measure(url: str, broker: PrivateBroker, sandbox_url: str, folder: Path, plan: argparse.Namespace) -> Figures:
    """One ledger, one worker."""
    names = new_names()
    environment = clean_environment(
        AMQP_URL=broker.amqp_url,
        STRIPE_API_KEY=KEY,
        STRIPE_API_BASE=sandbox_url,
        STRIPE_RATE_LIMIT="100000",
        STRIPE_WEBHOOK_SECRET=SECRET,
        DATABASE_URL=url,
        MIGRATE_AT_START="true",
        HTTP_PORT="0",
        LOG_FORMAT="json",
        LOG_LEVEL="info",
        **names,
    )
    worker = WorkerProcess(environment, folder / f"{names['ORDERS_QUEUE']}.log", command=plan.command)
    async with (
        Shop(broker.amqp_url, names) as shop,
        SandboxControl(sandbox_url) as stripe,
        aiohttp.ClientSession() as http,
    ):
        await stripe.reset()
        arrived = await subscribe(shop)
        try:
            await worker.start().until_subscribed()
            seconds = WARM_UP_S + plan.seconds
            bodies = await make_events(shop, stripe, http, sandbox_url, arrived, count=round(plan.rate * seconds))
            return await load(worker, shop, http, arrived, bodies, folder, plan)
        finally:
            worker.kill()


async def subscribe(shop: Shop) -> dict[str, float]:
    """{order: when its intent was told}; all that is told is kept in a queue that nobody reads."""
    arrived: dict[str, float] = {}
    everything = await shop.channel.declare_queue(exclusive=True, arguments={"x-max-length": 1000})
    await everything.bind(shop.payments, "payment.#")
    made = await shop.channel.declare_queue(exclusive=True)
    await made.bind(shop.payments, "payment.intent_created")

    async def take(message: AbstractIncomingMessage) -> None:
        arrived[json.loads(message.body)["subject"]] = time.monotonic()

    await made.consume(take, no_ack=True)
    return arrived


async def make_events(
    shop: Shop,
    stripe: SandboxControl,
    http: aiohttp.ClientSession,
    sandbox_url: str,
    arrived: dict[str, float],
    *,
    count: int,
) -> Sequence[bytes]:
    """Bodies of that many webhooks, as Stripe would send them."""
    orders = [f"told-{number}" for number in range(-(-count // EVENTS_OF_A_PAYMENT))]
    slots = asyncio.Semaphore(32)

    async def send(order_id: str) -> None:
        async with slots:
            await shop.send({"order_id": order_id, **ORDER})

    async def live(intent_id: str) -> None:
        async with slots:
            await stripe.act(intent_id, "pay", payment_method="pm_card_visa_chargeDeclined")
            await stripe.act(intent_id, "pay", payment_method="pm_card_threeDSecure2Required")
            await stripe.act(intent_id, "authenticate")
            await stripe.act(intent_id, "settle_balance")

    await asyncio.gather(*map(send, orders))
    await until(lambda: len(arrived) == len(orders), what="the orders' payments", deadline_s=120)
    ids = [intent["id"] async for intent in listed(http, f"{sandbox_url}/v1/payment_intents")]
    await asyncio.gather(*map(live, ids))
    events = [event async for event in listed(http, f"{sandbox_url}/v1/events")]
    assert len(events) == EVENTS_OF_A_PAYMENT * len(orders), f"{len(events)} events of {len(orders)} orders"
    return [json.dumps(event, indent=2).encode() for event in in_turn(list(reversed(events)))][:count]


async def listed(http: aiohttp.ClientSession, url: str) -> AsyncIterator[dict[str, Any]]:
    """All of a list of Stripe's, the newest first."""
    params, more = {"limit": "100"}, True
    while more:
        async with http.get(url, params=params, headers={"Authorization": f"Bearer {KEY}"}) as answer:
            page = await answer.json()
        for each in page["data"]:
            yield each
        more, params = page["has_more"], params | {"starting_after": page["data"][-1]["id"]}


def in_turn(events: Sequence[dict[str, Any]]) -> Sequence[dict[str, Any]]:
    """Many payments' events side by side, those of each in their order."""
    of_payment: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for event in events:
        thing = event["data"]["object"]
        of_payment[thing.get("payment_intent") or thing["id"]].append(event)
    placed = [
        (place + APART * turn, place, event)
        for place, some in enumerate(of_payment.values())
        for turn, event in enumerate(some)
    ]
    return [event for _, _, event in sorted(placed, key=lambda each: each[:2])]


async def load(
    worker: WorkerProcess,
    shop: Shop,
    http: aiohttp.ClientSession,
    arrived: dict[str, float],
    bodies: Sequence[bytes],
    folder: Path,
    plan: argparse.Namespace,
) -> Figures:
    """Webhooks and orders side by side, then the rest of the inbox."""
    address, parcel = worker.http, folder / "bodies.json"
    parcel.write_text(json.dumps([body.decode() for body in bodies]))
    sender = await asyncio.create_subprocess_exec(
        *(sys.executable, __file__, "--send", address, "--rate", str(plan.rate), str(parcel)),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        limit=2**26,
    )
    assert sender.stdin
    assert sender.stdout
    await sender.stdout.readline()  # it is ready
    begin = time.monotonic() + LEAD_S
    sender.stdin.write(f"{begin}\n".encode())
    flowing = asyncio.create_task(order(shop, begin, plan))
    before, busy = processor_seconds(worker.process.pid), machine_seconds()
    sent = json.loads(await sender.stdout.readline())
    ended = time.monotonic()
    used, busy = processor_seconds(worker.process.pid), machine_seconds() - busy
    applied_meanwhile = await counted(http, address, "stripe_events")
    planned = await flowing
    await sender.wait()
    kept = await counted(http, address, "webhooks", result="kept")
    while await counted(http, address, "stripe_events") < kept:
        await asyncio.sleep(LOOK_EVERY_S)
    drained_s = time.monotonic() - ended
    await until(lambda: planned.keys() <= arrived.keys(), what="the orders' payments")
    counted_ones = sent["answers_ms"][round(plan.rate * WARM_UP_S) :]
    orders_ms = [1000 * (arrived[order_id] - moment) for order_id, moment in planned.items()]
    return {
        "bytes": statistics.mean(map(len, bodies)),
        "p50_ms": quantile(counted_ones, 0.5),
        "p95_ms": quantile(counted_ones, 0.95),
        "p99_ms": quantile(counted_ones, 0.99),
        "max_ms": max(counted_ones),
        "sent": len(bodies),
        "answered_200": sent["statuses"].count(200),
        "late_p99_ms": quantile(sent["late_ms"], 0.99),
        "orders_p99_ms": quantile(orders_ms, 0.99),
        "cpu_share": (used - before) / (ended - begin),
        "load": os.getloadavg()[0],
        "machine_share": busy / (ended - begin + LEAD_S) / (os.cpu_count() or 1),
        "applied_meanwhile": applied_meanwhile / (ended - begin),
        "drained_s": drained_s,
        "drained_per_second": (kept - applied_meanwhile) / drained_s,
        "cpu_ms_each": 1000 * (processor_seconds(worker.process.pid) - before) / len(bodies),
    }


async def order(shop: Shop, begin: float, plan: argparse.Namespace) -> dict[str, float]:
    """New orders at their own pace; when each was planned, but for those of the warm-up."""
    planned: dict[str, float] = {}
    async with asyncio.TaskGroup() as sending:
        for number in range(round(plan.orders * (WARM_UP_S + plan.seconds))):
            moment, order_id = begin + number / plan.orders, f"flows-{number}"
            await asyncio.sleep(max(0.0, moment - time.monotonic()))
            sending.create_task(shop.send({"order_id": order_id, **ORDER}))
            if moment >= begin + WARM_UP_S:
                planned[order_id] = moment
    return planned


def quantile(values: Sequence[float], share: float) -> float:
    return sorted(values)[min(len(values) - 1, int(share * len(values)))]


def machine_seconds() -> float:
    """What all processes of the machine have used, proc(5)."""
    user, nice, system, _, _, hard, soft = map(int, Path("/proc/stat").read_text().split()[1:8])
    return (user + nice + system + hard + soft) / os.sysconf("SC_CLK_TCK")


async def counted(http: aiohttp.ClientSession, address: str, name: str, **labels: str) -> float:
    """A counter of the worker's, summed over its other labels."""
    async with http.get(f"{address}/metrics") as answer:
        text = await answer.text()
    wanted = [f'{label}="{value}"' for label, value in labels.items()]
    rows = re.findall(rf"^payment_worker_{name}_total{{(.*)}} (\S+)$", text, re.MULTILINE)
    return sum(float(number) for of, number in rows if all(each in of for each in wanted))


async def send_webhooks(url: str, rate: float, parcel: Path) -> None:
    """The sender: says that it is ready, reads when to begin, sends, and tells of each answer."""
    host, port = url.removeprefix("http://").split(":")
    requests = [request(host, body.encode()) for body in json.loads(parcel.read_text())]
    idle: asyncio.Queue[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = asyncio.Queue()
    for _ in range(CONNECTIONS):
        idle.put_nowait(await asyncio.open_connection(host, int(port)))
    answers_ms, late_ms, statuses = ([0.0] * len(requests) for _ in range(3))

    async def send(number: int, moment: float) -> None:
        late_ms[number] = 1000 * (time.monotonic() - moment)
        reader, writer = await idle.get()
        writer.write(requests[number])
        head = await reader.readuntil(b"\r\n\r\n")
        length = re.search(rb"content-length: (\d+)", head, re.IGNORECASE)
        await reader.readexactly(int(length[1]) if length else 0)
        answers_ms[number], statuses[number] = 1000 * (time.monotonic() - moment), int(head[9:12])
        idle.put_nowait((reader, writer))

    print("ready", flush=True)
    begin = float(sys.stdin.readline())
    async with asyncio.TaskGroup() as sending:
        for number in range(len(requests)):
            moment = begin + number / rate
            if (wait_s := moment - time.monotonic()) > 0:
                await asyncio.sleep(wait_s)
            sending.create_task(send(number, moment))
    print(json.dumps({"answers_ms": answers_ms, "late_ms": late_ms, "statuses": statuses}), flush=True)


def request(host: str, body: bytes) -> bytes:
    head = (
        f"POST {PATH} HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/json; charset=utf-8\r\n"
        f"User-Agent: Stripe/1.0 (+https://docs.stripe.com/webhooks)\r\nContent-Length: {len(body)}\r\n"
        f"Stripe-Signature: {signed(body, SECRET, at=int(time.time()))}\r\n\r\n"
    )
    return head.encode() + body


@contextlib.contextmanager
def own_sandbox() -> Iterator[str]:
    """Its address; a process of its own, as Stripe is."""
    sandbox = subprocess.Popen(
        [sys.executable, "-m", "worker", "sandbox", "--port", "0"], stdout=subprocess.PIPE, text=True
    )
    assert sandbox.stdout
    try:
        yield address_told(sandbox.stdout)
    finally:
        sandbox.terminate()
        sandbox.wait()


async def run(plan: argparse.Namespace) -> dict[str, list[Figures]]:
    """Each ledger in turn, new for every round."""
    kinds = ("sqlite", "postgresql") if plan.ledger == "both" else (plan.ledger,)
    results: dict[str, list[Figures]] = {kind: [] for kind in kinds}
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        broker, sandbox_url = stack.enter_context(PrivateBroker()), stack.enter_context(own_sandbox())
        postgres = stack.enter_context(PrivatePostgres()) if "postgresql" in kinds else None
        for number in range(plan.rounds):
            for kind in kinds:
                url = f"sqlite+aiosqlite:///{folder}/{number}.db"
                if kind == "postgresql" and postgres:
                    url = await postgres.create_database(f"round_{number}")
                results[kind].append(await measure(url, broker, sandbox_url, folder, plan))
    return results


TOLD: Final = {
    "p50_ms": ("p50 ms", "{:.1f}"),
    "p95_ms": ("p95", "{:.1f}"),
    "p99_ms": ("p99", "{:.1f}"),
    "max_ms": ("max", "{:.0f}"),
    "late_p99_ms": ("sender late p99", "{:.1f}"),
    "answered_200": ("answered 200", "{:.0f}"),
    "orders_p99_ms": ("orders p99 ms", "{:.0f}"),
    "cpu_share": ("worker's CPU", "{:.0%}"),
    "machine_share": ("machine's", "{:.0%}"),
    "load": ("load average", "{:.1f}"),
    "applied_meanwhile": ("applied/s meanwhile", "{:.0f}"),
    "drained_s": ("then empty after s", "{:.1f}"),
    "drained_per_second": ("applied/s then", "{:.0f}"),
    "cpu_ms_each": ("CPU ms/webhook in all", "{:.2f}"),
}


def show(results: dict[str, list[Figures]], plan: argparse.Namespace) -> None:
    size = next(iter(results.values()))[0]["bytes"]
    table = Table(
        box=None,
        header_style="bold",
        title=f"{plan.rate:.0f} webhooks/s of {size:.0f} bytes, {plan.orders:.0f} orders/s, {plan.seconds:.0f} s",
    )
    columns = [(kind, figures) for kind, rounds in results.items() for figures in rounds]
    for heading in ("", *(kind for kind, _ in columns)):
        table.add_column(heading, justify="right" if heading else "left")
    for name, (heading, form) in TOLD.items():
        table.add_row(heading, *(form.format(figures[name]) for _, figures in columns))
    Console().print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ledger", choices=["sqlite", "postgresql", "both"], default="both")
    parser.add_argument("--rate", type=float, default=500, help="webhooks a second")
    parser.add_argument("--seconds", type=float, default=20)
    parser.add_argument("--orders", type=float, default=25, help="orders a second")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--command", nargs="+", default=["-m", "worker", "run"], help="of the worker, to profile it")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--send", metavar="URL", help=argparse.SUPPRESS)
    parser.add_argument("parcel", nargs="?", type=Path, help=argparse.SUPPRESS)
    plan = parser.parse_args()
    if plan.send:
        asyncio.run(send_webhooks(plan.send, plan.rate, plan.parcel))
        return
    results = asyncio.run(run(plan))
    if plan.json:
        print(json.dumps(results))
    else:
        show(results, plan)


if __name__ == "__main__":
    main()
