"""Orders under fire: everything that can die dies at a moment of dice, and an independent checker judges what is left.

Real processes throughout: a private RabbitMQ, SQLite or a private PostgreSQL, workers, the sandbox as Stripe. Each
trouble strikes while a burst of orders is in work. Afterwards the faults are cleared, the workers are given time, and
every order must have come to exactly one outcome.

    python -m tests.chaos.chaos --seeds 5 --kills 20 --broker-kills 1

A seed decides all that this program decides; what the operating system decides differs from run to run.
"""

import argparse
import asyncio
import json
import logging
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any, Final

from tests.chaos.checker import History, violations
from tests.chaos.orders import make_bursts, make_orders
from tests.chaos.proxy import Proxy
from tests.chaos.shop import Shop
from tests.chaos.troubles import CLAIM_TTL_S, Slot, Trouble, Troubles
from tests.harness import clean_environment, new_names
from worker.bus.connection import bus_errors
from worker.errors import BusUnavailable
from worker.sandbox.broker import PrivateBroker
from worker.sandbox.postgres import PrivatePostgres
from worker.sandbox.stripe_control import SandboxControl
from worker.sandbox.stripe_server import running_sandbox

# A node killed soon after a quorum queue was declared forgets the queue's content.
QUEUES_AGE_S: Final = 6
# An order waits for 1, 5 and 30 s after its first failed deliveries, and for 120 s after a rare fourth one.
OUTCOMES_DEADLINE_S: Final = 180
# After a burst was sent: about as long as the workers are busy with it.
STRIKES_WITHIN_S: Final = 0.2
LATENCY_S: Final = (0.0, 0.1)
# An object may be found at once, or only once the order is long decided.
SEARCH_LAGS_S: Final = (0, 3, 60)
RECORD_ROWS: Final = 500_000

# (kind, chance, details): each request throws its dice for one after the other.
ARRIVAL_FAULTS: Final = (
    ("refuse", 0.05, {"method": "POST"}),
    ("answer_lost", 0.08, {"method": "POST"}),
    ("503", 0.05, {"method": "POST"}),
    ("refuse", 0.05, {"method": "GET"}),
    ("503", 0.05, {"method": "GET"}),
)
STORED_FAULTS: Final = (
    ("stored_500", 0.03, {"method": "POST", "with_object": False}),
    ("stored_500", 0.03, {"method": "POST", "with_object": True}),
)


@dataclass(frozen=True, slots=True)
class Options:
    """What is asked of one run.

    freezes: workers stopped for longer than their claims live. stored: whether Stripe also keeps a 500 under some keys.
    fault_factor: how much likelier than usual Stripe's faults are.
    """

    seed: int = 1
    orders: int = 400
    workers: int = 2
    kills: int = 20
    freezes: int = 2
    broker_kills: int = 1
    database_restarts: int = 0
    cuts: int = 0
    ledger: str = "sqlite"
    stored: bool = True
    fault_factor: float = 1.0


@dataclass(slots=True)
class Report:
    """What came of one run.

    deaths: workers that ended by themselves. cut_off: calls whose caller was gone when Stripe had done the work.
    folder: logs and evidence, if kept.
    """

    seed: int
    options: Options
    seconds: float = 0.0
    kills: int = 0
    deaths: int = 0
    sent: int = 0
    requests: int = 0
    cut_off: int = 0
    faults: Counter[str] = field(default_factory=Counter)
    history: History | None = None
    violations: list[str] = field(default_factory=list)
    folder: Path | None = None

    def row(self) -> dict[str, object]:
        """The summary table's row."""
        events = self.history.events if self.history else ()
        distinct = len({event.message_id for event in events})
        return {
            "seed": self.seed,
            "ledger": self.options.ledger,
            "orders": self.options.orders,
            "sent": self.sent,
            "kills": self.kills,
            "freezes": self.options.freezes,
            "broker": self.options.broker_kills,
            "database": self.options.database_restarts,
            "cuts": self.options.cuts,
            "deaths": self.deaths,
            "seconds": f"{self.seconds:.0f}",
            "requests": self.requests,
            "cut off": self.cut_off,
            "faults": self.faults.total(),
            "intents": len(self.history.intents) if self.history else 0,
            "events": distinct,
            "duplicates": len(events) - distinct,
            "letters": len(self.history.letters) if self.history else 0,
            "violations": len(self.violations),
        }


async def run_chaos(options: Options) -> Report:
    """One run, from servers that do not exist yet to the verdict."""
    began = time.monotonic()
    report = Report(options.seed, options, folder=Path(tempfile.mkdtemp(prefix=f"chaos-{options.seed}-")))
    assert report.folder
    async with AsyncExitStack() as stack:
        broker = PrivateBroker()
        starting: list[Any] = [stack.enter_async_context(broker)]
        postgres = PrivatePostgres() if options.ledger == "postgresql" else None
        if postgres:
            starting.append(stack.enter_async_context(postgres))
        await asyncio.gather(*starting)
        sandbox = await stack.enter_async_context(
            running_sandbox(
                seed=options.seed,
                ring=RECORD_ROWS,
                latency_s=LATENCY_S,
                search_lag_s=Random(f"{options.seed} search").choice(SEARCH_LAGS_S),
            )
        )
        await _under_fire(options, report, stack, broker, postgres, sandbox.base_url, sandbox.control)
    report.seconds = time.monotonic() - began
    assert report.history
    report.violations = violations(report.history) + report.violations
    if report.violations:
        _keep_evidence(report.folder, report.history)
    else:
        shutil.rmtree(report.folder)
        report.folder = None
    return report


