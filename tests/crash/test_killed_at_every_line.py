"""A SIGKILL at every line of the spine, one line after the other, and a restart: one intent and one event per order.

Enumerated, not sampled: a first life records the lines that an order passes through, and then for each of them a worker
dies there, on an order of its own, which the next worker has to finish before it dies in its turn.
"""

from collections.abc import Callable
from pathlib import Path

from tests.crash.mortals import (
    LIVES,
    SCENARIOS,
    TRIES,
    Mortals,
    is_empty,
    keep_errors,
    letters_are_taken_in,
    lines_of_each_scenario,
    named_after,
    one_each,
    paid,
    replied,
    without_repetition,
)
from tests.harness import Shop, dead_letters, until
from worker.sandbox.stripe_control import SandboxControl


async def test_a_sigkill_at_any_line_leaves_one_intent_and_one_event_per_order(
    mortals: Mortals,
    shop: Shop,
    stripe: SandboxControl,
    environment: dict[str, str],
    ledger_url: str,
    tmp_path: Path,
    record_property: Callable[[str, object], None],
) -> None:
    await shop.subscribe()
    reply_to = await shop.await_replies()
    await shop.declare_worker_queue()
    await keep_errors(stripe)
    lines = without_repetition(await lines_of_each_scenario(mortals, shop, tmp_path, reply_to))
    is_sampled = ledger_url.startswith("postgresql")
    if is_sampled:  # to save time: what is between two effects is tried on SQLite, every effect on both
        lines = {scenario: of_it[::3] for scenario, of_it in lines.items()}
    survived = []
    sent: dict[str, list[str]] = {scenario: [f"first-{scenario}"] for scenario in SCENARIOS}

    for scenario, places in lines.items():
        for place in places:
            for number in range(TRIES):
                order_id = f"{scenario}-{named_after(place)}-{number}"
                sent[scenario].append(order_id)
                await shop.send(SCENARIOS[scenario](order_id), reply_to=reply_to, message_id=order_id)
                await mortals.start(die_at=place, order_id=order_id, **LIVES.get(scenario, {}))
                if await mortals.dies(unless=lambda: order_id in replied(shop)):  # noqa: B023 - used at once
                    break
            else:
                survived.append(place)
    await mortals.start()
    await until(lambda: shop.events_per_order().keys() >= set(paid(sent)), what="an event for each order")
    await until(lambda: is_empty(shop), what="the queue to be empty")
    await letters_are_taken_in(shop)
    assert await mortals.stop() == 0

    record_property("lines", sum(map(len, lines.values())))
    assert not survived, "every place was a death"
    assert sum(map(len, lines.values())) > (100 if is_sampled else 300)
    await one_each(shop, stripe, environment, sent)
    letters = [letter["id"] for letter in await dead_letters(environment)]
    assert len(set(letters)) == len(sent["bad"]), "told again, it is the same letter"
