"""The life of one payment on one page: calls, keys, evidence, events, letters, acts; nothing that is secret."""

import asyncio
import json
import subprocess
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from tests.harness import Shop, WorkerProcess, dead_letters, on_terminal, run_cli, until
from tests.ledger import letter_steps, steps
from tests.road.test_commands import command
from tests.stripe_story import Story
from worker.ledger import inbox, lives, moves
from worker.ledger.ledger import Ledger
from worker.payment_life import Settlement
from worker.sandbox.stripe_control import SandboxControl
from worker.stripe_event import read_stripe_event

MakeWorker = Callable[..., WorkerProcess]
ORDER: dict[str, Any] = {"order_id": "order-1", "amount": "12.50"}


async def cli(environment: dict[str, str], *words: str) -> subprocess.CompletedProcess[str]:
    return await asyncio.to_thread(run_cli, environment, *words)


async def life(environment: dict[str, str], order_id: str = "order-1") -> dict[str, Any]:
    done = await cli(environment, "payments", "show", order_id, "--json")
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


async def page(environment: dict[str, str], order_id: str = "order-1") -> list[str]:
    """The lines as a person reads them."""
    done = await cli(environment, "payments", "show", order_id)
    assert done.returncode == 0, done.stderr
    return [" ".join(line.split()) for line in done.stdout.splitlines()]


def ago(seconds: float) -> datetime:
    return datetime.now(UTC) - timedelta(seconds=seconds)


@pytest.fixture
async def ledger(environment: dict[str, str]) -> AsyncIterator[Ledger]:
    """The worker's ledger, migrated."""
    migrated = await asyncio.to_thread(run_cli, environment, "migrate")
    assert migrated.returncode == 0, migrated.stderr
    async with Ledger(environment["DATABASE_URL"]) as ledger:
        yield ledger


async def test_a_payment_that_went_well_is_told_from_its_call_to_its_event(
    ledger_url: str, make_worker: MakeWorker, shop: Shop, stripe: SandboxControl, environment: dict[str, str]
) -> None:
    await shop.subscribe()
    await make_worker().until_subscribed()
    await shop.send(ORDER | {"receipt_email": "anna@example.org"}, reply_to=await shop.await_replies())
    [event] = await shop.until_events(1)
    await until(lambda: shop.replies, what="the reply")
    [intent] = await stripe.intents()

    async def told() -> dict[str, Any] | None:
        found = await life(environment)
        return found if found["events"][0]["told_at"] else None

    found = await until(told, what="the event to be noted as told")

    payment = found["payment"]
    assert (payment["state"], payment["value"], payment["payment_id"]) == ("intent_created", "12.50 USD", intent["id"])
    assert (payment["status"], payment["livemode"]) == ("requires_payment_method", False)
    assert payment["opened_at"] <= payment["moved_at"]
    [call] = found["calls"]
    assert (call["state"], call["attempt"]) == ("answered", 1)
    assert call["idempotency_key"] == "payment-worker:order-1:create_intent:1"
    assert (call["inside_horizon"], len(call["asked"]), call["failures"]) == (True, 1, [])
    assert call["evidence"]["payment_id"] == intent["id"]
    assert call["request_id"].startswith("req_")
    [staged] = found["events"]
    assert (staged["id"], staged["type"], staged["sequence"]) == (event["id"], "payment.intent_created", 1)
    assert (found["letters"], found["acts"]) == ([], [])

    lines = await page(environment)
    assert f"payment {intent['id']} (intent_created)" in lines
    assert "mode test" in lines
    assert "key payment-worker:order-1:create_intent:1" in lines
    assert any(line.startswith("key age ") and line.endswith("inside its horizon of 23 h") for line in lines)
    assert any(line.startswith("asked 20") and line.endswith(" ago)") for line in lines)
    heading = lines.index(f"event 1: payment.intent_created {event['id']}")
    assert lines[heading + 1].startswith("staged 20")
    assert lines[heading + 2].startswith("told 20")
    assert {"amount 12.50 USD", f"Stripe request {call['request_id']}"} <= set(lines)
    shown = json.dumps(found) + "\n".join(lines)
    assert "secret" not in shown
    assert "anna@example.org" not in shown


