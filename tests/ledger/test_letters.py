"""What the ledger promises of dead letters and of what operators do to them, the same on both engines."""

import asyncio
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import UTC, datetime
from itertools import chain, combinations
from typing import Any

import pytest
import sqlalchemy as sa

from schemas import AmqpProperties
from tests.ledger import alone
from tests.ledger import letter_steps as steps
from tests.ledger.conftest import OpenLedger
from tests.ledger.letter_steps import OPERATOR, land, land_again, land_many, landing_of, letter, state_of
from tests.ledger.steps import NOW, decide, execute, later, rows
from worker.errors import LedgerRefused, StaleMove
from worker.ledger import letter_figures, letter_moves, letters
from worker.ledger.acts import Act, history
from worker.ledger.ledger import Ledger
from worker.ledger.letter_figures import LetterGroup, Worth
from worker.ledger.letters import LetterFilter
from worker.ledger.schema import ACTS, LETTERS, REPLAY_ITEMS, REPLAYS
from worker.letter import LetterState, edited_letter_id

# Rounds of those that meet at one moment.
ROUNDS = 40
TOLD = "carried out, and every event of its order is told"
EVERY_STATE = tuple(LetterState)


async def everything(ledger: Ledger) -> list[list[dict[str, Any]]]:
    return [await rows(ledger, table) for table in (LETTERS, ACTS, REPLAYS, REPLAY_ITEMS)]


# Landing


async def test_a_message_that_lands_is_kept_as_it_is_with_its_landing(ledger: Ledger) -> None:
    arrived = letter(unreadable={"timestamp": "year is out of range"}, first_seen=later(-60))
    told = ("2026-01-31T11:59:00+00:00 connection: refused",)
    landing = landing_of(arrived, told)
    assert await ledger.run(letters.land, arrived, landing, other_id="x", now=later(5)) == "landed"
    entry = {
        "landing_id": "a-1",
        "reason": "bad_message",
        "error": "amount: is missing",
        "attempts": 0,
        "first_seen": "2026-01-31T11:59:00+00:00",
        "at": "2026-01-31T12:00:00+00:00",
        "failures": list(told),
    }
    assert await steps.read(ledger) == replace(arrived, history=[entry])
    (act,) = await ledger.run(history, letter_id="dl_1", limit=9)
    assert act == Act(1, later(5), "payment-worker", "landed", "dl_1", None, "bad_message: amount: is missing")


async def test_a_letter_that_the_broker_landed_has_the_time_at_which_it_was_seen(ledger: Ledger) -> None:
    arrived = letter(first_seen=None, order_id=None, amount_minor=None, currency=None, landed_at=later(7))
    landing = replace(landing_of(arrived), at=None)
    await ledger.run(letters.land, arrived, landing, other_id="x", now=later(7))
    kept = await steps.read(ledger)
    assert (kept.order_id, kept.amount_minor, kept.currency, kept.first_seen) == (None, None, None, None)
    (entry,) = kept.history
    assert (entry["at"], entry["first_seen"]) == ("2026-01-31T12:00:07+00:00", None)


@pytest.mark.parametrize(
    "body", [b"", b"\x00", bytes(range(256)), b"\xff\xfe'\"\\%_", b"x" * 1_000_000], ids=lambda body: f"{len(body)}"
)
async def test_a_body_and_properties_of_any_kind_come_back_as_they_came(ledger: Ledger, body: bytes) -> None:
    headers = {
        "NUL \x00": "\x00",
        "nested": {"at": datetime(2026, 1, 31, tzinfo=UTC), "list": [b"\x00\xff", None, True, -1, 2**63, 0.1, {}]},
        "$time": "not a time",
        "like ours": [{"$time": "not a time"}, {"$bytes": "!"}, {"$table": {"$time": 5}}],
    }
    properties = AmqpProperties("a/b", "gzip", "m", "c\x00", "r", "t", "a", datetime(2026, 1, 31, tzinfo=UTC), headers)
    await land(ledger, body=body, properties=properties)
    kept = await steps.read(ledger)
    assert (kept.body, kept.properties) == (body, properties)
    assert [each.letter_id for each in await ledger.run(letters.find, LetterFilter(), limit=9)] == ["dl_1"]


async def test_what_could_not_be_read_is_kept_in_words(ledger: Ledger) -> None:
    """It is told in a header, which anybody can write."""
    strange: Any = {"timestamp": b"\x00", "headers": NOW, "type": None, "app_id": "not UTF-8"}
    await land(ledger, unreadable=strange)
    kept = (await steps.read(ledger)).unreadable
    assert kept == {"timestamp": "b'\\x00'", "headers": str(NOW), "type": "None", "app_id": "not UTF-8"}


@pytest.mark.parametrize("state", EVERY_STATE)
async def test_the_same_arrival_again_changes_nothing(ledger: Ledger, state: LetterState) -> None:
    await land(ledger)
    await steps.bring_to(ledger, state)
    before = await everything(ledger)
    assert await land(ledger, landed_at=later(900)) == "known"
    assert await everything(ledger) == before


@pytest.mark.parametrize("state", EVERY_STATE)
async def test_an_arrival_of_before_the_last_one_changes_nothing(ledger: Ledger, state: LetterState) -> None:
    """It was kept and could not be acknowledged: the broker brings it again when another one is long here."""
    await land(ledger)
    await land_again(ledger, landing_id="a-2")
    await land_again(ledger, landing_id="a-3")
    await steps.bring_to(ledger, state)
    before = await everything(ledger)
    for landing_id in ("a-1", "a-2", "a-3"):
        assert await land(ledger, landing_id=landing_id) == "known"
    assert await everything(ledger) == before


