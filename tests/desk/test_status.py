"""One screen: what is well, what is not, and what could not be seen; the exit code says whether a person is needed."""

import asyncio
import json
import re
import signal
import subprocess
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
import sqlalchemy as sa
from aiohttp import web
from aiohttp.test_utils import TestServer

from tests.harness import Shop, WorkerProcess, on_terminal, run_cli, until
from tests.ledger import letter_steps, steps
from worker.admission import CREATE
from worker.bus.queue_depths import queue_depths
from worker.errors import BusUnavailable
from worker.ledger import moves, turns
from worker.ledger.ledger import Ledger
from worker.ledger.schema import PACE
from worker.retry_policy import RUNGS_S
from worker.sandbox.broker import PrivateBroker
from worker.sandbox.stripe_control import SandboxControl

MakeWorker = Callable[..., WorkerProcess]
HORIZON_S = 82_800
NOWHERE = "amqp://user:hunter2@127.0.0.1:9/"
# Nobody but the test comes back for the calls that it leaves open.
LEFT_ALONE = {"RESOLVE_AFTER": "86400"}


async def cli(environment: dict[str, str], *words: str) -> subprocess.CompletedProcess[str]:
    return await asyncio.to_thread(run_cli, environment, "status", *words)


async def status(environment: dict[str, str], *, code: int) -> dict[str, Any]:
    done = await cli(environment, "--json")
    assert done.returncode == code, done.stdout + done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    assert bool(found["needs_a_person"]) == bool(code)
    return found


def lines_of(shown: str) -> list[str]:
    return [" ".join(line.split()) for line in shown.splitlines()]


def with_http(environment: dict[str, str], worker: WorkerProcess) -> dict[str, str]:
    """As the operator has it on the worker's machine."""
    return environment | {"HTTP_PORT": worker.http.rpartition(":")[2]}


@pytest.fixture
async def ledger(environment: dict[str, str]) -> AsyncIterator[Ledger]:
    """The worker's ledger, migrated."""
    migrated = await asyncio.to_thread(run_cli, environment, "migrate")
    assert migrated.returncode == 0, migrated.stderr
    async with Ledger(environment["DATABASE_URL"]) as ledger:
        yield ledger


def ago(seconds: float) -> datetime:
    return datetime.now(UTC) - timedelta(seconds=seconds)


# Who takes orders


async def test_a_worker_at_work_needs_nobody(
    ledger_url: str, make_worker: MakeWorker, environment: dict[str, str]
) -> None:
    worker = await make_worker().until_subscribed()
    here = with_http(environment, worker)

    async def taken_in() -> bool:
        found = json.loads((await cli(here, "--json")).stdout)
        return bool(found["queues"][environment["DEAD_LETTERS_QUEUE"]]["consumers"])

    await until(taken_in, what="the intake to be subscribed")
    found = await status(here, code=0)
    assert (found["subscribed"], found["worker"]) == (True, {"address": worker.http, "reasons": {}})
    assert found["queues"] == {
        environment["ORDERS_QUEUE"]: {"ready": 0, "consumers": 1},
        **{f"{environment['RETRY_QUEUE_PREFIX']}.{rung}s": {"ready": 0, "consumers": 0} for rung in RUNGS_S},
        environment["DEAD_LETTERS_QUEUE"]: {"ready": 0, "consumers": 1},
    }
    assert found["ledger"]["workers_alive"] == 1
    assert found["ledger"]["pace"] == {"per_second": 10000, "limit": 10000, "slowed": False}
    assert found["ledger"]["letters"]["by_state"] == {"open": 0, "replaying": 0, "resolved": 0, "discarded": 0}
    assert found["ledger"]["unknown_outcomes"] == {"count": 0, "oldest_s": None, "value": {}}
    assert (found["worker_fault"], found["queues_fault"], found["ledger_fault"]) == (None, None, None)

    shown = await cli(here)
    assert shown.returncode == 0
    assert f"orders taken yes: the worker at {worker.http} says so" in lines_of(shown.stdout)
    assert "Nothing needs a person." in shown.stdout


async def test_without_http_the_broker_is_asked_for_consumers(
    make_worker: MakeWorker, environment: dict[str, str]
) -> None:
    worker = await make_worker().until_subscribed()

    found = await status(environment, code=0)
    assert found["subscribed"] is True
    assert "the orders queue has 1 consumer;" in found["subscribed_because"]
    assert found["worker"] == {"address": None, "reasons": None}
    assert "HTTP_PORT is 0" in found["worker_fault"]

    assert await worker.stop() == 0
    found = await status(environment | {"HTTP_PORT": "9"}, code=1)
    assert found["subscribed"] is False
    assert "no worker answers at http://127.0.0.1:9" in found["subscribed_because"]
    assert any("orders are not taken" in concern for concern in found["needs_a_person"])


