"""A sandbox for each test, and Stripe's own SDK pointed at it: the sandbox is judged by the client it was made for."""

import json
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from typing import Any

import aiohttp
import pytest
import stripe
from aiohttp import web

from worker.sandbox.stripe_server import RunningSandbox, running_sandbox

SECRET = "whsec_first"

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
def v1(make_client: MakeClient) -> Any:
    """`client.v1` under a test key."""
    return make_client().v1


@pytest.fixture
def intents(v1: Any) -> Any:
    return v1.payment_intents


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


@dataclass
class Receiver:
    """A merchant's webhook endpoint. `statuses` are answered first, one each; then 200."""

    url: str = ""
    headers: list[Any] = field(default_factory=list)
    bodies: list[bytes] = field(default_factory=list)
    statuses: list[int] = field(default_factory=list)

    @property
    def events(self) -> list[dict[str, Any]]:
        return [json.loads(body) for body in self.bodies]

    @property
    def types(self) -> list[str]:
        return [event["type"] for event in self.events]

    async def take(self, request: web.Request) -> web.Response:
        self.headers.append(request.headers)
        self.bodies.append(await request.read())
        status = self.statuses.pop(0) if self.statuses else 200
        return web.Response(status=status, headers={"Location": "/elsewhere"} if status == 302 else {})


@pytest.fixture
async def receiver() -> AsyncIterator[Receiver]:
    receiver = Receiver()
    app = web.Application()
    app.router.add_post("/hook", receiver.take)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    receiver.url = f"http://127.0.0.1:{runner.addresses[0][1]}/hook"
    yield receiver
    await runner.cleanup()


@pytest.fixture
async def endpoint(sandbox: RunningSandbox, receiver: Receiver) -> str:
    """The receiver as a webhook endpoint that gets all events."""
    return await sandbox.control.add_webhook(receiver.url, [SECRET])
