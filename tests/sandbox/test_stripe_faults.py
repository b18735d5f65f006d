import asyncio
from typing import Any

import aiohttp
import pytest
import stripe
from hypothesis import given, settings
from hypothesis import strategies as st

from worker.sandbox.stripe_control import SandboxError
from worker.sandbox.stripe_faults import AFTER_WORK, BEFORE_WORK, FaultPlan, Seen
from worker.sandbox.stripe_server import RunningSandbox

KEY = {"idempotency_key": "k"}
LOST = (stripe.StripeError, aiohttp.ClientPayloadError, asyncio.CancelledError)


async def send_in_vain(intents: Any, sandbox: RunningSandbox, order: Any, kind: str, **details: Any) -> None:
    """Send a create that meets the fault and gets no intent back; where it would hang, leave."""
    await sandbox.control.add_fault(kind, **details)
    sending = asyncio.create_task(intents.create_async(order, KEY))
    await sandbox.control.wait_for_rows(fault=kind)
    if kind in {"hang", "hang_after_work", "delay"}:
        assert not sending.done()
        sending.cancel()
    with pytest.raises(LOST):
        await sending


@pytest.mark.parametrize("kind", sorted(BEFORE_WORK))
async def test_a_fault_before_the_work_does_nothing_and_keeps_nothing(
    intents: Any, sandbox: RunningSandbox, order: Any, kind: str
) -> None:
    await send_in_vain(intents, sandbox, order, kind)
    assert await sandbox.control.intents() == []
    done = await intents.create_async(order, KEY)
    assert "Idempotent-Replayed" not in done.last_response.headers


@pytest.mark.parametrize("kind", sorted(AFTER_WORK))
async def test_a_fault_after_the_work_loses_only_the_answer(
    intents: Any, sandbox: RunningSandbox, order: Any, kind: str
) -> None:
    await send_in_vain(intents, sandbox, order, kind)
    [row] = await sandbox.control.wait_for_rows(fault=kind, outcome="dropped")
    [made] = await sandbox.control.intents()
    assert row["object_id"] == made["id"]
    again = await intents.create_async(order, KEY)
    assert again.id == made["id"]
    assert again.last_response.headers["Idempotent-Replayed"] == "true"


@pytest.mark.parametrize("kind", ["refuse", "answer_lost"])
async def test_a_broken_connection_is_an_error_of_the_connection(
    intents: Any, sandbox: RunningSandbox, order: Any, kind: str
) -> None:
    await sandbox.control.add_fault(kind)
    with pytest.raises(stripe.APIConnectionError) as broken:
        await intents.create_async(order)
    assert isinstance(broken.value.__cause__, aiohttp.ClientConnectionError | OSError)


async def test_half_a_body_breaks_while_reading(raw: aiohttp.ClientSession, sandbox: RunningSandbox) -> None:
    await sandbox.control.add_fault("half_body")
    async with raw.post("/v1/payment_intents", data={"amount": "500", "currency": "usd"}) as answer:
        assert answer.status == 200
        with pytest.raises(aiohttp.ClientPayloadError):
            await answer.read()


@pytest.mark.parametrize(
    ("kind", "status", "code", "headers"),
    [
        ("429", 429, "rate_limit", {"Stripe-Rate-Limited-Reason": "endpoint-rate", "Stripe-Should-Retry": None}),
        ("lock_timeout", 429, "lock_timeout", {"Stripe-Rate-Limited-Reason": None, "Stripe-Should-Retry": "true"}),
        ("409", 409, "idempotency_key_in_use", {}),
        ("stored_500", 500, None, {"Stripe-Should-Retry": "false"}),
    ],
)
async def test_answers_of_the_plan_read_as_stripes(
    intents: Any, sandbox: RunningSandbox, order: Any, kind: str, status: int, code: str | None, headers: Any
) -> None:
    await sandbox.control.add_fault(kind)
    with pytest.raises(stripe.StripeError) as failed:
        await intents.create_async(order, KEY)
    assert (failed.value.http_status, failed.value.error.code) == (status, code)
    assert failed.value.request_id.startswith("req_")
    assert failed.value.headers["Idempotency-Key"] == "k"
    assert {name: failed.value.headers.get(name) for name in headers} == headers


