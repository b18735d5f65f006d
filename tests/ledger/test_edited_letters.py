"""An edit can be undone as long as it has had no effect: the letter is back, and never both of them are open."""

import asyncio
from dataclasses import replace
from typing import Any

import pytest

from tests.ledger import letter_steps as steps
from tests.ledger.conftest import OpenLedger
from tests.ledger.letter_steps import OPERATOR, acts, land, letter, read, state_of
from tests.ledger.steps import later, rows
from worker.errors import ConfigurationError, StaleMove, WorkerError
from worker.ledger import letter_moves, letters
from worker.ledger.edited_letters import Successor, successors
from worker.ledger.ledger import Ledger
from worker.ledger.letter_figures import Worth
from worker.ledger.letter_moves import Restored
from worker.ledger.letters import LetterFilter
from worker.ledger.schema import ACTS, LETTERS
from worker.letter import LetterState, edited_letter_id

ROUNDS = 25
BACK = Worth(1, {"usd": 1250})


async def edit(ledger: Ledger, letter_id: str = "dl_1", *, body: bytes = b"corrected", after_s: float = 700) -> str:
    """The id of the letter that is in its place then."""
    old, moment = await read(ledger, letter_id), later(after_s)
    new = replace(
        old,
        letter_id=edited_letter_id(old, body),
        body=body,
        edited_from=letter_id,
        landings=1,
        landed_at=moment,
        moved_at=moment,
    )
    arguments: dict[str, Any] = {"by": OPERATOR, "why": "the shop says so", "now": moment}
    await ledger.run(letter_moves.replace_by_edited, letter_id, new, **arguments)
    return new.letter_id


async def restore(ledger: Ledger, *ids: str, after_s: float = 800, **chosen: Any) -> Restored:
    meant = LetterFilter(ids=ids, **chosen)
    return await ledger.run(letter_moves.restore, meant, by=OPERATOR, why="a slip", now=later(after_s))


async def states(ledger: Ledger, *ids: str) -> list[str]:
    return [await state_of(ledger, letter_id) for letter_id in ids]


async def test_an_edited_letter_is_put_back_and_what_it_became_is_discarded(ledger: Ledger) -> None:
    await land(ledger)
    before = await read(ledger)
    new_id = await edit(ledger)
    assert await ledger.run(successors, LetterFilter(ids=("dl_1",))) == [
        Successor(new_id, "dl_1", LetterState.OPEN, was_sent=False)
    ]

    assert await restore(ledger, "dl_1") == Restored(discarded=Worth(), edited=BACK, left=0)

    assert await read(ledger) == replace(before, moved_at=later(800))
    assert await state_of(ledger, new_id) == "discarded"
    assert await acts(ledger, "dl_1") == ["landed", "edited", "restored"]
    assert await acts(ledger, new_id) == ["made by edit", "edit undone"]
    assert {row["why"] for row in await rows(ledger, ACTS) if row["at"] == later(800)} == {"a slip"}


async def test_all_that_one_edit_has_made_is_put_back_by_its_moment(ledger: Ledger) -> None:
    """Others, edited or discarded or replayed at other times, stay."""
    for number in range(5):
        await land(ledger, letter(f"dl_{number}"))
    made = [await edit(ledger, f"dl_{number}") for number in range(2)]
    other = await edit(ledger, "dl_2", after_s=701)
    await steps.bring_to(ledger, LetterState.DISCARDED, "dl_3")
    await steps.bring_to(ledger, LetterState.RESOLVED, "dl_4")

    assert await restore(ledger, moved_at=later(700)) == Restored(Worth(), Worth(2, {"usd": 2500}), left=0)

    everything = *(f"dl_{number}" for number in range(5)), *made, other
    assert await states(ledger, *everything) == [
        *("open", "open", "resolved", "discarded", "resolved"),
        *("discarded", "discarded", "open"),
    ]


