"""What a worker watches beside its orders: the gauges of alarms, and a Stripe that nobody has asked yet."""

import asyncio
import json
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import aiohttp
import sqlalchemy as sa

from tests.harness import Shop, WorkerProcess, run_cli, until
from tests.ledger import letter_steps, steps
from worker.app import LETTERS_AT_ONCE
from worker.ledger import moves
from worker.ledger.ledger import Ledger
from worker.ledger.schema import LETTERS, WORKERS
from worker.letter import LetterState
from worker.payment import Operation
from worker.sandbox.stripe_control import SandboxControl

MakeWorker = Callable[..., WorkerProcess]
HORIZON_S = 82_800
# Nobody but the test comes back for the calls that it leaves open.
LEFT_ALONE = {"RESOLVE_AFTER": "86400", "STRIPE_KEY_HORIZON": str(HORIZON_S)}


async def get(worker: WorkerProcess, path: str) -> tuple[int, str]:
    async with aiohttp.ClientSession() as session, session.get(worker.http + path) as answer:
        return answer.status, await answer.text()


async def figures(worker: WorkerProcess) -> dict[str, float]:
    """The gauges and counters, by name with labels."""
    lines = (await get(worker, "/metrics"))[1].splitlines()
    return {name: float(value) for name, _, value in (line.rpartition(" ") for line in lines if line[:1] != "#")}


async def until_figures(worker: WorkerProcess, wanted: dict[str, float]) -> dict[str, float]:
    """Wait for figures, named without their common prefix."""
    named = {f"payment_worker_{name}": value for name, value in wanted.items()}

    async def are_so() -> dict[str, float] | None:
        found = await figures(worker)
        return found if named.items() <= found.items() else None

    found: dict[str, float] = await until(are_so, what=f"the figures {named}")
    return found


async def left_open(ledger: Ledger, order_id: str, *, age_s: float, **order: Any) -> Operation:
    """A call that some worker was asking when it was killed."""
    await steps.open_payment(ledger, order_id, **order)
    asked = datetime.now(UTC) - timedelta(seconds=age_s)
    return await steps.claim(ledger, order_id, worker_id="w-gone", claim=f"w-gone/{order_id}", now=asked)


async def test_the_gauges_of_letters_follow_them_to_another_state_and_to_zero(
    make_worker: MakeWorker, shop: Shop, environment: dict[str, str]
) -> None:
    worker = await make_worker().until_subscribed()
    await until_figures(
        worker, {'letters{state="open"}': 0, 'letters{state="discarded"}': 0, "oldest_open_letter_seconds": 0}
    )

    await shop.send({"order_id": "order-1", "amount": "12.50", "capture_method": "by hand"})
    await shop.send({"order_id": "order-2", "amount": "500", "currency": "jpy", "capture_method": "by hand"})
    found = await until_figures(
        worker,
        {
            'letters{state="open"}': 2,
            'open_letters_value{currency="usd"}': 12.5,
            'open_letters_value{currency="jpy"}': 500,
        },
    )
    assert 0 < found["payment_worker_oldest_open_letter_seconds"] < 60

    words = ("dead-letters", "discard", "--all", "--why", "a test")
    done = await asyncio.to_thread(run_cli, environment, *words)
    assert done.returncode == 0, done.stderr
    await until_figures(
        worker,
        {
            'letters{state="open"}': 0,
            'letters{state="discarded"}': 2,
            'letters{state="replaying"}': 0,
            'letters{state="resolved"}': 0,
            'open_letters_value{currency="usd"}': 0,
            'open_letters_value{currency="jpy"}': 0,
            "oldest_open_letter_seconds": 0,
        },
    )


