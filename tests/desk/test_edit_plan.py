"""What an edit would do is told before it is done, and no edit makes one order of two."""

import json
from typing import Any

import pytest

from schemas import AmqpProperties
from tests.desk.test_edit import ORDER, edited, land_orders, order_letter, refused, run
from tests.desk.test_replay import cli
from tests.ledger.letter_steps import acts, bring_to, discard, land, read
from tests.ledger.steps import rows
from worker.desk.change_body import differences
from worker.ledger.ledger import Ledger
from worker.ledger.schema import ACTS, LETTERS
from worker.letter import LetterState

BAD = ORDER | {"currency": "usx", "amount": "12.10"}
MEND = ("--set", "currency=usd", "--why", "the bad deploy")


async def land_bad(ledger: Ledger, *ids: str) -> None:
    """Letters of as many orders in a currency that is none, so that their value is not known."""
    unknown: dict[str, Any] = {"amount_minor": None, "currency": None, "error": "currency: 'usx' is none"}
    for number, letter_id in enumerate(ids, start=1):
        order_id = f"o-{number}"
        body = BAD | {"order_id": order_id}
        await land(ledger, order_letter(letter_id, body=body, order_id=order_id, **unknown))


async def dry(ledger: Ledger, url: str, capsys: pytest.CaptureFixture[str], *words: str, code: int = 0) -> str:
    """What a dry run prints; it touches nothing."""
    before = await rows(ledger, LETTERS), await rows(ledger, ACTS)
    capsys.readouterr()
    assert await run(url, *words, "--dry-run") == code
    assert (await rows(ledger, LETTERS), await rows(ledger, ACTS)) == before
    return capsys.readouterr().out


def commands_in(said: str) -> list[list[str]]:
    """The commands that are printed, without the program's name."""
    lines = [line.partition("payment-worker dead-letters ")[2] for line in said.splitlines()]
    return [line.split() for line in lines if line]


# One order for many letters


async def test_an_order_id_is_set_in_one_letter_alone(ledger: Ledger, url: str) -> None:
    """Of many it would make one order: one would be paid, and the others resolved with it."""
    await land_orders(ledger, "dl_1", "dl_2")

    for dry_run in ([], ["--dry-run"]):
        for setting in ("order_id=o-9", 'order_id:="o-9"'):
            said = await refused(ledger, url, "--all", "--set", setting, "--why", "x", *dry_run)
            assert said == (
                "--set order_id is for one letter: two would be one order after it; "
                "2 are meant by: all; nothing was done"
            )
    await run(url, "dl_1", "--set", "order_id=o-9", "--why", "x")


