"""Letters closed and open again: how many, worth what, and a line that undoes just that."""

import json
from pathlib import Path
from typing import Any

import pytest

from schemas import AmqpProperties
from tests.desk.test_edit import ORDER, land_orders, order_letter
from tests.desk.test_edit_plan import commands_in
from tests.desk.test_replay import cli
from tests.ledger.letter_steps import bring_to, land, read
from tests.ledger.steps import rows
from worker.errors import ConfigurationError
from worker.ledger.ledger import Ledger
from worker.ledger.schema import ACTS, LETTERS
from worker.letter import LetterState


async def desk(url: str, *words: str) -> str:
    return (await cli({"DATABASE_URL": url}, *words)).stdout


async def states(ledger: Ledger, *ids: str) -> list[str]:
    return [(await read(ledger, letter_id)).state for letter_id in ids]


async def refused(ledger: Ledger, url: str, *words: str) -> str:
    """What is said; nothing at all may be done then."""
    before = await rows(ledger, LETTERS), await rows(ledger, ACTS)
    with pytest.raises(ConfigurationError) as error:
        await desk(url, *words)
    assert (await rows(ledger, LETTERS), await rows(ledger, ACTS)) == before
    return str(error.value)


async def test_a_discard_tells_number_and_value_and_the_line_that_undoes_just_it(ledger: Ledger, url: str) -> None:
    await land_orders(ledger, "dl_1", "dl_2", amount_minor=700, currency="eur")
    await land(ledger, order_letter("dl_3"))
    await land(ledger, order_letter("dl_4", amount_minor=None, currency=None))
    await land(ledger, order_letter("dl_before"))

    one = await desk(url, "discard", "dl_before", "--why", "x")
    said = await desk(url, "discard", "--all", "--why", "x")

    assert one.startswith("1 letter discarded (1 by id): 12.50 USD.\n")
    assert said.startswith("4 letters discarded (all): 14.00 EUR, 12.50 USD, 1 of unreadable value.\n")
    [undo] = commands_in(said)
    back = await desk(url, *undo)
    told = f"(at {undo[-1]}): 14.00 EUR, 12.50 USD, 1 of unreadable value."
    assert back.startswith(f"4 letters restored {told}\n")
    assert await states(ledger, "dl_1", "dl_2", "dl_3", "dl_4", "dl_before") == ["open"] * 4 + ["discarded"]
    [again] = commands_in(back)
    await desk(url, *again[:-1], "a slip")
    assert await states(ledger, "dl_1", "dl_2", "dl_3", "dl_4", "dl_before") == ["discarded"] * 5


async def test_an_import_is_undone_by_the_line_that_it_prints(
    ledger: Ledger, url: str, other_url: str, tmp_path: Path
) -> None:
    await land_orders(ledger, "dl_" + "1" * 20, "dl_" + "2" * 20, amount_minor=1210)
    (tmp_path / "letters.jsonl").write_text(await desk(url, "export"))
    async with Ledger(other_url) as other:
        await land(other, order_letter("dl_here"))
        said = await desk(other_url, "import", str(tmp_path / "letters.jsonl"))
        [undo] = commands_in(said)
        await desk(other_url, *undo[:-1], "the wrong file")
        assert await states(other, "dl_" + "1" * 20, "dl_" + "2" * 20, "dl_here") == ["discarded"] * 2 + ["open"]


async def test_the_history_tells_the_moment_of_each_act_as_it_is_chosen_by(ledger: Ledger, url: str) -> None:
    await land_orders(ledger, "dl_1", "dl_2", "dl_3")
    await desk(url, "discard", "dl_1", "dl_2", "--why", "one act")
    await desk(url, "discard", "dl_3", "--why", "another")
    [moment] = {line.split()[0] for line in (await desk(url, "history")).splitlines() if "one act" in line}

    listed = json.loads(await desk(url, "list", "--state", "all", "--at", moment, "--json"))
    assert {each["id"] for each in listed} == {"dl_1", "dl_2"}