@pytest.mark.parametrize("chosen", [{}, {"reason": "bad_message"}], ids=["all", "a filter"])
async def test_a_choice_that_does_not_name_them_puts_no_edited_letters_back(
    ledger: Ledger, chosen: dict[str, Any]
) -> None:
    for number in (1, 2):
        await land(ledger, letter(f"dl_{number}"))
    new_id = await edit(ledger)
    await steps.bring_to(ledger, LetterState.DISCARDED, "dl_2")

    assert await restore(ledger, **chosen) == Restored(BACK, edited=Worth(), left=0)

    assert await states(ledger, "dl_1", new_id, "dl_2") == ["resolved", "open", "open"]


async def replaying(ledger: Ledger, letter_id: str) -> None:
    await steps.bring_to(ledger, LetterState.REPLAYING, letter_id)


async def resolved(ledger: Ledger, letter_id: str) -> None:
    await steps.bring_to(ledger, LetterState.RESOLVED, letter_id)


async def failed(ledger: Ledger, letter_id: str) -> None:
    await replaying(ledger, letter_id)
    found = await read(ledger, letter_id)
    await land(ledger, replace(found, landing_id="again"))


async def failed_and_discarded(ledger: Ledger, letter_id: str) -> None:
    await failed(ledger, letter_id)
    await steps.bring_to(ledger, LetterState.DISCARDED, letter_id)


async def edited_again(ledger: Ledger, letter_id: str) -> None:
    await edit(ledger, letter_id, body=b"corrected again")


EFFECTS = {
    "replaying": (replaying, "is with the worker: wait for its outcome"),
    "resolved": (resolved, "was replayed and is resolved: see to that one"),
    "failed": (failed, "was replayed and is open: see to that one"),
    "failed and discarded": (failed_and_discarded, "was replayed and is discarded: see to that one"),
    "edited again": (edited_again, "was edited itself: restore that one first"),
}


@pytest.mark.parametrize("effect", EFFECTS)
async def test_what_has_had_an_effect_is_not_undone_nor_is_anything_else(ledger: Ledger, effect: str) -> None:
    happens, because = EFFECTS[effect]
    for number in (1, 2):
        await land(ledger, letter(f"dl_{number}"))
    new_id, other_id = await edit(ledger, "dl_1"), await edit(ledger, "dl_2")
    await happens(ledger, new_id)
    before = [await rows(ledger, LETTERS), await rows(ledger, ACTS)]

    for chosen in ({"ids": ("dl_1", "dl_2")}, {"moved_at": later(700)}):
        with pytest.raises(ConfigurationError) as refused:
            await ledger.run(letter_moves.restore, LetterFilter(**chosen), by=OPERATOR, why=None, now=later(900))
        assert str(refused.value) == f"dl_1 was edited into {new_id}, which {because}"
    assert [await rows(ledger, LETTERS), await rows(ledger, ACTS)] == before

    await happens(ledger, other_id)
    with pytest.raises(ConfigurationError, match=r"; 1 other cannot be undone either$"):
        await ledger.run(letter_moves.restore, LetterFilter(moved_at=later(700)), by=OPERATOR, why=None, now=later(900))
    assert await states(ledger, "dl_1", "dl_2") == ["resolved", "resolved"]


async def test_an_edit_of_an_edited_letter_is_undone_step_by_step(ledger: Ledger) -> None:
    await land(ledger)
    second = await edit(ledger)
    third = await edit(ledger, second, body=b"corrected again")
    assert await states(ledger, "dl_1", second, third) == ["resolved", "resolved", "open"]
    await restore(ledger, second)
    assert await states(ledger, "dl_1", second, third) == ["resolved", "open", "discarded"]
    await restore(ledger, "dl_1")
    assert await states(ledger, "dl_1", second, third) == ["open", "discarded", "discarded"]


async def test_the_same_edit_after_it_was_undone_opens_the_same_letter_again(ledger: Ledger) -> None:
    await land(ledger)
    new_id = await edit(ledger)
    made = await read(ledger, new_id)
    for number in range(2):
        await restore(ledger, "dl_1", after_s=800 + number)
        assert await edit(ledger, after_s=900 + number) == new_id
        assert await read(ledger, new_id) == replace(made, landed_at=later(900 + number), moved_at=later(900 + number))
    assert await states(ledger, "dl_1", new_id) == ["resolved", "open"]
    with pytest.raises(StaleMove):
        await edit(ledger)


