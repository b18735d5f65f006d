"""Death or freeze round every effect of an order's road, and what is hardest after it; the resolver and the relay too.

The effects are found in the lines that a first life records: the ledger, Stripe, the bus. A worker ends before each of
them and right after it, on an order of its own.
"""

import json
import signal
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.crash import mortals as room
from tests.crash.mortals import (
    LIVES,
    SCENARIOS,
    Mortals,
    keep_errors,
    line_after,
    named_after,
    one_each,
    paid,
    round_effects,
)
from tests.harness import Shop, until
from worker.ledger import moves
from worker.ledger.engine import open_engine
from worker.sandbox.stripe_control import SandboxControl

# Of a life in which the background is not waited for.
QUICK_RESOLVER = {"resolve_unknown.RESOLVE_EVERY_S": 0.1}  # whose relay does not overtake it
QUICK = QUICK_RESOLVER | {
    "publish_events.UNTOLD_AFTER_S": 0,
    "publish_events.RELAY_EVERY_S": 0.1,
    "ledger.ledger.SOON_S": 0,  # or the relay, which waits for nobody here, would find an event before its mark
}


@pytest.fixture
async def reply_to(shop: Shop, stripe: SandboxControl) -> str:
    """The shop is open, and Stripe set up."""
    await shop.subscribe()
    await shop.declare_worker_queue()
    await keep_errors(stripe)
    return await shop.await_replies()


@pytest.fixture
async def places(mortals: Mortals, shop: Shop, tmp_path: Path, reply_to: str) -> list[tuple[str, str, str]]:
    """Each place round an effect: the scenario that comes through it first, the line, and an order to die with."""
    lines = room.without_repetition(await room.lines_of_each_scenario(mortals, shop, tmp_path, reply_to))
    return [
        (scenario, place, f"{scenario}-{named_after(place)}")
        for scenario, of_it in lines.items()
        for place in round_effects(of_it)
    ]


@pytest.fixture
async def second_queue(shop: Shop) -> AsyncIterator[dict[str, str]]:
    """The settings of a second worker on queues of its own, so that a test says who gets which copy."""
    own = {
        "ORDERS_QUEUE": f"{shop.names['ORDERS_QUEUE']}.2",
        "RETRY_QUEUE_PREFIX": f"{shop.names['RETRY_QUEUE_PREFIX']}.2",
    }
    await shop.declare_worker_queue(routing_key="nothing", **own)
    yield own | {"ORDERS_ROUTING_KEY": "nothing"}
    await shop.delete_worker_queues(**own)


@pytest.fixture
def second(
    environment: dict[str, str], ledger_url: str, tmp_path: Path, second_queue: dict[str, str]
) -> Iterator[Mortals]:
    second = Mortals(environment | second_queue | {"DATABASE_URL": ledger_url}, tmp_path / "second.log")
    yield second
    second.end()


def with_first_lives(places: list[tuple[str, str, str]]) -> dict[str, list[str]]:
    """All the orders that are sent, by scenario: those of the recorded lives too."""
    return {
        scenario: [f"first-{scenario}", *(order_id for each, _, order_id in places if each == scenario)]
        for scenario in SCENARIOS
    }


async def test_a_worker_frozen_round_any_effect_wakes_after_another_has_finished_its_order(
    places: list[tuple[str, str, str]],
    mortals: Mortals,
    second: Mortals,
    second_queue: dict[str, str],
    shop: Shop,
    stripe: SandboxControl,
    environment: dict[str, str],
    reply_to: str,
) -> None:
    """It goes on where it stood, with a claim, a turn and perhaps an answer that are out of date."""
    woke = []
    await second.start()
    for scenario, place, order_id in places:
        order = SCENARIOS[scenario](order_id)
        await mortals.start(freeze_at=place, order_id=order_id, **LIVES.get(scenario, {}))
        await shop.send(order, reply_to=reply_to, correlation_id="frozen")
        if not await mortals.is_frozen():
            continue
        await shop.send_to(second_queue["ORDERS_QUEUE"], order, reply_to=reply_to, correlation_id="other")
        await replied(shop, "other", order_id)
        mortals.wake()
        await replied(shop, "frozen", order_id)
        if await mortals.stop() == 0:
            woke.append(place)
    await room.letters_are_taken_in(shop)
    assert await second.stop() == 0

    assert woke == [place for _, place, _ in places]
    assert len(woke) > 30
    await one_each(shop, stripe, environment, with_first_lives(places))


