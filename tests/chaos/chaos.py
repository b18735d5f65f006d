"""Orders under fire: everything that can die dies at a moment of dice, and an independent checker judges what is left.

Real processes throughout: a private RabbitMQ, SQLite or a private PostgreSQL, workers, the sandbox as Stripe. Each
trouble strikes while a burst of orders is in work. Afterwards the faults are cleared, the workers are given time, and
every order must have come to exactly one outcome, every command to one answer, and the bus must tell what Stripe has.

    python -m tests.chaos.chaos --seeds 5 --kills 20 --broker-kills 1

A seed decides all that this program decides; what the operating system decides differs from run to run.
"""

import argparse
import asyncio
import logging
import shutil
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from random import Random
from typing import Any, Final

from tests.chaos.checker import violations
from tests.chaos.commands import Message, make_commands
from tests.chaos.history import History
from tests.chaos.orders import make_bursts, make_orders
from tests.chaos.proxy import Proxy
from tests.chaos.report import Options, Report, keep_evidence, print_table
from tests.chaos.settle import DEADLINE_S, all_intents, all_pages, until_settled
from tests.chaos.shop import Shop
from tests.chaos.troubles import CLAIM_TTL_S, Slot, Trouble, Troubles
from tests.harness import clean_environment, new_names
from worker.sandbox.broker import PrivateBroker
from worker.sandbox.postgres import PrivatePostgres
from worker.sandbox.private_server import free_ports
from worker.sandbox.stripe_control import SandboxControl
from worker.sandbox.stripe_server import running_sandbox

# A node killed soon after a quorum queue was declared forgets the queue's content.
QUEUES_AGE_S: Final = 6
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
# Stripe tells each slot; twins: one change told under two event ids.
WEBHOOK_SECRET: Final = "whsec_of_the_chaos_run"
WEBHOOK_SETTINGS: Final = {
    "webhook_duplicates": 0.2,
    "webhook_shuffle": 8,
    "webhook_retry_s": 0.5,
    "webhook_tries": 10,
    "event_twins": 0.1,
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
        keep_evidence(report.folder, report.history)
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
        STRIPE_WEBHOOK_SECRET=WEBHOOK_SECRET,
        LOG_FORMAT="json",
        CLAIM_TTL=str(CLAIM_TTL_S),
        **settings,
        **names,
    )
    shop = await stack.enter_async_context(Shop(broker.amqp_url, names, ledger_url=database_url))
    grown = asyncio.create_task(asyncio.sleep(QUEUES_AGE_S))
    dice = Random(f"{options.seed} troubles")
    slots = []
    await stripe.change_settings(**WEBHOOK_SETTINGS)
    for number, port in enumerate(free_ports(options.workers)):
        own = environment | {"HTTP_PORT": str(port)}
        slots.append(Slot(f"worker-{number}", own, report.folder, Random(f"{options.seed} worker {number}")))
        await stripe.add_webhook(f"http://127.0.0.1:{port}/webhooks/stripe", [WEBHOOK_SECRET])
    supervisors = await stack.enter_async_context(_supervised(slots))
    await grown
    await _add_faults(stripe, options)
    orders = make_orders(Random(f"{options.seed} orders"), options.orders)
    planned = make_commands(Random(f"{options.seed} commands"), orders)
    commands = [each.command for each in planned]
    troubles = Troubles(slots=slots, broker=broker, postgres=postgres, proxies=proxies, dice=dice)
    plan = troubles.plan(
        kills=options.kills,
        freezes=options.freezes,
        broker_kills=options.broker_kills,
        database_restarts=options.database_restarts,
        cuts=options.cuts,
    )
    await _strike(troubles, plan, make_bursts(orders, planned, count=len(plan), dice=dice), shop, dice)

    for fault in await stripe.faults():
        report.faults[fault["kind"]] += fault["fired"]
    await stripe.clear_faults()
    if left := await until_settled(broker, stripe, shop, set(orders), commands):
        report.violations.append(f"run: not settled {DEADLINE_S} s after the last fault: {left}")
    await troubles.all_subscribed()  # one that is only starting knows no clean end yet
    for supervisor in supervisors:
        supervisor.cancel()
    await asyncio.gather(*supervisors, return_exceptions=True)
    codes = await asyncio.gather(*(slot.stop() for slot in slots))
    report.violations += [f"run: a worker ended with {code} when asked to stop" for code in codes if code]
    await shop.look()
    requests = await all_pages(lambda rows: stripe.record(since=rows[-1]["seq"] if rows else 0))
    report.kills, report.sent, report.requests = troubles.kills, shop.sent, len(requests)
    report.cut_off = sum(row["outcome"] == "dropped" and row["fault"] is None for row in requests)
    report.webhooks = len(await stripe.deliveries())
    report.deaths = sum(len(slot.deaths) for slot in slots)
    report.history = History(
        orders={order_id: order for order_id, (order, _) in orders.items()},
        events=shop.events,
        requests=requests,
        intents=await all_intents(stripe),
        letters=shop.letters,
        faults_over=True,
        commands=commands,
        refunds=await stripe.objects("refunds"),
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
        await stripe.add_fault(kind, path="/v1/*", probability=probability, seed=seed, **details)


async def _strike(
    troubles: Troubles,
    planned: Sequence[Trouble],
    bursts: Sequence[Sequence[Message]],
    shop: Shop,
    dice: Random,
) -> None:
    """One burst after the other, and a trouble in the middle of each. All is confirmed when this returns."""
    async with asyncio.TaskGroup() as sending:
        for number, burst in enumerate(bursts):
            await troubles.all_at_work()
            for message in burst:
                sending.create_task(shop.send(message))
            await asyncio.sleep(dice.uniform(0, STRIKES_WITHIN_S))
            if number < len(planned):
                await planned[number]()


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
