"""Whatever is sent: a dead letter whose reason names the field, nothing charged, the good order behind it done."""

import asyncio
import json
import struct
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from unittest.mock import ANY

import aio_pika
import pytest
from pamqp import commands

from tests.harness import Shop, WorkerProcess, dead_letters, run_cli, until
from worker.sandbox.stripe_control import SandboxControl

MakeWorker = Callable[..., WorkerProcess]
CARD = "4242424242424242"


def an_order(**fields: Any) -> bytes:
    return json.dumps({"order_id": "order-bad", "amount": "10.00", **fields}).encode()


def raw_order(**fields: str) -> bytes:
    """An order whose given fields are written into the JSON as they are."""
    known = {"order_id": '"order-bad"', "amount": '"10.00"', **fields}
    return ("{" + ", ".join(f'"{name}": {text}' for name, text in known.items()) + "}").encode()


# name → (body, what the error must name)
BODIES: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "body"),
    "not JSON": (b"order please", "body"),
    "not UTF-8": (b'{"order_id": "\xff\xfe"}', "body"),
    "two MiB": (b'{"order_id": "order-bad", "filler": "' + b"x" * 2 * 1024 * 1024 + b'"}', "body"),
    "50,000 levels deep": (b'{"order_id": ' + b"[" * 50_000 + b"]" * 50_000 + b"}", "body"),
    "half an object": (b'{"order_id": "order-bad"', "body"),
    "an array": (b"[1, 2]", "body"),
    "another JSON object": (b'{"hello": "world"}', "order_id"),
    "NaN": (raw_order(amount="NaN"), "body"),
    "Infinity": (raw_order(amount="Infinity"), "body"),
    "1e400": (raw_order(amount="1e400"), "amount"),
    "true": (raw_order(amount="true"), "amount"),
    "underscores": (raw_order(amount='"1_000"'), "amount"),
    "a fraction of a cent": (raw_order(amount='"10.005"', currency='"USD"'), "amount"),
    "a fraction of a yen": (raw_order(amount='"500.5"', currency='"JPY"'), "amount"),
    "Arabic digits": (raw_order(amount='"\\u0661\\u0660\\u066b\\u0660\\u0660"'), "amount"),
    "an unknown currency": (raw_order(currency='"ZZZ"'), "currency"),
    "zero": (raw_order(amount='"0.00"'), "amount"),
    "a negative": (raw_order(amount='"-5.00"'), "amount"),
    "an empty order id": (raw_order(order_id='""'), "order_id"),
    "5,000 letters of order id": (raw_order(order_id='"' + "a" * 5000 + '"'), "order_id"),
    "NUL in the order id": (raw_order(order_id='"order\\u0000"'), "order_id"),
    "NUL in the description": (raw_order(description='"a\\u0000b"'), "description"),
    "NUL in a metadata value": (raw_order(metadata='{"key": "a\\u0000b"}'), "metadata.key"),
    "the amount twice": (b'{"order_id": "order-bad", "amount": "1.00", "amount": "9.00"}', "amount"),
    "a card number in the description": (an_order(description=f"card {CARD}"), "description"),
    "a card number in a field nobody reads": (an_order(note={"deep": [CARD]}), "note.deep.0"),
    "a card number as the order id": (an_order(order_id=CARD), "order_id"),
    "a card number with dashes": (an_order(metadata={"k": "4242-4242-4242-4242"}), "metadata.k"),
    "a card number as a JSON number": (raw_order(number=CARD), "number"),
    "a security code": (an_order(cvc="123"), "cvc"),
    "another type of event": (
        json.dumps({"specversion": "1.0", "id": "1", "source": "s", "type": "order.updated", "data": {}}).encode(),
        "type",
    ),
    "an old CloudEvent": (
        json.dumps({"specversion": "0.3", "id": "1", "source": "s", "type": "order.created", "data": {}}).encode(),
        "specversion",
    ),
    "confirm without a payment method": (an_order(confirm=True), "payment_method"),
}


class RawProperties(commands.Basic.Properties):
    """AMQP properties written on the wire as given: flags, then bytes that no decoder likes."""

    def __init__(self, flag: int, data: bytes) -> None:
        super().__init__(message_id="never-written")
        self._raw = flag.to_bytes(2) + data

    def marshal(self) -> bytes:
        return self._raw