async def test_no_two_letters_of_a_choice_may_be_one_order(
    ledger: Ledger, url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """As where a shop has sent orders twice: the oldest letter of each is kept."""
    await land_orders(ledger, "dl_1", "dl_2", "dl_3")
    for number in (1, 2):
        twice = order_letter(f"dl_{number}_again", body=ORDER | {"order_id": f"o-{number}"}, order_id=f"o-{number}")
        await land(ledger, twice, landed_at=twice.landed_at.replace(year=2030))

    said = await refused(ledger, url, "--all", "--set", "description=a")
    assert said == (
        "dl_1_again: order o-1 is that of dl_2 too: the two would be one payment; discard one of them; "
        "1 other would be refused too, see --dry-run; nothing was done"
    )

    told = json.loads(await dry(ledger, url, capsys, "--all", "--set", "description=a", "--json", code=1))
    assert await discard(ledger, *(each["id"] for each in told if each["refused"])) == 2
    assert len(await edited(url, capsys, "--all", "--set", "description=a")) == 3


async def test_an_order_id_that_another_letter_has_is_not_taken(ledger: Ledger, url: str) -> None:
    await land_orders(ledger, "dl_0", "dl_1", "dl_2")
    await bring_to(ledger, LetterState.REPLAYING, "dl_2")
    for number in (1, 2):
        said = await refused(ledger, url, "dl_0", "--set", f"order_id=o-{number}", "--why", "x")
        assert said == (
            f"dl_0: order o-{number} has a letter of its own, dl_{number}: the two would be one payment; "
            "give this one another order id, or discard one of them; nothing was done"
        )
    await bring_to(ledger, LetterState.DISCARDED, "dl_1")
    await run(url, "dl_0", "--set", "order_id=o-1", "--why", "x")


async def test_an_order_may_get_the_id_that_a_command_waits_for(ledger: Ledger, url: str) -> None:
    command = {"order_id": "o-7", "request_id": "cancel-1"}
    properties = AmqpProperties(message_id="m", type="order.cancelled")
    await land(ledger, order_letter("dl_command", body=command, order_id="o-7", properties=properties))
    await land(ledger, order_letter("dl_1"))
    await run(url, "dl_1", "--set", "order_id=o-7", "--why", "a typo")


# What would be done


async def test_a_dry_run_tells_the_whole_before_and_after(
    ledger: Ledger, url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    await land_bad(ledger, *(f"dl_{number}" for number in range(1, 8)))

    said = await dry(ledger, url, capsys, "--all", "--set", "currency=usd", "--set", "capture_method=automatic")

    lines = [" ".join(line.split()) for line in said.splitlines()]
    first = 'dl_1 o-1 – 12.10 USD currency: "usx" → "usd", capture_method: – → "automatic"'
    assert lines[:2] == ["id order value after it what", first]
    (group,) = {line for line in lines if line.startswith("groups g_")}
    assert lines[8:] == [
        "",
        "would be edited 7 letters",
        "orders 7: o-1, o-2, o-3, o-4, o-5 and 2 more",
        "before value unreadable",
        "after 84.70 USD",
        'changes currency: "usx" → "usd" (7 letters), capture_method: – → "automatic" (7 letters)',
        group,
        "It changes what is paid: the edit itself wants a reason, --why.",
        "Nothing was touched.",
    ]
    assert "wants a reason" not in await dry(ledger, url, capsys, "--all", *MEND)
    assert "wants a reason" not in await dry(
        ledger, url, capsys, "--all", "--set", "description=a", "--set", "currency=USX", code=1
    )


async def test_a_dry_run_tells_what_would_be_refused_and_why(
    ledger: Ledger, url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    await land_bad(ledger, "dl_1")
    await land(ledger, order_letter("dl_2", body=b"no JSON", order_id=None))
    await land(ledger, order_letter("dl_3", body=ORDER | {"order_id": "o-3", "currency": "usd"}))
    await run(url, "dl_1", *MEND)

    said = await dry(ledger, url, capsys, "--all", "--set", "currency=usd", code=1)
    told = {each["id"]: each for each in json.loads(await dry(ledger, url, capsys, "--all", *MEND, "--json", code=1))}

    assert "would be refused  2 letters, and with them all: none is edited" in said
    assert "stay as they are  1 letter" in said
    assert "refused: its body is not JSON" in said
    (made,) = told.keys() - {"dl_2", "dl_3"}
    assert told[made] == {
        "id": made,
        "order_id": "o-1",
        "value": "12.10 USD",
        "refused": None,
        "changes": {},
        "after": None,
    }
    assert told["dl_3"]["refused"] == "the edit changes nothing of it"
    assert await refused(ledger, url, "--all", *MEND) == (
        "dl_2: its body is not JSON: Expecting value at character 0; give the whole body with --body FILE; "
        "1 other would be refused too, see --dry-run; nothing was done"
    )


async def test_a_dry_run_tells_programs_what_the_edit_then_makes(
    ledger: Ledger, url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    await land_bad(ledger, "dl_1")
    [told] = json.loads(await dry(ledger, url, capsys, "dl_1", *MEND, "--set", "order_id=o-9", "--json"))

    ((_, new_id),) = await edited(url, capsys, "dl_1", *MEND, "--set", "order_id=o-9")

    made = await read(ledger, new_id)
    after = {"id": new_id, "order_id": "o-9", "value": "12.10 USD", "group": made.group_id}
    changes = {"order_id": ['"o-1"', '"o-9"'], "currency": ['"usx"', '"usd"']}
    assert told == {"id": "dl_1", "order_id": "o-1", "value": None, "refused": None, "changes": changes, "after": after}


def test_fields_that_differ_are_told_as_they_are_written() -> None:
    before = b'{"a": 12.10, "b": {"c": "x", "d": [1.0]}, "e": {}, "same": 1e400}'
    after = b'{"b": {"c": null, "d": [1.00]}, "e": {"f": true}, "same": 1e400, "a": "12.10"}'
    event = b'{"specversion": "1.0", "id": "1", "data": %s}'
    wanted = {
        "a": ("12.10", '"12.10"'),
        "b.c": ('"x"', "null"),
        "b.d": ("[1.0]", "[1.00]"),
        "e": ("{}", None),
        "e.f": (None, "true"),
    }
    assert differences(before, after) == differences(event % before, event % after) == wanted
    assert differences(b"no JSON", b'{"a": 1}') == {"a": (None, "1")}
    assert differences(before, before) == {}


# What was done, and what comes next


async def test_an_edit_tells_what_it_made_and_the_command_that_replays_just_that(
    ledger: Ledger, url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    await land_bad(ledger, "dl_1", "dl_2")
    await land_orders(ledger, "dl_other")
    old_group = (await read(ledger, "dl_1")).group_id
    capsys.readouterr()

    assert await run(url, "--group", old_group, *MEND) == 0

    said = capsys.readouterr().out
    new_ids = {line.split(" → ")[1] for line in said.splitlines()[:2]}
    group = (await read(ledger, new_ids.copy().pop())).group_id
    assert group != old_group
    assert [" ".join(line.split()) for line in said.splitlines()[3:9]] == [
        "edited 2 letters",
        "orders 2: o-1, o-2",
        "before value unreadable",
        "after 24.20 USD",
        'changes currency: "usx" → "usd" (2 letters)',
        f"groups {group} (2 letters)",
    ]
    dry_run, replay, undo = commands_in(said)
    assert replay == ["replay", "--group", group]
    assert dry_run == [*replay, "--dry-run"]
    environment = {"DATABASE_URL": url}
    judged = json.loads((await cli(environment, *dry_run, "--json")).stdout)
    assert {(each["id"], each["verdict"]) for each in judged} == {(new_id, "safe") for new_id in new_ids}
    await cli(environment, *undo)
    assert [(await read(ledger, letter_id)).state for letter_id in ("dl_1", "dl_2", *new_ids)] == [
        *["open"] * 2,
        *["discarded"] * 2,
    ]


async def test_where_its_group_holds_others_too_the_command_names_the_moment(
    ledger: Ledger, url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    await land_bad(ledger, "dl_1", "dl_2", "dl_3")
    await edited(url, capsys, "dl_1", *MEND)
    capsys.readouterr()

    await run(url, "dl_2", "dl_3", *MEND)

    said = capsys.readouterr().out
    new_ids = {line.split(" → ")[1] for line in said.splitlines()[:2]}
    dry_run, _, undo = commands_in(said)
    assert dry_run[1] == undo[1] == "--at"
    judged = json.loads((await cli({"DATABASE_URL": url}, *dry_run, "--json")).stdout)
    assert {each["id"] for each in judged} == new_ids


async def test_letters_of_several_causes_come_to_several_groups(
    ledger: Ledger, url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    await land_bad(ledger, "dl_1", "dl_2")
    other = order_letter("dl_x", body=BAD | {"order_id": "o-3"}, order_id="o-3", error="currency: is a bad one")
    await land(ledger, other)
    capsys.readouterr()

    await run(url, "--all", *MEND)

    said = capsys.readouterr().out
    made = [line.split(" → ")[1] for line in said.splitlines()[:3]]
    groups = [(await read(ledger, letter_id)).group_id for letter_id in made]
    assert all(f"{group} ({groups.count(group)} letter" in said for group in groups)
    judged = json.loads((await cli({"DATABASE_URL": url}, *commands_in(said)[0], "--json")).stdout)
    assert {each["id"] for each in judged} == set(made)
    assert await acts(ledger, made[0]) == ["made by edit"]
