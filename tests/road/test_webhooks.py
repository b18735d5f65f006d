"""Stripe's webhooks over real HTTP: what they do to a payment, once, in whatever order and however often they come."""

import asyncio
import json
import random
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import suppress
from typing import Any

import aiohttp
import pytest

from tests.harness import Shop, WorkerProcess, until
from tests.stripe_story import Story, signed
from worker.receive_webhooks import MOST_BODY_BYTES, PATH

SECRET = "whsec_of_this_test"
MakeWorker = Callable[..., WorkerProcess]


@pytest.fixture
async def http() -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession() as session:
        yield session


async def deliver(
    http: aiohttp.ClientSession, worker: WorkerProcess, event: dict[str, Any], *secrets: str, at: float | None = None
) -> int:
    """As Stripe does; returns the status of the answer."""
    body = json.dumps(event).encode()
    header = signed(body, *(secrets or (SECRET,)), at=int(time.time() if at is None else at))
    async with http.post(worker.http + PATH, data=body, headers={"Stripe-Signature": header}) as answer:
        return answer.status


async def paid_order(shop: Shop, order_id: str, amount: str = "12.50") -> Story:
    """An order whose intent is made, and the story of it so far."""
    before = len(shop.events)
    await shop.send({"order_id": order_id, "amount": amount})
    await shop.until_events(before + 1)
    [made] = [event for event in shop.events if event["data"]["order_id"] == order_id]
    return Story(order_id=order_id, payment_id=made["data"]["payment_id"], amount=made["data"]["amount_minor"])


def told(shop: Shop, order_id: str) -> list[dict[str, Any]]:
    return [event for event in shop.events if event["data"]["order_id"] == order_id]


async def until_told(shop: Shop, order_id: str, *types: str) -> list[dict[str, Any]]:
    """The events of an order, once those types are among them and nothing is told twice."""
    await until(lambda: {event["type"] for event in told(shop, order_id)} >= set(types), what=f"{types}")
    return told(shop, order_id)


async def test_a_payments_life_is_told_step_by_step_with_its_state(
    make_worker: MakeWorker, shop: Shop, http: aiohttp.ClientSession, ledger_url: str
) -> None:
    await shop.subscribe()
    worker = await make_worker(STRIPE_WEBHOOK_SECRET=SECRET).until_subscribed()
    story = await paid_order(shop, "order-1")
    story.asked_for_action()
    story.declined()
    story.later(5)
    story.paid()
    story.refunded("re_1", 250)
    story.later(5)
    refund = story.refunded("re_2", 1000)
    story.later(5)
    story.tell("refund.failed", refund | {"status": "failed", "failure_reason": "expired_or_canceled_card"})
    story.disputed()

    for event in story.events:
        assert await deliver(http, worker, event) == 200
        await until(lambda event=event: event["id"] in _applied(worker), what=event["type"])  # type: ignore[misc]

    events = await until_told(shop, "order-1", "payment.dispute_opened")
    assert [event["type"] for event in events] == [
        "payment.intent_created",
        "payment.requires_action",
        "payment.attempt_failed",
        "payment.succeeded",
        "payment.refunded",
        "payment.refunded",
        "payment.refund_failed",
        "payment.dispute_opened",
    ]
    assert [event["data"]["sequence"] for event in events] == list(range(1, 9))
    by_type = {event["type"]: event["data"] for event in events}
    assert by_type["payment.requires_action"]["next_action"] == "redirect_to_url"
    assert by_type["payment.attempt_failed"]["failure"]["code"] == "card_declined"
    assert by_type["payment.succeeded"]["status"] == "succeeded"
    assert by_type["payment.succeeded"]["amount_received"] == "12.50"
    assert [event["data"]["amount_refunded"] for event in events[4:7]] == ["2.50", "12.50", "2.50"]
    assert [event["data"]["fully_refunded"] for event in events[4:6]] == [False, True]
    assert by_type["payment.refund_failed"]["failure_reason"] == "expired_or_canceled_card"
    assert by_type["payment.dispute_opened"]["amount_disputed"] == "12.50"
    assert by_type["payment.dispute_opened"]["cause"] == story.events[-1]["id"]
    assert "_secret_" not in json.dumps(shop.events)