async def test_what_was_asked_in_vain_is_told_with_its_reasons(
    make_worker: MakeWorker, shop: Shop, stripe: SandboxControl, environment: dict[str, str]
) -> None:
    await shop.subscribe()
    await make_worker().until_subscribed()
    await stripe.add_fault("503", method="POST", order_id="order-1", times=4)
    await shop.send(ORDER)
    await shop.until_events(1)

    [call] = (await life(environment))["calls"]
    [failure] = call["failures"]
    lines = await page(environment)
    assert failure["reason"] == "server_error"
    assert len(call["asked"]) >= 2
    assert f"in vain {failure['at']}: server_error: {failure['error']}" in lines
    assert any(line.startswith(f"asked {len(call['asked'])} times, first 20") for line in lines)


async def test_a_decline_shows_what_stripe_said(
    make_worker: MakeWorker, shop: Shop, environment: dict[str, str]
) -> None:
    await shop.subscribe()
    await make_worker().until_subscribed()
    await shop.send(ORDER | {"confirm": True, "payment_method": "pm_card_chargeDeclined"})
    await shop.until_events(1)

    found = await life(environment)

    assert (found["payment"]["state"], found["calls"][0]["state"]) == ("failed", "refused")
    assert found["calls"][0]["evidence"]["code"] == "card_declined"
    assert any('evidence {"http_status": 402, "code": "card_declined"' in line for line in await page(environment))


async def test_letters_of_the_order_come_with_what_a_replay_would_do_and_the_acts(
    make_worker: MakeWorker, shop: Shop, environment: dict[str, str]
) -> None:
    """The order, the same id for another sum, and one that cannot be read; then another order, which is not of it."""
    await shop.subscribe()
    await make_worker().until_subscribed()
    await shop.send(ORDER)
    await shop.until_events(1)
    await shop.send(ORDER | {"amount": "99.00"})
    await shop.send(ORDER | {"capture_method": "by hand"})
    await shop.send(ORDER | {"order_id": "order-2", "capture_method": "by hand"})
    await until(lambda: _has_letters(environment, 3), what="the letters")
    [letter] = await dead_letters(environment, "--reason", "conflict")
    discarded = await cli(environment, "dead-letters", "discard", letter["id"], "--why", "a test order")
    assert discarded.returncode == 0, discarded.stderr

    found = await life(environment)

    by_reason = {each["reason"]: each for each in found["letters"]}
    assert by_reason.keys() == {"conflict", "bad_message"}
    assert (by_reason["conflict"]["id"], by_reason["conflict"]["state"]) == (letter["id"], "discarded")
    assert by_reason["conflict"]["verdict"] == "blocked"
    assert "amount was 12.50, here 99.00" in by_reason["conflict"]["verdict_because"]
    assert by_reason["bad_message"]["state"] == "open"
    assert "it would be refused again" in by_reason["bad_message"]["verdict_because"]
    assert sorted(act["act"] for act in found["acts"]) == ["discarded", "landed", "landed"]

    lines = await page(environment)
    heading = lines.index(f"letter {letter['id']} (discarded)")
    assert lines[heading + 1].startswith("landed 20")
    assert lines[heading + 3].startswith("a replay blocked: the order id is taken")
    assert any(line.endswith("discarded: a test order") for line in lines)


async def _has_letters(environment: dict[str, str], count: int) -> bool:
    return len(await dead_letters(environment)) == count


async def test_an_order_that_never_came_to_a_payment_shows_its_letters(
    make_worker: MakeWorker, shop: Shop, environment: dict[str, str]
) -> None:
    await make_worker().until_subscribed()
    await shop.send(ORDER | {"capture_method": "by hand"})
    await until(lambda: _has_letters(environment, 1), what="the letter")

    found = await life(environment)

    assert (found["payment"], found["calls"], found["events"]) == ({}, [], [])
    assert [letter["reason"] for letter in found["letters"]] == ["bad_message"]
    assert "payment none: no call was begun" in await page(environment)


async def test_an_unknown_outcome_says_why_and_a_key_past_its_horizon_says_so(
    ledger_url: str, ledger: Ledger, environment: dict[str, str]
) -> None:
    await steps.open_payment(ledger, "order-1", amount="12.50")
    first = await steps.claim(ledger, "order-1", now=ago(7200))
    lost = await ledger.run(moves.mark_unknown, first, claim="w-1/1", because="stored_error", now=ago(7100))

    [call] = (await life(environment))["calls"]
    assert (call["state"], call["unknown_because"]) == ("unknown", "stored_error")
    assert (call["inside_horizon"], call["claimed_by"]) == (True, "w-1")
    assert 7200 <= call["key_age_s"] < 7300
    short = environment | {"STRIPE_KEY_HORIZON": "3600"}
    assert (await life(short))["calls"][0]["inside_horizon"] is False
    lines = await page(short)
    assert "key age 2 h, past its horizon of 1 h" in lines
    assert "unknown because stored_error" in lines

    evidence = {"absent_from": [["a", "b"]], "pages": 1}
    await ledger.run(moves.end_absent, lost, claim="w-1/1", evidence=evidence, now=ago(60))
    await steps.claim(ledger, "order-1", claim="w-1/2", now=ago(30))
    before, after = (await life(environment))["calls"]
    assert (before["state"], before["evidence"], before["claimed_by"]) == ("absent", evidence, None)
    assert (after["attempt"], after["state"], after["evidence"]) == (2, "started", None)


