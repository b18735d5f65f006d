"""A corrected letter in the place of one: exactly what was meant is changed, and never what was paid behind a call."""

import asyncio
import io
import json
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from schemas import AmqpProperties
from schemas.envelope import MAX_BODY_BYTES
from tests.ledger import steps
from tests.ledger.letter_steps import acts, bring_to, land, letter, read
from tests.ledger.steps import decide, execute, later, open_payment, refusal_answer, rows
from worker.cli import _parser
from worker.desk.change_body import read_json, set_fields, written
from worker.desk.edit import edit
from worker.desk.edit_plan import Planned
from worker.errors import ConfigurationError, StaleMove
from worker.ledger import ledger as ledger_door
from worker.ledger import letter_moves, moves
from worker.ledger.ledger import Ledger
from worker.ledger.letters import LetterFilter
from worker.ledger.schema import ACTS, LETTERS, OPERATIONS
from worker.letter import Letter, LetterState, cause_of, group_of
from worker.read_order import order_in
from worker.settings import read_settings

ORDER = {
    "order_id": "o-1",
    "amount": "12.10",
    "currency": "USD",
    "customer": "c",
    "metadata": {"color": "blue", "n": "1"},
}
EVENT = {"specversion": "1.0", "id": "e-1", "source": "shop", "type": "order.created", "amount": 1}
CARD = "4242424242424242"


def order_letter(letter_id: str = "dl_1", body: Any = ORDER, **changed: Any) -> Letter:
    """A letter with this body: bytes, or JSON to be."""
    return letter(letter_id, body=body if isinstance(body, bytes) else json.dumps(body).encode(), **changed)


async def run(url: str, *words: str) -> int:
    """As the command line calls it; the exit code."""
    settings = read_settings({"DATABASE_URL": url}, needed=frozenset({"DATABASE_URL"}))
    return await edit(settings, _parser().parse_args(["dead-letters", "edit", *words]))


async def land_orders(ledger: Ledger, *ids: str, **changed: Any) -> None:
    """Letters of as many orders, a second apart."""
    for number, letter_id in enumerate(ids):
        body = ORDER | {"order_id": f"o-{number}"}
        await land(
            ledger, order_letter(letter_id, body=body, order_id=f"o-{number}", landed_at=later(number), **changed)
        )


async def edited(url: str, capsys: pytest.CaptureFixture[str], *words: str) -> list[tuple[str, str]]:
    """Old and new ids."""
    capsys.readouterr()
    await run(url, *words, "--json")
    return [(pair["old"], pair["new"]) for pair in json.loads(capsys.readouterr().out)]


async def edited_one(ledger: Ledger, url: str, capsys: pytest.CaptureFixture[str], *words: str) -> Letter:
    """The letter that the edit of dl_1 made."""
    ((old, new),) = await edited(url, capsys, "dl_1", *words)
    assert old == "dl_1"
    return await read(ledger, new)


async def refused(ledger: Ledger, url: str, *words: str) -> str:
    """What is said; nothing at all may be done then."""
    before = await rows(ledger, LETTERS), await rows(ledger, ACTS)
    with pytest.raises(ConfigurationError) as error:
        await run(url, *words)
    assert (await rows(ledger, LETTERS), await rows(ledger, ACTS)) == before
    assert str(error.value).isprintable()
    return str(error.value)


# What is changed, and what is kept


