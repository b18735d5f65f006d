"""What the ledger promises of replays: each letter is taken once, by whoever and however many take."""

import asyncio
from collections import Counter
from dataclasses import replace
from itertools import count
from typing import Any

import pytest
import sqlalchemy as sa

from tests.ledger import letter_steps, steps
from tests.ledger.conftest import OpenLedger
from tests.ledger.letter_steps import (
    OPERATOR,
    SAFE,
    acts,
    discard,
    items,
    land,
    land_again,
    land_many,
    letter,
    make_replay,
    replay_one,
    resolve,
    state_of,
    take,
)
from tests.ledger.steps import HORIZON_S, later, rows
from worker.ledger import letters, moves, replays
from worker.ledger.ledger import Ledger
from worker.ledger.letter_figures import Worth
from worker.ledger.letters import LetterFilter
from worker.ledger.schema import ACTS, LETTERS, REPLAY_ITEMS
from worker.letter import ItemState, Letter, LetterState, Verdict, VerdictKind, judge
from worker.payment import Operation, OperationState, Payment, PaymentState, intent_params

BLOCKED = Verdict(VerdictKind.BLOCKED, "it would be refused again")
ROUNDS = 25


async def look(ledger: Ledger, replay_id: str = "rp_1") -> replays.Replay:
    replay = await ledger.run(replays.read_replay, replay_id)
    assert replay is not None
    return replay


async def counts(ledger: Ledger, replay_id: str = "rp_1") -> dict[str, int]:
    return dict((await look(ledger, replay_id)).counts)


async def end(ledger: Ledger, replay_id: str = "rp_1", *, because: str = "done", after_s: float = 900) -> None:
    await ledger.run(replays.end_replay, replay_id, by=OPERATOR, because=because, now=later(after_s))


async def said(ledger: Ledger, replay_id: str = "rp_1") -> dict[str, str | None]:
    return {row["letter_id"]: row["said"] for row in await rows(ledger, REPLAY_ITEMS) if row["replay_id"] == replay_id}


# The selection


async def test_a_replay_is_of_the_open_letters_that_are_meant_oldest_first(ledger: Ledger) -> None:
    ids = await land_many(ledger, 6)
    await land_again(ledger, ids[1], after_s=99)
    await discard(ledger, ids[4])
    chosen = (ids[5], ids[1], ids[2], ids[4], "dl_nothing")
    assert await make_replay(ledger, "rp_1", *chosen) == 3
    assert await items(ledger) == dict.fromkeys((ids[2], ids[5], ids[1]), "waiting")
    assert [(row["position"], row["landings"]) for row in await rows(ledger, REPLAY_ITEMS)] == [(0, 1), (1, 1), (2, 2)]
    replay = await look(ledger)
    assert replay == replays.Replay("rp_1", later(200), OPERATOR, "as chosen", None, None, {ItemState.WAITING: 3})
    assert replay.total == 3
    line = (await rows(ledger, ACTS))[-1]
    assert (line["by"], line["act"], line["replay_id"], line["letter_id"]) == (OPERATOR, "replay made", "rp_1", None)
    assert line["why"] == "3 letters: as chosen"
    assert await ledger.run(replays.read_replay, "rp_2") is None


async def test_what_lands_after_the_choice_is_not_taken(ledger: Ledger) -> None:
    ids = await land_many(ledger, 3)
    await make_replay(ledger)
    await land(ledger, letter("dl_late", landed_at=later(-100)))
    await land_again(ledger, ids[1])
    assert await take(ledger) == [ids[0], ids[2]]
    assert await take(ledger) == []
    assert await items(ledger) == {ids[0]: "sent", ids[1]: "skipped", ids[2]: "sent"}
    assert (await said(ledger))[ids[1]] == "it has landed again since it was chosen"
    assert [await state_of(ledger, letter_id) for letter_id in ("dl_late", ids[1])] == ["open", "open"]


