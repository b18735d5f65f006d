"""One screen: what is well, what is not, and what could not be seen; the exit code says whether a person is needed."""

import argparse
import asyncio
import json
import re
import signal
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, redirect_stdout
from dataclasses import asdict, replace
from datetime import UTC, datetime, timedelta
from io import StringIO
from typing import Any

import pytest
import sqlalchemy as sa
from aiohttp import web
from aiohttp.test_utils import TestServer

from tests.harness import Shop, WorkerProcess, on_terminal, run_cli, until
from tests.ledger import alone, letter_steps, steps
from tests.stripe_story import Story
from worker.admission import CREATE
from worker.bus.queue_depths import queue_depths
from worker.desk.status import show
from worker.errors import BusUnavailable
from worker.ledger import inbox, moves, turns
from worker.ledger.engine import open_engine
from worker.ledger.ledger import Ledger
from worker.ledger.migrate import migrate
from worker.ledger.schema import DISPUTES, LETTERS, PACE, REFUNDS, REPLAY_ITEMS, REPLAYS
from worker.pace import SLOWEST
from worker.payment_life import Dispute, Refund
from worker.retry_policy import RUNGS_S
from worker.sandbox.broker import PrivateBroker
from worker.sandbox.stripe_control import SandboxControl
from worker.settings import read_settings
from worker.stripe_event import StripeEvent, read_stripe_event

MakeWorker = Callable[..., WorkerProcess]
HORIZON_S = 82_800
NOWHERE = "amqp://user:hunter2@127.0.0.1:9/"
# Nobody but the test comes back for the calls that it leaves open.
LEFT_ALONE = {"RESOLVE_AFTER": "86400"}


async def look(environment: dict[str, str], *, as_json: bool = False) -> tuple[int, str]:
    """The command's exit code and what it prints, without the second that a process of its own would take."""
    settings = read_settings(environment, needed=frozenset({"DATABASE_URL"}))
    with redirect_stdout(StringIO()) as printed:
        code = await show(settings, argparse.Namespace(json=as_json))
    return code, printed.getvalue()


async def status(environment: dict[str, str], *, code: int) -> dict[str, Any]:
    """What it tells programs."""
    returned, printed = await look(environment, as_json=True)
    assert returned == code, printed
    found: dict[str, Any] = json.loads(printed)
    assert bool(found["needs_a_person"]) == bool(code)
    return found


async def screen(environment: dict[str, str], *, code: int) -> list[str]:
    """What it tells people, in lines without the space between columns."""
    returned, printed = await look(environment)
    assert returned == code, printed
    return lines_of(printed)


def lines_of(shown: str) -> list[str]:
    return [" ".join(line.split()) for line in shown.splitlines()]


def with_http(environment: dict[str, str], worker: WorkerProcess) -> dict[str, str]:
    """As the operator has it on the worker's machine."""
    return environment | {"HTTP_PORT": worker.http.rpartition(":")[2]}


