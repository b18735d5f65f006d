"""What a replay would do to the money, and that it does it: no more, whatever the operator tries."""

import asyncio
import contextlib
import io
import json
import subprocess
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from importlib import import_module
from typing import Any

import pytest
import sqlalchemy as sa

from tests.harness import Shop, WorkerProcess, on_terminal, run_cli, until
from tests.ledger.letter_steps import always, landing_of
from tests.road.test_troubled_stripe import altering_proxy
from worker.cli import _parser
from worker.errors import ConfigurationError
from worker.ledger import letter_moves, letters, replays
from worker.ledger.ledger import Ledger
from worker.ledger.letters import LetterFilter
from worker.ledger.schema import LETTERS
from worker.sandbox.stripe_control import SandboxControl
from worker.settings import read_settings

MakeWorker = Callable[..., WorkerProcess]
ORDER: dict[str, Any] = {"order_id": "order-1", "amount": "12.50"}
REFUSED_ACCOUNT = {"error": {"type": "invalid_request_error", "code": "account_invalid", "message": "no such account"}}


@dataclass(frozen=True)
class Done:
    """What a command at the desk has written, and its exit code."""

    code: int
    stdout: str


async def cli(environment: dict[str, str], *words: str) -> Done:
    """A command at the desk, in this process; see by_process for one of its own."""
    arguments = _parser().parse_args(["dead-letters", *words])
    module, function = arguments.runs.split(":")
    act = getattr(import_module(f"worker.desk.{module}"), function)
    with contextlib.redirect_stdout(io.StringIO()) as written:
        code = await act(read_settings(environment, needed=frozenset({"DATABASE_URL"})), arguments)
    return Done(code or 0, written.getvalue())


async def by_process(environment: dict[str, str], *words: str) -> subprocess.CompletedProcess[str]:
    return await asyncio.to_thread(run_cli, environment, "dead-letters", *words)


async def listed(environment: dict[str, str], *words: str) -> list[dict[str, Any]]:
    letters: list[dict[str, Any]] = json.loads((await cli(environment, "list", "--json", *words)).stdout)
    return letters


@pytest.fixture(autouse=True)
def brief_resume(monkeypatch: pytest.MonkeyPatch) -> None:
    """What was left with the worker has long its outcome here, or was never sent."""
    monkeypatch.setattr("worker.desk.replayer.RESUME_WAIT_S", 0.3)


async def verdict(environment: dict[str, str], letter_id: str) -> tuple[str, str]:
    """As `show` tells it; a dry run says the same."""
    shown = json.loads((await cli(environment, "show", letter_id, "--json")).stdout)
    [dry] = json.loads((await cli(environment, "replay", letter_id, "--dry-run", "--json")).stdout)
    assert (dry["verdict"], dry["why"]) == (shown["verdict"], shown["verdict_because"])
    assert dry["mode_checked"] is shown["mode_checked"] is True
    return shown["verdict"], shown["verdict_because"]


async def replay(environment: dict[str, str], *words: str) -> dict[str, Any]:
    report, _ = await replay_to_the_end(environment, *words)
    return report


async def replay_to_the_end(environment: dict[str, str], *words: str) -> tuple[dict[str, Any], int]:
    """The report and the exit code."""
    done = await cli(environment, "replay", *words, "--json")
    return json.loads(done.stdout), done.code


async def reject_the_order(shop: Shop, body: dict[str, Any] = ORDER) -> None:
    """As RabbitMQ gives a message up: it becomes a dead letter without the worker having touched it."""
    queue = await shop.channel.get_queue(shop.names["ORDERS_QUEUE"])
    await shop.send(body)
    message = await until(lambda: queue.get(fail=False), what="the order")
    await message.reject(requeue=False)


async def the_letter(environment: dict[str, str]) -> dict[str, Any]:
    [letter] = await until(lambda: listed(environment), what="the letter")
    return letter


