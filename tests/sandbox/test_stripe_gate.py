import asyncio
import base64
from typing import Any

import aiohttp
import pytest
import stripe

from worker.sandbox.stripe_gate import RateLimiter
from worker.sandbox.stripe_server import RunningSandbox
from worker.sandbox.stripe_store import Scope

GOOD = "Basic " + base64.b64encode(b"sk_test_abc:").decode()


@pytest.mark.parametrize(
    ("authorization", "status"),
    [
        (None, 401),
        ("", 401),
        ("Bearer", 401),
        ("Bearer nonsense", 401),
        ("Bearer sk_test_", 401),
        ("Basic !!!", 401),
        ("Digest sk_test_abc", 401),
        ("Bearer pk_test_abc", 401),
        ("Bearer sk_test_abc", 200),
        ("bearer rk_live_abc", 200),
        (GOOD, 200),
    ],
)
async def test_a_secret_key_is_needed(sandbox: RunningSandbox, authorization: str | None, status: int) -> None:
    headers = {} if authorization is None else {"Authorization": authorization}
    async with (
        aiohttp.ClientSession(sandbox.base_url) as session,
        session.get("/v1/payment_intents", headers=headers) as answer,
    ):
        body = await answer.json()
        assert answer.status == status
        assert answer.headers["Request-Id"].startswith("req_")
    if status == 401:
        assert body["error"]["type"] == "invalid_request_error"
        assert "abc" not in body["error"]["message"]


async def test_a_revoked_key_is_expired(make_client: Any, sandbox: RunningSandbox, order: Any) -> None:
    intents = make_client("sk_test_stolen").v1.payment_intents
    assert await intents.create_async(order)
    await sandbox.control.change_settings(revoked_keys=["sk_test_stolen"])
    with pytest.raises(stripe.AuthenticationError) as refused:
        await intents.create_async(order)
    assert refused.value.error.code == "api_key_expired"
    assert "stolen" not in str(refused.value)
    assert await make_client("sk_test_new").v1.payment_intents.create_async(order)


async def test_a_restricted_key_may_do_only_what_it_may(make_client: Any, sandbox: RunningSandbox, order: Any) -> None:
    await sandbox.control.change_settings(restricted_keys={"rk_test_read": ["GET /v1/payment_intents*"]})
    reader = make_client("rk_test_read").v1.payment_intents
    with pytest.raises(stripe.PermissionError) as refused:
        await reader.create_async(order)
    assert refused.value.http_status == 403
    created = await make_client().v1.payment_intents.create_async(order)
    assert (await reader.retrieve_async(created.id)).id == created.id


async def test_an_account_out_of_reach_is_a_403(make_client: Any, order: Any) -> None:
    with pytest.raises(stripe.PermissionError) as refused:
        await make_client(stripe_account="not-an-account").v1.payment_intents.create_async(order)
    assert refused.value.error.code == "account_invalid"


async def test_a_context_names_the_account_too(make_client: Any, order: Any) -> None:
    created = await make_client(stripe_context="acct_a/acct_b").v1.payment_intents.create_async(order)
    by_header = make_client(stripe_account="acct_b").v1.payment_intents
    assert (await by_header.retrieve_async(created.id)).id == created.id


async def test_an_unknown_path_is_a_404_and_every_answer_has_its_headers(raw: aiohttp.ClientSession) -> None:
    headers = {"Stripe-Version": "2025-01-01.old", "Idempotency-Key": "k"}
    for method, path in (
        ("POST", "/v1/charges"),
        ("DELETE", "/v1/payment_intents"),
        ("POST", "/v1/payment_intents/"),
        ("POST", "/v1/payment_intents/pi_1/"),
        ("POST", "/v1/payment_intents/pi_1/confirm/more"),
        ("GET", "/v1/payment_intents/pi_1/confirm"),
        ("GET", "/"),
    ):
        async with raw.request(method, path, headers=headers) as answer:
            assert answer.status == 404
            assert (await answer.json())["error"]["message"].startswith("Unrecognized request URL")
            assert answer.headers["Stripe-Version"] == "2025-01-01.old"
            assert answer.headers["Request-Id"].startswith("req_")


async def test_past_its_rate_an_endpoint_refuses_and_others_do_not(
    intents: Any, sandbox: RunningSandbox, order: Any
) -> None:
    created = [await intents.create_async(order) for _ in range(2)]
    # A bucket of one, that fills once in 1000 s: the second request is refused however slow the machine is.
    await sandbox.control.change_settings(rate_limit=0.001)
    await intents.retrieve_async(created[0].id)
    with pytest.raises(stripe.RateLimitError) as refused:
        await intents.retrieve_async(created[1].id)
    assert refused.value.http_status == 429
    assert refused.value.headers["Stripe-Rate-Limited-Reason"] == "endpoint-rate"
    assert "Stripe-Should-Retry" not in refused.value.headers

    key = {"idempotency_key": "k"}
    first = await intents.create_async(order, key)
    with pytest.raises(stripe.RateLimitError):  # the limiter stands before the idempotency layer
        await intents.create_async(order, key)
    await sandbox.control.change_settings(rate_limit=0)
    assert (await intents.create_async(order, key)).id == first.id


def test_a_bucket_holds_one_second_and_fills_at_its_rate(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr("time.monotonic", lambda: now)
    limiter = RateLimiter(25)
    mine, theirs = Scope("acct_a", False), Scope("acct_a", True)
    assert [limiter.take(mine, "POST /a") is None for _ in range(26)] == [True] * 25 + [False]
    assert limiter.take(mine, "POST /b") is None
    assert limiter.take(theirs, "POST /a") is None
    now += 0.2
    assert [limiter.take(mine, "POST /a") is None for _ in range(6)] == [True] * 5 + [False]
    now += 60
    assert [limiter.take(mine, "POST /a") is None for _ in range(26)] == [True] * 25 + [False]


async def test_a_key_that_is_no_text_is_answered_but_not_echoed(sandbox: RunningSandbox) -> None:
    host, port = sandbox.base_url.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(
        b"POST /v1/payment_intents HTTP/1.1\r\nHost: sandbox\r\nAuthorization: Bearer sk_test_a\r\n"
        b"Idempotency-Key: \xff\xfe\r\nContent-Length: 23\r\nConnection: close\r\n\r\namount=500&currency=usd"
    )
    answer = await asyncio.wait_for(reader.read(), 10)
    writer.close()
    assert answer.startswith(b"HTTP/1.1 200 OK")
    assert b"Idempotency-Key" not in answer