@pytest.fixture
async def ledger(environment: dict[str, str]) -> AsyncIterator[Ledger]:
    """The worker's ledger, migrated."""
    engine = open_engine(environment["DATABASE_URL"])
    migrate(engine)
    engine.dispose()
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
        found = json.loads((await look(here, as_json=True))[1])
        return bool(found["queues"][environment["DEAD_LETTERS_QUEUE"]]["consumers"])

    await until(taken_in, what="the intake to be subscribed")
    done = await asyncio.to_thread(run_cli, here, "status", "--json")
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(done.stdout)
    assert found["subscribed"] is True
    assert found["worker"] == {"address": worker.http, "reasons": {}, "concerns": {}}
    assert found["queues"] == {
        environment["ORDERS_QUEUE"]: {"ready": 0, "consumers": 1},
        **{f"{environment['RETRY_QUEUE_PREFIX']}.{rung}s": {"ready": 0, "consumers": 0} for rung in RUNGS_S},
        environment["DEAD_LETTERS_QUEUE"]: {"ready": 0, "consumers": 1},
    }
    assert found["ledger"]["workers_alive"] == 1
    assert found["ledger"]["pace"] == {"per_second": 10000, "limit": 10000, "slowed": False}
    assert found["ledger"]["letters"]["by_state"] == {"open": 0, "replaying": 0, "resolved": 0, "discarded": 0}
    assert found["ledger"]["unknown_outcomes"] == {"count": 0, "oldest_s": None, "value": {}}
    assert found["ledger"]["letters"]["replaying"] == {"count": 0, "oldest_s": None, "value": {}}
    assert found["ledger"]["interrupted_replays"] == []
    assert (found["worker_fault"], found["queues_fault"], found["ledger_fault"]) == (None, None, None)

    done = await asyncio.to_thread(run_cli, here, "status")
    assert done.returncode == 0
    shown = lines_of(done.stdout)
    assert f"orders taken yes: the worker at {worker.http} says so" in shown
    assert "interrupted replays 0" in shown
    assert "Nothing needs a person." in shown


async def test_without_http_the_broker_is_asked_for_consumers(
    make_worker: MakeWorker, environment: dict[str, str]
) -> None:
    worker = await make_worker().until_subscribed()

    found = await status(environment, code=0)
    assert found["subscribed"] is True
    assert "the orders queue has 1 consumer;" in found["subscribed_because"]
    assert found["worker"] == {"address": None, "reasons": None, "concerns": None}
    assert "HTTP_PORT is 0" in found["worker_fault"]

    assert await worker.stop() == 0
    found = await status(environment | {"HTTP_PORT": "9"}, code=1)
    assert found["subscribed"] is False
    assert "no worker answers at http://127.0.0.1:9" in found["subscribed_because"]
    assert any("orders are not taken" in concern for concern in found["needs_a_person"])


async def test_a_worker_that_is_not_subscribed_says_why(make_worker: MakeWorker, environment: dict[str, str]) -> None:
    worker = make_worker(AMQP_URL=NOWHERE)
    await until(lambda: worker.said("consumer.waiting"), what="the worker to wait")

    shown = await screen(with_http(environment, worker), code=1)

    assert "orders taken no: no connection to the broker at 127.0.0.1:9" in " ".join(shown)


async def test_a_worker_whose_key_is_refused_needs_a_person(
    make_worker: MakeWorker, environment: dict[str, str], stripe: SandboxControl
) -> None:
    await stripe.change_settings(revoked_keys=[environment["STRIPE_API_KEY"]])
    worker = await make_worker().until_subscribed()

    async def is_told() -> dict[str, Any] | None:
        found: dict[str, Any] = json.loads((await look(with_http(environment, worker), as_json=True))[1])
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
        found = json.loads((await look(with_http(environment, worker), as_json=True))[1])
    finally:
        worker.process.send_signal(signal.SIGCONT)

    assert found["worker_fault"] == f"nothing answers at {worker.http} within 2 s"
    assert "the orders queue has 1 consumer" in found["subscribed_because"]


async def test_another_program_on_the_port_is_not_taken_for_the_worker(
    make_worker: MakeWorker, environment: dict[str, str]
) -> None:
    await make_worker().until_subscribed()
    for body in (b"hello", b'{"ready": true}', b'{"reasons": []}', b"[]", b"\xff"):
        async with other_program(body) as port:
            found = await status(environment | {"HTTP_PORT": str(port)}, code=0)
        assert found["worker_fault"] == f"what answers at http://127.0.0.1:{port} is no payment-worker", body
        assert found["subscribed"] is True