async def test_the_money_of_a_payment_its_refunds_and_disputes_and_what_waits_are_told(
    ledger_url: str, ledger: Ledger, environment: dict[str, str]
) -> None:
    await steps.decide(ledger, "order-1", now=ago(600))
    story = Story(order_id="order-1", payment_id="pi_order-1", amount=9999, now=ago(500))
    story.paid()
    story.refunded("re_1", 1000, reason="duplicate", metadata={"request_id": "refund-1"})
    story.tell("refund.failed", story.refunded("re_2", 99) | {"status": "failed", "failure_reason": "declined"})
    dispute = story.disputed("du_1")
    for event in map(read_stripe_event, story.events):
        await ledger.run_grouped(inbox.receive, inbox.Receipt(event, None, ago(400)))
        await ledger.run(
            lives.apply_event,
            event,
            "order-1",
            settlement=Settlement("txn_1", 320, 9679, "usd") if event.family == "charge" else None,
            source="payment-worker",
            now=ago(300),
        )
    lost = read_stripe_event(story.events[-1] | {"id": "evt_lost", "type": "charge.dispute.updated"})
    await ledger.run_grouped(inbox.receive, inbox.Receipt(replace(lost, order_id=None), None, ago(120)))
    await ledger.run(inbox.park, "evt_lost", why="Stripe does not answer", until=ago(-600), now=ago(60))

    found = await life(environment)

    sums = {"amount": 9999, "received": 9999, "refunded": 1000, "refundable": 8999, "disputed": 9999, "capturable": 0}
    assert {name: found["payment"][f"{name}_minor"] for name in sums} == sums
    assert found["payment"]["refundable"] == "89.99"
    assert found["payment"]["settlement"]["fee"] == "3.20"
    assert [(each["id"], each["amount"], each["status"]) for each in found["refunds"]] == [
        ("re_1", "10.00", "succeeded"),
        ("re_2", "0.99", "failed"),
    ]
    [kept] = found["disputes"]
    assert (kept["id"], kept["status"], kept["amount"]) == ("du_1", "needs_response", "99.99")
    assert datetime.fromisoformat(kept["evidence_due_by"]).timestamp() == dispute["evidence_details"]["due_by"]
    [waiting] = found["stripe_events"]
    assert (waiting["id"], waiting["state"], waiting["looks"]) == ("evt_lost", "parked", 1)

    lines = await page(environment)
    assert {
        "received 99.99 USD",
        "refunded 10.00 USD",
        "refundable 89.99 USD; Stripe refuses refunds of what is disputed",
        "disputed 99.99 USD",
        "fee 3.20 USD",
        "net 96.79 USD",
        "refund re_1: 10.00 USD, succeeded",
        "request refund-1",
        "refund re_2: 0.99 USD, failed",
        "failed because declined",
        "dispute du_1: 99.99 USD, needs_response",
        "Stripe event evt_lost: charge.dispute.updated, parked",
        "because Stripe does not answer",
    } <= set(lines)
    assert any(line.startswith("evidence due 20") and line.endswith("(in 23 h)") for line in lines)
    assert not any(line.startswith(("capturable", "capture before")) for line in lines)


async def test_until_when_an_authorization_may_be_captured_is_told(ledger: Ledger, environment: dict[str, str]) -> None:
    await steps.decide(ledger, "order-1", now=ago(600))
    story = Story(order_id="order-1", payment_id="pi_order-1", amount=9999, now=ago(500))
    story.authorized()
    for event in map(read_stripe_event, story.events):
        await ledger.run_grouped(inbox.receive, inbox.Receipt(event, None, ago(400)))
        await ledger.run(lives.apply_event, event, "order-1", settlement=None, source="payment-worker", now=ago(300))

    assert datetime.fromisoformat((await life(environment))["payment"]["capture_before"]) > ago(0)
    lines = await page(environment)
    assert "capturable 99.99 USD" in lines
    assert any(line.startswith("capture before 20") and line.endswith("(in 6 d)") for line in lines)


