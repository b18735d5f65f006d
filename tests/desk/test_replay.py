"""What a replay would do to the money, and that it does it: no more, whatever the operator tries."""

import asyncio
import json
import subprocess
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

from tests.harness import Shop, WorkerProcess, dead_letters, on_terminal, run_cli, until
from tests.road.test_troubled_stripe import altering_proxy
from worker.ledger import replays
from worker.ledger.ledger import Ledger
from worker.sandbox.stripe_control import SandboxControl

MakeWorker = Callable[..., WorkerProcess]
ORDER: dict[str, Any] = {"order_id": "order-1", "amount": "12.50"}
REFUSED_ACCOUNT = {"error": {"type": "invalid_request_error", "code": "account_invalid", "message": "no such account"}}


async def cli(environment: dict[str, str], *words: str) -> subprocess.CompletedProcess[str]:
    return await asyncio.to_thread(run_cli, environment, *words)


async def verdict(environment: dict[str, str], letter_id: str) -> tuple[str, str]:
    """As `show` tells it; a dry run says the same."""
    shown = json.loads((await cli(environment, "dead-letters", "show", letter_id, "--json")).stdout)
    [dry] = json.loads((await cli(environment, "dead-letters", "replay", letter_id, "--dry-run", "--json")).stdout)
    assert (dry["verdict"], dry["why"]) == (shown["verdict"], shown["verdict_because"])
    return shown["verdict"], shown["verdict_because"]


async def replay(environment: dict[str, str], *words: str) -> dict[str, Any]:
    done = await cli(environment, "dead-letters", "replay", *words, "--json")
    assert done.stdout, done.stderr
    report: dict[str, Any] = json.loads(done.stdout)
    return report


async def reject_the_order(shop: Shop, body: dict[str, Any] = ORDER) -> None:
    """As RabbitMQ gives a message up: it becomes a dead letter without the worker having touched it."""
    queue = await shop.channel.get_queue(shop.names["ORDERS_QUEUE"])
    await shop.send(body)
    message = await until(lambda: queue.get(fail=False), what="the order")
    await message.reject(requeue=False)


async def the_letter(environment: dict[str, str]) -> dict[str, Any]:
    [letter] = await until(lambda: dead_letters(environment), what="the letter")
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
    [resolved] = await dead_letters(environment, "--state", "resolved")
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
        return (await verdict(environment | old, letter["id"]))[0] == "look first"

    await until(is_old, what="the key to be old")
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
    shown = json.loads((await cli(environment, "dead-letters", "show", letter["id"], "--json")).stdout)
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
        shown = json.loads((await cli(environment, "dead-letters", "show", letter["id"], "--json")).stdout)
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

        done = await cli(environment, "dead-letters", "replay", "--all", "--json")

    assert done.returncode == 1
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

    reports = await asyncio.gather(*(replay(environment, "--all") for _ in range(2)))
    await shop.until_events(60)

    counts = [report["letters"].get("resolved", 0) for report in reports]
    assert sum(counts) == 60
    acts = json.loads((await cli(environment, "dead-letters", "history", "--json")).stdout)
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
    assert len(await dead_letters(environment)) == 2


async def test_a_choice_that_means_nothing_or_everything_is_refused(
    make_worker: MakeWorker, environment: dict[str, str]
) -> None:
    await make_worker().until_subscribed()
    for words, told in (
        (["replay"], "this would take every letter"),
        (["replay", "dl_unknown"], "no letter dl_unknown"),
        (["replay", "--all"], "no open letters are meant by: all"),
        (["replay", "--reason", "conflict"], "no open letters are meant by: reason conflict"),
        (["replay", "--resume", "rp_1"], "no replay rp_1 that could go on"),
        (["replay", "--share", "2"], "is not a share"),
        (["discard", "--why", "x"], "this would take every letter"),
        (["list", "--since", "yesterday"], "neither a span such as 90min"),
        (["show", "dl_unknown"], "no letter dl_unknown"),
    ):
        done = await cli(environment, "dead-letters", *words)
        assert (done.returncode, told in done.stderr) == (2, True), (words, done.stderr)


async def _count(environment: dict[str, str], count: int) -> list[dict[str, Any]] | None:
    letters = await dead_letters(environment)
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

    done = await cli(environment, "dead-letters", "discard", letter["id"], "--why", "the card 4242424242424242")
    assert done.returncode == 0, done.stderr
    told = (await cli(environment, "dead-letters", "history")).stdout
    assert "the card ************4242" in told


async def test_a_narrow_terminal_shows_whole_ids_and_nothing_that_steers_it(
    make_worker: MakeWorker, shop: Shop, environment: dict[str, str]
) -> None:
    await make_worker().until_subscribed()
    await shop.send({"order_id": "order-1", "amount": "\x1b[2Jnothing"})
    letter = await the_letter(environment)

    for words in (["list"], ["groups"], ["show", letter["id"]], ["replay", "--all", "--dry-run"], ["history"]):
        code, shown = await asyncio.to_thread(on_terminal, environment, ["dead-letters", *words], columns=60)
        assert code == 0, shown
        assert "\x1b" not in shown, words
        assert letter["id"] in shown or letter["group"] in shown, words