async def test_what_a_worker_of_another_version_does_not_tell_is_not_missed(
    ledger: Ledger, environment: dict[str, str]
) -> None:
    for told in ({}, {"concerns": None}, {"concerns": ["?"]}):
        body = json.dumps({"ready": True, "reasons": {}} | told).encode()
        await ledger.run(moves.sign_of_life, "w-1", now=datetime.now(UTC))
        async with other_program(body) as port:
            found = await status(environment | {"HTTP_PORT": str(port)}, code=0)
        assert found["worker"] == {"address": f"http://127.0.0.1:{port}", "reasons": {}, "concerns": {}}, body


@asynccontextmanager
async def other_program(body: bytes) -> AsyncIterator[int]:
    async def readyz(_: web.Request) -> web.Response:
        return web.Response(body=body)

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
    shown = await screen(environment, code=1)

    assert {name for name, depth in found["queues"].items() if depth} == {retry}
    assert found["queues"][retry] == {"ready": 1, "consumers": 0}
    assert len(found["queues"]) == 2 + len(RUNGS_S)
    assert f"{environment['ORDERS_QUEUE']} not there yet –" in shown
    assert f"{retry} 1 0" in shown
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
    assert "queues AMQP_URL is not set" in await screen(bare, code=1)
    assert (await status(with_http(bare, worker), code=0))["subscribed"] is True, "the worker can tell all the same"

    assert await worker.stop() == 0
    found = await status(bare, code=1)
    assert found["subscribed"] is False
    assert "no worker that is alive" in found["subscribed_because"]


async def test_a_broker_that_is_away_is_told_without_its_password_and_the_rest_is_shown(
    ledger: Ledger, environment: dict[str, str]
) -> None:
    done = await asyncio.to_thread(run_cli, environment | {"AMQP_URL": NOWHERE}, "status")

    told = " ".join(lines_of(done.stdout))
    assert done.returncode == 1
    assert "queues no connection to the broker at 127.0.0.1:9" in told
    assert "open letters 0" in told
    assert "hunter2" not in done.stdout + done.stderr
    assert done.stderr == ""


async def test_a_ledger_that_is_away_is_told_and_the_rest_is_shown(
    make_worker: MakeWorker, environment: dict[str, str], tmp_path: Any
) -> None:
    worker = await make_worker().until_subscribed()
    for url in (
        f"sqlite:///{tmp_path}/other.db",
        f"sqlite:///{tmp_path}/no/such/payments.db",
        "postgresql://user:hunter2@127.0.0.1:9/payments",
        "postgresql://127.0.0.1:9/payments?user=user&password=hunter2",
    ):
        away = with_http(environment, worker) | {"DATABASE_URL": url}
        found = await status(away, code=1)

        assert found["subscribed"] is True
        assert found["queues"][environment["ORDERS_QUEUE"]] == {"ready": 0, "consumers": 1}
        assert found["ledger"] is None
        assert found["ledger_fault"]
        assert [concern for concern in found["needs_a_person"] if concern.startswith("the ledger cannot be read")]
        shown = " ".join(await screen(away, code=1))
        assert "ledger cannot be read: " in shown
        assert f"ledger address {found['ledger_address']}" in shown
        assert "hunter2" not in json.dumps(found) + shown
        assert not list(tmp_path.glob("other.db*")), "looking makes no file"

    done = await asyncio.to_thread(run_cli, away, "status")
    assert done.returncode == 1
    assert "ledger cannot be read: " in " ".join(lines_of(done.stdout))
    assert "hunter2" not in done.stdout + done.stderr


async def test_a_ledger_whose_file_is_not_there_is_told_with_the_setting_that_names_it_and_is_not_made(
    make_worker: MakeWorker, environment: dict[str, str], tmp_path: Any
) -> None:
    await make_worker().until_subscribed()
    path = tmp_path / "elsewhere.db"
    done = await asyncio.to_thread(run_cli, environment | {"DATABASE_URL": f"sqlite:///{path}"}, "status", "--json")

    assert done.returncode == 1
    found = json.loads(done.stdout)
    assert found["ledger_address"] == str(path)
    assert found["ledger_fault"] == f"no ledger is at {path}: set DATABASE_URL as the worker has it"
    assert "migrate" not in done.stdout
    assert not path.exists()


