"""An operator's command killed at every line: done or not done, never half, and the same words again finish it."""

import hashlib
import json
import linecache
import signal
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

import worker
from schemas import AmqpProperties
from tests.crash.mortals import Mortals, named_after, round_effects
from tests.harness import Shop, WorkerProcess, until
from worker.desk.letter_lines import line_of
from worker.ledger import letters
from worker.ledger.acts import history
from worker.ledger.engine import open_engine
from worker.ledger.migrate import migrate
from worker.letter import Landing, Letter, LetterState, cause_of, group_of
from worker.sandbox.stripe_control import SandboxControl

# Passed only where the worker is slower than the first look: there and right before it a kill leaves the same.
WAITS = "asyncio.sleep(LOOK_S)"


def source_of(place: str) -> str:
    name, number = place.split(":")
    return linecache.getline(str(Path(worker.__file__).parent / name), int(number))


def named(name: str) -> str:
    """A letter id that looks like one."""
    return "dl_" + hashlib.sha256(name.encode()).hexdigest()[:20]


class Desk:
    """A ledger with letters in it, as the worker would have landed them, and what became of them."""

    def __init__(self, ledger_url: str) -> None:
        self._engine = open_engine(ledger_url)
        migrate(self._engine)
        self.is_sqlite = self._engine.dialect.name == "sqlite"

    def land(self, letter_id: str, body: dict[str, Any]) -> None:
        now, cause = datetime.now(UTC), cause_of("bug", "a bug")
        landing = Landing(f"landing-{letter_id}", "bug", "a bug", 1, now, now)
        letter = Letter(
            letter_id=letter_id,
            state=LetterState.OPEN,
            reason="bug",
            error="a bug",
            group_id=group_of(cause),
            cause=cause,
            order_id=str(body["order_id"]),
            body=json.dumps(body).encode(),
            properties=AmqpProperties(message_id=letter_id),
            attempts=1,
            landings=1,
            landing_id=landing.landing_id,
            landed_at=now,
            moved_at=now,
        )
        with self._engine.begin() as conn:
            letters.land(conn, letter, landing, other_id=named("other"), now=now)

    def read(self, letter_id: str) -> Letter:
        with self._engine.begin() as conn:
            found = letters.read(conn, letter_id)
        assert found
        return found

    def rows(self, order_id: str) -> list[tuple[str, str, str | None]]:
        """Id, state and origin of the letters of an order."""
        with self._engine.begin() as conn:
            asked = sa.text("SELECT letter_id, state, edited_from FROM letters WHERE order_id = :order_id")
            return [(row[0], row[1], row[2]) for row in conn.execute(asked, {"order_id": order_id})]

    def acts(self, letter_id: str) -> Counter[str]:
        with self._engine.begin() as conn:
            return Counter(act.act for act in history(conn, letter_id=letter_id, limit=100))

    def close(self) -> None:
        self._engine.dispose()


@pytest.fixture
def desk(ledger_url: str) -> Any:
    desk = Desk(ledger_url)
    yield desk
    desk.close()


async def lines_of(mortals: Mortals, argv: list[str], record: Path, *, is_sqlite: bool) -> list[str]:
    """What a command passes through that is not killed; on PostgreSQL round its effects, to save time."""
    await mortals.start(argv=argv, record=str(record))
    assert await mortals.death() == 0
    lines: list[str] = [line for line in json.loads(record.read_text()) if WAITS not in source_of(line)]
    assert len(lines) > 10
    return lines if is_sqlite else round_effects(lines)


async def killed_at(mortals: Mortals, place: str, argv: list[str]) -> None:
    await mortals.start(argv=argv, die_at=place)
    assert await mortals.death() == -signal.SIGKILL, place


async def done(mortals: Mortals, argv: list[str]) -> int:
    await mortals.start(argv=argv, constants={"desk.replayer.RESUME_WAIT_S": 0.1, "desk.replayer.LOOK_S": 0.02})
    return await mortals.death()


async def test_a_discard_is_done_for_all_or_for_none(mortals: Mortals, desk: Desk, tmp_path: Path) -> None:
    def command(order_id: str) -> list[str]:
        return ["dead-letters", "discard", "--order", order_id, "--why", "a test"]

    def land_two(order_id: str) -> None:
        for number in (1, 2):
            desk.land(named(f"{order_id}-{number}"), {"order_id": order_id, "amount": "1.00"})

    land_two("first")
    for place in await lines_of(mortals, command("first"), tmp_path / "record.json", is_sqlite=desk.is_sqlite):
        order_id = named_after(place)
        land_two(order_id)
        await killed_at(mortals, place, command(order_id))

        states = {state for _, state, _ in desk.rows(order_id)}
        assert len(states) == 1, "half done"
        code = await done(mortals, command(order_id))
        assert code == (0 if states == {"open"} else 2)
        assert [state for _, state, _ in desk.rows(order_id)] == ["discarded"] * 2
        for letter_id, _, _ in desk.rows(order_id):
            assert desk.acts(letter_id) == {"landed": 1, "discarded": 1}


