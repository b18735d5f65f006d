"""Letters out of one ledger and into another: exactly the same, all of them or none, however many."""

import asyncio
import base64
import gc
import io
import json
import os
import subprocess
import sys
import threading
import tracemalloc
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from schemas import AmqpProperties
from tests.harness import clean_environment
from tests.ledger.letter_steps import acts, bring_to, land, landing_of, letter, read
from tests.ledger.steps import NOW, later, rows
from worker.cli import _parser
from worker.desk import letter_lines, transfer
from worker.desk.letters import verdict_of
from worker.errors import ConfigurationError, LedgerUnavailable
from worker.ledger import ledger as ledger_door
from worker.ledger import letter_moves, letters, replays
from worker.ledger.ledger import Ledger
from worker.ledger.letters import LetterFilter
from worker.ledger.schema import ACTS, LETTERS
from worker.letter import Letter, LetterState, Verdict, VerdictKind, edited_letter_id
from worker.settings import read_settings

EVERYTHING = LetterFilter()
MEBIBYTE = 1024 * 1024


async def run(act: Callable[..., Any], url: str, *words: str) -> None:
    """As the command line calls it."""
    settings = read_settings({"DATABASE_URL": url}, needed=frozenset({"DATABASE_URL"}))
    await act(settings, _parser().parse_args(["dead-letters", *words]))


async def exported(url: str, capsys: pytest.CaptureFixture[str], *words: str) -> str:
    capsys.readouterr()
    await run(transfer.export, url, "export", *words)
    return capsys.readouterr().out


async def imported(url: str, capsys: pytest.CaptureFixture[str], file: Path, *words: str) -> str:
    capsys.readouterr()
    await run(transfer.take_in, url, "import", str(file), *words)
    return capsys.readouterr().out


async def add(ledger: Ledger, *some: Letter) -> None:
    await ledger.run(
        letter_moves.add_all, map(letters.row_of, some), vouched=True, by="a test", why="needs them", now=later(0)
    )


async def count(ledger: Ledger) -> int:
    return await ledger.run(letters.count, EVERYTHING)


async def kept(ledger: Ledger) -> dict[str, dict[str, Any]]:
    """All that is kept of each letter, but when it was last moved."""
    return {row["letter_id"]: row | {"moved_at": None} for row in await rows(ledger, LETTERS)}


def edited(old: Letter, **changed: Any) -> Letter:
    """As an edit makes it, a minute later."""
    letter_id = edited_letter_id(old, old.body)
    return replace(old, letter_id=letter_id, edited_from=old.letter_id, landed_at=later(60), **changed)


STRANGE = [
    letter("dl_plain", landed_at=later(1)),
    letter(
        "dl_bytes",
        landed_at=later(2),
        body=b"\xff\x00\xfe \xed\xa0\x80",
        order_id=None,
        amount_minor=None,
        currency=None,
    ),
    letter(
        "dl_control",
        landed_at=later(3),
        body='\x00\x1b[2J\u202e"\\\r\n\x7f\x85\u2028ü😀'.encode(),
        error="\x1b[2J\u2028ü",
    ),
    letter("dl_empty", landed_at=later(4), body=b""),
    letter(
        "dl_headers",
        landed_at=later(5),
        properties=AmqpProperties(
            content_type="application/json",
            content_encoding="utf-8",
            message_id="m-ü\x1b",
            correlation_id="c",
            reply_to="amq.rabbitmq.reply-to",
            type="order.created",
            app_id="shop",
            timestamp=datetime(2026, 1, 31, 11, 59, 59, tzinfo=UTC),
            headers={
                "time": datetime(2026, 1, 31, tzinfo=UTC),
                "bytes": b"\x00\xff",
                "table": {"deep": [1, None, True, {"er": b"\xff"}]},
                "large": 2**62 + 1,
                "float": 0.1,
                "minus": -0.0,
                "text": "ü",
            },
        ),
    ),
    letter(
        "dl_unreadable",
        landed_at=later(6.123456),
        first_seen=None,
        unreadable={"timestamp": "not UTF-8", "of": [1, {"any": None}]},
        history=(
            {
                "landing_id": "a-0",
                "reason": "bug",
                "error": "e\x00",
                "attempts": 3,
                "first_seen": None,
                "at": "2026-01-31T12:00:00+00:00",
                "failures": ["one", "\x1btwo"],
            },
        ),
        landings=7,
        attempts=5,
        amount_minor=-5,
        currency="jpy",
    ),
]

