import ast
import asyncio
import contextlib
import json
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import stripe

import worker.sandbox
from worker.sandbox.stripe_control import SandboxControl, SandboxError
from worker.sandbox.stripe_record import Record, Row
from worker.sandbox.stripe_server import RunningSandbox, running_sandbox, serve

KEY = {"idempotency_key": "k"}


async def test_the_record_tells_every_request_as_it_came_and_went(
    intents: Any, sandbox: RunningSandbox, order: Any
) -> None:
    created = await intents.create_async(order, KEY)
    await intents.create_async(order, KEY)
    await intents.retrieve_async(created.id)
    with pytest.raises(stripe.InvalidRequestError):
        await intents.capture_async(created.id, {}, {"idempotency_key": "c", "stripe_account": "acct_x"})

    rows = await sandbox.control.record()
    told = ("seq", "method", "operation", "status", "replayed", "idempotency_key", "order_id", "object_id", "code")
    assert [tuple(row[name] for name in told) for row in rows] == [
        (1, "POST", "create", 200, False, "k", "order-1", created.id, None),
        (2, "POST", "create", 200, True, "k", "order-1", created.id, None),
        (3, "GET", "retrieve", 200, False, None, "order-1", created.id, None),
        (4, "POST", "capture", 404, False, "c", "order-1", None, "resource_missing"),
    ]
    assert [row["account"] for row in rows] == ["acct_sandbox"] * 3 + ["acct_x"]
    assert {row["outcome"] for row in rows} == {"answered"}
    assert [row["at"] for row in rows] == sorted(row["at"] for row in rows)
    assert rows[3]["path"] == f"/v1/payment_intents/{created.id}/capture"


async def test_the_record_pages_and_filters(intents: Any, sandbox: RunningSandbox, order: Any) -> None:
    for number in range(5):
        await intents.create_async({**order, "metadata": {"order_id": f"order-{number % 2}"}})
    assert [row["seq"] for row in await sandbox.control.record(since=1, limit=2)] == [2, 3]
    assert [row["seq"] for row in await sandbox.control.record(order_id="order-1")] == [2, 4]
    assert await sandbox.control.record(status=404) == []
    with pytest.raises(SandboxError, match="colour"):
        await sandbox.control.record(colour="red")


async def test_the_record_forgets_the_oldest_rows_but_counts_all(order: Any) -> None:
    async with running_sandbox(ring=10) as sandbox, aiohttp.ClientSession(sandbox.base_url) as session:
        for _ in range(25):
            async with session.get("/v1/payment_intents") as answer:
                assert answer.status == 401
        assert [row["seq"] for row in await sandbox.control.record()] == list(range(16, 26))
        async with session.get("/_sandbox/record", params={"since": 3}) as answer:
            assert (await answer.json())["lost"] == 12
        stats = await sandbox.control.stats()
        assert (stats["requests"], stats["answers"]) == (25, {"list 401": 25})


async def test_waiting_for_a_request_ends_when_it_comes(intents: Any, sandbox: RunningSandbox, order: Any) -> None:
    waiting = asyncio.create_task(sandbox.control.wait_for_rows(2, order_id="order-1", timeout_s=30))
    await intents.create_async(order)
    await intents.create_async(order)
    assert len(await waiting) == 2
    with pytest.raises(TimeoutError, match="order-2"):
        await sandbox.control.wait_for_rows(order_id="order-2", timeout_s=0.05)


async def test_one_who_waits_counts_only_rows_that_still_fit() -> None:
    record = Record()
    rows = [Row(seq, 0.0, "GET", "/", None, None, None, None, None) for seq in (1, 2, 3)]
    waiting = asyncio.create_task(record.wait_for(2, since=0, where={"outcome": "open"}, timeout_s=30))
    await asyncio.wait([waiting], timeout=0)
    record.open(rows[0])
    record.close(rows[0], answered=True)
    record.open(rows[1])
    await asyncio.wait([waiting], timeout=0)
    assert not waiting.done()
    record.open(rows[2])
    await asyncio.wait_for(waiting, 10)
    assert [row.seq for row in record.select(where={"outcome": "open"})] == [2, 3]


async def test_stats_count_intents_by_order_and_status(intents: Any, sandbox: RunningSandbox, paid: Any) -> None:
    await intents.create_async(paid, KEY)
    await intents.create_async(paid, KEY)
    await intents.create_async(paid)
    await intents.create_async({**paid, "metadata": {"order_id": "order-2"}, "capture_method": "manual"})
    await intents.create_async({"amount": 500, "currency": "usd"})
    stats = await sandbox.control.stats(per_order=True)
    assert stats["requests"] == 5
    assert stats["replayed"] == 1
    assert stats["intents"] == 4
    assert stats["intents_by_status"] == {"succeeded": 2, "requires_capture": 1, "requires_payment_method": 1}
    assert stats["intents_by_order"] == {"order-1": 2, "order-2": 1}
    assert stats["orders_with_several_intents"] == {"order-1": 2}
    assert stats["answers"] == {"create 200": 5}
    assert stats["in_flight"] == 0


async def test_the_control_surface_shows_no_secret(
    make_client: Any, sandbox: RunningSandbox, raw: aiohttp.ClientSession, paid: Any
) -> None:
    intents = make_client("sk_test_verysecret").v1.payment_intents
    created = await intents.create_async(paid)
    with pytest.raises(stripe.CardError):
        await intents.create_async({**paid, "payment_method": "pm_card_chargeDeclined"})
    await sandbox.control.change_settings(revoked_keys=["sk_test_verysecret"])
    with pytest.raises(stripe.AuthenticationError):
        await intents.create_async(paid)
    for path in ("record", "intents", "stats?per_order=true", "faults"):
        async with raw.get(f"/_sandbox/{path}") as answer:
            text = await answer.text()
            assert "verysecret" not in text
            assert "_secret_" not in text
    async with raw.post("/_sandbox/settings", json={}) as answer:
        assert "verysecret" not in await answer.text()
    async with raw.post("/_sandbox/act", json={"object": created.id, "deed": "expire"}) as answer:
        assert answer.status == 400


