"""A night at the desk: a bad deploy of an order service, and one operator who sorts it out."""

import asyncio
import json
import os
import signal
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any
from zlib import crc32

from tests import harness
from tests.harness import Shop, WorkerProcess, dead_letters, run_cli, until
from worker.sandbox.stripe_control import SandboxControl

# Three kinds of wrong among good ones: a currency that is none, a field of the future, an amount nobody can guess.
# So many of each, times a scale: 5,000 bad ones on SQLite, 500 on PostgreSQL.
WRONG: dict[str, tuple[int, dict[str, Any]]] = {
    "currency": (30, {"currency": "usx"}),
    "capture": (10, {"capture_method": "later"}),
    "amount": (10, {"amount": "12.505"}),
}
GOOD = 25


async def test_a_night_at_the_desk(
    ledger_url: str,
    make_worker: Callable[..., WorkerProcess],
    shop: Shop,
    stripe: SandboxControl,
    environment: dict[str, str],
    tmp_path: Path,
) -> None:
    async def desk(*words: str, code: int = 0) -> str:
        done = await asyncio.to_thread(run_cli, environment, "dead-letters", *words)
        assert done.returncode == code, done.stderr
        return done.stdout

    scale = 100 if ledger_url.startswith("sqlite") else 10
    await shop.subscribe()
    worker = await make_worker(LOG_LEVEL="info", DEAD_LETTER_CEILING="1").until_subscribed()
    orders = [
        {"order_id": f"{kind}-{number}", "amount": "12.50"} | wrong
        for kind, (count, wrong) in (WRONG | {"good": (GOOD, {})}).items()
        for number in range(count * scale)
    ]
    orders.sort(key=lambda order: crc32(order["order_id"].encode()))  # mixed
    await shop.send_all(orders)
    await shop.until_events(GOOD * scale, deadline_s=120)

    async def all_landed() -> list[dict[str, Any]] | None:
        groups: list[dict[str, Any]] = json.loads(await desk("groups", "--json"))
        return groups if sum(group["count"] for group in groups) == 50 * scale else None

    groups = await until(all_landed, what="all letters in the ledger", deadline_s=60)
    by_kind = {
        kind: next(g for g in groups if g["count"] == count * scale and kind in g["cause"])
        for kind, (count, _) in WRONG.items()
    }
    assert len(groups) == 3
    assert by_kind["capture"]["value"] == {"usd": f"{125 * scale}.00"}
    listed = json.loads(await desk("list", "--limit", "20", "--json"))
    assert len(listed) == 20
    [example] = json.loads(await desk("list", "--order", "currency-7", "--json"))
    shown = json.loads(await desk("show", example["id"], "--json"))
    assert (shown["verdict"], shown["order_id"]) == ("blocked", "currency-7")
    backup = tmp_path / "night.jsonl"
    backup.write_text(await desk("export"))
    assert len(backup.read_text().splitlines()) == 50 * scale

    for kind, field in (("currency", "currency=usd"), ("capture", "capture_method=")):
        await desk("edit", "--group", by_kind[kind]["group"], "--set", field, "--why", "the bad deploy of 02:10")
    verdicts = Counter(each["verdict"] for each in json.loads(await desk("replay", "--all", "--dry-run", "--json")))
    assert verdicts == {"safe": 40 * scale, "blocked": 10 * scale}

    slowly = ["dead-letters", "replay", "--text", "edited: ", "--share", str(scale / 1000)]
    killed = await kill_in_the_middle(environment, slowly, resolved=40 * scale + 20)
    assert killed == -signal.SIGKILL
    report = json.loads(await desk("replay", "--resume", "last", "--json"))
    assert (report["ended_because"], report["letters"]) == ("done", {"resolved": 40 * scale})
    await desk("discard", "--group", by_kind["amount"]["group"], "--why", "the amounts cannot be known; sent anew")

    paid = [order["order_id"] for order in orders if not order["order_id"].startswith("amount")]
    await until(lambda: len(shop.events_per_order()) == len(paid), what="an event for each", deadline_s=60)
    assert shop.events_per_order() == dict.fromkeys(paid, 1)
    stats = await stripe.stats(per_order=True)
    assert (stats["intents"], stats["orders_with_several_intents"]) == (len(paid), {})
    everything = await dead_letters(environment, "--state", "all", "--limit", "100000")
    assert Counter(letter["state"] for letter in everything) == {"resolved": 80 * scale, "discarded": 10 * scale}
    acts = Counter(act["act"] for act in json.loads(await desk("history", "--limit", "100000", "--json")))
    assert acts == {
        "landed": 50 * scale,
        "edited": 40 * scale,
        "made by edit": 40 * scale,
        "replay made": 1,
        "replayed": 40 * scale,
        "resolved": 40 * scale,
        "replay ended": 1,
        "discarded": 10 * scale,
    }
    assert await worker.stop() == 0


async def kill_in_the_middle(environment: dict[str, str], words: list[str], *, resolved: int) -> int:
    """A command that is killed once so many letters are resolved."""
    with Path(os.devnull).open("wb") as nowhere:
        process = harness.start_python(["-m", "worker", *words], environment, stdout=nowhere.fileno(), stderr=2)

    async def enough() -> bool:
        done = await asyncio.to_thread(run_cli, environment, "status", "--json")
        return int(json.loads(done.stdout)["ledger"]["letters"]["by_state"]["resolved"]) >= resolved

    try:
        await until(enough, what="the middle of the replay")
    finally:
        process.kill()
    return await asyncio.to_thread(process.wait)