async def test_a_letter_without_a_call_is_safe_and_its_replay_charges_once(
    ledger_url: str, make_worker: MakeWorker, shop: Shop, stripe: SandboxControl, environment: dict[str, str]
) -> None:
    await shop.subscribe()
    await shop.declare_worker_queue()
    await reject_the_order(shop)
    await make_worker().until_subscribed()
    letter = await the_letter(environment)

    assert await verdict(environment, letter["id"]) == ("safe", "no call was begun")
    assert await stripe.record(method="POST") == [], "a look touches nothing"
    report = await replay(environment, letter["id"])

    assert (report["ended_because"], report["letters"]) == ("done", {"resolved": 1})
    await shop.until_events(1)
    assert len(await stripe.intents()) == 1
    [resolved] = await listed(environment, "--state", "resolved")
    assert resolved["id"] == letter["id"]


async def test_a_letter_whose_key_is_young_asks_again_under_it(
    ledger_url: str, make_worker: MakeWorker, shop: Shop, stripe: SandboxControl, environment: dict[str, str]
) -> None:
    """A new key would charge a second time: the first call was carried out."""
    await shop.subscribe()
    await leave_a_call_behind(make_worker(), shop, stripe)
    await reject_the_order(shop)
    await make_worker().until_subscribed()
    letter = await the_letter(environment)

    kind, why = await verdict(environment, letter["id"])
    assert kind == "safe"
    assert "still brings the same answer" in why
    await replay(environment, letter["id"])
    await shop.until_events(1)

    assert len(await stripe.intents()) == 1
    assert [row["replayed"] for row in await stripe.record(method="POST")] == [False, True]


async def test_a_letter_whose_key_is_old_is_looked_for_first(
    ledger_url: str, make_worker: MakeWorker, shop: Shop, stripe: SandboxControl, environment: dict[str, str]
) -> None:
    """Stripe has forgotten the key, and would take it for a new one."""
    await shop.subscribe()
    await leave_a_call_behind(make_worker(), shop, stripe)
    await stripe.change_settings(key_life_s=1)
    await reject_the_order(shop)
    old = {"STRIPE_KEY_HORIZON": "1"}
    await make_worker(**old).until_subscribed()
    letter = await the_letter(environment)

    async def is_old() -> bool:
        shown = json.loads((await cli(environment | old, "show", letter["id"], "--json")).stdout)
        return bool(shown["verdict"] == "look first")

    await until(is_old, what="the key to be old")
    assert (await verdict(environment | old, letter["id"]))[0] == "look first"
    await replay(environment | old, letter["id"])
    [event] = await shop.until_events(1)

    [intent] = await stripe.intents()
    assert event["data"]["payment_id"] == intent["id"]


async def test_a_letter_of_a_decided_order_only_tells_the_same_event_again(
    ledger_url: str, make_worker: MakeWorker, shop: Shop, stripe: SandboxControl, environment: dict[str, str]
) -> None:
    await shop.subscribe()
    worker = await make_worker().until_subscribed()
    await shop.send(ORDER)
    await shop.until_events(1)
    assert await worker.stop() == 0
    await reject_the_order(shop)
    await make_worker().until_subscribed()
    letter = await the_letter(environment)

    assert (await verdict(environment, letter["id"]))[0] == "nothing to do"
    await replay(environment, letter["id"])
    await until(lambda: len(shop.events) == 2, what="the event again")

    assert shop.messages[0].body == shop.messages[1].body
    assert len(await stripe.record(method="POST")) == 1


async def test_a_conflict_is_blocked_and_charges_nothing_even_past_the_desk(
    ledger_url: str, make_worker: MakeWorker, shop: Shop, stripe: SandboxControl, environment: dict[str, str]
) -> None:
    await shop.subscribe()
    await make_worker().until_subscribed()
    await shop.send(ORDER)
    await shop.until_events(1)
    await shop.send(ORDER | {"amount": "99.00"})
    letter = await the_letter(environment)

    kind, why = await verdict(environment, letter["id"])
    assert (kind, "amount was 12.50, here 99" in why) == ("blocked", True)
    shown = json.loads((await cli(environment, "show", letter["id"], "--json")).stdout)
    assert shown["conflict"] == {"amount": ["12.50", "99.00"]}
    report = await replay(environment, letter["id"])
    assert report["letters"] == {"blocked": 1}

    await shop.send_to(environment["ORDERS_QUEUE"], ORDER | {"amount": "99.00"})
    await until(lambda: _count(environment, 2), what="the second letter")
    assert len(await stripe.intents()) == 1