@pytest.mark.parametrize("state", [state for state in LetterState if state is not LetterState.OPEN])
async def test_a_letter_that_is_not_open_any_more_is_skipped(ledger: Ledger, state: LetterState) -> None:
    await land(ledger)
    await make_replay(ledger)
    await letter_steps.bring_to(ledger, state)
    before = await acts(ledger)
    assert await take(ledger) == []
    assert await items(ledger) == {"dl_1": "skipped"}
    assert await said(ledger) == {"dl_1": f"it is {state}, and was open when it was chosen"}
    assert await state_of(ledger) is state
    assert await acts(ledger) == before


async def test_a_letter_that_was_discarded_and_restored_is_the_one_that_was_meant(ledger: Ledger) -> None:
    await land(ledger)
    await make_replay(ledger)
    await discard(ledger)
    await letter_steps.restore(ledger)
    assert await take(ledger) == ["dl_1"]


async def test_a_replay_of_no_letters_takes_none(ledger: Ledger) -> None:
    assert await make_replay(ledger) == 0
    assert (await look(ledger)).total == 0
    assert await take(ledger) == []
    assert await take(ledger, "rp_nothing") == []


# Waves


async def test_waves_take_the_letters_in_order_and_no_more_than_are_asked_for(ledger: Ledger) -> None:
    ids = await land_many(ledger, 20)
    await make_replay(ledger)
    waves = [await take(ledger, size=size, after_s=300 + size) for size in (1, 2, 5, 20, 20)]
    assert waves == [ids[:1], ids[1:3], ids[3:8], ids[8:], []]
    assert await counts(ledger) == {"sent": 20}
    lines = [row for row in await rows(ledger, ACTS) if row["act"] == "replayed"]
    assert [(row["letter_id"], row["by"], row["replay_id"]) for row in lines] == [
        (letter_id, OPERATOR, "rp_1") for letter_id in ids
    ]
    assert {row["why"] for row in lines} == {"safe: no call was begun"}
    moved = {row["letter_id"]: (row["state"], row["moved_at"]) for row in await rows(ledger, LETTERS)}
    assert moved[ids[0]] == ("replaying", later(301))
    assert moved[ids[19]] == ("replaying", later(320))


async def test_what_is_taken_is_the_letter_as_it_is_kept(ledger: Ledger) -> None:
    await land(ledger)
    before = await letter_steps.read(ledger)
    await make_replay(ledger)
    (taken,) = await ledger.run(
        replays.take_wave, "rp_1", size=9, judge=letter_steps.always(), by=OPERATOR, now=later(300)
    )
    assert taken == before


async def test_blocked_letters_stay_open_and_use_up_the_wave(ledger: Ledger) -> None:
    ids = await land_many(ledger, 5)

    def judge(each: Letter, _: Payment | None, __: Operation | None) -> Verdict:
        return BLOCKED if each.letter_id in (ids[0], ids[3]) else SAFE

    await make_replay(ledger)
    before = await acts(ledger)
    wave = {"judge": judge, "by": OPERATOR, "now": later(300)}
    taken = await ledger.run(replays.take_wave, "rp_1", size=3, **wave)
    assert [each.letter_id for each in taken] == ids[1:3]
    assert [each.letter_id for each in await ledger.run(replays.take_wave, "rp_1", size=3, **wave)] == ids[4:]
    assert await counts(ledger) == {"sent": 3, "blocked": 2}
    assert (await said(ledger))[ids[0]] == "it would be refused again"
    assert [await state_of(ledger, letter_id) for letter_id in (ids[0], ids[3])] == ["open", "open"]
    assert (await acts(ledger))[len(before) :] == ["replayed"] * 3


