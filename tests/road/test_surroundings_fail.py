"""What we stand on fails: consumption pauses, nothing is burnt, few calls are wasted, and work resumes by itself."""

import asyncio
import resource
import signal
import sqlite3
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from tests.harness import Shop, WorkerProcess, dead_letters, frozen, until
from worker.sandbox.broker import PrivateBroker
from worker.sandbox.postgres import PrivatePostgres
from worker.sandbox.stripe_control import SandboxControl

MakeWorker = Callable[..., WorkerProcess]
KEY = "sk_test_sandbox_key"


def orders(count: int) -> list[dict[str, Any]]:
    return [{"order_id": f"order-{number}", "amount": "1.00"} for number in range(count)]


async def not_ready(worker: WorkerProcess) -> dict[str, str]:
    """The reasons why a worker is not ready."""
    async with aiohttp.ClientSession() as session, session.get(f"{worker.http}/readyz") as answer:
        reasons: dict[str, str] = (await answer.json())["reasons"]
        return reasons


@pytest.mark.parametrize(
    ("kind", "limit", "outage_s"), [("refuse", "25", 25), ("503", "10000", 8), ("revoked", "25", 12)]
)
async def test_an_outage_of_stripe_makes_no_dead_letter_and_wastes_few_calls(
    kind: str,
    limit: str,
    outage_s: float,
    make_worker: MakeWorker,
    shop: Shop,
    stripe: SandboxControl,
    environment: dict[str, str],
) -> None:
    await shop.subscribe()
    worker = await make_worker(STRIPE_RATE_LIMIT=limit).until_subscribed()
    if kind == "revoked":
        await stripe.change_settings(revoked_keys=[KEY])
    else:
        await stripe.add_fault(kind, times=1_000_000)

    await shop.send_all(orders(100))
    await until(lambda: worker.said("consumer.paused"), what="the pause")
    await asyncio.sleep(outage_s)
    wasted = len(await stripe.record())
    assert wasted < 40
    assert "stripe" in await not_ready(worker)
    await stripe.change_settings(revoked_keys=[])
    await stripe.clear_faults()
    await shop.until_events(100, deadline_s=10)

    assert await dead_letters(environment) == []
    assert (await stripe.stats())["intents"] == 100
    await until(lambda: _is_ready(worker), what="the worker to be ready again")


async def test_a_stripe_that_hangs_holds_few_calls(
    make_worker: MakeWorker, shop: Shop, stripe: SandboxControl, environment: dict[str, str]
) -> None:
    await shop.subscribe()
    worker = await make_worker(STRIPE_TIMEOUT="3").until_subscribed()
    await stripe.add_fault("hang", times=1_000_000)

    await shop.send_all(orders(100))
    await until(lambda: worker.said("consumer.paused"), what="the pause")
    assert len(await stripe.record(method="POST")) < 40
    await stripe.clear_faults()
    await shop.until_events(100, deadline_s=15)

    assert await dead_letters(environment) == []
    assert (await stripe.stats())["orders_with_several_intents"] == {}


async def test_one_order_that_stripe_never_answers_keeps_no_other_waiting(
    make_worker: MakeWorker, shop: Shop, stripe: SandboxControl
) -> None:
    """It looks like an outage while it is the only one; asking whether Stripe is there says yes."""
    await shop.subscribe()
    worker = await make_worker(PREFETCH="4").until_subscribed()
    await stripe.add_fault("503", method="POST", order_id="order-poison", times=1_000_000)

    await shop.send({"order_id": "order-poison", "amount": "1.00"})
    await until(lambda: worker.said("stripe.away"), what="it to be taken for an outage")
    await shop.send_all(orders(20))
    await shop.until_events(20)


async def test_a_locked_payment_slows_nobody_else(make_worker: MakeWorker, shop: Shop, stripe: SandboxControl) -> None:
    await shop.subscribe()
    worker = await make_worker().until_subscribed()
    await stripe.add_fault("lock_timeout", method="POST", order_id="order-0", times=4)

    await shop.send_all(orders(20))
    events = await shop.until_events(20)

    assert events[-1]["subject"] == "order-0"
    assert not worker.said("stripe.slowed")