async def test_a_call_of_the_other_mode_is_blocked_and_charges_nothing_even_past_the_desk(
    ledger_url: str, make_worker: MakeWorker, shop: Shop, stripe: SandboxControl, environment: dict[str, str]
) -> None:
    """Stripe keeps the modes' keys apart: asked again with a live key, it would be a second intent, of real money."""
    await shop.subscribe()
    await leave_a_call_behind(make_worker(), shop, stripe)
    await reject_the_order(shop)
    live = {"STRIPE_API_KEY": "sk_live_sandbox_key"}
    await make_worker(**live).until_subscribed()
    letter = await the_letter(environment)

    kind, why = await verdict(environment | live, letter["id"])
    assert kind == "blocked"
    assert "made in test mode" in why
    assert (await replay(environment | live, letter["id"]))["letters"] == {"blocked": 1}

    await shop.send_to(environment["ORDERS_QUEUE"], ORDER)
    letters = await until(lambda: _count(environment, 2), what="the second letter")
    assert letters[-1]["reason"] == "mode_mismatch"
    assert len(await stripe.intents()) == 1


async def test_a_replay_that_fails_again_opens_the_same_letter_with_one_more_entry(
    ledger_url: str, make_worker: MakeWorker, shop: Shop, stripe: SandboxControl, environment: dict[str, str]
) -> None:
    """Stripe still refuses the account; once it does not, the same letter is resolved."""
    await shop.subscribe()
    async with altering_proxy(environment["STRIPE_API_BASE"], {}, refused_account=REFUSED_ACCOUNT) as address:
        worker = await make_worker(STRIPE_API_BASE=address).until_subscribed()
        await shop.send(ORDER | {"stripe_account": "acct_1"})
        letter = await the_letter(environment)

        report = await replay(environment, letter["id"])
        assert (report["ended_because"], report["letters"]) == ("stopped: 1 of the last 1 failed", {"failed": 1})
        same = await the_letter(environment)
        assert (same["id"], same["reason"], same["landings"]) == (letter["id"], "account_refused", 2)
        shown = json.loads((await cli(environment, "show", letter["id"], "--json")).stdout)
        assert len(shown["landed"]) == 2
        assert [act["act"] for act in shown["acts"]] == ["landed", "replayed", "reopened"]
        assert await worker.stop() == 0

    await make_worker().until_subscribed()
    report = await replay(environment, letter["id"])
    assert report["letters"] == {"resolved": 1}
    await shop.until_events(1)
    assert len(await stripe.intents()) == 1


async def test_a_replay_stops_itself_where_too_many_fail(
    ledger_url: str, make_worker: MakeWorker, shop: Shop, environment: dict[str, str]
) -> None:
    await shop.declare_worker_queue()
    for number in range(10):
        await reject_the_order(shop, {"order_id": f"order-{number}", "amount": "1.00", "stripe_account": "acct_1"})
    async with altering_proxy(environment["STRIPE_API_BASE"], {}, refused_account=REFUSED_ACCOUNT) as address:
        await make_worker(STRIPE_API_BASE=address).until_subscribed()
        await until(lambda: _count(environment, 10), what="10 letters")

        done = await cli(environment, "replay", "--all", "--json")

    assert done.code == 1
    report = json.loads(done.stdout)
    assert report["ended_because"] == "stopped: 1 of the last 1 failed"
    assert report["letters"] == {"failed": 1, "waiting": 9}