async def test_in_any_order_and_twice_the_same_is_told_once_each(
    make_worker: MakeWorker, shop: Shop, http: aiohttp.ClientSession, ledger_url: str
) -> None:
    await shop.subscribe()
    workers = [make_worker(STRIPE_WEBHOOK_SECRET=SECRET) for _ in range(2)]
    for worker in workers:
        await worker.until_subscribed()
    dice, stories = random.Random(7), []
    for number in range(12):
        story = await paid_order(shop, f"order-{number}")
        story.asked_for_action()
        story.later(1)
        story.declined()
        story.later(1)
        story.paid()
        story.later(1)
        story.refunded(f"re_{number}_1", 100)
        refund = story.refunded(f"re_{number}_2", 100)
        story.later(1)
        story.tell("refund.failed", refund | {"status": "failed"})
        stories.append(story)
    events = [event for story in stories for event in story.events for _ in range(2)]
    events += [event | {"id": event["id"] + "_other"} for event in events[::3]]
    dice.shuffle(events)

    async def all_of(some: Sequence[dict[str, Any]], worker: WorkerProcess) -> None:
        for event in some:
            assert await deliver(http, worker, event) == 200

    await asyncio.gather(*(all_of(events[lane::8], workers[lane % 2]) for lane in range(8)))

    wanted = Counter(
        {
            "payment.intent_created": 12,
            "payment.requires_action": 12,
            "payment.attempt_failed": 12,
            "payment.succeeded": 12,
            "payment.refunded": 24,
            "payment.refund_failed": 12,
        }
    )
    await until(lambda: Counter({e["id"]: e["type"] for e in shop.events}.values()) == wanted, what="all to be told")
    last = {
        event["data"]["order_id"]: event["data"] for event in sorted(shop.events, key=lambda e: e["data"]["sequence"])
    }
    assert {(data["status"], data["amount_refunded"]) for data in last.values()} == {("succeeded", "1.00")}
    sequences = Counter((event["data"]["order_id"], event["data"]["sequence"]) for event in _once(shop.events))
    assert set(sequences.values()) == {1}


async def test_an_event_that_comes_before_its_order_is_decided_waits_for_it(
    make_worker: MakeWorker, shop: Shop, http: aiohttp.ClientSession, stripe: Any
) -> None:
    await shop.subscribe()
    worker = await make_worker(STRIPE_WEBHOOK_SECRET=SECRET).until_subscribed()
    story = await paid_order(shop, "order-1")
    early = Story(order_id="order-2", payment_id="pi_unknown_yet")
    assert await deliver(http, worker, early.events[0]) == 200
    await stripe.change_settings(latency_s=3)
    await shop.send({"order_id": "order-2", "amount": "12.50"})
    await until(lambda: worker.said("inbox.parked"), what="it to be parked")
    story.paid()
    assert await deliver(http, worker, story.events[-1]) == 200

    await until_told(shop, "order-1", "payment.succeeded")
    await until_told(shop, "order-2", "payment.intent_created")


