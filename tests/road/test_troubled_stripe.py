"""Stripe stumbles: the order is asked again with the same key and the same parameters, and one intent comes of it."""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
from aiohttp import ClientSession, web
from aiohttp.test_utils import TestServer

from tests.harness import Shop, WorkerProcess, dead_letters, until
from worker.sandbox.stripe_control import SandboxControl

MakeWorker = Callable[..., WorkerProcess]
ORDER: dict[str, Any] = {"order_id": "order-1", "amount": "12.50"}


@pytest.mark.parametrize("kind", ["refuse", "answer_lost", "half_body", "503", "429", "lock_timeout", "409"])
async def test_a_fault_that_passes_is_asked_again_under_the_same_key(
    kind: str, make_worker: MakeWorker, shop: Shop, stripe: SandboxControl
) -> None:
    await shop.subscribe()
    await make_worker().until_subscribed()
    await stripe.add_fault(kind, method="POST", times=2)

    await shop.send(ORDER)
    await shop.until_events(1)

    record = await stripe.record(method="POST")
    assert len(record) == 3
    assert {row["idempotency_key"] for row in record} == {"payment-worker:order-1:create_intent:1"}
    assert (await stripe.stats())["intents"] == 1


async def test_what_quick_tries_do_not_mend_waits_in_a_retry_queue_and_frees_its_slot(
    make_worker: MakeWorker, shop: Shop, stripe: SandboxControl
) -> None:
    await shop.subscribe()
    worker = await make_worker(PREFETCH="1").until_subscribed()
    await stripe.add_fault("503", method="POST", order_id="order-1", times=4)

    await shop.send(ORDER, headers={"tenant": "blue", "cloudEvents:id": "event-1"}, message_id="message-1")
    await shop.send({"order_id": "order-2", "amount": "5.00"})
    events = await shop.until_events(2)

    assert [event["subject"] for event in events] == ["order-2", "order-1"]
    assert events[1]["data"]["cause"] == "event-1"
    [retried] = worker.said("order.retried")
    assert (retried["reason"], retried["delay_s"], retried["attempt"]) == ("server_error", 1, 1)
    assert (await stripe.stats())["intents"] == 2


async def test_a_revoked_key_burns_no_message_and_work_resumes_by_itself(
    make_worker: MakeWorker, shop: Shop, stripe: SandboxControl, environment: dict[str, str]
) -> None:
    await shop.subscribe()
    await stripe.change_settings(revoked_keys=["sk_test_sandbox_key"])
    worker = await make_worker().until_subscribed()

    await shop.send_all([{"order_id": f"order-{number}", "amount": "1.00"} for number in range(20)])
    await until(lambda: worker.said("consumer.paused"), what="the pause")
    assert await dead_letters(environment) == []
    await stripe.change_settings(revoked_keys=[])
    await shop.until_events(20)

    assert await dead_letters(environment) == []
    assert (await stripe.stats())["intents"] == 20


async def test_a_key_that_may_read_and_not_create_burns_no_message(
    make_worker: MakeWorker, shop: Shop, stripe: SandboxControl, environment: dict[str, str]
) -> None:
    """Asking whether all is well says yes here; the next order shows that it is not."""
    await shop.subscribe()
    await stripe.change_settings(restricted_keys={"sk_test_sandbox_key": ["GET /v1/payment_intents*"]})
    worker = await make_worker().until_subscribed()

    await shop.send_all([{"order_id": f"order-{number}", "amount": "1.00"} for number in range(20)])
    await until(lambda: len(worker.said("consumer.subscribed")) >= 3, what="the worker to try again")
    await stripe.change_settings(restricted_keys={})
    await shop.until_events(20)

    assert await dead_letters(environment) == []
    assert (await stripe.stats())["intents"] == 20
    assert len(worker.said("consumer.subscribed")) <= 6, "each round counts against the orders' delivery limit"


async def test_a_connected_account_that_stripe_refuses_is_the_fault_of_its_order_alone(
    make_worker: MakeWorker, shop: Shop, environment: dict[str, str]
) -> None:
    error = {"error": {"type": "invalid_request_error", "code": "account_invalid", "message": "no such account"}}
    await shop.subscribe()
    async with altering_proxy(environment["STRIPE_API_BASE"], {}, refused_account=error) as address:
        worker = await make_worker(STRIPE_API_BASE=address).until_subscribed()
        await shop.send(ORDER | {"order_id": "order-bad", "stripe_account": "acct_gone"})
        await shop.send(ORDER)
        await shop.until_events(1)
        [letter] = await until(lambda: dead_letters(environment), what="the dead letter")

    assert (letter["reason"], letter["order_id"]) == ("account_refused", "order-bad")
    assert "acct_gone" in letter["error"]
    assert len(worker.said("consumer.subscribed")) == 1


