"""The steps of a dead letter through the ledger, each with what it needs by default."""

from dataclasses import replace
from typing import Any

import sqlalchemy as sa

from schemas import AmqpProperties
from tests.ledger.steps import NOW, later, rows
from worker.ledger import letter_moves, letters, replays
from worker.ledger.acts import history
from worker.ledger.ledger import Ledger
from worker.ledger.letters import LetterFilter
from worker.ledger.schema import ACTS, REPLAY_ITEMS
from worker.letter import Landing, Letter, LetterState, Verdict, VerdictKind, cause_of, group_of
from worker.payment import Operation, Payment

SAFE = Verdict(VerdictKind.SAFE, "no call was begun")
OPERATOR = "anna@desk"
# A ledger on SQLite that takes no letters of orders named so, and one that does again.
REFUSE_LETTERS = sa.text(
    "CREATE TRIGGER refuse_letters BEFORE INSERT ON letters WHEN NEW.order_id LIKE 'order-%' "
    "BEGIN SELECT RAISE(ABORT, 'refused by the test'); END"
)
REFUSE_NO_LETTERS = sa.text("DROP TRIGGER refuse_letters")


def letter(letter_id: str = "dl_1", **changed: Any) -> Letter:
    """As the intake makes it of a message that lands for the first time."""
    fields: dict[str, Any] = {
        "state": LetterState.OPEN,
        "reason": "bad_message",
        "error": "amount: is missing",
        "order_id": "o-1",
        "body": f'{{"order_id": "o-1", "of": "{letter_id}"}}'.encode(),
        "properties": AmqpProperties(message_id="m-1", headers={"traceparent": "00-trace"}),
        "attempts": 0,
        "landings": 1,
        "landing_id": "a-1",
        "landed_at": NOW,
        "moved_at": NOW,
        "amount_minor": 1250,
        "currency": "usd",
        "first_seen": later(-60),
        **changed,
    }
    cause = cause_of(fields["reason"], fields["error"])
    return Letter(letter_id=letter_id, **{"cause": cause, "group_id": group_of(cause), **fields})


def landing_of(arrived: Letter, failures: tuple[str, ...] = ()) -> Landing:
    return Landing(
        arrived.landing_id,
        arrived.reason,
        arrived.error,
        arrived.attempts,
        arrived.first_seen,
        arrived.landed_at,
        failures,
    )


async def land(ledger: Ledger, arrived: Letter | None = None, *, other_id: str = "dl_other", **changed: Any) -> str:
    """One arrival; changed: of the letter."""
    arrived = replace(arrived or letter(), **changed)
    return await ledger.run(letters.land, arrived, landing_of(arrived), other_id=other_id, now=arrived.landed_at)


async def land_again(ledger: Ledger, letter_id: str = "dl_1", *, landing_id: str = "a-2", after_s: float = 100) -> str:
    """The same message, with another failure, later."""
    moment = later(after_s)
    failed = letter(
        letter_id,
        reason="retries_exhausted",
        error="connection: refused",
        attempts=3,
        landing_id=landing_id,
        landed_at=moment,
        moved_at=moment,
    )
    return await land(ledger, failed)


async def land_many(ledger: Ledger, count: int, **changed: Any) -> list[str]:
    """Letters of as many orders, one a second; their ids in that order."""

    def put_in(conn: Any) -> list[str]:
        made = [
            letter(f"dl_{number:05}", order_id=f"o-{number}", landed_at=later(number), **changed)
            for number in range(count)
        ]
        for each in made:
            letters.land(conn, each, landing_of(each), other_id="dl_other", now=each.landed_at)
        return [each.letter_id for each in made]

    return await ledger.run(put_in)


async def read(ledger: Ledger, letter_id: str = "dl_1") -> Letter:
    found = await ledger.run(letters.read, letter_id)
    assert found is not None
    return found


async def state_of(ledger: Ledger, letter_id: str = "dl_1") -> LetterState:
    return (await read(ledger, letter_id)).state


def always(verdict: Verdict = SAFE) -> replays.Judge:
    def judge(_: Letter, __: Payment | None, ___: Operation | None) -> Verdict:
        return verdict

    return judge


async def make_replay(ledger: Ledger, replay_id: str = "rp_1", *ids: str, after_s: float = 200, **chosen: Any) -> int:
    """Of the letters with these ids, or of all."""
    meant = LetterFilter(ids=ids, **chosen)
    return await ledger.run(
        replays.make_replay, replay_id, meant, by=OPERATOR, selection="as chosen", now=later(after_s)
    )


async def take(
    ledger: Ledger, replay_id: str = "rp_1", *, size: int = 1000, verdict: Verdict = SAFE, after_s: float = 300
) -> list[str]:
    """The ids of the letters of the next wave."""
    taken = await ledger.run(
        replays.take_wave, replay_id, size=size, judge=always(verdict), by=OPERATOR, now=later(after_s)
    )
    return [each.letter_id for each in taken]


async def replay_one(ledger: Ledger, replay_id: str = "rp_1", letter_id: str = "dl_1") -> None:
    """The letter is with the worker."""
    assert await make_replay(ledger, replay_id, letter_id) == 1
    assert await take(ledger, replay_id) == [letter_id]


async def resolve(ledger: Ledger, letter_id: str = "dl_1", *, after_s: float = 400) -> bool:
    body = await ledger.run(letters.body_of, letter_id) or b""
    return await ledger.run(letters.resolve, letter_id, body=body, now=later(after_s))


async def discard(ledger: Ledger, *ids: str, **chosen: Any) -> int:
    """How many were."""
    meant = LetterFilter(ids=ids, **chosen)
    return (await ledger.run(letter_moves.discard, meant, by=OPERATOR, why="a test order", now=later(500))).count


async def restore(ledger: Ledger, *ids: str, **chosen: Any) -> int:
    """How many discarded ones were."""
    meant = LetterFilter(ids=ids, **chosen)
    return (await ledger.run(letter_moves.restore, meant, by=OPERATOR, why=None, now=later(600))).discarded.count


async def bring_to(ledger: Ledger, state: LetterState, letter_id: str = "dl_1") -> None:
    """An open letter to another state, as operators would."""
    if state is LetterState.DISCARDED:
        assert await discard(ledger, letter_id) == 1
    elif state is not LetterState.OPEN:
        await replay_one(ledger, f"rp_{letter_id}", letter_id)
        if state is LetterState.RESOLVED:
            assert await resolve(ledger, letter_id)
    assert await state_of(ledger, letter_id) is state


async def acts(ledger: Ledger, letter_id: str | None = None) -> list[str]:
    """What was done, oldest first."""
    return [act.act for act in await ledger.run(history, letter_id=letter_id, limit=100_000)]


async def items(ledger: Ledger, replay_id: str = "rp_1") -> dict[str, str]:
    """What became of each letter of a replay, in the replay's order."""
    found = [row for row in await rows(ledger, REPLAY_ITEMS) if row["replay_id"] == replay_id]
    return {row["letter_id"]: row["state"] for row in sorted(found, key=lambda row: row["position"])}


async def count_acts(ledger: Ledger) -> int:
    return len(await rows(ledger, ACTS))