async def test_the_verdict_is_passed_on_the_payment_and_its_newest_call_of_the_moment(ledger: Ledger) -> None:
    """The payment of o-1 is decided after the choice, and o-2 is asked for a second time."""
    await land(ledger, letter("dl_1", order_id="o-1"))
    await land(ledger, letter("dl_2", order_id="o-2"))
    await land(ledger, letter("dl_3", order_id="o-3"))
    await land(ledger, letter("dl_4", order_id=None))
    await make_replay(ledger)
    await steps.decide(ledger, "o-1")
    payment = await steps.open_payment(ledger, "o-2")
    operation = await steps.claim(ledger, "o-2")
    await ledger.run(moves.end_absent, operation, claim="w-1/1", evidence={}, now=later(1))
    second = await steps.claim(ledger, "o-2", now=later(2))
    seen: dict[str, tuple[Payment | None, Operation | None]] = {}

    def judge(each: Letter, of: Payment | None, call: Operation | None) -> Verdict:
        seen[each.letter_id] = (of, call)
        return SAFE

    await ledger.run(replays.take_wave, "rp_1", size=9, judge=judge, by=OPERATOR, now=later(300))
    decided, answered = seen["dl_1"]
    assert decided is not None
    assert answered is not None
    assert (decided.state, answered.state) == (PaymentState.INTENT_CREATED, OperationState.ANSWERED)
    assert seen["dl_2"] == (payment, second)
    assert second.attempt == 2
    assert seen["dl_3"] == seen["dl_4"] == (None, None)


async def test_a_wave_that_cannot_be_judged_takes_nothing(ledger: Ledger) -> None:
    ids = await land_many(ledger, 3)

    def judge(each: Letter, _: Payment | None, __: Operation | None) -> Verdict:
        if each.letter_id == ids[2]:
            raise ArithmeticError("a bug of ours")
        return SAFE

    await make_replay(ledger)
    before = [await rows(ledger, table) for table in (LETTERS, REPLAY_ITEMS, ACTS)]
    with pytest.raises(ArithmeticError):
        await ledger.run(replays.take_wave, "rp_1", size=9, judge=judge, by=OPERATOR, now=later(300))
    assert [await rows(ledger, table) for table in (LETTERS, REPLAY_ITEMS, ACTS)] == before


# Outcomes


async def test_a_letter_is_resolved_in_its_replay_and_nowhere_else(ledger: Ledger) -> None:
    ids = await land_many(ledger, 2)
    await make_replay(ledger, "rp_1")
    await make_replay(ledger, "rp_2")
    assert await take(ledger, "rp_1") == ids
    assert await resolve(ledger, ids[0], after_s=400)
    assert await items(ledger, "rp_1") == {ids[0]: "resolved", ids[1]: "sent"}
    assert await items(ledger, "rp_2") == dict.fromkeys(ids, "waiting")
    (row,) = [row for row in await rows(ledger, REPLAY_ITEMS) if row["state"] == "resolved"]
    told = "carried out, and every event of its order is told"
    assert (row["said"], row["moved_at"]) == (told, later(400))
    assert await take(ledger, "rp_2") == []
    assert await items(ledger, "rp_2") == dict.fromkeys(ids, "skipped")
    assert await items(ledger, "rp_1") == {ids[0]: "resolved", ids[1]: "sent"}


async def test_a_letter_that_fails_again_has_failed_in_its_replay_and_is_not_taken_by_an_older_choice(
    ledger: Ledger,
) -> None:
    await land(ledger)
    await make_replay(ledger, "rp_older")
    await replay_one(ledger, "rp_1")
    assert await land_again(ledger, after_s=500) == "reopened"
    assert await items(ledger, "rp_1") == {"dl_1": "failed"}
    assert await said(ledger, "rp_1") == {"dl_1": "retries_exhausted: connection: refused"}
    assert await take(ledger, "rp_1") == await take(ledger, "rp_older") == []
    assert await items(ledger, "rp_older") == {"dl_1": "skipped"}

    await replay_one(ledger, "rp_2")
    assert await resolve(ledger)
    assert [await items(ledger, each) for each in ("rp_1", "rp_2")] == [{"dl_1": "failed"}, {"dl_1": "resolved"}]
    assert await acts(ledger, "dl_1") == ["landed", "replayed", "reopened", "replayed", "resolved"]