async def test_an_edit_replaces_the_letter_or_leaves_it(mortals: Mortals, desk: Desk, tmp_path: Path) -> None:
    def command(order_id: str) -> list[str]:
        return ["dead-letters", "edit", named(f"{order_id}"), "--set", "description=new", "--why", "a test"]

    desk.land(named("first"), {"order_id": "first", "amount": "1.00"})
    for place in await lines_of(mortals, command("first"), tmp_path / "record.json", is_sqlite=desk.is_sqlite):
        order_id = named_after(place)
        desk.land(named(f"{order_id}"), {"order_id": order_id, "amount": "1.00"})
        await killed_at(mortals, place, command(order_id))

        was = {letter_id: state for letter_id, state, _ in desk.rows(order_id)}
        code = await done(mortals, command(order_id))
        assert code == (0 if len(was) == 1 else 2)
        assert len(was) == 2 or was == {named(f"{order_id}"): "open"}, "half done"
        old, new = sorted(desk.rows(order_id), key=lambda row: row[2] is not None)
        assert (old[1], new[1], new[2]) == ("resolved", "open", named(f"{order_id}"))
        assert desk.acts(old[0])["edited"] == 1


async def test_an_import_takes_in_all_or_none(mortals: Mortals, desk: Desk, tmp_path: Path) -> None:
    """Letters as export writes them, of another ledger."""
    desk.land(named("model"), {"order_id": "model", "amount": "1.00"})
    model = desk.read(named("model"))

    def file_for(order_id: str) -> list[str]:
        path = tmp_path / f"{order_id}.jsonl"
        body = json.dumps({"order_id": order_id, "amount": "1.00"}).encode()
        told: dict[str, Any] = {"order_id": order_id, "body": body, "amount_minor": 100, "currency": "usd"}
        lines = [line_of(replace(model, letter_id=named(f"{order_id}-{number}"), **told)) for number in (1, 2)]
        path.write_text("".join(lines))
        return ["dead-letters", "import", str(path), "--why", "a test"]

    for place in await lines_of(mortals, file_for("first"), tmp_path / "record.json", is_sqlite=desk.is_sqlite):
        order_id = named_after(place)
        command = file_for(order_id)
        await killed_at(mortals, place, command)

        assert len(desk.rows(order_id)) in (0, 2), "half done"
        assert await done(mortals, command) == 0
        assert [state for _, state, _ in desk.rows(order_id)] == ["open"] * 2
        for letter_id, _, _ in desk.rows(order_id):
            assert desk.acts(letter_id) == {"imported": 1}


async def test_a_replay_is_finished_by_the_next_and_charges_once(
    mortals: Mortals,
    desk: Desk,
    make_worker: Callable[..., WorkerProcess],
    shop: Shop,
    stripe: SandboxControl,
    tmp_path: Path,
) -> None:
    await shop.subscribe()
    running = await make_worker(LOG_LEVEL="info").until_subscribed()

    def command(order_id: str) -> list[str]:
        return ["dead-letters", "replay", named(f"{order_id}")]

    desk.land(named("first"), {"order_id": "first", "amount": "1.00"})
    sent = ["first"]
    for place in await lines_of(mortals, command("first"), tmp_path / "record.json", is_sqlite=desk.is_sqlite):
        order_id = named_after(place)
        sent.append(order_id)
        desk.land(named(f"{order_id}"), {"order_id": order_id, "amount": "1.00"})
        await killed_at(mortals, place, command(order_id))

        resumed = await done(mortals, ["dead-letters", "replay", "--resume", "last"])
        if desk.rows(order_id)[0][1] == "open":  # it was killed before its selection was frozen
            assert resumed == 2
            assert await done(mortals, command(order_id)) == 0
        assert desk.rows(order_id)[0][1] == "resolved"
        assert desk.acts(named(f"{order_id}")) == {"landed": 1, "replayed": 1, "resolved": 1}
    await until(lambda: shop.events_per_order().keys() >= set(sent), what="an event for each")
    assert await running.stop() == 0

    assert shop.events_per_order() == dict.fromkeys(sent, 1)
    intents = Counter(intent["metadata"]["order_id"] for intent in await stripe.intents(limit=10_000))
    assert intents == dict.fromkeys(sent, 1)