class DoubleHeaders(RawProperties):
    """Headers with their floats as AMQP doubles, as other clients write them; pamqp would write 32 bits."""

    def __init__(self, headers: dict[str, Any]) -> None:
        super().__init__(8192, a_table(b"".join(map(self._field, headers, headers.values()))))

    def _field(self, name: str, value: Any) -> bytes:
        return bytes([len(name)]) + name.encode() + self._value(value)

    def _value(self, value: Any) -> bytes:
        if isinstance(value, float):
            return b"d" + struct.pack(">d", value)
        if isinstance(value, int):
            return b"l" + value.to_bytes(8)
        if isinstance(value, str):
            return b"S" + len(value).to_bytes(4) + value.encode()
        if isinstance(value, list):
            return b"A" + a_table(b"".join(map(self._value, value)))
        if isinstance(value, dict):
            return b"F" + a_table(b"".join(map(self._field, value, value.values())))
        return b"V"


def a_table(content: bytes) -> bytes:
    return len(content).to_bytes(4) + content


def nested_tables(depth: int) -> bytes:
    table = a_table(b"")
    for _ in range(depth):
        table = a_table(b"\x01kF" + table)
    return table


NANOSECONDS = 1_760_000_000_000_000_000
PROPERTIES: dict[str, tuple[RawProperties, str]] = {
    "a timestamp in nanoseconds": (RawProperties(64, NANOSECONDS.to_bytes(8)), "timestamp"),
    "a timestamp in microseconds": (RawProperties(64, (NANOSECONDS // 1000).to_bytes(8)), "timestamp"),
    "a message id that is not UTF-8": (RawProperties(128, b"\x02\xff\xfe"), "message_id"),
    "a type that is not UTF-8": (RawProperties(32, b"\x02\xff\xfe"), "type"),
    "a header key that is not UTF-8": (RawProperties(8192, a_table(b"\x02\xff\xfeS\x00\x00\x00\x01a")), "headers"),
    "a nanosecond time in a header": (
        RawProperties(8192, a_table(b"\x01kT" + NANOSECONDS.to_bytes(8))),
        "headers",
    ),
    "headers nested 500 deep": (RawProperties(8192, nested_tables(500)), "headers"),
    "headers nested 100 deep": (RawProperties(8192, nested_tables(100)), "headers"),
}


@pytest.fixture
async def world(make_worker: MakeWorker, shop: Shop) -> WorkerProcess:
    await shop.subscribe()
    return await make_worker(DEAD_LETTER_CEILING="1").until_subscribed()


async def test_every_hostile_body_becomes_a_dead_letter_that_names_the_field(
    world: WorkerProcess, shop: Shop, stripe: SandboxControl, environment: dict[str, str]
) -> None:
    for name, (body, _) in BODIES.items():
        await shop.send(body, message_id=name)
    await shop.send({"order_id": "order-good", "amount": "10.00"})
    await shop.until_events(1)
    letters = {letter["event_id"]: letter for letter in await until_letters(environment, len(BODIES))}

    wrong = {name: letters[name]["error"] for name, (_, field) in BODIES.items() if field not in letters[name]["error"]}
    assert not wrong
    assert letters.keys() == BODIES.keys()
    assert [event["subject"] for event in shop.events] == ["order-good"]
    charged = [row["order_id"] for row in await stripe.record(method="POST")]
    assert charged == ["order-good"], "nothing of them reached Stripe"
    assert world.is_running()
    assert CARD not in json.dumps(list(letters.values()))
    assert resident_mib(world) < 120


async def test_properties_that_cannot_be_decoded_become_dead_letters_on_one_connection(
    world: WorkerProcess, shop: Shop, stripe: SandboxControl, environment: dict[str, str]
) -> None:
    for name, (properties, _) in PROPERTIES.items():
        await publish_raw(shop, an_order(description=name), properties)
    await shop.send({"order_id": "order-good", "amount": "10.00"})
    await shop.until_events(1)
    letters = await until_letters(environment, len(PROPERTIES))

    named = sorted(letter["error"].partition(":")[0] for letter in letters)
    assert named == sorted(field for _, field in PROPERTIES.values())
    assert {letter["reason"] for letter in letters} == {"bad_message"}
    assert [row["order_id"] for row in await stripe.record(method="POST")] == ["order-good"]
    assert len(world.said("consumer.subscribed")) == 1, "the connection was never lost"


async def test_a_dead_letter_keeps_body_and_headers_as_they_were(
    world: WorkerProcess, shop: Shop, environment: dict[str, str]
) -> None:
    body = b'{"order_id": "order-bad",   "amount": "10.005"}\n'
    sent_at = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
    await shop.send(
        body,
        message_id="event-1",
        correlation_id="correlation-1",
        content_type="text/plain",
        timestamp=sent_at,
        headers={"tenant": "blue", "depth": {"a": [1, "two", None, True]}, "big": 2**63 - 1},
    )
    [letter] = await until_letters(environment, 1)
    shown = await show(environment, letter)

    assert shown["body"].encode() == body
    assert shown["properties"] == {
        "content_type": "text/plain",
        "correlation_id": "correlation-1",
        "timestamp": sent_at.isoformat(),
        "headers": {"tenant": "blue", "depth": {"a": [1, "two", None, True]}, "big": 2**63 - 1},
    }
    assert letter["reason"] == "bad_message"
    assert (letter["order_id"], letter["event_id"], letter["attempts"]) == ("order-bad", "event-1", 1)
    assert letter["first_seen"] is not None
    assert letter["last_seen"] is not None


async def test_card_numbers_are_masked_wherever_they_stood(
    world: WorkerProcess, shop: Shop, environment: dict[str, str], tmp_path: Path
) -> None:
    escaped = "".join(f"\\u00{ord(digit):02x}" for digit in CARD)
    await shop.send(an_order(description=f"my card is {CARD}"), message_id="plain")
    await shop.send(raw_order(description=f'"{escaped}"'), message_id="escaped")
    await shop.send(b"\xff not JSON " + CARD.encode(), message_id="bytes")
    await shop.send(an_order(), message_id="header", headers={"note": {"card": CARD}})
    await shop.send(an_order(), message_id=CARD)
    await shop.send(an_order(), message_id="correlation", correlation_id=CARD)
    await shop.send(an_order(), message_id="reply", reply_to=CARD)
    await shop.send(an_order(), message_id="type", content_type=f"text/{CARD}")
    letters = await until_letters(environment, 8)
    shown = [await show(environment, letter) for letter in letters]

    kept = json.dumps(shown).encode() + b"".join(path.read_bytes() for path in tmp_path.glob("payments.db*"))
    assert CARD.encode() not in kept
    assert escaped.encode() not in kept
    assert b"************4242" in kept
    assert {letter["reason"] for letter in letters} == {"card_data"}
    assert CARD not in world.log.read_text()


@pytest.mark.parametrize(
    "headers",
    [
        {"weight": 1e300},
        {"payment-worker-deliveries": 2**63 - 1},
        {"payment-worker-first-seen": "0001-01-01T00:00:00+14:00"},
        {"payment-worker-original-headers": {"deep": [1.5, None, {"er": 1e39}]}},
    ],
    ids=["a double", "a huge count", "the beginning of time", "wrapped already"],
)
async def test_headers_that_cannot_be_written_again_become_one_dead_letter(
    headers: dict[str, Any], world: WorkerProcess, shop: Shop, environment: dict[str, str]
) -> None:
    """An error while settling would bring the message again, for ever."""
    await publish_raw(shop, an_order(amount="0"), DoubleHeaders(headers))
    await shop.send({"order_id": "order-good", "amount": "10.00"})
    await shop.until_events(1)

    [letter] = await until_letters(environment, 1)
    assert (letter["reason"], letter["order_id"]) == ("bad_message", "order-bad")
    assert len(world.said("consumer.subscribed")) == 1


async def test_a_body_made_to_keep_the_card_search_busy_holds_up_nobody(
    world: WorkerProcess, shop: Shop, environment: dict[str, str]
) -> None:
    await shop.send(b"4 " * 512 * 1024)
    await shop.send({"order_id": "order-good", "amount": "10.00"})
    await shop.until_events(1)
    await until_letters(environment, 1)

    assert len(world.said("consumer.subscribed")) == 1, "the connection was never lost"
    good, bad = world.said("payment.intent_created")[0], world.said("order.dead_lettered")[0]
    assert good["order_id"] == "order-good"
    assert bad["reason"] == "bad_message"


async def test_letters_that_somebody_else_put_there_are_listed_whatever_their_headers(
    world: WorkerProcess, shop: Shop, environment: dict[str, str]
) -> None:
    strange: list[dict[str, Any]] = [
        {"payment-worker-order-id": 5, "payment-worker-letter-id": {"a": 1}, "payment-worker-reason": [1]},
        {"payment-worker-order-id": datetime(2026, 1, 1, tzinfo=UTC), "payment-worker-last-seen": "never"},
        {
            "payment-worker-letter-id": "[/red]",
            "payment-worker-reason": "\x1b]0;owned\x07",
            "payment-worker-error": "[/red]",
        },
    ]
    for headers in strange:
        message = aio_pika.Message(b"\xff", headers=headers)
        await shop.channel.default_exchange.publish(message, environment["DEAD_LETTERS_QUEUE"])

    letters = await until_letters(environment, 3)
    table = await asyncio.to_thread(run_cli, environment, "dead-letters", "list")

    assert [letter["order_id"] for letter in letters] == [None, None, None]
    assert table.returncode == 0, table.stderr
    assert "[/red]" in table.stdout
    assert "\x1b" not in table.stdout
    assert "\\x1b]0;owned" in table.stdout


async def test_a_letter_that_claims_to_be_ours_is_masked_and_judged_by_its_body(
    world: WorkerProcess, shop: Shop, environment: dict[str, str]
) -> None:
    claims = {
        "payment-worker-letter-id": "dl_" + "0" * 20,
        "payment-worker-reason": "bug",
        "payment-worker-error": "one line\nlanded yesterday: another one",
        "payment-worker-order-id": "order-of-somebody-else",
        "payment-worker-first-seen": "0001-01-01T00:00:00+00:00",
        "payment-worker-last-seen": "0001-01-01T00:00:00+14:00",
        "payment-worker-unreadable-properties": {"timestamp": "is no time", "of": 1},
    }
    body = b'{"order_id": "order-1", "amount": "12.50", "note": "4242 4242 4242 4242"}'
    message = aio_pika.Message(body, headers=claims)
    await shop.channel.default_exchange.publish(message, environment["DEAD_LETTERS_QUEUE"])

    [letter] = await until_letters(environment, 1)
    shown = await show(environment, letter)
    told = await asyncio.to_thread(run_cli, environment, "dead-letters", "show", letter["id"])

    assert "4242 4242" not in json.dumps(shown)
    assert shown["order_id"] == "order-1"
    assert min(shown["first_seen"], shown["last_seen"]) > "2026"
    assert shown["verdict"] == "blocked", "it was refused for a property that nobody could read"
    assert "timestamp: cannot be decoded: is no time" in shown["verdict_because"]
    assert told.returncode == 0, told.stderr
    assert not [line for line in told.stdout.splitlines() if line.startswith("landed yesterday")]


async def test_dead_letters_are_listed_oldest_first_as_often_as_one_looks(
    world: WorkerProcess, shop: Shop, environment: dict[str, str]
) -> None:
    for number in range(120):
        await shop.send(raw_order(amount='"0"', order_id=f'"order-{number}"'), message_id=f"m-{number}")
    first = await until_letters(environment, 120)
    landed = [letter["last_seen"] for letter in first]
    assert landed == sorted(landed)

    limited = await dead_letters(environment, "--limit", "2")
    assert [letter["id"] for letter in limited] == [letter["id"] for letter in first[:2]]
    assert await dead_letters(environment) == [letter | {"age_s": ANY} for letter in first]


async def test_memory_stays_bounded_under_many_large_messages(
    world: WorkerProcess, shop: Shop, environment: dict[str, str]
) -> None:
    large = b'{"order_id": "order-bad", "filler": "' + b"x" * 1024 * 1024 + b'"}'
    for number in range(100):
        await shop.send(large, message_id=f"m-{number}")
    await until_letters(environment, 100)
    await shop.send({"order_id": "order-good", "amount": "10.00"})
    await shop.until_events(1)

    assert resident_mib(world) < 250, "64 of them may be held at once, at 1 MiB each, and copied once"


def resident_mib(worker: WorkerProcess) -> int:
    status = Path(f"/proc/{worker.process.pid}/status").read_text()
    return int(status.split("VmRSS:")[1].split()[0]) // 1024


async def until_letters(environment: dict[str, str], count: int) -> list[dict[str, Any]]:
    async def enough() -> list[dict[str, Any]] | None:
        letters = await dead_letters(environment)
        return letters if len(letters) >= count else None

    letters: list[dict[str, Any]] = await until(enough, what=f"{count} dead letters")
    assert len(letters) == count
    return letters


async def show(environment: dict[str, str], letter: dict[str, Any]) -> dict[str, Any]:
    done = await asyncio.to_thread(run_cli, environment, "dead-letters", "show", letter["id"], "--json")
    assert done.returncode == 0, done.stderr
    shown: dict[str, Any] = json.loads(done.stdout)
    return shown


async def publish_raw(shop: Shop, body: bytes, properties: RawProperties) -> None:
    channel = await shop.channel.get_underlay_channel()
    await channel.basic_publish(
        body, exchange=shop.names["ORDERS_EXCHANGE"], routing_key="order.created", properties=properties
    )
