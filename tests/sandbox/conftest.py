"""A sandbox for each test, and Stripe's own SDK pointed at it: the sandbox is judged by the client it was made for."""

from collections.abc import AsyncIterator, Callable
from typing import Any

import aiohttp
import pytest
import stripe

from worker.sandbox.stripe_server import RunningSandbox, running_sandbox

MakeClient = Callable[..., stripe.StripeClient]


@pytest.fixture
async def sandbox() -> AsyncIterator[RunningSandbox]:
    async with running_sandbox() as running:
        yield running


@pytest.fixture
async def make_client(sandbox: RunningSandbox, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[MakeClient]:
    monkeypatch.setattr(stripe, "enable_telemetry", False)
    opened: list[stripe.AIOHTTPClient] = []

    def make(api_key: str = "sk_test_abc", *, timeout_s: float = 10.0, **options: Any) -> stripe.StripeClient:
        http = stripe.AIOHTTPClient(timeout=timeout_s)
        opened.append(http)
        addresses = dict.fromkeys(("api", "connect", "files", "meter_events"), sandbox.base_url)
        return stripe.StripeClient(
            api_key, http_client=http, base_addresses=addresses, max_network_retries=0, **options
        )

    yield make
    for http in opened:
        await http.close_async()


@pytest.fixture
def intents(make_client: MakeClient) -> Any:
    """`client.v1.payment_intents` under a test key."""
    return make_client().v1.payment_intents


@pytest.fixture
async def raw(sandbox: RunningSandbox) -> AsyncIterator[aiohttp.ClientSession]:
    """HTTP without the SDK, for what the SDK would not send or would hide."""
    headers = {"Authorization": "Bearer sk_test_abc"}
    async with aiohttp.ClientSession(sandbox.base_url, headers=headers) as session:
        yield session


@pytest.fixture
def order() -> dict[str, Any]:
    return {"amount": 1999, "currency": "usd", "metadata": {"order_id": "order-1"}}


@pytest.fixture
def paid(order: dict[str, Any]) -> dict[str, Any]:
    """An order that is confirmed at once with a card that works."""
    stay = {"enabled": True, "allow_redirects": "never"}
    return {**order, "confirm": True, "payment_method": "pm_card_visa", "automatic_payment_methods": stay}