async def test_a_replay_that_nobody_works_on_waits_and_can_go_on(
    ledger_url: str, make_worker: MakeWorker, shop: Shop, stripe: SandboxControl, environment: dict[str, str]
) -> None:
    await shop.subscribe()
    await shop.declare_worker_queue()
    for number in range(10):
        await reject_the_order(shop, {"order_id": f"order-{number}", "amount": "1.00"})
    worker = await make_worker().until_subscribed()
    await until(lambda: _count(environment, 10), what="10 letters")
    assert await worker.stop() == 0

    report = await replay(environment, "--all", "--patience", "1")
    assert (report["ended_because"], report["letters"]) == (None, {"waiting": 9, "sent": 1})

    await make_worker().until_subscribed()
    report = await replay(environment, "--resume", report["replay_id"])
    assert (report["ended_because"], report["letters"]) == ("done", {"resolved": 10})
    await shop.until_events(10)
    assert len(await stripe.intents()) == 10


async def test_two_operators_at_once_replay_each_letter_once(
    ledger_url: str, make_worker: MakeWorker, shop: Shop, stripe: SandboxControl, environment: dict[str, str]
) -> None:
    await shop.subscribe()
    await shop.declare_worker_queue()
    orders = [f"order-{number}" for number in range(60)]
    for order_id in orders:
        await reject_the_order(shop, {"order_id": order_id, "amount": "1.00"})
    await make_worker().until_subscribed()
    await until(lambda: _count(environment, 60), what="60 letters")

    done = await asyncio.gather(*(by_process(environment, "replay", "--all", "--json") for _ in range(2)))
    await shop.until_events(60)

    reports = [json.loads(each.stdout) for each in done]
    assert [each.returncode for each in done] == [0, 0]
    counts = [report["letters"].get("resolved", 0) for report in reports]
    assert sum(counts) == 60
    acts = json.loads((await cli(environment, "history", "--json")).stdout)
    replayed = [act["letter_id"] for act in acts if act["act"] == "replayed"]
    assert len(replayed) == len(set(replayed)) == 60
    assert shop.events_per_order() == dict.fromkeys(orders, 1)
    assert len(shop.events) == 60
    assert len(await stripe.record(method="POST")) == 60


async def test_a_replay_that_ended_with_a_letter_out_is_finished_by_resuming_it_and_takes_no_other(
    ledger_url: str, make_worker: MakeWorker, shop: Shop, environment: dict[str, str]
) -> None:
    """As one is left that another desk has ended, or whose message the broker has lost."""
    await shop.subscribe()
    await shop.declare_worker_queue()
    for number in range(3):
        await reject_the_order(shop, {"order_id": f"order-{number}", "amount": "1.00"})
    worker = await make_worker().until_subscribed()
    await until(lambda: _count(environment, 3), what="3 letters")
    assert await worker.stop() == 0
    report = await replay(environment, "--all", "--patience", "1")
    assert report["letters"] == {"waiting": 2, "sent": 1}
    async with Ledger(ledger_url) as ledger:
        await ledger.run(replays.end_replay, report["replay_id"], by="x", because="stopped", now=datetime.now(UTC))
    await shop.purge_orders()

    await make_worker().until_subscribed()
    report = await replay(environment, "--resume", report["replay_id"])
    assert (report["ended_because"], report["letters"]) == ("stopped", {"waiting": 2, "resolved": 1})
    assert len(await listed(environment)) == 2