async def _under_fire(
    options: Options,
    report: Report,
    stack: AsyncExitStack,
    broker: PrivateBroker,
    postgres: PrivatePostgres | None,
    stripe_url: str,
    stripe: SandboxControl,
) -> None:
    assert report.folder
    names = new_names()
    database_url = (
        await postgres.create_database("chaos") if postgres else f"sqlite+aiosqlite:///{report.folder}/payments.db"
    )
    settings = {"AMQP_URL": broker.amqp_url, "STRIPE_API_BASE": stripe_url, "DATABASE_URL": database_url}
    proxies = []
    if options.cuts:
        for name in ("AMQP_URL", "STRIPE_API_BASE", *(["DATABASE_URL"] if postgres else [])):
            settings[name], proxy = await _through_a_proxy(stack, settings[name])
            proxies.append(proxy)
    environment = clean_environment(
        STRIPE_API_KEY="sk_test_sandbox_key",
        STRIPE_RATE_LIMIT="200",
        MIGRATE_AT_START="true",
        HTTP_PORT="0",
        LOG_FORMAT="json",
        CLAIM_TTL=str(CLAIM_TTL_S),
        **settings,
        **names,
    )
    shop = await stack.enter_async_context(Shop(broker.amqp_url, names, ledger_url=database_url))
    grown = asyncio.create_task(asyncio.sleep(QUEUES_AGE_S))
    dice = Random(f"{options.seed} troubles")
    slots = [
        Slot(f"worker-{number}", environment, report.folder, Random(f"{options.seed} worker {number}"))
        for number in range(options.workers)
    ]
    supervisors = await stack.enter_async_context(_supervised(slots))
    await grown
    await _add_faults(stripe, options)
    orders = make_orders(Random(f"{options.seed} orders"), options.orders)
    troubles = Troubles(slots=slots, broker=broker, postgres=postgres, proxies=proxies, dice=dice)
    plan = troubles.plan(
        kills=options.kills,
        freezes=options.freezes,
        broker_kills=options.broker_kills,
        database_restarts=options.database_restarts,
        cuts=options.cuts,
    )
    await _strike(troubles, plan, make_bursts(orders, count=len(plan), dice=dice), shop, dice)

    for fault in await stripe.faults():
        report.faults[fault["kind"]] += fault["fired"]
    await stripe.clear_faults()
    await _until_settled(broker, shop, set(orders), report)
    await troubles.all_subscribed()  # one that is only starting knows no clean end yet
    for supervisor in supervisors:
        supervisor.cancel()
    await asyncio.gather(*supervisors, return_exceptions=True)
    codes = await asyncio.gather(*(slot.stop() for slot in slots))
    report.violations += [f"run: a worker ended with {code} when asked to stop" for code in codes if code]
    await shop.look()
    requests = await _all_pages(lambda rows: stripe.record(since=rows[-1]["seq"] if rows else 0))
    report.kills, report.sent, report.requests = troubles.kills, shop.sent, len(requests)
    report.cut_off = sum(row["outcome"] == "dropped" and row["fault"] is None for row in requests)
    report.deaths = sum(len(slot.deaths) for slot in slots)
    report.history = History(
        orders={order_id: order for order_id, (order, _) in orders.items()},
        events=shop.events,
        requests=requests,
        intents=await _all_pages(lambda rows: stripe.intents(skip=len(rows))),
        letters=shop.letters,
        faults_over=True,
    )


async def _through_a_proxy(stack: AsyncExitStack, address: str) -> tuple[str, Proxy]:
    """The address with a proxy's port in it, and the proxy."""
    before, _, port = address.rpartition(":")
    digits = port[: len(port) - len(port.lstrip("0123456789"))]
    proxy = await stack.enter_async_context(Proxy("127.0.0.1", int(digits)))
    return f"{before}:{proxy.port}{port[len(digits) :]}", proxy


@asynccontextmanager
async def _supervised(slots: Sequence[Slot]) -> AsyncIterator[list[asyncio.Task[None]]]:
    """Workers run for the time of the block, and none is left after it."""
    tasks = [asyncio.create_task(slot.run()) for slot in slots]
    try:
        yield tasks
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for slot in slots:
            slot.kill()


async def _add_faults(stripe: SandboxControl, options: Options) -> None:
    faults = ARRIVAL_FAULTS + (STORED_FAULTS if options.stored else ())
    for number, (kind, chance, details) in enumerate(faults):
        seed = options.seed * 100 + number
        probability = min(1, chance * options.fault_factor)
        await stripe.add_fault(kind, path="/v1/payment_intents*", probability=probability, seed=seed, **details)