async def test_a_503_is_a_proxys_page(intents: Any, sandbox: RunningSandbox, order: Any) -> None:
    await sandbox.control.add_fault("503")
    with pytest.raises(stripe.APIError) as failed:
        await intents.create_async(order)
    assert failed.value.http_status == 503
    assert "<html>" in failed.value.http_body
    assert failed.value.request_id is None


async def test_stored_500_with_object_has_done_the_work(intents: Any, sandbox: RunningSandbox, paid: Any) -> None:
    await sandbox.control.add_fault("stored_500", with_object=True)
    with pytest.raises(stripe.APIError):
        await intents.create_async(paid, KEY)
    [made] = await sandbox.control.intents(order_id="order-1")
    assert (made["status"], made["amount_received"]) == ("succeeded", 1999)
    assert [row["object_id"] for row in await sandbox.control.record()] == [made["id"]]


async def test_stored_500_with_object_hides_a_decline_too(intents: Any, sandbox: RunningSandbox, paid: Any) -> None:
    await sandbox.control.add_fault("stored_500", with_object=True)
    with pytest.raises(stripe.APIError):
        await intents.create_async({**paid, "payment_method": "pm_card_chargeDeclined"}, KEY)
    [made] = await sandbox.control.intents()
    assert made["status"] == "requires_payment_method"
    assert made["last_payment_error"]["code"] == "card_declined"
    assert [row["object_id"] for row in await sandbox.control.record()] == [made["id"]]


async def test_a_replay_does_not_use_a_stored_500_up(intents: Any, sandbox: RunningSandbox, order: Any) -> None:
    await intents.create_async(order, KEY)
    await sandbox.control.add_fault("stored_500")
    assert (await intents.create_async(order, KEY)).amount == 1999
    with pytest.raises(stripe.APIError):
        await intents.create_async(order, {"idempotency_key": "k2"})


@pytest.mark.parametrize("kind", ["hang", "hang_after_work"])
async def test_a_release_lets_go_what_hangs_without_an_answer(
    intents: Any, sandbox: RunningSandbox, order: Any, kind: str
) -> None:
    await sandbox.control.add_fault(kind)
    waiting = asyncio.create_task(intents.create_async(order, KEY))
    await sandbox.control.wait_for_rows(fault=kind)
    assert (await sandbox.control.stats())["in_flight"] == 1
    assert not waiting.done()
    await sandbox.control.release()
    with pytest.raises(stripe.APIConnectionError):
        await waiting
    assert len(await sandbox.control.intents()) == (kind == "hang_after_work")


async def test_the_record_tells_that_the_work_of_a_hanging_answer_is_done(
    intents: Any, sandbox: RunningSandbox, paid: Any
) -> None:
    await sandbox.control.add_fault("hang_after_work")
    told = asyncio.create_task(sandbox.control.wait_for_rows(code="card_declined", outcome="open"))
    await sandbox.control.stats()  # a round trip, so that the wait is under way before the work
    waiting = asyncio.create_task(intents.create_async({**paid, "payment_method": "pm_card_chargeDeclined"}))
    [row] = await told
    assert (row["status"], row["object_id"]) == (None, (await sandbox.control.intents())[0]["id"])
    await sandbox.control.release()
    with pytest.raises(stripe.APIConnectionError):
        await waiting


async def test_a_hanging_request_ends_when_its_client_has_left(
    intents: Any, sandbox: RunningSandbox, order: Any
) -> None:
    await send_in_vain(intents, sandbox, order, "hang")
    assert await sandbox.control.wait_for_rows(fault="hang", outcome="dropped")
    assert (await sandbox.control.stats())["in_flight"] == 0


async def test_delayed_work_is_done_though_the_client_has_left(
    intents: Any, sandbox: RunningSandbox, order: Any
) -> None:
    await send_in_vain(intents, sandbox, order, "delay", delay_s=60)
    assert await sandbox.control.intents() == []
    await sandbox.control.release()
    await sandbox.control.wait_for_rows(fault="delay", outcome="dropped")
    [made] = await sandbox.control.intents()
    assert (await intents.create_async(order, KEY)).id == made["id"]