# What comes out, and goes in again


async def test_an_export_taken_in_is_the_same_byte_for_byte(
    ledger: Ledger, url: str, other_url: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    await add(ledger, *STRANGE, edited(STRANGE[0]))
    await bring_to(ledger, LetterState.RESOLVED, "dl_plain")
    await bring_to(ledger, LetterState.DISCARDED, "dl_bytes")
    out = await exported(url, capsys, "--state", "all")
    file = tmp_path / "letters.jsonl"
    file.write_text(out)

    said = await imported(other_url, capsys, file)

    assert said.startswith("7 letters imported: ")
    assert "; 0 were here already.\n" in said
    assert "A replay of them is blocked" in said
    assert await exported(other_url, capsys, "--state", "all") == out
    async with Ledger(other_url) as other:
        there = await kept(other)
        assert there == {letter_id: row | {"imported": True} for letter_id, row in (await kept(ledger)).items()}
        for one in STRANGE:
            read_there = await read(other, one.letter_id)
            assert (read_there.body, read_there.properties) == (one.body, one.properties)


async def test_a_line_holds_a_whole_letter_and_nothing_that_steers_a_terminal(
    ledger: Ledger, url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    await add(ledger, *STRANGE)

    out = await exported(url, capsys)

    lines = out.splitlines()
    assert len(lines) == len(STRANGE)
    assert out.isascii()
    assert "\x1b" not in out
    one, other = json.loads(lines[0]), json.loads(lines[1])
    assert list(one) == [
        *("id", "state", "reason", "error", "order_id", "amount_minor", "currency", "attempts", "landings"),
        *("landing_id", "first_seen", "landed_at", "edited_from", "properties", "unreadable", "history"),
        *("body", "sha256"),
    ]
    assert one["body"].encode() == STRANGE[0].body
    assert base64.b64decode(other["body_base64"]) == STRANGE[1].body
    assert "body" not in other


async def test_the_open_letters_are_meant_or_those_that_are_chosen(
    ledger: Ledger, url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    await add(ledger, *(letter(f"dl_{number}", order_id=f"o-{number}") for number in range(3)))
    await bring_to(ledger, LetterState.DISCARDED, "dl_1")

    async def ids(*words: str) -> list[str]:
        return [json.loads(line)["id"] for line in (await exported(url, capsys, *words)).splitlines()]

    assert await ids() == ["dl_0", "dl_2"]
    assert await ids("--state", "discarded") == ["dl_1"]
    assert await ids("--order", "o-2") == ["dl_2"]
    assert await ids("--order", "o-9") == []


async def test_pages_bring_each_letter_once_oldest_landing_first(
    ledger: Ledger, url: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transfer, "PAGE", 3)
    moments = [5, 1, 3, 3, 3, 3, 2, 9, 0, 4]
    await add(ledger, *(letter(f"dl_{n}", landed_at=later(moment)) for n, moment in enumerate(moments)))

    out = await exported(url, capsys)

    ids = [json.loads(line)["id"] for line in out.splitlines()]
    assert ids == [f"dl_{n}" for n in (8, 1, 6, 2, 3, 4, 5, 9, 0, 7)]


async def test_a_letter_that_lands_again_meanwhile_is_written_once(
    ledger: Ledger, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transfer, "PAGE", 1)
    for number in range(3):
        await land(ledger, letter(f"dl_{number}", landed_at=later(number)))
    written: list[str] = []

    class Stdout:
        def write(self, line: str) -> None:
            if not written:
                again = letter("dl_0", landing_id="a-2", landed_at=later(50))
                with ledger.engine.begin() as conn:
                    assert letters.land(conn, again, landing_of(again), other_id="x", now=later(50)) == "landed again"
            written.append(json.loads(line)["id"])

    monkeypatch.setattr(sys, "stdout", Stdout())

    await run(transfer.export, url, "export")

    assert written == ["dl_0", "dl_1", "dl_2"]


async def test_what_a_letter_was_edited_from_comes_before_it_even_if_it_landed_later(
    ledger: Ledger, url: str, other_url: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first = letter("dl_1")
    second = edited(first)
    third = edited(second)
    await land(ledger, first)
    await add(ledger, second, third)
    await land(ledger, first, landing_id="a-2", landed_at=later(1000))
    await land(ledger, second, landing_id="a-3", landed_at=later(900))

    out = await exported(url, capsys)

    assert [json.loads(line)["id"] for line in out.splitlines()] == ["dl_1", second.letter_id, third.letter_id]
    (tmp_path / "letters.jsonl").write_text(out)
    assert "3 letters imported" in await imported(other_url, capsys, tmp_path / "letters.jsonl")


async def test_a_letter_that_is_being_replayed_elsewhere_is_open_here(
    ledger: Ledger, url: str, other_url: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for number, state in enumerate(LetterState):
        await land(ledger, letter(f"dl_{number}"))
        await bring_to(ledger, state, f"dl_{number}")
    (tmp_path / "letters.jsonl").write_text(await exported(url, capsys, "--state", "all"))

    await imported(other_url, capsys, tmp_path / "letters.jsonl")

    async with Ledger(other_url) as other:
        states = [(await read(other, f"dl_{number}")).state for number in range(4)]
    assert states == ["open", "open", "resolved", "discarded"]


# How much is held, and for how long


def many(number: int, size: int) -> Iterator[Letter]:
    return (letter(f"dl_{n}", body=b"%010d" % n + b"." * (size - 10), landed_at=later(n)) for n in range(number))


@contextmanager
def at_most(size: int) -> Iterator[None]:
    """Of memory, at its peak, beside what there was before."""
    tracemalloc.start()
    try:
        yield
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < size, f"{peak / MEBIBYTE:.1f} MiB"


async def test_memory_is_bounded_however_many_letters_there_are(
    ledger: Ledger, url: str, other_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows_of = map(letters.row_of, many(5000, 10_000))
    await ledger.run(letter_moves.add_all, rows_of, vouched=True, by="a test", why="50 MB", now=later(0))
    file = tmp_path / "letters.jsonl"

    with file.open("w") as out, at_most(12 * MEBIBYTE):
        monkeypatch.setattr(sys, "stdout", out)
        await run(transfer.export, url, "export")
    monkeypatch.undo()

    assert file.stat().st_size > 50_000_000
    with at_most(24 * MEBIBYTE):
        await run(transfer.take_in, other_url, "import", str(file))
    async with Ledger(other_url) as other:
        assert await count(other) == 5000


async def test_a_page_ends_before_its_bodies_are_too_large_to_hold(ledger: Ledger) -> None:
    size = letters.CHUNK_BYTES // 3
    await add(ledger, *many(5, size), letter("dl_huge", body=b"." * (letters.CHUNK_BYTES + 1), landed_at=later(9)))

    pages, after = [], None
    while page := await ledger.run(letters.find_some, EVERYTHING, limit=200, after=after):
        pages.append(len(page))
        after = page[-1].landed_at, page[-1].letter_id

    assert pages == [3, 2, 1]


async def test_an_import_may_take_longer_than_any_single_answer(
    ledger: Ledger,
    url: str,
    other_url: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    await add(ledger, *many(2, 100))
    (tmp_path / "letters.jsonl").write_text(await exported(url, capsys))
    monkeypatch.setattr(ledger_door, "ANSWER_TIMEOUT_S", 0)

    assert "2 letters imported" in await imported(other_url, capsys, tmp_path / "letters.jsonl")


# All or none


async def test_letters_that_are_here_are_left_as_they_are(
    ledger: Ledger, url: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for number in range(3):
        await land(ledger, letter(f"dl_{number}", landed_at=later(number)))
    lines = (await exported(url, capsys)).splitlines(keepends=True)
    lines.append(letter_lines.line_of(letter("dl_new")))
    await bring_to(ledger, LetterState.DISCARDED, "dl_1")
    (tmp_path / "letters.jsonl").write_text("".join(lines))

    said = await imported(url, capsys, tmp_path / "letters.jsonl", "--why", "back from the other desk")

    assert said.startswith("1 letter imported: 12.50 USD; 3 were here already.\n")
    assert (await read(ledger, "dl_1")).state is LetterState.DISCARDED
    assert await acts(ledger, "dl_1") == ["landed", "discarded"]
    assert await acts(ledger, "dl_new") == ["imported"]
    assert [act["why"] for act in await rows(ledger, ACTS) if act["act"] == "imported"] == ["back from the other desk"]
    assert await imported(url, capsys, tmp_path / "letters.jsonl") == "0 letters imported; 4 were here already.\n"


async def test_what_fails_late_leaves_nothing(
    ledger: Ledger, url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(letter_moves, "CHUNK", 2)
    (tmp_path / "letters.jsonl").write_text("".join(map(letter_lines.line_of, many(5, 100))))
    noted: list[int] = []
    note = letter_moves.note

    def fail_at_last(*arguments: Any, letter_ids: list[str], **named: Any) -> None:
        noted.append(len(letter_ids))
        if len(letter_ids) == 1:
            raise LedgerUnavailable("away")
        note(*arguments, letter_ids=letter_ids, **named)

    monkeypatch.setattr(letter_moves, "note", fail_at_last)

    with pytest.raises(LedgerUnavailable):
        await run(transfer.take_in, url, "import", str(tmp_path / "letters.jsonl"))

    assert noted == [2, 2, 1]
    assert await count(ledger) == 0
    assert await acts(ledger) == []


async def test_an_interrupt_ends_an_import_that_is_under_way(
    ledger: Ledger, url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(letter_moves, "CHUNK", 2)
    (tmp_path / "letters.jsonl").write_text("".join(map(letter_lines.line_of, many(1000, 1000))))
    began, interrupted = threading.Event(), threading.Event()
    note = letter_moves.note

    def wait(*arguments: Any, **named: Any) -> None:
        began.set()
        assert interrupted.wait(30)
        note(*arguments, **named)

    monkeypatch.setattr(letter_moves, "note", wait)
    importing = asyncio.create_task(run(transfer.take_in, url, "import", str(tmp_path / "letters.jsonl")))
    assert await asyncio.to_thread(began.wait, 30)
    importing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await importing

    interrupted.set()
    await asyncio.get_running_loop().shutdown_default_executor()

    assert await count(ledger) == 0
    del importing
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)  # its ledger was closed under it, as at the end of a process
        gc.collect()


def line(**changed: Any) -> str:
    """A good letter's line, with fields changed; None takes one out."""
    fields = json.loads(letter_lines.line_of(letter("dl_x"))) | changed
    return json.dumps({name: value for name, value in fields.items() if value is not ...}) + "\n"


def entry(**changed: Any) -> list[dict[str, Any]]:
    return [dict(STRANGE[-1].history[0]) | changed]


def properties(**changed: Any) -> str:
    fields = json.loads(json.loads(line())["properties"]) | changed
    return json.dumps(fields, separators=(",", ":"))


EDITED_BY_HAND = (
    "the body differs from its sha256, or the properties do: it was edited by hand; import the original and use "
    "`dead-letters edit`"
)
BROKEN = {
    "no JSON": ("dl_1\n", "Invalid JSON"),
    "cut off": (line()[:-20] + "\n", "Invalid JSON"),
    "no UTF-8": ("\udcff\n", "Invalid JSON"),
    "half a surrogate pair": (line().replace("is missing", "\\ud800"), "Invalid JSON"),
    "too deep": ("[" * 5000 + "\n", "Invalid JSON"),
    "no object": ("[1]\n", "Input should be an object; a line holds one letter as export writes it"),
    "a field missing": (line(landings=...), "landings: field required"),
    "a field too many": (line(colour="red"), "colour: extra inputs are not permitted"),
    "a field too many that steers a terminal": (line(**{"\x1b[2J\n": 1}), "\\x1b[2J\\n: extra inputs"),
    "text for a number": (line(attempts="1"), "attempts: input should be a valid integer"),
    "a boolean for a number": (line(attempts=True), "attempts: input should be a valid integer"),
    "a fraction": (line(landings=1.5), "landings: input should be a valid integer"),
    "a number for text": (line(error=5), "error: input should be a valid string"),
    "null for text": (line(reason=None), "reason: input should be a valid string"),
    "below zero": (line(attempts=-1), "attempts: input should be greater than or equal to 0"),
    "never landed": (line(landings=0), "landings: input should be greater than or equal to 1"),
    "more than a column holds": (line(amount_minor=2**63), "amount_minor: input should be less than"),
    "longer than a column": (line(reason="x" * 61), "reason: string should have at most 60 characters"),
    "a NUL": (line(error="a\x00b"), "error: has a NUL character, which no ledger can keep"),
    "a state unknown": (line(state="lost"), "state: input should be 'open', 'replaying', 'resolved' or 'discarded'"),
    "a currency unknown": (line(currency="usdd"), "currency: is not a currency"),
    "a currency in capitals": (line(currency="USD"), "currency: is not a currency"),
    "an amount of no currency": (line(currency=None), "amount_minor: give it and currency, or null for both"),
    "a bad time": (line(landed_at="yesterday"), "landed_at: is no ISO 8601 time with its zone"),
    "a time without a zone": (line(first_seen="2026-01-31T12:00:00"), "first_seen: is no ISO 8601 time with its zone"),
    "a time before all others": (
        line(landed_at="0001-01-01T00:00:00+01:00"),
        "landed_at: is no ISO 8601 time with its zone",
    ),
    "a time as a number": (line(landed_at=1769860800), "landed_at: is no ISO 8601 time with its zone"),
    "another id": (line(id="order-1"), "id: string should match pattern"),
    "an id that is too long": (line(id="dl_" + "a" * 38), "id: string should match pattern"),
    "an id of two lines": (line(id="dl_a\n"), "id: string should match pattern"),
    "another sha256": (line(sha256="0" * 64), EDITED_BY_HAND),
    "another body": (line(body='{"order_id": "o-2"}'), EDITED_BY_HAND),
    "other properties": (line(properties=properties(message_id="m-2")), EDITED_BY_HAND),
    "a card number in the body": (
        letter_lines.line_of(replace(letter("dl_x"), body=b'{"note": "4242 4242 4242 4242"}')),
        "it holds card numbers, which no ledger keeps",
    ),
    "a card number in a header": (
        letter_lines.line_of(replace(letter("dl_x"), properties=AmqpProperties(headers={"pan": "4242424242424242"}))),
        "it holds card numbers, which no ledger keeps",
    ),
    "both bodies": (line(body_base64=""), "body: give it, or body_base64 in its place"),
    "no body": (line(body=...), "body: give it, or body_base64 in its place"),
    "no base64": (line(body=..., body_base64="ü"), "body_base64: is not base64"),
    "properties that cannot be read": (line(properties="{"), "properties: cannot be read"),
    "properties that are too deep": (line(properties="[" * 100_000), "properties: cannot be read"),
    "properties with a field more": (line(properties=properties(colour=1)), "properties: cannot be read"),
    "properties of a wrong type": (line(properties=properties(app_id=5)), "properties: are not as export writes them"),
    "properties with a time as text": (line(properties=properties(timestamp="now")), "properties: are not as export"),
    "properties spelt otherwise": (line(properties=properties() + " "), "properties: are not as export writes them"),
    "a history that tells nothing": (line(history=[{}]), "history.0.landing_id: field required"),
    "a history with a bad time": (line(history=entry(at="then")), "history.0.at: is no ISO 8601 time with its zone"),
    "a history with wrong failures": (
        line(history=entry(failures=[1])),
        "history.0.failures.0: input should be a valid",
    ),
    "unreadable as a list": (line(unreadable=[]), "unreadable: input should be an object"),
    "the order id of another": (line(order_id="o-7"), "order_id: is 'o-7', and the body says 'o-1'"),
    "other money than its body": (
        letter_lines.line_of(letter("dl_x", body=b'{"order_id": "o-1", "amount": "9.99"}')),
        "amount_minor and currency: the body says 999 usd",
    ),
    "a property that AMQP cannot carry": (
        letter_lines.line_of(letter("dl_x", properties=AmqpProperties(content_type="x" * 256))),
        "properties: one is longer than the 255 bytes that AMQP carries",
    ),
    "a timestamp that AMQP cannot carry": (
        letter_lines.line_of(letter("dl_x", properties=AmqpProperties(timestamp=datetime(1969, 12, 31, tzinfo=UTC)))),
        "properties: timestamp: AMQP carries times from 1970 to 2105",
    ),
    "a time of another age": (line(landed_at="0001-01-01T00:00:00+00:00"), "landed_at: is no ISO 8601 time"),
    "twice": (line(id="dl_0"), "letter dl_0 is on an earlier line too"),
    "edited from nowhere": (line(edited_from="dl_gone"), "it was edited from dl_gone, which is neither in this ledger"),
    "edited from itself": (line(edited_from="dl_x"), "it was edited from dl_x, which is neither in this ledger"),
}


async def test_a_broken_line_is_named_and_nothing_is_taken_in(ledger: Ledger, url: str, tmp_path: Path) -> None:
    file = tmp_path / "letters.jsonl"
    good = [letter_lines.line_of(letter(f"dl_{number}")) for number in range(3)]
    for name, (broken, said) in BROKEN.items():
        file.write_text("".join([good[0], "\n", good[1], broken, good[2]]), errors="surrogateescape")

        with pytest.raises(ConfigurationError) as refused:
            await run(transfer.take_in, url, "import", str(file))

        assert str(refused.value).startswith("line 4: "), name
        assert str(refused.value).endswith("; nothing was imported"), name
        assert said in str(refused.value), name
        assert str(refused.value).isprintable(), name
    assert await count(ledger) == 0
    assert await acts(ledger) == []


async def test_a_good_line_is_taken(ledger: Ledger, url: str, tmp_path: Path) -> None:
    """Or the lines above would be refused for something else."""
    await add(ledger, letter("dl_here"))
    file = tmp_path / "letters.jsonl"
    file.write_text(
        line() + "\r\n" + line(id="dl_y", edited_from="dl_here") + line(id="dl_z", edited_from="dl_y", history=entry())
    )

    await run(transfer.take_in, url, "import", str(file))

    assert await count(ledger) == 4
    assert (await read(ledger, "dl_z")).edited_from == "dl_y"


async def test_a_body_or_a_line_may_be_only_so_large(
    ledger: Ledger, url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "letters.jsonl"
    monkeypatch.setattr(letter_lines, "MOST_BODY_BYTES", 100)
    monkeypatch.setattr(transfer, "MOST_LINE_BYTES", 2000)
    for body, said in (
        (b"ab", None),
        (b"." * 101, "the body has 101 bytes; at most 100"),
        (b"." * 9999, "longer than 2000"),
    ):
        file.write_text("\n" + letter_lines.line_of(letter("dl_1", body=body)))
        if said is None:
            await run(transfer.take_in, url, "import", str(file))
            continue
        with pytest.raises(ConfigurationError, match=f"^line 2: .*{said}"):
            await run(transfer.take_in, url, "import", str(file))
    assert await count(ledger) == 1


# Who knows what calls were made


async def test_an_imported_letter_is_blocked_until_somebody_vouches_for_it(
    ledger: Ledger, url: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "letters.jsonl"
    order = b'{"order_id": "o-1", "amount": "12.50"}'
    file.write_text(letter_lines.line_of(letter("dl_1", reason="bug", body=order)))
    assert "is blocked" in await imported(url, capsys, file)
    settings = read_settings({"DATABASE_URL": url}, needed=frozenset({"DATABASE_URL"}))

    async def verdict() -> Verdict:
        found = await read(ledger, "dl_1")
        payment, operation = await ledger.run(replays.view_of_order, found.order_id)
        return verdict_of(found, payment, operation, settings=settings, now=NOW)

    assert (await verdict()).kind is VerdictKind.BLOCKED
    assert "--vouch" in (await verdict()).why
    with pytest.raises(ConfigurationError, match="--why"):
        await imported(url, capsys, file, "--vouch")
    assert (await verdict()).kind is VerdictKind.BLOCKED
    said = await imported(url, capsys, file, "--vouch", "--why", "that shop was never opened")
    assert said == "0 letters imported; 1 was here already.\n"
    assert (await verdict()).kind is VerdictKind.SAFE
    assert await acts(ledger, "dl_1") == ["imported", "vouched for"]


# Where letters come from


async def test_letters_come_from_standard_input_or_from_a_pipe(
    ledger: Ledger, url: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    one, other = (letter_lines.line_of(each).encode() for each in many(2, 100))
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(one)))
    await run(transfer.take_in, url, "import", "-")

    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    writing = threading.Thread(target=pipe.write_bytes, args=(other,))
    writing.start()
    await run(transfer.take_in, url, "import", str(pipe))
    writing.join()

    assert await count(ledger) == 2
    whys = [act["why"] for act in await rows(ledger, ACTS)]
    assert whys == ["from standard input", f"from {pipe}"]


async def test_what_holds_no_letters_is_told(
    ledger: Ledger, url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "empty").write_text("")
    (tmp_path / "blank").write_text("\n \n")
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO()))

    for name in (str(tmp_path / "empty"), str(tmp_path / "blank"), "-"):
        with pytest.raises(ConfigurationError, match="holds no letters"):
            await run(transfer.take_in, url, "import", name)
    with pytest.raises(ConfigurationError, match="cannot be read: No such file"):
        await run(transfer.take_in, url, "import", str(tmp_path / "away"))
    with pytest.raises(ConfigurationError, match="cannot be read: Is a directory"):
        await run(transfer.take_in, url, "import", str(tmp_path))


async def test_a_reader_that_goes_away_is_no_fault(ledger: Ledger, url: str) -> None:
    await add(ledger, *many(300, 2000))
    command = [sys.executable, "-m", "worker", "dead-letters", "export"]
    exporting = subprocess.Popen(
        command, env=clean_environment(DATABASE_URL=url), stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert exporting.stdout
    assert exporting.stderr

    first = await asyncio.to_thread(exporting.stdout.readline)
    exporting.stdout.close()

    assert json.loads(first)["id"] == "dl_0"
    assert await asyncio.to_thread(exporting.wait, 30) == 0
    assert exporting.stderr.read() == b""
    exporting.stderr.close()
