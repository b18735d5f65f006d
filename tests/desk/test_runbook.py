"""What the README says to do about open letters works in the order in which it is written there."""

import re
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.desk.test_replay import cli, listed
from tests.harness import Shop, WorkerProcess, until
from worker.sandbox.stripe_control import SandboxControl

README = (Path(__file__).parents[2] / "README.md").read_text()


def runbook() -> list[list[str]]:
    """The words of each command under "Letters are open", without the program's name."""
    block = README.partition("**Letters are open**")[2].partition("```console\n")[2].partition("```")[0]
    commands = [shlex.split(line, comments=True) for line in block.splitlines()]
    assert all(words[:3] == ["$", "payment-worker", "dead-letters"] for words in commands)
    return [words[3:] for words in commands]


async def test_the_commands_for_open_letters_work_as_they_are_printed(
    ledger_url: str,
    make_worker: Callable[..., WorkerProcess],
    shop: Shop,
    stripe: SandboxControl,
    environment: dict[str, str],
) -> None:
    """Ids and moments alone are put in, each as the command before has printed it."""
    await shop.subscribe()
    await make_worker().until_subscribed()
    await shop.send_all([{"order_id": f"wrong-{n}", "amount": "12.50", "currency": "usx"} for n in range(3)])
    await shop.send({"order_id": "unknown", "amount": "a lot"})

    async def landed() -> dict[str, Any] | None:
        found = await listed(environment)
        return {each["order_id"].partition("-")[0]: each for each in found} if len(found) == 4 else None

    letters = await until(landed, what="all letters")
    named = {"g_…": letters["wrong"]["group"], "dl_…": letters["wrong"]["id"]}
    done = []
    for words in runbook():
        if "--resume" in words:  # nothing was interrupted
            continue
        if words[0] == "discard":
            named["g_…"] = letters["unknown"]["group"]
        told = await cli(environment, *(named.get(word, word) for word in words))
        assert told.code == 0, (words, told.stdout)
        if words[0] == "edit" and "--dry-run" not in words:
            [named["g_…"]] = set(re.findall("replay --group (g_[0-9a-f]+)", told.stdout))
        if moment := re.search("restore --at ([^ \n]+)", told.stdout):
            named["2026-…"] = moment[1]
        done.append(words[0])

    assert done == ["groups", "show", "edit", "edit", "replay", "replay", "discard", "restore"]
    await shop.until_events(3)
    assert {intent["amount"] for intent in await stripe.intents()} == {1250}
    assert len(await stripe.intents()) == 3
    assert [each["order_id"] for each in await listed(environment)] == ["unknown"]