async def test_a_letter_may_be_replayed_until_it_succeeds(ledger: Ledger) -> None:
    await land(ledger)
    for number in range(1, 6):
        await replay_one(ledger, f"rp_{number}")
        await land_again(ledger, landing_id=f"again-{number}")
    await replay_one(ledger, "rp_6")
    assert await resolve(ledger)
    ends = [(await items(ledger, f"rp_{number}"))["dl_1"] for number in range(1, 7)]
    assert ends == ["failed"] * 5 + ["resolved"]
    assert (await letter_steps.read(ledger)).landings == 6


async def test_what_was_sent_and_has_no_outcome_is_found_in_order(ledger: Ledger) -> None:
    ids = await land_many(ledger, 8)
    await make_replay(ledger)
    await take(ledger, size=5, after_s=300)
    await take(ledger, size=1, after_s=350)
    await resolve(ledger, ids[1])
    await land_again(ledger, ids[3])

    async def sent(moved_before: float, limit: int = 100, replay_id: str = "rp_1") -> list[str]:
        asked = {"moved_before": later(moved_before), "limit": limit}
        return [each.letter_id for each in await ledger.run(replays.sent_items, replay_id, **asked)]

    assert await sent(351) == [ids[0], ids[2], ids[4], ids[5]]
    assert await sent(350) == [ids[0], ids[2], ids[4]]
    assert await sent(300) == []
    assert await sent(351, limit=2) == [ids[0], ids[2]]
    assert await sent(351, replay_id="rp_2") == []
    before = await letter_steps.read(ledger, ids[0])
    (first, *_) = await ledger.run(replays.sent_items, "rp_1", moved_before=later(351), limit=1)
    assert first == before
    assert first.state is LetterState.REPLAYING


async def take_back(ledger: Ledger, letter_id: str, replay_id: str = "rp_1") -> bool:
    why = "its message cannot be published: too long"
    return await ledger.run(replays.take_back, replay_id, letter_id, by=OPERATOR, why=why, now=later(450))


async def test_a_letter_that_cannot_be_sent_is_open_again_and_is_blocked_in_its_replay(ledger: Ledger) -> None:
    ids = await land_many(ledger, 2)
    await make_replay(ledger)
    assert await take(ledger) == ids
    before = await letter_steps.read(ledger, ids[0])

    assert await take_back(ledger, ids[0])

    assert await letter_steps.read(ledger, ids[0]) == replace(before, state=LetterState.OPEN, moved_at=later(450))
    assert await items(ledger) == {ids[0]: "blocked", ids[1]: "sent"}
    assert (await said(ledger))[ids[0]] == "its message cannot be published: too long"
    line = (await rows(ledger, ACTS))[-1]
    assert (line["act"], line["letter_id"], line["replay_id"], line["by"], line["why"]) == (
        "not sent",
        ids[0],
        "rp_1",
        OPERATOR,
        "its message cannot be published: too long",
    )
    await replay_one(ledger, "rp_2", ids[0])
    assert await resolve(ledger, ids[0])


async def test_a_letter_that_is_not_out_any_more_is_not_taken_back(ledger: Ledger) -> None:
    ids = await land_many(ledger, 2)
    await make_replay(ledger)
    await take(ledger)
    await resolve(ledger, ids[0])
    await land_again(ledger, ids[1])
    before = [await rows(ledger, table) for table in (LETTERS, REPLAY_ITEMS, ACTS)]
    for letter_id in (*ids, "dl_nothing"):
        assert not await take_back(ledger, letter_id)
    assert [await rows(ledger, table) for table in (LETTERS, REPLAY_ITEMS, ACTS)] == before