async def test_an_arrival_that_comes_from_two_sides_at_once_is_one(open_ledger: OpenLedger) -> None:
    ledgers = [open_ledger() for _ in range(4)]
    for number in range(ROUNDS):
        arrived = letter(f"dl_{number}")
        words = await asyncio.gather(*(land(ledgers[turn % 4], arrived) for turn in range(12)))
        assert Counter(words) == {"landed": 1, "known": 11}
    found = await ledgers[0].run(letters.find, LetterFilter(), limit=1000)
    assert len(found) == ROUNDS
    assert {(each.landings, len(each.history)) for each in found} == {(1, 1)}
    assert await steps.acts(ledgers[0]) == ["landed"] * ROUNDS


@pytest.mark.parametrize("state", EVERY_STATE)
async def test_the_same_message_again_is_the_same_letter_open_again(ledger: Ledger, state: LetterState) -> None:
    await land(ledger)
    await steps.bring_to(ledger, state)
    first, done = await steps.read(ledger), await steps.acts(ledger, "dl_1")
    act = "landed again" if state is LetterState.OPEN else "reopened"
    assert await land_again(ledger, after_s=1000) == act
    again = await steps.read(ledger)
    assert again == replace(
        first,
        state=LetterState.OPEN,
        reason="retries_exhausted",
        error="connection: refused",
        cause="retries_exhausted: connection: refused",
        group_id=again.group_id,
        attempts=3,
        landings=2,
        landing_id="a-2",
        landed_at=later(1000),
        moved_at=later(1000),
        history=again.history,
    )
    assert again.group_id != first.group_id
    assert again.history[:-1] == first.history
    assert again.history[-1]["landing_id"] == "a-2"
    assert await steps.acts(ledger, "dl_1") == [*done, act]
    assert (await rows(ledger, ACTS))[-1]["why"] == "retries_exhausted: connection: refused"


async def test_arrivals_of_one_message_at_once_are_each_counted(open_ledger: OpenLedger) -> None:
    ledgers = [open_ledger() for _ in range(4)]
    for number in range(ROUNDS):
        arrived = letter(f"dl_{number}")
        await asyncio.gather(*(land(ledgers[turn % 4], arrived, landing_id=f"a-{turn}") for turn in range(10)))
        kept = await steps.read(ledgers[0], f"dl_{number}")
        assert kept.landings == 10
        assert {entry["landing_id"] for entry in kept.history} == {f"a-{turn}" for turn in range(10)}
        assert kept.landing_id == kept.history[-1]["landing_id"]


async def test_the_last_fifty_landings_are_kept_and_all_are_counted(ledger: Ledger) -> None:
    for number in range(60):
        await land(ledger, landing_id=f"a-{number}", landed_at=later(number))
    kept = await steps.read(ledger)
    assert kept.landings == 60
    assert [entry["landing_id"] for entry in kept.history] == [f"a-{number}" for number in range(10, 60)]
    assert await steps.acts(ledger, "dl_1") == ["landed"] + ["landed again"] * 59


async def test_another_body_under_the_same_id_is_another_letter(ledger: Ledger) -> None:
    await land(ledger)
    before = await steps.read(ledger)
    assert await land(ledger, body=b"forged", other_id="dl_2") == "landed"
    assert await steps.read(ledger) == before
    assert (await steps.read(ledger, "dl_2")).body == b"forged"

    assert await land(ledger, body=b"forged", other_id="dl_2") == "known"
    assert await land(ledger, body=b"forged", other_id="dl_2", landing_id="a-2") == "landed again"
    assert await steps.read(ledger) == before


async def test_two_bodies_that_come_at_once_under_one_id_are_both_kept(open_ledger: OpenLedger) -> None:
    ledgers = [open_ledger() for _ in range(4)]
    bodies = {b"one", b"two", b"three", b"four"}
    for number in range(ROUNDS):
        words = await asyncio.gather(
            *(
                land(ledgers[turn % 4], letter(f"dl_{number}", body=body), other_id=f"dl_{number}_{body.decode()}")
                for turn, body in enumerate(sorted(bodies))
            )
        )
        assert words == ["landed"] * 4
        chosen = LetterFilter(ids=(f"dl_{number}", *(f"dl_{number}_{body.decode()}" for body in bodies)))
        assert {each.body for each in await ledgers[0].run(letters.find, chosen, limit=9)} == bodies


async def test_a_message_is_kept_even_if_both_ids_that_it_may_have_are_taken(ledger: Ledger) -> None:
    """Anybody can write an id into a message, another one's among them."""
    await land(ledger, letter("dl_mine", body=b"forged"))
    for _ in range(2):
        await land(ledger, letter("dl_mine", body=b"mine"), other_id="dl_mine")
    await land(ledger, letter("dl_mine", body=b"mine"), other_id="dl_mine", landing_id="a-2")
    found = await ledger.run(letters.find, LetterFilter(), limit=9)
    assert {each.body: each.landings for each in found} == {b"forged": 1, b"mine": 2}
    assert [each.landings for each in found if each.letter_id == "dl_mine"] == [1]


async def test_a_letter_that_the_tables_refuse_leaves_nothing(ledger: Ledger) -> None:
    with pytest.raises(LedgerRefused):
        await land(ledger, attempts=None)
    assert await everything(ledger) == [[], [], [], []]


# Resolving


async def test_a_letter_that_is_replayed_is_resolved_by_its_outcome(ledger: Ledger) -> None:
    await land(ledger)
    await steps.bring_to(ledger, LetterState.REPLAYING)
    before = await steps.read(ledger)
    assert await steps.resolve(ledger, after_s=400)
    assert await steps.read(ledger) == replace(before, state=LetterState.RESOLVED, moved_at=later(400))
    act = (await ledger.run(history, letter_id="dl_1", limit=9))[-1]
    assert (act.by, act.act, act.why) == ("payment-worker", "resolved", TOLD)