async def _strike(
    troubles: Troubles,
    planned: Sequence[Trouble],
    bursts: Sequence[Sequence[tuple[str, dict[str, Any]]]],
    shop: Shop,
    dice: Random,
) -> None:
    """One burst after the other, and a trouble in the middle of each. All is confirmed when this returns."""
    async with asyncio.TaskGroup() as sending:
        for number, burst in enumerate(bursts):
            await troubles.all_at_work()
            for message_id, body in burst:
                sending.create_task(shop.send(message_id, body))
            await asyncio.sleep(dice.uniform(0, STRIKES_WITHIN_S))
            if number < len(planned):
                await planned[number]()


async def _until_settled(broker: PrivateBroker, shop: Shop, orders: set[str], report: Report) -> None:
    """Until every order has its outcome and the worker's queues are empty, or the time is up."""
    deadline = time.monotonic() + OUTCOMES_DEADLINE_S
    left = "nothing was seen"
    while time.monotonic() < deadline:
        with suppress(BusUnavailable), bus_errors():
            await shop.look()
            missing, waiting = orders - shop.orders_with_an_outcome(), await shop.waiting()
            left = f"{len(missing)} orders without an outcome, {waiting} messages waiting"
            # What is in work is counted by the broker alone, and asking it so is slow: last, then.
            if not missing and not waiting:
                in_work = await _held(broker)
                if not in_work:
                    return
                left = f"{in_work} messages in the worker's queues"
        await asyncio.sleep(0.2)
    report.violations.append(f"run: not settled {OUTCOMES_DEADLINE_S} s after the last fault: {left}")


async def _held(broker: PrivateBroker) -> int:
    """Messages ready or in work, in queues of the worker; the subscriber's are not."""
    listed = [line.split("\t") for line in (await broker.ctl("list_queues", "name", "messages")).splitlines()]
    return sum(int(count) for name, count in listed if ".worker." in name)


async def _all_pages(page: Callable[[list[dict[str, Any]]], Awaitable[list[dict[str, Any]]]]) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    while more := await page(rows):
        rows += more
    return rows


def _keep_evidence(folder: Path, history: History) -> None:
    """Beside the workers' logs, what Stripe and the bus saw."""
    told = [{"message_id": event.message_id, "body": event.body.decode()} for event in history.events]
    letters = [
        {"order_id": each.order_id, "reason": each.reason, "content": str(each.content)} for each in history.letters
    ]
    seen = {"requests": history.requests, "intents": history.intents, "events": told, "letters": letters}
    for name, rows in seen.items():
        (folder / f"{name}.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))


def print_table(reports: Sequence[Report]) -> None:
    rows = [report.row() for report in reports]
    widths = {name: max(len(name), *(len(str(row[name])) for row in rows)) for name in rows[0]}
    print("  ".join(name.rjust(width) for name, width in widths.items()))
    for row in rows:
        print("  ".join(str(row[name]).rjust(width) for name, width in widths.items()))


async def _run_all(options: argparse.Namespace) -> list[Report]:
    """Seed after seed; with `--minutes`, until they are over."""
    end = time.monotonic() + options.minutes * 60
    reports: list[Report] = []
    while len(reports) < options.seeds or time.monotonic() < end:
        seed = options.seed + len(reports)
        print(f"seed {seed}", flush=True)
        wanted = {name: getattr(options, name) for name in Options.__dataclass_fields__}
        report = await run_chaos(Options(**(wanted | {"seed": seed})))
        reports.append(report)
        print_table([report])
        for violation in report.violations:
            print(f"  {violation}")
        if report.folder:
            print(f"  logs and evidence are kept in {report.folder}", flush=True)
    return reports


def main() -> int:
    defaults = Options()
    parser = argparse.ArgumentParser(prog="python -m tests.chaos.chaos", description=__doc__.splitlines()[0])
    parser.add_argument("--seed", type=int, help="the first seed; by default another one each time")
    parser.add_argument("--seeds", type=int, default=1, help="how many runs, each with the next seed")
    parser.add_argument("--minutes", type=float, default=0.0, help="go on with new seeds for so long")
    for name in ("orders", "workers", "kills", "freezes", "broker_kills", "database_restarts", "cuts"):
        parser.add_argument(f"--{name.replace('_', '-')}", type=int, default=getattr(defaults, name))
    parser.add_argument("--ledger", choices=["sqlite", "postgresql"], default=defaults.ledger)
    parser.add_argument("--fault-factor", type=float, default=1.0, help="how much likelier Stripe's faults are")
    parser.add_argument("--no-stored", dest="stored", action="store_false", help="no 500 is kept under a key")
    options = parser.parse_args()
    if options.seed is None:
        options.seed = Random().randrange(1_000_000)
    logging.getLogger("aiormq").setLevel(logging.CRITICAL)  # a broker that was killed is no news here
    reports = asyncio.run(_run_all(options))
    if len(reports) > 1:
        print()
        print_table(reports)
    return 1 if any(report.violations for report in reports) else 0


if __name__ == "__main__":
    sys.exit(main())