async def test_a_choice_that_means_nothing_or_everything_is_refused(
    make_worker: MakeWorker, environment: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    await make_worker().until_subscribed()
    for words, told in (
        (["replay"], "this would take every letter"),
        (["replay", "dl_unknown"], "no letter dl_unknown"),
        (["replay", "--all"], "no open letters are meant by: all"),
        (["replay", "--reason", "conflict"], "no open letters are meant by: reason conflict"),
        (["replay", "--resume", "rp_1"], "no replay is interrupted"),
        (["discard", "--why", "x"], "this would take every letter"),
        (["show", "dl_unknown"], "no letter dl_unknown"),
    ):
        with pytest.raises(ConfigurationError) as refusal:
            await cli(environment, *words)
        assert told in str(refusal.value), words
    for words, told in (
        (["replay", "--share", "2"], "is not a share"),
        (["list", "--since", "yesterday"], "neither a span such as 90min"),
    ):
        with pytest.raises(SystemExit) as ended:
            await cli(environment, *words)
        assert (ended.value.code, told in capsys.readouterr().err) == (2, True), words
    done = await by_process(environment, "replay")
    assert (done.returncode, "this would take every letter" in done.stderr) == (2, True)


async def _count(environment: dict[str, str], count: int) -> list[dict[str, Any]] | None:
    letters = await listed(environment)
    return letters if len(letters) == count else None


async def leave_a_call_behind(worker: WorkerProcess, shop: Shop, stripe: SandboxControl) -> None:
    """A call that Stripe has carried out, of which only the ledger knows that it was begun."""
    await worker.until_subscribed()
    await stripe.add_fault("hang_after_work", method="POST", times=1)
    await shop.send(ORDER)
    await until(stripe.intents, what="the intent")
    worker.kill()
    await shop.purge_orders()


async def test_a_card_number_in_a_reason_is_masked_for_the_history_keeps_it_for_ever(
    make_worker: MakeWorker, shop: Shop, environment: dict[str, str]
) -> None:
    await make_worker().until_subscribed()
    await shop.send({"order_id": "order-1", "amount": "nothing"})
    letter = await the_letter(environment)

    done = await cli(environment, "discard", letter["id"], "--why", "the card 4242424242424242")
    assert done.code == 0
    told = (await cli(environment, "history")).stdout
    assert "the card ************4242" in told


async def test_a_narrow_terminal_shows_whole_ids_and_nothing_that_steers_it(
    make_worker: MakeWorker, shop: Shop, environment: dict[str, str]
) -> None:
    await make_worker().until_subscribed()
    await shop.send({"order_id": "order-1", "amount": "\x1b[2Jnothing"})
    letter = await the_letter(environment)

    mend = ["edit", "--all", "--set", "amount=1", "--dry-run"]
    commands = (["list"], ["groups"], ["show", letter["id"]], ["replay", "--all", "--dry-run"], ["history"], mend)
    terminals = (
        asyncio.to_thread(on_terminal, environment, ["dead-letters", *words], columns=60) for words in commands
    )
    for words, (code, shown) in zip(commands, await asyncio.gather(*terminals), strict=True):
        assert code == 0, shown
        assert "\x1b" not in shown, words
        assert letter["id"] in shown or letter["group"] in shown, words


async def test_a_verdict_without_the_key_says_that_the_mode_was_not_checked(
    make_worker: MakeWorker, shop: Shop, stripe: SandboxControl, environment: dict[str, str]
) -> None:
    await shop.subscribe()
    await leave_a_call_behind(make_worker(), shop, stripe)
    await reject_the_order(shop)
    await make_worker().until_subscribed()
    letter = await the_letter(environment)
    keyless = {name: value for name, value in environment.items() if name != "STRIPE_API_KEY"}

    for words in (["show", letter["id"]], ["replay", letter["id"], "--dry-run"]):
        told = (await cli(keyless, *words)).stdout
        assert told.count("STRIPE_API_KEY is not set") == 1, told
        assert "STRIPE_API_KEY" not in (await cli(environment, *words)).stdout
    assert json.loads((await cli(keyless, "show", letter["id"], "--json")).stdout)["mode_checked"] is False
    [dry] = json.loads((await cli(keyless, "replay", letter["id"], "--dry-run", "--json")).stdout)
    assert dry["mode_checked"] is False


async def test_a_letter_that_cannot_be_published_fails_alone_and_the_others_go_on(
    ledger_url: str, make_worker: MakeWorker, shop: Shop, environment: dict[str, str]
) -> None:
    """Of AMQP's short strings none may be longer than 255 bytes: https://www.rabbitmq.com/amqp-0-9-1-protocol."""
    await shop.subscribe()
    await shop.declare_worker_queue()
    for number in range(10):
        await reject_the_order(shop, {"order_id": f"order-{number}", "amount": "1.00"})
    await make_worker().until_subscribed()
    await until(lambda: _count(environment, 10), what="10 letters")
    ids = [letter["id"] for letter in await listed(environment)]
    async with Ledger(ledger_url) as ledger:
        long = await ledger.run(letters.read, ids[0])
        assert long
        unsendable = letters.row_of(replace(long, properties=replace(long.properties, content_type="x" * 256)))
        await ledger.run(write_properties, ids[0], unsendable["properties"])

    report, code = await replay_to_the_end(environment, "--all")

    assert (report["ended_because"], report["letters"], code) == ("done", {"resolved": 9, "blocked": 1}, 1), (
        "the first one too, and it counts towards no line"
    )
    [letter] = await listed(environment)
    shown = json.loads((await cli(environment, "show", ids[0], "--json")).stdout)
    assert (letter["id"], letter["landings"]) == (ids[0], 1)
    assert [act["act"] for act in shown["acts"]] == ["landed", "replayed", "not sent"]
    assert shown["acts"][-1]["why"].startswith("its message cannot be published: ")
    assert len(shown["acts"][-1]["why"]) <= 200
    await shop.until_events(9)


def write_properties(conn: sa.Connection, letter_id: str, properties: str) -> None:
    conn.execute(sa.update(LETTERS).where(LETTERS.c.letter_id == letter_id).values(properties=properties))


async def interrupted_replay(environment: dict[str, str], make_worker: MakeWorker, shop: Shop, *, of: int) -> str:
    """As a kill leaves it: one letter is taken and not published, the others wait; no worker is there."""
    await shop.declare_worker_queue()
    for number in range(of):
        await reject_the_order(shop, {"order_id": f"order-{number}", "amount": "1.00", "stripe_account": "acct_1"})
    worker = await make_worker().until_subscribed()
    await until(lambda: _count(environment, of), what="the letters")
    assert await worker.stop() == 0
    now = datetime.now(UTC)
    async with Ledger(environment["DATABASE_URL"]) as ledger:
        await ledger.run(replays.make_replay, "rp_1", LetterFilter(), by="x", selection="all", now=now)
        await ledger.run(replays.take_wave, "rp_1", size=1, judge=always(), by="x", now=now)
    return "rp_1"


async def test_a_letter_that_has_landed_again_is_told_and_no_success(
    ledger_url: str, make_worker: MakeWorker, shop: Shop, environment: dict[str, str]
) -> None:
    """One that somebody has discarded meanwhile was dealt with."""
    await shop.subscribe()
    replay_id = await interrupted_replay(environment, make_worker, shop, of=4)
    _, again, gone, _ = [letter["id"] for letter in await listed(environment, "--state", "all")]
    async with Ledger(ledger_url) as ledger:
        before = await ledger.run(letters.read, again)
        assert before
        landing = replace(landing_of(before), landing_id="another")
        await ledger.run(letters.land, before, landing, other_id="dl_x", now=datetime.now(UTC))
        discarded = LetterFilter(ids=(gone,))
        await ledger.run(letter_moves.discard, discarded, by="x", why="x", now=datetime.now(UTC))
    await make_worker().until_subscribed()

    report, code = await replay_to_the_end(environment, "--resume", replay_id)

    assert (report["ended_because"], report["letters"]) == ("done", {"resolved": 2, "skipped": 2})
    assert report["skipped"] == {
        "it has landed again since it was chosen": 1,
        "it is discarded, and was open when it was chosen": 1,
    }
    assert code == 1


async def test_a_replay_of_blocked_letters_alone_says_why_and_is_no_success(
    make_worker: MakeWorker, shop: Shop, stripe: SandboxControl, environment: dict[str, str]
) -> None:
    """Reasons that differ in an order's own values alone are told as one."""
    await make_worker().until_subscribed()
    await shop.send_all([{"order_id": f"order-{number}", "amount": f"1{number}.505"} for number in range(3)])
    await shop.send({"order_id": "order-3", "amount": "7.00", "capture_method": "later"})
    await until(lambda: _count(environment, 4), what="the letters")

    done = await cli(environment, "replay", "--all")
    report, code = await replay_to_the_end(environment, "--all")

    lines = [" ".join(line.split()) for line in done.stdout.splitlines()]
    assert lines[0].endswith(": nothing was replayed (all)")
    assert lines[2].startswith("4 blocked 7.00 USD, 3 of unreadable value")
    assert lines[3].startswith("3 blocked: it would be refused again: amount: ")
    assert lines[4].startswith("1 blocked: it would be refused again: capture_method: ")
    assert lines[5] == "Those that are blocked stay open: edit them where `show` says so, or discard them."
    assert (done.code, code) == (1, 1)
    assert (report["ended_because"], report["letters"]) == ("nothing was replayed", {"blocked": 4})
    assert sum(report["blocked"].values()) == 4
    assert (report["failed"], report["skipped"]) == ({}, {})
    assert len(await listed(environment)) == 4
    assert await stripe.record(method="POST") == []


async def test_a_replay_of_one_blocked_letter_tells_its_reason_whole(
    make_worker: MakeWorker, shop: Shop, environment: dict[str, str]
) -> None:
    await shop.subscribe()
    await make_worker().until_subscribed()
    await shop.send(ORDER)
    await shop.until_events(1)
    await shop.send(ORDER | {"amount": "99.00"})
    letter = await the_letter(environment)

    done = await cli(environment, "replay", letter["id"])

    assert "1 blocked: the order id is taken by another agreement: amount was 12.50, here 99" in done.stdout
    assert done.code == 1


async def test_a_letter_that_held_card_data_is_not_replayed_as_it_is_masked(
    make_worker: MakeWorker, shop: Shop, stripe: SandboxControl, environment: dict[str, str]
) -> None:
    """Edited, it is an order again."""
    await shop.subscribe()
    await make_worker().until_subscribed()
    await shop.send(ORDER | {"description": "my card is 4242424242424242"})
    letter = await the_letter(environment)

    kind, why = await verdict(environment, letter["id"])
    assert kind == "blocked"
    assert why.startswith("it held card data, which is masked here")
    assert (await replay(environment, letter["id"]))["letters"] == {"blocked": 1}
    assert await stripe.record(method="POST") == []

    await cli(environment, "edit", letter["id"], "--set", "description=mended")
    assert (await replay(environment, "--all"))["letters"] == {"resolved": 1}
    [intent] = await stripe.intents()
    assert intent["description"] == "mended"


async def test_a_letter_that_somebody_else_has_dealt_with_is_a_success(
    make_worker: MakeWorker, shop: Shop, environment: dict[str, str]
) -> None:
    await shop.subscribe()
    replay_id = await interrupted_replay(environment, make_worker, shop, of=2)
    [gone] = await listed(environment)
    await cli(environment, "discard", gone["id"], "--why", "sent anew")
    await make_worker().until_subscribed()
    with pytest.raises(ConfigurationError, match="no replay rp_9 that could go on; interrupted are: rp_1"):
        await cli(environment, "replay", "--resume", "rp_9")

    done = await cli(environment, "replay", "--resume", replay_id)

    assert "1 skipped: it is discarded, and was open when it was chosen" in done.stdout
    assert "landed again" not in done.stdout
    assert done.code == 0
    [resolved] = await listed(environment, "--state", "resolved")
    assert "a replay" not in (await cli(environment, "show", resolved["id"])).stdout, "it is over"
    assert "a replay" in (await cli(environment, "show", gone["id"])).stdout, "it may be restored"


async def test_what_fails_while_a_resumed_replay_finishes_what_was_sent_counts_towards_its_stop(
    make_worker: MakeWorker, shop: Shop, environment: dict[str, str]
) -> None:
    replay_id = await interrupted_replay(environment, make_worker, shop, of=4)
    async with altering_proxy(environment["STRIPE_API_BASE"], {}, refused_account=REFUSED_ACCOUNT) as address:
        worker = await make_worker(STRIPE_API_BASE=address).until_subscribed()
        report, code = await replay_to_the_end(environment, "--resume", replay_id)
        assert await worker.stop() == 0

    assert report["ended_because"] == "stopped: 1 of the last 1 failed"
    assert (report["letters"], code) == ({"waiting": 3, "failed": 1}, 1)