async def test_orders_that_no_worker_of_the_ledger_takes_show_that_it_is_another_ledger(
    ledger_url: str, make_worker: MakeWorker, environment: dict[str, str], tmp_path: Any
) -> None:
    """The worker's own is not taken for another one; a new and empty one is, whoever can tell of the worker."""
    worker = await make_worker().until_subscribed()
    here = with_http(environment, worker)
    assert (await screen(here, code=0))[-1] == "Nothing needs a person."

    other = {"DATABASE_URL": f"sqlite:///{tmp_path}/other.db"}
    assert (await asyncio.to_thread(run_cli, environment | other, "migrate")).returncode == 0
    for told_by, taken in (
        (environment, "the orders queue has 1 consumer"),
        ({name: value for name, value in here.items() if name != "AMQP_URL"}, "a worker takes orders"),
    ):
        [concern] = (await status(told_by | other, code=1))["needs_a_person"]
        assert concern == (
            f"{taken}, and no worker of the ledger at {tmp_path}/other.db is alive: "
            "another ledger? Set DATABASE_URL as the worker has it"
        )
    assert f"ledger {tmp_path}/other.db" in await screen(here | other, code=1)


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
    shown = await screen(environment, code=1)

    letters = found["ledger"]["letters"]
    assert (letters["by_state"]["open"], letters["by_state"]["replaying"]) == (11, 1)
    assert letters["value"] == {"usd": "112.50", "eur": "25.00"}
    assert 7200 < letters["oldest_open_s"] < 7260
    assert [group["count"] for group in letters["groups"]] == [4, 2, 2, 1, 1]
    assert "cause_e" in letters["groups"][0]["cause"]
    assert letters["groups"][0]["value"] == {"usd": "50.00"}
    assert any("11 open letters" in concern for concern in found["needs_a_person"])
    assert "open letters 11, the oldest 2 h, 25.00 EUR, 112.50 USD" in shown
    assert letters["replaying"]["value"] == {"usd": "12.50"}
    assert f"{letters['groups'][0]['group']} 4 2 h 50.00 USD cause_e: amount: is missing" in shown
    assert "5 of 6 groups shown; see dead-letters groups" in shown


async def test_letters_that_have_no_outcome_after_ten_minutes_need_a_person(
    ledger: Ledger, make_worker: MakeWorker, environment: dict[str, str]
) -> None:
    await make_worker().until_subscribed()
    for number, (amount_minor, currency) in enumerate(((1250, "usd"), (50, "usd"), (500, "jpy"))):
        await taken(ledger, f"dl_{number}", at=ago(590), amount_minor=amount_minor, currency=currency)
    await steps.execute(ledger, sa.update(REPLAY_ITEMS).values(moved_at=ago(30)))  # this is about the letters alone
    found = (await status(environment, code=0))["ledger"]["letters"]
    assert (found["replaying"]["count"], found["replaying"]["value"]) == (3, {"usd": "13.00", "jpy": "500"})
    assert 590 <= found["replaying"]["oldest_s"] < 600
    assert found["replaying_long"] == {"count": 0, "oldest_s": None, "value": {}}

    await steps.execute(ledger, sa.update(LETTERS).where(LETTERS.c.letter_id != "dl_0").values(moved_at=ago(7200)))
    found = await status(environment, code=1)
    shown = await screen(environment, code=1)

    assert found["ledger"]["letters"]["replaying_long"]["count"] == 2
    assert found["ledger"]["letters"]["replaying_long"]["value"] == {"usd": "0.50", "jpy": "500"}
    assert 7200 <= found["ledger"]["letters"]["replaying_long"]["oldest_s"] < 7260
    assert found["needs_a_person"] == [
        "letters replaying for more than 10 min without an outcome: 2, the oldest 2 h, 500 JPY, 0.50 USD: "
        "is a worker taking orders? See dead-letters list --state replaying"
    ]
    assert "replaying 3, the oldest 2 h, 500 JPY, 13.00 USD" in shown