async def test_a_field_is_corrected_and_the_letter_takes_the_place_of_the_old_one(
    ledger: Ledger, url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    properties = AmqpProperties(
        message_id="m-1", correlation_id="c-1", reply_to="amq.q", headers={"x-h": [b"\xff", {"deep": later(0)}]}
    )
    await land(ledger, order_letter(properties=properties, attempts=7, landed_at=later(-60)))
    before = await read(ledger)

    after = await edited_one(ledger, url, capsys, "--set", "description=ein neuer", "--why", "the shop's bug")

    old = await read(ledger)
    assert old == replace(before, state=LetterState.RESOLVED, moved_at=after.moved_at)
    cause = cause_of("bad_message", "edited: amount: is missing")
    assert after == replace(
        before,
        letter_id=after.letter_id,
        edited_from="dl_1",
        body=json.dumps(ORDER | {"description": "ein neuer"}, separators=(",", ":")).encode(),
        error="edited: amount: is missing",
        cause=cause,
        group_id=group_of(cause),
        attempts=0,
        landings=1,
        landing_id=f"edit:{after.letter_id}",
        landed_at=after.landed_at,
        moved_at=after.landed_at,
        amount_minor=1210,
        currency="usd",
    )
    assert timedelta() <= datetime.now(UTC) - after.landed_at < timedelta(minutes=1)
    assert len(after.history) == 1
    assert await acts(ledger, "dl_1") == ["landed", "edited"]
    assert await acts(ledger, after.letter_id) == ["made by edit"]
    assert [act["why"] for act in await rows(ledger, ACTS)][1:] == [
        f"into {after.letter_id}: set description; the shop's bug",
        "from dl_1: set description; the shop's bug",
    ]


@pytest.mark.parametrize(
    ("body", "properties"),
    [
        (ORDER, AmqpProperties(message_id="m")),
        (ORDER, AmqpProperties(headers={"cloudEvents:specversion": "1.0", "cloudEvents:type": "order.created"})),
        (EVENT | {"data": ORDER}, AmqpProperties(content_type="application/cloudevents+json")),
    ],
    ids=["plain", "binary", "structured"],
)
async def test_the_orders_own_data_is_what_is_set(
    ledger: Ledger, url: str, capsys: pytest.CaptureFixture[str], body: dict[str, Any], properties: AmqpProperties
) -> None:
    await land(ledger, order_letter(body=body, properties=properties))

    after = await edited_one(
        ledger,
        url,
        capsys,
        *("--set", "metadata.color=red", "--set", "customer=", "--set", "currency=", "--set", "metadata.n="),
        *("--set", "payment_method=pm_1", "--set", "confirm:=true", "--set", "shipping.name=A=B: C"),
        *("--set", 'shipping.address:={"city": "Zürich"}'),
    )

    found = json.loads(after.body)
    data = found.pop("data", found)
    assert list(data.items()) == [
        ("order_id", "o-1"),
        ("amount", "12.10"),
        ("metadata", {"color": "red"}),
        ("payment_method", "pm_1"),
        ("confirm", True),
        ("shipping", {"name": "A=B: C", "address": {"city": "Zürich"}}),
    ]
    if "specversion" in body:
        assert found == EVENT
    assert after.properties == properties


def test_numbers_keep_their_digits_and_keys_their_order() -> None:
    text = (
        '{"z":12.10,"b":1e400,"a":123456789012345678901234567890,"m":-0,"e":1E-7,"n":[0.0,{"y":1.50,"x":null}],'
        '"t":"ü\\u0001\\"","f":false}'
    )

    assert written(read_json(text.encode())) == text
    after = set_fields(text.encode(), {("e",): read_json(b"0.10"), ("new", "deep"): read_json(b"[1E+2, -0.0]")})
    assert after.decode() == text.replace("1E-7", "0.10")[:-1] + ',"new":{"deep":[1E+2,-0.0]}}'


async def test_numbers_in_the_body_go_through_no_float(
    ledger: Ledger, url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    body = b'{"order_id": "o-1", "amount": 12.10, "wild": 1e400, "long": 123456789012345678901234567890}'
    await land(ledger, order_letter(body=body))

    after = await edited_one(ledger, url, capsys, "--set", "weight:=0.10")

    assert after.body == body.replace(b": ", b":").replace(b", ", b",")[:-1] + b',"weight":0.10}'
    assert after.amount_minor == 1210


async def test_a_whole_body_takes_the_place_of_one_that_is_no_json(
    ledger: Ledger,
    url: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    body = json.dumps(ORDER, indent=2).encode() + b"\n"
    other_body = json.dumps(ORDER | {"order_id": "o-2"}).encode()
    (tmp_path / "body.json").write_bytes(body)
    await land(ledger, order_letter(body=b"\xff\x00{", order_id=None, amount_minor=None, currency=None))
    await land(ledger, order_letter("dl_2", body=b"{", order_id="o-2"))

    after = await edited_one(ledger, url, capsys, "--body", str(tmp_path / "body.json"), "--why", "mended")

    assert after.body == body
    assert (after.order_id, after.amount_minor, after.currency) == ("o-1", 1210, "usd")
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(other_body)))
    ((_, new),) = await edited(url, capsys, "dl_2", "--body", "-", "--why", "mended")
    assert (await read(ledger, new)).body == other_body


async def test_properties_that_could_not_be_read_are_no_hindrance_any_more(
    ledger: Ledger, url: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    old = order_letter(unreadable={"timestamp": "not UTF-8"})
    await land(ledger, old)
    assert isinstance(order_in(old), str)
    (tmp_path / "same.json").write_bytes(old.body)

    after = await edited_one(ledger, url, capsys, "--body", str(tmp_path / "same.json"))

    assert (after.body, after.unreadable) == (old.body, {})
    assert not isinstance(order_in(after), str)


async def test_an_edited_letter_is_edited_again(ledger: Ledger, url: str, capsys: pytest.CaptureFixture[str]) -> None:
    await land(ledger, order_letter())
    second = await edited_one(ledger, url, capsys, "--set", "description=a")

    ((_, third_id),) = await edited(url, capsys, second.letter_id, "--set", "description=")

    third = await read(ledger, third_id)
    assert (third.edited_from, third.error) == (second.letter_id, "edited: amount: is missing")
    assert json.loads(third.body) == ORDER
    assert third_id != "dl_1"
    said = await refused(ledger, url, "dl_1", "--set", "description=b")
    told = f"it was edited into {second.letter_id} (resolved)"
    assert said == f"letter dl_1 is resolved, not open: {told}; nothing was done"


async def test_the_same_edit_of_a_letter_that_has_landed_again_is_another_letter(
    ledger: Ledger, url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    await land(ledger, order_letter())
    first = await edited_one(ledger, url, capsys, "--set", "description=a")
    await land(ledger, order_letter(landing_id="a-2", landed_at=later(99)))

    second = await edited_one(ledger, url, capsys, "--set", "description=a")

    assert second.letter_id != first.letter_id
    assert second.body == first.body
    assert len(second.history) == 2


# Many at once


async def test_many_letters_are_edited_as_one_oldest_first(
    ledger: Ledger, url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    for number in range(3):
        body = ORDER | {"order_id": f"o-{number}"}
        await land(ledger, order_letter(f"dl_{number}", body=body, reason="bug", landed_at=later(-number)))
    await land(ledger, order_letter("dl_other", body=ORDER | {"order_id": "o-9"}))

    pairs = await edited(url, capsys, "--reason", "bug", "--set", "description=a")

    assert [old for old, _ in pairs] == ["dl_2", "dl_1", "dl_0"]
    for old, new in pairs:
        assert (await read(ledger, new)).edited_from == old
    assert (await read(ledger, "dl_other")).state is LetterState.OPEN
    assert len(await edited(url, capsys, "--all", "--set", "description=b")) == 4


async def test_a_person_reads_which_letter_became_which(
    ledger: Ledger, url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    await land_orders(ledger, *(f"dl_{number}" for number in range(21)))

    await run(url, "dl_0", "--set", "description=a")
    one, *_ = capsys.readouterr().out.splitlines()
    await run(url, "dl_1", "dl_2", "--set", "description=a")
    *two, _ = capsys.readouterr().out.splitlines()[:3]
    await run(url, "--all", "--set", "description=b")

    assert one.startswith("dl_0 → dl_")
    assert [line.split(" → ")[0] for line in two] == ["dl_1", "dl_2"]
    assert "→ dl_" not in (said := capsys.readouterr().out)
    assert said.split()[:3] == ["edited", "21", "letters"]


async def test_of_ten_of_which_one_is_refused_none_is_edited(ledger: Ledger, url: str) -> None:
    for number in range(10):
        body: Any = ORDER | {"order_id": f"o-{number}"} if number != 7 else b"no JSON"
        await land(ledger, order_letter(f"dl_{number}", body=body, landed_at=later(number)))

    said = await refused(ledger, url, "--all", "--set", "description=a")

    assert said == (
        "dl_7: its body is not JSON: Expecting value at character 0; give the whole body with --body FILE; "
        "nothing was done"
    )


async def test_a_letter_that_is_taken_meanwhile_is_not_edited_nor_are_the_others(
    ledger: Ledger, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    await land_orders(ledger, "dl_1", "dl_2")
    after_the_check(monkeypatch, "dl_2", lambda conn: discard_in(conn, "dl_2"))

    with pytest.raises(StaleMove, match="dl_2 is not open any more; nothing was done"):
        await run(url, "--all", "--set", "description=a")

    assert (await read(ledger, "dl_1")).state is LetterState.OPEN
    assert len(await rows(ledger, LETTERS)) == 2


def after_the_check(monkeypatch: pytest.MonkeyPatch, last_id: str, happens: Callable[[sa.Connection], None]) -> None:
    """When the letters have been looked at, the one with last_id as the last, and none is written yet."""
    check_edits = letter_moves.check_edits

    def check_then(conn: sa.Connection, letter_ids: Sequence[str], **named: Any) -> list[Planned]:
        found = check_edits(conn, letter_ids, **named)
        if letter_ids[-1] == last_id:
            happens(conn)
        return found

    monkeypatch.setattr(letter_moves, "check_edits", check_then)


def discard_in(conn: sa.Connection, letter_id: str) -> None:
    conn.execute(sa.update(LETTERS).where(LETTERS.c.letter_id == letter_id).values(state="discarded"))


def begin_call(conn: sa.Connection, order_id: str) -> None:
    moves.start_call(conn, **steps.call_arguments(order_id, now=long_ago()))


async def land_in_order(ledger: Ledger, count: int) -> None:
    for number in range(count):
        await land(
            ledger, order_letter(f"dl_{number}", body=ORDER | {"order_id": f"o-{number}"}, landed_at=later(number))
        )


async def test_many_letters_are_written_in_short_transactions_and_all_are_looked_at_first(
    ledger: Ledger, url: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("worker.desk.edit.CHUNK", 2)
    await land_in_order(ledger, 5)
    edit_all, written = letter_moves.edit_all, list[list[str]]()

    def noted(conn: sa.Connection, letter_ids: list[str], **named: Any) -> list[tuple[str, str]]:
        written.append(letter_ids)
        return edit_all(conn, letter_ids, **named)

    monkeypatch.setattr(letter_moves, "edit_all", noted)
    await land(ledger, order_letter("dl_bad", body=b"no JSON", landed_at=later(9)))
    assert "dl_bad: its body is not JSON" in await refused(ledger, url, "--all", "--set", "description=a")
    assert written == []

    discard_bad = LetterFilter(ids=("dl_bad",))
    await ledger.run(letter_moves.discard, discard_bad, by="x", why="x", now=later(10))
    pairs = await edited(url, capsys, "--all", "--set", "description=a")

    assert written == [["dl_0", "dl_1"], ["dl_2", "dl_3"], ["dl_4"]]
    assert [old for old, _ in pairs] == [f"dl_{number}" for number in range(5)]


async def test_large_bodies_make_the_transactions_smaller(
    ledger: Ledger, url: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(letter_moves, "CHUNK_BYTES", 2 * len(json.dumps(ORDER)))
    await land_in_order(ledger, 3)
    run_move, moved = ledger_door.Ledger.run, list[str]()

    async def noted(self: Ledger, move: Any, *arguments: Any, **named: Any) -> Any:
        moved.append(move.__name__)
        return await run_move(self, move, *arguments, **named)

    monkeypatch.setattr(ledger_door.Ledger, "run", noted)
    await run(url, "--all", "--set", "description=a")
    assert moved.count("edit_all") == 3


@pytest.mark.parametrize("by_id", [False, True], ids=["all", "by id"])
async def test_an_edit_that_a_later_chunk_stops_says_how_far_it_came_and_goes_on_when_it_is_said_again(
    ledger: Ledger, url: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], by_id: bool
) -> None:
    monkeypatch.setattr("worker.desk.edit.CHUNK", 2)
    await land_in_order(ledger, 6)
    words = [*([f"dl_{number}" for number in range(6)] if by_id else ["--all"]), "--set", "description=a"]
    edit_all = letter_moves.edit_all

    def taken_meanwhile(conn: sa.Connection, letter_ids: list[str], **named: Any) -> list[tuple[str, str]]:
        if "dl_3" in letter_ids:
            discard_in(conn, "dl_3")
        return edit_all(conn, letter_ids, **named)

    monkeypatch.setattr(letter_moves, "edit_all", taken_meanwhile)
    with pytest.raises(StaleMove) as stopped:
        await edited(url, capsys, *words)

    assert str(stopped.value) == (
        "dl_3 is not open any more; 2 of 6 letters were edited before: say the same again to go on with the rest"
    )
    done = [(pair["old"], pair["new"]) for pair in json.loads(capsys.readouterr().out)]
    assert [old for old, _ in done] == ["dl_0", "dl_1"]
    assert [(await read(ledger, f"dl_{number}")).state for number in range(6)] == ["resolved"] * 2 + ["open"] * 4

    monkeypatch.setattr(letter_moves, "edit_all", edit_all)
    assert [old for old, _ in await edited(url, capsys, *words)] == ["dl_2", "dl_3", "dl_4", "dl_5"]
    for _, new in done:
        assert (await read(ledger, new)).state is LetterState.OPEN
    assert len(await rows(ledger, LETTERS)) == 12
    if by_id:
        told = f"letter dl_0 is resolved, not open: it was edited into {done[0][1]} (open); nothing was done"
        assert await refused(ledger, url, *words) == told
    else:
        assert "the edit changes nothing of it; nothing was done" in await refused(ledger, url, *words)


async def test_what_a_chunk_may_not_do_any_more_leaves_the_chunk_as_it_was(
    ledger: Ledger, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A call is begun for the last order when all letters have been looked at."""
    monkeypatch.setattr("worker.desk.edit.CHUNK", 2)
    await land_in_order(ledger, 4)
    await open_payment(ledger, "o-3")
    after_the_check(monkeypatch, "dl_3", lambda conn: begin_call(conn, "o-3"))

    with pytest.raises(StaleMove, match=r"dl_3: amount is locked: a call for o-3 .* 2 of 4 letters were edited before"):
        await run(url, "--all", "--set", "amount=1.00", "--why", "as agreed")

    assert [(await read(ledger, f"dl_{number}")).state for number in range(4)] == ["resolved"] * 2 + ["open"] * 2
    assert len(await rows(ledger, LETTERS)) == 6


@pytest.mark.parametrize("engine_name", ["sqlite"])
async def test_a_worker_on_the_same_file_is_not_refused_while_many_are_edited(
    ledger: Ledger, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each chunk takes a moment; whoever waits for the lock gets it between two of them."""
    monkeypatch.setattr("worker.desk.edit.CHUNK", 1)
    await land_in_order(ledger, 8)
    edit_all, done = letter_moves.edit_all, asyncio.Event()

    def slow(conn: sa.Connection, letter_ids: list[str], **named: Any) -> list[tuple[str, str]]:
        time.sleep(0.3)
        return edit_all(conn, letter_ids, **named)

    async def write_live() -> list[float]:
        waited = []
        while not done.is_set():
            began = time.monotonic()
            await land(ledger, letter(f"dl_live_{len(waited)}", reason="live"))
            waited.append(time.monotonic() - began)
        return waited

    monkeypatch.setattr(letter_moves, "edit_all", slow)
    live = asyncio.create_task(write_live())
    await run(url, "--reason", "bad_message", "--set", "description=a")
    done.set()
    assert max(await live) < 1.5, "several chunks long"


# What was agreed to be paid

MONEY = {
    "amount": ("amount", "--set", "amount=12.11"),
    "currency": ("currency", "--set", "currency=eur"),
    "order_id": ("order_id", "--set", "order_id=o-2"),
    "all of it": (
        "order_id and amount and currency",
        "--set",
        "order_id=o-2",
        "--set",
        "amount:=1",
        "--set",
        "currency=eur",
    ),
}


def long_ago() -> datetime:
    return datetime.now(UTC) - timedelta(minutes=3, seconds=1)


async def started(ledger: Ledger, order_id: str = "o-1") -> None:
    await open_payment(ledger, order_id)
    await steps.claim(ledger, order_id, now=long_ago())


async def unknown(ledger: Ledger) -> None:
    await open_payment(ledger)
    operation = await steps.claim(ledger, now=long_ago())
    await ledger.run(moves.mark_unknown, operation, claim="w-1/1", because="key_expired", now=later(9))


async def absent(ledger: Ledger) -> None:
    await open_payment(ledger)
    operation = await steps.claim(ledger, now=long_ago())
    await ledger.run(moves.end_absent, operation, claim="w-1/1", evidence={}, now=later(9))


async def absent_and_started_again(ledger: Ledger) -> None:
    await absent(ledger)
    await steps.claim(ledger, now=long_ago())


async def answered(ledger: Ledger) -> None:
    payment = await open_payment(ledger)
    await steps.record(ledger, payment, await steps.claim(ledger, now=long_ago()))


async def declined(ledger: Ledger) -> None:
    payment = await open_payment(ledger)
    await steps.record(ledger, payment, await steps.claim(ledger, now=long_ago()), refusal_answer(payment))


async def decided_by_no_call(ledger: Ledger) -> None:
    await decide(ledger)
    await execute(ledger, sa.delete(OPERATIONS))


LOCKED = {
    "started": (started, "a call for o-1 may have reached Stripe (started 3 min ago)"),
    "unknown": (unknown, "a call for o-1 may have reached Stripe (started 3 min ago, unknown)"),
    "started again": (absent_and_started_again, "a call for o-1 may have reached Stripe (started 3 min ago)"),
    "answered": (answered, "a call for o-1 may have reached Stripe (started 3 min ago, answered)"),
    "declined": (declined, "a call for o-1 may have reached Stripe (started 3 min ago, refused)"),
    "decided by no call": (decided_by_no_call, "o-1 is decided (pi_o-1)"),
}


@pytest.mark.parametrize("call", LOCKED)
async def test_what_is_paid_is_locked_where_stripe_may_know_of_it(ledger: Ledger, url: str, call: str) -> None:
    happens, because = LOCKED[call]
    await happens(ledger)
    await land(ledger, order_letter())

    for fields, *words in MONEY.values():
        said = await refused(ledger, url, "dl_1", *words, "--why", "a reason is no key")

        verb = "is" if " " not in fields else "are"
        assert said == (
            f"dl_1: {fields} {verb} locked: {because}; replay the letter as it is; where that is blocked discard it, "
            "and have it sent with a new order id; nothing was done"
        )
    await run(url, "dl_1", "--set", "description=not paid with", "--set", "currency=", "--set", "amount:=12.1")


async def test_the_lock_is_of_the_order_that_a_letter_becomes_too(ledger: Ledger, url: str) -> None:
    await started(ledger, "o-2")
    await land(ledger, order_letter())

    said = await refused(ledger, url, "dl_1", "--set", "order_id=o-2", "--why", "a typo")

    assert "order_id is locked: a call for o-2 may have reached Stripe" in said


async def test_the_lock_is_of_the_order_that_only_the_letter_tells(ledger: Ledger, url: str, tmp_path: Path) -> None:
    """The body cannot be read, but the worker knew whose it was."""
    await started(ledger)
    (tmp_path / "body.json").write_text(json.dumps(ORDER | {"order_id": "o-2"}))
    await land(ledger, order_letter(body=b"{"))

    said = await refused(ledger, url, "dl_1", "--body", str(tmp_path / "body.json"), "--why", "mended")

    assert "order_id and amount are locked: a call for o-1 may have reached Stripe" in said


async def test_the_lock_is_of_the_order_that_only_the_body_tells(ledger: Ledger, url: str) -> None:
    await started(ledger)
    await land(ledger, order_letter(order_id=None))

    said = await refused(ledger, url, "dl_1", "--set", "order_id=o-2", "--why", "a typo")

    assert "order_id is locked: a call for o-1 may have reached Stripe" in said


async def no_call(_: Ledger) -> None:
    pass


async def opened(ledger: Ledger) -> None:
    await open_payment(ledger)


@pytest.mark.parametrize("before", [no_call, opened, absent])
async def test_where_no_call_can_have_come_to_anything_a_reason_is_needed(
    ledger: Ledger, url: str, capsys: pytest.CaptureFixture[str], before: Callable[[Ledger], Any]
) -> None:
    await before(ledger)
    for number, (fields, *setting) in enumerate(MONEY.values(), start=1):
        await land(ledger, order_letter(f"dl_{number}"))
        words = [word.replace("o-2", f"o-{number + 1}") for word in setting]
        for why in ([], ["--why", " "]):
            said = await refused(ledger, url, f"dl_{number}", *words, *why)
            assert said == (
                f"dl_{number}: it changes what is paid ({fields.replace(' and', ',')}): say --why; nothing was done"
            )
        await run(url, f"dl_{number}", *words, "--why", "the customer called")

    whys = [act["why"] for act in await rows(ledger, ACTS) if act["act"] == "edited"]
    assert whys[0].endswith(": set amount; now o-1, 12.11 usd; the customer called")
    assert whys[-1].endswith(": set order_id, amount, currency; now o-5, 1 eur; the customer called")


@pytest.mark.parametrize(
    ("old", "words", "changed"),
    [
        ({"amount": "12.10"}, ["amount:=12.1"], ""),
        ({"amount": 12.5}, ["amount=12.500"], ""),
        ({"amount": "12,10"}, ["amount=12.10"], "amount"),
        ({"amount": None}, ["amount=1"], "amount"),
        ({"amount": True}, ["amount:=1"], "amount"),
        ({"amount": 0}, ["amount=1"], "amount"),
        ({"amount": "1e1"}, ["amount=10"], "amount"),
        ({"amount": [1]}, ["amount=1"], "amount"),
        ({}, ["amount=1"], "amount"),
        ({"amount": 1, "currency": "USD"}, ["currency="], ""),
        ({"amount": 1}, ["currency=Usd"], ""),
        ({"amount": 1, "currency": None}, ["currency=usd"], "currency"),
        ({"amount": 1, "currency": "usdd"}, ["currency=usd"], "currency"),
        ({"amount": 1, "order_id": 7}, ["order_id=7"], "order_id"),
        ({"amount": 1, "order_id": " o-1"}, ["order_id=o-1"], "order_id"),
        ({"amount": 1, "order_id": "a\x00b"}, ["order_id=ab"], "order_id"),
    ],
)
async def test_what_counts_as_another_payment(
    ledger: Ledger, url: str, old: dict[str, Any], words: list[str], changed: str
) -> None:
    await land(ledger, order_letter(body={"order_id": "o-1"} | old))
    setting = [word for each in words for word in ("--set", each)]

    if changed:
        said = await refused(ledger, url, "dl_1", *setting)
        assert f"it changes what is paid ({changed}): say --why" in said
    await run(url, "dl_1", *setting, *(["--why", "known"] if changed else []))


async def test_a_call_that_is_begun_meanwhile_locks_too(
    ledger: Ledger, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    await open_payment(ledger)
    await land(ledger, order_letter())
    after_the_check(monkeypatch, "dl_1", lambda conn: begin_call(conn, "o-1"))

    said = await refused(ledger, url, "dl_1", "--set", "amount=99.99", "--why", "as agreed")

    assert "amount is locked: a call for o-1 may have reached Stripe (started 3 min ago)" in said


# What is refused

REFUSED: dict[str, tuple[Any, list[str], str]] = {
    "no order any more": (ORDER, ["amount=much"], "what it became would be refused: amount: write it in plain digits"),
    "text for a boolean": (
        ORDER,
        ["confirm=true"],
        "what it became would be refused: confirm: input should be a valid",
    ),
    "a field gone": (ORDER, ["order_id=", "x=1"], "what it became would be refused: order_id: is missing"),
    "nothing": (ORDER, ["amount=12.10"], "the edit changes nothing of it"),
    "nothing but spaces": (ORDER, ["nowhere.to.be="], "the edit changes nothing of it"),
    "a card": (ORDER, [f"metadata.note={CARD}"], "metadata.note: holds card data"),
    "a security code": (ORDER, ["cvc=123"], "cvc: holds card data"),
    "too large": (ORDER, [f"note={'x' * MAX_BODY_BYTES}"], "bytes; at most 262144 are taken"),
    "no object to reach into": (ORDER, ["amount.x=1"], "amount is no object, so that it has no x"),
    "deep": (ORDER, [f"{'.'.join('a' * 64)}:={{}}"], "nested deeper than 64 levels"),
    "no data": (EVENT | {"data": "text"}, ["amount=1"], "its body holds no JSON object of order data"),
    "no object": ([1], ["amount=1"], "its body holds no JSON object of order data"),
    "no UTF-8": (b'{"a": "\xff"}', ["amount=1"], "its body is not UTF-8 (byte 7); give the whole body with --body"),
    "a key twice": (b'{"a\\u001b": 1, "a\\u001b": 2}', ["amount=1"], "twice; which one counts"),
    "a key that steers a terminal": (ORDER, ["metadata.\x1b[2J\n:=1"], "metadata.\\x1b[2J\\n: input should be"),
}


@pytest.mark.parametrize("case", REFUSED)
async def test_an_edit_that_makes_no_good_order_is_refused(ledger: Ledger, url: str, case: str) -> None:
    body, fields, expected = REFUSED[case]
    await land(ledger, order_letter(body=body))

    said = await refused(ledger, url, "dl_1", "--why", "x", *(word for each in fields for word in ("--set", each)))

    assert said.startswith("dl_1: ")
    assert said.endswith("; nothing was done")
    assert expected in said
    assert CARD not in said


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["dl_1"], "say what to change: --set FIELD=VALUE, or --body FILE, and not both"),
        (["dl_1", "--set", "a=1", "--body", "-"], "say what to change"),
        (["dl_1", "--set", "amount"], "--set 'amount': write FIELD=TEXT, FIELD:=JSON, or FIELD= to take it out"),
        (["dl_1", "--set", "=1"], "--set '=1': write"),
        (["dl_1", "--set", "a..b=1"], "--set 'a..b=1': write"),
        (["dl_1", "--set", f"{'.'.join('a' * 65)}=1"], "=1': write"),
        (["dl_1", "--set", "amount:=12,1"], "--set 'amount:=12,1': after := comes JSON, and this is not JSON"),
        (["dl_1", "--set", "amount:="], "--set 'amount:=': after := comes JSON, and this is empty"),
        (["dl_1", "--set", "amount:=NaN"], "after := comes JSON, and this has NaN, which is not JSON"),
        (["dl_1", "--set", "amount:=\x1b"], "--set 'amount:=\\x1b': after := comes JSON"),
        (["dl_1", "--set", "description=\udcff"], "--set 'description=\\udcff': is not UTF-8 text"),
        (["dl_1", "--body", "/no/such/file"], "/no/such/file cannot be read: No such file or directory"),
        (["dl_1", "--body", "/"], "/ cannot be read: Is a directory"),
        (["--set", "a=1"], "this would take every letter: choose some by id or by a filter, or say --all"),
        (["dl_1", "--all", "--set", "a=1"], "--all and a choice at once"),
        (["dl_1", "dl_no", "--set", "a=1"], "no letter dl_no; nothing was done"),
        (["--reason", "none", "--set", "a=1"], "no open letters are meant by: reason none"),
        (["dl_gone", "--set", "a=1"], "letter dl_gone is discarded, not open; nothing was done"),
        (["dl_sent", "--set", "a=1"], "letter dl_sent is replaying, not open; nothing was done"),
    ],
)
async def test_words_that_say_no_edit_are_refused(ledger: Ledger, url: str, words: list[str], expected: str) -> None:
    for letter_id in ("dl_1", "dl_gone", "dl_sent"):
        await land(ledger, order_letter(letter_id))
    await bring_to(ledger, LetterState.DISCARDED, "dl_gone")
    await bring_to(ledger, LetterState.REPLAYING, "dl_sent")

    assert expected in await refused(ledger, url, *words)


async def test_a_body_is_of_one_letter_and_of_no_more_than_an_order_may_have(
    ledger: Ledger, url: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    body = json.dumps(ORDER | {"description": "a"}).encode()
    for number in (1, 2):
        await land(ledger, order_letter(f"dl_{number}", reason="bug"))
    (tmp_path / "large").write_bytes(body.ljust(MAX_BODY_BYTES + 1))
    (tmp_path / "just").write_bytes(body.ljust(MAX_BODY_BYTES))
    (tmp_path / "same").write_bytes(order_letter().body)
    (tmp_path / "card").write_bytes(body.replace(b'"a"', f'"{CARD}"'.encode()))

    two = await refused(ledger, url, "--reason", "bug", "--body", str(tmp_path / "just"))
    assert two == (
        "--body is for one letter: two would be one order after it; 2 are meant by: reason bug; nothing was done"
    )
    large = await refused(ledger, url, "dl_1", "--body", str(tmp_path / "large"))
    assert large == f"{tmp_path}/large is larger than 262144 bytes, which no order is taken of"
    assert "changes nothing" in await refused(ledger, url, "dl_1", "--body", str(tmp_path / "same"))
    card = await refused(ledger, url, "dl_1", "--body", str(tmp_path / "card"))
    assert "description: holds card data" in card
    assert CARD not in card
    assert (await edited_one(ledger, url, capsys, "--body", str(tmp_path / "just"))).order_id == "o-1"


async def test_what_is_masked_is_no_order_before_it_is_replaced(
    ledger: Ledger, url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    body = ORDER | {"description": "my card ************4242"}
    await land(ledger, order_letter(body=body, reason="card_data"))

    said = await refused(ledger, url, "dl_1", "--set", "currency=usd")

    assert said == "dl_1: it still holds what was masked (***): set that field too, or take it out; nothing was done"
    after = await edited_one(ledger, url, capsys, "--set", "description=my card")
    assert json.loads(after.body)["description"] == "my card"


async def test_a_message_that_no_body_can_mend_says_so(ledger: Ledger, url: str) -> None:
    await land(ledger, order_letter(properties=AmqpProperties(content_encoding="gzip")))

    assert "content_encoding: is 'gzip'; send the body plain" in await refused(ledger, url, "dl_1", "--set", "note=a")