async def test_what_an_undone_edit_made_never_comes_back_beside_its_original(ledger: Ledger) -> None:
    """Nor beside what another edit has made since."""
    await land(ledger)
    first = await edit(ledger)
    await restore(ledger, "dl_1")
    with pytest.raises(ConfigurationError, match=f"{first} was made by an edit that was undone: say that edit again"):
        await restore(ledger, first)
    assert await restore(ledger) == Restored(Worth(), Worth(), left=1)
    second = await edit(ledger, body=b"otherwise")
    assert await restore(ledger) == Restored(Worth(), Worth(), left=1)
    assert await states(ledger, "dl_1", first, second) == ["resolved", "discarded", "open"]
    # One that was simply discarded does come back.
    await steps.bring_to(ledger, LetterState.DISCARDED, second)
    assert await restore(ledger) == Restored(BACK, Worth(), left=1)
    assert await states(ledger, "dl_1", first, second) == ["resolved", "discarded", "open"]


async def test_an_edit_whose_letter_was_discarded_is_undone_too(ledger: Ledger) -> None:
    await land(ledger)
    new_id = await edit(ledger)
    await steps.bring_to(ledger, LetterState.DISCARDED, new_id)
    assert (await restore(ledger, "dl_1")).edited == BACK
    assert await restore(ledger) == Restored(Worth(), Worth(), left=1)
    assert await states(ledger, "dl_1", new_id) == ["open", "discarded"]


async def test_a_letter_that_a_replay_has_closed_since_is_not_put_back(ledger: Ledger) -> None:
    await land(ledger)
    new_id = await edit(ledger)
    await restore(ledger, "dl_1")
    await steps.bring_to(ledger, LetterState.RESOLVED)
    assert await restore(ledger, "dl_1") == Restored(Worth(), Worth(), left=0)
    assert await states(ledger, "dl_1", new_id) == ["resolved", "discarded"]


async def test_an_imported_edit_is_undone_as_one_of_our_own(ledger: Ledger) -> None:
    """No act tells of it here."""
    closed = letter("dl_1", state=LetterState.RESOLVED)
    made = letter("dl_2", edited_from="dl_1")
    arguments: dict[str, Any] = {"vouched": False, "by": OPERATOR, "why": "x", "now": later(1)}
    await ledger.run(letter_moves.add_all, [letters.row_of(each) for each in (closed, made)], **arguments)
    assert (await restore(ledger, "dl_1")).edited == BACK
    assert await states(ledger, "dl_1", "dl_2") == ["open", "discarded"]


async def test_of_an_undoing_and_a_replay_at_once_one_is_done(open_ledger: OpenLedger) -> None:
    """Never is the letter open again while what it became is with the worker."""
    ledgers = [open_ledger(), open_ledger()]
    ends = set()
    for number in range(ROUNDS):
        old_id = f"dl_{number}"
        await land(ledgers[0], letter(old_id))
        new_id = await edit(ledgers[0], old_id)
        await steps.make_replay(ledgers[0], f"rp_{number}", new_id)
        doings = [restore(ledgers[0], old_id), steps.take(ledgers[1], f"rp_{number}")]
        done = await asyncio.gather(*(doings if number % 2 else doings[::-1]), return_exceptions=True)
        assert all(isinstance(each, ConfigurationError) or not isinstance(each, BaseException) for each in done), done
        end = tuple(await states(ledgers[0], old_id, new_id))
        assert end in (("open", "discarded"), ("resolved", "replaying"))
        ends.add(end)
    assert ends


async def test_of_many_who_undo_an_edit_at_once_one_has(open_ledger: OpenLedger) -> None:
    ledgers = [open_ledger() for _ in range(4)]
    for number in range(ROUNDS):
        old_id = f"dl_{number}"
        await land(ledgers[0], letter(old_id))
        new_id = await edit(ledgers[0], old_id)
        done = await asyncio.gather(*(restore(ledger, old_id) for ledger in ledgers), return_exceptions=True)
        assert not [each for each in done if isinstance(each, BaseException) and not isinstance(each, WorkerError)]
        assert await acts(ledgers[0], new_id) == ["made by edit", "edit undone"]
        assert await states(ledgers[0], old_id, new_id) == ["open", "discarded"]