async def test_orders_killed_round_any_effect_and_sent_again_with_keys_too_old_are_charged_once(
    places: list[tuple[str, str, str]],
    mortals: Mortals,
    second: Mortals,
    second_queue: dict[str, str],
    shop: Shop,
    stripe: SandboxControl,
    environment: dict[str, str],
    reply_to: str,
) -> None:
    """Each was lost from the queue, and comes again to two workers at once; Stripe has forgotten the keys."""
    survived = []
    for scenario, place, order_id in places:
        await shop.send(SCENARIOS[scenario](order_id), message_id=order_id, reply_to=reply_to)
        await mortals.start(die_at=place, order_id=order_id, **LIVES.get(scenario, {}))
        if await mortals.death() != -signal.SIGKILL:
            survived.append(place)
        await shop.purge_orders()

    await stripe.change_settings(key_life_s=1)
    for worker in (mortals, second):
        await worker.start(settings={"STRIPE_KEY_HORIZON": "1", "STRIPE_TIMEOUT": "1"})
    sent = with_first_lives(places)
    for scenario, order_ids in sent.items():
        for order_id in order_ids:
            for queue in (shop.names["ORDERS_QUEUE"], second_queue["ORDERS_QUEUE"]):
                await shop.send_to(queue, SCENARIOS[scenario](order_id), message_id=order_id)
    await until(lambda: shop.events_per_order().keys() >= set(paid(sent)), what="an event for each", deadline_s=90)
    await room.letters_are_taken_in(shop)
    for worker in (mortals, second):
        assert await worker.stop() == 0

    assert not survived, "every place was a death"
    await one_each(shop, stripe, environment, sent)


@pytest.mark.parametrize(
    ("dies_after", "files", "constants"),
    [
        ("create_intent(hold.call)", ("resolve_unknown.py",), QUICK_RESOLVER),
        ("run_grouped(record_answers", ("publish_events.py", "bus/outgoing.py", "bus/publisher.py"), QUICK),
    ],
    ids=["resolver", "relay"],
)
async def test_the_background_killed_at_any_line_leaves_nothing_that_the_next_does_not_finish(
    dies_after: str,
    files: tuple[str, ...],
    constants: dict[str, float],
    mortals: Mortals,
    shop: Shop,
    stripe: SandboxControl,
    environment: dict[str, str],
    ledger_url: str,
    tmp_path: Path,
    reply_to: str,
) -> None:
    """An order is lost after Stripe's answer, or after its record: whoever finishes it dies at a line of that."""
    road = (await room.lines_of_each_scenario(mortals, shop, tmp_path, reply_to))["created"]
    background: dict[str, Any] = {"constants": constants, "settings": {"RESOLVE_AFTER": "0.5"}}
    sent = {scenario: [f"first-{scenario}"] for scenario in SCENARIOS}

    async def leave_behind(order_id: str) -> None:
        sent["created"].append(order_id)
        await shop.send(SCENARIOS["created"](order_id))
        await mortals.start(die_at=line_after(road, dies_after), order_id=order_id)
        assert await mortals.death() == -signal.SIGKILL
        await shop.purge_orders()

    await leave_behind("recorded")
    record = tmp_path / "background.json"
    await mortals.start(order_id="recorded", record=str(record), **background)
    await until(lambda: "recorded" in shop.events_per_order(), what="the event")
    assert await mortals.stop() == 0
    lines = json.loads(record.read_text())
    places = dict.fromkeys([*(line for line in lines if line.startswith(files)), *round_effects(lines)])
    survived = []
    for place in places:
        order_id = f"background-{named_after(place)}"
        await leave_behind(order_id)
        await mortals.start(die_at=place, order_id=order_id, **background)
        if await mortals.death() != -signal.SIGKILL:
            survived.append(place)
    await mortals.start(**background | {"constants": QUICK})
    await until(lambda: shop.has_consumers(1), what="the last life to be up")
    await until(lambda: nothing_is_open(ledger_url), what="every call to be answered and every event told")
    await room.letters_are_taken_in(shop)
    assert await mortals.stop() == 0

    assert not survived, "every place was a death"
    assert len(places) > 15
    await one_each(shop, stripe, environment, sent)


def nothing_is_open(ledger_url: str) -> bool:
    engine = open_engine(ledger_url)
    with engine.begin() as conn:
        backlog = moves.backlog(conn)
    engine.dispose()
    return backlog.open_calls == backlog.untold_events == 0


async def replied(shop: Shop, correlation_id: str, order_id: str) -> None:
    await until(
        lambda: any((to, reply["order_id"]) == (correlation_id, order_id) for to, reply in shop.replies),
        what=f"the reply of the {correlation_id} worker to {order_id}",
    )