async def test_a_fault_meets_only_what_it_matches(intents: Any, sandbox: RunningSandbox, order: Any) -> None:
    await sandbox.control.add_fault("503", method="POST", path="/v1/payment_intents/*/cancel", order_id="order-2")
    await sandbox.control.add_fault("503", idempotency_key="shop:*:create")
    first = await intents.create_async(order)
    second = await intents.create_async({**order, "metadata": {"order_id": "order-2"}})
    assert (await intents.cancel_async(first.id)).status == "canceled"
    with pytest.raises(stripe.APIError):
        await intents.cancel_async(second.id)
    assert (await intents.retrieve_async(second.id)).status == "requires_payment_method"
    assert await intents.create_async(order, {"idempotency_key": "shop:7:confirm"})
    with pytest.raises(stripe.APIError):
        await intents.create_async(order, {"idempotency_key": "shop:7:create"})
    assert [fault["fired"] for fault in await sandbox.control.faults()] == [1, 1]
    assert (await sandbox.control.stats())["faults_fired"] == {"503": 2}


async def test_a_fault_fires_as_often_as_it_says(intents: Any, sandbox: RunningSandbox, order: Any) -> None:
    await sandbox.control.add_fault("503", times=3)
    for _ in range(3):
        with pytest.raises(stripe.APIError):
            await intents.create_async(order)
    assert await intents.create_async(order)


async def test_a_cleared_plan_has_no_effect(intents: Any, sandbox: RunningSandbox, order: Any) -> None:
    await sandbox.control.add_fault("503", times=None)
    await sandbox.control.clear_faults()
    assert await intents.create_async(order)
    assert await sandbox.control.faults() == []


@settings(deadline=None)  # 4000 throws each
@given(st.integers(0, 2**32), st.floats(0.05, 0.95))
def test_a_chance_is_repeatable_and_about_as_likely_as_it_says(seed: int, probability: float) -> None:
    seen = Seen("POST", "/v1/payment_intents", None, None)

    def throw() -> list[bool]:
        plan = FaultPlan()
        plan.add({"kind": "503", "probability": probability, "seed": seed})
        return [plan.at_arrival(seen) is not None for _ in range(2000)]

    outcomes = throw()
    assert outcomes == throw()
    # Six standard deviations of the widest binomial of 2000: a right implementation fails about once in 10**8 runs.
    assert abs(sum(outcomes) - 2000 * probability) < 6 * (2000 * 0.25) ** 0.5


@pytest.mark.parametrize(
    ("details", "word"),
    [
        ({"kind": "explode"}, "kind"),
        ({"kind": "503", "tims": 2}, "tims"),
        ({"kind": "503", "times": 0}, "times"),
        ({"kind": "503", "times": "often"}, "type"),
        ({"kind": "503", "probability": 0}, "probability"),
        ({"kind": "503", "delay_s": 1}, "delay_s"),
        ({"kind": "delay"}, "delay_s"),
    ],
)
async def test_a_plan_that_makes_no_sense_is_refused(
    sandbox: RunningSandbox, details: dict[str, Any], word: str
) -> None:
    with pytest.raises(SandboxError, match=word):
        await sandbox.control.add_fault(**details)
    assert await sandbox.control.faults() == []


async def test_latency_takes_its_time(intents: Any, sandbox: RunningSandbox, order: Any) -> None:
    loop = asyncio.get_running_loop()
    await sandbox.control.change_settings(latency_s=[0.05, 0.06])
    started = loop.time()
    await intents.create_async(order)
    assert loop.time() - started >= 0.05


async def test_many_requests_are_under_way_at_once(intents: Any, sandbox: RunningSandbox, order: Any) -> None:
    await sandbox.control.add_fault("delay", delay_s=60, times=10)
    waiting = [asyncio.create_task(intents.create_async(order)) for _ in range(10)]
    await sandbox.control.wait_for_rows(10, fault="delay")
    assert (await sandbox.control.stats())["in_flight"] == 10
    await sandbox.control.release()
    await asyncio.gather(*waiting)
    stats = await sandbox.control.stats()
    assert (stats["in_flight"], stats["max_in_flight"], stats["intents"]) == (0, 10, 10)