async def test_an_outcome_that_nobody_has_heard_of_yet_is_not_called_told(ledger: Ledger) -> None:
    """The event is staged, and no queue takes it."""
    told = await decide(ledger)
    await land(ledger)
    for replay_id, expected in (
        ("rp_1", "carried out; 1 event of its order still to be told at that moment"),
        ("rp_2", TOLD),
    ):
        await steps.replay_one(ledger, replay_id)
        assert await steps.resolve(ledger)
        assert (await rows(ledger, ACTS))[-1]["why"] == expected
        assert (await rows(ledger, REPLAY_ITEMS))[-1]["said"] == expected
        await ledger.run(alone.mark_published, told.event_id, now=later(1))
        await land_again(ledger, landing_id=replay_id)


@pytest.mark.parametrize("state", [state for state in EVERY_STATE if state is not LetterState.REPLAYING])
async def test_a_letter_that_is_not_replayed_is_not_resolved(ledger: Ledger, state: LetterState) -> None:
    await land(ledger)
    await steps.bring_to(ledger, state)
    before = await everything(ledger)
    assert not await steps.resolve(ledger)
    assert not await steps.resolve(ledger, "dl_nothing")
    assert await everything(ledger) == before


async def test_a_letter_that_lands_while_it_is_resolved_ends_open_with_both_written_down(
    open_ledger: OpenLedger,
) -> None:
    ledgers = [open_ledger(), open_ledger()]
    ends = Counter[str]()
    for number in range(ROUNDS):
        letter_id = f"dl_{number}"
        await land(ledgers[0], letter(letter_id))
        await steps.replay_one(ledgers[0], f"rp_{number}", letter_id)
        doings = [land_again(ledgers[0], letter_id), steps.resolve(ledgers[1], letter_id)]
        await asyncio.gather(*(doings if number % 2 else doings[::-1]))
        assert await state_of(ledgers[0], letter_id) is LetterState.OPEN
        done = (await steps.acts(ledgers[0], letter_id))[2:]
        ((_, end),) = (await steps.items(ledgers[0], f"rp_{number}")).items()
        assert (done, end) in [(["resolved", "reopened"], "resolved"), (["reopened"], "failed")]
        ends[end] += 1
    assert sum(ends.values()) == ROUNDS


# Finding

CONDITIONS: dict[str, Any] = {
    "ids": ("dl_03", "dl_07", "dl_10", "dl_17", "dl_nothing"),
    "states": (LetterState.OPEN, LetterState.DISCARDED),
    "reason": "conflict",
    "order_id": "o-1",
    "group_id": letter(reason="conflict", error="amount: was 1.00, now 2.00").group_id,
    "since": later(4),
    "moved_at": later(500),
    "text": "100%",
}