async def test_letters_that_were_not_replayed_are_counted_by_the_reason(ledger: Ledger) -> None:
    ids = await land_many(ledger, 5)
    await make_replay(ledger)
    await make_replay(ledger, "rp_2")
    for letter_id in ids[:2]:
        await land_again(ledger, letter_id)
    await discard(ledger, ids[2])
    assert await take(ledger) == ids[3:]
    assert list((await ledger.run(replays.reasons, "rp_1", ItemState.SKIPPED)).items()) == [
        (replays.LANDED_AGAIN, 2),
        ("it is discarded, and was open when it was chosen", 1),
    ]
    assert await ledger.run(replays.reasons, "rp_1", ItemState.BLOCKED) == {}
    assert await ledger.run(replays.reasons, "rp_2", ItemState.SKIPPED) == {}


async def test_blocked_letters_are_counted_by_the_reason_and_all_by_their_value(ledger: Ledger) -> None:
    await land_many(ledger, 3)
    await land(ledger, letter("dl_9", order_id="o-9", amount_minor=700, currency="eur", landed_at=later(9)))
    await land(ledger, letter("dl_x", amount_minor=None, currency=None, landed_at=later(10)))
    await make_replay(ledger)
    assert len(await take(ledger, size=2)) == 2
    assert await take(ledger, verdict=Verdict(VerdictKind.BLOCKED, "it conflicts")) == []
    assert await ledger.run(replays.reasons, "rp_1", ItemState.BLOCKED) == {"it conflicts": 3}
    assert await ledger.run(replays.worths, "rp_1") == {
        ItemState.SENT: Worth(2, {"usd": 2500}),
        ItemState.BLOCKED: Worth(3, {"usd": 1250, "eur": 700}, unreadable=1),
    }


# The end


async def test_the_first_reason_for_the_end_counts_and_nothing_more_is_taken(ledger: Ledger) -> None:
    ids = await land_many(ledger, 3)
    await make_replay(ledger)
    await take(ledger, size=1)
    await end(ledger, because="stopped: 1 of the last 1 failed", after_s=900)
    await end(ledger, because="done", after_s=901)
    ended = await look(ledger)
    assert (ended.ended_at, ended.ended_because) == (later(900), "stopped: 1 of the last 1 failed")
    lines = [row for row in await rows(ledger, ACTS) if row["act"] == "replay ended"]
    assert [(row["replay_id"], row["why"], row["by"]) for row in lines] == [
        ("rp_1", "stopped: 1 of the last 1 failed", OPERATOR)
    ]
    assert await take(ledger) == []
    assert await counts(ledger) == {"sent": 1, "waiting": 2}
    assert await state_of(ledger, ids[1]) is LetterState.OPEN
    # What was taken before has its outcome all the same.
    assert await resolve(ledger, ids[0])
    assert await counts(ledger) == {"resolved": 1, "waiting": 2}


async def test_the_end_of_a_replay_that_is_not_there_is_not_written(ledger: Ledger) -> None:
    await end(ledger, "rp_nothing")
    assert await rows(ledger, ACTS) == []


async def test_unfinished_are_those_without_an_end_the_oldest_first(ledger: Ledger) -> None:
    assert await ledger.run(replays.unfinished) == []
    for replay_id, after_s in (("rp_b", 1), ("rp_c", 3), ("rp_a", 2), ("rp_d", 0)):
        await make_replay(ledger, replay_id, after_s=after_s)
    await end(ledger, "rp_b")
    assert await ledger.run(replays.unfinished) == ["rp_d", "rp_a", "rp_c"]


async def test_a_replay_that_ended_while_a_letter_is_out_is_unfinished_until_its_outcome(ledger: Ledger) -> None:
    """Its message may have been lost with the broker: somebody has to be able to send it again."""
    ids = await land_many(ledger, 2)
    await make_replay(ledger, "rp_1")
    assert await take(ledger, "rp_1", size=1) == ids[:1]
    await end(ledger, "rp_1")
    assert await ledger.run(replays.unfinished) == ["rp_1"]
    assert await resolve(ledger, ids[0])
    assert await ledger.run(replays.unfinished) == []


