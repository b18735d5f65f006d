"""No client secret, API key or card number in any log at DEBUG, event, dead letter, listing, metric or ledger file."""

import asyncio
import json
import re
import urllib.request
from collections.abc import Callable
from pathlib import Path

from tests.harness import Shop, WorkerProcess, dead_letters, run_cli, until
from worker.sandbox.stripe_control import SandboxControl

MakeWorker = Callable[..., WorkerProcess]
CARD = "4000056655665556"


async def test_a_grep_through_everything_that_is_kept_finds_no_secret(
    make_worker: MakeWorker, shop: Shop, stripe: SandboxControl, environment: dict[str, str], tmp_path: Path
) -> None:
    await shop.subscribe()
    worker = await make_worker(LOG_LEVEL="debug", STRIPE_LOG="debug").until_subscribed()
    reply_to = await shop.await_replies()
    declined = {"confirm": True, "payment_method": "pm_card_chargeDeclined"}
    await stripe.add_fault("503", method="POST", order_id="order-stumbling", times=3)
    for order in (
        {"order_id": "order-good", "amount": "10.00"},
        {"order_id": "order-good", "amount": "10.00"},
        {"order_id": "order-good", "amount": "11.00"},
        {"order_id": "order-declined", "amount": "10.00", **declined},
        {"order_id": "order-declined", "amount": "10.00", **declined},
        {"order_id": "order-stumbling", "amount": "10.00"},
        {"order_id": "order-small", "amount": "0.01"},
        {"order_id": "order-card", "amount": "10.00", "description": CARD},
        {"order_id": "order-key", "amount": "10.00", "currency": "sk_live_abcdefghijkl"},
    ):
        await shop.send(order, reply_to=reply_to)
    with_cvc = {"order_id": "order-cvc", "card": CARD, "cvc": "987"}
    await shop.send(with_cvc, headers={"pan": CARD})
    await shop.until_events(4)
    await until(lambda: len(shop.replies) >= 9, what="the replies")
    secrets = {str(reply["client_secret"]) for _, reply in shop.replies if reply["client_secret"]}
    assert len(secrets) >= 3, "the test knows what it looks for"

    table = await asyncio.to_thread(run_cli, environment, "dead-letters", "list")
    exported = await asyncio.to_thread(run_cli, environment, "dead-letters", "export")
    letters = json.dumps(await dead_letters(environment)) + table.stdout + exported.stdout
    figures = await asyncio.to_thread(_fetch, f"{worker.http}/metrics")
    checked = await asyncio.to_thread(run_cli, environment, "check")
    assert await worker.stop() == 0
    kept = {
        "log": worker.log.read_bytes(),
        "events": b"".join(message.body + repr(message.headers).encode() for message in shop.messages),
        "letters": letters.encode(),
        "metrics": figures,
        "check": (checked.stdout + checked.stderr).encode(),
        "ledger": b"".join(path.read_bytes() for path in tmp_path.glob("payments.db*")),
    }

    assert b"order-good" in kept["ledger"]
    assert b"order-card" in kept["ledger"]
    for place, content in kept.items():
        text = content.decode("latin-1")
        assert not [secret for secret in secrets if secret in text], place
        assert "_secret_" not in text, place
        assert environment["STRIPE_API_KEY"] not in text, place
        assert "guest:guest" not in text, place
        assert not re.search(r"4000[ -]?0566[ -]?5566[ -]?5556", text), place
        assert '"987"' not in text, place


def _fetch(address: str) -> bytes:
    with urllib.request.urlopen(address) as answer:
        content: bytes = answer.read()
        return content