async def test_an_account_that_may_not_be_read_any_more_pauses_nobody(
    make_worker: MakeWorker, shop: Shop, environment: dict[str, str]
) -> None:
    """It was disconnected after its order was decided: the reply does without the secret."""
    error = {"error": {"type": "invalid_request_error", "code": "account_invalid", "message": "no such account"}}
    order = ORDER | {"stripe_account": "acct_1"}
    await shop.subscribe()
    first = await make_worker().until_subscribed()
    await shop.send(order)
    await shop.until_events(1)
    assert await first.stop() == 0

    async with altering_proxy(environment["STRIPE_API_BASE"], {}, refused_account=error) as address:
        worker = await make_worker(STRIPE_API_BASE=address).until_subscribed()
        await shop.send(order, reply_to=await shop.await_replies())
        await until(lambda: shop.replies, what="the reply")
        await shop.send(ORDER | {"order_id": "order-2"})
        await shop.until_events(2)

    assert shop.replies[0][1]["payment_id"] is not None
    assert shop.replies[0][1]["client_secret"] is None
    assert len(worker.said("consumer.subscribed")) == 1


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"amount": 1}, "amount asked 1250, got 1"),
        ({"currency": "eur"}, "currency asked 'usd', got 'eur'"),
        ({"livemode": True}, "livemode asked False, got True"),
        ({"metadata": {"order_id": "order-2"}}, "order_id asked 'order-1', got 'order-2'"),
    ],
    ids=["amount", "currency", "mode", "order"],
)
async def test_an_answer_for_something_else_than_was_asked_is_shown_to_a_person(
    change: dict[str, Any], told: str, make_worker: MakeWorker, shop: Shop, environment: dict[str, str]
) -> None:
    await shop.subscribe()
    async with altering_proxy(environment["STRIPE_API_BASE"], change) as address:
        await make_worker(STRIPE_API_BASE=address).until_subscribed()
        await shop.send(ORDER)
        [letter] = await until(lambda: dead_letters(environment), what="the dead letter")

    assert letter["reason"] == "answer_mismatch"
    assert told in letter["error"]
    assert not shop.events


@asynccontextmanager
async def altering_proxy(
    target: str, change: dict[str, Any], *, refused_account: dict[str, Any] | None = None
) -> AsyncIterator[str]:
    """Something between us and Stripe that hands on every request and alters the answer.

    refused_account: the body of a 403 for whatever names a connected account.
    """

    async def hand_on(request: web.Request) -> web.Response:
        if refused_account and "Stripe-Account" in request.headers:
            return web.json_response(refused_account, status=403)
        async with (
            ClientSession() as session,
            session.request(
                request.method,
                target + request.path_qs,
                data=await request.read(),
                headers={name: request.headers[name] for name in ("Authorization", "Content-Type", "Idempotency-Key")},
            ) as answer,
        ):
            return web.json_response(await answer.json() | change, headers={"Request-Id": "req_1"})

    app = web.Application()
    app.router.add_route("*", "/{path:.*}", hand_on)
    async with TestServer(app) as server:
        yield str(server.make_url("")).rstrip("/")


async def test_a_worker_killed_while_stripe_works_leaves_one_intent(
    ledger_url: str, make_worker: MakeWorker, shop: Shop, stripe: SandboxControl
) -> None:
    """The answer is on its way when the process dies: the next one asks again under the same key."""
    await shop.subscribe()
    worker = await make_worker(DATABASE_URL=ledger_url).until_subscribed()
    await stripe.add_fault("hang_after_work", method="POST", times=1)

    await shop.send(ORDER)
    await until(lambda: _intents(stripe), what="the intent")
    worker.kill()
    await make_worker(DATABASE_URL=ledger_url).until_subscribed()
    await shop.until_events(1)

    stats = await stripe.stats()
    assert (stats["intents"], stats["replayed"]) == (1, 1)


async def _intents(stripe: SandboxControl) -> int:
    return int((await stripe.stats())["intents"])