@pytest.fixture
async def mixed(ledger: Ledger) -> list[tuple[Any, ...]]:
    """Letters of all kinds, and of each what is known of it, oldest landing first."""
    for number in range(24):
        is_conflict = number % 4 in (1, 3)
        await land(
            ledger,
            letter(
                f"dl_{number:02}",
                reason="conflict" if is_conflict else "bad_message",
                error=f"amount: was {number}.00, now 2.00" if is_conflict else f"currency: is not one, {number * 25}%",
                order_id=None if number == 0 else f"o-{number % 3}",
                body=b"\xff" + (b"100%" if number % 5 in (0, 2) else b"100_"),
                landed_at=later(number // 2),
            ),
        )
    for number, state in ((3, LetterState.DISCARDED), (4, LetterState.REPLAYING), (10, LetterState.RESOLVED)):
        await steps.bring_to(ledger, state, f"dl_{number:02}")
    await steps.bring_to(ledger, LetterState.DISCARDED, "dl_17")
    return sorted(await ledger.run(_all_letters), key=lambda each: (each.landed_at, each.letter_id))


def _all_letters(conn: sa.Connection) -> list[Any]:
    return list(conn.execute(sa.select(LETTERS)))


def is_meant(each: Any, chosen: dict[str, Any]) -> bool:
    """The filter's meaning a second time, in the plainest way."""
    return all(
        (
            "ids" not in chosen or each.letter_id in chosen["ids"],
            "states" not in chosen or each.state in chosen["states"],
            "reason" not in chosen or each.reason == chosen["reason"],
            "order_id" not in chosen or each.order_id == chosen["order_id"],
            "group_id" not in chosen or each.group_id == chosen["group_id"],
            "since" not in chosen or each.landed_at >= chosen["since"],
            "moved_at" not in chosen or each.moved_at == chosen["moved_at"],
            "text" not in chosen or chosen["text"] in each.error or chosen["text"].encode() in each.body,
        )
    )


async def test_every_condition_holds_alone_and_with_every_other(ledger: Ledger, mixed: list[Any]) -> None:
    sizes = set()
    for names in chain.from_iterable(combinations(CONDITIONS, count) for count in range(len(CONDITIONS) + 1)):
        chosen = {name: CONDITIONS[name] for name in names}
        wanted = [each.letter_id for each in mixed if is_meant(each, chosen)]
        meant = LetterFilter(**chosen)
        assert [each.letter_id for each in await ledger.run(letters.find, meant, limit=100)] == wanted, names
        assert await ledger.run(letters.count, meant) == len(wanted), names
        assert await ledger.run(letters.ids_of, meant) == [(letter_id, 1) for letter_id in wanted], names
        assert meant.is_everything is (set(names) <= {"states"})
        if len(names) == 1:
            assert 0 < len(wanted) < len(mixed), f"{names} tells nothing apart"
        sizes.add(len(wanted))
    assert len(sizes) > 5


@pytest.mark.parametrize("state", EVERY_STATE)
async def test_a_state_alone_finds_those_in_it(ledger: Ledger, mixed: list[Any], state: LetterState) -> None:
    found = await ledger.run(letters.find, LetterFilter(states=(state,)), limit=100)
    assert [each.letter_id for each in found] == [each.letter_id for each in mixed if each.state == state]
    assert {each.state for each in found} == {state}


async def test_a_letter_that_is_found_is_the_one_that_is_read(ledger: Ledger, mixed: list[Any]) -> None:
    for each in await ledger.run(letters.find, LetterFilter(), limit=100):
        assert await steps.read(ledger, each.letter_id) == each


STRANGE = "% _ \\ ' \" / %% \\% {} $1 :x ä \U0001f600 \x1b ; -- %s %(a)s ? *".split(" ")


@pytest.mark.parametrize("where", ["body", "error"])
async def test_text_is_found_as_it_is_written_and_nothing_in_it_is_a_wildcard(ledger: Ledger, where: str) -> None:
    plain = letter("dl_plain", error="nothing", body=b"nothing", order_id=None)
    await land(ledger, plain)
    for number, text in enumerate(STRANGE):
        made = replace(plain, letter_id=f"dl_{number}")
        told = f"before{text}after"
        await land(ledger, replace(made, error=told) if where == "error" else replace(made, body=told.encode()))
    for number, text in enumerate(STRANGE):
        found = await ledger.run(letters.find, LetterFilter(text=f"before{text}after"), limit=100)
        assert [each.letter_id for each in found] == [f"dl_{number}"], text
        found = await ledger.run(letters.find, LetterFilter(text=text), limit=100)
        holding = {f"dl_{place}" for place, other in enumerate(STRANGE) if text in f"before{other}after"}
        assert {each.letter_id for each in found} == holding, text


@pytest.mark.parametrize("where", ["body", "error"])
async def test_text_is_found_byte_for_byte(ledger: Ledger, where: str) -> None:
    await land(ledger, **({"error": "Nö: Declined"} if where == "error" else {"body": "Nö: Declined".encode()}))
    for text, is_there in (("Declined", True), ("Nö", True), ("declined", False), ("NÖ", False), ("No", False)):
        assert await ledger.run(letters.count, LetterFilter(text=text)) == is_there, text


async def test_text_is_found_between_bytes_that_are_none(ledger: Ledger) -> None:
    await land(ledger, body=b"\x00\xff\xfeo-77\x00\x80")
    assert await ledger.run(letters.count, LetterFilter(text="o-77")) == 1
    assert await ledger.run(letters.count, LetterFilter(text="o-78")) == 0


async def test_bytes_that_are_no_text_are_found_as_the_command_line_brings_them(ledger: Ledger) -> None:
    """Python hands over what is not UTF-8 in the words of a command as lone surrogates (PEP 383)."""
    await land(ledger, body=b"\x00\xff\xfeo-77\x00\x80")
    assert await ledger.run(letters.count, LetterFilter(text=b"\xff\xfeo".decode("utf-8", "surrogateescape"))) == 1
    assert await ledger.run(letters.count, LetterFilter(text=b"\xff\xffo".decode("utf-8", "surrogateescape"))) == 0


async def test_a_list_is_the_first_letters_without_their_bodies(ledger: Ledger) -> None:
    for number in range(3):
        await land(ledger, letter(f"dl_{number}", body=b"x" * (number + 1), landed_at=later(number)))
    heads = await ledger.run(letters.find_heads, LetterFilter(), limit=2)
    found = await ledger.run(letters.find, LetterFilter(), limit=2)
    assert [(head.letter_id, head.body, head.size_bytes) for head in heads] == [("dl_0", b"", 1), ("dl_1", b"", 2)]
    assert list(heads) == [replace(each, body=b"") for each in found]


@pytest.mark.parametrize("states", [(), (LetterState.OPEN,), (LetterState.OPEN, LetterState.DISCARDED)])
async def test_pages_are_complete_and_repeat_nothing_while_letters_land(
    open_ledger: OpenLedger, states: tuple[LetterState, ...]
) -> None:
    reader, intake = open_ledger(), open_ledger()
    # Seven letters of each moment, their ids in another order than they land in.
    ids = [f"dl_{number * 37 % 211:03}" for number in range(211)]
    for number, letter_id in enumerate(ids):
        await land(intake, letter(letter_id, landed_at=later(number // 7)))
    chosen, seen, after, pages = LetterFilter(states=states), list[str](), None, 0
    again: list[str] = []
    while page := await reader.run(letters.find, chosen, limit=10, after=after):
        seen += [each.letter_id for each in page]
        after = (page[-1].landed_at, page[-1].letter_id)
        pages += 1
        assert pages < 100, "there is no end of it"
        if pages <= 12:
            await land(intake, letter(f"dl_late_{pages:02}", landed_at=later(1000 + pages)))
            # Of those seen, and of those to come: each moves to the end, where it is found.
            again += [seen[-1], ids[-pages]]
            for letter_id in again[-2:]:
                await land_again(intake, letter_id, landing_id=f"a-{letter_id}", after_s=2000 + pages)
    counts = Counter(seen)
    assert set(seen) == {*ids, *(f"dl_late_{number:02}" for number in range(1, 13))}
    assert {letter_id for letter_id, times in counts.items() if times > 1} <= set(again)
    assert max(counts.values()) == 2, "one that was seen and lands again is found at its new place"
    assert [counts[letter_id] for letter_id in ids[-12:]] == [1] * 12, "one that lands again before is not lost"


async def test_no_more_than_the_limit_is_found(ledger: Ledger) -> None:
    ids = await land_many(ledger, 5)
    for limit in (1, 2, 5, 6):
        found = await ledger.run(letters.find, LetterFilter(), limit=limit)
        assert [each.letter_id for each in found] == ids[:limit]


# Groups and figures


async def test_letters_are_grouped_by_cause_with_the_value_at_risk(ledger: Ledger) -> None:
    assert await ledger.run(letter_figures.groups, LetterFilter()) == []
    worth = [("usd", 100), ("eur", 250), (None, None), ("jpy", 5), ("usd", 10**15), ("usd", 10**15), ("eur", None)]
    for number, (currency, minor) in enumerate(worth):
        error = f"order o-{number} was asked for in Stripe's other mode"
        await land(
            ledger,
            letter(
                f"dl_a{number}",
                reason="mode_mismatch",
                error=error,
                currency=currency,
                amount_minor=minor,
                landed_at=later(number * 10),
            ),
        )
    await land(ledger, letter("dl_b", landed_at=later(-5), currency=None, amount_minor=None))
    mode, bad = letter(reason="mode_mismatch", error="order o-0 was asked for in Stripe's other mode"), letter()
    assert await ledger.run(letter_figures.groups, LetterFilter()) == [
        LetterGroup(mode.group_id, mode.cause, 7, NOW, later(60), {"usd": 2 * 10**15 + 100, "eur": 250, "jpy": 5}),
        LetterGroup(bad.group_id, bad.cause, 1, later(-5), later(-5), {}),
    ]


async def test_groups_are_of_the_letters_that_are_meant(ledger: Ledger, mixed: list[Any]) -> None:
    for names in chain.from_iterable(combinations(CONDITIONS, count) for count in range(3)):
        chosen = {name: CONDITIONS[name] for name in names}
        meant = [each for each in mixed if is_meant(each, chosen)]
        found = await ledger.run(letter_figures.groups, LetterFilter(**chosen))
        assert [(group.group_id, group.count) for group in found] == sorted(
            Counter(each.group_id for each in meant).items(), key=lambda pair: (-pair[1], pair[0])
        )
        for group in found:
            members = [each for each in meant if each.group_id == group.group_id]
            assert {group.cause} == {each.cause for each in members}
            assert group.first == min(each.landed_at for each in members)
            assert group.last == max(each.landed_at for each in members)
            assert group.value == {"usd": sum(each.amount_minor for each in members)}
            assert all(isinstance(minor, int) for minor in group.value.values())


async def test_figures_are_counts_by_state_and_what_is_open(ledger: Ledger) -> None:
    assert await ledger.run(letter_figures.figures) == letter_figures.LetterFigures({}, None, {})
    worth = [("usd", 100), ("eur", 250), (None, None), ("usd", 10**15), ("jpy", 7)]
    for number, (currency, minor) in enumerate(worth):
        await land(ledger, letter(f"dl_{number}", currency=currency, amount_minor=minor, landed_at=later(number)))
    await steps.bring_to(ledger, LetterState.DISCARDED, "dl_0")
    await steps.bring_to(ledger, LetterState.RESOLVED, "dl_4")
    figures = await ledger.run(letter_figures.figures)
    assert figures == letter_figures.LetterFigures(
        {"open": 3, "discarded": 1, "resolved": 1}, later(1), {"eur": 250, "usd": 10**15}
    )
    assert all(isinstance(value, int) for value in figures.value.values())


# What operators do

BOTH_WAYS = pytest.mark.parametrize(
    ("move", "before", "after", "act", "why"),
    [
        (letter_moves.discard, LetterState.OPEN, LetterState.DISCARDED, "discarded", "a test order"),
        (letter_moves.restore, LetterState.DISCARDED, LetterState.OPEN, "restored", None),
    ],
    ids=["discard", "restore"],
)


@pytest.fixture
async def hundreds(ledger: Ledger) -> list[str]:
    """More than one statement takes the notes of; every third is discarded."""
    ids = await land_many(ledger, 1201)
    assert await steps.discard(ledger, *ids[::3]) == 401
    return ids


@BOTH_WAYS
async def test_a_whole_selection_is_moved_and_each_act_is_written(
    ledger: Ledger, hundreds: list[str], move: Any, before: LetterState, after: LetterState, act: str, why: str | None
) -> None:
    meant = [row["letter_id"] for row in await rows(ledger, LETTERS) if row["state"] == before]
    untouched = [row for row in await rows(ledger, LETTERS) if row["state"] != before]
    written = await steps.count_acts(ledger)
    # The states of the choice are no matter: only what is in the right state is moved.
    chosen = LetterFilter(states=EVERY_STATE)
    done = await ledger.run(move, chosen, by=OPERATOR, why=why, now=later(900))
    worth = Worth(len(meant), {"usd": 1250 * len(meant)})
    assert done in (worth, letter_moves.Restored(worth, edited=Worth(), left=0))

    assert {row["state"] for row in await rows(ledger, LETTERS)} == {after}
    moved = [row for row in await rows(ledger, LETTERS) if row["letter_id"] in set(meant)]
    assert {row["moved_at"] for row in moved} == {later(900)}
    assert {row["landed_at"] for row in moved} == {later(int(letter_id[3:])) for letter_id in meant}
    kept = [row for row in await rows(ledger, LETTERS) if row["letter_id"] not in set(meant)]
    assert sorted(kept, key=lambda row: row["letter_id"]) == sorted(untouched, key=lambda row: row["letter_id"])
    lines = (await rows(ledger, ACTS))[written:]
    assert sorted(line["letter_id"] for line in lines) == sorted(meant)
    assert {(line["at"], line["by"], line["act"], line["why"], line["replay_id"]) for line in lines} == {
        (later(900), OPERATOR, act, why, None)
    }


@BOTH_WAYS
async def test_a_move_that_cannot_be_written_down_is_not_done(
    ledger: Ledger, hundreds: list[str], move: Any, before: LetterState, after: LetterState, act: str, why: str | None
) -> None:
    there = await everything(ledger)
    with pytest.raises(LedgerRefused):
        await ledger.run(move, LetterFilter(), by=None, why=why, now=later(900))
    assert await everything(ledger) == there


async def test_only_letters_that_are_meant_and_open_are_discarded(ledger: Ledger, mixed: list[Any]) -> None:
    chosen = {name: CONDITIONS[name] for name in ("reason", "since")}
    meant = {each.letter_id for each in mixed if is_meant(each, chosen) and each.state == LetterState.OPEN}
    states = {each.letter_id: each.state for each in mixed}
    assert 0 < await steps.discard(ledger, **chosen) == len(meant)
    after = {each.letter_id: each.state for each in await ledger.run(_all_letters)}
    assert after == states | dict.fromkeys(meant, "discarded")
    assert await steps.discard(ledger, **chosen) == 0


@pytest.mark.parametrize("state", [state for state in EVERY_STATE if state is not LetterState.OPEN])
async def test_a_letter_that_is_not_open_is_not_discarded(ledger: Ledger, state: LetterState) -> None:
    await land(ledger)
    await steps.bring_to(ledger, state)
    before = await everything(ledger)
    assert await steps.discard(ledger, "dl_1") == 0
    assert await everything(ledger) == before


@pytest.mark.parametrize("state", [state for state in EVERY_STATE if state is not LetterState.DISCARDED])
async def test_a_letter_that_is_not_discarded_is_not_restored(ledger: Ledger, state: LetterState) -> None:
    await land(ledger)
    await steps.bring_to(ledger, state)
    before = await everything(ledger)
    assert await steps.restore(ledger, "dl_1") == 0
    assert await everything(ledger) == before


async def test_of_many_who_discard_at_once_one_has_discarded_each_letter(open_ledger: OpenLedger) -> None:
    """They find the letters by other conditions, and so in another order: nobody waits for each other for ever."""
    ledgers = [open_ledger() for _ in range(4)]
    ids = await land_many(ledgers[0], 150)
    for letter_id in ids[::-1]:  # of each group, and in the table, in another order than they landed in
        await land_again(ledgers[0], letter_id, landing_id="a-2", after_s=int(letter_id[3:]))
    choices: list[dict[str, Any]] = [
        {},
        {"group_id": (await steps.read(ledgers[0], ids[0])).group_id},
        {"since": later(10)},
        {"ids": tuple(ids[::-1])},
    ]
    for number in range(10):
        counts = await asyncio.gather(
            *(
                ledger.run(letter_moves.discard, LetterFilter(**chosen), by=f"w-{place}", why="at once", now=later(900))
                for place, (ledger, chosen) in enumerate(zip(ledgers, choices, strict=True))
            )
        )
        assert sum(each.count for each in counts) == len(ids)
        assert await steps.restore(ledgers[0]) == len(ids)
        acts = Counter((row["letter_id"], row["act"]) for row in await rows(ledgers[0], ACTS))
        assert {acts[letter_id, act] for letter_id in ids for act in ("discarded", "restored")} == {number + 1}


async def test_a_letter_that_lands_while_it_is_discarded_is_open_in_the_end_or_discarded_after(
    open_ledger: OpenLedger,
) -> None:
    ledgers = [open_ledger(), open_ledger()]
    for number in range(ROUNDS):
        letter_id = f"dl_{number}"
        await land(ledgers[0], letter(letter_id))
        doings = [land_again(ledgers[0], letter_id), steps.discard(ledgers[1], letter_id)]
        await asyncio.gather(*(doings if number % 2 else doings[::-1]))
        done = await steps.acts(ledgers[0], letter_id)
        state = await state_of(ledgers[0], letter_id)
        assert (done[1:], state) in [
            (["discarded", "reopened"], LetterState.OPEN),
            (["landed again", "discarded"], LetterState.DISCARDED),
        ]
        assert (await steps.read(ledgers[0], letter_id)).landings == 2


# Edits


def edited(old: Any, body: bytes = b'{"amount": "2.00"}') -> Any:
    return replace(
        old,
        letter_id=edited_letter_id(old, body),
        body=body,
        edited_from=old.letter_id,
        moved_at=later(700),
        history=(),
    )


async def put_in_place(ledger: Ledger, old_id: str, new: Any) -> None:
    arguments: dict[str, Any] = {"by": OPERATOR, "why": "the shop says so", "now": later(700)}
    await ledger.run(letter_moves.replace_by_edited, old_id, new, **arguments)


async def test_an_edited_letter_takes_the_place_of_the_one_it_was_made_of(ledger: Ledger) -> None:
    await land(ledger)
    old = await steps.read(ledger)
    new = replace(edited(old), amount_minor=200)
    await put_in_place(ledger, "dl_1", new)
    assert await steps.read(ledger) == replace(old, state=LetterState.RESOLVED, moved_at=later(700))
    assert await steps.read(ledger, new.letter_id) == replace(new, history=[])
    closed, made = (await rows(ledger, ACTS))[1:]
    assert (closed["letter_id"], closed["act"]) == ("dl_1", "edited")
    assert closed["why"] == f"into {new.letter_id}: the shop says so"
    assert (made["letter_id"], made["act"]) == (new.letter_id, "made by edit")
    assert made["why"] == "from dl_1: the shop says so"
    assert {line["by"] for line in (closed, made)} == {OPERATOR}


@pytest.mark.parametrize("state", [state for state in EVERY_STATE if state is not LetterState.OPEN])
async def test_a_letter_that_is_not_open_is_not_edited(ledger: Ledger, state: LetterState) -> None:
    await land(ledger)
    await steps.bring_to(ledger, state)
    before = await everything(ledger)
    with pytest.raises(StaleMove, match="dl_1 is not open any more"):
        await put_in_place(ledger, "dl_1", edited(letter()))
    assert await everything(ledger) == before


async def test_the_same_edit_of_the_same_letter_is_not_made_twice(ledger: Ledger) -> None:
    await land(ledger)
    old = await steps.read(ledger)
    await put_in_place(ledger, "dl_1", edited(old))
    await execute(ledger, sa.update(LETTERS).where(LETTERS.c.letter_id == "dl_1").values(state="open"))
    before = await everything(ledger)
    with pytest.raises(StaleMove):
        await put_in_place(ledger, "dl_1", edited(old))
    assert await everything(ledger) == before
    # Once it has landed again it is another one that is edited.
    await land_again(ledger)
    await put_in_place(ledger, "dl_1", edited(await steps.read(ledger)))
    assert len(await rows(ledger, LETTERS)) == 3


async def test_of_many_edits_of_one_letter_at_once_one_is_made(open_ledger: OpenLedger) -> None:
    ledgers = [open_ledger() for _ in range(4)]
    for number in range(ROUNDS):
        old = letter(f"dl_{number}")
        await land(ledgers[0], old)
        ends = await asyncio.gather(
            *(put_in_place(ledgers[turn % 4], old.letter_id, edited(old, b"%d" % (turn // 2))) for turn in range(8)),
            return_exceptions=True,
        )
        assert Counter(type(end) for end in ends) == {type(None): 1, StaleMove: 7}
    assert len(await rows(ledgers[0], LETTERS)) == 2 * ROUNDS
    assert Counter(await steps.acts(ledgers[0])) == {"landed": ROUNDS, "edited": ROUNDS, "made by edit": ROUNDS}


# Letters from elsewhere


async def add(ledger: Ledger, *made: Any, vouched: bool = False) -> tuple[int, int]:
    rows_of = [letters.row_of(each) for each in made]
    arguments: dict[str, Any] = {"by": OPERATOR, "why": "from the old machine", "now": later(800), "vouched": vouched}
    added, known = await ledger.run(letter_moves.add_all, rows_of, **arguments)
    assert added == Worth(added.count, {"usd": 1250 * added.count} if added.count else {})
    return added.count, known


async def test_letters_from_elsewhere_are_kept_as_they_were_and_those_that_are_here_stay(ledger: Ledger) -> None:
    await land(ledger)
    before = await steps.read(ledger)
    old = replace(letter("dl_2"), state=LetterState.DISCARDED, landings=7, history=[{"landing_id": "a-7"}])
    assert await add(ledger, replace(before, error="another"), old, letter("dl_3")) == (2, 1)
    assert await steps.read(ledger) == before
    assert await steps.read(ledger, "dl_2") == old
    lines = (await rows(ledger, ACTS))[1:]
    assert [(line["letter_id"], line["act"], line["by"], line["why"]) for line in lines] == [
        (letter_id, "imported", OPERATOR, "from the old machine") for letter_id in ("dl_2", "dl_3")
    ]
    assert await add(ledger, old, letter("dl_3")) == (0, 2)
    assert await steps.count_acts(ledger) == 3


async def test_whoever_vouches_frees_letters_that_were_imported_before_and_is_written_down(ledger: Ledger) -> None:
    await land(ledger)
    await add(ledger, letter("dl_2", imported=True))
    assert (await steps.read(ledger, "dl_2")).imported
    assert await add(ledger, letter("dl_1"), letter("dl_2"), letter("dl_3"), vouched=True) == (1, 2)
    assert [(await steps.read(ledger, f"dl_{number}")).imported for number in (1, 2, 3)] == [False, False, False]
    lines = [(line["letter_id"], line["act"]) for line in await rows(ledger, ACTS)]
    assert lines[1:] == [("dl_2", "imported"), ("dl_3", "imported"), ("dl_3", "vouched for"), ("dl_2", "vouched for")]


@pytest.mark.parametrize(
    "fault",
    [{"state": "lost"}, {"attempts": None}, {"landed_at": datetime(2026, 1, 31)}],  # noqa: DTZ001 - the point
    ids=["state", "attempts", "time"],
)
async def test_of_letters_from_elsewhere_none_is_kept_where_one_is_refused(
    ledger: Ledger, fault: dict[str, Any]
) -> None:
    await land(ledger)
    before = await everything(ledger)
    good = [letter(f"dl_{number}") for number in range(2, 700)]
    with pytest.raises(LedgerRefused):
        await add(ledger, *good, replace(letter("dl_bad"), **fault), letter("dl_last"))
    assert await everything(ledger) == before


async def test_of_letters_from_elsewhere_none_is_kept_where_they_end_in_the_middle(ledger: Ledger) -> None:
    def cut_off() -> Iterator[Any]:
        yield letters.row_of(letter("dl_2"))
        raise ValueError("line 2 is no letter")

    before = await everything(ledger)
    with pytest.raises(ValueError, match="line 2"):
        await ledger.run(letter_moves.add_all, cut_off(), vouched=False, by=OPERATOR, why="x", now=NOW)
    assert await everything(ledger) == before


# The history


@pytest.fixture
async def written(ledger: Ledger) -> Ledger:
    for number in range(4):
        await land(ledger, letter(f"dl_{number}", order_id=f"o-{number % 2}", landed_at=later(number * 100)))
    await steps.discard(ledger, "dl_1", "dl_3")
    await steps.restore(ledger, "dl_3")
    return ledger


async def test_the_history_tells_the_last_acts_oldest_first(written: Ledger) -> None:
    def told(acts: Any) -> list[tuple[str, str]]:
        return [(act.letter_id, act.act) for act in acts]

    every = await written.run(history, limit=100)
    assert [act.act_id for act in every] == list(range(1, 8))
    assert told(every)[:4] == [(f"dl_{number}", "landed") for number in range(4)]
    assert sorted(told(every)[4:6]) == [("dl_1", "discarded"), ("dl_3", "discarded")]
    assert told(every)[6:] == [("dl_3", "restored")]
    assert await written.run(history, limit=3) == every[-3:]
    of_one = await written.run(history, letter_id="dl_3", limit=100)
    assert told(of_one) == [("dl_3", "landed"), ("dl_3", "discarded"), ("dl_3", "restored")]
    assert await written.run(history, order_id="o-1", limit=100) == [
        act for act in every if act.letter_id in ("dl_1", "dl_3")
    ]
    assert await written.run(history, since=later(300), limit=100) == every[3:]
    together = await written.run(history, letter_id="dl_3", order_id="o-1", since=later(550), limit=100)
    assert told(together) == [("dl_3", "restored")]
    assert await written.run(history, letter_id="dl_1", order_id="o-0", limit=100) == []


REWRITES = [
    "UPDATE acts SET why = 'because' WHERE act_id = 1",
    "UPDATE acts SET act_id = 99 WHERE act_id = 1",
    "DELETE FROM acts WHERE act_id = 1",
    "DELETE FROM acts",
    "INSERT INTO acts SELECT * FROM acts WHERE act_id = 1 ON CONFLICT (act_id) DO UPDATE SET why = 'because'",
]


@pytest.mark.parametrize("statement", REWRITES)
async def test_no_line_of_the_history_can_be_changed_or_taken_out(written: Ledger, statement: str) -> None:
    await refuses(written, statement)


@pytest.mark.parametrize("engine_name", ["postgresql"])
@pytest.mark.parametrize(
    "statement",
    [
        "TRUNCATE acts",
        "TRUNCATE acts CASCADE",
        "WITH gone AS (DELETE FROM acts RETURNING act_id) SELECT count(*) FROM gone",
    ],
)
async def test_postgresql_refuses_to_empty_the_history(written: Ledger, statement: str) -> None:
    await refuses(written, statement)


@pytest.mark.parametrize("engine_name", ["sqlite"])
@pytest.mark.parametrize("verb", ["REPLACE", "INSERT OR REPLACE"])
async def test_sqlite_refuses_to_put_a_line_in_the_place_of_another(written: Ledger, verb: str) -> None:
    """A REPLACE deletes without firing the triggers of DELETE: https://www.sqlite.org/lang_conflict.html."""
    statement = f"{verb} INTO acts (act_id, at, by, act) VALUES (1, '2026-01-31', 'nobody', 'landed')"
    await refuses(written, statement)


async def refuses(ledger: Ledger, statement: str) -> None:
    before = await rows(ledger, ACTS)
    with pytest.raises(sa.exc.DBAPIError, match="acts are append-only"), ledger.engine.begin() as conn:
        conn.exec_driver_sql(statement)
    assert await rows(ledger, ACTS) == before


async def test_lines_of_the_history_can_be_added(written: Ledger) -> None:
    before = await steps.count_acts(written)
    await execute(written, sa.insert(ACTS).values(at=NOW, by="x", act="y"))
    assert await steps.count_acts(written) == before + 1


# What the tables themselves refuse


@pytest.mark.parametrize(
    ("table", "row", "rule"),
    [
        (LETTERS, {"state": "lost"}, "ck_letters_state"),
        (LETTERS, {"edited_from": "nobody"}, "FOREIGN KEY|fk_letters_edited_from"),
        (LETTERS, {"letter_id": "dl_1"}, "pk_letters|letters.letter_id"),
        (REPLAY_ITEMS, {"state": "lost"}, "ck_replay_items_state"),
        (REPLAY_ITEMS, {"letter_id": "nobody"}, "FOREIGN KEY|fk_replay_items_letter_id"),
        (REPLAY_ITEMS, {"replay_id": "nobody"}, "FOREIGN KEY|fk_replay_items_replay_id"),
        (REPLAY_ITEMS, {"position": 0}, "pk_replay_items|replay_items.replay_id, replay_items.position"),
    ],
)
async def test_an_impossible_row_is_refused_by_the_tables(
    ledger: Ledger, table: sa.Table, row: dict[str, Any], rule: str
) -> None:
    await land(ledger)
    await steps.make_replay(ledger)
    usual = (await rows(ledger, table))[0] | ({"letter_id": "dl_2"} if table is LETTERS else {"position": 1})
    before = await everything(ledger)
    with pytest.raises(LedgerRefused, match=rf"\b({rule})\b"):
        await execute(ledger, sa.insert(table).values(**(usual | row)))
    assert await everything(ledger) == before
    await execute(ledger, sa.insert(table).values(**usual))


@pytest.mark.parametrize("act", [letter_moves.discard, letter_moves.restore])
async def test_a_choice_by_a_naive_time_is_refused(ledger: Ledger, act: Callable[..., Any]) -> None:
    await land(ledger)
    chosen = LetterFilter(since=datetime(2026, 1, 31))  # noqa: DTZ001 - the point
    with pytest.raises(LedgerRefused, match="a naive time reached the ledger"):
        await ledger.run(act, chosen, by=OPERATOR, why="x", now=NOW)


async def test_the_outcome_of_another_message_resolves_no_letter(ledger: Ledger) -> None:
    """Anybody can write the header that names one."""
    await land(ledger, letter("dl_1", body=b"its own"))
    await execute(ledger, sa.update(LETTERS).values(state=LetterState.REPLAYING))
    assert not await ledger.run(letters.resolve, "dl_1", body=b"another's", now=later(1))
    assert await ledger.run(letters.resolve, "dl_1", body=b"its own", now=later(1))


@pytest.mark.parametrize("engine_name", ["sqlite"])
async def test_a_look_waits_for_no_writer_and_no_writer_waits_for_it(open_ledger: OpenLedger) -> None:
    desk, worker = open_ledger(), open_ledger()
    await land(worker)
    with worker.engine.begin():
        async with asyncio.timeout(2):
            assert await desk.look(letters.count, LetterFilter()) == 1

    looking, may_end = threading.Event(), threading.Event()

    def look_long(conn: sa.Connection) -> int:
        found = letters.count(conn, LetterFilter())
        looking.set()
        assert may_end.wait(10)
        return found

    look = asyncio.create_task(desk.look(look_long))
    assert await asyncio.to_thread(looking.wait, 10)
    try:
        async with asyncio.timeout(2):
            assert await land(worker, letter("dl_2")) == "landed"
    finally:
        may_end.set()
    assert await look == 1