async def test_an_interrupted_replay_needs_a_person_and_the_command_to_go_on_is_told(
    ledger: Ledger, make_worker: MakeWorker, environment: dict[str, str]
) -> None:
    await make_worker().until_subscribed()
    body = {"order_id": "order-1", "amount": "12.50"}
    await letter_steps.land(ledger, order_id="order-1", body=json.dumps(body).encode())
    await letter_steps.make_replay(ledger)
    made = ago(100)
    await steps.execute(ledger, sa.update(REPLAYS).values(made_at=made))
    await steps.execute(ledger, sa.update(REPLAY_ITEMS).values(moved_at=made))
    found = await status(environment, code=1)
    assert found["ledger"]["interrupted_replays"] == [], "somebody may be at it"
    assert found["needs_a_person"] == ["1 open letter: see dead-letters groups"]

    made = ago(130)
    await steps.execute(ledger, sa.update(REPLAYS).values(made_at=made))
    await steps.execute(ledger, sa.update(REPLAY_ITEMS).values(moved_at=made))
    found = await status(environment, code=1)
    shown = await screen(environment, code=1)

    resume = "payment-worker dead-letters replay --resume rp_1"
    assert found["ledger"]["interrupted_replays"] == [
        {
            "replay_id": "rp_1",
            "selection": "as chosen",
            "by": letter_steps.OPERATOR,
            "made_at": made.isoformat(),
            "ended_because": None,
            "letters": {"waiting": 1},
            "resume": resume,
        }
    ]
    assert f"replay rp_1 stands still (1 waiting): go on with {resume}" in found["needs_a_person"]
    assert "interrupted replays rp_1" in shown

    resumed = await asyncio.to_thread(run_cli, environment, *resume.split()[1:], "--json")
    assert json.loads(resumed.stdout)["ended_because"] == "done", resumed.stdout + resumed.stderr
    found = json.loads((await look(environment, as_json=True))[1])
    assert found["ledger"]["interrupted_replays"] == []
    assert [concern for concern in found["needs_a_person"] if "event" not in concern] == []


async def taken(ledger: Ledger, letter_id: str, *, at: datetime, **money: Any) -> None:
    """A letter that is with the worker since then, in a replay of its own."""
    await letter_steps.land(ledger, letter_steps.letter(letter_id, landing_id=letter_id, **money))
    await letter_steps.bring_to(ledger, letter_steps.LetterState.REPLAYING, letter_id)
    await steps.execute(ledger, sa.update(LETTERS).where(LETTERS.c.letter_id == letter_id).values(moved_at=at))


async def test_letters_that_the_worker_cannot_keep_need_a_person_while_orders_are_taken(
    shop: Shop, make_worker: MakeWorker, environment: dict[str, str]
) -> None:
    worker = await make_worker().until_subscribed()
    async with Ledger(environment["DATABASE_URL"]) as ledger:
        await steps.execute(ledger, letter_steps.REFUSE_LETTERS)
    await shop.send({"order_id": "order-1", "amount": "0"})
    [bug] = await until(lambda: worker.said("letter.bug")[:1], what="the letter to be refused")

    found = await status(with_http(environment, worker), code=1)

    assert found["subscribed"] is True
    assert found["worker"]["reasons"] == {}
    assert found["needs_a_person"][0] == (
        "the worker says: dead letters: 1 in the broker's queue could not be kept, "
        f"such as {bug['letter_id']}; see letter.bug in the log"
    )


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
    shown = await screen(environment, code=1)
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
    slowest = limit * SLOWEST
    await steps.execute(ledger, sa.update(PACE).values(slowed_to=slowest))
    slowed = environment | {"STRIPE_RATE_LIMIT": str(limit)}

    pace = (await status(slowed, code=0))["ledger"]["pace"]
    shown = " ".join(await screen(slowed, code=0))

    assert slowest <= pace.pop("per_second") < limit  # it is on its way up
    assert pace == {"limit": limit, "slowed": True}
    [told] = re.findall(r"([0-9.]+) of 100 calls a second, slowed: Stripe refused calls for their rate", shown)
    assert slowest <= float(told) < limit