async def test_a_worker_that_is_not_subscribed_says_why(make_worker: MakeWorker, environment: dict[str, str]) -> None:
    worker = make_worker(AMQP_URL=NOWHERE)
    await until(lambda: worker.said("consumer.waiting"), what="the worker to wait")

    done = await cli(with_http(environment, worker))

    assert done.returncode == 1
    assert "orders taken no: no connection to the broker at 127.0.0.1:9" in " ".join(lines_of(done.stdout))


async def test_a_worker_whose_key_is_refused_needs_a_person(
    make_worker: MakeWorker, environment: dict[str, str], stripe: SandboxControl
) -> None:
    await stripe.change_settings(revoked_keys=[environment["STRIPE_API_KEY"]])
    worker = await make_worker().until_subscribed()

    async def is_told() -> dict[str, Any] | None:
        found: dict[str, Any] = json.loads((await cli(with_http(environment, worker), "--json")).stdout)
        return found if found["needs_a_person"] else None

    found = await until(is_told, what="the first probe")
    assert found["subscribed"] is True
    [concern] = found["needs_a_person"]
    assert concern.startswith("the worker says: stripe: ")
    assert environment["STRIPE_API_KEY"] not in concern


async def test_a_frozen_worker_is_told_and_the_broker_asked(
    make_worker: MakeWorker, environment: dict[str, str]
) -> None:
    worker = await make_worker().until_subscribed()
    worker.process.send_signal(signal.SIGSTOP)
    try:
        found = json.loads((await cli(with_http(environment, worker), "--json")).stdout)
    finally:
        worker.process.send_signal(signal.SIGCONT)

    assert found["worker_fault"] == f"nothing answers at {worker.http} within 2 s"
    assert "the orders queue has 1 consumer" in found["subscribed_because"]


@pytest.mark.parametrize(
    "answer",
    [web.Response(text="hello"), web.json_response({"ready": True}), web.json_response([]), web.Response(body=b"\xff")],
    ids=["text", "object", "array", "bytes"],
)
async def test_another_program_on_the_port_is_not_taken_for_the_worker(
    answer: web.Response, make_worker: MakeWorker, environment: dict[str, str]
) -> None:
    await make_worker().until_subscribed()
    async with other_program(answer) as port:
        found = await status(environment | {"HTTP_PORT": str(port)}, code=0)

    assert found["worker_fault"] == f"what answers at http://127.0.0.1:{port} is no payment-worker"
    assert found["subscribed"] is True


@asynccontextmanager
async def other_program(answer: web.Response) -> AsyncIterator[int]:
    async def readyz(_: web.Request) -> web.Response:
        return answer

    app = web.Application()
    app.router.add_get("/readyz", readyz)
    async with TestServer(app) as server:
        assert server.port
        yield server.port


# What cannot be reached


async def test_queues_that_are_not_there_yet_are_told_one_by_one(
    ledger: Ledger, shop: Shop, environment: dict[str, str]
) -> None:
    retry = f"{environment['RETRY_QUEUE_PREFIX']}.5s"
    await shop.channel.declare_queue(retry, durable=True, arguments={"x-queue-type": "quorum"})
    await shop.send_to(retry, {"order_id": "order-1"})

    found = await status(environment, code=1)
    shown = await cli(environment)

    assert {name for name, depth in found["queues"].items() if depth} == {retry}
    assert found["queues"][retry] == {"ready": 1, "consumers": 0}
    assert len(found["queues"]) == 2 + len(RUNGS_S)
    assert f"{environment['ORDERS_QUEUE']} not there yet –" in lines_of(shown.stdout)
    assert f"{retry} 1 0" in lines_of(shown.stdout)
    assert found["subscribed"] is False


async def test_the_depths_of_many_queues_come_over_one_connection_past_those_that_are_missing(
    broker: PrivateBroker, shop: Shop
) -> None:
    await shop.declare_worker_queue()
    orders, letters = shop.names["ORDERS_QUEUE"], shop.names["DEAD_LETTERS_QUEUE"]
    for number in range(3):
        await shop.send({"order_id": f"order-{number}"})
    await until(lambda: has_ready(shop, orders, 3), what="the orders in the queue")

    found = await queue_depths(broker.amqp_url, [f"{orders}.no", orders, f"{orders}.nor", letters])

    assert found == {f"{orders}.no": None, orders: (3, 0), f"{orders}.nor": None, letters: (0, 0)}
    with pytest.raises(BusUnavailable):
        await queue_depths(NOWHERE, [orders])


async def has_ready(shop: Shop, queue: str, count: int) -> bool:
    return await shop.ready_count(queue) == count


