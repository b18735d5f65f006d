"""A SIGKILL at every line of the spine, one line after the other, and a restart: one intent and one event per order.

Enumerated, not sampled: a first life records the lines that an order passes through, and then for each of them a worker
dies there, on an order of its own, which the next worker has to finish before it dies in its turn.
"""

import asyncio
import json
import os
import signal
import sys
from collections import Counter
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from tests.harness import Shop, dead_letters, until
from worker.sandbox.stripe_control import SandboxControl

Order = Callable[[str], dict[str, Any]]

SCENARIOS: dict[str, Order] = {
    "created": lambda order_id: {"order_id": order_id, "amount": "12.50"},
    "declined": lambda order_id: {
        "order_id": order_id,
        "amount": "12.50",
        "confirm": True,
        "payment_method": "pm_card_chargeDeclined",
    },
    "adopted": lambda order_id: {"order_id": order_id, "amount": "12.50", "customer_id": "cus_1"},
    "absent": lambda order_id: {"order_id": order_id, "amount": "12.50"},
    "bad": lambda order_id: {"order_id": order_id, "amount": "12.505"},
}


class Mortals:
    """The fork server, one life at a time."""

    def __init__(self, process: asyncio.subprocess.Process, folder: Path) -> None:
        self._process = process
        self._folder = folder
        self._pid = 0

    async def start(self, **request: Any) -> None:
        assert self._process.stdin
        request["log"] = str(self._folder / "mortals.log")
        self._process.stdin.write(json.dumps(request).encode() + b"\n")
        self._pid = (await self._answer())["pid"]

    async def death(self) -> int:
        """The exit code of the life that was started last."""
        return int((await asyncio.wait_for(self._answer(), 30))["exit"])

    async def stop(self) -> int:
        os.kill(self._pid, signal.SIGTERM)
        return await self.death()

    async def _answer(self) -> dict[str, Any]:
        assert self._process.stdout
        line = await self._process.stdout.readline()
        assert line, (self._folder / "mortals.log").read_text()[-3000:]
        answer: dict[str, Any] = json.loads(line)
        return answer


@pytest.fixture
async def mortals(environment: dict[str, str], ledger_url: str, tmp_path: Path) -> AsyncIterator[Mortals]:
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "tests.road.mortal_worker",
        env=environment | {"DATABASE_URL": ledger_url, "CLAIM_TTL": "0.5"},
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )
    yield Mortals(process, tmp_path)
    assert process.stdin
    process.stdin.close()
    try:
        await asyncio.wait_for(process.wait(), 20)
    except TimeoutError:
        process.kill()
        await process.wait()


async def test_a_sigkill_at_any_line_leaves_one_intent_and_one_event_per_order(
    mortals: Mortals,
    shop: Shop,
    stripe: SandboxControl,
    environment: dict[str, str],
    tmp_path: Path,
    record_property: Callable[[str, object], None],
) -> None:
    await shop.subscribe()
    reply_to = await shop.await_replies()
    await shop.declare_worker_queue()
    # The first call is answered with an error that Stripe keeps: with an intent behind it, and without.
    await stripe.add_fault("stored_500", method="POST", order_id="*adopted*", with_object=True, times=1_000_000)
    await stripe.add_fault("stored_500", method="POST", order_id="*absent*", idempotency_key="*:1", times=1_000_000)
    lines = await lines_of_each_scenario(mortals, shop, tmp_path, reply_to)
    survived = []
    sent: dict[str, list[str]] = {scenario: [f"first-{scenario}"] for scenario in SCENARIOS}

    for scenario, places in lines.items():
        for place in places:
            order_id = f"{scenario}-{place}".replace(".py:", "-")
            sent[scenario].append(order_id)
            await shop.send(SCENARIOS[scenario](order_id), reply_to=reply_to, message_id=order_id)
            await mortals.start(die_at=place, order_id=order_id)
            if await mortals.death() != -signal.SIGKILL:
                survived.append(place)
    await mortals.start()
    paid = [order_id for scenario in SCENARIOS if scenario != "bad" for order_id in sent[scenario]]
    await until(lambda: shop.events_per_order().keys() >= set(paid), what="an event for each order")
    await until(lambda: _is_empty(shop), what="the queue to be empty")
    assert await mortals.stop() == 0

    record_property("lines", sum(map(len, lines.values())))
    assert not survived, "every place was a death"
    assert sum(map(len, lines.values())) > 100
    assert shop.events_per_order() == Counter(dict.fromkeys(paid, 1))
    stats = await stripe.stats(per_order=True)
    assert stats["orders_with_several_intents"] == {}
    intents = Counter(intent["metadata"]["order_id"] for intent in await stripe.intents(limit=10_000))
    assert intents == Counter(dict.fromkeys(paid, 1))
    letters = {letter["id"]: letter["order_id"] for letter in await dead_letters(environment)}
    assert Counter(letters.values()) == Counter(dict.fromkeys(sent["bad"], 1))


async def lines_of_each_scenario(mortals: Mortals, shop: Shop, folder: Path, reply_to: str) -> dict[str, list[str]]:
    """The lines that an order of each scenario passes through; a line of an earlier scenario is not named again."""
    found: dict[str, list[str]] = {}
    for scenario, make in SCENARIOS.items():
        order_id, record = f"first-{scenario}", folder / f"{scenario}.json"
        await mortals.start(order_id=order_id, record=str(record))
        await shop.send(make(order_id), reply_to=reply_to, message_id=order_id)
        await until(lambda: order_id in _replied(shop), what="the reply")  # noqa: B023 - used at once
        await until(lambda: _is_empty(shop), what="the queue to be empty")
        assert await mortals.stop() == 0
        known = {line for lines in found.values() for line in lines}
        found[scenario] = [line for line in json.loads(record.read_text()) if line not in known]
    return found


def _replied(shop: Shop) -> set[str]:
    return {reply["order_id"] for _, reply in shop.replies}


async def _is_empty(shop: Shop) -> bool:
    return await shop.ready_count(shop.names["ORDERS_QUEUE"]) == 0