async def test_the_gauges_of_letters_being_replayed_follow_them_to_their_outcome(
    make_worker: MakeWorker, environment: dict[str, str]
) -> None:
    worker = await make_worker().until_subscribed()
    await until_figures(worker, {'letters{state="replaying"}': 0, "oldest_replaying_letter_seconds": 0})

    async with Ledger(environment["DATABASE_URL"]) as ledger:
        for letter_id, amount_minor, currency in (("dl_1", 1250, "usd"), ("dl_2", 500, "jpy")):
            await letter_steps.land(ledger, letter_id=letter_id, amount_minor=amount_minor, currency=currency)
            await letter_steps.bring_to(ledger, LetterState.REPLAYING, letter_id)
        taken = datetime.now(UTC) - timedelta(minutes=20)
        await steps.execute(ledger, sa.update(LETTERS).values(moved_at=taken))
        found = await until_figures(
            worker,
            {'replaying_letters_value{currency="usd"}': 12.5, 'replaying_letters_value{currency="jpy"}': 500},
        )
        assert 1200 < found["payment_worker_oldest_replaying_letter_seconds"] < 1260

        await letter_steps.resolve(ledger, "dl_1")
        await letter_steps.resolve(ledger, "dl_2")
    await until_figures(
        worker,
        {
            'letters{state="resolved"}': 2,
            "oldest_replaying_letter_seconds": 0,
            'replaying_letters_value{currency="usd"}': 0,
            'replaying_letters_value{currency="jpy"}': 0,
        },
    )


async def test_letters_that_cannot_be_kept_are_told_hold_nothing_else_up_and_are_tried_again_ever_later(
    make_worker: MakeWorker, shop: Shop, environment: dict[str, str]
) -> None:
    worker = await make_worker().until_subscribed()
    assert (await figures(worker))["payment_worker_held_letters"] == 0
    async with Ledger(environment["DATABASE_URL"]) as ledger:
        await steps.execute(ledger, letter_steps.REFUSE_LETTERS)
        await shop.send({"order_id": "order-1", "amount": "0"})
        await until_figures(worker, {"held_letters": 1})
        code, body = await get(worker, "/readyz")
        assert (code, json.loads(body)["ready"]) == (200, True), "orders flow"
        assert json.loads(body)["concerns"]["dead letters"].startswith("1 in the broker's queue could not be kept")

        await shop.send({"order_id": "another", "amount": "0"})
        await until(lambda: worker.said("letter.kept"), what="another letter to be kept")
        [first, second, third] = await until(lambda: tries_of(worker, 3), what="two more tries")
        assert third - second > second - first > timedelta(seconds=1)
        assert (await figures(worker))["payment_worker_held_letters"] == 1, "between two tries as well"

        await steps.execute(ledger, letter_steps.REFUSE_NO_LETTERS)
    await until_figures(worker, {"held_letters": 0, 'letters{state="open"}': 2})
    assert json.loads((await get(worker, "/readyz"))[1])["concerns"] == {}


def tries_of(worker: WorkerProcess, count: int) -> list[datetime]:
    """When letters could not be kept, once there were so many times."""
    tries = [datetime.fromisoformat(line["timestamp"]) for line in worker.said("letter.bug")]
    return tries[:count] if len(tries) >= count else []


async def test_more_letters_than_may_be_out_are_kept_once_they_can_be(
    make_worker: MakeWorker, shop: Shop, environment: dict[str, str]
) -> None:
    worker = await make_worker(DEAD_LETTER_CEILING="1").until_subscribed()
    count = LETTERS_AT_ONCE + 10
    async with Ledger(environment["DATABASE_URL"]) as ledger:
        await steps.execute(ledger, letter_steps.REFUSE_LETTERS)
        await shop.send_all([{"order_id": f"order-{number}", "amount": "0"} for number in range(count)])
        await until_figures(worker, {"held_letters": LETTERS_AT_ONCE})
        await steps.execute(ledger, letter_steps.REFUSE_NO_LETTERS)
    await until_figures(worker, {"held_letters": 0, 'letters{state="open"}': count})


async def test_the_gauges_of_money_follow_the_calls_that_hold_it_up(
    make_worker: MakeWorker, shop: Shop, environment: dict[str, str]
) -> None:
    worker = await make_worker(**LEFT_ALONE).until_subscribed()
    await until_figures(worker, {"unknown_outcomes": 0, "keys_near_horizon": 0, "oldest_key_seconds": 0})

    async with Ledger(environment["DATABASE_URL"]) as ledger:
        lost = await left_open(ledger, "order-1", age_s=60, amount="12.50")
        lost = await ledger.run(
            moves.mark_unknown, lost, claim="w-gone/order-1", because="stored_error", now=datetime.now(UTC)
        )
        await left_open(ledger, "order-2", age_s=0.8 * HORIZON_S, amount="7.00")
        await left_open(ledger, "order-3", age_s=0.7 * HORIZON_S, amount="7.00")
        found = await until_figures(
            worker, {"unknown_outcomes": 1, 'unknown_outcomes_value{currency="usd"}': 12.5, "keys_near_horizon": 1}
        )
        assert 0.8 * HORIZON_S < found["payment_worker_oldest_key_seconds"] < 0.8 * HORIZON_S + 60

        await ledger.run(moves.end_absent, lost, claim="w-gone/order-1", evidence={"pages": 1}, now=datetime.now(UTC))
    await until_figures(
        worker, {"unknown_outcomes": 0, 'unknown_outcomes_value{currency="usd"}': 0, "keys_near_horizon": 1}
    )