async def test_a_secret_is_rolled_under_load_and_no_event_is_refused(
    make_worker: MakeWorker, shop: Shop, http: aiohttp.ClientSession
) -> None:
    new = "whsec_the_next_one"
    await shop.subscribe()
    workers = [make_worker(STRIPE_WEBHOOK_SECRET=secrets) for secrets in (f"{SECRET},{new}", f"{SECRET}, {new}")]
    for worker in workers:
        await worker.until_subscribed()
    story = await paid_order(shop, "order-1")

    async def lane(number: int) -> set[int]:
        answers = set()
        for turn in range(60):
            by = [(SECRET,), (SECRET, new), (new,)][turn // 20]
            event = story.events[0] | {"id": f"evt_{number}_{turn}"}
            answers.add(await deliver(http, workers[number % 2], event, *by))
        return answers

    assert await asyncio.gather(*map(lane, range(8))) == [{200}] * 8


async def test_what_is_forged_replayed_cut_off_too_large_or_of_the_future_changes_nothing(
    make_worker: MakeWorker, shop: Shop, http: aiohttp.ClientSession
) -> None:
    await shop.subscribe()
    worker = await make_worker(STRIPE_WEBHOOK_SECRET=SECRET).until_subscribed()
    story = await paid_order(shop, "order-1")
    story.paid()
    body, now = json.dumps(story.events[-1]).encode(), int(time.time())
    good, dice = signed(body, SECRET, at=now), random.Random(11)
    answers: Counter[int] = Counter()

    async def send(data: bytes, header: str) -> None:
        async with http.post(worker.http + PATH, data=data, headers={"Stripe-Signature": header}) as answer:
            answers[answer.status] += 1
            assert await answer.text() == '{"received": false}'

    def attack(number: int) -> tuple[bytes, str]:
        place = dice.randrange(len(body))
        return [
            (body, signed(body, f"whsec_{dice.randrange(10**12)}", at=now)),
            (body[:place], good),
            (body[:place] + bytes([body[place] ^ 1]) + body[place + 1 :], good),
            (body, signed(body, SECRET, at=now - dice.randrange(400, 10**6))),
            (body, signed(body, SECRET, at=now + dice.randrange(400, 10**6))),
            (body, good.replace("v1=", "v0=")),
            (body, good.replace(f"t={now}", f"t={now + 1}")),
            (body, ""),
            (b"", signed(b"", SECRET, at=now)),
            (b"[" * 1000, signed(b"[" * 1000, SECRET, at=now)),
        ][number % 10]

    async def lane(number: int) -> None:
        for turn in range(1250):
            await send(*attack(number * 1250 + turn))

    await asyncio.gather(*map(lane, range(8)))
    large = b"x" * (MOST_BODY_BYTES + 1)
    for _ in range(10):
        await send(large, signed(large, SECRET, at=now))

    assert answers == {400: 10_000, 413: 10}
    assert len(worker.said("webhook.refused")) < 10, "counted, and told in a few quiet lines"
    assert SECRET not in worker.log.read_text()
    assert [event["type"] for event in shop.events] == ["payment.intent_created"]
    assert await deliver(http, worker, story.events[-1]) == 200
    await until_told(shop, "order-1", "payment.succeeded")


async def test_a_body_that_is_packed_or_never_ends_is_not_read(
    make_worker: MakeWorker, shop: Shop, http: aiohttp.ClientSession
) -> None:
    await shop.subscribe()
    worker = await make_worker(STRIPE_WEBHOOK_SECRET=SECRET).until_subscribed()
    story = await paid_order(shop, "order-1")
    for encoding in ("gzip", "deflate", "br"):
        headers = {"Stripe-Signature": "t=1,v1=x", "Content-Encoding": encoding}
        with suppress(aiohttp.ClientOSError):  # it hangs up on what it does not read
            async with http.post(worker.http + PATH, data=b"garbage" * 100, headers=headers) as answer:
                assert answer.status == 400
    assert not [line for line in worker.lines() if "exception" in line]
    assert "Traceback" not in worker.log.read_text()
    story.paid()
    assert await deliver(http, worker, story.events[-1]) == 200
    await until_told(shop, "order-1", "payment.succeeded")


async def test_a_strangers_object_that_names_our_order_changes_nothing(
    make_worker: MakeWorker, shop: Shop, http: aiohttp.ClientSession
) -> None:
    await shop.subscribe()
    worker = await make_worker(STRIPE_WEBHOOK_SECRET=SECRET).until_subscribed()
    story = await paid_order(shop, "order-1")
    strange = Story(order_id="order-1", payment_id="pi_of_a_stranger")
    strange.paid()
    strange.refunded("re_1", 100, payment_intent=None, metadata={"order_id": "order-1"})
    for event in strange.events:
        assert await deliver(http, worker, event) == 200
    story.paid()
    assert await deliver(http, worker, story.events[-1]) == 200
    events = await until_told(shop, "order-1", "payment.succeeded")
    assert [event["type"] for event in events] == ["payment.intent_created", "payment.succeeded"]
    assert events[-1]["data"]["payment_id"] == story.payment_id


@pytest.mark.parametrize(
    "changed",
    [{"livemode": True}, {"data": {"object": {"object": "customer", "id": "cus_1"}}}],
    ids=["live", "no payment"],
)
async def test_what_is_none_of_ours_is_taken_and_set_aside(
    make_worker: MakeWorker, shop: Shop, http: aiohttp.ClientSession, changed: dict[str, Any]
) -> None:
    await shop.subscribe()
    worker = await make_worker(STRIPE_WEBHOOK_SECRET=SECRET).until_subscribed()
    story = await paid_order(shop, "order-1")
    story.paid()
    assert await deliver(http, worker, story.events[-1] | {"id": "evt_foreign"} | changed) == 200
    assert await deliver(http, worker, story.events[-1]) == 200
    events = await until_told(shop, "order-1", "payment.succeeded")
    assert [event["type"] for event in events] == ["payment.intent_created", "payment.succeeded"]
    assert "evt_foreign" not in _applied(worker)


async def test_without_a_secret_there_is_no_route(make_worker: MakeWorker, http: aiohttp.ClientSession) -> None:
    worker = await make_worker().until_subscribed()
    assert await deliver(http, worker, Story().events[0]) == 404


def _applied(worker: WorkerProcess) -> set[str]:
    return {line["stripe_event"] for line in worker.said("inbox.applied")}


def _once(events: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    return list({event["id"]: event for event in events}.values())