async def test_reset_starts_anew_with_the_first_settings(order: Any) -> None:
    async with running_sandbox(revoked_keys=["sk_test_old"]) as sandbox:
        before = sandbox.sandbox.settings
        await sandbox.control.change_settings(latency_s=5, rate_limit=1, revoked_keys=[])
        await sandbox.control.add_fault("503", times=None)
        await sandbox.control.advance_clock(1000)
        await sandbox.control.reset()
        assert sandbox.sandbox.settings == before
        stats = await sandbox.control.stats()
        assert (stats["requests"], stats["intents"], stats["idempotency_keys"]) == (0, 0, 0)
        assert await sandbox.control.faults() == []
        assert sandbox.sandbox.world.clock.offset_s == 0


async def test_a_request_under_way_does_not_survive_into_a_reset(
    intents: Any, sandbox: RunningSandbox, order: Any
) -> None:
    await sandbox.control.add_fault("delay", delay_s=60)
    late = asyncio.create_task(intents.create_async(order, KEY))
    await sandbox.control.wait_for_rows(fault="delay")
    await sandbox.control.reset()
    await late
    assert await sandbox.control.intents() == []
    assert "Idempotent-Replayed" not in (await intents.create_async(order, KEY)).last_response.headers


@pytest.mark.parametrize(
    ("path", "body", "word"),
    [
        ("clock", {"advance_s": -1}, "forward"),
        ("clock", {}, "advance_s"),
        ("settings", {"latency": 1}, "latency"),
        ("settings", {"latency_s": [2, 1]}, "latency_s"),
        ("settings", {"rate_limit": "fast"}, "rate_limit"),
        ("settings", [], "object"),
        ("act", {"object": "pi_nowhere", "deed": "settle"}, "pi_nowhere"),
        ("reset", {"please": 1}, "please"),
    ],
)
async def test_the_control_surface_says_what_is_wrong(
    raw: aiohttp.ClientSession, path: str, body: Any, word: str
) -> None:
    async with raw.post(f"/_sandbox/{path}", json=body) as answer:
        assert answer.status == 400
        assert word in (await answer.json())["error"]


async def test_serve_listens_on_a_free_loopback_port_and_ends_when_cancelled() -> None:
    ready: asyncio.Future[str] = asyncio.get_running_loop().create_future()
    server = asyncio.create_task(serve(port=0, ready=ready.set_result, rate_limit=25))
    base_url = await asyncio.wait_for(ready, 10)
    assert base_url.startswith("http://127.0.0.1:")
    async with SandboxControl(base_url) as control:
        assert (await control.change_settings())["rate_limit"] == 25
    server.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await server
    with pytest.raises(aiohttp.ClientConnectionError):
        async with SandboxControl(base_url) as control:
            await control.stats()


async def test_stopping_does_not_wait_for_what_hangs(order: Any) -> None:
    loop = asyncio.get_running_loop()
    async with aiohttp.ClientSession() as session:
        async with running_sandbox() as sandbox:
            await sandbox.control.add_fault("hang")
            waiting = asyncio.create_task(session.get(sandbox.base_url + "/v1/payment_intents"))
            await sandbox.control.wait_for_rows(fault="hang")
            started = loop.time()
        assert loop.time() - started < 5
        with pytest.raises(aiohttp.ClientError):
            await waiting


def test_the_sandbox_shares_no_code_with_what_it_tests() -> None:
    own = Path(worker.sandbox.__file__).parent
    for file in own.glob("stripe_*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom):
                assert node.level == 0, file.name
                names = [f"{node.module}.{alias.name}" for alias in node.names]
            for name in names:
                top = name.partition(".")[0]
                assert top not in {"stripe", "schemas"}, f"{file.name} imports {name}"
                assert top != "worker" or name.startswith("worker.sandbox.stripe_"), f"{file.name} imports {name}"


async def test_intents_are_shown_with_their_account_and_by_order(
    make_client: Any, sandbox: RunningSandbox, order: Any
) -> None:
    other = make_client(stripe_account="acct_b").v1.payment_intents
    first = await other.create_async(order)
    second = await make_client().v1.payment_intents.create_async({**order, "metadata": {"order_id": "order-2"}})
    shown = await sandbox.control.intents()
    assert [(one["id"], one["account"]) for one in shown] == [(first.id, "acct_b"), (second.id, "acct_sandbox")]
    assert [one["id"] for one in await sandbox.control.intents(order_id="order-2")] == [second.id]
    assert await sandbox.control.intents(skip=1, limit=1) == shown[1:]
    assert json.dumps(shown).count("client_secret") == 0


async def test_stats_follow_an_intent_that_changes(intents: Any, sandbox: RunningSandbox, order: Any) -> None:
    created = await intents.create_async(order)
    await intents.update_async(created.id, {"metadata": {"order_id": "order-2"}})
    await intents.cancel_async(created.id)
    stats = await sandbox.control.stats(per_order=True)
    assert stats["intents_by_status"] == {"canceled": 1}
    assert (stats["orders"], stats["intents_by_order"]) == (1, {"order-2": 1})
    assert [one["id"] for one in await sandbox.control.intents(order_id="order-2")] == [created.id]