async def test_the_help_of_the_orders_names_their_outcomes_as_they_are_counted(
    make_worker: MakeWorker, shop: Shop
) -> None:
    worker = await make_worker().until_subscribed()
    await shop.send({"order_id": "order-1", "amount": "1.00"})
    await shop.send({"order_id": "order-2", "amount": "0"})

    async def counted() -> str | None:
        text = (await get(worker, "/metrics"))[1]
        return text if text.count("payment_worker_orders_total{") == 2 else None

    lines = (await until(counted, what="both orders to be counted")).splitlines()
    [told] = [line for line in lines if line.startswith("# HELP payment_worker_orders_total ")]
    named = {
        line.split('outcome="')[1].split('"')[0] for line in lines if line.startswith("payment_worker_orders_total{")
    }
    assert named == {"Done", "DeadLetter"}
    assert told.endswith("by how: Done, Retry, DeadLetter, GiveBack.")


# A Stripe that nobody has asked yet


async def test_a_worker_started_with_a_revoked_key_says_so_without_an_order_and_sees_it_good_again(
    make_worker: MakeWorker, shop: Shop, stripe: SandboxControl, environment: dict[str, str]
) -> None:
    await stripe.change_settings(revoked_keys=[environment["STRIPE_API_KEY"]])
    worker = await make_worker().until_subscribed()

    async def unready() -> str | None:
        status, body = await get(worker, "/readyz")
        return body if status == 503 else None

    body = await until(unready, what="the worker to be unready")
    assert "refuses our key" in body
    assert environment["STRIPE_API_KEY"] not in body
    assert "subscription" not in body, "orders are taken; nobody knows yet whether they would fail"

    await stripe.change_settings(revoked_keys=[])

    async def ready() -> bool:
        return (await get(worker, "/readyz"))[0] == 200

    await until(ready, what="the worker to be ready")
    assert not worker.said("watch.bug")


async def test_a_worker_started_while_stripe_is_down_says_so_and_takes_orders_once_it_is_back(
    make_worker: MakeWorker, shop: Shop, stripe: SandboxControl
) -> None:
    await shop.subscribe()
    await stripe.add_fault("503", times=None)
    worker = await make_worker().until_subscribed()

    async def unready() -> bool:
        status, body = await get(worker, "/readyz")
        return status == 503 and '"stripe"' in body

    await until(unready, what="the worker to be unready")
    await stripe.clear_faults()

    async def ready() -> bool:
        return (await get(worker, "/readyz"))[0] == 200

    await until(ready, what="the worker to be ready")
    await shop.send({"order_id": "order-1", "amount": "1.00"})
    await shop.until_events(1)


async def test_a_stripe_that_hangs_from_the_start_costs_no_sign_of_life(
    make_worker: MakeWorker, stripe: SandboxControl, environment: dict[str, str]
) -> None:
    """Without one, others would take this worker's claims over."""
    await stripe.add_fault("hang", times=None)
    worker = await make_worker().until_subscribed()
    await stripe.wait_for_rows(1, method="GET")

    async with Ledger(environment["DATABASE_URL"]) as ledger:

        async def seen() -> datetime | None:
            return await ledger.run(lambda conn: conn.scalar(sa.select(WORKERS.c.seen_at)))

        first = await until(seen, what="a sign of life")

        async def seen_later() -> bool:
            moment = await seen()
            return moment is not None and moment > first + timedelta(seconds=2)

        await until(seen_later, what="more signs of life", deadline_s=10)
    assert [row["outcome"] for row in await stripe.record(method="GET")] == ["open"], "it is still being asked"
    assert await worker.stop() == 0
