"""Orders a second through one worker process, beside the peer in handwritten_worker.py, in one run; `make bench`.

    python tests/benchmarks/throughput.py [--orders 4000] [--rounds 3] [--long 0]

Both find the same orders waiting in a quorum queue, ask the same sandbox (no latency) and publish to the same
subscriber, on one private broker. Rounds alternate, and the best of each is compared: contention only ever slows.
--long N sends N more orders through our worker and prints its resident memory after them.
"""

import argparse
import asyncio
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import Progress
from rich.table import Table

sys.path.insert(0, str(Path(__file__).parents[2]))

from tests.harness import Shop, WorkerProcess, clean_environment, new_names, until
from worker.sandbox.broker import PrivateBroker

PREFETCH = 64
PEERS = {
    "payment-worker": ("-m", "worker", "run"),
    "hand-written": (str(Path(__file__).with_name("handwritten_worker.py")),),
}


async def measure(peer: str, broker: PrivateBroker, sandbox_url: str, folder: Path, orders: int) -> dict[str, float]:
    """One round of one peer: orders a second, start time and processor time."""
    names = new_names()
    environment = clean_environment(
        AMQP_URL=broker.amqp_url,
        STRIPE_API_KEY="sk_test_benchmark",
        STRIPE_API_BASE=sandbox_url,
        STRIPE_RATE_LIMIT="100000",
        DATABASE_URL=f"sqlite+aiosqlite:///{folder}/{names['ORDERS_QUEUE']}.db",
        HTTP_PORT="0",
        LOG_FORMAT="json",
        LOG_LEVEL="info",
        PREFETCH=str(PREFETCH),
        **names,
    )
    async with Shop(broker.amqp_url, names) as shop:
        arrived: list[float] = []
        await subscribe(shop, arrived)
        if peer == "payment-worker":
            await shop.declare_worker_queue()
        else:
            queue = await shop.channel.declare_queue(
                names["ORDERS_QUEUE"], durable=True, arguments={"x-queue-type": "quorum"}
            )
            await queue.bind(shop.orders, "order.created")
        await send(shop, f"{names['ORDERS_QUEUE']}", orders)
        worker = WorkerProcess(environment, folder / "worker.log", command=PEERS[peer])
        started = time.monotonic()
        worker.start()
        try:
            await until(lambda: len(arrived) >= orders, what=f"{orders} events", deadline_s=600)
            figures = {
                "per_second": (orders - 1) / (arrived[orders - 1] - arrived[0]),
                "first_event_s": arrived[0] - started,
                "cpu_ms": 1000 * processor_seconds(worker.process) / orders,
                "resident_mib": resident_mib(worker.process),
            }
        finally:
            worker.kill()
    return figures


async def subscribe(shop: Shop, arrived: list[float]) -> None:
    queue = await shop.channel.declare_queue(exclusive=True)
    await queue.bind(shop.payments, "payment.#")

    async def take(_: Any) -> None:
        arrived.append(time.monotonic())

    await queue.consume(take, no_ack=True)


async def send(shop: Shop, prefix: str, count: int) -> None:
    slots = asyncio.Semaphore(200)

    async def one(number: int) -> None:
        async with slots:
            await shop.send({"order_id": f"{prefix}-{number}"[-64:], "amount": "12.50", "currency": "eur"})

    await asyncio.gather(*(one(number) for number in range(count)))


def address_told(said: Iterable[str]) -> str:
    """The address that the sandbox tells for a worker's shell."""
    line = next(line for line in said if "STRIPE_API_BASE=" in line)
    return line.split("STRIPE_API_BASE=")[1].split()[0]


def processor_seconds(process: subprocess.Popen[bytes]) -> float:
    fields = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / 100


def resident_mib(process: subprocess.Popen[bytes]) -> float:
    status = Path(f"/proc/{process.pid}/status").read_text()
    return int(status.split("VmRSS:")[1].split()[0]) / 1024


async def run(orders: int, rounds: int, long: int) -> dict[str, list[dict[str, float]]]:
    """All rounds, alternating; the sandbox is a process of its own, as Stripe is."""
    results: dict[str, list[dict[str, float]]] = {peer: [] for peer in PEERS}
    with tempfile.TemporaryDirectory() as name, PrivateBroker() as broker:
        sandbox = subprocess.Popen(
            [sys.executable, "-m", "worker", "sandbox", "--port", "0"], stdout=subprocess.PIPE, text=True
        )
        assert sandbox.stdout
        url = address_told(sandbox.stdout)
        try:
            with Progress(disable=not sys.stdout.isatty()) as progress:
                task = progress.add_task("rounds", total=rounds * len(PEERS))
                for _ in range(rounds):
                    for peer in PEERS:
                        results[peer].append(await measure(peer, broker, url, Path(name), orders))
                        progress.advance(task)
            if long:
                results["payment-worker, long"] = [await measure("payment-worker", broker, url, Path(name), long)]
        finally:
            sandbox.terminate()
            sandbox.wait()
    return results


def show(results: dict[str, list[dict[str, float]]]) -> None:
    table = Table(box=None, header_style="bold")
    for heading in ("", "orders/s best", "median", "CPU ms/order", "first event s", "resident MiB"):
        table.add_column(heading, justify="left" if not heading else "right")
    for peer, rounds in results.items():
        rates = [figures["per_second"] for figures in rounds]
        table.add_row(
            peer,
            f"{max(rates):.0f}",
            f"{statistics.median(rates):.0f}",
            f"{min(figures['cpu_ms'] for figures in rounds):.2f}",
            f"{min(figures['first_event_s'] for figures in rounds):.2f}",
            f"{max(figures['resident_mib'] for figures in rounds):.0f}",
        )
    console = Console()
    console.print(table)
    best = {peer: max(figures["per_second"] for figures in rounds) for peer, rounds in results.items()}
    console.print(f"payment-worker / hand-written: {best['payment-worker'] / best['hand-written']:.2f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--orders", type=int, default=4000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--long", type=int, default=0)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    results = asyncio.run(run(arguments.orders, arguments.rounds, arguments.long))
    if arguments.json:
        print(json.dumps(results))
    else:
        show(results)


if __name__ == "__main__":
    main()