# What Stripe tells


def stripe_event(event_id: str, order_id: str | None, **changed: Any) -> StripeEvent:
    """As it was read from a webhook."""
    event = Story(order_id=order_id or "", payment_id=f"pi_{order_id}").events[0]
    return replace(read_stripe_event(event), event_id=event_id, order_id=order_id, **changed)


async def test_stripe_events_that_wait_are_told_and_need_a_person_after_a_minute(
    ledger_url: str, ledger: Ledger, environment: dict[str, str]
) -> None:
    async with as_if_at_work(ledger, environment) as here:
        await ledger.run_grouped(inbox.receive, inbox.Receipt(stripe_event("evt_1", "order-1"), None, ago(30)))
        [group] = (await status(here, code=0))["ledger"]["stripe_events"]
        assert (group["state"], group["count"], group["order_id"]) == ("received", 1, "order-1")
        assert 30 <= group["oldest_s"] < 60
        assert "Stripe events waiting 1, the oldest 3" in " ".join(await screen(here, code=0))

        for name in ("evt_2", "evt_3"):
            await ledger.run_grouped(inbox.receive, inbox.Receipt(stripe_event(name, "order-2"), None, ago(300)))
            await ledger.run(inbox.park, name, why="its payment is not decided", until=ago(0), now=ago(9))
        found = await status(here, code=1)
        shown = await screen(here, code=1)
    assert found["needs_a_person"] == [
        "2 Stripe events waiting (parked), the oldest for 5 min, one of order order-2: its payment is not decided"
    ]
    assert "Stripe events waiting 3, the oldest 5 min: 1 received, 2 parked" in shown


async def test_parked_events_of_somebody_else_on_the_account_are_told_and_need_nobody(
    ledger_url: str, ledger: Ledger, environment: dict[str, str]
) -> None:
    event = stripe_event("evt_1", None, payment_id="pi_of_a_stranger", family="charge")
    await ledger.run_grouped(inbox.receive, inbox.Receipt(event, None, ago(7200)))
    await ledger.run(inbox.park, "evt_1", why="its payment is not known", until=ago(0), now=ago(9))

    async with as_if_at_work(ledger, environment) as here:
        [group] = (await status(here, code=0))["ledger"]["stripe_events"]
        assert "Stripe events waiting 1, the oldest 2 h: 1 of no payment here" in await screen(here, code=0)
    assert (group["strange"], group["why"]) == (True, "its payment is not known")


@asynccontextmanager
async def as_if_at_work(ledger: Ledger, environment: dict[str, str]) -> AsyncIterator[dict[str, str]]:
    """A worker that is well by all signs, and touches nothing."""
    await ledger.run(moves.sign_of_life, "w-1", now=datetime.now(UTC) + timedelta(minutes=1))
    async with other_program(b'{"ready": true, "reasons": {}}') as port:
        yield environment | {"HTTP_PORT": str(port)}


async def test_a_lost_answer_is_told_once_its_call_cannot_be_under_way_any_more(
    ledger_url: str, ledger: Ledger, make_worker: MakeWorker, environment: dict[str, str]
) -> None:
    await make_worker(**LEFT_ALONE).until_subscribed()
    await left_open(ledger, "order-1", age_s=40, amount="12.50")
    patient = environment | {"STRIPE_TIMEOUT": "60"}
    assert (await status(patient, code=0))["ledger"]["lost_answers"]["count"] == 0

    found = (await status(environment, code=0))["ledger"]["lost_answers"]
    assert (found["count"], found["value"]) == (1, {"usd": "12.50"})
    assert 40 <= found["oldest_s"] < 50
    assert "lost answers 1, the oldest 4" in " ".join(await screen(environment, code=0))