async def test_an_unfinished_replay_has_not_moved_since_its_making_or_the_last_move_of_a_letter(ledger: Ledger) -> None:
    async def quiet(before_s: float) -> list[str]:
        return list(await ledger.run(replays.unfinished, moved_before=later(before_s)))

    ids = await land_many(ledger, 2)
    await make_replay(ledger, "rp_1", after_s=200)
    await make_replay(ledger, "rp_none", "dl_none", after_s=250)
    assert [await quiet(200), await quiet(201), await quiet(251)] == [[], ["rp_1"], ["rp_1", "rp_none"]]

    await take(ledger, "rp_1", size=1, after_s=300)
    assert [await quiet(300), await quiet(301)] == [["rp_none"], ["rp_1", "rp_none"]]
    assert await resolve(ledger, ids[0], after_s=400)
    assert [await quiet(400), await quiet(401)] == [["rp_none"], ["rp_1", "rp_none"]]
    await end(ledger, "rp_1")
    assert await quiet(10_000) == ["rp_none"], "nothing of it is out, and nothing more will be taken"


# Many at once


async def test_two_replays_of_the_same_letters_take_each_of_them_once(open_ledger: OpenLedger) -> None:
    ledgers = [open_ledger() for _ in range(4)]
    ids = await land_many(ledgers[0], 12)
    for number in range(ROUNDS):
        replay_ids = [f"rp_{number}_{half}" for half in "ab"]
        for replay_id in replay_ids:
            assert await make_replay(ledgers[0], replay_id) == len(ids)

        waves = await asyncio.gather(*(take_all(ledger, replay_ids[place % 2]) for place, ledger in enumerate(ledgers)))
        assert sorted(letter_id for wave in waves for letter_id in wave) == ids
        ends = Counter[tuple[str, ...]]()
        first, second = [await items(ledgers[0], replay_id) for replay_id in replay_ids]
        for letter_id in ids:
            ends[tuple(sorted((first[letter_id], second[letter_id])))] += 1
        assert ends == {("sent", "skipped"): len(ids)}
        for letter_id in ids:
            assert await land_again(ledgers[0], letter_id, landing_id=f"again-{number}") == "reopened"
        done = Counter((row["letter_id"], row["act"]) for row in await rows(ledgers[0], ACTS))
        assert {done[letter_id, "replayed"] for letter_id in ids} == {number + 1}


async def take_all(ledger: Ledger, replay_id: str, *, size: int = 3) -> list[str]:
    """Until nothing waits any more."""
    taken: list[str] = []
    while (await counts(ledger, replay_id)).get("waiting"):
        taken += await take(ledger, replay_id, size=size)
    return taken


async def test_two_who_carry_out_the_same_replay_take_each_letter_once(open_ledger: OpenLedger) -> None:
    """Someone resumes a replay that is not interrupted at all."""
    ledgers = [open_ledger() for _ in range(4)]
    ids = await land_many(ledgers[0], 16)
    for number in range(ROUNDS):
        replay_id = f"rp_{number}"
        await make_replay(ledgers[0], replay_id)
        waves = await asyncio.gather(*(take_all(ledger, replay_id) for ledger in ledgers))
        assert sorted(letter_id for wave in waves for letter_id in wave) == ids
        assert all(wave == sorted(wave) for wave in waves)
        assert await counts(ledgers[0], replay_id) == {"sent": len(ids)}
        for letter_id in ids[::2]:
            await resolve(ledgers[0], letter_id)
        for letter_id in ids[1::2]:
            await land_again(ledgers[0], letter_id, landing_id=f"again-{number}")
        assert await counts(ledgers[0], replay_id) == {"resolved": 8, "failed": 8}
        for letter_id in ids[::2]:
            await land_again(ledgers[0], letter_id, landing_id=f"again-{number}")