async def test_an_edited_letter_names_its_successor_and_how_it_is_undone(ledger: Ledger, url: str) -> None:
    await land(ledger, order_letter("dl_1"))
    await desk(url, "edit", "dl_1", "--set", "description=a")
    [new_id] = [each["letter_id"] for each in await rows(ledger, LETTERS) if each["edited_from"]]

    assert f"edited into  {new_id} (open)" in await desk(url, "show", "dl_1")
    assert json.loads(await desk(url, "show", "dl_1", "--json"))["edited_into"] == [{"id": new_id, "state": "open"}]
    assert json.loads(await desk(url, "show", new_id, "--json"))["edited_into"] == []
    told = f"letter dl_1 is resolved, not open: it was edited into {new_id} (open); nothing was done"
    for words in (
        ["edit", "dl_1", "--set", "note=b"],
        ["discard", "dl_1", "--why", "x"],
        ["replay", "dl_1", "--dry-run"],
    ):
        assert await refused(ledger, url, *words) == told

    said = await desk(url, "restore", "dl_1")

    assert said.startswith("1 letter back as before the edit (1 by id): 12.50 USD.\n")
    assert await states(ledger, "dl_1", new_id) == ["open", "discarded"]
    undone = f"{new_id} was made by an edit that was undone: say that edit again instead; nothing was done"
    assert await refused(ledger, url, "restore", new_id) == undone
    assert "1 letter left discarded: made by an edit that was undone" in await refused(ledger, url, "restore", "--all")
    await land(ledger, order_letter("dl_2"))
    await bring_to(ledger, LetterState.DISCARDED, "dl_2")
    both = await desk(url, "restore", "--all")
    assert both.startswith("1 letter restored (all): 12.50 USD.\n")
    assert "1 letter left discarded: made by an edit that was undone; say that edit again." in both


async def test_what_cannot_be_restored_says_why(ledger: Ledger, url: str) -> None:
    for letter_id in ("dl_1", "dl_2", "dl_3"):
        await land(ledger, order_letter(letter_id))
    await desk(url, "edit", "dl_1", "--set", "description=a")
    [new_id] = [each["letter_id"] for each in await rows(ledger, LETTERS) if each["edited_from"]]
    await bring_to(ledger, LetterState.RESOLVED, new_id)
    await bring_to(ledger, LetterState.RESOLVED, "dl_2")

    for words, told in (
        (["dl_1"], f"dl_1 was edited into {new_id}, which was replayed and is resolved: see to that one"),
        (["dl_2"], "letter dl_2 is resolved, not discarded"),
        (["dl_3"], "letter dl_3 is open, not discarded"),
        (["dl_none"], "no letter dl_none"),
        (["--reason", "none"], "no discarded letters are meant (by: reason none)"),
        (["--at", "2026-01-31T12:00:00Z"], "no discarded letters are meant (by: at 2026-01-31T12:00:00.000000Z)"),
    ):
        assert await refused(ledger, url, "restore", *words) == f"{told}; nothing was done"


@pytest.mark.parametrize(("changed", "told"), [({}, "once-7"), ({"message_id": None}, None)])
async def test_a_letter_shows_its_message_id_and_counts_in_words_that_agree(
    ledger: Ledger, url: str, changed: dict[str, Any], told: str | None
) -> None:
    properties = AmqpProperties(**({"message_id": "once-7"} | changed))
    await land(ledger, order_letter("dl_1", body=ORDER, properties=properties, attempts=1))

    said = await desk(url, "show", "dl_1")

    assert ("message id  once-7" in said) is (told is not None)
    assert json.loads(await desk(url, "show", "dl_1", "--json"))["event_id"] == told
    assert ", 1 time\n" in said.replace(" \n", "\n")
    assert "(1 attempt)" in said