async def test_refusals_for_the_rate_slow_every_worker_down(
    ledger_url: str, make_worker: MakeWorker, shop: Shop, stripe: SandboxControl, environment: dict[str, str]
) -> None:
    """The limit is set higher than Stripe's: the workers find their own way under it."""
    await shop.subscribe()
    await stripe.change_settings(rate_limit=20)
    settings = {"DATABASE_URL": ledger_url, "STRIPE_RATE_LIMIT": "60"}
    first = await make_worker(**settings).until_subscribed()
    second = await make_worker(**settings).until_subscribed()

    await shop.send_all(orders(150))
    await shop.until_events(150, deadline_s=60)

    assert first.said("stripe.slowed") + second.said("stripe.slowed")
    refused = len(await stripe.record(method="POST", status=429))
    assert refused < 75
    assert await dead_letters(environment) == []


async def test_two_workers_share_the_rate_and_use_it_up(
    ledger_url: str, make_worker: MakeWorker, shop: Shop, stripe: SandboxControl
) -> None:
    await shop.subscribe()
    await stripe.change_settings(rate_limit=25, latency_s=0.3)
    await shop.declare_worker_queue()
    settings = {"DATABASE_URL": ledger_url, "STRIPE_RATE_LIMIT": "25"}
    workers = [make_worker(**settings), make_worker(**settings)]
    for worker in workers:
        await worker.until_subscribed()
    await shop.send_all(orders(400))
    await shop.until_events(400, deadline_s=60)

    rows = await stripe.record(method="POST")
    took_s = rows[-1]["at"] - rows[0]["at"]
    refused = [row for row in rows if row["status"] == 429]
    assert len(rows) / took_s > 0.95 * 25
    assert len(refused) <= 0.01 * len(rows)
    assert (await stripe.stats())["intents"] == 400
    shares = [len(worker.said("payment.intent_created")) for worker in workers]
    assert min(shares) > 50, "both took part"


async def test_live_orders_go_before_retries(make_worker: MakeWorker, shop: Shop, stripe: SandboxControl) -> None:
    await shop.subscribe()
    await make_worker(STRIPE_RATE_LIMIT="10").until_subscribed()

    for number in range(20):
        await shop.send(
            {"order_id": f"order-again-{number}", "amount": "1.00"}, headers={"payment-worker-deliveries": 1}
        )
    await shop.send_all(orders(20))
    events = await shop.until_events(40)

    first_half = [event["subject"] for event in events[:24]]
    assert sum("again" not in subject for subject in first_half) >= 16


async def test_nearly_all_dead_letters_stop_the_consumption(
    make_worker: MakeWorker, shop: Shop, environment: dict[str, str]
) -> None:
    worker = await make_worker(PREFETCH="4").until_subscribed()

    await shop.send_all([{"order_id": f"order-{number}", "amount": "nothing"} for number in range(200)])
    await until(lambda: worker.said("consumer.ceiling"), what="the stop")

    assert "dead letters" in (await not_ready(worker))["subscription"]
    letters = {letter["id"] for letter in await dead_letters(environment)}
    assert 100 <= len(letters) < 110
    assert await shop.ready_count(shop.names["ORDERS_QUEUE"]) >= 200 - len(letters)
    assert await worker.stop() == 0


async def test_a_broker_short_of_memory_pauses_the_consumption(
    make_worker: MakeWorker, names: dict[str, str], stripe: SandboxControl
) -> None:
    with PrivateBroker() as broker:
        worker = await make_worker(AMQP_URL=broker.amqp_url).until_subscribed()
        shop = await Shop(broker.amqp_url, names).__aenter__()
        await shop.subscribe()
        await shop.send_all(orders(20))
        await shop.until_events(20)
        await stripe.change_settings(latency_s=4)
        await shop.send_all([{"order_id": f"order-late-{number}", "amount": "1.00"} for number in range(8)])
        await stripe.wait_for_rows(28, method="POST")
        await broker.ctl("set_vm_memory_high_watermark", "0")
        await until(lambda: worker.said("consumer.paused"), what="the pause")
        assert "broker" in await not_ready(worker)
        await broker.ctl("set_vm_memory_high_watermark", "absolute", "1GB")
        await shop.until_events(28)

        assert (await stripe.stats())["intents"] == 28
        await shop.connection.close()
        assert await worker.stop() == 0