async def test_disputes_and_refunds_are_told_with_their_money_and_evidence_in_time(
    ledger_url: str, ledger: Ledger, make_worker: MakeWorker, environment: dict[str, str]
) -> None:
    await make_worker().until_subscribed()
    await paid(ledger, "order-1", dispute("du_far", "needs_response", due_in=timedelta(hours=73)))
    await paid(ledger, "order-2", dispute("du_answered", "under_review", due_in=timedelta(hours=1)))
    await paid(ledger, "order-3", dispute("du_over", "lost", due_in=timedelta(hours=1)))
    await paid(
        ledger,
        "order-4",
        Refund("re_pending", 100, "pending", ago(7200)),
        Refund("re_made", 50, "succeeded", ago(60)),
        Refund("re_failed", 25, "failed", ago(3600)),
        Refund("re_of_long_ago", 10, "failed", ago(90 * 86_400)),
    )
    found = (await status(environment, code=0))["ledger"]
    shown = await screen(environment, code=0)
    assert found["disputes"]["open"] == 2
    assert found["disputes"]["value"] == {"usd": "25.00"}
    assert (found["disputes"]["due_soon"], found["disputes"]["next_due"]["dispute_id"]) == (0, "du_far")
    assert (found["refunds"]["pending"]["count"], found["refunds"]["pending"]["value"]) == (1, {"usd": "1.00"})
    assert found["refunds"]["failed"]["value"] == {"usd": "0.25"}
    assert found["refunds"]["failed"]["newest"] == {"refund_id": "re_failed", "order_id": "order-4"}
    assert "pending refunds 1, the oldest 2 h, 1.00 USD" in shown
    assert "failed refunds 1 of the last 60 d, 0.25 USD, the newest re_failed of order order-4, made 1 h ago" in shown
    assert any(line.startswith("open disputes 2, 25.00 USD, evidence of order order-1 due 20") for line in shown)

    for number in range(6):
        await paid(ledger, f"order-due-{number}", dispute(f"du_{number}", "needs_response", due_in=timedelta(hours=71)))
    needs = (await status(environment, code=1))["needs_a_person"]
    assert len(needs) == 6
    assert needs[0].startswith("dispute du_0 of order order-due-0, 12.50 USD: evidence due 20")
    assert needs[0].endswith(" (in 70 h); answer in Stripe's Dashboard")
    assert needs[5] == "1 more dispute with evidence due within 3 d"


def dispute(dispute_id: str, status: str, *, due_in: timedelta) -> Dispute:
    return Dispute(dispute_id, 1250, "usd", status, ago(60), "fraudulent", datetime.now(UTC) + due_in)


async def paid(ledger: Ledger, order_id: str, *became: Refund | Dispute) -> None:
    """A payment, told of long ago, and what became of it."""
    event = await steps.decide(ledger, order_id)
    await ledger.run(alone.mark_published, event.event_id, now=ago(0))
    for each in became:
        table = REFUNDS if isinstance(each, Refund) else DISPUTES
        await steps.execute(ledger, sa.insert(table).values(order_id=order_id, **asdict(each)))


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
    assert max(map(len, lines)) <= 60
    assert len(lines) > len(table) + 3
    assert any(line.startswith(letter.group_id + " ") for line in table)
    assert environment["DEAD_LETTERS_QUEUE"] in shown
    assert sum(map(len, re.findall("q{2,}", shown))) == 100, "a long name is folded, not cut"
    assert "\\x1b[31mred" in shown.replace("\n", "")
    assert "[bold]and[/bold]" in " ".join(shown.split())
    assert len(table) < 50, "one screen"