async def test_without_a_broker_address_the_rest_is_shown(make_worker: MakeWorker, environment: dict[str, str]) -> None:
    worker = await make_worker().until_subscribed()
    bare = {name: value for name, value in environment.items() if name not in ("AMQP_URL", "STRIPE_API_KEY")}

    found = await status(bare, code=1)
    assert (found["subscribed"], found["queues"], found["queues_fault"]) == (None, None, "AMQP_URL is not set")
    assert found["ledger"]["workers_alive"] == 1
    assert "set AMQP_URL" in " ".join(found["needs_a_person"])
    assert "queues AMQP_URL is not set" in lines_of((await cli(bare)).stdout)
    assert (await status(with_http(bare, worker), code=0))["subscribed"] is True, "the worker can tell all the same"

    assert await worker.stop() == 0
    found = await status(bare, code=1)
    assert found["subscribed"] is False
    assert "no worker that is alive" in found["subscribed_because"]


async def test_a_broker_that_is_away_is_told_without_its_password_and_the_rest_is_shown(
    ledger: Ledger, environment: dict[str, str]
) -> None:
    done = await cli(environment | {"AMQP_URL": NOWHERE})

    told = " ".join(lines_of(done.stdout))
    assert done.returncode == 1
    assert "queues no connection to the broker at 127.0.0.1:9" in told
    assert "open letters 0" in told
    assert "hunter2" not in done.stdout + done.stderr
    assert done.stderr == ""


@pytest.mark.parametrize("kind", ["no file", "no folder", "no server"])
async def test_a_ledger_that_is_away_is_told_and_the_rest_is_shown(
    kind: str, make_worker: MakeWorker, environment: dict[str, str], tmp_path: Any
) -> None:
    worker = await make_worker().until_subscribed()
    url = {
        "no file": f"sqlite:///{tmp_path}/other.db",
        "no folder": f"sqlite:///{tmp_path}/no/such/payments.db",
        "no server": "postgresql://user:hunter2@127.0.0.1:9/payments",
    }[kind]
    away = with_http(environment, worker) | {"DATABASE_URL": url}

    found = await status(away, code=1)
    shown = await cli(away)

    assert found["subscribed"] is True
    assert found["queues"][environment["ORDERS_QUEUE"]] == {"ready": 0, "consumers": 1}
    assert found["ledger"] is None
    assert found["ledger_fault"]
    assert [concern for concern in found["needs_a_person"] if concern.startswith("the ledger cannot be read")]
    assert "ledger cannot be read: " in " ".join(lines_of(shown.stdout))
    assert "hunter2" not in json.dumps(found) + shown.stdout + shown.stderr
    assert not list(tmp_path.glob("other.db*")), "looking makes no file"


# What is at risk


async def test_open_letters_are_shown_by_cause_with_their_age_and_value(
    ledger: Ledger, environment: dict[str, str]
) -> None:
    for number, (count, reason) in enumerate(zip((3, 1, 2, 1, 4, 1), "abcdef", strict=True)):
        for each in range(count):
            letter = letter_steps.letter(
                f"dl_{number}_{each}",
                reason=f"cause_{reason}",
                amount_minor=1250,
                currency="eur" if reason == "c" else "usd",
                landing_id=f"a_{number}_{each}",
                landed_at=ago(7200 + each),
            )
            await letter_steps.land(ledger, letter)
    await letter_steps.bring_to(ledger, letter_steps.LetterState.REPLAYING, "dl_0_0")

    found = await status(environment, code=1)
    shown = lines_of((await cli(environment)).stdout)

    letters = found["ledger"]["letters"]
    assert (letters["by_state"]["open"], letters["by_state"]["replaying"]) == (11, 1)
    assert letters["value"] == {"usd": "112.50", "eur": "25.00"}
    assert 7200 < letters["oldest_open_s"] < 7260
    assert [group["count"] for group in letters["groups"]] == [4, 2, 2, 1, 1]
    assert "cause_e" in letters["groups"][0]["cause"]
    assert letters["groups"][0]["value"] == {"usd": "50.00"}
    assert any("11 open letters" in concern for concern in found["needs_a_person"])
    assert "open letters 11, the oldest 2 h, 25.00 EUR, 112.50 USD" in shown
    assert "replaying 1" in shown
    assert f"{letters['groups'][0]['group']} 4 2 h 50.00 USD cause_e: amount: is missing" in shown
    assert "5 of 6 groups shown; see dead-letters groups" in shown


async def test_letters_that_nobody_takes_in_are_told(ledger: Ledger, shop: Shop, environment: dict[str, str]) -> None:
    await shop.declare_worker_queue()
    queue = environment["DEAD_LETTERS_QUEUE"]
    await shop.send_to(queue, {"order_id": "order-1"})
    await until(lambda: has_ready(shop, queue, 1), what="the letter in the queue")

    found = await status(environment, code=1)

    assert "1 dead letter in the broker's queue, and no worker takes them in" in found["needs_a_person"]