async def test_choices_in_opposite_orders_do_not_wait_for_each_other_for_ever(open_ledger: OpenLedger) -> None:
    ledgers = [open_ledger() for _ in range(2)]
    ids = await land_many(ledgers[0], 60)
    for number in range(8):
        await make_replay(ledgers[0], f"rp_{number}_a")
        for place, letter_id in enumerate(reversed(ids) if number % 2 == 0 else ids):
            await land_again(ledgers[0], letter_id, landing_id=f"again-{number}", after_s=1000 * number + place)
        await make_replay(ledgers[0], f"rp_{number}_b")
        waves = await asyncio.gather(
            *(take(ledger, f"rp_{number}_{ab}") for ledger, ab in zip(ledgers, "ab", strict=True))
        )
        assert [len(wave) for wave in waves] == [0, len(ids)]
        for letter_id in ids:
            await resolve(ledgers[0], letter_id)
        await _open_all(ledgers[0])


async def _open_all(ledger: Ledger) -> None:
    await steps.execute(ledger, sa.update(LETTERS).values(state="open"))


async def test_a_letter_is_taken_or_discarded_and_never_both(open_ledger: OpenLedger) -> None:
    ledgers = [open_ledger() for _ in range(3)]
    ids = await land_many(ledgers[0], 40)
    for letter_id in ids[::-1]:  # in the table in another order than they are taken in
        await land_again(ledgers[0], letter_id, landing_id="a-2", after_s=int(letter_id[3:]))
    for number in range(ROUNDS):
        replay_id = f"rp_{number}"
        await make_replay(ledgers[0], replay_id)
        taken, at_once, of_group = await asyncio.gather(
            take_all(ledgers[0], replay_id, size=4),
            discard(ledgers[1], *ids[20:]),
            discard(ledgers[2], *ids[10:30]),
        )
        states = Counter(row["state"] for row in await rows(ledgers[0], LETTERS))
        assert states["replaying"] == len(taken)
        assert states["discarded"] == at_once + of_group == len(ids) - len(taken)
        found = await items(ledgers[0], replay_id)
        assert {letter_id for letter_id, state in found.items() if state == "sent"} == set(taken)
        await _open_all(ledgers[0])


async def test_an_outcome_that_comes_while_others_are_taken_ends_its_own_item(open_ledger: OpenLedger) -> None:
    """Publishing is quick: the first of a replay may be decided, or dead again, while the next wave is taken."""
    taker, worker, intake = open_ledger(), open_ledger(), open_ledger()
    for number in range(8):
        ids = [f"dl_{number}_{place:02}" for place in range(30)]
        for letter_id in ids:
            await land(taker, letter(letter_id))
        replay_id = f"rp_{number}"
        await make_replay(taker, replay_id, *ids)
        endings: list[asyncio.Task[Any]] = []
        while wave := await take(taker, replay_id, size=5):
            for place, letter_id in enumerate(wave):
                ending = resolve(worker, letter_id) if place % 2 else land_again(intake, letter_id)
                endings.append(asyncio.create_task(ending))
            await asyncio.sleep(0)
        assert set(await asyncio.gather(*endings)) == {True, "reopened"}
        assert await counts(taker, replay_id) == {"resolved": 12, "failed": 18}


@pytest.mark.parametrize("engine_name", ["postgresql"])
async def test_letters_land_and_are_resolved_while_a_long_choice_is_being_written(ledger: Ledger) -> None:
    """SQLite has one writer at a time, whatever it writes."""
    ids = await land_many(ledger, 3)
    await replay_one(ledger, "rp_0", ids[0])
    with ledger.engine.connect() as choosing:
        meant: dict[str, Any] = {"by": OPERATOR, "selection": "all", "now": later(200)}
        assert replays.make_replay(choosing, "rp_1", LetterFilter(), **meant) == 2
        assert await resolve(ledger, ids[0])
        assert await land_again(ledger, ids[1]) == "landed again"
        choosing.commit()
    assert await take(ledger) == [ids[2]]
    assert await items(ledger) == {ids[1]: "skipped", ids[2]: "sent"}