async def test_commands_are_told_with_their_state_and_the_calls_that_carried_them_out(
    ledger_url: str, make_worker: MakeWorker, shop: Shop, stripe: SandboxControl, environment: dict[str, str]
) -> None:
    await shop.subscribe("#")
    await make_worker().until_subscribed()
    await shop.send(ORDER | {"confirm": True, "payment_method": "pm_card_visa"})
    await shop.until_events(1)
    for request_id, amount in (("refund-1", "5.00"), ("refund-2", "50.00")):
        await command(shop, "refund.requested", {"order_id": "order-1", "request_id": request_id, "amount": amount})
        await until(lambda: any(request_id in message.body.decode() for message in shop.messages), what=request_id)  # noqa: B023

    found = await life(environment)

    done, refused = found["requests"]
    assert (done["request_id"], done["kind"], done["state"]) == ("refund-1", "refund", "done")
    assert (refused["request_id"], refused["state"]) == ("refund-2", "refused")
    assert done["asked"]["amount"] == "5.00"
    assert set(done["answered_by"]) <= {event["id"] for event in found["events"]}
    create, call = found["calls"]
    assert (create["for_request"], create["amount_minor"]) == (None, 1250)
    assert (call["for_request"], call["amount_minor"]) == ("refund-1", 500)
    [row] = [row for row in await stripe.record(method="POST") if row["path"] == "/v1/refunds"]
    assert call["request_id"] == row["request_id"]
    lines = await page(environment)
    assert {
        "request refund-1: refund, done",
        "asks for amount 5.00",
        "for request refund-1",
        "amount 5.00 USD",
        f"Stripe request {row['request_id']}",
        "request refund-2: refund, refused",
        "answered by order-1/refund/failed/refund-2",
    } <= set(lines)


async def test_a_cancel_that_came_before_its_order_is_told(
    make_worker: MakeWorker, shop: Shop, environment: dict[str, str]
) -> None:
    worker = await make_worker().until_subscribed()
    await command(shop, "order.cancelled", {"order_id": "order-1", "request_id": "cancel-1"})
    await until(lambda: worker.said("command.remembered"), what="it to be remembered")

    [request] = (await life(environment))["requests"]

    assert (request["request_id"], request["state"]) == ("cancel-1", "remembered")
    assert {"payment none: no call was begun", "request cancel-1: cancel, remembered"} <= set(await page(environment))


async def test_the_page_fits_eighty_columns_and_a_heading_keeps_its_ids_whole(
    ledger: Ledger, environment: dict[str, str]
) -> None:
    event = await steps.decide(ledger, "order-" + "1" * 58, now=ago(60))

    code, shown = await asyncio.to_thread(on_terminal, environment, ["payments", "show", event.order_id], columns=80)

    lines = [line.rstrip() for line in shown.replace("\r", "").splitlines()]
    heading = f"event 1: payment.intent_created {event.event_id}"
    assert code == 0
    assert heading in lines
    assert max(len(line) for line in lines if line != heading) <= 80


async def test_an_event_that_no_queue_has_is_told_as_such(ledger: Ledger, environment: dict[str, str]) -> None:
    event = await steps.decide(ledger, "order-1", now=ago(60))

    [staged] = (await life(environment))["events"]
    lines = await page(environment)

    assert (staged["id"], staged["told_at"]) == (event.event_id, None)
    heading = lines.index(f"event 1: {event.type} {event.event_id}")
    assert lines[heading + 2] == "told not yet"


async def test_more_letters_than_a_page_holds_are_counted(ledger: Ledger, environment: dict[str, str]) -> None:
    for number in range(102):
        arrived = letter_steps.letter(f"dl_{number:03}", order_id="order-1", landing_id=f"a-{number}")
        await letter_steps.land(ledger, arrived)

    lines = await page(environment)

    assert sum(line.startswith("letter dl_") for line in lines) == 100
    assert "100 of 102 letters shown; see dead-letters list --state all --order" in lines


async def test_an_unknown_order_is_refused_with_what_to_try(ledger: Ledger, environment: dict[str, str]) -> None:
    await steps.decide(ledger, "order-1", now=ago(60))

    done = await cli(environment, "payments", "show", "Order-1\x1b[31m", "--json")

    assert (done.returncode, done.stdout) == (2, "")
    [line] = done.stderr.splitlines()
    assert "nothing of the order 'Order-1\\x1b[31m'" in line
    assert "payments.db" in line, "it may be the wrong ledger"
    assert "--text" in line
    assert "payment-worker status" in line