async def test_unknown_outcomes_and_old_keys_are_told_with_their_money_and_age(
    ledger: Ledger, make_worker: MakeWorker, environment: dict[str, str]
) -> None:
    await left_open(ledger, "order-1", age_s=7200, amount="12.50")
    await make_worker(**LEFT_ALONE).until_subscribed()
    assert (await status(environment, code=0))["ledger"]["keys_near_horizon"]["count"] == 0

    lost = await left_open(ledger, "order-2", age_s=10_800, amount="7.00")
    await ledger.run(moves.mark_unknown, lost, claim="w-gone/order-2", because="stored_error", now=ago(7000))
    found = await status(environment, code=1)
    assert found["ledger"]["unknown_outcomes"]["value"] == {"usd": "7.00"}
    assert 10_800 <= found["ledger"]["unknown_outcomes"]["oldest_s"] < 10_900
    assert found["needs_a_person"] == ["1 call to Stripe with an unknown outcome"]

    await left_open(ledger, "order-3", age_s=0.8 * HORIZON_S, amount="500", currency="jpy")
    await left_open(ledger, "order-4", age_s=0.9 * HORIZON_S, amount="5.00")
    shown = lines_of((await cli(environment)).stdout)
    assert "unknown outcomes 1, the oldest 3 h, 7.00 USD" in shown
    assert "keys near horizon 2, the oldest 21 h, 500 JPY, 5.00 USD" in shown
    assert "- 2 keys near the horizon: past it, asking again tells nothing" in shown


async def left_open(ledger: Ledger, order_id: str, *, age_s: float, **order: Any) -> Any:
    """A call that some worker was asking when it was killed."""
    await steps.open_payment(ledger, order_id, **order)
    return await steps.claim(ledger, order_id, worker_id="w-gone", claim=f"w-gone/{order_id}", now=ago(age_s))


async def test_events_need_a_person_once_they_are_untold_for_a_minute(
    ledger: Ledger, make_worker: MakeWorker, environment: dict[str, str]
) -> None:
    """No queue of a subscriber is there to take them."""
    await make_worker().until_subscribed()
    await steps.decide(ledger, "order-1", now=ago(20))
    found = await status(environment, code=0)
    assert found["ledger"]["untold_events"]["count"] == 1

    await steps.decide(ledger, "order-2", now=ago(90))
    found = await status(environment, code=1)
    assert found["ledger"]["untold_events"]["count"] == 2
    assert found["ledger"]["untold_events"]["oldest_s"] >= 90
    assert found["needs_a_person"] == ["2 events untold: is a subscriber's queue missing?"]


async def test_a_pace_that_stripe_has_slowed_is_told_and_needs_nobody(
    ledger_url: str, ledger: Ledger, make_worker: MakeWorker, environment: dict[str, str]
) -> None:
    await make_worker().until_subscribed()
    limit = 100.0
    await ledger.run(turns.slow_down, endpoint=CREATE, limit=limit, now=time.time())
    await steps.execute(ledger, sa.update(PACE).values(slowed_to=30.0, slowed_at=PACE.c.slowed_at + 60))
    slowed = environment | {"STRIPE_RATE_LIMIT": str(limit)}

    pace = (await status(slowed, code=0))["ledger"]["pace"]
    shown = (await cli(slowed)).stdout

    assert pace == {"per_second": 30, "limit": limit, "slowed": True}
    assert "30 of 100 calls a second, slowed: Stripe refused calls for their rate" in shown


# The screen


async def test_it_fits_sixty_columns_and_folds_no_id(ledger: Ledger, environment: dict[str, str]) -> None:
    hostile = "\x1b[31mred [bold]and[/bold] " + "very " * 30
    letter = replace(letter_steps.letter(error=hostile), cause=f"bad_message: {hostile}"[:200], landed_at=ago(60))
    await letter_steps.land(ledger, letter)
    await left_open(ledger, "order-1", age_s=0.9 * HORIZON_S)

    names = {"ORDERS_QUEUE": "q" * 100}
    code, shown = await asyncio.to_thread(on_terminal, environment | names, ["status"], columns=60)

    assert code == 1
    lines = [line.rstrip() for line in shown.splitlines()]
    table = lines[: lines.index("Needs a person:")]
    assert max(map(len, table)) <= 60
    assert any(line.startswith(letter.group_id + " ") for line in table)
    assert environment["DEAD_LETTERS_QUEUE"] in shown
    assert sum(map(len, re.findall("q{2,}", shown))) == 100, "a long name is folded, not cut"
    assert "\\x1b[31mred" in shown.replace("\n", "")
    assert "[bold]and[/bold]" in " ".join(shown.split())
    assert len(table) < 50, "one screen"