async def test_a_ledger_locked_by_somebody_else_is_waited_for(
    make_worker: MakeWorker, shop: Shop, tmp_path: Path, environment: dict[str, str]
) -> None:
    await shop.subscribe()
    worker = await make_worker().until_subscribed()
    with sqlite3.connect(tmp_path / "payments.db", isolation_level=None) as other:
        other.execute("BEGIN IMMEDIATE")
        await shop.send_all(orders(10))
        await until(lambda: worker.said("consumer.paused"), what="the pause")
        assert "ledger" in await not_ready(worker)
        other.execute("ROLLBACK")
    await shop.until_events(10)

    assert await dead_letters(environment) == []


async def test_a_full_disk_under_the_ledger_is_waited_out(
    make_worker: MakeWorker, shop: Shop, environment: dict[str, str], stripe: SandboxControl, tmp_path: Path
) -> None:
    """The system refuses to let the worker's files grow, as a full disk does."""
    await shop.subscribe()
    worker = await make_worker().until_subscribed()
    full_at = (tmp_path / "payments.db-wal").stat().st_size
    no_limit = resource.prlimit(worker.process.pid, resource.RLIMIT_FSIZE, (full_at, resource.RLIM_INFINITY))
    await shop.send_all(orders(10))
    await until(lambda: _is_faulty(worker, "ledger"), what="the worker to say so")
    resource.prlimit(worker.process.pid, resource.RLIMIT_FSIZE, no_limit)
    await shop.until_events(10)

    assert await dead_letters(environment) == []
    assert (await stripe.stats())["intents"] == 10


async def _is_faulty(worker: WorkerProcess, part: str) -> bool:
    return part in await not_ready(worker)


async def _is_taken(shop: Shop) -> bool:
    return await shop.ready_count(shop.names["ORDERS_QUEUE"]) == 0


async def _is_ready(worker: WorkerProcess) -> bool:
    return not await not_ready(worker)


async def test_a_stop_that_nothing_answers_is_cut_off_in_its_time(
    make_worker: MakeWorker, shop: Shop, postgres: PrivatePostgres
) -> None:
    """A thread that waits for a frozen server would hold up the end of the process for as long."""
    url = await postgres.create_database(f"cut_off_{int(time.time())}")
    with frozen(postgres):
        worker = make_worker(DATABASE_URL=url, DRAIN_TIMEOUT="0")
        await until(lambda: _takes_sigterm(worker), what="the worker to take signals")
        started = time.monotonic()
        assert await worker.stop() == 1
        assert time.monotonic() - started < 4.5
    assert worker.said("worker.cut_off")


async def test_a_frozen_database_holds_up_no_stop(
    make_worker: MakeWorker, shop: Shop, postgres: PrivatePostgres, stripe: SandboxControl
) -> None:
    """Its processes neither answer nor close their connections; a stop must not wait for them, whatever is begun."""
    url = await postgres.create_database(f"frozen_{int(time.time())}")
    worker = await make_worker(DATABASE_URL=url, CLAIM_TTL="1").until_subscribed()
    await shop.send_all(orders(5))
    await until(lambda: worker.said("payment.intent_created"), what="a ledger in use")
    await stripe.change_settings(latency_s=[1.5, 1.5])
    await shop.send_all([{"order_id": f"order-late-{number}", "amount": "1.00"} for number in range(20)])
    await until(partial(_is_asked, stripe, 20), what="Stripe to be asked, whose answer the ledger will not take")
    with frozen(postgres):
        await shop.send_all([{"order_id": f"order-later-{number}", "amount": "1.00"} for number in range(5)])
        await until(lambda: _is_taken(shop), what="the worker to have them in work")
        started = time.monotonic()
        assert await worker.stop() == 0
        assert time.monotonic() - started < 10
    assert worker.said("consumer.cut")
    assert "never retrieved" not in worker.log.read_text()


async def _is_asked(stripe: SandboxControl, count: int) -> bool:
    return len(await stripe.record(method="POST")) >= count


def _takes_sigterm(worker: WorkerProcess) -> bool:
    """Whether the process has a handler of its own for it."""
    status = Path(f"/proc/{worker.process.pid}/status").read_text()
    caught = int(status.split("SigCgt:")[1].split()[0], 16)
    return bool(caught >> (signal.SIGTERM - 1) & 1)