# Thousands


async def test_five_thousand_letters_are_replayed_in_waves(open_ledger: OpenLedger) -> None:
    desk, worker = open_ledger(), open_ledger()
    ids = await land_many(desk, 5000)
    assert await make_replay(desk) == 5000
    taken: list[str] = []
    for number in count():
        wave = await take(desk, size=(1, 2, 5, 20, 50, 100, 200)[min(number, 6)])
        if not wave:
            break
        taken += wave
        ends = await asyncio.gather(
            *(
                land_again(worker, letter_id) if int(letter_id[3:]) % 100 == 99 else resolve(worker, letter_id)
                for letter_id in wave
            )
        )
        assert all(ends)
    assert taken == ids
    assert await counts(desk) == {"resolved": 4950, "failed": 50}
    await end(desk)
    assert await desk.run(letters.count, LetterFilter(states=(LetterState.RESOLVED,))) == 4950
    done = Counter(row["act"] for row in await rows(desk, ACTS))
    assert done == {
        "landed": 5000,
        "replay made": 1,
        "replayed": 5000,
        "resolved": 4950,
        "reopened": 50,
        "replay ended": 1,
    }


# The verdict and the deed


@pytest.mark.parametrize(
    ("before", "after_s", "livemode", "wanted"),
    [
        ("nothing", 0, False, (VerdictKind.SAFE, OperationState.STARTED, 1)),
        ("started", HORIZON_S, False, (VerdictKind.SAFE, OperationState.STARTED, 1)),
        ("started", HORIZON_S + 0.000001, False, (VerdictKind.LOOK_FIRST, OperationState.UNKNOWN, 1)),
        ("unknown", 1, False, (VerdictKind.LOOK_FIRST, OperationState.UNKNOWN, 1)),
        ("absent", 1, False, (VerdictKind.SAFE, OperationState.STARTED, 2)),
        ("absent", 2 * HORIZON_S, False, (VerdictKind.SAFE, OperationState.STARTED, 2)),
        ("started", 1, True, (VerdictKind.BLOCKED, moves.OtherMode())),
        ("absent", 1, True, (VerdictKind.BLOCKED, moves.OtherMode())),
        ("decided", 1, False, (VerdictKind.NOTHING_TO_DO, moves.Ended())),
    ],
)
async def test_a_verdict_says_what_the_worker_then_does(
    ledger: Ledger, before: str, after_s: float, livemode: bool, wanted: tuple[Any, ...]
) -> None:
    order = steps.order("o-1")
    payment = await steps.open_payment(ledger, "o-1")
    if before != "nothing":
        call = await steps.claim(ledger, "o-1", params=intent_params(order))
        if before == "unknown":
            await ledger.run(moves.mark_unknown, call, claim="w-1/1", because="stored_error", now=later(0))
        if before == "absent":
            await ledger.run(moves.end_absent, call, claim="w-1/1", evidence={}, now=later(0))
        if before == "decided":
            await steps.record(ledger, payment, call)
    view = await ledger.run(replays.view_of_order, "o-1")
    moment = later(after_s)
    verdict = judge(order, *view, livemode=livemode, key_horizon_s=HORIZON_S, now=moment)
    done = await steps.start_call(
        ledger, "o-1", params=intent_params(order), livemode=livemode, worker_id="w-2", claim="w-2/1", now=moment
    )
    told = (done.operation.state, done.operation.attempt) if isinstance(done, moves.Claimed) else (done,)
    assert (verdict.kind, *told) == wanted
